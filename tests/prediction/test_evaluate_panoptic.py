"""The road of panoptic models through measuring and its page, with a model whose results are known beforehand."""

import json
import re
from html import escape
from typing import NamedTuple

import numpy as np
import pytest
import torch

from kirie.classes import Classes
from kirie.data.dataset import Sample
from kirie.errors import KirieError
from kirie.metrics import PanopticMetric, PanopticReport
from kirie.models.contract import SegmentationModel
from kirie.prediction import evaluate as module
from kirie.prediction.evaluate import evaluate, measure
from kirie.prediction.predictor import Predictor
from kirie.results import PanopticMap, Segment

CLASSES = Classes(("sky", "cat", "<dog>"), things=(False, True, True))


class Raw(NamedTuple):
    images: torch.Tensor


class Reader(SegmentationModel):
    """Reads segments off a picture: their class from the first channel and their number from the second."""

    task = "panoptic"

    def __init__(self, in_channels=3, classes=CLASSES):
        super().__init__(in_channels, classes, {})
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return Raw(images)

    def loss(self, raw, truths):
        raise NotImplementedError

    def decode(self, raw, sizes, *, scores=False):
        return [seen_in((image * 255).round().permute(1, 2, 0).numpy(), self.classes) for image in raw.images]


def seen_in(picture, classes=CLASSES):
    """The map that a picture (H, W, 3) in 0..255 stands for, things in ids of their own, stuff in one."""
    labels, numbers = picture[..., 0].astype(int) // 60, picture[..., 1].astype(np.int32)
    return as_map(np.where(numbers == 0, 0, 100 * (labels + 1) + np.where(labels == 0, 0, numbers)), classes)


