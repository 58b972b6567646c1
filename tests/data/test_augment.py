import itertools
from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy import ndimage
from skimage import transform

from kirie.classes import Classes
from kirie.data import light
from kirie.data.augment import (
    PRESETS,
    PROBABILITIES,
    AugmentSettings,
    apply_callable,
    augment,
    draw_geometry,
    follow,
)
from kirie.data.geometry import Geometry, Window, cropping, cut, elastic_bend, flipping, moving, turning
from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.results import Instances, PanopticMap, Segment, SemanticMap

CLASSES = Classes(tuple("abcdefgh"))
EVERYTHING = AugmentSettings(**dict.fromkeys(PROBABILITIES, 1.0))
IDENTITY = np.eye(3)


def blobs(height, width, seed=0, count=6):
    """An id map with smooth regions 0..count, 0 being background."""
    noise = np.random.default_rng(seed).standard_normal((height, width))
    smooth = ndimage.gaussian_filter(noise, max(1.0, min(height, width) / 12))
    return np.digitize(smooth, np.quantile(smooth, np.linspace(0, 1, count + 2)[1:-1])).astype(np.int32)


def semantic(ids):
    labels = ids.astype(np.uint8)
    labels[ids == 3] = CLASSES.void
    return SemanticMap(labels, CLASSES)


def instances(ids):
    masks = Masks.from_ids(ids)
    labels = [(int(i) * 3) % 8 for i in np.unique(ids) if i]
    return Instances.from_masks(masks, labels, CLASSES, np.linspace(0.5, 1, len(masks)))


def panoptic(ids, factor=7):
    ids = (ids * factor).astype(np.int32)
    segments = tuple(
        Segment(int(i), index % 8, index % 2 == 0, 1.0, int((ids == i).sum()))
        for index, i in enumerate(np.unique(ids))
        if i
    )
    return PanopticMap(ids, segments, CLASSES)


TRUTHS = {"semantic": semantic, "instances": instances, "panoptic": panoptic}


def as_map(truth):
    if isinstance(truth, SemanticMap):
        return truth.labels
    return truth.masks.id_map() if isinstance(truth, Instances) else truth.ids


