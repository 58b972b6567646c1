"""What was found in a data set, as values and as lines of text."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from kirie.data.fault import Fault
from kirie.data.faults import grouped
from kirie.errors import counted


@dataclass(frozen=True)
class ClassFacts:
    """How much there is of one class.

    Attributes:
        name: of the class.
        pixels: in all label files.
        share: of all pixels that are not void, in [0, 1].
        images: pictures in which it occurs.
        instances: objects, without crowds; None where label files do not tell objects apart, and for stuff.
    """

    name: str
    pixels: int
    share: float
    images: int
    instances: int | None


@dataclass(frozen=True)
class Spread:
    """Smallest, 5 %, middle, 95 % and largest of some numbers."""

    least: float
    low: float
    median: float
    high: float
    most: float


@dataclass(frozen=True)
class Inspection:
    """What was found in a data set.

    Attributes:
        path: the folder.
        task: semantic, instance or panoptic, or '' when the label files could not be understood.
        format: the kind of the label files, as `LabelFormat.kind` has it; '' likewise.
        layout: where pictures and label files lie, in words.
        splits: pictures of each split; pictures in no split under ''.
        images: pictures inspected.
        sizes: (H, W) of the smallest, the middle and the largest picture by pixels; empty when none could be read.
        distinct_sizes: number of different sizes.
        image_kinds: pictures by bits and channels, in words.
        classes: one entry per class, in order.
        void_share: share of all pixels that is void.
        per_image: spread of the number of objects in a picture, without crowds; None where they are not told apart.
        areas: spread of their pixels; None likewise, or when there are no objects.
        faults: faults and notes, in the order found.
        published: the published data set whose classes these are, as no table beside the data names others; else ''.
        crowds: regions that hold many objects of a class together, which are neither learned nor counted.
    """

    path: str
    task: str
    format: str
    layout: str
    splits: dict[str, int]
    images: int
    sizes: tuple[tuple[int, int], ...]
    distinct_sizes: int
    image_kinds: dict[str, int]
    classes: tuple[ClassFacts, ...]
    void_share: float
    per_image: Spread | None
    areas: Spread | None
    faults: tuple[Fault, ...]
    published: str = ""
    crowds: int = 0

    @property
    def ok(self) -> bool:
        """Whether there is no fault (notes do not count)."""
        return not any(fault.severity == "fault" for fault in self.faults)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values, with `ok`."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return {**plain, "ok": self.ok}

    def lines(self) -> list[str]:
        """A summary in plain text; equal faults stand together with at most ten examples."""
        splits = ", ".join(f"{name or 'in no split'} {count}" for name, count in self.splits.items())
        out = [
            f"{self.path}: {counted(self.images, 'picture')} ({splits})",
            f"layout: {self.layout}",
            f"labels: {self.format or 'not understood'}, task {self.task or 'unknown'}"
            + (f", classes of {self.published}" if self.published else ""),
        ]
        if self.sizes:
            small, middle, large = (f"{height} x {width}" for height, width in self.sizes)
            sizes = small if self.distinct_sizes == 1 else f"{small} to {large}, middle {middle}"
            out.append(f"sizes (H x W): {sizes}; {self.distinct_sizes} different")
        out += [f"pictures: {count} of {kind}" for kind, count in self.image_kinds.items()]
        listed = [entry for entry in self.classes if entry.images or not self.published]
        width = max((len(entry.name) for entry in listed), default=0)
        for entry in listed:
            objects = "" if entry.instances is None else f", {counted(entry.instances, 'object')}"
            pictures = counted(entry.images, "picture")
            out.append(f"  {entry.name:<{width}}  {entry.share:7.2%} of pixels, in {pictures}{objects}")
        if self.void_share:
            out.append(f"  {'void':<{width}}  {self.void_share:7.2%} of all pixels")
        if self.per_image is not None:
            out.append(f"objects in a picture: {_spread_text(self.per_image)}")
        if self.areas is not None:
            out.append(f"pixels of an object: {_spread_text(self.areas)}")
        if self.crowds:
            out.append(f"crowds, neither learned nor counted: {counted(self.crowds, 'region')}")
        return out + grouped(self.faults)


def _spread_text(spread: Spread) -> str:
    least, low, middle, high, most = (f"{value:,.0f}" for value in dataclasses.astuple(spread))
    return f"{least} to {most}, middle {middle}, 90 % within {low} to {high}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
