"""What the skip connections of a U-Net are worth: both networks trained alike, boundary F beside IoU, with pictures.

Without its skips the decoder must guess outlines from maps 16 times coarser than the picture. IoU, which counts areas,
hardly tells the two apart; the boundary F score (2 pixels of tolerance) does.

    python -m benchmarks.skip [--data FOLDER] [--epochs 30] [--picture skip.jpg]

The folder has a `test` or a `val` split; left out, the demo's pictures are made. The picture shows both results.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from kirie.data import open_dataset
from kirie.data.dataset import Dataset
from kirie.demo import make_demo
from kirie.drawing import contact_sheet, difference, draw
from kirie.files import write_picture
from kirie.metrics.boundary import BoundaryMetric
from kirie.metrics.semantic import SemanticMetric
from kirie.models.file import load
from kirie.prediction.predictor import Predictor
from kirie.training.fit import train

NETWORKS = {"with skip connections": True, "without": False}
SHOWN = 4


def measure(data: Path, folder: Path, epochs: int, picture: Path | None) -> list[dict[str, Any]]:
    """Scores of the U-Net with and without its skips, on pictures that neither has seen, as rows."""
    splits = open_dataset(data).splits
    unseen = open_dataset(data, "test" if "test" in splits else "val")
    predictors = {name: _trained(data, folder / str(skip), epochs, skip) for name, skip in NETWORKS.items()}
    rows = [{"network": f"U-Net {name}", **_scores(predictor, unseen)} for name, predictor in predictors.items()]
    if picture is not None:
        write_picture(picture, _sheet(predictors, unseen))
    return rows


def _trained(data: Path, folder: Path, epochs: int, skip: bool) -> Predictor:
    changes = [
        f"model.arguments={{width: 16, bias: false, standardise: true, skip: {str(skip).lower()}}}",
        f"train.epochs={epochs}",
        "train.patch=[160, 160]",
        "train.batch_size=8",
        "train.draws=2",
        "train.learning_rate=3e-3",
        f"train.validate_every={max(epochs // 4, 1)}",
        "train.samples_every=0",
    ]
    run = train(data, changes=changes, out=folder)
    return Predictor(load(run.folder))


def _scores(predictor: Predictor, dataset: Dataset) -> dict[str, float]:
    areas, outlines = SemanticMetric(dataset.classes), BoundaryMetric(dataset.classes, tolerance=2.0)
    for index in range(len(dataset)):
        sample = dataset[index]
        result = predictor([sample.image])[0]
        areas.update(result, sample.truth)
        outlines.update(result, sample.truth)
    return {"miou": areas.compute().miou, "boundary_f": outlines.compute().mean_f}


def _sheet(predictors: dict[str, Predictor], dataset: Dataset) -> Any:
    """Truth, and per network what it sees and where it is wrong."""
    cells: list[tuple[str, list[Any]]] = []
    for index in range(min(SHOWN, len(dataset))):
        sample = dataset[index]
        shown: list[Any] = [draw(sample.truth, sample.image)]
        for predictor in predictors.values():
            result = predictor([sample.image])[0]
            shown += [draw(result, sample.image), difference(result, sample.truth, sample.image)]
        cells.append((f"{sample.name}: truth; with skips and its errors; without and its errors", shown))
    return contact_sheet(cells, columns=1, cell=(200, 1000))


def main() -> None:
    """Prints the two rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = given.data or make_demo(Path(folder) / "data")
        rows = measure(place, Path(folder), given.epochs, given.picture)
    print("| network | mIoU | boundary F (2 pixels) |\n|---|---|---|")
    for row in rows:
        print(f"| {row['network']} | {row['miou']:.4f} | {row['boundary_f']:.4f} |")


if __name__ == "__main__":
    main()
