"""Every format there and back: the same truths, by kirie's readers and by programs that are not kirie's."""

import json

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO
from scenes import NAMES, NUMBERS, SCENES, SIZE, box, coco_source, known, map_source, pictures_of, read, save_picture
from skimage.draw import polygon2mask
from skimage.measure import label as connected

import kirie
from kirie.class_lists import ADE20K, CITYSCAPES, VOC
from kirie.data import open_dataset
from kirie.data.inspect import inspect_dataset

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return coco_source(tmp_path_factory.mktemp("data") / "source")


@pytest.fixture(scope="module")
def converted(source):
    """The scenes in a format, made once."""
    made = {}

    def converted_to(name, **options):
        key = name, *options
        if key not in made:
            made[key] = kirie.convert(source, source.parent / "-".join(key), name, **options)
        return made[key]

    return converted_to


def expected_of(source, split, **options):
    return {(source / "images" / split / name).read_bytes(): known(split, name, **options) for name in SCENES[split]}


@pytest.mark.parametrize(
    ("name", "crowds", "options"),
    [
        ("coco", True, {}),
        ("coco", True, {"polygons": True}),
        ("cityscapes", True, {}),
        ("ids", False, {}),
        ("yolo", False, {}),
        ("voc", False, {}),
    ],
)
@pytest.mark.parametrize("split", list(SCENES))
def test_objects_come_back_exactly(source, converted, name, split, crowds, options):
    done = converted(name, **options)
    assert done.splits == {split: len(pictures) for split, pictures in SCENES.items()}
    assert not list(done.path.rglob(".*"))
    assert inspect_dataset(done.path, task="instance").ok
    dataset = open_dataset(done.path, task="instance")
    assert dataset.splits == tuple(SCENES) and dataset.unfound == () and dataset.left_out == ()
    assert [name for name in dataset.classes.names if name in NAMES] == (
        list(NAMES) if name != "cityscapes" else sorted(NAMES, key=CITYSCAPES.index)
    )
    found, expected = pictures_of(done.path, split), expected_of(source, split, crowds=crowds)
    assert found.keys() == expected.keys()
    for picture, objects in expected.items():
        in_order = name in ("coco", "yolo", "ids", "voc")
        assert found[picture] == objects if in_order else sorted(found[picture]) == sorted(objects)


def test_round_the_world(source, tmp_path):
    last = source
    for number, name in enumerate(["yolo", "voc", "ids", "coco", "cityscapes", "coco"]):
        last = kirie.convert(last, tmp_path / str(number), name, task="instance").path
    for split in SCENES:
        expected = expected_of(source, split, crowds=False)
        assert {k: sorted(v) for k, v in pictures_of(last, split).items()} == {
            k: sorted(v) for k, v in expected.items()
        }


# COCO


@pytest.mark.parametrize("options", [{}, {"polygons": True}])
def test_pycocotools_reads_coco(converted, options):
    done = converted("coco", **options)
    assert done.objects == 10
    for split, pictures in SCENES.items():
        file = COCO(done.path / f"instances_{split}.json")
        assert [(c["id"], c["name"]) for c in file.loadCats(file.getCatIds())] == list(zip(NUMBERS, NAMES, strict=True))
        assert sorted(file.imgs) == list(range(1, len(pictures) + 1))
        assert sorted(file.anns) == list(range(1, len(file.anns) + 1))
        for image in file.imgs.values():
            assert (image["height"], image["width"]) == SIZE
            assert (done.path / "images" / split / image["file_name"]).is_file()
            rows = file.loadAnns(file.getAnnIds(image["id"]))
            objects = pictures[image["file_name"]]
            assert len(rows) == len(objects)
            for row, (name, mask, crowd) in zip(rows, objects, strict=True):
                assert np.array_equal(file.annToMask(row), mask)
                assert file.cats[row["category_id"]]["name"] == name and row["iscrowd"] == crowd
                assert row["area"] == mask.sum()
                assert row["bbox"] == list(cv2.boundingRect(mask.astype(np.uint8)))
                assert isinstance(row["segmentation"], list) == bool(options and not crowd)
                if options and not crowd:
                    assert len(row["segmentation"]) == connected(mask, connectivity=1).max()


