"""Detectron2's Panoptic FPNs in the publisher's formats: the reference's answers, other forms, what is refused."""

import pytest
import torch

from kirie.class_lists import COCO_PANOPTIC
from kirie.errors import KirieError
from kirie.merging import MergeSettings
from kirie.models.contract import InputFacts
from kirie.models.panoptic_fpn import PanopticFPN
from kirie.weights.load import import_checkpoint
from kirie.weights.releases import alike
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
    tolerance,
    trained,
    without,
    write_zoo,
    zoo,
)
from tests.weights.parity import check_argmax, check_stages, load_case, through_file

HOOKS = {
    **{name: f"instance.{path}" for name, path in STAGES.items()},
    **{f"sem_head_p{level}": f"semantic.branches.{level - 2}" for level in range(2, 6)},
}

# ---- the public reference's answers


@pytest.fixture(scope="module")
def case(shared):
    return load_case(shared, "d2_panoptic_fpn_r50")


@pytest.fixture(scope="module")
def imported(case, tmp_path_factory):
    """The model that comes out of the file the model zoo would have."""
    return through_file(zoo(case.state), tmp_path_factory.mktemp("release") / "model_final.pkl", write_zoo)


@pytest.fixture(scope="module")
def stages(case, imported):
    """What each stage of the network gives, and the raw output."""
    return ran(imported[0], case.image, HOOKS)


def output_size(case):
    return tuple(case.facts["input"]["output_height_width"])


def test_every_stage_is_that_of_the_reference(case, stages):
    kept, raw = stages
    assert check_network(case, {**kept, "sem_logits_stride4": raw.logits[0]}, raw.instances) == 22


@torch.no_grad()
def test_the_semantic_head_answers_as_the_reference(case, imported, stages):
    model, raw = imported[0], stages[1]
    full = model.covering(raw.logits, raw.instances.seen[0])
    assert full.shape[-2:] == case.image.shape[1:]
    resized = torch.nn.functional.interpolate(full, output_size(case), mode="bilinear", align_corners=False)[0]
    labels = model.semantic_labels(raw.logits, raw.instances.seen[0], output_size(case))
    found = {"sem_logits_out": resized, "sem_argmax": labels}
    outputs = {name: case.facts["outputs"][name] for name in found}
    check_stages(case._replace(facts={**case.facts, "outputs": outputs}), found)
    check_argmax(case, found, name="sem_argmax", logits="sem_logits_out")
    assert (labels == resized.argmax(0).numpy()).all(), "some classes at a time are all at once"


def test_proposals_are_those_of_the_reference(case, imported, stages):
    check_proposals(case, imported[0].instance, stages[1].instances)


def test_heads_answer_the_references_proposals_alike(case, imported, stages):
    check_heads(case, imported[0].instance, stages[1].instances)


def test_objects_are_those_of_the_reference(case, imported, stages):
    check_objects(case, imported[0].instance, stages[1].instances)


def test_the_panoptic_map_is_that_of_the_reference(case, imported, stages):
    model, raw = imported[0], stages[1]
    (found,) = model.decode(raw, [output_size(case)])
    expected = case.arrays["panoptic_map"]
    facts = case.facts["outputs"]["panoptic_map"]["segments_info"]
    assert (found.ids != expected).mean() <= case.facts["tolerance"]["panoptic_map"]["mismatch_fraction"]
    assert [(s.id, s.is_thing) for s in found.segments] == [(f["id"], f["isthing"]) for f in facts]
    for segment, fact in zip(found.segments, facts, strict=True):
        place = fact["category_id"] + (0 if fact["isthing"] else 80 - 1)  # their class 0 of stuff is all things
        assert segment.label == place
        assert abs(segment.area - fact["pixels_in_map"]) <= max(60, 0.01 * fact["pixels_in_map"])
        # The facts have five decimals.
        assert segment.score == pytest.approx(fact.get("score", 1.0), abs=tolerance(case, "scores")["atol"] + 5e-6)


