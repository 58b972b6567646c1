"""Checkpoints of other projects: what is taken, what is refused, and that nothing in them is executed."""

import argparse
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import kirie
from kirie import class_lists
from kirie.cli import app
from kirie.errors import KirieError
from kirie.models import MODELS, model_class
from kirie.models.unet import UNet
from kirie.weights import PUBLISHERS, from_milesial, load
from kirie.weights.load import import_checkpoint


def published(model):
    """The state dict of our U-Net under the names that milesial/Pytorch-UNet gives its tensors."""
    state = {}
    for name, tensor in model.state_dict().items():
        part, *rest = name.split(".")
        leaf = ".".join(rest[1:])
        if part == "head":
            state[f"outc.conv.{rest[0]}"] = tensor
        elif part == "down" and rest[0] == "0":
            state[f"inc.double_conv.{leaf}"] = tensor
        elif part == "down":
            state[f"down{rest[0]}.maxpool_conv.1.double_conv.{leaf}"] = tensor
        elif rest[1] == "up":
            state[f"up{int(rest[0]) + 1}.{leaf}"] = tensor
        else:
            state[f"up{int(rest[0]) + 1}.conv.double_conv.{'.'.join(rest[2:])}"] = tensor
    return state


def network(**options):
    """A small U-Net whose running statistics are not those of its birth."""
    torch.manual_seed(1)
    options = {"in_channels": 3, "classes": 2, "width": 4, "depth": 2} | options
    model = UNet(**options)
    with torch.no_grad():
        model.train()(torch.rand(2, options["in_channels"], 24, 24))
    return model.eval()


@pytest.fixture
def state():
    """A sound checkpoint of the publisher's layout, small."""
    return published(network())


@pytest.fixture
def write(tmp_path):
    def write(content, name="checkpoint.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


# ---- what is taken


@pytest.mark.parametrize("up", ["transposed", "bilinear"])
@pytest.mark.parametrize(
    "options",
    [
        {"depth": 4}, {"bias": False}, {"width": 6, "depth": 1}, {"depth": 3, "classes": 7},
        {"in_channels": 1, "classes": 1}, {"in_channels": 5, "classes": 300, "width": 3},
    ],
)  # fmt: skip
@torch.no_grad()
def test_any_shape_of_the_layout_gives_equal_outputs(up, options, write):
    model = network(up=up, **options)
    found, translation = import_checkpoint(write(published(model)))
    images = torch.rand(2, model.in_channels, 37, 50)
    assert torch.equal(found(images).logits, model(images).logits)
    assert found.arguments == model.arguments
    assert found.classes == model.classes
    assert translation.dropped == {}
    assert not found.training


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "safetensors", "checkpoint.pt", "checkpoint.pth", "x"])
def test_any_container_is_read(name, state, write, tmp_path):
    if name.endswith("safetensors"):
        save_file(state, tmp_path / name)
        path = tmp_path / name
    else:
        path = write(state, name)
    assert torch.equal(import_checkpoint(path)[0].head.weight, state["outc.conv.weight"])


