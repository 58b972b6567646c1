"""Masks against pycocotools, OpenCV and scikit-learn."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from pycocotools import mask as reference
from sklearn.metrics.cluster import contingency_matrix

from kirie.errors import KirieError
from kirie.masks import Crop, Masks, count_ids, overlap_table, rank_ids

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools

SIZE = (23, 31)


def encoded(mask):
    return reference.encode(np.asfortranarray(mask.astype(np.uint8)))


def with_pixels(*slices):
    mask = np.zeros(SIZE, bool)
    for place in slices:
        mask[place] = True
    return mask


def blobs(count, seed=0, size=SIZE):
    """Random rectangles, ellipses and noise, some of them cut by the border."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    out = np.zeros((count, *size), bool)
    for index in range(count):
        y, x = random.uniform(-3, size[0] + 3), random.uniform(-3, size[1] + 3)
        h, w = random.uniform(2, size[0]), random.uniform(2, size[1])
        inside = ((rows - y) / h) ** 2 + ((columns - x) / w) ** 2 < random.uniform(0.1, 1)
        out[index] = inside & (random.random(size) < (1.0, 0.7)[index % 2])
    return out


CASES = {
    "empty": with_pixels(),
    "full": with_pixels(np.s_[:, :]),
    "first pixel": with_pixels(np.s_[0, 0]),
    "last pixel": with_pixels(np.s_[-1, -1]),
    "one pixel": with_pixels(np.s_[5, 3]),
    "bottom left": with_pixels(np.s_[-1, 0]),
    "top right": with_pixels(np.s_[0, -1]),
    "left column": with_pixels(np.s_[:, 0]),
    "right column": with_pixels(np.s_[:, -1]),
    "middle columns": with_pixels(np.s_[:, 4:9]),
    "top row": with_pixels(np.s_[0, :]),
    "bottom row": with_pixels(np.s_[-1, :]),
    "bottom then top": with_pixels(np.s_[10:, 4], np.s_[:6, 5]),
    "bottom then top at the end": with_pixels(np.s_[10:, -2], np.s_[:, -1]),
    "two parts": with_pixels(np.s_[2:5, 2:5], np.s_[12:20, 20:29]),
    "ring": with_pixels(np.s_[3:20, 3:25]) & ~with_pixels(np.s_[6:9, 6:9]),
    "checkerboard": np.indices(SIZE).sum(0) % 2 == 0,
    **{f"blob {index}": mask for index, mask in enumerate(blobs(12))},
}


@pytest.fixture(params=list(CASES), name="mask")
def _mask(request):
    return CASES[request.param]


@pytest.fixture(name="columns")
def _columns():
    dense = np.stack(list(CASES.values()))
    return dense, Masks.from_dense(dense), Masks.from_rles([encoded(mask) for mask in dense], SIZE)


def test_crops_give_the_run_lengths_of_pycocotools(mask):
    rle = Masks.from_dense(mask[None]).rles()[0]
    assert rle["size"] == list(SIZE)
    assert rle["counts"] == encoded(mask)["counts"]


def test_a_loose_crop_gives_the_same_run_lengths(mask):
    whole = Masks.from_crops([Crop(0, 0, mask)], SIZE)
    assert whole.rles()[0]["counts"] == encoded(mask)["counts"]
    middle = Masks.from_crops([Crop(2, 3, mask[2:, 3:-1])], SIZE)
    cut = np.zeros(SIZE, bool)
    cut[2:, 3:-1] = mask[2:, 3:-1]
    assert middle.rles()[0]["counts"] == encoded(cut)["counts"]


def test_run_lengths_give_the_pixels_and_the_tightest_crop(mask):
    masks = Masks.from_rles([encoded(mask)], SIZE)
    assert np.array_equal(masks.dense()[0], mask)
    assert np.array_equal(next(iter(masks)), mask)
    tight, loose = masks.crops()[0], Masks.from_crops([Crop(0, 0, mask)], SIZE).crops()[0]
    assert (tight.top, tight.left) == (loose.top, loose.left)
    assert np.array_equal(tight.bits, loose.bits)
    assert tight.bits.dtype == bool


def test_areas_and_boxes_are_those_of_pycocotools(columns):
    dense, crops, runs = columns
    rles = [encoded(mask) for mask in dense]
    boxes = reference.toBbox(rles)
    boxes[:, 2:] += boxes[:, :2]
    boxes[dense.sum((1, 2)) == 0] = 0
    for masks in (crops, runs, Masks.from_crops([Crop(0, 0, mask) for mask in dense], SIZE)):
        assert masks.areas().tolist() == reference.area(rles).tolist()
        assert np.array_equal(masks.boxes(), boxes)
        assert masks.areas().dtype == np.int64
        assert masks.boxes().dtype == np.float32


