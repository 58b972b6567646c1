"""Data sets of one's own: lists of samples, and functions named as package.module:function."""

import sys
import textwrap
from functools import partial

import numpy as np
import pytest

from kirie.classes import Classes
from kirie.data.dataset import Sample
from kirie.data.layouts import FolderSettings
from kirie.data.listed import SampleList, is_own, own_dataset
from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.results import Instances, PanopticMap, Segment, SemanticMap

CLASSES = Classes(("sky", "cat", "sea", "dog"), things=(False, True, False, True))


def sample(number, classes=CLASSES):
    labels = np.full((6, 8), number % len(classes), np.uint8)
    return Sample(np.full((6, 8, 3), number, np.uint8), SemanticMap(labels, classes), f"picture {number}")


def panoptic():
    """Sky, a dog of 4 pixels, a crowd of cats of 6."""
    ids = np.ones((6, 8), np.int32)
    ids[:2, :2], ids[3, :6] = 2, 3
    segments = (
        Segment(1, 0, False, 1.0, 38),
        Segment(2, 3, True, 1.0, 4),
        Segment(3, 1, True, 1.0, 6, crowd=True),
    )
    return Sample(np.zeros((6, 8, 3), np.uint8), PanopticMap(ids, segments, CLASSES), "panoptic")


def test_samples_and_functions_by_split():
    data = SampleList({"train": [sample(0), partial(sample, 1)], "validation": [sample(5)]})
    assert (data.splits, data.split, data.task, data.classes) == (("train", "val"), None, "semantic", CLASSES)
    assert [data[index].name for index in range(len(data))] == ["picture 0", "picture 1", "picture 5"]
    assert [data.name(index) for index in (0, 1, -1)] == ["picture 0", "train 1", "picture 5"]
    assert data.file_facts(0) == {}
    assert [s.name for s in data.only("val")] == ["picture 5"]
    assert data.only("val").only("train")[1].image[0, 0, 0] == 1
    for wrong in (3, -4):
        with pytest.raises(IndexError, match=f"no sample {wrong} of 3"):
            data[wrong]


def test_a_function_of_the_split_is_asked_for_what_is_needed():
    asked = []

    def samples(split):
        asked.append(split)
        return [partial(sample, number) for number in range(3 if split == "train" else 1)]

    data = SampleList(samples, "train")
    assert (len(data), asked) == (3, ["train"])
    assert len(data.only("val")) == 1
    assert len(data.only(None)) == 4


def test_functions_are_called_when_their_sample_is_asked_for():
    read = []

    def make(number):
        read.append(number)
        return sample(number)

    data = SampleList({"train": [partial(make, number) for number in range(5)]})
    assert read == [0], "for classes and task"
    assert data[3].name == "picture 3"
    assert read == [0, 3]


def test_a_panoptic_truth_serves_three_tasks():
    given = {"train": [panoptic()]}
    assert SampleList(given).task == "panoptic"
    objects = SampleList(given, task="instance")
    assert (objects.task, objects.classes.names) == ("instance", ("cat", "dog"))
    truth = objects[0].truth
    assert [truth.classes.names[label] for label in truth.labels] == ["dog", "cat"]
    assert truth.crowd.tolist() == [False, True]
    assert truth.masks.areas().tolist() == [4, 6]
    semantic = SampleList(given, task="semantic")
    assert semantic.classes == CLASSES
    assert np.bincount(semantic[0].truth.labels.ravel(), minlength=4).tolist() == [38, 6, 0, 4]


def test_objects_serve_task_semantic_with_background():
    masks = Masks.from_dense(np.eye(6, 8, dtype=bool)[None])
    objects = Instances.from_masks(masks, [1], Classes(("cat", "dog")))
    data = SampleList({"train": [Sample(np.zeros((6, 8, 3), np.uint8), objects, "x")]}, task="semantic")
    assert data.classes.names == ("background", "cat", "dog")
    assert (data[0].truth.labels == 2).sum() == 6