def picture(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("kind", TRUTHS)
def test_without_steps_nothing_changes_and_nothing_is_shared(kind):
    image, truth = picture(21, 34), TRUTHS[kind](blobs(21, 34))
    new_image, new = augment(image, truth, PRESETS["none"], np.random.default_rng(0))
    assert np.array_equal(new_image, image) and not np.shares_memory(new_image, image)
    assert np.array_equal(as_map(new), as_map(truth)) and not np.shares_memory(as_map(new), as_map(truth))
    if kind == "instances":
        assert np.array_equal(new.labels, truth.labels) and np.array_equal(new.scores, truth.scores)
    if kind == "panoptic":
        assert new.segments == truth.segments


@pytest.mark.parametrize(
    ("turns", "horizontal", "vertical"), list(itertools.product(range(4), (False, True), (False, True)))
)
@pytest.mark.parametrize("kind", TRUTHS)
def test_turns_and_flips_equal_numpy(turns, horizontal, vertical, kind):
    size = (23, 14)

    def expected(array):
        array = np.rot90(array, turns)
        array = array[:, ::-1] if horizontal else array
        return array[::-1] if vertical else array

    turned = size if turns % 2 == 0 else size[::-1]
    geometry = Geometry(turned, turning(turns, size) @ flipping(horizontal, vertical, turned))
    assert geometry.exact
    image, truth = picture(*size, channels=4), TRUTHS[kind](blobs(*size))
    assert np.array_equal(geometry.warp_image(image, True), expected(image))
    assert np.array_equal(as_map(follow(truth, geometry)), expected(as_map(truth)))


def test_certain_flips_are_exact_through_augment():
    image, truth = picture(9, 12), semantic(blobs(9, 12))
    settings = AugmentSettings(flip_horizontal=1, flip_vertical=1)
    new_image, new = augment(image, truth, settings, np.random.default_rng(3))
    assert np.array_equal(new_image, image[::-1, ::-1]) and np.array_equal(new.labels, truth.labels[::-1, ::-1])


def test_rotate90_keeps_the_size_and_draws_every_turn_of_a_square():
    settings, rng = AugmentSettings(rotate90=1), np.random.default_rng(0)
    image = picture(8, 8)
    turned = [np.rot90(image, turns) for turns in (1, 2, 3)]
    drawn = [augment(image, None, settings, rng)[0] for _ in range(40)]
    found = [[np.array_equal(each, turn) for turn in turned] for each in drawn]
    assert (np.sum(found, 1) == 1).all() and np.sum(found, 0).min() > 3
    oblong = picture(8, 5)
    assert np.array_equal(augment(oblong, None, settings, rng)[0], np.rot90(oblong, 2))


def test_a_patch_is_a_slice_and_every_place_is_drawn():
    image = np.arange(6 * 7, dtype=np.uint8).reshape(6, 7, 1)
    truth, rng, seen = SemanticMap(image[..., 0] % 8, CLASSES), np.random.default_rng(0), set()
    for _ in range(200):
        patch, new = augment(image, truth, PRESETS["none"], rng, (4, 5))
        top, left = divmod(int(patch[0, 0, 0]), 7)
        seen.add((top, left))
        assert np.array_equal(patch, image[top : top + 4, left : left + 5])
        assert np.array_equal(new.labels, truth.labels[top : top + 4, left : left + 5])
    assert seen == set(itertools.product(range(3), range(3)))


def test_a_small_picture_is_padded_evenly():
    image, ids, rng = picture(5, 8), blobs(5, 8), np.random.default_rng(0)
    pad = ((4, 4), (12, 12))
    patch, new = augment(image, semantic(ids), PRESETS["none"], rng, (13, 32))
    assert np.array_equal(patch, np.pad(image, (*pad, (0, 0)), mode="reflect"))
    assert np.array_equal(new.labels, np.pad(semantic(ids).labels, pad, mode="reflect"))
    for make in (instances, panoptic):
        patch, new = augment(image, make(ids), PRESETS["none"], rng, (13, 32))
        assert np.array_equal(patch[4:9, 12:20], image)
        assert np.array_equal(as_map(new), np.pad(as_map(make(ids)), pad))
        assert np.array_equal(np.unique(patch[0].reshape(-1, 3), axis=0), [np.rint(image.mean((0, 1)))])


@pytest.mark.parametrize("height", [1, 2, 5])
@pytest.mark.parametrize("place", [-23, -7, -1, 0, 2, 4, 9, 30])
def test_cut_equals_numpy_pad_wherever_the_window_lies(height, place):
    image = picture(height, 4, channels=1)
    window = Window(place, -6, place + 6, 11)
    for fill, arguments in ((None, {"mode": "reflect"}), ((7.0,), {"constant_values": 7})):
        padded = np.pad(image, ((40, 40), (40, 40), (0, 0)), **arguments)
        assert np.array_equal(cut(image, window, fill), padded[40 + place : 46 + place, 34:51])


@pytest.mark.parametrize("degrees", [0.0, 30.0, -75.0])
def test_moving_rotates_about_the_centre_then_shifts(degrees):
    # OpenCV states the forward map of the same movement: about a centre, anticlockwise, then the shift.
    size, scale, shift = (61, 80), 1.2, (6.0, -4.0)
    forward = cv2.getRotationMatrix2D(((80 - 1) / 2, (61 - 1) / 2), degrees, scale)
    forward[:, 2] += shift
    matrix = moving(shift, scale, degrees, size)
    assert np.allclose(matrix @ np.vstack([forward, [0, 0, 1]]), IDENTITY)
    image = np.zeros((*size, 1), np.uint8)
    image[19:22, 49:52] = 255
    warped = Geometry(size, matrix).warp_image(image, False)[..., 0]
    y, x = ndimage.center_of_mass(warped)
    assert np.allclose((x, y), forward @ (50, 20, 1), atol=0.1)


def test_quarter_turn_by_moving_equals_rot90():
    image = picture(30, 30)
    warped = Geometry((30, 30), moving((0, 0), 1.0, 90.0, (30, 30))).warp_image(image, True)
    assert np.array_equal(warped, np.rot90(image))


def test_a_composed_affine_equals_scikit_image():
    image = cv2.GaussianBlur(picture(70, 90), (0, 0), 2)
    turned = (90, 70)
    matrix = turning(1, (70, 90)) @ flipping(True, False, turned) @ cropping(5, 8, (60, 50), (80, 66))
    matrix = matrix @ moving((3, -2), 1.1, 25, (80, 66))
    ours = Geometry((80, 66), matrix).warp_image(image, True)
    theirs = transform.warp(
        image, transform.AffineTransform(matrix), order=1, mode="reflect", output_shape=(80, 66), preserve_range=True
    )
    inside = transform.warp(np.ones((70, 90)), transform.AffineTransform(matrix), output_shape=(80, 66)) == 1
    assert inside.mean() > 0.5
    assert np.abs(ours[inside] - theirs[inside]).max() < 2  # OpenCV interpolates in steps of 1/32 pixel


def test_resized_crop_of_everything_equals_resize():
    image = cv2.GaussianBlur(picture(40, 60), (0, 0), 2)
    warped = Geometry((75, 110), cropping(0, 0, (40, 60), (75, 110))).warp_image(image, True)
    resized = cv2.resize(image, (110, 75), interpolation=cv2.INTER_LINEAR)
    assert np.abs(warped.astype(int) - resized)[3:-3, 3:-3].max() <= 2


def test_resized_crop_stays_inside_the_picture_and_shows_the_shares_asked_for():
    settings, rng = AugmentSettings(resized_crop=1, crop_scale=(0.2, 0.6)), np.random.default_rng(0)
    shares = []
    for _ in range(100):
        matrix = draw_geometry(settings, (300, 400), (64, 96), rng).matrix
        corners = matrix @ np.array([[-0.5, -0.5, 1], [95.5, 63.5, 1]]).T
        assert (corners[:2] >= -0.501).all() and (corners[:2, 1] <= [399.501, 299.501]).all()
        shares.append(matrix[0, 0] * 96 * matrix[1, 1] * 64 / (300 * 400))
    assert 0.19 < min(shares) < 0.3 and 0.5 < max(shares) < 0.61


def test_shrinking_averages_instead_of_aliasing():
    board = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)[:, :, None]
    matrix = cropping(0, 0, (512, 512), (60, 60)) @ moving((0, 0), 1.0, 20.0, (60, 60))
    small = Geometry((60, 60), matrix).warp_image(board, True)
    assert np.abs(small.astype(int) - 127).max() <= 2
    ramp = np.repeat(np.arange(0, 252, 3, dtype=np.uint8)[None, :, None], 84, 0)
    shrunk = Geometry((21, 21), cropping(0, 0, (84, 84), (21, 21))).warp_image(ramp, True)
    assert np.abs(shrunk[:, 1:-1, 0] - (np.arange(21) * 12 + 4.5)[1:-1]).max() <= 1  # the mean of four columns


