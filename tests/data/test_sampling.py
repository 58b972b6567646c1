import os
from collections import Counter

import numpy as np
import pytest

from kirie.classes import Classes
from kirie.data import open_dataset, sampling
from kirie.data.augment import PRESETS, AugmentSettings, augment, draw_geometry
from kirie.data.batch import AugmentedSamples, BatchPlan, Draw, TrainingLoader
from kirie.data.dataset import Sample
from kirie.data.listed import SampleList
from kirie.data.sampling import (
    ANYWHERE,
    FOREGROUND,
    Sampling,
    SamplingSettings,
    class_counts,
    find_anchor,
    foreground_of,
    repeat_factors,
)
from kirie.demo import make_demo
from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.results import Instances, PanopticMap, Segment, SemanticMap

CLASSES = Classes(("background", "cell", "rare"))
STRONG = AugmentSettings(
    flip_horizontal=0.5, flip_vertical=0.5, rotate90=0.7, shift_scale_rotate=1, shift=0.2, scale=0.4, rotate=180
)


def counts(*rows):
    return np.array(rows, np.int64)


def made(rows, foreground=(1, 2), **settings):
    return Sampling(SamplingSettings(**settings), counts(*rows), foreground)


def drawn(sampling, draws, seed=0):
    return list(sampling.order(draws, np.random.default_rng(seed)))


def spot(size=(60, 90), place=(17, 71), label=1):
    labels = np.zeros(size, np.uint8)
    labels[place] = label
    return SemanticMap(labels, CLASSES)


def samples(truths):
    return [Sample(np.zeros((*truth.size, 3), np.uint8), truth, f"{i}") for i, truth in enumerate(truths)]


def test_repeat_factors_are_those_of_lvis():
    # f = 1, 1/4 and 1/2 of four pictures; with t = 1/2: max(1, sqrt(t / f)) = 1, sqrt(2), 1
    there = counts([9, 2, 0], [9, 0, 0], [9, 0, 5], [9, 0, 5])
    np.testing.assert_allclose(repeat_factors(there, 0.5), [2**0.5, 1, 1, 1])
    np.testing.assert_allclose(repeat_factors(there, 0.98), [1.98, 1.0, 1.4, 1.4], atol=0.01)
    np.testing.assert_allclose(repeat_factors(there, 0), 1)
    np.testing.assert_allclose(repeat_factors(np.zeros((3, 0), np.int64), 0.5), 1)


def test_rare_pictures_are_repeated_as_often_as_their_factor_says():
    rows = [[1, 1, 0]] + [[1, 0, 0]] * 9
    found = Counter(index for index, _ in drawn(made(rows, repeat_threshold=0.4), 5000))
    assert found[0] / np.mean([found[i] for i in range(1, 10)]) == pytest.approx(2, rel=0.1)  # sqrt(0.4 / 0.1)


def test_without_settings_each_picture_is_drawn_alike():
    assert sorted(index for index, _ in drawn(made([[1, 1, 1]] * 7), 14)) == sorted([*range(7)] * 2)


def test_shares_of_patches():
    rows = [[100, 10, 0], [100, 0, 0], [100, 0, 1], [100, 30, 0]]
    found = drawn(made(rows, positive_ratio=0.25, rare_ratio=0.5), 4000)
    focus = Counter(focus for _, focus in found)
    assert focus[FOREGROUND] == 1000 and focus[1] + focus[2] == 2000 and focus[ANYWHERE] == 1000
    # 40 and 1 pixels: 1 / sqrt(40) to 1
    assert focus[2] / focus[1] == pytest.approx(40**0.5, rel=0.15)
    assert {index for index, focus in found if focus == 2} == {2}
    assert {index for index, focus in found if focus == 1} == {0, 3}
    assert {index for index, focus in found if focus == FOREGROUND} == {0, 2, 3}


