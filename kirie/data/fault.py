"""One thing that is wrong with a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kirie.errors import counted

EXAMPLES = 3  # of the places in a file that are named


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a data set, or worth a look.

    Attributes:
        severity: "fault" when training on it would fail or mislead, "note" when a person should know it.
        kind: a few words that equal faults share.
        what: what is wrong, naming the file.
        files: the files it is about.
        mend: how to mend it.
        count: how often it is there, where one fault stands for all of a picture.
    """

    severity: Literal["fault", "note"]
    kind: str
    what: str
    files: tuple[str, ...]
    mend: str
    count: int = 1


def without_pixels(owner: str, file: str, count: int, places: Sequence[str] = ()) -> Fault:
    """The fault of objects that cover no pixel, which every format leaves out of the truth.

    Args:
        owner: the file, and the picture in it where it serves many.
        file: its path.
        count: of such objects.
        places: where in the file they stand.
    """
    what = f"{owner} has {counted(count, 'object')} without a pixel{named(places)}."
    mend = "Outline them anew, or take them out; they are left out of the truth."
    return Fault("fault", "object without pixels", what, (file,), mend, count)


def named(places: Sequence[str]) -> str:
    """The first of some places in a file in parentheses, behind a word; '' for none."""
    more = f" and {len(places) - EXAMPLES} more" if len(places) > EXAMPLES else ""
    return f" ({', '.join(places[:EXAMPLES])}{more})" if places else ""
