"""Batches for training: shuffled, augmented and read ahead by workers, the same for the same seed on every run.

What a worker draws depends on the seed, the epoch and the sample's place in the epoch alone, so neither the number of
workers nor a restart in mid-epoch changes a batch.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kirie.data.augment import AugmentSettings, apply_callable, augment
from kirie.data.dataset import Dataset
from kirie.data.sampling import ANYWHERE, Sampling, find_anchor
from kirie.errors import KirieError
from kirie.results import Result


class Batch(NamedTuple):
    """B samples as the training step takes them.

    Attributes:
        images: (B, C, H, W) uint8.
        truths: B truths of size (H, W).
        names: B names, to tell a person which pictures they are.
        samples: B numbers of theirs in the data set.
    """

    images: Tensor
    truths: list[Result]
    names: list[str]
    samples: tuple[int, ...] = ()


class Draw(NamedTuple):
    """Which sample to read, what seeds its augmentation, what its patch must contain; see `sampling.find_anchor`."""

    sample: int
    epoch: int
    place: int
    focus: int = ANYWHERE


@dataclass(frozen=True)
class BatchPlan:
    """Which samples make up the batches of an epoch, and how they are seeded.

    Attributes:
        samples: how many samples the data set has.
        batch_size: samples in a batch; the last one of an epoch may be smaller, but never a single sample.
        draws: how often each sample is drawn per epoch, each time with another crop.
        seed: of the shuffle.
        sampling: which samples are drawn more often and where their patches lie; None draws each `draws` times.

    Raises:
        KirieError: when there are no samples, or a number is below 1.
    """

    samples: int
    batch_size: int
    draws: int = 1
    seed: int = 0
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        if min(self.samples, self.batch_size, self.draws) < 1:
            raise KirieError(
                f"Batches need at least one sample, one draw of each and one per batch, got {self.samples}, "
                f"{self.draws} and {self.batch_size}."
            )

    def batches(self, epoch: int) -> list[list[Draw]]:
        """The batches of an epoch, in order.

        A rest that would leave a batch of one sample joins the batch before it, since batch norm cannot learn from one
        value per channel.
        """
        rng = np.random.default_rng([self.seed, epoch])
        if self.sampling is None:
            order = np.concatenate([rng.permutation(self.samples) for _ in range(self.draws)])
            draws = [Draw(int(index), epoch, place) for place, index in enumerate(order)]
        else:
            chosen = self.sampling.order(self.samples * self.draws, rng)
            draws = [Draw(index, epoch, place, focus) for place, (index, focus) in enumerate(chosen)]
        batches = [draws[start : start + self.batch_size] for start in range(0, len(draws), self.batch_size)]
        if len(batches) > 1 and len(batches[-1]) == 1 < self.batch_size:
            rest = batches.pop()
            batches[-1] += rest
        return batches

    def __len__(self) -> int:
        """Batches per epoch."""
        full, rest = divmod(self.samples * self.draws, self.batch_size)
        return full + (rest > 1 or (rest == 1 and full == 0))


@dataclass(frozen=True)
class AugmentedSamples:
    """A data set whose samples are read and augmented for a `Draw`.

    Attributes:
        dataset: where samples come from.
        settings: the augmentation.
        size: (H, W) of the patches, or None to keep each picture's own size.
        seed: together with epoch and place it seeds the augmentation.
        own: a user's `f(image=, mask=)`, run after the built-in augmentation. Whatever it draws from Python's, NumPy's
            and PyTorch's own random states is seeded too, and so is an albumentations pipeline.
    """

    dataset: Dataset
    settings: AugmentSettings
    size: tuple[int, int] | None
    seed: int = 0
    own: Callable[..., Any] | None = None

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Result, str]:
        sample = self.dataset[draw.sample]
        # NumPy takes [a, b] and [a, b, 0] for the same seed: places count from 1 to differ from the shuffle's.
        rng = np.random.default_rng([self.seed, draw.epoch, draw.place + 1])
        anchor = None
        if draw.focus != ANYWHERE:
            anchor = find_anchor(
                sample.truth, draw.focus, np.random.default_rng([self.seed, draw.epoch, draw.place + 1, 2])
            )
        image, truth = augment(sample.image, sample.truth, self.settings, rng, self.size, anchor)
        if self.own is not None:
            with _seeded(self.own, rng):
                image, truth = apply_callable(self.own, image, truth)
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return pixels, truth, sample.name


class TrainingLoader:
    """Batches of one epoch after another, read ahead by worker processes.

    Args:
        samples: what to read.
        plan: which samples, in which batches.
        workers: processes that read ahead; 0 reads in the training process itself. Never more than batches.
        share: (n, of) when several training processes divide each epoch: this one takes every of-th batch.
        pin: whether batches are put in page-locked memory, for a GPU.
    """

    def __init__(
        self,
        samples: AugmentedSamples,
        plan: BatchPlan,
        *,
        workers: int = 0,
        share: tuple[int, int] = (0, 1),
        pin: bool = False,
    ) -> None:
        self.plan = plan
        self.share = share
        self._samples = samples
        self._workers = min(workers, len(self))
        self._pin = pin
        self._upcoming: list[list[Draw]] = []
        self._loader: DataLoader[Any] | None = None

    def __len__(self) -> int:
        """Batches per epoch for this process."""
        return max(len(self.plan) // self.share[1], 1)

    def epoch(self, epoch: int, *, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch in order, without the first `skip`, which a resumed run has behind it.

        Raises:
            KirieError: when a sample cannot be read, the pictures of a batch differ in size, or a worker was killed.
        """
        number, of = self.share
        planned = self.plan.batches(epoch)
        # Every process must take as many steps as the others, so batches that do not divide evenly are left out.
        mine = planned[number::of][: len(self)] or planned[:1]
        self._upcoming[:] = mine[skip:]
        if not self._upcoming:
            return
        try:
            for batch, draws in zip(self._read(), mine[skip:], strict=True):
                if isinstance(batch, KirieError):
                    raise KirieError(str(batch))  # raising what this frame holds would keep it, and the workers, alive
                yield batch._replace(samples=tuple(draw.sample for draw in draws))
        except Exception as error:
            self.close()
            if isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error):
                raise KirieError(
                    "A process that reads pictures ahead was killed, most often for want of memory (in a container, of "
                    f"shared memory). Lower train.workers; 0 reads without them. ({str(error).splitlines()[0]})"
                ) from error
            raise

    def close(self) -> None:
        """Ends the workers; another epoch starts new ones."""
        self._loader = None

    def _read(self) -> Iterator[Batch | KirieError]:
        with warnings.catch_warnings():
            # More workers than cores are worth it where reading is slow: the user's choice.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            if self._loader is None:
                self._loader = DataLoader(
                    _Told(self._samples),  # type: ignore[arg-type]
                    batch_sampler=_Upcoming(self._upcoming),
                    num_workers=self._workers,
                    collate_fn=_collate,
                    worker_init_fn=_start_worker,
                    persistent_workers=self._workers > 0,
                    pin_memory=self._pin,
                    # It draws a seed for its workers, which nothing here uses; from its own source, for the global one
                    # is the model's, and a resumed run starts the loader once more.
                    generator=torch.Generator(),
                )
            return iter(self._loader)