def test_iou_is_that_of_pycocotools(columns):
    dense, crops, runs = columns
    rles = [encoded(mask) for mask in dense]
    expected = np.nan_to_num(reference.iou(rles, rles[::-1], [0] * len(rles)))
    assert np.allclose(crops.iou(runs[::-1]), expected, rtol=0, atol=1e-9)
    flat = dense.reshape(len(dense), -1).astype(np.int64)
    both = flat @ flat.T
    union = flat.sum(1)[:, None] + flat.sum(1) - both
    assert np.allclose(runs.iou(crops), both / np.maximum(union, 1), rtol=0, atol=1e-9)


def test_iou_of_no_masks_has_the_right_shape():
    three = Masks.from_dense(blobs(3))
    assert three.iou(three[:0]).shape == (3, 0)
    assert three[:0].iou(three).shape == (0, 3)
    with pytest.raises(KirieError, match="cannot be compared"):
        three.iou(Masks((5, 5)))


def filled(rings, size):
    flat = [ring.ravel().astype(float).tolist() for ring in rings]
    if not flat:
        return np.zeros(size, bool)
    return reference.decode(reference.merge(reference.frPyObjects(flat, *size))).astype(bool)


def test_polygons_fill_back_to_the_same_pixels(mask):
    assert np.array_equal(filled(Masks.from_dense(mask[None]).polygons()[0], SIZE), mask)


def test_polygons_keep_parts_holes_and_islands_in_holes():
    mask = with_pixels(np.s_[1:20, 1:20], np.s_[2:4, 25:27])
    mask[4:16, 4:16] = False  # a hole...
    mask[8:12, 8:12] = True  # ...with an island
    mask[1:4, 8] = True
    masks = Masks.from_crops([Crop(0, 0, mask)], SIZE)
    (found,) = masks.polygons()
    assert len(found) == 3
    assert np.array_equal(filled(found, SIZE), mask)
    assert Masks.from_polygons([[ring.ravel().tolist() for ring in found]], SIZE).rles() == masks.rles()


def test_polygons_of_an_empty_mask_are_none():
    assert Masks.from_dense(np.zeros((1, *SIZE), bool)).polygons() == [[]]


POLYGONS = [
    [[3, 2, 20.5, 4, 18, 17.25, 5, 19]],
    [[1, 1, 6, 1, 6, 6, 1, 6], [10, 10, 25, 12, 14, 20]],
    [[-9, -5, 40, 3, 12, 50]],
    [[0, 0, 31, 0, 31, 23, 0, 23]],
]


def test_polygons_are_filled_as_pycocotools_fills_them():
    masks = Masks.from_polygons(POLYGONS, SIZE)
    for rle, rings in zip(masks.rles(), POLYGONS, strict=True):
        assert rle["counts"] == reference.merge(reference.frPyObjects(rings, *SIZE))["counts"]


def test_polygons_without_an_area_are_empty_masks():
    assert Masks.from_polygons([[], [[1, 1, 2, 2]], POLYGONS[0]], SIZE).areas()[:2].tolist() == [0, 0]


def test_a_flat_list_in_place_of_a_list_of_rings_is_refused():
    with pytest.raises(KirieError, match="polygon ring"):
        Masks.from_polygons([[1, 1, 6, 1, 6, 6]], SIZE)


@pytest.mark.parametrize(
    "ring",
    [
        [0, 0, float("nan"), 0, 5, 5],
        [0, 0, float("inf"), 0, 5, 5],
        [0, 0, 1e9, 0, 5, 5],
        [0, 0, 1e6, 0, 5, 5],
        [1e9, 1e9, 1e9, 1e9 + 1, 1e9 + 1, 1e9],
        [0, 0, 9, 0, 9, 9, 3],
        ["a", "b", "c", "d", "e", "f"],
        [None] * 6,
        [[0, 0], [5, 0], [5, 5], [0, 5], [0, 3], [0, 2]],
        [0, 0, 30, 22] * 300,
    ],
    ids=str,
)
def test_a_ring_that_is_no_outline_is_refused(ring):
    with pytest.raises(KirieError, match="polygon ring"):
        Masks.from_polygons([[ring]], SIZE)


def test_uncompressed_run_lengths_are_read(mask):
    flat = mask.ravel(order="F")
    edges = [0, *(np.flatnonzero(flat[1:] != flat[:-1]) + 1).tolist(), flat.size]
    counts = ([0] if flat[0] else []) + np.diff(edges).tolist()
    masks = Masks.from_rles([{"size": list(SIZE), "counts": counts}], SIZE)
    assert masks.rles()[0]["counts"] == encoded(mask)["counts"]
    text = Masks.from_rles([{"counts": encoded(mask)["counts"].decode()}], SIZE)
    assert np.array_equal(text.dense()[0], mask)


