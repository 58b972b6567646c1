"""Pictures in windows: what comes out is what the whole gives."""

import ctypes
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from finder import CLASSES as THINGS
from finder import Finder, areas_picture
from scipy import ndimage
from tiny import blobs, colour_unet, painted, random_unet

import kirie
from kirie.classes import Classes
from kirie.cleanup import CleanupSettings, RegionRules
from kirie.errors import KirieError
from kirie.models.contract import InputFacts
from kirie.models.memory import _of_groups, free_memory, trim_heap
from kirie.models.unet import UNet
from kirie.prediction.grid import Grid
from kirie.prediction.panoptic_pair import PanopticPair, shown_pair
from kirie.prediction.predict import shown_predictor
from kirie.prediction.predictor import Predictor
from kirie.prediction.stitching import Stitcher, instances
from kirie.prediction.sweep import Sweep
from kirie.prediction.tile_size import TileSize, parse_tile
from kirie.reading.windows import in_memory
from kirie.results import id_map

SIZES = [(200, 300), (65, 64), (64, 300), (97, 500), (301, 71)]


def tiled(model, tile=64, overlap=None, **settings):
    return shown_predictor(model, device="cpu", tile=tile, tile_overlap=overlap, **settings)


# Maps


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0, 16, 32])
def test_a_map_that_looks_at_single_pixels_is_that_of_the_whole(size, overlap):
    picture = painted(blobs(size, seed=1), 1)
    model = colour_unet()
    (whole,), (ours,) = (
        Predictor(model, device="cpu", scores=True)([picture]),
        tiled(model, overlap=overlap, scores=True)([picture]),
    )
    assert np.array_equal(ours.labels, whole.labels) and ours.labels.dtype == whole.labels.dtype
    np.testing.assert_allclose(ours.scores, whole.scores, atol=1e-6)
    assert tiled(model, overlap=overlap)([picture])[0].scores is None


def test_seams_cannot_be_told_where_windows_see_far_enough():
    model = random_unet()  # of depth 2: it sees 22 pixels far
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.random((400, 500, 3)), (3, 3, 0))
    picture = ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)
    (whole,) = Predictor(model, device="cpu")([picture])
    assert len(np.unique(whole.labels)) > 1
    (ours,) = tiled(model, 160, 64)([picture])
    assert (ours.labels == whole.labels).mean() >= 0.999


def test_the_clean_up_is_done_once_on_the_whole():
    classes = Classes(("background", "cell", "dirt"))
    picture = painted(blobs((150, 220), seed=3), 3)
    model = colour_unet(classes)
    model.cleanup = CleanupSettings(
        threshold=0.3, rules=RegionRules(fill_holes=30, smallest=120), classes={"dirt": RegionRules(keep=1)}
    )
    (whole,), (ours,) = Predictor(model, device="cpu")([picture]), tiled(model)([picture])
    assert np.array_equal(ours.labels, whole.labels)
    assert not np.array_equal(whole.labels, Predictor(model, device="cpu", cleanup=False)([picture])[0].labels)


def test_several_answers_are_averaged_in_each_window():
    picture = painted(blobs((100, 150), seed=4), 4)
    models = [colour_unet(), colour_unet()]
    (ours,) = tiled(models[0], others=models[1:], tta="flips", scores=True)([picture])
    (whole,) = shown_predictor(models[0], device="cpu", others=models[1:], tta="flips", scores=True)([picture])
    assert np.array_equal(ours.labels, whole.labels)
    np.testing.assert_allclose(ours.scores, whole.scores, atol=1e-6)


def test_pictures_within_a_tile_are_predicted_as_ever_and_the_order_is_kept():
    model = colour_unet()
    truths = [blobs(size, seed=i) for i, size in enumerate([(20, 30), (20, 30), (100, 90), (64, 64), (65, 10), (5, 5)])]
    results = tiled(model)([painted(t, i) for i, t in enumerate(truths)])
    assert all(np.array_equal(r.labels, t) for r, t in zip(results, truths, strict=True))


# Objects


