"""Objects in files: read back by the tools they are made for, and compared with the masks."""

import json
import resource
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from finder import CLASSES, Finder, areas_picture, found
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kirie.classes import Classes
from kirie.coco_words import category_ids
from kirie.errors import KirieError
from kirie.files import Frame, growing_file
from kirie.masks import Crop, Masks
from kirie.prediction.manifest import MANIFEST
from kirie.prediction.naming import read_listing
from kirie.prediction.object_files import yolo_labels
from kirie.prediction.picture_files import Growing, Predicted, Run, save_ids
from kirie.prediction.predict_files import predict_files
from kirie.prediction.predictor import Predictor
from kirie.results import Instances

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools

OBJECT_KINDS = ["labels", "overlay", "ids", "csv", "coco", "yolo", "cutouts"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, seed=0, size=(60, 80)):
    """Writes a picture; gives what is to be found in it."""
    picture = areas_picture(size, seed)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(name)
    return found(picture / 255, most=500)


def run(inputs, kinds, out="out", **options):
    predictor = Predictor(Finder(), device="cpu", max_detections=500)
    return list(predict_files(predictor, inputs, out, kinds=kinds, **options))


def files_in(folder):
    """All files but the manifest of what was done."""
    names = (p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())
    return sorted(name for name in names if name != MANIFEST)


def read(path):
    return json.loads(Path(path).read_text("utf-8"))


