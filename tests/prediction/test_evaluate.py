import json
import os
import re

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, jaccard_score, precision_score, recall_score
from tiny import CLASSES, add_sample, blobs, colour_unet, make_data, painted, random_unet

import kirie
from kirie.classes import Classes
from kirie.data.dataset import Sample
from kirie.data.folders import FolderSettings
from kirie.data.splits import seeded_split
from kirie.drawing import draw
from kirie.errors import KirieError
from kirie.metrics.semantic import SemanticMetric
from kirie.prediction.evaluate import SHOWN, Evaluation, evaluate, folder_settings, measure, open_for
from kirie.prediction.predictor import Predictor
from kirie.results import SemanticMap


class Samples:
    """A data set in memory."""

    def __init__(self, pairs, classes=CLASSES, task="semantic"):
        self.pairs, self.classes, self.task, self.splits = pairs, classes, task, ()

    def __len__(self):
        return len(self.pairs)

    def name(self, index):
        return f"p{index}.png"

    def file_facts(self, index):
        return {}

    def __getitem__(self, index):
        image, labels = self.pairs[index]
        return Sample(image, SemanticMap(labels, self.classes), self.name(index))


def noisy(count, sizes=((24, 32), (17, 40)), classes=3, void=True):
    """Random pictures with random truth, some of it void."""
    rng = np.random.default_rng(count)
    pairs = []
    for i in range(count):
        size = sizes[i % len(sizes)]
        labels = blobs(size, classes, seed=i)
        if void:
            labels[rng.random(size) < 0.2] = 255
        pairs.append((rng.integers(0, 256, (*size, 3), np.uint8), labels))
    return pairs


def with_errors(shares):
    """Pictures of which the colour model gets these shares of the pixels wrong."""
    pairs = []
    for i, share in enumerate(shares):
        truth = blobs((24, 32), seed=i)
        wrong = truth.copy().ravel()
        wrong[: round(share * wrong.size)] = (wrong[: round(share * wrong.size)] + 1) % 3
        pairs.append((painted(wrong.reshape(truth.shape), i), truth))
    return pairs


def report_of(folder):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads((folder / "report.json").read_text("utf-8"), parse_constant=refuse)


def shown_in(html, heading):
    """The names and scores of the pictures below a heading of the report."""
    section = re.search(rf"<section><h2>{heading}</h2>.*?</section>", html, re.DOTALL)
    return re.findall(r"<h3><span>(.*?)</span><b>mean IoU (.*?)</b>", section.group(0)) if section else []


# The numbers


@pytest.mark.parametrize(("classes", "batch_size"), [(2, 1), (3, 1), (3, 4), (7, 3)])
def test_numbers_are_those_of_scikit_learn(classes, batch_size):
    model = random_unet(classes)
    pairs = noisy(7, classes=classes)
    predictor = Predictor(model, device="cpu", batch_size=batch_size)
    evaluation = measure(predictor, Samples(pairs, model.classes))
    truth = np.concatenate([labels.ravel() for _, labels in pairs])
    found = np.concatenate([kirie.predict(model, image, device="cpu").labels.ravel() for image, _ in pairs])
    found, truth = found[truth != 255], truth[truth != 255]
    ids, report = list(range(classes)), evaluation.report
    assert len(np.unique(found)) > 1
    assert np.array_equal(report.table[:, :classes], confusion_matrix(truth, found, labels=ids))
    for ours, theirs in (
        (report.iou, jaccard_score),
        (report.dice, f1_score),
        (report.precision, precision_score),
        (report.recall, recall_score),
    ):
        np.testing.assert_allclose(ours, theirs(truth, found, labels=ids, average=None))
    assert report.miou == pytest.approx(jaccard_score(truth, found, labels=ids, average="macro"))
    assert report.pixel_accuracy == pytest.approx(accuracy_score(truth, found))
    for (image, labels), score in zip(pairs, evaluation.scores, strict=True):
        guess, counts = kirie.predict(model, image, device="cpu").labels, labels != 255
        assert score == pytest.approx(jaccard_score(labels[counts], guess[counts], average="macro"))


