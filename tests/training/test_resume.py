"""A run that was killed or stopped, and resumed, is to the bit the run that was left alone."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from kirie.errors import KirieError
from kirie.models.parts.encoder import Encoder
from kirie.recipe import write_recipe
from kirie.training.checkpoint import FILE
from kirie.training.fit import fit, train
from kirie.training.trainer import Trainer

DYING = Path(__file__).parent / "own" / "dying.py"


def tensors_and_facts(path):
    with safe_open(path, framework="pt") as file:
        facts = {name: json.loads(text) for name, text in file.metadata().items()}
        return {name: file.get_tensor(name) for name in file.keys()}, facts


def without_seconds(value):
    if isinstance(value, dict):
        return {name: without_seconds(entry) for name, entry in value.items() if name != "seconds"}
    return [without_seconds(entry) for entry in value] if isinstance(value, list) else value


def assert_the_same_run(one: Path, other: Path, facts=True):
    for name in ("model.safetensors", FILE):
        (ours, our_facts), (theirs, their_facts) = tensors_and_facts(one / name), tensors_and_facts(other / name)
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == [], f"{name} differs"
        assert not facts or without_seconds(our_facts) == without_seconds(their_facts)
    ours, theirs = ([*csv.DictReader((run / "history.csv").read_text().splitlines())] for run in (one, other))
    assert without_seconds(ours) == without_seconds(theirs)
    assert len(ours) > 0


def stop_at(monkeypatch, *steps):
    """Presses Ctrl-C in the batches with these numbers, counted over all runs of this process."""
    real, calls = Trainer._step, [0]

    def step(self, *arguments):
        calls[0] += 1
        if calls[0] in steps:
            signal.raise_signal(signal.SIGINT)
        return real(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", step)


def dying_run(way, number, recipe, folder):
    (folder.parent / "recipe.yaml").write_text(write_recipe(recipe))
    command = [sys.executable, str(DYING), way, str(number), "train", str(folder.parent / "recipe.yaml")]
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [*command, "--out", str(folder)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(root), str(DYING.parent)]),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        },
        capture_output=True,
        text=True,
        timeout=60,  # until its workers, which hold its output too, have followed it
        check=False,
        start_new_session=True,
    )


THEIRS = ("model={name: their_code:TinyNet, arguments: {width: 8}}", "augment.own=their_code:shaken")

SEGFORMER = ("model={name: segformer, arguments: {widths: [4, 8, 10, 8], depths: [1, 1, 2, 1], decoder_width: 8}}",)

SAMPLED = ("sampling={rare_ratio: 0.5, repeat_threshold: 0.5, hard_ratio: 0.5}",)


# Six batches of four in an epoch. Each is stopped in mid-epoch twice, in the second and in the third epoch.
@pytest.mark.parametrize(
    ("changes", "train", "stops"),
    [
        ((), {"workers": 0}, (8, 14)),
        (THEIRS, {"workers": 1, "accumulate": 2, "ema": 0.9}, (7, 13)),
        (THEIRS, {"workers": 0, "accumulate": 4, "ema": 0.9, "precision": "bf16", "loss": "dice"}, (9, 15)),
        ((), {"channels_last": False, "optimiser": "sgd", "validate_every": 2, "precision": "fp32"}, (8, 16)),
        ((), {"precision": "bf16", "class_weights": "balanced"}, (8, 17)),
        (SEGFORMER, {"layer_decay": 0.8, "workers": 0}, (8, 14)),  # also draws at random which blocks to leave out
        (SAMPLED, {"workers": 1}, (9, 16)),
    ],
    ids=["plain", "own-code-worker", "own-code-bf16", "contiguous-sgd", "bf16", "layer-wise-rates", "sampled"],
)
def test_a_stopped_and_resumed_run_is_the_one_left_alone(
    changes, train, stops, recipe_for, own_code, tmp_path, monkeypatch
):
    recipe = recipe_for(*changes, draws=2, **train)
    assert fit(recipe, tmp_path / "alone").finished
    stop_at(monkeypatch, *stops)
    for resume in (False, True):
        run = fit(recipe, tmp_path / "stopped", resume=resume)
        assert not run.finished
        assert 0 < tensors_and_facts(tmp_path / "stopped" / FILE)[1]["state"]["progress"]["batch"] < 6
    assert fit(recipe, tmp_path / "stopped", resume=True).finished
    assert_the_same_run(tmp_path / "alone", tmp_path / "stopped")


def test_workers_may_change_on_the_way(recipe_for, tmp_path, monkeypatch):
    fit(recipe_for(draws=2), tmp_path / "alone")
    stop_at(monkeypatch, 8)
    fit(recipe_for(draws=2), tmp_path / "stopped")
    assert fit(recipe_for(draws=2, workers=2), tmp_path / "stopped", resume=True).finished
    assert_the_same_run(tmp_path / "alone", tmp_path / "stopped", facts=False)  # these hold the recipe's workers


def test_a_killed_run_resumes_as_if_it_had_been_left_alone(recipe_for, own_code, all_threads, tmp_path):
    # The kill comes between two batches whose gradients belong together, in the middle of the third epoch.
    recipe = recipe_for(*THEIRS, draws=2, workers=1, accumulate=2, ema=0.9)
    died = dying_run("killed", 16, recipe, tmp_path / "killed")
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len((tmp_path / "killed" / "history.csv").read_text().splitlines()) == 1 + 2
    progress = tensors_and_facts(tmp_path / "killed" / FILE)[1]["state"]["progress"]
    assert (progress["epoch"], progress["batch"]) == (2, 2)
    assert fit(recipe, tmp_path / "killed", resume=True).finished
    fit(recipe, tmp_path / "alone")
    assert_the_same_run(tmp_path / "alone", tmp_path / "killed")


def test_a_kill_while_the_state_is_written_leaves_the_former_one(recipe_for, own_code, tmp_path):
    recipe = recipe_for(*THEIRS, precision="bf16", optimiser="sgd")
    died = dying_run("killed while saving", 3, recipe, tmp_path / "killed")  # the start, epoch 1, epoch 2
    assert died.returncode == -signal.SIGKILL, died.stderr
    last = tmp_path / "killed" / "last"
    assert len(list(last.iterdir())) == 2, "the former state, and the half of the next one"
    assert tensors_and_facts(tmp_path / "killed" / FILE)[1]["state"]["progress"]["epoch"] == 1
    assert fit(recipe, tmp_path / "killed", resume=True).finished
    assert [file.name for file in last.iterdir()] == ["state.safetensors"]
    fit(recipe, tmp_path / "alone")
    assert_the_same_run(tmp_path / "alone", tmp_path / "killed")


def test_ctrl_c_on_the_command_line(recipe_for, own_code, tmp_path):
    recipe = recipe_for(*THEIRS, draws=2, workers=1)
    stopped = dying_run("ctrl-c", 9, recipe, tmp_path / "stopped")
    assert stopped.returncode == 130, stopped.stderr
    assert "--resume" in stopped.stdout
    assert "Traceback" not in stopped.stderr
    progress = tensors_and_facts(tmp_path / "stopped" / FILE)[1]["state"]["progress"]
    assert (progress["epoch"], progress["batch"]) == (1, 3), "stopped right after the step under way"
    assert train(tmp_path / "recipe.yaml", out=tmp_path / "stopped", resume=True).finished
    fit(recipe, tmp_path / "alone")
    assert_the_same_run(tmp_path / "alone", tmp_path / "stopped")


def test_a_second_ctrl_c_stops_at_once_and_python_has_its_handler_back(recipe_for, tmp_path, monkeypatch):
    real, before = Trainer._step, signal.getsignal(signal.SIGINT)

    def step(self, *arguments):
        if self.standing.step == 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return real(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", step)
    with pytest.raises(KeyboardInterrupt):
        fit(recipe_for(), tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is before
    assert tensors_and_facts(tmp_path / "run" / FILE)[1]["state"]["progress"]["epoch"] == 1


def test_a_finished_run_is_resumed_without_doing_anything(recipe_for, tmp_path, monkeypatch):
    run = fit(recipe_for(epochs=1), tmp_path / "run")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    monkeypatch.setattr(Trainer, "_step", None)
    again = fit(recipe_for(epochs=1), tmp_path / "run", resume=True)
    assert again == run
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == files


def test_only_its_own_recipe_resumes_a_run(recipe_for, tmp_path):
    fit(recipe_for(epochs=1), tmp_path / "run")
    with pytest.raises(KirieError, match=r"train\.epochs, train\.loss differ"):
        fit(recipe_for(epochs=2, loss="ce"), tmp_path / "run", resume=True)
    with pytest.raises(KirieError, match=r"model\.arguments differ"):
        fit(recipe_for("model.arguments.width=8", epochs=1), tmp_path / "run", resume=True)
    assert fit(recipe_for(epochs=1, workers=1), tmp_path / "run", resume=True).finished


def test_a_run_never_overwrites_another(recipe_for, tmp_path):
    fit(recipe_for(epochs=1), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for epochs in (1, 2):
        with pytest.raises(KirieError, match=r"--resume.*--out"):
            fit(recipe_for(epochs=epochs), tmp_path / "run")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["recipe.yaml", "model.safetensors"])
def test_a_run_takes_no_file_for_its_own_that_it_did_not_write(name, recipe_for, tmp_path):
    (tmp_path / name).write_text("somebody's")
    with pytest.raises(KirieError, match=f"{name}.*--out"):
        fit(recipe_for(), tmp_path)
    assert (tmp_path / name).read_text() == "somebody's"


def test_nothing_to_resume(recipe_for, tmp_path):
    with pytest.raises(KirieError, match="nothing to resume"):
        fit(recipe_for(), tmp_path / "nowhere", resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(KirieError, match="is a file"):
        fit(recipe_for(), tmp_path / "file")


def test_a_data_set_that_has_changed_is_told(recipe_for, blobs, tmp_path, monkeypatch):
    shutil.copytree(blobs, tmp_path / "data")
    recipe = recipe_for(f"data.path={tmp_path / 'data'}")
    stop_at(monkeypatch, 4)
    fit(recipe, tmp_path / "run")
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind / "train" / "00.png").unlink()
    with pytest.raises(KirieError, match="12 pictures, now there are 11"):
        fit(recipe, tmp_path / "run", resume=True)


def test_start_weights_are_not_needed_to_go_on(recipe_for, tmp_path, monkeypatch):
    fit(recipe_for(epochs=1), tmp_path / "before")
    start = tmp_path / "before" / "model.safetensors"
    recipe = recipe_for(f"model.start={start}")
    fit(recipe, tmp_path / "alone")
    stop_at(monkeypatch, 5)
    fit(recipe, tmp_path / "stopped")
    start.unlink()
    assert fit(recipe, tmp_path / "stopped", resume=True).finished
    assert_the_same_run(tmp_path / "alone", tmp_path / "stopped")


def test_encoder_weights_are_not_needed_to_go_on(recipe_for, tmp_path, monkeypatch):
    weights = tmp_path / "weights.pth"
    torch.save(Encoder("test_resnet").body.state_dict(), weights)
    recipe = recipe_for(f"model.arguments={{encoder: test_resnet, depth: 2, encoder_weights: {weights}}}")
    fit(recipe, tmp_path / "alone")
    stop_at(monkeypatch, 5)
    fit(recipe, tmp_path / "stopped")
    weights.unlink()
    assert fit(recipe, tmp_path / "stopped", resume=True).finished
    assert_the_same_run(tmp_path / "alone", tmp_path / "stopped")
