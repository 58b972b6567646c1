"""SegFormer against what the paper and the releases say, by means of its own; its weights are tested beside imports."""

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch.nn import functional as F

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.models.segformer import SIZES, EfficientAttention, Fuse, MixFFN, SegFormer

TINY = {"widths": (4, 8, 10, 16), "depths": (1, 2, 1, 1), "heads": (1, 2, 5, 4), "decoder_width": 12}


def tiny(in_channels=3, classes=2, **options):
    torch.manual_seed(0)
    return SegFormer(in_channels, classes, **(TINY | options))


def published(model):
    """The encoder's tensors under the names that the files of `nvidia/mit-b0` have, with a classifier beside them."""
    inner = {
        "norm1": "layer_norm_1", "norm2": "layer_norm_2", "attention.query": "attention.self.query",
        "attention.reduce": "attention.self.sr", "attention.norm": "attention.self.layer_norm",
        "attention.out": "attention.output.dense", "ffn.expand": "mlp.dense1", "ffn.mix": "mlp.dwconv.dwconv",
        "ffn.shrink": "mlp.dense2",
    }  # fmt: skip
    state = {"classifier.weight": torch.zeros(1000, 16), "classifier.bias": torch.zeros(1000)}
    for name, tensor in model.encoder.state_dict().items():
        _, stage, part, *rest = name.split(".")
        leaf = rest[-1]
        if part == "patch":
            within = "proj" if rest[0] == "proj" else "layer_norm"
            state[f"segformer.encoder.patch_embeddings.{stage}.{within}.{leaf}"] = tensor
        elif part == "norm":
            state[f"segformer.encoder.layer_norm.{stage}.{leaf}"] = tensor
        else:
            place, within = f"segformer.encoder.block.{stage}.{rest[0]}", ".".join(rest[1:-1])
            if within == "attention.key_value":
                for half, share in zip(("key", "value"), tensor.chunk(2), strict=True):
                    state[f"{place}.attention.self.{half}.{leaf}"] = share.clone()
            else:
                state[f"{place}.{inner[within]}.{leaf}"] = tensor
    return state


# ---- the network


