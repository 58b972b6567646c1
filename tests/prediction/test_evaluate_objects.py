"""The road of instance models through measuring and its page."""

import json
import re
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest
from finder import CLASSES, Finder, areas_picture, found
from tiny import random_unet

from kirie.classes import Classes
from kirie.data.dataset import Sample
from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.metrics import InstanceMetric
from kirie.prediction.evaluate import evaluate, measure
from kirie.prediction.predictor import Predictor
from kirie.results import Instances


class Objects:
    """A data set in memory."""

    task, splits, unfound = "instance", (), ()

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


def seen_in(image, classes=CLASSES):
    """What the model finds in a picture."""
    return found(image.astype(np.float32) / 255, classes)


def wrong_in(count, shares=None, classes=CLASSES):
    """Pictures in whose truth a share of what the model finds is missing."""
    pairs = []
    for index in range(count):
        image = areas_picture(seed=index)
        truth = seen_in(image, classes)
        share = 0.3 if shares is None else shares[index]
        keep = np.random.default_rng(index).permutation(len(truth)) >= round(share * len(truth))
        pairs.append((image, Instances.from_masks(truth.masks[keep], truth.labels[keep], classes)))
    return pairs


def facts_of(folder):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads((folder / "report.json").read_text("utf-8"), parse_constant=refuse)


class Closed(HTMLParser):
    """Fails on tags that do not close in order."""

    def __init__(self, text):
        super().__init__()
        self.open = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


# The numbers


@pytest.mark.parametrize("batch_size", [1, 3])
def test_measuring_is_the_metric_on_all_pictures(batch_size):
    pairs = wrong_in(4)
    evaluation = measure(Predictor(Finder(), device="cpu", batch_size=batch_size), Objects(pairs))
    metric = InstanceMetric(CLASSES)
    for image, truth in pairs:
        metric.update(seen_in(image), truth)
    report = metric.compute()
    assert evaluation.report.to_dict() == report.to_dict() and 0 < report.score < 1
    for (image, truth), score in zip(pairs, evaluation.scores, strict=True):
        one = InstanceMetric(CLASSES)
        one.update(seen_in(image), truth)
        assert score == one.quick_score()


def test_processes_measure_what_one_does_even_where_all_scores_are_equal():
    pairs = [(np.minimum(image, 100), truth) for image, truth in wrong_in(7)]  # the order decides then
    pairs = [(np.where(image > 85, 255, image).astype(np.uint8), truth) for image, truth in pairs]
    predictor, dataset = Predictor(Finder(), device="cpu"), Objects(pairs)
    whole, collected = measure(predictor, dataset), []
    for n in range(3):
        measure(predictor, dataset, share=(n, 3), gather=lambda metric: collected.append(metric) or [metric])
    merged = measure(predictor, dataset, share=(2, 3), gather=lambda metric: collected)
    assert set(whole.report.to_dict()) == set(merged.report.to_dict()) and merged.names == (
        "p4.png",
        "p5.png",
        "p6.png",
    )
    np.testing.assert_array_equal(whole.report.masks.precision, merged.report.masks.precision)
    np.testing.assert_array_equal(whole.report.matching.counts, merged.report.matching.counts)


def test_the_threshold_is_the_models_own_unless_given():
    class Bold(Finder):
        shown_threshold = 0.9

    dataset = Objects(wrong_in(2))
    assert evaluate(Bold(), dataset, device="cpu").threshold == 0.9
    low = evaluate(Bold(), dataset, device="cpu", threshold=0.2)
    assert low.threshold == 0.2
    assert low.matching.counts[0, :2].sum() > evaluate(Bold(), dataset, device="cpu").matching.counts[0, :2].sum()


def test_more_objects_than_usual_count_where_wanted():
    dataset = Objects(wrong_in(2, [0, 0]))
    few = evaluate(Finder(max_detections=5), dataset, device="cpu")
    more = evaluate(Finder(max_detections=5), dataset, device="cpu", max_detections=300)
    assert few.max_detections == 100 and few.masks.ar < 0.7
    assert more.max_detections == 300 and more.masks.ar == 1


