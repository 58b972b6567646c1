"""YOLACT checkpoints in the publisher's format: the public reference's answers, other backbones, what is refused."""

import re
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet101

from kirie.class_lists import COCO
from kirie.errors import KirieError
from kirie.models.yolact import YOLACT
from kirie.weights.from_yolact import recognises, translate
from kirie.weights.load import import_checkpoint
from kirie.weights.releases import alike
from tests.weights.parity import check_stages, load_case, through_file

HOOKS = {
    "net_input": ("encoder.body.conv1", "input"),
    **{f"c{level}": f"encoder.body.layer{level - 1}" for level in range(2, 6)},
    **{f"p{level}": f"pyramid.outputs.{level - 3}" for level in range(3, 6)},
    "p6": "pyramid.extra.0",
    "p7": "pyramid.extra.1",
    "proto_raw": "protonet",
}
HEADS = {"conf": "logits", "bbox": "codes", "mask": "coefficients"}


# ---- the public reference's answers


@pytest.fixture(scope="module")
def case(shared):
    return load_case(shared, "yolact_r50_550")


@pytest.fixture(scope="module")
def imported(case, tmp_path_factory):
    return through_file(case.state, tmp_path_factory.mktemp("release") / "yolact_resnet50_54_800000.pth")


@pytest.fixture(scope="module")
def outputs(case, imported):
    """The raw output, every stage by the reference's name, and what each part of the head gave, level by level."""
    model, _ = imported
    kept, levels, handles = {}, {name: [] for name in HEADS}, []

    def keep(name, place):
        return lambda _, given, output: kept.update({name: (given[0] if place == "input" else output)[0]})

    def collect(name):
        return lambda _, given, output: levels[name].append(output[0])

    for name, target in HOOKS.items():
        path, place = target if isinstance(target, tuple) else (target, "output")
        handles.append(model.get_submodule(path).register_forward_hook(keep(name, place)))
    handles += [getattr(model.head, part).register_forward_hook(collect(name)) for name, part in HEADS.items()]
    with torch.no_grad():
        raw = model(torch.from_numpy(np.ascontiguousarray(case.image))[None] / 255)
    for handle in handles:
        handle.remove()
    index = case.arrays["prior_index"]
    stages = kept | {f"{name}_p{3 + i}": out for name, outs in levels.items() for i, out in enumerate(outs)}
    chosen = {
        "priors": raw.priors,
        "pred_loc": raw.codes,
        "pred_conf": raw.logits.softmax(2),
        "pred_mask": raw.coefficients,
    }
    return raw, stages, {name: values[0, index] for name, values in chosen.items()}


def test_every_stage_is_that_of_the_reference(case, outputs):
    _, stages, chosen = outputs
    named = [name for name, facts in case.facts["outputs"].items() if "full_shape" in facts]
    assert len(named) == 20
    only = case._replace(facts={**case.facts, "outputs": {name: case.facts["outputs"][name] for name in named}})
    check_stages(only, stages)
    for name, values in chosen.items():
        np.testing.assert_allclose(values, case.arrays[name], **case.facts["tolerance"][name], err_msg=name)


@torch.no_grad()
def test_objects_are_those_of_the_reference(case, imported, outputs):
    model, _ = imported
    size = tuple(case.facts["input"]["photo_height_width"])
    expected = case.arrays
    found = model.decode_tensors(outputs[0], torch.tensor(size))
    result = model.decode(outputs[0], [size])[0]
    assert len(result) == 100
    for score, box, label in zip(result.scores, result.boxes, result.labels, strict=True):
        near = np.abs(expected["det_scores"] - score) <= case.facts["tolerance"]["det_scores"]["atol"]
        near &= (np.abs(expected["boxes"] - np.trunc(box)) <= case.facts["tolerance"]["boxes"]["atol"]).all(1)
        assert (near & (expected["det_classes"] == label)).any()
    np.testing.assert_allclose(found.scores, expected["det_scores"], atol=6e-4)
    relative = found.boxes / torch.tensor([size[1], size[0], size[1], size[0]])
    np.testing.assert_allclose(relative, expected["det_boxes"].clip(0, 1), atol=2e-4)
    sure = int((expected["det_scores"] > 0.15).sum())
    masks = np.unpackbits(expected["masks_packed"], axis=-1, count=size[1]).astype(bool)
    assert len(masks) == sure == 46
    for mine, theirs in zip(result.masks[:sure], masks, strict=True):
        if not theirs.any():
            assert mine.sum() < 20
            continue
        iou = (mine & theirs).sum() / (mine | theirs).sum()
        assert iou >= (0.99 if theirs.sum() >= 400 else 0.97)


def test_the_network_has_the_size_of_the_release(case, imported):
    model, translation = imported
    assert len(model.state_dict()) == case.facts["parameters_and_buffers"] == len(case.state)
    assert sum(t.numel() for t in model.state_dict().values()) == sum(t.numel() for t in case.state.values())
    assert (translation.architecture, model.classes, model.input_size) == ("yolact", COCO, 550)
    assert translation.arguments["encoder"] == "resnet50" and not translation.dropped
    assert set(translation.assumed) == {"classes", "input_size", "scales"}
    assert list(alike(translation)) == ["yolact/resnet50"]
    assert not model.training


