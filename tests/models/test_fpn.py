"""The feature pyramid against torchvision's, and the semantic head against its definition."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from kirie.errors import KirieError
from kirie.models.parts.fpn import FPN, SemanticFPNHead


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[(32, 48), (16, 24), (8, 12), (4, 6)], [(33, 47), (17, 24), (9, 12)], [(5, 7)]])
@pytest.mark.parametrize("extra", [0, 1])
def test_the_pyramid_is_torchvisions(sizes, extra):
    torch.manual_seed(0)
    channels = [8, 12, 16, 20][: len(sizes)]
    ours = FPN(channels, 16, extra=extra)
    theirs = FeaturePyramidNetwork(channels, 16, LastLevelMaxPool() if extra else None)
    for convolution in (*ours.laterals, *ours.outputs):
        convolution.bias.uniform_(-1, 1)
    state = {}
    for name, tensor in ours.state_dict().items():
        row, level, leaf = name.split(".")
        state[f"{ {'laterals': 'inner_blocks', 'outputs': 'layer_blocks'}[row] }.{level}.0.{leaf}"] = tensor
    theirs.load_state_dict(state)
    features = [torch.randn(2, c, *size) for c, size in zip(channels, sizes, strict=True)]
    expected = list(theirs({str(i): x for i, x in enumerate(features)}).values())
    found = ours(features)
    assert len(found) == len(sizes) + extra
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_more_extra_maps_are_every_second_pixel_of_the_one_before():
    maps = FPN([4], 8, extra=3)([torch.randn(1, 4, 13, 9)])
    assert [tuple(m.shape[-2:]) for m in maps] == [(13, 9), (7, 5), (4, 3), (2, 2)]
    for fine, coarse in pairwise(maps):
        assert torch.equal(coarse, fine[..., ::2, ::2])


@torch.no_grad()
def test_the_head_brings_every_map_to_the_finest_and_adds_them():
    torch.manual_seed(0)
    head = SemanticFPNHead(8, [4, 8, 16], classes=5, width=64)
    counts = [sum(1 for name in branch.state_dict() if name.endswith(".0.weight")) for branch in head.branches]
    assert counts == [1, 1, 2]
    maps = [torch.randn(2, 8, 24 // 2**i, 16 // 2**i) for i in range(3)]
    total = 0
    for branch, x, doublings in zip(head.branches, maps, (0, 1, 2), strict=True):
        for step in range(max(doublings, 1)):
            layer = branch[2 * step] if doublings else branch[0]
            groups = F.conv2d(x, layer[0].weight, padding=1).unflatten(1, (32, 2))
            mean, variance = groups.mean((2, 3, 4), keepdim=True), groups.var((2, 3, 4), correction=0, keepdim=True)
            x = ((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2).relu()
            if doublings:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        total = total + x
    expected = torch.einsum("kc,bchw->bkhw", head.predictor.weight[..., 0, 0], total)
    torch.testing.assert_close(head(maps), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("width", "groups"), [(128, 32), (96, 32), (48, 16), (20, 4), (7, 1)])
def test_there_are_32_groups_or_as_many_as_divide_the_channels(width, groups):
    head = SemanticFPNHead(4, [4, 8], classes=2, width=width)
    assert {branch[0][1].num_groups for branch in head.branches} == {groups}


@pytest.mark.parametrize("strides", [[4, 12], [8, 4], [4, 6]])
def test_strides_that_do_not_double_are_refused(strides):
    with pytest.raises(KirieError, match="must double from the finest on"):
        SemanticFPNHead(4, strides, classes=2)
