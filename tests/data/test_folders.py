import json
import pickle
import sys

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools import mask as coco_mask

import kirie.data as data_formats
from kirie.classes import Classes
from kirie.data import open_dataset
from kirie.data.folders import FolderDataset, FolderSettings, resize_truth, resized_size
from kirie.data.pair_table import PairTable
from kirie.data.splits import seeded_split
from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.results import Instances, PanopticMap, Segment, SemanticMap

RNG = np.random.default_rng(1)
SIZE = (12, 16)
STREET = ["sky", "road", "car"]


def picture(path, size=SIZE, exif=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    more = {"exif": exif} if exif else {}
    Image.fromarray(RNG.integers(0, 256, (*size, 3), np.uint8)).save(path, **more)


def mask(path, pixels, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.asarray(pixels)
    if pixels.dtype == np.uint16:
        cv2.imwrite(str(path), pixels)
        return
    image = Image.fromarray(pixels.astype(np.uint8))
    if palette:
        image = image.convert("P")
        image.putpalette(palette)
    image.save(path)


def index_mask(top=3):
    pixels = RNG.integers(0, top, SIZE, np.uint8)
    pixels[0, :top] = range(top)
    return pixels


def binary_mask(high=255):
    pixels = np.zeros(SIZE, np.uint8)
    pixels[3:7, 4:9] = high
    return pixels


def table(root, **values):
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.json").write_text(json.dumps(values))


# Layouts


def _layout_a(root):
    for split, count in (("train", 3), ("validation", 2)):
        for i in range(count):
            picture(root / "images" / split / f"{split}{i}.jpg")
            mask(root / "masks" / split / f"{split}{i}.png", index_mask())


def _layout_b(root):
    for split, count in (("train", 3), ("valid", 2)):
        for i in range(count):
            picture(root / split / "images" / f"{split}{i}.jpg")
            mask(root / split / "labels" / f"{split}{i}.png", index_mask())


def _layout_c(root):
    for i in range(5):
        picture(root / "images" / f"a{i}.jpg")
        mask(root / "gt" / f"a{i}.png", index_mask())
    (root / "train.txt").write_text("a0\na1.jpg\n\n# a comment\nimages/a2.jpg\n")
    (root / "val.txt").write_text("a3\na4\n")


def _layout_d(root):
    for split, count in (("train", 3), ("val", 2)):
        for i in range(count):
            folder = root / split / f"cell.{split}{i}"
            picture(folder / "images" / "x.png")
            for j in range(2):
                mask(folder / "masks" / f"{j}.png", binary_mask())


def _layout_e(root):
    for split, count in (("train", 3), ("val", 2)):
        for i in range(count):
            picture(root / split / f"a{i}.jpg")
            mask(root / split / f"a{i}_mask.png", index_mask())


@pytest.mark.parametrize("write", [_layout_a, _layout_b, _layout_c, _layout_d, _layout_e])
def test_layouts_are_recognised(tmp_path, write):
    write(tmp_path)
    train, val, every = (FolderDataset(tmp_path, split) for split in ("train", "validation", None))
    assert (len(train), len(val), len(every)) == (3, 2, 5)
    assert train.splits == ("train", "val") and val.split == "val"
    names = [data.name(i) for data in (train, val) for i in range(len(data))]
    assert sorted(names) == [every.name(i) for i in range(5)]
    for data in (train, val):
        for i in range(len(data)):
            sample = data[i]
            assert sample.image.shape == (*SIZE, 3) and sample.truth.size == SIZE and sample.name == data.name(i)
            assert (tmp_path / sample.name).exists()
            assert set(data.file_facts(i)) == {"image", "mask"}
    assert len(pickle.loads(pickle.dumps(train))) == 3
    with pytest.raises(IndexError):
        train[3]


def test_the_right_mask_comes_with_each_picture(tmp_path):
    for i in range(4):
        picture(tmp_path / "images" / f"p.{i}.jpg")
        mask(tmp_path / "masks" / f"p.{i}.png", np.full(SIZE, i))
    data = FolderDataset(tmp_path)
    assert [int(data[i].truth.labels[0, 0]) for i in range(4)] == [0, 1, 2, 3]


def test_one_folder_per_picture_without_splits(tmp_path):
    for name in ("x", "y"):
        picture(tmp_path / name / "images" / f"{name}.png")
        mask(tmp_path / name / "masks" / "1.png", binary_mask())
    data = FolderDataset(tmp_path)
    assert [data.name(i) for i in range(2)] == ["x", "y"] and data.form.kind == "instance_folders"


def test_suffix_and_folder_names_can_be_said(tmp_path):
    picture(tmp_path / "photos" / "a.jpg")
    picture(tmp_path / "photos" / "b.jpg")
    mask(tmp_path / "truth" / "a.manual.png", binary_mask())
    mask(tmp_path / "truth" / "b.manual.png", binary_mask())
    settings = FolderSettings(images="photos", masks="truth", suffix=".manual")
    assert len(FolderDataset(tmp_path, settings=settings)) == 2
    assert FolderDataset(tmp_path, settings=settings)[0].truth.labels.sum() == 20
    with pytest.raises(KirieError, match="no folder 'fotos'"):
        FolderDataset(tmp_path, settings=FolderSettings(images="fotos"))


def test_masks_beside_pictures_in_the_images_folder(tmp_path):
    picture(tmp_path / "images" / "a.jpg")
    mask(tmp_path / "images" / "a_gt.png", binary_mask())
    assert len(FolderDataset(tmp_path)) == 1


def test_masks_or_ids_by_task(tmp_path):
    picture(tmp_path / "images" / "a.jpg")
    mask(tmp_path / "masks" / "a.png", binary_mask())
    mask(tmp_path / "ids" / "a.png", np.array([[0, 1, 2, 5]] * 4, np.uint8))
    picture(tmp_path / "images" / "a.jpg", (4, 4))
    mask(tmp_path / "masks" / "a.png", binary_mask()[:4, :4])
    semantic, instance = (open_dataset(tmp_path, task=task)[0].truth for task in ("semantic", "instance"))
    assert isinstance(semantic, SemanticMap) and isinstance(instance, Instances) and len(instance) == 3
    assert isinstance(open_dataset(tmp_path)[0].truth, SemanticMap)


# Splits


def _many(root, names):
    for name in names:
        picture(root / "images" / f"{name}.jpg", (4, 4))
        mask(root / "masks" / f"{name}.png", np.eye(4))


def _names(root, split, **settings):
    data = FolderDataset(root, split, settings=FolderSettings(**settings))
    return {data.name(i) for i in range(len(data))}


def test_a_new_picture_moves_no_other(tmp_path):
    _many(tmp_path, [f"p{i}" for i in range(40)])
    before = {split: _names(tmp_path, split, test_fraction=0.2) for split in ("train", "val", "test")}
    assert sum(map(len, before.values())) == 40 and not before["train"] & before["val"]
    _many(tmp_path, ["a-new-one", "zz"])
    for split, names in before.items():
        assert names <= _names(tmp_path, split, test_fraction=0.2)
    assert before["val"] != _names(tmp_path, "val", test_fraction=0.2, seed=1)


def test_seeded_shares_hold_on_average():
    drawn = [seeded_split(f"{i}", 3, 0.2, 0.1) for i in range(20000)]
    assert abs(drawn.count("val") / 20000 - 0.2) < 0.01 and abs(drawn.count("test") / 20000 - 0.1) < 0.01


def test_groups_stay_together(tmp_path):
    _many(tmp_path, [f"patient{p}_{i}" for p in range(8) for i in range(3)])
    for split in ("train", "val"):
        names = _names(tmp_path, split, group=r"(patient\d+)_", val_fraction=0.5)
        patients = {name.split("_")[0] for name in names}
        assert len(names) == 3 * len(patients) and patients
    with pytest.raises(KirieError, match="parentheses"):
        FolderDataset(tmp_path, settings=FolderSettings(group=r"patient\d"))
    with pytest.raises(KirieError, match="no regular expression"):
        FolderDataset(tmp_path, settings=FolderSettings(group="("))


def test_a_split_opened_as_a_folder_is_whole(tmp_path):
    _layout_b(tmp_path)
    table(tmp_path, classes=["a", "b", "c"])
    data = FolderDataset(tmp_path / "valid", "val")
    assert len(data) == 2 and data.classes.names == ("a", "b", "c")


def test_missing_split_says_which_there_are(tmp_path):
    _layout_a(tmp_path)
    with pytest.raises(KirieError, match=r"no pictures in split test \(train 3, val 2;"):
        FolderDataset(tmp_path, "test")
    with pytest.raises(KirieError, match="no split 'dev'"):
        FolderDataset(tmp_path, "dev")


def test_a_picture_in_two_lists_is_an_error(tmp_path):
    _layout_c(tmp_path)
    (tmp_path / "test.txt").write_text("a0\n")
    with pytest.raises(KirieError, match="lists of both"):
        FolderDataset(tmp_path)


# Kinds and classes


def one(root, pixels, folder="masks", task=None, palette=None, size=None, **settings):
    picture(root / "images" / "a.png", size or np.asarray(pixels).shape[:2])
    mask(root / folder / "a.png", pixels, palette)
    return FolderDataset(root, task=task, settings=FolderSettings(**settings))


def test_index_with_a_table(tmp_path):
    pixels = index_mask()
    pixels[5, 5] = 9
    table(tmp_path, classes=STREET, ignore_index=9, things=["car"])
    data = one(tmp_path, pixels)
    labels = data[0].truth.labels
    assert data.form.kind == "index" and data.task == "semantic" and data.classes.things == (False, False, True)
    assert labels[5, 5] == data.classes.void == 255
    assert np.array_equal(labels[labels != 255], pixels[pixels != 9])


def test_index_with_ids_of_its_own_and_a_list_of_void(tmp_path):
    table(tmp_path, classes=STREET, ids=[7, 11, 26], ignore_index=[0, 255])
    data = one(tmp_path, np.array([[0, 7], [11, 26], [255, 7]]))
    assert data[0].truth.labels.tolist() == [[255, 0], [1, 2], [255, 0]]


def test_index_without_a_table_takes_the_ids_that_occur(tmp_path):
    data = one(tmp_path, np.array([[0, 3], [7, 255]]))
    assert data.classes.names == ("class 0", "class 3", "class 7") and data.classes.ids == (0, 3, 7)
    assert data[0].truth.labels.tolist() == [[0, 1], [2, 255]]


def test_classes_txt_and_settings(tmp_path):
    (tmp_path / "classes.txt").write_text("sky\nroad\n\ncar\n")
    data = one(tmp_path, np.array([[0, 1], [2, 255]]))
    assert data.classes.names == ("sky", "road", "car")
    data = one(tmp_path, np.array([[0, 1], [2, 9]]), classes=("a", "b", "c"), ignore=(9,))
    assert data.classes.names == ("a", "b", "c") and data[0].truth.labels[1, 1] == 255


@pytest.mark.parametrize("name", ["classes.txt", "class_names.txt"])
def test_tables_of_names(tmp_path, name):
    (tmp_path / name).write_text("_background_\nroad\ncar\n")
    data = one(tmp_path, index_mask())
    assert data.classes.names == ("background", "road", "car")
    (tmp_path / name).write_text("a\na\n")
    with pytest.raises(KirieError, match=rf"{name} repeats a under classes"):
        one(tmp_path, index_mask())


def test_a_label_map(tmp_path):
    """As CVAT writes it; the colours may be greys, which a mask of three equal channels shows as numbers."""
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", "a:b:100,100,100::", "car:250,50,50:wheel:move"]
    (tmp_path / "labelmap.txt").write_text("\n".join([*lines, "ignored:200,200,200::", ""]))
    colors = np.array([[0, 0, 0], [100, 100, 100], [250, 50, 50], [200, 200, 200]], np.uint8)
    index = index_mask() % 3
    for pixels in (index, np.where(index == 2, 3, index), np.minimum(index, 1)):
        data = one(tmp_path, colors[pixels])
        assert data.form.kind == "colour" and data.classes.names == ("background", "a:b", "car")
        assert data.classes.colors == ((0, 0, 0), (100, 100, 100), (250, 50, 50))
        assert np.array_equal(data[0].truth.labels, np.where(pixels == 3, 255, pixels))
    for line in ("car", "car:1,2::", "car:1,2,300::", "car:a,b,c::"):
        (tmp_path / "labelmap.txt").write_text(line)
        with pytest.raises(KirieError, match=r"labelmap\.txt has the line 'car.*expected name:red,green,blue"):
            one(tmp_path, colors[index])


def test_a_label_map_of_black_and_white(tmp_path):
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\ncrack:255,255,255::\n")
    data = one(tmp_path, np.dstack([binary_mask(255)] * 3))
    assert data.classes.names == ("background", "crack") and data[0].truth.labels.sum() == 20


def test_palette_colours_become_class_colours(tmp_path):
    palette = [0, 0, 0, 128, 0, 0, 0, 128, 0] + [9] * 759
    data = one(tmp_path, np.array([[0, 1], [2, 255]]), palette=palette)
    assert data.form.kind == "index" and data.classes.colors == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    assert data[0].truth.labels.tolist() == [[0, 1], [2, 255]]


@pytest.mark.parametrize("high", [1, 255])
def test_binary(tmp_path, high):
    data = one(tmp_path, binary_mask(high))
    assert data.form.kind == "binary" and data.classes.names == ("background", "foreground")
    assert np.array_equal(data[0].truth.labels, binary_mask(1))


def test_binary_of_one_bit_and_with_a_name(tmp_path):
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(binary_mask() > 0).save(tmp_path / "masks" / "a.png")
    (tmp_path / "classes.txt").write_text("coin\n")
    data = FolderDataset(tmp_path)
    assert data.classes.names == ("background", "coin") and data[0].truth.labels.sum() == 20


def test_binary_saved_as_colours(tmp_path):
    data = one(tmp_path, np.dstack([binary_mask()] * 3))
    assert data.form.kind == "binary" and data[0].truth.labels.sum() == 20


def test_void_of_255_beside_zero_and_one(tmp_path):
    data = one(tmp_path, np.array([[0, 1], [1, 255]]))
    assert data.classes.names == ("background", "foreground") and data[0].truth.labels[1, 1] == 255


def test_colour_coded(tmp_path):
    colors = np.array([[70, 130, 180], [128, 64, 128], [0, 0, 142]], np.uint8)
    index = index_mask()
    pixels = colors[index]
    pixels[2, 2] = (1, 2, 3)
    table(tmp_path, classes=STREET, colors=colors.tolist(), ignore_colors=[[1, 2, 3]])
    data = one(tmp_path, pixels)
    labels = data[0].truth.labels
    assert data.form.kind == "colour" and labels[2, 2] == 255
    assert np.array_equal(np.delete(labels.ravel(), 2 * 16 + 2), np.delete(index.ravel(), 2 * 16 + 2))
    pixels[0, 0] = (9, 9, 9)
    mask(tmp_path / "masks" / "a.png", pixels)
    with pytest.raises(KirieError, match=r"holds colours that are no class: \(9, 9, 9\) \(1 pixel\)"):
        data[0]


def test_colours_without_a_table_show_the_table_to_write(tmp_path):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:3] = (10, 20, 30)
    with pytest.raises(KirieError, match=r"hold 2 colours, most often \(10, 20, 30\)") as caught:
        one(tmp_path, pixels)
    shown = str(caught.value).split("classes.json as ")[1].split("; colours")[0]
    table(tmp_path, **json.loads(shown))
    assert FolderDataset(tmp_path)[0].truth.labels[3, 3] == 1


@pytest.mark.parametrize(("folder", "dtype"), [("masks", np.uint16), ("ids", np.uint8), ("instances", np.uint16)])
def test_object_ids(tmp_path, folder, dtype):
    pixels = np.zeros(SIZE, dtype)
    pixels[1:4, 2:5], pixels[6:9, 1:3], pixels[6:9, 3:5] = 1, 7, 200
    data = one(tmp_path, pixels, folder)
    truth = data[0].truth
    assert data.task == "instance" and data.classes == Classes(("object",), things=(True,))
    assert truth.masks.areas().tolist() == [9, 6, 6] and truth.labels.tolist() == [0, 0, 0]
    assert truth.boxes.tolist() == [[2, 1, 5, 4], [1, 6, 3, 9], [3, 6, 5, 9]]
    semantic = FolderDataset(tmp_path, task="semantic")
    assert semantic.classes.names == ("background", "object") == semantic[0].truth.classes.names
    assert np.array_equal(semantic[0].truth.labels, pixels > 0)


def test_the_thing_of_a_table_names_the_objects(tmp_path):
    table(tmp_path, classes=["background", "road", "coin"], things=["coin"])
    assert one(tmp_path, np.eye(4, dtype=np.uint16), "ids").classes.names == ("coin",)
    table(tmp_path, classes=["coin", "note"])
    with pytest.raises(KirieError, match="tell objects apart but not their classes"):
        FolderDataset(tmp_path)


def test_a_file_per_object_may_overlap(tmp_path):
    picture(tmp_path / "a" / "images" / "a.png")
    first, second, empty = np.zeros((3, *SIZE), np.uint8)
    first[2:6, 2:6], second[4:8, 4:8] = 255, 255
    for name, pixels in {"1": first, "2": second, "3": empty}.items():
        mask(tmp_path / "a" / "masks" / f"{name}.png", pixels)
    truth = FolderDataset(tmp_path)[0].truth
    assert np.array_equal(truth.masks.dense(), np.stack([first, second]) > 0)


def test_a_folder_of_objects_beside_the_pictures(tmp_path):
    picture(tmp_path / "images" / "a.png")
    mask(tmp_path / "masks" / "a" / "1.png", binary_mask())
    data = FolderDataset(tmp_path)
    assert data.form.kind == "instance_folders" and len(data[0].truth) == 1


def test_a_picture_without_objects_is_a_sample(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / name / "images" / "a.png")
        (tmp_path / name / "masks").mkdir()
    mask(tmp_path / "b" / "masks" / "1.png", binary_mask())
    data = FolderDataset(tmp_path)
    assert len(data[0].truth) == 0 and data[0].truth.size == SIZE and len(data[1].truth) == 1


def test_instance_task_on_semantic_masks_says_why(tmp_path):
    with pytest.raises(KirieError, match="not which object it belongs to"):
        one(tmp_path, index_mask(), task="instance")
    with pytest.raises(KirieError, match="no panoptic truth"):
        FolderDataset(tmp_path, task="panoptic")
    with pytest.raises(KirieError, match="no task 'detect'"):
        FolderDataset(tmp_path, task="detect")


# Sampled label files that say nothing


@pytest.mark.parametrize(
    ("last", "kind", "value"),
    [
        (np.full(SIZE, 255), "binary", 1),
        (np.full(SIZE, 1), "binary", 1),
        (np.full(SIZE, 7, np.uint16), "ids", None),
        (index_mask(4), "index", None),
    ],
)
@pytest.mark.parametrize("told", ["auto", "binary"])
def test_a_kind_is_not_judged_from_empty_masks(tmp_path, last, kind, value, told):
    """Twenty masks, of which only the second holds anything; the eight that are sampled do not include it."""
    for i in range(20):
        picture(tmp_path / "images" / f"p{i:02}.png")
        mask(tmp_path / "masks" / f"p{i:02}.png", last if i == 1 else np.zeros(SIZE, last.dtype))
    if told == "binary" and kind != "binary":
        return
    data = FolderDataset(tmp_path, settings=FolderSettings(kind=told))
    assert data.form.kind == kind
    if value is not None:
        assert (data[1].truth.labels == value).all() and not data[0].truth.labels.any()


def test_a_kind_is_not_judged_from_void_masks(tmp_path):
    for i in range(20):
        picture(tmp_path / "images" / f"p{i:02}.png")
        mask(tmp_path / "masks" / f"p{i:02}.png", np.eye(*SIZE) if i == 1 else np.full(SIZE, 255))
    data = FolderDataset(tmp_path)
    assert (data[0].truth.labels == data.classes.void).all()
    assert np.array_equal(data[1].truth.labels, np.eye(*SIZE))


def test_only_takes_another_split_without_reading(tmp_path, monkeypatch):
    _layout_a(tmp_path)
    train = FolderDataset(tmp_path, "train", settings=FolderSettings(short_side=6))
    val, every = FolderDataset(tmp_path, "val", settings=train.settings), FolderDataset(tmp_path)
    monkeypatch.setattr("kirie.data.labels.read_label_file", lambda path: pytest.fail(f"{path} was read"))
    same, whole = train.only("validation"), train.only("val").only(None)
    monkeypatch.undo()
    assert [same.name(i) for i in range(len(same))] == [val.name(i) for i in range(len(val))]
    assert (same.split, same.classes, same.form, same.task) == ("val", val.classes, val.form, val.task)
    assert np.array_equal(same[1].image, val[1].image) and same[1].truth.size == (6, 8)
    assert train.only("val", own_size=True)[0].truth.size == SIZE
    assert (len(train), len(whole), whole.split) == (3, len(every), None) and train[0].truth.size == (6, 8)
    with pytest.raises(KirieError, match="no pictures in split test"):
        train.only("test")


# Faults of samples


def test_unknown_ids_are_counted(tmp_path):
    table(tmp_path, classes=STREET)
    pixels = np.zeros(SIZE, np.uint8)
    pixels[0, :5], pixels[1, :2] = 6, 9
    data = one(tmp_path, pixels)
    with pytest.raises(
        KirieError, match=r"a\.png holds ids that are no class: 6 \(5 pixels\), 9 \(2 pixels\)"
    ) as caught:
        data[0]
    assert "0 sky, 1 road, 2 car" in str(caught.value) and "ignore_index" in str(caught.value)


def test_smoothed_masks_are_refused(tmp_path):
    smooth = np.arange(200, dtype=np.uint8).reshape(10, 20)
    with pytest.raises(KirieError, match="200 different ids"):
        one(tmp_path, smooth)


def test_sizes_must_agree(tmp_path):
    data = one(tmp_path, index_mask(), size=(16, 12))
    with pytest.raises(KirieError, match=r"a\.png is 16 x 12 .* is 12 x 16\. It looks turned"):
        data[0]


def test_a_turned_jpeg_fits_a_mask_that_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "images" / "a.jpg", (16, 12), exif)
    mask(tmp_path / "masks" / "a.png", index_mask())
    sample = FolderDataset(tmp_path)[0]
    assert sample.image.shape[:2] == sample.truth.size == SIZE


