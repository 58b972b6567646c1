"""Encoders from timm: names, weights from local files, and no way out to the network."""

import copy
import socket
from types import MappingProxyType

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from kirie.errors import KirieError
from kirie.models.fcn import FCN
from kirie.models.lraspp import LRASPP
from kirie.models.parts.encoder import Encoder, build_encoder
from kirie.models.pspnet import PSPNet
from kirie.models.semantic_fpn import SemanticFPN
from kirie.models.unet import UNet

NAMES = ["resnet18", "convnext_atto", "mobilenetv3_small_050"]  # three ways in which timm cuts a network


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def whole_network(name, seed=3):
    """Timm's own network with random weights and running statistics of its own."""
    torch.manual_seed(seed)
    network = timm.create_model(name, pretrained=False).eval()
    for key, tensor in network.state_dict().items():
        if key.endswith("running_mean"):
            tensor.normal_(0, 0.1)
    return network


def write(path, state):
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@torch.no_grad()
def test_weights_from_a_local_file_give_the_same_features(name, ending, tmp_path):
    network = whole_network(name)
    torch.manual_seed(4)
    encoder = Encoder(name, weights=write(tmp_path / f"weights{ending}", network.state_dict())).eval()
    images = torch.randn(2, 3, 64, 96)
    features = encoder(images)
    torch.testing.assert_close(features[-1], network.forward_features(images))
    assert [f.shape[1] for f in features] == encoder.channels
    assert [64 // f.shape[2] for f in features] == encoder.strides
    other = Encoder(name).eval()(images)
    assert not torch.allclose(other[-1], features[-1])


@torch.no_grad()
def test_weights_learned_on_rgb_serve_other_channels(tmp_path):
    network = whole_network("resnet18")
    path = write(tmp_path / "weights.pth", network.state_dict())
    grey = torch.randn(1, 1, 64, 64)
    expected = network.forward_features(grey.expand(1, 3, 64, 64))
    torch.testing.assert_close(Encoder("resnet18", 1, weights=path).eval()(grey)[-1], expected, rtol=1e-3, atol=1e-4)
    rgb = torch.randn(1, 3, 64, 64)
    twice = Encoder("resnet18", 6, weights=path).eval()(torch.cat([rgb, rgb], 1))[-1]
    torch.testing.assert_close(twice, network.forward_features(rgb), rtol=1e-3, atol=1e-4)


def test_batch_counters_may_be_missing_and_a_cut_encoder_takes_the_whole_file(tmp_path):
    state = whole_network("resnet18").state_dict()
    some = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    encoder = Encoder("resnet18", stages=2, weights=write(tmp_path / "weights.pth", some))
    assert encoder.channels == [64, 64]
    torch.testing.assert_close(encoder.body.state_dict()["conv1.weight"], state["conv1.weight"])


@pytest.mark.parametrize("name", NAMES)
def test_a_file_with_tensors_missing_is_refused(name, tmp_path):
    state = whole_network(name).state_dict()
    gone = next(n for n in reversed(state) if n.endswith("weight") and ("layer" in n or "stages" in n or "blocks" in n))
    del state[gone]
    with pytest.raises(KirieError, match=r"lacks 1 tensors of this encoder"):
        Encoder(name, weights=write(tmp_path / "weights.pth", state))


def test_files_that_do_not_fit_are_refused(tmp_path):
    state = whole_network("resnet18").state_dict()
    with pytest.raises(KirieError, match="lacks"):
        Encoder("resnet34", weights=write(tmp_path / "a.pth", state))
    state["layer1.0.conv1.weight"] = torch.rand(64, 64, 5, 5)
    with pytest.raises(KirieError, match=r"another shape.*layer1\.0\.conv1\.weight.*\(64, 64, 5, 5\)"):
        Encoder("resnet18", weights=write(tmp_path / "b.pth", state))
    with pytest.raises(KirieError, match="lacks"):
        Encoder("resnet18", weights=write(tmp_path / "c.pth", {"state_dict": {}, "conv1.weight": 3}))
    with pytest.raises(KirieError, match="holds list, expected tensors by name"):
        Encoder("resnet18", weights=write(tmp_path / "d.pth", [1, 2]))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(KirieError, match=r"There is no encoder weight file .*none\.pth"):
        Encoder("resnet18", weights=str(tmp_path / "none.pth"))
    for ending in (".pth", ".safetensors"):
        path = tmp_path / f"text{ending}"
        path.write_text("no weights at all")
        with pytest.raises(KirieError, match="Cannot read encoder weights"):
            Encoder("resnet18", weights=str(path))


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"with open({str(self.path)!r}, 'w') as file: file.write('run')",)


