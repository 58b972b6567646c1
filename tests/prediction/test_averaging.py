from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from tiny import colour_unet, random_unet, run_cli

import kirie
from kirie.classes import Classes
from kirie.cleanup import CleanupSettings, RegionRules
from kirie.errors import KirieError
from kirie.masks import Crop, Masks
from kirie.models.file import save
from kirie.models.parts.region_objects import RegionObjects
from kirie.prediction.averaging import TTA, Averaged, View, shown, undone, undone_crop, voted
from kirie.prediction.predictor import Predictor
from kirie.results import Instances
from tests.models.contract import build, equal

CLASSES = Classes(("background", "cell"))
BLOBS = Classes(("blob",))


def picture(seed=0, size=(40, 56), channels=3):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((*size, channels)), (3, 3, 0))
    return (255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)


def resized():
    model = colour_unet(CLASSES)
    model.inputs = replace(model.inputs, short_side=64)
    return model


@pytest.mark.parametrize("view", [*TTA["turns"], *TTA["scales"]])
def test_maps_and_masks_come_back_to_their_place(view):
    size = (40, 56)
    image = picture(size=size)
    seen = shown(image, view)
    maps = undone(np.ascontiguousarray(seen.transpose(2, 0, 1)).astype(np.float32), view, size)
    if view.scale == 1:
        np.testing.assert_array_equal(maps, image.transpose(2, 0, 1))
    else:
        assert np.abs(maps - image.transpose(2, 0, 1)).mean() < 3
    mask = np.zeros(size, bool)
    mask[5:19, 30:52], mask[8:12, 36:40] = True, False
    there = shown(np.repeat(mask[..., None].astype(np.uint8) * 255, 3, 2), view)[..., 0] > 127
    (crop,) = Masks.from_dense(there[None]).crops()
    back = Masks.from_crops([undone_crop(crop, view, size)], size).dense()[0]
    if view.scale == 1:
        np.testing.assert_array_equal(back, mask)
    else:
        assert (back & mask).sum() / (back | mask).sum() > 0.85


def test_an_empty_mask_stays_empty():
    for view in (*TTA["turns"], *TTA["scales"]):
        back = undone_crop(Crop(0, 0, np.zeros((0, 0), bool)), view, (9, 7))
        assert not Masks.from_crops([back], (9, 7)).dense().any()


def test_one_answer_is_the_predictor_s():
    semantic, instance = random_unet(CLASSES), build("yolact")
    for model in (semantic, instance):
        alone = Predictor(model, device="cpu")([picture()])[0]
        assert equal(Averaged([model], device="cpu")([picture()])[0], alone)


def test_probabilities_are_the_mean_of_those_by_hand():
    model, image = random_unet(CLASSES, seed=3), picture(1, (32, 32))
    alone = Predictor(model, device="cpu", scores=True)
    expected = np.zeros((2, 32, 32), np.float32)
    for turns in range(4):
        for mirrored in (False, True):
            view = np.rot90(image[:, ::-1] if mirrored else image, turns)
            scores = np.rot90(alone([np.ascontiguousarray(view)])[0].scores, -turns, axes=(1, 2))
            expected += (scores[..., ::-1] if mirrored else scores) / 8
    found = Averaged([model], tta="turns", device="cpu", scores=True)([image])[0]
    np.testing.assert_allclose(found.scores, expected, atol=1e-6)
    np.testing.assert_array_equal(found.labels, found.scores.argmax(0))
    assert Averaged([model], tta="turns", device="cpu")([image])[0].scores is None


@pytest.mark.parametrize("tta", ["flip", "flips", "turns"])
def test_what_looks_at_single_pixels_sees_the_same_in_every_view(tta):
    model, image = colour_unet(CLASSES), picture(2)
    model.up[0].conv[0]  # a network of straight connections
    alone = Predictor(model, device="cpu")([image])[0]
    np.testing.assert_array_equal(Averaged([model], tta=tta, device="cpu")([image])[0].labels, alone.labels)


def test_models_with_their_classes_in_another_order():
    other_way = Classes(("cell", "background"))
    image = picture(4)
    one, two = colour_unet(CLASSES), colour_unet(other_way)
    first, second = (Predictor(model, device="cpu", scores=True)([image])[0].scores for model in (one, two))
    found = Averaged([one, two], device="cpu", scores=True)([image])[0]
    np.testing.assert_allclose(found.scores, (first + second[::-1]) / 2, atol=1e-6)
    assert found.classes == CLASSES


def test_the_clean_up_is_done_once_on_the_mean():
    model, image = colour_unet(CLASSES), np.zeros((30, 40, 3), np.uint8)
    image[..., 0], image[5:15, 5:15], image[20, 30] = 100, (0, 200, 0), (0, 200, 0)
    model.cleanup = CleanupSettings(rules=RegionRules(smallest=4))
    labels = Averaged([model], tta="flips", device="cpu")([image])[0].labels
    assert labels[10, 10] == 1 and labels[20, 30] == 0
    counted = Averaged([RegionObjects(model)], tta="flips", device="cpu")([image])[0]
    assert isinstance(counted, Instances) and len(counted) == 1