def test_missing_masks(tmp_path):
    picture(tmp_path / "images" / "a.jpg")
    with pytest.raises(KirieError, match="has 1 picture but no label file for any"):
        FolderDataset(tmp_path)
    picture(tmp_path / "images" / "b.jpg")
    mask(tmp_path / "masks" / "b.png", binary_mask())
    data = FolderDataset(tmp_path)
    assert data[1].truth.labels.sum() == 20
    with pytest.raises(KirieError, match=r"a\.jpg has no label file"):
        data[0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "cannot be read as a table"),
        ('{"names": []}', "must hold"),
        ('{"classes": ["a"], "color": []}', "unknown entries"),
        ('{"classes": ["a"], "colors": [[1, 2]]}', "expected a colour"),
        ('{"classes": ["a"], "things": ["b"]}', "not among its classes"),
        ('{"classes": [1]}', "expected a name"),
        ('{"classes": ["a"], "ignore_index": "x"}', "expected a whole number"),
        ('{"classes": ["a", "b", "c"], "ids": [1, 2]}', "names 3 classes but gives 2 ids"),
        ('{"classes": ["a", "b"], "colors": [[0, 0, 0]]}', "names 2 classes but gives 1 colors"),
        ('{"classes": ["a", "a"]}', "repeats a under classes"),
        ('{"classes": ["a", "b"], "ids": [4, 4]}', "repeats 4 under ids"),
        ('{"classes": ["a", "b"], "ids": [-1, 2]}', r"has \[-1\] under ids"),
        ('{"classes": ["a", "b"], "ids": [1, 99999999999]}', r"has \[99999999999\] under ids"),
        ('{"classes": ["a", "b"], "ignore_index": -100}', r"has \[-100\] under ignore_index"),
        ('{"classes": ["a", "b"], "ids": [3, 4], "ignore_index": [4, 255]}', "under ids and under ignore_index"),
        ('{"classes": ["a", "b", "c"], "ignore_index": 1}', r"1 would be both a class and void \(1 is b\)"),
    ],
)
def test_broken_class_tables(tmp_path, text, why):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(KirieError, match=why) as caught:
        one(tmp_path, index_mask())
    assert "classes.json" in str(caught.value)


