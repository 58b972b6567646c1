"""What every metric of a task and its report are to the rest of kirie: one shape, whatever is counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self

from kirie.classes import Classes


class Report(Protocol):
    """Scores of a data set."""

    @property
    def classes(self) -> Classes:
        """Of the data set."""
        ...

    @property
    def score(self) -> float:
        """The number that training keeps the best of; NaN where nothing can be scored."""
        ...

    @property
    def convention(self) -> str:
        """How the numbers were made, in words."""
        ...

    def headline(self) -> Sequence[tuple[str, float, str]]:
        """The name, the value and a note on each of the few numbers to look at, the most important first."""
        ...

    def history_row(self) -> dict[str, float]:
        """The few scores that a training writes down at each measurement, `score` first."""
        ...

    def rows(self) -> list[dict[str, Any]]:
        """One dict per class for a table."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """All there is as plain JSON values; None where a score is undefined."""
        ...


class Metric(Protocol):
    """Collects what a report is made from; empty ones of several processes and pictures may be merged."""

    def update(self, result: Any, truth: Any) -> None:
        """Adds one picture."""
        ...

    def merge(self, other: Self) -> None:
        """Adds what another metric of the same kind has collected, behind its own."""
        ...

    def compute(self) -> Any:
        """The report on everything collected so far; the metric may go on collecting."""
        ...

    def quick_score(self) -> float:
        """One number for what was collected, so cheap that it may be asked for after every picture; NaN for none."""
        ...
