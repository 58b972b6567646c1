from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from skimage import data, measure

from kirie import demo, demo_pictures
from kirie.demo import SPLITS, make_demo
from kirie.demo_pictures import CLASSES, COIN, demo_picture, demo_source
from kirie.errors import KirieError
from kirie.progress import tracked

SMALL = {"pictures": 12, "size": (96, 128)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo") / "coins", **SMALL)


def read_truth(folder: Path, split: str, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels = np.asarray(Image.open(folder / "masks" / split / f"{name}.png"))
    ids = np.asarray(Image.open(folder / "ids" / split / f"{name}.png"))
    code = np.asarray(Image.open(folder / "panoptic" / split / f"{name}.png")).astype(np.int64)
    return labels, ids, code @ [1, 256, 65536]


def pictures(folder: Path, split: str) -> list[dict]:
    return json.loads((folder / f"instances_{split}.json").read_text())["images"]


def test_splits_hold_sixty_twenty_twenty_percent(made: Path):
    counts = {split: len(pictures(made, split)) for split in SPLITS}
    assert counts == {"train": 8, "val": 2, "test": 2}
    for split, count in counts.items():
        for kind in ("images", "masks", "ids", "panoptic"):
            assert len(list((made / kind / split).iterdir())) == count


def test_files_have_the_promised_form(made: Path):
    with Image.open(made / "images" / "train" / "0001.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (128, 96))
    with Image.open(made / "masks" / "train" / "0001.png") as mask:
        assert (mask.format, mask.mode, mask.size) == ("PNG", "P", (128, 96))
        assert np.array_equal(np.array(mask.getpalette()).reshape(-1, 3)[: len(CLASSES)], demo_pictures.COLORS)
    assert cv2.imread(str(made / "ids" / "train" / "0001.png"), cv2.IMREAD_UNCHANGED).dtype == np.uint16
    classes = json.loads((made / "classes.json").read_text())
    assert classes["classes"] == ["brick", "grass", "gravel", "coin"]
    assert classes["things"] == ["coin"]


@pytest.mark.parametrize("split", SPLITS)
def test_every_class_occurs_in_each_split(made: Path, split: str):
    seen = {int(v) for image in pictures(made, split) for v in np.unique(read_truth(made, split, image_name(image))[0])}
    assert seen == {0, 1, 2, 3}


def image_name(image: dict) -> str:
    return Path(image["file_name"]).stem


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with NumPy 2
@pytest.mark.parametrize("split", SPLITS)
def test_instance_truth_agrees_with_semantic_truth(made: Path, split: str):
    coco = json.loads((made / f"instances_{split}.json").read_text())
    assert coco["categories"][0]["id"] == 1 and coco["categories"][0]["name"] == "coin"
    assert len({a["id"] for a in coco["annotations"]}) == len(coco["annotations"])
    for image in coco["images"]:
        labels, ids, _ = read_truth(made, split, image_name(image))
        assert (image["height"], image["width"]) == labels.shape
        assert np.array_equal(ids > 0, labels == COIN)
        mine = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        assert len(mine) == ids.max()
        for k, annotation in enumerate(mine, start=1):
            assert np.array_equal(coco_mask.decode(annotation["segmentation"]), ids == k)
            region = measure.regionprops((ids == k).astype(int))[0]
            top, left, bottom, right = region.bbox
            assert annotation["area"] == region.area >= 30
            assert annotation["bbox"] == [left, top, right - left, bottom - top]
            assert (annotation["category_id"], annotation["iscrowd"]) == (1, 0)


@pytest.mark.parametrize("split", SPLITS)
def test_panoptic_truth_agrees_with_the_other_two(made: Path, split: str):
    panoptic = json.loads((made / f"panoptic_{split}.json").read_text())
    labels_of = {c["id"]: CLASSES.index(c["name"]) for c in panoptic["categories"]}
    assert [c["isthing"] for c in panoptic["categories"]] == [0, 0, 0, 1]
    for image, annotation in zip(panoptic["images"], panoptic["annotations"], strict=True):
        assert annotation["image_id"] == image["id"]
        labels, ids, segments = read_truth(made, split, Path(annotation["file_name"]).stem)
        values, counts = np.unique(segments, return_counts=True)
        assert {s["id"]: s["area"] for s in annotation["segments_info"]} == dict(zip(values, counts, strict=True))
        assert 0 not in values
        assert np.array_equal(np.where(labels == COIN, segments, 0), ids)
        for segment in annotation["segments_info"]:
            inside = segments == segment["id"]
            assert set(np.unique(labels[inside])) == {labels_of[segment["category_id"]]}
            top, left, bottom, right = measure.regionprops(inside.astype(int))[0].bbox
            assert segment["bbox"] == [left, top, right - left, bottom - top]


def test_a_picture_does_not_depend_on_how_many_there_are(made: Path, tmp_path: Path):
    fewer = make_demo(tmp_path / "fewer", pictures=5, size=(96, 128))
    for split, name in [("train", "0001"), ("train", "0003"), ("val", "0001"), ("test", "0001")]:
        for kind, end in [("images", "jpg"), ("masks", "png"), ("ids", "png"), ("panoptic", "png")]:
            file = f"{kind}/{split}/{name}.{end}"
            assert (fewer / file).read_bytes() == (made / file).read_bytes()


def test_another_seed_makes_other_pictures(made: Path, tmp_path: Path):
    other = make_demo(tmp_path / "other", pictures=5, size=(96, 128), seed=1)
    for split in SPLITS:
        assert (other / "ids" / split / "0001.png").read_bytes() != (made / "ids" / split / "0001.png").read_bytes()


def test_the_same_settings_again_return_at_once(made: Path):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert make_demo(made, **SMALL) == made.resolve()
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


@pytest.mark.parametrize("change", [{"pictures": 13}, {"size": (96, 96)}, {"seed": 3}])
def test_a_demo_of_other_settings_is_kept_and_named(made: Path, change: dict):
    with pytest.raises(KirieError, match="other settings"):
        make_demo(made, **{**SMALL, **change})
    assert json.loads((made / "demo.json").read_text())["pictures"] == 12


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(KirieError, match="not a demo"):
        make_demo(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_way_is_an_error(tmp_path: Path):
    (tmp_path / "demo").write_text("a file")
    with pytest.raises(KirieError, match="not a demo"):
        make_demo(tmp_path / "demo", **SMALL)


def test_an_empty_folder_is_filled_in_place(tmp_path: Path):
    folder = tmp_path / "empty"
    folder.mkdir()
    number = folder.stat().st_ino
    make_demo(folder, pictures=5, size=(64, 64))
    assert folder.stat().st_ino == number
    assert (folder / "demo.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_nothing_is_left_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(demo, "_panoptic", fail)
    with pytest.raises(OSError, match="disk full"):
        make_demo(tmp_path / "deep" / "demo", **SMALL)
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize("bad", [{"pictures": 4}, {"size": (63, 100)}, {"size": (96, 4000)}, {"seed": -1}])
def test_settings_out_of_range_are_errors(tmp_path: Path, bad: dict):
    with pytest.raises(KirieError, match="got"):
        make_demo(tmp_path / "demo", **bad)
    assert not (tmp_path / "demo").exists()


def test_missing_scikit_image_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    demo_source.cache_clear()
    with pytest.raises(KirieError, match=r'pip install "\.\[demo\]" in the folder of kirie'):
        make_demo(tmp_path / "demo", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_split_is_an_error():
    with pytest.raises(KirieError, match="train, val, test"):
        demo_source("training")


def test_splits_share_no_ground_pixel_and_no_coin():
    used = np.zeros((512, 512), int)
    for split, region in demo_pictures.REGIONS.items():
        used[region] += 1
        for photo, name in zip(demo_source(split).grounds, CLASSES, strict=False):
            assert np.array_equal(photo, getattr(data, name)()[region])
    assert used.max() == 1
    assert sorted(n for coins in demo_pictures.COINS.values() for n in coins) == list(range(24))
    boxes = np.array([a["bbox"] for a in outlines()["annotations"]])
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=2) + np.eye(24) * 1e3
    assert apart.min() > boxes[:, 2:].min()  # 24 different coins, none listed twice


def outlines() -> dict:
    return json.loads((Path(demo_pictures.__file__).parent / "demo_coins.json").read_text())


def test_outlines_follow_the_coins_of_the_photograph():
    photo = data.coins().astype(float)
    annotations = outlines()["annotations"]
    assert len(annotations) == 24
    for annotation in annotations:
        points = np.array(annotation["segmentation"][0]).reshape(-1, 2)
        mask = measure.grid_points_in_poly(photo.shape, points[:, ::-1] - 0.5)
        assert annotation["area"] == pytest.approx(mask.sum(), rel=0.02)
        grow = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
        outside = cv2.dilate(mask.astype(np.uint8), grow) > mask
        rim = mask > cv2.erode(mask.astype(np.uint8), grow)
        assert photo[rim].mean() > photo[outside].mean() + 20
        placed = photo[mask].mean()  # an outline moved three pixels to any side holds some dark ground instead of coin
        for step in ((0, 3), (0, -3), (3, 0), (-3, 0)):
            assert photo[np.roll(mask, step, (0, 1))].mean() < placed


@pytest.mark.parametrize("size", [(64, 64), (96, 200), (300, 180)])
def test_demo_picture_needs_no_files(size: tuple[int, int]):
    image, labels, ids = demo_picture(np.random.default_rng(5), demo_source("train"), size)
    assert (image.shape, image.dtype) == ((*size, 3), np.uint8)
    assert (labels.shape, labels.dtype, ids.shape, ids.dtype) == (size, np.uint8, size, np.uint16)
    assert image.std() > 10
    assert np.array_equal(np.unique(ids), np.arange(ids.max() + 1))


def test_the_same_generator_makes_the_same_picture():
    first = demo_picture(np.random.default_rng(7), demo_source("val"), (96, 128))
    again = demo_picture(np.random.default_rng(7), demo_source("val"), (96, 128))
    other = demo_picture(np.random.default_rng(8), demo_source("val"), (96, 128))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[2], other[2])


@pytest.mark.parametrize("grounds", [1, 2, 3])
def test_the_number_of_grounds_can_be_asked_for(grounds: int):
    for seed in range(4):
        _, labels, _ = demo_picture(np.random.default_rng(seed), demo_source("test"), (96, 128), grounds=grounds)
        assert len(np.setdiff1d(np.unique(labels), [COIN])) == grounds


def test_every_ground_has_its_share_and_no_islets():
    for seed in range(20):
        parts = demo_pictures._divide(np.random.default_rng(seed), (96, 128), 3)
        assert np.bincount(parts.ravel(), minlength=3).min() >= 0.12 * parts.size
        pieces = measure.label(parts, background=-1, connectivity=2)
        assert np.bincount(pieces.ravel())[1:].min() >= 0.01 * parts.size


@pytest.mark.parametrize("grounds", [0, 4])
def test_other_numbers_of_grounds_are_errors(grounds: int):
    with pytest.raises(KirieError, match="1, 2 or 3"):
        demo_picture(np.random.default_rng(0), demo_source("train"), (96, 128), grounds=grounds)


def test_a_painted_coin_covers_its_truth_and_at_most_one_pixel_more():
    source = demo_source("train")
    tray = demo_pictures._Tray((96, 128))
    rng = np.random.default_rng(0)
    shape = demo_pictures._turn_coin(rng, source.coins[0], (96, 128), 0.5)
    assert tray.put(shape)
    canvas = np.full((96, 128, 3), 10, np.float32)
    light = demo_pictures._Light(np.array([1.0, 0.0]), length=1.0, blur=1.0, strength=0.0)
    demo_pictures._paint_coin(rng, canvas, source.coins[0], shape, light)
    changed = np.abs(canvas - 10).max(axis=2) > 0
    truth = tray.ids == 1
    assert np.all(changed[truth])
    assert not np.any(changed & ~(cv2.dilate(truth.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0))


@pytest.mark.parametrize(
    ("side", "shift", "laid"),
    [(10, 0, False), (10, 2, False), (10, 3, True), (40, 7, False), (40, 8, True)],
)
def test_a_coin_that_would_hide_another_is_not_laid(side: int, shift: int, laid: bool):
    """A square of 10 must keep 30 of its 100 pixels, a square of 40 must keep 320 (20 %) of its 1600."""
    square = demo_pictures._Shape(np.ones((side, side), np.float32), 20, 20, np.eye(2, 3), 1.0)
    tray = demo_pictures._Tray((128, 128))
    assert tray.put(square)
    before = tray.ids.copy()
    assert tray.put(square._replace(top=20 + shift)) is laid
    assert int((tray.ids == 1).sum()) == (shift * side if laid else side * side)
    assert np.array_equal(tray.ids, before) is not laid


@pytest.mark.parametrize(("top", "laid"), [(-33, False), (-32, True), (128, False), (120, True)])
def test_a_coin_cut_off_by_the_border_counts_as_hidden(top: int, laid: bool):
    square = demo_pictures._Shape(np.ones((40, 40), np.float32), top, 20, np.eye(2, 3), 1.0)
    assert demo_pictures._Tray((128, 128)).put(square) is laid


def test_the_demo_shows_its_progress_only_on_a_terminal(tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch):
    counted: list[tuple[str, int]] = []

    def watched(items, title, total):
        counted.append((title, total))
        return tracked(items, title, total)

    monkeypatch.setattr("kirie.demo.tracked", watched)
    make_demo(tmp_path / "demo", pictures=5, size=(64, 64))
    assert counted == [("demo, train", 3), ("demo, val", 1), ("demo, test", 1)]
    assert capfd.readouterr() == ("", "")