def test_the_textbooks_head_and_older_containers_are_read(state, tmp_path):
    plain = {name.replace("outc.conv.", "outc."): tensor for name, tensor in state.items()}
    torch.save(plain, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(import_checkpoint(tmp_path / "old.pth")[0].head.weight, state["outc.conv.weight"])


def test_grey_values_of_the_masks_are_left_out_with_the_reason(state, write):
    for values in ([0, 255], [[0, 0, 0], [255, 0, 0]]):
        _, translation = import_checkpoint(write(state | {"mask_values": values}))
        assert "grey values" in translation.dropped["mask_values"]


def test_layout_in_memory_does_not_matter(state, write):
    last = {n: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for n, t in state.items()}
    assert torch.equal(import_checkpoint(write(last))[0].head.weight, state["outc.conv.weight"])


WRAPPINGS = {
    "semseg": lambda state: {"epoch": 100, "state_dict": prefixed(state, "module."), "optimizer": {"state": {}}},
    "VainF": lambda state: {"cur_itrs": 30_000, "model_state": state, "best_score": np.float64(0.77)},
    "HRNet": lambda state: {
        "epoch": 484,
        "best_mIoU": np.float64(0.8),
        "state_dict": state,
        "optimizer": {"state": {}},
    },
    "DETR": lambda state: {"model": state, "args": argparse.Namespace(lr=1e-4), "lr_scheduler": {"last_lr": [0.1]}},
    "Lightning": lambda state: {"state_dict": prefixed(state, "_orig_mod."), "hyper_parameters": {"width": 4}},
    "twice": lambda state: {"state_dict": {"model_state_dict": prefixed(state, "module._orig_mod.")}, "loss": 0.5},
    "params": lambda state: {"params": state, "model": "unet"},
    "two": lambda state: {"params": {n: t + 1 for n, t in state.items()}, "state_dict": state},
}


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("form", WRAPPINGS)
def test_a_state_dict_is_found_in_what_is_wrapped_round_it(form, state, write):
    content = WRAPPINGS[form](state)
    model, translation = import_checkpoint(write(content))
    assert torch.equal(model.head.weight, state["outc.conv.weight"])
    assert len(translation.dropped) == len(content) - 1
    assert all(translation.dropped.values())
    if form == "two":
        assert "other weights" in translation.dropped["params"]
    if form == "semseg":
        assert translation.dropped == {"epoch": "a counter of the training", "optimizer": "the optimiser's state"}


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_of_arrays_is_read(protocol, state, tmp_path):
    """As Detectron2's model zoo has them."""
    content = {"model": {n: t.numpy() for n, t in state.items()}, "__author__": "Somebody"}
    for name in ("model_final.pkl", "renamed.pth"):
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol))
        model, translation = import_checkpoint(tmp_path / name)
        assert torch.equal(model.head.weight, state["outc.conv.weight"])
        assert translation.dropped == {"__author__": "a remark on the file"}


def test_arrays_in_a_file_of_pytorch_are_read(state, write):
    found, _ = import_checkpoint(write({n: t.numpy() for n, t in state.items()}))
    assert torch.equal(found.head.weight, state["outc.conv.weight"])


@pytest.mark.parametrize("old", [False, True])
def test_parameters_and_other_numbers_are_read(old, state, tmp_path):
    """What PyTorch writes in other ways than tensors of float32; the check before its reader must let it by."""
    head = torch.nn.Parameter(state["outc.conv.weight"].bfloat16())
    rare = torch.int32 if old else torch.uint16  # which old files cannot hold
    beside = {"epoch": torch.tensor(3), "loss": torch.tensor([1], dtype=rare), "meta": torch.Size([1, 2]),
              "version": (torch.float16, torch.device("cpu")), "best": {"iou": [0.5, None, True, 2**70, b"x"]},
              "args": torch.zeros(3, 3)[1:, ::2], "iteration": torch.zeros(0)}  # fmt: skip
    path = tmp_path / "last.pth"
    content = {"model": state | {"outc.conv.weight": head}, **beside}
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    found, translation = import_checkpoint(path)
    assert torch.equal(found.head.weight, head.float())
    assert set(translation.dropped) == set(beside)


def test_half_precision_is_taken(state, write):
    found, _ = import_checkpoint(write({n: t.half() if t.is_floating_point() else t for n, t in state.items()}))
    assert found.head.weight.dtype == torch.float32
    assert torch.equal(found.head.weight, state["outc.conv.weight"].half().float())


# ---- what the file cannot tell


class Guess:
    """A publisher whose files do not say one thing."""

    @staticmethod
    def recognises(state):
        return "inc.double_conv.0.weight" in state

    @staticmethod
    def translate(state):
        translation = from_milesial.translate(state)
        return replace(translation, assumed={"standardise": "false, as in most; the tensors cannot tell"})


@pytest.fixture
def guess(monkeypatch):
    monkeypatch.setitem(sys.modules, "guess", Guess)
    monkeypatch.setattr(load, "PUBLISHERS", {"guess": "guess:translate"})


