import os
import random
import signal
import time

import albumentations
import numpy as np
import pytest
import torch

from kirie.classes import Classes
from kirie.data.augment import PRESETS, AugmentSettings
from kirie.data.batch import AugmentedSamples, BatchPlan, Draw, TrainingLoader
from kirie.data.dataset import Sample
from kirie.errors import KirieError
from kirie.results import SemanticMap

CLASSES = Classes(("ground", "thing"))


class Pictures:
    """A data set of pictures of noise whose first pixel is their number."""

    classes, task, splits = CLASSES, "semantic", ()

    def __init__(self, count=10, sizes=((20, 24),), bad=()):
        self.count, self.sizes, self.bad = count, sizes, bad

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.bad:
            raise KirieError(f"{index}.png is cut short.")
        size = self.sizes[index % len(self.sizes)]
        image = np.random.default_rng(index).integers(0, 256, (*size, 3)).astype(np.uint8)
        image[0, 0] = index
        return Sample(image, SemanticMap((image[..., 0] > 127).astype(np.uint8), CLASSES), f"{index}.png")

    def name(self, index):
        return f"{index}.png"

    def file_facts(self, index):
        return {}


def loader(dataset=None, *, workers=0, size=(16, 16), own=None, settings=None, seed=0, share=(0, 1), **plan):
    dataset = dataset or Pictures()
    samples = AugmentedSamples(dataset, settings or PRESETS["medical"], size, seed, own)
    return TrainingLoader(
        samples, BatchPlan(len(dataset), **{"batch_size": 4, "seed": seed, **plan}), workers=workers, share=share
    )


def facts(batches):
    return [(b.images.numpy().tobytes(), [t.labels.tobytes() for t in b.truths], b.names) for b in batches]


# The plan


@pytest.mark.parametrize("draws", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7, 40])
@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5, 8, 9, 13])
def test_every_sample_comes_so_often_and_the_length_is_right(samples, batch_size, draws):
    plan = BatchPlan(samples, batch_size, draws, seed=3)
    batches = plan.batches(0)
    assert len(batches) == len(plan)
    drawn = [draw.sample for batch in batches for draw in batch]
    assert sorted(drawn) == sorted(list(range(samples)) * draws)
    assert [draw.place for batch in batches for draw in batch] == list(range(samples * draws))
    sizes = [len(batch) for batch in batches]
    assert set(sizes[:-1]) <= {batch_size}
    assert 1 <= sizes[-1] <= batch_size + 1
    # No batch of a single sample, which batch norm could not learn from, unless there is no other way.
    assert 1 not in sizes or batch_size == 1 or samples * draws == 1


def test_a_rest_of_one_joins_the_batch_before():
    assert [len(batch) for batch in BatchPlan(9, 4).batches(0)] == [4, 5]
    assert [len(batch) for batch in BatchPlan(10, 4).batches(0)] == [4, 4, 2]
    assert [len(batch) for batch in BatchPlan(3, 1).batches(0)] == [1, 1, 1]