@pytest.mark.parametrize("options", [{"threshold": 0.3}, {"max_detections": 300}])
def test_maps_have_no_objects_to_choose(options):
    class Maps(Objects):
        task = "semantic"

    model = random_unet()
    with pytest.raises(KirieError, match="'semantic'"):
        evaluate(model, Maps([(areas_picture(), None)], model.classes), device="cpu", **options)


# Classes


def test_a_model_of_one_class_takes_the_name_of_the_data():
    theirs = Classes(("nucleus",), things=(True,))
    pairs = [(image[..., :1], Instances.from_masks(t.masks[:0], [], theirs)) for image, t in wrong_in(1)]
    report = evaluate(Finder(1, 1), Objects(pairs, theirs), device="cpu")
    assert report.classes.names == ("nucleus",)
    with pytest.raises(KirieError, match=r"1 classes apart \(object\).*data have 3"):
        evaluate(Finder(1, 1), Objects(wrong_in(1)), device="cpu")
    with pytest.raises(KirieError, match=r"cell.*nucleus"):
        evaluate(Finder(1, Classes(("cell",))), Objects(pairs, theirs), device="cpu")


def test_some_of_the_models_classes_are_not_all():
    some = Classes(("green", "blue"))
    with pytest.raises(KirieError, match="in the same order"):
        evaluate(Finder(), Objects([(areas_picture(), None)], some), device="cpu")


# The page


def test_the_page_and_the_json_hold_the_numbers(tmp_path):
    classes = Classes(("<b>red", "green & co", "blue"))
    dataset = Objects(wrong_in(3, [0.1, 0.6, 0.3], classes), classes)
    report = evaluate(Finder(3, classes), dataset, out=tmp_path, device="cpu", name="my model")
    facts, html = facts_of(tmp_path), (tmp_path / "report.html").read_text("utf-8")
    assert facts["ap"] == report.score and facts["pictures"] == 3 and facts["model"] == "my model"
    assert list(facts["images"]) == ["p0.png", "p1.png", "p2.png"]
    assert [row["class"] for row in facts["per_class"]] == list(classes.names)
    Closed(html)
    assert escape(report.convention) in html and "3 pictures, 3 classes" in html and "&lt;b&gt;red" in html
    for label, value, _ in report.headline():
        assert f'<dt>{label}</dt><dd class="value">{value:.4f}' in html
    heads = re.findall(r'<th scope="col">(.*?)</th>', html)
    expected = ["AP", "AP50", "AP75", "Box AP", "Accuracy", "Precision", "Recall", "Objects", "Results"]
    assert heads == ["Class", *expected]
    assert html.count("data:image/") == 3 + 4 * 3, "three figures, and each picture four times"
    assert html.count("matching accuracy 0.") + html.count("matching accuracy 1.") == 3
    assert html.count('class="mark ') == 3 and "missed: true but not predicted" in html
    worst = re.search(r"<h2>Worst pictures</h2>.*?</section>", html, re.DOTALL).group(0)
    assert worst.index("p1.png") < worst.index("p2.png") and "<script" not in html


def test_only_what_is_worth_showing_is_drawn(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("kirie.prediction.evaluate.difference", lambda r, t, i: drawn.append((r, t)) or i)
    ((image, truth),) = wrong_in(1)
    evaluate(Finder(), Objects([(image, truth)]), out=tmp_path, device="cpu", threshold=0.8)
    ((result, beside),) = drawn
    assert beside is truth and len(result) == np.count_nonzero(seen_in(image).scores >= 0.8) < len(seen_in(image))


def test_data_without_objects_and_a_model_that_finds_none(tmp_path):
    image = np.zeros((40, 50, 3), np.uint8)
    nothing = Instances.from_masks(Masks((40, 50)), [], CLASSES)
    full = areas_picture((40, 50))
    for number, (pairs, value) in enumerate(
        [([(image, nothing)], None), ([(image, seen_in(full))], 0), ([(full, nothing)], None)]
    ):
        out = tmp_path / str(number)
        report = evaluate(Finder(), Objects(pairs), out=out, device="cpu")
        html = (out / "report.html").read_text("utf-8")
        Closed(html)
        assert facts_of(out)["ap"] == value and "nan" not in re.sub(r"data:[^\"]*", "", html)
        assert escape(report.convention) in html and ("no value" in html) == (value is None)
