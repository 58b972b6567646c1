"""What a prediction of many files has done so far, kept beside its results, so that a run that ended early goes on.

`manifest.jsonl` has a line for what is run, one for the files about all pictures, one for each picture in their order,
and a last one when all is done. Pictures are done in order, so what needs no second look are the first ones, up to
where the manifest of an earlier run and the pictures of this one part.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from kirie.errors import KirieError, refusal
from kirie.files import Frame, part_of
from kirie.reading.remote import Url

MANIFEST = "manifest.jsonl"
END = b'{"finished": true}\n'


class File(NamedTuple):
    """A picture to predict; see `picture_files.Predicted`."""

    path: Path | Url
    name: str
    title: str
    number: int

    def state(self) -> list[Any]:
        """What tells whether it is the same picture and is to be called the same: its names, its size and its time."""
        called = [str(self.path), self.name, self.title, self.number]
        if isinstance(self.path, Url):
            return [*called, *self.path.state()]
        try:
            # A store is a folder, of which each part may change.
            parts = [self.path] if not self.path.is_dir() else [part for part in self.path.rglob("*") if part.is_file()]
            facts = [part.stat() for part in parts]
        except OSError:
            return [*called, -1, 0]
        return [*called, sum(each.st_size for each in facts), max((each.st_mtime_ns for each in facts), default=0)]


class Entry(NamedTuple):
    """What became of a picture.

    Attributes:
        written: the files that were written for it alone, below the folder of the results.
        error: why some or all were not, or None.
        ends: where each file about all pictures ended after it, by name.
    """

    written: list[str]
    error: str | None
    ends: dict[str, int]


class Manifest:
    """The manifest of a run that goes on; see `open_manifest`.

    Attributes:
        done: what became of the first pictures, which need no second look.
        ends: where files about all pictures ended after these; {} where none is begun.
        finished: whether nothing is left to do.
        begun: when it was opened, as the system of the files counts the seconds.
    """

    def __init__(self, file: BinaryIO, done: list[Entry], finished: bool, begun: float) -> None:
        self._file, self.begun = file, begun
        self.done, self.finished = done, finished
        self.ends = done[-1].ends if done else {}

    def begin(self, frames: Mapping[str, Frame]) -> None:
        """Notes the files about all pictures, unless they were begun before."""
        if not self.done:
            self._write(json.dumps({"files": frames}).encode() + b"\n")

    def add(self, state: list[Any], entry: Entry) -> None:
        """Notes a picture whose files are complete.

        Args:
            state: its `File.state` from before it was read.
            entry: what became of it.
        """
        self._write(json.dumps({"picture": state, **entry._asdict()}).encode() + b"\n")

    def written(self) -> Iterator[str]:
        """The files that were written for pictures noted so far, each for one alone; nothing is noted meanwhile."""
        self._file.seek(0)
        try:
            for line in self._file:
                yield from json.loads(line).get("written", ())
        finally:
            self._file.seek(0, 2)

    def finish(self) -> None:
        """Notes that all is done, and in place."""
        self._write(END)
        self.finished = True

    def _write(self, line: bytes) -> None:
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise KirieError(f"Cannot write {self._file.name}: {refusal(error)}.") from error


@contextmanager
def open_manifest(
    home: Path, out: Path, facts: Mapping[str, Any], files: Sequence[File], *, anew: bool = False
) -> Iterator[Manifest]:
    """The manifest in a folder, for this run alone while the block lasts.

    What an earlier run noted counts as far as it was the same run (`facts`) of the same pictures, and its files are
    still there; the rest is forgotten.

    Args:
        home: where it and the files about all pictures lie.
        out: the folder of the results.
        facts: what decides on the results: the model, its settings, the kinds of results.
        files: the pictures.
        anew: forget all.

    Raises:
        KirieError: when another run is at work in the folder, or the system refuses to read or write.
    """
    path = home / MANIFEST
    try:
        home.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if path.exists() else "w+b") as file:
            _lock(file, path)
            path.touch()
            begun = path.stat().st_mtime
            done, end, finished = ([], 0, False) if anew else _noted(file, home, out, facts, files)
            if not finished:
                file.seek(end)
                file.truncate()
                if not end:
                    file.write(_line(facts))
                    file.flush()
            yield Manifest(file, done, finished, begun)
    except OSError as error:
        raise KirieError(f"Cannot keep {path}, which says what has been done: {refusal(error)}.") from error


def is_finished(file: BinaryIO) -> bool:
    """Whether the last line of a manifest says that all is done; it is read from its beginning afterwards."""
    size = file.seek(0, 2)
    file.seek(max(0, size - len(END)))
    found = file.read() == END
    file.seek(0)
    return found


def _line(facts: Mapping[str, Any]) -> bytes:
    return json.dumps({"run": dict(facts)}).encode() + b"\n"


def _noted(
    file: BinaryIO, home: Path, out: Path, facts: Mapping[str, Any], files: Sequence[File]
) -> tuple[list[Entry], int, bool]:
    """What was done, where its lines end, and whether that is all."""
    finished = is_finished(file)
    if file.readline() != _line(facts):
        return [], 0, False
    sizes: dict[str, int] = {}
    if not _is_about_files(file.readline()):
        return [], 0, False
    done, end = [], file.tell()
    for each in files:
        entry = _entry(file.readline(), each, out)
        if entry is None or not all(
            _size(home / name, sizes, finished=finished) >= place for name, place in entry.ends.items()
        ):
            break
        done.append(entry)
        end = file.tell()
    whole = finished and len(done) == len(files) and file.readline() == END
    if finished and not whole and (not done or done[-1].ends):
        return [], 0, False  # files about all pictures are in their place, and cannot be cut
    return (done, end, whole) if done or whole else ([], 0, False)


def _is_about_files(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line)["files"], dict)
    except (ValueError, KeyError, TypeError):
        return False


def _entry(line: bytes, file: File, out: Path) -> Entry | None:
    """The entry of a picture, if the line is about it, it is as it was, and what was written for it is there."""
    if not line.endswith(b"\n"):
        return None  # the run ended while it was written
    try:
        facts = json.loads(line)
        entry = Entry(facts["written"], facts["error"], facts["ends"])
        same = facts["picture"] == file.state() and all((out / name).exists() for name in entry.written)
    except (ValueError, KeyError, TypeError):
        return None
    return entry if same else None


def _size(path: Path, known: dict[str, int], *, finished: bool) -> int:
    """How many bytes a file about all pictures has, of a finished run at its place; 0 where it is not there."""
    if path.name not in known:
        known[path.name] = 0
        with suppress(OSError):
            known[path.name] = (path if finished else part_of(path)).stat().st_size
    return known[path.name]


def _lock(file: BinaryIO, path: Path) -> None:
    """Keeps other runs out until the file is closed, where the system can."""
    try:
        import fcntl
    except ImportError:  # on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise KirieError(
            f"Another run is writing into {path.parent}. Wait for its end, choose another folder, or divide the "
            "pictures by --shard."
        ) from error
