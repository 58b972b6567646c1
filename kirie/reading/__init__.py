"""Reading picture and label files: one set of rules and limits for training, prediction and drawing alike."""
