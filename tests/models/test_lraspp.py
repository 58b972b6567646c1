"""LR-ASPP: maps, sizes and arguments; that it equals the release stands in tests/weights."""

import pytest
import torch

from kirie.errors import KirieError
from kirie.models.file import load, save
from kirie.models.lraspp import LRASPP


@pytest.mark.parametrize("encoder", ["test_efficientnet", "resnet10t", "regnetx_002"])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@torch.no_grad()
def test_logits_are_at_an_eighth_whatever_the_output_stride(encoder, output_stride):
    model = LRASPP(3, 4, encoder=encoder, output_stride=output_stride, width=8).eval()
    assert model.encoder.strides[model.low_index] == 8
    assert model(torch.rand(1, 3, 65, 90)).logits.shape == (1, 4, 9, 12)


@torch.no_grad()
def test_a_padded_picture_is_cropped():
    model = LRASPP(3, 4, encoder="convnext_atto", width=8).eval()
    assert model(torch.rand(1, 3, 65, 90)).logits.shape == (1, 4, 65, 90)


@torch.no_grad()
def test_the_pooled_branch_weighs_the_channels():
    torch.manual_seed(0)
    model = LRASPP(3, 4, encoder="test_efficientnet", width=8).eval()
    images = torch.rand(1, 3, 64, 64)
    model.low_head.weight.zero_()
    model.high_head.bias.zero_()
    model.low_head.bias.zero_()
    model.scale[1].weight.zero_()  # sigmoid(0) = 0.5
    half = model(images).logits
    model.high_head.weight.mul_(2)
    torch.testing.assert_close(model(images).logits, 2 * half)
    assert half.abs().max() > 0
    high = model.encoder(model.normalise(images))[-1]
    expected = torch.nn.functional.interpolate(model.project(high) / 2, size=(8, 8), mode="bilinear")
    torch.testing.assert_close(model(images).logits, torch.nn.functional.conv2d(expected, model.high_head.weight))


@torch.no_grad()
def test_encoder_options_are_kept_in_the_file(tmp_path):
    torch.manual_seed(0)
    options = {"dilate_first": True, "norm_eps": 0.5, "first_blocks": True, "frozen_norm": True}
    model = LRASPP(3, 4, encoder="test_efficientnet", encoder_options=options, width=8).eval()
    found = load(save(model, tmp_path / "model.safetensors"))
    assert found.arguments["encoder_options"] == options
    images = torch.rand(1, 3, 64, 96)
    assert torch.equal(found(images).logits, model(images).logits)
    plain = LRASPP(3, 4, encoder="test_efficientnet", width=8).eval()
    plain.load_state_dict(model.state_dict())
    assert not torch.allclose(plain(images).logits, model(images).logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width must be a whole number from 1 to 4096"),
        ({"width": 8.0}, "width must be"),
        ({"output_stride": None}, "output_stride must be 8, 16 or 32"),
        ({"encoder": "vit_tiny_patch16_224"}, "halve at each stage|cannot be dilated"),
        ({"encoder_options": {"weights": "hub"}}, "encoder_options are named values"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(KirieError, match=message):
        LRASPP(3, 2, **{"encoder": "test_efficientnet"} | arguments)
