"""Panoptic quality: cases worked by hand, and the paper's formulas in plain dicts on real truths."""

import json
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.metrics import METRICS, PanopticMetric, metric_class
from kirie.results import PanopticMap, Segment

CLASSES = Classes(("cat", "dog", "sky"), things=(True, True, False))
CAT, DOG, SKY = range(3)


def panoptic(ids, labels, crowds=(), classes=CLASSES):
    """A map of these ids, with the class of each id."""
    ids = np.array(ids, np.int32)
    areas = dict(np.stack(np.unique(ids, return_counts=True), 1).tolist())
    segments = [
        Segment(i, label, classes.things[label], 1.0, areas[i], i in crowds)
        for i, label in labels.items()
        if i in areas
    ]
    return PanopticMap(ids, tuple(segments), classes)


def strip(*runs):
    """A map one pixel high: ids with how often each comes."""
    return [[i for i, length in runs for _ in range(length)]]


def report_of(result, truth):
    metric = PanopticMetric(truth.classes)
    metric.update(result, truth)
    return metric.compute()


def counts_of(result, truth):
    return report_of(result, truth).counts.T.tolist()


# Worked by hand


def test_a_perfect_result_has_1_of_everything_whatever_its_ids():
    truth = panoptic(strip((1, 6), (2, 3), (3, 4), (0, 2)), {1: CAT, 2: DOG, 3: SKY})
    result = panoptic(strip((70000, 6), (5, 3), (16_000_000, 4), (0, 2)), {70000: CAT, 5: DOG, 16_000_000: SKY})
    report = report_of(result, truth)
    assert report.score == 1 and set(report.means.values()) == {1.0}
    assert report.counts.tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]


def test_a_shifted_segment_is_found_above_half_and_no_sooner():
    truth = panoptic(strip((1, 6), (2, 14)), {1: CAT, 2: SKY})
    near = report_of(panoptic(strip((2, 1), (1, 6), (2, 13)), {1: CAT, 2: SKY}), truth)
    np.testing.assert_allclose(near.pq, [5 / 7, np.nan, 13 / 15])
    half = report_of(panoptic(strip((2, 2), (1, 6), (2, 12)), {1: CAT, 2: SKY}), truth)
    np.testing.assert_allclose(half.pq, [0, np.nan, 12 / 16])  # 4 of 8 pixels of the cats are not above a half
    assert half.counts.T.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    np.testing.assert_allclose(half.sq, [0, np.nan, 12 / 16])
    np.testing.assert_allclose(half.rq, [0, np.nan, 1])
    assert half.score == pytest.approx(12 / 16 / 2)


def test_merged_split_and_relabelled_segments():
    truth = panoptic(strip((1, 6), (2, 3), (3, 4)), {1: CAT, 2: CAT, 3: SKY})
    merged = panoptic(strip((1, 9), (3, 4)), {1: CAT, 3: SKY})
    np.testing.assert_allclose(report_of(merged, truth).pq, [6 / 9 / 1.5, np.nan, 1])
    split = panoptic(strip((1, 4), (4, 2), (2, 3), (3, 4)), {1: CAT, 4: CAT, 2: CAT, 3: SKY})
    assert counts_of(split, truth)[CAT] == [2, 1, 0]
    np.testing.assert_allclose(report_of(split, truth).pq[CAT], (4 / 6 + 1) / 2.5)
    renamed = panoptic(strip((1, 6), (2, 3), (3, 4)), {1: CAT, 2: DOG, 3: SKY})
    assert counts_of(renamed, truth) == [[1, 0, 1], [0, 1, 0], [1, 0, 0]]
    report = report_of(renamed, truth)
    np.testing.assert_allclose(report.pq, [1 / 1.5, 0, 1])
    np.testing.assert_allclose([report.means[f"pq{kind}"] for kind in ("", "_things", "_stuff")], [5 / 9, 1 / 3, 1])


def test_void_of_the_truth_is_in_no_union_and_excuses_what_lies_mostly_in_it():
    truth = panoptic(strip((1, 5), (0, 7), (3, 4)), {1: CAT, 3: SKY})
    over = panoptic(strip((1, 10), (0, 2), (3, 4)), {1: CAT, 3: SKY})
    assert report_of(over, truth).pq[CAT] == 1
    ground = panoptic(strip((3, 4), (0, 6), (3, 6)), {3: SKY})
    inside = panoptic(strip((3, 2), (2, 2), (2, 3), (0, 3), (3, 6)), {2: DOG, 3: SKY})
    assert counts_of(inside, ground)[DOG] == [0, 0, 0], "3 of 5 pixels in void"
    half = panoptic(strip((3, 2), (2, 2), (2, 2), (0, 4), (3, 6)), {2: DOG, 3: SKY})
    assert counts_of(half, ground)[DOG] == [0, 1, 0], "2 of 4 are not more than half"


