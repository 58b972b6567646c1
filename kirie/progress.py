"""Progress on the terminal: a bar with the time left, and nothing at all when output is not a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")


_SHOWN: list[Bar] = []


class Bar:
    """One line of progress: `advance` as work is done, `tell` to change the words beside it."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, steps: int = 1) -> None:
        """Moves the bar on."""
        self._progress.advance(self._task, steps)

    def tell(self, words: str) -> None:
        """Shows a few words, such as the loss, at the end of the line."""
        self._progress.update(self._task, words=words)

    def restart(self, title: str, total: int, done: int = 0) -> None:
        """Begins anew with another title and total."""
        self._progress.reset(self._task, total=total, completed=done, description=title, words="")

    def say(self, words: str) -> None:
        """Prints a line that stays, above the bar."""
        _print(self._progress.console, words)


@contextmanager
def bar(title: str, total: int | None = None, *, hidden: bool = False) -> Iterator[Bar]:
    """A bar that vanishes when its block ends; invisible when standard error is not a terminal, or when `hidden`."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=hidden or not console.is_terminal) as progress:
        line = Bar(progress, progress.add_task(title, total=total, words=""))
        _SHOWN.append(line)
        try:
            yield line
        finally:
            _SHOWN.remove(line)


def tell(words: str) -> None:
    """Shows a few words at the end of the bar that is shown, if any: for whoever does the work and does not hold it."""
    if _SHOWN:
        _SHOWN[-1].tell(words)


def tracked(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """The items one after another, with a bar that counts them."""
    with bar(title, total) as line:
        for item in items:
            yield item
            line.advance()


def say(words: str) -> None:
    """Prints a line on standard error, where no bar is shown."""
    _print(Console(stderr=True), words)


def _print(console: Console, words: str) -> None:
    # Soft wrap: rich would break lines at 80 columns in a log file.
    console.print(words, markup=False, highlight=False, soft_wrap=True)
