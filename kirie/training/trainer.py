"""The training loop: read, step, measure, keep the best, save the state."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object

from kirie.data.batch import Batch, TrainingLoader
from kirie.data.dataset import Dataset
from kirie.errors import KirieError
from kirie.metrics.report import Metric
from kirie.models.contract import SegmentationModel
from kirie.models.device import memory_for
from kirie.models.file import save
from kirie.prediction.evaluate import measure
from kirie.prediction.predictor import Predictor
from kirie.progress import Bar, bar
from kirie.training.checkpoint import FILE, Standing, load_state, save_state
from kirie.training.optimise import moving_average, schedule, set_rate
from kirie.training.run import MODEL, Journal, write_samples
from kirie.training.step import LossModule, ends_group, group_size
from kirie.training.stop import StopSignal
from kirie.training.whole import PaddedLoader

SAVE_EVERY = 600.0  # seconds between saved states within a long epoch


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """What the loop needs to know; see `TrainRecipe` for what each means."""

    epochs: int
    learning_rate: float
    warmup: float
    schedule: str
    milestones: tuple[float, ...]
    gamma: float
    accumulate: int
    clip: float
    ema: float
    validate_every: int
    patience: int
    samples_every: int
    channels_last: bool


class Trainer:
    """Everything a training holds between two steps.

    A class of one's own, given to `train` or `fit`, derives from it: `__init__` may replace what it hands on (another
    optimiser, another data set to be measured on), and `after_step` and `after_epoch` are there to be filled.

    Args:
        model: what is trained.
        optimiser: over its parameters.
        loader: the batches it learns from.
        validation: the pictures it is measured on.
        settings: how it goes on.
        accelerator: device, processes and number format.
        folder: where the run is written.
        record: the recipe as plain values, to be kept in the model file.
    """

    def __init__(
        self,
        model: SegmentationModel,
        optimiser: Any,
        loader: TrainingLoader | PaddedLoader,
        validation: Dataset,
        settings: LoopSettings,
        *,
        accelerator: Accelerator,
        folder: Path,
        record: Mapping[str, Any],
    ) -> None:
        self.model, self.loader, self.validation, self.settings = model, loader, validation, settings
        self.accelerator, self.folder, self.record = accelerator, folder, record
        steps = math.ceil(len(loader) / settings.accumulate) * settings.epochs
        self.factor = schedule(
            settings.schedule,
            steps=steps,
            warmup=settings.warmup,
            milestones=settings.milestones,
            gamma=settings.gamma,
        )
        losses = LossModule(model, channels_last=settings.channels_last)
        self.layout = losses.layout
        self.module, self.optimiser = accelerator.prepare(losses, optimiser)
        self.average = moving_average(model, settings.ema) if settings.ema else None
        self.standing = Standing()
        plan = loader.plan
        self.sampling = plan.sampling if plan.sampling is not None and plan.sampling.settings.hard_ratio > 0 else None
        self._seen: list[str] = []  # pictures whose gradients are held

    @property
    def leader(self) -> bool:
        """Whether this process writes the files (one of several does)."""
        return bool(self.accelerator.is_main_process)

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.standing.finished or self.standing.epoch >= self.settings.epochs

    def run(self, stop: StopSignal) -> bool:
        """Trains to the end, or until told to stop; returns whether the end was reached."""
        if self.finished:
            return True
        journal = Journal(self.folder, step=self.standing.step) if self.leader else None
        with journal or nullcontext(), bar("training", len(self.loader), hidden=not self.leader) as line:
            while not self.finished:
                start = time.perf_counter()
                if not self._epoch(line, stop):
                    self.save_state()
                    break
                row = self._row(time.perf_counter() - start)
                if (self.standing.epoch + 1) % self.settings.validate_every == 0 or self._last_epoch():
                    line.tell("measuring")
                    row |= self._validate()
                self._close_epoch(row)
                self.after_epoch(row)
                if journal is not None:
                    journal.write(self.standing.history)
                    line.say(self._words(row))
                self.save_state()
                if self._told_to_stop(stop):
                    break
        return self.finished

    def timed_steps(self, count: int) -> list[float]:
        """The seconds of the first so many steps, waiting for their batches included; what they taught stays."""
        self.module.train()
        seconds: list[float] = []
        before = time.perf_counter()
        for batch in self.loader.epoch(0):
            self._step(batch, True, 1)
            now = time.perf_counter()
            seconds.append(now - before)
            before = now
            if len(seconds) == count:
                break
        self.loader.close()
        return seconds

    def after_step(self, batch: Batch, losses: Mapping[str, float]) -> None:
        """Does nothing; a class of one's own may, after each batch, of which it gets the losses by name."""

    def after_epoch(self, row: Mapping[str, float]) -> None:
        """Does nothing; a class of one's own may, after each epoch, of which it gets the history's row."""

    def _epoch(self, line: Bar, stop: StopSignal) -> bool:
        """One epoch, or the rest of one; False when it was told to stop before the end."""
        standing, batches, accumulate = self.standing, len(self.loader), self.settings.accumulate
        line.restart(f"epoch {standing.epoch + 1}/{self.settings.epochs}", batches, standing.batch)
        self.module.train()
        saved = time.monotonic()
        for batch in self.loader.epoch(standing.epoch, skip=standing.batch):
            ends = ends_group(standing.batch, batches, accumulate)
            losses = self._step(batch, ends, group_size(standing.batch, batches, accumulate))
            for name, value in losses.items():
                standing.sums[name] = standing.sums.get(name, 0.0) + value
            standing.batch += 1
            if self.sampling is not None:
                self.sampling.note(batch.samples, losses["loss"])
            self.after_step(batch, losses)
            line.advance()
            line.tell("stopping" if stop.asked else f"loss {standing.sums['loss'] / standing.batch:.4f}")
            # Gradients are not saved, so a training stops and is saved only where none are held.
            if not ends or standing.batch == batches:
                continue
            if self._told_to_stop(stop):
                return False
            if time.monotonic() - saved >= SAVE_EVERY:
                self.save_state()
                saved = time.monotonic()
        return True

    def _told_to_stop(self, stop: StopSignal) -> bool:
        """Whether any of the processes was, so that all stop after the same step."""
        if self.accelerator.num_processes == 1:
            return stop.asked
        asked = torch.tensor(float(stop.asked), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, "sum").item())

    def _step(self, batch: Batch, ends: bool, size: int) -> dict[str, float]:
        """Forward and backward on one batch of a group of `size`; the weights move where the group ends."""
        set_rate(self.optimiser, self.settings.learning_rate * self.factor(self.standing.step))
        need = f"a training step on {' x '.join(map(str, batch.images.shape))} values"
        mend = "Lower train.batch_size (train.accumulate makes up for it) or train.patch, or make the model smaller."
        with memory_for(need, self.accelerator.device, mend=mend):
            return self._learn(batch, ends, size)

    def _learn(self, batch: Batch, ends: bool, size: int) -> dict[str, float]:
        images = batch.images.to(self.accelerator.device, non_blocking=True)
        self._seen += batch.names
        with nullcontext() if ends else self.accelerator.no_sync(self.module):
            losses = self.module(images, batch.truths)
            values = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
            if not math.isfinite(values["loss"]):
                culprits = [name for name, value in values.items() if name != "loss" and not math.isfinite(value)]
                what = f"The loss stopped being a number ({', '.join(culprits) or 'their sum'})"
                raise KirieError(_not_a_number(what, batch.names, self.standing))
            self.accelerator.backward(losses["loss"] / size)
        if ends:
            self._check_gradient()
            self._seen = []
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            self.standing.step += 1
            if self.average is not None:
                self.average.update_parameters(self.model)
        return values

    def _check_gradient(self) -> None:
        """Clips the gradient, and raises a KirieError when it is not finite."""
        scaled = (
            self.accelerator.scaler is not None
        )  # then steps too large for half precision are left out, as is usual
        if scaled and not self.settings.clip:
            return
        # An infinite limit leaves every finite gradient as it is.
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), self.settings.clip or math.inf)
        if not scaled and norm is not None and not math.isfinite(float(norm)):
            raise KirieError(_not_a_number("The gradient stopped being a number", self._seen, self.standing))

    def _row(self, seconds: float) -> dict[str, float]:
        standing = self.standing
        means = {name: total / standing.batch for name, total in standing.sums.items()}
        rate = max(group["lr"] for group in self.optimiser.param_groups)  # the head's, of layer-wise ones
        return {"epoch": standing.epoch + 1, "step": standing.step, **means, "lr": rate, "seconds": seconds}

    def _last_epoch(self) -> bool:
        return self.standing.epoch + 1 >= self.settings.epochs

    def _validate(self) -> dict[str, float]:
        """Measures the weights as `evaluate` would, and keeps them when they are the best so far."""
        measured: Any = self.model if self.average is None else self.average.module
        for statistics in measured.buffers():  # of batch norm: each process has those of its own batches
            statistics.copy_(broadcast(statistics))
        predictor = Predictor(measured, device=str(self.accelerator.device))
        share = (self.accelerator.process_index, self.accelerator.num_processes)
        report = measure(predictor, self.validation, share=share, gather=self._of_processes).report
        row = {f"val_{name}": value for name, value in report.history_row().items()}
        standing, score = self.standing, report.score
        better = not math.isnan(score) and (standing.best is None or score > standing.best)
        standing.best = score if better else standing.best
        standing.stale = 0 if better else standing.stale + 1
        if self.leader and (better or standing.best is None):  # without a score to compare, the latest
            scores = {name: value for name, value in row.items() if math.isfinite(value)}
            save(measured, self.folder / MODEL, recipe=self.record, scores=scores)
        every = self.settings.samples_every
        if self.leader and every and ((standing.epoch + 1) % every == 0 or self._last_epoch()):
            write_samples(self.folder, predictor, self.validation, standing.epoch + 1)
        measured.to(memory_format=self.layout)  # a predictor lays the weights out in its own way
        return row

    def _summed(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The sum of an array over all processes."""
        if self.accelerator.num_processes == 1:
            return values
        own = torch.from_numpy(values).float().to(self.accelerator.device)
        return np.asarray(self.accelerator.reduce(own, "sum").cpu().double().numpy())

    def _of_processes(self, metric: Metric) -> list[Metric]:
        """What each process has measured, in their order."""
        gathered: list[Metric] = gather_object([metric])
        return gathered

    def _close_epoch(self, row: dict[str, float]) -> None:
        standing, patience = self.standing, self.settings.patience
        standing.history.append(row)
        if self.sampling is not None:
            for values in (self.sampling.sums, self.sampling.seen):  # of all processes, in place
                values[:] = self._summed(values)
            self.sampling.close_epoch()
        standing.epoch, standing.batch, standing.sums = standing.epoch + 1, 0, {}
        standing.finished = bool(patience) and standing.stale >= patience

    def _words(self, row: Mapping[str, float]) -> str:
        shown = [f"loss {row['loss']:.4f}"]
        measured = [name for name in row if name.startswith("val_")]
        shown += [f"{name.removeprefix('val_').replace('_', ' ')} {row[name]:.4f}" for name in measured]
        star = " *" if self.standing.stale == 0 and measured else ""
        epoch = f"epoch {row['epoch']:3d}/{self.settings.epochs}"
        return f"{epoch}  {'  '.join(shown)}  {row['seconds']:.0f} s{star}"

    def save_state(self) -> None:
        """Writes `last/`."""
        if not self.leader:
            return
        tensors = {"model": self.model.state_dict()}
        if self.average is not None:
            tensors["average"] = self.average.state_dict()
        if self.sampling is not None:  # in mid-epoch, what this process saw of it
            tensors["sampling"] = {name: torch.from_numpy(values) for name, values in self.sampling.state().items()}
        scaler = self.accelerator.scaler
        extra = {"scaler": scaler.state_dict() if scaler is not None else None, **self._circumstances()}
        save_state(self.folder, self.standing, tensors, self.optimiser, extra)

    def _circumstances(self) -> dict[str, int]:
        """What must be the same when the run goes on, besides the recipe."""
        return {"pictures": self.loader.plan.samples, "processes": int(self.accelerator.num_processes)}

    def restore(self) -> None:
        """Reads `last/`.

        Raises:
            KirieError: when it is missing, damaged, or of another model, data set or number of processes.
        """
        self.standing, tensors, extra = load_state(self.folder, self.optimiser)
        for name, now in self._circumstances().items():
            if extra.get(name) != now:
                raise KirieError(
                    f"{self.folder} was trained with {extra.get(name)} {name}, now there are {now}; it can only go on "
                    "as it was. Undo that, or start a new run by --out."
                )
        try:
            self.model.load_state_dict(tensors["model"])
            if self.average is not None:
                self.average.load_state_dict(tensors["average"])
            if self.sampling is not None:
                self.sampling.restore({name: values.numpy() for name, values in tensors["sampling"].items()})
                if not self.leader:  # whose sums these are
                    self.sampling.sums[:], self.sampling.seen[:] = 0, 0
        except (RuntimeError, KeyError, ValueError) as error:
            raise KirieError(f"{self.folder / FILE} is of another model: {str(error).splitlines()[0]}") from error
        if self.accelerator.scaler is not None and extra.get("scaler"):
            self.accelerator.scaler.load_state_dict(extra["scaler"])


def _not_a_number(what: str, names: Sequence[str], standing: Standing) -> str:
    return (
        f"{what} in epoch {standing.epoch + 1}, batch {standing.batch + 1}, on the pictures {', '.join(names)}. "
        "Look at them, lower train.learning_rate, or set train.precision to fp32; the best model so far is kept."
    )
