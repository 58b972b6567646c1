"""The merge of classes and objects into one panoptic map, and the way back: cases worked by hand, and a plain one."""

import numpy as np
import pytest

from kirie.class_lists import COCO, COCO_PANOPTIC, COCO_STUFF
from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.merging import Joint, MergeSettings, joint_classes, merge, split, split_classes
from kirie.results import Instances, PanopticMap, Segment, SemanticMap

# In no order: two things, three of stuff.
STREET = Classes(("road", "car", "sky", "person", "tree"), things=(False, True, False, True, False))
SEMANTIC, INSTANCE, JOINT = split_classes(STREET)
ROAD, CAR, SKY, PERSON, TREE = range(5)
ALL = MergeSettings(score=0.0, stuff_area=1)


def semantic(rows):
    return SemanticMap(np.array(rows, np.uint8), SEMANTIC)


def objects(masks, labels, scores):
    masks = np.array(masks, bool).reshape(len(masks), 2, 6)
    return Instances.from_masks(Masks.from_dense(masks), labels, INSTANCE, np.array(scores, np.float32))


def mask(first, last):
    """Columns first..last - 1 of both rows of a picture of 2 x 6."""
    return [[first <= x < last for x in range(6)]] * 2


ROADS = semantic([[1] * 6] * 2)
NONE = objects(np.zeros((0, 2, 6)), [], [])


# ---- objects


def test_surer_objects_lie_on_top_and_numbers_follow_scores():
    found = merge(ROADS, objects([mask(0, 3), mask(2, 6)], [0, 1], [0.6, 0.9]), JOINT, ALL)
    np.testing.assert_array_equal(found.ids, [[2, 2, 1, 1, 1, 1]] * 2)
    first, second = found.segments
    assert (first.id, first.label, first.is_thing, first.area) == (1, PERSON, True, 8)
    assert (second.id, second.label, second.is_thing, second.area) == (2, CAR, True, 4)
    assert [s.score for s in found.segments] == pytest.approx([0.9, 0.6])
    assert found.classes == STREET


def test_of_equal_scores_the_earlier_lies_on_top():
    found = merge(ROADS, objects([mask(0, 4), mask(3, 6)], [1, 0], [0.7, 0.7]), JOINT, ALL)
    np.testing.assert_array_equal(found.ids, [[1, 1, 1, 1, 2, 2]] * 2)


@pytest.mark.parametrize(("overlap", "kept"), [(0.5, True), (0.49, False), (0.0, False), (1.0, True)])
def test_an_object_goes_that_is_covered_by_more_than_a_share(overlap, kept):
    """Two of its four columns are covered: a half, which is not more than a half."""
    given = objects([mask(0, 4), mask(2, 6)], [0, 0], [0.9, 0.8])
    found = merge(ROADS, given, JOINT, MergeSettings(0.0, overlap, 1))
    left = [[1, 1, 1, 1, 2, 2]] * 2  # object 2, or the road where there is none
    np.testing.assert_array_equal(found.ids, left)
    assert found.segments[1].is_thing is kept


def test_what_covers_may_be_several_objects_and_one_that_went_covers_nothing():
    masks = [mask(0, 2), mask(4, 6), mask(1, 5), mask(1, 4)]
    found = merge(ROADS, objects(masks, [0] * 4, [0.9, 0.8, 0.7, 0.6]), JOINT, MergeSettings(0.0, 0.4, 1))
    # The third has two of four columns covered, by two objects, and goes; the fourth has one of three.
    np.testing.assert_array_equal(found.ids, [[1, 1, 3, 3, 2, 2]] * 2)
    assert [s.score for s in found.segments] == pytest.approx([0.9, 0.8, 0.6])


def test_objects_that_are_covered_wholly_or_empty_are_no_segments():
    given = objects([mask(0, 6), mask(1, 3), mask(0, 0)], [0, 1, 1], [0.9, 0.8, 0.7])
    found = merge(ROADS, given, JOINT, MergeSettings(0.0, 1.0, 1))
    assert [s.label for s in found.segments] == [CAR]


