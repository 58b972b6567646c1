"""FCN: heads, strides and arguments; that it equals the release stands in tests/weights."""

import pytest
import torch

from kirie.errors import KirieError
from kirie.models.fcn import FCN


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@torch.no_grad()
def test_both_heads_read_the_last_two_maps(output_stride):
    model = FCN(3, 4, encoder="test_efficientnet", output_stride=output_stride).eval()
    assert [head[0][0].in_channels for head in (model.auxiliary, model.head)] == model.encoder.channels[-2:]
    assert [head[0][0].out_channels for head in (model.auxiliary, model.head)] == [48 // 4, 64 // 4]
    logits, kept = model(torch.rand(1, 3, 65, 96))
    assert logits.shape == (1, 4, -(-65 // output_stride), -(-96 // output_stride))
    assert model.auxiliary_logits(kept, (65, 96)).shape[-1] == 96 // model.encoder.strides[-2]


@torch.no_grad()
def test_both_are_brought_to_the_picture_where_it_was_padded():
    model = FCN(3, 4, encoder="test_convnext", output_stride=32).eval()
    logits, kept = model(torch.rand(1, 3, 65, 90))
    assert logits.shape == model.auxiliary_logits(kept, (65, 90)).shape == (1, 4, 65, 90)


def test_without_the_auxiliary_head_nothing_is_kept_for_it():
    model = FCN(3, 4, encoder="test_efficientnet", auxiliary=False, encoder_options={"frozen_stages": 2})
    assert model(torch.rand(2, 3, 64, 64)).auxiliary is None
    with pytest.raises(KirieError, match="FCN has no auxiliary head"):
        model.auxiliary_logits(torch.rand(1, 8, 8, 8), (64, 64))
    assert not any(p.requires_grad for p in model.encoder.body.conv_stem.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"auxiliary": "yes"}, "auxiliary must be true or false"),
        ({"dropout": -0.1}, "dropout must be a number from 0 to below 1"),
        ({"output_stride": "8"}, "output_stride must be 8, 16 or 32"),
        ({"encoder": "densenet121"}, "cannot be dilated"),
        ({"encoder_options": []}, "encoder_options are named values"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(KirieError, match=message):
        FCN(3, 2, **{"encoder": "test_efficientnet"} | arguments)
