"""A run's folder: what is written into it while a training goes on, besides the weights."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard.writer import SummaryWriter

from kirie.data.dataset import Dataset
from kirie.drawing import history_figure
from kirie.errors import KirieError
from kirie.files import write_picture, write_text
from kirie.prediction.predictor import Predictor
from kirie.prediction.sheet import result_sheet

MODEL = "model.safetensors"
RECIPE = "recipe.yaml"
PLAN = "plan.yaml"
# All that its folder may hold once it was also measured and tuned.
WRITTEN = {
    RECIPE, MODEL, PLAN, "last", "history.csv", "history.png", "events", "samples", "report.html", "report.json",
    "tune.png",
}  # fmt: skip
SAMPLES = 8
DRAW_EVERY = 30.0  # seconds between drawings of the history, which take longer than a short epoch


class Journal:
    """The numbers of a run: `history.csv`, `history.png` and TensorBoard events.

    Args:
        folder: the run's folder.
        step: the step a resumed run goes on from; later events of the stopped run are dropped.

    Raises:
        KirieError: here and in `write`, when the system refuses to write.
    """

    def __init__(self, folder: Path, *, step: int = 0) -> None:
        self.folder = folder
        self._history: Sequence[Mapping[str, float]] = ()
        self._drawn, self._stale = -DRAW_EVERY, False
        with self._told():
            self._events = SummaryWriter(str(folder / "events"), purge_step=step + 1 if step else None)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            with self._told():
                self._events.close()
            if self._stale:
                self._draw()
        except KirieError:
            if kind is None:  # otherwise what ended the training matters more
                raise

    def write(self, history: Sequence[Mapping[str, float]]) -> None:
        """Writes the whole history anew, and the newest row to TensorBoard. The figure may wait until the end."""
        self._history, self._stale = history, True
        columns = list(dict.fromkeys(name for row in history for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({n: v if isinstance(v, int) else f"{v:.7g}" for n, v in row.items()} for row in history)
        write_text(self.folder / "history.csv", text.getvalue())
        newest = history[-1]
        with self._told():
            for name, value in newest.items():
                if name not in ("epoch", "step"):
                    self._events.add_scalar(name, value, int(newest["step"]))
            self._events.flush()
        if time.monotonic() - self._drawn >= DRAW_EVERY:
            self._draw()

    def _draw(self) -> None:
        history_figure(self._history, self.folder / "history.png")
        self._drawn, self._stale = time.monotonic(), False

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KirieError(f"Cannot write to {self.folder / 'events'}: {error.strerror or error}.") from error


def write_samples(folder: Path, predictor: Predictor, dataset: Dataset, epoch: int) -> None:
    """Writes `samples/epoch_NNN.jpg`: some pictures with their truth and what the model sees now."""
    count = min(SAMPLES, len(dataset))
    sheet = result_sheet(predictor, dataset, [number * len(dataset) // count for number in range(count)])
    write_picture(folder / "samples" / f"epoch_{epoch:03d}.jpg", sheet, quality=88)
