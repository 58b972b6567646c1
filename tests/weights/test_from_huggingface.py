"""SegFormer in Hugging Face's format: the public reference's answers, and transformers itself where it is installed."""

import pytest
import torch
from safetensors.torch import save_file

from kirie.class_lists import ADE20K, CITYSCAPES
from kirie.errors import KirieError
from kirie.models.segformer import SIZES, SegFormer
from kirie.weights.from_huggingface import recognises, translate
from kirie.weights.load import import_checkpoint
from tests.weights.parity import check_argmax, check_stages, load_case, stage_outputs, through_file

HOOKS = {
    "input": ("encoder", "input"),
    "patch1": "encoder.stages.0.patch",
    "block1_0": "encoder.stages.0.blocks.0",
    **{f"stage{i + 1}": f"encoder.stages.{i}" for i in range(4)},
    "fuse": "fuse",
    "logits_low": "head",
}


@pytest.fixture(scope="module")
def case(shared):
    return load_case(shared, "hf_segformer_b0")


@pytest.fixture(scope="module", params=["pytorch_model.bin", "model.safetensors"])
def imported(request, case, tmp_path_factory):
    """The model that comes out of the file the publisher would have written, and how it was translated."""
    path = tmp_path_factory.mktemp("release") / request.param
    return through_file(case.state, path, torch.save if path.suffix == ".bin" else save_file)


# ---- the public reference


def test_the_network_has_the_size_of_the_release(case, imported):
    model, translation = imported
    assert sum(p.numel() for p in model.parameters()) == case.facts["parameters"]
    assert (translation.architecture, translation.arguments) == ("segformer", {"size": "b0"})
    assert (translation.dropped, list(translation.assumed)) == ({}, ["classes"])
    assert model.classes == ADE20K
    assert not model.training


def test_every_stage_is_that_of_the_reference(case, imported):
    found = stage_outputs(imported[0], HOOKS, case.image)
    assert set(case.facts["outputs"]) >= set(HOOKS)
    check_stages(case, found)
    check_argmax(case, found)


# ---- transformers itself


def theirs(size=None, classes=19, **changes):
    """Their network of a size, with random weights that give logits of some variety."""
    transformers = pytest.importorskip("transformers")
    if size is not None:
        widths, depths, decoder = SIZES[size]
        changes = {"hidden_sizes": widths, "depths": depths, "decoder_hidden_size": decoder, **changes}
    changes = {name: list(value) if isinstance(value, tuple) else value for name, value in changes.items()}
    config = transformers.SegformerConfig(num_labels=classes, **changes)
    torch.manual_seed(0)
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    vary(model)
    return model


@torch.no_grad()
def vary(model):
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.ndim == 1:
            tensor.add_(torch.randn(tensor.shape) * 0.1)
        elif tensor.ndim > 1:
            tensor.mul_(3)


@torch.no_grad()
def assert_equal_logits(model, their, size):
    images = torch.rand(1, model.in_channels, *size, generator=torch.Generator().manual_seed(1))
    expected = their(pixel_values=model.normalise(images)).logits
    varies = float(expected.std((2, 3)).mean())  # from place to place, so that the small numbers count
    assert varies > 1e-3
    torch.testing.assert_close(model(images).logits, expected, rtol=0, atol=varies * 1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_what_save_pretrained_writes(size, tmp_path):
    their = theirs(size)
    their.save_pretrained(tmp_path)
    model, translation = import_checkpoint(tmp_path / "model.safetensors")
    assert translation.arguments == {"size": size}
    assert model.classes == CITYSCAPES
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in their.parameters())
    assert_equal_logits(model, their, (64, 96))


def test_the_names_beside_the_weights_are_taken(tmp_path):
    their = theirs("b0", 3)
    their.config.id2label = {0: "ground", 1: "crop", 2: "weed"}
    their.save_pretrained(tmp_path)
    model, translation = import_checkpoint(tmp_path / "model.safetensors")
    assert model.classes.names == ("ground", "crop", "weed")
    assert "classes" not in translation.assumed
    own, _ = import_checkpoint(tmp_path / "model.safetensors", changes={"classes": ["a", "b", "c"]})
    assert own.classes.names == ("a", "b", "c")


@pytest.mark.parametrize(
    "config",
    [
        "no json", "[]", "{}", '{"id2label": 3}', '{"id2label": {"0": "a", "1": "b"}}',
        '{"id2label": {"0": "a", "2": "b", "3": "c"}}', '{"id2label": {"0": "a", "1": "a", "2": "b"}}',
        '{"id2label": {"0": 1, "1": 2, "2": 3}}',
    ],
)  # fmt: skip
def test_names_that_are_none_leave_the_classes_numbered(config, tmp_path):
    theirs("b0", 3).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(config)
    assert import_checkpoint(tmp_path / "model.safetensors")[1].classes == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"size": "b1", "classes": 1},
        {"size": "b0", "num_channels": 5, "classes": 150},
        {
            "hidden_sizes": (8, 16, 20, 32), "depths": (1, 2, 1, 3), "decoder_hidden_size": 24, "classes": 7,
            "sr_ratios": (4, 2, 1, 1), "mlp_ratios": (2, 3, 4, 1),
        },
    ],
)  # fmt: skip
def test_a_state_dict_as_transformers_has_it_in_memory(changes, tmp_path):
    their = theirs(**changes)
    torch.save(their.state_dict(), tmp_path / "model.pth")
    model, translation = import_checkpoint(tmp_path / "model.pth")
    assert (len(model.classes), model.binary) == (max(changes["classes"], 2), changes["classes"] == 1)
    assert ("heads" in translation.assumed) is ("hidden_sizes" in changes)
    assert_equal_logits(model, their, (67, 129))


