"""Mask R-CNN itself: what it learns from, what it answers at its extremes, arguments. Answers of the references are in
tests/weights."""

import numpy as np
import pytest
import torch

from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.models.mask_rcnn import FLAVOURS, MaskRCNN
from kirie.results import Instances
from tests.models.contract import build, pictures, rectangles

flavours = pytest.mark.parametrize("flavour", FLAVOURS)
TERMS = ["objectness", "rpn_box", "classification", "box", "mask"]


def truth(model, masks, labels=None, **more):
    masks = Masks.from_dense(np.asarray(masks))
    return Instances.from_masks(masks, [0] * len(masks) if labels is None else labels, model.classes, **more)


@flavours
@pytest.mark.parametrize("norm", [False, True])
def test_a_batch_without_objects_touches_every_parameter(flavour, norm):
    model = build("mask_rcnn", flavour=flavour, norm=norm, box_convs=1).train()
    losses = model.loss(model(pictures()), [truth(model, np.zeros((0, 24, 40), bool))] * 2)
    assert list(losses) == TERMS
    assert losses["mask"] == losses["box"] == losses["rpn_box"] == 0 < losses["objectness"]
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(buffer.isfinite().all() for buffer in model.buffers())


@flavours
def test_a_batch_in_a_crowd_has_no_region_that_learns(flavour):
    model = build("mask_rcnn", flavour=flavour, norm=True, box_convs=1).train()
    crowd = truth(model, np.ones((1, 24, 40), bool), crowd=np.array([True]))
    losses = model.loss(model(pictures()), [crowd] * 2)
    torch.stack(list(losses.values())).sum().backward()
    assert losses["classification"] == losses["box"] == losses["mask"] == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@flavours
def test_objects_of_three_pixels_and_empty_masks(flavour):
    model = build("mask_rcnn", flavour=flavour).train()
    masks = np.zeros((2, 24, 40), bool)
    masks[0, 11, 5:8] = True
    losses = model.loss(model(pictures(1)), [truth(model, masks)])
    assert losses["mask"] > 0 and losses["rpn_box"] > 0
    assert all(value.isfinite() for value in losses.values())
    only_empty = model.loss(model(pictures(1)), [truth(model, masks[1:])])
    assert only_empty["mask"] == 0


def test_the_mask_of_the_true_class_alone_learns():
    model = build("mask_rcnn", classes=3).train()
    masks = np.zeros((1, 24, 40), bool)
    masks[0, 4:20, 6:30] = True
    model.loss(model(pictures(1)), [truth(model, masks, [1])])["mask"].backward()
    touched = model.mask_head.predictor.weight.grad.abs().flatten(1).sum(1) > 0
    assert touched.tolist() == [False, True, False]


@flavours
def test_it_learns_pictures_by_heart(flavour):
    """Three objects, found again with their classes and outlines."""
    torch.manual_seed(0)
    wide = {"encoder": "resnet10t", "channels": 32, "box_width": 64, "mask_convs": 2, "mask_width": 32}
    model = build("mask_rcnn", classes=2, flavour=flavour, **wide).train()
    masks = np.zeros((3, 64, 96), bool)
    masks[0, 8:40, 10:40], masks[1, 20:60, 50:90], masks[2, 4:18, 60:80] = True, True, True
    labels = [0, 1, 0]
    image = torch.zeros(1, 3, 64, 96)
    for mask, label in zip(masks, labels, strict=True):
        image[0, label, mask] = 1
    given = [truth(model, masks, labels)]
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(90):
        optimiser.zero_grad()
        torch.stack(list(model.loss(model(image), given).values())).sum().backward()
        optimiser.step()
    model.eval()
    model.score_threshold = 0.5
    with torch.no_grad():
        found = model.decode(model(image), [(64, 96)])[0]
    table = found.masks.iou(given[0].masks)
    assert 3 <= len(found) <= 5 and (table.max(0) > 0.7).all()
    assert [found.labels[row] for row in table.argmax(0)] == labels


@flavours
@torch.no_grad()
def test_pictures_in_which_nothing_is_found(flavour):
    model = build("mask_rcnn", flavour=flavour).eval()
    raw = model(pictures(1))
    model.score_threshold = 1.0
    found = model.decode_tensors(raw, torch.tensor([24, 40]))
    assert [tuple(part.shape) for part in found[:4]] == [(0, 4), (0,), (0,), (0, 28, 28)]
    assert len(model.decode(raw, [(24, 40)])[0]) == 0
    nowhere = raw._replace(codes=tuple(torch.full_like(x, -100.0) for x in raw.codes))  # boxes far outside
    assert len(model.decode(nowhere, [(24, 40)])[0]) == 0


