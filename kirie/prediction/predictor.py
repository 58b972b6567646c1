"""Pictures in, results out: resizing as the model asks, batching equal sizes, keeping the order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from kirie.classes import Classes
from kirie.cleanup import clean
from kirie.data.folders import resize_image, resized_size
from kirie.errors import KirieError
from kirie.models.contract import SegmentationModel
from kirie.models.device import memory_for, pick_device
from kirie.models.panoptic_fpn import PanopticFPN
from kirie.models.parts.instance import InstanceModel
from kirie.prediction.pictures import Picture
from kirie.prediction.selection import check_selection, select
from kirie.results import Result

T = TypeVar("T")

OPTIONS = {  # of a `Predictor`, that choose among what a model of a task gives
    "semantic": (),
    "instance": ("threshold", "classes", "max_detections"),
    "panoptic": ("threshold", "overlap", "stuff_area"),
}


class Answering(Protocol):
    """What is known of results before any: of a model's, or of those that two models make together."""

    @property
    def task(self) -> str:
        """Which of the three result types they have."""
        ...

    @property
    def classes(self) -> Classes:
        """The classes in them."""
        ...

    @property
    def in_channels(self) -> int:
        """C of the pictures."""
        ...


class Predicts(Protocol):
    """What turns pictures into results: a `Predictor`, or a `PanopticPair` in its place."""

    @property
    def model(self) -> Answering:
        """Where the results come from."""
        ...

    @property
    def batch_size(self) -> int:
        """Pictures that are best given at once."""
        ...

    @property
    def scores(self) -> bool:
        """Whether results keep probabilities per pixel."""
        ...

    def __call__(self, pictures: Sequence[Picture]) -> list[Any]:
        """One result per picture (H, W, C) uint8, in their order and at their size."""
        ...


