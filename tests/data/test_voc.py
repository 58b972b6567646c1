import pickle
import shutil

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import VOCSegmentation

from kirie.class_lists import VOC
from kirie.data import open_dataset
from kirie.data.folders import FolderDataset, FolderSettings
from kirie.data.inspect import inspect_dataset
from kirie.data.voc import VocDataset
from kirie.errors import KirieError

SIZE = (12, 16)


def labels(seed=0):
    """An (12, 16) map of VOC indices with some void."""
    return np.random.default_rng(seed).choice(np.array([0, 1, 15, 20, 255], np.uint8), SIZE)


def picture(home, name, folder="JPEGImages"):
    (home / folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(home / folder / f"{name}.jpg")


def mask(home, name, pixels, folder="SegmentationClass"):
    """A palette PNG, as the release has them."""
    (home / folder / name).parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    image.putpalette(np.array(VOC.colors, np.uint8).tobytes())
    image.save(home / folder / f"{name}.png")


def write_list(home, name, *entries):
    folder = home / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text("".join(f"{entry}\n" for entry in entries))


@pytest.fixture
def voc(tmp_path):
    """Three pictures to train, two to measure, one without a mask and in no list, as in the release."""
    home = tmp_path / "VOCdevkit" / "VOC2012"
    for index in range(5):
        picture(home, f"2007_00{index}")
        mask(home, f"2007_00{index}", labels(index))
    picture(home, "2008_000")
    write_list(home, "train", "2007_000", "2007_001", "2007_002")
    write_list(home, "val", "2007_003", "2007_004")
    write_list(home, "trainval", *(f"2007_00{index}" for index in range(5)))
    return home


@pytest.mark.parametrize("above", ["", "..", "../.."])
def test_release(voc, above):
    path = (voc / above).resolve()
    train, val, every = (open_dataset(path, split) for split in ("train", "val", None))
    assert type(train) is VocDataset and (len(train), len(val), len(every)) == (3, 2, 5)
    assert train.splits == ("train", "val") and train.task == "semantic"
    assert train.classes == VOC
    for index in range(5):
        sample = every[index]
        assert np.array_equal(sample.truth.labels, labels(index))
        assert (path / sample.name).is_file()
    assert len(pickle.loads(pickle.dumps(train)).only("val")) == 2
    found = inspect_dataset(path)
    assert found.ok and found.published == "Pascal VOC" and found.splits == {"train": 3, "val": 2}
    assert {fault.kind for fault in found.faults} == {"class never occurs", "one picture in two splits"}
    assert "classes of Pascal VOC" in "\n".join(found.lines())


def test_colour_coded_copy(voc):
    table = np.full((256, 3), (224, 224, 192), np.uint8)
    table[:21] = VOC.colors
    for index in range(5):
        Image.fromarray(table[labels(index)]).save(voc / "SegmentationClass" / f"2007_00{index}.png")
    data = open_dataset(voc)
    assert data.form.kind == "colour"
    assert np.array_equal(data[3].truth.labels, labels(3))


def test_enlarged_list(voc):
    """The official mask goes before the one of the Semantic Boundaries Dataset, which has more pictures."""
    for name in ("2007_001", "2008_000"):
        (voc / "SegmentationClassAug").mkdir(exist_ok=True)
        Image.fromarray(np.full(SIZE, 7, np.uint8)).save(voc / "SegmentationClassAug" / f"{name}.png")
    write_list(voc, "trainaug", "2007_000", "2007_001", "2008_000")
    train = open_dataset(voc, "train")
    assert [train.name(i)[-12:] for i in range(3)] == ["2007_000.jpg", "2007_001.jpg", "2008_000.jpg"]
    assert np.array_equal(train[1].truth.labels, labels(1)) and (train[2].truth.labels == 7).all()
    assert len(open_dataset(voc, "val")) == 2
    plain = open_dataset(voc, "train", settings=FolderSettings(masks="SegmentationClass"))
    assert [plain.name(i)[-5] for i in range(3)] == ["0", "1", "2"]


def test_own_classes(voc):
    (voc / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nbolt:250,50,183::\n")
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[4:] = (250, 50, 183)
    for path in (voc / "SegmentationClass").iterdir():
        Image.fromarray(pixels).save(path)
    data = open_dataset(voc, "val")
    assert data.classes.names == ("background", "bolt") and data.classes.colors[1] == (250, 50, 183)
    assert data[0].truth.labels.sum() == 8 * 16
    found = inspect_dataset(voc)
    assert found.ok and not found.published


def test_lists_of_no_split_make_a_pool(voc):
    shutil.rmtree(voc / "ImageSets")
    write_list(voc, "default", *(f"2007_00{index}" for index in range(5)))
    seed = next(s for s in range(99) if 0 < len(drawn(voc, s, "val")) < 5)
    train, val = (drawn(voc, seed, split) for split in ("train", "val"))
    assert train | val == {f"2007_00{index}" for index in range(5)} and not train & val


def drawn(voc, seed, split):
    try:
        data = open_dataset(voc, split, settings=FolderSettings(seed=seed))
    except KirieError:
        return set()
    return {data.name(i).rpartition("/")[2][:8] for i in range(len(data))}


@pytest.mark.parametrize("entry", ["{}", "{}.jpg", "JPEGImages/{}.jpg", "/JPEGImages/{}.jpg"])
def test_spellings_in_lists(voc, entry):
    write_list(voc, "val", "# as some tools write it", "", entry.format("2007_003"))
    assert open_dataset(voc, "val").name(0).endswith("2007_003.jpg")


def test_test_pictures_without_masks(voc):
    write_list(voc, "test", "2008_000")
    data = open_dataset(voc)
    assert data.splits == ("train", "val") and len(data) == 5
    with pytest.raises(KirieError, match="None of 1 test picture has a label file"):
        data.only("test")
    found = inspect_dataset(voc)
    assert found.ok and "split without truth" in {fault.kind for fault in found.faults}


def faults(voc):
    return {fault.kind: fault for fault in inspect_dataset(voc).faults if fault.severity == "fault"}


def test_what_is_wrong_is_told(voc):
    write_list(voc, "train", "2007_000", "2007_009", "2008_000")  # one is not there, one has no mask
    (voc / "SegmentationClass" / "2009_000.png").write_bytes(b"")
    pixels = labels(3)
    pixels[0, :2] = 77
    mask(voc, "2007_003", pixels)
    found = faults(voc)
    assert set(found) == {
        "listed picture is missing", "picture without label file", "label file without picture", "unknown ids",
    }  # fmt: skip
    assert found["listed picture is missing"].files == ("2007_009",)
    assert "77 (2 pixels)" in found["unknown ids"].what
    assert open_dataset(voc, "train")[0].truth.size == SIZE
    with pytest.raises(KirieError, match=r"2008_000\.jpg has no label file"):
        open_dataset(voc, "train")[1]
    with pytest.raises(KirieError, match=r"2007_003\.png holds ids that are no class"):
        open_dataset(voc, "val")[0]


def test_empty_list(voc):
    write_list(voc, "val")
    with pytest.raises(KirieError, match=r"val\.txt names no picture that is there"):
        open_dataset(voc, "val")
    assert set(faults(voc)) == {"split without pictures"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda home: shutil.rmtree(home / "ImageSets" / "Segmentation"), "no list files"),
        (
            lambda home: [write_list(home, n, f"{n}9") for n in ("train", "val", "trainval")],
            "no picture that its lists name",
        ),
        (lambda home: write_list(home, "val", "2007_000"), "lists of both"),
        (lambda home: (home / "ImageSets/Segmentation/val.txt").write_bytes(b"\xff\xfe\x00"), "no UTF-8 text"),
        (
            lambda home: shutil.rmtree(home / "SegmentationClass") or (home / "SegmentationClass").mkdir(),
            "no label file",
        ),
        (lambda home: shutil.copytree(home, home.parent / "VOC2007"), "several data sets"),
    ],
)
def test_what_cannot_be_understood(voc, change, why):
    change(voc)
    with pytest.raises(KirieError, match=why):
        open_dataset(voc.parent)
    found = inspect_dataset(voc.parent)
    assert not found.ok and why in found.faults[0].what