def test_an_assumption_is_told_and_can_be_set_otherwise(guess, state, write):
    path = write(state)
    model, translation = import_checkpoint(path)
    assert not model.standardise and list(translation.assumed) == ["standardise"]
    for changes in (["standardise=true"], {"standardise": True}):
        model, translation = import_checkpoint(path, changes=changes)
        assert model.standardise and model.arguments["standardise"] is True and translation.assumed == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["standardize=true"], r"no argument 'standardize'; those that can be set are bias, classes, .*standardise"),
        (["encoder_weights=x.pth"], "no argument 'encoder_weights'"),
        (["standardise"], "set as name=value, got 'standardise'"),
        (["=true"], "set as name=value"),
        (["standardise=[true"], "not valid YAML"),
        (["standardise=2024-13-01"], "not valid YAML"),
        (["standardise=!!python/object/apply:os.system [touch owned]"], "not valid YAML"),
        (["standardise=7"], r"does not fit the unet.*standardise must be true or false"),
        (["depth=3"], r"does not fit the unet.*missing"),
        (["depth=[3]"], r"does not fit the unet.*depth must be"),
        (["classes=[a]"], "tells 2 classes apart, got 1 names"),
        (["classes=[a, b, c]"], "tells 2 classes apart, got 3 names"),
        (["classes=[1, 2]"], r"a list of names or one of ADE20K, .*VOC"),
        (["classes=voc"], "tells 2 classes apart, got 21 names"),
        (["classes=coins"], r"a list of names or one of"),
    ],
)  # fmt: skip
def test_a_change_that_means_nothing_is_refused(changes, message, guess, state, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KirieError, match=message):
        import_checkpoint(write(state), changes=changes)
    assert os.listdir(tmp_path) == ["checkpoint.pth"]


@torch.no_grad()
def test_classes_are_named_by_a_list_or_by_that_of_a_data_set(write):
    model = network(classes=21)
    path = write(published(model))
    assert import_checkpoint(path)[0].classes.names[:2] == ("class 0", "class 1")
    assert import_checkpoint(path, changes=["classes=voc"])[0].classes == class_lists.VOC
    names = [f"c{i}" for i in range(21)]
    found, _ = import_checkpoint(path, changes={"classes": names})
    assert list(found.classes.names) == names
    binary = network(classes=1)
    found, _ = import_checkpoint(write(published(binary)), changes=["classes=[road, vessel]"])
    assert found.binary and found.classes.names == ("road", "vessel")
    images = torch.rand(1, 3, 17, 20)
    assert torch.equal(found(images).logits, binary(images).logits)


def test_the_written_table_leads_to_publishers():
    for row in PUBLISHERS.values():
        module = __import__(row.partition(":")[0], fromlist=["x"])
        assert callable(getattr(module, row.partition(":")[2]))
        assert not module.recognises({})


# ---- what is refused


def test_an_unknown_publisher_is_refused(write):
    with pytest.raises(
        KirieError, match=r"no publisher that kirie knows \(.*milesial.*\); it has 1 entry, .* backbone\.a"
    ):
        import_checkpoint(write({"backbone.a": torch.zeros(3)}))
    with pytest.raises(KirieError, match="no publisher"):
        import_checkpoint(write({}))


def without(name):
    return lambda state: {n: t for n, t in state.items() if n != name}


