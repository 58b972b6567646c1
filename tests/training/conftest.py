from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from kirie.recipe import parse_recipe
from kirie.training import run

OWN = Path(__file__).parent / "own"  # a user's code: a model, an augmentation, and ways to die


THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def one_thread():
    """Pictures this small gain nothing from more, and on a busy machine threads wait for each other."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Leaves the figure of the history out, which takes longer than a training of this size."""
    monkeypatch.setattr(run, "history_figure", lambda history, path: path.touch())


@pytest.fixture
def all_threads(one_thread):
    """As many threads as torch takes of its own accord."""
    torch.set_num_threads(THREADS)


def write_pictures(folder: Path, counts: dict[str, int], size: tuple[int, int] = (40, 48)) -> Path:
    """Dark pictures with bright discs, and index masks in which the discs are 1."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            mask = np.zeros(size, np.uint8)
            for _ in range(3):
                centre = (int(rng.integers(size[1])), int(rng.integers(size[0])))
                cv2.circle(mask, centre, int(rng.integers(5, 10)), 1, -1)
            image = np.where(mask[..., None] == 1, [200, 180, 90], [40, 60, 80]) + rng.normal(0, 12, (*size, 3))
            cv2.imwrite(str(folder / "images" / split / f"{number:02d}.png"), image.clip(0, 255).astype(np.uint8))
            cv2.imwrite(str(folder / "masks" / split / f"{number:02d}.png"), mask)
    return folder


@pytest.fixture(scope="session")
def blobs(tmp_path_factory):
    """A data set: 12 pictures of 40 x 48 to learn from, 4 to measure on."""
    return write_pictures(tmp_path_factory.mktemp("blobs"), {"train": 12, "val": 4})


@pytest.fixture
def recipe_for(blobs):
    """Makes a small quick recipe on `blobs`; entries of the train section and others by name."""

    def make(*changes: str, **train):
        values = {
            "data": {"path": str(blobs)},
            "model": {"arguments": {"width": 4, "depth": 2}},
            "train": {"epochs": 3, "batch_size": 4, "patch": [32, 32], "samples_every": 0, "workers": 0, **train},
        }
        return parse_recipe(values, changes)

    return make


@pytest.fixture
def own_code(monkeypatch):
    """Puts the folder of a user's own modules on the path."""
    monkeypatch.syspath_prepend(str(OWN))
