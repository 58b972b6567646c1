"""What each choice of a plan is worth on few and on sparse pictures, at equal minutes.

Of BBBC038 (the folder `nuclei` of the shared data) two data sets are made: sixteen of its training pictures, drawn by a
seed, with all of its validation pictures; and all its pictures with less than 5 % foreground. A plain U-Net (cross
entropy, patches anywhere, no augmentation, no standardising, threshold 0.5) is trained on them, then the same with one
choice of the plan at a time, then the plan. Each training's steps are timed first, so that all take the same minutes.
The last column, of the plain and of the planned, has thresholds and clean-up found on one half of the validation
pictures and measured on the other.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import kirie
from kirie.data import open_dataset
from kirie.data.listed import SampleList
from kirie.metrics.semantic import SemanticMetric
from kirie.models.file import load
from kirie.prediction.predictor import Predictor
from kirie.prediction.tune import tune
from kirie.training.fit import fit
from kirie.training.planned import plan

SPARSE, SIXTEEN = 0.05, 16
PLAIN = {
    "loss": ("train.loss=ce",),
    "augmentation": ("augment.preset=none", "augment.change={}"),
    "standardising": ("model.arguments.standardise=false",),
    "sampling": ("sampling.positive_ratio=0",),
}
ALSO = ("model.arguments.width=16", "train.batch_size=4", "train.samples_every=0")
VARIANTS = {
    "plain": PLAIN,
    **{f"plain + {name} of the plan": {k: v for k, v in PLAIN.items() if k != name} for name in PLAIN},
    "the plan": {},
}
TUNED = ("plain", "the plan")


class Row(NamedTuple):
    """A training: its data, variant, seed, seconds, foreground IoU, and that with what was tuned (nan: not tried)."""

    data: str
    variant: str
    seed: int
    seconds: float
    iou: float
    tuned: float


def measure(nuclei: Path, minutes: float, seeds: int, only: str = "") -> list[Row]:
    """Trains and measures everything, told as it goes on; `only` the data sets whose names start so."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for name, data in _data_sets(nuclei, home, seeds):
            if not name.startswith(only):
                continue
            for seed in [int(name[-1])] if name.startswith("sixteen") else range(seeds):
                for variant, removed in VARIANTS.items():
                    changes = [*ALSO, *(change for entry in removed.values() for change in entry), f"train.seed={seed}"]
                    rows.append(_trained(name, variant, seed, data, changes, minutes, home / "run"))
                    print("\t".join(map(str, rows[-1])), flush=True)
    return rows


def _data_sets(nuclei: Path, home: Path, seeds: int) -> list[tuple[str, Path]]:
    whole = {split: open_dataset(nuclei, split, task="semantic") for split in ("train", "val")}
    share = {
        split: [float((dataset[index].truth.labels == 1).mean()) for index in range(len(dataset))]  # type: ignore[union-attr]
        for split, dataset in whole.items()
    }
    made = []
    everything = list(range(len(whole["val"])))
    for seed in range(seeds):
        drawn = sorted(random.Random(seed).sample(range(len(whole["train"])), SIXTEEN))
        made.append((f"sixteen pictures {seed}", {"train": drawn, "val": everything}))
    made.append(("sparse", {s: [i for i, value in enumerate(values) if value < SPARSE] for s, values in share.items()}))
    out = []
    for name, chosen in made:
        folder = home / name.replace(" ", "-")
        for split, numbers in chosen.items():
            for number in numbers:
                facts = whole[split].file_facts(number)
                for kind, file in (("images", facts["image"]), ("ids", facts["mask"])):
                    place = folder / kind / split / Path(file).name
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, place)
        out.append((name, folder))
    return out


def _trained(name: str, variant: str, seed: int, data: Path, changes: list[str], minutes: float, run: Path) -> Row:
    recipe = plan(data, minutes=minutes, task="semantic", changes=changes).recipe
    shutil.rmtree(run, ignore_errors=True)
    before = time.perf_counter()
    fit(recipe, run)
    seconds = time.perf_counter() - before
    dataset: Any = open_dataset(data, "val", task="semantic")
    samples = [dataset[index] for index in range(len(dataset))]
    tuned = _iou(run, _halves(run, samples)) if variant in TUNED else float("nan")
    return Row(name, variant, seed, round(seconds), _iou(run, [(None, samples)]), tuned)


def _halves(run: Path, samples: list[Any]) -> list[tuple[Any, list[Any]]]:
    """Each half of the samples with the settings that were found on the other."""
    halves = (samples[::2], samples[1::2])
    return [
        (tune(run, SampleList({"val": other}), write=False).settings, half) for half, other in (halves, halves[::-1])
    ]


def _iou(run: Path, parts: list[tuple[Any, list[Any]]]) -> float:
    """The foreground IoU over all samples, each predicted with the clean-up of its part."""
    model = load(run)
    total = SemanticMetric(model.classes)
    for settings, samples in parts:
        model.cleanup = settings
        for sample, result in zip(samples, Predictor(model).stream(s.image for s in samples), strict=True):
            total.update(result, sample.truth)
    return round(float(total.compute().iou[1]), 4)


def table(rows: list[Row]) -> str:
    """Mean and standard deviation over the seeds, by data set and variant, as Markdown."""
    lines = ["| data | variant | seconds | foreground IoU | tuned |", "|---|---|---|---|---|"]
    for data in dict.fromkeys(row.data.rstrip(" 0123456789") for row in rows):
        for variant in VARIANTS:
            own = [row for row in rows if row.data.startswith(data) and row.variant == variant]
            if own:
                seconds = statistics.mean(row.seconds for row in own)
                columns = [_spread([row.iou for row in own])]
                columns.append(_spread([row.tuned for row in own]) if variant in TUNED else "")
                lines.append(f"| {data} | {variant} | {seconds:.0f} | {columns[0]} | {columns[1]} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    deviation = np.std(values, ddof=1) if len(values) > 1 else float("nan")
    return f"{np.mean(values):.3f} +- {deviation:.3f} ({', '.join(f'{value:.3f}' for value in values)})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=f"kirie {kirie.__version__}: {__doc__}")
    parser.add_argument("nuclei", type=Path, help="the folder of BBBC038 with images and ids")
    parser.add_argument("--minutes", type=float, default=2.0, help="of each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="data sets whose names start so: sixteen, sparse")
    given = parser.parse_args()
    print(table(measure(given.nuclei, given.minutes, given.seeds, given.only)))
