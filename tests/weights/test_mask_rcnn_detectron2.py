"""Detectron2's Mask R-CNNs in the publisher's formats: the public reference's answers, other forms, what is refused."""

import numpy as np
import pytest
import torch

from kirie.class_lists import COCO
from kirie.errors import KirieError
from kirie.models.contract import InputFacts
from kirie.models.mask_rcnn import MaskRCNN
from kirie.weights.load import import_checkpoint
from tests.weights.detectron2 import (
    STAGES,
    cell_anchors,
    check_heads,
    check_network,
    check_objects,
    check_proposals,
    pixels,
    published,
    ran,
    trained,
    without,
    write_zoo,
    zoo,
)
from tests.weights.parity import load_case, through_file

# ---- the public reference's answers


@pytest.fixture(scope="module", params=["d2_mask_rcnn_r50_fpn", "d2_mask_rcnn_r50_fpn_pad"])
def case(request, shared):
    return load_case(shared, request.param)


@pytest.fixture(scope="module")
def imported(case, tmp_path_factory):
    """The model that comes out of the file the model zoo would have."""
    return through_file(zoo(case.state), tmp_path_factory.mktemp("release") / "model_final.pkl", write_zoo)


@pytest.fixture(scope="module")
def stages(case, imported):
    """What each stage of the network gives, and the raw output."""
    return ran(imported[0], case.image, STAGES)


def test_every_stage_is_that_of_the_reference(case, stages):
    assert check_network(case, *stages) == 17


def test_proposals_are_those_of_the_reference(case, imported, stages):
    check_proposals(case, imported[0], stages[1])


def test_heads_answer_the_references_proposals_alike(case, imported, stages):
    check_heads(case, imported[0], stages[1])


def test_objects_are_those_of_the_reference(case, imported, stages):
    check_objects(case, imported[0], stages[1])


def test_the_network_is_that_of_the_release(case, imported):
    model, translation = imported
    tensors = {n: t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert len(tensors) == case.facts["parameters_and_buffers"]
    assert translation.architecture == "mask_rcnn"
    assert model.classes == COCO
    assert model.inputs == InputFacts(short_side=800, long_side=1333)
    assert {"encoder": "resnet50", "flavour": "detectron2"}.items() <= model.arguments.items()
    assert set(translation.assumed) == {"classes", "anchor_sizes", "anchor_ratios", "encoder_options", "mean", "std"}


# ---- other forms


def network(classes=5, **options):
    """A narrow Mask R-CNN whose running statistics are not those of its birth."""
    torch.manual_seed(1)
    small = {"encoder": "resnet18", "channels": 8, "box_width": 16, "mask_width": 8}
    frozen = {"encoder_options": {"frozen_norm": True}, "std": (58.395 / 255, 57.12 / 255, 57.375 / 255)}
    mean = tuple(value / 255 for value in (123.675, 116.28, 103.53))
    model = MaskRCNN(3, classes, **small | {"mean": mean} | frozen | options)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    model.score_threshold = 0.0
    return model.eval()


@torch.no_grad()
def same_answers(model, other):
    images = torch.rand(1, 3, 60, 90)
    first, second = model.decode(model(images), [(60, 90)])[0], other.decode(other(images), [(60, 90)])[0]
    assert len(first) == len(second) > 0
    np.testing.assert_allclose(first.boxes, second.boxes, atol=1e-3)
    assert first.masks.rles() == second.masks.rles()


@pytest.mark.parametrize(
    "options",
    [{"encoder": "resnet101"}, {"encoder": "resnext101_32x8d"}, {"classes": 1}, {"box_convs": 2, "box_layers": 1},
     {"mask_convs": 2}, {"channels": 16}],
    ids=str,
)  # fmt: skip
def test_other_forms_are_told_by_names_and_shapes(options, tmp_path):
    model = network(**options)
    found, translation = through_file(trained(published(model) | pixels()), tmp_path / "model_final.pth")
    assert {k: v for k, v in options.items() if k != "classes"}.items() <= translation.arguments.items()
    assert len(found.classes) == options.get("classes", 5)
    assert {"pixel_mean", "pixel_std", "iteration"} <= translation.dropped.keys()
    assert translation.assumed.keys() == {"anchor_sizes", "anchor_ratios", "encoder_options"}
    found.score_threshold = 0.0
    found.mean.copy_(model.mean)
    found.std.copy_(model.std)
    same_answers(model, found)


def test_anchors_of_old_files_tell_their_sizes_and_ratios(tmp_path):
    model = network()
    found, translation = through_file(trained(published(model) | cell_anchors()), tmp_path / "old.pkl", torch.save)
    assert found.arguments["anchor_sizes"] == (32, 64, 128, 256, 512)
    assert found.arguments["anchor_ratios"] == (0.5, 1, 2)
    assert not translation.assumed.keys() & {"anchor_sizes", "anchor_ratios"}
    assert set(cell_anchors()) <= translation.dropped.keys()
    small = {name: rows / 4 for name, rows in cell_anchors().items()}
    found, _ = through_file(trained(published(model) | small), tmp_path / "old.pth")
    assert found.arguments["anchor_sizes"] == (8, 16, 32, 64, 128)
    torch.testing.assert_close(found.cell_anchors * 4, model.cell_anchors)


def test_names_of_a_single_class_and_sizes_of_anchors_can_be_set(tmp_path):
    torch.save(trained(published(network(1))), tmp_path / "cells.pth")
    changes = ["classes=[cell]", "anchor_sizes=[8, 16, 32, 64, 128]"]
    found, translation = import_checkpoint(tmp_path / "cells.pth", changes=changes)
    assert found.classes.names == ("cell",)
    assert list(found.arguments["anchor_sizes"]) == [8, 16, 32, 64, 128]
    assert "anchor_sizes" not in translation.assumed


# ---- what is refused


def with_anchors(change):
    return lambda state: state | {n: change(n, t) for n, t in cell_anchors().items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("fc1"), r"unknown \['box_head\.layers\.1"),
        (without("rpn_head.conv."), "missing"),
        (without("mask_head.predictor"), "lacks roi_heads.mask_head.predictor.weight"),
        (without("cls_score.weight"), "lacks roi_heads.box_predictor.cls_score.weight"),
        (lambda s: s | {"roi_heads.mask_head.mask_fcn0.weight": torch.zeros(1)}, "no entry 'roi_heads.mask_head"),
        (lambda s: s | {"roi_heads.box_head.fc1.norm.weight": torch.zeros(1)}, "no entry 'roi_heads.box_head.fc1.norm"),
        (lambda s: s | {"roi_heads.box_predictor.bbox_pred.weight": torch.zeros(4, 16)}, "of another shape"),
        (lambda s: s | {"roi_heads.mask_head.deconv.bias": 1.0}, "no entry 'roi_heads.mask_head.deconv.bias'"),
        (with_anchors(lambda n, t: t * torch.tensor([[1.0], [1.0], [2.0]])), "anchors are of several sizes"),
        (with_anchors(lambda n, t: t[:, [1, 0, 3, 2]] if n.endswith("4") else t), "anchors have other ratios"),
        (with_anchors(lambda n, t: t[:, :3]), "no rows of 4 numbers"),
        (with_anchors(lambda n, t: "none"), "no rows of 4 numbers"),
        (with_anchors(lambda n, t: t * 0), "anchors are of several sizes"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_refused(change, message, tmp_path):
    torch.save(trained(change(published(network()))), tmp_path / "checkpoint.pth")
    with pytest.raises(KirieError, match=message):
        import_checkpoint(tmp_path / "checkpoint.pth")
