import copy
import json
import pickle
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from kirie.class_lists import COCO_PANOPTIC
from kirie.data import dataset_class, is_dataset, open_dataset
from kirie.data.augment import AugmentSettings, augment
from kirie.data.batch import AugmentedSamples, BatchPlan, TrainingLoader
from kirie.data.coco import CocoDataset
from kirie.data.coco_panoptic import CocoPanopticDataset
from kirie.data.folders import FolderDataset, FolderSettings
from kirie.data.inspect import inspect_dataset, sheet_samples
from kirie.data.panoptic_file import read_panoptic
from kirie.demo import make_demo
from kirie.errors import KirieError
from kirie.results import Instances, PanopticMap, SemanticMap

SIZE = (20, 30)
ALL = FolderSettings(val_fraction=0)
CATEGORIES = [
    {"id": 4, "name": "sky", "isthing": 0, "color": [1, 2, 3]},
    {"id": 7, "name": "cat", "isthing": 1, "color": [200, 0, 9]},
    {"id": 90, "name": "sea", "isthing": 0, "color": [0, 0, 255]},
    {"id": 3, "name": "dog", "isthing": 1, "color": [9, 9, 9]},
]
NAMES = ("sky", "cat", "sea", "dog")
# id: category, crowd, box (top, left, bottom, right); 16777215 is the largest id, 256 and 65536 the first of two bytes.
SCENE = {
    16_777_215: (4, 0, (0, 0, 8, 30)),
    256: (7, 0, (8, 0, 14, 5)),
    65_536: (7, 0, (8, 5, 14, 12)),
    3: (3, 1, (8, 12, 14, 30)),
    70_002: (90, 0, (14, 0, 20, 25)),  # the rest, five columns, is void
}