def blobs(boxes, scores, size=(20, 30)):
    masks = np.zeros((len(boxes), *size), bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return Instances.from_masks(Masks.from_dense(masks), [0] * len(boxes), BLOBS, np.array(scores, np.float32))


def test_objects_are_voted_on():
    one = blobs([(0, 0, 10, 10), (20, 0, 30, 10)], [0.9, 0.4])
    two = blobs([(1, 0, 11, 10), (0, 12, 8, 20)], [0.7, 0.6])
    found = voted([one, two])
    np.testing.assert_allclose(found.scores, [(0.9 + 0.7) / 2, 0.3, 0.2], atol=1e-6)
    np.testing.assert_array_equal(found.boxes, [[0, 0, 10, 10], [0, 12, 8, 20], [20, 0, 30, 10]])
    assert equal(voted([one, blobs([], [])])[:1], blobs([(0, 0, 10, 10)], [0.45]))
    assert len(voted([blobs([], []), blobs([], [])])) == 0
    assert equal(voted([one, one, one]), one)
    close = blobs([(0, 0, 10, 10), (0, 0, 10, 9)], [0.9, 0.8])
    assert len(voted([close, close])) == 2, "an answer's own objects stay apart"


def test_objects_of_views_meet():
    model = build("yolact", input_size=None)
    for tta in TTA:
        found = Averaged([model], tta=tta, device="cpu", max_detections=5)([picture(5, (64, 64))])[0]
        assert len(found) <= 5 and found.size == (64, 64) and (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Averaged([]), "at least one"),
        (lambda: Averaged([colour_unet()], tta="all"), "no test-time augmentation 'all'; expected none, flip"),
        (lambda: Averaged([build("panoptic_fpn")]), "'panoptic' cannot be averaged"),
        (lambda: Averaged([colour_unet(CLASSES), build("yolact")]), "serve one task"),
        (lambda: Averaged([colour_unet(CLASSES), random_unet(Classes(("background", "x")))]), "same classes"),
        (lambda: Averaged([colour_unet(CLASSES), random_unet(CLASSES, in_channels=1)]), "of 3 channels"),
        (lambda: Averaged([colour_unet(CLASSES)], threshold=0.5), "finds no objects"),
        (lambda: Averaged([build("yolact")], threshold=2.0), "from 0 to 1"),
        (lambda: Averaged([resized()], tta="scales"), "brings every picture to one size"),
        (lambda: kirie.predict(build("panoptic_fpn"), picture(), tta="flip"), "cannot be averaged"),
    ],
)
def test_what_does_not_go_together_is_told(make, told):
    with pytest.raises(KirieError, match=told):
        make()


def test_the_verbs_and_the_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    one, two, image = random_unet(CLASSES, seed=1), random_unet(CLASSES, seed=2), picture(6)
    expected = Averaged([one, two], tta="flip", device="cpu")([image])[0]
    assert equal(kirie.predict(one, image, device="cpu", tta="flip", others=[two]), expected)
    for number, model in enumerate((one, two)):
        save(model, f"{number}.safetensors")
    for split in ("images/val", "masks/val"):
        Path("data", split).mkdir(parents=True)
    Image.fromarray(image).save("data/images/val/a.png")
    Image.fromarray(expected.labels).save("data/masks/val/a.png")
    Path("data/classes.json").write_text('{"classes": ["background", "cell"]}')
    report = kirie.evaluate(one, "data", split="val", device="cpu", tta="flip", others=[two])
    assert report.miou == 1
    words = ("--with", "1.safetensors", "--tta", "flip", "--device", "cpu")
    code, out, _ = run_cli(capsys, "evaluate", "0.safetensors", "data", "--split", "val", *words)
    assert code == 0 and "mIoU 1.0000" in out
    code, _, err = run_cli(capsys, "predict", "0.safetensors", "data/images/val/a.png", "--out", "cut", *words)
    assert (code, err) == (0, "")
    np.testing.assert_array_equal(np.asarray(Image.open("cut/a.png")), expected.labels)
    code, _, err = run_cli(capsys, "predict", "0.safetensors", "data/images/val/a.png", "--out", "cut", "--tta", "x")
    assert code == 1 and "no test-time augmentation 'x'" in err and err.count("\n") == 1


def test_a_view_of_one_pixel():
    model = random_unet(CLASSES)
    with torch.no_grad():
        for tta in TTA:
            assert Averaged([model], tta=tta, device="cpu")([picture(0, (1, 2))])[0].labels.shape == (1, 2)
    assert View() == TTA["none"][0]
