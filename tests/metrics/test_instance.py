"""AP and AR beside pycocotools, matches beside StarDist's formulas, counting by hand."""

import contextlib
import copy
import io
import itertools
import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
from objects import blob_truth, coco_truths, found_in
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.optimize import linear_sum_assignment

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.masks import Crop, Masks
from kirie.matches import matched
from kirie.metrics import InstanceMetric
from kirie.metrics.matching import IOUS, Matching
from kirie.results import Instances

CLASSES = Classes(("cat", "dog", "cow"))
TWELVE = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]
TWELVE += ["ar1", "ar10", "ar", "ar_small", "ar_medium", "ar_large"]


def metric_of(pairs, classes=CLASSES, **options):
    metric = InstanceMetric(classes, **options)
    for result, truth in pairs:
        metric.update(result, truth)
    return metric


def made_up(count, seed=0, classes=CLASSES, crowd=0.1, objects=12):
    rng = np.random.default_rng(seed)
    truths = [blob_truth(rng, rng.integers(0, objects), classes, crowd=crowd) for _ in range(count)]
    return [(found_in(truth, rng), truth) for truth in truths]


def objects_at(places, labels=None, scores=None, size=(64, 64), side=10, classes=CLASSES, crowd=None):
    masks = Masks.from_crops([Crop(top, left, np.ones((side, side), bool)) for top, left in places], size)
    return Instances.from_masks(masks, labels or [0] * len(places), classes, scores, crowd)


# COCO's numbers


def as_file(truths):
    """The values of a COCO file, with ids from 1."""
    images, rows = [], []
    for number, truth in enumerate(truths, 1):
        images.append({"id": number, "height": truth.size[0], "width": truth.size[1]})
        for index, rle in enumerate(truth.masks.rles()):
            left, top, right, bottom = truth.boxes[index].tolist()
            rows.append(
                {
                    "id": len(rows) + 1,
                    "image_id": number,
                    "category_id": int(truth.classes.ids[truth.labels[index]]),
                    "segmentation": {**rle, "counts": rle["counts"].decode()},
                    "bbox": [left, top, right - left, bottom - top],
                    "area": float(truth.masks.areas()[index] if truth.areas is None else truth.areas[index]),
                    "iscrowd": int(truth.crowd[index]),
                }
            )
    names = zip(truths[0].classes.ids, truths[0].classes.names, strict=True)
    return {"images": images, "annotations": rows, "categories": [{"id": i, "name": name} for i, name in names]}


def rows_of(result, image_id, kind):
    """A result as a COCO result file has it: masks alone, or boxes alone."""
    for index, rle in enumerate(result.masks.rles()):
        left, top, right, bottom = result.boxes[index].astype(float).tolist()
        shape = {"segmentation": rle} if kind == "segm" else {"bbox": [left, top, right - left, bottom - top]}
        yield {
            "image_id": image_id,
            "category_id": int(result.classes.ids[result.labels[index]]),
            "score": float(result.scores[index]),
            **shape,
        }


def pycocotools_of(results, values, kind, most=100):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(values)
        truth.createIndex()
        ids = sorted(image["id"] for image in values["images"])
        rows = [row for number, result in zip(ids, results, strict=True) for row in rows_of(result, number, kind)]
        judge = COCOeval(truth, truth.loadRes(rows), kind)
        judge.params.maxDets = [1, 10, most]
        judge.evaluate()
        judge.accumulate()
        if most == 100:  # it sums up nothing else
            judge.summarize()
    return judge


def expect_equal(report, results, values, most=100):
    for ours, kind in ((report.masks, "segm"), (report.boxes, "bbox")):
        judge = pycocotools_of(results, values, kind, most)
        precision, recall = judge.eval["precision"][..., 2], judge.eval["recall"]
        np.testing.assert_allclose(np.nan_to_num(ours.precision, nan=-1), precision, atol=1e-9)
        np.testing.assert_allclose(np.nan_to_num(ours.recall, nan=-1), recall, atol=1e-9)
        for k, ap in enumerate(ours.ap_of()):
            part = precision[:, :, k, 0]
            assert ap == pytest.approx(part.mean(), abs=1e-9) if (part > -1).all() else math.isnan(ap)
        if most == 100:
            numbers = ours.to_dict()
            assert list(numbers) == TWELVE
            for name, theirs in zip(TWELVE, judge.stats, strict=True):
                assert numbers[name] == pytest.approx(theirs, abs=1e-9) or (theirs == -1 and math.isnan(numbers[name]))


