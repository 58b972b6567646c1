"""What an exported model says about itself: the card of the model it was made from, and how it was made and proved.

It stands as JSON in the exported file: the entries of a model file's card, and one more, `export`. Files that belong to
it lie beside it and are named with their digests, so that no part of another export is ever taken for its own. The
digest of the exported file itself, its seal, is that of its bytes with zeros in the place of the seal.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from kirie.errors import KirieError
from kirie.models.file import MAX_METADATA, ModelCard, card_of
from kirie.runtimes import ENDINGS, graph_class, runtime_of

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
_SEAL = re.compile("seal:[0-9a-f]{64}")
_LENGTH = len("seal:") + 64


@dataclass(frozen=True)
class Export:
    """How a model was exported.

    Attributes:
        runtime: a row of `RUNTIMES`.
        precision: one of `PRECISIONS`.
        least_side: pixels of the shorter side of the smallest picture that it takes.
        heads: the graphs beside that of the network, by the names of the modules that they stand for.
        files: the digest of each file that belongs to it, by its name.
        source: the digest of the model file that it was made from; None where it was made from a model in memory.
        opset: of ONNX, through which every export goes.
        versions: of the packages that made it.
        proof: how it compares with the original, see `kirie.export.proof`.
        milliseconds: of a whole prediction by "torch" and by the runtime, measured one after the other.
        machine: the processor that took them.
        seal: by which the file that says all this is told from a changed one, see `seal`; None where kirie does not
            read it again.
    """

    runtime: str
    precision: str
    least_side: int
    heads: tuple[str, ...]
    files: Mapping[str, str]
    source: str | None
    opset: int
    versions: Mapping[str, str]
    proof: Mapping[str, Any] = field(default_factory=dict)
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    machine: str = ""
    seal: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @property
    def gain(self) -> float:
        """How many times as fast as PyTorch it was; 0 where that was not measured."""
        here = self.milliseconds.get(self.runtime, 0.0)
        return self.milliseconds.get("torch", 0.0) / here if here > 0 else 0.0


def read_record(path: Path) -> tuple[ModelCard, Export, str]:
    """The card, the export and a code of both, of an exported file.

    Raises:
        KirieError: when the runtime is not installed, or the file is damaged or not what kirie writes.
    """
    runtime = runtime_of(path)
    if runtime is None:
        raise KirieError(f"An exported model ends in {' or '.join(ENDINGS.values())}, got {path.name!r}.")
    if not path.is_file():
        raise KirieError(f"There is no exported model {path}.")
    text = graph_class(runtime).note(path)
    if text is None:
        raise KirieError(f"{path} was not exported by kirie: make one from a model by `kirie export MODEL`.")
    card = card_of(text, path)
    export = _export_of(json.loads(text).get("export"), path)
    if export.runtime != runtime:
        raise KirieError(f"{path} says that it is for {export.runtime}; it was renamed, so export it anew.")
    return card, export, hashlib.sha256(text.encode()).hexdigest()[:32]


def note_of(card: Mapping[str, Any], export: Export, path: Path) -> str:
    """The JSON that `read_record` reads.

    Raises:
        KirieError: when it is longer than that takes.
    """
    text = json.dumps({**card, "export": export.to_dict()})
    if len(text) > MAX_METADATA:
        raise KirieError(f"{path}: recipe, scores and classes take {len(text):,} characters, at most {MAX_METADATA:,}.")
    return text


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_seal() -> str:
    """What stands in a note for the seal until there is one: like no other text in the file."""
    return f"seal:{secrets.token_hex(32)}"


def seal(path: Path, free: str) -> str:
    """Puts the digest of an exported file where its note has a `free_seal`, and gives what stands there now."""
    (place,) = _places(path, free)
    own = _seal_of(path, place)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(own.encode())
    return own


def _places(path: Path, text: str) -> list[int]:
    """Where in a file a text stands."""
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        return [match.start() for match in re.finditer(re.escape(text.encode()), data)]


def _seal_of(path: Path, place: int) -> str:
    """The seal of a file in which it stands at a place: the SHA-256 of the file with zeros there."""
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data, memoryview(data) as view:
        digest = hashlib.sha256(view[:place])
        digest.update(b"0" * _LENGTH)
        digest.update(view[place + _LENGTH :])
    return f"seal:{digest.hexdigest()}"


def check_files(export: Export, path: Path) -> None:
    """Raises a KirieError where an exported file was changed, or one that belongs to it is missing or another one."""
    if export.seal is None:
        raise KirieError(f"{path} was exported by another version of kirie: export it anew.")
    places = _places(path, export.seal)
    if len(places) != 1 or export.seal != _seal_of(path, places[0]):
        raise KirieError(f"{path} was changed since it was exported, or is damaged: export it anew.")
    for name, digest in export.files.items():
        part = path.with_name(name)
        if not part.is_file():
            raise KirieError(f"{path} needs the file {name} beside it, which is missing: copy it too, or export anew.")
        if digest_of(part) != digest:
            raise KirieError(f"{part} is damaged or belongs to another export than {path.name}: export it anew.")


def default_name(stem: str, precision: str) -> str:
    """The name, without its ending, of an export beside a model file, under which prediction looks for it."""
    return stem if precision == "fp32" else f"{stem}-{precision}"


def head_file(path: Path, head: str) -> Path:
    """The file of a head's graph, beside that of the network."""
    return path.with_name(f"{path.stem}.{head.rpartition('.')[2]}{path.suffix}")


def _export_of(entry: Any, path: Path) -> Export:
    try:
        export = Export(**entry)
        sound = (
            export.runtime in ENDINGS
            and export.precision in PRECISIONS
            and type(export.least_side) is int
            and all(isinstance(name, str) and Path(name).name == name for name in export.files)
            and all(isinstance(name, str) for name in export.heads)
            and all(type(value) in (int, float) for value in export.milliseconds.values())
            and isinstance(export.proof, dict)
            and (export.seal is None or _SEAL.fullmatch(export.seal))
        )
    except (TypeError, AttributeError) as error:
        raise KirieError(f"{path}: its entry `export` is none of this kirie's ({error}): export it anew.") from error
    if not sound:
        raise KirieError(f"{path}: its entry `export` is none of this kirie's: export it anew.")
    return export