def test_the_sizes_are_those_of_the_releases():
    # Parameters with 150 classes, as transformers has them with the configurations of nvidia/segformer-b0...b5.
    counts = (3_752_694, 13_715_798, 27_461_974, 47_337_814, 64_108_374, 84_708_694)
    for size, count in zip(SIZES, counts, strict=True):
        with torch.device("meta"):
            assert sum(p.numel() for p in SegFormer(3, 150, size=size).parameters()) == count, size


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (32, 32), (33, 70)])
@torch.no_grad()
def test_logits_have_a_quarter_of_the_size_rounded_up(size):
    model = tiny(classes=3).eval()
    shapes = [x.shape[-2:] for x in model.encoder(model.normalise(torch.rand(1, 3, *size)))]
    assert shapes == [tuple(-(-s // stride) for s in size) for stride in (4, 8, 16, 32)]
    assert model(torch.rand(2, 3, *size)).logits.shape == (2, 3, *shapes[0])


@torch.no_grad()
def test_attention_is_the_sum_over_the_reduced_map_by_hand():
    torch.manual_seed(0)
    attention = EfficientAttention(6, heads=2, reduction=2).double()
    x = torch.randn(1, 5, 7, 6).double()
    reduced = F.conv2d(x.permute(0, 3, 1, 2), attention.reduce.weight, attention.reduce.bias, stride=2)  # 2 x 3 places
    seen = F.layer_norm(reduced.flatten(2).mT, (6,), attention.norm.weight, attention.norm.bias, eps=1e-5)
    query = attention.query(x.flatten(1, 2))
    key, value = F.linear(seen, attention.key_value.weight, attention.key_value.bias).split(6, -1)
    heads = []
    for part in (slice(0, 3), slice(3, 6)):
        weights = (query[..., part] @ key[..., part].mT / 3**0.5).softmax(-1)
        heads.append(weights @ value[..., part])
    torch.testing.assert_close(attention(x), attention.out(torch.cat(heads, -1)).reshape(x.shape))


@torch.no_grad()
def test_a_remainder_of_the_map_gives_no_keys_and_a_map_too_small_repeats_its_border():
    torch.manual_seed(0)
    attention = EfficientAttention(4, heads=1, reduction=4)
    x = torch.randn(1, 6, 5, 4)
    changed = x.clone()
    changed[:, 4:] += 1  # beyond the only 4 x 4 patch
    assert torch.equal(attention(x)[:, :4], attention(changed)[:, :4])
    small = torch.randn(1, 2, 1, 4)
    grown = small[:, [0, 1, 1, 1]][:, :, [0, 0, 0, 0]]
    torch.testing.assert_close(attention(small), attention(grown)[:, :2, :1])


@torch.no_grad()
def test_mix_ffn_is_linear_depthwise_gelu_linear():
    torch.manual_seed(0)
    ffn = MixFFN(3, 6)
    x = torch.randn(2, 4, 5, 3)
    inner = F.conv2d(ffn.expand(x).permute(0, 3, 1, 2), ffn.mix.weight, ffn.mix.bias, padding=1, groups=6)
    inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
    torch.testing.assert_close(ffn(x), ffn.shrink(inner.permute(0, 2, 3, 1)))


@torch.no_grad()
def test_the_decoder_is_resize_then_stack_then_mix():
    torch.manual_seed(0)
    fuse = Fuse((2, 3, 4, 5), 6).double()
    maps = [torch.randn(2, *shape).double() for shape in ((2, 8, 11), (3, 4, 6), (4, 2, 3), (5, 1, 2))]
    resized = []
    for linear, x in zip(fuse.linears, maps, strict=True):
        x = linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        resized.append(F.interpolate(x, size=(8, 11), mode="bilinear", align_corners=False))
    expected = F.conv2d(torch.cat(resized[::-1], 1), fuse.mix.weight[..., None, None])
    torch.testing.assert_close(fuse(maps), expected)


def test_blocks_are_left_out_more_and_more_often_in_training_and_never_in_prediction():
    model = tiny(drop_path=0.4, dropout=0.0)
    rates = [block.drop.drop_prob for stage in model.encoder.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    block = tiny(drop_path=0.9).encoder.stages[3].blocks[0]
    x = torch.randn(64, 16, 2, 2)
    untouched = (block.train()(x) == x).flatten(1).all(1)
    assert 0.5 < untouched.float().mean() < 1  # of 0.81
    assert not (block.eval()(x) == x).flatten(1).all(1).any()


def test_pictures_are_normalised_as_imagenet():
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(tiny().normalise(images), (images - mean[:, None, None]) / std[:, None, None])
    assert torch.equal(tiny(4).normalise(torch.ones(1, 4, 8, 8)), torch.full((1, 4, 8, 8), 2.0))


def test_two_named_classes_may_share_one_logit():
    classes = Classes(("soil", "plant"))
    assert tiny(classes=classes, binary=True).head.out_channels == 1
    assert tiny(classes=classes).head.out_channels == 2


# ---- what learns


def test_levels_go_from_the_picture_to_the_head():
    model = tiny()
    levels = model.levels()
    assert len(levels) == 1 + 5 + 1  # the first patches, each block, the decoder
    owned = [[id(p) for part in level for p in part.parameters()] for level in levels]
    every = [i for level in owned for i in level]
    assert len(every) == len(set(every)) == len(list(model.parameters()))
    place = {i: number for number, level in enumerate(owned) for i in level}
    stages = model.encoder.stages
    where = {
        stages[0].patch.proj.weight: 0, stages[0].blocks[0].attention.query.weight: 1, stages[0].norm.weight: 1,
        stages[1].patch.proj.weight: 2, stages[1].blocks[1].ffn.mix.weight: 3, stages[1].norm.bias: 3,
        stages[3].norm.weight: 5, model.fuse.mix.weight: 6, model.head.bias: 6,
    }  # fmt: skip
    assert {place[id(p)]: None for p in where} == dict.fromkeys(where.values())
    assert all(place[id(p)] == number for p, number in where.items())
    with torch.device("meta"):
        assert len(SegFormer(3, 2, size="b5").levels()) == 1 + 52 + 1


@pytest.mark.parametrize("frozen", [0, 2, 4])
def test_frozen_stages_do_not_learn(frozen):
    model = tiny(frozen_stages=frozen)
    for number, stage in enumerate(model.encoder.stages):
        assert all(p.requires_grad is (number >= frozen) for p in stage.parameters())
    model(torch.rand(1, 3, 32, 32)).logits.sum().backward()
    assert model.fuse.mix.weight.grad is not None


def test_nothing_is_left_out_of_frozen_stages():
    images = torch.rand(8, 3, 32, 32)
    for frozen in (0, 4):
        model = tiny(drop_path=0.5, dropout=0.0, frozen_stages=frozen).train()
        assert torch.equal(model(images).logits, model(images).logits) is (frozen == 4)


# ---- encoder weights


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_encoder_weights_come_from_a_published_file(name, tmp_path):
    source = tiny()
    state = published(source)
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    torch.manual_seed(9)
    model = SegFormer(3, 5, **TINY, encoder_weights=str(tmp_path / name))
    found = model.encoder.state_dict()
    assert all(torch.equal(found[n], t) for n, t in source.encoder.state_dict().items())
    assert "encoder_weights" not in model.arguments


def test_encoder_weights_fit_other_channels(tmp_path):
    source = tiny()
    torch.save(published(source), tmp_path / "mit.bin")
    grey = tiny(1, encoder_weights=str(tmp_path / "mit.bin"))
    weight = source.encoder.stages[0].patch.proj.weight
    torch.testing.assert_close(grey.encoder.stages[0].patch.proj.weight, weight.sum(1, keepdim=True))
    four = tiny(4, encoder_weights=str(tmp_path / "mit.bin")).encoder.stages[0].patch.proj.weight
    torch.testing.assert_close(four.sum(1), weight.repeat(1, 2, 1, 1)[:, :4].sum(1) * 3 / 4)


def test_encoder_weights_that_do_not_fit_are_told(tmp_path):
    path = tmp_path / "mit.bin"
    state = published(tiny())
    torch.save(state, path)
    with pytest.raises(KirieError, match=r"mit\.bin does not fit .* of another shape, such as stages\.0\.patch"):
        tiny(widths=(8, 8, 10, 16), encoder_weights=str(path))
    with pytest.raises(KirieError, match=r"tensors missing, such as stages\.0\.blocks\.1\.norm1\.weight"):
        tiny(depths=(2, 2, 1, 1), encoder_weights=str(path))
    with pytest.raises(KirieError, match=r"tensors not in this encoder, such as stages\.1\.blocks\.1"):
        tiny(depths=(1, 1, 1, 1), encoder_weights=str(path))
    torch.save({n: t for n, t in state.items() if "key" not in n}, path)
    with pytest.raises(KirieError, match=r"tensors missing, such as .*key_value.*nvidia/mit-b0"):
        tiny(encoder_weights=str(path))
    torch.save([1, 2], path)
    with pytest.raises(KirieError, match="holds list, expected tensors by name"):
        tiny(encoder_weights=str(path))
    path.write_bytes(b"nothing")
    with pytest.raises(KirieError, match="Cannot read encoder weights from"):
        tiny(encoder_weights=str(path))
    with pytest.raises(KirieError, match="There is no encoder weight file"):
        tiny(encoder_weights=str(tmp_path / "absent.bin"))


def test_the_hub_is_asked_for_the_size_and_its_absence_is_told(tmp_path, monkeypatch):
    asked = []

    def download(repository, name):
        asked.append((repository, name))
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(KirieError, match=r"Cannot download nvidia/mit-b2 .*\(OSError\); is there a network\?.*path"):
        SegFormer(3, 2, size="b2", encoder_weights="hub")
    assert asked == [("nvidia/mit-b2", "model.safetensors")]
    torch.save(published(tiny()), tmp_path / "pytorch_model.bin")

    def old(repository, name):
        if name == "model.safetensors":
            raise LocalEntryNotFoundError("none")
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", old)
    assert tiny(encoder_weights="hub").arguments["size"] == "b0"


# ---- arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "b6"}, "size must be one of b0, b1, b2, b3, b4, b5, got 'b6'"),
        ({"size": None}, "size must be one of"),
        ({"size": ["b0"]}, "size must be one of"),
        ({"widths": (8, 8, 8)}, "widths must be a list of 4 whole numbers"),
        ({"widths": 8}, "widths must be a list of 4"),
        ({"widths": (8, 8, 8, "8")}, "widths must be a whole number from 1 to 16384, got '8'"),
        ({"depths": (1, 1, 1, 0)}, "depths must be a whole number from 1 to 256, got 0"),
        ({"depths": (1, 1, 1, 10**9)}, "depths must be"),
        ({"depths": (1, 1, 1, True)}, "depths must be"),
        ({"heads": (1, 2, 5, 8.0)}, "heads must be"),
        ({"heads": (1, 2, 5, 7)}, "7 heads do not divide a width of 256"),
        ({"reductions": (8, 4, 2, 0)}, "reductions must be"),
        ({"expansions": (4, 4, 4, 65)}, "expansions must be"),
        ({"decoder_width": 0}, "decoder_width must be a whole number from 1"),
        ({"drop_path": 1}, "drop_path must be a number from 0 to below 1, got 1"),
        ({"drop_path": "0.1"}, "drop_path must be"),
        ({"dropout": -0.1}, "dropout must be"),
        ({"dropout": float("nan")}, "dropout must be"),
        ({"frozen_stages": 5}, "frozen_stages must be a whole number from 0 to 4, got 5"),
        ({"frozen_stages": None}, "frozen_stages must be"),
        ({"encoder_weights": 3}, "no encoder weight file 3"),
        ({"classes": 3, "binary": True}, "tells two classes apart, got 3"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(KirieError, match=message):
        SegFormer(3, **options)
