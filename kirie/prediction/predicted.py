"""A picture and what a model saw in it, as those that write results get it: whole, or in parts when it is large."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy.typing as npt

from kirie.masks import Crop
from kirie.prediction.large_result import LargeResult
from kirie.prediction.pictures import Picture
from kirie.reading.georeference import Georeference, georeference
from kirie.reading.images import image_facts, read_numbers
from kirie.reading.remote import Url
from kirie.reading.windows import LargePicture, open_large
from kirie.results import Instances, things_of


@dataclass(frozen=True)
class Predicted:
    """A picture and what a model saw in it.

    Attributes:
        path: the picture's file, or its address.
        name: what the files of its results are called, unlike that of any other picture of the run.
        title: what tables call the picture: its file name, or its path where file names repeat.
        number: what COCO files call it, its `image_id`.
        picture: (H, W, C) uint8.
        result: of the type that the model's task gives.
    """

    path: Path | Url
    name: str
    title: str
    number: int
    picture: Any
    result: Any

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture."""
        size: tuple[int, int] = self.result.size
        return size

    def things(self) -> Self:
        """The same with the objects of a panoptic map alone."""
        return replace(self, result=things_of(self.result))

    def parts(self) -> Iterator[Instances]:
        """The objects in their order, some at a time."""
        yield self.result

    def pixels(self, crop: Crop) -> Picture:
        """The part of the picture (h, w, C) that a mask's box covers."""
        part: Picture = self.picture[_box(crop)]
        return part

    def numbers(self, crop: Crop) -> npt.NDArray[Any]:
        """The same in the numbers of the file, of which a model may have seen 8 bits alone."""
        part: npt.NDArray[Any] = self._numbers[_box(crop)]
        return part

    @cached_property
    def _numbers(self) -> npt.NDArray[Any]:
        deep = image_facts(self.path).bits > 8
        return read_numbers(self.path, self.picture.shape[2]) if deep else self.picture

    @cached_property
    def place(self) -> Georeference | None:
        """Where on Earth the picture lies, where its file says so."""
        if Path(self.path.name).suffix.lower() not in (".tif", ".tiff"):
            return None
        with open_large(self.path, self.picture.shape[2]) as picture:
            return georeference(picture.tags)


@dataclass(frozen=True)
class LargePredicted(Predicted):
    """The same of a picture that is not in memory.

    Attributes:
        picture: a `LargePicture`.
        result: a `LargeResult`.
    """

    picture: LargePicture
    result: LargeResult

    def things(self) -> Self:
        """The same with the objects of a panoptic map alone."""
        return replace(self, result=self.result.things())

    def parts(self) -> Iterator[Instances]:
        """The objects in their order, some at a time."""
        return self.result.parts()

    def pixels(self, crop: Crop) -> Picture:
        """The part of the picture (h, w, C) that a mask's box covers."""
        return self.picture.read(*_edges(crop))

    def numbers(self, crop: Crop) -> npt.NDArray[Any]:
        """The same in the numbers of the file."""
        return self.picture.numbers(*_edges(crop))

    @cached_property
    def place(self) -> Georeference | None:
        """Where on Earth the picture lies, where its file says so."""
        return georeference(self.picture.tags)


def _edges(crop: Crop) -> tuple[int, int, int, int]:
    height, width = crop.bits.shape
    return crop.top, crop.top + height, crop.left, crop.left + width


def _box(crop: Crop) -> tuple[slice, slice]:
    top, bottom, left, right = _edges(crop)
    return slice(top, bottom), slice(left, right)