def test_files_and_memory_give_the_same_numbers(tmp_path):
    pairs = with_errors([0, 0.1, 0.4])
    for i, (image, labels) in enumerate(pairs):
        add_sample(tmp_path, "test", f"p{i}", image, labels)
    (tmp_path / "classes.json").write_text(json.dumps(list(CLASSES.names)))
    from_files = evaluate(colour_unet(), tmp_path, device="cpu")
    assert np.array_equal(from_files.table, evaluate(colour_unet(), Samples(pairs), device="cpu").table)
    assert from_files.pixel_accuracy == pytest.approx(1 - (0 + 0.1 + 0.4) / 3, abs=1e-3)


def test_shares_of_several_processes_add_up():
    model = random_unet()
    predictor, dataset = Predictor(model, device="cpu"), Samples(noisy(7))
    whole = measure(predictor, dataset)
    parts = [measure(predictor, dataset, share=(n, 3)) for n in range(3)]
    assert [p.names for p in parts] == [("p0.png", "p1.png"), ("p2.png", "p3.png"), ("p4.png", "p5.png", "p6.png")]
    collected = []
    for n in range(3):
        measure(predictor, dataset, share=(n, 3), gather=lambda metric: collected.append(metric) or [metric])
    merged = measure(predictor, dataset, share=(0, 3), gather=lambda metric: [metric, *collected[1:]])
    assert np.array_equal(sum(p.report.table for p in parts), whole.report.table)
    assert np.array_equal(merged.report.table, whole.report.table)


def test_a_broken_picture_stops_it_with_its_name(tmp_path):
    make_data(tmp_path)
    (tmp_path / "images" / "test" / "test1.png").write_bytes(b"")
    with pytest.raises(KirieError, match=r"test1\.png"):
        evaluate(colour_unet(), tmp_path, device="cpu")


# Which pictures


def test_the_split_is_test_else_val_else_everything(tmp_path):
    model = colour_unet()

    def names(path, split=None):
        dataset = open_for(model, path, split, None)
        return {dataset.name(i).split("/")[-1] for i in range(len(dataset))}

    full = make_data(tmp_path / "full")
    assert names(full) == {"test0.png", "test1.png", "test2.png"}
    assert names(full, "train") == {f"train{i}.png" for i in range(4)}
    assert names(make_data(tmp_path / "two", (("train", 3), ("val", 2)))) == {"val0.png", "val1.png"}
    assert names(make_data(tmp_path / "one", (("train", 3),))) == {f"train{i}.png" for i in range(3)}
    with pytest.raises(KirieError, match="no split 'dev'"):
        names(full, "dev")
    with pytest.raises(KirieError, match="test"):
        names(tmp_path / "one", "test")


def test_data_without_splits_of_their_own_are_measured_whole(tmp_path):
    make_data(tmp_path, (("", 12),))
    drawn = {seeded_split(f"p{i}", 0, 0.2, 0.0) for i in range(12)}
    assert drawn == {"train", "val"}, "or this test says nothing"
    assert len(open_for(colour_unet(), tmp_path, None, None)) == 12


def test_the_recipe_says_which_pictures_of_its_own_data_are_unseen(tmp_path):
    data = make_data(tmp_path / "own", (("", 30),))
    for fraction, wanted in ((0.0, "val"), (0.3, "test")):
        model = colour_unet()
        model.recipe = {"data": {"path": str(data), "seed": 3, "val_fraction": 0.3, "test_fraction": fraction}}
        dataset = open_for(model, data, None, None)
        drawn = [seeded_split(f"p{i}", 3, 0.3, fraction) for i in range(30)]
        assert dataset.split == wanted and 0 < len(dataset) == drawn.count(wanted) < 30
        model.recipe["data"]["path"] = str(tmp_path / "other")
        assert len(open_for(model, data, None, None)) == 30, "data it was not trained on"


