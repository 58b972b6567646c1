"""Pictures larger than memory, from file to files: as the whole gives them, broken off, damaged, without room."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from faster_coco_eval.core import mask as coco_mask
from finder import Finder, areas_picture
from PIL import Image
from test_predict_files import small_disk
from tiny import CLASSES, blobs, colour_unet, painted

import kirie
from kirie.classes import Classes
from kirie.cleanup import CleanupSettings, RegionRules
from kirie.errors import KirieError
from kirie.prediction.grid import Grid
from kirie.prediction.panoptic_pair import PanopticPair, shown_pair
from kirie.prediction.predict import shown_predictor
from kirie.prediction.predict_files import predict_files
from kirie.prediction.predictor import Predictor
from kirie.results import id_map, to_semantic

SIZE = (520, 700)
SCALE, TIE = (33550, 12, 3, (0.5, 0.5, 0.0), True), (33922, 12, 6, (0.0, 0.0, 0.0, 1000.0, 2000.0, 0.0), True)
KEYS = (34735, 3, 12, (1, 1, 0, 2, 1025, 0, 1, 1, 3072, 0, 1, 32633), True)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kirie.prediction.large_pictures.STREAMED", 10_000)
    monkeypatch.setattr("kirie.prediction.large_files.OVERLAY", 200)


def write(name, picture, **options):
    tifffile.imwrite(name, picture, photometric="rgb", tile=(64, 64), compression="zlib", **options)
    return picture


def semantic_picture(seed=1, size=SIZE):
    labels = blobs(size, seed=seed)
    return labels, painted(labels, seed)


def run(model, names, kinds, out="out", tile=128, **settings):
    anew = settings.pop("anew", False)
    predictor = shown_predictor(model, device="cpu", tile=tile, **settings)
    return list(predict_files(predictor, names, out, kinds=kinds, anew=anew))


def rows_of(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def files_in(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


# Maps


def test_labels_and_overlay_of_a_semantic_model():
    labels, picture = semantic_picture()
    write("a.tif", picture, extratags=[SCALE, TIE, KEYS], resolution=(400, 400), resolutionunit="CENTIMETER")
    (outcome,) = run(colour_unet(), ["a.tif"], ["labels", "overlay", "zarr"])
    assert outcome.error is None
    assert [path.name for path in outcome.written] == ["a.tif", "a_overlay.jpg", "a.zarr"]
    assert not Path("out/.a.tiles").exists()
    with tifffile.TiffFile("out/a.tif") as tiff:
        page = tiff.pages[0]
        assert page.is_tiled and page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE and page.dtype == np.uint8
        assert [page.tags[code].value for code in (33550, 33922, 34735)] == [SCALE[3], TIE[3], KEYS[3]]
        assert page.tags["XResolution"].value == (400, 1) and page.tags["ResolutionUnit"].value == 3
        assert (page.colormap.T[: len(CLASSES)] // 257).tolist() == [list(color) for color in CLASSES.colors]
        assert np.array_equal(page.asarray(), CLASSES.to_file_ids(labels))
    with Image.open("out/a.tif") as image:
        assert image.mode == "P" and np.array_equal(np.asarray(image), CLASSES.to_file_ids(labels))
    stored = zarr.open("out/a.zarr", mode="r")
    assert np.array_equal(stored[:], CLASSES.to_file_ids(labels))
    assert stored.attrs["classes"] == dict(zip(CLASSES.names, CLASSES.ids, strict=True))
    with Image.open("out/a_overlay.jpg") as image:
        assert image.width == 175 and image.height >= 130  # and the legend


def test_a_zarr_store_is_a_picture_and_16_bits_are_stretched_as_a_whole():
    labels, picture = semantic_picture(2)
    deep = picture.astype(np.uint16) * 20 + 500
    write("deep.tif", deep)
    zarr.create_array("a.zarr", shape=picture.shape, dtype="u1", chunks=(100, 100, 3))[:] = picture
    outcomes = run(colour_unet(), ["a.zarr", "deep.tif"], ["labels"])
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert np.array_equal(tifffile.imread("out/a.tif"), CLASSES.to_file_ids(labels))
    whole = Predictor(colour_unet(), device="cpu")([kirie.reading.images.read_image("deep.tif")])[0]
    assert np.array_equal(tifffile.imread("out/deep.tif"), CLASSES.to_file_ids(whole.labels))


@pytest.mark.parametrize("rules", [RegionRules(smallest=150, fill_holes=40), RegionRules(opening=2, closing=1)])
def test_a_clean_up_is_that_of_the_whole(rules):
    _, picture = semantic_picture(3)
    write("a.tif", picture)
    model = colour_unet(Classes(("background", "cell", "dirt")))
    model.cleanup = CleanupSettings(threshold=0.4, rules=rules)
    (outcome,) = run(model, ["a.tif"], ["labels"])
    assert outcome.error is None
    assert np.array_equal(tifffile.imread("out/a.tif"), Predictor(model, device="cpu")([picture])[0].labels)


def test_what_cannot_be_done_of_a_large_picture_is_refused_before_it_begins():
    _, picture = semantic_picture()
    write("a.tif", picture)
    model = colour_unet(Classes(("background", "cell", "dirt")))
    (outcome,) = run(model, ["a.tif"], ["labels", "scores"], scores=True)
    assert "scores cannot be written" in outcome.error and not outcome.written
    model.cleanup = CleanupSettings(rules=RegionRules(keep=2))
    (outcome,) = run(model, ["a.tif"], ["labels"], out="other")
    assert "--no-cleanup" in outcome.error and not Path("other/.a.tiles").exists()
    with pytest.raises(KirieError, match=r"replace the picture a\.tif"):
        run(model, ["a.tif"], ["labels"], out=".")


# Objects


def test_objects_in_all_formats():
    picture = write("a.tif", areas_picture((300, 260), seed=4))
    model = Finder(max_detections=100_000)
    kinds = ["labels", "ids", "csv", "coco", "yolo", "geojson", "cutouts", "overlay"]
    (outcome,) = run(model, ["a.tif"], kinds, threshold=0)
    assert outcome.error is None
    whole = Predictor(model, device="cpu", threshold=0)([picture])[0]
    expected = [(int(label), mask["counts"]) for label, mask in zip(whole.labels, whole.masks.rles(), strict=True)]
    place_in_whole = {one: row for row, one in enumerate(expected)}
    entries = json.loads(Path("out/results.json").read_text())
    place = {id_: label for label, id_ in enumerate(model.classes.ids)}
    ours = [(place[e["category_id"]], e["segmentation"]["counts"].encode()) for e in entries]
    assert set(ours) == set(expected) and len(ours) == len(whole) > 200
    rows = [place_in_whole[one] for one in ours]
    assert [entry["score"] for entry in entries] == pytest.approx(whole.scores[rows].tolist(), abs=1e-6)
    (listed,) = json.loads(Path("out/images.json").read_text())["images"]
    assert (listed["height"], listed["width"]) == (300, 260)
    table = rows_of("out/objects.csv")
    assert [int(row["label"]) for row in table] == list(range(1, len(ours) + 1))
    assert [int(row["area"]) for row in table] == [int(coco_mask.area(e["segmentation"])) for e in entries]
    mask = coco_mask.decode(entries[7]["segmentation"]).astype(bool)
    assert float(table[7]["intensity_mean-1"]) == pytest.approx(picture[mask][:, 1].mean())
    (counts,) = rows_of("out/counts.csv")
    assert int(counts["objects"]) == len(ours)
    assert len(Path("out/a.txt").read_text().splitlines()) == len(ours)
    assert len(list(Path("out/cutouts").iterdir())) == len(ours)
    ids = tifffile.imread("out/a_ids.tif")
    painted_ids = id_map(whole)
    for number, row in enumerate(rows, 1):
        assert np.array_equal(ids == number, painted_ids == row + 1), number
    labels = to_semantic(whole)
    assert np.array_equal(tifffile.imread("out/a.tif"), labels.classes.to_file_ids(labels.labels))


def drawn(geometry, size, place=lambda x, y: (x, y)):
    """A GeoJSON geometry as a mask, each ring filled by pycocotools."""
    polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    out = np.zeros(size, bool)
    for outer, *holes in polygons:
        for index, ring in enumerate([outer, *holes]):
            assert ring[0] == ring[-1]
            x, y = np.array([place(*point) for point in ring]).T
            rles = coco_mask.frPyObjects([np.stack([x, y], 1).ravel().tolist()], *size)
            out[coco_mask.decode(rles)[..., 0].astype(bool)] = index == 0
    return out


@pytest.mark.parametrize("large", [True, False])
def test_polygons_are_the_masks_in_pixels_or_on_the_map(large, monkeypatch):
    if not large:
        monkeypatch.setattr("kirie.prediction.large_pictures.STREAMED", 2**26)
    picture = areas_picture((150, 170), seed=5)
    write("a.tif", picture)
    write("b.tif", picture, extratags=[SCALE, TIE, KEYS])
    model = Finder(max_detections=100_000)
    outcomes = run(model, ["a.tif", "b.tif"], ["geojson", "coco"], threshold=0)
    assert [outcome.error for outcome in outcomes] == [None, None]
    entries = json.loads(Path("out/results.json").read_text())
    for name, place in (("a", lambda x, y: (x, y)), ("b", lambda x, y: ((x - 1000) * 2, (2000 - y) * 2))):
        collection = json.loads(Path(f"out/{name}.geojson").read_text())
        assert collection["type"] == "FeatureCollection"
        assert ("crs" in collection) == (name == "b")
        own = [e for e in entries if e["image_id"] == (1 if name == "a" else 2)]
        assert len(collection["features"]) == len(own) > 20
        assert {feature["geometry"]["type"] for feature in collection["features"]} == {"Polygon"}
        for feature, entry in zip(collection["features"], own, strict=True):
            mask = coco_mask.decode(entry["segmentation"]).astype(bool)
            assert np.array_equal(drawn(feature["geometry"], (150, 170), place), mask)
            assert feature["properties"]["area"] == mask.sum()
            ring = np.array(feature["geometry"]["coordinates"][0])
            turn = np.dot(ring[:-1, 0], np.roll(ring[:-1, 1], -1) - np.roll(ring[:-1, 1], 1))
            assert turn > 0, "outer rings go anticlockwise"
        if name == "b":
            assert collection["crs"]["properties"]["name"].endswith("EPSG::32633")


def test_panoptic_maps():
    stuff = Classes(("water", "green", "land"), ((0, 0, 255), (0, 255, 0), (90, 60, 30)))
    picture = areas_picture((300, 260), seed=6)
    picture[70:, :, 2] //= 4
    write("a.tif", picture)
    models = colour_unet(stuff), Finder(max_detections=100_000)
    options = {"score": 0.3, "stuff_area": 20_000, "overlap": 1.0, "device": "cpu"}
    predictor = shown_pair(*models, tile=128, **options)
    (outcome,) = predict_files(predictor, ["a.tif"], "out", kinds=["coco", "labels", "overlay", "csv", "ids"])
    assert outcome.error is None
    (whole,) = PanopticPair(*models, **options)([picture])
    (entry,) = json.loads(Path("out/panoptic_results.json").read_text())["annotations"]
    red, green, blue = np.moveaxis(tifffile.imread("out/panoptic_results/a.tif").astype(np.int64), 2, 0)
    ids = red + 256 * green + 65536 * blue
    place = {
        c["id"]: label
        for label, c in enumerate(json.loads(Path("out/panoptic_results.json").read_text())["categories"])
    }
    ours = sorted((place[s["category_id"]], s["area"], (ids == s["id"]).tobytes()) for s in entry["segments_info"])
    assert ours == sorted((s.label, s.area, (whole.ids == s.id).tobytes()) for s in whole.segments)
    assert set(np.unique(ids)) - {0} == {s["id"] for s in entry["segments_info"]}
    for segment in entry["segments_info"]:
        rows, columns = np.nonzero(ids == segment["id"])
        left, top, width, height = segment["bbox"]
        assert left <= columns.min() and top <= rows.min()
        assert left + width > columns.max() and top + height > rows.max()
    labels = to_semantic(whole)
    assert np.array_equal(tifffile.imread("out/a.tif"), labels.classes.to_file_ids(labels.labels))
    assert (whole.ids == 0).any()
    things = sum(s.is_thing for s in whole.segments)
    assert len(rows_of("out/objects.csv")) >= things


# Broken off, damaged, without room

SCRIPT = """
import os, sys, time
sys.path[:0] = [{tests!r}, {prediction!r}]
import kirie.prediction.large_pictures as large
from kirie.prediction.large_result import RowStore
from kirie.prediction.predict import shown_predictor
from kirie.prediction.predict_files import predict_files
from finder import Finder
large.STREAMED = 10_000
kept = RowStore.add
def slow(self, done, state, size):
    kept(self, done, state, size)
    print(done.row, flush=True)
    time.sleep(0.3)