@pytest.mark.parametrize(("score", "count"), [(0.5, 2), (0.51, 1), (0.0, 3), (1.0, 0)])
def test_objects_score_at_least_so_much(score, count):
    given = objects([mask(0, 1), mask(2, 3), mask(4, 5)], [0] * 3, [0.75, 0.5, 0.25])
    found = merge(ROADS, given, JOINT, MergeSettings(score=score, stuff_area=1))
    assert sum(s.is_thing for s in found.segments) == count


# ---- stuff


def test_stuff_takes_what_no_object_has_class_after_class():
    given = semantic([[3, 3, 1, 1, 0, 255], [3, 2, 1, 1, 0, 255]])
    found = merge(given, objects([mask(3, 4)], [0], [0.9]), JOINT, ALL)
    np.testing.assert_array_equal(found.ids, [[4, 4, 2, 1, 0, 0], [4, 3, 2, 1, 0, 0]])
    assert [(s.label, s.is_thing, s.score, s.area) for s in found.segments[1:]] == [
        (ROAD, False, 1.0, 2), (SKY, False, 1.0, 1), (TREE, False, 1.0, 3),
    ]  # fmt: skip


@pytest.mark.parametrize(("area", "labels"), [(0, [ROAD, SKY]), (2, [ROAD, SKY]), (3, [ROAD]), (9, [])])
def test_stuff_of_few_pixels_is_void(area, labels):
    """Road is on eight pixels, three of which an object has; sky on two."""
    given = semantic([[1, 1, 1, 1, 0, 2], [1, 1, 1, 1, 0, 2]])
    bits = np.zeros((1, 2, 6), bool)
    bits[0, 0, :3] = True
    found = merge(given, objects(bits, [1], [0.9]), JOINT, MergeSettings(0.0, 0.5, area))
    assert [s.label for s in found.segments if not s.is_thing] == labels
    assert (found.ids == 0).sum() == 2 + 5 * (ROAD not in labels) + 2 * (SKY not in labels)


def test_things_without_an_object_and_void_are_void():
    found = merge(semantic([[0] * 6, [255] * 6]), NONE, JOINT, ALL)
    assert found.segments == () and not found.ids.any()


def test_detectron2s_limits_are_the_usual_ones():
    assert MergeSettings() == MergeSettings(score=0.5, overlap=0.5, stuff_area=4096)
    large = SemanticMap(np.repeat(np.array([[1, 2]], np.uint8), 64, 0).repeat([64, 63], 1), SEMANTIC)
    found = merge(large, Instances.from_masks(Masks((64, 127)), [], INSTANCE), JOINT)
    assert [(s.label, s.area) for s in found.segments] == [(ROAD, 4096)]


# ---- against a plain implementation


def plain(labels, given, settings):
    """Dense, one picture-sized mask after another."""
    ids, rows = np.zeros(labels.shape, int), []
    for index in sorted(range(len(given)), key=lambda i: -given.scores[i]):
        bits = given.masks.dense()[index]
        if given.scores[index] < settings.score or not bits.any():
            continue
        free = bits & (ids == 0)
        if not free.any() or 1 - free.sum() / bits.sum() > settings.overlap + 1e-12:
            continue
        rows.append(JOINT.things[given.labels[index]])
        ids[free] = len(rows)
    for label, panoptic in enumerate(JOINT.stuff):
        free = (labels == label) & (ids == 0)
        if label and free.sum() >= max(settings.stuff_area, 1):
            rows.append(panoptic)
            ids[free] = len(rows)
    return ids, rows


@pytest.mark.parametrize("seed", range(12))
def test_it_is_the_plain_merge(seed):
    rng = np.random.default_rng(seed)
    size, count = (23, 31), 15
    labels = rng.integers(0, 4, (6, 8)).astype(np.uint8).repeat(4, 0).repeat(4, 1)[: size[0], : size[1]].copy()
    labels[rng.random(size) < 0.1] = 255
    masks = np.zeros((count, *size), bool)
    for each in masks:
        top, left = rng.integers(0, 20), rng.integers(0, 28)
        part = each[top : top + rng.integers(1, 14), left : left + rng.integers(1, 14)]
        part[:] = rng.random(part.shape) < 0.8
    scores = rng.permutation(np.linspace(0, 1, count)).astype(np.float32)
    columns = Masks.from_dense(masks)
    given = Instances.from_masks(
        columns if seed % 2 else Masks.from_rles(columns.rles(), size), rng.integers(0, 2, count), INSTANCE, scores
    )
    settings = MergeSettings(*rng.choice([0.0, 0.25, 0.5, 0.7], 2).tolist(), int(rng.choice([0, 5, 40])))
    found = merge(SemanticMap(labels, SEMANTIC), given, JOINT, settings)
    ids, rows = plain(labels, given, settings)
    np.testing.assert_array_equal(found.ids, ids)
    assert [s.label for s in found.segments] == rows
    assert all(s.is_thing is STREET.things[s.label] for s in found.segments)


