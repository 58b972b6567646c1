"""Semantic FPN: its shape, sizes that do not divide, its own mean and deviation, and wrong arguments."""

import pytest
import torch
from torch.nn import functional as F

from kirie.errors import KirieError
from kirie.models.file import load, save
from kirie.models.semantic_fpn import SemanticFPN

SMALL = {"encoder": "test_efficientnet", "channels": 16, "width": 16}


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (65, 70), (200, 31)])
def test_pictures_are_padded_with_zeros_to_a_multiple_of_32(size):
    torch.manual_seed(0)
    model = SemanticFPN(3, 4, **SMALL).eval()
    images = torch.rand(1, 3, *size)
    x = (images - model.mean) / model.std
    height, width = (max(-(-side // 32) * 32, 64) for side in size)
    x = F.pad(x, (0, width - size[1], 0, height - size[0]))
    logits = model.head(model.fpn(model.encoder(x)[1:]))
    assert logits.shape[-2:] == (height // 4, width // 4)
    expected = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]
    torch.testing.assert_close(model(images).logits, expected)


@torch.no_grad()
def test_other_sizes_are_reached_in_two_steps():
    model = SemanticFPN(3, 4, **SMALL).eval()
    raw = model(torch.rand(1, 3, 64, 96))
    assert raw.logits.shape == (1, 4, 64, 96)
    expected = F.interpolate(raw.logits, (77, 50), mode="bilinear", align_corners=False)[0].argmax(0)
    assert (model.decode(raw, [(77, 50)])[0].labels == expected.numpy()).all()


@pytest.mark.parametrize(
    ("encoder", "strides"),
    [("test_convnext", [4, 8, 16, 32]), ("test_efficientnet", [4, 8, 16, 32]), ("resnet18", [4, 8, 16, 32])],
)
def test_the_pyramid_begins_at_stride_4(encoder, strides):
    model = SemanticFPN(3, 4, encoder=encoder, channels=8, width=8)
    assert model.encoder.strides[model.skipped_maps :] == strides
    assert len(model.fpn.laterals) == len(strides)
    assert [len([m for m in branch if len(list(m.children()))]) for branch in model.head.branches] == [1, 1, 2, 3]


@torch.no_grad()
def test_mean_and_deviation_can_be_set_and_are_kept_in_the_file(tmp_path):
    torch.manual_seed(0)
    mean, std = [0.1, 0.2, 0.3], [1 / 255, 2 / 255, 3 / 255]
    model = SemanticFPN(3, 4, mean=mean, std=std, **SMALL).eval()
    assert model.mean.flatten().tolist() == pytest.approx(mean)
    assert model.std.flatten().tolist() == pytest.approx(std)
    found = load(save(model, tmp_path / "model.safetensors"))
    assert torch.equal(found.mean, model.mean)
    assert torch.equal(found.std, model.std)
    usual = SemanticFPN(3, 4, **SMALL)
    assert usual.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert SemanticFPN(4, 4, mean=[0.5] * 4, **SMALL).mean.numel() == 4


def test_frozen_parts_stay_as_they_are():
    options = {"frozen_norm": True, "stride_first": True, "frozen_stages": 2}
    model = SemanticFPN(3, 4, encoder="resnet50", encoder_options=options, channels=8, width=8).train()
    norms = {n: b.clone() for n, b in model.named_buffers() if "running" in n}
    raw = model(torch.rand(2, 3, 64, 64))
    raw.logits.sum().backward()
    assert all(torch.equal(b, norms[n]) for n, b in model.named_buffers() if "running" in n)
    learning = {n for n, p in model.named_parameters() if p.grad is not None}
    assert not any(n.startswith(("encoder.body.conv1", "encoder.body.layer1")) or ".bn" in n for n in learning)
    assert {"encoder.body.layer2.0.conv1.weight", "fpn.laterals.0.weight", "head.predictor.bias"} <= learning


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "channels must be a whole number"),
        ({"width": 2.0}, "width must be a whole number"),
        ({"width": True}, "width must be a whole number"),
        ({"mean": [0.5]}, "mean has 1 values for 3 channels"),
        ({"mean": 0.5}, "mean must be one number per channel"),
        ({"mean": [0.5, 0.5, float("nan")]}, "mean must be one number per channel"),
        ({"std": [0.5, 0.5, 0.0]}, "std must be one number above 0 per channel"),
        ({"std": [1, 1, 10**400]}, "std must be one number above 0 per channel"),
        ({"std": "abc"}, "std must be one number above 0"),
        ({"encoder": "resnet5000"}, "timm has no encoder"),
        ({"encoder_options": {"output_stride": 8}}, "encoder_options are named values"),
        ({"encoder_options": [1]}, "encoder_options are named values"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(KirieError, match=message):
        SemanticFPN(3, 4, **{**SMALL, **arguments})
