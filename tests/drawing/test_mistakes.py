"""Where results differ from truths, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from kirie.classes import Classes
from kirie.drawing import difference, difference_key
from kirie.drawing.mistakes import FALSE_NEGATIVE, FALSE_POSITIVE, FOUND, WRONG
from kirie.errors import KirieError
from kirie.masks import Crop, Masks
from kirie.metrics import PanopticMetric
from kirie.results import Instances, PanopticMap, Segment, SemanticMap

CLASSES = Classes(("background", "road", "car"), ((0, 0, 0), (200, 40, 40), (30, 90, 220)), (False, False, True))


def grey_picture(height=40, width=60):
    return np.full((height, width, 3), 120, np.uint8)


def semantic_map():
    labels = np.zeros((40, 60), np.uint8)
    labels[10:30, 5:25] = 1
    labels[10:30, 25:45] = 2
    labels[:, 50:] = CLASSES.void
    return SemanticMap(labels, CLASSES)


def test_a_difference_of_two_classes_tells_false_positives_from_false_negatives():
    classes = Classes(("background", "coin"))
    truth, result = np.zeros((40, 60), np.uint8), np.zeros((40, 60), np.uint8)
    truth[10:30, 10:30] = 1
    result[10:30, 20:40] = 1
    truth[:5] = 255
    drawn = np.asarray(difference(SemanticMap(result, classes), SemanticMap(truth, classes))).astype(int)
    # Inside each part, two pixels away from the truth's border.
    assert np.abs(drawn[20, 35] - FALSE_POSITIVE).max() < 30
    assert np.abs(drawn[20, 15] - FALSE_NEGATIVE).max() < 30
    assert (drawn[20, 25] == 90).all(), "right pixels are grey"
    assert (drawn[2] == drawn[2, :, :1]).all(), "void is grey"


def test_a_difference_of_more_classes_is_red_where_the_class_is_wrong():
    truth = semantic_map()
    labels = truth.labels.copy()
    labels[14:26, 10:20] = 2
    labels[:, 50:] = 1  # void in the truth: does not count
    drawn = np.asarray(difference(SemanticMap(labels, CLASSES), truth, grey_picture())).astype(int)
    red = np.abs(drawn - WRONG).max(2) < 40
    expected = np.zeros((40, 60), bool)
    expected[14:26, 10:20] = True
    assert (red == expected).all()


def test_a_difference_needs_like_with_like():
    truth = semantic_map()
    with pytest.raises(KirieError, match="size"):
        difference(SemanticMap(truth.labels[:20].copy(), CLASSES), truth)
    with pytest.raises(KirieError, match="4 classes apart and the truth 3"):
        difference(SemanticMap(truth.labels, Classes(("background", "road", "car", "bus"))), truth)


# Objects

KINDS = Classes(("cat", "dog"))


def squares(places, labels=None, side=40, size=(120, 400), crowd=None):
    masks = Masks.from_crops([Crop(top, left, np.ones((side, side), bool)) for top, left in places], size)
    return Instances.from_masks(masks, labels or [0] * len(places), KINDS, crowd=crowd)


def painted_in(drawn, color, area, near=12):
    """The share of the pixels of an area that have a colour."""
    return float((np.abs(drawn[area].astype(int) - color).max(-1) < near).mean())


def test_found_missed_and_false_objects_have_outlines_of_their_own():
    truth = squares([(40, 20), (40, 120), (40, 320)], [0, 0, 0], crowd=np.array([False, False, True]))
    result = squares([(43, 22), (40, 220), (42, 321)])
    drawn = np.asarray(difference(result, truth, np.full((120, 400, 3), 90, np.uint8)))
    found, missed, false, crowd = (np.s_[36:88, left : left + 52] for left in (16, 116, 216, 316))
    colors = (FOUND, FALSE_NEGATIVE, FALSE_POSITIVE)
    shares = np.array([[painted_in(drawn, c, area) for c in colors] for area in (found, missed, false)])
    assert (np.diag(shares) > 0.015).all() and np.count_nonzero(shares) == 3
    ring = np.concatenate([drawn[40, 120:160], drawn[79, 120:160]])
    lit = (np.abs(ring.astype(int) - FALSE_NEGATIVE).max(-1) < 12).mean()
    assert 0.2 < lit < 0.8, "a dashed line"
    assert painted_in(drawn, (255, 255, 255), false) > 0.02 and painted_in(drawn, (255, 255, 255), found) == 0, (
        "a double"
    )
    assert (drawn[crowd][..., 0] == drawn[crowd][..., 1]).all(), "a crowd is grey, and what is found in it is not false"
    assert len(np.unique(drawn[crowd][6:44, 6:44])) == 2, "and hatched"


def test_an_object_of_the_wrong_class_is_missed_and_false():
    truth, result = squares([(40, 20)], [0]), squares([(40, 20)], [1])
    drawn = np.asarray(difference(result, truth))
    assert (
        painted_in(drawn, FALSE_NEGATIVE, np.s_[:, :100]) > 0 and painted_in(drawn, FALSE_POSITIVE, np.s_[:, :100]) > 0
    )
    assert painted_in(drawn, FOUND, np.s_[:]) == 0


# Segments


def segments(ids, labels, crowds=()):
    """A panoptic map of `CLASSES` with the class of each id."""
    areas = dict(np.stack(np.unique(ids, return_counts=True), 1).tolist())
    rows = [(i, label) for i, label in labels.items() if i in areas]
    found = [Segment(i, label, CLASSES.things[label], 1.0, areas[i], i in crowds) for i, label in rows]
    return PanopticMap(ids.astype(np.int32), tuple(found), CLASSES)


def street():
    """Ids (120, 400): two stuffs side by side, and cars 3 to 6 in a row on them."""
    ids = np.full((120, 400), 1)
    ids[:, 350:] = 2
    for number, left in enumerate((20, 120, 220, 300), 3):
        ids[40:80, left : left + 40] = number
    return ids


LABELS = {1: 0, 2: 1, **dict.fromkeys(range(3, 10), 2)}


def test_things_have_outlines_and_wrong_classes_are_red():
    there, found = street(), street()
    there[there == 5] = found[found == 4] = found[found == 6] = 1
    found[found == 3] = 1
    found[43:83, 22:62] = 7
    found[:, 380:] = 1
    drawn = np.asarray(difference(segments(found, LABELS), segments(there, LABELS, crowds={6})))
    places = (np.s_[34:90, left : left + 60] for left in (10, 110, 210))
    shares = np.array(
        [[painted_in(drawn, c, area) for c in (FOUND, FALSE_NEGATIVE, FALSE_POSITIVE)] for area in places]
    )
    assert (np.diag(shares) > 0.015).all() and np.count_nonzero(shares) == 3, "found, missed and false"
    wrong = drawn[85:, 385:].reshape(-1, 3).astype(int)
    assert (wrong == wrong[0]).all() and wrong[0, 0] > 160 and wrong[0, 1:].max() < 80, (
        "stuff of the wrong class is red"
    )
    red = drawn[50:70, 130:150].astype(int)
    assert (red[..., 0] > red[..., 1] + 80).all(), "so is what is missed"
    crowd = drawn[44:76, 304:336]
    assert (crowd == crowd[..., :1]).all() and len(np.unique(crowd)) == 2, "a crowd is hatched"
    assert (drawn[:, 349:351][:30] == 205).all() and (drawn[:30, 200:340] == 90).all(), "white lines between stuff"


def test_things_are_found_as_panoptic_quality_finds_them():
    there, found = street(), street()
    there[40:80, 32:80] = 0  # void from the twelfth column of the first car on
    found[40:80, 20:80] = 3
    found[40:80, 140:160] = 1  # the second car's left half: exactly 0.5
    void = segments(np.where((there >= 5) | (found >= 5), 1, there), LABELS)
    result = segments(np.where((there >= 5) | (found >= 5), 1, found), LABELS)
    drawn = np.asarray(difference(result, void))
    assert painted_in(drawn, FOUND, np.s_[34:86, :90]) > 0 and painted_in(drawn, FALSE_POSITIVE, np.s_[:, :90]) == 0
    assert painted_in(drawn, FOUND, np.s_[:, 100:]) == 0
    assert (
        painted_in(drawn, FALSE_POSITIVE, np.s_[:, 100:]) > 0 and painted_in(drawn, FALSE_NEGATIVE, np.s_[:, 100:]) > 0
    )


@pytest.mark.parametrize(("left", "false"), [(80, True), (81, False), (179, False), (180, True)])
def test_a_thing_mostly_in_void_is_not_false(left, false):
    there, found = np.full((120, 400), 1), np.full((120, 400), 1)
    there[:, 100:200] = 0
    found[40:80, left : left + 40] = 3
    pair = segments(found, LABELS), segments(there, LABELS)
    assert (painted_in(np.asarray(difference(*pair)), FALSE_POSITIVE, np.s_[:]) > 0) == false
    metric = PanopticMetric(CLASSES)
    metric.update(*pair)
    assert metric.compute().fp[2] == false, "as panoptic quality counts it"


@pytest.mark.parametrize("count", [0, 1])
def test_pictures_without_objects_and_masks_without_pixels(count):
    nothing = squares([(0, 0)] * count, side=0)
    assert (np.asarray(difference(nothing, nothing)) == 90).all()


def test_the_legend_names_every_mark():
    truth = squares([(40, 20)])
    plain, told = difference(truth, truth), difference(truth, truth, legend=True)
    assert told.width == plain.width and told.height > plain.height + 3 * 11
    strip = np.asarray(told)[plain.height :]
    for mark in difference_key(KINDS, "instance"):
        assert (np.abs(strip.astype(int) - mark.color).max(-1) < 12).any(), mark.meaning


def test_the_legend_of_segments_has_areas_and_outlines():
    truth = segments(street(), LABELS)
    told = difference(truth, truth, legend=True)
    strip = np.asarray(told)[truth.size[0] :].astype(int)
    marks = difference_key(CLASSES, "panoptic")
    assert [mark.style for mark in marks] == ["area", "line", "dashes", "double"]
    for mark in marks:
        assert (np.abs(strip - mark.color).max(-1) < 12).any(), mark.meaning


def test_only_like_is_compared():
    with pytest.raises(KirieError, match="Instances differ from SemanticMap"):
        difference(squares([]), SemanticMap(np.zeros((120, 400), np.uint8), KINDS))
    with pytest.raises(KirieError, match="SemanticMap differ from PanopticMap"):
        difference(SemanticMap(np.zeros((120, 400), np.uint8), CLASSES), segments(street(), LABELS))
    with pytest.raises(KirieError, match="size"):
        difference(squares([]), squares([], size=(10, 10)))