def shown(geometry, size):
    """The source (y, x) that each output pixel shows."""
    return np.stack(np.divmod(geometry.warp_labels(np.arange(np.prod(size), dtype=np.int32).reshape(size), 0), size[1]))


def test_elastic_moves_by_the_strength_asked_for_and_does_not_fold():
    size, moves = (120, 160), []
    for seed in range(20):
        bend = elastic_bend(size, 3.0, 12.0, np.random.default_rng(seed))
        move = (shown(Geometry(size, IDENTITY, bend=bend), size) - np.indices(size))[:, 20:-20, 20:-20]
        moves.append(move)
        for axis in (0, 1):  # neighbours in the output never change order in the source
            assert np.diff(move[axis], axis=axis).min() >= -1
    assert np.std(moves) == pytest.approx(3.0, rel=0.1)
    assert abs(np.mean(moves)) < 0.5


def test_elastic_is_as_smooth_as_a_gaussian_filter_makes_it():
    # White noise under a Gaussian of deviation s is correlated as exp(-d^2 / 4 s^2) at distance d.
    size, smoothness, distance, products = (200, 200), 10.0, 15, []
    for seed in range(30):
        bend = elastic_bend(size, 8.0, smoothness, np.random.default_rng(seed))
        move = cv2.resize(bend, size[::-1], interpolation=cv2.INTER_CUBIC) / 8.0
        products.append(np.mean(move[:, distance:] * move[:, :-distance]))
    assert np.mean(products) == pytest.approx(np.exp(-(distance**2) / (4 * smoothness**2)), abs=0.06)


