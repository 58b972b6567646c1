"""Checkpoints of DeepLabV3Plus-Pytorch: parity with the release stage by stage, and with the facts of its variants."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import ASPP, DeepLabHead

from kirie.class_lists import CITYSCAPES, VOC
from kirie.errors import KirieError
from kirie.models import model_class
from kirie.weights.from_vainf import recognises, translate
from kirie.weights.load import import_checkpoint
from tests.weights.parity import check_argmax, check_stages, load_case, stage_outputs, through_file

HOOKS = {
    "input": ("encoder", "input"),
    "stem": "encoder.body.maxpool",
    **{f"layer{stage}": f"encoder.body.layer{stage}" for stage in (1, 2, 3, 4)},
    "low_project": "low",
    "aspp": "aspp",
    "head_concat": ("head", "input"),
    "logits_low": "head",
}


def as_published(state):
    """What the project saves: the state dict among the state of its training, with the score as a NumPy number."""
    return {
        "cur_itrs": 30000,
        "model_state": OrderedDict(state),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01, "params": [0, 1]}]},
        "scheduler_state": {"last_epoch": 30000},
        "best_score": np.float64(0.772),
    }


@pytest.fixture(scope="module")
def case(shared):
    return load_case(shared, "vainf_deeplabv3plus_resnet50")


@pytest.fixture(scope="module")
def imported(case, tmp_path_factory):
    """The model that comes out of the file that the project publishes, and how it was translated."""
    path = tmp_path_factory.mktemp("release") / "latest.pth"  # a name that tells no release
    return through_file(as_published(case.state), path)


def test_the_network_has_the_size_of_the_release(case, imported):
    model, translation = imported
    assert sum(p.numel() for p in model.parameters()) == case.facts["parameters"] == 39_761_845
    assert (translation.publisher, translation.architecture) == ("vainf", "deeplabv3plus")
    assert set(translation.dropped) == {"cur_itrs", "optimizer_state", "scheduler_state", "best_score"}
    assert set(translation.assumed) == {"classes", "output_stride"}
    assert (model.in_channels, model.classes, model.binary) == (3, VOC, False)
    assert not model.training


def test_every_stage_is_that_of_the_reference(case, imported):
    found = stage_outputs(imported[0], HOOKS, case.image)
    check_stages(case, found)
    check_argmax(case, found)


class Padded(nn.Module):
    """A block of torchvision's MobileNetV2 as the project has it: zeros around what comes in, none around the 3 x 3."""

    def __init__(self, block, stride, dilation):
        super().__init__()
        self.conv, self.add, self.dilation = block.conv, block.use_res_connect, dilation
        depthwise = next(m for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
        depthwise.padding, depthwise.dilation, depthwise.stride = (0, 0), (dilation, dilation), (stride, stride)

    def forward(self, x):
        out = self.conv(F.pad(x, [self.dilation] * 4))
        return x + out if self.add else out


class Separable(nn.Module):
    """A convolution that the project's own tool made separable."""

    def __init__(self, old):
        super().__init__()
        size = {"padding": old.padding, "dilation": old.dilation, "bias": False}
        self.body = nn.Sequential(
            nn.Conv2d(old.in_channels, old.in_channels, 3, groups=old.in_channels, **size),
            nn.Conv2d(old.in_channels, old.out_channels, 1, bias=False),
        )

    def forward(self, x):
        return self.body(x)


def separated(module):
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d) and child.kernel_size == (3, 3):
            setattr(module, name, Separable(child))
        else:
            separated(child)


def mobilenet(output_stride):
    """The project's MobileNetV2 as its two parts, by torchvision's tensors."""
    features = torchvision.models.mobilenet_v2().features
    features[0][0].padding = (0, 0)
    stride, rate = 2, 1
    for index, block in enumerate(features):
        if not 0 < index < 18:
            continue
        own, before = block.stride, rate
        if own == 2 and stride == output_stride:
            own, rate = 1, rate * 2
        stride *= own
        features[index] = Padded(block, own, before)  # the block that would halve has the rate before it
    return nn.ModuleDict({"low_level_features": features[:4], "high_level_features": features[4:-1]})


class Reference(nn.Module):
    """The project's networks, put together from torchvision's parts."""

    def __init__(self, backbone, plus, classes, output_stride=16, separable=False):
        super().__init__()
        rates = (6, 12, 18) if output_stride == 16 else (12, 24, 36)
        self.plus, self.mobile = plus, backbone == "mobilenet"
        if self.mobile:
            self.backbone = mobilenet(output_stride)
        else:
            dilation = [False, output_stride == 8, True]
            self.backbone = getattr(torchvision.models, backbone)(replace_stride_with_dilation=dilation)
            del self.backbone.fc, self.backbone.avgpool
        low, high = (24, 320) if self.mobile else (256, 2048)
        if plus:
            norm = [nn.BatchNorm2d(48), nn.ReLU()], [nn.BatchNorm2d(256), nn.ReLU()]
            self.classifier = nn.ModuleDict({
                "project": nn.Sequential(nn.Conv2d(low, 48, 1, bias=False), *norm[0]),
                "aspp": ASPP(high, rates),
                "classifier": nn.Sequential(
                    nn.Conv2d(304, 256, 3, padding=1, bias=False), *norm[1], nn.Conv2d(256, classes, 1)
                ),
            })  # fmt: skip
        else:
            self.classifier = nn.ModuleDict({"classifier": DeepLabHead(high, classes, rates)})
        if separable:
            separated(self.classifier)

    def forward(self, x):
        size, body, head = x.shape[-2:], self.backbone, self.classifier
        if self.mobile:
            low = body["low_level_features"](x)
            high = body["high_level_features"](low)
        else:
            low = body.layer1(body.maxpool(body.relu(body.bn1(body.conv1(x)))))
            high = body.layer4(body.layer3(body.layer2(low)))
        if self.plus:
            low, high = head["project"](low), head["aspp"](high)
            high = F.interpolate(high, size=low.shape[-2:], mode="bilinear")
            high = torch.cat([low, high], 1)
        return F.interpolate(head["classifier"](high), size=size, mode="bilinear")