def test_boxes_and_areas_that_the_file_states_are_kept(source, tmp_path):
    facts = json.loads((source / "instances_test.json").read_text())
    facts["annotations"][0] |= {"area": 1190.25, "bbox": [0.1, 0.33, 40.17, 29.0]}
    save_picture(tmp_path / "in" / "images" / "test" / "0001.jpg")
    (tmp_path / "in" / "instances_test.json").write_text(json.dumps(facts))
    kirie.convert(tmp_path / "in", tmp_path / "out", "coco")
    [row] = json.loads((tmp_path / "out" / "instances_test.json").read_text())["annotations"]
    assert row["area"] == 1190.25 and np.allclose(row["bbox"], [0.1, 0.33, 40.17, 29.0], atol=1e-5)
    assert len(str(row["bbox"][0])) < 6, "a float32 in its own digits"


def test_class_numbers_from_0_become_category_ids_from_1(converted, tmp_path):
    done = kirie.convert(converted("yolo").path, tmp_path / "out", "coco")
    categories = json.loads((done.path / "instances_train.json").read_text())["categories"]
    assert [(c["id"], c["name"]) for c in categories] == list(enumerate(NAMES, 1))
    told = "The categories are 1, 2, 3... in the new files, in the order of the classes."
    assert told in done.notes and told not in converted("coco").notes


# YOLO


def yolo_lines(path):
    return [
        (int(line.split()[0]), np.array(line.split()[1:], float).reshape(-1, 2))
        for line in path.read_text().splitlines()
    ]


def test_other_programs_fill_yolo_polygons(converted):
    done = converted("yolo")
    config = yaml.safe_load((done.path / "data.yaml").read_text("utf-8"))
    assert config == {s: f"images/{s}" for s in SCENES} | {"names": dict(enumerate(NAMES))}
    ious = []
    for split, pictures in SCENES.items():
        for name, objects in pictures.items():
            stem = name.rpartition(".")[0]
            lines = yolo_lines(done.path / "labels" / split / f"{stem}.txt")
            singles = [(label, mask) for label, mask, crowd in objects if not crowd]
            assert [NAMES[label] for label, _ in lines] == [label for label, _ in singles]
            for (_, shares), (_, mask) in zip(lines, singles, strict=True):
                assert shares.min() >= 0 and shares.max() <= 1
                corners = shares * SIZE[::-1]
                assert np.abs(corners - corners.round()).max() < 1e-4
                # Of scikit-image's pixels the centres have whole coordinates; a little off, no bridge meets a centre.
                assert np.array_equal(polygon2mask(SIZE, corners[:, ::-1] - 0.5 + (1e-3, 2e-3)), mask)
                painted = cv2.fillPoly(np.zeros(SIZE, np.uint8), [corners.round().astype(np.int32)], 1).astype(bool)
                ious.append((painted & mask).sum() / (painted | mask).sum())
    assert np.median(ious) > 0.5 and max(ious) == 1  # a line's width is much to objects of a few pixels


def test_yolo_holds_no_crowds_and_no_pool(converted, tmp_path):
    assert [n for n in converted("yolo").notes if "crowd" in n] == [
        "1 crowd region left out, since YOLO files cannot mark them."
    ]
    root = tmp_path / "pool"
    save_picture(root / "images" / "a.png")
    (root / "ids").mkdir()
    Image.fromarray(box(2, 3, 4, 5).astype(np.uint16)).save(root / "ids" / "a.png")
    done = kirie.convert(root, tmp_path / "out", "yolo")
    assert done.notes == ("All pictures are in train, since YOLO has a folder for each split.",)
    assert (tmp_path / "out" / "images" / "train" / "a.png").is_file()
    assert yolo_lines(tmp_path / "out" / "labels" / "train" / "a.txt")[0][0] == 0


# Object ids, VOC, Cityscapes


def test_files_of_object_ids(converted):
    root = converted("ids").path
    ids = np.array(Image.open(root / "ids" / "train" / "köln 一.png"))
    assert ids.dtype == np.uint16 and np.unique(ids).tolist() == list(range(7))
    masks = np.array(Image.open(root / "masks" / "train" / "köln 一.png"))
    for number, (label, mask, _) in enumerate(SCENES["train"]["köln 一.jpg"], 1):
        assert np.array_equal(ids == number, mask)
        assert set(masks[mask]) == {NUMBERS[NAMES.index(label)]}
    assert not masks[ids == 0].any()