@pytest.mark.parametrize(
    ("samples", "more", "message"),
    [
        ({}, {}, "There are no samples in split None"),
        ({"train": [sample(0)]}, {"split": "test"}, "no samples in split test"),
        ({"trian": [sample(0)]}, {}, "There is no split 'trian'"),
        ({"train": [sample(0)]}, {"task": "boxes"}, "no task 'boxes'; expected semantic, instance, panoptic"),
        (
            {"train": [sample(0)]},
            {"task": "instance"},
            "picture 0 is a SemanticMap, which cannot serve task 'instance'",
        ),
        ({"train": [(1, 2)]}, {}, "Sample 0 of split train is a tuple; expected a kirie Sample"),
        ({"train": [lambda: None]}, {}, "Sample 0 of split train is a NoneType"),
        (
            {"train": [Sample(np.zeros((6, 8, 3)), sample(0).truth, "x")]},
            {},
            r"image of x must be uint8 of shape \(H, W, C\), got float64 \(6, 8, 3\)",
        ),
        (
            {"train": [Sample(np.zeros((6, 9, 3), np.uint8), sample(0).truth, "x")]},
            {},
            r"of the size of the image, \(6, 9\), got \(6, 8\)",
        ),
        ({"train": [Sample(np.zeros((6, 8, 3), np.uint8), np.zeros((6, 8)), "x")]}, {}, "got a ndarray"),
    ],
)
def test_what_is_no_data_set(samples, more, message):
    with pytest.raises(KirieError, match=message):
        SampleList(samples, **more)


def test_samples_of_other_classes_are_told():
    data = SampleList({"train": [sample(0), sample(1, Classes(("sky", "cat")))]})
    with pytest.raises(
        KirieError, match="picture 1 has other classes than the first sample: sky, cat, not sky, cat, s"
    ):
        data[1]


# By name


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "ownsets.py").write_text(
        textwrap.dedent(
            """\
            import numpy as np

            import kirie
            from kirie.data.dataset import Sample
            from kirie.data.listed import SampleList

            CLASSES = kirie.Classes(("a", "b"))


            def listed(split):
                many = {"train": 3, "val": 2}[split]
                labels = np.zeros((4, 4), np.uint8)
                return [Sample(np.zeros((4, 4, 3), np.uint8), kirie.SemanticMap(labels, CLASSES), split)] * many


            def whole(split):
                return SampleList(listed, split)


            ready = SampleList(listed)
            number = 3
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("ownsets", None)


@pytest.mark.parametrize("name", ["listed", "whole", "ready"])
def test_a_name_leads_to_a_data_set(name, mine):
    data = own_dataset(f"ownsets:{name}", "val", settings=FolderSettings(channels=4))
    assert (len(data), data.task, data.classes.names, data[1].name) == (2, "semantic", ("a", "b"), "val")
    assert len(data.only("train")) == 3
    with pytest.raises(KirieError, match="'instance'"):
        own_dataset(f"ownsets:{name}", "val", task="instance")


def test_names_that_lead_nowhere(mine):
    with pytest.raises(KirieError, match="Cannot import 'ownsets:lost'"):
        own_dataset("ownsets:lost")
    with pytest.raises(KirieError, match="ownsets:number is a int; expected a function"):
        own_dataset("ownsets:number")
    with pytest.raises(
        KirieError, match=r"data\.short_side is 64, for which ownsets:listed, your own code, has no use"
    ):
        own_dataset("ownsets:listed", settings=FolderSettings(short_side=64))


def test_what_is_there_is_no_name(mine):
    assert is_own("ownsets:listed")
    assert not is_own("C:\\pictures")
    assert not is_own("data/nuclei")
    (mine / "a:b").mkdir()
    assert not is_own("a:b")
    assert "ownsets" not in sys.modules, "only opening imports"
