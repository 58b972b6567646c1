"""U-Net against counted parameters, the paper's sizes, and a second writing of the same network."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kirie import losses
from kirie.classes import Classes
from kirie.criterion import build_loss
from kirie.errors import KirieError
from kirie.models.unet import UNet
from kirie.results import SemanticMap

SIZES = [(1, 1), (1, 300), (16, 16), (17, 33), (31, 64), (97, 203), (128, 65)]


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def outline(*args, **options):
    with torch.device("meta"):  # counting needs no memory
        return UNet(*args, **options)


def small(**options):
    torch.manual_seed(0)
    return UNet(options.pop("in_channels", 3), options.pop("classes", 2), width=options.pop("width", 4), **options)


def double(state, prefix, x, padding=1):
    """Two convolutions with batch norm and ReLU, written out."""
    for conv, norm in ((0, 1), (3, 4)):
        x = F.conv2d(x, state[f"{prefix}.{conv}.weight"], state.get(f"{prefix}.{conv}.bias"), padding=padding)
        statistics = (state[f"{prefix}.{norm}.running_mean"], state[f"{prefix}.{norm}.running_var"])
        x = F.relu(F.batch_norm(x, *statistics, state[f"{prefix}.{norm}.weight"], state[f"{prefix}.{norm}.bias"]))
    return x


def shaken(model):
    """The model in evaluation mode with batch norm statistics and factors that are not those of its birth."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
            module.running_var.copy_(1 + torch.rand(module.running_var.shape, generator=generator))
            nn.init.normal_(module.weight, 1, 0.1, generator=generator)
    return model.eval()


# ---- parameters


@pytest.mark.parametrize(
    ("classes", "options", "expected"),
    [
        (2, {}, 31_043_586),
        (1, {}, 31_043_521),
        (2, {"bias": False}, 31_037_698),
    ],
)
def test_parameters_are_those_of_the_published_network(classes, options, expected):
    assert parameters(outline(3, classes, **options)) == expected


def test_parameters_of_the_bilinear_network_counted_by_hand():
    steps = [  # in, middle, out of each double convolution
        (3, 64, 64), (64, 128, 128), (128, 256, 256), (256, 512, 512), (512, 512, 512),
        (1024, 512, 256), (512, 256, 128), (256, 128, 64), (128, 64, 64),
    ]  # fmt: skip
    expected = sum(9 * i * m + m + 2 * m + 9 * m * o + o + 2 * o for i, m, o in steps) + 64 + 1
    assert parameters(outline(3, 1, up="bilinear")) == expected


def test_parameters_without_norm_and_of_the_paper():
    norms = 2 * 2 * (2 * (64 + 128 + 256 + 512) + 1024)  # weight and bias of two norms in each double convolution
    assert parameters(outline(3, 2, norm="none")) == 31_043_586 - norms
    assert parameters(outline(1, 2, norm="none", valid=True)) == 31_043_586 - norms - 2 * 9 * 64


def test_width_and_depth_shape_the_network():
    model = outline(3, 2, width=6, depth=3)
    assert [block[0].out_channels for block in model.down] == [6, 12, 24, 48]
    assert [step.conv[0].in_channels for step in model.up] == [48, 24, 12]
    assert model.head.in_channels == 6


def test_an_odd_width_works():
    for up in ("transposed", "bilinear"):
        model = small(width=1, depth=3, up=up)
        assert model(torch.rand(1, 3, 9, 9)).logits.shape == (1, 2, 9, 9)