@torch.no_grad()
def test_old_duplicates_are_left_out(case, outputs, tmp_path):
    state = OrderedDict((n, t) for n, t in case.state.items() if not n.endswith("num_batches_tracked"))
    state["backbone.layer1.0.conv1.weight"] = case.state["backbone.layers.0.0.conv1.weight"]
    state["fpn.downsample_layers.2.weight"] = case.state["fpn.downsample_layers.1.weight"]
    model, translation = through_file(state, tmp_path / "yolact_resnet50_54_800000.pth")
    assert set(translation.dropped) == {"backbone.layer1.0.conv1.weight", "fpn.downsample_layers.2.weight"}
    raw = model(torch.from_numpy(np.ascontiguousarray(case.image))[None] / 255)
    assert torch.equal(raw.logits, outputs[0].logits)


# ---- other backbones and forms


def head(classes=5, channels=8, prototypes=4, encoder=(128, 256, 512)):
    """The entries outside of the backbone as the project names them, with random numbers."""
    shapes = {"semantic_seg_conv": (classes, channels, 1)}
    for index in range(3):
        shapes[f"fpn.lat_layers.{index}"] = (channels, encoder[2 - index], 1)
        shapes[f"fpn.pred_layers.{index}"] = (channels, channels, 3)
    for index in range(2):
        shapes[f"fpn.downsample_layers.{index}"] = (channels, channels, 3)
    for index in (0, 2, 4, 8):
        shapes[f"proto_net.{index}"] = (channels, channels, 3)
    shapes["proto_net.10"] = (prototypes, channels, 1)
    for part, count in {
        "upfeature.0": channels,
        "bbox_layer": 12,
        "conf_layer": 3 * (1 + classes),
        "mask_layer": 3 * prototypes,
    }.items():
        shapes[f"prediction_layers.0.{part}"] = (count, channels, 3)
    generator = torch.Generator().manual_seed(0)
    state = OrderedDict()
    for name, (after, before, kernel) in shapes.items():
        state[f"{name}.weight"] = torch.randn(after, before, kernel, kernel, generator=generator) * 0.05
        state[f"{name}.bias"] = torch.randn(after, generator=generator) * 0.05
    return state


def stirred(network):
    """The network with running statistics that are not those of its birth, in evaluation mode."""
    torch.manual_seed(1)
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return network.eval()


