"""Whole pictures at random sizes, in padded batches."""

import numpy as np
import pytest
import torch

from kirie.classes import Classes
from kirie.data.augment import PRESETS, AugmentSettings
from kirie.data.batch import AugmentedSamples, Batch, BatchPlan, Draw
from kirie.data.dataset import Sample
from kirie.data.listed import SampleList
from kirie.masks import Masks
from kirie.models.file import load
from kirie.results import Instances, PanopticMap, Segment, SemanticMap
from kirie.training.fit import fit
from kirie.training.whole import PaddedLoader, ScaledSamples, padded_batch, padded_truth

CLASSES = Classes(("a", "b"), things=(False, True))
SIZES = [(20, 30), (30, 20), (24, 24), (40, 20), (20, 50), (26, 26), (30, 30)]


def picture(number, kind="semantic"):
    """The left half of a picture is 10 + its number and class 0, the right half 200 and class 1."""
    height, width = SIZES[number]
    labels = np.zeros((height, width), np.uint8)
    labels[:, width // 2 :] = 1
    image = np.where(labels[..., None] == 1, 200, 10 + number).astype(np.uint8).repeat(3, 2)
    if kind == "semantic":
        return Sample(image, SemanticMap(labels, CLASSES), str(number))
    if kind == "instance":
        return Sample(image, Instances.from_masks(Masks.from_dense(labels[None] == 1), [1], CLASSES), str(number))
    ids = labels.astype(np.int32) + 1
    areas = [int((ids == i).sum()) for i in (1, 2)]
    segments = tuple(Segment(i + 1, i, i == 1, 1.0, area) for i, area in enumerate(areas))
    return Sample(image, PanopticMap(ids, segments, CLASSES), str(number))


def dataset(kind="semantic"):
    return SampleList({"train": [picture(number, kind) for number in range(len(SIZES))]}, "train")


def scaled(data, sides, longest=None):
    return ScaledSamples(data, AugmentSettings(), None, 3, None, sides, longest)


@pytest.mark.parametrize("kind", ["semantic", "instance", "panoptic"])
def test_picture_and_truth_are_resized_alike(kind):
    samples = scaled(dataset(kind), (40,), 70)
    for number, size in enumerate([(40, 60), (60, 40), (40, 40), (70, 35), (28, 70), (40, 40), (40, 40)]):
        image, truth, name = samples[Draw(number, 0, number)]
        assert tuple(image.shape) == (3, *size), "the long side has at most 70 pixels"
        assert truth.size == size
        assert name == str(number)
        right = np.asarray(image[0] > 105)
        seen = {
            "semantic": lambda t: t.labels == 1,
            "instance": lambda t: t.masks.dense()[0],
            "panoptic": lambda t: t.ids == 2,
        }[kind](truth)
        assert (seen != right).mean() < 0.05, "a column at the border at the most"


def test_the_size_is_drawn_from_seed_epoch_and_place_alone():
    samples = scaled(dataset(), (16, 20, 32))
    sizes = [samples[Draw(2, epoch, place)][0].shape[1] for epoch in range(4) for place in range(20)]
    assert sizes == [samples[Draw(2, epoch, place)][0].shape[1] for epoch in range(4) for place in range(20)]
    assert {side: sizes.count(side) > 15 for side in set(sizes)} == {16: True, 20: True, 32: True}


def test_a_picture_of_that_size_is_as_without():
    plain = AugmentedSamples(dataset(), PRESETS["light"], None, 3)
    same = ScaledSamples(dataset(), PRESETS["light"], None, 3, None, (24,), None)
    one, other = plain[Draw(2, 1, 5)], same[Draw(2, 1, 5)]
    assert torch.equal(one[0], other[0])
    assert np.array_equal(one[1].labels, other[1].labels)


def one_batch(sample):
    return Batch(torch.from_numpy(sample.image.transpose(2, 0, 1))[None], [sample.truth], [sample.name])


def test_padding_by_hand():
    batch = padded_batch([one_batch(picture(0)), one_batch(picture(3))], (1, 2, 3))
    assert tuple(batch.images.shape) == (2, 3, 40, 30)
    first, second = batch.images
    assert torch.equal(first[:, :20], torch.from_numpy(picture(0).image.transpose(2, 0, 1)))
    assert (first[:, 20:] == torch.tensor([1, 2, 3])[:, None, None]).all()
    assert (second[:, :, 20:] == torch.tensor([1, 2, 3])[:, None, None]).all()
    labels = batch.truths[0].labels
    assert np.array_equal(labels[:20], picture(0).truth.labels)
    assert (labels[20:] == CLASSES.void).all()
    assert batch.names == ["0", "3"]


def test_padded_objects_and_segments_by_hand():
    objects = padded_truth(picture(0, "instance").truth, (25, 40))
    assert objects.size == (25, 40)
    assert objects.boxes.tolist() == [[15, 0, 30, 20]]
    assert objects.masks.areas().tolist() == [300]
    crowd = Instances.from_masks(Masks.from_dense(np.ones((1, 4, 4), bool)), [0], CLASSES, crowd=np.array([True]))
    assert padded_truth(crowd, (5, 5)).crowd.tolist() == [True]
    nothing = Instances.from_masks(Masks((4, 4)), [], CLASSES)
    assert len(padded_truth(nothing, (5, 5))) == 0
    segments = padded_truth(picture(0, "panoptic").truth, (25, 40))
    assert {s.id: s.area for s in segments.segments} == {1: 300, 2: 300}
    assert (segments.ids[20:] == 0).all()
    assert (segments.ids[:, 30:] == 0).all()


def names(loader, epoch, **more):
    return [batch.names for batch in loader.epoch(epoch, **more)]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_plan_and_a_resumed_epoch_goes_on(workers):
    plan = BatchPlan(7, 2, seed=5)
    loader = PaddedLoader(scaled(dataset(), (20, 30)), plan, fill=(0, 0, 0), workers=workers)
    expected = [[str(draw.sample) for draw in batch] for batch in plan.batches(1)]
    assert [len(batch) for batch in expected] == [2, 2, 3], "the rest of one joins the batch before it"
    assert len(loader) == 3
    assert names(loader, 1) == expected
    assert names(loader, 1, skip=1) == expected[1:]
    assert names(loader, 1, skip=3) == []
    loader.close()


def test_processes_divide_an_epoch():
    plan = BatchPlan(7, 2, seed=5)
    parts = [PaddedLoader(scaled(dataset(), (20,)), plan, fill=(0, 0, 0), share=(n, 2)) for n in range(2)]
    taken = [[name for batch in names(part, 0) for name in batch] for part in parts]
    assert [len(part) for part in taken] == [3, 3]
    assert len({*taken[0], *taken[1]}) == 6
    assert [len(part) for part in parts] == [1, 1], "three pictures, of which the last may not stand alone"


def test_a_training_on_whole_pictures(recipe_for, tmp_path):
    sizes = "augment={preset: none, short_sides: [32, 40, 48], long_side: 56}"
    run = fit(recipe_for(sizes, "train.patch=null", epochs=2), tmp_path / "run", device="cpu")
    assert run.finished
    inputs = load(run.folder).inputs
    assert (inputs.short_side, inputs.long_side, inputs.patch) == (48, 56, None), "predicted at the largest size"


def test_a_resumed_training_on_whole_pictures_is_the_one_left_alone(recipe_for, tmp_path, monkeypatch):
    from kirie.training.trainer import Trainer

    recipe = recipe_for("augment.short_sides=[32, 48]", "train.patch=null", epochs=2)
    whole = fit(recipe, tmp_path / "whole", device="cpu")

    class Stops(Trainer):
        def run(self, stop):
            self.stop = stop
            return super().run(stop)

        def after_step(self, batch, losses):
            self.stop.asked = self.standing.step == 2

    assert not fit(recipe, tmp_path / "parts", device="cpu", trainer=Stops).finished
    again = fit(recipe, tmp_path / "parts", device="cpu", resume=True)
    assert again.finished
    same = [{name: value for name, value in row.items() if name != "seconds"} for row in whole.history]
    assert [{name: value for name, value in row.items() if name != "seconds"} for row in again.history] == same
