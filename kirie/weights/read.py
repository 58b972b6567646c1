"""Reads checkpoint files without running anything in them, and takes the state dict out of what is wrapped round it."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from kirie.errors import KirieError
from kirie.models.file import ENTRY
from kirie.weights.arrays import STAND_INS, with_arrays
from kirie.weights.pickles import check_tensors, read_arrays

_LEGACY = b"l\xfc\x9cF\xf9 j\xa8P\x19."  # the number that PyTorch's format of before 2020 begins with
_HOLDERS = ("state_dict", "model_state", "model", "model_state_dict", "params")
_ENDINGS = (".safetensors", ".bin", ".pth", ".pt", ".pkl")
_SYSTEM = ("builtins", "__builtin__", "os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "runpy")
_DEEPEST = 2  # some projects wrap twice
_WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
_LONGEST = 500  # characters of a name
_REASONS = {
    r"optim": "the optimiser's state",
    r"sched|^lr": "the state of the learning rate's schedule",
    r"scaler|amp": "the state of mixed precision",
    r"epoch|iter|itrs|step": "a counter of the training",
    r"best|score|iou|loss|acc|metric": "a score of the training",
    r"arg|conf|cfg|opts?$|hyper|setting": "settings of the training",
    r"author|meta|version|heuristic": "a remark on the file",
}


def read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds by name: tensors, and whatever plain values lie beside them.

    `.safetensors` can hold arrays only. Files of `torch.save` are read by `torch.load(weights_only=True)`, once
    `pickles.check_tensors` has followed them, with stand-ins for NumPy's numbers and arrays, which it would refuse; all
    else by `pickles.read_arrays`.

    Raises:
        KirieError: when there is no such file, reading it would mean running code from it, it is cut short, or it is a
            model of kirie's own.
    """
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if entry.suffix in _ENDINGS)
        such = f", such as {path / inside[0]}" if inside else ""
        raise KirieError(f"{path} is a folder; give the checkpoint file in it{such}.")
    if not path.is_file():
        raise KirieError(f"There is no checkpoint file {path}.")
    _check_start(path)
    if _is_own(path):
        raise KirieError(f"{path} is already a model of kirie; use it as it is: kirie predict {path} ...")
    try:
        content = _read(path)
    except KirieError as error:
        raise _unreadable(path, str(error)) from error
    except Exception as error:  # the unpickler, zip reader and safetensors each raise kinds of their own
        # PyTorch's own words advise to run the code that it refused; only what it refused is worth repeating.
        refused = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks for {refused[1]}" if refused else "it is cut short (fetch it again), or no checkpoint"
        raise _unreadable(path, what) from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise KirieError(f"{path} holds {type(content).__name__}, expected tensors by name (a state dict).")
    return _tensors(content)


def _is_own(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return ENTRY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _check_start(path: Path) -> None:
    """Raises a KirieError when a file's first bytes show that it is no checkpoint but what often comes in its place."""
    with path.open("rb") as file:
        start = file.read(64)
    text = all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start)
    if not start:
        raise KirieError(f"{path} is empty: fetch it again.")
    if start.startswith(b"version https://git-lfs"):
        raise KirieError(f"{path} only points to the weights, which Git LFS keeps elsewhere: fetch the file itself.")
    if start.lstrip()[:1] == b"<" and text:
        raise KirieError(f"{path} is a web page and no checkpoint: fetch the file that the page offers.")
    if text and len(start) == 64:
        raise KirieError(f"{path} is a text and no checkpoint; it begins {start[:32].decode()!r}.")