def test_the_network_is_that_of_the_release(case, imported):
    model, translation = imported
    tensors = {n: t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert len(tensors) == case.facts["parameters_and_buffers"]
    assert translation.architecture == "panoptic_fpn"
    assert model.classes == COCO_PANOPTIC
    assert model.inputs == InputFacts(short_side=800, long_side=1333)
    assert model.settings == MergeSettings(score=0.5, overlap=0.5, stuff_area=4096)
    assert {"encoder": "resnet50", "flavour": "detectron2", "width": 128}.items() <= model.arguments.items()
    assert set(translation.assumed) == {"classes", "anchor_sizes", "anchor_ratios", "encoder_options", "mean", "std"}
    assert set(alike(translation)) == {"detectron2/panoptic-fpn-r50-1x", "detectron2/panoptic-fpn-r50-3x"}


def test_files_with_anchors_and_those_written_in_training_give_the_same_network(case, imported, tmp_path):
    model, _ = imported
    expected = model.state_dict()
    forms = [(zoo(case.state | cell_anchors()), write_zoo), (trained(case.state | cell_anchors()), torch.save)]
    for content, write in [*forms, (trained(case.state), torch.save)]:
        found, translation = through_file(content, tmp_path / "model_final.pth", write)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())
        assert found.arguments == model.arguments
        known = "proposal_generator.anchor_generator.cell_anchors.0" in translation.dropped
        assert ("anchor_sizes" in translation.assumed) is not known


# ---- other forms


def network(classes=5, **options):
    """A narrow Panoptic FPN whose running statistics are not those of its birth."""
    torch.manual_seed(1)
    small = {"encoder": "resnet18", "channels": 8, "box_width": 16, "mask_width": 8, "width": 32}
    frozen = {"encoder_options": {"frozen_norm": True}}
    mean, std = (tuple(v / 255 for v in row) for row in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    model = PanopticFPN(3, classes, **small | frozen | {"mean": mean, "std": std} | options)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return everything(model.eval())


def everything(model):
    """The same model, showing all that it sees."""
    model.instance.score_threshold, model.settings = 0.0, MergeSettings(score=0.0, stuff_area=1)
    return model


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{"encoder": "resnet101"}, {"box_convs": 2, "box_layers": 1}, {"mask_convs": 2}, {"width": 64}], ids=str
)
def test_other_forms_are_told_by_names_and_shapes(options, tmp_path):
    model = network(**options)
    found, translation = through_file(trained(published(model) | pixels()), tmp_path / "model_final.pth")
    assert options.items() <= translation.arguments.items()
    assert found.classes.names == ("thing 0", "thing 1", "thing 2", "thing 3", "stuff 0")
    assert found.classes.things == (True,) * 4 + (False,)
    assert {"pixel_mean", "pixel_std", "iteration"} <= translation.dropped.keys()
    assert translation.assumed.keys() == {"anchor_sizes", "anchor_ratios", "encoder_options"}
    found.mean.copy_(model.mean)
    found.std.copy_(model.std)
    images = torch.rand(1, 3, 60, 90)
    one, other = (each.decode(each(images), [(60, 90)])[0] for each in (model, everything(found)))
    assert len(one.segments) > 3
    assert (one.ids == other.ids).mean() > 0.99


def test_names_of_classes_and_sizes_of_anchors_can_be_set(tmp_path):
    torch.save(trained(published(network(2))), tmp_path / "cells.pth")
    changes = ["classes=[cell, glass]", "anchor_sizes=[8, 16, 32, 64, 128]"]
    found, translation = import_checkpoint(tmp_path / "cells.pth", changes=changes)
    assert (found.classes.names, found.classes.things) == (("cell", "glass"), (True, False))
    assert list(found.arguments["anchor_sizes"]) == [8, 16, 32, 64, 128]
    assert "anchor_sizes" not in translation.assumed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("fc1"), r"unknown \['instance\.box_head\.layers\.1"),
        (without("sem_seg_head.p5.4"), r"missing \['semantic\.branches\.3\.4\."),
        (without("sem_seg_head.predictor.weight"), "lacks sem_seg_head.predictor.weight"),
        (without("mask_head"), "lacks roi_heads.mask_head.predictor.weight"),
        (lambda s: s | {"sem_seg_head.p6.0.weight": torch.zeros(1)}, "A Panoptic FPN of .* no entry 'sem_seg_head.p6"),
        (lambda s: s | {"sem_seg_head.predictor.bias": 1.0}, "no entry 'sem_seg_head.predictor.bias'"),
        (lambda s: s | {"roi_heads.x": torch.zeros(1)}, "A Panoptic FPN of Detectron2 has no entry 'roi_heads.x'"),
        (lambda s: s | {"sem_seg_head.predictor.weight": torch.zeros(1, 32, 1, 1)}, "of the 4 classes 4 are things"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_refused(change, message, tmp_path):
    torch.save(trained(change(published(network()))), tmp_path / "checkpoint.pth")
    with pytest.raises(KirieError, match=message):
        import_checkpoint(tmp_path / "checkpoint.pth")
