import json
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from kirie.class_lists import CITYSCAPES
from kirie.data import open_dataset
from kirie.data.cityscapes import CityscapesDataset
from kirie.data.folders import FolderSettings
from kirie.data.inspect import inspect_dataset
from kirie.errors import KirieError
from kirie.results import PanopticMap

SIZE = (12, 20)
TRAIN_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13,
             27: 14, 28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip


def ids(seed=0):
    """A (12, 20) map of all the 34 ids of a *_labelIds.png."""
    return np.random.default_rng(seed).permutation(np.resize(np.arange(34, dtype=np.uint8), 240)).reshape(SIZE)


def train_ids(pixels):
    table = np.full(256, 255, np.uint8)
    for file_id, train_id in TRAIN_IDS.items():
        table[file_id] = train_id
    return table[pixels]


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def add(root, split, city, index, pixels, ending="gtFine_labelIds"):
    stem = f"{split}/{city}/{city}_{index:06}_000019"
    save(root / "leftImg8bit" / f"{stem}_leftImg8bit.png", np.full((*SIZE, 3), index, np.uint8))
    save(root / ending.partition("_")[0] / f"{stem}_{ending}.png", pixels)
    return root / ending.partition("_")[0] / f"{stem}_{ending}.png"


@pytest.fixture
def cityscapes(tmp_path):
    """Two cities to train, one to measure, one to test with dummies for labels, and the label files nobody reads."""
    add(tmp_path, "train", "aachen", 0, ids(0))
    add(tmp_path, "train", "aachen", 1, ids(1))
    add(tmp_path, "train", "zurich", 2, ids(2))
    add(tmp_path, "val", "munster", 3, ids(3))
    add(tmp_path, "test", "berlin", 4, np.resize(np.array([0, 1, 3], np.uint8), SIZE))
    for path in list((tmp_path / "gtFine").rglob("*_labelIds.png")):
        save(path.with_name(path.name.replace("labelIds", "instanceIds")), np.zeros(SIZE, np.uint16))
        save(path.with_name(path.name.replace("labelIds", "color")), np.zeros((*SIZE, 4), np.uint8))
        path.with_name(path.name.replace("labelIds.png", "polygons.json")).write_text("{}")
    return tmp_path


def test_label_ids_become_train_ids(cityscapes):
    train, val = open_dataset(cityscapes, "train"), open_dataset(cityscapes, "val")
    assert type(train) is CityscapesDataset and (len(train), len(val)) == (3, 1)
    assert train.splits == ("train", "val") and train.classes == CITYSCAPES
    for index in range(3):
        assert np.array_equal(train[index].truth.labels, train_ids(ids(index)))
        assert (train[index].image == index).all() and (cityscapes / train.name(index)).is_file()
    assert np.array_equal(val[0].truth.labels, train_ids(ids(3)))
    found = inspect_dataset(cityscapes)
    assert found.ok and found.published == "Cityscapes" and found.splits == {"train": 3, "val": 1}
    assert [fault.kind for fault in found.faults] == ["split without truth"]
    assert found.void_share == np.mean([train_ids(ids(i)) == 255 for i in range(4)])


def test_the_dummies_of_the_test_split_are_no_truth(cityscapes):
    with pytest.raises(KirieError, match=r"no pictures in split test.*dummies"):
        open_dataset(cityscapes, "test")
    own = add(cityscapes, "test", "berlin", 4, ids(4))  # a set of one's own may have a true one
    assert len(open_dataset(cityscapes, "test")) == 1
    own.unlink()
    with pytest.raises(KirieError, match="None of 1 test picture has a label file"):
        open_dataset(cityscapes, "test")


def test_train_ids_where_only_these_are_there(cityscapes):
    for path in list((cityscapes / "gtFine").rglob("*_labelIds.png")):
        pixels = train_ids(np.asarray(Image.open(path)))
        save(path.with_name(path.name.replace("labelIds", "labelTrainIds")), pixels)
    both = open_dataset(cityscapes, "train")[0].truth.labels
    for path in (cityscapes / "gtFine").rglob("*_labelIds.png"):
        path.unlink()
    data = open_dataset(cityscapes, "train")
    assert data.classes.ids == tuple(range(19)) and data.classes.names == CITYSCAPES.names
    assert np.array_equal(data[0].truth.labels, both)
    assert open_dataset(cityscapes).splits == ("train", "val")


