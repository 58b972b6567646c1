"""What the files of a data set say of the objects of one picture, and what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from kirie.results import Instances


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a data set, or worth a look.

    Attributes:
        severity: "fault" when training on it would fail or mislead, "note" when a person should know it.
        kind: a few words that equal faults share.
        what: what is wrong, naming the file.
        files: the files it is about.
        mend: how to mend it.
    """

    severity: Literal["fault", "note"]
    kind: str
    what: str
    files: tuple[str, ...]
    mend: str


class Objects(NamedTuple):
    """The objects of one picture, as its files state them.

    Attributes:
        truth: the objects that can be used, of the size that the label file is for; None where neither the label file
            nor the picture tells a size.
        faults: what is wrong, with the others and with these.
        refused: why the picture must not be learned from or measured on; '' when it can be.
    """

    truth: Instances | None
    faults: tuple[Fault, ...] = ()
    refused: str = ""
