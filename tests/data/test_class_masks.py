"""Object ids in one file and classes in another: each object has the class that most of its pixels have."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from scipy import stats

from kirie.data import open_dataset
from kirie.data.coco import CocoDataset
from kirie.data.folders import FolderDataset, FolderSettings
from kirie.data.inspect import inspect_dataset
from kirie.data.labels import majority_classes
from kirie.errors import KirieError
from kirie.masks import Masks

SIZE = (24, 32)
ALL = FolderSettings(val_fraction=0)
TABLE = {"classes": ["background", "road", "car", "van"], "things": ["car", "van"]}


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)


def one(root, ids, classes=None, table=TABLE, folder="masks", name="a"):
    save(root / "images" / f"{name}.png", np.full((*ids.shape, 3), 9, np.uint8))
    save(root / "ids" / f"{name}.png", ids)
    if classes is not None:
        save(root / folder / f"{name}.png", classes.astype(np.uint8))
    if table:
        (root / "classes.json").write_text(json.dumps(table))
    return open_dataset(root, task="instance")


def boxes(*corners, dtype=np.uint16):
    """Boxes 4 x 4 by number, row and column."""
    ids = np.zeros(SIZE, dtype)
    for number, top, left in corners:
        ids[top : top + 4, left : left + 4] = number
    return ids


@pytest.mark.parametrize("seed", range(5))
def test_the_majority_is_that_of_scipy(seed):
    rng = np.random.default_rng(seed)
    ids, labels = rng.integers(0, 40, SIZE), rng.choice([0, 1, 2, 3, 255], SIZE).astype(np.uint8)
    labels[ids == 7] = 255
    masks = Masks.from_ids(ids, list(range(41)))
    found = majority_classes(masks, labels, 4)
    for number in range(41):
        under = labels[(ids == number) & (labels < 4)]
        assert found[number] == (stats.mode(under).mode if len(under) else -1)
    assert found[7] == found[40] == -1


def test_sixteen_bits_with_gaps(tmp_path):
    ids = boxes((3, 1, 1), (255, 1, 10), (256, 1, 20), (40000, 10, 1), (65535, 10, 10))
    truth = one(tmp_path, ids, table=None)[0].truth
    assert np.array_equal(truth.masks.dense(), [ids == number for number in (3, 255, 256, 40000, 65535)])
    assert truth.labels.tolist() == [0] * 5 and truth.classes.names == ("object",)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_one_object_and_none(tmp_path, dtype):
    one(tmp_path, boxes((1, 5, 5), dtype=dtype), table=None)
    data = one(tmp_path, boxes(dtype=dtype), table=None, name="b")
    assert [len(data[i].truth) for i in range(2)] == [1, 0] and data[1].truth.size == SIZE
    only_empty = one(tmp_path / "none", boxes(dtype=dtype), table=None)
    assert only_empty.task == "instance" and len(only_empty[0].truth) == 0


@pytest.mark.parametrize("folder", ["masks", "labels", "annotations", "gt"])
def test_several_classes(tmp_path, folder):
    ids = boxes((9, 1, 1), (300, 1, 10), (301, 10, 10), (777, 10, 20))
    classes = np.ones(SIZE)
    classes[ids == 9], classes[ids == 300], classes[ids == 301], classes[ids == 777] = 2, 3, 3, 2
    classes[1, 1:5] = 0  # four of the sixteen pixels of 9
    classes[1:3, 10:14] = 255  # half of 300 is void, and two more are car
    classes[3, 10:12] = 2
    data = one(tmp_path, ids, classes, folder=folder)
    truth = data[0].truth
    assert data.classes.names == ("car", "van") and all(data.classes.things) and data.form.kind == "ids"
    assert np.array_equal(truth.masks.dense(), [ids == number for number in (9, 300, 301, 777)])
    assert [truth.classes.names[i] for i in truth.labels] == ["car", "van", "van", "car"]
    assert data.file_facts(0)["classes"].endswith(f"{folder}/a.png")
    found = inspect_dataset(tmp_path, task="instance", settings=ALL)
    assert found.ok and [(entry.name, entry.instances) for entry in found.classes] == [("car", 2), ("van", 2)]
    whole = open_dataset(tmp_path, settings=FolderSettings(short_side=12), task="instance")
    assert whole[0].truth.labels.tolist() == [0, 1, 1, 0]


def test_regions_that_are_no_things_are_left_out(tmp_path):
    ids = boxes((1, 1, 1), (2, 1, 10), (3, 10, 10), (4, 10, 20))
    classes = np.zeros(SIZE)
    classes[ids == 1], classes[ids == 2], classes[ids == 3] = 2, 1, 255
    truth = one(tmp_path, ids, classes)[0].truth
    assert np.array_equal(truth.masks.dense(), [ids == 1]) and truth.labels.tolist() == [0]
    [fault] = [
        f for f in inspect_dataset(tmp_path, task="instance", settings=ALL).faults if f.kind == "object without class"
    ]
    assert fault.severity == "note" and "3 objects that mostly lie on no thing" in fault.what


def test_splits_in_folders_and_endings(tmp_path):
    ids = boxes((5, 1, 1), (6, 10, 10))
    for split in ("train", "val"):
        save(tmp_path / split / "images" / "a.png", np.zeros((*SIZE, 3), np.uint8))
        save(tmp_path / split / "ids" / "a_ids.png", ids)
        save(tmp_path / split / "masks" / "a_mask.png", ((ids == 5) * 2 + (ids == 6) * 3).astype(np.uint8))
    (tmp_path / "classes.json").write_text(json.dumps(TABLE))
    for settings in (FolderSettings(), FolderSettings(masks="ids", suffix="_ids")):
        data = open_dataset(tmp_path, "val", task="instance", settings=settings)
        assert len(data) == 1 and data[0].truth.labels.tolist() == [0, 1]


def test_colours_as_classes(tmp_path):
    colors = np.array([[0, 0, 0], [9, 9, 90], [200, 0, 0], [0, 200, 0]], np.uint8)
    ids = boxes((5, 1, 1), (6, 10, 10))
    one(tmp_path, ids, table=None)
    (tmp_path / "classes.json").write_text(json.dumps({**TABLE, "colors": colors.tolist()}))
    (tmp_path / "masks").mkdir()
    Image.fromarray(colors[(ids == 5) * 3 + (ids == 6) * 2]).save(tmp_path / "masks" / "a.png")
    truth = open_dataset(tmp_path, task="instance")[0].truth
    assert truth.labels.tolist() == [1, 0] and truth.classes.colors == ((200, 0, 0), (0, 200, 0))


def test_what_was_before_stays(tmp_path):
    ids, classes = boxes((1, 1, 1), (2, 10, 10)), np.zeros(SIZE)
    classes[ids == 1] = 2
    for number, table in enumerate([None, ["car"], {"classes": ["background", "car", "road"], "things": ["car"]}]):
        data = one(tmp_path / str(number), ids, classes, table)
        assert len(data.classes) == 1 and len(data[0].truth) == 2 and set(data.file_facts(0)) == {"image", "mask"}
    assert open_dataset(tmp_path / "2").task == "semantic"
    with pytest.raises(KirieError, match="add index masks of the same pictures in a folder masks"):
        one(tmp_path / "alone", ids)
    dropped = one(tmp_path / "255", boxes((255, 1, 1), (2, 10, 10)), np.full(SIZE, 2), {**TABLE, "ignore_index": 255})
    assert len(dropped[0].truth) == 2  # 255 is void in the masks, and a number as any other in the ids


def test_what_is_wrong(tmp_path):
    ids, classes = boxes((1, 1, 1)), np.full(SIZE, 2)
    one(tmp_path, ids, classes, name="a")
    one(tmp_path, ids, None, name="b")
    one(tmp_path, ids, np.full(SIZE, 9), name="c")
    data = one(tmp_path, ids, classes[:5], name="d")
    assert type(data) is FolderDataset and len(data[0].truth) == 1
    for index, why in ((1, "no mask says their classes"), (2, r"holds ids that are no class: 9"), (3, "is 5 x 32")):
        with pytest.raises(KirieError, match=why):
            data[index]
    kinds = {
        fault.kind
        for fault in inspect_dataset(tmp_path, task="instance", settings=ALL).faults
        if fault.severity == "fault"
    }
    assert kinds == {"picture without class mask", "unknown ids", "label file cannot be used"}
    with pytest.raises(KirieError, match="tell objects apart but not their classes"):
        one(tmp_path / "deep", ids, None)
        save(tmp_path / "deep" / "masks" / "a.png", ids * 1000)
        open_dataset(tmp_path / "deep", task="instance")


# Panoptic


def test_objects_and_class_masks_are_panoptic_truth(tmp_path):
    """By hand: an object has its own pixels, whatever the mask says there; other pixels have the mask's class."""
    ids = boxes((9, 1, 1), (300, 1, 10), (301, 10, 10))
    classes = np.ones(SIZE)
    classes[12:], classes[:, 30:] = 0, 255
    classes[ids == 9], classes[ids == 300] = 2, 3
    classes[1, 1:3] = 255  # of object 9
    classes[20:22, 20:26] = 3  # a van without a number
    one(tmp_path, ids, classes)
    data = open_dataset(tmp_path, task="panoptic")
    assert data.task == "panoptic" and data.classes.names == tuple(TABLE["classes"])
    assert data.classes.things == (False, False, True, True) and open_dataset(tmp_path).task == "semantic"
    truth = data[0].truth
    expected = {
        ("car", True, False): ids == 9,
        ("van", True, False): ids == 300,
        ("background", False, False): classes == 0,
        ("road", False, False): classes == 1,  # object 301 mostly lies there, and is no thing
        ("van", True, True): (classes == 3) & (ids != 300),
    }
    found = {(data.classes.names[s.label], s.is_thing, s.crowd): truth.ids == s.id for s in truth.segments}
    assert found.keys() == expected.keys() and len(found) == len(truth.segments)
    assert all(np.array_equal(found[key], mask) for key, mask in expected.items())
    assert np.array_equal(truth.ids == 0, (classes == 255) & (ids != 9))
    inspected = inspect_dataset(tmp_path, task="panoptic", settings=ALL)
    assert inspected.ok and (inspected.task, inspected.format, inspected.crowds) == ("panoptic", "ids", 1)
    assert [(e.name, e.instances) for e in inspected.classes] == [
        ("background", None), ("road", None), ("car", 1), ("van", 1),
    ]  # fmt: skip


