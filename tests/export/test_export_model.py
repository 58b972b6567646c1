"""What an export's file says, how it is proved, refused, chosen, and found again."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import kirie
from kirie.errors import KirieError
from kirie.export import TARGETS
from kirie.export.proof import proof_pictures, prove
from kirie.export.write import export_model
from kirie.masks import Masks
from kirie.models.file import load, save
from kirie.models.unet import UNet
from kirie.prediction.fingerprint import fingerprint
from kirie.prediction.predictor import Predictor
from kirie.results import Instances
from kirie.runtimes import load as loading
from kirie.runtimes.record import Export, read_record
from tests.tiny import CLASSES, colour_unet, make_data, random_unet, run_cli


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), size=(48, 64))


@pytest.fixture
def model(tmp_path):
    return save(colour_unet(), tmp_path / "run" / "model.safetensors", scores={"miou": 1.0})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with an export for each runtime."""
    path = save(colour_unet(), tmp_path_factory.mktemp("run") / "model.safetensors")
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    for to in ("onnx", "openvino"):
        export_model(path, to=to, pictures=[picture])
    return path.parent


def test_the_file_says_what_it_is(run):
    for name in ("model.onnx", "model.xml"):
        card, export, _ = read_record(run / name)
        assert card.classes == CLASSES
        assert card.architecture == "unet"
        assert export.precision == "fp32"
        assert export.opset >= 18
        assert {"kirie", "torch", "onnx"} <= set(export.versions)
        assert export.proof["equal"] >= 0.999
        assert len(export.proof["sizes"]) == 4
        assert set(export.milliseconds) == {"torch", export.runtime}