def test_hard_pictures_are_drawn_by_their_running_loss():
    hard = made([[1, 1, 1]] * 4, hard_ratio=0.5)
    assert sorted(Counter(i for i, _ in drawn(hard, 400)).values()) == [100] * 4, "nothing is known yet"
    for loss in (1.0, 3.0):
        hard.note((0, 1), loss)
    hard.note((2, 2), 8.0)
    assert np.isnan(hard.losses).all() and sorted(Counter(i for i, _ in drawn(hard, 400)).values()) == [100] * 4
    hard.close_epoch()
    np.testing.assert_array_equal(hard.losses, [2, 2, 8, np.nan])
    found = Counter(i for i, _ in drawn(hard, 4000))
    expected = np.array([2, 2, 8, 4]) / 16 * 2000 + 500  # the mean where nothing is known
    np.testing.assert_allclose([found[i] for i in range(4)], expected, rtol=0.1)
    hard.note((0,), 4.0)
    hard.close_epoch()
    assert hard.losses[0] == 3 and hard.losses[2] == 8

    other = made([[1, 1, 1]] * 4, hard_ratio=0.5)
    other.restore({name: values.copy() for name, values in hard.state().items()})
    assert drawn(other, 50, 3) == drawn(hard, 50, 3)
    with pytest.raises(ValueError):
        made([[1, 1, 1]] * 5, hard_ratio=0.5).restore(hard.state())


def test_no_foreground_at_all_is_told():
    for settings in ({"positive_ratio": 0.1}, {"rare_ratio": 0.1}):
        with pytest.raises(KirieError, match="no picture has any"):
            made([[5, 0, 0], [4, 0, 0]], **settings)


def test_a_plan_without_sampling_is_what_it_was():
    rng = np.random.default_rng([3, 2])
    order = np.concatenate([rng.permutation(5) for _ in range(2)])
    plan = BatchPlan(5, 4, 2, 3)
    assert [draw.sample for batch in plan.batches(2) for draw in batch] == order.tolist()
    assert {draw.focus for batch in plan.batches(2) for draw in batch} == {ANYWHERE}


def test_a_plan_with_sampling_is_seeded():
    plans = [BatchPlan(3, 4, 10, seed, made([[9, 1, 0]] * 3, positive_ratio=0.5)) for seed in (0, 0, 1)]
    assert plans[0].batches(1) == plans[1].batches(1) != plans[2].batches(1)
    assert plans[0].batches(1) != plans[0].batches(2)
    focused = [draw for batch in plans[0].batches(1) for draw in batch if draw.focus == FOREGROUND]
    assert len(focused) == 15 and len({draw.place for draw in focused}) == 15


@pytest.mark.parametrize("settings", [AugmentSettings(), STRONG, PRESETS["light"]], ids=["none", "strong", "light"])
@pytest.mark.parametrize("size", [(16, 24), (64, 40), (100, 200), None])
def test_an_anchor_lies_in_the_patch(settings, size):
    for seed in range(60):
        rng = np.random.default_rng(seed)
        anchor = (int(rng.integers(60)), int(rng.integers(90)))
        geometry = draw_geometry(settings, (60, 90), size, rng, anchor)
        x, y, _ = np.linalg.solve(geometry.matrix, (anchor[1], anchor[0], 1))
        assert -0.501 <= y <= geometry.size[0] - 0.499 and -0.501 <= x <= geometry.size[1] - 0.499


def test_an_anchor_lies_anywhere_in_the_patch():
    seen = []
    for seed in range(2000):
        geometry = draw_geometry(AugmentSettings(), (90, 90), (16, 16), np.random.default_rng(seed), (45, 45))
        x, y, _ = np.linalg.solve(geometry.matrix, (45, 45, 1))
        seen.append((round(y), round(x)))
    for axis in np.array(seen).T:
        assert (np.bincount(axis, minlength=16) > 60).all(), "of 125 expected"


def test_a_patch_shows_what_it_was_placed_on():
    truth, dataset = spot(), SampleList({"train": samples([spot()])})
    patches = AugmentedSamples(dataset, AugmentSettings(rotate90=0.7, flip_horizontal=0.5), (8, 8))
    with_focus = [patches[Draw(0, 0, place, FOREGROUND)][1].labels.any() for place in range(100)]
    without = [patches[Draw(0, 0, place)][1].labels.any() for place in range(100)]
    assert all(with_focus) and np.mean(without) < 0.2
    image = np.zeros((*truth.size, 3), np.uint8)
    assert augment(image, truth, AugmentSettings(), np.random.default_rng(0), (8, 8), (17, 71))[1].labels.any()


def test_anchors_are_drawn_alike_from_what_is_wanted():
    rng = np.random.default_rng(0)
    labels = np.zeros((4, 6), np.uint8)
    labels[0, 1], labels[3, 5], labels[2, :3], labels[1, 1] = 1, 1, 2, CLASSES.void
    truth = SemanticMap(labels, CLASSES)
    ones = Counter(find_anchor(truth, 1, rng) for _ in range(200))
    assert set(ones) == {(0, 1), (3, 5)} and min(ones.values()) > 60
    assert {find_anchor(truth, FOREGROUND, rng) for _ in range(200)} == {(0, 1), (3, 5), (2, 0), (2, 1), (2, 2)}
    assert find_anchor(spot(label=0), FOREGROUND, rng) is None and find_anchor(spot(), 2, rng) is None


