import json
import pickle

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from skimage.draw import polygon2mask

from kirie.data import dataset_class, open_dataset
from kirie.data.folders import FolderDataset, FolderSettings
from kirie.data.inspect import inspect_dataset
from kirie.data.yolo import YoloDataset
from kirie.errors import KirieError
from kirie.masks import Masks

SIZE = (40, 60)
NAMES = ["cell", "bolt", "nut"]
SQUARE = "0 0.1 0.2 0.5 0.2 0.5 0.7 0.1 0.7"  # x 6 to 30, y 8 to 28


def picture(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(str(path))).integers(0, 256, (*size, 3), np.uint8)).save(path)


def label(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def star(seed, size=SIZE):
    """A polygon (P, 2) of x and y as shares of the picture's width and height."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 30))
    angle = np.sort(rng.uniform(0, 2 * np.pi, count))
    reach = rng.uniform(0.1, 0.3, count)
    centre = rng.uniform(0.3, 0.7, 2)
    return centre + reach[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])


def line(number, shares):
    return " ".join([str(number), *(f"{value:.6f}" for value in shares.ravel())])


def config(root, name="data.yaml", **values):
    root.mkdir(parents=True, exist_ok=True)
    values = {"train": "images/train", "val": "images/val", "names": NAMES, **values}
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items() if value is not None)
    (root / name).write_text(text)
    return root / name


def outer(root, counts=(("train", 3), ("val", 2))):
    """The layout with splits inside: images/train and labels/train."""
    for split, count in counts:
        for i in range(count):
            picture(root / "images" / split / f"{split}{i}.jpg")
            label(root / "labels" / split / f"{split}{i}.txt", line(i % 3, star(i)))
    return root


def inner(root, names=(("train", 3), ("valid", 2), ("test", 1))):
    """The layout of Roboflow: train/images and train/labels."""
    for split, count in names:
        for i in range(count):
            picture(root / split / "images" / f"{split}{i}.jpg")
            label(root / split / "labels" / f"{split}{i}.txt", line(i % 3, star(i)))
    return root


def truth(root, *lines, size=SIZE, **settings):
    """The truth of a data set of one picture with these lines."""
    config(root, val=None)
    picture(root / "images" / "train" / "a.png", size)
    label(root / "labels" / "train" / "a.txt", *lines)
    return open_dataset(root, "train", settings=FolderSettings(**settings))[0].truth


# Polygons


@pytest.mark.parametrize("size", [(40, 60), (333, 250), (17, 900)])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_polygons_are_filled_as_coco_fills_them(tmp_path, size):
    lines = [line(seed % 3, star(seed)) for seed in range(25)]
    found = truth(tmp_path, *lines, size=size)
    assert found.size == size and found.labels.tolist() == [seed % 3 for seed in range(25)]
    assert found.classes.names == tuple(NAMES) and all(found.classes.things)
    for text, mask in zip(lines, found.masks, strict=True):
        points = np.array(text.split()[1:], float).reshape(-1, 2) * size[::-1]
        theirs = coco_mask.decode(coco_mask.frPyObjects([points.ravel().tolist()], *size))[..., 0].astype(bool)
        assert np.array_equal(mask, theirs)
        other = polygon2mask(size, points[:, ::-1] - 0.5)  # which asks for pixel centres
        assert min(size) < 100 or (mask & other).sum() / (mask | other).sum() > 0.9


def test_a_ring_with_a_bridge_has_a_hole(tmp_path):
    outside, hole = [(0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.1, 0.9), (0.1, 0.1)], [(0.3, 0.3), (0.3, 0.7), (0.7, 0.7)]
    ring = np.array([*outside, *hole, (0.7, 0.3), (0.3, 0.3), (0.1, 0.1)])
    mask = truth(tmp_path, line(1, ring)).masks.dense()[0]
    expected = np.zeros(SIZE, bool)
    expected[4:36, 6:54] = True
    expected[12:28, 18:42] = False
    assert (mask != expected).sum() < 0.02 * mask.size and not mask[16:24, 22:38].any()


def test_outlines_of_masks_come_back(tmp_path):
    """Discs and boxes drawn by OpenCV, and the outlines that it finds of them."""
    lines, masks = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        mask = np.zeros((120, 160), np.uint8)
        centre, radius = rng.integers(30, 90, 2).tolist(), int(rng.integers(8, 25))
        cv2.circle(mask, centre, radius, 1, -1) if seed % 2 else cv2.rectangle(mask, centre, (120, 100), 1, -1)
        [ring], _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        lines.append(line(0, (ring.reshape(-1, 2) + 0.5) / (160, 120)))
        masks.append(mask.astype(bool))
    found = truth(tmp_path, *lines, size=(120, 160))
    for mine, drawn in zip(found.masks, masks, strict=True):
        grown = cv2.dilate(drawn.astype(np.uint8), np.ones((3, 3))) > 0
        shrunk = cv2.erode(drawn.astype(np.uint8), np.ones((3, 3))) > 0
        assert (mine | grown).sum() == grown.sum() and (mine & shrunk).sum() == shrunk.sum()


def test_what_lies_a_little_outside_is_cut(tmp_path):
    mask = truth(tmp_path, "2 -0.004 0 1.005 0 1.005 1.004 -0.004 1").masks.dense()[0]
    assert mask.all()


def test_task_semantic_and_sizes(tmp_path):
    lines = [line(1, star(3)), line(2, star(4)), line(0, star(5))]
    instances = truth(tmp_path, *lines)
    painted = np.zeros(SIZE, np.uint8)
    for number, mask in zip(instances.labels, instances.masks, strict=True):
        painted[mask] = number + 1
    semantic = open_dataset(tmp_path, "train", task="semantic")
    assert semantic.task == "semantic" and semantic.classes.names == ("background", *NAMES)
    assert np.array_equal(semantic[0].truth.labels, painted)
    small = open_dataset(tmp_path, "train", task="semantic", settings=FolderSettings(short_side=20, channels=1))
    assert small[0].image.shape == (20, 30, 1) and np.array_equal(small[0].truth.labels, painted[1::2, 1::2])
    assert small.only("train", own_size=True)[0].image.shape == (*SIZE, 1)
    with pytest.raises(KirieError, match="no panoptic truth"):
        open_dataset(tmp_path, task="panoptic")


# Where files are


def check(path, train=3, val=2, test=0):
    """All pictures of the splits, each with the object of its own label file."""
    for split, count in (("train", train), ("val", val), ("test", test)):
        if not count:
            continue
        data = open_dataset(path, split)
        assert type(data) is YoloDataset and len(data) == count and data.task == "instance" and not data.unfound
        assert [data.name(i).rsplit("/", 1)[-1][-5] for i in range(count)] == [str(i) for i in range(count)]
        for i in range(count):
            found = data[i].truth
            points = np.round(star(i), 6) * (SIZE[1], SIZE[0])
            expected = Masks.from_polygons([[points.ravel().tolist()]], SIZE)
            assert found.labels.tolist() == [i % 3]
            assert np.array_equal(found.masks.dense(), expected.dense())
            facts = data.file_facts(i)
            assert facts["image"].endswith(data.name(i)) and facts["mask"].endswith(".txt")
    whole = open_dataset(path)
    assert whole.splits == tuple(s for s, n in (("train", train), ("val", val), ("test", test)) if n)
    assert len(whole) == train + val + test and len(pickle.loads(pickle.dumps(whole)).only("train")) == train


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"path": "."},
        {"path": ""},
        {"path": "/content/somewhere/else"},
        {"path": "../datasets/shapes"},
        {"path": "C:\\data\\shapes", "train": "images\\train"},
        {"train": ["images/train"], "val": ["./images/val"]},
        {"train": "/content/shapes/images/train/", "val": "D:\\shapes\\images\\val"},
        {"train": "shapes/images/train", "test": None, "nc": 3},
        {"train": "images/train", "test": ""},
        {"names": {"0": "cell", "1": "bolt", "2": "nut"}},
        {"names": None, "nc": 3},
    ],
)
def test_what_the_file_says(tmp_path, values):
    config(outer(tmp_path / "set"), **values)
    check(tmp_path / "set")
    check(tmp_path / "set" / "data.yaml")


@pytest.mark.parametrize("name", ["data.yaml", "dataset.yaml", "data.yml"])
@pytest.mark.parametrize("start", ["../", "", "./", "/home/me/set/"])
def test_exports_of_roboflow(tmp_path, name, start):
    root = inner(tmp_path / "set")
    config(root, name, train=f"{start}train/images", val=f"{start}valid/images", test=f"{start}test/images")
    check(root, test=1)
    data = open_dataset(root / "valid")  # the folder of one split
    assert type(data) is YoloDataset and len(data) == 2 and data[1].truth.labels.tolist() == [1]


def test_what_lies_beside_the_file_goes_before_what_lies_above_it(tmp_path):
    config(inner(tmp_path / "set"), train="../train/images", val="../valid/images")
    inner(tmp_path, (("train", 1),))
    check(tmp_path / "set")


def test_a_file_of_any_name_that_points_elsewhere(tmp_path):
    outer(tmp_path / "sets" / "shapes")
    path = config(tmp_path / "conf", "shapes.yaml", path="../sets/shapes")
    check(path)
    assert open_dataset(path, "train").name(0) == "images/train/train0.jpg"
    assert type(open_dataset(path, settings=FolderSettings(format="yolo"))) is YoloDataset


def test_the_file_below_the_data(tmp_path):
    inner(tmp_path / "set")
    check(config(tmp_path / "set" / "conf", train="../train/images", val="../valid/images"))


def test_lists(tmp_path):
    outer(tmp_path)
    label(tmp_path / "train.txt", *(f"./images/train/train{i}.jpg" for i in range(3)))
    label(tmp_path / "lists" / "val.txt", "/content/set/images/val/val0.jpg", "", "images/val/val1.jpg")
    config(tmp_path, train="train.txt", val="lists/val.txt")
    check(tmp_path)
    label(tmp_path / "train.txt", "images/train/train0.jpg", "images/train/gone.jpg")
    assert open_dataset(tmp_path, "train").unfound == ("images/train/gone.jpg",)
    assert "listed picture is missing" in {fault.kind for fault in inspect_dataset(tmp_path).faults}
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(KirieError, match=r"train\.txt is no UTF-8 text"):
        open_dataset(tmp_path)


def test_several_folders_and_labels_beside_the_pictures(tmp_path):
    outer(tmp_path)
    for i in range(2):
        picture(tmp_path / "more" / f"m.{i}.png")
        label(tmp_path / "more" / f"m.{i}.txt", SQUARE)
    config(tmp_path, train=["images/train", "more"])
    data = open_dataset(tmp_path, "train")
    assert len(data) == 5 and [len(data[i].truth) for i in range(5)] == [1] * 5
    picture(tmp_path / "mixed" / "images" / "a.png")
    label(tmp_path / "mixed" / "images" / "a.txt", SQUARE)
    config(tmp_path, train="mixed/images")
    assert len(open_dataset(tmp_path, "train")[0].truth) == 1


def test_one_folder_for_two_splits(tmp_path):
    """As the small samples of the format have it: they are there once, and inspecting says so."""
    outer(tmp_path)
    config(tmp_path, val="images/train")
    assert [len(open_dataset(tmp_path, split)) for split in ("train", "val", None)] == [3, 3, 3]
    found = inspect_dataset(tmp_path)
    assert found.ok and {fault.kind for fault in found.faults} == {"one picture in two splits"}
    first = str(tmp_path / "images" / "train" / "train0.jpg")
    assert found.faults[0].files == (first,) and found.faults[0].what == f"{first} is one picture, in train and in val."


def test_pictures_without_objects(tmp_path):
    outer(tmp_path)
    config(tmp_path)
    (tmp_path / "labels" / "train" / "train0.txt").unlink()
    label(tmp_path / "labels" / "train" / "train1.txt", "", "  ")
    data = open_dataset(tmp_path, "train")
    assert [len(data[i].truth) for i in range(3)] == [0, 0, 1] and data[0].truth.size == SIZE
    found = inspect_dataset(tmp_path)
    bare = [fault.files[0] for fault in found.faults if fault.kind == "picture without objects"]
    assert found.ok and [path[-10:] for path in bare] == ["train0.jpg", "train1.jpg"]
    (tmp_path / "labels" / "train" / "train0.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(KirieError, match=r"Cannot read .*train0\.txt"):
        data[0]


def test_inspect_counts(tmp_path):
    outer(tmp_path)
    config(tmp_path)
    label(tmp_path / "labels" / "train" / "train0.txt", SQUARE, SQUARE.replace("0 0.1", "1 0.1", 1), line(1, star(1)))
    label(tmp_path / "labels" / "train" / "classes.txt", *NAMES)
    found = inspect_dataset(tmp_path)
    assert found.ok and (found.task, found.format, found.splits) == ("instance", "polygons", {"train": 3, "val": 2})
    assert [entry.instances for entry in found.classes] == [2, 4, 1]
    label(tmp_path / "labels" / "train" / "zz.txt", SQUARE)
    label(tmp_path / "labels" / "val" / "val0.txt", "0 0.5 0.5 0.5 0.5 0.5 0.5", SQUARE)
    label(tmp_path / "labels" / "val" / "val1.txt", "7" + SQUARE[1:])
    (tmp_path / "images" / "train" / "train1.jpg").write_bytes(b"no picture")
    kinds = {(fault.severity, fault.kind) for fault in inspect_dataset(tmp_path).faults}
    assert kinds == {
        ("fault", "label file without picture"), ("fault", "object without pixels"),
        ("fault", "label file cannot be used"), ("fault", "picture cannot be used"),
    }  # fmt: skip
    assert len(open_dataset(tmp_path, "val")[0].truth) == 1


def test_objects_without_pixels_are_named_by_their_lines(tmp_path):
    assert len(truth(tmp_path, SQUARE, *["0 0.5 0.5 0.5 0.5 0.5 0.5"] * 5)) == 1
    (fault,) = (fault for fault in inspect_dataset(tmp_path).faults if fault.severity == "fault")
    assert fault.what.endswith("a.txt has 5 objects without a pixel (line 2, line 3, line 4 and 2 more).")
    assert fault.count == 5 and any("(5 times)" in text for text in inspect_dataset(tmp_path).lines())


def test_ignored_classes_are_left_out(tmp_path):
    lines = [SQUARE, f"1{SQUARE[1:]}", f"2{SQUARE[1:]}", f"70000{SQUARE[1:]}"]
    found = truth(tmp_path, *lines, ignore=(1, 70000))
    assert found.classes.names == ("cell", "nut") and found.classes.ids == (0, 2) and found.labels.tolist() == [0, 1]
    named = FolderSettings(ignore=(0, 70000), classes=("a", "b"))
    dataset = open_dataset(tmp_path, settings=named)
    assert dataset[0].truth.classes.names == ("a", "b") and dataset[0].truth.labels.tolist() == [0, 1]
    inspected = inspect_dataset(tmp_path, settings=named)
    assert inspected.ok and [entry.instances for entry in inspected.classes] == [1, 1]
    with pytest.raises(KirieError, match=r"data\.ignore leaves none of its classes: \[0, 1, 2\]"):
        open_dataset(tmp_path, settings=FolderSettings(ignore=(0, 1, 2)))


@pytest.mark.parametrize("values", [{"kind": "ids"}, {"suffix": "_m"}, {"images": "images"}, {"masks": "labels"}])
def test_settings_that_it_cannot_use_are_refused(tmp_path, values):
    config(outer(tmp_path))
    ((entry, value),) = values.items()
    with pytest.raises(KirieError, match=rf"data\.{entry} is '{value}', for which YOLO has no use.*{entry}="):
        open_dataset(tmp_path, settings=FolderSettings(**values))
    assert [fault.kind for fault in inspect_dataset(tmp_path, settings=FolderSettings(**values)).faults] == [
        "not understood"
    ]


def test_a_whole_disk_is_not_searched(tmp_path, monkeypatch):
    monkeypatch.setattr("kirie.data.yolo._MOST_OTHERS", 20)
    config(outer(tmp_path / "home" / "set"))
    for folder in range(9):
        for file in range(9):
            label(tmp_path / "disk" / str(folder) / f"{file}.so", "x")
    assert len(open_dataset(tmp_path / "home" / "set")) == 5
    config(tmp_path / "home" / "set", train=str(tmp_path))
    with pytest.raises(
        KirieError, match=r"data\.yaml, train: .* holds more than 20 files and folders that are no pict"
    ):
        open_dataset(tmp_path / "home" / "set")
    for i in range(40):  # as many label files as pictures beside them are no reason
        picture(tmp_path / "set" / "images" / "train" / f"{i}.png", (4, 4))
        label(tmp_path / "set" / "images" / "train" / f"{i}.txt", SQUARE)
    config(tmp_path / "set", val=None)
    assert len(open_dataset(tmp_path / "set")) == 40


# What is no YOLO


def test_what_is_not_taken_for_it(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data:\n  path: x\nmodel:\n  name: unet\ntrain:\n  epochs: 3\n")
    assert not YoloDataset.recognises(recipe)
    outer(tmp_path)
    for path in (tmp_path, tmp_path / "none", tmp_path / "images", tmp_path / "labels" / "train" / "train0.txt"):
        assert not YoloDataset.recognises(path)
    for text in (
        "train:\n  epochs: 3\nnames: [a]\n",
        "names: [a]\n",
        "train: images\n",
        " names: [a]\n train: b\n",
        "",
    ):
        (tmp_path / "data.yaml").write_text(text)
        assert not YoloDataset.recognises(tmp_path), text
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "data.yaml").mkdir()
    assert dataset_class(tmp_path) is FolderDataset


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("0 0.5 0.5 0.2 0.2", r"is a box \(class, centre, width, height\), not a polygon"),
        (
            "3 0.1 0.1 0.5 0.1 0.5 0.5",
            "has the class 3; expected a number of `names` in the YAML file, the last of which is 2",
        ),
        ("-1 0.1 0.1 0.5 0.1 0.5 0.5", "has the class -1"),
        ("0.5 0.1 0.1 0.5 0.1 0.5 0.5", r"has the class 0\.5"),
        ("inf 0.1 0.1 0.5 0.1 0.5 0.5", "not finite"),
        ("0 0.1 0.1 0.5 0.1 0.5", "has 6 numbers; expected a class and at least three x y pairs"),
        ("0 0.1 0.1 0.5 0.1 0.5 0.5 0.2", "has 8 numbers"),
        ("0", "has 1 number;"),
        ("0 0.1 nan 0.5 0.1 0.5 0.5", "not finite"),
        ("0 12 14 40 14 40 33", r"coordinates from 12 to 40; expected shares .* Pixels are to be divided"),
        ("0 -0.3 0.1 0.5 0.1 0.5 0.5", r"coordinates from -0\.3 to 0\.5"),
        ("0 1e300 0.1 0.5 0.1 0.5 0.5", "coordinates from"),
        ("cell 0.1 0.1 0.5 0.1 0.5 0.5", "expected numbers: a class and x y pairs"),
        ("0,0.1,0.1,0.5,0.1,0.5,0.5", "expected numbers"),
        ("0 " + "0 0 1 1 " * 600, r"A polygon ring is \d+ pixels long"),
    ],
)
def test_lines_that_are_no_polygon(tmp_path, line, why):
    with pytest.raises(KirieError, match=rf"a\.txt, line 3.*{why}"):
        truth(tmp_path, SQUARE, "", line)
    assert [f.kind for f in inspect_dataset(tmp_path).faults if f.severity == "fault"] == ["label file cannot be used"]


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"\xff\xd8\xff\xe0\x00", "no UTF-8 text"), (b"\0" * 40, "no UTF-8 text"), (None, "Cannot read")],
)
def test_label_files_that_are_no_text(tmp_path, content, why):
    truth(tmp_path, SQUARE)
    picture(tmp_path / "images" / "train" / "b.png")
    path = tmp_path / "labels" / "train" / "b.txt"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(KirieError, match=rf"{why}.*b\.txt|b\.txt is {why}"):
        open_dataset(tmp_path)[1]


def test_a_label_file_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("kirie.data.yolo._MAX_LABEL_BYTES", 100)
    with pytest.raises(KirieError, match=r"a\.txt has more than 100 bytes"):
        truth(tmp_path, *[SQUARE] * 9)


def test_a_marked_text_of_windows(tmp_path):
    truth(tmp_path, SQUARE)
    (tmp_path / "labels" / "train" / "a.txt").write_bytes(
        b"\xef\xbb\xbf" + f"{SQUARE}\r\n\t1.0{SQUARE[1:]} \r\n".encode()
    )
    assert open_dataset(tmp_path)[0].truth.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("names: &a [x, *a]\ntrain: images/train\n", "found an alias"),
        ("train: images/train\nnames: !!python/object/apply:os.system ['id']\n", "could not determine a constructor"),
        ("train: images/train\nnames: " + "[" * 5000, "not valid YAML"),
        ("train: images/train\nnames: [a, b\n", "not valid YAML"),
        ("train: images/train\ntrain: b\nnames: [a]\n", "found 'train' twice"),
        ("train: images/train\nnames: [a]\n#" + "x" * 2**20, "longer than 1,048,576 bytes"),
        ("train: images/train\nnames: a, b\n", "names must be a list"),
        ("train: images/train\nnames: [cell, no]\n", "names holds False, .* write it in quotes"),
        ("train: images/train\nnames: [cell, [a]]\n", r"names holds \['a'\]"),
        ("train: images/train\nnames: {0: a, 2: b}\n", "numbers 0 to 1, got"),
        ("train: images/train\nnames: {a: 0, b: 1}\n", "numbers 0 to 1, got"),
        ("train: images/train\nnames: [a, a]\n", r"data\.yaml: Class names repeat"),
        ("train: images/train\nnames: []\n", "names no classes"),
        ("train: images/train\nnc: 4\nnames: [a, b]\n", "nc is 4 but there are 2 names"),
        ("train: images/train\nnc: 1000000000\n", "nc must be the number of classes"),
        ("train: images/train\nnc: many\n", "nc must be the number of classes"),
        ("train: 5\nnames: [a]\n", "train must be a folder"),
        ('train: "a\\0b"\nnames: [a]\n', "train must be a folder"),
        ("path: [a]\ntrain: images/train\nnames: [a]\n", "path must be a folder"),
        ("train: " + "a" * 5000 + "\nnames: [a]\n", "leads to no pictures"),
        (
            "train: nowhere/else\nval: images/none\nnames: [a]\n",
            "leads to no pictures: .*nowhere/else.* looked for below",
        ),
        (
            "train: data.yaml\nnames: [a]\n",
            r"data\.yaml, train: .*data\.yaml is a file; expected a folder .* or a \.txt",
        ),
        ("train: images/train\nval: [images/val/val0.jpg]\nnames: [a]\n", r", val: .*val0\.jpg is a file; expected"),
        ("train: " + "a/" * 400000 + "\nnames: [a]\n", "leads to no pictures"),
        ("train:\nnames: [a]\n", "names no split"),
        ("path: /content/x\ntrain: gone\nnames: [a]\n", "looked for below .*Give folders from there"),
        ("train: labels\nnames: [a]\n", "leads to no pictures"),
    ],
)
def test_descriptions_that_cannot_be_used(tmp_path, text, why):
    outer(tmp_path)
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(KirieError, match=why):
        open_dataset(tmp_path)
    found = inspect_dataset(tmp_path)
    assert not found.ok and len(found.faults) == 1


def test_no_label_file_at_all(tmp_path):
    outer(tmp_path)
    config(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "gone")
    with pytest.raises(
        KirieError, match=r"5 pictures but no label file for any of them; expected that of .*train0\.jpg at"
    ):
        open_dataset(tmp_path)
    with pytest.raises(KirieError, match=r"has no data\.yaml or dataset\.yaml"):
        open_dataset(tmp_path / "gone", settings=FolderSettings(format="yolo"))


def test_splits_and_names(tmp_path):
    outer(tmp_path)
    config(tmp_path, test="images/test")
    data = open_dataset(tmp_path, settings=FolderSettings(classes=("a", "b", "c")))
    assert data.classes.names == ("a", "b", "c") and data.splits == ("train", "val")
    with pytest.raises(
        KirieError, match=r"split test .*data\.yaml has pictures of test at images/test, and there are none"
    ):
        data.only("test")
    assert [fault.kind for fault in inspect_dataset(tmp_path).faults] == ["split without pictures"]
    with pytest.raises(KirieError, match=r"data\.classes names 2 classes, but .* has 3"):
        open_dataset(tmp_path, settings=FolderSettings(classes=("a", "b")))


# Real data


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_outlines_of_coco(shared, tmp_path):
    """Annotations of one ring, written as lines of the format, are the masks that pycocotools makes of them."""
    root = shared / "data" / "coco"
    coco = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    numbers = {entry["id"]: index for index, entry in enumerate(coco["categories"])}
    config(tmp_path, names=[entry["name"] for entry in coco["categories"]], train=None)
    wanted = {}
    for entry in coco["images"][:20]:
        size = entry["height"], entry["width"]
        rings = [a for a in coco["annotations"] if a["image_id"] == entry["id"] and len(a["segmentation"]) == 1]
        (tmp_path / "images" / "val").mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / "val" / entry["file_name"]).symlink_to(root / "images" / "val2017" / entry["file_name"])
        shares = [np.reshape(a["segmentation"][0], (-1, 2)) / size[::-1] for a in rings]
        lines = [
            " ".join([str(numbers[a["category_id"]]), *map(repr, s.ravel().tolist())])
            for a, s in zip(rings, shares, strict=True)
        ]
        label(tmp_path / "labels" / "val" / f"{entry['file_name'][:-4]}.txt", *lines)
        wanted[entry["file_name"]] = size, rings
    data = open_dataset(tmp_path, "val")
    assert len(data) == 20
    same = total = 0
    for index in range(20):
        size, rings = wanted[data.name(index).rsplit("/", 1)[-1]]
        found = data[index].truth
        assert found.labels.tolist() == [numbers[a["category_id"]] for a in rings]
        for mask, a in zip(found.masks, rings, strict=True):
            theirs = coco_mask.decode(coco_mask.frPyObjects(a["segmentation"], *size))[..., 0].astype(bool)
            same, total = same + int(np.array_equal(mask, theirs)), total + 1
            assert (mask & theirs).sum() / max((mask | theirs).sum(), 1) > 0.95 or theirs.sum() < 60
    assert total > 50 and same / total > 0.9