def test_one_class_needs_no_masks_beside(tmp_path):
    root = tmp_path / "source"
    ids = np.zeros(SIZE, np.uint16)
    ids[box(1, 1, 4, 4)], ids[box(1, 5, 4, 4)] = 700, 12
    save_picture(root / "images" / "a.png")
    (root / "ids").mkdir()
    Image.fromarray(ids).save(root / "ids" / "a.png")
    (root / "classes.json").write_text(json.dumps({"classes": ["Kern"], "colors": [[1, 2, 3]], "things": ["Kern"]}))
    done = kirie.convert(root, tmp_path / "out", "ids")
    assert sorted(p.name for p in done.path.iterdir()) == ["classes.json", "ids", "images"] and done.objects == 2
    before, after = open_dataset(root), open_dataset(done.path)
    assert after.classes == before.classes and after.splits == () and read(after, 0) == read(before, 0)


def test_voc_files(converted):
    done = converted("voc")
    lists = {p.stem: set(p.read_text("utf-8").splitlines()) for p in (done.path / "ImageSets/Segmentation").iterdir()}
    # Two splits have a picture 0001, and all lie in one folder: so all names begin with their split.
    assert lists == {"train": {"train_köln 一", "train_a.b"}, "val": {"val_0001"}, "test": {"test_0001"}}
    labels = Image.open(done.path / "SegmentationClass" / "val_0001.png")
    objects = Image.open(done.path / "SegmentationObject" / "val_0001.png")
    assert labels.mode == objects.mode == "P" and objects.getpalette()[:3] == [0, 0, 0]
    crowd, car, person = (mask for _, mask, _ in SCENES["val"]["0001.png"])
    labels, objects = np.array(labels), np.array(objects)
    assert np.array_equal(labels, 2 * crowd + 2 * car + person)
    assert np.array_equal(objects, 255 * crowd + car + 2 * person)
    text = (done.path / "labelmap.txt").read_text("utf-8")
    assert [line.split(":")[0] for line in text.splitlines()[1:]] == ["background", *NAMES]
    assert "2 pictures kept in another format than JPEG" in " ".join(done.notes)


def test_classes_of_voc_need_no_table(tmp_path):
    root = tmp_path / "in"
    maps = map_source(root, classes=VOC.names, ids=tuple(range(21)), void=255)
    table = {"classes": VOC.names, "colors": VOC.colors, "things": VOC.names[1:], "ignore_index": 255}
    (root / "classes.json").write_text(json.dumps(table))
    done = kirie.convert(root, tmp_path / "out", "voc")
    assert not (done.path / "classes.json").exists() and not (done.path / "labelmap.txt").exists()
    dataset = open_dataset(done.path)
    assert dataset.classes == VOC and dataset.task == "semantic"
    for index in range(len(dataset)):
        [numbers] = [maps[key] for key in maps if key[1] in dataset.name(index)]
        assert np.array_equal(dataset[index].truth.labels, numbers)


def test_cityscapes_files(converted):
    done = converted("cityscapes")
    ids = np.array(Image.open(done.path / "gtFine/val/pictures/0001_gtFine_instanceIds.png"))
    labels = Image.open(done.path / "gtFine/val/pictures/0001_gtFine_labelIds.png")
    assert labels.mode == "L" and ids.dtype == np.uint16
    crowd, car, person = (mask for _, mask, _ in SCENES["val"]["0001.png"])
    assert np.array_equal(ids, 26 * crowd + 26000 * car + 24000 * person)
    assert np.array_equal(np.array(labels), 26 * crowd + 26 * car + 24 * person)
    assert "The background becomes unlabeled (0), which is void." in done.notes


def test_objects_of_classes_that_have_none_in_cityscapes(tmp_path):
    facts = {"train": {"a.png": [("person", box(0, 0, 3, 3), False), ("car", box(4, 4, 5, 5), False)]}}
    coco_source(tmp_path / "in", facts)
    file = tmp_path / "in" / "instances_train.json"
    file.write_text(file.read_text().replace('"person"', '"building"'))
    done = kirie.convert(tmp_path / "in", tmp_path / "out", "cityscapes")
    assert "1 object of classes without objects in Cityscapes, kept as class alone." in done.notes
    ids = np.array(Image.open(done.path / "gtFine/train/pictures/a_gtFine_instanceIds.png"))
    assert done.objects == 1 and np.array_equal(ids, 11 * box(0, 0, 3, 3) + 26000 * box(4, 4, 5, 5))