def test_the_record_of_a_recipe_gives_the_settings_of_the_folders():
    model = colour_unet()
    section = {"path": "x", "masks": "truth", "kind": "index", "classes": ["a", "b"], "ignore": [7], "short_side": 9}
    model.recipe = {"data": section, "train": {"of": "another version"}}
    settings = folder_settings(model)
    assert settings == FolderSettings(masks="truth", kind="index", classes=("a", "b"), ignore=(7,))


@pytest.mark.parametrize(
    "record",
    [
        None,
        {},
        {"data": None},
        {"data": "x"},
        {"data": {"masks": 5}},
        {"data": {"val_fraction": 3.0}},
        {"data": {"seed": "1"}},
        {"data": {"kind": "__class__"}},
        {"data": {"path": 3, "val": ["val"]}},
        {"data": {"path": "a" + chr(0), "val": "__class__"}},
    ],
)
def test_a_record_that_means_nothing_is_passed_over(record, tmp_path):
    model = colour_unet()
    model.recipe = record
    assert folder_settings(model) == FolderSettings()
    assert len(open_for(model, make_data(tmp_path, (("", 4),)), None, None)) == 4


# Classes


def test_unnamed_classes_take_the_names_of_the_data():
    pairs = with_errors([0.25])
    for ours, theirs in (
        (Classes.numbered(3), CLASSES),
        (CLASSES, Classes.numbered(3)),
        (Classes.numbered(3), Classes.numbered(3)),
    ):
        report = evaluate(colour_unet(ours), Samples(pairs, theirs), device="cpu")
        assert report.classes == theirs and report.pixel_accuracy == pytest.approx(0.75)
    binary = [(image, np.minimum(labels, 1)) for image, labels in pairs]
    for ours, theirs in (
        (("background", "foreground"), ("background", "object")),
        (("x", "y"), ("background", "object")),
    ):
        model = colour_unet(Classes(ours))
        assert evaluate(model, Samples(binary, Classes(theirs)), device="cpu").classes.names == theirs


@pytest.mark.parametrize(
    "theirs",
    [
        Classes(("red", "green")),
        Classes(("red", "green", "violet")),
        Classes(("green", "red", "blue")),
        Classes.numbered(4),
    ],
)
def test_other_classes_are_refused(theirs):
    with pytest.raises(KirieError, match=r"red, green, blue.*classes it was trained on") as caught:
        evaluate(colour_unet(), Samples(with_errors([0]), theirs), device="cpu")
    assert ", ".join(theirs.names) in str(caught.value)


def test_numbered_classes_with_other_numbers_are_refused():
    theirs = Classes(("class 1", "class 2", "class 3"), ids=(1, 2, 3))
    with pytest.raises(KirieError, match="class 1"):
        evaluate(colour_unet(Classes.numbered(3)), Samples(with_errors([0]), theirs), device="cpu")


def test_another_task_is_refused():
    with pytest.raises(KirieError, match=r"'semantic'.*'instance'"):
        evaluate(colour_unet(), Samples(with_errors([0]), task="instance"), device="cpu")


def test_a_data_set_without_pictures_is_refused():
    with pytest.raises(KirieError, match="no pictures"):
        evaluate(colour_unet(), Samples([]), device="cpu")


# The reports


def test_the_json_report_holds_every_number(tmp_path):
    pairs = with_errors([0.3, 0, 0.6])
    report = evaluate(colour_unet(), Samples(pairs), out=tmp_path / "new" / "folder", device="cpu", name="my model")
    facts = report_of(tmp_path / "new" / "folder")
    assert facts["model"] == "my model" and facts["pictures"] == 3 and facts["convention"] == report.convention
    assert facts["miou"] == pytest.approx(report.miou) and facts["table"] == report.table.tolist()
    assert [row["class"] for row in facts["per_class"]] == list(CLASSES.names)
    expected = [
        jaccard_score(labels.ravel(), kirie.predict(colour_unet(), image, device="cpu").labels.ravel(), average="macro")
        for image, labels in pairs
    ]
    assert list(facts["images"]) == ["p0.png", "p1.png", "p2.png"]
    assert list(facts["images"].values()) == pytest.approx(expected) and facts["images"]["p1.png"] == 1