def test_code_in_a_weight_file_is_not_run(tmp_path):
    torch.save({"conv1.weight": Trap(tmp_path / "trace")}, tmp_path / "trap.pth")
    with pytest.raises(KirieError, match="Cannot read"):
        Encoder("resnet18", weights=str(tmp_path / "trap.pth"))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(("name", "near"), [("resnet43", "resnet34"), ("efficientnetb0", "efficientnet_b0")])
def test_unknown_names_give_near_names(name, near):
    with pytest.raises(KirieError, match=f"no encoder called '{name}'; near names: .*{near}"):
        Encoder(name)


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:x/y", "hf_hub:x/resnet18", "hf-hub:timm/resnet18.a1_in1k", "local-dir:/tmp/resnet18", "timm/resnet18",
        "resnet18.a1_in1k/x", "resnet18.:x", "", "[", "os:system", "/etc/passwd",
    ],
)  # fmt: skip
def test_names_that_lead_outside_are_refused(name):
    with pytest.raises(KirieError, match="timm has no encoder called"):
        Encoder(name)


def test_a_name_may_carry_the_tag_of_its_weights():
    assert Encoder("resnet18.a1_in1k", stages=1).channels == [64]
    with pytest.raises(KirieError, match="nonsense"):
        Encoder("resnet18.nonsense", stages=1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_224", "strides .*must halve at each stage"),
        ("swin_tiny_patch4_window7_224", "does not take pictures of any size"),
        ("mixer_s16_224", "mixer_s16_224"),
    ],
)
def test_networks_that_cannot_serve_are_refused(name, message):
    with torch.device("meta"), pytest.raises(KirieError, match=message):
        Encoder(name)


def test_weights_from_the_hub_without_a_network_are_an_error(monkeypatch):
    def fail(*args, pretrained, **options):
        assert pretrained
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(KirieError, match=r"cannot fetch weights for 'resnet18' \(ConnectionError\)"):
        Encoder("resnet18", weights="hub")


def test_mean_and_deviation_are_those_of_the_weights_or_neutral():
    encoder = Encoder("resnet18", stages=1)
    assert encoder.mean == (0.485, 0.456, 0.406)
    assert encoder.std == (0.229, 0.224, 0.225)
    grey = Encoder("resnet18", 1, stages=1)
    assert (grey.mean, grey.std) == ((0.5,), (0.25,))


def test_building_leaves_the_mode_and_the_random_numbers_alone():
    torch.manual_seed(0)
    encoder = Encoder("resnet18")
    after = torch.rand(3)
    torch.manual_seed(0)
    timm.create_model("resnet18", features_only=True)
    assert torch.equal(after, torch.rand(3))
    assert all(module.training for module in encoder.modules())
    assert all((b == 0).all() for n, b in encoder.named_buffers() if n.endswith(("running_mean", "tracked")))


def torchvision_stages(network, x):
    maps = [network.relu(network.bn1(network.conv1(x)))]
    x = network.maxpool(maps[0])
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        maps.append(x := stage(x))
    return maps


def dilated_first(network):
    """Torchvision's ResNet with the rate of each stage in its first block as well, as semseg changes it."""
    for stage, rate in ((network.layer3, 2), (network.layer4, 4)):
        stage[0].conv2.dilation = stage[0].conv2.padding = (rate, rate)


def strided_first(network):
    """Torchvision's ResNet with the stride in the first 1 x 1 convolution, as in the original one."""
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)


