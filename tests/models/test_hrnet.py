"""HRNet: timm's body as an outside reference, its releases' sizes, aligned corners, frozen parts, local weights."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from kirie.errors import KirieError
from kirie.models.hrnet import SIZES, HRNet

TIMM = {
    "w18_small_v1": "hrnet_w18_small",
    "w18_small_v2": "hrnet_w18_small_v2",
    "w18": "hrnet_w18",
    "w32": "hrnet_w32",
    "w48": "hrnet_w48",
}
TINY = {"width": 4, "blocks": 1, "modules": [1, 2, 1], "layer1": [4, 1]}
OTHER_LAYERS = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.")


def timm_network(size, *, align_corners=False, seed=0):
    """Timm's network with weights and statistics at random, its exchanges enlarging bilinearly as the releases do."""
    torch.manual_seed(seed)
    network = timm.create_model(TIMM[size]).eval()
    for name, tensor in network.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
    for module in network.modules():
        if isinstance(module, nn.Upsample):
            module.mode, module.align_corners = "bilinear", align_corners
    return network


def timm_maps(network, images):
    x = network.act1(network.bn1(network.conv1(images)))
    return network.stages(network.act2(network.bn2(network.conv2(x))))


def written(network, path):
    if path.suffix == ".safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path)
    return str(path)


# ---- against timm's body


@pytest.mark.parametrize("size", ["w18_small_v1", "w18_small_v2", "w18"])
@pytest.mark.parametrize("align_corners", [False, True])
@torch.no_grad()
def test_the_four_maps_are_those_of_timms_body(size, align_corners, tmp_path):
    network = timm_network(size, align_corners=align_corners)
    path = written(network, tmp_path / ("weights.pth" if align_corners else "weights.safetensors"))
    model = HRNet(3, 5, size=size, align_corners=align_corners, encoder_weights=path).eval()
    images = torch.randn(2, 3, 64, 96)
    expected, found = timm_maps(network, images), model.encoder(images)
    assert [tuple(m.shape[1:]) for m in found] == [
        (width * SIZES[size].width, 16 // width, 24 // width) for width in (1, 2, 4, 8)
    ]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    flipped = HRNet(3, 5, size=size, align_corners=not align_corners, encoder_weights=path).eval()
    assert not torch.allclose(flipped.encoder(images)[0], found[0], rtol=1e-2, atol=1e-2)


def test_gradients_are_those_of_timms_body(tmp_path):
    """What is summed and cut in place must not spoil the way back."""
    network = timm_network("w18_small_v1")
    model = HRNet(size="w18_small_v1", encoder_weights=written(network, tmp_path / "weights.pth"))
    images = torch.randn(2, 3, 64, 64)
    for module in (network.train(), model.train()):
        maps = timm_maps(module, images) if module is network else module.encoder(images)
        sum((m * m).mean() for m in maps).backward()
    theirs = dict(network.named_parameters())
    for name, parameter in model.encoder.named_parameters():
        grad = theirs[name].grad
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-3, atol=1e-4 * float(grad.abs().max()), msg=name)


@pytest.mark.parametrize("size", TIMM)
def test_every_size_has_the_names_and_shapes_of_timms_body(size):
    with torch.device("meta"):
        network, model = timm.create_model(TIMM[size]), HRNet(size=size)
    expected = {name: t.shape for name, t in network.state_dict().items() if not name.startswith(OTHER_LAYERS)}
    assert {name: t.shape for name, t in model.encoder.state_dict().items()} == expected


@pytest.mark.parametrize(("size", "millions"), [("w18_small_v1", 1.5), ("w18_small_v2", 3.9), ("w48", 65.8)])
def test_parameters_for_cityscapes_are_as_published(size, millions):
    with torch.device("meta"):
        model = HRNet(3, 19, size=size)
    assert 0 <= sum(p.numel() for p in model.parameters()) / 1e6 - millions < 0.1  # given with one decimal, cut off