def test_class_names_that_are_no_text_in_utf_8(tmp_path):
    coco_source(tmp_path / "in", {"train": {"a.png": [("car", box(4, 4, 5, 5), False)]}})
    file = tmp_path / "in" / "instances_train.json"
    file.write_text(file.read_text().replace('"person"', '"\\ud800 \\u4e00"'))
    for name in ("coco", "ids", "voc", "masks"):
        done = kirie.convert(tmp_path / "in", tmp_path / name, name)
        assert "\ud800 一" in open_dataset(done.path).classes.names


def test_cities_are_kept(tmp_path):
    root = tmp_path / "in"
    numbers = np.random.default_rng(0).choice(np.array([0, 7, 11, 26], np.uint8), SIZE)
    place = root / "gtFine" / "train" / "aachen" / "aachen_000000_000019_gtFine_labelIds.png"
    place.parent.mkdir(parents=True)
    Image.fromarray(numbers).save(place)
    save_picture(root / "leftImg8bit" / "train" / "aachen" / "aachen_000000_000019_leftImg8bit.png")
    masks = kirie.convert(root, tmp_path / "masks", "masks").path
    again = kirie.convert(masks, tmp_path / "again", "cityscapes").path
    files = lambda at: {p.relative_to(at).as_posix(): p for p in at.rglob("*.png")}  # noqa: E731
    assert files(again).keys() == files(root).keys()
    for name, path in files(again).items():
        assert np.array_equal(np.array(Image.open(path)), np.array(Image.open(root / name)))
    assert open_dataset(again).classes == CITYSCAPES


# Maps of classes


@pytest.mark.parametrize("splits", [("train", "val"), ("",)])
@pytest.mark.parametrize("name", ["masks", "voc"])
def test_maps_come_back_exactly(tmp_path, name, splits):
    maps = map_source(tmp_path / "in", splits)
    done = kirie.convert(tmp_path / "in", tmp_path / "out", name)
    before, after = open_dataset(tmp_path / "in"), open_dataset(done.path)
    assert after.splits == before.splits == (splits if splits[0] else ())
    assert (after.classes.names, after.classes.colors) == (before.classes.names, before.classes.colors)
    if name == "masks":
        assert after.classes == before.classes
        for (split, stem), numbers in maps.items():
            image = Image.open(tmp_path / "out" / "masks" / split / f"{stem}.png")
            assert image.mode == "P" and np.array_equal(np.array(image), numbers)
            assert image.getpalette()[3 * 26 : 3 * 26 + 3] == [200, 0, 1]
    else:
        assert "The numbers of the classes are 0, 1, 2... in the new files, in their order." in done.notes
    for split in splits:
        old, new = before.only(split or None), after.only(split or None)
        stems = [new.name(i).rpartition("/")[2] for i in range(len(new))]
        assert stems == [old.name(i).rpartition("/")[2] for i in range(len(old))]
        assert all(np.array_equal(old[i].truth.labels, new[i].truth.labels) for i in range(len(old)))


def test_a_pool_keeps_the_splits_that_the_seed_draws(tmp_path):
    map_source(tmp_path / "in", ("",))
    for name in ("masks", "voc"):
        kirie.convert(tmp_path / "in", tmp_path / name, name)
        for split in ("train", "val"):
            drawn = [open_dataset(tmp_path / where, split) for where in ("in", name)]
            stems = [[d.name(i).rpartition("/")[2] for i in range(len(d))] for d in drawn]
            assert stems[0] == stems[1]
    done = kirie.convert(tmp_path / "in", tmp_path / "drawn", "masks", draw_splits=True)
    counts = {split: len(open_dataset(tmp_path / "in", split)) for split in ("train", "val")}
    assert done.splits == counts and open_dataset(done.path).splits == ("train", "val")


