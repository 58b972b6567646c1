"""The training step beside a plain loop with the same network, and the share of time the loop waits for its loader.

Both train the same U-Net (width 16, channels last, AdamW, cross entropy) on 192 x 192 patches of the demo data set, in
batches of 8, in float32. First ours runs alone, reading, augmenting and collating in a worker, and its waits are taken.
Then the steps of ours and of a plain loop with torch's own cross entropy are interleaved on batches that lie in memory.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn import functional as F

from kirie.criterion import build_loss
from kirie.data import open_dataset
from kirie.data.augment import PRESETS
from kirie.data.batch import AugmentedSamples, Batch, BatchPlan, TrainingLoader
from kirie.demo import make_demo
from kirie.models.unet import UNet
from kirie.training.step import LossModule

STEPS, WARM_UP, PATCH, BATCH = 24, 3, (192, 192), 8


def measure() -> list[dict[str, Any]]:
    """The step's time beside the plain loop's, and the loader's wait, as rows."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_dataset(make_demo(Path(folder) / "data", pictures=60), "train")
        samples = AugmentedSamples(dataset, PRESETS["medical"], PATCH)
        loader = TrainingLoader(samples, BatchPlan(len(dataset), BATCH, draws=STEPS), workers=1)
        ours, theirs, waits = _train(loader, len(dataset.classes))
    return [
        {
            "work": f"training step, U-Net width 16, {BATCH} x {PATCH[0]} x {PATCH[1]}",
            "ours": "kirie",
            "ours_ms": 1e3 * statistics.median(ours),
            "peer": "plain loop, batches in memory",
            "peer_ms": 1e3 * statistics.median(theirs),
            "ratio": statistics.median(t / o for o, t in zip(ours, theirs, strict=True)),
            "promised": 1.0,
        },
        {
            "work": "share of the step's time spent waiting for the loader (medical augmentation, 1 worker)",
            "ours": f"{100 * statistics.mean(waits):.1f} %",
            "ours_ms": None,
            "peer": "promised: under 5 %",
            "peer_ms": None,
            "ratio": None,
            "promised": None,
        },
    ]


def _train(loader: TrainingLoader, classes: int) -> tuple[list[float], list[float], list[float]]:
    ours_step, plain_step = _ours(classes), _plain(classes)
    waits, batches = [], []
    upcoming = loader.epoch(0)
    for step in range(STEPS):
        start = time.perf_counter()
        batches.append(next(upcoming))
        got = time.perf_counter()
        ours_step(batches[-1])
        if step >= WARM_UP:
            waits.append((got - start) / (time.perf_counter() - start))
    ours, theirs = [], []
    for batch in batches:
        start = time.perf_counter()
        ours_step(batch)
        between = time.perf_counter()
        plain_step(batch)
        ours.append(between - start)
        theirs.append(time.perf_counter() - between)
    return ours[WARM_UP:], theirs[WARM_UP:], waits


def _ours(classes: int) -> Callable[[Batch], None]:
    accelerator = Accelerator(cpu=True)
    model = UNet(3, classes, width=16, bias=False)
    model.criterion = build_loss("ce")
    module = LossModule(model).train()
    module, optimiser = accelerator.prepare(module, torch.optim.AdamW(module.parameters(), 1e-3))

    def step(batch: Batch) -> None:
        losses = module(batch.images, batch.truths)
        losses["loss"].item()
        accelerator.backward(losses["loss"])
        optimiser.step()
        optimiser.zero_grad()

    return step


def _plain(classes: int) -> Callable[[Batch], None]:
    model = UNet(3, classes, width=16, bias=False).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)

    def step(batch: Batch) -> None:
        images = batch.images.to(memory_format=torch.channels_last).float() / 255
        labels = torch.stack([torch.from_numpy(truth.labels) for truth in batch.truths]).long()
        loss = F.cross_entropy(model(images).logits, labels)
        loss.item()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def main() -> list[dict[str, Any]]:
    """Prints the rows as a markdown table and returns them."""
    rows = measure()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| work | ours | ms | peer | ms | ratio | promised |\n|---|---|---|---|---|---|---|")
    form = {"ours_ms": "{:.0f}", "peer_ms": "{:.0f}", "ratio": "{:.2f} x", "promised": "{} x"}
    for row in rows:
        cells = ["" if value is None else form.get(name, "{}").format(value) for name, value in row.items()]
        print(f"| {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    main()