def test_void_of_the_result_is_simply_not_found():
    truth = panoptic(strip((1, 6), (3, 4)), {1: CAT, 3: SKY})
    result = panoptic(strip((0, 2), (1, 4), (0, 4)), {1: CAT})
    report = report_of(result, truth)
    np.testing.assert_allclose(report.pq, [4 / 6, np.nan, 0])
    assert report.counts.T.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_crowds_are_not_to_be_found_and_excuse_their_own_class():
    truth = panoptic(strip((9, 10), (0, 4), (3, 10)), {9: CAT, 3: SKY}, crowds={9})
    sky = [1, 0, 0]

    def counted_in(*runs, label=CAT):
        return counts_of(panoptic(strip(*runs), {1: label, 3: SKY}), truth)[label]

    same = panoptic(strip((1, 10), (0, 4), (3, 10)), {1: CAT, 3: SKY})
    assert counts_of(same, truth) == [[0, 0, 0], [0, 0, 0], sky], "neither TP nor FP, and the crowd is no FN"
    assert counted_in((0, 2), (1, 5), (0, 7), (3, 10)) == [0, 0, 0], "inside"
    assert counted_in((0, 2), (1, 5), (0, 7), (3, 10), label=DOG) == [0, 1, 0], "of another class"
    assert counted_in((0, 6), (1, 8), (3, 10)) == [0, 0, 0], "half in the crowd and half in void"
    assert counted_in((0, 6), (1, 12), (3, 6)) == [0, 0, 0], "8 of 12 in either"
    assert counted_in((0, 6), (1, 16), (3, 2)) == [0, 1, 0], "8 of 16 are not more than half"
    assert counted_in((0, 6), (1, 8), (3, 10), label=DOG) == [0, 1, 0], "void is only half of it"


def test_several_crowds_of_a_class_excuse_together():
    truth = panoptic(strip((8, 4), (3, 2), (9, 4), (3, 10)), {8: CAT, 9: CAT, 3: SKY}, crowds={8, 9})
    result = panoptic(strip((1, 10), (3, 10)), {1: CAT, 3: SKY})
    assert counts_of(result, truth)[CAT] == [0, 0, 0]


def test_nothing_counted_has_no_value():
    nothing = panoptic(np.zeros((3, 4)), {})
    report = report_of(nothing, nothing)
    assert np.isnan([report.score, *report.means.values(), *report.pq, *report.sq, *report.rq]).all()
    assert np.isnan(PanopticMetric(CLASSES).quick_score()) and "nothing can be scored" in report.convention
    facts = report.to_dict()
    assert facts["pq"] is None and facts["per_class"][0]["sq"] is None and facts["classes_counted"] == 0
    json.dumps(facts, allow_nan=False)


def test_a_class_is_in_the_means_of_its_kind_alone():
    truth = panoptic(strip((1, 6), (3, 4)), {1: CAT, 3: SKY})
    report = report_of(panoptic(strip((0, 6), (3, 4)), {3: SKY}), truth)
    assert report.history_row() == {"pq": 0.5, "sq": 0.5, "rq": 0.5, "pq_things": 0.0, "pq_stuff": 1.0}
    assert next(iter(report.history_row().values())) == report.score
    assert (report.classes_counted(), report.classes_counted(things=True)) == (2, 1)
    assert "mean over 2 of 3 classes" in report.convention
    assert [name for name, *_ in report.headline()] == ["PQ", "PQ of things", "PQ of stuff", "SQ", "RQ"]
    assert report.rows()[SKY] == {
        "class": "sky",
        "kind": "stuff",
        **{"pq": 1.0, "sq": 1.0, "rq": 1.0},
        **{"tp": 1, "fp": 0, "fn": 0},
    }


def test_kinds_that_no_class_is_of_are_not_in_the_headline():
    classes = Classes(("sky", "sea"))
    truth = panoptic(strip((1, 3), (2, 2)), {1: 0, 2: 1}, classes=classes)
    report = report_of(truth, truth)
    assert [name for name, *_ in report.headline()] == ["PQ", "PQ of stuff", "SQ", "RQ"]
    assert np.isnan(report.means["pq_things"])


