import json
import multiprocessing
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from kirie.data import dataset_class, open_dataset
from kirie.data.coco import CocoDataset
from kirie.data.folders import FolderDataset, FolderSettings
from kirie.data.inspect import inspect_dataset, sheet_samples
from kirie.errors import KirieError
from kirie.results import Instances, SemanticMap

SIZE = (20, 30)
SQUARE = [4, 3, 12, 3, 12, 9, 4, 9]
CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]


def picture(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(str(path))).integers(0, 256, (*size, 3), np.uint8)).save(path)


def annotation(number, image, category=7, **values):
    plain = {"segmentation": [SQUARE], "bbox": [4, 3, 8, 6], "area": 48, "iscrowd": 0}
    return {"id": number, "image_id": image, "category_id": category, **plain, **values}


def image(number, name, size=SIZE):
    return {"id": number, "file_name": name, "height": size[0], "width": size[1]}


def write(path, images, annotations, categories=CATEGORIES, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**more, "images": images, "annotations": annotations, "categories": categories}))
    return path


def one(root, *annotations, size=SIZE, **more):
    """A data set of one picture, 20 x 30, with these annotations."""
    picture(root / "images" / "a.png")
    return write(root / "all.json", [image(1, "a.png", size)], list(annotations), **more)


def truth(root, **settings):
    dataset = open_dataset(root, settings=FolderSettings(val_fraction=0, **settings))
    assert type(dataset) is CocoDataset
    return dataset[0].truth


def inspect(root):
    return inspect_dataset(root, settings=FolderSettings(val_fraction=0))


def kinds(root):
    found = [(fault.severity, fault.kind) for fault in inspect(root).faults]
    return [entry for entry in found if entry != ("note", "class never occurs")]


# pycocotools hands NumPy an array without the `copy` that NumPy 2 asks for.
old_arrays = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@old_arrays
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_data_equal_pycocotools(shared, split):
    root = shared / "data" / "coco"
    dataset = open_dataset(root, split)
    peer = COCO(root / "annotations" / f"instances_{split}2017.json")
    assert type(dataset) is CocoDataset and dataset.splits == ("train", "val") and len(dataset) == len(peer.imgs)
    seen = 0
    for index in range(len(dataset)):
        sample = dataset[index]
        found = [peer.anns[i] for i in peer.getAnnIds(imgIds=[dataset.image_id(index)])]
        assert sample.name.endswith(peer.imgs[dataset.image_id(index)]["file_name"])
        assert len(found) == len(sample.truth)
        crowd = np.zeros(len(found), bool) if sample.truth.crowd is None else sample.truth.crowd
        for row, (entry, mask) in enumerate(zip(found, sample.truth.masks, strict=True)):
            assert np.array_equal(peer.annToMask(entry), mask)
            x, y, width, height = entry["bbox"]
            right, bottom = min(x + width, mask.shape[1]), min(y + height, mask.shape[0])
            assert np.array_equal(sample.truth.boxes[row], np.float32([x, y, right, bottom]))
            assert sample.truth.areas[row] == entry["area"] and crowd[row] == entry["iscrowd"]
            assert dataset.classes.ids[sample.truth.labels[row]] == entry["category_id"]
            assert dataset.classes.names[sample.truth.labels[row]] == peer.cats[entry["category_id"]]["name"]
        seen += len(found)
    assert seen == len(peer.anns) and all(dataset.classes.things)


def test_real_data_inspect(shared):
    found = inspect_dataset(shared / "data" / "coco", splits=["val"])
    peer = COCO(shared / "data" / "coco" / "annotations" / "instances_val2017.json")
    assert found.ok and found.splits == {"val": 74}
    assert found.crowds == sum(entry["iscrowd"] for entry in peer.anns.values()) > 0
    for entry, category in zip(found.classes, peer.cats.values(), strict=True):
        own = peer.getAnnIds(catIds=[category["id"]], iscrowd=False)
        assert (entry.name, entry.instances) == (category["name"], len(own))
        assert entry.images == len(peer.getImgIds(catIds=[category["id"]]))