# ---- classes


def test_the_heads_of_panoptic_classes_are_things_and_stuff():
    assert SEMANTIC.names == ("things", "road", "sky", "tree") and not any(SEMANTIC.things)
    assert INSTANCE == STREET.subset([CAR, PERSON]) and all(INSTANCE.things)
    assert JOINT == Joint(STREET, (-1, ROAD, SKY, TREE), (CAR, PERSON))
    assert SEMANTIC.colors[1:] == tuple(STREET.colors[i] for i in (ROAD, SKY, TREE))


def test_those_of_coco_are_the_published_ones():
    one, other, joint = split_classes(COCO_PANOPTIC)
    assert (one.names, one.colors) == (COCO_STUFF.names, COCO_STUFF.colors)
    assert other.names == COCO.names
    assert joint.stuff == (-1, *range(80, 133)) and joint.things == tuple(range(80))


def test_a_class_may_be_called_things_itself():
    one, _, _ = split_classes(Classes(("things", "things*", "cup"), things=(False, False, True)))
    assert one.names == ("things**", "things", "things*")


@pytest.mark.parametrize("things", [(True, True), (False, False)])
def test_classes_without_things_or_without_stuff_are_refused(things):
    with pytest.raises(KirieError, match=f"of the 2 classes {sum(things)} are things. Mark the things"):
        split_classes(Classes(("a", "b"), things=things))


def test_two_models_classes_are_joined_by_their_names():
    one = Classes(("background", "person", "grass", "things", "sky"), ((0, 0, 0), *[(i, i, i) for i in range(4)]))
    other = Classes(("person", "dog"), ((9, 9, 9), (8, 8, 8)))
    joint = joint_classes(one, other)
    assert joint.classes.names == ("person", "dog", "grass", "sky")
    assert joint.classes.colors == ((9, 9, 9), (8, 8, 8), (1, 1, 1), (3, 3, 3))
    assert joint.classes.things == (True, True, False, False)
    assert (joint.stuff, joint.things) == ((-1, -1, 2, -1, 3), (0, 1))
    with pytest.raises(KirieError, match=r"nothing but things and background \(background, dog\)"):
        joint_classes(Classes(("background", "dog")), other)


def test_pixels_of_a_thing_that_no_object_covers_are_void_with_two_models():
    one, other = Classes(("background", "dog", "grass")), Classes(("dog",))
    labels = SemanticMap(np.array([[0, 1, 1, 2]], np.uint8), one)
    bits = np.array([[[False, True, False, False]]])
    given = Instances.from_masks(Masks.from_dense(bits), [0], other)
    found = merge(labels, given, joint_classes(one, other), ALL)
    np.testing.assert_array_equal(found.ids, [[0, 1, 0, 2]])
    assert [s.label for s in found.segments] == [0, 1]


# ---- the way back


def truth():
    ids = np.array([[7, 7, 3, 3, 0, 9], [7, 5, 3, 2, 2, 9]], np.int32)
    segments = [
        Segment(9, PERSON, True, 1.0, 2), Segment(7, SKY, False, 1.0, 3), Segment(3, CAR, True, 1.0, 3),
        Segment(5, ROAD, False, 1.0, 1), Segment(2, PERSON, True, 1.0, 2, crowd=True),
    ]  # fmt: skip
    return PanopticMap(ids, tuple(segments), STREET)