def other(**entries):
    return lambda state: state | {name.replace("__", "."): value for name, value in entries.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("down2.maxpool_conv.1.double_conv.3.weight"), r"missing \['down\.2\.3\.weight'\]"),
        (without("up2.up.bias"), r"missing \['up\.1\.up\.bias'\]"),
        (without("down1.maxpool_conv.1.double_conv.0.weight"), "missing|no entry|unknown"),
        (without("up1.up.weight"), "missing|unknown"),
        (without("outc.conv.bias"), r"lacks outc\.conv\.bias"),
        (without("inc.double_conv.4.running_var"), r"missing \['down\.0\.4\.running_var'\]"),
        (other(extra__weight=torch.zeros(1)), r"no entry 'extra\.weight'"),
        (other(down9__maxpool_conv__1__double_conv__3__weight=torch.zeros(1)), r"no entry 'down9\."),
        (other(up9__up__weight=torch.zeros(1)), r"unknown \['up\.8\.up\.weight'\]"),
        (other(inc__double_conv__7__weight=torch.zeros(1)), r"unknown \['down\.0\.7\.weight'\]"),
        (other(inc__again__double_conv__0__weight=torch.zeros(4, 3, 3, 3)), r"no entry 'inc\.again\."),
        (other(up1__conv__double_conv__0__weight=torch.zeros(8, 16, 5, 5)), r"shape \['up\.0\.conv\.0\.weight: \(8,"),
        (other(outc__conv__weight=torch.zeros(2, 4)), r"lacks outc\.conv\.weight with 4 axes"),
        (other(outc__conv__weight="x"), r"lacks outc\.conv\.weight with 4 axes"),
        (other(outc__conv__bias=torch.tensor(1.0)), r"lacks outc\.conv\.bias with 1 axes"),
        (other(inc__double_conv__0__weight=[1, 2]), r"lacks inc\.double_conv\.0\.weight"),
        (other(inc__double_conv__0__bias=[1, 2]), r"no entry 'inc\.double_conv\.0\.bias'"),
        (other(inc__double_conv__0__weight=torch.zeros(2000, 3, 3, 3)), "width"),
        (other(inc__double_conv__0__weight=torch.zeros(4, 0, 3, 3)), "in_channels"),
        (other(outc__conv__weight=torch.zeros(0, 4, 1, 1)), "classes"),
        (other(inc__double_conv__1__running_mean=torch.full((4,), float("nan"))), "NaN or infinity"),
        (other(inc__double_conv__0__weight=torch.zeros(4, 3, 3, 3, dtype=torch.int8)), r"1 of another type \[.*int8"),
        (lambda state: {n: t for n, t in state.items() if "down" not in n}, "depth must be"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_refused(change, message, state, write):
    with pytest.raises(KirieError, match=message):
        import_checkpoint(write(change(state)))


def test_a_wrong_shape_names_the_file_and_both_shapes(state, write):
    state["up1.up.bias"] = torch.zeros(9)
    with pytest.raises(
        KirieError, match=r"checkpoint\.pth does not fit the unet.*up\.0\.up\.bias: \(9,\), expected \(8,\)"
    ):
        import_checkpoint(write(state))


@pytest.mark.parametrize("content", [[1, 2, 3], 7, "text", {1: torch.zeros(2)}, torch.zeros(3), None])
def test_other_content_is_refused(content, write):
    with pytest.raises(KirieError, match="expected tensors by name"):
        import_checkpoint(write(content))


@pytest.mark.parametrize("name", ["checkpoint.pth", "checkpoint.safetensors"])
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.99])
def test_a_file_cut_short_is_refused(name, kept, state, write, tmp_path):
    path = write(state, name)
    if name.endswith("safetensors"):
        save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(KirieError, match=r"Cannot read .* without running code from it"):
        import_checkpoint(path)


def test_folders_and_missing_files_are_refused(tmp_path):
    for place in (tmp_path, tmp_path / "none.pth"):
        with pytest.raises(KirieError, match=r"There is no checkpoint file|is a folder"):
            import_checkpoint(place)


# ---- what is hostile