def by_mask(result):
    """Class and score of each object by its pixels; that each occurs once is asserted."""
    facts = {(tuple(c.bits.shape), c.top, c.left, c.bits.tobytes(), int(label)): float(score) for c, label, score in
             zip(result.masks.crops(), result.labels, result.scores, strict=True)}  # fmt: skip
    assert len(facts) == len(result)
    return facts


@pytest.mark.parametrize("overlap", [16, 24, 32])
@pytest.mark.parametrize("size", SIZES)
def test_objects_are_those_of_the_whole_counted_once(size, overlap):
    picture = areas_picture(size, seed=5)
    model = Finder(max_detections=100_000)
    (whole,) = Predictor(model, device="cpu")([picture])
    (ours,) = tiled(model, overlap=overlap, threshold=0)([picture])
    assert len(whole) > 20
    assert by_mask(ours) == pytest.approx(by_mask(whole))
    assert (np.diff(ours.scores) <= 0).all()


def test_objects_that_straddle_all_seams_are_counted_exactly():
    grid = Grid.of((500, 700), 128, 32)
    picture = np.zeros((500, 700, 3), np.uint8)
    lines = [span.first for span in grid.rows[1:]], [span.first for span in grid.columns[1:]]
    places = [(y, x) for y in [*lines[0], *range(30, 500, 60)] for x in [*lines[1], *range(25, 700, 60)]]
    free = np.zeros((500, 700), bool)
    count = 0
    for y, x in places:
        box = np.s_[max(y - 9, 0) : y + 9, max(x - 9, 0) : x + 9]
        if not free[box].any():
            free[box] = True
            picture[max(y - 7, 0) : y + 7, max(x - 7, 0) : x + 7, 1] = 200
            count += 1
    model = Finder(max_detections=100_000)
    (ours,) = tiled(model, 128, 32)([picture])
    assert len(ours) == count > 100
    assert by_mask(ours) == pytest.approx(by_mask(Predictor(model, device="cpu")([picture])[0]))


def test_an_object_larger_than_many_tiles_is_one():
    picture = np.zeros((400, 600, 3), np.uint8)
    yy, xx = np.mgrid[:400, :600]
    ring = np.abs(np.hypot(yy - 200, xx - 300) - 180) < 6
    picture[ring, 0] = 250
    picture[195:205, 10:590, 1] = 220  # through all columns
    picture[100:300, 290:310, 2] = 210
    picture[20:30, 20:30, 0] = 200
    model = Finder()
    (ours,), (whole,) = tiled(model, 96, 24)([picture]), Predictor(model, device="cpu")([picture])
    assert len(whole) == 4 and by_mask(ours) == pytest.approx(by_mask(whole))


def test_objects_that_touch_stay_apart_and_classes_are_not_joined():
    classes = Classes(("red cell", "green", "blue"), things=(True,) * 3)
    picture = np.zeros((120, 200, 3), np.uint8)
    for index, left in enumerate(range(0, 200, 10)):
        picture[30:90, left : left + 10, index % 3] = 200
    (ours,) = tiled(Finder(3, classes), 64, 24)([picture])
    assert len(ours) == 20 and ours.masks.areas().tolist() == [600] * 20


def test_an_object_that_only_one_of_two_windows_sees_stays_whole():
    size = (60, 96)
    grid = Grid.of(size, 64, 24)
    left, right = grid.columns
    assert (left.stop, right.first) == (64, 48)
    picture = np.zeros((*size, 3), np.uint8)
    picture[20:30, 40:60, 0] = 200
    model = Predictor(Finder(), device="cpu")
    stitcher = Stitcher(grid)
    stitcher.add(0, 0, model([picture[:, left.start : left.stop]])[0])
    stitcher.add(0, 1, None)
    found = instances(stitcher.end_row(0), size, THINGS)
    assert np.array_equal(id_map(found), id_map(model([picture])[0])) and len(found) == 1


def test_tiles_that_share_too_little_for_objects_are_refused():
    with pytest.raises(KirieError, match="at least 16"):
        tiled(Finder(), overlap=0)


# Panoptic maps