def test_unlike_maps_are_refused():
    truth, metric = panoptic([[1, 1]], {1: CAT}), PanopticMetric(CLASSES)
    with pytest.raises(KirieError, match=r"size \(1, 3\) \(H, W\) and the truth \(1, 2\)"):
        metric.update(panoptic([[1, 1, 1]], {1: CAT}), truth)
    others = Classes(("cat", "cow", "sky"), things=CLASSES.things)
    for pair in ((panoptic([[1, 1]], {1: CAT}, classes=others), truth), (truth, replace(truth, classes=others))):
        with pytest.raises(KirieError, match=r"\['cat', 'cow', 'sky'\] cannot be scored"):
            metric.update(*pair)
    with pytest.raises(KirieError, match="same classes"):
        metric.merge(PanopticMetric(others))
    assert not metric.counts.any()


def test_the_table_of_metrics_has_it():
    assert "panoptic" in METRICS and metric_class("panoptic") is PanopticMetric


# The paper's formulas in plain dicts


def by_the_paper(pairs, classes):
    """TP, FP, FN and the sum of IoUs of each class by pixels counted one segment at a time, over pairs of maps."""
    tally = {label: [0, 0, 0] for label in range(len(classes))}
    ious = defaultdict(float)
    for result, truth in pairs:
        together = Counter(zip(result.ids.ravel().tolist(), truth.ids.ravel().tolist(), strict=True))
        matched_truths, matched_results = set(), set()
        for r in result.segments:
            for t in truth.segments:
                both = together[r.id, t.id]
                if r.label != t.label or t.crowd or not both:
                    continue
                iou = both / (r.area + t.area - both - together[r.id, 0])
                if iou > 0.5:
                    assert r.id not in matched_results and t.id not in matched_truths
                    matched_results.add(r.id)
                    matched_truths.add(t.id)
                    tally[r.label][0] += 1
                    ious[r.label] += iou
        for t in truth.segments:
            tally[t.label][2] += t.id not in matched_truths and not t.crowd
        for r in result.segments:
            crowds = [t.id for t in truth.segments if t.crowd and t.label == r.label]
            aside = sum(together[r.id, i] for i in (0, *crowds))
            tally[r.label][1] += r.id not in matched_results and not aside / r.area > 0.5
    return tally, ious


def assert_like_the_paper(report, pairs):
    tally, ious = by_the_paper(pairs, report.classes)
    assert report.counts.T.tolist() == list(tally.values())
    values = {"": [], "_things": [], "_stuff": []}
    for label, (tp, fp, fn) in tally.items():
        assert report.ious[label] == pytest.approx(ious[label], rel=1e-12)
        if tp + fp + fn:
            pq = ious[label] / (tp + fp / 2 + fn / 2)
            assert report.pq[label] == pytest.approx(pq, rel=1e-12)
            values[""].append(pq)
            values["_things" if report.classes.things[label] else "_stuff"].append(pq)
        else:
            assert np.isnan(report.pq[label])
    for kind, found in values.items():
        assert report.means[f"pq{kind}"] == pytest.approx(sum(found) / len(found), rel=1e-12)


def real_truths(shared, split="val2017"):
    """Truths of COCO panoptic, read by hand."""
    folder = shared / "data" / "coco_panoptic" / "annotations"
    facts = json.loads((folder / f"panoptic_{split}.json").read_text("utf-8"))
    numbers = [category["id"] for category in facts["categories"]]
    classes = Classes(
        tuple(category["name"] for category in facts["categories"]),
        things=tuple(bool(category["isthing"]) for category in facts["categories"]),
        ids=tuple(numbers),
    )
    truths = []
    for entry in facts["annotations"]:
        ids = ids_in(folder / f"panoptic_{split}" / entry["file_name"], entry["segments_info"])
        labels = {each["id"]: numbers.index(each["category_id"]) for each in entry["segments_info"]}
        crowds = {each["id"] for each in entry["segments_info"] if each["iscrowd"]}
        truths.append(panoptic(ids, labels, crowds, classes))
    return truths


def ids_in(path, segments):
    """The segment ids of a PNG: R + 256 G + 65536 B.

    A grey PNG holds category ids instead, which do not tell the segments of a category apart. Of such a copy only those
    connected areas are segments whose box and area the JSON file states; all else is void.
    """
    pixels = np.asarray(Image.open(path), np.int32)
    if pixels.ndim == 3:
        return pixels @ np.array([1, 256, 65536], np.int32)
    ids = np.zeros_like(pixels)
    for category in {each["category_id"] for each in segments}:
        stated = {(*each["bbox"], each["area"]): each["id"] for each in segments if each["category_id"] == category}
        inside = pixels == category
        areas = inside.astype(int) if len(stated) == 1 else ndimage.label(inside)[0]
        for number, (down, across) in enumerate(ndimage.find_objects(areas), 1):
            area = areas == number
            box = (across.start, down.start, across.stop - across.start, down.stop - down.start)
            ids[area] = stated.get((*box, np.count_nonzero(area)), 0)
    return ids


