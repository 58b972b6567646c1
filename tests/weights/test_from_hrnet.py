"""HRNet checkpoints in the publisher's format: the public reference's answers, all sizes, what is refused."""

from collections import OrderedDict

import pytest
import timm
import torch

from kirie.class_lists import ADE20K, CITYSCAPES
from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.models.hrnet import HRNet
from kirie.weights.from_hrnet import recognises, translate
from kirie.weights.load import import_checkpoint
from tests.weights.parity import check_argmax, check_stages, load_case, stage_outputs, through_file

TIMM = {
    "w18_small_v1": "hrnet_w18_small",
    "w18_small_v2": "hrnet_w18_small_v2",
    "w18": "hrnet_w18",
    "w32": "hrnet_w32",
    "w48": "hrnet_w48",
}
OTHER_LAYERS = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.")
HOOKS = {
    "input": ("encoder.conv1", "input"),
    "layer1": "encoder.layer1",
    **{f"stage2_{i}": f"encoder.stage2.0.fuse_layers.{i}" for i in range(2)},
    **{f"stage3_{i}": f"encoder.stage3.2.fuse_layers.{i}" for i in range(3)},
    **{f"stage4_{i}": f"encoder.stage4.1.fuse_layers.{i}" for i in range(4)},
    "head_concat": ("head.0", "input"),
    "logits_low": "head",
}


# ---- the public reference's answers


@pytest.fixture(scope="module")
def case(shared):
    return load_case(shared, "hrnet_w18_small_v2")


@pytest.fixture(scope="module")
def imported(case, tmp_path_factory):
    """The model that comes out of the file the publisher would have written, and how it was translated."""
    return through_file(case.state, tmp_path_factory.mktemp("release") / "checkpoint.pth")


@pytest.fixture(scope="module")
def stages(case, imported):
    return stage_outputs(imported[0], HOOKS, case.image)


def test_every_stage_is_that_of_the_reference(case, stages):
    assert set(case.facts["outputs"]) == set(stages)
    check_stages(case, stages)
    check_argmax(case, stages)


def test_the_network_has_the_size_of_the_release(case, imported):
    model, translation = imported
    assert sum(p.numel() for p in model.parameters()) == case.facts["parameters"]
    assert translation.architecture == "hrnet"
    assert translation.arguments == {"size": "w18_small_v2", "align_corners": False}
    assert set(translation.dropped) == {"loss.criterion.weight"}
    assert "class weights" in translation.dropped["loss.criterion.weight"]
    assert set(translation.assumed) == {"align_corners", "classes"}
    assert "those of Cityscapes" in translation.assumed["classes"]
    assert (model.in_channels, model.classes, model.binary) == (3, CITYSCAPES, False)
    assert not model.training


@torch.no_grad()
def test_aligned_corners_change_as_much_as_in_the_reference(case, imported, stages):
    model, translation = imported
    aligned = HRNet(3, CITYSCAPES, **{**translation.arguments, "align_corners": True}).eval()
    aligned.load_state_dict(model.state_dict())
    found = stage_outputs(aligned, {}, case.image)
    facts = case.facts["sensitivity"]["mistakes"]["align_corners flipped in every bilinear resize"]
    change = float((found["logits"] - stages["logits"]).abs().max())
    assert change == pytest.approx(facts["max_abs_logit_change"], abs=0.006)  # given with two decimals
    assert (found["argmax"] != stages["argmax"]).mean() == pytest.approx(facts["argmax_changed"], abs=0.0006)


def test_the_forms_in_which_files_come_give_the_same_network(case, imported, tmp_path):
    expected = imported[0].state_dict()
    plain = OrderedDict((n.removeprefix("model."), t) for n, t in case.state.items() if not n.startswith("loss."))
    forms = {
        "without prefix": plain,
        "old": OrderedDict((n, t) for n, t in case.state.items() if not n.endswith("num_batches_tracked")),
        "training": {"epoch": 484, "best_mIoU": 0.76, "state_dict": case.state, "optimizer": {"state": {}}},
    }
    assert len(forms["old"]) < len(case.state)
    for name, content in forms.items():
        model, translation = through_file(content, tmp_path / f"{name}.pth")
        assert all(torch.equal(t, expected[n]) for n, t in model.state_dict().items()), name
        assert translation.arguments == imported[1].arguments, name


# ---- all sizes and heads, by timm's names and shapes


def published(size="w18_small_v1", classes=19, *, prefix="model.", in_channels=3):
    """Names and shapes that the publisher gives a size's tensors; the body's are those of timm."""
    with torch.device("meta"):
        network = timm.create_model(TIMM[size], in_chans=in_channels)
        body = {n: t for n, t in network.state_dict().items() if not n.startswith(OTHER_LAYERS)}
        joined = sum(body[f"stage4.0.fuse_layers.{i}.{(i + 1) % 4}.0.weight"].shape[0] if i < 3 else
                     body["transition3.3.0.0.weight"].shape[0] for i in range(4))  # fmt: skip
        head = {"last_layer.0.weight": (joined, joined, 1, 1), "last_layer.0.bias": (joined,)}
        head |= {f"last_layer.1.{leaf}": (joined,) for leaf in ("weight", "bias", "running_mean", "running_var")}
        head |= {"last_layer.3.weight": (classes, joined, 1, 1), "last_layer.3.bias": (classes,)}
        whole = body | {name: torch.empty(shape) for name, shape in head.items()}
    return OrderedDict((prefix + name, tensor) for name, tensor in whole.items())


def real(state):
    """The same with zeros in place of shapes alone."""
    return OrderedDict((n, torch.zeros(t.shape, dtype=t.dtype)) for n, t in state.items())


