import csv
import errno
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kirie.classes import Classes
from kirie.data import open_dataset
from kirie.errors import KirieError
from kirie.models import file as model_file
from kirie.models.file import load, read_card
from kirie.models.parts.semantic import SemanticModel
from kirie.prediction.evaluate import evaluate
from kirie.recipe import parse_recipe, read_recipe, write_recipe
from kirie.training import checkpoint, trainer
from kirie.training.fit import fit, train
from kirie.training.parts import balanced_weights


def history(folder: Path):
    return [
        {name: float(value) for name, value in row.items() if value}
        for row in csv.DictReader((folder / "history.csv").read_text().splitlines())
    ]


def weights(path: Path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def model_weights(folder: Path):
    """The weights at the end of a run, best or not."""
    state = weights(folder / checkpoint.FILE)
    return {name.removeprefix("model/"): t for name, t in state.items() if name.startswith("model/")}


# Learning


@pytest.fixture(scope="module")
def learned(blobs, tmp_path_factory):
    """A run that learned something, with sheets of samples."""
    torch.set_num_threads(1)
    recipe = parse_recipe(
        {
            "data": {"path": str(blobs)},
            "model": {"arguments": {"width": 8, "depth": 2}},
            "train": {
                "batch_size": 4,
                "patch": [32, 32],
                "samples_every": 3,
                "workers": 0,
                "ema": 0.5,
                "epochs": 8,
                "learning_rate": 1e-2,
                "draws": 2,
            },
        }
    )
    return fit(recipe, tmp_path_factory.mktemp("learned") / "run")


def test_it_learns(learned):
    assert learned.finished
    assert learned.best > 0.9
    losses = [row["loss"] for row in learned.history]
    assert losses[-1] < 0.6 * losses[0]
    assert learned.history[0]["val_miou"] < learned.best


def test_a_run_is_a_folder(learned):
    names = sorted(str(path.relative_to(learned.folder)) for path in learned.folder.rglob("*") if path.is_file())
    assert [name for name in names if not name.startswith("events/")] == [
        "history.csv",
        "history.png",
        "last/state.safetensors",
        "model.safetensors",
        "recipe.yaml",
        "samples/epoch_003.jpg",
        "samples/epoch_006.jpg",
        "samples/epoch_008.jpg",
    ]
    assert len([name for name in names if name.startswith("events/")]) == 1
    for name in ("history.png", "samples/epoch_008.jpg"):
        assert min(cv2.imread(str(learned.folder / name)).shape[:2]) > 100


def test_the_history(learned):
    rows = history(learned.folder)
    assert list(rows[0]) == [
        *("epoch", "step", "loss", "loss_ce", "loss_dice", "lr", "seconds"),
        *("val_miou", "val_dice", "val_accuracy", "val_foreground_dice"),
    ]
    assert [row["epoch"] for row in rows] == list(range(1, 9))
    assert [row["step"] for row in rows] == list(range(6, 49, 6))
    for row, told in zip(rows, learned.history, strict=True):
        assert row == pytest.approx(dict(told), rel=1e-6)
        assert row["loss"] == pytest.approx(row["loss_ce"] + row["loss_dice"], rel=1e-5)
    assert rows[-1]["lr"] < 0.01 * 1e-2


def test_tensorboard_has_the_same_numbers(learned):
    events = EventAccumulator(str(learned.folder / "events"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(learned.history[0]) - {"epoch", "step"}
    for name in events.Tags()["scalars"]:
        for event, row in zip(events.Scalars(name), learned.history, strict=True):
            assert event.step == row["step"]
            assert event.value == pytest.approx(row[name], rel=1e-6)


def test_evaluate_gives_the_score_that_training_measured(learned, blobs):
    best = max(learned.history, key=lambda row: row["val_miou"])
    report = evaluate(load(learned.folder), blobs, split="val")
    assert report.miou == best["val_miou"] == learned.best
    assert report.mean_dice == best["val_dice"]
    assert report.pixel_accuracy == best["val_accuracy"]
    card = read_card(learned.folder)
    assert card.scores == {name: value for name, value in best.items() if name.startswith("val_")}
    assert card.inputs.patch == (32, 32)


def test_pictures_made_smaller_are_still_measured_at_their_own_size(recipe_for, blobs, tmp_path):
    run = fit(recipe_for("data.short_side=24", epochs=2, patch=[16, 16]), tmp_path / "run")
    model = load(run.folder)
    assert model.inputs.short_side == 24
    assert evaluate(model, blobs, split="val").miou == run.best


def test_the_model_file_holds_the_recipe(learned, blobs):
    recipe = read_card(learned.folder).recipe
    assert recipe["train"]["learning_rate"] == 1e-2
    assert recipe["data"]["path"] == str(blobs)
    assert recipe["train"]["schedule"] == "cosine", "what was left to its default too"


def test_bf16_computes_in_bf16_and_learns_as_well(recipe_for, tmp_path):
    seen = set()
    forward = SemanticModel.loss

    def loss(self, raw, truths):
        seen.add(raw.logits.dtype)
        return forward(self, raw, truths)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SemanticModel, "loss", loss)
        runs = [fit(recipe_for(precision=name, learning_rate=1e-2), tmp_path / name) for name in ("fp32", "bf16")]
    assert seen == {torch.float32, torch.bfloat16}
    full, half = ([row["loss"] for row in run.history] for run in runs)
    assert full != half
    assert half == pytest.approx(full, rel=0.05)
    assert {tensor.dtype for tensor in weights(tmp_path / "bf16" / "model.safetensors").values()} <= {
        torch.float32,
        torch.int64,
    }


# Steps


def test_accumulated_batches_are_one_large_batch(recipe_for, tmp_path):
    # Without batch norm the two differ by rounding alone: 24 draws are 3 batches of 8, or 6 of 4.
    plain = ("model.arguments.norm=none",)
    common = {"draws": 2, "epochs": 2, "loss": "ce", "optimiser": "sgd", "learning_rate": 0.1, "precision": "fp32"}
    fit(recipe_for(*plain, batch_size=8, **common), tmp_path / "large")
    fit(recipe_for(*plain, batch_size=4, accumulate=2, **common), tmp_path / "small")
    fit(recipe_for(*plain, batch_size=4, **common), tmp_path / "other")
    large, small, other = (model_weights(tmp_path / name) for name in ("large", "small", "other"))
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(other[name], large[name], rtol=1e-3, atol=1e-5) for name in large)
    assert [row["step"] for row in history(tmp_path / "small")] == [3, 6]


def test_the_last_group_of_an_epoch_weighs_its_batches_alike(recipe_for, tmp_path):
    # One step over all 3 batches, whether 3 or 100 were asked for.
    common = {"epochs": 1, "loss": "ce", "optimiser": "sgd", "precision": "fp32", "clip": 0.0}
    for accumulate in (3, 100):
        fit(recipe_for(accumulate=accumulate, **common), tmp_path / str(accumulate))
    three, many = (model_weights(tmp_path / name) for name in ("3", "100"))
    assert all(torch.equal(three[name], many[name]) for name in three)


def test_clipping_bounds_the_step(recipe_for, tmp_path):
    common = {"optimiser": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 1.0, "epochs": 1}
    common |= {"warmup": 0.0, "batch_size": 12, "precision": "fp32"}
    fit(recipe_for(clip=0.01, **common), tmp_path / "clipped")
    fit(recipe_for(clip=1e-9, **common), tmp_path / "still")
    moved, start = model_weights(tmp_path / "clipped"), model_weights(tmp_path / "still")
    learned = [name for name in start if name.endswith((".weight", ".bias"))]
    norm = math.sqrt(sum(float((moved[name] - start[name]).square().sum()) for name in learned))
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_the_average_is_measured_and_saved(recipe_for, tmp_path):
    run = fit(recipe_for(ema=0.99, epochs=1), tmp_path / "run")
    best, state = weights(run.model), weights(run.folder / checkpoint.FILE)
    assert all(torch.equal(tensor, state[f"average/module.{name}"]) for name, tensor in best.items())
    assert any(not torch.equal(tensor, state[f"model/{name}"]) for name, tensor in best.items())
    assert state["average/n_averaged"] == 3


# Measuring


def scripted(monkeypatch, scores):
    """Has the validation say these scores, one after another."""
    left = iter(scores)

    def measure(*_, **__):
        score = next(left)
        return SimpleNamespace(report=SimpleNamespace(score=score, history_row=lambda: {"miou": score}))

    monkeypatch.setattr(trainer, "measure", measure)


def test_the_best_model_is_kept_and_patience_ends_it(recipe_for, tmp_path, monkeypatch):
    scripted(monkeypatch, [0.2, 0.5, 0.5, math.nan, 0.4, 0.9])
    saved, real = [], trainer.save
    monkeypatch.setattr(trainer, "save", lambda *a, **k: saved.append(k["scores"]["val_miou"]) or real(*a, **k))
    run = fit(recipe_for(epochs=9, patience=3), tmp_path / "run")
    assert run.finished
    assert saved == [0.2, 0.5]
    assert (run.best, len(run.history)) == (0.5, 5)
    assert read_card(run.folder).scores["val_miou"] == 0.5
    assert not torch.equal(weights(run.model)["head.weight"], model_weights(run.folder)["head.weight"])
    assert len(fit(recipe_for(epochs=9, patience=3), tmp_path / "run", resume=True).history) == 5


def test_without_patience_it_goes_on(recipe_for, tmp_path, monkeypatch):
    scripted(monkeypatch, [0.5, 0.4, 0.3, 0.2, 0.6])
    run = fit(recipe_for(epochs=5), tmp_path / "run")
    assert (run.best, len(run.history)) == (0.6, 5)


def test_without_any_score_the_last_weights_are_kept(recipe_for, tmp_path, monkeypatch):
    scripted(monkeypatch, [math.nan, math.nan])
    run = fit(recipe_for(epochs=2), tmp_path / "run")
    assert (run.finished, run.best) == (True, None)
    assert load(run.model).task == "semantic"


def test_validate_every_and_at_the_end(recipe_for, tmp_path):
    run = fit(recipe_for(epochs=5, validate_every=2), tmp_path / "run")
    assert ["val_miou" in row for row in run.history] == [False, True, False, True, True]
    assert ["val_miou" in row for row in history(tmp_path / "run")] == [False, True, False, True, True]


# What it is told


def test_each_epoch_is_told_in_one_line(recipe_for, tmp_path, capfd):
    fit(recipe_for(epochs=2), tmp_path / "run")
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 2, "one line each, however narrow, and no bar"
    assert lines[0].startswith("epoch   1/2  loss ")
    assert all(word in lines[0] for word in ("miou", "dice", "accuracy", "foreground dice", " s *"))


def test_train_takes_folders_files_and_recipes(blobs, recipe_for, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["train.epochs=1", "model.arguments={width: 4, depth: 2}", "train.patch=[32, 32]", "train.workers=0"]
    run = train(blobs, model="unet", changes=small, device="cpu")
    assert run.folder == Path("runs") / blobs.name
    (tmp_path / "mine.yaml").write_text(write_recipe(recipe_for(epochs=1)))
    assert train(tmp_path / "mine.yaml").folder == Path("runs") / f"{blobs.name}-unet"
    again = train(recipe_for(epochs=1), changes=["train.seed=1"], out="elsewhere")
    assert again.folder == Path("elsewhere")
    assert "seed: 1" in (tmp_path / "elsewhere" / "recipe.yaml").read_text()
    assert not torch.equal(
        weights(again.model)["head.weight"],
        weights(Path("runs", f"{blobs.name}-unet", "model.safetensors"))["head.weight"],
    )


@pytest.mark.parametrize(
    ("more", "width"), [([], 16), (["model.arguments.depth=2"], 16), (["model.arguments.width=8"], 8)]
)
def test_a_folder_trains_a_unet_for_a_cpu_unless_told_otherwise(blobs, tmp_path, more, width):
    few = ["train.epochs=1", "train.patch=[32, 32]", "train.workers=0", "train.samples_every=0"]
    run = train(blobs, changes=[*few, *more], out=tmp_path / "run", device="cpu")
    assert load(run.model).arguments["width"] == width


def test_the_written_recipe_is_complete(recipe_for, tmp_path):
    recipe = recipe_for(epochs=1)
    fit(recipe, tmp_path / "run")
    assert read_recipe(tmp_path / "run" / "recipe.yaml") == recipe


def test_the_same_seed_gives_the_same_weights(recipe_for, tmp_path):
    for name, seed in (("one", 5), ("two", 5), ("three", 6)):
        fit(recipe_for(epochs=1, seed=seed), tmp_path / name)
    one, two, three = (model_weights(tmp_path / name)["head.weight"] for name in ("one", "two", "three"))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_a_users_own_model_and_augmentation(recipe_for, own_code, tmp_path):
    run = fit(
        recipe_for("model={name: their_code:TinyNet}", "augment.own=their_code:shaken", epochs=1), tmp_path / "run"
    )
    assert read_card(run.folder).architecture == "their_code:TinyNet"
    with pytest.raises(KirieError, match="their_code"):
        load(run.folder)


# Weights of classes


def test_balanced_weights_by_hand(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind / "train").mkdir(parents=True)
    for number, ones in enumerate((0, 32)):  # 32 of 200 pixels are 1
        mask = np.zeros(100, np.uint8)
        mask[:ones] = 1
        cv2.imwrite(str(tmp_path / f"masks/train/{number}.png"), mask.reshape(10, 10))
        cv2.imwrite(str(tmp_path / f"images/train/{number}.png"), np.zeros((10, 10, 3), np.uint8))
    dataset = open_dataset(tmp_path, "train")
    inverse = np.array([1 / math.sqrt(0.84), 1 / math.sqrt(0.16)])
    assert balanced_weights(dataset, dataset.classes) == pytest.approx(inverse / inverse.mean())
    one = balanced_weights(dataset, dataset.classes, most=1)
    assert one[1] / one[0] == pytest.approx(100), "a class that is missing counts as one pixel in 10,000"


@pytest.mark.parametrize("asked", ["balanced", [1.0, 3.0], None])
def test_class_weights_reach_the_loss(asked, recipe_for, tmp_path, monkeypatch):
    seen, real = [], trainer.Trainer.__init__

    def start(self, model, *arguments, **named):
        seen.append(model.criterion.weight)
        real(self, model, *arguments, **named)

    monkeypatch.setattr(trainer.Trainer, "__init__", start)
    run = fit(recipe_for(class_weights=asked, epochs=1), tmp_path / "run")
    if asked == "balanced":
        dataset = open_dataset(read_card(run.folder).recipe["data"]["path"], "train")
        assert seen == [tuple(balanced_weights(dataset, dataset.classes))]
        assert seen[0][1] > seen[0][0]
    else:
        assert seen == [None if asked is None else tuple(asked)]


def test_class_weights_that_are_too_many(recipe_for, tmp_path):
    with pytest.raises(KirieError, match=r"train\.class_weights has 3 values for the 2 classes"):
        fit(recipe_for(class_weights=[1.0, 2.0, 3.0]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Faults


def breaks_at(monkeypatch, call):
    """Has the loss become NaN in the given batch, counted from 1."""
    real, calls = SemanticModel.loss, [0]

    def loss(self, raw, truths):
        calls[0] += 1
        losses = real(self, raw, truths)
        return {n: v * math.nan if n == "dice" and calls[0] >= call else v for n, v in losses.items()}

    monkeypatch.setattr(SemanticModel, "loss", loss)


def test_a_loss_that_is_no_number_stops_it_and_the_best_model_is_kept(recipe_for, blobs, tmp_path, monkeypatch):
    breaks_at(monkeypatch, 8)
    with pytest.raises(
        KirieError, match=r"loss_dice\) in epoch 3, batch 2, on the pictures .*\d\d\.png, .*\d\d"
    ) as told:
        fit(recipe_for(), tmp_path / "run")
    assert "train.learning_rate" in str(told.value)
    best = max(row["val_miou"] for row in history(tmp_path / "run"))
    assert len(history(tmp_path / "run")) == 2
    assert evaluate(load(tmp_path / "run"), blobs, split="val").miou == pytest.approx(best, rel=1e-6)
    with pytest.raises(KirieError, match="stopped being a number"):
        breaks_at(monkeypatch, 2)
        fit(recipe_for(), tmp_path / "run", resume=True)


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_stops_it_before_the_weights_move(recipe_for, tmp_path, monkeypatch, clip, wrong):
    real, calls = SemanticModel.loss, [0]

    def loss(self, raw, truths):
        calls[0] += 1
        if calls[0] == 4:
            raw.logits.register_hook(lambda gradient: gradient * wrong)
        return real(self, raw, truths)

    monkeypatch.setattr(SemanticModel, "loss", loss)
    recipe = recipe_for(batch_size=2, accumulate=2, precision="fp32", clip=clip)
    with pytest.raises(KirieError, match="gradient stopped being a number in epoch 1, batch 4") as told:
        fit(recipe, tmp_path / "run")
    assert len(set(re.findall(r"\d\d\.png", str(told.value)))) == 4, "all pictures whose gradients were added up"


def test_lack_of_memory_is_told_with_how_to_mend_it(recipe_for, tmp_path, monkeypatch):
    def loss(self, raw, truths):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(SemanticModel, "loss", loss)
    with pytest.raises(KirieError, match=r"memory of cpu.*4 x 3 x 32 x 32.*train\.batch_size"):
        fit(recipe_for(), tmp_path / "run")
    monkeypatch.setattr(SemanticModel, "loss", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        fit(recipe_for(), tmp_path / "run")


def test_too_high_a_learning_rate(recipe_for, tmp_path):
    with pytest.raises(KirieError, match="stopped being a number"):
        fit(recipe_for(learning_rate=1e30, optimiser="sgd", clip=0.0), tmp_path / "run")


def test_a_run_that_failed_at_once_leaves_its_folder_to_a_mended_recipe(recipe_for, blobs, tmp_path):
    shutil.copytree(blobs, tmp_path / "data")
    for kind in ("images", "masks"):
        picture = cv2.imread(str(tmp_path / "data" / kind / "train" / "00.png"), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(tmp_path / "data" / kind / "train" / "00.png"), picture[:32])
    place = f"data.path={tmp_path / 'data'}"
    with pytest.raises(KirieError, match=r"differ in size.*train\.patch"):
        fit(recipe_for(place, patch=None, batch_size=12), tmp_path / "run")
    assert fit(recipe_for(place, epochs=1), tmp_path / "run").finished


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        (checkpoint, OSError(errno.ENOSPC, "No space left on device")),
        (model_file, SafetensorError("I/O: No space left on device")),
    ],
    ids=["state", "model"],
)
def test_a_full_disk(place, fault, recipe_for, tmp_path, monkeypatch):
    real, calls = place.save_file, [0]

    def save(tensors, path, metadata):
        calls[0] += 1
        if calls[0] == 3:
            Path(path).write_bytes(b"half")
            raise fault
        real(tensors, path, metadata)

    monkeypatch.setattr(place, "save_file", save)
    scripted(monkeypatch, [0.1, 0.2, 0.3, 0.4])
    with pytest.raises(KirieError, match=r"Cannot write .*No space left"):
        fit(recipe_for(epochs=4), tmp_path / "run")
    monkeypatch.setattr(place, "save_file", real)
    assert load(tmp_path / "run").classes == Classes(("background", "foreground"))
    assert not [path for path in (tmp_path / "run").rglob(".*")]
    scripted(monkeypatch, [0.2, 0.3, 0.4] if place is checkpoint else [0.3, 0.4])
    assert fit(recipe_for(epochs=4), tmp_path / "run", resume=True).finished


def test_a_folder_that_cannot_be_written(recipe_for, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(KirieError, match="Cannot write"):
        fit(recipe_for(), tmp_path / "file" / "run")


def test_a_split_that_is_missing(blobs, recipe_for, tmp_path):
    shutil.copytree(blobs, tmp_path / "data")
    for kind in ("images", "masks"):
        shutil.rmtree(tmp_path / "data" / kind / "val")
    with pytest.raises(KirieError, match="no pictures in split val"):
        fit(recipe_for(f"data.path={tmp_path / 'data'}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(KirieError, match="no pictures in split test"):
        fit(recipe_for("data.train=test"), tmp_path / "run")


def test_a_split_without_pictures(recipe_for, tmp_path, monkeypatch):
    monkeypatch.setattr("kirie.data.folders.FolderDataset.__len__", lambda self: 0)
    with pytest.raises(KirieError, match="no pictures in its 'train' split"):
        fit(recipe_for(), tmp_path / "run")


def test_many_workers(recipe_for, tmp_path):
    for workers in (0, 30):
        fit(recipe_for(workers=workers, epochs=1), tmp_path / str(workers))
    none, many = (model_weights(tmp_path / name) for name in ("0", "30"))
    assert all(torch.equal(none[name], many[name]) for name in none)


def test_a_task_that_the_model_does_not_learn(recipe_for, tmp_path):
    with pytest.raises(KirieError, match=r"data\.task is instance, but unet learns semantic"):
        fit(recipe_for("data.task=instance"), tmp_path / "run")


def test_object_ids_train_a_semantic_model_without_being_told(blobs, recipe_for, tmp_path):
    shutil.copytree(blobs, tmp_path / "data")
    shutil.move(tmp_path / "data" / "masks", tmp_path / "data" / "ids")
    for path in (tmp_path / "data" / "ids").rglob("*.png"):
        count, ids = cv2.connectedComponents(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
        cv2.imwrite(str(path), ids.astype(np.uint16))
        assert count > 1
    assert open_dataset(tmp_path / "data").task == "instance"
    run = fit(recipe_for(f"data.path={tmp_path / 'data'}", epochs=1), tmp_path / "run")
    assert len(load(run.folder).classes) == 2


def test_the_signal_handler_comes_back(recipe_for, tmp_path):
    def own(*_):
        pass

    before = signal.signal(signal.SIGINT, own)
    try:
        fit(recipe_for(epochs=1), tmp_path / "run")
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_also_trains_outside_the_main_thread(recipe_for, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(fit, recipe_for(epochs=1), tmp_path / "run").result().finished


def test_two_processes_train_one_model(recipe_for, blobs, tmp_path):
    """As `torchrun` starts them; on the CPU here, on GPUs in earnest."""
    recipe = recipe_for(batch_size=2, draws=2, accumulate=2, ema=0.5, precision="fp32", learning_rate=1e-2)
    (tmp_path / "recipe.yaml").write_text(write_recipe(recipe))
    (tmp_path / "main.py").write_text("from kirie.cli import main\nmain()\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(tmp_path / "main.py"), "train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = history(tmp_path / "run")
    assert [row["step"] for row in rows] == [3, 6, 9], "12 batches of two are 6 for each process, and 3 steps"
    assert rows[-1]["loss"] < rows[0]["loss"]
    # Each measures half of the pictures, with the batch norm of the one that writes the file.
    best = max(row["val_miou"] for row in rows)
    assert evaluate(load(tmp_path / "run"), blobs, split="val").miou == pytest.approx(best, rel=1e-6)


def test_layer_decay_needs_layers_to_tell_apart(recipe_for, tmp_path):
    with pytest.raises(KirieError, match=r"train\.layer_decay is 0\.5, but this unet has no levels.*an encoder"):
        fit(recipe_for(layer_decay=0.5), tmp_path / "run")


def test_pictures_that_lists_name_and_are_missing_are_told(recipe_for, blobs, tmp_path, capsys):
    data = tmp_path / "data"
    for kind in ("images", "masks"):
        (data / kind).mkdir(parents=True)
        for split in ("train", "val"):
            for file in (blobs / kind / split).iterdir():
                shutil.copy(file, data / kind / f"{split}{file.name}")
    for split in ("train", "val"):
        names = [file.stem for file in (data / "images").iterdir() if file.name.startswith(split)]
        (data / f"{split}.txt").write_text("\n".join([*names, *(["typo"] if split == "train" else [])]))
    fit(recipe_for(f"data.path={data}", epochs=1), tmp_path / "run")
    told = capsys.readouterr()
    words = " ".join((told.out + told.err).split())
    assert "lists name 1 picture without a file, such as typo; left out" in words
