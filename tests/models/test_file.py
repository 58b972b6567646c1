"""The model file: everything comes back, nothing in it is trusted, and an earlier file is never broken."""

import copy
import errno
import json
import os
import resource
import stat
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

import kirie.models.file
from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.models.contract import InputFacts
from kirie.models.file import ENTRY, MAX_METADATA, load, model_path, read_card, save
from kirie.models.unet import UNet

CLASSES = Classes(("soil", "crop", "Unkraut 雑草"), colors=((1, 2, 3), (4, 5, 6), (7, 8, 9)), ids=(4, 7, 1))
RECIPE = {"data": {"path": "x", "patch": [64, 64]}, "train": {"epochs": 3, "seed": None, "note": "切り絵"}}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return UNet(4, CLASSES, width=4, depth=2, up="bilinear", bias=False).eval()


@pytest.fixture
def path(model, tmp_path):
    """A sound model file."""
    return save(model, tmp_path / "model.safetensors", recipe=RECIPE, scores={"miou": 0.5, "epoch": 3})


def forged(path, card=None, **changes):
    """The file at `path` with another card, or other entries in its card (by name with __ for depth)."""
    tensors = load_file(path)
    if card is None:
        with safe_open(path, framework="pt") as file:
            card = json.loads(file.metadata()[ENTRY])
        for key, value in changes.items():
            *parents, last = key.split("__")
            place = card
            for parent in parents:
                place = place[parent]
            place[last] = value
    text = card if isinstance(card, str) else json.dumps(card)
    other = path.with_name("forged.safetensors")
    save_file(tensors, other, metadata={ENTRY: text})
    return other


# ---- where to


def test_devices(path):
    assert next(load(path, device="auto").parameters()).device.type in ("cpu", "cuda", "mps", "xpu")
    for name in ("cuda:99", "nonsense", "meta"):
        with pytest.raises(KirieError, match=f"no device '{name}' here; there is auto, cpu"):
            load(path, device=name)


def test_the_record_of_the_recipe_stays_with_the_model(path, tmp_path):
    model = load(path)
    assert model.recipe == RECIPE
    assert read_card(save(model, tmp_path / "again.safetensors")).recipe == RECIPE


# ---- there and back


def test_everything_comes_back(model, path):
    model.inputs = InputFacts(short_side=512, patch=(128, 96))
    save(model, path, recipe=RECIPE, scores={"miou": 0.5, "epoch": 3})
    card = read_card(path)
    assert card.architecture == "unet"
    assert card.classes == CLASSES
    assert card.in_channels == 4
    assert card.arguments == model.arguments
    assert card.inputs == model.inputs
    assert card.recipe == RECIPE
    assert card.scores == {"miou": 0.5, "epoch": 3}
    found = load(path)
    assert not found.training
    assert (found.classes, found.arguments, found.inputs) == (CLASSES, model.arguments, model.inputs)
    images = torch.rand(2, 4, 21, 30)
    assert torch.equal(found(images).logits, model(images).logits)


def test_recipe_and_scores_may_be_left_out(model, tmp_path):
    card = read_card(save(model, tmp_path / "model.safetensors"))
    assert card.recipe is None
    assert card.scores == {}


@pytest.mark.parametrize(
    "options",
    [
        {"classes": 1}, {"valid": True, "norm": "none"}, {"norm": "group"}, {"encoder": "resnet18", "depth": 3},
        {"encoder": "convnext_atto", "in_channels": 1}, {"classes": Classes(("a", "b")), "binary": True},
    ],
)  # fmt: skip
@torch.no_grad()
def test_every_form_comes_back(options, tmp_path):
    options = {"width": 4, "in_channels": 3, "depth": 2} | options
    if options.get("encoder") == "convnext_atto":
        del options["depth"]
    model = UNet(**options).eval()
    found = load(save(model, tmp_path / "model.safetensors"))
    images = torch.rand(1, options["in_channels"], 21, 30)
    assert torch.equal(found(images).logits, model(images).logits)
    assert (found.classes, found.binary) == (model.classes, model.binary)