def spoiled(truth, seed):
    """A result that is wrong in every way: shifted, things merged, one split, some renamed, some left void."""
    rng = np.random.default_rng(seed)
    ids = np.roll(truth.ids, rng.integers(-6, 7, 2), (0, 1))
    labels = {segment.id: segment.label for segment in truth.segments}
    things = [segment.id for segment in truth.segments if segment.is_thing]
    for one in things:
        for other in things:
            if one < other and labels[one] == labels[other] and rng.random() < 0.2:
                ids[ids == other] = one
    if labels:
        split = rng.choice(list(labels))
        labels[1] = labels[split]
        ids[(ids == split) & (np.arange(ids.shape[1]) < rng.integers(ids.shape[1]))] = 1
    for each in list(labels):
        if rng.random() < 0.1:
            labels[each] = int(rng.integers(len(truth.classes)))
        elif rng.random() < 0.1:
            ids[ids == each] = 0
    filled = (truth.ids == 0) & (rng.random() < 0.5)  # something where the truth is void
    labels[2] = int(rng.integers(len(truth.classes)))
    ids[filled] = 2
    return panoptic(ids, labels, classes=truth.classes)


@pytest.fixture(scope="module")
def real_pairs(shared):
    return [(spoiled(truth, seed), truth) for seed, truth in enumerate(real_truths(shared))]


def test_real_truths_agree_with_the_formulas_of_the_paper(real_pairs):
    metric = PanopticMetric(real_pairs[0][1].classes)
    for result, truth in real_pairs:
        metric.update(result, truth)
    report = metric.compute()
    assert any(segment.crowd for _, truth in real_pairs for segment in truth.segments)
    assert 0.2 < report.score < 0.8 and (report.counts.sum(1) > 50).all()
    assert_like_the_paper(report, real_pairs)


def test_real_truths_agree_with_themselves(real_pairs):
    metric = PanopticMetric(real_pairs[0][1].classes)
    for _, truth in real_pairs:
        metric.update(truth, truth)
    report = metric.compute()
    assert report.score == 1 and not report.counts[1:].any()
    singles = sum(not segment.crowd for _, truth in real_pairs for segment in truth.segments)
    assert report.counts[0].sum() == singles


@pytest.mark.parametrize("seed", range(20))
def test_random_maps_agree_with_the_formulas_of_the_paper(seed):
    rng = np.random.default_rng(seed)
    classes = Classes(("a", "b", "c", "d"), things=(True, False, True, False))
    size = (int(rng.integers(1, 40)), int(rng.integers(1, 40)))
    ids = rng.integers(0, 8, (5, 5)).repeat(8, 0).repeat(8, 1)[: size[0], : size[1]]
    there = {i: int(rng.integers(4)) for i in range(1, 8)}
    truth = panoptic(ids, there, set(rng.integers(1, 8, 3).tolist()), classes)
    noise = np.where(rng.random(size) < rng.choice([0.05, 0.3]), rng.integers(0, 8, size), ids)
    labels = {s.id: s.label if rng.random() < 0.8 else int(rng.integers(4)) for s in truth.segments}
    labels = {i: int(rng.integers(4)) for i in range(1, 8)} | labels
    result = panoptic(noise, labels, classes=classes)
    tally, ious = by_the_paper([(result, truth)], classes)
    report = report_of(result, truth)
    assert report.counts.T.tolist() == list(tally.values())
    np.testing.assert_allclose(report.ious, [ious[label] for label in range(4)], rtol=1e-12)


@pytest.mark.parametrize("parts", [2, 5])
def test_metrics_of_parts_merge_to_that_of_the_whole(real_pairs, parts):
    classes = real_pairs[0][1].classes
    whole, merged = PanopticMetric(classes), PanopticMetric(classes)
    for result, truth in real_pairs:
        whole.update(result, truth)
    for part in range(parts):
        one = PanopticMetric(classes)
        for result, truth in real_pairs[part::parts]:
            one.update(result, truth)
        merged.merge(one)
    np.testing.assert_array_equal(merged.counts, whole.counts)
    np.testing.assert_allclose(merged.ious, whole.ious, rtol=1e-12)
    assert merged.quick_score() == pytest.approx(whole.compute().score, rel=1e-12)


def test_a_report_stays_when_its_metric_goes_on():
    truth, metric = panoptic([[1, 1]], {1: CAT}), PanopticMetric(CLASSES)
    metric.update(truth, truth)
    report = metric.compute()
    metric.update(panoptic([[0, 0]], {}), truth)
    assert report.score == 1 and metric.quick_score() == pytest.approx(1 / 1.5)
