"""Masks and label maps scored by kirie against scikit-learn, hand-worked numbers and plain loops."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from kirie import metrics
from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.metrics import SemanticMetric, SemanticReport, confusion_table, dice, iou, semantic
from kirie.results import SemanticMap

FIVE = Classes(("road", "car", "tree", "sign", "sky"))
TRUTH = np.array([[0, 0, 0, 0, 1, 1, 2, 2, 255, 255]], np.uint8)
RESULT = np.array([[0, 0, 0, 1, 1, 1, 2, 3, 4, 0]], np.uint8)

DTYPES = [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
TENSORS = [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64]


def report_of(result, truth, classes=FIVE) -> SemanticReport:
    metric = SemanticMetric(classes)
    metric.update(result, truth)
    return metric.compute()


def random_pair(seed=0, classes=5, shape=(3, 40, 50), dtype=np.uint8, void=255):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, shape)
    result = np.where(rng.random(shape) < 0.7, truth, rng.integers(0, classes, shape))
    truth[rng.random(shape) < 0.1] = void
    result[rng.random(shape) < 0.1] = void
    return result.astype(dtype), truth.astype(dtype)


def sk_table(result, truth, classes, void=255):
    keep = truth != void
    r, t = result[keep].astype(np.int64), truth[keep].astype(np.int64)
    r[(r < 0) | (r >= classes)] = classes
    return sk.confusion_matrix(t, r, labels=range(classes + 1))[:classes]


# --- two masks


def chapter_circles():
    y, x = np.mgrid[:100, :100]
    return (x - 50) ** 2 + (y - 50) ** 2 <= 400, (x - 55) ** 2 + (y - 55) ** 2 <= 400


def chapter_exercise():
    a = "00110 01110 11111 01110 00110"
    b = "00011 00111 01111 01110 00110"
    return tuple(np.array([[int(c) for c in row] for row in text.split()]) for text in (a, b))


def test_chapter_circles():
    a, b = chapter_circles()
    assert round(iou(a, b), 4) == 0.6304
    assert round(dice(a, b), 4) == 0.7733


def test_chapter_exercise():
    a, b = chapter_exercise()
    assert (a.sum(), b.sum(), (a & b).sum(), (a | b).sum()) == (15, 14, 12, 17)
    assert iou(a, b) == 12 / 17
    assert dice(a, b) == 24 / 29
    assert (round(iou(a, b), 4), round(dice(a, b), 4)) == (0.7059, 0.8276)


@pytest.mark.parametrize("seed", range(3))
def test_two_masks_equal_sklearn(seed):
    a, b = np.random.default_rng(seed).random((2, 30, 20)) < 0.4
    assert iou(a, b) == pytest.approx(sk.jaccard_score(b.ravel(), a.ravel()), abs=1e-12)
    assert dice(a, b) == pytest.approx(sk.f1_score(b.ravel(), a.ravel()), abs=1e-12)


@pytest.mark.parametrize("measure", [iou, dice])
def test_empty_masks(measure):
    none, some = np.zeros((4, 4), bool), np.eye(4, dtype=bool)
    assert measure(none, none) == 1.0
    assert measure(none, none, empty=0.0) == 0.0
    assert math.isnan(measure(none, none, empty=math.nan))
    assert measure(none, some) == measure(some, none) == 0.0
    assert measure(some, some, empty=0.0) == 1.0
    assert measure(np.zeros((0, 3)), np.zeros((0, 3))) == 1.0


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float32])
def test_mask_kinds_agree(kind):
    a, b = chapter_circles()
    tensors = torch.from_numpy(a.astype(kind)), torch.from_numpy(b.astype(kind))
    assert iou(a.astype(kind), b.astype(kind)) == iou(*tensors) == iou(a, tensors[1]) == iou(a, b)
    assert dice(a.astype(kind), b.astype(kind)) == dice(*tensors) == dice(tensors[0], b) == dice(a, b)


def test_masks_that_are_refused():
    a, _ = chapter_circles()
    with pytest.raises(KirieError, match=r"same shape, got \(100, 100\) and \(50, 100\)"):
        iou(a, a[:50])
    with pytest.raises(KirieError, match="mask == 255"):
        iou(a, a.astype(np.uint8) * 255)
    with pytest.raises(KirieError, match=r"scores > 0\.5"):
        dice(torch.full((2, 2), 0.3), torch.ones(2, 2))
    with pytest.raises(KirieError, match="0 and 1"):
        dice(np.full((2, 2), np.nan), np.ones((2, 2)))


# --- the table


def test_table_by_hand():
    table = confusion_table(RESULT, TRUTH, 5)
    assert table.dtype == np.int64
    assert table.tolist() == [
        [3, 1, 0, 0, 0, 0],
        [0, 2, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]


def test_result_without_a_class_goes_to_the_last_column():
    table = confusion_table(np.array([255, 7, -1, 1, 300]), np.array([0, 0, 1, 1, 255]), 2)
    assert table.tolist() == [[0, 0, 2], [0, 1, 1]]
    # An id one above a byte must not come back as class 0.
    assert confusion_table(np.array([256, 1]), np.array([0, 1]), 2).tolist() == [[0, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_integer_type_equals_sklearn(dtype):
    void = 127 if dtype == np.int8 else 255
    result, truth = random_pair(dtype=dtype, void=void)
    expected = sk_table(result, truth, 5, void)
    assert expected[:, 5].sum() > 100
    np.testing.assert_array_equal(confusion_table(result, truth, 5, void=void), expected)


@pytest.mark.parametrize("dtype", TENSORS)
def test_every_tensor_type_equals_sklearn(dtype):
    void = 127 if dtype == torch.int8 else 255
    result, truth = random_pair(dtype=np.int64, void=void)
    tensors = torch.from_numpy(result).to(dtype), torch.from_numpy(truth).to(dtype)
    np.testing.assert_array_equal(confusion_table(*tensors, 5, void=void), sk_table(result, truth, 5, void))
    np.testing.assert_array_equal(confusion_table(tensors[0], truth, 5, void=void), sk_table(result, truth, 5, void))


def test_bool_maps():
    a, b = chapter_circles()
    expected = sk.confusion_matrix(b.ravel(), a.ravel())
    for pair in ((a, b), (torch.from_numpy(a), torch.from_numpy(b))):
        table = confusion_table(*pair, 2)
        np.testing.assert_array_equal(table[:, :2], expected)
        assert not table[:, 2].any()


def test_counting_on_tensors_equals_counting_on_arrays():
    """The road of tensors on an accelerator, walked on the CPU."""
    result, truth = (x.reshape(-1).astype(np.int64) for x in random_pair())
    result[:9], truth[5:12] = -3, 77
    walked = semantic._count(torch, torch.from_numpy(result), torch.from_numpy(truth), 5, 255)
    np.testing.assert_array_equal(walked, semantic._count(np, result, truth, 5, 255))
    np.testing.assert_array_equal(walked[6].sum(), 7)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu():
    result, truth = random_pair(dtype=np.int64)
    on_gpu = torch.from_numpy(result).cuda()
    expected = sk_table(result, truth, 5)
    np.testing.assert_array_equal(confusion_table(on_gpu, torch.from_numpy(truth).cuda(), 5), expected)
    np.testing.assert_array_equal(confusion_table(on_gpu, truth, 5), expected)
    assert iou(on_gpu == 1, torch.from_numpy(truth == 1)) == iou(result == 1, truth == 1)


@pytest.mark.parametrize(("classes", "void"), [(256, 65535), (300, 65535), (300, -1), (5, -100), (5, 1000)])
def test_ids_beyond_a_byte(classes, void):
    result, truth = random_pair(classes=classes, dtype=np.int64, void=void)
    np.testing.assert_array_equal(
        confusion_table(result, truth, classes, void=void), sk_table(result, truth, classes, void)
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_void_that_is_one_of_the_classes(dtype):
    truth, result = np.array([0, 0, 1, 1, 2], dtype), np.array([0, 1, 0, 1, 2], dtype)
    assert confusion_table(result, truth, 3, void=0).tolist() == [[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]]
    if dtype == np.int64:  # the same beside an id that no byte holds
        result = np.where(result == 0, -5, result)
        assert confusion_table(result, truth, 3, void=0).tolist() == [[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]]


def test_uint8_with_256_classes():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(confusion_table(every, every, 256, void=65535), np.eye(256, 257, dtype=np.int64))


@pytest.mark.parametrize("chunk", [1, 7, 1000, 6000, 6001])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_chunks_add_up(monkeypatch, chunk, dtype):
    monkeypatch.setattr(semantic, "CHUNK", chunk)
    shape = (2, 5, 6) if chunk == 1 else (3, 40, 50)
    result, truth = random_pair(shape=shape, dtype=dtype)
    np.testing.assert_array_equal(confusion_table(result, truth, 5), sk_table(result, truth, 5))


def test_counts_beyond_float32_are_exact():
    result, truth = np.full((5000, 5000), 1, np.uint8), np.full((5000, 5000), 2, np.uint8)
    truth[0, :3] = 1
    assert confusion_table(result, truth, 3).tolist() == [[0] * 4, [0, 3, 0, 0], [0, 24_999_997, 0, 0]]


def test_views_and_read_only_arrays():
    result, truth = random_pair(shape=(40, 60))
    for r, t in ((result.T, truth.T), (result[::2, ::3], truth[::2, ::3]), (result[::-1], truth[::-1])):
        np.testing.assert_array_equal(confusion_table(r, t, 5), sk_table(r, t, 5))
    wide = np.broadcast_to(np.uint8(3), truth.shape)
    np.testing.assert_array_equal(confusion_table(wide, truth, 5), sk_table(wide, truth, 5))
    truth.flags.writeable = False
    np.testing.assert_array_equal(confusion_table(result, truth, 5), sk_table(result, truth, 5))


def test_no_pixels():
    assert not confusion_table(np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8), 3).any()


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_unknown_truth_is_named_with_its_pixels(make):
    truth = np.array([0, 1, 33, 33, -1, 255, 5])
    with pytest.raises(
        KirieError, match=r"0\.\.4\) nor void \(255\): -1 \(1 pixels\), 5 \(1 pixels\), 33 \(2 pixels\)"
    ):
        confusion_table(make(np.zeros(7, np.int64)), make(truth), 5)
    many = np.arange(20, 40, dtype=np.uint8)
    with pytest.raises(KirieError, match=r"27 \(1 pixels\) and 12 more"):
        confusion_table(many, many, 5)


def test_maps_that_are_refused():
    with pytest.raises(KirieError, match=r"whole numbers, got float32.*argmax"):
        confusion_table(TRUTH.astype(np.float32), TRUTH, 5)
    with pytest.raises(KirieError, match=r"whole numbers, got float"):
        confusion_table(torch.from_numpy(TRUTH), torch.zeros(TRUTH.shape), 5)
    with pytest.raises(KirieError, match="same shape"):
        confusion_table(TRUTH[:, :5], TRUTH, 5)
    with pytest.raises(KirieError, match="whole numbers, got object"):
        confusion_table(np.array(FIVE), np.array(FIVE), 5)


# --- the report


def test_mean_iou_follows_its_convention_and_no_other():
    """The case tells all conventions in use apart; each number is worked by hand from TRUTH and RESULT."""
    report = report_of(RESULT, TRUTH)
    np.testing.assert_allclose(report.iou, [3 / 4, 2 / 3, 1 / 2, 0, np.nan])
    assert report.miou == report.score == pytest.approx(23 / 48)
    others = {
        "only classes in the truth": 23 / 12 / 3,
        "union 0 counts 1": (23 / 12 + 1) / 5,
        "union 0 counts 0": 23 / 12 / 5,
        "void truth counts as false positive": (3 / 5 + 2 / 3 + 1 / 2) / 5,
        "mean over pictures": ((3 / 4 + 0) / 2 + (1 + 1 / 2 + 0) / 3) / 2,  # pictures of 4 and 6 pixels
        "micro": 6 / 10,
    }
    for name, number in others.items():
        assert abs(report.miou - number) > 0.01, name
    metric = SemanticMetric(FIVE)
    for part in (np.s_[:, :4], np.s_[:, 4:]):
        metric.update(RESULT[part], TRUTH[part])
    assert metric.compute().miou == report.miou


def test_report_by_hand():
    report = report_of(RESULT, TRUTH)
    np.testing.assert_allclose(report.dice, [6 / 7, 4 / 5, 2 / 3, 0, np.nan])
    np.testing.assert_allclose(report.precision, [1, 2 / 3, 1, 0, np.nan])
    np.testing.assert_allclose(report.recall, [3 / 4, 1, 1 / 2, np.nan, np.nan])
    assert report.classes_counted == 4
    assert report.mean_dice == pytest.approx((6 / 7 + 4 / 5 + 2 / 3) / 4)
    assert report.pixel_accuracy == 6 / 8
    assert report.mean_accuracy == pytest.approx((3 / 4 + 1 + 1 / 2) / 3)
    assert report.fwiou == pytest.approx((4 * 3 / 4 + 2 * 2 / 3 + 2 * 1 / 2) / 8)
    assert "4 of 5 classes" in report.convention and "(255)" in report.convention


@pytest.mark.parametrize("seed", range(3))
def test_report_equals_sklearn(seed):
    result, truth = random_pair(seed, shape=(2, 30, 30))
    report = report_of(result, truth)
    keep = truth != 255
    t, r = truth[keep], result[keep]
    per_class = {"labels": range(5), "average": None}
    np.testing.assert_allclose(report.iou, sk.jaccard_score(t, r, **per_class))
    np.testing.assert_allclose(report.dice, sk.f1_score(t, r, **per_class))
    np.testing.assert_allclose(report.precision, sk.precision_score(t, r, **per_class))
    np.testing.assert_allclose(report.recall, sk.recall_score(t, r, **per_class))
    assert report.miou == pytest.approx(sk.jaccard_score(t, r, labels=range(5), average="macro"))
    assert report.fwiou == pytest.approx(sk.jaccard_score(t, r, labels=range(5), average="weighted"))
    assert report.pixel_accuracy == pytest.approx(sk.accuracy_score(t, r))


def test_result_without_a_class_is_a_miss():
    report = report_of(np.array([[0, 255, 255, 1]]), np.array([[0, 0, 1, 1]]))
    assert report.iou[:2].tolist() == [0.5, 0.5]
    assert report.recall[:2].tolist() == [0.5, 0.5]
    assert report.precision[:2].tolist() == [1, 1]
    assert report.pixel_accuracy == 0.5


@pytest.mark.parametrize("truth", [np.full((3, 3), 255, np.uint8), np.zeros((0, 3), np.uint8)])
def test_nothing_to_score_is_undefined_not_zero(truth):
    report = report_of(np.zeros_like(truth), truth)
    for name in ("miou", "mean_dice", "fwiou", "pixel_accuracy", "mean_accuracy", "score"):
        assert math.isnan(getattr(report, name)), name
    assert report.classes_counted == 0
    assert report.to_dict()["miou"] is None


def test_two_classes_show_the_dice_of_the_foreground():
    a, b = chapter_circles()
    report = report_of(a, b, Classes(("background", "cell")))
    assert round(report.dice[1], 4) == 0.7733
    assert report.rows()[1] == {
        "class": "cell",
        "iou": iou(a, b),
        "dice": dice(a, b),
        "precision": pytest.approx((a & b).sum() / a.sum()),
        "recall": pytest.approx((a & b).sum() / b.sum()),
        "truth_pixels": b.sum(),
        "result_pixels": a.sum(),
    }


def test_to_dict_is_json_without_nan():
    values = report_of(RESULT, TRUTH).to_dict()
    again = json.loads(json.dumps(values, allow_nan=False))
    assert again == values
    assert again["per_class"][4] == {
        "class": "sky", "iou": None, "dice": None, "precision": None, "recall": None,
        "truth_pixels": 0, "result_pixels": 0,
    }  # fmt: skip
    assert again["miou"] == pytest.approx(23 / 48)
    assert again["table"][0] == [3, 1, 0, 0, 0, 0]


# --- collecting


def test_merged_parts_equal_one_pass():
    result, truth = random_pair(shape=(6, 20, 20))
    whole, left, right = (SemanticMetric(FIVE) for _ in range(3))
    whole.update(result, truth)
    for index in range(6):
        (left if index % 2 else right).update(torch.from_numpy(result[index]), truth[index])
    left.merge(right)
    np.testing.assert_array_equal(left.table, whole.table)
    assert left.table.sum() == (truth != 255).sum()
    with pytest.raises(KirieError, match="same classes"):
        left.merge(SemanticMetric(Classes(("a", "b"))))


def test_report_keeps_its_table_while_the_metric_goes_on():
    metric = SemanticMetric(FIVE)
    metric.update(RESULT, TRUTH)
    report = metric.compute()
    metric.update(RESULT, TRUTH)
    assert report.table.sum() == 8
    assert metric.compute().table.sum() == 16


def test_semantic_maps():
    report = report_of(SemanticMap(RESULT, FIVE), SemanticMap(TRUTH, FIVE))
    assert report.miou == pytest.approx(23 / 48)
    with pytest.raises(KirieError, match="mean different things"):
        report_of(SemanticMap(RESULT, Classes(("car", "road", "tree", "sign", "sky"))), SemanticMap(TRUTH, FIVE))


def test_void_of_more_than_255_classes():
    classes = Classes(tuple(map(str, range(300))))
    report = report_of(np.array([[299, 255, 1]], np.int32), np.array([[299, 255, 65535]], np.int32), classes)
    assert report.miou == 1.0
    assert report.classes_counted == 2


# --- the door


@pytest.mark.parametrize(("name", "main"), [("semantic", "miou"), ("boundary", "mean_f")])
def test_the_table_of_metrics_names_classes(name, main):
    metric = metrics.metric_class(name)(FIVE)
    metric.update(RESULT.repeat(2, 0), TRUTH.repeat(2, 0))
    report = metric.compute()
    assert getattr(report, main) == report.score
    with pytest.raises(KirieError, match=r"no metric 'nonsense'.*semantic"):
        metrics.metric_class("nonsense")


def test_the_row_of_a_history():
    metric = SemanticMetric(Classes(("background", "cell")))
    metric.update(np.array([[0, 1, 1, 1]]), np.array([[0, 0, 1, 1]]))
    expected = {"miou": (1 / 2 + 2 / 3) / 2, "dice": (2 / 3 + 4 / 5) / 2, "accuracy": 3 / 4, "foreground_dice": 4 / 5}
    assert metric.compute().history_row() == pytest.approx(expected)
    assert set(SemanticMetric(FIVE).compute().history_row()) == {"miou", "dice", "accuracy"}


def test_public_names_exist():
    for name in metrics.__all__:
        assert getattr(metrics, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'mean_iou'"):
        _ = metrics.mean_iou


def test_importing_metrics_is_light():
    code = "import sys, kirie.metrics; print([m for m in ('torch', 'cv2', 'scipy') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