def test_grid_distortion_keeps_order_and_ends_and_is_bounded():
    settings = AugmentSettings(grid_distortion=1, grid_steps=4, grid_limit=0.3)
    size, steps = (100, 140), []
    for seed in range(20):
        y, x = shown(draw_geometry(settings, size, None, np.random.default_rng(seed)), size)
        assert (np.ptp(y, axis=1) == 0).all() and (np.ptp(x, axis=0) == 0).all()
        assert y[0, 0] <= 1 and x[0, 0] <= 1 and y[-1, -1] >= 98 and x[-1, -1] >= 138
        steps.append(np.diff(x[0].astype(float))[10:20].mean())
    assert 0.7 / 1.3 <= min(steps) and max(steps) <= 1.3 / 0.7 and np.std(steps) > 0.05


@pytest.mark.parametrize("size", [None, (96, 80)])
@pytest.mark.parametrize("kind", TRUTHS)
@pytest.mark.parametrize("preset", [*PRESETS, "everything"])
def test_picture_and_truth_stay_aligned(preset, kind, size):
    settings = EVERYTHING if preset == "everything" else PRESETS[preset]
    settings = replace(settings, brightness_contrast=0, gamma=0, hue=0, noise=0, blur=0)
    agree = []
    for seed in range(6):
        ids = blobs(130, 150, seed)
        truth = TRUTHS[kind](ids)
        colors = np.random.default_rng(9).permutation(256).astype(np.uint8)
        image = colors[as_map(truth)][:, :, None].repeat(3, 2)
        new_image, new = augment(image, truth, settings, np.random.default_rng(seed), size)
        assert new_image.shape[:2] == new.size == (size or (130, 150))
        answer = as_map(new)
        if kind == "instances":  # numbers of vanished instances move up: number them as before
            numbers = np.searchsorted(truth.scores, new.scores) + 1  # scores rise, so they name the instances
            answer = np.append(0, numbers)[answer]
        inside = cv2.erode(np.ones_like(answer, np.uint8), np.ones((3, 3)), borderValue=0) > 0
        inside &= ndimage.maximum_filter(answer, 5) == ndimage.minimum_filter(answer, 5)
        inside &= (answer != 0) | (kind == "semantic")  # outside the picture the image has a colour of its own
        agree.append(colors[answer[inside]] == new_image[inside][:, 0])
        assert np.isin(answer, np.append(as_map(truth), 0)).all()
    assert np.concatenate(agree).mean() > 0.99
    assert min(map(len, agree)) > 100 and np.mean([len(each) for each in agree]) > 500


