"""Detectron2's Mask R-CNNs in the publisher's formats: the public reference's answers, other forms, what is refused."""

import pickle
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kirie.class_lists import COCO
from kirie.errors import KirieError
from kirie.models.contract import InputFacts
from kirie.models.mask_rcnn import CANDIDATES, PROPOSALS, MaskRCNN
from kirie.models.parts.proposals import by_anchor, select
from kirie.weights.load import import_checkpoint
from tests.weights.parity import check_stages, load_case, through_file

HOOKS = {
    "stem": "encoder.body.maxpool",
    **{f"res{level}": f"encoder.body.layer{level - 1}" for level in range(2, 6)},
    **{f"p{level}": f"fpn.outputs.{level - 2}" for level in range(2, 6)},
}


def write_zoo(content, path):
    """Writes a file as those of the model zoo are."""
    arrays = {name: tensor.numpy() for name, tensor in content["model"].items()}
    path.write_bytes(pickle.dumps({**content, "model": arrays}, protocol=2))


def cell_anchors():
    """What old files of the zoo hold beside the weights: corners for the ratios 0.5, 1 and 2 of height to width."""
    out = {}
    for level, size in enumerate((32, 64, 128, 256, 512)):
        rows = [[-w / 2, -h / 2, w / 2, h / 2] for w, h in ((size / r**0.5, size * r**0.5) for r in (0.5, 1, 2))]
        out[f"proposal_generator.anchor_generator.cell_anchors.{level}"] = torch.tensor(rows)
    return out


# ---- the public reference's answers


@pytest.fixture(scope="module", params=["d2_mask_rcnn_r50_fpn", "d2_mask_rcnn_r50_fpn_pad"])
def case(request, shared):
    return load_case(shared, request.param)


@pytest.fixture(scope="module")
def imported(case, tmp_path_factory):
    """The model that comes out of the file the model zoo would have."""
    zoo = {"model": case.state, "__author__": "Detectron2 Model Zoo"}
    return through_file(zoo, tmp_path_factory.mktemp("release") / "model_final.pkl", write_zoo)


@pytest.fixture(scope="module")
@torch.no_grad()
def ran(case, imported):
    """What each stage of the network gives, and the raw output."""
    model, kept = imported[0], {}

    def keep(name):
        return lambda _, given, output: kept.update({name: output[0]})

    handles = [model.get_submodule(path).register_forward_hook(keep(name)) for name, path in HOOKS.items()]
    first = model.encoder.body.conv1
    handles.append(first.register_forward_hook(lambda _, given, out: kept.update(net_input=given[0][0].flip(0))))
    raw = model(torch.from_numpy(case.image)[None] / 255)
    for handle in handles:
        handle.remove()
    return kept, raw


def tolerance(case, name):
    return {key: value for key, value in case.facts["tolerance"][name].items() if key != "rule"}


def compared(case, *names):
    return case._replace(facts={**case.facts, "outputs": {n: case.facts["outputs"][n] for n in names}})


def test_every_stage_is_that_of_the_reference(case, ran):
    found, raw = dict(ran[0]), ran[1]
    found["p6"] = found["p5"][:, ::2, ::2]
    for level in (2, 4, 6):
        found[f"rpn_logits_p{level}"] = raw.objectness[level - 2][0]
        found[f"rpn_deltas_p{level}"] = raw.codes[level - 2][0]
    check_stages(compared(case, *found), found)
    assert len(found) == 17


@torch.no_grad()
def test_proposals_are_those_of_the_reference(case, imported, ran):
    model, raw = imported[0], ran[1]
    boxes, logits = select(
        [by_anchor(x, 1)[0, :, 0] for x in raw.objectness], [by_anchor(x, 4)[0] for x in raw.codes],
        model._anchors(raw), raw.seen[0], candidates=CANDIDATES["prediction"], most=PROPOSALS,
    )  # fmt: skip
    expected = torch.from_numpy(case.arrays["proposals"])
    away, place = (expected[:, None] - boxes).abs().amax(2).min(1)
    near = away < 0.05
    assert len(boxes) == len(expected) and near.float().mean() >= 0.98
    given = torch.from_numpy(case.arrays["proposal_logits"])
    torch.testing.assert_close(logits[place[near]], given[near], **tolerance(case, "proposal_logits"))
    assert (logits.diff() <= 0).all()