def test_label_files_go_before_json_unless_they_cannot_serve(shared, tmp_path):
    nuclei = shared / "data" / "nuclei"
    for task in (None, "instance", "semantic"):
        assert dataset_class(nuclei, task=task) is FolderDataset
    forced = open_dataset(nuclei, "val", settings=FolderSettings(format="coco"))
    plain = open_dataset(nuclei, "val", task="instance")
    assert [forced.name(i) for i in range(60)] == [plain.name(i) for i in range(60)]
    same = np.stack([forced[0].truth.masks.id_map() > 0, plain[0].truth.masks.id_map() > 0])
    assert np.array_equal(*same)
    one(tmp_path, annotation(1, 1))
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.eye(*SIZE, dtype=np.uint8) * 255).save(tmp_path / "masks" / "a.png")
    assert dataset_class(tmp_path) is FolderDataset and dataset_class(tmp_path, task="semantic") is FolderDataset
    assert dataset_class(tmp_path, task="instance") is CocoDataset


LAYOUTS = {
    "coco": ("annotations/instances_{}2017.json", "images/{}2017/x.png", ("train", "val")),
    "coco without images": ("annotations/instances_{}2017.json", "{}2017/x.png", ("train", "val")),
    "kirie": ("instances_{}.json", "images/{}/x.png", ("train", "val", "test")),
    "roboflow": ("{}/_annotations.coco.json", "{}/x.png", ("train", "valid", "test")),
    "a folder per split": ("annotations/{}.json", "{}/images/x.png", ("train", "val")),
    "folders of annotations": ("annotations/{}/labels.json", "images/{}/x.png", ("train", "val")),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_with_splits(tmp_path, name):
    json_file, file, splits = LAYOUTS[name]
    for number, split in enumerate(splits):
        picture(tmp_path / file.format(split))
        entries = [annotation(k, 5) for k in range(number + 1)]
        write(tmp_path / json_file.format(split), [image(5, "x.png")], entries)
    write(tmp_path / json_file.format(splits[0]).replace("instances", "captions"), [], []) if name == "coco" else None
    for number, split in enumerate(splits):
        dataset = open_dataset(tmp_path, split)
        assert dataset.name(0) == file.format(split) and len(dataset) == 1
        assert len(dataset[0].truth) == number + 1
        assert len(dataset.only(splits[0])[0].truth) == 1
        alone = open_dataset(tmp_path / json_file.format(split))
        assert len(alone) == 1 and len(alone[0].truth) == number + 1
        assert alone.splits == dataset.only(split).splits[-3:][number : number + 1]
    assert dataset.splits == ("train", "val", "test")[: len(splits)]


@pytest.mark.parametrize(
    ("json_file", "name", "place"),
    [
        ("annotations/instances_default.json", "a/b.png", "images/a/b.png"),
        ("annotations/instances_default.json", "b.png", "images/default/b.png"),
        ("result.json", "images/3-b.png", "images/3-b.png"),
        ("result.json", "..\\..\\upload\\1\\b.png", "images/b.png"),
        ("result.json", "/mnt/disk/pictures/b.png", "b.png"),
        ("any name.json", "b.png", "photos/2024/b.png"),
        ("deep/any.json", "b.png", "b.png"),
        ("labels.json", "grüße/日本.png", "grüße/日本.png"),
    ],
)
def test_layouts_of_one_file(tmp_path, json_file, name, place):
    picture(tmp_path / place)
    write(tmp_path / json_file, [image(0, name)], [annotation(0, 0)], licenses=[{"id": 1}], info={"images": [1, 2]})
    path = tmp_path / json_file if json_file.startswith("deep") else tmp_path
    if path != tmp_path:
        picture(path.parent / place)
    dataset = open_dataset(path)
    assert dataset.splits == () and dataset.name(0) == place and len(dataset[0].truth) == 1
    assert dataset.image_id(0) == 0


def test_one_file_is_split_by_the_seed_or_by_lists(tmp_path):
    names = [f"{i:02d}.png" for i in range(30)]
    for name in names:
        picture(tmp_path / "images" / name, (4, 5))
    write(tmp_path / "x.json", [image(i, name, (4, 5)) for i, name in enumerate(names)], [])
    dataset = open_dataset(tmp_path)
    assert len(dataset.only("train")) + len(dataset.only("val")) == 30 and 2 < len(dataset.only("val")) < 12
    assert open_dataset(tmp_path, "val")._pairs[0] == dataset.only("val")._pairs[0]
    (tmp_path / "val.txt").write_text("03.png\n17\n")
    assert [open_dataset(tmp_path, "val").name(i) for i in range(2)] == ["images/03.png", "images/17.png"]


def test_two_files_of_one_split_must_be_told_apart(tmp_path):
    one(tmp_path, annotation(1, 1))
    write(tmp_path / "more.json", [image(1, "a.png")], [])
    with pytest.raises(KirieError, match=r"2 COCO files.*all\.json.*more\.json.*path of the one"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path / "all.json")[0].truth) == 1
    assert "2 COCO files" in inspect_dataset(tmp_path).faults[0].what


