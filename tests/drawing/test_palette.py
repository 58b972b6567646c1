"""Colours of objects and the ink on them."""

import numpy as np
import pytest
from skimage.color import deltaE_cie76, rgb2lab

from kirie.classes import Classes
from kirie.drawing.palette import beside, ink, object_colors

MANY = Classes(tuple(f"c{i}" for i in range(80)), things=(True,) * 80)


def contrast(one, other):
    """WCAG 2 contrast of two RGB colours, 1 to 21."""
    parts = np.array([one, other]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    low, high = np.sort(linear @ (0.2126, 0.7152, 0.0722))
    return (high + 0.05) / (low + 0.05)


def test_words_are_legible_on_every_colour():
    for color in np.random.default_rng(0).integers(0, 256, (2000, 3)).tolist():
        assert contrast(ink(tuple(color)), color) >= 4.5


@pytest.mark.parametrize("classes", [Classes(("cell",), things=(True,)), MANY], ids=["1 class", "80 classes"])
def test_objects_of_one_class_beside_each_other_differ_clearly(classes):
    pairs = np.random.default_rng(0).integers(0, 400, (800, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    labs = rgb2lab(object_colors([0] * 400, classes, pairs) / 255)
    apart = deltaE_cie76(labs[pairs[:, 0]], labs[pairs[:, 1]])
    assert apart.min() > 20
    alone = rgb2lab(object_colors([0] * 400, classes) / 255)
    assert deltaE_cie76(alone[pairs[:, 0]], alone[pairs[:, 1]]).min() == 0, "which is not so by chance"


def test_the_first_of_a_class_has_its_colour_and_others_its_hue():
    colors = object_colors([5, 5, 5, 5, 9, 5], MANY)
    assert tuple(colors[0]) == MANY.colors[5] and tuple(colors[4]) == MANY.colors[9]
    assert len(np.unique(colors, axis=0)) == 6


def test_what_meets_or_nearly_meets_is_beside_each_other():
    ids = np.zeros((30, 60), np.int32)
    ids[:10, :10], ids[:10, 10:20] = 1, 2  # meet
    ids[:10, 25:30] = 3  # 5 pixels away
    ids[:10, 50:] = 4  # far away
    ids[12:20, :2] = 5  # below 1
    assert {tuple(sorted(pair)) for pair in beside(ids, 5).tolist()} == {(0, 1), (1, 2), (0, 4)}
    assert beside(np.zeros((1, 1), np.int32), 0).shape == (0, 2)


def test_large_maps_are_looked_at_coarsely():
    ids = np.zeros((50, 6400), np.int32)
    ids[:, :3000], ids[:, 3000:] = 70_000, 70_001
    assert {tuple(sorted(pair)) for pair in beside(ids, 70_001).tolist()} == {(69_999, 70_000)}
