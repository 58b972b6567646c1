import shutil

import numpy as np
import pytest
from PIL import Image

from kirie.class_lists import ADE20K
from kirie.data import open_dataset
from kirie.data.ade20k import Ade20kDataset
from kirie.data.folders import FolderDataset, FolderSettings
from kirie.data.inspect import inspect_dataset
from kirie.errors import KirieError

SIZE = (15, 20)


def ids(seed=0, most=150):
    return np.random.default_rng(seed).integers(0, most + 1, SIZE).astype(np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write(root, most=150, prefix="ADE_{}_"):
    for split, count in (("training", 3), ("validation", 2)):
        for index in range(count):
            stem = f"{split}/{prefix.format(split[:5].rstrip('i'))}{index:08}"
            save(root / "images" / f"{stem}.jpg", np.full((*SIZE, 3), 9 * index, np.uint8))
            save(root / "annotations" / f"{stem}.png", ids(index, most))
    return root


def object_info(path, names, stuff=None):
    columns = ["Idx", "Ratio", "Train", "Val", *(["Stuff"] if stuff else []), "Name"]
    rows = [[str(i + 1), "0.1", "10", "2", *([str(stuff[i])] if stuff else []), name] for i, name in enumerate(names)]
    path.write_text("".join("\t".join(row) + "\n" for row in [columns, *rows]))


@pytest.mark.parametrize("above", [False, True])
def test_release(tmp_path, above):
    root = write(tmp_path / "ADEChallengeData2016", prefix="")
    path = tmp_path if above else root
    train, val = open_dataset(path, "train"), open_dataset(path, "validation")
    assert type(train) is Ade20kDataset and (len(train), len(val)) == (3, 2)
    assert train.splits == ("train", "val") and train.classes == ADE20K
    for index in range(3):
        truth = train[index].truth.labels
        assert np.array_equal(truth, ids(index) - 1)  # 0 wraps to 255, the void
        assert (path / train.name(index)).is_file()
    found = inspect_dataset(path)
    assert found.ok and found.published == "ADE20K" and found.splits == {"train": 3, "val": 2}


@pytest.mark.parametrize("mark", ["names", "table", "scenes", "said"])
def test_what_tells_it_from_plain_folders(tmp_path, mark):
    write(tmp_path, prefix="ADE_{}_" if mark == "names" else "")
    if mark == "table":
        object_info(tmp_path / "objectInfo150.txt", ADE20K.names)
    if mark == "scenes":
        (tmp_path / "sceneCategories.txt").touch()
    settings = FolderSettings(format="ade20k" if mark == "said" else None)
    data = open_dataset(tmp_path, settings=settings)
    assert type(data) is Ade20kDataset and data.classes == ADE20K


def test_plain_folders_of_these_names_stay_plain(tmp_path):
    write(tmp_path, most=3, prefix="")
    data = open_dataset(tmp_path)
    assert type(data) is FolderDataset and data.classes.ids == (0, 1, 2, 3)


def test_own_classes(tmp_path):
    root = write(tmp_path, most=3)
    object_info(root / "objectInfo3.txt", ["wall, side", "screen;a door", "screen, film"], stuff=[1, 0, 0])
    data = open_dataset(root, "val")
    assert data.classes.names == ("wall", "screen;a door", "screen, film")
    assert data.classes.things == (False, True, True) and data.classes.ids == (1, 2, 3)
    assert np.array_equal(data[1].truth.labels, ids(1, 3) - 1)
    assert inspect_dataset(root).published == ""
    (root / "classes.json").write_text('["a", "b", "c"]')
    data = open_dataset(root, "val")
    assert data.classes.names == ("a", "b", "c") and np.array_equal(data[1].truth.labels, ids(1, 3) - 1)
    (root / "classes.json").write_text('{"classes": ["a", "b", "c", "d"], "ids": [0, 1, 2, 3], "ignore_index": 255}')
    assert np.array_equal(open_dataset(root, "val")[1].truth.labels, ids(1, 3))
    (root / "classes.json").unlink()
    (root / "objectInfo3.txt").unlink()
    data = open_dataset(root, "val", settings=FolderSettings(classes=("x", "y", "z")))
    assert data.classes.names == ("x", "y", "z") and np.array_equal(data[0].truth.labels, ids(0, 3) - 1)


@pytest.mark.parametrize("text", ["", "Idx\tRatio\n1\t2\n", "Idx\tName\none\twall\n", "Idx\tName\n1\n"])
def test_broken_tables(tmp_path, text):
    (write(tmp_path) / "objectInfo150.txt").write_text(text)
    with pytest.raises(KirieError, match=r"objectInfo150\.txt"):
        open_dataset(tmp_path)


def test_what_is_wrong_is_told(tmp_path):
    root = write(tmp_path)
    first, second, _ = sorted((root / "annotations" / "training").iterdir())
    save(first, np.full(SIZE, 151, np.uint8))
    second.rename(second.with_name("ADE_train_00000009.png"))
    found = {fault.kind for fault in inspect_dataset(root).faults if fault.severity == "fault"}
    assert found == {"unknown ids", "picture without label file", "label file without picture"}
    with pytest.raises(KirieError, match=r"151 \(300 pixels\).*void is 0"):
        open_dataset(root, "train")[0]
    shutil.rmtree(root / "images" / "validation")
    with pytest.raises(KirieError, match="no pictures in split val"):
        open_dataset(root, "val")
    (root / "images" / "validation").mkdir()
    with pytest.raises(KirieError, match="validation holds no pictures"):
        open_dataset(root, "val")


def test_test_pictures_have_no_truth(tmp_path):
    root = write(tmp_path)
    save(root / "images" / "testing" / "ADE_test_00000001.jpg", np.zeros((*SIZE, 3), np.uint8))
    assert open_dataset(root).splits == ("train", "val")
    with pytest.raises(KirieError, match="None of 1 test picture has a label file"):
        open_dataset(root, "test")
    assert inspect_dataset(root).ok


def test_street_laid_out_as_ade20k_is_the_same(shared, tmp_path):
    plain = open_dataset(shared / "data" / "street", "val")
    object_info(tmp_path / "objectInfo11.txt", plain.classes.names)
    for index in range(0, len(plain), 20):
        facts = plain.file_facts(index)
        for split in ("training", "validation"):
            (tmp_path / "images" / split).mkdir(parents=True, exist_ok=True)
            shutil.copy(facts["image"], tmp_path / "images" / split / f"{index:03}.jpg")
            pixels = np.asarray(Image.open(facts["mask"]))
            save(
                tmp_path / "annotations" / split / f"{index:03}.png",
                (pixels + 1) % 12 * (pixels != 11).astype(np.uint8),
            )
    data = open_dataset(tmp_path, "val")
    assert type(data) is Ade20kDataset and data.classes.names == plain.classes.names
    for index in range(len(data)):
        assert np.array_equal(data[index].truth.labels, plain[20 * index].truth.labels)


def test_only_the_classes_that_occur_are_listed(tmp_path):
    found = inspect_dataset(write(tmp_path, most=5))
    (note,) = (fault for fault in found.faults if fault.kind == "class never occurs")
    assert note.what.startswith("145 of the 150 classes of ADE20K never occur: ceiling, road, ")
    assert note.what.endswith(" and 139 more.")
    lines = found.lines()
    assert sum("of pixels" in line for line in lines) == 5
    assert len(lines) < 20
