"""The class lists against torchvision, the annotation files of the releases, and facts known by hand."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from kirie import class_lists
from kirie.class_lists import ADE20K, CAMVID, CITYSCAPES, COCO, COCO_91, COCO_PANOPTIC, COCO_STUFF, VOC
from kirie.classes import Classes

COUNTS = {  # classes, things
    "VOC": (21, 20),
    "COCO": (80, 80),
    "COCO_91": (91, 80),
    "COCO_PANOPTIC": (133, 80),
    "COCO_STUFF": (54, 0),
    "CITYSCAPES": (19, 8),
    "ADE20K": (150, 100),
    "CAMVID": (11, 0),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_and_plain_values(name):
    classes = getattr(class_lists, name)
    assert (len(classes), sum(classes.things)) == COUNTS[name]
    assert all(label == label.strip() for label in classes.names)
    assert Classes.from_dict(json.loads(json.dumps(classes.to_dict()))) == classes
    assert not set(classes.ids) & set(classes.void_ids)


def test_names_of_torchvision():
    meta = pytest.importorskip("torchvision.models._meta")
    assert VOC.names == ("background", *meta._VOC_CATEGORIES[1:])
    for number, name in enumerate(meta._COCO_CATEGORIES):
        if name == "N/A":
            assert COCO_91.names[number] == f"N/A {number}"
            assert number not in COCO.ids
            assert not COCO_91.things[number]
        elif number:
            assert COCO_91.names[number] == name == COCO.names[COCO.ids.index(number)]
            assert COCO_91.colors[number] == COCO.colors[COCO.ids.index(number)]
    assert COCO_91.ids == tuple(range(91))
    assert COCO_91.names[0] == "background"


def test_coco_as_its_annotation_files_say(shared):
    found = json.loads((shared / "data/coco/annotations/instances_val2017.json").read_text())["categories"]
    assert [(row["id"], row["name"]) for row in found] == list(zip(COCO.ids, COCO.names, strict=True))
    found = json.loads((shared / "data/coco_panoptic/annotations/panoptic_val2017.json").read_text())["categories"]
    rows = zip(COCO_PANOPTIC.ids, COCO_PANOPTIC.names, COCO_PANOPTIC.things, strict=True)
    assert [(row["id"], row["name"], bool(row["isthing"])) for row in found] == list(rows)


def test_camvid_as_the_street_folder_says(shared):
    found = json.loads((shared / "data/street/classes.json").read_text())
    assert tuple(found["classes"]) == CAMVID.names
    assert (found["ignore_index"],) == CAMVID.void_ids


def test_voc_colours_follow_the_bit_rule():
    for index in range(21):
        red = green = blue = 0
        rest = index
        for shift in range(
            7, -1, -1
        ):  # as the development kit draws it: one bit of each channel per three of the index
            red |= (rest & 1) << shift
            green |= (rest >> 1 & 1) << shift
            blue |= (rest >> 2 & 1) << shift
            rest >>= 3
        assert VOC.colors[index] == (red, green, blue)
    assert VOC.colors[VOC.index("person")] == (192, 128, 128)
    assert VOC.colors[VOC.index("tvmonitor")] == (0, 64, 128)


@pytest.mark.parametrize(
    ("classes", "name", "place", "file_id", "color", "thing"),
    [
        (CITYSCAPES, "road", 0, 7, (128, 64, 128), False),
        (CITYSCAPES, "sidewalk", 1, 8, (244, 35, 232), False),
        (CITYSCAPES, "traffic sign", 7, 20, (220, 220, 0), False),
        (CITYSCAPES, "sky", 10, 23, (70, 130, 180), False),
        (CITYSCAPES, "rider", 12, 25, (255, 0, 0), True),
        (CITYSCAPES, "train", 16, 31, (0, 80, 100), True),
        (CITYSCAPES, "bicycle", 18, 33, (119, 11, 32), True),
        (ADE20K, "wall", 0, 1, (120, 120, 120), False),
        (ADE20K, "bed", 7, 8, (204, 5, 255), True),
        (ADE20K, "person", 12, 13, (150, 5, 61), True),
        (ADE20K, "television receiver", 89, 90, (0, 255, 194), True),
        (ADE20K, "crt screen", 141, 142, (122, 0, 255), False),
        (ADE20K, "flag", 149, 150, (92, 0, 255), True),
        (COCO, "person", 0, 1, (220, 20, 60), True),
        (COCO, "toothbrush", 79, 90, (191, 162, 208), True),
        (COCO_PANOPTIC, "banner", 80, 92, (255, 255, 128), False),
        (COCO_PANOPTIC, "rug-merged", 132, 200, (250, 141, 255), False),
        (COCO_STUFF, "things", 0, 0, (82, 18, 128), False),
        (COCO_STUFF, "banner", 1, 1, (255, 255, 128), False),
        (CAMVID, "road", 3, 3, (128, 64, 128), False),
        (CAMVID, "pavement", 4, 4, (0, 0, 192), False),
    ],
)
def test_known_rows(classes, name, place, file_id, color, thing):
    at = classes.index(name)
    assert (at, classes.ids[at], classes.colors[at], classes.things[at]) == (place, file_id, color, thing)


def test_ade20k_is_all_of_the_published_list():
    """The checksum was taken from the names (stripped) and palette in mmsegmentation 0.30's `datasets/ade.py`."""
    rows = (f"{name} {r} {g} {b}" for name, (r, g, b) in zip(ADE20K.names, ADE20K.colors, strict=True))
    assert hashlib.sha256("\n".join(rows).encode()).hexdigest().startswith("a3b06c095047e453")


def test_the_stuff_of_ade20k_is_that_of_its_panoptic_challenge():
    """As `isthing` is 0 in Mask2Former's `register_ade20k_panoptic.py`."""
    stuff = [0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61, 63,
             68, 77, 79, 84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140, 141,
             145]  # fmt: skip
    assert [place for place, thing in enumerate(ADE20K.things) if not thing] == stuff


def test_every_label_id_of_cityscapes_is_a_class_or_void():
    labels, unknown = CITYSCAPES.from_file_ids(np.arange(34, dtype=np.uint8)[None])
    assert unknown == {}
    assert int((labels == 255).sum()) == 15
    assert CITYSCAPES.to_file_ids(np.array([[0, 255]], np.uint8)).tolist() == [[7, 0]]


def test_zero_is_void_in_ade20k():
    labels, unknown = ADE20K.from_file_ids(np.array([[0, 1, 150, 151]], np.uint8))
    assert labels.tolist() == [[255, 0, 149, 255]]
    assert unknown == {151: 1}