def test_open_dataset_shows_the_layouts(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name, why in {"none": "no folder", "file": "is a file", "empty": "is empty"}.items():
        with pytest.raises(KirieError, match=why) as caught:
            open_dataset(tmp_path / name)
        assert "DATA/masks/train/a.png" in str(caught.value)


class _Special:
    """A format that only a folder with a file `special` is in."""

    def __init__(self, path, split, *, task, settings):
        self.opened = path, split, task, settings

    @staticmethod
    def recognises(path, task=None, settings=None):
        return (path / "special").exists()


def test_the_first_format_that_recognises_a_folder_opens_it(tmp_path, monkeypatch):
    rows = {"special": f"{__name__}:_Special", **data_formats.DATASETS}
    monkeypatch.setattr(data_formats, "DATASETS", rows)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[_Special.__module__])
    _layout_a(tmp_path)
    assert type(open_dataset(tmp_path)) is FolderDataset
    (tmp_path / "special").touch()
    assert open_dataset(tmp_path, "val", task="instance").opened == (tmp_path, "val", "instance", None)


def test_a_pool_without_a_split_says_what_to_change(tmp_path):
    _many(tmp_path, ["a", "b", "c", "d"])
    with pytest.raises(KirieError, match=r"set data\.test_fraction"):
        FolderDataset(tmp_path, "test")
    with pytest.raises(KirieError, match=r"set data\.val_fraction"):
        FolderDataset(tmp_path, "val", settings=FolderSettings(val_fraction=0))
    with pytest.raises(KirieError, match=r"lower data\.val_fraction"):
        FolderDataset(tmp_path, "train", settings=FolderSettings(val_fraction=1))
    _layout_a(tmp_path / "seed")
    with pytest.raises(KirieError, match="add the folder or list of test"):
        FolderDataset(tmp_path / "seed", "test")