@contextmanager
def small_disk(limit):
    """A system that refuses to write files above `limit` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# COCO


def test_coco_results_are_read_by_pycocotools_and_are_the_masks():
    truths = {name: write(name, seed) for seed, name in enumerate(["b.png", "a.png"])}
    assert all(outcome.error is None and outcome.written == () for outcome in run(list(truths), ["coco"]))
    images = COCO("out/images.json")
    results = images.loadRes("out/results.json")
    assert {row["file_name"]: row["id"] for row in images.imgs.values()} == {"b.png": 1, "a.png": 2}
    assert {row["name"]: row["id"] for row in images.cats.values()} == dict(
        zip(CLASSES.names, CLASSES.ids, strict=True)
    )
    for number, truth in enumerate(truths.values(), 1):
        entries = results.loadAnns(results.getAnnIds(imgIds=[number]))
        assert [entry["category_id"] for entry in entries] == [CLASSES.ids[label] for label in truth.labels]
        assert [entry["score"] for entry in entries] == pytest.approx(truth.scores.tolist(), abs=1e-6)
        for entry, mask, box in zip(entries, truth.masks, truth.boxes.tolist(), strict=True):
            assert np.array_equal(results.annToMask(entry).astype(bool), mask)
            assert entry["bbox"] == [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            assert isinstance(entry["segmentation"]["counts"], str)


def test_results_with_the_ids_of_a_data_set_reach_an_ap_of_1_on_it():
    truths = {name: write(name, seed) for seed, name in enumerate(["one.png", "two.png"])}
    data = {
        "images": [
            {"id": i, "file_name": f"val/{n}", "height": 60, "width": 80} for i, n in ((40, "two.png"), (9, "one.png"))
        ],
        "categories": [{"id": i, "name": n} for i, n in zip(CLASSES.ids, CLASSES.names, strict=True)],
        "annotations": [],
    }
    for number, truth in ((9, truths["one.png"]), (40, truths["two.png"])):
        for label, rle in zip(truth.labels.tolist(), truth.masks.rles(), strict=True):
            entry = {"id": len(data["annotations"]) + 1, "image_id": number, "category_id": CLASSES.ids[label]}
            area = float(coco_mask.area(rle))
            box = coco_mask.toBbox(rle).tolist()
            rle = {"size": rle["size"], "counts": rle["counts"].decode()}
            data["annotations"].append({**entry, "segmentation": rle, "area": area, "bbox": box, "iscrowd": 0})
    Path("val.json").write_text(json.dumps(data))
    run(list(truths), ["coco"], images="val.json")
    assert {entry["image_id"] for entry in read("out/results.json")} == {9, 40}
    coco = COCO("val.json")
    for kind in ("segm", "bbox"):
        evaluation = COCOeval(coco, coco.loadRes("out/results.json"), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1)


def test_no_category_is_called_0():
    assert category_ids(Classes(("a", "b"))) == (1, 2) and category_ids(CLASSES) == (7, 3, 90)


def test_categories_have_the_ids_of_the_file_by_their_names():
    truth = write("a.png")
    ids = {"blue": 0, "green": 1, "a": 2, "red cell ": 3}  # as tools write them that count from 0
    data = {
        "images": [{"id": 5, "file_name": "a.png"}],
        "categories": [{"id": i, "name": n} for n, i in ids.items()],
    }
    Path("val.json").write_text(json.dumps(data))
    run(["a.png"], ["coco"], images="val.json")
    own = [{"red cell": 3, "green": 1, "blue": 0}[CLASSES.names[label]] for label in truth.labels]
    assert [entry["category_id"] for entry in read("out/results.json")] == own
    assert {c["name"]: c["id"] for c in read("out/images.json")["categories"]} == {"red cell": 3, "green": 1, "blue": 0}
    data["categories"].pop(0)
    Path("val.json").write_text(json.dumps(data))
    with pytest.raises(KirieError, match=r"val\.json lists no category called blue; give the file"):
        run(["a.png"], ["coco"], images="val.json")


def test_of_a_file_of_ids_only_the_pictures_at_hand_are_kept(monkeypatch):
    monkeypatch.setattr("kirie.reading.json_stream.CHUNK", 2**14)
    rows = ({"id": i, "file_name": f"{i}.png", "height": 60, "width": 80} for i in range(6_000))
    Path("all.json").write_text(json.dumps({"annotations": [[0] * 1000] * 50, "images": list(rows)}))
    peaks = []
    for _ in range(2):  # in one of them a table of the interpreter's own may grow
        tracemalloc.start()
        listing = read_listing("all.json", [Path("x/77.png")], CLASSES)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert listing.images == {"77.png": {77}} and listing.categories is None
    assert min(peaks) < Path("all.json").stat().st_size, "json.load takes some four times as much as the file"


def test_names_that_are_numbers_are_the_ids():
    for name in ("000000000139.png", "x/000000000009.png"):
        write(name)
    run(["000000000139.png", "x"], ["coco"])
    assert {row["file_name"]: row["id"] for row in read("out/images.json")["images"]} == {
        "000000000139.png": 139,
        "000000000009.png": 9,
    }
    write("7.png"), write("07.png")
    run(["7.png", "07.png"], ["coco"])
    assert [row["id"] for row in read("out/images.json")["images"]] == [1, 2], "both would be 7"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "no sound JSON"),
        ('{"images": [{"id": "7", "file_name": "a.png"}]}', "does not list pictures"),
        ('{"images": [{"id": 7}]}', "does not list pictures"),
        ("{", "no sound JSON"),
        ("[" * 100_000, "no sound JSON"),
        ('{"images": [{"id": 7, "file_name": "b.png"}]}', "no picture called a.png"),
        ('{"images": [{"id": 7, "file_name": "x/a.png"}, {"id": 8, "file_name": "y/a.png"}]}', "more than one picture"),
        ('{"images": [{"id": 7, "file_name": "a.png"}], "categories": ["a"]}', "does not list pictures"),
    ],
)
def test_a_file_that_does_not_tell_the_ids(text, told):
    write("a.png")
    Path("ids.json").write_text(text)
    with pytest.raises(KirieError, match=told):
        run(["a.png"], ["coco"], images="ids.json")
    assert not Path("out").exists()


# YOLO


def yolo_masks(path, size):
    """The classes and masks of a YOLO file, filled by pycocotools."""
    height, width = size
    for line in Path(path).read_text().splitlines():
        label, *shares = line.split()
        points = np.array(shares, float).reshape(-1, 2)
        assert points.min() >= 0 and points.max() <= 1
        rle = coco_mask.merge(coco_mask.frPyObjects([(points * (width, height)).ravel().tolist()], height, width))
        yield int(label), coco_mask.decode(rle).astype(bool)


def test_yolo_polygons_filled_again_are_the_masks():
    picture = np.zeros((97, 133, 3), np.uint8)
    picture[10:60, 10:50, 0] = picture[:, 70:, 1] = 200
    picture[20:30, 20:30, 0] = picture[40:41, 22:23, 0] = picture[50:, 90:100, 1] = 0  # holes
    picture[70:80, :40, 2] = np.eye(10, 40) * 200  # pixels that touch at corners: an object each
    Image.fromarray(picture).save("a.png")
    truth = found(picture / 255)
    (outcome,) = run(["a.png"], ["yolo"])
    assert outcome.written == (Path("out/a.txt"),)
    back = list(yolo_masks("out/a.txt", (97, 133)))
    assert [label for label, _ in back] == truth.labels.tolist()
    assert len(back) == 12 and max(len(line.split()) for line in Path("out/a.txt").read_text().splitlines()) > 2 * 12, (
        "with holes"
    )
    for (_, mask), expected in zip(back, truth.masks, strict=True):
        assert np.array_equal(mask, expected)
    assert yaml.safe_load(Path("out/data.yaml").read_text()) == {"names": dict(enumerate(CLASSES.names))}


def test_an_object_of_several_parts_is_one_line():
    bits = np.zeros((40, 50), bool)
    bits[3:9, 4:12] = bits[20:35, 5:45] = bits[0, 49] = True
    bits[24:30, 10:20] = bits[26, 30] = False
    masks = Masks.from_dense(np.stack([bits, np.zeros_like(bits), ~bits]))
    result = Instances.from_masks(masks, [2, 0, 1], CLASSES)
    with yolo_labels(Run(Path("out"), CLASSES, 3, CLASSES.ids, Growing(Path("out"), {}))) as write_one:
        write_one(Predicted(Path("a.png"), "a", "a.png", 1, np.zeros((40, 50, 3), np.uint8), result))
    (one, first), (other, second) = yolo_masks("out/a.txt", (40, 50))
    assert (one, other) == (2, 1) and np.array_equal(first, bits) and np.array_equal(second, ~bits)


def test_the_names_of_the_classes_are_written_last():
    for name in ("a.png", "b.png"):
        write(name)
    Path("out").mkdir()
    Path("out/data.yaml").write_text("names: {0: earlier}\n")
    outcomes = predict_files(Predictor(Finder(), device="cpu"), ["a.png", "b.png"], "out", kinds=["yolo"])
    next(outcomes)
    assert Path("out/data.yaml").read_text() == "names: {0: earlier}\n"
    assert len(list(outcomes)) == 1
    assert yaml.safe_load(Path("out/data.yaml").read_text())["names"][0] == "red cell"


@pytest.mark.parametrize("text", ["train: images/train\nnames: [a]\n", "- a\n", "a: {", "", "n" * 2**21])
def test_the_description_of_a_data_set_is_not_replaced(text):
    write("images/a.png")
    Path("data.yaml").write_text(text)
    with pytest.raises(KirieError, match=r"data\.yaml"):
        run(["images"], ["yolo"], out=".")
    assert files_in(".") == ["data.yaml", "images/a.png"] and Path("data.yaml").read_text() == text


@pytest.mark.parametrize(
    ("picture", "label", "kind"),
    [
        ("data/images/val/a.png", "data/labels/val/a.txt", "yolo"),
        ("data/val/images/a.png", "data/val/labels/a.txt", "yolo"),
        ("data/a.png", "data/a.txt", "yolo"),
        ("data/images/a.png", "data/masks/a.png", "labels"),
        ("data/JPEGImages/a.png", "data/SegmentationObject/a.png", "labels"),
        ("data/images/val/a.png", "data/masks/val/a_ids.png", "ids"),
    ],
)
def test_the_label_of_a_picture_is_not_replaced(picture, label, kind):
    write(picture)
    Path(label).parent.mkdir(parents=True, exist_ok=True)
    assert [o.error for o in run([picture], [kind], out=Path(label).parent)] == [None], "where there is none it is made"
    Path(label).write_text("mine")
    with pytest.raises(KirieError, match=f"would replace its label {label}; choose another folder"):
        run([picture], [kind], out=Path(label).parent)
    assert Path(label).read_text() == "mine"
    assert [outcome.error for _ in range(2) for outcome in run([picture], [kind], out="cut")] == [None, None]


def test_a_file_among_the_pictures_is_not_replaced():
    """A label with an ending of its own beside its picture, say."""
    write("data/a.png")
    Path("data/a_ids.png").write_text("mine")
    with pytest.raises(KirieError, match=r"would replace data/a_ids\.png, which lies among the pictures"):
        run(["data/a.png"], ["ids"], out="data")
    assert Path("data/a_ids.png").read_text() == "mine"
    run(["data/a.png"], ["csv"], out="data")
    with pytest.raises(KirieError, match=r"would replace data/objects\.csv"):
        run(["data/a.png"], ["csv"], out="data")


# Id maps, label maps, cut-outs


def test_an_id_map_holds_the_masks_the_surest_on_top():
    truth = write("a.png")
    run(["a.png"], ["ids", "labels"])
    ids = np.asarray(Image.open("out/a_ids.png"))
    assert ids.dtype == np.uint16
    covered = np.zeros(ids.shape, bool)
    for index, mask in enumerate(truth.masks):  # the surest first
        assert np.array_equal(ids == index + 1, mask & ~covered)
        covered |= mask
    assert covered.any() and (ids[~covered] == 0).all()
    labels = np.asarray(Image.open("out/a.png"))
    assert (labels[~covered] == 0).all()
    for index, label in enumerate(truth.labels):
        assert (labels[ids == index + 1] == CLASSES.ids[label]).all(), "the ids that the classes have in files"


def test_more_objects_than_16_bits_count_go_into_a_tiff():
    count = 65536
    crops = [Crop(i // 300, i % 300, np.ones((1, 1), bool)) for i in range(count)]
    boxes = np.zeros((count, 4), np.float32)
    masks = Masks((300, 300), tuple(crops))
    result = Instances(boxes, np.zeros(count, np.int64), np.ones(count, np.float32), masks, (300, 300), CLASSES)
    (path,) = save_ids(
        Path("out"), Predicted(Path("a.png"), "a", "a.png", 1, np.zeros((300, 300, 3), np.uint8), result)
    )
    ids = tifffile.imread(path)
    assert path.name == "a_ids.tif" and ids.dtype == np.uint32
    assert np.array_equal(ids.ravel()[:count], np.arange(1, count + 1)) and not ids.ravel()[count:].any()


def test_cutouts_are_the_pixels_of_the_masks():
    truth = write("a.png")
    picture = np.asarray(Image.open("a.png"))
    (outcome,) = run(["a.png"], ["cutouts"])
    assert [path.relative_to("out/cutouts").as_posix() for path in outcome.written] == [
        f"a_{i + 1:04d}_{CLASSES.names[label].replace(' ', '-')}.png" for i, label in enumerate(truth.labels)
    ]
    for path, mask, box in zip(outcome.written, truth.masks, truth.masks.boxes().astype(int), strict=True):
        left, top, right, bottom = box
        cut = np.asarray(Image.open(path))
        assert cut.shape == (bottom - top, right - left, 4)
        inside = mask[top:bottom, left:right]
        assert np.array_equal(cut[..., 3], inside * np.uint8(255))
        assert np.array_equal(cut[inside][:, :3], picture[top:bottom, left:right][inside])


# A run


def test_a_bad_picture_costs_only_its_own_rows():
    truths = {name: write(name, seed) for seed, name in enumerate(["a.png", "c.png"])}
    Path("b.png").write_bytes(b"broken")
    outcomes = run(["a.png", "b.png", "no.png", "c.png"], OBJECT_KINDS)
    assert [outcome.error is None for outcome in outcomes] == [True, False, False, True]
    assert [row["file_name"] for row in read("out/images.json")["images"]] == ["a.png", "c.png"]
    assert len(read("out/results.json")) == sum(len(truth) for truth in truths.values())
    assert {row["image_id"] for row in read("out/results.json")} == {1, 4}
    assert Path("out/counts.csv").read_text().count("\n") == 3


def test_a_run_without_objects_still_writes_sound_files():
    Image.new("RGB", (30, 20)).save("a.png")
    assert run(["a.png"], OBJECT_KINDS)[0].error is None
    assert read("out/results.json") == [] and len(read("out/images.json")["images"]) == 1
    assert Path("out/a.txt").read_text() == "" and not Path("out/cutouts").exists()
    assert Path("out/objects.csv").read_text().count("\n") == 1


def test_a_run_that_is_broken_off_leaves_earlier_files_and_no_half_ones():
    for index in range(3):
        write(f"{index}.png", index)
    Path("out").mkdir()
    Path("out/results.json").write_text("earlier")
    outcomes = predict_files(Predictor(Finder(), device="cpu"), ["*.png"], "out", kinds=["coco", "csv", "yolo"])
    next(outcomes)
    outcomes.close()
    hidden = [f".{name}.part" for name in ("counts.csv", "images.json", "objects.csv", "results.json")]
    assert files_in("out") == [*hidden, "0.txt", "1.txt", "results.json"], "what was being written is whole, too"
    assert Path("out/results.json").read_text() == "earlier"


def test_a_full_disk_is_told_and_the_files_about_all_pictures_stay_sound():
    write("a.png", 0, size=(20, 20))
    write("b.png", 1, size=(200, 300))
    write("c.png", 2, size=(20, 20))
    with small_disk(6000):
        outcomes = run(["a.png", "b.png", "c.png"], ["coco"])
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert "results.json" in outcomes[1].error and "space" in outcomes[1].error
    assert {row["image_id"] for row in read("out/results.json")} == {1, 3}
    assert files_in("out") == ["images.json", "results.json"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a_ids.png", "ids"), ("cutouts/a.png", "cutouts"), ("a_ids.tif", "ids"), ("a_overlay.jpg", "overlay")],
)
def test_an_output_never_replaces_a_picture(name, kind):
    for each in ("a.png", name):
        write(each)
    before = Path(name).read_bytes()
    with pytest.raises(KirieError, match="would replace the picture"):
        run(["a.png", name], [kind], out=".")
    assert Path(name).read_bytes() == before


def test_two_results_never_share_a_file():
    for name in ("a.png", "a_ids.png"):
        write(name)
    with pytest.raises(KirieError, match=r"Two results would be written to out/a_ids\.png"):
        run(["a.png", "a_ids.png"], ["labels", "ids"])
    assert [outcome.error for outcome in run(["a.png", "a_ids.png"], ["ids"])] == [None, None]


def test_objects_are_never_made_dense(monkeypatch):
    write("a.png")
    predictor = Predictor(Finder(), device="cpu")
    (result,) = predictor([areas_picture()])
    monkeypatch.setattr(Finder, "decode", lambda self, raw, sizes, **_: [result])
    monkeypatch.setattr(Masks, "dense", lambda self: 1 / 0)
    (outcome,) = predict_files(predictor, ["a.png"], "out", kinds=OBJECT_KINDS)
    assert outcome.error is None


# Files that grow


def test_a_growing_file_is_put_in_place_at_the_end():
    with growing_file("a.json", Frame("[", "]", ", ")) as file:
        for record in ("1", "2", '"ü"'):
            file.add(record)
            assert not Path("a.json").exists()
    assert Path("a.json").read_text("utf-8") == '[1, 2, "ü"]'
    with growing_file("b.csv", Frame("head\n")):
        pass
    assert Path("b.csv").read_text() == "head\n"


def test_a_record_that_is_refused_leaves_the_others():
    with small_disk(60), growing_file("a.json", Frame("[\n", "\n]\n", ",\n")) as file:
        file.add("1")
        with pytest.raises(KirieError, match=r"a\.json"):
            file.add("9" * 100)
        file.add("2")
    assert read("a.json") == [1, 2]


def broken_off(name, *records):
    """A growing file that gets some records, and where it ended after the first two of them."""
    ends = []
    with pytest.raises(ZeroDivisionError), growing_file(name, Frame("[", "]", ", ")) as file:
        for record in records:
            file.add(record)
            ends.append(file.end)
        _ = 1 / 0
    return ends[1]


def test_a_growing_file_that_is_broken_off_leaves_the_earlier_one_and_goes_on():
    Path("a.json").write_text("earlier")
    end = broken_off("a.json", "1", "2", "3")
    assert Path("a.json").read_text() == "earlier" and Path(".a.json.part").read_text() == "[1, 2, 3]"
    with growing_file("a.json", Frame("[", "]", ", "), end=end) as file:
        assert Path(".a.json.part").read_text() == "[1, 2]"
        file.add("4")
    assert files_in(".") == ["a.json"] and Path("a.json").read_text() == "[1, 2, 4]"