def test_objects_are_not_there(voc):
    with pytest.raises(KirieError, match="cannot train task 'instance'"):
        open_dataset(voc, task="instance")


def test_without_lists_it_is_plain_folders(voc):
    shutil.rmtree(voc / "ImageSets")
    assert type(open_dataset(voc)) is FolderDataset


def test_street_laid_out_as_voc_is_the_same(shared, tmp_path):
    plain = open_dataset(shared / "data" / "street", "val")
    home = tmp_path / "street"
    for folder in ("JPEGImages", "SegmentationClass"):
        (home / folder).mkdir(parents=True)
    stems = []
    for index in range(0, len(plain), 20):
        facts = plain.file_facts(index)
        stems.append(f"street {index}")
        shutil.copy(facts["image"], home / "JPEGImages" / f"street {index}.jpg")
        shutil.copy(facts["mask"], home / "SegmentationClass" / f"street {index}.png")
    shutil.copy(shared / "data" / "street" / "classes.json", home)
    write_list(home, "train", *stems[:2])
    write_list(home, "val", *stems[2:])
    data = open_dataset(home)
    assert type(data) is VocDataset and data.classes.names == plain.classes.names and len(data) == len(stems)
    for index in range(len(data)):
        source = plain[int(data.name(index).split()[1][:-4])]
        assert np.array_equal(data[index].truth.labels, source.truth.labels)
        assert np.array_equal(data[index].image, source.image)