class Layer(nn.Sequential):
    """Darknet's convolution, norm and activation (Redmon and Farhadi, "YOLOv3", 2018)."""

    def __init__(self, before, after, kernel, stride=1):
        convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(after), nn.LeakyReLU(0.1))


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1, self.conv2 = Layer(channels, channels // 2, 1), Layer(channels // 2, channels, 3)

    def forward(self, x):
        return x + self.conv2(self.conv1(x))


class Darknet(nn.Module):
    """Darknet-53 with the project's names."""

    def __init__(self, depths=(1, 2, 8, 8, 4)):
        super().__init__()
        self._preconv = Layer(3, 32, 3)
        self.layers = nn.ModuleList(
            nn.Sequential(Layer(32 * 2**i, 64 * 2**i, 3, 2), *(Block(64 * 2**i) for _ in range(depth)))
            for i, depth in enumerate(depths)
        )

    def forward(self, x):
        maps = [x := self._preconv(x)]
        return maps + [x := layer(x) for layer in self.layers]


@torch.no_grad()
def test_darknet(tmp_path):
    network = stirred(Darknet())
    state = OrderedDict((f"backbone.{name}", tensor) for name, tensor in network.state_dict().items())
    path = tmp_path / "yolact_darknet53_54_800000.pth"
    model, translation = through_file(state | head(encoder=(256, 512, 1024)), path)
    assert translation.arguments["encoder"] == "darknet53"
    assert translation.arguments["encoder_options"] == {"leak": 0.1}
    images = torch.rand(1, 3, 70, 97)
    assert torch.equal(model.normalise(images), images), "its pictures are in [0, 1]"
    for found, expected in zip(model.encoder(images), network(images), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not alike(translation), "the releases have 80 classes"
    assert model.pyramid.laterals[0].weight.shape[1] == 256


def as_in_yolact(name):
    """The project's name of an entry of torchvision's ResNet."""
    return (
        re.sub(r"^layer(\d)", lambda match: f"backbone.layers.{int(match[1]) - 1}", name, count=1)
        if name.startswith("layer")
        else f"backbone.{name}"
    )


@pytest.fixture(scope="module")
def deep():
    """A ResNet-101 and a checkpoint on it."""
    network = stirred(resnet101())
    state = OrderedDict((as_in_yolact(n), t) for n, t in network.state_dict().items() if not n.startswith("fc."))
    return network, state | head(classes=80, encoder=(512, 1024, 2048))


@torch.no_grad()
def test_resnet101_at_550_and_700(deep, tmp_path):
    network, state = deep
    path = tmp_path / "yolact_base_54_800000.pth"
    model, translation = through_file(state, path)
    assert translation.arguments["encoder"] == "resnet101"
    assert set(alike(translation)) == {"yolact/base", "yolact/im700"}
    assert [name for name, row in alike(translation).items() if row.is_called(path)] == ["yolact/base"]
    images = torch.rand(1, 3, 64, 96)
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    for stage, found in enumerate(model.encoder(images)[1:], 1):
        x = getattr(network, f"layer{stage}")(x)
        torch.testing.assert_close(found, x)
    torch.save(state, path)
    large, translation = import_checkpoint(path, release="yolact/im700")
    assert (large.input_size, large.scales) == (700, (30, 61, 122, 244, 488))
    assert translation.assumed == {} and large.classes == COCO
    own, _ = import_checkpoint(path, changes=["input_size=400", "scales=[32,64,128,256,512]", "square=false"])
    assert (own.input_size, own.scales, own.square) == (400, (32, 64, 128, 256, 512), False)
    path.unlink()


@torch.no_grad()
def test_a_file_gives_what_the_model_gave_that_it_was_made_from(deep, tmp_path):
    _, state = deep
    model, translation = through_file(state, tmp_path / "yolact_base_54_800000.pth")
    again = YOLACT(3, 80, **translation.arguments).eval()
    again.load_state_dict(translation.state, strict=True)
    images = torch.rand(1, 3, 40, 64)
    model.input_size = again.input_size = 64
    assert torch.equal(model(images).logits, again(images).logits)
    assert model.mean.flatten().tolist() == pytest.approx([0.48502, 0.45796, 0.40761], abs=1e-4)


# ---- what is refused


@pytest.fixture(scope="module")
def small():
    """A checkpoint on a ResNet-18, which the project does not have but the layout does."""
    from torchvision.models import resnet18

    state = OrderedDict((as_in_yolact(n), t) for n, t in resnet18().state_dict().items() if not n.startswith("fc."))
    return state | head()


def without(*parts):
    return lambda state: {n: t for n, t in state.items() if not n.startswith(parts)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"backbone.layers.1.0.conv2.conv_offset_mask.bias": torch.zeros(1)}, r"YOLACT\+\+, with deform"),
        (lambda s: s | {"maskiou_net.maskiou_net.0.weight": torch.zeros(1)}, r"YOLACT\+\+"),
        (without("backbone.conv1", "backbone.bn1"), "neither a ResNet nor Darknet-53"),
        (lambda s: s | {"backbone._preconv.0.weight": torch.zeros(9, 3, 3, 3)}, r"Darknet of \(0, 0, 0, 0, 0\) blocks"),
        (without("backbone.layers.2.1"), r"\(2, 2, 1, 2\) blocks per stage"),
        (without("fpn.lat_layers.2"), "3 priors at each place and a pyramid over 2 maps"),
        (lambda s: s | {"prediction_layers.0.bbox_layer.weight": torch.zeros(20, 8, 3, 3)}, "5 priors at each place"),
        (lambda s: s | {"prediction_layers.1.bbox_layer.weight": torch.zeros(1)}, r"no entry 'prediction_layers\.1"),
        (lambda s: s | {"proto_net.6.weight": torch.zeros(1)}, r"no entry 'proto_net\.6"),
        (lambda s: s | {"backbone.layers.4.0.conv1.weight": torch.zeros(1)}, r"no entry 'backbone\.layers\.4"),
        (lambda s: s | {"semantic_seg_conv.bias": "x"}, r"no entry 'semantic_seg_conv\.bias'"),
        (lambda s: s | {"mean": torch.zeros(1)}, "no entry 'mean'"),
        (without("proto_net.10.bias"), r"missing \['protonet\.5\.bias'\]"),
        (without("prediction_layers.0.conf_layer.weight"), r"lacks prediction_layers\.0\.conf_layer\.weight"),
        (lambda s: s | {"semantic_seg_conv.bias": torch.zeros(9)}, r"of another shape \['semantic\.bias: \(9,\)"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_refused(change, message, small, tmp_path):
    torch.save(change(small), tmp_path / "yolact_base_1_1.pth")
    with pytest.raises(KirieError, match=message):
        import_checkpoint(tmp_path / "yolact_base_1_1.pth")
    (tmp_path / "yolact_base_1_1.pth").unlink()


def test_the_translator_knows_its_layout(small):
    assert recognises(small)
    assert not recognises({name: tensor for name, tensor in small.items() if name.startswith("backbone")})
    model = YOLACT(3, 5, encoder="resnet18", channels=8, prototypes=4)
    assert set(translate(small).state) == set(model.state_dict())


def test_pictures_of_other_channels_are_said_to_be_assumed(small):
    translation = translate(small | {"backbone.conv1.weight": torch.zeros(64, 5, 7, 7)})
    assert translation.in_channels == 5 and translation.arguments["mean"] is None
    assert "0.5 in [0, 1]" in translation.assumed["mean"]