@torch.no_grad()
def test_heads_answer_the_references_proposals_alike(case, imported, ran):
    model, raw = imported[0], ran[1]
    index = case.arrays["roi_index"]
    regions = torch.from_numpy(case.arrays["proposals"][index])
    kept = {}
    last = model.box_head.layers[-1]
    handle = last.register_forward_hook(lambda _, given, out: kept.update(features=F.relu(out)))
    pooled = model._pooled([x.contiguous() for x in raw.maps], [regions], 7)
    logits, codes = model.box_head(pooled)
    handle.remove()
    found = {
        "roi_pooled": pooled, "roi_box_feat": kept["features"], "roi_cls_logits": logits,
        "roi_box_deltas": codes.flatten(1),
    }  # fmt: skip
    for name, full in found.items():
        steps = case.facts["outputs"][name].get("steps") or [1] * full.ndim
        thinned = full.numpy()[(slice(None), *(slice(None, None, step) for step in steps[1:]))]
        np.testing.assert_allclose(thinned, case.arrays[name], **tolerance(case, name), err_msg=name)


@torch.no_grad()
def test_objects_are_those_of_the_reference(case, imported, ran):
    model, raw = imported[0], ran[1]
    size, answers = tuple(case.facts["input"]["output_height_width"]), case.arrays
    found = model.decode_tensors(raw, torch.tensor(size))
    result = model.decode(raw, [size])[0]
    np.testing.assert_array_equal(result.labels, answers["classes"])
    np.testing.assert_allclose(result.boxes, answers["boxes"], atol=0.02)
    np.testing.assert_allclose(result.scores, answers["scores"], atol=5e-4)
    np.testing.assert_allclose(found.maps[:8], answers["mask_probs_28"], atol=5e-4)
    masks = np.unpackbits(answers["masks_packed"], axis=-1, count=size[1]).astype(bool)
    for one, other in zip(result.masks, masks, strict=True):
        assert (one & other).sum() >= (0.99 if other.sum() >= 400 else 0.97) * (one | other).sum()


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


def published(model):
    """The state dict of our Mask R-CNN under Detectron2's names, with the colours in its order."""
    rows = (
        (r"encoder\.body\.bn1\.", "backbone.bottom_up.stem.conv1.norm."),
        (r"encoder\.body\.conv1\.", "backbone.bottom_up.stem.conv1."),
        (r"fpn\.(lateral|output)s\.(\d)\.", lambda m: f"backbone.fpn_{m[1]}{int(m[2]) + 2}."),
        (r"proposals\.convs\.0\.0\.", "proposal_generator.rpn_head.conv."),
        (r"proposals\.objectness\.", "proposal_generator.rpn_head.objectness_logits."),
        (r"proposals\.codes\.", "proposal_generator.rpn_head.anchor_deltas."),
        (r"box_head\.convs\.(\d)\.0\.", lambda m: f"roi_heads.box_head.conv{int(m[1]) + 1}."),
        (r"box_head\.layers\.(\d)\.", lambda m: f"roi_heads.box_head.fc{int(m[1]) + 1}."),
        (r"box_head\.logits\.", "roi_heads.box_predictor.cls_score."),
        (r"box_head\.codes\.", "roi_heads.box_predictor.bbox_pred."),
        (r"mask_head\.convs\.(\d)\.0\.", lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}."),
        (r"mask_head\.enlarge\.", "roi_heads.mask_head.deconv."),
        (r"mask_head\.predictor\.", "roi_heads.mask_head.predictor."),
    )

    def stage(match):
        layer, number = match[3], int(match[1]) + 1
        place = {"bn": f"conv{layer[-1]}.norm", "co": layer}.get(layer[:2])
        place = place or ("shortcut.norm" if layer.endswith("1") else "shortcut")
        return f"backbone.bottom_up.res{number}.{match[2]}.{place}."

    out = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        new = re.sub(r"encoder\.body\.layer(\d)\.(\d+)\.(\w+?\d|downsample\.\d)\.", stage, name)
        for pattern, place in rows:
            new = re.sub(f"^{pattern}", place, new)
        out[new] = tensor.flip(1) if name == "encoder.body.conv1.weight" and tensor.shape[1] == 3 else tensor
    return out


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


def pixels():
    return {
        "pixel_mean": torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1),
        "pixel_std": torch.tensor([57.375, 57.12, 58.395]).view(3, 1, 1),
    }


def trained(state):
    """What Detectron2 writes in training."""
    return {"model": state, "optimizer": {"state": {}, "param_groups": []}, "scheduler": {}, "iteration": 9}


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


def without(part):
    return lambda state: {n: t for n, t in state.items() if part not in n}


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
