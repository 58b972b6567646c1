"""From what a data set and a machine are to a recipe: measured facts, one table of rules, and the plan that follows."""