# Objects


def objects(home, name, seed):
    """The two palette PNGs of a picture of the release: up to four boxes of classes with a border of 255 round each."""
    rng = np.random.default_rng(seed)
    numbers, classes = np.zeros((2, *SIZE), np.uint8)
    for number in range(1, 3 + seed % 3):
        top, left = rng.integers(0, (7, 11)).tolist()
        numbers[top : top + 5, left : left + 5] = classes[top : top + 5, left : left + 5] = 255
        numbers[top + 1 : top + 4, left + 1 : left + 4] = number
        classes[top + 1 : top + 4, left + 1 : left + 4] = rng.integers(1, 21)
    mask(home, name, numbers, "SegmentationObject")
    mask(home, name, classes)
    return numbers, classes


@pytest.fixture
def voc_objects(voc):
    for index in range(5):
        objects(voc, f"2007_00{index}", index)
    return voc


def check_objects(found, numbers, classes):
    """The masks and classes of the objects, against the pixels: void is no object."""
    present = [number for number in np.unique(numbers) if number not in (0, 255)]
    assert np.array_equal(found.masks.dense(), [numbers == number for number in present])
    assert [found.classes.names[i] for i in found.labels] == [
        VOC.names[np.bincount(classes[(numbers == number) & (classes < 21)]).argmax()] for number in present
    ]


@pytest.mark.parametrize("above", ["", "../.."])
def test_objects_of_the_release(voc_objects, above):
    path = (voc_objects / above).resolve()
    assert open_dataset(path).task == "semantic"
    theirs = VOCSegmentation(voc_objects.parent.parent, "2012", "train")
    train, every = open_dataset(path, "train", task="instance"), open_dataset(path, task="instance")
    assert type(train) is VocDataset and (train.task, len(train), len(every)) == ("instance", 3, 5)
    assert train.classes.names == VOC.names[1:] and train.classes.colors == VOC.colors[1:]
    for index in range(5):
        name = f"2007_00{index}"
        numbers, classes = objects(voc_objects, name, index)
        check_objects(every[index].truth, numbers, classes)
        facts = every.file_facts(index)
        assert facts["classes"].endswith(f"SegmentationClass/{name}.png") and "SegmentationObject" in facts["mask"]
        if index < 3:
            assert np.array_equal(np.asarray(theirs[index][1]), classes) and theirs.images[index] == facts["image"]
    assert len(pickle.loads(pickle.dumps(train)).only("val")[0].truth) > 0
    small = open_dataset(path, task="instance", settings=FolderSettings(short_side=6))[2]
    assert small.truth.size == small.image.shape[:2] == (6, 8)


def test_objects_by_counting(voc_objects):
    found = inspect_dataset(voc_objects, task="instance")
    drawn = [objects(voc_objects, f"2007_00{index}", index) for index in range(5)]
    assert found.ok and (found.task, found.format, found.published) == ("instance", "ids", "Pascal VOC")
    assert sum(entry.instances for entry in found.classes) == sum(len(set(n.ravel()) - {0, 255}) for n, _ in drawn)
    for number, entry in enumerate(found.classes, 1):
        assert entry.pixels == sum((classes == number).sum() for _, classes in drawn)


def in_colours(home):
    """The files of objects and of classes as CVAT writes both: the colour table of VOC in place of the numbers."""
    table = np.zeros((256, 3), np.uint8)
    for shift in range(8):
        for channel in range(3):
            table[:, channel] |= ((np.arange(256) >> (3 * shift + channel)) & 1).astype(np.uint8) << (7 - shift)
    for index in range(5):
        numbers, classes = objects(home, f"2007_00{index}", index)
        for folder, pixels in (("SegmentationObject", numbers), ("SegmentationClass", classes)):
            Image.fromarray(table[pixels]).save(home / folder / f"2007_00{index}.png")