@pytest.mark.parametrize(
    ("dilated", "options", "change"),
    [
        ((False, False, False), {}, None),
        ((False, False, True), {"output_stride": 16}, None),
        ((False, True, True), {"output_stride": 8}, None),
        ((False, True, True), {"output_stride": 8, "dilate_first": True}, dilated_first),
        ((False, False, False), {"stride_first": True}, strided_first),
        ((False, False, False), {"norm_eps": 0.001}, None),
    ],
)
@torch.no_grad()
def test_dilation_stride_and_eps_are_those_of_torchvisions_resnet(dilated, options, change):
    torch.manual_seed(0)
    norm = {"norm_layer": lambda channels: nn.BatchNorm2d(channels, eps=0.001)} if "norm_eps" in options else {}
    network = torchvision.models.resnet50(replace_stride_with_dilation=dilated, **norm).eval()
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.01, 0.02)  # so small that eps counts
        elif name.endswith("bn3.weight"):
            tensor.uniform_(0.0, 0.3)
    if change is not None:
        change(network)
    encoder = Encoder("resnet50", **options).eval()
    encoder.body.load_state_dict({n: t for n, t in network.state_dict().items() if not n.startswith("fc.")})
    images = torch.randn(1, 3, 65, 94)
    maps = encoder(images)
    for found, expected in zip(maps, torchvision_stages(network, images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.std()))
    assert [-(-65 // stride) for stride in encoder.strides] == [found.shape[2] for found in maps]
    assert encoder.strides[-1] == options.get("output_stride", 32)


@pytest.mark.parametrize("name", [*NAMES, "efficientnet_lite0", "regnetx_002", "resnet10t"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_other_networks_can_be_dilated(name, output_stride):
    encoder = Encoder(name, output_stride=output_stride)
    assert encoder.strides[-1] == output_stride
    side = 3 * encoder.strides[-1]
    assert [side // f.shape[2] for f in encoder(torch.zeros(2, 3, side, side))] == encoder.strides


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "densenet121", "hrnet_w18_small"])
def test_networks_that_cannot_be_dilated_are_refused(name):
    with pytest.raises(KirieError, match=f"'{name}' cannot be dilated to output_stride 8: give 32, or take a ResNet"):
        Encoder(name, output_stride=8)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"stride_first": True}, "bottlenecks, of which 'resnet18' has none"),
        ("resnet18", {"pad_first": True}, "inverted residuals, of which 'resnet18' has none"),
        ("resnet18", {"first_blocks": True}, "EfficientNets and MobileNets, which 'resnet18' is not"),
        ("resnet18", {"frozen_stages": 6}, "frozen_stages is 6, but 'resnet18' has 5 stages"),
        ("hrnet_w18_small", {"frozen_stages": 1}, "no plain row of stages"),
        ("resnet18", {"frozen_stages": True}, "frozen_stages must be a whole number"),
        ("resnet18", {"frozen_stages": -1}, "frozen_stages must be a whole number"),
        ("resnet18", {"output_stride": 4}, "output_stride must be 8, 16 or 32"),
        ("resnet18", {"output_stride": 8.0}, "output_stride must be 8, 16 or 32"),
        ("resnet18", {"output_stride": [8]}, "output_stride must be 8, 16 or 32"),
        ("resnet18", {"norm_eps": -0.1}, "norm_eps must be a number from 0 to below 1"),
        ("resnet18", {"norm_eps": "1e-3"}, "norm_eps must be a number from 0 to below 1"),
        ("darknet17", {"leak": 1}, "leak must be a number from 0 to below 1"),
        ("resnet18", {"leak": 0.1}, "leaky ReLUs, of which 'resnet18' has none"),
        ("resnet18", {"dilate_first": 1}, "dilate_first must be true or false"),
        ("resnet18", {"frozen_norm": "no"}, "frozen_norm must be true or false"),
        ("resnet18", {"pad_first": None}, "pad_first must be true or false"),
        ("resnet18", {"in_channels": 0}, "in_channels must be a whole number from 1 on"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, options, message):
    with pytest.raises(KirieError, match=message):
        Encoder(name, **options)


@pytest.mark.parametrize(
    "options", [{"weights": "hub"}, {"stages": 2}, {"": 1}, {2: 1}, [("norm_eps", 0.1)], "norm_eps"]
)
def test_unknown_encoder_options_are_refused(options):
    with pytest.raises(KirieError, match="encoder_options are named values out of dilate_first"):
        build_encoder("resnet18", 3, options)


def moved(module, images):
    """Names of the running statistics that a pass in training mode changes."""
    before = {n: b.clone() for n, b in module.named_buffers()}
    module(images)
    return {n for n, b in module.named_buffers() if not torch.equal(b, before[n])}


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "regnetx_002"])
def test_frozen_norm_stays_as_it_is_in_training(name):
    encoder = Encoder(name, frozen_norm=True)
    around = nn.Sequential(encoder)
    for mode in (True, False, True):
        around.train(mode)
        norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
        others = [m for m in encoder.modules() if not isinstance(m, nn.BatchNorm2d) and m not in norms]
        assert norms
        assert not any(m.training for m in norms)
        assert encoder.training is mode
        assert all(m.training is mode for m in others if isinstance(m, nn.Conv2d))
    images = torch.rand(2, 3, 64, 64)
    assert not moved(encoder, images)
    sum(f.sum() for f in encoder(images)).backward()
    frozen = {id(p) for m in norms for p in m.parameters()}
    assert all((p.grad is None) is (id(p) in frozen) for p in encoder.parameters())
    assert moved(Encoder(name), images)