def reference(*args, **options):
    """With random weights and running statistics of a harmless size, in evaluation mode."""
    torch.manual_seed(0)
    network = Reference(*args, **options)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.2)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("bn3.weight"):
            tensor.uniform_(0.1, 0.4)
        elif name.endswith(("bn1.bias", "0.1.bias")):
            tensor.uniform_(-0.5, 0.5)  # so that zeros before a convolution differ from zeros after it
    return network.eval()


VARIANTS = [
    ("resnet50", False, {}),
    ("resnet50", True, {"output_stride": 8}),
    ("resnet50", True, {"separable": True}),
    ("resnet101", True, {}),
    ("mobilenet", False, {}),
    ("mobilenet", True, {}),
    ("mobilenet", True, {"output_stride": 8, "separable": True}),
]


@pytest.mark.parametrize(("backbone", "plus", "options"), VARIANTS)
@pytest.mark.parametrize("size", [(64, 97), (81, 66)])
@torch.no_grad()
def test_the_variants_answer_as_the_project_describes_them(backbone, plus, options, size):
    network = reference(backbone, plus, 19, **options)
    state = network.state_dict()
    assert recognises(state)
    translation = translate(state)
    assert translation.architecture == ("deeplabv3plus" if plus else "deeplabv3")
    assert translation.classes == CITYSCAPES
    assert translation.arguments["separable"] is options.get("separable", False)
    arguments = {**translation.arguments, "output_stride": options.get("output_stride", 16)}
    model = model_class(translation.architecture)(translation.in_channels, translation.classes, **arguments).eval()
    model.load_state_dict(translation.state)
    images = torch.rand(2, 3, *size)
    expected = network((images - model.mean) / model.std)
    found = F.interpolate(model(images).logits, size=size, mode="bilinear")
    assert 0.01 < expected.std() < 1000
    torch.testing.assert_close(found, expected, atol=2e-5 * float(expected.std()), rtol=1e-5)


def test_the_output_stride_can_be_set(tmp_path):
    network = reference("mobilenet", True, 3, output_stride=8)
    path = tmp_path / "latest.pth"
    torch.save(as_published(network.state_dict()), path)
    model, _ = import_checkpoint(path, changes=["output_stride=8"])
    assert model.encoder.strides == [2, 4, 8, 8, 8]
    assert [branch[0].dilation[0] for branch in model.aspp.branches[1:4]] == [12, 24, 36]
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = network((images - model.mean) / model.std)
        found = F.interpolate(model(images).logits, size=(64, 96), mode="bilinear")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "value", "reason"), [
    ("classifier.classifier.3.weight", None, "lacks classifier.classifier.3.weight"),
    ("backbone.high_level_features.9.conv.0.0.weight", None, "missing .*blocks.3.2.conv_pw.weight"),
    ("backbone.high_level_features.18.conv.0.0.weight", torch.zeros(1), "more blocks than the 17"),
    ("backbone.low_level_features.0.2.weight", torch.zeros(1), "no entry"),
    ("backbone.low_level_features.0.0.weight", torch.zeros(32, 3), "4 axes"),
    ("classifier.aspp.convs.4.0.weight", torch.zeros(1), "no entry"),
    ("classifier.more.weight", torch.zeros(1), "no entry"),
    ("more", torch.zeros(1), "no entry"),
    ("classifier.project.1.bias", 3.0, "no entry"),
    ("classifier.project.1.bias", torch.zeros(3), "of another shape"),
])  # fmt: skip
def test_what_does_not_fit_is_named(name, value, reason, tmp_path):
    state = reference("mobilenet", True, 2).state_dict()
    if value is None:
        del state[name]
    else:
        state[name] = value
    torch.save({"model_state": state}, tmp_path / "file.pth")
    with pytest.raises(KirieError, match=reason):
        import_checkpoint(tmp_path / "file.pth")


def test_its_hrnet_is_refused_with_the_reason():
    state = reference("mobilenet", True, 2).state_dict()
    state = {name.replace("high_level_features", "stage4").replace("low_level_features", "layer1"): tensor
             for name, tensor in state.items()}  # fmt: skip
    with pytest.raises(KirieError, match="HRNet and Xception are not read"):
        translate(state)