def test_files_that_are_no_coco_stay_with_folders(tmp_path):
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "a.json").write_text('{"shapes": [], "imagePath": "a.png"}')
    write(tmp_path / "annotations" / "panoptic_train.json", [image(1, "a.png")], [])
    assert dataset_class(tmp_path) is FolderDataset


@old_arrays
def test_outlines_of_all_kinds_equal_pycocotools(tmp_path):
    blob = np.zeros(SIZE, np.uint8)
    blob[2:17, 5:25], blob[6:10, 9:15] = 1, 0
    packed = coco_mask.encode(np.asfortranarray(blob))["counts"].decode()
    runs = np.flatnonzero(np.diff(blob.ravel("F"), prepend=0, append=0))
    counts = np.diff(runs, prepend=0, append=blob.size).tolist()
    segmentations = [
        [SQUARE, [20.3, 3.1, 28.7, 4.9, 24.2, 15.6]],
        {"size": list(SIZE), "counts": packed},
        {"size": list(SIZE), "counts": counts},
        [[-5, -5, 40.5, -5, 40.5, 12.25]],
    ]
    entries = [annotation(k, 1, segmentation=s, iscrowd=k == 2) for k, s in enumerate(segmentations)]
    path = one(tmp_path, *entries)
    found, peer = truth(tmp_path), COCO(path)
    assert found.crowd.tolist() == [False, False, True, False]
    for mask, entry in zip(found.masks, entries, strict=True):
        assert np.array_equal(mask, peer.annToMask(entry)) and mask.any()
    flat = one(tmp_path, annotation(1, 1, segmentation=SQUARE))  # one ring without its list
    assert truth(flat).masks.areas().tolist() == [48]


def test_boxes_and_areas(tmp_path):
    entries = [
        annotation(1, 1, bbox=[20.5, 3.25, 14, 6], segmentation=[[20, 3, 30, 3, 30, 9, 20, 9]]),  # beyond the picture
        annotation(2, 1, bbox=[4, 3, 0, 6], area=-1),
        annotation(3, 1, bbox=None, area=None),
        annotation(4, 1, bbox=["4", 3, 8, 6], area="48"),
        annotation(5, 1, bbox=[4, 3, 8], area=17.5),
    ]
    one(tmp_path, *entries)
    found = truth(tmp_path)
    assert found.boxes.tolist() == [[20.5, 3.25, 30, 9.25]] + 4 * [[4, 3, 12, 9]]
    assert found.areas.tolist() == [48, 48, 48, 48, 17.5]
    assert ("note", "box beyond the picture") in kinds(tmp_path)


def test_a_box_beside_its_outline_is_not_learned_from(tmp_path):
    """As of x, y, x, y in place of x, y, width, height; one that is merely wide is the file's own."""
    right, wide = annotation(2, 1, bbox=[4.25, 3, 7.5, 6]), annotation(3, 1, bbox=[2, 3, 12, 6])
    one(tmp_path, annotation(1, 1, bbox=[12, 9, 16, 10]), right, wide, annotation(4, 1, bbox=[0, 0, 30, 20], iscrowd=1))
    assert truth(tmp_path).boxes.tolist() == [[4, 3, 12, 9], [4.25, 3, 11.75, 9], [2, 3, 14, 9], [0, 0, 30, 20]]
    assert kinds(tmp_path) == [("fault", "box beside its outline")]
    (fault,) = (fault for fault in inspect(tmp_path).faults if fault.severity == "fault")
    assert "annotation 1 (a.png)" in fault.what and "its outline's own box" not in fault.what
    assert "the outline's own box is used" in fault.mend


