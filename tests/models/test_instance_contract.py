"""What all instance models hold beyond the contract: pictures and truths at their extremes, crowds, exact crops."""

import numpy as np
import torch

from kirie.results import Instances
from tests.models.contract import build, each_instance, nothing, pictures, rectangles, total, truths


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
