"""Checkpoints of torchvision: parity with the releases stage by stage, and live against the installed torchvision."""

from collections import OrderedDict

import pytest
import torch
import torchvision
from torch.nn import functional as F
from torchvision.models import mobilenetv3, segmentation
from torchvision.models.segmentation import deeplabv3 as tv_deeplabv3

from kirie.class_lists import VOC
from kirie.errors import KirieError
from kirie.models import model_class
from kirie.weights import from_torchvision
from kirie.weights.from_torchvision import recognises, translate
from kirie.weights.load import import_checkpoint
from kirie.weights.load import translate as recognised
from tests.weights.parity import check_argmax, check_stages, load_case, stage_outputs, through_file

RESNET = {"input": ("encoder", "input"), "stem": "encoder.body.maxpool", "logits_low": "head", "aux_low": "auxiliary"}
RESNET |= {f"layer{stage}": f"encoder.body.layer{stage}" for stage in (1, 2, 3, 4)}
HOOKS = {
    "tv_deeplabv3_resnet50": RESNET | {"aspp_pool": "aspp.branches.4", "aspp": "aspp"},
    "tv_fcn_resnet50": RESNET,
    "tv_lraspp_mobilenet_v3_large": {
        "input": ("encoder", "input"),
        "b0": "encoder.body.act1",
        "b3": "encoder.body.blocks.1.1",
        "b4_low": "encoder.body.blocks.2.0",
        "b10": "encoder.body.blocks.3.3",
        "b13": "encoder.body.blocks.5.0",
        "b16_high": "encoder.body.blocks.6.0",
        "cbr": "project",
        "scale": "scale",
    },
}
LIVE = [
    "deeplabv3_resnet50", "deeplabv3_resnet101", "deeplabv3_mobilenet_v3_large", "fcn_resnet50", "fcn_resnet101",
    "lraspp_mobilenet_v3_large",
]  # fmt: skip


@pytest.fixture(scope="module", params=HOOKS)
def case(request, shared):
    return load_case(shared, request.param)


@pytest.fixture(scope="module")
def imported(case, tmp_path_factory):
    """The model that comes out of the file that torchvision publishes, and how it was translated."""
    return through_file(case.state, tmp_path_factory.mktemp("release") / case.facts["file_format"]["file"])


def test_the_network_has_the_size_of_the_release(case, imported):
    model, translation = imported
    assert sum(p.numel() for p in model.parameters()) == case.facts["parameters"]
    assert f"tv_{translation.architecture}" in case.name
    assert (translation.publisher, translation.dropped) == ("torchvision", {})
    assert translation.assumed == {"classes": "the 21 classes are taken for those of Pascal VOC, in its order"}
    assert (model.in_channels, model.classes, model.binary) == (3, VOC, False)
    assert not model.training


@torch.no_grad()
def test_every_stage_is_that_of_the_reference(case, imported):
    model, _ = imported
    found = stage_outputs(model, HOOKS[case.name], case.image)
    found.setdefault("logits_low", model(torch.from_numpy(case.image)[None] / 255).logits[0])
    if "aux_low" in found:
        found["aux_logits"] = F.interpolate(found["aux_low"][None], size=case.image.shape[1:], mode="bilinear")[0]
    check_stages(case, found)
    check_argmax(case, found)


def reference(name, classes=21, auxiliary=True, seed=0):
    """A network of the installed torchvision with random weights and running statistics of a harmless size."""
    torch.manual_seed(seed)
    options = {} if name.startswith("lraspp") else {"aux_loss": auxiliary}
    if name == "deeplabv3_mobilenet_v3_small":  # has no function of its own
        network = tv_deeplabv3._deeplabv3_mobilenetv3(mobilenetv3.mobilenet_v3_small(dilated=True), classes, auxiliary)
    else:
        make = getattr(segmentation, name)
        network = make(num_classes=classes, weights=None, weights_backbone=None, **options)
    return randomised(network).eval()