@pytest.mark.parametrize("seed", range(6))
def test_each_instance_equals_its_dense_mask_warped_alone(seed):
    ids = blobs(90, 110, seed, count=12)
    dense = np.stack([ids == i for i in np.unique(ids) if i] + [(ids > 2) & (ids < 7)])  # the last overlaps others
    truth = Instances.from_masks(Masks.from_dense(dense), np.arange(13) % 8, CLASSES, np.linspace(0.1, 1, 13))
    geometry = draw_geometry(
        replace(EVERYTHING, crop_scale=(0.2, 0.4)), (90, 110), (70, 60), np.random.default_rng(seed)
    )
    new = follow(truth, geometry)
    warped = np.stack([geometry.warp_labels(mask.astype(np.uint8), 0) for mask in dense]).astype(bool)
    kept = warped.any((1, 2))
    assert np.array_equal(new.masks.dense(), warped[kept])
    assert np.array_equal(new.labels, truth.labels[kept]) and np.array_equal(new.scores, truth.scores[kept])
    for box, mask in zip(new.boxes, warped[kept], strict=True):
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    areas = np.bincount(geometry.warp_labels(ids, 0).ravel(), minlength=13)[1:]
    assert np.array_equal(areas[areas > 0], new.masks.areas()[: (areas > 0).sum()])


def test_many_small_instances_equal_their_id_map_warped():
    ids = (np.arange(90)[:, None] // 4 * 25 + np.arange(100) // 4 + 1).astype(np.int32)
    truth = Instances.from_masks(Masks.from_ids(ids), np.zeros(ids.max(), int), CLASSES, np.linspace(0, 1, ids.max()))
    for seed in range(4):
        geometry = draw_geometry(PRESETS["medical"], (90, 100), (140, 130), np.random.default_rng(seed))
        new = follow(truth, geometry)
        before = np.append(0, np.searchsorted(truth.scores, new.scores) + 1)
        assert np.array_equal(before[new.masks.id_map()], geometry.warp_labels(ids, 0))


def test_what_leaves_the_view_is_dropped():
    ids = np.zeros((20, 20), np.int32)
    ids[2:4, 2:4], ids[10:18, 10:18], ids[16:19, 2:5] = 1, 2, 3
    geometry = Geometry((12, 12), cropping(8, 8, (12, 12), (12, 12)))
    kept = follow(instances(ids), geometry)
    assert kept.labels.tolist() == [6] and kept.scores.tolist() == [0.75]
    assert kept.boxes.tolist() == [[2, 2, 10, 10]]
    segments = follow(panoptic(ids), geometry).segments
    assert [(segment.id, segment.area) for segment in segments] == [(14, 64)]
    nothing = follow(instances(ids), Geometry((4, 4), cropping(5, 5, (4, 4), (4, 4))))
    assert len(nothing) == 0 and nothing.boxes.shape == (0, 4) and nothing.size == (4, 4)


def test_large_ids_stay_exact():
    ids = blobs(40, 50)
    truth = panoptic(ids, factor=(2**31 - 1) // 6)
    new = augment(picture(40, 50), truth, replace(EVERYTHING, resized_crop=0), np.random.default_rng(0))[1]
    assert len(new.segments) > 3
    assert {s.id for s in new.segments} <= {s.id for s in truth.segments}


def test_the_same_seed_gives_the_same_and_global_state_is_untouched():
    image, truth = picture(50, 60), panoptic(blobs(50, 60))
    np.random.seed(1)
    cv2.setRNGSeed(1)
    first = augment(image, truth, EVERYTHING, np.random.default_rng(5))
    after = np.random.random()
    np.random.seed(2)
    cv2.setRNGSeed(2)
    second = augment(image, truth, EVERYTHING, np.random.default_rng(5))
    other = augment(image, truth, EVERYTHING, np.random.default_rng(6))
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1].ids, second[1].ids)
    assert not np.array_equal(first[0], other[0])
    np.random.seed(1)
    assert after == np.random.random()


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 1), (17, 31), (2, 2)])
@pytest.mark.parametrize("channels", [1, 3, 4, 5])
@pytest.mark.parametrize("kind", TRUTHS)
def test_any_size_and_channels(size, channels, kind):
    image, truth = picture(*size, channels), TRUTHS[kind](blobs(*size))
    copy = image.copy(), as_map(truth).copy()
    for seed, out in enumerate((None, (64, 48), (1, 7))):
        for settings in (EVERYTHING, PRESETS["medical"], PRESETS["none"]):
            new_image, new = augment(image, truth, settings, np.random.default_rng(seed), out)
            assert new_image.shape == (*(out or size), channels) and new_image.dtype == np.uint8
            assert new.size == (out or size)
    assert np.array_equal(image, copy[0]) and np.array_equal(as_map(truth), copy[1])


