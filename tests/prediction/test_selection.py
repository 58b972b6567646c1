"""Choosing objects by score, class and number, in a result and through a predictor."""

import json
from pathlib import Path

import numpy as np
import pytest
from finder import CLASSES, Finder, areas_picture, found
from PIL import Image
from tiny import colour_unet, run_cli

import kirie
from kirie.classes import Classes
from kirie.data.dataset import Sample
from kirie.errors import KirieError
from kirie.masks import Crop, Masks
from kirie.prediction.predictor import Predictor
from kirie.prediction.selection import select
from kirie.prediction.sheet import result_sheet
from kirie.results import Instances


def five():
    crops = [Crop(i, i, np.ones((2, 2), bool)) for i in range(5)]
    scores = np.array([0.5, 0.9, 0.9, 0.2, 0.7], np.float32)
    return Instances.from_masks(Masks.from_crops(crops, (9, 9)), [0, 1, 2, 1, 0], CLASSES, scores)


def rows(result):
    """Which objects of `five` these are."""
    return result.masks.boxes()[:, 0].astype(int).tolist()


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"threshold": 0.5}, [0, 1, 2, 4]),
        ({"threshold": 1.0}, []),
        ({"classes": ["green"]}, [1, 3]),
        ({"classes": ("blue", "red cell", "blue")}, [0, 2, 4]),
        ({"max_detections": 1}, [1]),
        ({"max_detections": 3}, [1, 2, 4]),
        ({"max_detections": 99}, [0, 1, 2, 3, 4]),
        ({"threshold": 0.3, "classes": ["green", "red cell"], "max_detections": 2}, [1, 4]),
    ],
)
def test_the_objects_that_are_kept(wishes, expected):
    assert rows(select(five(), **wishes)) == expected


def test_objects_without_a_pixel_are_not_shown():
    masks = Masks.from_dense(np.stack([np.ones((4, 5)), np.zeros((4, 5)), np.eye(4, 5)]))
    given = Instances.from_masks(masks, [0, 1, 2], CLASSES, np.array([0.9, 0.8, 0.7]))
    assert select(given).labels.tolist() == [0, 1, 2], "metrics count them"
    assert select(given, threshold=0.0).labels.tolist() == [0, 2]


def test_nothing_can_be_chosen_from():
    assert len(select(five()[:0], threshold=0.5, classes=["blue"], max_detections=3)) == 0


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        ({"threshold": 50}, "from 0 to 1, got 50"),
        ({"threshold": float("nan")}, "from 0 to 1"),
        ({"max_detections": 0}, "from 1 to 100000, got 0"),
        ({"max_detections": 2.5}, "got 2.5"),
        ({"classes": "green"}, "list of names"),
        ({"classes": []}, "list of names"),
        ({"classes": ["grene"]}, "'grene'; the classes are red cell, green, blue"),
    ],
)
def test_what_cannot_be_meant(wishes, told):
    with pytest.raises(KirieError, match=told):
        select(five(), **wishes)


def test_an_unknown_name_among_many_gives_the_nearest():
    many = Classes(("person", "bicycle", "Motorcycle", "train", "truck", *(f"x{i}" for i in range(60))))
    result = Instances.from_masks(Masks((4, 4)), [], many)
    with pytest.raises(KirieError, match="'motorcicle'; near it are Motorcycle"):
        select(result, classes=["motorcicle"])
    with pytest.raises(KirieError, match="the first of 65 are person, bicycle"):
        select(result, classes=["qqqqqqqq"])


def test_a_predictor_keeps_all_and_predict_what_is_worth_showing():
    picture = areas_picture()
    everything = found(picture / 255)
    low = int((everything.scores < 0.5).sum())
    assert 0 < low < len(everything)
    model = Finder()
    assert len(Predictor(model, device="cpu")([picture])[0]) == len(everything)
    assert len(kirie.predict(model, picture, device="cpu")) == len(everything) - low
    assert len(kirie.predict(model, picture, device="cpu", threshold=0)) == len(everything)
    chosen = kirie.predict(model, picture, device="cpu", threshold=0.4, classes=["green"], max_detections=2)
    assert (
        chosen.labels.tolist() == [1, 1]
        and chosen.scores.tolist() == sorted(everything.scores[everything.labels == 1].tolist(), reverse=True)[:2]
    )