def randomised(network):
    for name, tensor in network.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("bn3.weight"):  # or the sums of a hundred residual blocks overflow
            tensor.uniform_(0.1, 0.4)
        elif "backbone" in name and tensor.ndim == 4 and "layer" not in name:
            tensor.mul_(1.5)
    return network


def ours(network):
    translation = translate(network.state_dict())
    model = model_class(translation.architecture)(translation.in_channels, translation.classes, **translation.arguments)
    model.load_state_dict(translation.state)
    return model.eval(), translation


@pytest.mark.parametrize("name", [*LIVE, "deeplabv3_mobilenet_v3_small"])
@torch.no_grad()
def test_installed_torchvision_answers_the_same(name):
    network = reference(name, classes=7)
    model, translation = ours(network)
    assert recognises(network.state_dict())
    assert translation.architecture == name.partition("_")[0]
    assert len(model.classes) == 7
    images = torch.rand(2, 3, 66, 97)
    expected, raw = network((images - model.mean) / model.std), model(images)
    auxiliary = None if raw.auxiliary is None else model.auxiliary_logits(raw.auxiliary, (66, 97))
    for given, answer in ((raw.logits, expected["out"]), (auxiliary, expected.get("aux"))):
        assert (given is None) == (answer is None)
        if given is not None:
            assert 0.01 < answer.std() < 1000
            found = F.interpolate(given, size=(66, 97), mode="bilinear")
            torch.testing.assert_close(found, answer, atol=2e-5 * float(answer.std()), rtol=1e-5)


@pytest.mark.parametrize(("name", "auxiliary", "parameters"), [
    ("deeplabv3_resnet50", True, 42_004_074),
    ("deeplabv3_resnet50", False, 39_638_869),
    ("deeplabv3_resnet101", True, 60_996_202),
    ("deeplabv3_mobilenet_v3_large", True, 11_029_328),
    ("fcn_resnet50", True, 35_322_218),
    ("fcn_resnet101", True, 54_314_346),
    ("lraspp_mobilenet_v3_large", False, 3_221_538),
])  # fmt: skip
def test_parameter_counts_are_those_that_torchvision_states(name, auxiliary, parameters):
    with torch.device("meta"):
        network = getattr(segmentation, name)(
            num_classes=21, weights=None, weights_backbone=None, **({"aux_loss": True} if auxiliary else {})
        )
        translation = translate(network.state_dict())
        model = model_class(translation.architecture)(3, VOC, **translation.arguments)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in translation.state.items()}


BACKBONES = ["resnet18", "resnet34", "resnet152", "wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d",
             "resnext101_32x8d", "resnext101_64x4d"]  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
def test_other_resnets_are_told_by_their_structure(name):
    basic = name in ("resnet18", "resnet34")
    with torch.device("meta"):
        dilation = {} if basic else {"replace_stride_with_dilation": [False, True, True]}
        backbone = getattr(torchvision.models, name)(**dilation)
        backbone = torchvision.models._utils.IntermediateLayerGetter(backbone, {"layer4": "out"})
        head = segmentation.fcn.FCNHead(512 if basic else 2048, 4)
        translation = translate(segmentation.FCN(backbone, head).state_dict())
        model = model_class("fcn")(3, 4, **translation.arguments)
    assert translation.arguments["encoder"] == name
    assert translation.arguments["output_stride"] == (32 if basic else 8)
    assert not translation.arguments["auxiliary"]
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in translation.state.items()}


