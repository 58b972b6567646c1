"""Detectron2's formats and names, and what its Mask R-CNNs answer: what the tests of its three networks share."""

import pickle
import re
from collections import OrderedDict

import numpy as np
import torch
from torch.nn import functional as F

from kirie.models.mask_rcnn import CANDIDATES, PROPOSALS
from kirie.models.parts.proposals import by_anchor, select
from tests.weights.parity import check_stages

STAGES = {  # the reference's names of encoder and pyramid, and our modules
    "stem": "encoder.body.maxpool",
    **{f"res{level}": f"encoder.body.layer{level - 1}" for level in range(2, 6)},
    **{f"p{level}": f"fpn.outputs.{level - 2}" for level in range(2, 6)},
}

# ---- files


def write_zoo(content, path):
    """Writes a file as those of the model zoo are."""
    arrays = {name: tensor.numpy() for name, tensor in content["model"].items()}
    path.write_bytes(pickle.dumps({**content, "model": arrays}, protocol=2))


def zoo(state):
    """What a file of the model zoo holds."""
    return {"model": state, "__author__": "Detectron2 Model Zoo"}


def trained(state):
    """What Detectron2 writes in training."""
    return {
        "model": state,
        "optimizer": {"state": {}, "param_groups": []},
        "scheduler": {"last_epoch": 1},
        "iteration": 9,
    }


def cell_anchors():
    """What old files of the zoo hold beside the weights: corners for the ratios 0.5, 1 and 2 of height to width."""
    out = {}
    for level, size in enumerate((32, 64, 128, 256, 512)):
        rows = [[-w / 2, -h / 2, w / 2, h / 2] for w, h in ((size / r**0.5, size * r**0.5) for r in (0.5, 1, 2))]
        out[f"proposal_generator.anchor_generator.cell_anchors.{level}"] = torch.tensor(rows)
    return out


def pixels():
    return {
        "pixel_mean": torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1),
        "pixel_std": torch.tensor([57.375, 57.12, 58.395]).view(3, 1, 1),
    }


def without(part):
    return lambda state: {name: tensor for name, tensor in state.items() if part not in name}


# ---- names

_ROWS = (
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
    (r"head\.predictor\.", "sem_seg_head.predictor."),
    (r"head\.branches\.(\d)\.(\d)\.0\.", lambda m: f"sem_seg_head.p{int(m[1]) + 2}.{m[2]}."),
    (r"head\.branches\.(\d)\.(\d)\.1\.", lambda m: f"sem_seg_head.p{int(m[1]) + 2}.{m[2]}.norm."),
)


def _stage(match):
    layer, number = match[3], int(match[1]) + 1
    place = {"bn": f"conv{layer[-1]}.norm", "co": layer}.get(layer[:2])
    place = place or ("shortcut.norm" if layer.endswith("1") else "shortcut")
    return f"backbone.bottom_up.res{number}.{match[2]}.{place}."


def published(model):
    """The state dict of one of our networks under Detectron2's names, with the colours in its order."""
    out = OrderedDict()
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        own = name.removeprefix("instance.").replace("semantic.", "head.")
        new = re.sub(r"encoder\.body\.layer(\d)\.(\d+)\.(\w+?\d|downsample\.\d)\.", _stage, own)
        for pattern, place in _ROWS:
            new = re.sub(f"^{pattern}", place, new)
        out[new] = tensor.flip(1) if own == "encoder.body.conv1.weight" and tensor.shape[1] == 3 else tensor
    return out


# ---- the public reference's answers


@torch.no_grad()
def ran(model, image, stages):
    """What each stage of a network gives for an image (3, H, W) in 0..255, its input too, and the raw output."""
    kept = {}

    def keep(name):
        return lambda _, given, output: kept.update({name: output[0]})

    handles = [model.get_submodule(path).register_forward_hook(keep(name)) for name, path in stages.items()]
    first = model.get_submodule(stages["stem"].replace("maxpool", "conv1"))
    handles.append(first.register_forward_hook(lambda _, given, out: kept.update(net_input=given[0][0].flip(0))))
    raw = model(torch.from_numpy(image)[None] / 255)
    for handle in handles:
        handle.remove()
    return kept, raw


def tolerance(case, name):
    return {key: value for key, value in case.facts["tolerance"][name].items() if key != "rule"}


def check_network(case, kept, raw):
    """All stages that were kept, and the proposal head; `raw` of a `MaskRCNN`. How many there were."""
    found = kept | {"p6": kept["p5"][:, ::2, ::2]}
    for level in (2, 4, 6):
        found[f"rpn_logits_p{level}"] = raw.objectness[level - 2][0]
        found[f"rpn_deltas_p{level}"] = raw.codes[level - 2][0]
    outputs = case.facts["outputs"]
    check_stages(case._replace(facts={**case.facts, "outputs": {name: outputs[name] for name in found}}), found)
    return len(found)


@torch.no_grad()
def check_proposals(case, model, raw):
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
def check_heads(case, model, raw):
    """The heads for regions, given the reference's proposals."""
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
def check_objects(case, model, raw):
    size, answers = tuple(case.facts["input"]["output_height_width"]), case.arrays
    found = model.decode_tensors(raw, torch.tensor(size))
    result = model.decode(raw, [size])[0]
    np.testing.assert_array_equal(result.labels, answers["classes"])
    np.testing.assert_allclose(result.boxes, answers["boxes"], **tolerance(case, "boxes"))
    np.testing.assert_allclose(result.scores, answers["scores"], **tolerance(case, "scores"))
    np.testing.assert_allclose(found.maps[:8], answers["mask_probs_28"], **tolerance(case, "mask_probs_28"))
    masks = np.unpackbits(answers["masks_packed"], axis=-1, count=size[1]).astype(bool)
    for one, other in zip(result.masks, masks, strict=True):
        assert (one & other).sum() >= (0.99 if other.sum() >= 400 else 0.97) * (one | other).sum()
