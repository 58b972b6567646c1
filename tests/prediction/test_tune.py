import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import run_cli

from kirie.classes import Classes
from kirie.cleanup import CleanupSettings, RegionRules
from kirie.data.dataset import Sample
from kirie.data.listed import SampleList
from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.models.file import load, read_card, save
from kirie.prediction.evaluate import evaluate
from kirie.prediction.tune import tune
from kirie.results import Instances, SemanticMap
from tests.models.contract import build
from tests.tiny import colour_unet

CLASSES = Classes(("background", "cell"))


def picture(seed, size=(48, 64)):
    """Green squares on dark, half as bright as the ground is red, with single bright pixels that mean nothing."""
    rng = np.random.default_rng(seed)
    image, labels = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    image[..., 0] = 60
    for top, left in ((6, 5), (26, 36)):
        image[top : top + 12, left : left + 12, 1], labels[top : top + 12, left : left + 12] = 50, 1
    for y, x in zip(rng.integers(0, size[0], 20), rng.integers(0, size[1], 20), strict=True):
        if not labels[y, x]:
            image[y, x, 1] = 200
    return image, labels


def dataset(task="semantic", count=3):
    samples = []
    for seed in range(count):
        image, labels = picture(seed)
        truth = SemanticMap(labels, CLASSES)
        if task == "instance":
            squares = Masks.from_dense(
                np.stack([(labels > 0) & (np.arange(64) < 30), (labels > 0) & (np.arange(64) > 30)])
            )
            truth = Instances.from_masks(squares, [0, 0], Classes(("cell",)))
        samples.append(Sample(image, truth, f"{seed}"))
    return SampleList({"val": samples, "test": samples})


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    save(
        colour_unet(CLASSES),
        folder / "model.safetensors",
        recipe={"data": {"path": "nowhere"}},
        scores={"val_miou": 0.5},
    )
    return folder


@pytest.mark.parametrize("metric", ["iou", "dice", "miou", "boundary"])
def test_threshold_and_rules_are_found_and_kept(run, metric):
    found = tune(run, dataset(), metric=metric, device="cpu")
    assert found.before < 0.6 and found.after > 0.99 and found.pictures == 3 and found.tried > 20
    assert found.settings.threshold < 0.5 and found.settings.rules.smallest > 0
    assert max(found.curve.values()) < found.after and set(found.curve) == {round(0.05 * i, 2) for i in range(2, 19)}
    model, card = load(run), read_card(run)
    assert model.cleanup == found.settings and card.scores == {"val_miou": 0.5}
    assert card.recipe == {"data": {"path": "nowhere"}} and (run / "tune.png").read_bytes()[1:4] == b"PNG"
    report = evaluate(model, dataset().only("test"), device="cpu")
    assert report.iou[1] > 0.99
    again = tune(run, dataset(), metric=metric, device="cpu")
    assert again.before == pytest.approx(found.after) and again.settings == found.settings


def test_objects_are_matched(run):
    found = tune(run, dataset("instance"), metric="matching", device="cpu")
    assert found.before < 0.5 and found.after == 1


def test_a_better_clean_up_that_it_has_already_stays(run):
    model = load(run)
    model.cleanup = CleanupSettings(threshold=0.46, rules=RegionRules(smallest=20))
    save(model, run / "model.safetensors")
    found = tune(run, dataset(), device="cpu")
    assert found.before == pytest.approx(found.after) and found.settings == model.cleanup


def test_nothing_is_written_unasked(run):
    before = (run / "model.safetensors").read_bytes()
    assert tune(run, dataset(), device="cpu", write=False).after > 0.99
    assert (run / "model.safetensors").read_bytes() == before and not (run / "tune.png").exists()


def test_what_cannot_be_tuned_is_told(run, tmp_path):
    with pytest.raises(KirieError, match="test split is for the last measurement"):
        tune(run, dataset(), split="test")
    with pytest.raises(KirieError, match="test split is for the last measurement"):
        tune(run, dataset(), split="Testing")
    with pytest.raises(KirieError, match="truth for task 'instance'"):
        tune(run, dataset(), metric="matching")
    nothing = Sample(picture(0)[0], SemanticMap(np.full((48, 64), 255, np.uint8), CLASSES), "void")
    with pytest.raises(KirieError, match="iou cannot be measured"):
        tune(run, SampleList({"val": [nothing]}))
    assert load(run).cleanup is None
    with pytest.raises(KirieError, match="no metric 'ap'"):
        tune(run, dataset(), metric="ap")
    with pytest.raises(KirieError, match=r"'nowhere'.*give a data set"):
        tune(run)
    save(build("yolact"), tmp_path / "objects.safetensors")
    with pytest.raises(KirieError, match="for semantic models"):
        tune(tmp_path / "objects.safetensors", dataset())
    save(colour_unet(Classes(("a", "b"))), tmp_path / "all.safetensors")
    with pytest.raises(KirieError, match="first class is called background"):
        tune(tmp_path / "all.safetensors", dataset())


def test_the_command(run, tmp_path, capsys):
    data = tmp_path / "data"
    for folder in ("images", "masks"):
        (data / folder / "val").mkdir(parents=True)
    for seed in range(2):
        image, labels = picture(seed)
        Image.fromarray(image).save(data / "images" / "val" / f"{seed}.png")
        Image.fromarray(labels).save(data / "masks" / "val" / f"{seed}.png")
    (data / "classes.json").write_text(json.dumps({"classes": list(CLASSES.names)}))
    code, out, err = run_cli(capsys, "tune", str(run), str(data), "--dry-run", "--device", "cpu")
    assert (code, err) == (0, "") and "nothing was written" in out and load(run).cleanup is None
    code, out, _ = run_cli(capsys, "tune", str(run), str(data), "--device", "cpu")
    assert code == 0 and "threshold 0." in out and "smallest" in out and load(run).cleanup is not None
    code, _, err = run_cli(capsys, "tune", str(run), str(data), "--split", "test")
    assert code == 1 and err.count("\n") <= 1 and Path(data).exists()