def _unreadable(path: Path, what: str) -> KirieError:
    asked = re.search(r"it asks for (\w+)\.", what)
    whole = asked is not None and asked[1] not in _SYSTEM
    mend = " If a whole model was saved, save its state_dict() instead, in the project that it comes from."
    return KirieError(f"Cannot read {path} as weights without running code from it: {what}.{mend if whole else ''}")


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(64)
    if path.suffix == ".safetensors" or start[8:10] == b'{"':  # the length of its JSON header stands before
        return load_file(path)
    if start[:2] == b"PK":
        _check_zip(path)
    elif _LEGACY in start:
        with path.open("rb") as file:
            check_tensors(file, path.stat().st_size, old=True)
    else:
        return read_arrays(path)
    # Messages of PyTorch on how the file was written are of no use to who only reads it.
    with warnings.catch_warnings(), torch.serialization.safe_globals(STAND_INS):
        warnings.simplefilter("ignore")
        content = torch.load(path, map_location="cpu", weights_only=True)
    return with_arrays(content, path.stat().st_size)


def _check_zip(path: Path) -> None:
    """Raises a KirieError when a zip's entries claim more bytes than the file has, or its pickles are no plain data.

    `torch.save` compresses nothing.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as file:
        if sum(entry.file_size for entry in file.infolist()) > size:
            raise KirieError("its entries unpack to more than the file holds, which torch.save never writes")
        for entry in file.infolist():
            if entry.filename.lower().endswith(".pkl"):
                check_tensors(io.BytesIO(file.read(entry)), size, old=False)


def _tensors(content: dict[str, Any]) -> dict[str, Any]:
    """The content with tensors in place of arrays."""
    made: dict[tuple[int, int], Any] = {}  # by identity and depth: what is shared stays shared

    def plain(value: Any, depth: int) -> Any:
        if isinstance(value, np.ndarray):
            return made.setdefault((id(value), 0), torch.from_numpy(value))
        if isinstance(value, dict) and depth:
            if (id(value), depth) not in made:
                made[id(value), depth] = {name: plain(inner, depth - 1) for name, inner in value.items()}
            return made[id(value), depth]
        return value

    found: dict[str, Any] = plain(content, 4)
    return found


def unwrapped(content: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The state dict in a checkpoint, and what lay round it with the reason why it is left out.

    The state dict is the content itself, or lies under `state_dict`, `model_state`, `model`, `model_state_dict` or
    `params` (the first of these that holds tensors); `module.` is taken off when every name has it.

    Raises:
        KirieError: when an entry has no name or an endless one, or is no plain tensor with all its numbers in the file.
    """
    dropped: dict[str, str] = {}
    for _ in range(_DEEPEST):
        holder = next((name for name in _HOLDERS if _holds_tensors(content.get(name))), None)
        if holder is None:
            break
        different = {id(value): value for value in content.values()}  # one may stand under many names
        weights = {key for key, value in different.items() if _holds_tensors(value)}
        for name in content:
            if name != holder:
                dropped[name] = f"other weights; those under {holder} are taken" if id(content[name]) in weights \
                    and not re.search("optim", name) else _reason(name)  # fmt: skip
        content = content[holder]
    state = dict(content)
    if not all(isinstance(name, str) for name in state):
        raise KirieError(f"{path} holds entries without names, expected tensors by name (a state dict).")
    if any(len(name) > _LONGEST for name in state):
        raise KirieError(f"{path} holds an entry whose name has more than {_LONGEST} characters, as no layer's has.")
    for prefix in _WRAPPERS:
        while state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    unsound = [name for name, value in state.items() if isinstance(value, Tensor) and not _is_whole(value)]
    if unsound:
        raise KirieError(f"{path}: {unsound[0]!r} is no plain tensor with all its numbers in the file.")
    return state, dropped


def _holds_tensors(value: Any, depth: int = _DEEPEST) -> bool:
    """Whether tensors lie in a dict, or in one that the dict is wrapped round."""
    if not isinstance(value, dict) or not depth:
        return False
    within = any(_holds_tensors(value.get(name), depth - 1) for name in _HOLDERS)
    return within or any(isinstance(inner, Tensor) for inner in value.values())


def _reason(name: str) -> str:
    return next((words for form, words in _REASONS.items() if re.search(form, name.lower())), "no weights")


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor's numbers are all there; one repeated by strides could claim any size."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
