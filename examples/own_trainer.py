"""A trainer of one's own: another optimiser, and something done after each step. Everything else stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import kirie
from kirie.data.batch import Batch
from kirie.demo import make_demo
from kirie.training.fit import Run
from kirie.training.trainer import Trainer


class MyTrainer(Trainer):
    """Learns by RMSprop, and writes a line about each step to `steps.txt` in the run's folder."""

    def __init__(self, model: Any, optimiser: Any, *parts: Any, **more: Any) -> None:
        """Hands everything on, but with another optimiser; the schedule of the recipe sets its learning rate."""
        rate = optimiser.param_groups[0]["lr"]
        super().__init__(model, torch.optim.RMSprop(model.parameters(), lr=rate), *parts, **more)

    def after_step(self, batch: Batch, losses: Mapping[str, float]) -> None:
        """Writes what was learned from, and how well it was known."""
        with (self.folder / "steps.txt").open("a", encoding="utf-8") as file:
            file.write(f"{self.standing.step}\t{losses['loss']:.4f}\t{', '.join(batch.names)}\n")


def main(folder: str = "demo/data", pictures: int = 120, epochs: int = 8, out: str = "runs/my-trainer") -> Run:
    """Trains a small U-Net on the demo's pictures."""
    data = make_demo(folder, pictures=pictures)
    changes = [f"train.epochs={epochs}", "data.task=semantic", "train.patch=[128, 128]", "train.learning_rate=3e-4"]
    run = kirie.train(data, model="unet", changes=changes, out=out, trainer=MyTrainer)
    print(Path(out, "steps.txt").read_text(encoding="utf-8").splitlines()[-1])
    return run


if __name__ == "__main__":
    main()
