import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage import measure, morphology
from skimage.segmentation import watershed
from tiny import colour_unet, run_cli

import kirie
from kirie.classes import Classes
from kirie.cleanup import CleanupSettings, RegionRules, apart, clean, cleaned, objects, thresholded
from kirie.errors import KirieError
from kirie.models.file import load, save
from kirie.models.parts.region_objects import RegionObjects, as_task
from kirie.models.unet import UNet
from kirie.prediction.predictor import Predictor
from kirie.results import SemanticMap

CLASSES = Classes(("background", "cell", "debris"))


def blobs(seed=0, size=(90, 120), share=0.45):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random(size), 1.2)
    return noise > np.quantile(noise, 1 - share)


def disk(center, radius, size=(60, 100)):
    y, x = np.ogrid[: size[0], : size[1]]
    return (y - center[0]) ** 2 + (x - center[1]) ** 2 <= radius**2


def semantic(mask, classes=CLASSES, label=1, scores=None):
    return SemanticMap(mask.astype(np.uint8) * label, classes, scores)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("radius", [1, 2, 4])
def test_opening_and_closing_are_scikit_images(seed, radius):
    mask = blobs(seed)
    # Theirs knows nothing beyond the picture's edge, so it is compared where nothing beyond reaches.
    inner = np.s_[2 * radius : -2 * radius, 2 * radius : -2 * radius]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = morphology.binary_opening(mask, morphology.disk(radius))
        closed = morphology.binary_closing(mask, morphology.disk(radius))
    np.testing.assert_array_equal(cleaned(mask, RegionRules(opening=radius))[inner], opened[inner])
    np.testing.assert_array_equal(cleaned(mask, RegionRules(closing=radius))[inner], closed[inner])


def test_what_reaches_the_picture_s_edge_stays_there():
    mask = np.zeros((20, 20), bool)
    mask[:6, 5:15] = True
    assert cleaned(mask, RegionRules(opening=2))[0, 7:13].all()
    assert not cleaned(mask, RegionRules(closing=2))[0, :4].any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [2, 9, 40])
def test_small_regions_and_holes_are_scikit_images(seed, size):
    mask = blobs(seed)
    regions = measure.label(mask, connectivity=2)
    large = mask & (np.bincount(regions.ravel()) >= size)[regions]
    np.testing.assert_array_equal(cleaned(mask, RegionRules(smallest=size)), large)
    expected = mask.copy()
    for hole in measure.regionprops(measure.label(~mask, connectivity=1)):
        top, left, bottom, right = hole.bbox
        if hole.area <= size and top > 0 and left > 0 and bottom < mask.shape[0] and right < mask.shape[1]:
            expected[tuple(hole.coords.T)] = True
    np.testing.assert_array_equal(cleaned(mask, RegionRules(fill_holes=size)), expected)


def test_the_largest_regions_are_kept():
    mask = blobs(3)
    areas = sorted((region.area for region in measure.regionprops(measure.label(mask, connectivity=2))), reverse=True)
    for count in (1, 3, 1000):
        kept = measure.regionprops(measure.label(cleaned(mask, RegionRules(keep=count)), connectivity=2))
        assert sorted((region.area for region in kept), reverse=True) == areas[:count]
    assert not cleaned(np.zeros((5, 5), bool), RegionRules(keep=2, smallest=3, fill_holes=9, opening=1)).any()


def test_each_class_has_its_rules_and_takes_no_pixel_of_another():
    labels = np.zeros((30, 30), np.uint8)
    labels[2:12, 2:12], labels[5:8, 5:8], labels[6, 6] = 1, 0, 2
    labels[20:22, 20:22], labels[15, 15], labels[28, 2:5] = 1, 1, 2
    given = SemanticMap(labels, CLASSES)
    settings = CleanupSettings(rules=RegionRules(smallest=3, fill_holes=8), classes={"debris": RegionRules()})
    after = clean(given, settings).labels
    assert after[15, 15] == 0 and after[20, 20] == 1 and (after[28, 2:5] == 2).all() and after[6, 6] == 2
    assert (after[5:8, 5:8] == [[1, 1, 1], [1, 2, 1], [1, 1, 1]]).sum() in (1, 9), "the hole has the debris in it"
    np.testing.assert_array_equal(given.labels, labels)
    assert clean(given, CleanupSettings()).labels is not given.labels
    np.testing.assert_array_equal(clean(given, CleanupSettings()).labels, labels)


