"""The table of objects against scikit-image, number by number."""

import csv
import tracemalloc
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from finder import CLASSES, Finder, areas_picture, found
from PIL import Image
from skimage.measure import regionprops_table

from kirie.masks import Crop, Masks
from kirie.prediction.object_table import columns, measured
from kirie.prediction.predict_files import predict_files
from kirie.prediction.predictor import Predictor

WORDS = {"picture", "label", "class", "score"}


def expected(mask, numbers):
    """What scikit-image says of one mask in a picture (H, W, C)."""
    plain = tuple(dict.fromkeys(name.partition("-")[0] for name in columns(numbers.shape[2])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Qhull's about flat hulls
        table = regionprops_table(mask.astype(int), numbers, properties=plain)
    return {name: float(values[0]) for name, values in table.items()}


def assert_same(ours, theirs):
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        if name == "orientation" and theirs["axis_major_length"] - theirs["axis_minor_length"] < 1e-6:
            continue  # what is round has no direction: rounding decides
        assert float(ours[name]) == pytest.approx(value, rel=1e-9, abs=1e-6), name


def under(crop, numbers):
    """The part of a picture that a mask's box covers."""
    height, width = crop.bits.shape
    return numbers[crop.top : crop.top + height, crop.left : crop.left + width]


@pytest.mark.parametrize("smooth", [0.3, 0.8, 1.5, 3])
def test_every_number_is_that_of_scikit_image(smooth):
    rng = np.random.default_rng(round(10 * smooth))
    names = columns(2)
    for _ in range(40):
        height, width = rng.integers(1, 50, 2)
        noise = cv2.GaussianBlur(rng.random((height, width)).astype(np.float32), (0, 0), smooth)
        mask = noise >= np.quantile(noise, rng.random())
        numbers = rng.integers(0, 65536, (height, width, 2), np.uint16)
        (crop,) = Masks.from_dense(mask[None]).crops()
        assert_same(dict(zip(names, measured(crop, under(crop, numbers)), strict=True)), expected(mask, numbers))


@pytest.mark.parametrize(
    "bits",
    [
        np.ones((1, 1)),
        np.ones((1, 9)),
        np.ones((9, 1)),
        np.ones((6, 6)),
        np.eye(7),
        np.eye(7)[::-1],
        np.pad(np.zeros((3, 3)), 2, constant_values=1),
        cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (31, 17)),
    ],
    ids=["pixel", "row", "column", "square", "diagonal", "other diagonal", "ring", "ellipse"],
)
def test_plain_forms(bits):
    mask = np.pad(bits.astype(bool), 3)
    numbers = np.arange(mask.size, dtype=np.uint16).reshape(*mask.shape, 1)
    (crop,) = Masks.from_dense(mask[None]).crops()
    assert_same(dict(zip(columns(1), measured(crop, under(crop, numbers)), strict=True)), expected(mask, numbers))


def test_a_large_object_takes_a_few_bytes_for_each_pixel_of_its_box():
    bits = np.zeros((3000, 3000), bool)
    bits[::2, ::2] = bits[1000] = True
    numbers = np.full((3000, 3000, 1), 7, np.uint8)
    tracemalloc.start()
    try:
        row = measured(Crop(0, 0, bits), numbers)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / bits.size < 8
    assert row[0] == bits.sum()


def test_an_empty_mask_has_an_area_of_0_and_nothing_else():
    values = measured(Crop(0, 0, np.zeros((0, 0), bool)), np.zeros((4, 4, 3), np.uint8))
    assert len(values) == len(columns(3)) and values[0] == 0 and set(values[1:]) == {None}


# Through files


def table(path):
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run(inputs, channels=3, **options):
    predictor = Predictor(Finder(channels, CLASSES if channels == 3 else 1), device="cpu", max_detections=500)
    return list(predict_files(predictor, inputs, "out", kinds=["csv"], **options))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_one_table_holds_the_objects_of_all_pictures_and_one_their_counts():
    pictures = {name: areas_picture(seed=seed) for seed, name in enumerate(["b.png", "a,1.png"])}
    pictures["empty.png"] = np.zeros((20, 30, 3), np.uint8)
    for name, picture in pictures.items():
        Image.fromarray(picture).save(name)
    assert [outcome.error for outcome in run(list(pictures))] == [None] * 3
    rows, counts = table("out/objects.csv"), table("out/counts.csv")
    assert [row["picture"] for row in counts] == list(pictures)
    assert list(counts[0]) == ["picture", "objects", *CLASSES.names]
    for count, (name, picture) in zip(counts, pictures.items(), strict=True):
        truth = found(picture / 255, most=500)
        ours = [row for row in rows if row["picture"] == name]
        assert int(count["objects"]) == len(ours) == len(truth)
        for label, word in enumerate(CLASSES.names):
            assert int(count[word]) == (truth.labels == label).sum()
        for index, (row, mask) in enumerate(zip(ours, truth.masks, strict=True)):
            assert int(row["label"]) == index + 1 and row["class"] == CLASSES.names[truth.labels[index]]
            assert float(row["score"]) == pytest.approx(truth.scores[index], abs=1e-6)
            assert_same({key: value for key, value in row.items() if key not in WORDS}, expected(mask, picture))


def test_intensities_are_in_the_numbers_of_the_file():
    deep = np.full((40, 50), 900, np.uint16)
    deep[5:15, 5:25], deep[20:35, 30:45] = 3000, np.arange(3500, 3500 + 15)
    tifffile.imwrite("deep.tif", deep)
    assert run(["deep.tif"], channels=1)[0].error is None
    rows = table("out/objects.csv")
    assert len(rows) == 2
    for row in rows:
        place = tuple(slice(int(row[f"bbox-{side}"]), int(row[f"bbox-{side + 2}"])) for side in (0, 1))
        seen = deep[place]
        assert float(row["intensity_mean-0"]) == pytest.approx(seen.mean())
        assert (int(row["intensity_min-0"]), int(row["intensity_max-0"])) == (seen.min(), seen.max())


def test_pictures_that_share_a_name_are_told_apart_by_their_path():
    for name in ("x/a.png", "y/a.png", "y/b.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(areas_picture()).save(name)
    run(["x", "y"])
    assert [row["picture"] for row in table("out/counts.csv")] == ["x/a.png", "y/a.png", "b.png"]