# ---- sizes of pictures and maps


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 4), (33, 70), (64, 96)])
@torch.no_grad()
def test_logits_are_at_a_quarter_or_with_aligned_corners_whole(height, width):
    images = torch.rand(1, 3, height, width)
    assert HRNet(3, 4, **TINY).eval()(images).logits.shape == (1, 4, -(-height // 4), -(-width // 4))
    assert HRNet(3, 4, align_corners=True, **TINY).eval()(images).logits.shape == (1, 4, height, width)


@torch.no_grad()
def test_aligned_corners_keep_the_corners_of_the_low_logits():
    torch.manual_seed(0)
    model = HRNet(3, 4, align_corners=True, **TINY).eval()
    low = []
    model.head.register_forward_hook(lambda module, given, output: low.append(output))
    logits = model(torch.rand(2, 3, 37, 50)).logits
    assert low[0].shape[-2:] == (10, 13)
    for row in (0, -1):
        for column in (0, -1):
            torch.testing.assert_close(logits[..., row, column], low[0][..., row, column])


@torch.no_grad()
def test_a_fusion_leaves_the_branches_as_they_were():
    module = HRNet(**TINY).eval().encoder.stage4[0]
    maps = [torch.randn(1, 4 * 2**i, 16 // 2**i, 16 // 2**i) for i in range(4)]
    kept = [m.clone() for m in maps]
    for fusion in module.fuse_layers:
        fusion(maps)
        assert all(torch.equal(a, b) for a, b in zip(maps, kept, strict=True))


@torch.no_grad()
def test_a_fusion_by_hand():
    """Convolutions whose centres double and norms that halve: all comes out in whole numbers."""
    fine, coarse = HRNet(**TINY | {"width": 1}).eval().encoder.stage2[0].fuse_layers
    for fusion in (fine, coarse):
        for module in fusion.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.zero_()
                module.weight[:, :, module.kernel_size[0] // 2, module.kernel_size[1] // 2] = 2.0
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(0.5)
                module.running_var.fill_(1 - module.eps)
    maps = [torch.tensor([[[[1.0, -7.0], [3.0, -4.0]]]]), torch.tensor([[[[2.0]], [[-1.0]]]])]
    # To the fine branch: 2 * (2 - 1) / 2 = 1 everywhere. To the coarse one: 2 * 1 / 2 = 1 in both channels.
    torch.testing.assert_close(fine(maps), torch.tensor([[[[2.0, 0.0], [4.0, 0.0]]]]))
    torch.testing.assert_close(coarse(maps), torch.tensor([[[[3.0]], [[0.0]]]]))


# ---- frozen parts


def trained_once(model):
    """Names of the parameters and buffers that a training step changed."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learned = [p for p in model.parameters() if p.requires_grad]
    model.train()(torch.rand(2, 3, 48, 48)).logits.square().sum().backward()
    torch.optim.SGD(learned, lr=0.1).step()
    return {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}


@pytest.mark.parametrize(
    ("stages", "frozen"),
    [
        (0, ()),
        (1, ("conv1", "bn1", "conv2", "bn2", "layer1")),
        (2, ("conv1", "bn1", "conv2", "bn2", "layer1", "transition1", "stage2")),
        (4, ("",)),
    ],
)
def test_frozen_stages_do_not_change(stages, frozen):
    torch.manual_seed(0)
    model = HRNet(frozen_stages=stages, **TINY)
    changed = trained_once(model)
    for name in model.state_dict():
        still = bool(frozen) and name.startswith(tuple(f"encoder.{part}" for part in frozen))
        assert (name not in changed) == still, name


def test_frozen_norms_do_not_change():
    torch.manual_seed(0)
    model = HRNet(frozen_norm=True, **TINY)
    changed = trained_once(model)
    norms = {n for n, m in model.encoder.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert norms
    for name in model.encoder.state_dict():
        assert (f"encoder.{name}" not in changed) == (name.rpartition(".")[0] in norms), name
    assert "head.1.running_mean" in changed
    assert not any(m.training for n, m in model.encoder.named_modules() if n in norms)


def test_every_parameter_is_in_one_level_in_the_networks_order():
    model = HRNet(**TINY)
    levels = [[p for part in level for p in part.parameters()] for level in model.levels()]
    assert len(levels) == 5
    assert [id(p) for level in levels for p in level] == [id(p) for p in model.parameters()]


# ---- weights of the encoder


@torch.no_grad()
def test_weights_learned_on_rgb_serve_other_channels(tmp_path):
    network = timm_network("w18_small_v1")
    path = written(network, tmp_path / "weights.pth")
    grey = torch.randn(1, 1, 64, 64)
    found = HRNet(1, size="w18_small_v1", encoder_weights=path).eval().encoder(grey)
    for one, other in zip(found, timm_maps(network, grey.expand(1, 3, 64, 64)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_encoders_weights_are_not_an_argument_of_the_model(tmp_path):
    path = written(timm_network("w18_small_v1"), tmp_path / "weights.pth")
    model = HRNet(size="w18_small_v1", encoder_weights=path)
    assert "encoder_weights" not in model.arguments
    assert HRNet(3, model.classes, **model.arguments).arguments == model.arguments


def test_pictures_are_normalised_as_for_imagenet():
    assert HRNet(**TINY).mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert HRNet(**TINY).std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert HRNet(2, **TINY).mean.flatten().tolist() == [0.5, 0.5]
    assert HRNet(2, **TINY).std.flatten().tolist() == [0.25, 0.25]


def test_files_that_do_not_fit_are_refused(tmp_path):
    path = written(timm_network("w18_small_v1"), tmp_path / "weights.pth")
    with pytest.raises(KirieError, match=r"lacks \d+ tensors of this encoder"):
        HRNet(size="w18_small_v2", encoder_weights=path)
    with pytest.raises(KirieError, match=r"another shape.*transition1"):
        HRNet(size="w18_small_v1", width=20, encoder_weights=path)
    with pytest.raises(KirieError, match="There is no encoder weight file"):
        HRNet(encoder_weights=str(tmp_path / "none.pth"), **TINY)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(KirieError, match="Cannot read encoder weights"):
        HRNet(encoder_weights=str(tmp_path / "text.pth"), **TINY)


def test_the_hub_is_asked_for_the_size_that_is_built(monkeypatch):
    network = timm_network("w18_small_v2", seed=7)
    asked = []

    def create(name, **options):
        asked.append((name, options))
        return network

    monkeypatch.setattr(timm, "create_model", create)
    model = HRNet(size="w18_small_v2", encoder_weights="hub")
    assert asked == [("hrnet_w18_small_v2", {"pretrained": True, "in_chans": 3})]
    given = network.state_dict()
    assert all(torch.equal(t, given[name]) for name, t in model.encoder.state_dict().items())
    # The same shape, however it is written down.
    HRNet(size="w48", width=18, blocks=2, modules=[1, 3, 2], layer1=[64, 2], encoder_weights="hub")
    assert asked[1] == asked[0]


def test_a_hub_out_of_reach_and_sizes_that_it_lacks_are_plain_errors(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route to the hub")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(KirieError, match=r"cannot fetch weights for 'hrnet_w32' \(OSError\)"):
        HRNet(size="w32", encoder_weights="hub")
    with pytest.raises(KirieError, match="w18_small_v1, w18_small_v2, w18, w32, w48 only"):
        HRNet(encoder_weights="hub", **TINY)


# ---- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "w19"}, r"no HRNet of size 'w19'\. Known: w18_small_v1"),
        ({"size": None}, "no HRNet of size None"),
        ({"size": ["w18"]}, "no HRNet of size"),
        ({"width": 0}, "width must be a whole number from 1 to 512, got 0"),
        ({"width": True}, "width"),
        ({"width": 18.0}, "width"),
        ({"width": 513}, "width"),
        ({"blocks": 0}, "blocks"),
        ({"blocks": "4"}, "blocks"),
        ({"modules": 3}, r"modules must be 3 whole numbers such as \[1, 4, 3\], got 3"),
        ({"modules": [1, 4]}, "modules must be 3"),
        ({"modules": [1, 4, 0]}, "modules must be a whole number from 1"),
        ({"modules": [1, 4, 10**9]}, "modules"),
        ({"modules": "143"}, "modules"),
        ({"layer1": [64]}, "layer1 must be 2"),
        ({"layer1": [64, None]}, "layer1"),
        ({"layer1": {"width": 64}}, "layer1"),
        ({"align_corners": 1}, "align_corners must be true or false, got 1"),
        ({"align_corners": None}, "align_corners"),
        ({"frozen_norm": "yes"}, "frozen_norm must be true or false"),
        ({"frozen_stages": 5}, "frozen_stages must be a whole number from 0 to 4, got 5"),
        ({"frozen_stages": -1}, "frozen_stages"),
        ({"frozen_stages": False}, "frozen_stages"),
        ({"encoder_weights": 3}, "There is no encoder weight file 3"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with torch.device("meta"), pytest.raises(KirieError, match=message):
        HRNet(**arguments)


def test_single_numbers_replace_those_of_the_size():
    with torch.device("meta"):
        given = HRNet(size="w48", width=40, modules=(1, 2, 1))
        assert given.encoder.channels == [40, 80, 160, 320]
        assert [len(s) for s in (given.encoder.stage2, given.encoder.stage3, given.encoder.stage4)] == [1, 2, 1]
        assert len(given.encoder.layer1) == len(given.encoder.stage2[0].branches[0]) == 4