def test_thresholds_choose_the_likeliest_foreground():
    scores = np.array([[[0.6, 0.2, 0.5]], [[0.3, 0.4, 0.25]], [[0.1, 0.4, 0.25]]], np.float32)
    result = SemanticMap(scores.argmax(0).astype(np.uint8), CLASSES, scores)
    assert result.labels.tolist() == [[0, 1, 0]]
    assert thresholded(result, 0.35).tolist() == [[1, 1, 1]]
    assert thresholded(result, 0.5).tolist() == [[0, 1, 1]]
    assert clean(result, CleanupSettings(threshold=0.9)).labels.tolist() == [[0, 0, 0]]
    with pytest.raises(KirieError, match="needs the probabilities"):
        clean(SemanticMap(result.labels, CLASSES), CleanupSettings(threshold=0.5))


def test_two_discs_that_touch_are_two_objects():
    both = disk((30, 35), 15) | disk((30, 60), 15)  # a neck of 0.55 of their width
    assert apart(both, 0).max() == apart(both, 0.5).max() == 1
    ids = apart(both, 0.7)
    assert np.bincount(ids.ravel())[1:].tolist() == [both.sum() / 2] * 2
    assert (ids[both] > 0).all() and not ids[~both].any() and ids[30, 30] != ids[30, 65]
    # Beside scikit-image's watershed from the two centres, all but the pixels of the divide agree.
    markers = np.zeros(both.shape, int)
    markers[30, 35], markers[30, 60] = ids[30, 35], ids[30, 60]
    theirs = watershed(-ndimage.distance_transform_edt(both), markers, mask=both)
    assert (theirs != ids).sum() <= 2 * 20


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_chain_of_discs(count):
    chain = np.zeros((60, 200), bool)
    for index in range(count):
        chain |= disk((30, 15 + 24 * index), 14, chain.shape)
    ids = apart(chain, 0.8)
    assert ids.max() == count and min(np.bincount(ids.ravel())[1:]) > 0.7 * disk((30, 30), 14).sum()


def test_numbers_are_consecutive_and_cover_the_mask():
    for seed in range(5):
        mask = blobs(seed)
        for neck in (0, 0.5, 0.9):
            ids = apart(mask, neck)
            assert np.array_equal(ids > 0, mask) and np.array_equal(np.unique(ids), np.arange(ids.max() + 1))
            regions = measure.label(mask, connectivity=2)
            assert len(np.unique(np.stack([ids[mask], regions[mask]]), axis=1).T) == ids.max(), (
                "no object in two regions"
            )
            if neck == 0:
                assert ids.max() == regions.max()
    assert apart(np.ones((4, 5), bool), 0.9).max() == 1 and apart(np.zeros((4, 5), bool), 0.9).max() == 0


def test_a_bridge_that_no_disk_passes_is_cut():
    both = disk((30, 30), 14) | disk((30, 66), 14)
    both[28:33, 40:60] = True  # a bridge of five rows
    speck = np.zeros_like(both)
    speck[2:4, 2:4] = True  # too small for any disk, and still an object
    mask = both | speck
    assert apart(mask, 0, 2).max() == 2, "a disk of radius 2 passes"
    ids = apart(mask, 0, 3)
    assert np.array_equal(ids > 0, mask) and ids.max() == 3 and (ids[speck] == ids[2, 2]).all()
    left, right = (ids[both] == ids[30, 30]).sum(), (ids[both] == ids[30, 66]).sum()
    assert left + right == both.sum() and abs(left - right) <= 12, "each half gets its half of the bridge"