def test_colours(cityscapes):
    table = np.zeros((34, 4), np.uint8)
    table[list(CITYSCAPES.ids), :3], table[:, 3] = CITYSCAPES.colors, 255
    table[9, :3] = (250, 170, 160)
    for index, path in enumerate(sorted((cityscapes / "gtFine" / "train").rglob("*_color.png"))):
        save(path, table[ids(index)])
    data = open_dataset(cityscapes, "train", settings=FolderSettings(suffix="_gtFine_color"))
    assert data.form.kind == "colour"
    assert np.array_equal(data[1].truth.labels, train_ids(ids(1)))


def test_coarse(cityscapes):
    add(cityscapes, "train", "aachen", 0, ids(7), "gtCoarse_labelIds")
    add(cityscapes, "train_extra", "bonn", 9, ids(8), "gtCoarse_labelIds")
    assert len(open_dataset(cityscapes, "train")) == 3  # fine ones go first
    coarse = open_dataset(cityscapes, "train", settings=FolderSettings(masks="gtCoarse"))
    assert len(coarse) == 4 and np.array_equal(coarse[0].truth.labels, train_ids(ids(7)))
    shutil.rmtree(cityscapes / "gtFine")
    extra = open_dataset(cityscapes, "train")
    assert np.array_equal(extra[3].truth.labels, train_ids(ids(8)))


def test_as_the_archives_unpack(cityscapes):
    for name in ("leftImg8bit", "gtFine"):
        (cityscapes / f"{name}_trainvaltest").mkdir()
        (cityscapes / name).rename(cityscapes / f"{name}_trainvaltest" / name)
    assert len(open_dataset(cityscapes, "train")) == 3


def test_own_classes(cityscapes):
    (cityscapes / "classes.json").write_text('{"classes": ["way", "car"], "ids": [7, 26], "ignore_index": [0, 255]}')
    data = open_dataset(cityscapes, "train")
    assert data.classes.names == ("way", "car")
    with pytest.raises(KirieError, match="no class"):
        data[0]


def test_what_is_wrong_is_told(cityscapes):
    first, second, _ = sorted((cityscapes / "gtFine" / "train").rglob("*_labelIds.png"))
    save(first, np.full(SIZE, 40, np.uint8))
    second.rename(second.with_name("aachen_000009_000019_gtFine_labelIds.png"))
    (cityscapes / "leftImg8bit" / "val").rename(cityscapes / "old")
    (cityscapes / "leftImg8bit" / "val").mkdir()
    kinds = {fault.kind for fault in inspect_dataset(cityscapes).faults if fault.severity == "fault"}
    assert kinds == {
        "unknown ids", "picture without label file", "label file without picture", "split without pictures",
    }  # fmt: skip
    with pytest.raises(KirieError, match="val holds no pictures"):
        open_dataset(cityscapes, "val")
    with pytest.raises(KirieError, match=r"40 \(240 pixels\)"):
        open_dataset(cityscapes, "train")[0]


def only_others(root):
    for path in (root / "gtFine").rglob("*_labelIds.png"):
        path.unlink()


def only_test(root):
    for name in ("train", "val"):
        shutil.rmtree(root / "leftImg8bit" / name)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda root: shutil.rmtree(root / "gtFine"), "has no folder gtFine or gtCoarse"),
        (only_others, r"holds no label files \*_gtFine_labelIds\.png or \*_gtFine_labelTrainIds\.png"),
        (only_test, "has no labelled pictures: The label files of the test pictures are dummies"),
        (lambda root: [shutil.rmtree(p) for p in (root / "leftImg8bit").glob("*/*")], "holds no pictures"),
    ],
)
def test_what_cannot_be_understood(cityscapes, change, why):
    change(cityscapes)
    with pytest.raises(KirieError, match=why):
        open_dataset(cityscapes)
    assert not inspect_dataset(cityscapes).ok


# Objects

