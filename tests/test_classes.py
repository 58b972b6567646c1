"""Classes: file ids, plain values and what they refuse."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from kirie.classes import Classes, palette
from kirie.errors import KirieError

ANIMALS = Classes(("cat", "dog", "owl"))


def test_what_is_not_given_is_filled_in():
    assert len(ANIMALS) == 3
    assert ANIMALS.ids == (0, 1, 2)
    assert ANIMALS.things == (False, False, False)
    assert ANIMALS.void_ids == (255,)
    assert len(set(ANIMALS.colors)) == 3
    assert not ANIMALS.has_background
    assert ANIMALS.index("owl") == 2


def test_numbered_classes():
    assert Classes.numbered(2).names == Classes.numbered(1).names == ("background", "foreground")
    assert Classes.numbered(3).names == ("class 0", "class 1", "class 2")


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ANIMALS.names = ()
    assert hash(ANIMALS) == hash(Classes(("cat", "dog", "owl")))
    assert ANIMALS == Classes(["cat", "dog", "owl"])


@pytest.mark.parametrize("count", [1, 2, 19, 150, 256])
def test_colours_differ(count):
    colors = palette(count)
    assert len(set(colors)) == count
    assert all(len(color) == 3 and 0 <= min(color) and max(color) <= 255 for color in colors)


def test_neighbouring_colours_stay_apart():
    colors = np.array(palette(60), float)
    assert np.abs(np.diff(colors, axis=0)).sum(1).min() > 80


def test_background_is_black_and_the_others_are_not():
    classes = Classes(("background", "cell", "nucleus"))
    assert classes.colors[0] == (0, 0, 0)
    assert all(max(color) > 80 for color in classes.colors[1:])


@pytest.mark.parametrize(("count", "void", "rows"), [(2, 255, 256), (255, 255, 256), (256, 65535, 65536)])
def test_void_and_the_colour_table(count, void, rows):
    classes = Classes(tuple(f"c{i}" for i in range(count)))
    assert classes.void == void
    table = classes.color_table()
    assert table.shape == (rows, 3)
    assert table[:count].tolist() == [list(color) for color in classes.colors]
    assert table[void].tolist() == [200, 200, 200]


def test_with_background_moves_ids_up_only_where_0_is_taken():
    moved = ANIMALS.with_background()
    assert moved.names == ("background", "cat", "dog", "owl")
    assert moved.ids == (0, 1, 2, 3)
    assert moved.colors[1:] == ANIMALS.colors
    assert moved.with_background() is moved
    coco = Classes(("cat", "dog"), things=(True, True), ids=(17, 90)).with_background()
    assert coco.ids == (0, 17, 90)
    assert coco.things == (False, True, True)


def test_file_ids_with_gaps_void_and_unknown():
    classes = Classes(("road", "car"), ids=(7, 26), void_ids=(0, 255))
    labels, unknown = classes.from_file_ids(np.array([[7, 26, 0], [255, 9, 9]], np.uint8))
    assert labels.tolist() == [[0, 1, 255], [255, 255, 255]]
    assert labels.dtype == np.uint8
    assert unknown == {9: 2}


def test_file_ids_of_16_bits():
    classes = Classes(("a", "b"), ids=(1000, 65534), void_ids=(65535,))
    labels, unknown = classes.from_file_ids(np.array([[1000, 65534, 65535, 255]], np.uint16))
    assert labels.tolist() == [[0, 1, 255, 255]]
    assert labels.dtype == np.uint8
    assert unknown == {255: 1}


def test_files_that_already_hold_class_ids_are_not_copied():
    ids = np.array([[0, 2, 255]], np.uint8)
    labels, unknown = ANIMALS.from_file_ids(ids)
    assert labels is ids
    assert unknown == {}
    assert ANIMALS.from_file_ids(ids.astype(np.uint16))[0].dtype == np.uint8


def test_255_is_unknown_unless_it_means_void():
    classes = Classes(("a", "b", "c"), void_ids=())
    labels, unknown = classes.from_file_ids(np.array([[0, 255, 3]], np.uint8))
    assert labels.tolist() == [[0, 255, 255]]
    assert unknown == {3: 1, 255: 1}


def test_an_empty_label_file_has_nothing_unknown():
    labels, unknown = ANIMALS.from_file_ids(np.zeros((0, 4), np.uint8))
    assert labels.shape == (0, 4)
    assert unknown == {}


def test_every_pixel_unknown_is_counted_once():
    labels, unknown = ANIMALS.from_file_ids(np.arange(65536, dtype=np.uint16).reshape(256, 256))
    assert len(unknown) == 65536 - 4
    assert set(unknown.values()) == {1}
    assert np.count_nonzero(labels != 255) == 3


def test_256_classes_where_255_is_a_class():
    classes = Classes(tuple(f"c{i}" for i in range(256)))
    assert classes.void_ids == ()
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    labels, unknown = classes.from_file_ids(ids)
    assert labels.dtype == np.int32
    assert labels.tolist() == ids.tolist()
    assert unknown == {}
    with_void = labels.copy()
    with_void[0, 0] = 65535
    assert classes.to_file_ids(with_void)[0, :2].tolist() == [255 + 65280, 1]


def test_to_file_ids_and_back():
    classes = Classes(("road", "car"), ids=(7, 26), void_ids=(-1, 3))
    labels = np.array([[0, 1, 255]], np.uint8)
    ids = classes.to_file_ids(labels)
    assert ids.dtype == np.uint16
    assert ids.tolist() == [[7, 26, 3]]
    assert classes.from_file_ids(ids)[0].tolist() == labels.tolist()


def test_void_never_lands_on_the_id_of_a_class():
    binary = Classes(("background", "foreground"), ids=(0, 255))
    assert binary.from_file_ids(np.array([[0, 255]], np.uint8))[0].tolist() == [[0, 1]]
    assert binary.to_file_ids(np.array([[0, 1, 255]], np.uint8)).tolist() == [[0, 255, 65535]]


def test_ids_beyond_16_bits_cannot_be_written():
    with pytest.raises(KirieError, match="16-bit label files"):
        Classes(("a", "b"), ids=(1, 70_000)).to_file_ids(np.zeros((1, 1), np.uint8))


@pytest.mark.parametrize("dtype", [np.int64, np.float32, bool])
def test_label_files_are_whole_numbers(dtype):
    with pytest.raises(KirieError, match="8- or 16-bit"):
        ANIMALS.from_file_ids(np.zeros((2, 2), dtype))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ()}, "names of 1 to"),
        ({"names": "cell"}, "names of 1 to"),
        ({"names": ("x",) * 65535}, "names of 1 to"),
        ({"names": ("a", "b", "a")}, r"names repeat: \['a'\]"),
        ({"names": ("a", "b"), "ids": (4, 4)}, r"ids repeat: \[4\]"),
        ({"names": ("a", "b"), "ids": (4,)}, "2 class names but 1 ids"),
        ({"names": ("a", "b"), "colors": ((1, 2, 3),)}, "2 class names but 1 colors"),
        ({"names": ("a", "b"), "things": (True, False, True)}, "2 class names but 3 things"),
        ({"names": ("a",), "colors": ((1, 2),)}, "three values"),
        ({"names": ("a",), "colors": ((1, 2, 256),)}, "three values"),
        ({"names": ("a",), "colors": ((-1, 2, 5),)}, "three values"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(KirieError, match=message):
        Classes(**arguments)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(KirieError, match="cat, dog, owl"):
        ANIMALS.index("fox")


@pytest.mark.parametrize(
    "classes",
    [
        ANIMALS,
        Classes.numbered(2),
        Classes(("猫", "dog"), ((1, 2, 3), (4, 5, 6)), (True, False), (90, 7), (0, -1, 255)),
        Classes(tuple(f"c{i}" for i in range(300)), void_ids=()),
    ],
    ids=["plain", "binary", "all given", "many"],
)
def test_plain_values_and_back(classes):
    assert Classes.from_dict(json.loads(json.dumps(classes.to_dict()))) == classes


def test_missing_entries_are_filled_in():
    assert Classes.from_dict({"names": ["cat", "dog", "owl"]}) == ANIMALS


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        "names",
        {},
        {"colors": []},
        {"names": ["a"], "extra": 1},
        {"names": ["a"], 3: 1},
        {"names": "ab"},
        {"names": {"a": 1}},
        {"names": []},
        {"names": [None, "a"]},
        {"names": [1, 2]},
        {"names": [["a"]]},
        {"names": ["a", "a"]},
        {"names": ["a"], "colors": ["abc"]},
        {"names": ["a"], "colors": [[1, 2]]},
        {"names": ["a"], "colors": [[1, 2, "3"]]},
        {"names": ["a"], "colors": [[1, 2, 3.5]]},
        {"names": ["a"], "colors": [[1, 2, 10**400]]},
        {"names": ["a"], "colors": [7]},
        {"names": ["a"], "colors": 7},
        {"names": ["a"], "things": ["false"]},
        {"names": ["a"], "things": [1]},
        {"names": ["a"], "things": True},
        {"names": ["a"], "ids": ["1"]},
        {"names": ["a"], "ids": [1.5]},
        {"names": ["a"], "ids": [float("nan")]},
        {"names": ["a"], "ids": [True]},
        {"names": ["a"], "ids": [None]},
        {"names": ["a"], "ids": [1, 2]},
        {"names": ["a"], "void_ids": 255},
        {"names": ["a"], "void_ids": ["255"]},
        {"names": ["a"], "void_ids": None},
    ],
    ids=lambda values: repr(values)[:50],
)
def test_hostile_values_are_refused(values):
    with pytest.raises(KirieError):
        Classes.from_dict(values)


def test_a_message_stays_short_whatever_came():
    with pytest.raises(KirieError) as error:
        Classes.from_dict({"names": ["a" * 100_000], "ids": "x" * 100_000})
    assert len(str(error.value)) < 300
