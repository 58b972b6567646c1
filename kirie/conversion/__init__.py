"""Data sets written in the formats in use. `WRITERS` is the table of formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kirie.errors import KirieError
from kirie.lookup import look_up

if TYPE_CHECKING:
    from kirie.conversion.writer import Writer

WRITERS = {
    "masks": "kirie.conversion.folders:MasksWriter",
    "ids": "kirie.conversion.folders:IdsWriter",
    "coco": "kirie.conversion.coco:CocoWriter",
    "coco_panoptic": "kirie.conversion.coco_panoptic:CocoPanopticWriter",
    "yolo": "kirie.conversion.yolo:YoloWriter",
    "voc": "kirie.conversion.published:VocWriter",
    "cityscapes": "kirie.conversion.published:CityscapesWriter",
    "ade20k": "kirie.conversion.published:Ade20kWriter",
}


def writer_class(name: str) -> type[Writer]:
    """The writer of a format.

    Raises:
        KirieError: when the name is no row of `WRITERS`.
    """
    if name not in WRITERS:
        raise KirieError(f"Data sets can be written as {', '.join(WRITERS)}; got {name!r}.")
    form: type[Writer] = look_up(WRITERS[name])
    return form