@pytest.mark.parametrize("area", ["Infinity", "-Infinity", "NaN", "-3", "1e999", "null"])
def test_areas_that_are_none_are_those_of_the_masks(tmp_path, area):
    path = one(tmp_path, annotation(1, 1, area=12345))
    path.write_text(path.read_text().replace("12345", area))
    assert truth(tmp_path).areas.tolist() == [48]
    path.write_text(path.read_text().replace(f'"area": {area}', '"area": 0'))
    assert truth(tmp_path).areas.tolist() == [0]


@pytest.mark.parametrize("bare", [[], None, [[]]])
def test_boxes_alone_are_refused(tmp_path, bare):
    one(tmp_path, *(annotation(k, 1, segmentation=bare) for k in range(3)))
    with pytest.raises(
        KirieError, match=r"all\.json: none of 3 annotations has an outline.*for detection \(boxes\)\. Exp"
    ):
        open_dataset(tmp_path)
    assert kinds(tmp_path) == [("fault", "not understood")] and not inspect(tmp_path).ok
    one(tmp_path, annotation(1, 1, segmentation=bare), annotation(2, 1, 3))
    assert len(truth(tmp_path)) == 1
    with pytest.raises(KirieError, match="none of 1 annotation has"):  # of those that are not ignored
        truth(tmp_path, ignore=(3,))


def test_faults_of_one_picture_are_one(tmp_path):
    bad = [annotation(k, 1, 99) for k in range(1000)]
    one(tmp_path, *bad, *(annotation(k, 1, segmentation=[[1, 1, 9, 9]]) for k in range(2000, 2002)))
    unknown, bare = (fault for fault in inspect(tmp_path).faults if fault.severity == "fault")
    assert (unknown.count, bare.count) == (1000, 2)
    assert unknown.what.endswith(
        "annotation 0 (a.png) has the category_id 99, which is no category. So it is with 999 other annotations of it "
        "(annotation 1, annotation 2, annotation 3 and 996 more)."
    )
    assert bare.what.endswith("all.json: a.png has 2 objects without a pixel (annotation 2000, annotation 2001).")
    assert "fault: unknown category (1,000 times)" in inspect(tmp_path).lines()


def test_outlines_that_are_none_are_told_at_opening(tmp_path):
    broken = [annotation(k, 1, segmentation="polygon") for k in range(5)]
    one(tmp_path, *broken, annotation(7, 1, 3), annotation(8, 9, 99, segmentation=5))
    words = (
        r"5 annotations with a segmentation that cannot be used \(annotation 0, .* and 2 more\)\. It is neither .* out"
    )
    with pytest.raises(KirieError, match=words):
        open_dataset(tmp_path)
    assert len(truth(tmp_path, ignore=(7,))) == 1


def test_settings_reach_the_search(tmp_path):
    one(tmp_path, annotation(1, 1))
    (tmp_path / "labels_json").mkdir()
    (tmp_path / "all.json").rename(tmp_path / "labels_json" / "all.json")
    assert dataset_class(tmp_path) is FolderDataset
    assert len(truth(tmp_path, masks="labels_json")) == 1
    (tmp_path / "labels_json" / "all.json").rename(tmp_path / "all.json")
    (tmp_path / "drawn").mkdir()
    Image.fromarray(np.eye(*SIZE, dtype=np.uint8) * 255).save(tmp_path / "drawn" / "a.png")
    assert dataset_class(tmp_path) is CocoDataset
    assert dataset_class(tmp_path, FolderSettings(masks="drawn")) is FolderDataset


@pytest.mark.parametrize("values", [{"kind": "ids"}, {"suffix": "_m"}])
def test_settings_that_it_cannot_use_are_refused(tmp_path, values):
    one(tmp_path, annotation(1, 1))
    ((entry, value),) = values.items()
    with pytest.raises(KirieError, match=rf"data\.{entry} is '{value}', for which COCO has no use.*{entry}="):
        truth(tmp_path, **values)


