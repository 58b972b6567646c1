import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CLASSES, add_sample, blobs, colour_unet, make_data, painted, run_cli

from kirie.classes import Classes
from kirie.data.dataset import Sample
from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.models.file import save
from kirie.prediction.suspects import _contradicted, find_suspects
from kirie.results import Instances


@pytest.fixture
def run(tmp_path):
    """A data set of which three labels are wrong, and a model that is sure of every pixel."""
    data = make_data(tmp_path / "data", (("train", 12), ("val", 6)))
    for split, name in (("train", "train3"), ("val", "val1")):
        path = data / "masks" / split / f"{name}.png"
        labels = np.array(Image.open(path))
        labels[:, 16:] = (labels[:, 16:] + 1) % 3
        Image.fromarray(labels).save(path)
    model = colour_unet()
    with torch.no_grad():
        model.head.weight *= 255
    save(model, tmp_path / "run" / "model.safetensors", recipe={"data": {"path": str(data), "train": "train"}})
    return tmp_path


def test_labels_that_are_wrong_are_named_and_no_others(run):
    suspects = find_suspects(run / "run", run / "data", device="cpu")
    assert suspects.pictures == 18
    assert sorted((each.name, each.split, each.learned) for each in suspects.found) == [
        ("images/train/train3.png", "train", True), ("images/val/val1.png", "val", False)
    ]  # fmt: skip
    assert all(each.share == 0.5 and each.usual == 0 for each in suspects.found)
    assert "50.0% of the pixels, most of them" in suspects.lines()[1] and suspects.sheet.size[0] > 600


def test_right_labels_and_broken_files(run, tmp_path):
    for split, name in (("train", "train3"), ("val", "val1")):
        for kind in ("images", "masks"):
            (run / "data" / kind / split / f"{name}.png").unlink()
    (run / "data" / "images" / "train" / "train0.png").write_bytes(b"no picture")
    suspects = find_suspects(run / "run", run / "data", device="cpu")
    assert suspects.found == () and suspects.sheet is None and suspects.pictures == 15
    assert "no label of 15 pictures" in suspects.lines()[0]


def test_what_the_model_is_not_sure_of_is_no_mistake(run):
    save(colour_unet(), run / "unsure" / "model.safetensors")  # of noise at 0.1 of the colours
    assert not find_suspects(run / "unsure", run / "data", device="cpu").found


def test_objects_without_a_label_and_labels_without_an_object():
    ids = np.zeros((30, 40), np.int32)
    ids[2:10, 2:10], ids[12:20, 12:20], ids[22:28, 30:38] = 1, 2, 3
    one, two, three = (Masks.from_ids(ids, [number]) for number in (1, 2, 3))

    def objects(masks, scores):
        together = Masks((30, 40), tuple(item for each in masks for item in each.items))
        return Instances.from_masks(together, [0] * len(masks), Classes(("cell",)), np.array(scores, np.float32))

    truth = objects([one, two], [1, 1])
    sample = Sample(np.zeros((30, 40, 3), np.uint8), truth, "a")
    assert _contradicted(objects([one, two], [0.95, 0.3]), sample)[0] == 0
    share, why = _contradicted(objects([one, three], [0.95, 0.95]), sample)
    assert share == pytest.approx(2 / 3) and "1 object without a label, 1 label without an object" in why
    assert _contradicted(objects([one, two, three], [0.95, 0.9, 0.5]), sample)[0] == 0
    assert _contradicted(objects([], []), Sample(sample.image, objects([], []), "b"))[0] == 0


def test_each_fold_judges_its_own_part(run):
    model = colour_unet()
    with torch.no_grad():
        model.head.weight *= 255
    for number in (1, 2):
        recipe = {"data": {"path": str(run / "data"), "fold": [number, 2]}}
        save(model, run / "folds" / f"fold-{number}" / "model.safetensors", recipe=recipe)
    suspects = find_suspects(run / "folds", run / "data", device="cpu")
    assert suspects.pictures == 18 and not any(each.learned for each in suspects.found) and len(suspects.found) == 2


def test_inspect_names_them(run, monkeypatch, capsys):
    monkeypatch.chdir(run)
    status, out, _ = run_cli(capsys, "inspect", "data", "--model", "run")
    assert status == 0 and "labels to look at, of 18 pictures" in out and "train3.png (train): 50.0%" in out
    assert (run / "data_suspects.png").exists() and "though it was learned from" in out
    status, out, _ = run_cli(capsys, "inspect", "data", "--model", "run", "--json", "--no-sheet")
    assert len(json.loads(out)["suspects"]) == 2
    other = make_data(run / "other")
    (other / "classes.json").write_text(json.dumps({"classes": ["a", "b", "c", "d"]}))
    status, _, err = run_cli(capsys, "inspect", "other", "--model", "run")
    assert status == 1 and "classes" in err and "Traceback" not in err
    status, _, err = run_cli(capsys, "inspect", "data", "--model", "nothing")
    assert status == 1 and "no model file" in err


def test_nothing_to_compare(run, tmp_path):
    labels = blobs((24, 32))
    add_sample(tmp_path / "empty", "test", "a", painted(labels), labels)
    (tmp_path / "empty" / "classes.json").write_text(json.dumps({"classes": list(CLASSES.names)}))
    (tmp_path / "empty" / "images" / "test" / "a.png").write_bytes(b"no picture")
    with pytest.raises(KirieError, match="no labelled pictures"):
        find_suspects(run / "run", tmp_path / "empty", device="cpu")
