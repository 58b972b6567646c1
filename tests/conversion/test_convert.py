"""What a conversion promises beside the truths: whole or nothing, nothing written over, names, notes, the command."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scenes import SIZE, box, coco_source, map_source, pictures_of, save_picture
from tiny import run_cli

import kirie
from kirie.conversion import WRITERS
from kirie.conversion import convert as module
from kirie.conversion.writer import Entry
from kirie.conversion.yolo import YoloWriter
from kirie.data import open_dataset
from kirie.data.layouts import FolderSettings
from kirie.errors import KirieError
from kirie.results import PanopticMap, Segment


@pytest.fixture
def maps(tmp_path):
    map_source(tmp_path / "in")
    return tmp_path / "in"


@pytest.fixture
def objects(tmp_path):
    """Object ids of one class without splits: images/a.png, b.png."""
    for number, name in enumerate("ab"):
        add_ids(tmp_path / "in", name, number)
    return tmp_path / "in"


def add_ids(root, name, seed=0, ending="png"):
    save_picture(root / "images" / f"{name}.{ending}", seed)
    (root / "ids").mkdir(exist_ok=True)
    place = root / "ids" / f"{name}.png"
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(box(2, 3, 4, 5).astype(np.uint16)).save(place)


def everything(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


# Pictures


def test_pictures_are_copied_byte_for_byte_or_linked(maps, tmp_path):
    for name, link in (("copies", False), ("links", True)):
        done = kirie.convert(maps, tmp_path / name, "masks", link=link)
        for picture in (maps / "images").rglob("*.jpg"):
            other = done.path / picture.relative_to(maps)
            assert other.read_bytes() == picture.read_bytes() and other.is_symlink() == link
    assert len(open_dataset(tmp_path / "links")) == 6


def test_an_exif_rotation_is_told(objects, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((SIZE[1], SIZE[0], 3), np.uint8)).save(objects / "images" / "a.png", exif=exif)
    done = kirie.convert(objects, tmp_path / "out", "coco")
    assert done.notes == (
        "1 picture with an EXIF rotation: the truth is for the picture turned upright, as kirie reads it.",
        "The categories are 1, 2, 3... in the new files, in the order of the classes.",
    )
    images = json.loads((done.path / "instances.json").read_text())["images"]
    assert all((image["height"], image["width"]) == SIZE for image in images)


def test_the_source_is_converted_at_its_own_size(maps, tmp_path):
    done = kirie.convert(maps, tmp_path / "out", "masks", settings=FolderSettings(short_side=10))
    assert open_dataset(done.path)[0].truth.size == SIZE


# Names


@pytest.mark.parametrize("name", ["#a", " a ", ".a", "a.png", "a\tb", "a\u2028b", "一 二"])
def test_names_that_lists_could_not_hold(tmp_path, name):
    add_ids(tmp_path / "in", "plain")
    facts = {"images": [{"id": 1, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]}]}
    facts |= {"annotations": [], "categories": [{"id": 1, "name": "cell"}]}
    if name.startswith("."):  # the reader passes hidden files over
        assert module._distinct([Path(f"{name}.jpg")], [""], [name]) == ["_a"]
        return
    save_picture(tmp_path / "in" / "images" / f"{name}.jpg")
    (tmp_path / "in" / "instances_train.json").write_text(json.dumps(facts))
    shutil.rmtree(tmp_path / "in" / "ids")
    for form in ("voc", "ids", "yolo", "coco"):
        kirie.convert(tmp_path / "in", tmp_path / form, form)
        assert list(pictures_of(tmp_path / form, "train").values()) == [[]]


def test_names_differ_by_as_little_as_does(tmp_path):
    distinct = module._distinct
    files = [Path("x/a.jpg"), Path("y/a.jpg"), Path("y/B.jpg")]
    assert distinct(files[1:], ["", ""], ["", ""]) == ["a", "B"]
    assert distinct(files, ["train", "val", "val"], ["", "", ""]) == ["train_a", "val_a", "val_B"]
    assert distinct(files, [""] * 3, ["x/a.jpg", "y/a.jpg", "y/B.jpg"]) == ["x_a_jpg", "y_a_jpg", "y_B_jpg"]
    assert distinct(files[:2], ["", ""], ["n", "N"]) == ["000001_a", "000002_a"]
    assert len(set(distinct([Path("a.jpg"), Path("A.png")], ["", ""], ["a.jpg", "A.png"]))) == 2


def test_pictures_of_one_stem(tmp_path):
    root = tmp_path / "in"
    add_ids(root, "x/a", 1)
    add_ids(root, "y/a", 2)
    done = kirie.convert(root, tmp_path / "out", "ids")
    assert sorted(p.name for p in (done.path / "images").iterdir()) == ["images_x_a_png.png", "images_y_a_png.png"]
    assert len(open_dataset(done.path)) == 2


# Splits


def test_pictures_in_no_split_are_told(objects, tmp_path):
    (objects / "train.txt").write_text("a\nmissing\n")
    done = kirie.convert(objects, tmp_path / "out", "ids")
    assert done.splits == {"train": 1}
    assert done.notes == ("1 listed picture not there, left out.", "1 picture in no split, left out.")


@pytest.mark.parametrize("name", ["cityscapes", "ade20k"])
def test_formats_that_need_splits_say_so(tmp_path, name):
    map_source(tmp_path / "in", ("",), classes=("sky", "road", "fence"))
    done = kirie.convert(tmp_path / "in", tmp_path / "out", name)
    assert done.splits == {"": 3} and any(note.startswith("All pictures are in train") for note in done.notes)
    assert open_dataset(done.path).splits == ("train",)


# What does not fit


def test_maps_have_no_objects_to_give(maps, tmp_path):
    for name in ("ids", "coco", "yolo"):
        for task in (None, "semantic"):
            with pytest.raises(KirieError, match=r"not which object it belongs to.* --to masks, or voc, cityscapes"):
                kirie.convert(maps, tmp_path / "out", name, task=task)
    assert everything(tmp_path) == ["in", *(f"in/{path}" for path in everything(maps))]


def test_objects_are_read_where_both_are_there(tmp_path):
    data = tmp_path / "in"
    map_source(data, ("train",), classes=("sky", "coin", "tree"))
    table = json.loads((data / "classes.json").read_text()) | {"things": ["coin"]}
    (data / "classes.json").write_text(json.dumps(table))
    (data / "ids" / "train").mkdir(parents=True)
    for index in range(3):
        Image.fromarray(box(2, 3, 4, 5).astype(np.uint16)).save(data / "ids" / "train" / f"train{index}.png")
    assert open_dataset(data).task == "semantic"
    assert kirie.convert(data, tmp_path / "out", "coco").objects == 3


@pytest.mark.parametrize("name", ["cityscapes", "ade20k"])
def test_classes_of_others_do_not_fit(maps, tmp_path, name):
    with pytest.raises(KirieError, match=r"classes of its own; not among them: .*köpfe.*masks and voc hold any"):
        kirie.convert(maps, tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


def test_too_many_objects_or_classes(tmp_path):
    ids = np.zeros(SIZE, np.uint16)
    ids[:20] = np.arange(20 * SIZE[1]).reshape(20, -1)
    root = tmp_path / "in"
    add_ids(root, "a")
    Image.fromarray(ids).save(root / "ids" / "a.png")
    with pytest.raises(KirieError, match=r"images/a.png: It has 819 objects; Pascal VOC numbers up to 254"):
        kirie.convert(root, tmp_path / "out", "voc")
    names = [f"class {number}" for number in range(256)]
    map_source(tmp_path / "maps", classes=["sky"] * 3)
    (tmp_path / "maps" / "classes.json").write_text(json.dumps({"classes": names, "ignore_index": []}))
    with pytest.raises(KirieError, match="at most 255 classes"):
        kirie.convert(tmp_path / "maps", tmp_path / "out", "voc")
    assert not (tmp_path / "out").exists()


def test_unknown_words(maps, tmp_path):
    with pytest.raises(KirieError, match="written as masks, ids, coco"):
        kirie.convert(maps, tmp_path / "out", "pascal")
    with pytest.raises(KirieError, match="Polygons are a choice for coco"):
        kirie.convert(maps, tmp_path / "out", "masks", polygons=True)
    with pytest.raises(KirieError, match="no folder"):
        kirie.convert(tmp_path / "nowhere", tmp_path / "out", "masks")


# Where it goes


def test_nothing_is_written_over(maps, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for place, words in (
        (tmp_path / "full", "not empty"),
        (tmp_path / "full" / "mine.txt", "is a file"),
        (maps, "lies in the data set"),
        (maps / "new" / "deep", "lies in the data set"),
        (tmp_path, "not empty"),
    ):
        with pytest.raises(KirieError, match=words):
            kirie.convert(maps, place, "masks")
    assert everything(tmp_path / "full") == ["mine.txt"] and not (maps / "new").exists()


def test_a_link_to_the_source_is_the_source(maps, tmp_path):
    (tmp_path / "link").symlink_to(maps)
    with pytest.raises(KirieError, match="lies in the data set"):
        kirie.convert(maps, tmp_path / "link" / "out", "masks")


def test_an_empty_folder_is_filled_and_stays_itself(maps, tmp_path):
    place = tmp_path / "out"
    place.mkdir()
    number = place.stat().st_ino
    kirie.convert(maps, place, "masks")
    assert sorted(p.name for p in place.iterdir()) == ["classes.json", "images", "masks"]
    assert place.stat().st_ino == number
    assert kirie.convert(maps, tmp_path / "new" / "deep", "masks").pictures == 6


class Stop(BaseException):
    pass


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("trouble", [KirieError("Broken."), OSError(28, "No space left on device"), Stop()])
def test_a_stop_leaves_nothing(maps, tmp_path, monkeypatch, trouble, there):
    copies = []

    def copy(source, target):
        copies.append(source)
        if len(copies) == 4:
            raise trouble
        Path(target).write_bytes(b"")

    monkeypatch.setattr(module.shutil, "copyfile", copy)
    if there:
        (tmp_path / "out").mkdir()
    before = everything(tmp_path)
    expected = Stop if isinstance(trouble, Stop) else KirieError
    with pytest.raises(expected, match="No space left" if isinstance(trouble, OSError) else None):
        kirie.convert(maps, tmp_path / "out", "masks")
    assert len(copies) == 4 and everything(tmp_path) == before


def test_a_bad_picture_stops_or_is_left_out(maps, tmp_path):
    for name in ("train1", "val2"):
        (maps / "images" / name[:-1] / f"{name}.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(KirieError, match=r"train1\.jpg .* leave such pictures out: --skip-bad"):
        kirie.convert(maps, tmp_path / "out", "masks")
    assert not (tmp_path / "out").exists()
    done = kirie.convert(maps, tmp_path / "out", "masks", skip_bad=True)
    assert done.splits == {"train": 2, "val": 2} and done.pictures == 4
    assert [next(n for n in ("train1", "val2") if n in words) for words in done.skipped] == ["train1", "val2"]
    assert everything(done.path / "images") == [
        *("train", "train/train0.jpg", "train/train2.jpg", "val", "val/val0.jpg", "val/val1.jpg")
    ]
    shutil.rmtree(done.path)
    for picture in (maps / "images").rglob("*.jpg"):
        picture.write_bytes(b"")
    with pytest.raises(KirieError, match="Not one picture"):
        kirie.convert(maps, tmp_path / "out", "masks", skip_bad=True)
    assert not (tmp_path / "out").exists()


def test_a_picture_that_is_left_out_leaves_no_label_file(tmp_path):
    many = [("car", box(index // 40, index % 40, 1, 1), False) for index in range(255)]
    coco_source(tmp_path / "in", {"train": {"many.png": many, "few.png": many[:254]}})
    done = kirie.convert(tmp_path / "in", tmp_path / "out", "voc", skip_bad=True)
    assert done.pictures == 1 and done.objects == 254 and "255 objects" in done.skipped[0]
    assert [path for path in everything(done.path) if "many" in path] == []
    assert len(pictures_of(done.path, "train")) == 1


def test_things_of_a_panoptic_map_are_objects(tmp_path):
    ids = np.zeros((4, 6), np.int32)
    ids[:2], ids[2:, :3] = 1, 2
    truth = PanopticMap(
        ids, (Segment(1, 0, False, 1.0, 12), Segment(2, 1, True, 1.0, 6)), kirie.Classes(("sky", "car"))
    )
    writer = YoloWriter(tmp_path, truth.classes, "panoptic", ("train",))
    writer.write(Entry("a", ".png", "train", (4, 6)), truth)
    assert (tmp_path / "labels" / "train" / "a.txt").read_text() == "1 0 0.5 0.5 0.5 0.5 1 0 1\n"


# The command


@pytest.fixture
def kirie_(capsys):
    return lambda *words: run_cli(capsys, *words)


def test_command(kirie_, objects, tmp_path):
    code, out, err = kirie_("convert", objects, tmp_path / "out", "--to", "yolo")
    assert code == 0 and out == f"2 pictures, 2 objects as YOLO segmentation: {tmp_path / 'out'}\n"
    assert err == "All pictures are in train, since YOLO has a folder for each split.\n"
    code, out, _ = kirie_("convert", tmp_path / "out", tmp_path / "json", "--to", "coco", "--polygons", "--json")
    told = json.loads(out)
    assert code == 0 and told["pictures"] == 2 and told["splits"] == {"train": 2} and told["objects"] == 2


def test_command_fails_in_sentences(kirie_, maps, tmp_path):
    code, out, err = kirie_("convert", maps, tmp_path / "out", "--to", "coco")
    assert code == 1 and not out and err.startswith("Error: ") and "--to masks" in err and "Traceback" not in err
    code, _, err = kirie_("convert", maps, tmp_path / "out", "--to", "labelme")
    assert code == 1 and "masks, ids, coco, coco_panoptic, yolo" in err
    code, _, err = kirie_("convert", maps, tmp_path / "out")
    assert code == 1 and "Name the format" in err
    (maps / "masks" / "train" / "train0.png").write_bytes(b"")
    code, out, err = kirie_("convert", maps, tmp_path / "out", "--to", "masks", "--skip-bad")
    assert code == 1 and "5 pictures (train 2, val 3)" in out and "1 left out" in out and "train0.png is empty" in err


def test_command_takes_settings(kirie_, maps, tmp_path):
    shutil.move(maps / "masks", maps / "wahrheit")
    assert kirie_("convert", maps, tmp_path / "out", "--to", "voc")[0] == 1
    words = ("--set", "masks=wahrheit", "--link", "--task", "semantic")
    code, out, _ = kirie_("convert", maps, tmp_path / "out", "--to", "voc", *words)
    assert code == 0 and "6 pictures (train 3, val 3) as Pascal VOC" in out
    assert os.path.islink(tmp_path / "out" / "JPEGImages" / "train0.jpg")


def test_help_names_every_format(kirie_):
    code, out, _ = kirie_("convert", "--help")
    assert code == 0 and all(name in out for name in WRITERS)


def test_samples_of_code_become_png_files(tmp_path, monkeypatch, capsys):
    (tmp_path / "shapes.py").write_text(
        "import numpy as np\n"
        "from kirie import Classes, Sample, SemanticMap\n"
        "def samples(split):\n"
        "    classes = Classes(('background', 'shape'))\n"
        "    truth = SemanticMap(np.eye(20, 30, dtype=np.uint8), classes)\n"
        "    return [Sample(np.full((20, 30, 3), 9 + n, np.uint8), truth, f'{split} {n}') for n in range(2)]\n"
    )
    monkeypatch.chdir(tmp_path)
    status, _, err = run_cli(capsys, "convert", "shapes:samples", "out", "--to", "masks")
    assert status == 0, err
    dataset = open_dataset("out", "val")
    assert len(dataset) == 2 and dataset[1].image[0, 0, 0] == 10 and dataset[1].truth.labels[3, 3] == 1
    status, _, _ = run_cli(capsys, "convert", "shapes:samples", "mended", "--fix")
    assert status == 0 and len(open_dataset("mended")) == len(open_dataset("out"))