@pytest.mark.parametrize("table", ["", "background:0,0,0::\nbolt:128,0,0::\n"])
def test_a_colour_for_each_object(voc_objects, table):
    in_colours(voc_objects)
    if table:
        (voc_objects / "labelmap.txt").write_text(table)
    data = open_dataset(voc_objects, task="instance")
    for index in range(5):
        truth, (numbers, classes) = data[index].truth, objects(voc_objects, "x", index)
        found = {m.tobytes(): truth.classes.names[i] for m, i in zip(truth.masks, truth.labels, strict=True)}
        assert found == {
            (numbers == n).tobytes(): "bolt" if table else VOC.names[classes[numbers == n].max()]
            for n in set(numbers.ravel()) - {0, 255}
        }


def test_one_class_of_objects(voc_objects):
    (voc_objects / "labelmap.txt").write_text("background:0,0,0::\nbolt:128,0,0::\n")
    for index in range(5):
        _, classes = objects(voc_objects, f"2007_00{index}", index)
        mask(voc_objects, f"2007_00{index}", np.where(classes == 255, 255, classes > 0).astype(np.uint8))
    data = open_dataset(voc_objects, task="instance")
    assert data.classes.names == ("bolt",)
    for index in range(5):
        numbers, _ = objects(voc_objects, "x", index)
        present = sorted(set(numbers.ravel()) - {0, 255})
        assert np.array_equal(data[index].truth.masks.dense(), [numbers == n for n in present])


def test_the_enlarged_list_has_no_objects(voc_objects):
    picture(voc_objects, "2008_000", "JPEGImages")
    mask(voc_objects, "2008_000", np.full(SIZE, 7, np.uint8), "SegmentationClassAug")
    write_list(voc_objects, "trainaug", "2007_000", "2008_000")
    assert len(open_dataset(voc_objects, "train", task="instance")) == 3
    assert len(open_dataset(voc_objects, "train")) == 2


def test_objects_that_are_wrong(voc_objects):
    write_list(voc_objects, "train", "2007_000", "2007_001", "2007_002", "2008_000")
    (voc_objects / "SegmentationClass" / "2007_000.png").unlink()
    numbers, classes = objects(voc_objects, "2007_001", 1)
    mask(voc_objects, "2007_001", np.where(numbers == 1, 77, classes).astype(np.uint8))
    mask(voc_objects, "2007_002", np.zeros((5, 5), np.uint8))
    data = open_dataset(voc_objects, "train", task="instance")
    for index, why in enumerate(
        ["no mask says their classes", r"77 \(9 pixels\)", "is 12 x 16 .* is 5 x 5", "no label file"]
    ):
        with pytest.raises(KirieError, match=why):
            data[index]
    kinds = {fault.kind for fault in inspect_dataset(voc_objects, task="instance").faults if fault.severity == "fault"}
    assert kinds == {
        "picture without class mask", "unknown ids", "label file cannot be used", "picture without label file",
    }  # fmt: skip


def test_panoptic_truth(voc_objects):
    """An object has the class that most of its pixels have, void and other pixels what the class mask says."""
    data = open_dataset(voc_objects, "train", task="panoptic")
    assert type(data) is VocDataset and data.classes == VOC and data.task == "panoptic"
    for index in range(len(data)):
        files, truth = data.file_facts(index), data[index].truth
        objects, classes = (np.asarray(Image.open(files[name])) for name in ("mask", "classes"))
        instances = open_dataset(voc_objects, "train", task="instance")[index].truth
        found = [(truth.ids == s.id, s.label) for s in truth.segments if s.is_thing and not s.crowd]
        assert len(found) == len(instances) > 0
        for (mask, label), own, name in zip(found, instances.masks, instances.labels, strict=True):
            assert np.array_equal(mask, own) and VOC.names[label] == instances.classes.names[name]
        covered = instances.masks.dense().any(0)
        for segment in truth.segments:
            if segment.crowd or not segment.is_thing:
                assert np.array_equal(truth.ids == segment.id, (classes == segment.label) & ~covered)
                assert segment.crowd == (segment.label > 0)
        assert np.array_equal(truth.ids == 0, (classes == 255) & ~covered)
        assert not (covered & ((objects == 0) | (objects == 255))).any()