@torch.no_grad()
def test_identical_scores_are_answered_alike():
    model = build("mask_rcnn", classes=3).eval()
    for layer in (model.box_head.logits, model.box_head.codes, model.proposals.objectness):
        layer.weight.zero_()
    first, second = (model.decode(model(pictures(1, size=(64, 96))), [(64, 96)])[0] for _ in range(2))
    assert len(first) > 3 and np.ptp(first.scores) == 0
    np.testing.assert_array_equal(first.boxes, second.boxes)


@torch.no_grad()
def test_boxes_end_at_the_picture_and_not_at_its_padding():
    model = build("mask_rcnn", classes=3).eval()
    raw = model(pictures(1, size=(40, 70)))
    assert raw.seen.tolist() == [[40, 70]] and raw.maps[0].shape[-2:] == (16, 24)
    found = model.decode_tensors(raw, torch.tensor([80, 210]))
    assert found.boxes[:, 2].max() <= 210 and found.boxes[:, 3].max() <= 80
    assert found.boxes[:, 2].max() > 150 and found.boxes[:, 3].max() > 60


def test_truths_of_another_size_or_class_are_refused():
    model = build("mask_rcnn")
    raw = model(pictures(1))
    with pytest.raises(KirieError, match=r"have the size \(25, 40\), the pictures \(24, 40\)"):
        model.loss(raw, [truth(model, np.ones((1, 25, 40), bool))])
    other = build("mask_rcnn", classes=5)
    with pytest.raises(KirieError, match="class id 3"):
        model.loss(raw, [rectangles(np.random.default_rng(0), (24, 40), other.classes)])


def test_encoders_with_other_strides():
    """Maps above stride 4 are not used; pyramids begin where the encoder does."""
    with torch.device("meta"):
        model = MaskRCNN(3, 2, encoder="mobilenetv3_small_050", anchor_sizes=(8, 16, 32, 64, 128))
        assert model.skipped_maps == 1 and model.strides == [4, 8, 16, 32]
        raw = model.eval()(torch.zeros(1, 3, 65, 64))
    assert [tuple(x.shape[-2:]) for x in raw.objectness] == [(24, 16), (12, 8), (6, 4), (3, 2), (2, 1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flavour": "mmdet"}, "flavour must be detectron2 or torchvision"),
        ({"flavour": ["torchvision"]}, "flavour must be"),
        ({"anchor_sizes": (32, 64)}, r"anchor_sizes must be 5 sizes, for the strides \[4, 8, 16, 32\]"),
        ({"anchor_sizes": (32, 64, 128, 256, 0)}, "anchor_sizes must be one number above 0 or more"),
        ({"anchor_ratios": ()}, "anchor_ratios must be one number above 0 or more"),
        ({"anchor_ratios": "wide"}, "anchor_ratios must be one number above 0 or more"),
        ({"score_threshold": 1.5}, "score_threshold must be a number from 0 to 1"),
        ({"nms_threshold": None}, "nms_threshold must be a number from 0 to 1"),
        ({"beta": -1}, "beta must be a number from 0 to 1"),
        ({"max_detections": 0}, "max_detections must be a whole number from 1"),
        ({"norm": 1}, "norm must be true or false"),
        ({"mask_convs": -1}, "mask_convs must be a whole number from 0"),
        ({"channels": 2.0}, "channels must be a whole number"),
        ({"std": (1, 0, 1)}, "std must be one number above 0"),
        ({"encoder": "resnet5"}, "no encoder called"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(KirieError, match=message):
        build("mask_rcnn", **arguments)


class Decoding(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        return tuple(self.model.decode_tensors(self.model(image), torch.tensor([64, 96])))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torchvision's operators use what PyTorch renames
@torch.no_grad()
def test_the_steps_of_decoding_can_be_exported():
    """Tensors alone: one graph for pictures with more and with fewer objects."""
    model = build("mask_rcnn", classes=3).eval()
    model.score_threshold = 0.2543
    run = Decoding(model)
    exported = torch.export.export(run, (pictures(1, size=(64, 96)),), strict=False).module()
    counts = set()
    for seed in range(4):
        image = pictures(1, size=(64, 96), seed=seed)
        found, expected = exported(image), run(image)
        counts.add(len(found[0]))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
    assert len(counts) > 1