@pytest.mark.parametrize(
    ("name", "count", "frozen"),
    [
        ("resnet18", 0, ()),
        ("resnet18", 1, ("conv1", "bn1")),
        ("resnet18", 3, ("conv1", "bn1", "layer1", "layer2")),
        ("mobilenetv3_small_050", 2, ("conv_stem", "bn1", "blocks.0")),
        ("convnext_atto", 1, ("stem_0", "stem_1", "stages_0")),
        ("resnet18", 5, ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")),
    ],
)
def test_frozen_stages_do_not_learn(name, count, frozen):
    encoder = Encoder(name, frozen_stages=count)
    encoder.train()
    images = torch.rand(2, 3, 64, 64)
    changed = moved(encoder, images)
    prefixes = tuple(f"body.{part}." for part in frozen)
    assert not any(n.startswith(prefixes) for n in changed) if prefixes else changed
    others = {n for n, _ in encoder.named_buffers() if not n.startswith(prefixes or ("-",))}
    assert changed == others
    total = sum(f.sum() for f in encoder(images))
    if total.requires_grad:
        total.backward()
    without = {n for n, p in encoder.named_parameters() if p.grad is None}
    assert without == {n for n, _ in encoder.named_parameters() if prefixes and n.startswith(prefixes)}
    assert all(not p.requires_grad for n, p in encoder.named_parameters() if n in without)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in [*NAMES, "resnet10t", "densenet121", "efficientnet_lite0"]),
        ("mobilenetv3_small_050", {"first_blocks": True}),
        ("test_efficientnet", {"first_blocks": True}),
    ],
)
def test_levels_are_what_each_feature_map_needs_beyond_the_one_before(name, options):
    encoder = Encoder(name, **options)
    rows = [[p for m in stage for p in m.parameters(recurse=False)] for stage in encoder.levels()]
    assert len(rows) == len(encoder.channels)
    maps = encoder(torch.randn(2, 3, 64, 64))
    for index, feature in enumerate(maps):
        encoder.zero_grad()
        feature.sum().backward(retain_graph=True)
        for place, row in enumerate(rows):
            assert all((p.grad is not None) is (place <= index) for p in row)
    assert sorted(id(p) for row in rows for p in row) == sorted(id(p) for p in encoder.parameters())


@pytest.mark.parametrize("name", ["hrnet_w18_small", "dla34"])
def test_a_network_that_is_no_plain_row_is_one_stage(name):
    encoder = Encoder(name)
    (row,) = encoder.levels()
    assert {id(p) for m in row for p in m.parameters(recurse=False)} == {id(p) for p in encoder.parameters()}