THINGS = {24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"}


def instance_ids(seed):
    """A (12, 20) map of ids as the published scripts number them: groups below 1000, objects from 1000."""
    rng = np.random.default_rng(seed)
    values = [7, 21, 24, 26, 24000, 24001, 26003, 26017, 33000, 29001, 30, 14, 0, 255, 4, 7001]
    return np.kron(rng.choice(np.array(values, np.uint16), (6, 10)), np.ones((2, 2), np.uint16))


def with_objects(root):
    for index, path in enumerate(sorted((root / "gtFine").rglob("*_instanceIds.png"))):
        pixels = np.resize(np.array([0, 1, 3], np.uint16), SIZE) if "test" in path.parts else instance_ids(index)
        cv2.imwrite(str(path), pixels)


def test_objects_and_groups(cityscapes):
    """The rule of the evaluation script: class and number from 1000 on, groups below, the eight classes alone."""
    with_objects(cityscapes)
    files = sorted((cityscapes / "gtFine").rglob("*_instanceIds.png"))
    assert open_dataset(cityscapes, "train").task == "semantic"
    for split, offset in (("train", 1), ("val", 4)):
        data = open_dataset(cityscapes, split, task="instance")
        assert type(data) is CityscapesDataset and data.task == "instance"
        assert data.classes.names == tuple(THINGS.values()) and data.classes.ids == tuple(THINGS)
        assert all(data.classes.things) and data.classes.colors[2] == (0, 0, 142)
        for index in range(len(data)):
            pixels = cv2.imread(data.file_facts(index)["mask"], cv2.IMREAD_UNCHANGED)
            assert data.file_facts(index)["mask"] == str(files[index + offset]) and pixels.dtype == np.uint16
            expected = {}
            for value in np.unique(pixels):
                number = int(value) // 1000 if value >= 1000 else int(value)
                if number in THINGS:
                    expected[(pixels == value).tobytes()] = (THINGS[number], bool(value < 1000))
            truth = data[index].truth
            rows = zip(truth.masks, truth.labels, truth.crowd, strict=True)
            assert {m.tobytes(): (truth.classes.names[label], bool(crowd)) for m, label, crowd in rows} == expected
            assert len(truth) == len(expected) and truth.crowd.any()


def test_objects_by_counting(cityscapes):
    with_objects(cityscapes)
    pixels = np.stack([cv2.imread(str(f), -1) for f in sorted((cityscapes / "gtFine").rglob("*_instanceIds.png"))[1:]])
    found = inspect_dataset(cityscapes, task="instance")
    assert found.ok and (found.task, found.format, found.published) == ("instance", "ids", "Cityscapes")
    for entry, number in zip(found.classes, THINGS, strict=True):
        assert entry.pixels == ((pixels == number) | (pixels // 1000 == number)).sum()
        assert entry.instances == sum(len(set(p[p // 1000 == number].tolist())) for p in pixels)
    assert found.crowds == sum(len({24, 26} & set(p.ravel().tolist())) for p in pixels)


def test_pictures_without_objects_and_the_dummies(cityscapes):
    with_objects(cityscapes)
    for path in (cityscapes / "gtFine" / "train").rglob("*_instanceIds.png"):
        cv2.imwrite(str(path), np.full(SIZE, 7, np.uint16))
    data = open_dataset(cityscapes, "train", task="instance")
    assert [len(data[i].truth) for i in range(3)] == [0, 0, 0] and data.splits == ("train", "val")
    with pytest.raises(KirieError, match="dummies"):
        data.only("test")


def test_objects_painted_as_classes(cityscapes):
    """A later id covers an earlier one nowhere, so that the map of the objects is that of their classes."""
    with_objects(cityscapes)
    settings = FolderSettings(suffix="_gtFine_instanceIds")
    data = open_dataset(cityscapes, "val", task="semantic", settings=settings)
    pixels = instance_ids(4)
    numbers = np.where(pixels >= 1000, pixels // 1000, pixels)
    expected = np.zeros(SIZE, np.uint8)
    for label, number in enumerate(THINGS, 1):
        expected[numbers == number] = label
    assert data.classes.names == ("background", *THINGS.values())
    assert np.array_equal(data[0].truth.labels, expected)
    assert open_dataset(cityscapes, "val", settings=settings).task == "instance"


def test_own_things(cityscapes):
    with_objects(cityscapes)
    table = {"classes": ["way", "car", "trailer"], "ids": [7, 26, 30], "things": ["car"]}
    (cityscapes / "classes.json").write_text(json.dumps(table))
    data = open_dataset(cityscapes, "val", task="instance")
    found, pixels = data[0].truth, instance_ids(4)
    expected = [value for value in np.unique(pixels) if value == 26 or value // 1000 == 26]
    assert data.classes.names == ("car",)
    assert np.array_equal(found.masks.dense(), [pixels == value for value in expected])
    assert not inspect_dataset(cityscapes, task="instance").published


def test_without_files_of_objects(cityscapes):
    for path in (cityscapes / "gtFine").rglob("*_instanceIds.png"):
        path.unlink()
    with pytest.raises(KirieError, match=r"holds no label files \*_gtFine_instanceIds\.png in the splits"):
        open_dataset(cityscapes, task="instance")


# Panoptic


def panoptic_pixels(seed):
    """As `instance_ids`, without the number 255, which no class has and which is not void."""
    pixels = instance_ids(seed)
    return np.where(pixels == 255, 4, pixels).astype(np.uint16)


def with_segments(root):
    with_objects(root)
    for index, path in enumerate(sorted((root / "gtFine").rglob("*_instanceIds.png"))):
        if "test" not in path.parts:
            cv2.imwrite(str(path), panoptic_pixels(index))


def test_segments_by_the_rule_of_the_published_script(cityscapes):
    """An id is a segment, a group of a class with objects is a crowd, and what is not evaluated is void."""
    with_segments(cityscapes)
    data = open_dataset(cityscapes, "train", task="panoptic")
    assert type(data) is CityscapesDataset and data.task == "panoptic" and data.classes == CITYSCAPES
    assert open_dataset(cityscapes, "train").task == "semantic"
    crowds = 0
    for index in range(len(data)):
        pixels = cv2.imread(data.file_facts(index)["mask"], cv2.IMREAD_UNCHANGED).astype(np.int64)
        expected, ids = {}, np.zeros(SIZE, np.int64)
        for value in np.unique(pixels).tolist():
            number = value if value < 1000 else value // 1000
            if number in TRAIN_IDS:
                crowd = value < 1000 and number in THINGS
                expected[value] = (TRAIN_IDS[number], number in THINGS, crowd, int((pixels == value).sum()), 1.0)
                ids[pixels == value] = value
                crowds += crowd
        truth = data[index].truth
        assert type(truth) is PanopticMap and np.array_equal(truth.ids, ids)
        assert {s.id: (s.label, s.is_thing, s.crowd, s.area, s.score) for s in truth.segments} == expected
    assert crowds > 0
    found = inspect_dataset(cityscapes, task="panoptic", splits=["train"])
    assert found.ok and (found.task, found.published, found.crowds) == ("panoptic", "Cityscapes", crowds)
    objects = inspect_dataset(cityscapes, task="instance", splits=["train"])
    of_things = [entry.instances for entry, thing in zip(found.classes, CITYSCAPES.things, strict=True) if thing]
    assert of_things == [entry.instances for entry in objects.classes]


def test_numbers_that_are_no_class_refuse_a_panoptic_picture(cityscapes):
    with_objects(cityscapes)
    data = open_dataset(cityscapes, "train", task="panoptic")
    count = int((cv2.imread(data.file_facts(0)["mask"], cv2.IMREAD_UNCHANGED) == 255).sum())
    with pytest.raises(KirieError, match=rf"instanceIds\.png holds ids that are no class: 255 \({count} pixels\)"):
        data[0]
    assert {f.kind for f in inspect_dataset(cityscapes, task="panoptic").faults if f.severity == "fault"} == {
        "unknown ids"
    }


def test_label_ids_alone_are_no_panoptic_truth(cityscapes):
    with_segments(cityscapes)
    with pytest.raises(KirieError, match=r"\(index\) are no panoptic truth"):
        open_dataset(cityscapes, task="panoptic", settings=FolderSettings(suffix="_gtFine_labelIds"))
    (cityscapes / "classes.json").write_text(json.dumps({"classes": ["way", "car"], "ids": [7, 26]}))
    with pytest.raises(KirieError, match="does not say which classes are things"):
        open_dataset(cityscapes, task="panoptic")
