"""PSPNet: its pyramid by hand, its dilation, where its cells lie, and wrong arguments."""

import pytest
import torch
from torch.nn import functional as F

from kirie.errors import KirieError
from kirie.models.pspnet import PSPNet, PyramidHead

SMALL = {"encoder": "test_efficientnet", "width": 16}


# ---- the head


@torch.no_grad()
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(12, 18), (7, 5), (2, 3), (1, 1)])
def test_the_head_joins_the_means_of_the_parts_enlarged(size, align_corners):
    torch.manual_seed(0)
    head = PyramidHead(6, 4, 3, (1, 2, 3, 6), dropout=0.1, align_corners=align_corners).eval()
    x = torch.randn(2, 6, *size)
    maps = [x]
    for parts, branch in zip((1, 2, 3, 6), head.branches, strict=True):
        convolution, norm = branch[0], branch[1]
        rows = [slice(i * size[0] // parts, -(-(i + 1) * size[0] // parts)) for i in range(parts)]
        columns = [slice(i * size[1] // parts, -(-(i + 1) * size[1] // parts)) for i in range(parts)]
        means = torch.stack([torch.stack([x[..., r, c].mean((2, 3)) for c in columns], -1) for r in rows], -2)
        torch.testing.assert_close(means, F.adaptive_avg_pool2d(x, parts))
        y = torch.einsum("oc,bchw->bohw", convolution.weight[..., 0, 0], means) / (1 + norm.eps) ** 0.5
        maps.append(F.interpolate(y.relu(), size, mode="bilinear", align_corners=align_corners))
    mixed = F.conv2d(torch.cat(maps, 1), head.mix.weight, padding=1) / (1 + head.norm.eps) ** 0.5
    torch.testing.assert_close(head(x), head.classifier(mixed.relu()), atol=1e-5, rtol=1e-4)


def test_the_head_learns_as_if_the_maps_were_joined():
    torch.manual_seed(0)
    head = PyramidHead(6, 4, 3, (1, 3), dropout=0, align_corners=True).double()
    x = torch.randn(2, 6, 9, 11, dtype=torch.double, requires_grad=True)
    pooled = [torch.randn(2, 4, n, n, dtype=torch.double, requires_grad=True) for n in (1, 3)]
    enlarged = [F.interpolate(p, (9, 11), mode="bilinear", align_corners=True) for p in pooled]
    expected = head.mix(torch.cat([x, *enlarged], 1))
    found = head.mixed(x, pooled)
    torch.testing.assert_close(found, expected)
    sources = [x, *pooled, head.mix.weight]
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), sources) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_one_picture_trains_though_a_branch_has_a_single_value():
    head = PyramidHead(6, 4, 3, (1, 2), dropout=0.1, align_corners=True).train()
    head(torch.randn(1, 6, 5, 5)).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())
    assert torch.equal(head.branches[0][1].running_mean, torch.zeros(4))
    assert not torch.equal(head.branches[1][1].running_mean, torch.zeros(4))


@pytest.mark.parametrize("size", [(1, 1), (4, 7)])
def test_half_precision_pools_and_learns(size):
    head = PyramidHead(6, 4, 3, (1, 2, 3, 6), dropout=0.1, align_corners=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = head(torch.randn(2, 6, *size).bfloat16())
    out.float().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in head.parameters())


# ---- the encoder


@pytest.mark.parametrize("encoder", ["resnet50s", "resnet101s", "resnet50"])
def test_all_convolutions_of_a_dilated_stage_have_its_rate(encoder):
    with torch.device("meta"):
        model = PSPNet(3, 4, encoder=encoder, encoder_options={"dilate_first": True}, width=8)
    rates = {1: 1, 2: 1, 3: 2, 4: 4}
    for stage, rate in rates.items():
        blocks = list(getattr(model.encoder.body, f"layer{stage}"))
        assert [(b.conv2.dilation, b.conv2.padding) for b in blocks] == [((rate, rate), (rate, rate))] * len(blocks)
        assert blocks[0].conv2.stride == ((2, 2) if stage == 2 else (1, 1))
    torchvisions = PSPNet(3, 4, encoder="resnet50", width=8).encoder.body
    assert [b.conv2.dilation[0] for b in torchvisions.layer4] == [2, 4, 4]


# ---- where the cells lie


def recorded(model, images):
    """The logits at low resolution, the size of the encoder's input, and what `forward` gives."""
    kept = {}
    handles = [
        model.head.register_forward_hook(lambda _, __, out: kept.update(low=out)),
        model.encoder.register_forward_hook(lambda _, given, __: kept.update(size=tuple(given[0].shape[-2:]))),
    ]
    raw = model(images)
    for handle in handles:
        handle.remove()
    return kept["low"], kept["size"], raw


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (9, 17), (64, 64), (65, 71), (72, 58)])
def test_a_cell_stands_for_the_pixel_at_its_number_times_the_stride(size):
    torch.manual_seed(0)
    model = PSPNet(3, 4, **SMALL).eval()
    low, inner, raw = recorded(model, torch.rand(1, 3, *size))
    assert all((side - 1) % 8 == 0 and side >= wanted for side, wanted in zip(inner, size, strict=True))
    assert all(side - wanted < 8 or side == 9 for side, wanted in zip(inner, size, strict=True))
    assert raw.logits.shape == (1, 4, *size)
    rows, columns = (-(-side // 8) for side in size)
    torch.testing.assert_close(raw.logits[..., ::8, ::8], low[..., :rows, :columns], atol=1e-5, rtol=1e-4)
    assert model.auxiliary_logits(raw.auxiliary, size).shape == raw.logits.shape


@torch.no_grad()
def test_a_picture_cut_off_keeps_its_classes_in_place():
    """What stretching the maps to the picture would get wrong: 8 n pixels against the same and one row more."""
    model = PSPNet(3, 4, **SMALL).eval()
    images = torch.rand(1, 3, 65, 65)
    images[..., -1, :], images[..., -1] = images[..., -2, :], images[..., -2]
    whole, cut = model(images).logits, model(images[..., :64, :64]).logits
    torch.testing.assert_close(cut, whole[..., :64, :64])


@torch.no_grad()
@pytest.mark.parametrize("size", [(3, 5), (64, 72), (65, 71)])
def test_without_aligned_corners_cells_cover_8_pixels_each(size):
    torch.manual_seed(0)
    model = PSPNet(3, 4, align_corners=False, **SMALL).eval()
    low, inner, raw = recorded(model, torch.rand(1, 3, *size))
    assert inner == tuple(max(-(-side // 8) * 8, 16) for side in size)
    if inner == size:
        assert torch.equal(raw.logits, low)  # `decode` and `loss` resize it
    else:
        full = F.interpolate(low, inner, mode="bilinear", align_corners=False)
        torch.testing.assert_close(raw.logits, full[..., : size[0], : size[1]])


@torch.no_grad()
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (65, 71)])
def test_encoders_of_patches_take_any_size(size, align_corners):
    model = PSPNet(3, 4, encoder="test_convnext", width=8, align_corners=align_corners).eval()
    low, inner, raw = recorded(model, torch.rand(1, 3, *size))
    assert inner == tuple(8 * cells for cells in low.shape[-2:])
    assert raw.logits.shape[-2:] == (low.shape[-2:] if size == inner else size)
    if align_corners:
        assert all((cells - 1) * 8 + 1 >= side for cells, side in zip(low.shape[-2:], size, strict=True))
        torch.testing.assert_close(raw.logits[..., 0, 0], low[..., 0, 0])


@pytest.mark.parametrize("output_stride", [16, 32])
def test_other_strides(output_stride):
    model = PSPNet(3, 4, output_stride=output_stride, **SMALL).eval()
    low, _, raw = recorded(model, torch.rand(1, 3, 97, 65))
    assert low.shape[-2:] == (96 // output_stride + 1, 64 // output_stride + 1)
    assert raw.logits.shape == model.auxiliary_logits(raw.auxiliary, (97, 65)).shape == (1, 4, 97, 65)


# ---- the arguments


def test_the_auxiliary_head_can_be_left_out():
    model = PSPNet(3, 4, auxiliary=False, **SMALL)
    assert model(torch.rand(1, 3, 17, 17)).auxiliary is None
    with pytest.raises(KirieError, match="PSPNet has no auxiliary head"):
        model.auxiliary_logits(torch.rand(1, 8, 3, 3), (17, 17))
    assert not any(name.startswith("auxiliary") for name in model.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bins": ()}, "bins must be 1 to 16 whole numbers"),
        ({"bins": 6}, "bins must be 1 to 16 whole numbers"),
        ({"bins": [1, 2.0]}, "bins must be 1 to 16 whole numbers"),
        ({"bins": [0]}, "bins must be 1 to 16 whole numbers"),
        ({"width": 0}, "width must be a whole number"),
        ({"dropout": 1.0}, "dropout must be a number from 0 to below 1"),
        ({"dropout": float("nan")}, "dropout must be a number from 0 to below 1"),
        ({"auxiliary": 1}, "auxiliary must be true or false"),
        ({"align_corners": None}, "align_corners must be true or false"),
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32"),
        ({"encoder": "nothing"}, "timm has no encoder"),
        ({"encoder_options": {"stages": 2}}, "encoder_options are named values"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(KirieError, match=message):
        PSPNet(3, 4, **{**SMALL, **arguments})