def test_runs_of_no_length_cover_nothing():
    masks = Masks.from_rles([{"counts": [40, 0, 600, 3, 0, 2, SIZE[0] * SIZE[1] - 645, 0]}], SIZE)
    flat = masks.dense()[0].ravel(order="F")
    assert np.flatnonzero(flat).tolist() == list(range(640, 645))
    assert masks.areas().tolist() == [5]
    assert masks.boxes().tolist() == Masks.from_dense(masks.dense()).boxes().tolist()
    nothing = Masks.from_rles([{"counts": [40, 0, SIZE[0] * SIZE[1] - 40]}], SIZE)
    assert nothing.boxes().tolist() == [[0, 0, 0, 0]]
    assert nothing.polygons() == [[]]


@pytest.mark.parametrize(
    "rle",
    [
        "counts",
        {},
        {"size": list(SIZE)},
        {"size": [31, 23], "counts": [713]},
        {"size": 5, "counts": [713]},
        {"size": None, "counts": [713]},
        {"counts": []},
        {"counts": [712]},
        {"counts": [714]},
        {"counts": [-1, 714]},
        {"counts": [2**40, 713]},
        {"counts": [10**400]},
        {"counts": [713.0]},
        {"counts": ["713"]},
        {"counts": [True, 712]},
        {"counts": [[713]]},
        {"counts": None},
        {"counts": 713},
        {"counts": b""},
        {"counts": ""},
        {"counts": "切り絵"},
        {"counts": b"h"},
        {"counts": b"oooooooooooooooooooo0"},
        {"counts": b"\x00\xff"},
        {"counts": b"0P1"},
        {"counts": b"O0"},
        {"counts": encoded(with_pixels(np.s_[3:9, 3:9]))["counts"] + b"1"},
        {"counts": encoded(with_pixels(np.s_[3:9, 3:9]))["counts"][:-1]},
        {"counts": encoded(np.ones((40, 40), bool))["counts"]},
    ],
    ids=repr,
)
def test_hostile_run_lengths_are_refused(rle):
    with pytest.raises(KirieError, match=r"[Rr]un lengths"):
        Masks.from_rles([rle], SIZE)


@pytest.mark.parametrize("alphabet", [range(256), range(48, 112), range(48, 80)], ids=["bytes", "characters", "short"])
def test_random_bytes_are_refused_or_are_a_sound_mask(alphabet):
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        packed = bytes(random.choice(alphabet, random.integers(0, 12)).tolist())
        try:
            masks = Masks.from_rles([{"counts": packed}], (3, 4))
        except KirieError:
            refused += 1
            continue
        assert masks.areas()[0] == masks.dense().sum() == reference.area(masks.rles())[0]
        assert masks.boxes().tolist() == Masks.from_dense(masks.dense()).boxes().tolist()
    assert 1000 < refused


def test_indexing_selects_and_orders():
    dense = blobs(6, seed=3)
    masks = Masks.from_dense(dense)
    for index in (
        slice(1, 5, 2),
        slice(None, None, -1),
        slice(0, 0),
        np.array([4, 0, 4]),
        np.array([], np.int64),
        np.array([True, False, True, False, False, True]),
        np.zeros(6, bool),
        [2, 3],
    ):
        assert np.array_equal(masks[index].dense(), dense[index])
        assert masks[index].size == SIZE
    assert np.array_equal(masks[-1].dense(), dense[-1:])
    assert len(masks[np.zeros(6, bool)]) == 0
    with pytest.raises(IndexError):
        masks[np.ones(5, bool)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, np.uint64])
def test_id_maps_come_back(dtype):
    ids = np.random.default_rng(1).integers(0, 7, SIZE).astype(dtype)
    ids[ids == 3] = 200
    masks = Masks.from_ids(ids)
    assert len(masks) == 6
    assert np.array_equal(masks.id_map([1, 2, 4, 5, 6, 200]), ids)
    assert np.array_equal(masks.id_map(), np.searchsorted([0, 1, 2, 4, 5, 6, 200], ids))
    for mask, value in zip(masks, [1, 2, 4, 5, 6, 200], strict=True):
        assert np.array_equal(mask, ids == value)


def test_id_maps_with_huge_and_negative_ids():
    ids = np.zeros(SIZE, np.int64)
    ids[2:5, 2:5], ids[10:12, :], ids[-1, -1] = 2**40, -7, 16_777_215
    assert Masks.from_ids(ids).areas().tolist() == [62, 1, 9]
    assert np.array_equal(Masks.from_ids(ids, [2**40])[0].dense()[0], ids == 2**40)