class Predictor:
    """A model ready to be run on pictures.

    Args:
        model: the model; it is moved to the device and set to evaluation mode.
        device: "auto" (a GPU where there is one), or a torch device.
        batch_size: pictures of equal size run together; None chooses 1 on a CPU and 8 on a GPU.
        scores: keep per-pixel probabilities in the results.
        threshold: the lowest score of the objects that are kept; None keeps all that the model gives, as metrics need.
            Of a panoptic model, the score from which objects enter the map, None for its own.
        classes: names of the classes whose objects are kept; None keeps all.
        max_detections: how many objects of a picture are kept, the surest ones. The model gives that many too where its
            own limits are lower; those of the model that was handed in stay. None leaves it at these limits.
        overlap: of panoptic models, see `merging.MergeSettings`; None leaves it at the model's own, which stays.
        stuff_area: likewise.
        cleanup: whether the clean-up that a semantic model asks for is done.

    Raises:
        KirieError: when there is no such device, the batch size is below 1, a class is unknown, or objects are chosen
            of a model that gives none.
    """

    def __init__(
        self,
        model: SegmentationModel,
        *,
        device: str = "auto",
        batch_size: int | None = None,
        scores: bool = False,
        threshold: float | None = None,
        classes: Sequence[str] | None = None,
        max_detections: int | None = None,
        overlap: float | None = None,
        stuff_area: int | None = None,
        cleanup: bool = True,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise KirieError(f"A batch holds at least 1 picture, got a batch size of {batch_size}.")
        options: dict[str, Any] = {
            "threshold": threshold, "classes": classes, "max_detections": max_detections, "overlap": overlap,
            "stuff_area": stuff_area,
        }  # fmt: skip
        given = {name: value for name, value in options.items() if value is not None}
        _check_options(model.task, given)
        self._selection: dict[str, Any] = {}
        if isinstance(model, InstanceModel):
            check_selection(model.classes, **given)
            self._selection = given
            model = model if max_detections is None else model.giving(max_detections)
        elif isinstance(model, PanopticFPN):
            model = model.merging(**{"score" if name == "threshold" else name: v for name, v in given.items()})
        self.device = pick_device(device)
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else 8)
        self.scores = scores
        self.cleanup = model.cleanup if cleanup and model.task == "semantic" else None

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Picture]) -> list[Any]:
        """One result per picture (H, W, C) uint8, in their order and at their size.

        Raises:
            KirieError: when a picture has another shape or type, or the memory does not suffice.
        """
        for picture in pictures:
            _check(picture, self.model.in_channels)
        out: list[Any] = []
        for _, same in groupby(pictures, key=lambda picture: picture.shape):
            group = list(same)
            for start in range(0, len(group), self.batch_size):
                out += self._run(group[start : start + self.batch_size])
        return out

    def _run(self, pictures: Sequence[Picture]) -> list[Any]:
        """The results of at most a batch of pictures of one size."""
        height, width = pictures[0].shape[:2]
        inputs = self.model.inputs
        size = resized_size((height, width), inputs.short_side, inputs.long_side)
        need, mend = f"{len(pictures)} x {size[0]} x {size[1]} pixels at once", "Use smaller pictures, a smaller batch"
        with memory_for(need, self.device, mend=f"{mend} or another device."):
            scaled = np.stack([p if size == (height, width) else resize_image(p, size) for p in pictures])
            images = torch.from_numpy(scaled).to(self.device, non_blocking=True)  # (B, h, w, C)
            images = images.permute(0, 3, 1, 2).float().div_(255)  # (B, C, h, w), channels last in memory
            raw = self.model(images)
            cleanup = self.cleanup
            scores = self.scores or (cleanup is not None and cleanup.threshold is not None)
            results: list[Any] = self.model.decode(raw, [(height, width)] * len(pictures), scores=scores)
        if cleanup is not None:
            cleaned = (clean(result, cleanup) for result in results)
            results = [result if self.scores else replace(result, scores=None) for result in cleaned]
        return [select(result, **self._selection) for result in results] if self._selection else results

    def stream(self, pictures: Iterable[Picture]) -> Iterator[Result]:
        """Results one after another, in order, for any number of pictures; holds one batch at a time."""
        for batch in in_batches(pictures, self.batch_size):
            yield from self(batch)


def shown_from(model: SegmentationModel) -> float | None:
    """The score from which on an instance model's objects are worth showing to a person; None for another model."""
    return model.shown_threshold if isinstance(model, InstanceModel) else None


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in their order, so many at a time, the last ones in what is left; holds one batch at a time."""
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def read_ahead(read: Callable[[int], T], count: int, *, ahead: int = 4) -> Iterator[T]:
    """`read(0)`, `read(1)`, ... `read(count - 1)` in order, the next few read in threads while one is being used."""
    with ThreadPoolExecutor(2) as pool:
        waiting: deque[Future[T]] = deque(pool.submit(read, i) for i in range(min(ahead, count)))
        try:
            for index in range(count):
                item = waiting.popleft().result()
                if index + ahead < count:
                    waiting.append(pool.submit(read, index + ahead))
                yield item
        finally:
            for future in waiting:
                future.cancel()


def _check_options(task: str, given: Collection[str]) -> None:
    """Raises a KirieError where an option is none for models of this task."""
    wrong = [name for name in given if name not in OPTIONS[task]]
    if not wrong:
        return
    lacks = "finds no objects to choose among" if task == "semantic" else f"chooses by {', '.join(OPTIONS[task])}"
    serving = sorted({each for each, names in OPTIONS.items() if wrong[0] in names})
    raise KirieError(
        f"This model, for task {task!r}, {lacks}. Leave {', '.join(wrong)} out, or use a model for task "
        f"{' or '.join(serving)}."
    )


def _check(picture: Picture, channels: int) -> None:
    sound = isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3 and picture.size
    if not sound or picture.shape[2] != channels:
        came = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise KirieError(
            f"Expected a picture (H, W, {channels}) of uint8, got {came}; the model was built for {channels} channels."
        )