def scene_ids(scene=SCENE, size=SIZE):
    ids = np.zeros(size, np.int64)
    for number, (_, _, (top, left, bottom, right)) in scene.items():
        ids[top:bottom, left:right] = number
    return ids


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def colors(ids):
    """The rule of the format, by plain arithmetic."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65_536], -1)


def ids_in(path):
    """The same rule backwards."""
    pixels = np.asarray(Image.open(path)).astype(np.int64)
    return pixels[..., 0] + 256 * pixels[..., 1] + 65_536 * pixels[..., 2]


def picture(path, size=SIZE):
    save(path, np.random.default_rng(len(str(path))).integers(0, 256, (*size, 3)))


def info(scene=SCENE, **more):
    rows = [{"id": i, "category_id": category, "iscrowd": crowd} for i, (category, crowd, _) in scene.items()]
    return [{**row, "area": 1, "bbox": [0, 0, 1, 1], **more} for row in rows]


def listing(names, segments=None, categories=CATEGORIES, size=SIZE, **more):
    segments = info() if segments is None else segments
    images = [{"id": 10 + i, "file_name": n, "height": size[0], "width": size[1]} for i, n in enumerate(names)]
    annotations = [
        {"image_id": 10 + i, "file_name": n.rpartition(".")[0] + ".png", "segments_info": segments}
        for i, n in enumerate(names)
    ]
    return copy.deepcopy({"images": images, "annotations": annotations, "categories": categories, **more})


def write(path, facts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts))
    return path


def one(root, segments=None, ids=None, **more):
    """A data set of one picture, 20 x 30."""
    picture(root / "images" / "a.jpg")
    save(root / "panoptic" / "a.png", colors(scene_ids() if ids is None else ids))
    write(root / "panoptic.json", listing(["a.jpg"], segments, **more))
    return root


def opened(root, task="panoptic", **settings):
    return open_dataset(root, task=task, settings=FolderSettings(val_fraction=0, **settings))


def inspected(root, task="panoptic"):
    return inspect_dataset(root, task=task, settings=ALL)


def kinds(root):
    found = [(fault.severity, fault.kind) for fault in inspected(root).faults]
    return [entry for entry in found if entry != ("note", "class never occurs")]


def check_map(truth, ids, scene=SCENE):
    """A truth is the scene, told by the arrays it was made from."""
    assert type(truth) is PanopticMap and truth.ids.dtype == np.int32 and np.array_equal(truth.ids, ids)
    by_id = {entry["id"]: entry for entry in CATEGORIES}
    expected = [
        (i, by_id[category]["name"], bool(by_id[category]["isthing"]), 1.0, int((ids == i).sum()), bool(crowd))
        for i, (category, crowd, _) in scene.items()
    ]
    names = truth.classes.names
    found = [(s.id, names[s.label], s.is_thing, s.score, s.area, s.crowd) for s in truth.segments]
    assert found == expected


# What is read


def test_a_map_with_crowd_and_void(tmp_path):
    data = opened(one(tmp_path))
    assert type(data) is CocoPanopticDataset and data.task == "panoptic" and len(data) == 1
    assert data.classes.names == NAMES and data.classes.ids == (4, 7, 90, 3)
    assert data.classes.things == (False, True, False, True) and data.classes.colors[1] == (200, 0, 9)
    check_map(data[0].truth, scene_ids())
    assert (data[0].truth.ids == 0).sum() == 6 * 5
    facts = {role: str(tmp_path / below) for role, below in (("image", "images/a.jpg"), ("mask", "panoptic/a.png"))}
    assert data.file_facts(0) == {**facts, "classes": str(tmp_path / "panoptic.json")} and data.image_id(0) == 10
    assert open_dataset(tmp_path, settings=ALL).task == "panoptic", "the natural task"


def test_things_alone_are_objects(tmp_path):
    data = opened(one(tmp_path), "instance")
    truth, ids = data[0].truth, scene_ids()
    assert type(truth) is Instances and data.classes == truth.classes
    assert data.classes.names == ("cat", "dog") and data.classes.ids == (7, 3) and all(data.classes.things)
    assert np.array_equal(truth.masks.dense(), [ids == 256, ids == 65_536, ids == 3])
    assert truth.labels.tolist() == [0, 0, 1] and truth.crowd.tolist() == [False, False, True]
    assert truth.boxes.tolist() == [[0, 8, 5, 14], [5, 8, 12, 14], [12, 8, 30, 14]]


def test_classes_of_all_pixels(tmp_path):
    truth, ids = opened(one(tmp_path), "semantic")[0].truth, scene_ids()
    expected = np.full(SIZE, 255)
    for number, (category, _, _) in SCENE.items():
        expected[ids == number] = [entry["id"] for entry in CATEGORIES].index(category)
    assert type(truth) is SemanticMap and truth.classes.names == NAMES and np.array_equal(truth.labels, expected)


def test_the_areas_and_boxes_of_the_file_are_passed_over(tmp_path):
    """`info` states an area of 1 and the box of one pixel for all."""
    truth = opened(one(tmp_path), "instance")[0].truth
    assert truth.areas is None and truth.masks.areas().tolist() == [30, 42, 108]


def test_pictures_are_resized(tmp_path):
    sample = opened(one(tmp_path), short_side=10)[0]
    ids = scene_ids()[1::2, 1::2]
    assert sample.image.shape == (10, 15, 3)
    check_map(sample.truth, ids)


@pytest.mark.parametrize(
    ("entry", "value", "told"),
    [("category_id", "--5", "category_id '--5'"), ("iscrowd", "yes", "iscrowd 'yes'"), ("iscrowd", 2, "iscrowd 2")],
)
def test_values_that_mean_nothing_are_told(tmp_path, entry, value, told):
    segments = info()
    segments[0][entry] = value
    with pytest.raises(KirieError, match=told):
        opened(one(tmp_path, segments))


def test_a_category_is_a_thing_or_stuff(tmp_path):
    both = [*CATEGORIES, {**CATEGORIES[0], "isthing": 1 - CATEGORIES[0]["isthing"]}]
    with pytest.raises(KirieError, match="both a thing and stuff"):
        opened(one(tmp_path, categories=both))


@pytest.mark.parametrize("text", ["[]", '{"images": [{"id'])
def test_a_damaged_file_of_a_split_is_not_passed_over(tmp_path, text):
    one(tmp_path)
    (tmp_path / "panoptic.json").rename(tmp_path / "panoptic_val.json")
    (tmp_path / "panoptic_categories.json").write_text(text)  # of no split, and so none of the data set's
    assert len(opened(tmp_path)) == 1
    (tmp_path / "panoptic_train.json").write_text(text)
    with pytest.raises(KirieError, match=r"panoptic_train\.json is no sound JSON"):
        opened(tmp_path)


def test_settings(tmp_path):
    one(tmp_path)
    data = opened(tmp_path, ignore=(4, 7), classes=("water", "hound"))
    ids = scene_ids()
    assert data.classes.names == ("water", "hound") and data.classes.things == (False, True)
    assert np.array_equal(data[0].truth.ids, np.where(np.isin(ids, [3, 70_002]), ids, 0))
    with pytest.raises(KirieError, match=r"data\.classes has 1 names, but .* 4 categories"):
        opened(tmp_path, classes=("x",))
    with pytest.raises(KirieError, match=r"data\.ignore: \[3, 4, 7, 90\]"):
        opened(tmp_path, ignore=(3, 4, 7, 90))
    with pytest.raises(KirieError, match=r"data\.suffix .* COCO panoptic has no use"):
        opened(tmp_path, suffix="_x")


@pytest.mark.parametrize("change", ["color", "name"])
def test_colours_and_names_that_are_missing_or_repeat(tmp_path, change):
    categories = [dict(entry) for entry in CATEGORIES]
    if change == "color":
        del categories[2]["color"]
    else:
        categories[3]["name"] = "cat"
    classes = opened(one(tmp_path, categories=categories)).classes
    assert (classes.colors[1] == (200, 0, 9)) == (change == "name")
    assert classes.names == (NAMES if change == "color" else ("sky", "cat (7)", "sea", "cat (3)"))


# Where the files lie


def coco_own(root, split, inside):
    year = f"{split}2017"
    place = root / ("annotations/" if inside else "") / f"panoptic_{year}"
    write(root / "annotations" / f"panoptic_{year}.json", listing(["a.jpg"]))
    save(place / "a.png", colors(scene_ids()))
    picture(root / ("" if inside else "images") / year / "a.jpg")


def as_demo(root, split):
    write(root / f"panoptic_{split}.json", listing(["a.png"]))
    save(root / "panoptic" / split / "a.png", colors(scene_ids()))
    picture(root / "images" / split / "a.png")


LAYOUTS = {
    "COCO, PNG files beside the JSON": lambda root, split: coco_own(root, split, True),
    "COCO, PNG files above": lambda root, split: coco_own(root, split, False),
    "the demo": as_demo,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, name):
    for split in ("train", "val"):
        LAYOUTS[name](tmp_path, split)
    data = open_dataset(tmp_path, "val", task="panoptic")
    assert type(data) is CocoPanopticDataset and data.splits == ("train", "val") and data.unfound == ()
    assert len(data) == len(data.only("train")) == 1 and len(data.only(None)) == 2 and inspected(tmp_path).ok
    check_map(data[0].truth, scene_ids())
    assert "panoptic" not in data.file_facts(0)["image"] and "panoptic" in data.file_facts(0)["mask"]
    file = next(tmp_path.rglob("panoptic_val*.json"))
    alone = open_dataset(file)
    assert is_dataset(file) and type(alone) is CocoPanopticDataset and len(alone) == 1 and alone.splits == ("val",)
    assert open_dataset(tmp_path).task == "panoptic"


def test_other_names(tmp_path):
    """Any JSON name, any folder of PNG files, names of another machine."""
    picture(tmp_path / "photos" / "x" / "a.jpg")
    save(tmp_path / "segments" / "a.png", colors(scene_ids()))
    facts = listing(["C:\\data\\a.jpg"])
    facts["annotations"][0]["file_name"] = "/home/me/segments/a.png"
    write(tmp_path / "labels.json", facts)
    data = opened(tmp_path, masks="segments")
    assert type(data) is CocoPanopticDataset
    check_map(data[0].truth, scene_ids())
    with pytest.raises(KirieError, match=r"None of the 1 PNG file .* name their folder with data\.masks"):
        opened(tmp_path)
    (tmp_path / "segments").rename(tmp_path / "panoptic")
    for task in (None, "semantic", "instance"):
        assert type(opened(tmp_path, task)) is CocoPanopticDataset


def test_pictures_are_no_label_files_and_label_files_no_pictures(tmp_path):
    """Both are called a.png, and one of them is missing."""
    as_demo(tmp_path / "a", "train")
    (tmp_path / "a" / "images" / "train" / "a.png").unlink()
    with pytest.raises(KirieError, match="None of 1 picture"):
        open_dataset(tmp_path / "a", task="panoptic")
    as_demo(tmp_path / "b", "train")
    (tmp_path / "b" / "panoptic" / "train" / "a.png").unlink()
    with pytest.raises(KirieError, match="None of the 1 PNG file"):
        open_dataset(tmp_path / "b", task="panoptic")


def test_nothing_outside_is_read(tmp_path):
    root = one(tmp_path / "in")
    save(tmp_path / "b.png", colors(scene_ids()))
    facts = listing(["a.jpg", "c.jpg"])
    facts["annotations"][1]["file_name"] = "../../b.png"
    picture(root / "images" / "c.jpg")
    write(root / "panoptic.json", facts)
    with pytest.raises(KirieError, match=r"in/panoptic/b\.png"):
        opened(root)[1]


# Which format reads what


def with_masks(root):
    save(root / "masks" / "a.png", np.zeros(SIZE))
    write(root / "classes.json", {"classes": ["background", "x"]})


def with_instances(root):
    row = {"id": 1, "image_id": 1, "category_id": 7, "segmentation": [[1, 1, 9, 1, 9, 9]], "iscrowd": 0}
    images = [{"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}]
    write(root / "instances.json", {"images": images, "annotations": [row], "categories": CATEGORIES})


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ((), [CocoPanopticDataset] * 4),
        ((with_masks,), [FolderDataset, FolderDataset, CocoPanopticDataset, CocoPanopticDataset]),
        ((with_instances,), [CocoDataset, CocoDataset, CocoDataset, CocoPanopticDataset]),
        ((with_masks, with_instances), [FolderDataset, FolderDataset, CocoDataset, CocoPanopticDataset]),
    ],
)
def test_other_labels_go_before_unless_the_task_is_panoptic(tmp_path, more, expected):
    root = one(tmp_path)
    for add in more:
        add(root)
    assert [dataset_class(root, task=task) for task in (None, "semantic", "instance", "panoptic")] == expected
    assert type(open_dataset(root, task="panoptic")) is CocoPanopticDataset
    assert open_dataset(root, settings=FolderSettings(format="coco_panoptic")).task == "panoptic"


def test_neither_file_is_taken_for_the_other(tmp_path):
    root = one(tmp_path)
    with_instances(root)
    assert dataset_class(root / "panoptic.json") is CocoPanopticDataset
    assert dataset_class(root / "instances.json") is CocoDataset
    (root / "panoptic.json").rename(root / "instances_train.json")  # it is what is in a file that counts
    (root / "instances.json").rename(root / "panoptic_train.json")
    assert dataset_class(root / "instances_train.json") is CocoPanopticDataset
    assert dataset_class(root / "panoptic_train.json") is CocoDataset
    for name, form, why in (
        ("instances_train.json", "coco", "is a COCO panoptic file, expected one of instances"),
        ("panoptic_train.json", "coco_panoptic", r"the segments_info None; .* data\.format: coco reads"),
    ):
        with pytest.raises(KirieError, match=why):
            open_dataset(root / name, settings=FolderSettings(format=form))


def test_a_long_list_of_pictures_before_the_annotations(tmp_path):
    """What a file holds is found behind more than is read at once, also where a chunk cuts the word."""
    root = one(tmp_path)
    plain = json.dumps({"info": "", **listing(["a.jpg"])})
    for before in range(17):
        rest = 2**20 - before - plain.index('"segments_info"')
        text = plain.replace('"info": ""', f'"info": "{"x" * rest}"')
        assert text.index('"segments_info"') == 2**20 - before
        (root / "panoptic.json").write_text(text)
        assert dataset_class(root / "panoptic.json") is CocoPanopticDataset


def test_the_demo_is_one_truth_in_all_its_files(tmp_path):
    """Masks, ids, instances and panoptic files were written on roads of their own."""
    root = make_demo(tmp_path / "demo", pictures=5, size=(96, 128))
    expected = {None: FolderDataset, "semantic": FolderDataset, "instance": FolderDataset}
    assert {task: dataset_class(root, task=task) for task in expected} == expected
    panoptic, folders = (
        open_dataset(root, "train", task="panoptic", settings=FolderSettings(format=form))
        for form in ("coco_panoptic", "folders")
    )
    assert type(open_dataset(root, task="panoptic")) is CocoPanopticDataset
    masks, objects = (open_dataset(root, "train", task=task) for task in ("semantic", "instance"))
    assert panoptic.classes.names == folders.classes.names and panoptic.classes.things == folders.classes.things
    for index in range(len(panoptic)):
        truths = [data[index].truth for data in (panoptic, folders)]
        first, second = (
            sorted((s.label, s.is_thing, s.area, s.crowd, (t.ids == s.id).tobytes()) for s in t.segments)
            for t in truths
        )
        assert first == second and panoptic.name(index) == masks.name(index)
        semantic = open_dataset(root / "panoptic_train.json", task="semantic")[index].truth
        assert np.array_equal(semantic.labels, masks[index].truth.labels)
        things = open_dataset(root / "panoptic_train.json", task="instance")[index].truth
        assert np.array_equal(things.masks.dense(), objects[index].truth.masks.dense())


# Faults


def strange_pixels(root):
    ids = scene_ids()
    ids[0, :3], ids[1, 0] = 5, 6
    one(root, ids=ids)


def grey(root):
    one(root)
    save(root / "panoptic" / "a.png", np.full(SIZE, 100))


def grey_categories(root):
    one(root)
    save(root / "panoptic" / "a.png", np.where(scene_ids() == 256, 7, 4))


def palette(root):
    one(root)
    Image.fromarray(colors(scene_ids()).astype(np.uint8)).quantize(8).save(root / "panoptic" / "a.png")


def missing_file(root):
    one(root)
    picture(root / "images" / "b.jpg")
    write(root / "panoptic.json", listing(["b.jpg", "a.jpg"]))


def no_annotation(root):
    one(root)
    picture(root / "images" / "b.jpg")
    facts = listing(["b.jpg", "a.jpg"])
    del facts["annotations"][0]
    write(root / "panoptic.json", facts)


def other_size(root):
    one(root)
    picture(root / "images" / "a.jpg", (30, 20))


UNUSABLE = {
    "strange pixels": (strange_pixels, "pixels of no listed segment", r"does not list: 5 \(3 pixels\), 6 \(1 pixel\)"),
    "grey": (grey, "label file cannot be used", r"holds grey values or a palette, expected RGB colours.*segment\.$"),
    "palette": (palette, "label file cannot be used", "holds grey values or a palette"),
    "no file": (missing_file, "label file cannot be used", r"panoptic/b\.png"),
    "no annotation": (no_annotation, "picture without annotation", r"has no annotation of b\.jpg"),
    "other size": (other_size, "sizes differ", r"30 x 20 pixels \(H x W\) but .* is 20 x 30.*turned by 90"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_pictures_that_cannot_be_used(tmp_path, name):
    spoil, kind, why = UNUSABLE[name]
    spoil(tmp_path)
    for task in ("panoptic", "instance", "semantic"):
        data = opened(tmp_path, task)
        with pytest.raises(KirieError, match=why):
            data[len(data) - 1]
    assert ("fault", kind) in kinds(tmp_path) and not inspected(tmp_path).ok


def test_grey_values_that_are_categories_tell_classes_and_no_segments(tmp_path):
    grey_categories(tmp_path)
    for task in ("panoptic", "instance"):
        with pytest.raises(KirieError, match=r"among the categories of .* cannot be told apart.*data\.task semantic"):
            opened(tmp_path, task)[0]
    truth = opened(tmp_path, "semantic")[0].truth
    assert np.array_equal(truth.labels, np.where(scene_ids() == 256, NAMES.index("cat"), NAMES.index("sky")))
    assert inspected(tmp_path, "semantic").ok and not inspected(tmp_path).ok


def test_a_listed_segment_without_pixels_is_left_out(tmp_path):
    extra = {**SCENE, 77: (7, 0, (0, 0, 0, 0)), 78: (4, 0, (0, 0, 0, 0))}
    root = one(tmp_path, info(extra))
    check_map(opened(root)[0].truth, scene_ids())
    [note] = [f for f in inspected(root).faults if f.kind == "segment without pixels"]
    assert (
        note.severity == "note" and note.count == 2 and "2 listed segments" in note.what and "segment 77" in note.what
    )


def test_an_unknown_category(tmp_path):
    root = one(tmp_path, categories=CATEGORIES[:3])
    with pytest.raises(KirieError, match=r"category_id 3, which .* does not list.*data\.ignore: \[3\]"):
        opened(root)
    [fault] = [f for f in inspected(root).faults if f.severity == "fault"]
    assert fault.kind == "unknown category" and "1 segment of a category that it does not list (segment 3 of 3)" in (
        fault.what
    )
    ids = scene_ids()
    assert np.array_equal(opened(root, ignore=(3,))[0].truth.ids, np.where(ids == 3, 0, ids))


def test_a_stated_size_that_differs_is_a_fault(tmp_path):
    root = one(tmp_path, size=(21, 30))
    check_map(opened(root)[0].truth, scene_ids())
    assert ("fault", "stated size differs") in kinds(root)


def test_annotations_of_pictures_that_are_not_listed(tmp_path):
    facts = listing(["a.jpg", "b.jpg"])
    del facts["images"][1]
    root = one(tmp_path)
    write(root / "panoptic.json", facts)
    data = opened(root)
    assert len(data) == 1 and "1 of 2 annotations are of pictures that it does not list" in data.left_out[0]
    assert ("fault", "unknown picture") in kinds(root)
    [fault] = [f for f in inspected(root).faults if f.kind == "unknown picture"]
    assert "annotations[1] is of image_id 11" in fault.what


def changed(place, **values):
    """The listing of one picture with some values of the first entry in a list changed."""
    facts = listing(["a.jpg"])
    entry = facts["annotations"][0]["segments_info"][0] if place == "segment" else facts[place][0]
    entry.update(values)
    return facts


BROKEN = {
    "segment id 0": (changed("segment", id=0), r"segments_info\[0\] has the id 0; expected a whole number"),
    "segment id too large": (changed("segment", id=2**24), "has the id 16777216; expected"),
    "segment id is text": (changed("segment", id="x"), "has the id 'x'; expected"),
    "segment id twice": (changed("segment", id=256), "lists the segment 256 more than once"),
    "category is none": (changed("segment", category_id=None), "has the category_id None"),
    "no segments": (changed("annotations", segments_info=3), "has the segments_info 3; expected the list"),
    "a segment is a number": (changed("annotations", segments_info=[3]), r"segments_info\[0\] is 3; expected"),
    "no file name": (changed("annotations", file_name=""), "has the file_name ''"),
    "isthing": (changed("categories", isthing=2), r"\('sky'\) has the isthing 2; expected 1 for things"),
    "no isthing": (changed("categories", isthing=None), "has the isthing None"),
    "no categories": (listing(["a.jpg"], categories=[]), "lists no `categories`; expected the id, name and isthing"),
    "no images": ({**listing(["a.jpg"]), "images": []}, "has no labelled pictures"),
    "no list of images": ({"annotations": listing(["a.jpg"])["annotations"]}, "is no COCO panoptic file: it has"),
    "two annotations": (
        {**listing(["a.jpg"]), "annotations": listing(["a.jpg"])["annotations"] * 2},
        r"annotations\[0\] and \[1\] are both of a\.jpg",
    ),
    "cut": ('{"images": [], "annotations": [{"segments_info": [{', "no sound JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_cannot_be_used_are_told(tmp_path, name):
    facts, why = BROKEN[name]
    root = one(tmp_path)
    (root / "panoptic.json").write_text(facts if isinstance(facts, str) else json.dumps(facts))
    assert dataset_class(root / "panoptic.json") is CocoPanopticDataset
    with pytest.raises(KirieError, match=why) as caught:
        opened(root / "panoptic.json")
    assert "panoptic.json" in str(caught.value)
    assert inspect_dataset(root / "panoptic.json").faults[0].kind == "not understood"


def test_files_of_splits_that_disagree(tmp_path):
    for split in ("train", "val"):
        as_demo(tmp_path, split)
    categories = [{**entry, "isthing": 1} for entry in CATEGORIES]
    write(tmp_path / "panoptic_val.json", listing(["a.png"], categories=categories))
    with pytest.raises(KirieError, match=r"category 4 'sky' \(a thing\), and another .* calls it 'sky' \(stuff\)"):
        open_dataset(tmp_path, task="panoptic")


def test_without_things_there_are_no_objects(tmp_path):
    root = one(tmp_path, categories=[{**entry, "isthing": 0} for entry in CATEGORIES])
    assert not any(s.is_thing for s in opened(root)[0].truth.segments)
    with pytest.raises(KirieError, match="lists no things"):
        opened(root, "instance")


# Inspecting


def test_inspection_counts(tmp_path):
    root, ids = one(tmp_path), scene_ids()
    found = inspected(root)
    assert found.ok and (found.task, found.format, found.published) == ("panoptic", "panoptic", "")
    rows = [(e.name, e.pixels, e.images, e.instances) for e in found.classes]
    of = {name: int((ids == number).sum()) for name, number in (("sky", 16_777_215), ("sea", 70_002), ("dog", 3))}
    assert rows == [
        ("sky", of["sky"], 1, None),
        ("cat", 72, 1, 2),
        ("sea", of["sea"], 1, None),
        ("dog", of["dog"], 1, 0),
    ]
    assert found.void_share == 30 / 600 and found.crowds == 1 and found.per_image.median == 2
    assert (found.areas.least, found.areas.most) == (30, 42)
    assert found.classes[1].share == 72 / 570
    text = "\n".join(found.lines())
    assert "labels: panoptic, task panoptic" in text and "crowds, neither learned nor counted: 1 region" in text
    objects = inspected(root, "instance")
    assert [(e.name, e.pixels, e.instances) for e in objects.classes] == [("cat", 72, 2), ("dog", 108, 0)]
    semantic = inspected(root, "semantic")
    assert (semantic.task, [e.pixels for e in semantic.classes]) == ("semantic", [e.pixels for e in found.classes])
    assert [s.name for s in sheet_samples(open_dataset(root, task="panoptic"))] == ["images/a.jpg"]


def test_void_and_tiny_things_are_told(tmp_path):
    ids = np.zeros(SIZE, np.int64)
    ids[0, 0] = 256
    assert kinds(one(tmp_path, info({256: SCENE[256]}), ids)) == [("note", "nearly all void"), ("note", "tiny objects")]


# Large files and workers


def test_a_file_takes_the_space_of_its_numbers(tmp_path):
    count, each = 300, 40
    rows = [{"id": i + 1, "category_id": 7, "iscrowd": 0, "bbox": [0, 0, 1, 1], "area": 1} for i in range(each)]
    file = read_panoptic(write(tmp_path / "p.json", listing([f"{i}.jpg" for i in range(count)], rows)))
    arrays = [value for value in vars(file).values() if isinstance(value, np.ndarray)]
    assert len(file.segment_ids) == count * each
    assert sum(a.nbytes for a in arrays) <= count * each * 13 + count * 40 + 8
    assert len(pickle.dumps(file)) < count * each * 13 + count * 120 + 4000
    assert file.mask(299) == "299.png" and file.segments(299) == slice(299 * each, 300 * each)


def demo_loader(root, workers, size=(48, 64)):
    data = open_dataset(root, "train", task="panoptic")
    settings = AugmentSettings(flip_horizontal=0.5, shift_scale_rotate=1.0)
    plan = BatchPlan(len(data), 2, seed=3)
    return TrainingLoader(AugmentedSamples(data, settings, size, seed=3), plan, workers=workers)


def test_workers_hand_over_panoptic_maps(tmp_path):
    root = make_demo(tmp_path / "demo", pictures=8, size=(64, 80))
    batches = []
    for workers in (0, 2):
        loader = demo_loader(root, workers)
        batches.append(list(loader.epoch(0)))
        loader.close()
    for alone, ahead in zip(*batches, strict=True):
        assert alone.names == ahead.names and alone.images.equal(ahead.images)
        for first, second in zip(alone.truths, ahead.truths, strict=True):
            assert type(first) is type(second) is PanopticMap and first.size == (48, 64)
            assert np.array_equal(first.ids, second.ids) and first.segments == second.segments
            assert first.classes == second.classes and sum(s.area for s in first.segments) <= 48 * 64


def test_a_crop_beyond_the_edge_is_void(tmp_path):
    sample = opened(one(tmp_path))[0]
    image, truth = augment(sample.image, sample.truth, AugmentSettings(), np.random.default_rng(0), (40, 50))
    expected = np.zeros((40, 50), np.int64)
    expected[10:30, 10:40] = scene_ids()
    assert image.shape == (40, 50, 3)
    check_map(truth, expected)
    _, small = augment(sample.image, sample.truth, AugmentSettings(), np.random.default_rng(0), (6, 5))
    assert {s.id: s.area for s in small.segments} == {i: n for i, n in Counter(small.ids.ravel().tolist()).items() if i}


# Real data


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_listing_of_coco(shared, split):
    path = shared / "data" / "coco_panoptic" / "annotations" / f"panoptic_{split}2017.json"
    facts, data = json.loads(path.read_text()), open_dataset(shared / "data" / "coco_panoptic", split)
    assert type(data) is CocoPanopticDataset and data.task == "panoptic" and data.classes is COCO_PANOPTIC
    assert data.splits == ("train", "val") and data.unfound == () and data.left_out == ()
    names = {entry["id"]: entry["file_name"] for entry in facts["images"]}
    listed = {entry["image_id"]: entry for entry in facts["annotations"]}
    file = data.form.files[str(path)]
    assert len(data) == len(listed) == len(names)
    for index in range(len(data)):
        entry = listed[data.image_id(index)]
        assert data.name(index).endswith(f"{split}2017/{names[entry['image_id']]}")
        assert data.file_facts(index)["mask"] == str(path.with_suffix("") / entry["file_name"])
        rows = file.segments(data._pairs[index].row)
        found = zip(*(a[rows].tolist() for a in (file.segment_ids, file.category_ids, file.crowd)), strict=True)
        assert list(found) == [(s["id"], s["category_id"], s["iscrowd"]) for s in entry["segments_info"]]
    instance = open_dataset(shared / "data" / "coco_panoptic", split, task="instance")
    assert instance.classes == COCO_PANOPTIC.subset(range(80)) and len(instance) == len(data)


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_pictures_equal_pillow_and_the_json(shared, split):
    path = shared / "data" / "coco_panoptic" / "annotations" / f"panoptic_{split}2017.json"
    data = open_dataset(shared / "data" / "coco_panoptic", split)
    listed = {entry["image_id"]: entry for entry in json.loads(path.read_text())["annotations"]}
    if all(np.asarray(Image.open(data.file_facts(index)["mask"])).ndim == 2 for index in range(len(data))):
        pytest.skip("the PNG files of data/coco_panoptic hold category ids in grey, not the ids of segments")
    for index in range(len(data)):
        truth, ids = data[index].truth, ids_in(data.file_facts(index)["mask"])
        assert np.array_equal(truth.ids, ids)
        expected = [
            (s["id"], s["category_id"], s["area"], bool(s["iscrowd"]))
            for s in listed[data.image_id(index)]["segments_info"]
        ]
        assert [(s.id, data.classes.ids[s.label], s.area, s.crowd) for s in truth.segments] == expected


def test_painted_listings_of_coco(shared, tmp_path):
    """COCO's own segments, ids and crowds with the areas that it states, painted in rows of pixels."""
    path = shared / "data" / "coco_panoptic" / "annotations" / "panoptic_val2017.json"
    facts = json.loads(path.read_text())
    sizes = {entry["id"]: (entry["height"], entry["width"]) for entry in facts["images"]}
    for entry in facts["images"]:
        picture(tmp_path / "val2017" / entry["file_name"], sizes[entry["id"]])
    for entry in facts["annotations"]:
        size, rows = sizes[entry["image_id"]], entry["segments_info"]
        ids = np.repeat([s["id"] for s in rows], [s["area"] for s in rows])
        ids = np.pad(ids, (0, size[0] * size[1] - len(ids))).reshape(size)
        save(tmp_path / "annotations" / "panoptic_val2017" / entry["file_name"], colors(ids))
    write(tmp_path / "annotations" / "panoptic_val2017.json", facts)
    data = open_dataset(tmp_path, "val")
    listed = {entry["image_id"]: entry for entry in facts["annotations"]}
    assert data.classes is COCO_PANOPTIC and len(data) == 50
    for index in range(50):
        truth, entry = data[index].truth, listed[data.image_id(index)]
        assert np.array_equal(truth.ids, ids_in(data.file_facts(index)["mask"]))
        expected = [(s["id"], s["category_id"], s["area"], bool(s["iscrowd"])) for s in entry["segments_info"]]
        assert [(s.id, data.classes.ids[s.label], s.area, s.crowd) for s in truth.segments] == expected
    found = inspect_dataset(tmp_path)
    every = [s for entry in facts["annotations"] for s in entry["segments_info"]]
    assert found.ok and found.published == "COCO panoptic" and found.crowds == sum(s["iscrowd"] for s in every)
    things = {c["id"] for c in facts["categories"] if c["isthing"]}
    for entry, number in zip(found.classes, COCO_PANOPTIC.ids, strict=True):
        own = [s for s in every if s["category_id"] == number]
        assert entry.pixels == sum(s["area"] for s in own)
        holding = [e for e in facts["annotations"] if number in {s["category_id"] for s in e["segments_info"]}]
        assert entry.images == len(holding)
        assert entry.instances == (sum(not s["iscrowd"] for s in own) if number in things else None)