def test_an_unlucky_draw_names_a_better_seed(tmp_path):
    _many(tmp_path, ["a", "b"])
    drawn = [seeded_split(name, 0, 0.2, 0) for name in "ab"]
    assert drawn == ["train", "train"]
    with pytest.raises(KirieError, match=r"Of 2 pictures seed 0 draws none for val\. Set data\.seed: \d+") as caught:
        FolderDataset(tmp_path, "val")
    seed = int(str(caught.value).split("data.seed: ")[1].split(",")[0])
    for split in ("train", "val"):
        assert len(FolderDataset(tmp_path, split, settings=FolderSettings(seed=seed))) == 1
    (tmp_path / "images" / "b.jpg").unlink()
    with pytest.raises(KirieError, match=r"Of 1 picture seed 0 draws none for val\. Add pictures"):
        FolderDataset(tmp_path, "val")


@pytest.mark.parametrize("how", ["folder", "list"])
def test_an_empty_split_is_named(tmp_path, how):
    (_layout_a if how == "folder" else _layout_c)(tmp_path)
    if how == "folder":
        (tmp_path / "images" / "test").mkdir()
    else:
        (tmp_path / "test.txt").write_text("# nothing yet\n")
    with pytest.raises(KirieError, match=r"test holds no pictures|test\.txt names no picture"):
        FolderDataset(tmp_path, "test")
    assert len(FolderDataset(tmp_path, "train")) == 3