def test_other_programs_read_the_onnx_file(run):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(run / "model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    sizes = [side.dim_param or side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim]
    assert sizes[1] == 3
    assert all(isinstance(sizes[axis], str) for axis in (0, 2, 3))
    assert json.loads({p.key: p.value for p in model.metadata_props}["kirie"])["classes"]["names"] == list(
        CLASSES.names
    )


def test_an_exported_model_is_measured_like_any(run, data):
    ours, theirs = (kirie.evaluate(kirie.load(run, runtime=each), data) for each in ("torch", "onnx"))
    assert ours.score == theirs.score


def test_a_proof_that_fails_leaves_nothing(model, monkeypatch):
    monkeypatch.setattr("kirie.export.proof.LEAST_EQUAL", 1.1)
    for out in (None, model.parent / "a" / "b" / "model.onnx"):
        with pytest.raises(KirieError, match="not what the model is, so nothing was written"):
            export_model(model, to="onnx", out=out)
    assert [file.name for file in model.parent.iterdir()] == ["model.safetensors"]


def test_files_that_are_there_stay(run):
    before = (run / "model.onnx").read_bytes()
    with pytest.raises(KirieError, match="--overwrite"):
        export_model(run, to="onnx")
    assert (run / "model.onnx").read_bytes() == before
    again = export_model(run, to="onnx", overwrite=True)
    assert read_record(again.path)[1].source == again.export.source


def test_another_model_file_has_no_export(run, tmp_path):
    for file in run.iterdir():
        shutil.copy(file, tmp_path / file.name)
    assert set(loading.exports_of(tmp_path / "model.safetensors")) == {tmp_path / "model.onnx", tmp_path / "model.xml"}
    save(random_unet(), tmp_path / "model.safetensors")
    assert not loading.exports_of(tmp_path / "model.safetensors")
    with pytest.raises(KirieError, match=r"no export of .* as it is now for openvino"):
        kirie.load(tmp_path, runtime="openvino")
    assert kirie.load(tmp_path, runtime="auto").artifact is None


def test_auto_takes_the_fastest_that_is_faster(run, monkeypatch):
    def timed(onnx, openvino):
        def read(path):
            card, export, code = read_record(path)
            times = {"torch": 10.0, export.runtime: onnx if export.runtime == "onnx" else openvino}
            return card, Export(**{**export.to_dict(), "milliseconds": times}), code

        monkeypatch.setattr(loading, "read_record", read)
        return loading.picked(run, "auto").name

    assert timed(8.0, 5.0) == "model.xml"
    assert timed(5.0, 8.0) == "model.onnx"
    assert timed(11.0, 12.0) == run.name


def test_parts_of_other_exports_are_refused(run, tmp_path):
    shutil.copy(run / "model.xml", tmp_path)
    with pytest.raises(KirieError, match=r"needs model\.bin beside it"):
        kirie.load(tmp_path / "model.xml")
    (tmp_path / "model.bin").write_bytes((run / "model.bin").read_bytes()[::-1])
    with pytest.raises(KirieError, match="damaged"):
        kirie.load(tmp_path / "model.xml")
    weights = bytearray((run / "model.bin").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.bin").write_bytes(weights)
    with pytest.raises(KirieError, match="damaged or belongs to another export"):
        kirie.load(tmp_path / "model.xml")


@pytest.mark.parametrize("name", ["broken.onnx", "broken.xml"])
def test_a_damaged_file_is_told(name, tmp_path):
    (tmp_path / name).write_bytes(b"nothing of the kind")
    (tmp_path / "broken.bin").write_bytes(b"")
    with pytest.raises(KirieError, match="damaged"):
        kirie.load(tmp_path / name)


def test_a_stranger_s_file_is_told(tmp_path):
    onnx = pytest.importorskip("onnx")
    info = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("a", "b")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["a"], ["b"])], "g", info[:1], info[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(KirieError, match="not exported by kirie"):
        kirie.load(tmp_path / "other.onnx")
    onnx.helper.set_model_props(model, {"kirie": json.dumps({"format": 1, "architecture": "os:system"})})
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(KirieError):
        kirie.load(tmp_path / "other.onnx")


def test_an_exported_model_is_not_exported_again(run):
    with pytest.raises(KirieError, match="is an export already"):
        export_model(next(run.glob("*.onnx")))


def test_an_exported_model_is_not_saved_or_read_as_a_program(run, tmp_path):
    with pytest.raises(KirieError, match="has no weights to save"):
        save(kirie.load(run / "model.onnx"), tmp_path / "model.safetensors")
    with pytest.raises(KirieError, match=r"torch\.export\.load"):
        kirie.load(tmp_path / "model.pt2")


def test_a_program_for_torch(model):
    done = export_model(model, to="torch")
    extra = {"kirie.json": ""}
    program = torch.export.load(done.path, extra_files=extra)
    assert json.loads(extra["kirie.json"])["export"]["runtime"] == "torch"
    images = torch.rand(1, 3, 41, 50)
    with torch.no_grad():
        found = program.module()(images)["logits"]
        torch.testing.assert_close(found, load(model)(images).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("to", "precision"),
    [("onnx", "fp16"), ("openvino", "fp16"), ("openvino", "bf16"), ("onnx", "int8"), ("openvino", "int8")],
)
def test_smaller_numbers_are_accepted_by_the_data(to, precision, model, data):
    done = export_model(model, to=to, precision=precision, data=data)
    assert done.path.stem == f"model-{precision}"
    assert done.scores[0] - done.scores[1] <= 0.01
    found = kirie.load(model, runtime=to)
    assert found.artifact.startswith(f"{to} {precision}")
    assert kirie.evaluate(found, data).score == pytest.approx(done.scores[1])


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_pictures_are_standardised_in_full_in_8_bits_too(to, data, tmp_path):
    path = save(random_unet(standardise=True), tmp_path / "model.safetensors")
    assert export_model(path, to=to, precision="int8", data=data, max_loss=1.0).proof.equal > 0.9


def test_what_costs_too_much_is_refused(tmp_path, data, monkeypatch):
    path = save(random_unet(), tmp_path / "model.safetensors")
    scores = iter((0.9, 0.8))
    monkeypatch.setattr("kirie.export.write._score", lambda *_, **__: next(scores))
    with pytest.raises(KirieError, match=r"falls from 0\.9000 to 0\.8000, by more than 0\.05"):
        export_model(path, to="openvino", precision="fp16", data=data, max_loss=0.05)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"to": "coreml"}, "exported to openvino, onnx, torch"),
        ({"precision": "int4"}, "A precision is one of"),
        ({"to": "onnx", "precision": "bf16"}, "For onnx there is fp32, fp16, int8"),
        ({"precision": "int8"}, "give a data set"),
        ({"max_loss": -1}, "from 0 to 1"),
        ({"out": "model.onnx"}, r"ends in \.xml"),
        ({"pictures": []}, "at least one picture"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_made(words, told, model):
    with pytest.raises(KirieError, match=told):
        export_model(model, **words)


def test_a_place_that_cannot_be_written(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(KirieError, match=r"Cannot write .*model\.onnx: File exists\. Choose another place by --out"):
        export_model(model, to="onnx", out=tmp_path / "file" / "model.onnx")

    long = tmp_path / f"{'long' * 80}.onnx"
    with pytest.raises(KirieError, match=r"Cannot write .*long\.onnx: "):
        export_model(model, to="onnx", out=long)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "run"]


@pytest.mark.parametrize(
    ("words", "package"),
    [
        ({"to": "openvino"}, "openvino"), ({"to": "openvino"}, "onnxscript"), ({"to": "onnx"}, "onnx"),
        ({"to": "onnx"}, "onnxruntime"), ({"to": "onnx", "precision": "int8", "data": "data"}, "nncf"),
    ],
)  # fmt: skip
def test_packages_that_are_not_installed(words, package, model, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(KirieError, match=rf"^Not installed: {package}\. .*pip install 'kirie\[export\]'"):
        export_model(model, **words)


@pytest.mark.skipif(sys.platform == "win32", reason="a limit that only POSIX knows")
@pytest.mark.parametrize("to", ["onnx", "openvino", "torch"])
def test_a_full_disk(to, tmp_path):
    model = save(UNet(3, CLASSES, width=8, depth=3), tmp_path / "model.safetensors")
    program = f"""
import resource, signal
from kirie.errors import KirieError
from kirie.export.write import export_model
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    export_model({str(model)!r}, to={to!r})
except KirieError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"Cannot write {tmp_path}"), (done.stdout, done.stderr[-2000:])
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_command_line(model, data, capsys):
    code, out, _ = run_cli(capsys, "export", model.parent, "--to", "onnx", "--data", data)
    assert code == 0
    assert "100.0000% of pixels equal" in out
    assert "by PyTorch" in out
    code, out, _ = run_cli(capsys, "export", model.parent, "--to", "onnx", "--overwrite", "--json")
    assert json.loads(out)["runtime"] == "onnx"
    pictures = data / "images" / "test"
    for runtime in ("torch", "onnx", "auto"):
        code, _, err = run_cli(
            capsys, "predict", model.parent, pictures, "--out", model.parent / f"cut-{runtime}", "--runtime", runtime
        )
        assert code == 0, err
    cuts = [sorted((model.parent / f"cut-{name}").glob("*.png")) for name in ("torch", "onnx")]
    assert [a.read_bytes() for a in cuts[0]] == [b.read_bytes() for b in cuts[1]]
    code, out, _ = run_cli(capsys, "evaluate", model.parent, data, "--runtime", "onnx", "--json")
    assert json.loads(out)["miou"] == 1.0
    code, _, err = run_cli(capsys, "evaluate", model.parent, data, "--runtime", "tensorrt")
    assert code == 1
    assert "There is no runtime 'tensorrt'" in err


def test_results_of_different_runtimes_are_told_apart(run):
    codes = {fingerprint(Predictor(kirie.load(run, runtime=each))) for each in ("torch", "onnx", "openvino")}
    assert len(codes) == 3


# The proof itself


def test_a_proof_sees_a_difference(tmp_path):
    one, other = random_unet(), random_unet()
    with torch.no_grad():
        other.head.bias[0] += 0.3
    pictures = proof_pictures([np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)], 32)
    assert prove(one, one, pictures).passed
    seen = prove(one, other, pictures)
    assert not seen.passed
    assert seen.difference == pytest.approx(0.3, abs=1e-4)
    assert 0.5 < seen.equal < 0.999


def objects(boxes, scores, size=(40, 40)):
    masks = np.zeros((len(boxes), *size), bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return Instances.from_masks(
        Masks.from_dense(masks), [0] * len(boxes), kirie.Classes(("a",), things=(True,)), scores
    )


def test_objects_are_compared_one_by_one():
    from kirie.export.proof import _objects

    both = [(0, 0, 10, 10), (20, 20, 36, 36)]
    first = objects(both, [0.9, 0.8])
    assert _objects(first, first) == (2, 2, 1)
    assert _objects(first, objects(both[:1], [0.9])) == (1, 1, 1)  # the other one is the lowest of its side
    assert _objects(first, objects(both[1:], [0.8])) == (1, 2, 1)
    moved = objects([both[0], (20, 21, 36, 36)], [0.9, 0.8])
    assert _objects(first, moved) == (2, 2, pytest.approx(15 / 16))


@pytest.mark.parametrize("bit", [1, 128])
@pytest.mark.parametrize("name", ["model.onnx", "model.xml"])
def test_changed_bytes_of_the_file_itself_are_refused(run, tmp_path, name, bit):
    for file in run.iterdir():
        shutil.copy(file, tmp_path / file.name)
    path = tmp_path / name
    whole = path.read_bytes()
    kirie.load(path)
    # A weight and the name of a class, which no runtime minds; with the high bit the text is no UTF-8 any more.
    weight = len(whole) // 3 if name == "model.onnx" else whole.index(b"Const")
    for place in (weight, whole.index(CLASSES.names[-1].encode())):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        with pytest.raises(KirieError, match=f"{re.escape(name)}.*(was changed since it was exported|damaged)"):
            kirie.load(path)
        assert path not in loading.exports_of(tmp_path / "model.safetensors")


def test_an_export_with_another_seal_or_none_is_refused(run, tmp_path):
    path = Path(shutil.copy(run / "model.onnx", tmp_path))
    seal = read_record(path)[1].seal
    whole = path.read_bytes()
    for other, words in (
        (f'"seal:{"0" * 64}"', "was changed since it was exported"),
        (f'"{seal.upper()}"', "none of this kirie's"),
        ("null" + " " * (len(seal) - 2), "exported by another version"),
    ):
        path.write_bytes(whole.replace(f'"{seal}"'.encode(), other.encode()))
        with pytest.raises(KirieError, match=words):
            kirie.load(path)


@pytest.mark.parametrize("to", TARGETS)
def test_what_is_told_of_an_export_is_what_its_file_says(model, to):
    made = export_model(model, to=to, pictures=[np.zeros((48, 64, 3), np.uint8)])
    if to == "torch":
        assert made.export.seal is None  # kirie does not read it again
    else:
        assert read_record(made.path)[1].to_dict() == json.loads(json.dumps(made.export.to_dict()))
