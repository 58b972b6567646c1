"""PSPNet checkpoints in the publisher's format: the public reference's answers, all depths, what is refused."""

from collections import OrderedDict

import pytest
import torch

from kirie.class_lists import ADE20K, CITYSCAPES, VOC
from kirie.errors import KirieError
from kirie.models.pspnet import PSPNet
from kirie.weights.from_semseg import recognises, translate
from kirie.weights.load import import_checkpoint
from tests.weights.parity import check_argmax, check_stages, load_case, stage_outputs, through_file

HOOKS = {
    "input": ("encoder.body.conv1", "input"),
    "layer0": "encoder.body.maxpool",
    **{f"layer{stage}": f"encoder.body.layer{stage}" for stage in range(1, 5)},
    **{f"ppm_bin{bins}": f"head.branches.{i}" for i, bins in enumerate((1, 2, 3, 6))},
    "logits_low": "head",
    "aux_low": "auxiliary",
}
STEM = {"conv1.0": "0", "conv1.1": "1", "conv1.3": "3", "conv1.4": "4", "conv1.6": "6", "bn1": "7"}
HEAD = {"mix": "0", "norm": "1", "classifier": "4", "0.0": "0", "0.1": "1", "2": "4"}


def published(model):
    """The state dict of our PSPNet under the names that the project gives its tensors."""
    state = OrderedDict()
    for name, tensor in model.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "encoder":
            place, _, leaf = rest.removeprefix("body.").rpartition(".")
            new = f"layer0.{STEM[place]}.{leaf}" if place in STEM else f"{place}.{leaf}"
        elif rest.startswith("branches."):
            branch, layer, leaf = rest.removeprefix("branches.").split(".")
            new = f"ppm.features.{branch}.{int(layer) + 1}.{leaf}"
        else:
            place, _, leaf = rest.rpartition(".")
            new = f"{'cls' if part == 'head' else 'aux'}.{HEAD[place]}.{leaf}"
        state[f"module.{new}"] = tensor
    return state


def as_published(state):
    """What the project writes in training."""
    return {"epoch": 100, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}


def network(**options):
    """A narrow PSPNet of the release's form whose running statistics are not those of its birth."""
    torch.manual_seed(1)
    options = {"encoder": "resnet50s", "width": 8, "encoder_options": {"dilate_first": True}} | options
    model = PSPNet(options.pop("in_channels", 3), options.pop("classes", 5), **options)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return model.eval()


# ---- the public reference's answers


@pytest.fixture(scope="module")
def case(shared):
    return load_case(shared, "semseg_pspnet50")


@pytest.fixture(scope="module")
def imported(case, tmp_path_factory):
    return through_file(as_published(case.state), tmp_path_factory.mktemp("release") / "train_epoch_100.pth")


@pytest.fixture(scope="module")
def stages(case, imported):
    found = stage_outputs(imported[0], HOOKS, case.image)
    maps = [found["layer4"], *(found.pop(f"ppm_bin{bins}") for bins in (2, 3)), found["ppm_bin6"]]
    maps.insert(1, found["ppm_bin1"])  # ours never joins them, see PyramidHead.mixed
    size = found["layer4"].shape[-2:]
    enlarged = [torch.nn.functional.interpolate(m[None], size, mode="bilinear", align_corners=True)[0] for m in maps]
    return found | {"ppm": torch.cat(enlarged)}


def test_every_stage_is_that_of_the_reference(case, stages):
    assert set(case.facts["outputs"]) == set(stages)
    check_stages(case, stages)
    check_argmax(case, stages)


def test_the_network_has_the_size_of_the_release(case, imported):
    model, translation = imported
    assert sum(p.numel() for p in model.parameters()) == case.facts["parameters"]
    assert translation.architecture == "pspnet"
    assert translation.arguments["encoder"] == "resnet50s"
    assert set(translation.dropped) == {"epoch", "optimizer"}
    assert set(translation.assumed) == {"classes"}
    assert (model.in_channels, model.classes, model.binary) == (3, ADE20K, False)
    assert not model.training


@torch.no_grad()
def test_a_mistake_changes_as_much_as_in_the_reference(case, imported, stages):
    model, translation = imported
    size = case.image.shape[1:]
    wrong = PSPNet(3, ADE20K, **{**translation.arguments, "encoder_options": {}}).eval()
    wrong.load_state_dict(model.state_dict())
    changes = {
        "dilation 1/2 in the first blocks of layer3/4 (torchvision's rule)": stage_outputs(wrong, {}, case.image)
    }
    wrong = PSPNet(3, ADE20K, **translation.arguments).eval()
    wrong.load_state_dict(model.state_dict())
    wrong.head.align_corners = False
    low = stage_outputs(wrong, {"low": "head"}, case.image)["low"][None]
    logits = torch.nn.functional.interpolate(low, size=size, mode="bilinear", align_corners=False)[0]
    changes["align_corners flipped in every bilinear resize"] = {"logits": logits, "argmax": logits.argmax(0).numpy()}
    for mistake, found in changes.items():
        facts = case.facts["sensitivity"]["mistakes"][mistake]
        change = float((found["logits"] - stages["logits"]).abs().max())
        assert change == pytest.approx(facts["max_abs_logit_change"], rel=0.01)
        assert (found["argmax"] != stages["argmax"]).mean() == pytest.approx(facts["argmax_changed"], abs=0.0006)