def test_what_is_no_panoptic_truth(tmp_path):
    ids, classes = boxes((1, 1, 1)), np.full(SIZE, 2)
    one(tmp_path / "a", ids, classes, {"classes": ["background", "road", "car"]})
    with pytest.raises(KirieError, match="does not say which classes are things"):
        open_dataset(tmp_path / "a", task="panoptic")
    one(tmp_path / "b", ids, None, {"classes": ["car"]})
    with pytest.raises(KirieError, match=r"\(ids\) are no panoptic truth.*they serve task 'instance'"):
        open_dataset(tmp_path / "b", task="panoptic")
    one(tmp_path / "c", ids, classes, {"classes": ["background", "road", "car"], "things": ["car"]})
    assert len(open_dataset(tmp_path / "c", task="panoptic")[0].truth.segments) == 2  # the car and a crowd of cars
    (tmp_path / "c" / "masks" / "a.png").rename(tmp_path / "c" / "masks" / "b.png")
    (tmp_path / "c" / "images" / "b.png").write_bytes((tmp_path / "c" / "images" / "a.png").read_bytes())
    with pytest.raises(KirieError, match="no mask says their classes"):
        open_dataset(tmp_path / "c", task="panoptic")[0]


# Real data


def test_nuclei_are_those_of_their_coco_file(shared):
    root = shared / "data" / "nuclei"
    ids = open_dataset(root, "val", task="instance")
    coco = CocoDataset(root / "instances_val.json")
    assert ids.form.kind == "ids" and len(ids) == len(coco) == 60
    at = {coco.name(i).rsplit("/", 1)[-1]: i for i in range(len(coco))}
    for index in range(0, 60, 6):
        theirs = coco[at[ids.name(index).rsplit("/", 1)[-1]]].truth
        mine = ids[index].truth
        assert {m.tobytes() for m in mine.masks} == {m.tobytes() for m in theirs.masks}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_objects_of_coco(shared, tmp_path):
    """Ids and classes painted from the masks of pycocotools, against its own list of classes."""
    root = shared / "data" / "coco"
    coco = COCO(str(root / "annotations" / "instances_val2017.json"))
    names = [entry["name"] for entry in coco.dataset["categories"]]
    index_of = {entry["id"]: index for index, entry in enumerate(coco.dataset["categories"])}
    expected = {}
    for entry in coco.dataset["images"][:12]:
        ids = np.zeros((entry["height"], entry["width"]), np.uint16)
        classes = np.full(ids.shape, len(names), np.uint8)
        listed = coco.loadAnns(coco.getAnnIds(entry["id"], iscrowd=False))
        for number, annotation in enumerate(listed, 1):
            mask = coco.annToMask(annotation) > 0
            ids[mask], classes[mask] = 500 * number, index_of[annotation["category_id"]]
        stem = entry["file_name"][:-4]
        expected[stem] = [
            (int((ids == 500 * number).sum()), names[index_of[annotation["category_id"]]])
            for number, annotation in enumerate(listed, 1)
            if (ids == 500 * number).any()
        ]
        save(tmp_path / "images" / f"{stem}.png", np.zeros((*ids.shape, 3), np.uint8))
        save(tmp_path / "ids" / f"{stem}.png", ids)
        save(tmp_path / "labels" / f"{stem}.png", classes)
    (tmp_path / "classes.json").write_text(json.dumps({"classes": [*names, "rest"], "things": names}))
    data = open_dataset(tmp_path, task="instance")
    assert data.classes.names == tuple(names) and len(data) == 12 and sum(map(len, expected.values())) > 40
    for index in range(12):
        truth = data[index].truth
        found = list(zip(truth.masks.areas().tolist(), [names[i] for i in truth.labels], strict=True))
        assert found == expected[data.name(index)[7:-4]]
