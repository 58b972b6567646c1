"""What all instance models hold beyond the contract: pictures and truths at their extremes, crowds, exact crops."""

import numpy as np
import pytest
import torch

from kirie.errors import KirieError
from kirie.models.parts import instance
from kirie.results import Instances
from tests.models.contract import build, each_instance, equal, nothing, pictures, rectangles, total, truths


@each_instance
def test_truths_of_any_kind_are_learned(name):
    """One that fills the picture, one of a single pixel, very many, and very long pictures."""
    model = build(name, classes=3)
    rng = np.random.default_rng(0)
    for size, count in [((24, 40), 1000), ((17, 4000), 3), ((1, 9), 1)]:
        given = [rectangles(rng, size, model.classes, count), *nothing(model, 1, size)]
        loss = total(model, pictures(size=size), given)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        model.eval().decode(model(pictures(size=size)), [size] * 2)
        model.zero_grad()


@each_instance
@torch.no_grad()
def test_detections_are_in_order_and_masks_lie_in_the_picture(name):
    model = build(name, classes=3).eval()
    raw = model(pictures(size=(64, 96)))
    found = model.decode(raw, [(50, 75), (128, 192)])
    assert any(len(each) for each in found)
    for each, size in zip(found, [(50, 75), (128, 192)], strict=True):
        assert len(each) <= model.max_detections
        assert (np.diff(each.scores) <= 0).all()
        assert each.masks.size == size
        assert (each.boxes[:, 2:] <= np.array(size[::-1])).all()
        assert (each.boxes >= 0).all()


@each_instance
@torch.no_grad()
def test_limits_can_be_changed_after_loading(name):
    model = build(name, classes=3).eval()
    raw = model(pictures(1, size=(64, 96)))
    model.max_detections = 2
    assert len(model.decode(raw, [(64, 96)])[0]) <= 2
    model.score_threshold = 1.0
    assert len(model.decode(raw, [(64, 96)])[0]) == 0


LIMITS = {"mask_rcnn": "most_proposals", "yolact": "candidates", "solov2": "max_candidates"}  # below `max_detections`
ALL = {"score_threshold": 0.0, "update_threshold": 0.0, "nms_threshold": 1.0, "least_cells": 0}


@each_instance
@torch.no_grad()
def test_a_model_gives_as_many_objects_as_are_asked_for(name):
    model = build(name, classes=3).eval()
    limit = LIMITS[name]
    model.max_detections = 2
    setattr(model, limit, 3)
    for option in ALL.keys() & vars(model).keys():
        setattr(model, option, ALL[option])
    raw = model(pictures(1, size=(64, 96)))
    more = model.giving(20)
    assert (more.max_detections, getattr(more, limit)) == (20, 40) and type(more) is type(model)
    assert all(a is b for a, b in zip(more.parameters(), model.parameters(), strict=True))
    assert len(model.decode(raw, [(64, 96)])[0]) == 2
    assert 10 < len(more.decode(raw, [(64, 96)])[0]) <= 20
    assert (model.max_detections, getattr(model, limit)) == (2, 3), "its own limits stay"
    assert (more.giving(1).max_detections, getattr(more.giving(1), limit)) == (20, 40), "none is lowered"


@each_instance
def test_a_crowd_is_not_an_object(name):
    """With a crowd over the whole picture and nothing else, no object is learned."""
    model = build(name).eval()
    empty = nothing(model, 1)[0]
    all_over = rectangles(np.random.default_rng(0), (24, 40), model.classes, 1)
    crowd = Instances.from_masks(all_over.masks, [0], model.classes, crowd=np.array([True]))
    object_loss = model.loss(model(pictures(1)), truths(model, 1))
    crowd_loss, empty_loss = (model.loss(model(pictures(1)), [given]) for given in (crowd, empty))
    assert crowd_loss.keys() == empty_loss.keys() == object_loss.keys()
    assert crowd_loss["mask"] == 0 == empty_loss["mask"]
    assert object_loss["mask"] > 0


@each_instance
def test_answers_within_autocast_are_those_without(name):
    """What decoding computes is float32, and keeps no graph, wherever it is called."""
    model = build(name, classes=3).eval()
    raw = model(pictures(1, size=(64, 96)))
    expected = model.decode(raw, [(64, 96)])[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = model.decode(raw, [(64, 96)])[0]
        assert len(model.decode(model(pictures(1, size=(64, 96))), [(64, 96)])) == 1
    assert len(found) and equal(found, expected)


@each_instance
def test_models_cast_to_half_precision_answer(name):
    model = build(name, classes=3, std=None).eval().to(torch.bfloat16)
    with torch.no_grad():
        assert len(model.decode(model(pictures(1, size=(64, 96)).bfloat16()), [(64, 96)])[0])


@each_instance
@torch.no_grad()
def test_there_is_one_size_per_picture(name):
    model = build(name).eval()
    raw = model(pictures(2))
    for sizes in ([(24, 40)], [(24, 40)] * 3):
        with pytest.raises(KirieError, match=f"one size per picture, got {len(sizes)} for 2"):
            model.decode(raw, sizes)


@each_instance
@torch.no_grad()
def test_outputs_that_are_no_numbers_are_an_error(name):
    model = build(name).eval()
    image = pictures(1)
    image[0, 0, 3, 3] = torch.nan
    with pytest.raises(KirieError, match="outputs are NaN"):
        model.decode(model(image), [(24, 40)])


@each_instance
@torch.no_grad()
def test_maps_made_some_at_a_time_are_those_of_one_go(name, monkeypatch):
    model = build(name, classes=3).eval()
    raw = model(pictures(1, size=(64, 96)))
    found = model.as_instances(model.decode_tensors(raw, torch.tensor([130, 70])), (130, 70))
    assert len(found) > 3
    monkeypatch.setattr(instance, "AT_ONCE", 3)
    assert equal(model.decode(raw, [(130, 70)])[0], found)


@each_instance
def test_truths_are_of_the_size_of_the_pictures(name):
    model = build(name, **({"input_size": None} if name == "yolact" else {}))
    with pytest.raises(KirieError, match=r"have the size \(25, 40\), the pictures \(24, 40\)"):
        model.loss(model(pictures(1)), truths(model, 1, (25, 40)))


def test_small_patches_learn_in_half_precision():
    """The coarsest maps are a single cell here, where a strided convolution in bfloat16 gives senseless gradients."""
    model = build("yolact").train()
    for seed in range(8):
        with torch.autocast("cpu", torch.bfloat16):
            loss = total(model, pictures(size=(64, 64), seed=seed), truths(model, size=(64, 64)))
        model.zero_grad()
        loss.backward()
        for convolution in model.pyramid.extra:
            assert convolution.weight.grad.isfinite().all()
            assert convolution.weight.grad.abs().max() < 1e4