def test_cuts_cover_the_mask_too():
    for seed in range(5):
        mask = blobs(seed)
        regions = measure.label(mask, connectivity=2)
        for cut, neck in ((1, 0), (2, 0.85), (4, 0.85)):
            ids = apart(mask, neck, cut)
            assert np.array_equal(ids > 0, mask) and np.array_equal(np.unique(ids), np.arange(ids.max() + 1))
            assert len(np.unique(np.stack([ids[mask], regions[mask]]), axis=1).T) == ids.max() >= regions.max()
    thread = disk((30, 20), 12, (60, 300))
    thread[30, 20:290] = True  # longer than growth goes on
    assert (apart(thread, 0, 2) == thread).all()
    assert not apart(np.zeros((4, 5), bool), 0.9, 2).any() and apart(np.ones((4, 5), bool), 0.9, 2).all()


def test_objects_have_classes_and_mean_probabilities():
    labels = np.zeros((20, 30), np.uint8)
    labels[2:6, 2:6], labels[10:14, 20:26], labels[15:18, 3:6] = 1, 2, 1
    scores = np.zeros((3, 20, 30), np.float32)
    scores[0] = 1
    for (rows, columns), label, chance in (
        ((slice(2, 6), slice(2, 6)), 1, 0.75),
        ((slice(10, 14), slice(20, 26)), 2, 0.5),
        ((slice(15, 18), slice(3, 6)), 1, 1.0),
    ):
        scores[:, rows, columns] = 0
        scores[label, rows, columns], scores[0, rows, columns] = chance, 1 - chance
    found = objects(SemanticMap(labels, CLASSES, scores), CleanupSettings())
    assert found.labels.tolist() == [0, 0, 1] and found.classes.names == ("cell", "debris")
    np.testing.assert_allclose(found.scores, [0.75, 1, 0.5])
    np.testing.assert_array_equal(found.boxes, [[2, 2, 6, 6], [3, 15, 6, 18], [20, 10, 26, 14]])
    assert objects(SemanticMap(labels, CLASSES), CleanupSettings()).scores.tolist() == [1, 1, 1]
    assert len(objects(SemanticMap(np.zeros((5, 5), np.uint8), CLASSES), CleanupSettings())) == 0


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: RegionRules(smallest=-1), "smallest is a whole number"),
        (lambda: RegionRules(opening=1.5), "opening is a whole number"),
        (lambda: RegionRules(closing=10**6), "closing is a whole number"),
        (lambda: RegionRules(keep=True), "keep is a whole number"),
        (lambda: CleanupSettings(threshold=1.0), "threshold is a number between"),
        (lambda: CleanupSettings(threshold=float("nan")), "threshold is a number between"),
        (lambda: CleanupSettings(neck=1.0), "neck is a number"),
        (lambda: CleanupSettings(cut=2.0), "cut is a whole number"),
        (lambda: CleanupSettings.from_dict({"treshold": 0.5}), "has the entries"),
        (lambda: CleanupSettings.from_dict([]), "has the entries"),
        (lambda: CleanupSettings.from_dict({"rules": {"small": 3}}), "rules of a clean-up have"),
        (lambda: CleanupSettings.from_dict({"classes": 3}), "by the names of classes"),
        (lambda: clean(semantic(blobs()), CleanupSettings(classes={"cel": RegionRules()})), "'cel'"),
        (lambda: clean(semantic(blobs(), Classes(("a", "b"))), CleanupSettings()), "first class is called"),
        (lambda: objects(semantic(blobs(), Classes(("a", "b"))), CleanupSettings()), "first class is called"),
    ],
)
def test_what_makes_no_sense_is_told(make, told):
    with pytest.raises(KirieError, match=told):
        make()