def as_map(ids, classes=CLASSES, crowds=()):
    segments = [
        Segment(i, i // 100 - 1, i >= 200, 1.0, area, i in crowds)
        for i, area in zip(*(each.tolist() for each in np.unique(ids, return_counts=True)), strict=True)
        if i
    ]
    return PanopticMap(ids.astype(np.int32), tuple(segments), classes)


def picture_of(seed):
    """A picture (40, 48, 3) of sky, things of any class as rectangles, and void."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((40, 48, 3), np.uint8)
    picture[..., 1] = 1
    for number in range(2, 9):
        top, left = rng.integers(0, 34), rng.integers(0, 40)
        picture[top : top + 14, left : left + 12, :2] = 60 * rng.integers(1, 3), number
    picture[:4, :9, 1] = 0
    return picture


def wrong_in(shifts, classes=CLASSES):
    """Pictures whose truth lies so many pixels beside what the model sees, and lacks an object."""
    pairs = []
    for seed, shift in enumerate(shifts):
        picture = picture_of(seed)
        ids = np.roll(seen_in(picture).ids, shift, 1)
        ids[ids == ids.max()] = 100
        pairs.append((picture, as_map(ids, classes, {ids.max()})))
    return pairs


class Segments:
    """A data set in memory."""

    task, splits, unfound = "panoptic", (), ()

    def __init__(self, pairs, classes=CLASSES):
        self.pairs, self.classes = pairs, classes

    def __len__(self):
        return len(self.pairs)

    def name(self, index):
        return f"p{index}.png"

    def file_facts(self, index):
        return {}

    def __getitem__(self, index):
        image, truth = self.pairs[index]
        return Sample(image, truth, self.name(index))


def metric_of(pairs):
    metric = PanopticMetric(CLASSES)
    for image, truth in pairs:
        metric.update(seen_in(image), truth)
    return metric


@pytest.mark.parametrize("batch_size", [1, 3])
def test_measuring_is_the_metric_on_all_pictures(batch_size):
    pairs = wrong_in([0, 1, 3, 5])
    evaluation = measure(Predictor(Reader(), device="cpu", batch_size=batch_size), Segments(pairs))
    report = metric_of(pairs).compute()
    assert evaluation.report.to_dict() == report.to_dict() and 0.2 < report.score < 0.95
    assert evaluation.scores == tuple(metric_of([pair]).quick_score() for pair in pairs)
    assert evaluation.worst(1) == [3] and len(set(evaluation.scores)) == 4


def test_processes_measure_what_one_does():
    pairs = wrong_in([0, 1, 2, 3, 4, 5, 6])
    predictor, dataset, collected = Predictor(Reader(), device="cpu"), Segments(pairs), []
    for n in range(3):
        measure(predictor, dataset, share=(n, 3), gather=lambda metric: collected.append(metric) or [metric])
    merged = measure(predictor, dataset, share=(2, 3), gather=lambda metric: collected).report
    whole = measure(predictor, dataset).report
    np.testing.assert_array_equal(merged.counts, whole.counts)
    np.testing.assert_allclose(merged.ious, whole.ious, rtol=1e-12)


def test_a_model_without_names_takes_those_of_the_data():
    unnamed = Classes(("background", "class 1", "class 2"), things=CLASSES.things)
    report = evaluate(Reader(classes=unnamed), Segments(wrong_in([0])), device="cpu")
    assert isinstance(report, PanopticReport) and report.classes == CLASSES


def test_the_page_and_the_json_hold_the_numbers(tmp_path):
    dataset = Segments(wrong_in([0, 6, 2]))
    report = evaluate(Reader(), dataset, out=tmp_path, device="cpu", name="my model")
    facts = json.loads((tmp_path / "report.json").read_text("utf-8"))
    html = (tmp_path / "report.html").read_text("utf-8")
    assert (
        facts["pq"] == report.score
        and facts["pictures"] == 3
        and list(facts["images"])
        == [
            "p0.png",
            "p1.png",
            "p2.png",
        ]
    )
    assert [row["class"] for row in facts["per_class"]] == list(CLASSES.names)
    assert escape(report.convention) in html and "3 pictures, 3 classes" in html and "&lt;dog&gt;" in html
    for label, value, _ in report.headline():
        assert f'<dt>{label}</dt><dd class="value">{value:.4f}' in html
    heads = re.findall(r'<th scope="col">(.*?)</th>', html)
    assert heads == ["Class", "Kind", "PQ", "SQ", "RQ", "TP", "FP", "FN"]
    for head in heads[1:]:
        assert f"<dt>{head}</dt><dd>" in html, "what it means is told"
    assert html.count("data:image/") == 1 + 4 * 3, "one figure, and each picture four times"
    assert html.count('class="mark ') == 4 and "wrong class" in html
    worst = re.search(r"<h2>Worst pictures</h2>.*?</section>", html, re.DOTALL).group(0)
    assert worst.index("p1.png") < worst.index("p2.png")


def test_data_without_a_segment_have_a_page_too(tmp_path):
    empty = as_map(np.zeros((40, 48), np.int32))
    report = evaluate(Reader(), Segments([(np.zeros((40, 48, 3), np.uint8), empty)]), out=tmp_path, device="cpu")
    assert np.isnan(report.score) and "no value" in (tmp_path / "report.html").read_text("utf-8")
    facts = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert facts["pq"] is None and facts["images"] == {"p0.png": None}


def test_a_threshold_chooses_what_enters_the_maps_and_not_what_is_measured(monkeypatch):
    given = []

    def predictor(model, **options):
        given.append(options.pop("threshold"))
        return Predictor(model, **options)

    monkeypatch.setattr(module, "Predictor", predictor)
    dataset = Segments(wrong_in([1]))
    assert evaluate(Reader(), dataset, device="cpu", threshold=0.3).score > 0 and given == [0.3]


def test_a_map_has_no_list_of_objects_to_choose_from():
    dataset = Segments(wrong_in([1]))
    with pytest.raises(KirieError, match="'panoptic'"):
        evaluate(Reader(), dataset, device="cpu", max_detections=300)
    with pytest.raises(KirieError, match="nothing to measure by threshold: a model for task 'panoptic'"):
        measure(Predictor(Reader(), device="cpu"), dataset, threshold=0.3)
