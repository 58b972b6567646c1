"""A prediction of many files that is broken off goes on, and one that is divided is joined: both as if undisturbed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import colour_unet, run_cli

import kirie
from kirie.errors import KirieError
from kirie.files import stand_in_of, whole_file
from kirie.prediction.fingerprint import fingerprint
from kirie.prediction.manifest import MANIFEST
from kirie.prediction.panoptic_pair import PanopticPair
from kirie.prediction.predict_files import predict_files
from kirie.prediction.predictor import Predictor
from kirie.prediction.shards import Shard, parse_shard
from tests.models.contract import build
from tests.prediction.finder import Finder, areas_picture

KINDS = ("labels", "overlay", "ids", "csv", "coco", "yolo", "cutouts")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pictures(count, folder="photos"):
    for number in range(count):
        path = Path(folder, f"p{number:02d}.png")
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(areas_picture((40, 50), number)).save(path)
    Path(folder, "p01.png").write_bytes(b"no picture")


def job(out, predictor=None, *, inputs="photos", **options):
    return predict_files(predictor or Predictor(Finder(), device="cpu"), [inputs], out, kinds=KINDS, **options)


def contents(out):
    """All that is in a folder, without the manifests and the shards."""
    paths = [path for path in sorted(Path(out).rglob("*")) if path.is_file() and path.name != MANIFEST]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths if "shards" not in path.parts}


def predicted(monkeypatch):
    """The list of how many pictures each call of the model gets from now on."""
    sizes, before = [], Predictor.__call__

    def counted(self, pictures):
        sizes.append(len(pictures))
        return before(self, pictures)

    monkeypatch.setattr(Predictor, "__call__", counted)
    return sizes


@pytest.mark.parametrize("stop", [1, 2, 3, 6])
def test_a_run_that_was_broken_off_goes_on(monkeypatch, stop):
    pictures(6)
    whole = list(job("whole"))
    outcomes = job("cut")
    for _ in range(stop):
        next(outcomes)
    outcomes.close()
    sizes = predicted(monkeypatch)
    again = list(job("cut"))
    assert [o.earlier for o in again] == [number < stop for number in range(6)]
    assert [(o.path, o.error) for o in again] == [(o.path, o.error) for o in whole]
    assert [[w.name for w in o.written] for o in again] == [[w.name for w in o.written] for o in whole]
    assert sum(sizes) == 6 - stop - (stop < 2), "one of them is broken"
    assert contents("cut") == contents("whole")


def test_a_finished_run_is_not_repeated_unless_asked(monkeypatch):
    pictures(3)
    list(job("out"))
    before, sizes = contents("out"), predicted(monkeypatch)
    assert all(outcome.earlier for outcome in job("out")) and not sizes and contents("out") == before
    assert not any(outcome.earlier for outcome in job("out", anew=True)) and sum(sizes) == 2


def changed_picture():
    Image.fromarray(areas_picture((40, 50), 99)).save("photos/p02.png")


def another_model():
    return Predictor(Finder(), device="cpu", threshold=0.9)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (changed_picture, 2),
        (lambda: Path("out/p03_ids.png").unlink(), 3),
        (lambda: Path("out/.objects.csv.part").unlink(), 0),
        (lambda: shutil.move("photos/p00.png", "photos/p09.png"), 0),
        (lambda: Image.fromarray(areas_picture((40, 50), 7)).save("photos/p04b.png"), 4),
        (another_model, 0),
        (lambda: Path("out", MANIFEST).write_bytes(b"\x00nothing"), 0),
        (lambda: os.truncate(Path("out", MANIFEST), Path("out", MANIFEST).stat().st_size - 5), 3),
    ],
)
def test_what_has_changed_is_done_again(change, kept):
    pictures(6)
    outcomes = job("out")
    for _ in range(4):
        next(outcomes)
    outcomes.close()
    other = change()
    predictor = other if isinstance(other, Predictor) else None
    again = list(job("out", predictor))
    assert sum(outcome.earlier for outcome in again) == kept
    list(job("whole", predictor))
    assert contents("out").items() >= contents("whole").items(), "beside what only the earlier run wrote"


def test_a_picture_that_was_mended_after_the_end_is_done():
    pictures(3)
    list(job("out"))
    Image.fromarray(areas_picture((40, 50), 5)).save("photos/p01.png")
    assert not any(outcome.error for outcome in job("out"))
    list(job("whole"))
    assert contents("out") == contents("whole")


def test_two_runs_do_not_write_into_one_folder():
    pictures(3)
    outcomes = job("out")
    next(outcomes)
    with pytest.raises(KirieError, match=r"Another run is writing into out\..*--shard"):
        list(job("out"))
    list(outcomes)
    assert contents("out").keys() >= {"objects.csv"}


def test_a_killed_command_goes_on():
    """kill -9 in the middle, then the same words again."""
    rng = np.random.default_rng(0)
    Path("photos").mkdir()
    for number in range(40):
        Image.fromarray(rng.integers(0, 255, (96, 96, 3), np.uint8)).save(f"photos/{number:02d}.png")
    kirie.save(build("yolact"), "m.safetensors")
    words = [sys.executable, "-m", "kirie", "predict", "m.safetensors", "photos", "--save", "csv,coco,ids", "--out"]
    words += ["out", "--threshold", "0", "--device", "cpu"]
    first = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(Path("out").glob("*_ids.png"))) < 5 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    begun = len(list(Path("out").glob("*_ids.png")))
    assert 5 <= begun < 40 and not Path("out/objects.csv").exists()
    second = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "40 predicted into out" in second.stdout and "by an earlier run" in second.stdout
    words[words.index("out")] = "whole"
    subprocess.run(words, capture_output=True, check=True)
    assert contents("out") == contents("whole")


def test_what_a_kill_left_of_files_is_cleared_away():
    pictures(4)
    list(job("whole"))
    outcomes = job("out")
    for _ in range(3):
        next(outcomes)
    outcomes.close()
    for path in [path for path in contents("whole") if Path(path).name.startswith("p")]:
        left = stand_in_of(Path("out", path))
        left.parent.mkdir(exist_ok=True)
        left.write_bytes(b"half of it")
    others = [".p03.png", ".notes-0123456789abcdef.png", f".p99{stand_in_of(Path('p03.png')).name[4:]}"]
    for name in others:
        Path("out", name).touch()
    list(job("out"))
    assert contents("out") == contents("whole") | dict.fromkeys(others, b"")


def test_what_another_run_is_writing_stays():
    pictures(2)
    with whole_file("out/p00.png") as stand_in:
        outcomes = job("out")
        next(outcomes)
        stand_in.write_bytes(b"of another run")
        assert len(list(outcomes)) == 1 and Path("out/p00.png").exists()
    assert Path("out/p00.png").read_bytes() == b"of another run"


def test_a_manifest_damaged_behind_its_head_begins_anew():
    pictures(4)
    outcomes = job("out")
    next(outcomes)
    outcomes.close()
    head, _, *rest = Path("out", MANIFEST).read_bytes().splitlines(keepends=True)
    Path("out", MANIFEST).write_bytes(head + b"damaged\n" + b"".join(rest))
    assert [each.earlier for each in job("out")] == [False] * 4
    list(job("whole"))
    assert contents("out") == contents("whole")


# Shards


@pytest.mark.parametrize("shards", [2, 3, 9])
def test_shards_are_joined_to_what_one_run_writes(shards, capsys):
    pictures(7)
    list(job("whole"))
    order = list(range(1, shards + 1))[::-1]
    for number in order[:-1]:
        list(job("out", shard=Shard(number, shards)))
        assert not Path("out/objects.csv").exists()
    done = list(job("out", shard=Shard(order[-1], shards)))
    assert [outcome.path.name for outcome in done] == [f"p{number:02d}.png" for number in range(0, 7, shards)]
    assert contents("out") == contents("whole")


def test_a_shard_of_another_run_is_not_joined():
    pictures(4)
    list(job("out", shard=Shard(1, 2)))
    list(job("out", another_model(), shard=Shard(2, 2)))
    assert not Path("out/objects.csv").exists()
    list(job("out", shard=Shard(2, 2)))
    list(job("whole"))
    assert contents("out") == contents("whole")


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0", "1/99999", "-1/2", ""])
def test_no_shard(text):
    with pytest.raises(KirieError, match="2/4 for the second of four"):
        parse_shard(text)


def test_the_command_takes_shards(capsys):
    pictures(4)
    Path("photos/p01.png").unlink()
    kirie.save(colour_unet(), "m.safetensors")
    words = ("predict", "m.safetensors", "photos", "--out", "out", "--device", "cpu", "--shard")
    code, out, _ = run_cli(capsys, *words, "2/2")
    assert code == 0 and out.startswith("1 predicted into out, ")
    code, out, err = run_cli(capsys, *words, "1/2")
    assert code == 0 and out.startswith("2 predicted into out, ") and "all 2 shards are done" in err
    code, out, _ = run_cli(capsys, *words, "1/2")
    assert (code, out) == (0, "2 predicted into out, 2 by an earlier run\n")
    code, out, _ = run_cli(capsys, *words, "1/2", "--anew")
    assert code == 0 and "earlier" not in out
    code, _, err = run_cli(capsys, *words, "5/2")
    assert code == 1 and "--shard" in err and "Traceback" not in err


# Fingerprints


def test_fingerprints_tell_predictors_apart():
    model = colour_unet()
    same = fingerprint(Predictor(model, device="cpu"))
    assert same == fingerprint(Predictor(colour_unet(), device="cpu", batch_size=3))
    others = [fingerprint(Predictor(model, device="cpu", scores=True)), fingerprint(Predictor(model, cleanup=False))]
    with_threshold = [fingerprint(Predictor(Finder(), device="cpu", threshold=t)) for t in (None, 0.3, 0.4)]
    pair = [fingerprint(PanopticPair(build("unet"), build("yolact"), score=s, device="cpu")) for s in (0.1, 0.2)]
    next(model.parameters()).data.add_(0.001)
    others.append(fingerprint(Predictor(model, device="cpu")))
    found = [same, *others, *with_threshold, *pair]
    assert len(set(found)) >= len(found) - 1  # no clean-up left out of none is the same