def test_the_page_shows_numbers_convention_names_and_pictures(tmp_path):
    classes = Classes(("<b>red", "green & co", "blue"))
    report = evaluate(colour_unet(classes), Samples(with_errors([0.3, 0, 0.6]), classes), out=tmp_path, device="cpu")
    html = (tmp_path / "report.html").read_text("utf-8")
    assert report.convention in html and "3 pictures" in html and f"{report.miou:.4f}" in html
    assert "&lt;b&gt;red" in html and "green &amp; co" in html and "<b>red" not in html
    heads = re.findall(r'<th scope="col">(.*?)</th>', html)
    assert heads == ["Class", "IoU", "Dice", "Precision", "Recall", "Pixels"]
    for row in report.rows():
        assert f">{row['iou']:.4f}<" in html and f">{row['truth_pixels']:,}<" in html
    assert "TP / (TP + FP + FN)" in html.split("</table>")[1], "the columns are explained"
    assert html.count("data:image/") == 2 + 4 * 3, "two figures, and each picture with truth, result and errors, once"
    assert not re.search(r'(src|href)="(?!data:)', html) and "<script" not in html


def test_with_two_classes_the_dice_of_the_foreground_stands_first(tmp_path):
    classes = Classes(("background", "nucleus"))
    pairs = [(image, np.minimum(labels, 1)) for image, labels in with_errors([0.3])]
    report = evaluate(colour_unet(classes), Samples(pairs, classes), out=tmp_path, device="cpu")
    html = (tmp_path / "report.html").read_text("utf-8")
    assert f'<dt>Dice of nucleus</dt><dd class="value">{report.dice[1]:.4f}' in html
    assert html.index("Dice of nucleus") < html.index("<dt>mIoU")


def test_worst_and_best_pictures(tmp_path):
    shares = np.random.default_rng(0).permutation(20) / 25
    evaluate(colour_unet(), Samples(with_errors(shares)), out=tmp_path, device="cpu")
    scores = report_of(tmp_path)["images"]
    html = (tmp_path / "report.html").read_text("utf-8")
    order = [f"p{i}.png" for i in np.argsort(-shares)]
    assert [name for name, _ in shown_in(html, "Worst pictures")] == order[:SHOWN]
    assert [name for name, _ in shown_in(html, "Best pictures")] == order[::-1][:SHOWN]
    for heading in ("Worst pictures", "Best pictures"):
        assert all(f"{scores[name]:.4f}" == score for name, score in shown_in(html, heading))


def test_the_pictures_shown_are_those_named(tmp_path, monkeypatch):
    drawn = []

    def remember(result, image):
        drawn.append((result, image))
        return draw(result, image)

    monkeypatch.setattr("kirie.prediction.evaluate.draw", remember)
    pairs = with_errors([0.1, 0.5, 0.3])
    evaluate(colour_unet(), Samples(pairs), out=tmp_path, device="cpu")
    shown = [1, 2, 0]  # two worst, one best
    assert [name for name, _ in shown_in((tmp_path / "report.html").read_text("utf-8"), "Worst pictures")] == [
        "p1.png",
        "p2.png",
    ]
    for number, index in enumerate(shown):
        image, labels = pairs[index]
        (truth, under), (result, beneath) = drawn[2 * number : 2 * number + 2]
        assert np.array_equal(truth.labels, labels) and under is image and beneath is image
        assert np.array_equal(result.labels, kirie.predict(colour_unet(), image, device="cpu").labels)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12, 13])