@pytest.mark.parametrize("name", [*NAMES, "efficientnet_lite0", "ghostnet_050"])
@pytest.mark.parametrize("stages", [1, 2])
def test_a_cut_encoder_has_nothing_that_it_does_not_use(name, stages):
    encoder = Encoder(name, stages=stages)
    maps = encoder(torch.randn(2, 3, 64, 64))
    assert len(maps) == len(encoder.channels) == stages
    sum(f.sum() for f in maps).backward()
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize(
    ("name", "output_stride", "divisor"),
    [
        ("resnet18", 32, 1), ("resnet18", 8, 1), ("mobilenetv3_small_050", 16, 1), ("tf_efficientnet_lite0", 32, 1),
        ("convnext_atto", 32, 32), ("convnext_atto", 8, 8), ("densenet121", 32, 32), ("vgg11_bn", 32, 32),
    ],
)  # fmt: skip
@torch.no_grad()
def test_padding_is_only_where_the_network_needs_it(name, output_stride, divisor):
    encoder = Encoder(name, output_stride=output_stride).eval()
    assert encoder.divisor == divisor
    least = 2 * output_stride
    for height, width in ((1, 1), (70, 97), (64, 128)):
        images = torch.rand(1, 3, height, width)
        padded = encoder.padded(images)
        sides = [max(-(-side // divisor) * divisor, least) for side in (height, width)]
        assert list(padded.shape[2:]) == sides
        assert torch.equal(padded[..., :height, :width], images)
        assert (padded[..., height:, :] == padded[..., height - 1 : height, :]).all()
        assert (padded[..., width:] == padded[..., width - 1 : width]).all()
        for feature, stride in zip(encoder(padded), encoder.strides, strict=True):
            assert list(feature.shape[2:]) == [-(-side // stride) for side in sides]


@pytest.mark.parametrize("make", [FCN, LRASPP, PSPNet, SemanticFPN, UNet])
def test_models_that_need_exact_maps_refuse_others(make):
    with pytest.raises(KirieError, match="With pad_first the feature maps of several strides do not lie on each other"):
        make(encoder="test_efficientnet", encoder_options={"pad_first": True})


def test_one_picture_trains_an_encoder_that_pools_to_single_values():
    """ResNeSt's attention norms what it pooled to 1 x 1."""
    encoder = Encoder("resnest14d", stages=2).train()
    network = timm.create_model("resnest14d", features_only=True, out_indices=(0, 1))
    assert encoder.body.state_dict().keys() == network.state_dict().keys()
    images = torch.rand(1, 3, 64, 64)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network.train()(images)
    sum(f.square().sum() for f in encoder(images)).backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())
    pair = torch.rand(2, 3, 64, 64)
    network.load_state_dict(encoder.body.state_dict())
    for found, expected in zip(encoder(pair), network(pair), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["resnet10t", "test_efficientnet"])
def test_what_is_frozen_stays_so_in_a_copy_and_across_processes(name):
    frozen = Encoder(name, frozen_norm=True)
    twin = copy.deepcopy(frozen)
    for encoder in (twin, nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(frozen))):
        encoder.eval().train()
        norms = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert norms
        assert not any(m.training for m in norms)
    images = torch.rand(2, 3, 64, 64)
    assert not moved(twin, images)


def test_the_options_kept_are_the_encoders_own():
    given = {"frozen_stages": 1}
    encoder = build_encoder("resnet10t", 3, MappingProxyType(given))
    given["frozen_stages"] = 2
    assert type(encoder.options) is dict
    assert encoder.options == {"frozen_stages": 1}
    assert build_encoder("resnet10t", 3, None).options is None


def test_a_map_is_found_by_its_stride():
    encoder = Encoder("resnet18", output_stride=8)
    assert encoder.strides == [2, 4, 8, 8, 8]
    assert [encoder.at_stride(stride) for stride in (2, 4, 8)] == [0, 1, 2]
    with pytest.raises(
        KirieError, match=r"no feature map at stride 16 before its last; it has them at \[2, 4, 8, 8, 8\]"
    ):
        encoder.at_stride(16)


@torch.no_grad()
def test_maps_of_first_blocks():
    torch.manual_seed(0)
    plain = Encoder("mobilenetv3_large_100", output_stride=16).eval()
    first = Encoder("mobilenetv3_large_100", output_stride=16, first_blocks=True).eval()
    first.load_state_dict(plain.state_dict())
    assert (plain.channels, first.channels) == ([16, 24, 40, 112, 960], [16, 24, 40, 80, 960])
    images = torch.randn(1, 3, 64, 96)
    kept = {}
    for place in ("0.0", "1.0", "2.0", "3.0"):
        block = plain.body.get_submodule(f"blocks.{place}")
        block.register_forward_hook(lambda m, i, o, place=place: kept.__setitem__(place, o.clone()))
    last = plain(images)[-1]
    for found, expected in zip(first(images), [*kept.values(), last], strict=True):
        assert torch.equal(found, expected)


@torch.no_grad()
def test_padding_before_the_widening_is_not_padding_after_it():
    torch.manual_seed(0)
    plain = Encoder("mobilenetv2_100").eval()
    for name, tensor in plain.state_dict().items():
        if name.endswith("bn1.bias"):
            tensor.uniform_(0.5, 1)
    first = Encoder("mobilenetv2_100", pad_first=True).eval()
    first.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 64, 97)
    assert [f.shape[2:] for f in first(images)] == [(31, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    assert (plain.exact, first.exact, first.divisor) == (True, False, 1)
    block, other = plain.body.blocks[1][1], first.body.blocks[1][1]
    x = torch.randn(1, 24, 9, 9)
    widened = block.bn1(block.conv_pw(nn.functional.pad(x, [1, 1, 1, 1])))
    spread = nn.functional.conv2d(widened, block.conv_dw.weight, groups=block.conv_dw.groups)
    expected = x + block.bn3(block.conv_pwl(block.bn2(spread)))
    torch.testing.assert_close(other(x), expected)
    assert not torch.allclose(block(x), expected, atol=1e-2)
