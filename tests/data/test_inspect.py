import json
import shutil

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from kirie.data import open_dataset
from kirie.data.fault import Fault
from kirie.data.faults import grouped
from kirie.data.folders import FolderSettings
from kirie.data.inspect import inspect_dataset, sheet_samples
from kirie.errors import KirieError

SIZE = (10, 20)
NAMES = ["sky", "road", "car"]


def picture(path, size=SIZE, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(path)


def mask(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)


def index_mask():
    pixels = np.zeros(SIZE, np.uint8)
    pixels[:, 10:], pixels[:2] = 1, 2
    return pixels


@pytest.fixture
def sound(tmp_path):
    """Three sound pictures with index masks and a class table."""
    for name in "abc":
        picture(tmp_path / "images" / "train" / f"{name}.png")
        mask(tmp_path / "masks" / "train" / f"{name}.png", index_mask())
    (tmp_path / "classes.json").write_text(json.dumps({"classes": NAMES}))
    return tmp_path


def only(found, kind):
    """The one fault there is, which must be of this kind; every other would be a false alarm."""
    assert [fault.kind for fault in found.faults] == [kind]
    assert found.faults[0].mend and found.faults[0].what
    assert any(found.faults[0].what in line for line in found.lines())
    return found.faults[0]


def test_sound_data(sound):
    found = inspect_dataset(sound)
    assert found.ok and found.faults == ()
    assert (found.task, found.format, found.images, found.splits) == ("semantic", "index", 3, {"train": 3})
    assert found.sizes == (SIZE, SIZE, SIZE) and found.distinct_sizes == 1
    assert found.image_kinds == {"8 bits, 3 channels, PNG": 3}
    shares = {entry.name: entry.share for entry in found.classes}
    assert shares == {"sky": 0.4, "road": 0.4, "car": 0.2}  # 8 rows x 10, 8 x 10 and 2 x 20 of 200 pixels
    assert all(entry.images == 3 and entry.instances is None for entry in found.classes)
    assert found.lines()[-1] == "no faults found"
    assert json.loads(json.dumps(found.to_dict()))["ok"] is True


def test_objects_are_counted(tmp_path):
    for name, count in (("a", 1), ("b", 3)):
        picture(tmp_path / "images" / "train" / f"{name}.png")
        ids = np.zeros(SIZE, np.uint16)
        for i in range(count):
            ids[:5, 6 * i : 6 * i + 4] = i + 1
        mask(tmp_path / "ids" / "train" / f"{name}.png", ids)
    found = inspect_dataset(tmp_path)
    assert found.ok and found.format == "ids" and found.classes[0].instances == 4
    assert found.classes[0].share == 80 / 400
    assert (found.per_image.least, found.per_image.median, found.per_image.most) == (1, 2, 3)
    assert (found.areas.least, found.areas.most) == (20, 20)
    semantic = inspect_dataset(tmp_path, task="semantic")
    assert [(c.name, c.pixels) for c in semantic.classes] == [("background", 320), ("object", 80)]


def test_missing_partners(sound):
    (sound / "masks" / "train" / "a.png").unlink()
    fault = only(inspect_dataset(sound), "picture without label file")
    assert fault.files == (str(sound / "images" / "train" / "a.png"),)
    picture(sound / "images" / "train" / "a.png")
    mask(sound / "masks" / "train" / "a.png", index_mask())
    mask(sound / "masks" / "train" / "z.png", index_mask())
    assert only(inspect_dataset(sound), "label file without picture").files[0].endswith("z.png")


def test_sizes_differ(sound):
    mask(sound / "masks" / "train" / "b.png", index_mask()[:8])
    fault = only(inspect_dataset(sound), "sizes differ")
    assert "10 x 20" in fault.what and "8 x 20" in fault.what and len(fault.files) == 2


def test_unknown_ids(sound):
    pixels = index_mask()
    pixels[5, :4] = 7
    mask(sound / "masks" / "train" / "b.png", pixels)
    found = inspect_dataset(sound)
    assert "7 (4 pixels)" in only(found, "unknown ids").what and not found.ok
    assert abs(sum(entry.share for entry in found.classes) - 1) < 1e-9


@pytest.mark.parametrize("place", ["images", "masks"])
def test_broken_files(sound, place):
    path = sound / place / "train" / "c.png"
    path.write_bytes(path.read_bytes()[:60])
    kind = "picture cannot be used" if place == "images" else "label file cannot be used"
    found = inspect_dataset(sound)
    assert only(found, kind).files == (str(path),) and found.images == 3


def test_jpeg_masks(tmp_path):
    picture(tmp_path / "images" / "train" / "a.png", (32, 32))
    disc = cv2.circle(np.zeros((32, 32), np.uint8), (16, 16), 9, 255, -1)
    mask(tmp_path / "masks" / "train" / "a.jpg", disc)
    found = inspect_dataset(tmp_path, settings=FolderSettings(kind="binary"))
    kinds = [fault.kind for fault in found.faults if fault.severity == "fault"]
    assert kinds == ["label file is JPEG", "unknown ids"]
    assert "save masks as PNG" in found.faults[1].mend


def test_two_pictures_of_one_stem(sound):
    picture(sound / "images" / "train" / "a.jpg")
    assert len(only(inspect_dataset(sound), "two pictures of one stem").files) == 2


def test_one_picture_in_two_splits(sound):
    shutil.copytree(sound / "images" / "train", sound / "images" / "val")
    shutil.copytree(sound / "masks" / "train", sound / "masks" / "val")
    found = inspect_dataset(sound)
    assert [fault.kind for fault in found.faults] == ["one picture in two splits"] and found.ok
    assert inspect_dataset(sound, splits=["validation"]).splits == {"val": 3}
    for path in (sound / "images" / "val").iterdir():
        picture(path, seed=7)  # another picture under the same name is no leak
    assert "one picture in two splits" not in {fault.kind for fault in inspect_dataset(sound).faults}
    with pytest.raises(KirieError, match="no split"):
        inspect_dataset(sound, splits=["dev"])


def test_lists(tmp_path):
    for name in "ab":
        picture(tmp_path / "images" / f"{name}.png")
        mask(tmp_path / "masks" / f"{name}.png", index_mask() * 100)
    (tmp_path / "classes.json").write_text(json.dumps({"classes": NAMES, "ids": [0, 100, 200]}))
    (tmp_path / "train.txt").write_text("a\nq\n")
    kinds = {fault.kind: fault.files[0] for fault in inspect_dataset(tmp_path).faults}
    assert kinds == {"listed picture is missing": "q", "picture in no split": str(tmp_path / "images" / "b.png")}


def test_ids_off_by_one(sound):
    for name in "abc":
        mask(sound / "masks" / "train" / f"{name}.png", index_mask() + 1)
    found = inspect_dataset(sound)
    fault = next(fault for fault in found.faults if fault.kind == "ids off by one")
    assert '"ids": [1, 2, 3]' in fault.mend
    (sound / "classes.json").write_text(json.dumps({"classes": NAMES, "ids": [1, 2, 3]}))
    assert inspect_dataset(sound).faults == ()  # the mend it names


def test_ids_from_one_without_a_table(sound):
    (sound / "classes.json").unlink()
    for name in "abc":
        mask(sound / "masks" / "train" / f"{name}.png", index_mask() + 1)
    assert only(inspect_dataset(sound), "ids start at 1").severity == "note"


def test_255_as_void_and_as_class(sound):
    pixels = index_mask()
    pixels[9] = 255
    mask(sound / "masks" / "train" / "a.png", pixels)
    found = inspect_dataset(sound)
    assert "20 pixels are void" in only(found, "id 255").what and found.void_share == 20 / 600
    for name in "abc":
        mask(sound / "masks" / "train" / f"{name}.png", (index_mask() > 0).astype(np.uint8) * 255)
    (sound / "classes.json").unlink()
    assert inspect_dataset(sound).faults == ()  # 255 is the foreground; to ignore it would leave nothing
    for ignore in ({"ignore_index": 255}, {}):
        (sound / "classes.json").write_text(json.dumps({"classes": ["sky", "car"], **ignore}))
        kinds = [fault.kind for fault in inspect_dataset(sound).faults if fault.severity == "fault"]
        assert kinds == (["nothing but one class and void"] if ignore else [])
    (sound / "classes.json").write_text(json.dumps({"classes": ["a", "b", "c"], "ids": [0, 7, 255]}))
    fault = next(fault for fault in inspect_dataset(sound).faults if fault.kind == "id 255")
    assert "Id 255 is the class 'c'" in fault.what and "ignore_index" in fault.mend


def test_class_that_never_occurs(sound):
    (sound / "classes.json").write_text(json.dumps({"classes": [*NAMES, "boat"]}))
    found = inspect_dataset(sound)
    assert "'boat'" in only(found, "class never occurs").what and found.ok


def test_nearly_all_void(sound):
    (sound / "classes.json").write_text(json.dumps({"classes": NAMES, "ignore_index": 9}))
    mask(sound / "masks" / "train" / "a.png", np.full(SIZE, 9, np.uint8))
    assert only(inspect_dataset(sound), "nearly all void").files[0].endswith("a.png")


def test_empty_masks(sound):
    (sound / "classes.json").write_text(json.dumps({"classes": ["background", "road", "car"]}))
    mask(sound / "masks" / "train" / "a.png", np.zeros(SIZE, np.uint8))
    assert only(inspect_dataset(sound), "empty mask").severity == "note"


def test_empty_object_files_and_tiny_objects(tmp_path):
    folder = tmp_path / "train" / "a"
    picture(folder / "images" / "a.png")
    dot = np.zeros(SIZE, np.uint8)
    mask(folder / "masks" / "1.png", dot)
    dot[3, 3] = 255
    mask(folder / "masks" / "2.png", dot)
    faults = inspect_dataset(tmp_path).faults
    assert [fault.kind for fault in faults] == ["object without pixels", "tiny objects"]
    assert faults[0].severity == "fault" and "has 1 object without a pixel." in faults[0].what
    assert faults[0].count == 1 and "has 1 object of fewer" in faults[1].what


@pytest.mark.parametrize("count", [1, 2])
def test_a_split_that_the_seed_leaves_empty_is_a_fault(tmp_path, count):
    for name in "ab"[:count]:
        picture(tmp_path / "images" / f"{name}.png")
        mask(tmp_path / "masks" / f"{name}.png", index_mask())
    found = inspect_dataset(tmp_path)
    assert not found.ok and "draws none for val" in only(found, "split without pictures").what
    assert ("data.seed: " in found.faults[0].mend) is (count == 2)
    assert found.lines()[0].endswith(f"{count} picture{'s' * (count > 1)} (train {count})")


@pytest.mark.parametrize("how", ["folder", "list"])
def test_an_empty_split_is_a_fault(sound, how):
    if how == "folder":
        (sound / "images" / "val").mkdir()
    else:
        for kind in ("images", "masks"):
            for path in (sound / kind / "train").iterdir():
                path.rename(sound / kind / path.name)
            (sound / kind / "train").rmdir()
        (sound / "train.txt").write_text("a\nb\nc\n")
        (sound / "val.txt").touch()
    assert "val" in only(inspect_dataset(sound), "split without pictures").what


def test_colour_surprises(sound):
    mask(sound / "masks" / "train" / "a.png", np.dstack([index_mask()] * 3))
    assert only(inspect_dataset(sound), "ids saved as colours").severity == "note"
    colors = np.array([[0, 0, 9], [0, 9, 0], [9, 0, 0]], np.uint8)
    mask(sound / "masks" / "train" / "a.png", colors[index_mask()])
    fault = only(inspect_dataset(sound, settings=FolderSettings(kind="index")), "label file cannot be used")
    assert "holds colours, expected ids" in fault.what


def test_palette_among_colours(sound):
    colors = [[0, 0, 9], [0, 9, 0], [9, 0, 0]]
    (sound / "classes.json").write_text(json.dumps({"classes": NAMES, "colors": colors}))
    for name in "abc":
        pixels = np.array(colors, np.uint8)[index_mask()]
        Image.fromarray(pixels).save(sound / "masks" / "train" / f"{name}.png")
    palette = Image.fromarray(index_mask()).convert("P")
    palette.putpalette(np.array(colors, np.uint8).tobytes())
    palette.save(sound / "masks" / "train" / "b.png")
    found = inspect_dataset(sound, settings=FolderSettings(kind="colour"))
    assert only(found, "mixed label files").files[0].endswith("b.png")
    assert [entry.share for entry in found.classes] == [0.4, 0.4, 0.2]


def test_goes_on_after_every_fault(sound):
    folder = sound / "masks" / "train"
    (folder / "a.png").write_bytes(b"")
    (folder / "b.png").unlink()
    mask(folder / "c.png", index_mask()[:4])
    (sound / "images" / "train" / "a.png").write_text("no picture")
    kinds = {fault.kind for fault in inspect_dataset(sound).faults}
    wanted = {"picture cannot be used", "label file cannot be used", "picture without label file", "sizes differ"}
    assert kinds == wanted


@pytest.mark.parametrize("broken", ["missing", "empty", "no masks", "table", "task"])
def test_what_cannot_be_understood_is_a_fault_too(sound, broken):
    place, task = sound, None
    if broken == "missing":
        place = sound / "none"
    elif broken == "empty":
        place = sound / "empty"
        place.mkdir()
    elif broken == "no masks":
        shutil.rmtree(sound / "masks")
    elif broken == "table":
        (sound / "classes.json").write_text("{")
    else:
        task = "instance"
    found = inspect_dataset(place, task=task)
    assert not found.ok and found.faults[0].kind == "not understood" and found.lines()
    json.dumps(found.to_dict())


def test_equal_faults_stand_together():
    lines = grouped(Fault("fault", "too blue", f"{i}.png is blue.", (), "Mend it.") for i in range(25))
    assert lines[0] == "fault: too blue (25 times)"
    assert lines[1:11] == [f"  {i}.png is blue." for i in range(10)]
    assert lines[11:] == ["  and 15 more", "  mend: Mend it."]


def test_a_fault_that_stands_for_many_is_counted():
    lines = grouped(
        [Fault("note", "too blue", "a.png is blue.", (), "", 1500), Fault("note", "too blue", "b.", (), "")]
    )
    assert lines == ["note: too blue (1,501 times)", "  a.png is blue.", "  b."]


def test_sheet_is_spread_and_skips_the_broken(sound):
    for i in range(20):
        picture(sound / "images" / "train" / f"n{i:02}.png")
        mask(sound / "masks" / "train" / f"n{i:02}.png", index_mask())
    data = open_dataset(sound)
    names = [sample.name for sample in sheet_samples(data, 4)]
    assert names == [data.name(i) for i in (2, 8, 14, 20)]
    assert len(sheet_samples(data, 100)) == 23
    (sound / "masks" / "train" / "a.png").write_bytes(b"x")
    assert len(sheet_samples(data, 100)) == 22


@pytest.mark.parametrize(("channels", "ok"), [(3, False), (5, True)])
def test_pictures_are_read_as_training_reads_them(sound, channels, ok):
    for path in (sound / "images" / "train").iterdir():
        path.unlink()
        planes = np.zeros((*SIZE, 5), np.uint8)
        tifffile.imwrite(path.with_suffix(".tif"), planes, photometric="minisblack", planarconfig="contig")
    found = inspect_dataset(sound, settings=FolderSettings(channels=channels))
    assert found.ok is ok
    assert {fault.kind for fault in found.faults} == (set() if ok else {"picture cannot be used"})


def test_a_file_of_unknown_ids_alone_is_told(sound):
    mask(sound / "masks" / "train" / "b.png", np.full(SIZE, 9, np.uint8))
    assert "9 (200 pixels)" in only(inspect_dataset(sound), "unknown ids").what


def test_street(shared):
    found = inspect_dataset(shared / "data" / "street")
    assert found.ok and found.splits == {"train": 367, "val": 101} and len(found.classes) == 11
    assert abs(sum(entry.share for entry in found.classes) - 1) < 1e-9
    pixels = np.zeros(256, np.int64)
    for path in sorted((shared / "data" / "street" / "masks").rglob("*.png")):
        pixels += np.bincount(np.asarray(Image.open(path)).ravel(), minlength=256)
    assert [entry.pixels for entry in found.classes] == pixels[:11].tolist()
    assert found.void_share == pixels[11] / pixels.sum()


def test_one_number_for_several_blobs_is_noted(tmp_path):
    """A mask of background and foreground among object ids, say."""
    for name in "ab":
        picture(tmp_path / "images" / f"{name}.png")
    apart, whole = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    apart[1:4, 1:5] = apart[6:9, 12:16] = 255
    whole[1:9, 1:9] = 1
    whole[1:9, 10:18] = 2
    whole[0, 19] = 2  # a speck is no part
    mask(tmp_path / "ids" / "a.png", apart)
    mask(tmp_path / "ids" / "b.png", whole)
    (note,) = (f for f in inspect_dataset(tmp_path).faults if f.kind == "object in several parts")
    assert note.severity == "note" and note.files == (str(tmp_path / "ids" / "a.png"),) and "1 object" in note.what