def test_encoder_weights_are_used_once_and_not_needed_again(tmp_path):
    torch.save(UNet(encoder="resnet18", depth=1).encoder.body.state_dict(), tmp_path / "weights.pth")
    model = UNet(3, 2, width=4, encoder="resnet18", depth=1, encoder_weights=str(tmp_path / "weights.pth"))
    path = save(model, tmp_path / "model.safetensors")
    (tmp_path / "weights.pth").unlink()
    assert torch.equal(load(path).encoder.body.conv1.weight, model.encoder.body.conv1.weight)
    assert str(tmp_path).encode() not in path.read_bytes()


def test_what_is_taken_off_the_pixels_is_kept_whatever_the_library_says_later(tmp_path, monkeypatch):
    model = UNet(3, 2, width=4, encoder="resnet18", depth=1)
    path = save(model, tmp_path / "model.safetensors")
    other = SimpleNamespace(mean=(0.5,) * 3, std=(0.25,) * 3)
    monkeypatch.setattr("timm.get_pretrained_cfg", lambda name: other)
    assert UNet(3, 2, width=4, encoder="resnet18", depth=1).mean.flatten().tolist() == [0.5] * 3
    found = load(path)
    assert torch.equal(found.mean, model.mean)
    assert torch.equal(found.std, model.std)
    assert read_card(path).mean == pytest.approx((0.485, 0.456, 0.406))
    with safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()[ENTRY])
    del card["mean"], card["std"]  # as in early files
    assert load(forged(path, json.dumps(card))).mean.flatten().tolist() == [0.5] * 3


def test_the_same_model_gives_the_same_bytes(model, path):
    first = path.read_bytes()
    save(model.to(memory_format=torch.channels_last), path, recipe=RECIPE, scores={"miou": 0.5, "epoch": 3})
    assert path.read_bytes() == first


def test_the_folder_of_a_run_means_its_model(path):
    assert model_path(path.parent) == path
    assert load(path.parent).classes == CLASSES
    assert read_card(str(path.parent)).classes == CLASSES


def test_a_file_has_the_permissions_of_any_new_file(model, tmp_path):
    before = os.umask(0o027)
    try:
        path = save(model, tmp_path / "model.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


# ---- saving fails


def test_weights_that_are_not_finite_are_not_saved(model, path):
    before = path.read_bytes()
    for value in (float("nan"), float("inf")):
        broken = copy.deepcopy(model)
        with torch.no_grad():
            broken.head.bias[0] = value
        with pytest.raises(KirieError, match=r"holds NaN or infinity in 1 tensor, the first is 'head\.bias'; nothing"):
            save(broken, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["model.pth", "model", "model.safetensors.bak", "safetensors"])
def test_another_ending_is_refused(model, tmp_path, name):
    with pytest.raises(KirieError, match=r"ends in \.safetensors"):
        save(model, tmp_path / name)
    assert not os.listdir(tmp_path)


def test_missing_folders_are_made(model, tmp_path):
    assert save(model, tmp_path / "a" / "b" / "model.safetensors").is_file()


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O: disk full")])
def test_a_full_disk_leaves_the_earlier_file(model, path, monkeypatch, fault):
    before = path.read_bytes()

    def fill_the_disk(state, place, metadata):
        place.write_bytes(b"half a file")
        raise fault

    monkeypatch.setattr(kirie.models.file, "save_file", fill_the_disk)
    with pytest.raises(KirieError, match=r"Cannot write .*model\.safetensors: .*earlier files are untouched"):
        save(model, path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_limit_of_the_system_leaves_the_earlier_file(model, path):
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))  # the real writer meets a real error
    try:
        with pytest.raises(KirieError, match="Cannot write"):
            save(model, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_place_that_cannot_be_written_is_an_error(model, path):
    with pytest.raises(KirieError, match="Cannot write"):
        save(model, path / "inside.safetensors")
    assert load(path).classes == CLASSES


def test_a_record_too_long_to_be_read_is_not_written(model, path):
    before = path.read_bytes()
    with pytest.raises(KirieError, match="shorten"):
        save(model, path, recipe={"note": "x" * MAX_METADATA})
    assert path.read_bytes() == before


# ---- loading what is no model file


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.3, 0.5, 0.99, -1])
def test_a_file_cut_short_is_refused(path, kept):
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(len(whole) * kept)])
    with pytest.raises(KirieError, match=r"model\.safetensors .*cut short"):
        load(path)


