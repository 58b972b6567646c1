"""Panoptic truth into files and back, and into the formats of objects and of classes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from scenes import coco_source, map_source, save_picture

import kirie
from kirie.class_lists import CITYSCAPES
from kirie.data import open_dataset
from kirie.data.coco_panoptic import CocoPanopticDataset
from kirie.data.inspect import inspect_dataset
from kirie.demo import make_demo
from kirie.errors import KirieError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools

SIZE = (30, 41)
CATEGORIES = [
    {"id": 21, "name": "vegetation", "isthing": 0, "color": [1, 2, 3]},
    {"id": 2, "name": "car", "isthing": 1, "color": [200, 0, 9]},
    {"id": 7, "name": "sky", "isthing": 0, "color": [0, 0, 255]},
    {"id": 90, "name": "person", "isthing": 1, "color": [9, 9, 9]},
]
PICTURES = {"train": ("b.jpg", "a.png"), "val": ("a.png",)}


def colors(ids):
    return np.stack([ids % 256, ids // 256 % 256, ids // 65_536], -1).astype(np.uint8)


def scene(seed):
    """Ids (H, W) in patches, and the category and the crowd flag of each; 0 is void."""
    rng = np.random.default_rng(seed)
    numbers = [*rng.choice(np.arange(1, 1 << 24), 6, replace=False).tolist(), 1 << 24]
    numbers[-1] -= 1  # the largest
    facts = {n: (CATEGORIES[i % 4]["id"], int(i == 5)) for i, n in enumerate(numbers)}  # a crowd of cars
    return np.kron(rng.choice([0, *numbers], (6, 41)), np.ones((5, 1), np.int64)).astype(np.int64), facts


@pytest.fixture
def source(tmp_path):
    """Two splits of COCO panoptic, written by hand."""
    root = tmp_path / "source"
    seed = 0
    for split, names in PICTURES.items():
        images, annotations = [], []
        for name in names:
            seed += 1
            ids, facts = scene(seed)
            save_picture(root / "images" / split / name, seed)
            place = root / "panoptic" / split / f"{name[:-4]}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(colors(ids)).save(place)
            images.append({"id": seed, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
            there = {n: fact for n, fact in facts.items() if (ids == n).any()}
            rows = [{"id": n, "category_id": category, "iscrowd": crowd} for n, (category, crowd) in there.items()]
            annotations.append({"image_id": seed, "file_name": place.name, "segments_info": rows})
        values = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (root / f"panoptic_{split}.json").write_text(json.dumps(values))
    return root


def by_picture(path, split=None):
    """The truths of a data set by the bytes of its pictures."""
    dataset = open_dataset(path, split, task="panoptic")
    files = [Path(dataset.file_facts(index)["image"]) for index in range(len(dataset))]
    return {file.read_bytes(): dataset[index].truth for index, file in enumerate(files)}


def alike(truth):
    """A truth without the numbers of its segments."""
    names = truth.classes.names
    return sorted((names[s.label], s.is_thing, s.crowd, s.area, (truth.ids == s.id).tobytes()) for s in truth.segments)


def check_same(first, second, split):
    found, expected = by_picture(second, split), by_picture(first, split)
    assert found.keys() == expected.keys() and expected
    for picture, truth in expected.items():
        assert np.array_equal(found[picture].ids, truth.ids) and found[picture].segments == truth.segments


def test_there_and_back_is_the_very_same(source, tmp_path):
    done = kirie.convert(source, tmp_path / "out", "coco_panoptic")
    assert done.splits == {"train": 2, "val": 1} and done.notes == () and done.title == "COCO panoptic"
    assert not list(done.path.rglob(".*"))
    dataset = open_dataset(done.path)
    assert type(dataset) is CocoPanopticDataset and dataset.splits == ("train", "val")
    assert dataset.classes == open_dataset(source).classes and dataset.classes.ids == (21, 2, 7, 90)
    for split in PICTURES:
        check_same(source, done.path, split)
    assert inspect_dataset(done.path).ok
    again = kirie.convert(done.path, tmp_path / "again", "coco_panoptic").path
    for split in PICTURES:
        assert (again / f"panoptic_{split}.json").read_bytes() == (done.path / f"panoptic_{split}.json").read_bytes()
    assert done.objects == sum(
        s.is_thing and not s.crowd for truth in by_picture(source).values() for s in truth.segments
    )


def test_the_files_are_those_of_the_format(source, tmp_path):
    """By the rule of the colours and by the pixels of the source."""
    done = kirie.convert(source, tmp_path / "out", "coco_panoptic")
    facts = json.loads((done.path / "panoptic_train.json").read_text())
    assert facts["categories"] == [{**c, "supercategory": c["name"]} for c in CATEGORIES]
    files = {entry["id"]: entry for entry in facts["images"]}
    seeds = {"b.jpg": 1, "a.png": 2}
    for entry in facts["annotations"]:
        image = files[entry["image_id"]]
        ids, known = scene(seeds[image["file_name"]])
        assert (image["height"], image["width"]) == SIZE and entry["file_name"] == f"{image['file_name'][:-4]}.png"
        pixels = np.asarray(Image.open(done.path / "panoptic" / "train" / entry["file_name"]))
        assert np.array_equal(pixels, colors(ids))
        for row in entry["segments_info"]:
            rows, columns = np.nonzero(ids == row["id"])
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert row["bbox"] == box and row["area"] == len(rows)
            assert (row["category_id"], row["iscrowd"]) == known[row["id"]]
        assert len(entry["segments_info"]) == len(set(np.unique(ids)) - {0})


def test_things_become_instances(source, tmp_path):
    done = kirie.convert(source, tmp_path / "out", "coco")
    assert "Stuff is left out, as COCO instances holds objects alone." in done.notes
    file = COCO(done.path / "instances_train.json")
    assert [(c["id"], c["name"]) for c in file.cats.values()] == [(2, "car"), (90, "person")]
    for image in file.imgs.values():
        ids, known = scene({"b.jpg": 1, "a.png": 2}[image["file_name"]])
        expected = {
            ((ids == n).tobytes(), category, crowd)
            for n, (category, crowd) in known.items()
            if category in (2, 90) and (ids == n).any()
        }
        rows = file.loadAnns(file.getAnnIds(image["id"]))
        assert {(file.annToMask(r).astype(bool).tobytes(), r["category_id"], r["iscrowd"]) for r in rows} == expected
        assert len(rows) == len(expected) > 2 and any(r["iscrowd"] for r in rows)
    same = kirie.convert(source, tmp_path / "asked", "coco", task="instance")
    assert same.notes == () and same.objects == done.objects
    assert kirie.convert(source, tmp_path / "too", "coco", task="panoptic").objects == done.objects


@pytest.mark.parametrize("task", [None, "semantic", "panoptic"])
def test_all_become_classes(source, tmp_path, task):
    done = kirie.convert(source, tmp_path / "out", "masks", task=task)
    assert ("Objects are no longer told apart" in " ".join(done.notes)) == (task != "semantic")
    for name, seed in (("b", 1), ("a", 2)):
        ids, known = scene(seed)
        expected = np.zeros(SIZE, np.uint8)
        for number, (category, _) in known.items():
            expected[ids == number] = category
        assert np.array_equal(np.asarray(Image.open(done.path / "masks" / "train" / f"{name}.png")), expected)
    semantic = open_dataset(source, "train", task="semantic")
    back = open_dataset(done.path, "train")
    assert back.classes == semantic.classes
    of = {name: next(i for i in range(2) if back.name(i) == name) for name in map(semantic.name, range(2))}
    for index in range(2):
        assert np.array_equal(back[of[semantic.name(index)]].truth.labels, semantic[index].truth.labels)


@pytest.mark.parametrize("form", ["voc", "cityscapes"])
def test_formats_of_objects_and_classes_hold_both(source, tmp_path, form):
    """What they hold is panoptic truth too, if with numbers of their own."""
    done = kirie.convert(source, tmp_path / "out", form)
    found, expected = by_picture(done.path), by_picture(source)
    assert found.keys() == expected.keys()
    for picture, truth in expected.items():
        # Stuff of several segments becomes one, as these formats have one number for a class.
        assert merged(found[picture]) == merged(truth)


def merged(truth):
    """Objects as they are, and the pixels of each class without objects in one; crowds are of no number either."""
    regions = {}
    for index, s in enumerate(truth.segments):
        single = s.is_thing and not s.crowd
        key = (truth.classes.names[s.label], s.is_thing, s.crowd, index if single else -1)
        regions[key] = regions.get(key, False) | (truth.ids == s.id)
    return sorted((*key[:3], mask.tobytes()) for key, mask in regions.items())


def instance_ids(seed):
    values = [7, 21, 23, 24, 26, 24000, 24001, 26003, 26017, 33000, 29001, 30, 14, 0, 4]
    return np.kron(np.random.default_rng(seed).choice(np.array(values, np.uint16), (6, 41)), np.ones((5, 1), np.uint16))


def test_cityscapes_there_and_back(tmp_path):
    root = tmp_path / "city"
    for seed, split in enumerate(("train", "train", "val")):
        stem = f"{split}/ulm/ulm_{seed:06}_000019"
        save_picture(root / "leftImg8bit" / f"{stem}_leftImg8bit.png", seed)
        (root / "gtFine" / f"{split}/ulm").mkdir(parents=True, exist_ok=True)
        Image.fromarray(instance_ids(seed)).save(root / "gtFine" / f"{stem}_gtFine_instanceIds.png")
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(root / "gtFine" / f"{stem}_gtFine_labelIds.png")
    done = kirie.convert(root, tmp_path / "coco", "coco_panoptic")
    assert done.splits == {"train": 2, "val": 1} and done.notes == ()
    categories = json.loads((done.path / "panoptic_val.json").read_text())["categories"]
    rows = zip(CITYSCAPES.ids, CITYSCAPES.names, CITYSCAPES.things, strict=True)
    assert [(c["id"], c["name"], bool(c["isthing"])) for c in categories] == list(rows)
    for split in ("train", "val"):
        check_same(root, done.path, split)
    back = kirie.convert(done.path, tmp_path / "back", "cityscapes")
    found, expected = by_picture(back.path), by_picture(root)
    assert found.keys() == expected.keys() and len(expected) == 3
    assert all(alike(found[picture]) == alike(truth) for picture, truth in expected.items())


def test_the_demo_becomes_the_same_from_ids_and_masks(tmp_path):
    root = make_demo(tmp_path / "demo", pictures=5, size=(64, 80))
    for name in ("train", "val", "test"):
        (root / f"panoptic_{name}.json").unlink()
    done = kirie.convert(root, tmp_path / "out", "coco_panoptic")
    found, expected = by_picture(done.path), by_picture(make_demo(tmp_path / "whole", pictures=5, size=(64, 80)))
    assert found.keys() == expected.keys() and len(found) == 5
    assert all(alike(found[picture]) == alike(truth) for picture, truth in expected.items())


def test_a_set_without_splits_stays_without(source, tmp_path):
    root = tmp_path / "pool"
    root.mkdir()
    for folder in ("images", "panoptic"):
        (source / folder / "train").rename(root / folder)
    (source / "panoptic_train.json").rename(root / "panoptic.json")
    done = kirie.convert(root, tmp_path / "out", "coco_panoptic")
    assert done.splits == {"": 2} and (done.path / "panoptic" / "b.png").is_file()
    check_same(root, done.path, None)


def test_what_is_no_panoptic_truth_is_refused(tmp_path):
    coco, maps = coco_source(tmp_path / "coco"), tmp_path / "maps"
    map_source(maps)
    for path, words in (
        (coco, r"no panoptic truth.*fits --to coco\."),
        (maps, r"no panoptic truth.*fits --to masks\."),
    ):
        with pytest.raises(KirieError, match=words):
            kirie.convert(path, tmp_path / "out", "coco_panoptic")
    with pytest.raises(KirieError, match=r"was to be read for task 'instance'; leave the task out, or say panoptic"):
        kirie.convert(coco, tmp_path / "out", "coco_panoptic", task="instance")
    with pytest.raises(KirieError, match="no panoptic truth"):
        kirie.convert(coco, tmp_path / "out", "ids", task="panoptic")
    assert not (tmp_path / "out").exists()


def test_bad_pictures_are_left_out_whole(source, tmp_path):
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(source / "panoptic" / "train" / "a.png")
    with pytest.raises(KirieError, match="holds grey values"):
        kirie.convert(source, tmp_path / "out", "coco_panoptic")
    done = kirie.convert(source, tmp_path / "out", "coco_panoptic", skip_bad=True)
    assert done.splits == {"train": 1, "val": 1} and len(done.skipped) == 1
    facts = json.loads((done.path / "panoptic_train.json").read_text())
    assert [len(facts[part]) for part in ("images", "annotations")] == [1, 1]