@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize(
    ("size", "classes", "expected"),
    [
        ("w18_small_v1", 19, CITYSCAPES),
        ("w18_small_v2", 21, 21),
        ("w18", 60, 60),
        ("w32", 20, 20),
        ("w48", 19, CITYSCAPES),
        ("w48", 59, 59),
        ("w48", 150, ADE20K),
        ("w48", 171, 171),
    ],
)
def test_every_size_and_head_is_found_by_its_shapes(size, classes, expected, prefix):
    state = published(size, classes, prefix=prefix)
    assert recognises(state)
    translation = translate(state)
    assert translation.arguments["size"] == size
    assert translation.classes == expected
    assert ("classes" in translation.assumed) == (classes in (19, 150))
    with torch.device("meta"):
        model = HRNet(translation.in_channels, translation.classes, **translation.arguments)
    shapes = {n: t.shape for n, t in model.state_dict().items() if n != "head.1.num_batches_tracked"}
    assert {n: t.shape for n, t in translation.state.items()} == shapes


@pytest.mark.parametrize(
    ("size", "prefix", "aligned"),
    [("w48", "", True), ("w48", "model.", False), ("w18_small_v2", "", False), ("w18_small_v1", "model.", False)],
)
def test_what_is_assumed_of_the_corners_is_said(size, prefix, aligned):
    translation = translate(published(size, prefix=prefix))
    assert translation.arguments["align_corners"] is aligned
    said = translation.assumed["align_corners"]
    assert said.startswith("true, as in" if aligned else "false, as in")
    assert ("hrnet_cs_8090_torch11.pth" in said) is aligned
    assert ("Set it to false" if aligned else "Set it to true") in said


def test_a_shape_that_no_release_has_is_imported_too(tmp_path):
    torch.manual_seed(0)
    arguments = {"width": 5, "blocks": 3, "modules": (2, 1, 2), "layer1": (6, 2)}
    model = HRNet(4, 7, **arguments)
    with torch.no_grad():
        model.train()(torch.rand(2, 4, 64, 64))
    names = {n: n.replace("encoder.", "").replace("head.", "last_layer.") for n in model.state_dict()}
    found, translation = through_file({names[n]: t for n, t in model.state_dict().items()}, tmp_path / "x.pth")
    assert translation.arguments == arguments | {"align_corners": False}
    assert found.classes == Classes.numbered(7)
    images = torch.rand(1, 4, 33, 50)
    with torch.no_grad():
        assert torch.equal(found(images).logits, model.eval()(images).logits)


# ---- what is refused


def without(name):
    return lambda state: OrderedDict((n, t) for n, t in state.items() if n != name)


def other(name, value):
    return lambda state: OrderedDict(state) | {name: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("model.conv1.weight"), r"lacks conv1\.weight with 4 axes"),
        (without("model.last_layer.3.weight"), r"lacks last_layer\.3\.weight"),
        (without("model.bn2.running_var"), r"missing \['encoder\.bn2\.running_var'\]"),
        (without("model.last_layer.3.bias"), r"missing \['head\.3\.bias'\]"),
        (without("model.layer1.0.conv1.weight"), r"lacks layer1\.0\.conv1\.weight"),
        (without("model.stage3.0.branches.0.0.conv1.weight"), "modules"),
        (without("model.stage4.0.fuse_layers.3.0.2.0.weight"), r"missing \['encoder\.stage4\.0\.fuse_layers\.3\.0\.2"),
        (other("model.extra", torch.zeros(2)), r"unknown \['encoder\.extra'\]"),
        (other("model.stage4.0.fuse_layers.3.0.5.0.weight", torch.zeros(2)), "unknown"),
        (other("model.bn1.weight", torch.zeros(63)), r"encoder\.bn1\.weight: \(63,\), expected \(64,\)"),
        (other("model.bn1.weight", "x"), r"'bn1\.weight' of a HRNet-Semantic-Segmentation checkpoint holds str"),
        (other("model.conv1.weight", torch.zeros(64, 3)), r"lacks conv1\.weight with 4 axes"),
        (other("conv1.weight", torch.zeros(64, 3, 3, 3)), "both with and without 'model.'"),
        (other("model.last_layer.3.weight", torch.zeros(0, 240, 1, 1)), "lacks last_layer"),
        (other("model.stage2.0.branches.0.0.conv1.weight", torch.zeros(9999, 1, 1, 1)), "width"),
        (other("model.bn1.running_mean", torch.full((64,), float("nan"))), "NaN or infinity"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(change, message, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save(change(real(published())), path)
    with pytest.raises(KirieError, match=message):
        import_checkpoint(path)


@pytest.mark.parametrize("name", ["hrnet_w18", "hrnet_w48"])
def test_a_network_that_classifies_is_refused_with_the_mend(name):
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    assert recognises(state)
    with pytest.raises(KirieError, match=r"classifies whole pictures.*encoder_weights"):
        translate(state)


def test_networks_for_other_tasks_are_refused():
    state = published()
    ocr = state | {"model.conv3x3_ocr.0.weight": state["model.conv1.weight"]}
    with pytest.raises(KirieError, match="OCR head"):
        translate(ocr)
    pose = OrderedDict((n, t) for n, t in state.items() if "last_layer" not in n)
    with pytest.raises(KirieError, match="lacks `last_layer`"):
        translate(pose | {"model.final_layer.weight": state["model.conv1.weight"]})


def test_other_layouts_are_not_taken_for_this_one():
    assert not recognises({})
    assert not recognises({"backbone." + name: tensor for name, tensor in published(prefix="").items()})
    with torch.device("meta"):
        assert not recognises(timm.create_model("resnet18").state_dict())