@pytest.mark.parametrize(
    "content", [b"no model at all" * 9, b"\xff" * 99, b"\x00" * 99, b"\x02" + b"\x00" * 7 + b"{}", b"PK\x03\x04" * 20]
)
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(KirieError, match="kirie import"):
        load(path)


def test_a_safetensors_file_of_another_project_is_refused(path):
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
        with pytest.raises(KirieError, match="not written by kirie: bring it in with `kirie import"):
            load(path)


def test_missing_files_are_refused(tmp_path):
    for place in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(KirieError, match="There is no model file"):
            load(place)


# ---- hostile cards


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module on the path that leaves a trace when it is imported."""
    (tmp_path / "kirie_trap.py").write_text(
        "from pathlib import Path\nfrom kirie.models.unet import UNet\n"
        "Path(__file__).with_name('trace').touch()\nclass Model(UNet): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "trace"


@pytest.mark.parametrize(
    "name",
    [
        "kirie_trap:Model",
        "os:system",
        "kirie.models.unet:UNet",
        "builtins:exec",
        "",
        ":",
        "__class__",
        "unet\x00",
        "UNet",
    ],
)
def test_no_architecture_outside_the_table_is_imported(path, trap, name):
    with pytest.raises(KirieError, match="There is no architecture"):
        load(forged(path, architecture=name))
    assert "kirie_trap" not in sys.modules
    assert not trap.exists()


def test_no_file_outside_is_read_and_nothing_fetched(path, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(torch, "load", lambda *args, **options: read.append(args))
    (tmp_path / "secret.pth").write_bytes(b"x")
    for value in (str(tmp_path / "secret.pth"), "hub", None):
        arguments = {"width": 4, "encoder": "resnet18", "encoder_weights": value}
        with pytest.raises(KirieError, match="sets encoder_weights, which a model file may not"):
            load(forged(path, arguments=arguments))
    assert not read


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arguments__surprise": 1}, "surprise"),
        ({"arguments__in_channels": 3}, "in_channels"),
        ({"arguments__self": 3}, "self"),
        ({"arguments__width": 10**9}, "width"),
        ({"arguments__width": -4}, "width"),
        ({"arguments__width": "4"}, "width"),
        ({"arguments__width": {}}, "width"),
        ({"arguments__width": 1e300}, "width"),
        ({"arguments__width": float("nan")}, "width"),
        ({"arguments__depth": 10**6}, "depth"),
        ({"arguments__depth": [2]}, "depth"),
        ({"arguments__up": ["bilinear"]}, "up must be"),
        ({"arguments__bias": "false"}, "bias must be"),
        ({"arguments__encoder": "hf-hub:x/y"}, "no encoder called"),
        ({"arguments__encoder": {"name": "resnet18"}}, "no encoder called"),
        ({"arguments__binary": True}, "two classes"),
        ({"architecture": ["unet"]}, "'architecture' must be str"),
        ({"architecture": None}, "'architecture' must be str"),
        ({"in_channels": "4"}, "'in_channels' must be int"),
        ({"in_channels": True}, "'in_channels' must be int"),
        ({"in_channels": 0}, "in_channels"),
        ({"in_channels": 10**12}, "in_channels"),
        ({"classes": ["soil", "crop"]}, "'classes' must be dict"),
        ({"classes__names": "abc"}, "names must be a list of str"),
        ({"classes__names": ["a", "a", "b"]}, "names repeat"),
        ({"classes__colors": [[1, 2], [3], []]}, "colour"),
        ({"classes__extra": 1}, "Expected classes"),
        ({"arguments": [4, 2]}, "'arguments' must be dict"),
        ({"inputs": None}, "'inputs' must be dict"),
        ({"inputs__patch": [64, None]}, "short_side"),
        ({"inputs__patch": [64]}, "short_side"),
        ({"inputs__patch": 64}, "short_side"),
        ({"inputs__patch": [10**9, 10**9]}, "short_side"),
        ({"inputs__short_side": -1}, "short_side"),
        ({"inputs__short_side": True}, "short_side"),
        ({"inputs__code": "x"}, "short_side"),
        ({"mean": [0.0] * 3}, "'mean' must be 4 numbers"),
        ({"mean": ["0"] * 4}, "'mean' must be 4 numbers"),
        ({"mean": [float("nan")] * 4}, "'mean' must be 4 numbers"),
        ({"std": [1, 1, 1, 0]}, "'std' must be 4 numbers, one per channel and above 0"),
        ({"std": 1}, "'std' must be 4 numbers"),
        ({"scores": [1]}, "'scores' must be dict"),
        ({"scores__miou": "<script>"}, "score 'miou' must be a number"),
        ({"scores__miou": {"a": [1]}}, "score 'miou' must be a number"),
        ({"recipe": "train: {}"}, "`recipe` a mapping"),
        ({"format": 2}, "has format 2, this kirie reads format 1"),
        ({"format": None}, "has format None"),
        ({"format": "1"}, "has format '1'"),
    ],
)  # fmt: skip
def test_a_card_that_kirie_would_not_write_is_refused(path, changes, message):
    with pytest.raises(KirieError, match=message):
        load(forged(path, **changes))


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "not json", "[1, 2]", "null", "1" * 9999, "[" * 100_000, '{"a":' * 100_000, "{}",
        '{"format": ' + "1" * 9999 + "}", '{"format": 1}', '"' + "x" * MAX_METADATA + '"', "\ud83d\ude00",
    ],
    ids=lambda text: f"{text[:10]!a} {len(text)}",
)  # fmt: skip
def test_garbage_in_place_of_a_card_is_refused(path, text):
    with pytest.raises(KirieError, match=r"forged\.safetensors"):
        load(forged(path, card=text.encode("utf-16", "surrogatepass").decode("utf-16")))


@pytest.mark.parametrize("missing", ["architecture", "in_channels", "classes", "arguments", "inputs", "scores"])
def test_a_card_with_an_entry_missing_is_refused(path, missing):
    with safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()[ENTRY])
    del card[missing]
    with pytest.raises(KirieError, match=f"'{missing}' must be"):
        load(forged(path, card=card))


@pytest.mark.parametrize(
    "changes",
    [
        {"arguments__width": 1024, "arguments__depth": 8},
        {"arguments__width": 1024, "arguments__depth": 8, "arguments__up": "transposed", "in_channels": 4096,
         "mean": None, "std": None},
        {"arguments__encoder": "convnext_xxlarge", "arguments__depth": None, "arguments__width": 1024},
        {"classes__names": [str(i) for i in range(60_000)], "classes__colors": [], "classes__things": [],
         "classes__ids": [], "arguments__width": 1024},
    ],
    ids=["deep", "deep and many channels", "encoder", "classes"],
)  # fmt: skip
def test_a_card_cannot_ask_for_memory(path, changes):
    other = forged(path, **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(KirieError, match="do not fit its description"):
        load(other)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB; the first would take terabytes


# ---- tensors


def rewritten(path, change):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata)
    return path


def test_variances_below_0_are_not_loaded(path):
    rewritten(path, lambda tensors: tensors["down.1.1.running_var"][2:3].fill_(-0.5))
    with pytest.raises(KirieError, match=r"variances below 0 in 1 tensor, the first is 'down\.1\.1\.running_var'"):
        load(path)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_not_loaded(path, value):
    rewritten(path, lambda tensors: tensors["down.1.0.weight"].view(-1)[7:8].fill_(value))
    with pytest.raises(KirieError, match=r"NaN or infinity in 1 tensor, the first is 'down\.1\.0\.weight'"):
        load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("head.bias"), r"1 missing \['head\.bias'\]"),
        (lambda t: t.update(extra=torch.zeros(1)), r"1 unknown \['extra'\]"),
        (lambda t: t.update({"head.bias": torch.zeros(5)}), r"1 of another shape \['head\.bias'\]"),
        (lambda t: t.update({"head.bias": torch.zeros(3, 1)}), r"1 of another shape"),
        (lambda t: t.clear(), "missing"),
    ],
)
def test_tensors_that_do_not_fit_the_card_are_refused(path, change, message):
    with pytest.raises(KirieError, match=f"do not fit its description: .*{message}"):
        load(rewritten(path, change))


def test_half_precision_weights_are_widened(model, path):
    rewritten(path, lambda t: t.update({n: v.half() for n, v in t.items() if v.is_floating_point()}))
    found = load(path)
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    torch.testing.assert_close(found.head.weight, model.head.weight, atol=1e-3, rtol=1e-3)