def test_a_format_can_be_named(tmp_path):
    _layout_a(tmp_path)
    assert type(open_dataset(tmp_path, settings=FolderSettings(format="folders"))) is FolderDataset
    with pytest.raises(KirieError, match=r"data\.format is 'tiff'; expected one of voc, cityscapes, ade20k, coco"):
        open_dataset(tmp_path, settings=FolderSettings(format="tiff"))


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "rle"},
        {"val_fraction": 0.8, "test_fraction": 0.4},
        {"val_fraction": -0.1},
        {"short_side": 0},
    ],
)
def test_settings_are_checked(settings):
    with pytest.raises(KirieError, match=r"data\.|fraction"):
        FolderSettings(**settings)


@pytest.mark.parametrize("number", [-1, 70000])
def test_numbers_that_no_label_file_holds_cannot_be_ignored(tmp_path, number):
    _layout_a(tmp_path)
    with pytest.raises(KirieError, match=rf"data\.ignore holds \[{number}\]; label files hold numbers in 0\.\.65535"):
        FolderDataset(tmp_path, settings=FolderSettings(ignore=(number,)))


def test_the_paths_are_arrays_that_workers_share(tmp_path):
    _many(tmp_path, ["a", "b", "c"])
    dataset = pickle.loads(pickle.dumps(FolderDataset(tmp_path)))
    assert all(isinstance(pairs, PairTable) for pairs in (dataset._pairs, dataset._layout.pairs))
    assert list(dataset._layout.pairs) == list(FolderDataset.find_layout(tmp_path, FolderSettings(), None).pairs)


