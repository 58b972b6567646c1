"""AdelaiDet's SOLOv2 in the publisher's format: the public reference's answers, other forms, what is refused."""

from collections import OrderedDict

import numpy as np
import pytest
import torch

from kirie.class_lists import COCO
from kirie.errors import KirieError
from kirie.models.contract import InputFacts
from kirie.models.parts.dynamic_masks import matrix_nms
from kirie.models.solov2 import SOLOv2
from kirie.weights.from_adelaidet import recognises
from kirie.weights.load import import_checkpoint
from kirie.weights.releases import alike
from tests.weights.parity import check_stages, load_case, through_file

HOOKS = {
    "net_input": ("encoder.body.conv1", "input"),
    **{f"res{level}": (f"encoder.body.layer{level - 1}", "output") for level in range(2, 6)},
    **{f"p{level}": (f"fpn.outputs.{level - 2}", "output") for level in range(2, 6)},
    **{f"mask_lvl{level}": (f"mask_head.branches.{level}", "output") for level in range(4)},
    "mask_feat": ("mask_head", "output"),
}
OTHER = {"in_channels": 3, "classes": 7, "channels": 32, "width": 64, "depth": 2, "mask_width": 32, "mask_channels": 64}


def written(state):
    """What AdelaiDet's training writes at its end."""
    return {"model": state, "optimizer": {"state": {}}, "scheduler": {"last_epoch": 9}, "iteration": 9}


# ---- the public reference's answers


@pytest.fixture(scope="module", params=["solov2_r50", "solov2_r50_pad"])
def case(shared, request):
    return load_case(shared, request.param)


@pytest.fixture(scope="module")
def imported(case, tmp_path_factory):
    return through_file({"model": case.state}, tmp_path_factory.mktemp("release") / "SOLOv2_R50_3x.pth")


@pytest.fixture(scope="module")
def outputs(case, imported):
    """The raw output, and every stage by the reference's name."""
    model, _ = imported
    kept, handles = {}, []

    def keep(name, place):
        return lambda _, given, output: kept.update({name: (given[0] if place == "input" else output)[0]})

    for name, (path, place) in HOOKS.items():
        handles.append(model.get_submodule(path).register_forward_hook(keep(name, place)))
    handles.append(model.head.register_forward_hook(lambda _, given, output: kept.update({"ins_in": given[0]})))
    with torch.no_grad():
        raw = model(torch.from_numpy(np.ascontiguousarray(case.image))[None] / 255)
    for handle in handles:
        handle.remove()
    kept["net_input"] = kept["net_input"].flip(0)  # ours takes red, green, blue
    kept["p6"] = kept["p5"][:, ::2, ::2]
    for index, map_ in enumerate(kept.pop("ins_in")):
        kept |= {f"ins_in_{index}": map_[0]}
        kept |= {f"cate_{index}": raw.categories[index][0], f"kernel_{index}": raw.kernels[index][0]}
    return raw, kept


def test_every_stage_is_that_of_the_reference(case, outputs):
    named = [name for name, facts in case.facts["outputs"].items() if "full_shape" in facts]
    assert len(named) == 23
    only = case._replace(facts={**case.facts, "outputs": {name: case.facts["outputs"][name] for name in named}})
    check_stages(only, outputs[1])


@torch.no_grad()
def test_matrix_nms_is_given_and_gives_what_the_reference_has(case, imported, outputs):
    model, _ = imported
    found = model.candidates(outputs[0])
    expected, tolerance = case.arrays, case.facts["tolerance"]
    assert len(found.labels) == case.facts["counts"]["after_area_filter"]
    close = np.abs(np.diff(expected["nms_scores_in"])) < 2e-4
    tied = np.append(close, False) | np.insert(close, 0, False)
    np.testing.assert_array_equal(found.labels.numpy()[~tied], expected["nms_classes"][~tied])
    np.testing.assert_allclose(found.scores, expected["nms_scores_in"], **tolerance["nms_scores_in"])
    off = np.abs(found.areas.numpy() - expected["nms_areas"])[~tied]
    assert (off <= np.maximum(0.005 * expected["nms_areas"][~tied], 8)).all()
    scores = matrix_nms(found.scores, found.labels, found.areas, found.overlaps)
    np.testing.assert_allclose(scores[~tied], expected["nms_scores_out"][~tied], **tolerance["nms_scores_out"])