def segments(result):
    return sorted(
        (s.label, s.is_thing, round(s.score, 5), s.area, (result.ids == s.id).tobytes()) for s in result.segments
    )


def test_a_panoptic_map_is_that_of_the_whole():
    stuff = Classes(("water", "green", "land"), ((0, 0, 255), (0, 255, 0), (90, 60, 30)))
    picture = areas_picture((150, 260), seed=6)
    picture[70:, :, 2] //= 4
    options = {"score": 0.3, "overlap": 1.0, "device": "cpu"}
    models = colour_unet(stuff), Finder(max_detections=100_000)
    (all_of_it,) = PanopticPair(*models, stuff_area=0, **options)([picture])
    areas = sorted(s.area for s in all_of_it.segments if not s.is_thing)
    for least in (0, areas[-1]):
        (whole,) = PanopticPair(*models, stuff_area=least, **options)([picture])
        (ours,) = shown_pair(*models, tile=64, stuff_area=least, **options)([picture])
        assert segments(ours) == segments(whole)
        assert sum(not s.is_thing for s in ours.segments) == sum(area >= least for area in areas)
    assert len(areas) > 1


# Stopping and going on


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_a_sweep_goes_on_where_another_ended(task):
    picture = areas_picture((300, 130), seed=7)
    if task == "semantic":
        predictor = tiled(random_unet())
    elif task == "instance":
        predictor = tiled(Finder(max_detections=1000), threshold=0)
    else:
        predictor = shown_pair(colour_unet(), Finder(max_detections=1000), tile=64, device="cpu")
    grid = Grid.of((300, 130), 64, 16)
    source = in_memory(picture)
    states, expected = [], []
    sweep = predictor.sweep(grid)
    for done in sweep.rows(source):
        expected.append(done)
        states.append({name: array.copy() for name, array in sweep.state(done.row).items()})
    for begin in range(1, len(grid.rows)):
        again: Sweep = predictor.sweep(grid)
        again.restore(begin - 1, states[begin - 1])
        for one, other in zip(again.rows(source, begin), expected[begin:], strict=True):
            assert one.row == other.row
            if one.map is not None:
                assert one.map.top == other.map.top and np.array_equal(one.map.labels, other.map.labels)
            if one.objects is not None:
                assert one.objects.masks == other.objects.masks
                assert np.array_equal(one.objects.scores, other.objects.scores)


# How large tiles are


def test_a_tile_is_as_large_as_the_training_and_the_memory_allow(monkeypatch):
    model = UNet(3, 2, width=16)
    for patch, side in (((256, 256), 512), ((224, 300), 600), ((700, 640), 700), (None, 512)):
        model.inputs = InputFacts(patch=patch)
        assert TileSize([model]).side == side
    monkeypatch.setattr("kirie.prediction.tile_size.free_memory", lambda device: 300 * 2**20)
    small = TileSize([model])
    assert small.side == 256 and small.overlap == 64
    assert small.takes_apart((3000, 3000)) and not small.takes_apart((1000, 1000))
    assert TileSize([model], overlap=200).side == 400, "tiles share at most half of a side"
    model.inputs = InputFacts(short_side=800, long_side=1333)
    assert TileSize([model]).side == 800 and not TileSize([model]).takes_apart((6000, 6000))
    assert TileSize([model], 64).takes_apart((65, 10)) and not TileSize([model], 64).takes_apart((64, 64))