class Trap:
    """An object that, when its pickle is loaded, writes a file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return exec, (f"with open({str(self.trace)!r}, 'w') as file: file.write('run')",)


class Shell(Trap):
    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("kind", [Trap, Shell])
@pytest.mark.parametrize("form", ["beside tensors", "alone", "old container", "bare pickle", "renamed"])
def test_code_in_a_checkpoint_is_never_run(kind, form, state, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "checkpoint.pth"
    trap = kind(trace)
    if form == "beside tensors":
        torch.save(state | {"mask_values": trap}, path)
    elif form == "alone":
        torch.save(trap, path)
    elif form == "old container":
        torch.save(state | {"mask_values": trap}, path, _use_new_zipfile_serialization=False)
    elif form == "bare pickle":
        path.write_bytes(pickle.dumps(trap))
    else:
        path = tmp_path / "checkpoint.safetensors"
        torch.save(trap, path)
    before = set(os.listdir(tmp_path))
    with pytest.raises(KirieError, match="Cannot read"):
        import_checkpoint(path)
    assert set(os.listdir(tmp_path)) == before
    assert not trace.exists()


def test_the_trap_would_spring(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()  # so that the test above can fail


def test_a_whole_model_object_is_refused(write):
    with pytest.raises(KirieError, match="Cannot read"):
        import_checkpoint(write(network()))


def test_a_model_of_kirie_is_told_apart(tmp_path):
    kirie.save(network(), tmp_path / "own.safetensors")
    with pytest.raises(KirieError, match=r"own\.safetensors is already a model of kirie; use it as it is"):
        import_checkpoint(tmp_path / "own.safetensors")


def test_a_zip_that_unpacks_to_more_than_it_is_is_refused(state, write, tmp_path):
    path = write(state | {"mask_values": [0] * 100_000})
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry))
    assert (tmp_path / "b.pth").stat().st_size < path.stat().st_size
    with pytest.raises(KirieError, match="unpack to more than the file holds"):
        import_checkpoint(tmp_path / "b.pth")


STORED = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORED + b"M\x00\x40tQK\x00M\x00\x40\x85K\x01\x85\x89}tR"
DRESSED = {
    "a key whose hash takes for ever": (b"}" + b")" + b"q\x000h\x00h\x00\x86" * 200 + b"K\x01s.", "key of type tuple"),
    "bytes by their number": (b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "asks for builtins.bytearray"),
    "a tensor by its size": (b"ctorch\nTensor\nJ\xff\xff\xff\x7f\x85R.", "calls something"),
    "a storage by its size": (b"ctorch.storage\nUntypedStorage\nJ\xff\xff\xff\x7f\x85R.", "calls something"),
    "another coding": (b"c_codecs\nencode\nX\x01\x00\x00\x00xX\x04\x00\x00\x00idna\x86R.", "otherwise than bytes"),
    "more numbers than there are": (b"}X\x01\x00\x00\x00w" + TENSOR + b"s.", "more numbers than the file holds"),
    "a storage whose key is none": (b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n)NK\x01tQ.", "none of PyTorch's"),
    "a storage that is none": (b"K\x07Q.", "none of PyTorch's"),
}  # fmt: skip


@pytest.mark.parametrize("form", ["zip", "old"])
@pytest.mark.parametrize("name", DRESSED)
def test_what_pytorchs_own_reader_would_do_is_refused(name, form, write, tmp_path):
    """Programs that its safe reader runs, or tries to: without code, but without end or with much memory."""
    program, message = DRESSED[name]
    path = tmp_path / "trap.pth"
    torch.save({}, path, _use_new_zipfile_serialization=form == "zip")
    if form == "zip":
        write({}, path.name)
        with zipfile.ZipFile(write({})) as plain, zipfile.ZipFile(path, "w") as trap:
            for entry in plain.infolist():
                trap.writestr(
                    entry.filename,
                    b"\x80\x02" + program if entry.filename.endswith("data.pkl") else plain.read(entry),
                )
    else:
        whole = path.read_bytes()
        path.write_bytes(whole[: whole.rindex(b"\x80\x02}q\x00.")] + b"\x80\x02" + program + b"\x80\x02]q\x00.")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(KirieError, match=message):
        import_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_an_old_file_must_list_the_storages_of_its_tensors(state, tmp_path):
    """Those that it does not list would hold whatever was in memory."""
    path = tmp_path / "old.pth"
    torch.save({"inc.double_conv.0.weight": torch.zeros(4, 3, 3, 3)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    keys = whole.rindex(b"\x80\x02]q\x00")
    path.write_bytes(whole[:keys] + b"\x80\x02]q\x00." + bytes(999))
    assert torch.load(path, weights_only=True)["inc.double_conv.0.weight"].shape == (4, 3, 3, 3)
    with pytest.raises(KirieError, match="does not list the storages"):
        import_checkpoint(path)


@pytest.mark.parametrize("name", ["module." * 100_000, "down" + "9" * 5000 + ".maxpool_conv.1.double_conv.0.weight"])
def test_endless_names_are_refused(name, write):
    with pytest.raises(KirieError, match="more than 500 characters"):
        import_checkpoint(write({name: torch.zeros(1)}))


@pytest.mark.parametrize("entries", [{"state_dict": {1: torch.zeros(2)}}, {"model": {("a",): torch.zeros(2)}}])
def test_entries_without_names_are_refused(entries, write):
    with pytest.raises(KirieError, match=r"without names|a dict with a key of type tuple"):
        import_checkpoint(write(entries))


def test_a_state_dict_dressed_up_by_the_file_is_read_plainly(state, tmp_path):
    """A file may hang attributes on an OrderedDict, such as one called `values`."""
    dressed = OrderedDict(state)
    dressed.keys = dressed.values = dressed.get = OrderedDict
    torch.save({"state_dict": dressed}, tmp_path / "checkpoint.pth")
    with pytest.raises(TypeError):
        torch.load(tmp_path / "checkpoint.pth", weights_only=True)["state_dict"].get("x", "y", "z")
    assert torch.equal(import_checkpoint(tmp_path / "checkpoint.pth")[0].head.weight, state["outc.conv.weight"])


def test_a_small_file_cannot_ask_for_much_memory(write, state):
    wide = {"inc.double_conv.0.weight": torch.zeros(1024, 3, 3, 3), "inc.double_conv.0.bias": torch.zeros(1024)}
    for level in range(1, 9):
        wide[f"down{level}.maxpool_conv.1.double_conv.0.weight"] = torch.zeros(1)
    wide |= {"up1.up.weight": torch.zeros(1), "outc.weight": torch.zeros(2, 1024, 1, 1), "outc.bias": torch.zeros(2)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(KirieError, match="does not fit the unet"):
        import_checkpoint(write(wide))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB; it would take terabytes


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(4, 3, 3, 3), torch.zeros(4, 3, 3, 3).to_sparse(), torch.zeros(4, 3, 3, 3, device="meta"),
    ],
    ids=["repeated by strides", "sparse", "without numbers"],
)  # fmt: skip
def test_tensors_without_all_their_numbers_are_refused(tensor, state, write):
    told = r"'inc\.double_conv\.0\.weight' is no plain tensor|asks for torch\._utils\._rebuild_(sparse|meta)"
    with pytest.raises(KirieError, match=told):
        import_checkpoint(write(state | {"inc.double_conv.0.weight": tensor}))


# ---- the command


@torch.no_grad()
def test_the_command_writes_one_model_file(write, tmp_path):
    model = network(up="bilinear", classes=3)
    path = write(published(model) | {"mask_values": [0, 1, 2]})
    out = tmp_path / "out" / "unet.safetensors"
    result = CliRunner().invoke(app, ["import", str(path), "--as", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "left out mask_values" in result.output
    assert "unet, 3 classes, 3 channels" in result.output
    assert os.listdir(out.parent) == ["unet.safetensors"]
    found = kirie.load(out)
    images = torch.rand(1, 3, 37, 50)
    assert torch.equal(found(images).logits, model(images).logits)


def test_the_command_ends_in_one_sentence_when_the_file_is_hostile(tmp_path):
    torch.save({"x": Trap(tmp_path / "trace")}, tmp_path / "checkpoint.pth")
    command = [sys.executable, "-m", "kirie.cli", "import", "checkpoint.pth", "--as", "out.safetensors"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: Cannot read checkpoint.pth as weights without running code from it")
    assert "Traceback" not in result.stderr
    assert os.listdir(tmp_path) == ["checkpoint.pth"]


# ---- names that users type


def test_a_users_own_class_is_imported_only_where_it_was_typed(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text("from kirie.models.unet import UNet\nclass Mine(UNet): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KirieError, match=r"There is no architecture 'own_models:Mine'\. Known: "):
        model_class("own_models:Mine")
    assert model_class("own_models:Mine", own_code=True).__name__ == "Mine"
    assert all(model_class(name) for name in MODELS)


@pytest.mark.parametrize("name", ["none_such:Model", "os:nothing", ":Model", ".own:Model", "os:", "a b:c"])
def test_a_users_class_that_cannot_be_imported_is_an_error(name):
    with pytest.raises(KirieError, match=r"Cannot import .*package\.module:Name"):
        model_class(name, own_code=True)


@pytest.mark.parametrize("name", ["os:system", "collections:OrderedDict", "kirie.models.contract:InputFacts"])
def test_a_users_class_must_keep_the_contract(name):
    with pytest.raises(KirieError, match="is not a SegmentationModel"):
        model_class(name, own_code=True)


# ---- what comes in the place of a checkpoint


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty: fetch it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "only points to the weights"),
        (b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>" + b" " * 50, "is a web page"),
        (b"These are the weights of the network that the paper describes, by e-mail.", "is a text and no checkpoint"),
    ],
    ids=["nothing", "pointer", "page", "text"],
)
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.pkl", "x.bin"])
def test_what_often_comes_in_the_place_of_a_checkpoint_is_named(content, told, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(KirieError, match=told):
        import_checkpoint(tmp_path / name)


def test_a_whole_model_is_refused_with_the_mend(tmp_path):
    torch.save(torch.nn.Conv2d(1, 1, 1), tmp_path / "model.pth")
    with pytest.raises(KirieError, match=r"asks for torch\.nn\.modules\.conv\.Conv2d\. If a whole model was saved"):
        import_checkpoint(tmp_path / "model.pth")


def test_of_a_folder_the_files_in_it_are_named(write):
    with pytest.raises(KirieError, match=r"is a folder; give the checkpoint file in it, such as .*checkpoint\.pth"):
        import_checkpoint(write({}).parent)


def test_variances_below_0_are_refused(state, write):
    state["inc.double_conv.1.running_var"][0] = -1
    with pytest.raises(KirieError, match="variances below 0 in 1 tensor"):
        import_checkpoint(write(state))