def test_numbers_above_255_need_16_bits(tmp_path):
    maps = map_source(tmp_path / "in")
    for split, stem in maps:
        place = tmp_path / "in" / "masks" / split / f"{stem}.png"
        numbers = maps[split, stem].astype(np.uint16)
        Image.fromarray(np.where(numbers == 26, 300, numbers).astype(np.uint16)).save(place)
    table = json.loads((tmp_path / "in" / "classes.json").read_text()) | {"ids": [7, 300, 3]}
    (tmp_path / "in" / "classes.json").write_text(json.dumps(table))
    kirie.convert(tmp_path / "in", tmp_path / "out", "masks")
    before, after = open_dataset(tmp_path / "in"), open_dataset(tmp_path / "out")
    assert after.classes == before.classes and after.classes.ids == (7, 300, 3)
    assert np.array_equal(before[0].truth.labels, after[0].truth.labels)


def test_binary_masks(tmp_path):
    root = tmp_path / "in"
    save_picture(root / "images" / "a.png")
    (root / "masks").mkdir()
    Image.fromarray(255 * box(2, 3, 9, 9).astype(np.uint8)).save(root / "masks" / "a.png")
    kirie.convert(root, tmp_path / "out", "masks")
    before, after = open_dataset(root), open_dataset(tmp_path / "out")
    assert after.classes == before.classes and after.classes.ids == (0, 255)
    assert np.array_equal(before[0].truth.labels, after[0].truth.labels)


def test_ade20k(tmp_path):
    maps = map_source(tmp_path / "in", classes=("sky", "wall", "tree"), ids=(7, 26, 3))
    done = kirie.convert(tmp_path / "in", tmp_path / "out", "ade20k")
    dataset = open_dataset(done.path)
    assert type(dataset).__name__ == "Ade20kDataset" and dataset.splits == ("train", "val")
    assert dataset.classes == ADE20K
    numbers = np.array(Image.open(tmp_path / "out" / "annotations" / "training" / "train0.png"))
    expected = np.zeros(256, int)
    expected[[7, 26, 3]] = [3, 1, 5]  # of the benchmark: wall 1, sky 3, tree 5
    assert np.array_equal(numbers, expected[maps["train", "train0"]])


def test_objects_become_maps_with_the_smaller_on_top(tmp_path):
    large, small = box(0, 0, 20, 20), box(5, 5, 4, 4)
    hidden = box(6, 6, 2, 2)
    scene = {"train": {"a.png": [("car", hidden, False), ("person", small, False), ("bicycle", large, False)]}}
    scene["train"]["a.png"].append(("car", box(5, 5, 30, 30), True))
    coco_source(tmp_path / "in", scene)
    done = kirie.convert(tmp_path / "in", tmp_path / "out", "masks")
    numbers = np.array(Image.open(done.path / "masks" / "train" / "a.png"))
    assert (numbers[small & ~hidden] == 4).all() and (numbers[hidden] == 9).all()
    assert (numbers[large & ~small] == 2).all() and numbers[25, 25] == 9 and numbers[0, 30] == 0
    assert done.notes == (
        "Objects are no longer told apart, as folders of index masks has classes alone.",
        "1 picture with objects that overlap: the smaller lies on top.",
    )
    assert open_dataset(done.path).classes.names == ("background", *NAMES)


def test_objects_that_others_cover_are_told(tmp_path):
    scene = {"train": {"a.png": [("car", box(0, 0, 4, 4), False), ("car", box(0, 0, 4, 4), False)]}}
    coco_source(tmp_path / "in", scene)
    done = kirie.convert(tmp_path / "in", tmp_path / "ids", "ids")
    assert done.objects == 1 and "1 object left out, since others cover all of it." in done.notes
    assert kirie.convert(tmp_path / "in", tmp_path / "coco", "coco").objects == 2


def test_real_data_come_back(shared, tmp_path):
    source = shared / "data" / "coco"
    kirie.convert(source, tmp_path / "out", "coco", polygons=True, link=True)
    for split in ("train", "val"):
        old, new = open_dataset(source, split), open_dataset(tmp_path / "out", split)
        assert len(old) == len(new) > 50
        for index in range(len(old)):
            a, b = old[index].truth, new[index].truth
            assert a.masks.rles() == b.masks.rles() and a.labels.tolist() == b.labels.tolist()
            assert np.array_equal(a.areas, b.areas) and np.array_equal(a.boxes, b.boxes)
            assert np.array_equal(a.crowd, b.crowd)
        assert new.classes.names == old.classes.names and new.classes.ids == old.classes.ids