@pytest.mark.parametrize(
    ("line", "home", "names"),
    [
        ("0::/jobs/one", "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")),
        (
            "9:cpu,memory:/jobs/one",
            "sys/fs/cgroup/memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_what_a_container_allows(tmp_path, monkeypatch, line, home, names):
    def group(path, limit, used, cache):
        folder = tmp_path / home / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in zip((*names[:2], "memory.stat"), (limit, used, f"anon 5\n{names[2]} {cache}"), strict=True):
            (folder / name).write_text(f"{text}\n")

    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"3:pids:/other\n{line}\n")
    assert list(_of_groups(tmp_path)) == [] == list(_of_groups(tmp_path / "no Linux"))
    group("jobs/one", "max", 300, 0)
    group("jobs", 1000, 700, 50)
    assert list(_of_groups(tmp_path)) == [350]
    group("", 900, 950, 10)
    assert list(_of_groups(tmp_path)) == [350, 0]
    for odd in ("odd\n", f"{names[2]} \n", f"{names[2]} many\n"):
        (tmp_path / home / "jobs/memory.stat").write_text(odd)
        assert list(_of_groups(tmp_path)) == [300, 0], "what is not told counts as used"
    group("jobs", 1000, 100, 500)
    assert list(_of_groups(tmp_path)) == [1000, 0], "no more than the limit"
    group("jobs", -1, 300, 0)
    assert list(_of_groups(tmp_path)) == [0], "no limit"
    (tmp_path / "proc/self/cgroup").write_text("\nodd\n")
    assert list(_of_groups(tmp_path)) == []
    monkeypatch.setattr("kirie.models.memory._of_groups", lambda root: iter([12345]))
    assert free_memory(torch.device("cpu")) == 12345


def test_freed_memory_goes_back_to_the_system():
    if not (sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")):
        pytest.skip("the C library is not glibc")

    def held():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    blocks = [np.ones(100_000, np.uint8) for _ in range(1000)]
    blocks = blocks[::20]  # what stays keeps the rest from being given back
    before = held()
    trim_heap()
    assert before - held() > 60_000_000
    assert all(block.all() for block in blocks)


@pytest.mark.parametrize("slow, window, first, every", [(0, 1 / 16, 4, 4), (0, 1 / 4, 1, 1), (1 / 32, 1 / 8, 2, 10)])
def test_it_goes_back_as_windows_are_done_but_seldom(slow, window, first, every, monkeypatch):
    clock, done, trims, add = [0.0], [], [], Sweep._add

    def adding(*given):
        clock[0] += window
        done.append(given)
        add(*given)

    def trimming():
        clock[0] += slow
        trims.append(len(done))

    monkeypatch.setattr(Sweep, "_add", adding)
    monkeypatch.setattr("kirie.models.memory.trim_heap", trimming)
    monkeypatch.setattr("kirie.models.memory.time", SimpleNamespace(monotonic=lambda: clock[0]))
    tiled(colour_unet(), overlap=0)([painted(blobs((64, 64 * 40), seed=8), 8)])
    assert trims == list(range(first, 41, every))


def test_one_picture_in_python_and_words_for_tiles():
    picture = painted(blobs((90, 140), seed=8), 8)
    model = colour_unet()
    whole = kirie.predict(model, picture)
    assert np.array_equal(kirie.predict(model, picture, tile=np.int64(64), tile_overlap=8).labels, whole.labels)
    assert np.array_equal(kirie.predict(model, picture, tile=None).labels, whole.labels)
    assert (parse_tile(" Auto "), parse_tile("none"), parse_tile("512")) == ("auto", None, 512)
    for text in ("-3", "1.5", "", "big"):
        with pytest.raises(KirieError, match="auto, none or"):
            parse_tile(text)
    with pytest.raises(KirieError, match="choose a tile"):
        kirie.predict(model, picture, tile=None, tile_overlap=3)
    with pytest.raises(KirieError, match="at least 64"):
        kirie.predict(model, picture, tile=3)
    with pytest.raises(KirieError, match="from 0 on"):
        kirie.predict(model, picture, tile_overlap=-5)
    with pytest.raises(KirieError, match='"auto", None'):
        kirie.predict(model, picture, tile="huge")
    with pytest.raises(KirieError, match="share 0 to 256 with the next one, got 99999"):
        kirie.predict(model, picture, tile="auto", tile_overlap=99999)


def test_settings_of_a_clean_up_are_not_changed_by_it():
    model = colour_unet(Classes(("background", "cell", "dirt")))
    model.cleanup = CleanupSettings(threshold=0.4)
    before = replace(model.cleanup)
    tiled(model)([painted(blobs((90, 140), seed=9), 9)])
    assert model.cleanup == before
