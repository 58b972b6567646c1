"""DeepLabV3 and DeepLabV3+: rates, strides, sizes, arguments; that they equal the releases stands in tests/weights."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kirie.errors import KirieError
from kirie.models.deeplab import ASPP, DeepLabV3, DeepLabV3Plus, SeparableConvNorm
from kirie.models.file import load, save

TINY = {"encoder": "test_efficientnet", "width": 8}
BOTH = [DeepLabV3, DeepLabV3Plus]


def rates(model):
    return [branch[0].dilation[0] for branch in model.aspp.branches[1:-1]]


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize(("output_stride", "expected"), [(8, [12, 24, 36]), (16, [6, 12, 18]), (32, [3, 6, 9])])
def test_the_papers_rates_follow_the_output_stride(make, output_stride, expected):
    model = make(output_stride=output_stride, **TINY)
    assert rates(model) == expected
    assert model.arguments["rates"] is None
    assert model.encoder.strides[-1] == output_stride
    assert rates(make(output_stride=output_stride, rates=[1, 5], **TINY)) == [1, 5]
    assert rates(make(**TINY)) == ([12, 24, 36] if make is DeepLabV3 else [6, 12, 18])


@pytest.mark.parametrize("encoder", ["resnet10t", "mobilenetv3_small_050", "convnext_atto", "regnetx_002"])
@pytest.mark.parametrize("make", BOTH)
@torch.no_grad()
def test_logits_cover_the_picture_on_any_encoder(make, encoder):
    model = make(3, 4, **TINY | {"encoder": encoder}).eval()
    stride = 8 if make is DeepLabV3 else 4
    logits, kept = model(torch.rand(1, 3, 61, 90))
    # ConvNeXt cuts off what does not fill a patch, so the picture is padded and the logits are cropped.
    exact = (1, 4, -(-61 // stride), -(-90 // stride))
    assert logits.shape == ((1, 4, 61, 90) if encoder == "convnext_atto" else exact)
    assert (kept is None) == (make is DeepLabV3Plus)
    assert kept is None or model.auxiliary_logits(kept, (61, 90)).shape == logits.shape


@torch.no_grad()
def test_a_padded_picture_gives_the_logits_of_the_padded_one_cropped():
    torch.manual_seed(0)
    model = DeepLabV3Plus(3, 4, **TINY | {"encoder": "convnext_atto"}).eval()
    images = torch.rand(1, 3, 61, 90)
    padded = F.pad(images, (0, 6, 0, 3), mode="replicate")  # to multiples of 16
    expected = F.interpolate(model(padded).logits, size=(64, 96), mode="bilinear")[..., :61, :90]
    torch.testing.assert_close(model(images).logits, expected)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_separable_convolutions_have_fewer_parameters():
    plain = ASPP(64, 16, (1, 2), separable=False, dropout=0)
    separable = ASPP(64, 16, (1, 2), separable=True, dropout=0)
    assert parameters(plain) - parameters(separable) == 2 * (64 * 16 * 9 - (64 * 9 + 64 * 16))
    model = DeepLabV3Plus(separable=True, **TINY)
    kinds = [type(m) for m in (*model.aspp.branches, model.head[0])]
    assert kinds.count(SeparableConvNorm) == 4
    wide = [m for m in model.aspp.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert [(m.groups, m.dilation[0]) for m in wide] == [(64, 6), (64, 12), (64, 18)]


@torch.no_grad()
def test_a_separable_convolution_is_one_by_channel_and_one_across():
    torch.manual_seed(0)
    part = SeparableConvNorm(4, 6, dilation=2).eval()
    x = torch.randn(1, 4, 9, 9)
    by_channel, across = part[0][0].weight, part[0][1].weight
    dense = across * by_channel[:, 0][None]  # (6, 4, 3, 3)
    expected = F.conv2d(x, dense, padding=2, dilation=2) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(part(x), expected.relu())


@torch.no_grad()
def test_image_pooling_gives_one_value_per_channel_everywhere():
    aspp = ASPP(4, 3, (1,), separable=False, dropout=0).eval()
    pooled = aspp.branches[-1](torch.randn(2, 4, 5, 7))
    assert pooled.shape == (2, 3, 5, 7)
    assert (pooled == pooled[..., :1, :1]).all()


def test_rates_are_kept_in_the_file(tmp_path):
    model = DeepLabV3(rates=[2, 3, 5, 7], **TINY)
    found = load(save(model, tmp_path / "model.safetensors"))
    assert found.arguments == model.arguments
    assert rates(found) == [2, 3, 5, 7]


def test_the_auxiliary_head_reads_the_map_it_is_told_to():
    before = DeepLabV3(output_stride=16, **TINY)
    assert before.auxiliary[0][0].in_channels == before.encoder.channels[-2]
    finer = DeepLabV3(output_stride=16, auxiliary_stride=8, **TINY)
    assert finer.encoder.strides == [2, 4, 8, 16, 16]
    assert finer.auxiliary[0][0].in_channels == finer.encoder.channels[2]
    kept = finer(torch.rand(1, 3, 64, 64).repeat(2, 1, 1, 1)).auxiliary
    assert kept.shape == (2, finer.encoder.channels[2], 8, 8)
    assert finer.auxiliary_logits(kept, (64, 64)).shape == (2, 2, 8, 8)
    without = DeepLabV3(auxiliary=False, **TINY).eval()
    assert without(torch.rand(1, 3, 64, 64)).auxiliary is None
    with pytest.raises(KirieError, match="DeepLabV3 has no auxiliary head"):
        without.auxiliary_logits(kept, (64, 64))


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rates": []}, "rates must be 1 to 16 whole numbers"),
        ({"rates": [0]}, "rates must be"),
        ({"rates": [1.5]}, "rates must be"),
        ({"rates": "6,12"}, "rates must be"),
        ({"rates": [True]}, "rates must be"),
        ({"rates": 6}, "rates must be"),
        ({"rates": [10**6]}, "rates must be"),
        ({"width": 0}, "width must be a whole number from 1 to 4096, got 0"),
        ({"width": "256"}, "width must be"),
        ({"separable": 1}, "separable must be true or false"),
        ({"dropout": 1}, "dropout must be a number from 0 to below 1"),
        ({"dropout": "0.5"}, "dropout must be"),
        ({"dropout": float("nan")}, "dropout must be"),
        ({"dropout": True}, "dropout must be"),
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32"),
        ({"encoder": "swin_tiny_patch4_window7_224"}, "cannot be dilated"),
        ({"encoder": "resnet43"}, "near names: .*resnet34"),
        ({"encoder_options": {"depth": 3}}, "encoder_options are named values"),
    ],
)
def test_arguments_out_of_range_are_refused(make, arguments, message):
    with pytest.raises(KirieError, match=message):
        make(3, 2, **TINY | arguments)


def test_arguments_of_one_of_them_that_are_out_of_range_are_refused():
    with pytest.raises(KirieError, match="auxiliary must be true or false"):
        DeepLabV3(auxiliary=None, **TINY)
    with pytest.raises(KirieError, match="no feature map at stride 64"):
        DeepLabV3(auxiliary_stride=64, **TINY)
    with pytest.raises(KirieError, match="low_width must be a whole number"):
        DeepLabV3Plus(low_width=-1, **TINY)
