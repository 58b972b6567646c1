"""What the files of a data set say of the objects of one picture."""

from __future__ import annotations

from typing import NamedTuple

from kirie.data.fault import Fault
from kirie.results import Instances, PanopticMap


class Objects(NamedTuple):
    """The objects of one picture, as its files state them.

    Attributes:
        truth: the objects that can be used, of the size that the label file is for, with all other segments where the
            truth is panoptic; None where neither the label file nor the picture tells a size.
        faults: what is wrong, with the others and with these.
        refused: why the picture must not be learned from or measured on; '' when it can be.
    """

    truth: Instances | PanopticMap | None
    faults: tuple[Fault, ...] = ()
    refused: str = ""