@pytest.mark.parametrize("split", ["val2017", "train2017"])
def test_coco_equals_pycocotools(shared, split):
    truths, values = coco_truths(shared / "data" / "coco" / "annotations" / f"instances_{split}.json")
    assert any(truth.crowd.any() for truth in truths), "or crowds are not tested"
    rng = np.random.default_rng(0)
    results = [found_in(truth, rng) for truth in truths]
    report = metric_of(zip(results, truths, strict=True), truths[0].classes).compute()
    assert 0.1 < report.masks.ap < 0.9 and 0.1 < report.boxes.ap < 0.9 and report.classes_counted < 80
    expect_equal(report, results, values)


@pytest.mark.parametrize("seed", range(4))
def test_small_pictures_equal_pycocotools(seed):
    pairs = made_up(12, seed)
    results, truths = zip(*pairs, strict=True)
    expect_equal(metric_of(pairs).compute(), results, as_file(truths))


@pytest.mark.parametrize("most", [3, 10, 25, 300])
def test_other_limits_equal_pycocotools(most):
    rng = np.random.default_rng(5)
    truths = [blob_truth(rng, 60, CLASSES) for _ in range(3)]
    results = [found_in(truth, rng) for truth in truths]
    report = metric_of(zip(results, truths, strict=True), max_detections=most).compute()
    if most >= 10:
        expect_equal(report, results, as_file(truths), most)
    assert report.crowded == sum(np.bincount(truth.labels).max() > most for truth in truths)
    assert report.masks.recall.shape[-1] == 3 and f"{most} results" in report.convention


def test_stated_areas_sort_by_size():
    truth = objects_at([(2, 2)], side=20)
    assert not math.isnan(metric_of([(truth, truth)]).compute().masks.to_dict()["ap_small"])
    large = metric_of([(truth, replace(truth, areas=np.array([10000.0])))]).compute().masks.to_dict()
    assert math.isnan(large["ap_small"]) and large["ap_large"] == 1


def test_a_class_absent_from_the_truth_is_no_number_and_in_no_mean():
    truth = objects_at([(2, 2), (30, 30)], [0, 0])
    result = objects_at([(2, 2), (30, 30), (50, 50)], [0, 0, 2], np.array([0.9, 0.8, 0.7]))
    report = metric_of([(result, truth)]).compute()
    assert report.masks.ap == report.score == 1 and report.classes_counted == 1
    assert [math.isnan(ap) for ap in report.masks.ap_of()] == [False, True, True]
    assert [row["results"] for row in report.rows()] == [2, 0, 1] and report.rows()[2]["precision"] == 0


def test_nothing_there_and_nothing_found():
    some, nothing = objects_at([(2, 2)]), objects_at([])
    empty, missed, made_up, silent = (
        metric_of(pairs).compute() for pairs in ([], [(nothing, some)], [(some, nothing)], [(nothing, nothing)])
    )
    for report in (empty, made_up, silent):
        assert math.isnan(report.score) and math.isnan(report.boxes.ar) and "nothing can be scored" in report.convention
    assert missed.masks.ap == missed.boxes.ap50 == missed.masks.ar == 0 and "found no object" in missed.convention
    assert missed.matching.accuracy[0] == made_up.matching.accuracy[0] == 0
    assert math.isnan(silent.matching.accuracy[0]) and silent.counting.mean_absolute == 0
    assert math.isnan(empty.counting.bias) and empty.pictures == 0
    for report in (empty, missed, made_up, silent):
        json.dumps(report.to_dict(), allow_nan=False)
        assert report.rows() and report.headline() and report.history_row()
        assert np.isnan(report.masks.curve(0.5)).all() == math.isnan(report.score)


def test_pictures_with_more_objects_than_count_are_told():
    truth = objects_at([(r, c) for r in range(0, 60, 12) for c in range(0, 60, 12)], side=4)
    full = metric_of([(truth, truth)], max_detections=20).compute()
    assert (
        full.crowded == 1
        and full.masks.ar == pytest.approx(20 / 25)
        and "1 picture holds more than 20" in full.convention
    )
    assert "more than" not in metric_of([(truth, truth)]).compute().convention
    assert full.matching.recall[0] == 1, "matches have no limit"


# StarDist's numbers, by the published definitions


def stardist(pairs, threshold):
    """tp, fp, fn and the sum of matched IoU, from (N, M) tables of IoU, one picture after another."""
    found = false = missed = 0
    total = 0.0
    for ious in pairs:
        tp = 0
        if min(ious.shape) and (ious >= threshold).any():
            cost = -(ious >= threshold).astype(float) - ious / (2 * min(ious.shape))
            rows, columns = linear_sum_assignment(cost)
            good = ious[rows, columns] >= threshold
            tp, total = int(good.sum()), total + ious[rows, columns][good].sum()
        found, false, missed = found + tp, false + len(ious) - tp, missed + ious.shape[1] - tp
    return found, false, missed, total


def table_of(result, truth):
    """IoU from whole masks."""
    a, b = (x.masks.dense().reshape(len(x), -1).astype(float) for x in (result, truth))
    shared = a @ b.T
    union = a.sum(1)[:, None] + b.sum(1)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