# Size


def test_short_side(tmp_path):
    pixels = np.repeat(np.repeat(np.arange(6).reshape(2, 3), 20, 0), 20, 1).astype(np.uint8)
    data = one(tmp_path, pixels, short_side=10)
    sample = data[0]
    assert sample.image.shape == (10, 15, 3) and sample.truth.size == (10, 15)
    assert np.array_equal(sample.truth.labels, pixels[2::4, 2::4])
    large = FolderDataset(tmp_path, settings=FolderSettings(short_side=80))[0]
    assert np.array_equal(large.truth.labels, np.repeat(np.repeat(pixels, 2, 0), 2, 1))


@pytest.mark.parametrize("size", [(7, 9), (33, 21), (12, 40)])
def test_objects_are_resized_as_a_label_map_is(size):
    ids = np.zeros((20, 25), np.uint8)
    ids[2:9, 3:11], ids[10:19, 12:25], ids[0, 0] = 1, 2, 3
    classes = Classes(("object",), things=(True,))
    found = resize_truth(Instances.from_masks(Masks.from_ids(ids), [0, 0, 0], classes), size)
    names = Classes.numbered(4)
    resized = resize_truth(SemanticMap(ids, names), size).labels
    expected = cv2.resize(ids, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    assert np.array_equal(resized, expected)
    assert np.array_equal(found.masks.dense(), np.stack([expected == i for i in (1, 2, 3) if (expected == i).any()]))


@pytest.mark.parametrize("size", [(7, 9), (33, 21), (12, 40)])
def test_segments_are_resized_as_a_label_map_is(size):
    ids = np.zeros((20, 25), np.int32)
    ids[2:9, 3:11], ids[10:19, 12:25], ids[0, 0] = 70_000, 2, 3
    facts = {70_000: (1, False), 2: (1, True), 3: (0, False)}
    segments = [Segment(i, label, label == 1, 1.0, int((ids == i).sum()), crowd) for i, (label, crowd) in facts.items()]
    found = resize_truth(PanopticMap(ids, tuple(segments), Classes(("sky", "car"), things=(False, True))), size)
    ranks = np.where(ids == 70_000, 1, ids).astype(np.uint8)
    expected = cv2.resize(ranks, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(np.int32)
    expected[expected == 1] = 70_000
    assert np.array_equal(found.ids, expected)
    kept = {i: facts[i] for i in facts if (expected == i).any()}
    assert {s.id: (s.label, s.crowd) for s in found.segments} == kept
    assert all(s.area == (expected == s.id).sum() and s.is_thing == (s.label == 1) for s in found.segments)


def test_pictures_of_many_channels_are_resized(tmp_path):
    pixels = RNG.integers(0, 256, (*SIZE, 7), np.uint8)
    mask(tmp_path / "masks" / "a.png", index_mask())
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images" / "a.tif", pixels, photometric="minisblack", planarconfig="contig")
    image = FolderDataset(tmp_path, settings=FolderSettings(channels=7, short_side=6))[0].image
    means = pixels.reshape(6, 2, 8, 2, 7).mean((1, 3))
    assert image.shape == (6, 8, 7) and np.abs(image - means).max() <= 0.5


# Real data


def test_street(shared):
    data = shared / "data" / "street"
    train, val = FolderDataset(data, "train"), FolderDataset(data, "val")
    assert (len(train), len(val), len(train.classes), train.classes.void_ids) == (367, 101, 11, (11,))
    sample = val[0]
    raw = np.asarray(Image.open(val.file_facts(0)["mask"]))
    assert np.array_equal(sample.truth.labels, np.where(raw == 11, 255, raw))
    assert np.array_equal(sample.image, np.asarray(Image.open(val.file_facts(0)["image"])))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_nuclei_agree_with_their_coco_file(shared):
    root = shared / "data" / "nuclei"
    train, val = FolderDataset(root, "train"), FolderDataset(root, "val")
    assert (len(train), len(val), val.task, val.form.kind) == (300, 60, "instance", "ids")
    coco = json.loads((root / "instances_val.json").read_text())
    numbers = {entry["file_name"]: entry["id"] for entry in coco["images"]}
    for index in (0, 20, 59):
        truth = val[index].truth
        wanted = [a for a in coco["annotations"] if a["image_id"] == numbers[val.name(index).rsplit("/", 1)[-1]]]
        assert len(truth) == len(wanted)
        theirs = {coco_mask.decode(_rle(a["segmentation"])).tobytes("C") for a in wanted}
        assert {m.astype(np.uint8).tobytes("C") for m in truth.masks} == theirs


def _rle(rle):
    return coco_mask.frPyObjects(rle, *rle["size"]) if isinstance(rle["counts"], list) else rle


def test_nuclei_as_published(shared):
    root = shared / "data" / "nuclei_published_layout"
    data = FolderDataset(root)
    assert (len(data), data.form.kind, data.task) == (12, "instance_folders", "instance")
    files = list((root / data.name(3) / "masks").iterdir())
    sample = data[3]
    assert len(sample.truth) == len(files) and sample.image.shape[2] == 3
    total = sum(int((np.asarray(Image.open(f)) > 0).sum()) for f in files)
    assert int(sample.truth.masks.areas().sum()) == total


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((480, 640), (800, None), (800, 1067)),
        ((480, 640), (800, 900), (675, 900)),
        ((17, 4000), (512, None), (35, 8192)),
        ((4000, 17), (512, None), (8192, 35)),
        ((17, 4000), (None, None), (17, 4000)),
    ],
)
def test_a_strip_does_not_grow_without_bound(size, limits, expected):
    assert resized_size(size, *limits) == expected
