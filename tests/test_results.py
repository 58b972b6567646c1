"""The three result types: what they refuse at birth, and their conversions by hand-worked numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.masks import Crop, Masks
from kirie.results import (
    Instances,
    PanopticMap,
    Segment,
    SemanticMap,
    id_map,
    stacking,
    to_instances,
    to_panoptic,
    to_semantic,
)

SIZE = (6, 8)
TWO = Classes(("cat", "dog"), things=(True, True))
SCENE = Classes(("sky", "grass", "cow"), things=(False, False, True))
MANY = Classes(tuple(f"c{i}" for i in range(300)))


def semantic(value=0, dtype=np.uint8, classes=SCENE):
    return SemanticMap(np.full(SIZE, value, dtype), classes)


def two_squares(scores=(0.9, 0.5), labels=(0, 1), classes=TWO):
    """Squares of 4 x 4 at (0, 0) and (2, 2) that share 2 x 2 pixels."""
    square = np.ones((4, 4), bool)
    masks = Masks.from_crops([Crop(0, 0, square), Crop(2, 2, square)], SIZE)
    return Instances.from_masks(masks, labels, classes, np.array(scores, np.float32))


def panoptic(**changes):
    ids = np.zeros(SIZE, np.int32)
    ids[:3], ids[3:, :4], ids[4:, 6:] = 7, 40_000, 2
    segments = (Segment(7, 0, False, 1.0, 24), Segment(2, 2, True, 0.75, 4), Segment(40_000, 2, True, 0.5, 12))
    return PanopticMap(**{"ids": ids, "segments": segments, "classes": SCENE} | changes)


# Semantic maps


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_a_semantic_map_takes_classes_and_void(dtype):
    labels = np.full(SIZE, 255, dtype)
    labels[0] = 2
    scores = np.full((3, *SIZE), 1 / 3, np.float32)
    found = SemanticMap(labels, SCENE, scores)
    assert found.size == SIZE
    assert found.labels is labels
    assert found.scores is scores


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(SIZE, np.int64), r"uint8 or int32 array of shape \(H, W\), got int64 \(6, 8\)"),
        (np.zeros(SIZE, np.float32), "got float32"),
        (np.zeros(SIZE, bool), "got bool"),
        (np.zeros((1, *SIZE), np.uint8), r"got uint8 \(1, 6, 8\)"),
        (np.zeros((0, 8), np.uint8), r"non-empty .* got uint8 \(0, 8\)"),
        ([[0, 1]], "got list"),
        (np.full(SIZE, 3, np.uint8), r"ids from 3 to 3; expected 0..2 or void \(255\)"),
        (np.full(SIZE, 254, np.uint8), "ids from 254 to 254"),
        (np.full(SIZE, -1, np.int32), "ids from -1 to -1"),
        (np.full(SIZE, 65535, np.int32), "ids from 65535 to 65535"),
    ],
)
def test_a_semantic_map_refuses_other_labels(labels, message):
    with pytest.raises(KirieError, match=message):
        SemanticMap(labels, SCENE)


@pytest.mark.parametrize("place", [(0, 0), (5, 7), (3, 4)])
def test_one_unknown_pixel_is_enough(place):
    labels = np.full(SIZE, 255, np.uint8)
    labels[place] = 3
    with pytest.raises(KirieError, match=r"expected 0..2"):
        SemanticMap(labels, SCENE)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros((2, *SIZE), np.float32), r"\(3, 6, 8\), got float32 \(2, 6, 8\)"),
        (np.zeros(SIZE, np.float32), r"got float32 \(6, 8\)"),
        (np.zeros((3, *SIZE), np.uint8), "must be float .* got uint8"),
        ([0.5], "got list"),
    ],
)
def test_a_semantic_map_refuses_other_scores(scores, message):
    with pytest.raises(KirieError, match=message):
        SemanticMap(np.zeros(SIZE, np.uint8), SCENE, scores)


def test_300_classes_need_32_bits_and_another_void():
    labels = np.full(SIZE, 299, np.int32)
    labels[0] = 65535
    assert SemanticMap(labels, MANY).classes.void == 65535
    labels[0] = 300
    with pytest.raises(KirieError, match=r"expected 0..299 or void \(65535\)"):
        SemanticMap(labels, MANY)


# Instances


def test_instances_take_their_boxes_from_the_masks():
    found = two_squares()
    assert found.boxes.tolist() == [[0, 0, 4, 4], [2, 2, 6, 6]]
    assert (found.boxes.dtype, found.labels.dtype, found.scores.dtype) == (np.float32, np.int64, np.float32)
    assert Instances.from_masks(found.masks, [0, 1], TWO).scores.tolist() == [1, 1]
    assert len(Instances.from_masks(Masks(SIZE), [], TWO)) == 0


def test_numbers_of_other_widths_are_converted():
    found = dataclasses.replace(
        two_squares(), boxes=np.zeros((2, 4), np.int64), labels=np.zeros(2, np.uint8), scores=np.ones(2), size=[6, 8]
    )
    assert (found.boxes.dtype, found.labels.dtype, found.scores.dtype) == (np.float32, np.int64, np.float32)
    assert found.size == SIZE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": np.zeros((1, 4), np.float32)}, r"boxes must be an array of shape \(2, 4\) for 2 masks"),
        ({"boxes": np.zeros((2, 5), np.float32)}, r"boxes .* got float32 \(2, 5\)"),
        ({"boxes": [[0, 0, 1, 1]] * 2}, "boxes .* got list"),
        ({"labels": np.zeros(3, np.int64)}, r"labels must be an array of shape \(2,\)"),
        ({"labels": np.zeros(2, np.float32)}, "whole numbers as labels, got float32, float32 and float32"),
        ({"labels": np.array(["cat", "dog"])}, "whole numbers as labels"),
        ({"labels": np.array([0, 2])}, "labels holds ids from 0 to 2; expected 0..1"),
        ({"labels": np.array([-1, 0])}, "labels holds ids from -1 to 0"),
        ({"scores": np.zeros((2, 1), np.float32)}, r"scores must be an array of shape \(2,\)"),
        ({"scores": np.array([0.5, 1.5])}, r"scores in \[0, 1\]"),
        ({"scores": np.array([0.5, -0.1])}, r"scores in \[0, 1\]"),
        ({"scores": np.array([0.5, np.nan])}, r"scores in \[0, 1\]"),
        ({"boxes": np.full((2, 4), np.nan, np.float32)}, "finite boxes"),
        ({"boxes": np.full((2, 4), np.inf, np.float32)}, "finite boxes"),
        ({"size": (8, 6)}, r"masks are for a picture of size \(6, 8\), expected \(8, 6\)"),
        ({"masks": Masks(SIZE)}, "for 0 masks"),
    ],
)
def test_instances_refuse_what_does_not_fit(changes, message):
    with pytest.raises(KirieError, match=message):
        dataclasses.replace(two_squares(), **changes)


@pytest.mark.parametrize(
    "index",
    [
        slice(None, None, -1),
        slice(1, None),
        slice(0, 0),
        np.array([1, 0, 1]),
        np.array([False, True]),
        np.zeros(2, bool),
        np.array([], np.int64),
        [1],
    ],
    ids=str,
)
def test_instances_are_sliced_together(index):
    whole = two_squares()
    part = whole[index]
    assert len(part) == len(part.masks) == len(whole.labels[index])
    assert np.array_equal(part.boxes, whole.boxes[index])
    assert np.array_equal(part.labels, whole.labels[index])
    assert np.array_equal(part.scores, whole.scores[index])
    assert np.array_equal(part.masks.dense(), whole.masks.dense()[index])
    assert (part.size, part.classes) == (whole.size, whole.classes)


def test_one_number_selects_one_instance():
    assert two_squares()[1].labels.tolist() == [1]
    with pytest.raises(IndexError):
        two_squares()[2]


# Panoptic maps


def test_a_panoptic_map_takes_its_segments_in_any_order():
    found = panoptic()
    assert found.size == SIZE
    assert panoptic(segments=list(found.segments)[::-1]).segments == found.segments[::-1]
    empty = PanopticMap(np.zeros(SIZE, np.int32), (), SCENE)
    assert empty.segments == ()


GOOD = panoptic().segments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": panoptic().ids.astype(np.int64)}, "int32 array .* got int64"),
        ({"ids": np.zeros((2, *SIZE), np.int32)}, r"got int32 \(2, 6, 8\)"),
        ({"ids": np.zeros((6, 0), np.int32)}, "non-empty"),
        ({"ids": None}, "got NoneType"),
        ({"segments": GOOD[:2]}, r"disagree on \(id, area\) \[\(40000, 12\)\]"),
        ({"segments": (*GOOD, Segment(5, 0, False, 1.0, 3))}, r"disagree on .*\(5, 3\)"),
        ({"segments": (*GOOD, Segment(5, 0, False, 1.0, 0))}, r"disagree on .*\(5, 0\)"),
        ({"segments": (*GOOD, GOOD[0])}, "repeats an id"),
        ({"segments": (dataclasses.replace(GOOD[0], area=23), *GOOD[1:])}, r"\(7, 23\), \(7, 24\)"),
        ({"segments": (dataclasses.replace(GOOD[0], label=3), *GOOD[1:])}, r"label in 0..2"),
        ({"segments": (dataclasses.replace(GOOD[0], label=-1), *GOOD[1:])}, r"label in 0..2"),
        ({"segments": (dataclasses.replace(GOOD[0], score=1.1), *GOOD[1:])}, r"score in \[0, 1\]"),
        ({"segments": (dataclasses.replace(GOOD[0], score=float("nan")), *GOOD[1:])}, r"score in \[0, 1\]"),
        (
            {"ids": np.full(SIZE, -3, np.int32), "segments": (Segment(-3, 0, False, 1.0, 48),)},
            "needs an id above 0",
        ),
        ({"segments": (*GOOD, Segment(0, 0, False, 1.0, 8))}, "disagree"),
    ],
)
def test_a_panoptic_map_refuses_what_does_not_fit(changes, message):
    with pytest.raises(KirieError, match=message):
        panoptic(**changes)


@pytest.mark.parametrize("make", [semantic, two_squares, panoptic], ids=["semantic", "instances", "panoptic"])
def test_results_are_frozen(make):
    result = make()
    for field in dataclasses.fields(result):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(result, field.name, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        GOOD[0].area = 3


# Conversions


@pytest.mark.parametrize(
    ("scores", "shared"), [((0.9, 0.5), 1), ((0.5, 0.9), 2), ((0.7, 0.7), 2)]
)  # of equal ones the later
def test_instances_become_a_semantic_map_by_score(scores, shared):
    found = to_semantic(two_squares(scores))
    assert found.classes.names == ("background", "cat", "dog")
    assert found.labels.dtype == np.uint8
    expected = np.zeros(SIZE, int)
    expected[:4, :4], expected[2:6, 2:6] = 1, 2
    expected[2:4, 2:4] = shared
    assert found.labels.tolist() == expected.tolist()


def cup_on_table(crowd=False):
    """A cup, listed before the table that it stands on, and behind both a crowd of cups where it is asked for."""
    crops = [Crop(2, 2, np.ones((2, 2), bool)), Crop(1, 1, np.ones((4, 5), bool)), Crop(0, 0, np.ones(SIZE, bool))]
    masks = Masks.from_crops(crops[: 2 + crowd], SIZE)
    return Instances.from_masks(masks, [0, 1, 0][: 2 + crowd], TWO, crowd=np.array([False, False, True])[: 2 + crowd])


@pytest.mark.parametrize("crowd", [False, True])
def test_crowds_lie_lowest_and_small_objects_highest(crowd):
    truth = cup_on_table(crowd)
    expected = np.full(SIZE, 3 if crowd else 0)
    expected[1:5, 1:6], expected[2:4, 2:4] = 2, 1
    assert np.array_equal(id_map(truth), expected)
    assert np.array_equal(to_panoptic(truth).ids, expected)
    assert np.array_equal(to_semantic(truth).labels, np.array([0, 1, 2, 1])[expected])
    assert stacking(truth).tolist() == [2, 1, 0][not crowd :]
    assert id_map(truth, [7, 8, 9][: 2 + crowd])[2, 2] == 7


def test_a_higher_score_lies_above_a_smaller_mask_but_not_a_crowd_above_an_object():
    found = cup_on_table(True)
    found = dataclasses.replace(found, scores=np.array([0.5, 0.6, 1.0], np.float32))
    assert stacking(found).tolist() == [2, 0, 1]


def test_no_crowd_is_given_where_there_is_none():
    found = two_squares()
    assert found.crowd.tolist() == [False, False] and found.crowd.dtype == bool and found.singles() is found
    assert found[:0].crowd.shape == (0,)


def test_rows_take_other_masks():
    truth = dataclasses.replace(cup_on_table(True), areas=np.array([4.0, 20, 48]))
    moved = truth.with_masks(
        [2, 0], Masks.from_crops([Crop(0, 0, np.ones((9, 9), bool)), Crop(1, 2, np.ones((1, 1), bool))], (9, 9))
    )
    assert moved.labels.tolist() == [0, 0] and moved.crowd.tolist() == [True, False] and moved.size == (9, 9)
    assert moved.boxes.tolist() == [[0, 0, 9, 9], [2, 1, 3, 2]] and moved.areas is None
    assert len(truth.with_masks([], Masks((9, 9)))) == 0


def test_classes_that_have_a_background_keep_it():
    classes = Classes(("background", "cat", "dog"))
    found = to_semantic(two_squares(labels=(1, 2), classes=classes))
    assert found.classes is classes
    assert np.bincount(found.labels.ravel()).tolist() == [48 - 28, 16, 12]


def test_no_instances_are_all_background():
    found = to_semantic(two_squares()[:0])
    assert not found.labels.any()
    assert found.classes.has_background


def test_255_classes_grow_to_32_bits_with_the_background():
    classes = Classes(tuple(f"c{i}" for i in range(255)))
    found = to_semantic(two_squares(labels=(254, 0), classes=classes))
    assert found.labels.dtype == np.int32
    assert sorted(np.unique(found.labels).tolist()) == [0, 1, 255]
    assert found.classes.void == 65535
    assert found.classes.names[255] == "c254"


@pytest.mark.parametrize(("classes", "void", "dtype"), [(SCENE, 255, np.uint8), (MANY, 65535, np.int32)])
def test_a_panoptic_map_becomes_a_semantic_map(classes, void, dtype):
    found = to_semantic(panoptic(classes=classes))
    assert found.labels.dtype == dtype
    expected = np.full(SIZE, void)
    expected[:3], expected[3:, :4], expected[4:, 6:] = 0, 2, 2
    assert found.labels.tolist() == expected.tolist()
    assert found.classes is classes


def test_a_panoptic_map_with_huge_ids_becomes_a_semantic_map():
    ids = np.full(SIZE, 2**31 - 1, np.int32)
    ids[0] = 0
    found = to_semantic(PanopticMap(ids, (Segment(2**31 - 1, 1, False, 1.0, 40),), SCENE))
    assert found.labels[0].tolist() == [255] * 8
    assert (found.labels[1:] == 1).all()


def test_a_conversion_to_its_own_type_changes_nothing():
    first, last = semantic(), panoptic()
    assert to_semantic(first) is first
    assert to_panoptic(last) is last


@pytest.mark.parametrize(("classes", "void", "dtype"), [(SCENE, 255, np.uint8), (MANY, 65535, np.int32)])
def test_semantic_to_panoptic_and_back(classes, void, dtype):
    labels = np.zeros(SIZE, dtype)
    labels[2:], labels[5], labels[0, 0] = 2, void, 1
    found = to_panoptic(SemanticMap(labels, classes))
    assert {(s.label, s.area, s.is_thing) for s in found.segments} == {(0, 15, False), (1, 1, False), (2, 24, False)}
    assert not found.ids[5].any()
    back = to_semantic(found)
    assert back.labels.dtype == dtype
    assert back.labels.tolist() == labels.tolist()
    small = to_panoptic(SemanticMap(labels, classes), min_area=2)
    assert small.ids[0, 0] == 0
    assert len(small.segments) == 2


def test_instances_to_panoptic_and_back():
    found = to_panoptic(two_squares((0.9, 0.5)))
    assert {(s.label, s.area, s.is_thing, round(s.score, 3)) for s in found.segments} == {
        (0, 16, True, 0.9),
        (1, 12, True, 0.5),
    }
    assert np.count_nonzero(found.ids == 0) == 20
    back = to_instances(found)
    by_label = {int(label): area for label, area in zip(back.labels, back.masks.areas().tolist(), strict=True)}
    assert by_label == {0: 16, 1: 12}
    assert back.scores[back.labels == 0].tolist() == [np.float32(0.9)]
    assert back.boxes[back.labels == 1].tolist() == [[2, 2, 6, 6]]


def test_a_hidden_instance_leaves_no_segment():
    square = Masks.from_crops([Crop(1, 1, np.ones((3, 3), bool))] * 2, SIZE)
    found = to_panoptic(Instances.from_masks(square, [0, 1], TWO, np.array([0.2, 0.8])))
    assert [segment.label for segment in found.segments] == [1]
    assert to_panoptic(Instances.from_masks(Masks(SIZE), [], TWO)).segments == ()


def test_only_the_things_become_instances_in_the_order_of_segments():
    found = to_instances(panoptic())
    assert found.scores.tolist() == [0.75, 0.5]
    assert found.labels.tolist() == [2, 2]
    assert found.masks.areas().tolist() == [4, 12]
    assert found.boxes.tolist() == [[6, 4, 8, 6], [0, 3, 4, 6]]
    assert len(to_instances(to_panoptic(semantic()))) == 0


def test_to_instances_of_the_other_types():
    classes = Classes(("a", "b"))
    found = Instances.from_masks(Masks.from_dense(np.ones((1, 3, 4), bool)), [1], classes)
    assert to_instances(found) is found
    with pytest.raises(KirieError, match="does not tell one object"):
        to_instances(SemanticMap(np.zeros((3, 4), np.uint8), classes))


def test_results_are_compared_and_hashed_by_identity():
    one, other = (SemanticMap(np.zeros((3, 4), np.uint8), Classes(("a", "b"))) for _ in range(2))
    assert one == one and one != other and len({one, other, one}) == 2