@pytest.mark.parametrize("seed", range(3))
def test_matches_are_those_of_stardist(seed):
    pairs = made_up(10, seed, crowd=0, objects=30)
    report = metric_of(pairs, threshold=0.3).compute()
    shown = [(result[result.scores >= np.float32(0.3)], truth) for result, truth in pairs]
    assert any((table_of(*pair) >= 0.5).sum(1).max(initial=0) > 1 for pair in shown), "or nothing is to choose"
    for row, threshold in enumerate(IOUS):
        tables = [table_of(*pair) for pair in shown]
        groups = [(report.matching, (), tables)]
        for k in range(3):
            chosen = [t[np.ix_(r.labels == k, g.labels == k)] for t, (r, g) in zip(tables, shown, strict=True)]
            groups.append((report.matching_by_class, k, chosen))
        for matching, k, chosen in groups:
            tp, fp, fn, total = stardist(chosen, threshold)
            assert matching.counts[row][k].tolist() == [tp, fp, fn]
            ours = {
                name: getattr(matching, name)[row][k]
                for name in ("accuracy", "precision", "recall", "f1", "mean_matched_score", "panoptic_quality")
            }
            theirs = {
                "accuracy": tp / (tp + fp + fn),
                "precision": tp / (tp + fp),
                "recall": tp / (tp + fn),
                "f1": 2 * tp / (2 * tp + fp + fn),
                "mean_matched_score": total / tp if tp else math.nan,
                "panoptic_quality": total / (tp + fp / 2 + fn / 2),
            }
            assert ours == pytest.approx(theirs, abs=1e-9, nan_ok=True)


def test_the_assignment_has_most_pairs_not_the_best_first():
    ious = np.array([[0.9, 0.6], [0.6, 0.0]])
    pairs = matched(ious, np.zeros(2, bool), 0.5)
    assert sorted(zip(pairs.results.tolist(), pairs.truths.tolist(), strict=True)) == [(0, 1), (1, 0)]
    assert not pairs.false.any() and not pairs.missed.any()
    assert matched(ious, np.zeros(2, bool), 0.7).missed.tolist() == [False, True]


def test_most_pairs_by_trying_all():
    rng = np.random.default_rng(0)
    for _ in range(60):
        ious = rng.random((rng.integers(0, 6), rng.integers(0, 6))) ** 0.5
        best = 0
        wide = ious if ious.shape[0] <= ious.shape[1] else ious.T
        for columns in itertools.permutations(range(wide.shape[1]), len(wide)):
            best = max(best, sum(wide[row, column] >= 0.6 for row, column in enumerate(columns)))
        pairs = matched(ious, np.zeros(ious.shape[1], bool), 0.6)
        assert len(pairs.results) == best == len(set(pairs.truths)) and (ious[pairs.results, pairs.truths] >= 0.6).all()
        assert pairs.false.sum() == len(ious) - best and pairs.missed.sum() == ious.shape[1] - best


@pytest.mark.parametrize("names", [("cat",), ("cat", "dog")])
def test_one_class_is_matched_once(monkeypatch, names):
    asked = []
    plain = Matching.of
    monkeypatch.setattr(Matching, "of", lambda *a, **k: asked.append(k["within_class"]) or plain(*a, **k))
    truth = objects_at([(2, 2), (30, 30)], classes=Classes(names))
    report = metric_of([(truth[:1], truth)], Classes(names)).compute()
    assert asked == ([True] if len(names) == 1 else [True, False])
    assert report.matching.counts[0].tolist() == report.matching_by_class.counts[0, 0].tolist() == [1, 0, 1]


def test_low_scores_enter_ap_and_nothing_else():
    truth = objects_at([(2, 2), (30, 30)])
    result = objects_at([(2, 2), (30, 30), (48, 48)], scores=np.array([0.9, 0.2, 0.1]))
    report = metric_of([(result, truth)], threshold=0.5).compute()
    assert report.masks.ap == 1 and report.matching.counts[0].tolist() == [1, 0, 1]
    assert metric_of([(result, truth)], threshold=0.1).compute().matching.counts[0].tolist() == [2, 1, 0]
    assert report.counting.bias == -1 and "0.50 or more" in report.convention


def test_classes_are_ignored_together_and_kept_apart_by_class():
    truth, result = objects_at([(2, 2), (30, 30)], [0, 1]), objects_at([(2, 2), (30, 30)], [0, 2])
    metric = metric_of([(result, truth)])
    report = metric.compute()
    assert report.matching.accuracy[0] == 1
    assert report.matching_by_class.counts[0].tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert metric.quick_score() == 1 / 3