@dataclass(frozen=True)
class _Told:
    """Samples in which a KirieError stands for a bad one; raised in a worker, it would come back as a traceback."""

    samples: AugmentedSamples

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Result, str] | KirieError:
        try:
            return self.samples[draw]
        except KirieError as error:
            return error


class _Upcoming:
    """A batch sampler over a list that the loader refills before each epoch (its workers stay alive meanwhile)."""

    def __init__(self, batches: list[list[Draw]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(list(self._batches))

    def __len__(self) -> int:
        return len(self._batches)


def _collate(samples: Sequence[tuple[Tensor, Result, str] | KirieError]) -> Batch | KirieError:
    whole = []
    for sample in samples:
        if isinstance(sample, KirieError):
            return sample
        whole.append(sample)
    images, truths, names = zip(*whole, strict=True)
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        return KirieError(
            f"The pictures of a batch differ in size (C, H, W): {', '.join(map(str, shapes[:4]))} (among {names[0]}, "
            f"{names[1]}...). Set train.patch, or train.batch_size to 1."
        )
    return Batch(torch.stack(images), list(truths), list(names))


def _start_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training process's to handle
    cv2.setNumThreads(0)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """Ends a worker whose training process was killed; it would wait for ever to hand over the batches it has read."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _seeded(own: Any, rng: np.random.Generator) -> Iterator[None]:
    """Seeds what a user's callable may draw from, and afterwards gives this process its random states back."""
    seed = int(rng.integers(2**32))
    if hasattr(own, "set_random_state"):  # albumentations
        own.set_random_state(np.random.default_rng(seed), random.Random(seed))
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPU as well
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