def test_ids_in_a_given_order_and_ids_that_do_not_occur():
    ids = np.zeros(SIZE, np.int32)
    ids[:4], ids[4:6] = 9, 2
    masks = Masks.from_ids(ids, [2, 5, 9, 2, 0])
    assert masks.areas().tolist() == [62, 0, 124, 62, 713 - 186]
    assert len(Masks.from_ids(np.zeros(SIZE, np.int32))) == 0
    assert Masks.from_ids(np.zeros(SIZE, np.int32), [4]).areas().tolist() == [0]


def test_a_later_mask_covers_an_earlier_one_in_an_id_map():
    masks = Masks.from_dense(np.stack([with_pixels(np.s_[:10, :10]), with_pixels(np.s_[5:15, 5:15])]))
    out = masks.id_map()
    assert out.dtype == np.int32
    assert np.bincount(out.ravel()).tolist() == [713 - 175, 75, 100]
    assert not Masks(SIZE).id_map().any()


@pytest.mark.parametrize("shift", [0, 2**33, -4])
def test_overlap_table_is_the_contingency_matrix(shift):
    random = np.random.default_rng(5)
    a, b = random.integers(0, 9, SIZE) * 3 + shift, random.integers(0, 5, SIZE)
    ids_a, ids_b, table = overlap_table(a, b)
    assert ids_a.tolist() == np.unique(a).tolist()
    assert ids_b.tolist() == np.unique(b).tolist()
    assert np.array_equal(table, contingency_matrix(a.ravel(), b.ravel()))
    with pytest.raises(KirieError, match="different shape"):
        overlap_table(a, b[1:])


@pytest.mark.parametrize("shift", [0, 2**33, -4])
def test_counting_and_ranking_ids(shift):
    ids = np.random.default_rng(6).integers(0, 40, SIZE) ** 2 + shift
    found, counts = np.unique(ids, return_counts=True)
    assert [part.tolist() for part in count_ids(ids)] == [found.tolist(), counts.tolist()]
    ranked, rank = rank_ids(ids)
    assert np.array_equal(ranked[rank], ids)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([Crop(0, 0, np.zeros((2, 2), np.uint8))], "bool bits"),
        ([Crop(0, 0, np.zeros(4, bool))], "bool bits"),
        ([Crop(-1, 0, np.ones((2, 2), bool))], "leaves the picture"),
        ([Crop(0, -1, np.ones((2, 2), bool))], "leaves the picture"),
        ([Crop(22, 0, np.ones((2, 2), bool))], "leaves the picture"),
        ([Crop(0, 30, np.ones((2, 2), bool))], "leaves the picture"),
    ],
)
def test_crops_are_checked(items, message):
    with pytest.raises(KirieError, match=message):
        Masks.from_crops(items, SIZE)


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (70_000, 70_000)])
def test_a_picture_must_have_a_size_that_run_lengths_can_count(size):
    with pytest.raises(KirieError, match="picture of 1 to"):
        Masks(size)


def test_dense_masks_need_three_axes():
    with pytest.raises(KirieError, match=r"\(N, H, W\)"):
        Masks.from_dense(np.zeros(SIZE, bool))


def test_lists_become_tuples():
    masks = Masks([23, 31], [Crop(0, 0, np.ones((1, 1), bool))])
    assert masks.size == SIZE
    assert isinstance(masks.items, tuple)


def test_a_crop_does_not_hold_on_to_the_array_it_was_cut_from():
    dense = blobs(2)
    masks = Masks.from_dense(dense)
    before = masks.areas().tolist()
    dense[:] = True
    assert masks.areas().tolist() == before


def test_a_mask_on_a_huge_picture_needs_no_memory_of_its_size():
    masks = Masks.from_crops([Crop(59_000, 59_500, np.ones((40, 40), bool))], (60_000, 60_000))
    again = Masks.from_rles(masks.rles(), masks.size)
    assert again.areas().tolist() == [1600]
    assert again.boxes().tolist() == [[59_500, 59_000, 59_540, 59_040]]
    assert again.crops()[0].bits.all()
    assert again.iou(masks).tolist() == [[1.0]]


def test_crops_of_a_high_picture_take_no_more_memory():
    def peak(height):
        crop = Crop(height // 2, 500, np.random.default_rng(0).random((300, 400)) < 0.5)
        masks = Masks.from_rles(Masks.from_crops([crop], (height, 1000)).rles(), (height, 1000))
        tracemalloc.start()
        try:
            (again,) = masks.crops()
            return tracemalloc.get_traced_memory()[1], np.array_equal(again.bits, crop.bits)
        finally:
            tracemalloc.stop()

    low, high = peak(1000), peak(1_000_000)
    assert low[1]
    assert high[1]
    assert high[0] < 1.2 * low[0]