# ---- sizes


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", [{}, {"up": "bilinear"}, {"valid": True}, {"valid": True, "up": "bilinear"}])
@torch.no_grad()
def test_logits_have_the_size_of_the_picture(size, options):
    model = small(depth=3, **options).eval()
    logits = model(torch.rand(2, 3, *size)).logits
    assert logits.shape == (2, 2, *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize("depth", [1, 2, 5])
@torch.no_grad()
def test_valid_and_padded_at_other_depths(depth):
    for valid in (False, True):
        model = small(width=2, depth=depth, valid=valid).eval()
        for size in [(1, 1), (40, 23)]:
            assert model(torch.rand(1, 3, *size)).logits.shape[-2:] == size


@torch.no_grad()
def test_the_paper_turns_572_pixels_into_388():
    model = small(width=2, in_channels=1, valid=True, norm="none").eval()
    assert model.unpadded(torch.rand(1, 1, 572, 572)).shape == (1, 2, 388, 388)


# ---- values


@pytest.mark.parametrize("up", ["transposed", "bilinear"])
@torch.no_grad()
def test_values_are_those_of_the_network_written_out(up):
    model = shaken(small(width=6, depth=2, up=up))
    state = model.state_dict()
    x = torch.rand(2, 3, 30, 45)  # both sides odd at some level
    skips = [double(state, "down.0", x)]
    for level in (1, 2):
        skips.append(double(state, f"down.{level}", F.max_pool2d(skips[-1], 2)))
    y = skips.pop()
    for step, skip in enumerate(reversed(skips)):
        if up == "bilinear":
            y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True)
        else:
            y = F.conv_transpose2d(y, state[f"up.{step}.up.weight"], state[f"up.{step}.up.bias"], stride=2)
        framed = torch.zeros(*y.shape[:2], *skip.shape[2:])
        framed[..., : y.shape[-2], : y.shape[-1]] = y  # 0 or 1 pixel short: it goes right and below
        y = double(state, f"up.{step}.conv", torch.cat([skip, framed], 1))
    expected = F.conv2d(y, state["head.weight"], state["head.bias"])
    torch.testing.assert_close(model(x).logits, expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_the_valid_network_crops_its_skips_about_the_centre():
    model = shaken(small(width=6, depth=1, valid=True))
    state = model.state_dict()
    x = torch.rand(1, 3, 36, 44)
    skip = double(state, "down.0", x, padding=0)  # 32 x 40
    y = double(state, "down.1", F.max_pool2d(skip, 2), padding=0)  # 12 x 16
    y = F.conv_transpose2d(y, state["up.0.up.weight"], state["up.0.up.bias"], stride=2)  # 24 x 32
    y = double(state, "up.0.conv", torch.cat([skip[..., 4:28, 4:36], y], 1), padding=0)
    expected = F.conv2d(y, state["head.weight"], state["head.bias"])
    assert expected.shape[-2:] == (20, 28)
    torch.testing.assert_close(model.unpadded(x), expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_valid_logits_do_not_depend_on_where_the_picture_is_cut():
    model = shaken(small(depth=2, valid=True))
    stride = 4
    whole = torch.rand(1, 3, 140, 172)
    logits = model.unpadded(whole)
    for top, left in [(0, 0), (stride, 3 * stride), (10 * stride, 5 * stride)]:
        part = model.unpadded(whole[..., top : top + 92, left : left + 92])  # 92 -> 52
        assert part.shape[-2:] == (52, 52)
        same = logits[..., top : top + 52, left : left + 52]
        torch.testing.assert_close(part, same, atol=1e-6, rtol=1e-5)
    shifted = model.unpadded(whole[..., 1:93, :92])  # not a step of the stride: the pooling grid lies elsewhere
    assert not torch.allclose(shifted, logits[..., 1:53, :52], atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (5, 2), (52, 40), (61, 77)])
@torch.no_grad()
def test_the_valid_form_mirrors_what_lies_outside(size):
    model = shaken(small(depth=2, valid=True))
    image = torch.rand(1, 3, *size)
    wanted = []
    for side in size:  # the smallest input that pools evenly and gives every pixel, found by trying: 92 -> 52
        wanted.append(next(n for n in range(44, 400, 4) if n - 40 >= side))
    pads = [((n - s) // 2, n - s - (n - s) // 2) for n, s in zip(wanted, size, strict=True)]
    mirrored = np.pad(image[0].numpy(), [(0, 0), *pads], mode="reflect")
    logits = model.unpadded(torch.from_numpy(mirrored)[None])
    top, left = ((logits.shape[-2 + i] - size[i]) // 2 for i in (0, 1))
    expected = logits[..., top : top + size[0], left : left + size[1]]
    torch.testing.assert_close(model(image).logits, expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_small_pictures_are_continued_by_their_edge():
    model = shaken(small(depth=3))
    image = torch.rand(1, 3, 5, 9)
    bigger = torch.from_numpy(np.pad(image.numpy(), [(0, 0), (0, 0), (0, 11), (0, 7)], mode="edge"))
    assert torch.equal(model(image).logits, model(bigger).logits[..., :5, :9])


# ---- loss


@pytest.mark.parametrize(("classes", "loss"), [(1, losses.binary_cross_entropy), (4, losses.cross_entropy)])
def test_the_loss_is_that_of_the_logits(classes, loss):
    model = small(classes=classes, depth=2)
    labels = np.random.default_rng(0).integers(0, len(model.classes), (2, 20, 28)).astype(np.uint8)
    labels[0, :3] = 255
    raw = model(torch.rand(2, 3, 20, 28))
    found = model.loss(raw, [SemanticMap(picture, model.classes) for picture in labels])
    expected = loss(raw.logits, torch.from_numpy(labels), void=255)
    assert list(found) == ["bce" if classes == 1 else "ce"]
    torch.testing.assert_close(next(iter(found.values())), expected, rtol=0, atol=0)


def test_the_criterion_can_be_changed():
    model = small(classes=3, depth=2)
    model.criterion = build_loss("0.5*dice+focal", void=model.classes.void)
    labels = np.random.default_rng(0).integers(0, 3, (1, 20, 28)).astype(np.uint8)
    raw = model(torch.rand(1, 3, 20, 28))
    found = model.loss(raw, [SemanticMap(labels[0], model.classes)])
    expected = {"dice": 0.5 * losses.dice(raw.logits, torch.from_numpy(labels))}
    expected["focal"] = losses.focal(raw.logits, torch.from_numpy(labels))
    torch.testing.assert_close(found, expected)


def test_logits_are_resized_to_truths_of_another_size():
    model = small(classes=3, depth=2)
    labels = np.random.default_rng(0).integers(0, 3, (1, 40, 56)).astype(np.uint8)
    raw = model(torch.rand(1, 3, 20, 28))
    found = model.loss(raw, [SemanticMap(labels[0], model.classes)])["ce"]
    logits = F.interpolate(raw.logits, size=(40, 56), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, F.cross_entropy(logits, torch.from_numpy(labels).long()))


def test_two_named_classes_may_share_one_logit():
    classes = Classes(("soil", "plant"))
    model = small(classes=classes, binary=True, depth=2).eval()
    assert model.head.out_channels == 1
    raw = model(torch.rand(1, 3, 20, 28))
    result = model.decode(raw, [(20, 28)], scores=True)[0]
    assert result.classes == classes
    foreground = raw.logits.detach().sigmoid()[0, 0].numpy()
    np.testing.assert_allclose(result.scores[1], foreground, atol=1e-6)
    np.testing.assert_array_equal(result.labels, (foreground > 0.5).astype(np.uint8))
    assert small(classes=classes, depth=2).head.out_channels == 2


# ---- encoders


@pytest.mark.parametrize(
    ("name", "stages", "steps"), [("resnet18", 5, 5), ("convnext_atto", 4, 5), ("mobilenetv3_small_050", 5, 5)]
)
def test_encoders(name, stages, steps):
    model = small(encoder=name, classes=3)
    assert len(model.encoder.channels) == stages
    assert len(model.up) == steps  # down to stride 32 and up again
    assert model.arguments["encoder"] == name
    assert "encoder_weights" not in model.arguments
    model.eval()
    for size in [(1, 1), (33, 70)]:
        logits = model(torch.rand(1, 3, *size)).logits
        assert logits.shape == (1, 3, *size)
    logits.square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


def test_pictures_are_normalised_as_the_encoder_learned_them():
    model = small(encoder="resnet18", depth=2)
    images = torch.rand(1, 3, 8, 8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (images - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(model.normalise(images), expected)
    assert torch.equal(small(depth=2).normalise(images), images)  # the plain network takes [0, 1] as it comes


@torch.no_grad()
def test_depth_cuts_the_encoder():
    for depth in (1, 3):
        model = small(encoder="resnet18", depth=depth).eval()
        assert model.encoder.strides == [2, 4, 8][:depth]
        assert len(model.up) == depth
        assert model(torch.rand(1, 3, 37, 50)).logits.shape == (1, 2, 37, 50)
    model = small(encoder="convnext_atto", depth=1, in_channels=5).eval()
    assert model(torch.rand(1, 5, 37, 50)).logits.shape == (1, 2, 37, 50)


@torch.no_grad()
def test_an_encoder_with_bilinear_steps_and_without_norm():
    model = small(encoder="resnet18", depth=3, up="bilinear", norm="none", bias=False).eval()
    assert model(torch.rand(1, 3, 37, 50)).logits.shape == (1, 2, 37, 50)
    assert not [n for n, _ in model.up.named_parameters() if "bias" in n]


@torch.no_grad()
def test_group_norm_sees_each_picture_alone_in_training_too():
    images = torch.stack([torch.rand(3, 32, 48), 0.1 * torch.rand(3, 32, 48)])
    for norm, alike in (("group", True), ("batch", False)):
        torch.manual_seed(0)
        model = small(norm=norm, bias=False).train()
        together, alone = model(images).logits[:1], model(images[:1]).logits
        assert torch.allclose(together, alone, atol=1e-5) == alike
    groups = [m for m in small(width=16, norm="group").modules() if isinstance(m, torch.nn.GroupNorm)]
    assert {(m.num_channels, m.num_channels // m.num_groups) for m in groups} >= {(16, 8), (32, 8)}
    assert parameters(small(width=12, norm="group")) == parameters(small(width=12)), "a weight and a bias a channel"


# ---- arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width must be a whole number from 1 to 1024, got 0"),
        ({"width": 2000}, "width must be"),
        ({"width": 4.0}, "width must be"),
        ({"width": True}, "width must be"),
        ({"depth": 0}, "depth must be a whole number from 1 to 8, got 0"),
        ({"depth": 9}, "depth must be"),
        ({"depth": "4"}, "depth must be"),
        ({"up": "nearest"}, '"transposed" or "bilinear", got \'nearest\''),
        ({"up": None}, '"transposed" or "bilinear"'),
        ({"bias": "no"}, "bias must be true or false, got 'no'"),
        ({"norm": True}, "norm must be batch, group or none, got True"),
        ({"norm": "layer"}, "norm must be batch, group or none, got 'layer'"),
        ({"valid": None}, "valid must be true or false"),
        ({"valid": True, "encoder": "resnet18"}, "cannot have an encoder"),
        ({"encoder": "resnet18", "depth": 6}, "resnet18"),
        ({"encoder": 18}, "timm has no encoder called 18"),
        ({"classes": 3, "binary": True}, "tells two classes apart, got 3"),
        ({"binary": "yes"}, "binary must be true or false"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(KirieError, match=message):
        UNet(3, **options)


@torch.no_grad()
def test_without_skips_nothing_of_the_fine_levels_reaches_the_decoder():
    """The textbook's ablation: all that the decoder sees went through the lowest level."""
    model = small(depth=2, skip=False).eval()
    kept = []
    model.up[-1].conv.register_forward_hook(lambda module, given, output: kept.append(given[0]))
    images = torch.rand(1, 3, 29, 45)
    assert model(images).logits.shape[-2:] == (29, 45)
    assert kept[0].shape == (1, 4, 29, 45)  # with skips 8: as many again from the finest level
    for network, same in ((model, True), (small(depth=2).eval(), False)):
        for parameter in network.down[-1].parameters():
            parameter.zero_()
        assert torch.equal(network(images).logits, network(1 - images).logits) is same


def test_without_skips_there_are_fewer_parameters():
    # A step's skip brings as many channels as the step's two convolutions give: 8, then 4.
    assert parameters(small(depth=2)) - parameters(small(depth=2, skip=False)) == 9 * (8 * 8 + 4 * 4)
