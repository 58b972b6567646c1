"""Two models merged into panoptic maps, in Python and into COCO panoptic files; and what files its things are."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from finder import Finder, areas_picture, found
from PIL import Image
from pycocotools import mask as coco_mask
from tiny import colour_unet, painted, random_unet

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.merging import merge
from kirie.prediction.panoptic_pair import PanopticPair
from kirie.prediction.predict_files import predict_files
from kirie.results import PanopticMap

SEMANTIC = Classes(("water", "green", "land"), ((0, 0, 255), (0, 255, 0), (90, 60, 30)))  # green is a thing's name
OPTIONS = {"score": 0.5, "stuff_area": 20, "device": "cpu"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pair(**options):
    return PanopticPair(colour_unet(SEMANTIC), Finder(), **(OPTIONS | options))


def write(names):
    for seed, name in enumerate(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(areas_picture(seed=seed)).save(name)


def run(names, kinds, **options):
    outcomes = list(predict_files(pair(**options), names, "out", kinds=kinds))
    assert all(outcome.error is None for outcome in outcomes)
    return outcomes


def coloured(path):
    """The segment ids of a COCO panoptic PNG, read as its authors say."""
    red, green, blue = np.asarray(Image.open(path)).astype(np.int64).transpose(2, 0, 1)
    return red + 256 * green + 256**2 * blue


def test_a_map_has_the_objects_on_the_stuff_that_no_object_is():
    picture = areas_picture()
    (result,) = pair()([picture])
    assert result.classes.names == ("red cell", "green", "blue", "water", "land")
    assert result.classes.things == (True, True, True, False, False)
    objects = found(picture / 255)
    objects = objects[objects.scores >= 0.5]
    free, segments = np.ones(picture.shape[:2], bool), list(result.segments)
    for mask, label in zip(objects.masks, objects.labels.tolist(), strict=True):
        if (mask & free).sum() * 2 >= mask.sum():
            segment = segments.pop(0)
            assert segment.label == label and segment.is_thing
            assert np.array_equal(result.ids == segment.id, mask & free)
            free &= ~mask
    best = picture.argmax(2)
    for channel, label in ((0, 3), (2, 4)):
        region = free & (best == channel)
        own = [segment for segment in segments if segment.label == label]
        assert len(own) == (region.sum() >= 20)
        assert all(np.array_equal(result.ids == segment.id, region) for segment in own)
    assert (result.ids[free & (best == 1)] == 0).all(), "pixels of a thing that no object has are void"


def test_the_limits_of_the_merge_are_options():
    picture = areas_picture(seed=3)
    few, many = (pair(score=score)([picture])[0] for score in (0.9, 0.4))
    assert sum(s.is_thing for s in few.segments) < sum(s.is_thing for s in many.segments)
    assert all(s.is_thing for s in pair(stuff_area=10**6)([picture])[0].segments)
    Finder.shown_threshold = 0.7
    try:
        own = PanopticPair(colour_unet(SEMANTIC), Finder(), device="cpu")
    finally:
        del Finder.shown_threshold
    assert own.settings.score == 0.7 and own.settings.stuff_area == 4096


def test_it_is_the_merge_of_what_the_models_see_alone():
    pictures = [areas_picture(seed=seed) for seed in range(3)]
    both = pair()
    singles = zip(both._semantic(pictures), both._instance(pictures), both(pictures), strict=True)
    for labels, objects, result in singles:
        expected = merge(labels, objects, settings=both.settings)
        assert np.array_equal(result.ids, expected.ids) and result.segments == expected.segments
    assert len(list(both.stream(iter(pictures)))) == 3


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (lambda: (Finder(), Finder()), "semantic model of a pair is one for task 'semantic', got one for 'instance'"),
        (lambda: (colour_unet(), colour_unet()), "instance model of a pair is one for task 'instance'"),
        (lambda: (random_unet(in_channels=1), Finder()), "takes 1 channels and the instance one 3"),
        (lambda: (colour_unet(Classes(("background", "green", "blue"))), Finder()), "no stuff to add"),
    ],
)
def test_models_that_do_not_fit_are_refused(models, message):
    with pytest.raises(KirieError, match=message):
        PanopticPair(*models(), device="cpu")
    with pytest.raises(KirieError, match="from 0 to 1"):
        pair(score=1.5)


# files


def test_coco_panoptic_files_hold_the_maps():
    names = ["a/7.png", "b/12.png"]
    write(names)
    outcomes = run(names, ["coco"])
    facts = json.loads(Path("out/panoptic_results.json").read_text())
    categories = {row["id"]: row for row in facts["categories"]}
    assert [(c["name"], c["isthing"]) for c in categories.values()] == [
        ("red cell", 1), ("green", 1), ("blue", 1), ("water", 0), ("land", 0),
    ]  # fmt: skip
    assert [a["image_id"] for a in facts["annotations"]] == [7, 12]
    for name, entry, outcome in zip(names, facts["annotations"], outcomes, strict=True):
        (result,) = pair()([np.array(Image.open(name))])
        assert outcome.written == (Path("out/panoptic_results") / entry["file_name"],)
        ids = coloured(outcome.written[0])
        assert np.array_equal(ids, result.ids)
        assert len(entry["segments_info"]) == len(result.segments) == len(np.setdiff1d(ids, [0]))
        for row, segment in zip(entry["segments_info"], result.segments, strict=True):
            mask = np.asfortranarray(ids == row["id"], np.uint8)
            assert row["area"] == coco_mask.area(coco_mask.encode(mask))
            assert row["bbox"] == coco_mask.toBbox(coco_mask.encode(mask)).tolist()
            assert row["iscrowd"] == 0 and categories[row["category_id"]]["name"] == result.classes.names[segment.label]
            assert row.get("score", 1) == pytest.approx(segment.score, abs=1e-6)


def test_things_are_written_as_the_objects_of_instance_models():
    write(["a.png"])
    run(["a.png"], ["labels", "overlay", "ids", "csv", "yolo", "cutouts"])
    (result,) = pair()([np.array(Image.open("a.png"))])
    things = [segment for segment in result.segments if segment.is_thing]
    ids = np.array(Image.open("out/a_ids.png"))
    for number, segment in enumerate(things, 1):
        assert np.array_equal(ids == number, result.ids == segment.id)
    with Path("out/objects.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = ("red cell", "green", "blue")
    assert [row["class"] for row in rows] == [names[segment.label] for segment in things]
    assert [int(row["area"]) for row in rows] == [segment.area for segment in things]
    with Path("out/counts.csv").open() as file:
        (counts,) = csv.DictReader(file)
    assert set(counts) == {"picture", "objects", *names} and int(counts["objects"]) == len(things)
    assert yaml.safe_load(Path("out/data.yaml").read_text())["names"] == dict(enumerate(names))
    assert len(Path("out/a.txt").read_text().splitlines()) == len(things)
    assert len(list(Path("out/cutouts").iterdir())) == len(things)
    assert set(np.unique(np.array(Image.open("out/a.png")))) <= {0, 1, 2, 3, 4, 255}


def test_a_picture_with_nothing_in_it_is_all_void():
    Image.fromarray(painted(np.ones((30, 40), np.uint8) * 1)).save("green.png")
    run(["green.png"], ["coco", "overlay", "csv"], score=1.0)
    entry = json.loads(Path("out/panoptic_results.json").read_text())["annotations"][0]
    assert entry["segments_info"] == []
    assert not coloured("out/panoptic_results/green.png").any()


def test_results_never_replace_the_pictures():
    write(["out/panoptic_results/a.png"])
    with pytest.raises(KirieError, match="would replace the picture"):
        predict_files(pair(), ["out/panoptic_results/a.png"], "out", kinds=["coco"])


def test_kinds_that_do_not_serve_are_refused():
    write(["a.png"])
    with pytest.raises(
        KirieError, match=r"'panoptic' cannot be saved as scores; use labels, zarr, overlay, ids, csv, coco"
    ):
        predict_files(pair(), ["a.png"], "out", kinds=["scores"])
    assert isinstance(pair()([np.array(Image.open("a.png"))])[0], PanopticMap)
