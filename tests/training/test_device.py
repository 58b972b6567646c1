import pytest
import torch

from kirie.errors import KirieError
from kirie.training import device
from kirie.training.device import accelerator, cpu_has_bf16, mixed_precision


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"avx512_bf16": False, "avx512_f": True}, False),
        ({"architecture": "aarch64", "bf16": True}, False),  # not measured yet
        ({}, False),
    ],
)
def test_auto_is_bf16_where_the_cpu_computes_in_it(capabilities, native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert cpu_has_bf16() is native
    assert mixed_precision("auto", "cpu") == ("bf16" if native else "no")


def test_a_torch_that_cannot_tell_means_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert mixed_precision("auto", "cpu") == "no"


def test_auto_on_other_devices(monkeypatch):
    for native, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert mixed_precision("auto", "cuda") == expected
    assert mixed_precision("auto", "mps") == "no"


def test_a_named_precision_is_taken():
    assert [mixed_precision(name, "cpu") for name in ("fp32", "bf16", "fp16")] == ["no", "bf16", "fp16"]


def test_each_training_of_a_process_has_its_own_precision():
    for precision, name in (("fp32", "no"), ("bf16", "bf16"), ("fp32", "no")):
        made = accelerator("cpu", precision)
        assert (made.mixed_precision, made.device.type) == (name, "cpu")


def test_what_does_not_work_is_told(monkeypatch):
    with pytest.raises(KirieError, match="no device 'abacus'"):
        accelerator("abacus", "fp32")

    def refuses(mixed_precision, cpu):
        raise ValueError(f"{mixed_precision} mixed precision requires a GPU.")

    monkeypatch.setattr(device, "Accelerator", refuses)
    with pytest.raises(KirieError, match=r"train\.precision fp16 .* on the device cpu: fp16 .* Set it to auto"):
        accelerator("cpu", "fp16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has it")
def test_a_gpu_that_is_not_there():
    with pytest.raises(KirieError, match="no device 'cuda' here"):
        accelerator("cuda", "auto")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
def test_a_gpu_by_any_name(name):
    made = accelerator(name, "bf16")
    assert (made.mixed_precision, made.device.type, made.device.index or 0) == ("bf16", "cuda", 0)