@pytest.mark.parametrize("channels", [2, 9, 600])  # 512 is the most that OpenCV holds at all
@pytest.mark.parametrize("size", [None, (64, 48), (9, 11)])
@pytest.mark.parametrize("kind", TRUTHS)
def test_each_of_many_channels_is_changed_as_if_alone(kind, size, channels):
    settings = replace(EVERYTHING, hue=0.0, noise=0.0, crop_scale=(0.9, 1.0))
    image, truth = picture(31, 26, channels), TRUTHS[kind](blobs(31, 26))
    # OpenCV looks up a lone channel by another road, which rounds otherwise.
    for steps, most in ((settings, 4), (AugmentSettings(flip_horizontal=1), 0)):
        together = augment(image, truth, steps, np.random.default_rng(3), size)[0]
        for channel in {0, 1, channels // 2, channels - 1}:
            alone = augment(image[..., [channel]], truth, steps, np.random.default_rng(3), size)[0]
            assert np.abs(together[..., [channel]].astype(int) - alone).max() <= most


def test_noise_is_drawn_for_each_of_many_channels_and_hue_for_none():
    image = np.full((60, 60, 7), 128, np.uint8)
    assert np.array_equal(augment(image, None, AugmentSettings(hue=1), np.random.default_rng(0))[0], image)
    noise = augment(image, None, AugmentSettings(noise=1), np.random.default_rng(0))[0] - 128.0
    related = np.corrcoef(noise.reshape(-1, 7).T) - np.eye(7)
    assert noise.std((0, 1)).min() > 0.5 and np.abs(related).max() < 0.1


def test_views_are_accepted():
    image, labels = picture(40, 50)[::-1, ::2, ::-1], blobs(40, 25).astype(np.uint8)[:, ::-1]
    truth = SemanticMap(labels, CLASSES)
    same = SemanticMap(labels.copy(), CLASSES)
    for settings in (EVERYTHING, PRESETS["none"]):
        ours = augment(image, truth, settings, np.random.default_rng(1), (30, 20))
        plain = augment(image.copy(), same, settings, np.random.default_rng(1), (30, 20))
        assert np.array_equal(ours[0], plain[0]) and np.array_equal(ours[1].labels, plain[1].labels)


def test_a_patch_of_a_picture_beyond_sixteen_bits():
    labels = np.repeat(np.arange(40000, dtype=np.int32)[None] // 5000, 8, 0)
    image = np.repeat((labels * 30).astype(np.uint8)[:, :, None], 3, 2)
    settings = AugmentSettings(shift_scale_rotate=1, rotate=5, elastic=1)
    for seed in range(5):
        patch, new = augment(image, SemanticMap(labels, CLASSES), settings, np.random.default_rng(seed), (32, 32))
        assert (patch[..., 0] == new.labels * 30).mean() > 0.9
    masks = Masks.from_dense(np.ones((1, 8, 40000), bool))
    whole = Instances.from_masks(masks, [0], CLASSES)
    assert len(augment(image, whole, settings, np.random.default_rng(0), (32, 32))[1]) == 1
    with pytest.raises(KirieError, match="patches"):
        augment(image, None, settings, np.random.default_rng(0))


def test_bad_input_is_told():
    rng = np.random.default_rng(0)
    with pytest.raises(KirieError, match="uint8"):
        augment(np.zeros((4, 4, 3), np.float32), None, PRESETS["none"], rng)
    with pytest.raises(KirieError, match=r"\(H, W, C\)"):
        augment(np.zeros((4, 4), np.uint8), None, PRESETS["none"], rng)
    with pytest.raises(KirieError, match="same"):
        augment(picture(4, 4), semantic(blobs(4, 5)), PRESETS["none"], rng)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("elastic", 1.5),
        ("flip_horizontal", -0.1),
        ("scale", 1.0),
        ("crop_ratio", (2.0, 1.0)),
        ("grid_steps", 0),
        ("crop_scale", (0.5, 1.5)),
        ("noise_std", -1.0),
        ("blur_sigma", (0.0, 1.0)),
        ("elastic_smoothness", 0.0),
    ],
)
def test_bad_settings_are_told(name, value):
    with pytest.raises(KirieError, match=name):
        AugmentSettings(**{name: value})