def test_large_category_numbers_can_be_ignored(tmp_path):
    one(tmp_path, annotation(1, 1), annotation(2, 1, 10**12), annotation(3, 1, -4))
    with pytest.raises(KirieError, match=r"data\.ignore: \[-4, 1000000000000\]"):
        truth(tmp_path)
    assert len(truth(tmp_path, ignore=(-4, 10**12))) == 1
    with pytest.raises(KirieError, match=r"beside those of data\.ignore: \[7, 3\]"):
        truth(tmp_path, ignore=(7, 3))


def test_pictures_without_objects_are_samples(tmp_path):
    one(tmp_path)
    found = truth(tmp_path)
    assert isinstance(found, Instances) and len(found) == 0 and found.size == SIZE
    assert kinds(tmp_path) == [("note", "picture without objects")] and inspect(tmp_path).ok


def test_semantic_task(tmp_path):
    one(tmp_path, annotation(1, 1, 3))
    dataset = open_dataset(tmp_path, task="semantic", settings=FolderSettings(val_fraction=0))
    found = dataset[0].truth
    assert isinstance(found, SemanticMap) and dataset.classes == found.classes
    assert dataset.classes.names == ("background", "cat", "dog") and (found.labels == 2).sum() == 48
    shares = {c.name: c.pixels for c in inspect_dataset(tmp_path, task="semantic").classes}
    assert shares == {"background": 552, "cat": 0, "dog": 48}


def test_short_side_and_channels(tmp_path):
    one(tmp_path, annotation(1, 1), annotation(2, 1, iscrowd=1))
    dataset = open_dataset(tmp_path, settings=FolderSettings(val_fraction=0, short_side=10, channels=1))
    sample = dataset[0]
    assert sample.image.shape == (10, 15, 1) and sample.truth.size == (10, 15)
    assert sample.truth.crowd.tolist() == [False, True] and sample.truth.boxes[0].tolist() == [2, 1, 6, 4]
    assert dataset.only(None, own_size=True)[0].image.shape == (*SIZE, 1)


def test_ids_may_be_texts_and_categories_may_repeat(tmp_path):
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    images = [image("uuid-é", "a.png"), image("12", "b.png")]
    entries = [annotation("x", "uuid-é", "7"), annotation(None, 12, 0.0), annotation(2, "12", 7)]
    categories = [{"id": "0", "name": "cat"}, {"id": 7, "name": "cat"}]
    write(tmp_path / "all.json", images, entries, categories)
    dataset = open_dataset(tmp_path, settings=FolderSettings(val_fraction=0))
    assert [dataset.image_id(i) for i in range(2)] == ["uuid-é", "12"]
    assert dataset.classes.names == ("cat (0)", "cat (7)") and dataset.classes.ids == (0, 7)
    assert [dataset[i].truth.labels.tolist() for i in range(2)] == [[1], [0, 1]]
    fewer = FolderSettings(val_fraction=0, ignore=(0,))
    assert open_dataset(tmp_path, settings=fewer)[1].truth.classes.names == ("cat",)
    assert open_dataset(tmp_path, settings=fewer)[1].truth.labels.tolist() == [0]
    named = open_dataset(tmp_path, settings=FolderSettings(classes=("big", "small")))
    assert named.classes.names == ("big", "small")
    with pytest.raises(KirieError, match=r"1 names.*2 categories"):
        open_dataset(tmp_path, settings=FolderSettings(classes=("big",)))


def test_missing_pictures_are_left_out_and_told(tmp_path):
    picture(tmp_path / "images" / "a.png")
    write(tmp_path / "all.json", [image(1, "a.png"), image(2, "gone.png")], [annotation(1, 2)])
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 1 and dataset.unfound == ("gone.png",)
    assert ("fault", "listed picture is missing") in kinds(tmp_path)
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(KirieError, match=r"None of 2 pictures that .*all\.json lists is there, such as a\.png"):
        open_dataset(tmp_path)


