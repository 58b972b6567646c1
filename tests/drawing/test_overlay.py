"""Overlays and differences, pixel by pixel."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from kirie.classes import Classes
from kirie.drawing.mistakes import difference
from kirie.drawing.overlay import draw, object_colors
from kirie.drawing.picture import _font, as_picture
from kirie.errors import KirieError
from kirie.masks import Crop, Masks
from kirie.reading.images import read_image
from kirie.results import Instances, SemanticMap, to_panoptic, to_semantic

CLASSES = Classes(("background", "road", "car"), ((0, 0, 0), (200, 40, 40), (30, 90, 220)), (False, False, True))
PLAIN = {"alpha": 1.0, "contours": False, "names": False, "scores": False}


def grey_picture(height=40, width=60):
    return np.full((height, width, 3), 120, np.uint8)


def semantic_map():
    labels = np.zeros((40, 60), np.uint8)
    labels[10:30, 5:25] = 1
    labels[10:30, 25:45] = 2
    labels[:, 50:] = CLASSES.void
    return SemanticMap(labels, CLASSES)


def two_coins(labels=(1, 1), scores=(0.9, 0.8)):
    classes = Classes(("background", "coin"), ((0, 0, 0), (220, 120, 20)), (False, True))
    crops = [Crop(5, 5, np.ones((20, 20), bool)), Crop(10, 15, np.ones((20, 30), bool))]
    return Instances.from_masks(Masks.from_crops(crops, (40, 60)), labels, classes, np.array(scores, np.float32))


def test_full_cover_shows_the_class_colours_and_leaves_background_and_colours_out_of_void():
    drawn = np.asarray(draw(semantic_map(), grey_picture(), **PLAIN))
    labels = semantic_map().labels
    assert (drawn[labels == 1] == (200, 40, 40)).all()
    assert (drawn[labels == 2] == (30, 90, 220)).all()
    assert (drawn[labels == 0] == 120).all()
    void = drawn[labels == 255]
    assert (void == void[:, :1]).all(), "void has a hue"
    assert len(np.unique(void)) == 2, "void is hatched: two greys"


def test_half_cover_is_the_mean_of_picture_and_colour():
    drawn = np.asarray(draw(semantic_map(), grey_picture(), alpha=0.5, contours=False)).astype(int)
    assert np.abs(drawn[20, 15] - (160, 80, 80)).max() <= 1
    assert (np.asarray(draw(semantic_map(), grey_picture(), alpha=0, contours=False))[:, :50] == 120).all()


def test_contours_are_darker_lie_inside_and_one_pixel_deep():
    bare = np.asarray(draw(semantic_map(), grey_picture(), alpha=0.5, contours=False)).astype(int)
    lined = np.asarray(draw(semantic_map(), grey_picture(), alpha=0.5)).astype(int)
    changed = (bare != lined).any(2)
    expected = np.zeros((40, 60), bool)
    for columns in (slice(5, 25), slice(25, 45)):
        expected[10:30, columns] = True
        expected[11:29, columns.start + 1 : columns.stop - 1] = False
    assert (changed == expected).all()
    assert (lined[expected].sum(1) < 0.6 * bare[expected].sum(1)).all()


def test_every_object_has_its_own_colour_the_first_that_of_its_class_and_the_sure_on_top():
    drawn = np.asarray(draw(two_coins(), grey_picture(), boxes=False, **PLAIN))
    first, second = drawn[7, 7], drawn[28, 40]
    assert tuple(first) == (220, 120, 20)
    assert np.abs(first.astype(int) - second).sum() > 60
    assert (drawn[15, 20] == first).all(), "the surer"
    assert (drawn[0, 0] == 120).all()
    swapped = np.asarray(draw(two_coins(scores=(0.7, 0.95)), grey_picture(), boxes=False, **PLAIN))
    assert (swapped[15, 20] == swapped[28, 40]).all(), "the surer"
    equal = np.asarray(draw(two_coins(scores=(0.7, 0.7)), grey_picture(), boxes=False, **PLAIN))
    assert (equal[15, 20] == equal[7, 7]).all(), "of 400 pixels, over 600"


def test_object_colours_differ_and_stay_near_their_class_when_there_are_many():
    many = Classes(tuple(f"c{i}" for i in range(20)))
    colors = object_colors([3] * 12, many).astype(int)
    assert len({tuple(color) for color in colors.tolist()}) == 12
    other = np.array(many.colors[4])
    assert all(np.abs(c - many.colors[3]).sum() < np.abs(c - other).sum() for c in colors)


def test_a_black_class_colour_still_gives_visible_objects():
    dark = Classes(("thing",), ((0, 0, 0),))
    assert object_colors([0, 0, 0], dark).max(1).min() > 100


def test_panoptic_stuff_has_its_class_colour_and_void_is_grey():
    panoptic = to_panoptic(semantic_map())
    drawn = np.asarray(draw(panoptic, grey_picture(), **PLAIN))
    assert (drawn[20, 15] == (200, 40, 40)).all()
    assert (drawn[0, 0] == 120).all()
    assert (drawn[:, 50:] == drawn[:, 50:, :1]).all()
    objects = to_panoptic(two_coins())
    drawn = np.asarray(draw(objects, grey_picture(), **PLAIN))
    assert (drawn[7, 7] != drawn[28, 40]).any()


def test_panoptic_ids_beyond_24_bits_are_drawn_alike():
    small = to_panoptic(two_coins())
    shift = 1 << 28
    segments = tuple(type(s)(s.id + shift, s.label, s.is_thing, s.score, s.area) for s in small.segments)
    large = type(small)(np.where(small.ids > 0, small.ids + shift, 0).astype(np.int32), segments, small.classes)
    assert (np.asarray(draw(small, grey_picture())) == np.asarray(draw(large, grey_picture()))).all()


def test_names_are_written_only_when_asked_for():
    bare = np.asarray(draw(two_coins(), grey_picture(), names=False, scores=False))
    named = np.asarray(draw(two_coins(), grey_picture()))
    assert (bare != named).any()


@pytest.mark.parametrize("fonts", [("no such font.ttf",), None])
def test_names_of_any_kind_are_drawn(monkeypatch, fonts):
    if fonts:
        monkeypatch.setattr("kirie.drawing.picture._WIDE_FONTS", fonts)
        _font.cache_clear()
    names = ("硬貨", "Münze\nzwei", "x" * 300, "bad \udcff name", "")
    classes = Classes(names, things=(True,) * 5)
    crops = [Crop(8 * i, 5, np.ones((8, 20), bool)) for i in range(5)]
    result = Instances.from_masks(Masks.from_crops(crops, (40, 60)), range(5), classes)
    assert draw(result, grey_picture(), legend=True).width == 60
    _font.cache_clear()


def test_the_name_of_the_only_class_is_not_written_and_has_no_legend():
    one, two = (Classes(names, things=(True,) * len(names)) for names in (("cell",), ("cell", "other")))
    masks = Masks.from_crops([Crop(30, 10, np.ones((40, 60), bool))], (120, 120))
    drawn = {
        (len(classes), score): np.asarray(
            draw(Instances.from_masks(masks, [0], classes, np.array([score])), grey_picture(120, 120), legend=True)
        )
        for classes in (one, two)
        for score in (1.0, 0.5)
    }
    bare = np.asarray(draw(Instances.from_masks(masks, [0], one), grey_picture(120, 120), names=False))
    assert np.array_equal(drawn[1, 1.0], bare)
    assert (drawn[1, 0.5] != bare).any(), "the score is"
    assert len(drawn[2, 1.0]) > len(drawn[1, 0.5]) == 120


def test_the_legend_has_the_colour_of_a_classs_first_object_also_where_that_of_the_class_is_too_dark():
    classes = Classes(("dark", "bright"), ((20, 0, 30), (200, 40, 40)), (True, True))
    masks = Masks.from_crops([Crop(2, 2, np.ones((9, 9), bool)), Crop(2, 40, np.ones((9, 9), bool))], (40, 60))
    both = Instances.from_masks(masks, [0, 1], classes)
    for result in (both, to_panoptic(both)):
        drawn = np.asarray(draw(result, alpha=1, boxes=False, names=False, contours=False, legend=True))
        strip = drawn[40:].reshape(-1, 3)
        for place in (6, 44):
            assert (strip == drawn[6, place]).all(1).any()


def test_many_small_objects_go_without_names_and_a_large_one_among_them_keeps_its_own():
    classes = Classes(("cell", "other"), things=(True, True))
    crops = [Crop(6 * row, 6 * column, np.ones((4, 4), bool)) for row in range(6) for column in range(6)]
    small = Instances.from_masks(Masks.from_crops(crops, (200, 200)), [0] * 36, classes)
    picture = grey_picture(200, 200)
    assert (np.asarray(draw(small, picture)) == np.asarray(draw(small, picture, names=False))).all()
    crops.append(Crop(90, 40, np.ones((80, 100), bool)))
    mixed = Instances.from_masks(Masks.from_crops(crops, (200, 200)), [0] * 37, classes)
    written = (np.asarray(draw(mixed, picture)) != np.asarray(draw(mixed, picture, names=False))).any(2)
    assert written[70:110].any() and not written[:60].any()


def test_without_a_picture_the_colours_stand_alone_on_white():
    drawn = np.asarray(draw(semantic_map(), contours=False))
    assert (drawn[20, 15] == (200, 40, 40)).all()
    assert (drawn[0, 0] == 255).all()


def test_a_legend_adds_a_strip_below_with_the_colours_that_occur():
    labels = semantic_map().labels.copy()
    labels[labels == 2] = 0
    plain, legend = (draw(SemanticMap(labels, CLASSES), grey_picture(), legend=on) for on in (False, True))
    assert plain.size == (60, 40)
    assert legend.width == 60 and legend.height > 50
    strip = np.asarray(legend)[40:].reshape(-1, 3)
    assert (strip == (200, 40, 40)).all(1).any()
    assert not (strip == (30, 90, 220)).all(1).any()


def test_an_empty_result_is_the_picture_itself():
    classes = Classes(("coin",), things=(True,))
    nothing = Instances.from_masks(Masks((40, 60)), [], classes)
    assert (np.asarray(draw(nothing, grey_picture(), legend=True)) == 120).all()
    void = SemanticMap(np.full((40, 60), 255, np.uint8), classes)
    assert draw(to_panoptic(void), grey_picture()).size == (60, 40)


@pytest.mark.parametrize("shape", [(40, 60), (40, 60, 1), (40, 60, 2), (40, 60, 4), (40, 60, 6)])
def test_pictures_with_any_number_of_channels(shape):
    drawn = np.asarray(draw(semantic_map(), np.full(shape, 77, np.uint8), **PLAIN))
    assert drawn.shape == (40, 60, 3)
    assert (drawn[0, 0] == 77).all()


def test_the_callers_picture_is_not_changed():
    picture = grey_picture()
    draw(two_coins(), picture)
    difference(semantic_map(), semantic_map(), picture)
    assert (picture == 120).all()


def test_a_picture_from_a_file_is_turned_upright(tmp_path):
    sideways = np.zeros((60, 40, 3), np.uint8)
    sideways[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise
    Image.fromarray(sideways).save(tmp_path / "photo.png", exif=exif)
    picture = as_picture(tmp_path / "photo.png")
    assert picture.shape == (40, 60, 3)
    assert (picture[0, 59] == 255).all()
    assert draw(semantic_map(), tmp_path / "photo.png").size == (60, 40)


def test_sixteen_bit_and_palette_files_are_read(tmp_path):
    Image.fromarray(np.array([[100, 40000]], np.uint16)).save(tmp_path / "deep.png")
    assert as_picture(tmp_path / "deep.png").tolist() == [[[0] * 3, [255] * 3]]
    Image.fromarray(np.array([[[255, 0, 0]]], np.uint8)).convert("P").save(tmp_path / "palette.png")
    assert as_picture(str(tmp_path / "palette.png")).tolist() == [[[255, 0, 0]]]


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_the_first_channels_of_a_tiff_are_shown(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 7, channels), np.uint8)
    tifffile.imwrite(
        tmp_path / "many.tif", pixels, photometric="minisblack", planarconfig="contig" if channels > 1 else None
    )
    expected = pixels[..., [0, 0, 0]] if channels < 3 else pixels[..., :3]
    assert np.array_equal(as_picture(tmp_path / "many.tif"), expected)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("LA", "png"), ("RGB", "png"), ("RGBA", "tif"), ("I;16", "png")]
)
def test_a_file_is_drawn_as_prediction_sees_it(tmp_path, mode, suffix):
    pixels = np.random.default_rng(0).integers(0, 4000, (60, 70), np.uint16)
    pixels[0, 0] = 65535  # one hot pixel, which must not leave the others black
    picture = (
        Image.fromarray(pixels) if mode == "I;16" else Image.fromarray((pixels >> 4).astype(np.uint8)).convert(mode)
    )
    picture.save(tmp_path / f"photo.{suffix}")
    seen = as_picture(tmp_path / f"photo.{suffix}")
    assert np.array_equal(seen, read_image(tmp_path / f"photo.{suffix}", 3)) and seen.mean() > 60
    assert np.array_equal(as_picture(Image.open(tmp_path / f"photo.{suffix}")), seen)


def test_a_file_of_too_many_pixels_is_not_drawn(tmp_path, monkeypatch):
    Image.new("L", (40, 30)).save(tmp_path / "large.png")
    monkeypatch.setattr("kirie.reading.headers.MAX_PIXELS", 1000)
    with pytest.raises(KirieError, match="more than the 1,000"):
        as_picture(tmp_path / "large.png")


def test_what_cannot_be_drawn_is_told(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(KirieError, match=r"size \(30, 60\)"):
        draw(semantic_map(), grey_picture(30))
    with pytest.raises(KirieError, match=r"missing\.png"):
        draw(semantic_map(), tmp_path / "missing.png")
    with pytest.raises(KirieError, match=r"text\.png is no picture"):
        draw(semantic_map(), tmp_path / "text.png")
    with pytest.raises(KirieError, match="float64"):
        draw(semantic_map(), np.zeros((40, 60, 3)))
    with pytest.raises(KirieError, match="alpha"):
        draw(semantic_map(), grey_picture(), alpha=1.5)


def test_every_public_name_is_found_and_no_other():
    package = importlib.import_module(draw.__module__.rpartition(".")[0])
    assert set(package.__all__) <= set(dir(package))
    assert all(callable(getattr(package, name)) for name in package.__all__)
    with pytest.raises(AttributeError, match="paint"):
        _ = package.paint


def test_instances_and_their_semantic_map_cover_the_same_pixels():
    result = two_coins()
    objects = np.asarray(draw(result, boxes=False, **PLAIN))
    areas = np.asarray(draw(to_semantic(result), **PLAIN))
    assert ((objects != 255).any(2) == (areas != 255).any(2)).all()