def test_tone_table_by_hand():
    assert np.array_equal(light.tone_table(0, 0, 1), np.arange(256))
    assert light.tone_table(0.2, 0, 1)[[0, 100, 255]].tolist() == [51, 151, 255]
    assert light.tone_table(0, 0.2, 1)[[0, 127, 200, 255]].tolist() == [0, 127, 214, 255]
    assert light.tone_table(0, 0, 2.0)[[0, 51, 255]].tolist() == [0, 10, 255]  # 0.2 squared is 0.04


def test_color_matrix_keeps_grey_and_luma():
    assert np.allclose(light.color_matrix(0, 1), np.eye(3), atol=1e-6)
    for degrees, factor in ((25, 1.3), (-140, 0.4)):
        matrix = light.color_matrix(degrees, factor)
        assert np.allclose(matrix @ np.ones(3), 1, atol=1e-6) and np.allclose(
            light.LUMA @ matrix, light.LUMA, atol=1e-6
        )
    assert np.allclose(light.color_matrix(50, 0), np.tile(light.LUMA, (3, 1)), atol=1e-6)
    turned = light.color_matrix(120, 1) @ [1, 0, 0]
    assert turned.argmax() == 1  # a third of the circle on from red is green


def test_light_steps_do_what_they_say():
    image = np.full((200, 200, 3), 120, np.uint8)
    noisy = light.with_noise(image, 6.0, np.random.default_rng(0)).astype(float)
    assert noisy.std() == pytest.approx(6.0, rel=0.03) and noisy.mean() == pytest.approx(120, abs=0.1)
    assert light.with_noise(np.full_like(image, 255), 6.0, np.random.default_rng(0)).max() == 255
    dot = np.zeros((41, 41, 1), np.uint8)
    dot[20, 20] = 255
    expected = ndimage.gaussian_filter(dot[..., 0].astype(float), 1.5)
    assert np.abs(light.blurred(dot, 1.5)[..., 0] - expected).max() <= 1


@pytest.mark.parametrize("name", ["brightness_contrast", "gamma", "hue", "noise", "blur"])
def test_light_touches_the_image_only(name):
    image, truth = picture(30, 30), semantic(blobs(30, 30))
    new_image, new = augment(image, truth, AugmentSettings(**{name: 1.0}), np.random.default_rng(0))
    assert not np.array_equal(new_image, image) and np.array_equal(new.labels, truth.labels)


def mirror(image, mask):
    image[:2] = 0  # what it gets it may change
    return {"image": image[:, ::-1], "mask": mask[:, ::-1]}


@pytest.mark.parametrize("kind", TRUTHS)
def test_a_plain_function_as_augmentation(kind):
    image, truth = picture(30, 40), TRUTHS[kind](blobs(30, 40))
    before = image.copy()
    new_image, new = apply_callable(mirror, image, truth)
    assert np.array_equal(image, before) and np.array_equal(new_image[2:], image[2:, ::-1])
    assert np.array_equal(as_map(new), as_map(truth)[:, ::-1])
    if kind == "instances":
        assert np.array_equal(new.labels, truth.labels) and np.array_equal(new.scores, truth.scores)


