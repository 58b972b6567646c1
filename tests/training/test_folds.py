import csv
import json

import numpy as np
import pytest
from tiny import make_data, run_cli

from kirie.data import open_dataset
from kirie.data.layouts import FolderSettings
from kirie.errors import KirieError
from kirie.models.file import load, model_paths
from kirie.prediction.evaluate import evaluate
from kirie.recipe import read_recipe
from kirie.training.folds import train_folds
from kirie.training.trainer import Trainer

CHANGES = ["model.arguments={width: 4, depth: 1}", "train.workers=0", "train.batch_size=2", "train.patch=[16, 16]",
           "train.epochs=1", "train.samples_every=0"]  # fmt: skip


def names(data, split, **settings):
    found = open_dataset(data, split, settings=FolderSettings(**settings))
    return sorted(found.name(index) for index in range(len(found)))


@pytest.mark.parametrize("counts", [(("train", 7), ("val", 4), ("test", 3)), (("", 11),)])
def test_each_picture_is_measured_once_and_never_learned_by_the_model_that_is(tmp_path, counts):
    data = make_data(tmp_path, counts)
    everything = sorted(names(data, "train") + names(data, "val"))
    seen = []
    for number in (1, 2, 3):
        train, val = (names(data, split, fold=(number, 3)) for split in ("train", "val"))
        assert sorted(train + val) == everything and len(val) in (3, 4)
        seen += val
    assert sorted(seen) == everything
    assert names(data, "val", fold=(1, 3)) != names(data, "val", fold=(1, 3), seed=1)
    if len(counts) == 3:
        assert names(data, "test", fold=(2, 3)) == names(data, "test")


def test_groups_stay_together(tmp_path):
    data = make_data(tmp_path, (("", 12),))
    for picture in sorted((data / "images").iterdir()):
        number = int(picture.stem[1:])
        for folder in ("images", "masks"):
            (data / folder / picture.name).rename(data / folder / f"g{number // 3}_{number}.png")
    for number in (1, 2):
        groups = [{name.split("/")[-1][:2] for name in names(data, split, fold=(number, 2), group="(.+)_")}
                  for split in ("train", "val")]  # fmt: skip
        assert len(groups[0]) == len(groups[1]) == 2 and not groups[0] & groups[1]


@pytest.mark.parametrize("fold", [(0, 3), (4, 3), (1, 1), (-1, 2)])
def test_folds_that_are_none(fold):
    with pytest.raises(KirieError, match=r"data\.fold is"):
        FolderSettings(fold=fold)


def test_more_folds_than_pictures(tmp_path):
    with pytest.raises(KirieError, match="train and val have 6 pictures"):
        open_dataset(make_data(tmp_path), "train", settings=FolderSettings(fold=(1, 7)))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("folds")
    return train_folds(make_data(root / "data"), 3, changes=CHANGES, out=root / "run", device="cpu")


def test_the_report_is_the_spread_of_what_was_measured(done):
    assert done.finished and [run.folder.name for run in done.runs] == ["fold-1", "fold-2", "fold-3"]
    scores = [evaluate(load(run.folder), done.folder.parent / "data", split="val", device="cpu") for run in done.runs]
    mious = [score.miou for score in scores]
    mean, deviation = done.spread()["miou"]
    assert mean == pytest.approx(np.mean(mious), abs=1e-6) and deviation == pytest.approx(
        np.std(mious, ddof=1), abs=1e-6
    )
    rows = list(csv.DictReader((done.folder / "folds.csv").read_text().splitlines()))
    assert [row["fold"] for row in rows] == ["1", "2", "3", "mean", "standard deviation"]
    assert float(rows[3]["miou"]) == pytest.approx(mean, abs=1e-5)
    facts = json.loads((done.folder / "folds.json").read_text())
    assert facts["mean"]["miou"] == mean and len(facts["folds"]) == 3


def test_each_fold_keeps_its_own_part(done):
    data = done.folder.parent / "data"
    recipes = [read_recipe(run.folder / "recipe.yaml") for run in done.runs]
    assert [recipe.data.fold for recipe in recipes] == [(1, 3), (2, 3), (3, 3)]
    model = load(done.runs[1].folder)
    report = json.loads(json.dumps(evaluate(model, data, split="val", device="cpu").to_dict()))
    own = json.loads(
        json.dumps(evaluate(model, data, split="val", device="cpu", settings=FolderSettings(fold=(2, 3))).to_dict())
    )
    other = json.loads(
        json.dumps(evaluate(model, data, split="val", device="cpu", settings=FolderSettings()).to_dict())
    )
    assert report == own != other


def test_the_folder_of_folds_is_an_ensemble(done, tmp_path, capsys):
    data = done.folder.parent / "data"
    assert [path.parent.name for path in model_paths(done.folder)] == ["fold-1", "fold-2", "fold-3"]
    pictures = data / "images" / "test"
    several = [str(done.folder / f"fold-{number}") for number in (1, 2, 3)]
    for out, models in (("a", [done.folder]), ("b", [several[0], "--with", several[1], "--with", several[2]])):
        words = (
            "predict",
            models[0],
            pictures,
            *models[1:],
            "--out",
            tmp_path / out,
            "--save",
            "labels",
            "--device",
            "cpu",
        )
        assert run_cli(capsys, *words)[0] == 0
    made = sorted((tmp_path / "a").rglob("*.png"))
    assert len(made) == 3
    for path in made:
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    status, out, _ = run_cli(capsys, "evaluate", done.folder, data, "--split", "test", "--device", "cpu")
    assert status == 0 and (done.folder / "report.html").exists()
    (done.folder / "report.html").unlink()
    status, _, err = run_cli(capsys, "evaluate", done.folder, data, "--split", "val", "--device", "cpu")
    assert status == 1 and "have learned from each of these pictures" in err and "folds.csv" in err
    assert not (done.folder / "report.html").exists()


def test_folds_that_stop_go_on(done, tmp_path, monkeypatch):
    data = done.folder.parent / "data"

    def stop(self, row):
        if self.record["data"]["fold"] == [2, 3]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "after_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        train_folds(data, 3, changes=CHANGES, out=tmp_path / "run", device="cpu")
    monkeypatch.undo()
    monkeypatch.setattr("kirie.training.folds.plan", lambda *_, **__: pytest.fail("planned for nothing"))
    with pytest.raises(KirieError, match="holds a run already"):
        train_folds(data, 3, changes=CHANGES, out=tmp_path / "run", device="cpu")
    monkeypatch.undo()
    again = train_folds(data, 3, changes=CHANGES, out=tmp_path / "run", resume=True, device="cpu")
    assert again.finished and again.scores == done.scores


def test_kirie_train_folds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_data(tmp_path / "data")
    words = [word for change in CHANGES for word in ("--set", change)]
    status, out, _ = run_cli(capsys, "train", "data", "--folds", "2", *words, "--device", "cpu")
    assert status == 0 and "miou" in out and "+-" in out and "runs/data-folds" in out
    for wrong, told in ((("--folds", "1"), "2 to 100 folds"), (("--folds", "7", "--out", "x"), "have 6 pictures")):
        status, _, err = run_cli(capsys, "train", "data", *wrong, *words, "--device", "cpu")
        assert status == 1 and told in err and "Traceback" not in err