def test_epochs_differ_and_so_do_seeds():
    orders = [
        [draw.sample for batch in BatchPlan(20, 5, seed=seed).batches(epoch) for draw in batch]
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4
    assert BatchPlan(20, 5, seed=1).batches(1) == BatchPlan(20, 5, seed=1).batches(1)


@pytest.mark.parametrize("wrong", [(0, 4, 1), (4, 0, 1), (4, 4, 0)])
def test_no_plan_without_samples(wrong):
    with pytest.raises(KirieError, match="at least one"):
        BatchPlan(*wrong)


@pytest.mark.parametrize("samples", [1, 4, 9, 12, 23])
@pytest.mark.parametrize("of", [1, 2, 3])
def test_processes_take_equally_many_different_batches(samples, of):
    loaders = [loader(Pictures(samples), share=(n, of)) for n in range(of)]
    taken = [[batch.names for batch in each.epoch(0)] for each in loaders]
    assert {len(each) for each in taken} == {len(loaders[0])} == {max(len(loaders[0].plan) // of, 1)}
    if len(loaders[0].plan) >= of:
        names = [name for each in taken for batch in each for name in batch]
        assert len(names) == len(set(names))


# The batches


def noisy(image, mask):
    """A user's augmentation that draws from all the random states that Python programs commonly use."""
    drawn = [random.randrange(256), np.random.randint(256), int(torch.randint(256, ()))]
    image[:, : len(drawn)] = np.array(drawn, np.uint8)[None, :, None]
    return {"image": image, "mask": mask}


def test_the_same_batches_whatever_the_workers():
    dataset = Pictures(11)
    expected = [facts(loader(dataset, own=noisy, draws=2).epoch(epoch)) for epoch in (0, 1)]
    assert expected[0] != expected[1]
    for workers in (1, 2):
        other = loader(dataset, own=noisy, draws=2, workers=workers)
        assert [facts(other.epoch(epoch)) for epoch in (0, 1)] == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_skipping_leaves_out_the_first_batches_and_changes_no_other(workers):
    each = loader(Pictures(18), own=noisy, workers=workers)
    whole = facts(each.epoch(1))
    assert len(whole) == 5
    for skip in (1, 3, 5):
        assert facts(each.epoch(1, skip=skip)) == whole[skip:]


def test_an_epoch_may_be_left_before_its_end():
    each = loader(Pictures(18), workers=1)
    for _ in each.epoch(0):
        break
    assert facts(each.epoch(1)) == facts(loader(Pictures(18)).epoch(1))


def test_the_seed_changes_the_crops():
    one, other = (AugmentedSamples(Pictures(), PRESETS["none"], (8, 8), seed)[Draw(0, 0, 0)][0] for seed in (0, 1))
    assert not torch.equal(one, other)


def test_draws_of_one_picture_differ():
    samples = AugmentedSamples(Pictures(), PRESETS["none"], (8, 8))
    drawn = {samples[Draw(0, epoch, place)][0].numpy().tobytes() for epoch in (0, 1) for place in range(4)}
    assert len(drawn) == 8


def test_the_shuffle_and_the_first_augmentation_draw_different_numbers():
    # NumPy's SeedSequence pads with zeros, so that [seed, epoch] and [seed, epoch, 0] are one and the same.
    own = []
    samples = AugmentedSamples(Pictures(), PRESETS["none"], None, 5, lambda image, mask: own.append(random.random()))
    with pytest.raises(KirieError):
        samples[Draw(0, 7, 0)]
    random.seed(int(np.random.default_rng([5, 7]).integers(2**32)))
    assert own[0] != random.random()


def test_what_comes_out():
    (batch,) = loader(Pictures(3)).epoch(0)
    assert batch.images.shape == (3, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert [truth.labels.shape for truth in batch.truths] == [(16, 16)] * 3
    assert sorted(batch.names) == ["0.png", "1.png", "2.png"]
    for image, truth in zip(batch.images, batch.truths, strict=True):
        assert set(np.unique(truth.labels)) <= {0, 1}
        assert image.is_contiguous()


def test_without_augmentation_pictures_come_as_they_are():
    dataset = Pictures(4)
    (batch,) = loader(dataset, size=None, settings=AugmentSettings()).epoch(0)
    for image, truth, name in zip(*batch[:3], strict=True):
        sample = dataset[int(name.split(".")[0])]
        np.testing.assert_array_equal(image.numpy().transpose(1, 2, 0), sample.image)
        np.testing.assert_array_equal(truth.labels, sample.truth.labels)


# What a user brings along


def test_a_users_function_leaves_the_random_states_of_the_process_alone():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = [random.random(), np.random.random(), torch.rand(()).item()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    list(loader(own=noisy).epoch(0))
    list(loader(own=noisy, workers=1).epoch(0))
    assert [random.random(), np.random.random(), torch.rand(()).item()] == expected


def test_an_albumentations_pipeline_is_seeded():
    pipeline = albumentations.Compose([albumentations.HorizontalFlip(p=0.5), albumentations.VerticalFlip(p=0.5)])
    samples = AugmentedSamples(Pictures(), PRESETS["none"], None, own=pipeline)
    image = Pictures()[0].image
    variants = [image, image[:, ::-1], image[::-1], image[::-1, ::-1]]

    def drawn():
        return [samples[Draw(0, 0, place)][0].numpy().transpose(1, 2, 0) for place in range(60)]

    first, again = drawn(), drawn()
    np.testing.assert_array_equal(first, again)
    # All four come about equally often: the two flips do not share their random numbers.
    counts = [sum(np.array_equal(variant, each) for each in first) for variant in variants]
    assert sum(counts) == 60
    assert min(counts) >= 5, counts


def fails(image, mask):
    raise ZeroDivisionError("their own mistake")


def test_a_users_own_mistake_comes_with_its_traceback():
    with pytest.raises(ZeroDivisionError, match="their own mistake"):
        list(loader(own=fails).epoch(0))


# Faults


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_of_different_sizes_need_a_patch(workers):
    mixed = Pictures(8, sizes=((20, 24), (24, 20)))
    with pytest.raises(KirieError, match=r"\(3, 20, 24\).*train\.patch.*train\.batch_size to 1") as told:
        list(loader(mixed, size=None, workers=workers).epoch(0))
    assert "Traceback" not in str(told.value)
    assert len(list(loader(mixed, size=(16, 16)).epoch(0))) == 2
    assert len(list(loader(mixed, size=None, batch_size=1).epoch(0))) == 8


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_picture_is_told_in_a_sentence(workers):
    with pytest.raises(KirieError) as told:
        list(loader(Pictures(8, bad=(3,)), workers=workers).epoch(0))
    assert str(told.value) == "3.png is cut short."


def killed(image, mask):
    if torch.utils.data.get_worker_info() is not None:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    return {"image": image, "mask": mask}


def test_a_killed_worker_is_told():
    with pytest.raises(KirieError, match=r"killed, most often for want of memory.*train\.workers"):
        list(loader(own=killed, workers=1).epoch(0))


def test_more_workers_than_batches_and_cores_are_fine(recwarn):
    each = loader(Pictures(8), workers=64)
    assert facts(each.epoch(0)) == facts(loader(Pictures(8)).epoch(0))
    assert not recwarn.list