RowStore.add = slow
predictor = shown_predictor(Finder(max_detections=100_000), device="cpu", tile=96, threshold=0)
for outcome in predict_files(predictor, ["a.tif", "b.tif"], "out", kinds=["ids", "csv", "coco", "labels"]):
    print(outcome.path, outcome.error, flush=True)
"""


def test_a_run_that_was_killed_goes_on_at_the_next_row():
    write("a.tif", areas_picture((400, 200), seed=8))
    write("b.tif", areas_picture((400, 200), seed=9))
    tests = Path(__file__).resolve().parent
    text = SCRIPT.format(tests=str(tests.parent), prediction=str(tests))
    environment = os.environ | {"PYTHONPATH": str(tests.parent.parent)}
    first = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, env=environment)
    seen = []
    for line in first.stdout:
        seen.append(line.strip())
        if "a.tif None" in seen and seen[-1] == "2":
            first.send_signal(signal.SIGKILL)
            break
    first.wait()
    first.stdout.close()
    assert Path("out/.b.tiles/state.npz").exists() and not Path("out/b.tif").exists()
    second = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=environment, check=True)
    told = second.stdout.split("\n")
    assert told[0] == "a.tif None" and told[1] in ("2", "3"), "rows that were done are not done again"
    model = Finder(max_detections=100_000)
    outcomes = run(model, ["a.tif", "b.tif"], ["ids", "csv", "coco", "labels"], out="plain", tile=96, threshold=0)
    assert all(outcome.error is None for outcome in outcomes)
    ours, plain = files_in("out"), files_in("plain")
    assert set(ours) == set(plain) and not any(".tiles" in name for name in ours)
    assert all(ours[name] == plain[name] for name in plain if name != "manifest.jsonl")


def test_another_model_tile_or_picture_begins_anew(monkeypatch):
    begun = []
    kept = kirie.prediction.sweep.Sweep.rows
    monkeypatch.setattr(
        "kirie.prediction.sweep.Sweep.rows",
        lambda self, picture, begin=0: (begun.append(begin), kept(self, picture, begin))[1],
    )
    _, picture = semantic_picture(5)
    write("a.tif", picture)
    monkeypatch.setattr("kirie.prediction.large_files.write_tiff", lambda *_: (_ for _ in ()).throw(KirieError("no")))
    for settings in (
        {},
        {},
        {"tile": 160},
        {"tile": "auto"},
        {"tile": "auto"},
        {"tta": "flip", "tile": 160},
        {"anew": True},
    ):
        (outcome,) = run(colour_unet(), ["a.tif"], ["labels"], **settings)
        assert outcome.error == "no"
        Path("out/manifest.jsonl").unlink()
    os.utime("a.tif", (1, 1))
    run(colour_unet(), ["a.tif"], ["labels"])
    rows = len(Grid.of(SIZE, 128, 32).rows)
    auto = len(Grid.of(SIZE, 512, 128).rows)
    assert begun == [0, rows, 0, 0, auto, 0, 0, 0]


def test_a_corrupt_tile_is_told_and_the_rest_is_done():
    labels, picture = semantic_picture(6)
    write("a.tif", picture)
    write("b.tif", picture)
    with tifffile.TiffFile("a.tif") as tiff:
        page = tiff.pages[0]
        index = 4 * page.chunked[1] + 5  # rows 256 to 320, columns 320 to 384
        offset, length = page.dataoffsets[index], page.databytecounts[index]
    with Path("a.tif").open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * length)
    first, second = run(colour_unet(), ["a.tif", "b.tif"], ["labels", "overlay"])
    assert "tiles of a.tif could not be read and are void" in first.error and "damaged" in first.error
    assert second.error is None and [path.name for path in first.written] == ["a.tif", "a_overlay.jpg"]
    found = tifffile.imread("out/a.tif")
    void = found == 255
    assert void[256:320, 320:384].all() and 64 * 64 <= void.sum() <= 4 * 128 * 128
    assert np.array_equal(found[~void], CLASSES.to_file_ids(labels)[~void])
    again, _ = run(colour_unet(), ["a.tif", "b.tif"], ["labels", "overlay"])
    assert again.earlier and again.error == first.error


def test_a_picture_of_which_nothing_can_be_read_leaves_nothing():
    _, picture = semantic_picture(6)
    write("a.tif", picture)
    with tifffile.TiffFile("a.tif") as tiff:
        first = min(tiff.pages[0].dataoffsets)
    with Path("a.tif").open("r+b") as file:
        file.truncate(first)
    (outcome,) = run(colour_unet(), ["a.tif"], ["labels"])
    assert "none of its" in outcome.error and not outcome.written
    assert [name for name in files_in("out") if name != "manifest.jsonl"] == []
    (outcome,) = run(colour_unet(), ["gone.tif"], ["labels"], out="gone")
    assert "no file gone.tif" in outcome.error


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, SIZE, np.uint8)  # which packs badly
    write("a.tif", painted(labels, 7))
    write("b.tif", painted(blobs((140, 90), seed=2), 2))
    with small_disk(60_000):
        first, second = run(colour_unet(), ["a.tif", "b.tif"], ["labels"])
        assert "Cannot write" in first.error and not first.written
        assert second.error is None
    assert not Path("out/a.tif").exists()
    first, second = run(colour_unet(), ["a.tif", "b.tif"], ["labels"])
    assert first.error is None and second.error is None
    assert np.array_equal(tifffile.imread("out/a.tif"), CLASSES.to_file_ids(labels))
    assert not [name for name in files_in("out") if name.startswith(".")]


def test_a_store_that_kirie_did_not_write_is_never_replaced():
    _, picture = semantic_picture(6)
    write("a.tif", picture)
    for place in ("home", "out"):
        zarr.create_group(f"{place}/a.zarr").attrs["mine"] = "precious"
    Path("a.tif").rename("home/a.tif")
    with pytest.raises(KirieError, match="lies among the pictures"):
        run(colour_unet(), ["home/a.tif"], ["zarr"], out="home")
    (outcome,) = run(colour_unet(), ["home/a.tif"], ["zarr"])
    assert "not written by kirie" in outcome.error
    assert all(zarr.open(f"{place}/a.zarr").attrs["mine"] == "precious" for place in ("home", "out"))
    Path("out/a.zarr").rename("other.zarr")
    (outcome,) = run(colour_unet(), ["home/a.tif"], ["zarr"])
    assert outcome.error is None and not outcome.earlier
    (outcome,) = run(colour_unet(), ["home/a.tif"], ["zarr"], anew=True)
    assert outcome.error is None, "its own is replaced"


def test_a_store_of_which_a_part_has_changed_is_predicted_anew():
    _, picture = semantic_picture(6)
    zarr.create_array("stores/a.zarr", shape=picture.shape, dtype="u1", chunks=(100, 100, 3))[:] = picture
    assert [outcome.path.name for outcome in run(colour_unet(), ["stores"], ["labels"])] == ["a.zarr"]
    assert run(colour_unet(), ["stores"], ["labels"])[0].earlier
    before = tifffile.imread("out/a.tif")
    zarr.open("stores/a.zarr", mode="r+")[:100, :100] = picture[100:200, 100:200]
    assert not run(colour_unet(), ["stores"], ["labels"])[0].earlier
    assert not np.array_equal(tifffile.imread("out/a.tif"), before)


@pytest.mark.parametrize("damage", ["empty state", "other state", "empty row", "no row", "wrong shape"])
def test_rows_that_are_damaged_begin_the_picture_anew(damage, monkeypatch):
    labels, picture = semantic_picture(6)
    write("a.tif", picture)
    kept = kirie.prediction.large_result.RowStore.add

    def broken_off(self, done, state, size):
        kept(self, done, state, size)
        if done.row == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("kirie.prediction.large_result.RowStore.add", broken_off)
        run(colour_unet(), ["a.tif"], ["labels"])
    state, row = Path("out/.a.tiles/state.npz"), Path("out/.a.tiles/rows/000000.npz")
    if damage == "empty state":
        state.write_bytes(b"")
    elif damage == "other state":
        np.save("other.npy", np.zeros(3))
        state.write_bytes(Path("other.npy").read_bytes())
    elif damage == "empty row":
        row.write_bytes(b"")
    elif damage == "no row":
        row.unlink()
    else:
        np.savez(state, row=np.array(2), below=np.zeros((2, 2, 2), np.float32))
    (outcome,) = run(colour_unet(), ["a.tif"], ["labels"])
    assert outcome.error is None
    assert np.array_equal(tifffile.imread("out/a.tif"), CLASSES.to_file_ids(labels))


def test_a_predictor_that_fails_once_goes_on_where_it_was(monkeypatch):
    labels, picture = semantic_picture(6)
    write("a.tif", picture)
    kept, calls = Predictor.__call__, []

    def once(self, pictures):
        calls.append(len(pictures))
        if len(calls) == 9:
            raise KirieError("The memory does not suffice.")
        return kept(self, pictures)

    monkeypatch.setattr(Predictor, "__call__", once)
    (outcome,) = run(colour_unet(), ["a.tif"], ["labels"])
    assert outcome.error == "The memory does not suffice."
    before = len(calls)
    (outcome,) = run(colour_unet(), ["a.tif"], ["labels"])
    grid = Grid.of(SIZE, 128, 32)
    assert outcome.error is None
    assert len(calls) - before == len(grid) - len(grid.columns), "the first row of windows is done"
    assert np.array_equal(tifffile.imread("out/a.tif"), CLASSES.to_file_ids(labels))


def test_without_tiles_a_picture_is_predicted_whole_while_it_fits():
    _, picture = semantic_picture(6)
    write("a.tif", picture)
    (outcome,) = predict_files(Predictor(colour_unet(), device="cpu"), ["a.tif"], "out", kinds=["labels"])
    assert outcome.error is None and outcome.written[0].name == "a.png"


def test_memory_does_not_grow_with_the_height():
    """Peaks of processes of their own: what they take beyond a small picture's is alike for four times the height."""
    peaks = []
    text = """
import resource, sys
sys.path[:0] = [{0!r}, {1!r}]
import torch
torch.set_num_threads(1)
import kirie.prediction.large_pictures as large
large.STREAMED = 10_000
from kirie.prediction.predict import shown_predictor
from kirie.prediction.predict_files import predict_files
from tiny import colour_unet
predictor = shown_predictor(colour_unet(), device="cpu", tile=256, tile_overlap=32)
(outcome,) = predict_files(predictor, [sys.argv[1]], sys.argv[1] + ".out", kinds=["labels"])
assert outcome.error is None, outcome.error
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    tests = Path(__file__).resolve().parent
    environment = os.environ | {"PYTHONPATH": str(tests.parent.parent)}
    for height in (2_000, 8_000):
        row = painted(blobs((500, 2000), seed=1), 1)
        write(f"{height}.tif", np.tile(row, (height // 500, 1, 1)))
        command = [sys.executable, "-c", text.format(str(tests.parent), str(tests)), f"{height}.tif"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] < peaks[0] + 20, f"MiB at the two heights: {peaks}; the pictures differ by 34"


def test_progress_is_told_row_by_row(monkeypatch):
    _, picture = semantic_picture(6)
    write("a.tif", picture)
    words = []
    monkeypatch.setattr("kirie.progress.Bar.tell", lambda self, text: words.append(text))
    run(colour_unet(), ["a.tif"], ["labels"])
    assert words[0] == "a.tif: 1 of 6 rows of tiles" and words[-1] == ""


def test_a_zarr_store_needs_tiles():
    zarr.create_array("a.zarr", shape=(9, 9, 3), dtype="uint8")
    (outcome,) = predict_files(Predictor(colour_unet(), device="cpu"), ["a.zarr"], "out", kinds=["labels"])
    assert outcome.error == "a.zarr is a Zarr store, which is read in tiles only: leave --tile none out."