def test_heads_that_the_tensors_cannot_tell_are_asked_for(tmp_path):
    their = theirs(hidden_sizes=(16, 32, 64, 128), num_attention_heads=(1, 2, 4, 8), depths=(1, 1, 1, 1))
    torch.save(their.state_dict(), tmp_path / "model.pth")
    model, translation = import_checkpoint(tmp_path / "model.pth")
    assert model.arguments["heads"] == (1, 1, 2, 4)
    assert "num_attention_heads" in translation.assumed["heads"]
    model, translation = import_checkpoint(tmp_path / "model.pth", changes=["heads=[1, 2, 4, 8]"])
    assert list(translation.assumed) == ["classes"]
    assert_equal_logits(model, their, (64, 96))


def test_encoder_weights_are_what_transformers_publishes_for_classification(tmp_path):
    transformers = pytest.importorskip("transformers")
    their = transformers.SegformerForImageClassification(transformers.SegformerConfig(num_labels=10)).eval()
    vary(their)
    their.save_pretrained(tmp_path)
    torch.save(their.segformer.state_dict(), tmp_path / "encoder.pth")  # without the prefix, by the names in memory
    images = torch.rand(1, 3, 64, 96)
    for name in ("model.safetensors", "encoder.pth"):
        model = SegFormer(3, 4, encoder_weights=str(tmp_path / name)).eval()
        with torch.no_grad():
            maps = model.encoder(model.normalise(images))
            expected = their.segformer(model.normalise(images), output_hidden_states=True)
        torch.testing.assert_close(maps[-1], expected.last_hidden_state, rtol=0, atol=1e-4)
        with pytest.raises(KirieError, match=r"encoder of a SegFormer alone.*`encoder_weights`"):
            import_checkpoint(tmp_path / name)


# ---- what does not fit


@pytest.fixture(scope="module")
def names(case):
    return {name: torch.empty(tensor.shape, device="meta") for name, tensor in case.state.items()}


def test_other_files_are_not_taken_for_it(names):
    assert recognises(names)
    assert not recognises(
        {"encoder.conv1.weight": 0, "stages.0.blocks.0.weight": 0, "decode_head.classifier.weight": 0}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decode_head.classifier.weight": None}, r"lacks head\.weight with 4 axes"),
        ({"segformer.encoder.patch_embeddings.2.proj.weight": None}, r"lacks encoder\.stages\.2\.patch\.proj\.weight"),
        ({"decode_head.linear_fuse.weight": torch.zeros(3)}, r"lacks fuse\.mix\.weight with 4 axes"),
        ({"decode_head.other.weight": torch.zeros(3)}, r"no tensor 'decode_head\.other\.weight'"),
        ({"segformer.encoder.block.0.0.attention.self.extra.weight": torch.zeros(3)}, r"no tensor .*extra"),
        ({"segformer.stages.0.layer_norm.weight": torch.zeros(3)}, r"layer_norm.* a second time"),
        ({"decode_head.classifier.bias": "text"}, r"no tensor 'decode_head\.classifier\.bias'"),
        ({"segformer.encoder.block.0.0.mlp.dense1.weight": None}, r"lacks encoder\.stages\.0\.blocks\.0\.ffn"),
    ],
)
def test_a_file_that_does_not_fit_is_told(names, change, message):
    with pytest.raises(KirieError, match=message):
        translate({name: value for name, value in {**names, **change}.items() if value is not None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"segformer.encoder.block.0.1.attention.self.key.weight": None},
            r"missing.*stages\.0\.blocks\.1\.attention",
        ),
        ({"segformer.encoder.block.0.1.layer_norm_1.weight": torch.zeros(3)}, r"shape.*norm1\.weight: \(3,\)"),
        ({"segformer.encoder.block.0.999999999.layer_norm_1.weight": torch.zeros(32)}, r"missing.*unknown.*999999999"),
        ({"decode_head.batch_norm.running_mean": None}, r"missing.*norm\.running_mean"),
    ],
)
def test_tensors_that_are_missing_or_too_many_are_told(case, change, message, tmp_path):
    state = {name: value for name, value in {**case.state, **change}.items() if value is not None}
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(KirieError, match=message):
        import_checkpoint(tmp_path / "pytorch_model.bin")