def test_no_picture_is_shown_twice_even_when_all_are_equal(tmp_path, count):
    evaluate(colour_unet(), Samples(with_errors([0] * count)), out=tmp_path, device="cpu")
    html = (tmp_path / "report.html").read_text("utf-8")
    names = [name for heading in ("Worst pictures", "Best pictures") for name, _ in shown_in(html, heading)]
    assert len(names) == len(set(names)) == min(count, 2 * SHOWN)


def test_ranking_leaves_out_pictures_without_a_score():
    report = SemanticMetric(CLASSES).compute()
    scores = (0.5, float("nan"), 0.1, 0.9, float("nan"), 0.5)
    evaluation = Evaluation(report, tuple("abcdef"), scores)
    assert evaluation.worst(3) == [2, 0, 5] and evaluation.best(2) == [3, 5]
    assert evaluation.worst(100) == [2, 0, 5, 3] and evaluation.best(100) == [3, 5, 0, 2]
    assert Evaluation(report, ("a",), (float("nan"),)).worst(5) == []


def test_pictures_without_truth_count_nowhere(tmp_path):
    pairs = with_errors([0.3, 0.1])
    empty = (pairs[0][0], np.full_like(pairs[0][1], 255))
    alone = evaluate(colour_unet(), Samples(pairs), device="cpu")
    report = evaluate(colour_unet(), Samples([pairs[0], empty, pairs[1]]), out=tmp_path, device="cpu")
    assert np.array_equal(report.table, alone.table)
    assert report_of(tmp_path)["images"]["p1.png"] is None
    html = (tmp_path / "report.html").read_text("utf-8")
    assert [n for n, _ in shown_in(html, "Worst pictures") + shown_in(html, "Best pictures")] == ["p0.png", "p2.png"]


def test_truth_that_is_all_void(tmp_path):
    pairs = [(image, np.full_like(labels, 255)) for image, labels in with_errors([0, 0.5])]
    report = evaluate(colour_unet(), Samples(pairs), out=tmp_path, device="cpu")
    assert np.isnan(report.miou) and report.classes_counted == 0
    facts = report_of(tmp_path)
    assert facts["miou"] is None and facts["images"] == {"p0.png": None, "p1.png": None}
    html = (tmp_path / "report.html").read_text("utf-8")
    assert "no value" in html and "nan" not in re.sub(r"data:[^\"]*", "", html) and not shown_in(html, "Best pictures")


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_pictures_of_other_channels_are_shown(tmp_path, channels):
    model = random_unet(3, in_channels=channels)
    image = np.random.default_rng(0).integers(0, 256, (24, 32, channels), np.uint8)
    evaluate(model, Samples([(image, blobs((24, 32)))], model.classes), out=tmp_path, device="cpu")
    assert (tmp_path / "report.html").read_text("utf-8").count("data:image/") == 2 + 4


@pytest.mark.skipif(os.name != "posix", reason="file names are Unicode there")
def test_names_that_are_no_unicode(tmp_path):
    make_data(tmp_path, (("test", 1),))
    for folder in ("images", "masks"):
        place = tmp_path / folder / "test"
        (place / "test0.png").rename(place / os.fsdecode(b"\x93\xfa\x96{.png"))  # Shift-JIS, as in old archives
    report = evaluate(colour_unet(), tmp_path, out=tmp_path / "out", device="cpu")
    assert report.miou == 1 and len(report_of(tmp_path / "out")["images"]) == 1


def test_reports_replace_earlier_ones_and_a_file_is_no_folder(tmp_path):
    dataset = Samples(with_errors([0]))
    for name in ("first", "second"):
        evaluate(colour_unet(), dataset, out=tmp_path / "out", device="cpu", name=name)
    assert report_of(tmp_path / "out")["model"] == "second"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(KirieError, match="is a file"):
        evaluate(colour_unet(), dataset, out=tmp_path / "file", device="cpu")
    assert (tmp_path / "file").read_text() == "mine"
