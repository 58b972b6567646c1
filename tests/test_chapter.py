"""The numbers and figures of the textbook chapter, as they truly are, by the public names.

Where the chapter prints another number, it is in the comment beside.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import kirie
from kirie.cleanup import CleanupSettings, RegionRules, clean, objects
from kirie.drawing import history_figure, iou_panels


def circle(center, radius=20, size=100):
    y, x = np.ogrid[:size, :size]
    across, down = center if isinstance(center, tuple) else (center, center)
    return (x - across) ** 2 + (y - down) ** 2 <= radius**2


TRUE_CIRCLE, SHIFTED_CIRCLE = circle(50), circle(55)
MASK_1 = np.array([[0, 0, 1, 1, 0], [0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 1, 1, 1, 0], [0, 0, 1, 1, 0]])
MASK_2 = np.array([[0, 0, 0, 1, 1], [0, 0, 1, 1, 1], [0, 1, 1, 1, 1], [0, 1, 1, 1, 0], [0, 0, 1, 1, 0]])


def test_two_circles():
    assert f"{kirie.iou(SHIFTED_CIRCLE, TRUE_CIRCLE):.4f}" == "0.6304"  # 0.6667
    assert f"{kirie.dice(SHIFTED_CIRCLE, TRUE_CIRCLE):.4f}" == "0.7733"  # 0.8000


def test_exercise_2():
    areas = [int(MASK_1.sum()), int(MASK_2.sum()), int((MASK_1 & MASK_2).sum()), int((MASK_1 | MASK_2).sum())]
    assert areas == [15, 14, 12, 17]  # 13, 14, 11, 18
    assert f"{kirie.iou(MASK_1, MASK_2):.4f}" == "0.7059"  # 0.6111
    assert f"{kirie.dice(MASK_1, MASK_2):.4f}" == "0.8276"  # 0.7586
    assert (kirie.iou(MASK_1, MASK_2), kirie.dice(MASK_1, MASK_2)) == (12 / 17, 24 / 29)


def test_two_empty_masks_agree():
    empty = np.zeros((5, 5), bool)  # the chapter's Dice divides 0 by 0, its IoU is 0
    assert kirie.iou(empty, empty) == kirie.dice(empty, empty) == 1
    assert kirie.iou(empty, MASK_1) == kirie.dice(MASK_1, empty) == 0
    assert kirie.iou(empty, empty, empty=0.0) == 0


@pytest.mark.parametrize(("classes", "parameters"), [(2, 31_043_586), (1, 31_043_521)])  # 31,042,434 for 2 classes
def test_parameters_of_the_unet(classes, parameters):
    with torch.device("meta"):
        model = kirie.UNet(3, classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_unet_keeps_the_size_of_its_pictures():
    model = kirie.UNet(3, 2, width=4).eval()
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 256, 256)).logits.shape == (1, 2, 256, 256)


def runs(flags):
    """(start, end) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return list(zip(edges[::2], edges[1::2], strict=True))


def test_the_four_panels_that_explain_iou():
    image = iou_panels(TRUE_CIRCLE, SHIFTED_CIRCLE)
    pixels = np.asarray(image.convert("RGB"))
    ground = (pixels == pixels[20, image.width // 8 - 140]).all(2)  # the colour of an empty corner of the first panel
    panels = runs(ground.any(0))
    assert len(panels) == 4
    top, bottom = runs(ground.any(1))[0]
    intersection, union = TRUE_CIRCLE & SHIFTED_CIRCLE, TRUE_CIRCLE | SHIFTED_CIRCLE
    for (left, right), mask in zip(panels, (TRUE_CIRCLE, SHIFTED_CIRCLE, intersection, union), strict=True):
        panel = pixels[top:bottom, left:right]
        rows = np.arange(100) * len(panel) // 100 + len(panel) // 200
        columns = np.arange(100) * panel.shape[1] // 100 + panel.shape[1] // 200
        small = panel[rows[:, None], columns].reshape(100, 100, 3).astype(int)
        spread = small.max(2) - small.min(2) > 30  # the masks are the only colours
        assert np.mean(spread == mask) > 0.99


def test_the_history_of_a_training(tmp_path):
    rows = [{"epoch": i, "loss": 1 / i, "val_miou": 1 - 1 / i, "lr": 0.001 / i} for i in range(1, 11)]
    history_figure(rows, tmp_path / "history.png")
    with Image.open(tmp_path / "history.png") as image:
        assert image.format == "PNG" and image.width > 2 * image.height > 400
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20


def test_clean_up_leaves_two_regions():
    rng = np.random.RandomState(42)  # the chapter's np.random.seed
    chances = rng.rand(256, 256) * 0.3
    chances[circle((80, 80), 30, 256)] = 0.9
    chances[circle((180, 180), 25, 256)] = 0.85
    chances[rng.rand(256, 256) > 0.98] = 0.7
    classes = kirie.Classes(("background", "object"))
    scores = np.stack([1 - chances, chances]).astype(np.float32)
    given = kirie.SemanticMap(scores.argmax(0).astype(np.uint8), classes, scores)
    assert ndimage.label(given.labels)[1] == 1081  # 15
    after = clean(given, CleanupSettings(threshold=0.5, rules=RegionRules(opening=1, closing=1, smallest=50)))
    assert ndimage.label(after.labels)[1] == 2
    assert len(objects(after, CleanupSettings())) == 2