def test_crowds_are_not_to_be_found_and_what_is_in_them_is_not_wrong():
    crowd = Crop(20, 20, np.ones((40, 40), bool))
    masks = Masks.from_crops([Crop(2, 2, np.ones((10, 10), bool)), crowd], (64, 64))
    truth = Instances.from_masks(masks, [0, 0], CLASSES, crowd=np.array([False, True]))
    for places, label, expected in (
        ([(2, 2), (25, 25), (40, 40)], 0, [1, 0, 0]),
        ([(2, 2), (25, 25), (0, 50)], 0, [1, 1, 0]),  # one outside is wrong
        ([(2, 2), (25, 25)], 1, [1, 0, 0]),  # of another class: in the crowd where classes are ignored
    ):
        result = objects_at(places, [0] + [label] * (len(places) - 1))
        report = metric_of([(result, truth)]).compute()
        assert report.matching.counts[0].tolist() == expected
        assert report.objects.tolist() == [1, 0, 0] and len(report.counting.found) == 0
    assert report.matching_by_class.counts[0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert metric_of([(truth, truth)]).compute().masks.ap == 1, "crowds of a result are left out"


# Counting


def test_errors_of_counting_by_hand():
    grid = [(r, c) for r in range(0, 60, 12) for c in range(0, 60, 12)]
    counts = [(3, 4), (6, 4), (0, 0), (1, 0)]  # found, there
    pairs = [(objects_at(grid[:a]), objects_at(grid[:b])) for a, b in counts]
    crowded = objects_at(grid[:1], crowd=np.array([True]))
    counting = metric_of([*pairs, (objects_at(grid), crowded)]).compute().counting
    assert counting.mean_absolute == (1 + 2 + 0 + 1) / 4 and counting.bias == (-1 + 2 + 0 + 1) / 4
    assert counting.mean_relative == pytest.approx((1 / 4 + 2 / 4) / 2)


# Collecting


def test_merged_parts_equal_one_pass():
    pairs = made_up(9)
    whole, parts = metric_of(pairs).compute().to_dict(), [metric_of(pairs[n : n + 3]) for n in (0, 3, 6)]
    total = InstanceMetric(CLASSES)
    for part in parts:
        total.merge(part)
    merged = total.compute().to_dict()
    assert merged == {**whole, "matching": merged["matching"], "per_class": merged["per_class"]}
    for ours, theirs in zip(
        merged["matching"] + merged["per_class"], whole["matching"] + whole["per_class"], strict=True
    ):
        assert ours == pytest.approx(theirs, nan_ok=True), "sums of IoUs round in another order"
    assert metric_of(pairs[:3]).compute().to_dict() == parts[0].compute().to_dict(), "merging leaves the parts alone"


def test_what_is_kept_of_masks_are_run_lengths():
    metric = metric_of(made_up(2))
    assert all(isinstance(item, bytes) for pair in metric.pictures for each in pair for item in each.masks.items)


def test_what_cannot_be_measured_is_told():
    here = objects_at([(2, 2)])
    with pytest.raises(KirieError, match=r"size \(64, 64\).*\(32, 64\)"):
        metric_of([(here, objects_at([(2, 2)], size=(32, 64)))])
    with pytest.raises(KirieError, match="mean different things"):
        metric_of([(objects_at([(2, 2)], classes=Classes(("a", "b", "c"))), here)])
    with pytest.raises(KirieError, match=r"from 0 to 1, got 1\.5"):
        InstanceMetric(CLASSES, threshold=1.5)
    with pytest.raises(KirieError, match="max_detections = 0"):
        InstanceMetric(CLASSES, max_detections=0)
    for options in ({"threshold": 0.4}, {"max_detections": 50}):
        with pytest.raises(KirieError, match="same classes, threshold"):
            InstanceMetric(CLASSES).merge(InstanceMetric(CLASSES, **options))
    with pytest.raises(KirieError, match="same classes"):
        InstanceMetric(CLASSES).merge(InstanceMetric(Classes(("a",))))


def test_the_report_as_json_and_as_rows():
    report = metric_of(made_up(6)).compute()
    values = report.to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["ap"] == report.score == report.history_row()["ap"] and next(iter(report.history_row())) == "ap"
    assert [row["iou"] for row in values["matching"]] == list(IOUS)
    assert values["boxes"]["ap50"] == report.boxes.ap50 and values["threshold"] == 0.5
    assert sum(row["objects"] for row in report.rows()) == sum(len(t.singles()) for _, t in made_up(6))
    for row, name in zip(report.rows(), CLASSES.names, strict=True):
        assert row["class"] == name and 0 <= row["ap"] <= row["ap50"] <= 1


def test_what_was_collected_travels_between_processes():
    metric = metric_of(made_up(3))
    assert pickle.loads(pickle.dumps(metric)).compute().to_dict() == metric.compute().to_dict()
