"""The limits of a panoptic model's merge as options of prediction, in Python and on the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import colour_unet, run_cli

import kirie
from kirie.errors import KirieError
from kirie.models.panoptic_fpn import PanopticFPN
from kirie.prediction.predictor import Predictor

SMALL = {
    "encoder": "test_efficientnet", "channels": 16, "box_width": 16, "mask_convs": 1, "mask_width": 16,
    "anchor_sizes": (8, 16, 32, 64, 128), "width": 16,
}  # fmt: skip
CLASSES = kirie.Classes(("sky", "coin", "sand"), things=(False, True, False))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = PanopticFPN(3, CLASSES, score=0.9, stuff_area=1, **SMALL).eval()
    model.instance.score_threshold = 0.0
    return model


def picture():
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)


def things(result):
    return [segment for segment in result.segments if segment.is_thing]


def test_they_change_this_run_alone(model):
    own, low, bare = (
        Predictor(model, device="cpu", **options)([picture()])[0]
        for options in ({}, {"threshold": 0.0}, {"threshold": 1.0, "stuff_area": 10**6})
    )
    assert not things(own) and things(low) and not bare.segments
    assert (model.settings.score, model.settings.stuff_area) == (0.9, 1)
    assert len(things(kirie.predict(model, picture(), device="cpu", threshold=0.0))) == len(things(low))
    wide = Predictor(model, device="cpu", threshold=0.0, overlap=1.0)([picture()])[0]
    assert len(things(wide)) >= len(things(low))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["coin"]}, "'panoptic', chooses by threshold, overlap, stuff_area. Leave classes out"),
        ({"max_detections": 3}, "Leave max_detections out, or use a model for task instance"),
        ({"threshold": 1.5}, "from 0 to 1"),
        ({"stuff_area": -1}, "whole number of pixels"),
    ],
)
def test_what_does_not_fit_is_refused(model, options, message):
    with pytest.raises(KirieError, match=message):
        Predictor(model, device="cpu", **options)


def test_the_command_line_writes_panoptic_results(model, capsys):
    kirie.save(model, "panoptic.safetensors")
    Image.fromarray(picture()).save("a.png")
    words = ("--out", "cut", "--device", "cpu", "--save", "coco,csv", "--stuff-area", "1", "--threshold", "1")
    code, out, err = run_cli(capsys, "predict", "panoptic.safetensors", "a.png", *words)
    assert (code, err) == (0, "") and out.startswith("1 predicted into cut, ")
    (entry,) = json.loads(Path("cut/panoptic_results.json").read_text())["annotations"]
    result = Predictor(model, device="cpu", threshold=1.0)([picture()])[0]
    assert [row["area"] for row in entry["segments_info"]] == [segment.area for segment in result.segments]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("a.png", "--semantic", "s.safetensors"), "name it by --instance"),
        (("s.safetensors", "a.png", "--semantic", "s", "--instance", "i"), "s.safetensors is a model"),
        (("a.png", "--instance", "s.safetensors"), "name it by --semantic"),
        (("a.png", "--semantic", "s.safetensors", "--instance", "no.safetensors"), "no.safetensors"),
        (("a.png", "--semantic", "s.safetensors", "--instance", "s.safetensors"), "'instance'"),
        (("a.png", "--semantic", "s", "--instance", "i", "--classes", "x"), "--classes is of no use"),
        (("a.png", "--semantic", "s", "--instance", "i", "--architecture", "x:Y"), "--architecture is of no use"),
        (("s.safetensors",), "Give the pictures behind the model"),
    ],
)
def test_what_is_typed_wrongly_is_told_in_a_sentence(capsys, words, told):
    kirie.save(colour_unet(), "s.safetensors")
    Image.fromarray(picture()).save("a.png")
    code, _, err = run_cli(capsys, "predict", *words, "--out", "cut", "--device", "cpu")
    assert code == 1 and told in err and err.count("\n") == 1 and not Path("cut").exists()


def test_labels_and_segments_are_written_together(model, capsys):
    kirie.save(model, "panoptic.safetensors")
    Image.fromarray(picture()).save("a.png")
    words = ("--out", "cut", "--device", "cpu", "--save", "labels,coco,ids,cutouts")
    assert run_cli(capsys, "predict", "panoptic.safetensors", "a.png", *words)[0] == 0
    assert Path("cut/a.png").is_file() and Path("cut/panoptic_results/a.png").is_file()


def test_a_pair_predicts_by_the_usual_verb(model):
    pair = kirie.PanopticPair(colour_unet(), model.instance, device="cpu")
    assert isinstance(kirie.predict(pair, picture()), kirie.PanopticMap)
    assert len(kirie.predict(pair, [picture(), picture()])) == 2
    with pytest.raises(KirieError, match="has its own settings"):
        kirie.predict(pair, picture(), threshold=0.5)
    with pytest.raises(KirieError, match="evaluate measures one model, got a PanopticPair"):
        kirie.evaluate(pair, "nowhere")