def test_a_truth_is_split_into_classes_and_objects():
    labels, found = split(truth(), (SEMANTIC, INSTANCE, JOINT))
    np.testing.assert_array_equal(labels.labels, [[2, 2, 0, 0, 255, 0], [2, 1, 0, 0, 0, 0]])
    assert labels.classes == SEMANTIC and found.classes == INSTANCE
    assert (found.labels.tolist(), found.crowd.tolist()) == ([1, 0, 1], [False, False, True])
    for bits, number in zip(found.masks, (9, 3, 2), strict=True):
        np.testing.assert_array_equal(bits, truth().ids == number)
    with pytest.raises(KirieError, match="The truth has 4 classes, the model 5"):
        split(PanopticMap(np.zeros((2, 6), np.int32), (), STREET.subset([0, 1, 2, 3])), (SEMANTIC, INSTANCE, JOINT))


def test_what_is_split_merges_to_the_same_again():
    again = merge(*split(truth(), (SEMANTIC, INSTANCE, JOINT)), JOINT, ALL)
    pairs = {(i, j) for i, j in zip(truth().ids.ravel().tolist(), again.ids.ravel().tolist(), strict=True)}
    assert len(pairs) == len(truth().segments) + 1 and (0, 0) in pairs
    label = {s.id: s.label for s in truth().segments}
    assert all(label[i] == s.label for i, j in pairs for s in again.segments if s.id == j)


def test_more_than_255_classes():
    many = Classes(tuple(f"c{i}" for i in range(400)), things=(False,) * 300 + (True,) * 100)
    parts = split_classes(many)
    ids = np.array([[1, 2, 3, 0]], np.int32)
    segments = (Segment(1, 299, False, 1.0, 1), Segment(2, 0, False, 1.0, 1), Segment(3, 399, True, 1.0, 1))
    labels, found = split(PanopticMap(ids, segments, many), parts)
    assert labels.labels.dtype == np.int32
    np.testing.assert_array_equal(labels.labels, [[300, 1, 0, 65535]])
    assert found.labels.tolist() == [99]
    merged = merge(labels, found, parts[2], ALL)
    assert [s.label for s in merged.segments] == [399, 0, 299]


# ---- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score": 1.5}, "The score of a merge is a number from 0 to 1, got 1.5"),
        ({"overlap": -0.1}, "The overlap of a merge is a number from 0 to 1, got -0.1"),
        ({"overlap": "half"}, "The overlap of a merge is a number"),
        ({"score": float("nan")}, "The score of a merge is a number"),
        ({"stuff_area": -1}, "stuff_area is a whole number of pixels from 0 on, got -1"),
        ({"stuff_area": 2.5}, "stuff_area is a whole number"),
    ],
)
def test_limits_out_of_range_are_refused(arguments, message):
    with pytest.raises(KirieError, match=message):
        MergeSettings(**arguments)


def test_two_pictures_or_other_classes_are_refused():
    with pytest.raises(KirieError, match=r"size \(3, 6\) and the objects \(2, 6\)"):
        merge(semantic([[1] * 6] * 3), NONE, JOINT)
    with pytest.raises(KirieError, match="The map has 4 classes and the objects 2; expected 3 and 1"):
        merge(ROADS, NONE, Joint(STREET, (-1, 0, 2), (1,)))


def test_the_numbers_of_the_files_stay_where_each_is_of_one_class():
    things = Classes(("person", "dog"), things=(True, True), ids=(1, 18))
    stuff = Classes(("sky", "person", "sea"), ids=(187, 1, 178))
    assert joint_classes(stuff, things).classes.ids == (1, 18, 187, 178)
    assert joint_classes(Classes(("sky", "sea")), things).classes.ids == (0, 1, 2, 3), "0 means void in COCO's files"
    twice = Classes(("sky", "sea"), ids=(18, 20))
    assert joint_classes(twice, things).classes.ids == (0, 1, 2, 3)


def test_names_that_differ_in_capitals_alone_are_refused():
    with pytest.raises(KirieError, match="'Person' and the instance model's 'person' differ in capitals"):
        joint_classes(Classes(("sky", "Person")), Classes(("person",), things=(True,)))


def test_numpys_numbers_are_plain_ones():
    settings = MergeSettings(np.float32(0.25), np.float64(1), np.int64(7))
    assert (
        settings == MergeSettings(0.25, 1.0, 7) and type(settings.stuff_area) is int and type(settings.score) is float
    )
    for wrong in ({"score": True}, {"stuff_area": np.float64(3)}, {"stuff_area": True}, {"overlap": "1"}):
        with pytest.raises(KirieError):
            MergeSettings(**wrong)
