"""Whole pictures to learn from, each at a random size, in batches that are padded to the largest of their pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from kirie.data.augment import follow
from kirie.data.batch import AugmentedSamples, Batch, BatchPlan, Draw, TrainingLoader
from kirie.data.dataset import Dataset, Sample
from kirie.data.folders import resize_image, resized_size
from kirie.data.geometry import Geometry, cropping
from kirie.masks import Masks
from kirie.results import PanopticMap, Result, SemanticMap


@dataclass(frozen=True)
class ScaledSamples(AugmentedSamples):
    """Samples that are resized before all other augmentation, at each draw to another short side.

    Attributes:
        short_sides: the pixels of the shorter side, one of which is drawn; by seed, epoch and place alone.
        long_side: most pixels of the longer side; None for no limit.
    """

    short_sides: tuple[int, ...] = ()
    long_side: int | None = None

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Result, str]:
        rng = np.random.default_rng([self.seed, draw.epoch, draw.place + 1, 1])
        resized = _Resized(self.dataset, int(rng.choice(self.short_sides)), self.long_side)
        return AugmentedSamples(cast(Dataset, resized), self.settings, self.size, self.seed, self.own)[draw]


@dataclass(frozen=True)
class _Resized:
    dataset: Dataset
    short_side: int
    long_side: int | None

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        size = (sample.image.shape[0], sample.image.shape[1])
        target = resized_size(size, self.short_side, self.long_side)
        if target == size:
            return sample
        truth = follow(sample.truth, Geometry(target, cropping(0, 0, size, target)))
        return Sample(resize_image(sample.image, target), truth, sample.name)


class PaddedLoader:
    """A `TrainingLoader` for pictures of unequal size: each batch has the size of its tallest and its widest picture.

    Smaller ones stand in its upper left corner. The rest is void in maps and without objects. Pictures are read ahead
    one by one, and put together in the training process.

    Args:
        samples: what to read; patches of no size of their own.
        plan: which samples, and how many make a batch.
        fill: the value of each channel, 0..255, where there is no picture.
        workers: as `TrainingLoader` has them, and so the rest.
        share: (n, of), the n-th of so many processes.
        pin: whether batches are put in page-locked memory, for a GPU.
    """

    def __init__(
        self,
        samples: AugmentedSamples,
        plan: BatchPlan,
        *,
        fill: Sequence[int],
        workers: int = 0,
        share: tuple[int, int] = (0, 1),
        pin: bool = False,
    ) -> None:
        self.plan, self._fill, self._pin = plan, fill, pin
        singles = replace(plan, batch_size=1)
        self._singles = TrainingLoader(samples, singles, workers=workers, share=share)

    def __len__(self) -> int:
        """Batches per epoch for this process; a rest of one picture joins the last of them."""
        return len(BatchPlan(len(self._singles), self.plan.batch_size))

    def epoch(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch in order, without the first `skip`.

        Raises:
            KirieError: when a sample cannot be read, or a worker was killed.
        """
        size = self.plan.batch_size
        singles = self._singles.epoch(epoch, skip=skip * size)
        for number in range(skip, len(self)):
            last = number + 1 == len(self)
            batch = padded_batch(list(singles if last else islice(singles, size)), self._fill)
            yield batch._replace(images=batch.images.pin_memory()) if self._pin else batch

    def close(self) -> None:
        """Ends the workers; another epoch starts new ones."""
        self._singles.close()


def padded_batch(parts: Sequence[Batch], fill: Sequence[int]) -> Batch:
    """One batch of several, each padded at the right and below to the height of the tallest, the width of the widest.

    Args:
        parts: of C channels.
        fill: C values in 0..255.
    """
    height, width = (max(part.images.shape[axis] for part in parts) for axis in (2, 3))
    count = sum(len(part.images) for part in parts)
    images = torch.tensor(fill, dtype=torch.uint8)[:, None, None].repeat(count, 1, height, width)  # (B, C, H, W)
    first = 0
    for part in parts:
        images[first : first + len(part.images), :, : part.images.shape[2], : part.images.shape[3]] = part.images
        first += len(part.images)
    truths = [padded_truth(truth, (height, width)) for part in parts for truth in part.truths]
    names = [name for part in parts for name in part.names]
    return Batch(images, truths, names, tuple(sample for part in parts for sample in part.samples))


def padded_truth(truth: Result, size: tuple[int, int]) -> Result:
    """The truth of a picture that stands in the upper left corner of one of `size` (H, W), void around it."""
    if truth.size == size:
        return truth
    if not isinstance(truth, SemanticMap | PanopticMap):
        return truth.with_masks(np.arange(len(truth.masks)), Masks.from_crops(truth.masks.crops(), size))
    room = [(0, full - own) for full, own in zip(size, truth.size, strict=True)]
    if isinstance(truth, SemanticMap):
        labels: Any = np.pad(truth.labels, room, constant_values=truth.classes.void)
        return SemanticMap(labels, truth.classes)
    return PanopticMap(np.pad(truth.ids, room), truth.segments, truth.classes)
