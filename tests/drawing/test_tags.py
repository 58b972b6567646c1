"""Where words and boxes stand on a picture."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from kirie.classes import Classes
from kirie.drawing.overlay import draw
from kirie.drawing.tags import Tag, too_small, write_tags
from kirie.masks import Crop, Masks
from kirie.results import Instances

CLASSES = Classes(("person", "wine glass"), ((50, 120, 250), (250, 120, 30)), (True, True))


@pytest.fixture
def plates(monkeypatch):
    """The plates of words that are drawn, as boxes."""
    drawn = []
    real = ImageDraw.ImageDraw.rounded_rectangle

    def seen(self, box, *args, **more):
        drawn.append(list(box))
        return real(self, box, *args, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "rounded_rectangle", seen)
    return drawn


def objects(size, count, sides=(20, 60), seed=0, **more):
    rng = np.random.default_rng(seed)
    crops = []
    for _ in range(count):
        height, width = rng.integers(*sides, 2)
        top, left = rng.integers(0, size[0] - height + 1), rng.integers(0, size[1] - width + 1)
        crops.append(Crop(int(top), int(left), np.ones((height, width), bool)))
    labels, scores = rng.integers(0, 2, count), rng.uniform(0.3, 1, count)
    return Instances.from_masks(Masks.from_crops(crops, size), labels, CLASSES, scores, **more)


def grey(size):
    return np.full((*size, 3), 120, np.uint8)


@pytest.mark.parametrize("count", [5, 29, 60, 300])
def test_words_cover_neither_each_other_nor_leave_the_picture(plates, count):
    size = (480, 640)
    draw(objects(size, count, sides=(20, 200)), grey(size))
    boxes = np.array(plates)
    assert len(boxes) >= min(count, 5)
    assert boxes.min() >= 0 and boxes[:, 2].max() <= size[1] and boxes[:, 3].max() <= size[0]
    low, high = np.maximum(boxes[:, None, :2], boxes[None, :, :2]), np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    meet = (high > low).all(2)
    assert meet.sum() == len(boxes), "each with itself alone"


def test_the_lowest_scores_go_without_words_where_there_is_no_room(plates):
    image = Image.new("RGB", (120, 60))
    box = (10.0, 10.0, 100.0, 50.0)
    write_tags(image, [Tag(f"person {i}", (200, 10 * i, 0), box) for i in range(20)])
    assert 2 <= len(plates) < 20
    pixels = {tuple(color) for color in np.asarray(image).reshape(-1, 3).tolist()}
    assert all((200, 10 * i, 0) in pixels for i in range(len(plates)))
    assert not any((200, 10 * i, 0) in pixels for i in range(len(plates), 20))


def test_words_stand_where_they_hide_least_of_other_objects(plates):
    image = Image.new("RGB", (400, 300))
    above = Tag("x", (9, 9, 9), (100, 70, 160, 98))
    write_tags(image, [Tag("person", (200, 0, 0), (100, 100, 200, 200)), above])
    left, top, right, bottom = plates[0]
    hidden = max(min(right, 160) - max(left, 100), 0) * max(min(bottom, 98) - max(top, 70), 0)
    assert hidden < 0.02 * 60 * 28, "though the best place, above to the left, hides a quarter of it"


def test_a_point_has_its_words_round_it(plates):
    write_tags(Image.new("RGB", (200, 100)), [Tag("sky", (9, 90, 9), (80.0, 40.0, 80.0, 40.0))])
    ((left, top, right, bottom),) = plates
    assert (left + right) / 2 == pytest.approx(80) and (top + bottom) / 2 == pytest.approx(40)


def test_names_and_scores_are_chosen_one_by_one(monkeypatch):
    written = []
    monkeypatch.setattr("kirie.drawing.overlay.write_tags", lambda image, tags: written.append({t.text for t in tags}))
    result = Instances.from_masks(Masks.from_dense(np.ones((1, 90, 90), bool)), [1], CLASSES, np.array([0.876]))
    for names in (True, False):
        for scores in (True, False):
            draw(result, names=names, scores=scores)
    assert written == [{"wine glass 0.88"}, {"wine glass"}, {"0.88"}]
    draw(Instances.from_masks(result.masks, [0], CLASSES))
    assert written[-1] == {"person"}, "of a truth"


def test_boxes_stand_at_the_edges_of_the_objects():
    crops = [Crop(10, 20, np.ones((30, 40), bool))]
    result = Instances.from_masks(Masks.from_crops(crops, (60, 80)), [0], CLASSES, np.array([0.5]))
    result = Instances(
        np.array([[15, 5, 70, 50]], np.float32), result.labels, result.scores, result.masks, result.size, CLASSES
    )
    plain = {"names": False, "scores": False, "contours": False}
    changed = (np.asarray(draw(result, grey((60, 80)), alpha=0, **plain)) != 120).any(2)
    expected = np.zeros((60, 80), bool)
    expected[5:50, 15:70] = True
    expected[6:49, 16:69] = False
    assert np.array_equal(changed, expected)
    assert (np.asarray(draw(result, grey((60, 80)), alpha=0, boxes=False, **plain)) == 120).all()


def test_crowds_are_hatched_in_grey_without_box_and_words_and_objects_lie_on_them():
    crops = [Crop(0, 0, np.ones((20, 20), bool)), Crop(0, 0, np.ones((90, 120), bool))]
    masks = Masks.from_crops(crops, (90, 120))
    result = Instances.from_masks(masks, [0, 1], CLASSES, np.array([0.5, 1.0]), crowd=np.array([False, True]))
    drawn = np.asarray(draw(result, grey((90, 120)), names=False, scores=False, boxes=False))
    assert (drawn[30:, 30:] == drawn[30:, 30:, :1]).all() and len(np.unique(drawn[30:, 30:])) == 2
    assert (np.ptp(drawn[2:18, 2:18].astype(int), axis=2) > 20).all()
    only = result[np.array([False, True])]
    bare = np.asarray(draw(only, grey((90, 120)), names=False, scores=False, boxes=False))
    assert (np.asarray(draw(only, grey((90, 120)))) == bare).all()


def test_of_many_objects_only_the_large_have_boxes_and_words(plates):
    size = (1080, 1920)
    result = objects(size, 1000, sides=(8, 30))
    assert too_small(result.boxes, size).all() and not too_small(result.boxes[:20], size).any()
    drawn = np.asarray(draw(result, grey(size)))
    assert not plates and np.array_equal(
        drawn, np.asarray(draw(result, grey(size), boxes=False, names=False, scores=False))
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (30, 30), (30, 40)])
def test_tiny_pictures_go_without_words(plates, size):
    result = Instances.from_masks(Masks.from_dense(np.ones((2, *size), bool)), [0, 1], CLASSES, np.array([0.5, 0.6]))
    assert draw(result, grey(size)).size == size[::-1] and not plates


def test_letters_grow_with_the_picture(plates):
    for size in ((240, 320), (1080, 1920), (3000, 4000)):
        half = size[0] // 2, size[1] // 2
        masks = Masks.from_crops([Crop(size[0] // 4, size[1] // 4, np.ones(half, bool))], size)
        draw(Instances.from_masks(masks, [0], CLASSES, np.array([0.5])), grey(size))
    heights = [bottom - top for _, top, _, bottom in plates]
    assert heights[0] < heights[1] < heights[2] and heights[2] > 60