@pytest.mark.parametrize("kind", TRUTHS)
def test_a_function_that_crops_drops_what_it_cuts_off(kind):
    ids = np.zeros((20, 20), np.int32)
    ids[1:4, 1:4], ids[10:14, 10:14] = 1, 2
    truth = TRUTHS[kind](ids)
    image, new = apply_callable(lambda image, mask: {"image": image[8:], "mask": mask[8:]}, picture(20, 20, 1), truth)
    assert image.shape == (12, 20, 1) and np.array_equal(as_map(new) > 0, ids[8:] > 0)
    if kind == "instances":
        assert new.labels.tolist() == [6] and new.scores.tolist() == [1.0]
    if kind == "panoptic":
        assert [(s.id, s.area) for s in new.segments] == [(14, 16)]


def test_a_crowd_listed_last_covers_no_object_for_a_function():
    ids = np.zeros((3, 12, 12), bool)
    ids[0, 2:6, 2:6] = ids[1, 1:9, 1:9] = ids[2] = True
    truth = Instances.from_masks(Masks.from_dense(ids), [3, 4, 4], CLASSES, crowd=np.array([False, False, True]))
    seen = []
    _, new = apply_callable(
        lambda image, mask: seen.append(mask) or {"image": image, "mask": mask}, picture(12, 12), truth
    )
    assert [int((seen[0] == i).sum()) for i in (1, 2, 3)] == [16, 64 - 16, 144 - 64]
    assert new.labels.tolist() == [3, 4, 4] and new.crowd.tolist() == [False, False, True]


def test_a_function_works_without_truth_and_on_one_channel():
    image, truth = apply_callable(lambda image, mask: {"image": image[..., 0], "mask": mask}, picture(5, 6, 1), None)
    assert image.shape == (5, 6, 1) and truth is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda image, mask: (image, mask), "a tuple"),
        (lambda image, mask: {"image": image, "masks": mask}, "'masks'"),
        (lambda image, mask: {"image": image[1:], "mask": mask}, "one size"),
        (lambda image, mask: {"image": image[..., :1], "mask": mask}, "one size"),
        (lambda image, mask: {"image": image / 255, "mask": mask}, "float64"),
        (lambda image, mask: {"image": image, "mask": mask.astype(np.float32)}, "float32"),
        (lambda image, mask: {"image": image, "mask": mask.tolist()}, "list"),
        (lambda image, mask: {"image": image, "mask": mask.astype(np.int64) + 2**40}, "values"),
    ],
)
def test_wrong_answers_of_a_function_are_told(answer, words):
    for make in TRUTHS.values():
        with pytest.raises(KirieError, match=words):
            apply_callable(answer, picture(8, 9), make(blobs(8, 9)))


def test_made_up_ids_of_a_function_are_told():
    for make in (instances, panoptic):
        with pytest.raises(KirieError, match="not in the"):
            apply_callable(lambda image, mask: {"image": image, "mask": mask + 99}, picture(8, 9), make(blobs(8, 9)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TRUTHS)
def test_albumentations_plugs_in(kind, monkeypatch):
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network for news
    albumentations = pytest.importorskip("albumentations", exc_type=ImportError)
    ids = blobs(60, 60)
    compose = albumentations.Compose(
        [albumentations.HorizontalFlip(p=1), albumentations.RandomCrop(40, 50, p=1)], seed=1
    )
    image, new = apply_callable(compose, (ids * 30).astype(np.uint8)[:, :, None].repeat(3, 2), TRUTHS[kind](ids))
    assert image.shape == (40, 50, 3) and new.size == (40, 50)
    whole = {"semantic": 1, "instances": 1, "panoptic": 7}[kind]
    same = as_map(new) == image[..., 0] // 30 * whole
    assert same[image[..., 0] != 90].all()  # 3 is void in the semantic truth