@torch.no_grad()
def test_files_without_batch_counters_and_of_other_channels_and_classes(tmp_path):
    network = reference("lraspp_mobilenet_v3_large", classes=1)
    network.backbone["0"][0] = torch.nn.Conv2d(4, 16, 3, 2, 1, bias=False)
    state = network.state_dict()
    old = OrderedDict((name, tensor) for name, tensor in state.items() if not name.endswith("num_batches_tracked"))
    assert len(old) < len(state)
    torch.save(old, tmp_path / "old.pth")
    model, _ = import_checkpoint(tmp_path / "old.pth")
    assert (model.in_channels, len(model.classes), model.binary) == (4, 2, True)
    images = torch.rand(1, 4, 64, 96)
    expected = network((images - model.mean) / model.std)["out"]
    found = F.interpolate(model(images).logits, size=(64, 96), mode="bilinear")
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("name", "reason"), [
    ("resnet50", "classifies whole pictures.*encoder_weights"),
    ("mobilenet_v3_large", "classifies whole pictures"),
    ("efficientnet_b0", "classifies whole pictures"),
    ("fasterrcnn_resnet50_fpn", "detects objects without masks"),
    ("retinanet_resnet50_fpn", "detects objects"),
])  # fmt: skip
def test_networks_for_other_tasks_are_refused(name, reason, tmp_path):
    with torch.device("meta"):
        if "fpn" in name:
            network = getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None)
        else:
            network = getattr(torchvision.models, name)()
    with pytest.raises(KirieError, match=rf"file\.pth.*torchvision.*{reason}"):
        recognised(network.state_dict(), tmp_path / "file.pth")


@torch.no_grad()
def test_the_mend_for_a_resnet_that_classifies_works(tmp_path):
    torch.manual_seed(0)
    network = torchvision.models.resnet18().eval()
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    model = model_class("fcn")(3, 2, encoder="resnet18", encoder_weights=str(tmp_path / "resnet18.pth")).eval()
    stem = network.layer1(network.maxpool(network.relu(network.bn1(network.conv1(torch.ones(1, 3, 64, 64))))))
    torch.testing.assert_close(model.encoder(torch.ones(1, 3, 64, 64))[1], stem)


def changed(name, value):
    state = reference("lraspp_mobilenet_v3_large").state_dict()
    if value is None:
        del state[name]
    else:
        state[name] = value
    return state


@pytest.mark.parametrize(("name", "value", "reason"), [
    ("backbone.0.0.weight", None, "no publisher|lacks"),
    ("backbone.3.block.1.0.weight", None, "missing|no entry"),
    ("backbone.7.block.0.0.weight", None, "6 blocks|no entry|has 7 blocks"),
    ("classifier.cbr.0.weight", torch.zeros(128, 9, 1, 1), "of another shape"),
    ("classifier.cbr.0.weight", torch.zeros(128), "4 axes"),
    ("classifier.low_classifier.weight", None, "lacks"),
    ("classifier.more.weight", torch.zeros(2), "no entry 'classifier.more.weight'"),
    ("backbone.x", torch.zeros(2), "no entry"),
    ("backbone.1.block.9.0.weight", torch.zeros(2), "no entry"),
    ("backbone.17.0.weight", torch.zeros(2), "no entry"),
    ("optimizer", 3, "no entry"),
    ("backbone.0.1.bias", 3, "no entry"),
])  # fmt: skip
def test_what_does_not_fit_is_named(name, value, reason, tmp_path):
    torch.save(changed(name, value), tmp_path / "file.pth")
    with pytest.raises(KirieError, match=reason):
        import_checkpoint(tmp_path / "file.pth")


@pytest.mark.parametrize("name", ["classifier.0.convs.3.0.weight", "classifier.0.convs.9.0.weight", "classifier.3.x",
                                  "aux_classifier.7.weight", "backbone.layer3.6.conv1.weight"])  # fmt: skip
def test_what_does_not_fit_a_deeplab_is_named(name):
    with torch.device("meta"):
        state = segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True).state_dict()
        state[name] = torch.zeros(1, 1, 3, 3)
    try:
        translation = translate(state)
    except KirieError as error:
        assert name in str(error) or "known are" in str(error)
    else:  # the comparison with the network's own shapes tells then
        with torch.device("meta"):
            own = model_class("deeplabv3")(3, 21, **translation.arguments).state_dict()
        assert any(n not in own or own[n].shape != t.shape for n, t in translation.state.items())


def test_layouts_of_others_are_not_taken():
    for state in ({}, {"conv1.weight": 0}, {"backbone.conv1.weight": 0}, {"backbone.conv1.weight": 0, "fc.weight": 0},
                  {"classifier.classifier.0.weight": 0, "backbone.conv1.weight": 0}):  # fmt: skip
        assert not from_torchvision.recognises(state)