SETTINGS = CleanupSettings(threshold=0.4, rules=RegionRules(smallest=5), classes={"debris": RegionRules(keep=2)})


def test_settings_survive_json():
    assert CleanupSettings.from_dict(json.loads(json.dumps(SETTINGS.to_dict()))) == SETTINGS
    assert SETTINGS.words() == {"threshold": 0.4, "smallest": 5, "debris: keep": 2}
    assert CleanupSettings().words() == {}


def test_the_model_file_keeps_them_and_predictors_follow(tmp_path):
    model = colour_unet(CLASSES)
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[..., 0] = 200
    picture[10:30, 10:30], picture[5, 50], picture[35, 40:42] = (0, 250, 0), (0, 250, 0), (0, 0, 250)
    plain = Predictor(model, device="cpu")([picture])[0]
    assert plain.labels[5, 50] == 1
    model.cleanup = CleanupSettings(rules=RegionRules(smallest=3))
    path = save(model, tmp_path / "m.safetensors")
    read = load(path)
    assert (
        read.cleanup == model.cleanup and load(save(colour_unet(CLASSES), tmp_path / "n.safetensors")).cleanup is None
    )
    after = Predictor(read, device="cpu")([picture])[0]
    assert after.labels[5, 50] == after.labels[35, 40] == 0 and after.labels[20, 20] == 1 and after.scores is None
    read.cleanup = CleanupSettings(threshold=0.999999, rules=RegionRules(smallest=3))
    strict = Predictor(read, device="cpu", scores=True)([picture])[0]
    assert not strict.labels.any() and strict.scores is not None


def test_a_semantic_model_counts(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = colour_unet(CLASSES)
    picture = np.zeros((60, 100, 3), np.uint8)
    picture[..., 0] = 200
    picture[disk((30, 35), 15) | disk((30, 60), 15)] = (0, 250, 0)
    picture[3, 3] = (0, 0, 250)
    model.cleanup = CleanupSettings(rules=RegionRules(smallest=3))
    counter = as_task(model, "instance")
    assert (
        isinstance(counter, RegionObjects) and as_task(model, None) is model and as_task(counter, "instance") is counter
    )
    (found,) = Predictor(counter, device="cpu")([picture])
    assert found.labels.tolist() == [0, 0] and found.masks.areas().sum() == (picture[..., 1] > 0).sum()
    assert len(kirie.predict(counter, picture, device="cpu", max_detections=1)) == 1

    save(model, "m.safetensors")
    Image.fromarray(picture).save("a.png")
    words = ("predict", "m.safetensors", "a.png", "--out", "cut", "--device", "cpu")
    assert run_cli(capsys, *words, "--task", "instance", "--save", "csv")[0] == 0
    assert len((tmp_path / "cut" / "objects.csv").read_text().splitlines()) == 3
    assert run_cli(capsys, *words, "--task", "instance", "--save", "csv", "--no-cleanup")[0] == 0
    assert len((tmp_path / "cut" / "objects.csv").read_text().splitlines()) == 4
    code, _, err = run_cli(capsys, *words, "--task", "panoptic")
    assert code == 1 and "gives no results for task 'panoptic'" in err


def test_objects_of_regions_cannot_be_trained_or_exported():
    counter = RegionObjects(UNet(3, 2, width=4, depth=1))
    raw = counter(torch.rand(1, 3, 8, 8))
    for call in (
        lambda: counter.loss(raw, []),
        lambda: counter.choose(raw, torch.tensor([8, 8])),
        lambda: counter.maps(raw, ()),
        lambda: counter.cut(None, None, (8, 8), (8, 8)),
    ):
        with pytest.raises(KirieError, match="train and export the model itself"):
            call()
    with pytest.raises(KirieError, match="semantic"):
        RegionObjects(counter)
    with pytest.raises(KirieError, match="background"):
        RegionObjects(UNet(3, Classes(("a", "b")), width=4, depth=1))