def test_most_raises_a_lower_limit_of_the_model_for_this_run_alone():
    picture = areas_picture()
    count = len(found(picture / 255))
    assert count > 6
    model = Finder(max_detections=3)
    before = Predictor(model, device="cpu")
    assert len(before([picture])[0]) == 3
    more = Predictor(model, device="cpu", max_detections=count - 1)
    assert len(more([picture])[0]) == count - 1
    assert more.model.weight is model.weight, "no second copy of the weights"
    assert not model.training and not more.model.training
    assert len(before([picture])[0]) == 3 and model.max_detections == 3
    assert len(Predictor(Finder(), device="cpu", max_detections=2)([picture])[0]) == 2


@pytest.mark.parametrize("wishes", [{"threshold": 0.5}, {"classes": ["red"]}, {"max_detections": 3}])
def test_a_semantic_model_has_no_objects_to_choose(wishes):
    picture = areas_picture()
    with pytest.raises(KirieError, match="'semantic', finds no objects"):
        kirie.predict(colour_unet(), picture, device="cpu", **wishes)
    assert kirie.predict(colour_unet(), picture, device="cpu").size == (60, 80)


def test_a_wrong_wish_is_told_before_the_first_picture():
    with pytest.raises(KirieError, match="'purple'"):
        Predictor(Finder(), device="cpu", classes=["purple"])


def test_a_sheet_shows_what_is_worth_showing(monkeypatch):
    picture, drawn = areas_picture(), []
    everything = found(picture / 255)
    sample = Sample(picture, everything, "a.png")
    monkeypatch.setattr("kirie.prediction.sheet.draw", lambda result, image: drawn.append(len(result)) or image)
    result_sheet(Predictor(Finder(), device="cpu"), [sample], [0])
    assert drawn == [len(everything), int((everything.scores >= 0.5).sum())]


# The command line


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kirie.runtimes.load.picked", lambda path, *_: path)
    monkeypatch.setattr("kirie.runtimes.load.load", lambda *_, **__: Finder(max_detections=2))
    Image.fromarray(areas_picture()).save("a.png")
    return tmp_path


def test_the_command_line_chooses_alike(here, capsys):
    everything = found(areas_picture() / 255)

    def shown(*words):
        told = run_cli(capsys, "predict", "m", "a.png", "--out", "out", "--device", "cpu", *words)
        assert told[0] == 0 and told[1].startswith("1 predicted into out, ") and not told[2]
        return json.loads(Path("out/results.json").read_text())

    save = ("--save", "coco")
    assert len(shown(*save)) == 2
    many = shown(*save, "--max-detections", "200")
    assert len(many) == int((everything.scores >= 0.5).sum()) > 2
    assert len(shown(*save, "--max-detections", "200", "--threshold", "0")) == len(everything)
    few = shown(*save, "--max-detections", "200", "--classes", "green, blue", "--threshold", "0.4")
    expected = everything.labels[(everything.scores >= 0.4) & (everything.labels > 0)]
    assert [entry["category_id"] for entry in few] == [CLASSES.ids[label] for label in expected]
    shown("--threshold", "0.1")
    assert {path.name for path in Path("out").iterdir()} >= {"a_overlay.jpg", "objects.csv", "counts.csv"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--classes", "grene"), "'grene'"),
        (("--classes", ","), "list of names"),
        (("--threshold", "200"), "from 0 to 1"),
        (("--max-detections", "0"), "from 1 to 100000"),
        (("--save", "scores"), "use labels, zarr, overlay, ids, csv, coco, yolo, geojson, cutouts"),
        (("--save", "coco", "--image-ids", "no.json"), "no.json cannot be read"),
    ],
)
def test_what_is_typed_wrongly_is_told_in_a_sentence(here, capsys, words, told):
    code, _, err = run_cli(capsys, "predict", "m", "a.png", "--out", "out", "--device", "cpu", *words)
    assert code == 1 and told in err and err.count("\n") == 1 and not Path("out").exists()