def test_an_unfetched_split_is_a_gap(tmp_path):
    one(tmp_path, annotation(1, 1))
    (tmp_path / "all.json").rename(tmp_path / "instances_val.json")
    write(tmp_path / "instances_train.json", [image(1, "b.png")], [annotation(1, 1)])
    write(tmp_path / "instances_test.json", [image(1, "a.png")], [])
    (tmp_path / "instances_test.json").write_text(json.dumps({"images": [image(1, "a.png")], "categories": []}))
    assert len(open_dataset(tmp_path, "val")) == 1
    with pytest.raises(KirieError, match=r"no pictures in split train.*None of 1 picture that"):
        open_dataset(tmp_path, "train")
    assert kinds(tmp_path) == [("note", "split without truth"), ("fault", "split without pictures")]


REFUSED = {
    "size": ({}, "sizes differ", "label file .* is 30 x 20"),
    "unknown": ({"category_id": 99}, "unknown category", "category_id 99.*data.ignore"),
    "short rle": ({"segmentation": {"size": [20, 30], "counts": [5, 6]}}, "segmentation cannot be used", "add up"),
    "rle of another size": (
        {"segmentation": {"size": [30, 20], "counts": [600]}},
        "segmentation cannot be used",
        r"size \[30, 20\]",
    ),
    "nan": ({"segmentation": [[float("nan"), 1, 2, 3, 4, 5]]}, "segmentation cannot be used", "annotation 1 .a.png."),
    "odd": ({"segmentation": [[1, 1, 2, 3, 4, 5, 6]]}, "segmentation cannot be used", "7 numbers"),
    "texts": ({"segmentation": [["1", 1, 2, 3, 4, 5]]}, "segmentation cannot be used", "neither"),
    "words": ({"segmentation": "polygon"}, "segmentation cannot be used", "neither"),
    "huge": ({"segmentation": [[0, 0, 1e9, 0, 1, 1]]}, "segmentation cannot be used", "flat list"),
    "bytes": ({"segmentation": {"size": [20, 30], "counts": "\x01\x02"}}, "segmentation cannot be used", "run lengths"),
    "fraction": ({"segmentation": {"size": [20, 30], "counts": [0.5, 599.5]}}, "segmentation cannot be used", "whole"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_teach_wrongly_is_refused(tmp_path, name):
    values, kind, words = REFUSED[name]
    one(
        tmp_path,
        annotation(1, 1, **values),
        annotation(2, 1, bbox=[4, 3, 8, 6.5]),
        size=(30, 20) if name == "size" else SIZE,
    )
    with pytest.raises(KirieError, match=words):
        truth(tmp_path)
    found = inspect(tmp_path)
    assert kinds(tmp_path) == [("fault", kind)] and not found.ok
    assert found.classes[0].instances == (2 if name == "size" else 1)  # the sound ones are counted
    fault = next(fault for fault in found.faults if fault.kind == kind)
    assert fault.mend and any(fault.what in line for line in found.lines())
    if name == "unknown":
        assert len(truth(tmp_path, ignore=(99,))) == 1


LEFT_OUT = {
    "none": ({"segmentation": None}, "object without outline", 1),
    "empty": ({"segmentation": []}, "object without outline", 1),
    "empty ring": ({"segmentation": [[]]}, "object without outline", 1),
    "two points": ({"segmentation": [[1, 1, 9, 9]]}, "object without pixels", 0),
    "a line": ({"segmentation": [[1, 1, 1, 1, 1, 1]]}, "object without pixels", 0),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_objects_without_a_mask_are_left_out_and_told(tmp_path, name):
    values, kind, told = LEFT_OUT[name]
    one(tmp_path, annotation(1, 1, **values), annotation(2, 1))
    assert len(truth(tmp_path)) == 1 and kinds(tmp_path) == [("fault", kind)]
    assert len(open_dataset(tmp_path).left_out) == told


def test_annotations_of_unknown_pictures(tmp_path):
    one(tmp_path, annotation(1, 1), annotation(2, 9))
    assert len(truth(tmp_path)) == 1 and "1 of 2 annotations" in open_dataset(tmp_path).left_out[0]
    fault = inspect_dataset(tmp_path).faults[0]
    assert fault.kind == "unknown picture" and "annotation 2 is of image_id 9" in fault.what


def test_pictures_listed_twice_are_one(tmp_path):
    picture(tmp_path / "images" / "a.png")
    write(tmp_path / "all.json", [image(1, "a.png"), image(2, "a.png")], [annotation(1, 1), annotation(2, 2, 3)])
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 1 and dataset[0].truth.labels.tolist() == [0, 1]
    assert ("note", "picture listed twice") in kinds(tmp_path)
    write(tmp_path / "all.json", [image(1, "a.png"), image(2, "images/a.png")], [annotation(1, 1)])
    assert ("fault", "two entries of one picture") in kinds(tmp_path)


def test_objects_stated_twice(tmp_path):
    one(tmp_path, annotation(1, 1), annotation(2, 1), annotation(3, 1, 3))
    assert kinds(tmp_path) == [("fault", "object stated twice")]
    assert "1 object with the class and the box" in inspect_dataset(tmp_path).faults[0].what


BROKEN = {
    "no json": ("{", "no sound JSON at line 1, column 2"),
    "a list": ("[]", "begins with {"),
    "no images": ('{"annotations": []}', "no list `images`"),
    "no id": ('{"images": [{"file_name": "a.png"}]}', r"images\[0\] has the id None"),
    "no name": ('{"images": [{"id": 1}]}', r"images\[0\] has the file_name None"),
    "two of one id": (
        '{"images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}]}',
        "the id 1 is that of another picture",
    ),
    "no annotations": ('{"images": [{"id": 1, "file_name": "a.png"}], "categories": []}', "no annotations"),
    "no categories": ('{"images": [{"id": 1, "file_name": "a.png"}], "annotations": []}', "no `categories`"),
    "a number": ('{"images": [3]}', r"images\[0\] is 3"),
    "no class": ('{"annotations": [{"image_id": 1}], "images": []}', r"annotations\[0\] has the category_id None"),
    "panoptic": ('{"annotations": [{"segments_info": []}], "images": []}', r"annotations\[0\] has the image_id None"),
    "deep": ('{"images": ' + "[" * 10**5, "too deeply"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_are_no_coco_are_told(tmp_path, name):
    text, words = BROKEN[name]
    picture(tmp_path / "a.png")
    (tmp_path / "instances.json").write_text(text)
    with pytest.raises(KirieError, match=words) as caught:
        open_dataset(tmp_path / "instances.json")
    assert "instances.json" in str(caught.value)
    assert inspect_dataset(tmp_path / "instances.json").faults[0].kind == "not understood"


def test_files_of_a_set_must_agree_on_categories(tmp_path):
    for split, name in (("train", "cat"), ("val", "dog")):
        picture(tmp_path / "images" / split / "a.png")
        write(tmp_path / f"instances_{split}.json", [image(1, "a.png")], [], [{"id": 1, "name": name}])
    with pytest.raises(KirieError, match=r"calls category 1 'dog'.*'cat'"):
        open_dataset(tmp_path)


def test_no_picture_outside_the_folder_is_read(tmp_path):
    picture(tmp_path / "secret.png")
    for name in ("../secret.png", str(tmp_path / "secret.png")):
        path = write(tmp_path / "set" / "all.json", [image(1, name)], [])
        with pytest.raises(KirieError, match="None of 1 picture"):
            open_dataset(path)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same(tmp_path, method):
    one(tmp_path, annotation(1, 1), annotation(2, 1, 3))
    dataset = open_dataset(tmp_path)
    with multiprocessing.get_context(method).Pool(1) as pool:
        sample = pool.apply(dataset.__getitem__, (0,))
    assert np.array_equal(sample.truth.boxes, dataset[0].truth.boxes) and len(sample.truth) == 2


def test_pickled_once(tmp_path):
    ring = np.random.default_rng(0).uniform(1, 19, 20000).tolist()
    one(tmp_path, annotation(1, 1, segmentation=[ring]))
    assert len(pickle.dumps(open_dataset(tmp_path))) < 1.1 * 8 * 20000


def test_contact_sheet_samples(tmp_path):
    one(tmp_path, annotation(1, 1))
    (sample,) = sheet_samples(open_dataset(tmp_path))
    assert sample.name == "images/a.png" and len(sample.truth) == 1