def test_anchors_in_objects_and_segments():
    rng = np.random.default_rng(0)
    masks = np.zeros((3, 6, 8), bool)
    masks[0, :3, :3], masks[1, 5, 7], masks[2, 3, 4] = True, True, True
    classes = Classes(("a", "b"))
    objects = Instances.from_masks(Masks.from_dense(masks), [0, 1, 0], classes)
    found = Counter(find_anchor(objects, FOREGROUND, rng) for _ in range(300))
    assert found[5, 7] > 60 and found[3, 4] > 60 and sum(found[y, x] for y in range(3) for x in range(3)) > 60
    assert {find_anchor(objects, 1, rng) for _ in range(20)} == {(5, 7)}
    assert find_anchor(Instances.from_masks(Masks((6, 8)), [], classes), FOREGROUND, rng) is None

    joint = Classes(("thing", "stuff"), things=(True, False))
    ids = np.full((6, 8), 2, np.int32)
    ids[5, 7] = 1
    segments = (Segment(1, 0, True, 1.0, 1), Segment(2, 1, False, 1.0, 47))
    panoptic = PanopticMap(ids, segments, joint)
    assert {find_anchor(panoptic, FOREGROUND, rng) for _ in range(20)} == {(5, 7)}
    assert find_anchor(panoptic, 1, rng) != (5, 7)


@pytest.mark.parametrize(("task", "foreground"), [("semantic", (0, 1, 2, 3)), ("instance", (0,)), ("panoptic", (3,))])
def test_classes_are_counted_once(tmp_path, monkeypatch, task, foreground):
    monkeypatch.setenv("KIRIE_CACHE", str(tmp_path / "cache"))
    folder = make_demo(tmp_path / "coins", pictures=6, size=(64, 80))
    dataset = open_dataset(folder, "train", task=task)
    assert foreground_of(dataset) == foreground
    found = class_counts(dataset)
    for row, index in zip(found, range(len(dataset)), strict=True):
        truth = dataset[index].truth
        if task == "semantic":
            assert row.tolist() == [(truth.labels == label).sum() for label in range(4)]
        elif task == "instance":
            assert row.tolist() == [len(truth)]
        else:
            areas = [sum(s.area for s in truth.segments if s.label == label) for label in range(4)]
            assert row.tolist() == areas
    assert found.sum() > 0

    def never(truth):
        raise AssertionError("counted again")

    with monkeypatch.context() as patched:
        patched.setattr(sampling, "_counted", never)
        np.testing.assert_array_equal(class_counts(dataset), found)
        (file,) = (tmp_path / "cache").iterdir()
        mask = next(name for role, name in dataset.file_facts(0).items() if role != "image")
        os.utime(mask, ns=(1, 1))
        with pytest.raises(AssertionError):
            class_counts(dataset)
    file.write_bytes(b"damaged")
    np.testing.assert_array_equal(class_counts(dataset), found)
    monkeypatch.setenv("KIRIE_CACHE", "/proc/nowhere")
    np.testing.assert_array_equal(class_counts(dataset), found)


def test_a_folder_of_masks_is_known_by_the_files_in_it(tmp_path):
    mask = tmp_path / "masks" / "a.png"
    mask.parent.mkdir()
    mask.write_bytes(b"1")
    before = sampling._stamp(str(mask.parent))
    facts = mask.parent.stat()
    os.utime(mask, ns=(1, 1))
    os.utime(mask.parent, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert sampling._stamp(str(mask.parent)) != before


def test_samples_at_hand_are_counted_each_time():
    dataset = SampleList({"train": samples([spot(), spot(label=2)])})
    assert class_counts(dataset).tolist() == [[5399, 1, 0], [5399, 0, 1]]


def test_batches_tell_which_samples_they_hold():
    dataset = SampleList({"train": samples([spot() for _ in range(5)])})
    loader = TrainingLoader(AugmentedSamples(dataset, AugmentSettings(), (8, 8)), BatchPlan(5, 2, 2))
    for skip in (0, 2):
        for batch in loader.epoch(1, skip=skip):
            assert [str(sample) for sample in batch.samples] == batch.names