# ---- other depths and forms


@torch.no_grad()
@pytest.mark.parametrize(("encoder", "more"), [("resnet101s", {3: 23}), ("resnet152s", {2: 8, 3: 36})])
def test_other_depths_are_told_by_their_blocks(encoder, more, case, stages, tmp_path):
    state = OrderedDict(case.state)
    for stage, blocks in more.items():
        usual = {2: 4, 3: 6}[stage]
        names = [n for n in case.state if n.startswith(f"module.layer{stage}.{usual - 1}.")]
        for block in range(usual, blocks):
            for name in names:
                tensor = case.state[name]
                changed = tensor * 0.1 if name.endswith("bn3.weight") else tensor  # so that sums stay small
                state[name.replace(f".{usual - 1}.", f".{block}.", 1)] = changed
    model, translation = through_file(as_published(state), tmp_path / "train_epoch_100.pth")
    assert translation.arguments["encoder"] == encoder
    first = min(more)
    found = stage_outputs(model, HOOKS, case.image)
    for name in ("layer0", "layer1", "layer2")[:first]:
        torch.testing.assert_close(found[name], stages[name])
    assert not torch.allclose(found[f"layer{first}"], stages[f"layer{first}"], atol=1e-3)
    assert found["logits"].isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "classes"),
    [
        ({"classes": 21}, VOC),
        ({"classes": 19, "auxiliary": False}, CITYSCAPES),
        ({"classes": 5, "in_channels": 4}, 5),
    ],
    ids=["VOC", "Cityscapes", "own"],
)  # fmt: skip
def test_the_forms_in_which_files_come_give_equal_outputs(options, classes, tmp_path):
    model = network(**options)
    images = torch.rand(1, model.in_channels, 41, 57)
    expected = model(images)
    plain = {n.removeprefix("module."): t for n, t in published(model).items() if not n.endswith("num_batches_tracked")}
    for state in (published(model), plain):
        found, translation = through_file(as_published(state), tmp_path / "checkpoint.pth")
        assert translation.classes == classes
        raw = found(images)
        assert torch.equal(raw.logits, expected.logits)
        assert (raw.auxiliary is None) == (expected.auxiliary is None) == (options.get("auxiliary") is False)
        if found.auxiliary is not None:
            logits = [m.auxiliary_logits(r.auxiliary, (41, 57)) for m, r in ((found, raw), (model, expected))]
            assert torch.equal(*logits)


# ---- what is refused


@pytest.fixture(scope="module")
def small():
    return {n.removeprefix("module."): t for n, t in published(network()).items()}


def without(name):
    return lambda state: {n: t for n, t in state.items() if n != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"psa.reduce.0.weight": torch.zeros(1)}, "PSANet, the project's other architecture"),
        (lambda s: {n: t for n, t in s.items() if not n.startswith("ppm.features.3")}, "pyramid has 3 branches"),
        (lambda s: {n: t for n, t in s.items() if not n.startswith("layer3.5")}, r"\(3, 4, 5, 3\) blocks per stage"),
        (lambda s: s | {"layer0.2.weight": torch.zeros(1)}, r"no entry 'layer0\.2\.weight'"),
        (lambda s: s | {"cls.0.weight": "x"}, r"no entry 'cls\.0\.weight'"),
        (lambda s: s | {"extra": torch.zeros(1)}, "no entry 'extra'"),
        (lambda s: s | {"layer1.0.conv9.weight": torch.zeros(1)}, r"unknown \['encoder\.body\.layer1\.0\.conv9"),
        (lambda s: s | {"cls.4.bias": torch.zeros(9)}, r"shape \['head\.classifier\.bias: \(9,\), expected \(5,\)"),
        (lambda s: s | {"cls.4.weight": torch.zeros(5)}, r"lacks cls\.4\.weight with 4 axes"),
        (without("cls.4.weight"), r"lacks cls\.4\.weight"),
        (without("aux.4.bias"), r"missing \['auxiliary\.2\.bias'\]"),
        (without("layer4.2.bn3.running_var"), r"missing \['encoder\.body\.layer4\.2\.bn3\.running_var'\]"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_refused(change, message, small, tmp_path):
    torch.save(change(small), tmp_path / "checkpoint.pth")
    with pytest.raises(KirieError, match=message):
        import_checkpoint(tmp_path / "checkpoint.pth")
    (tmp_path / "checkpoint.pth").unlink()


def test_the_translator_knows_its_layout(small):
    assert recognises(small)
    assert not recognises({"layer1.0.conv1.weight": torch.zeros(1)})  # torchvision's ResNet
    assert set(translate(small).state) == set(network().state_dict())