@torch.no_grad()
def test_objects_are_those_of_the_reference(case, imported, outputs):
    model, _ = imported
    size = tuple(case.facts["input"]["output_height_width"])
    result = model.decode(outputs[0], [size])[0]
    masks = np.unpackbits(case.arrays["masks_packed"], axis=-1, count=size[1]).astype(bool)
    scores, labels = case.arrays["scores"], case.arrays["classes"]
    assert len(result) == len(masks) == case.facts["counts"]["detections"]
    assert (np.diff(result.scores) <= 0).all()
    np.testing.assert_allclose(result.scores, scores, **case.facts["tolerance"]["scores"])
    free = set(range(len(result)))
    found = list(result.masks)
    for score, label, mask in zip(scores, labels, masks, strict=True):
        least = 0.99 if mask.sum() >= 400 else 0.97
        fits = (
            i
            for i in sorted(free, key=lambda i: abs(result.scores[i] - score))
            if result.labels[i] == label
            and abs(result.scores[i] - score) <= 0.003
            and (found[i] & mask).sum() >= least * (found[i] | mask).sum()
        )
        free.remove(next(fits))
    assert not free
    np.testing.assert_array_equal(result.boxes, result.masks.boxes())


def test_the_network_is_that_of_the_release(case, imported):
    model, translation = imported
    tensors = {n: t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert len(tensors) == case.facts["parameters_and_buffers"]
    assert (translation.architecture, model.classes) == ("solov2", COCO)
    assert translation.publisher == "adelaidet" and not translation.dropped
    assert translation.assumed.keys() == {"classes", "grids", "encoder_options", "mean", "std"}
    assert model.arguments["encoder_options"] == {"frozen_norm": True, "stride_first": True}
    assert model.inputs == InputFacts(short_side=800, long_side=1333)
    assert list(alike(translation)) == ["adelaidet/solov2-r50"]
    assert not model.training


# ---- other forms


def published(model):
    """The state dict of our SOLOv2 under AdelaiDet's names, with the colours in its order."""
    places = {"category_tower": "cate_tower", "kernel_tower": "kernel_tower"}
    predictors = {"categories": "cate_pred", "kernels": "kernel_pred"}
    state = OrderedDict()
    for name, tensor in model.state_dict().items():
        part, *words = name.split(".")
        leaf = words[-1]
        if name == "encoder.body.conv1.weight":
            state["backbone.bottom_up.stem.conv1.weight"] = tensor.flip(1) if tensor.shape[1] == 3 else tensor
        elif part == "encoder" and words[1] == "bn1":
            state[f"backbone.bottom_up.stem.conv1.norm.{leaf}"] = tensor
        elif part == "encoder":
            stage, block, layer = int(words[1][-1]) + 1, words[2], words[3]
            place = "shortcut" if layer == "downsample" else f"conv{layer[-1]}"
            norm = ".norm" if layer.startswith("bn") or words[3:5] == ["downsample", "1"] else ""
            state[f"backbone.bottom_up.res{stage}.{block}.{place}{norm}.{leaf}"] = tensor
        elif part == "fpn":
            state[f"backbone.fpn_{words[0][:-1]}{int(words[1]) + 2}.{leaf}"] = tensor
        elif words[0] in predictors:
            state[f"ins_head.{predictors[words[0]]}.{leaf}"] = tensor
        elif words[0] in places:
            state[f"ins_head.{places[words[0]]}.{3 * int(words[1]) + int(words[3])}.{leaf}"] = tensor
        elif words[0] == "predictor":
            state[f"mask_head.conv_pred.{words[1]}.{leaf}"] = tensor
        else:
            state[f"mask_head.convs_all_levels.{words[1]}.conv{int(words[2]) // 2}.{words[3]}.{leaf}"] = tensor
    return OrderedDict((n, t) for n, t in state.items() if not n.endswith("num_batches_tracked"))


def network(encoder="resnet50", **changed):
    """A narrow SOLOv2 whose running statistics are not those of its birth."""
    torch.manual_seed(1)
    options = {"stride_first": encoder not in ("resnet18", "resnet34"), "frozen_norm": True}
    model = SOLOv2(encoder=encoder, encoder_options=options, **(OTHER | changed))
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize(
    ("encoder", "changed"),
    [("resnet101", {}), ("resnet50", {"kernel_size": 3, "depth": 3, "classes": 1}), ("resnet50", {"in_channels": 4})],
)
def test_other_forms_are_told_by_their_tensors(encoder, changed, tmp_path):
    model = network(encoder, **changed)
    found, translation = through_file(written(published(model)), tmp_path / "model_final.pth")
    assert translation.arguments["encoder"] == encoder
    assert translation.dropped.keys() == {"optimizer", "scheduler", "iteration"}
    assert "classes" not in translation.assumed
    assert len(found.classes) == (OTHER | changed)["classes"]
    mean = torch.tensor([123.675, 116.28, 103.53]) if found.in_channels == 3 else torch.zeros(4)
    model.mean.copy_(mean.view(1, -1, 1, 1) / 255)
    model.std.fill_(1 / 255)
    images = torch.rand(1, found.in_channels, 60, 90)
    mine, theirs = found(images), model(images)
    torch.testing.assert_close(mine.features, theirs.features)
    for a, b in zip((*mine.categories, *mine.kernels), (*theirs.categories, *theirs.kernels), strict=True):
        torch.testing.assert_close(a, b)


def test_a_resnet_101_of_the_release_may_be_the_release(tmp_path):
    model = network("resnet101", classes=80, width=512, depth=1)
    _, translation = through_file(written(published(model)), tmp_path / "SOLOv2_R101_3x.pth")
    assert list(alike(translation)) == ["adelaidet/solov2-r101"]


def test_grids_can_be_told(tmp_path):
    path = tmp_path / "model_final.pth"
    torch.save(written(published(network())), path)
    ranges = "scale_ranges=[[1, 56], [28, 112], [56, 224], [112, 448], [224, 896]]"
    model, translation = import_checkpoint(path, changes=["grids=[20, 18, 12, 8, 6]", ranges])
    assert model.grids == (20, 18, 12, 8, 6) and model.scale_ranges[0] == (1, 56)
    assert "grids" not in translation.assumed


# ---- what is refused


@pytest.fixture(scope="module")
def small():
    return published(network())


def with_entries(*names):
    return lambda state: state | {name: torch.zeros(1) for name in names}


def without(part):
    return lambda state: OrderedDict((n, t) for n, t in state.items() if part not in n)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_entries("backbone.bottom_up.res3.0.conv2_offset.weight"), r"deformable convolutions \(backbone\.bott"),
        (with_entries("ins_head.cate_tower.0.offset.weight"), r"deformable convolutions"),
        (with_entries("ins_head.other.weight"), "A SOLOv2 of AdelaiDet has no entry 'ins_head.other.weight'"),
        (with_entries("ins_head.cate_tower.2.weight"), "unknown"),
        (with_entries("proposal_generator.x"), "A SOLOv2 of AdelaiDet has no entry 'proposal_generator.x'"),
        (without("cate_pred"), "lacks ins_head.cate_pred.weight"),
        (without("kernel_tower.0"), r"missing \['head\.kernel_tower\.0\.0\.0\.weight'"),
        (without("convs_all_levels.3.conv2"), r"missing \['mask_head\.branches\.3\.4"),
        (without("fpn_lateral3"), r"missing \['fpn\.laterals\.1"),
        (without("res4.5"), r"\(3, 4, 5, 3\) blocks per stage"),
        (lambda s: s | {"ins_head.kernel_pred.weight": torch.zeros(100, 64, 3, 3)}, "100 values for 64 mask features"),
        (lambda s: s | {"ins_head.cate_pred.bias": 1.0}, "no entry 'ins_head.cate_pred.bias'"),
        (lambda s: s | {"ins_head.cate_pred.bias": torch.zeros(3)}, "of another shape"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(change, message, small, tmp_path):
    torch.save(written(change(small)), tmp_path / "checkpoint.pth")
    with pytest.raises(KirieError, match=message):
        import_checkpoint(tmp_path / "checkpoint.pth")


@pytest.mark.parametrize(
    "names",
    [
        ("backbone.conv1.weight", "mask_head.kernel_convs.0.conv.weight", "mask_head.conv_cls.weight"),
        ("backbone.conv1.weight", "bbox_head.cate_convs.0.conv.weight", "bbox_head.solo_cate.weight"),
        ("backbone.conv1.weight", "mask_feat_head.convs_all_levels.0.conv0.conv.weight"),
    ],
)
def test_other_projects_solov2_are_refused_by_name(names, tmp_path):
    torch.save({"state_dict": {name: torch.zeros(1) for name in names}, "meta": {}}, tmp_path / "epoch_36.pth")
    with pytest.raises(KirieError, match="those of MMDetection or of the original SOLO"):
        import_checkpoint(tmp_path / "epoch_36.pth")


def test_other_layouts_are_not_taken_for_adelaidets(small):
    assert recognises(small)
    assert not recognises({"ins_head.x": torch.zeros(1)})
    assert not recognises({"roi_heads.mask_head.predictor.weight": torch.zeros(1), "mask_head.x": torch.zeros(1)})
    assert not recognises({})
