"""Writing files whole: beside the target under another name, renamed when complete, so earlier files never break."""

from __future__ import annotations

import io
import math
import re
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kirie.errors import KirieError, WriteError, refusal

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL.Image import Image


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A path to write to in place of `path`, which it replaces when the block ends well.

    The stand-in lies in the same folder and keeps the ending of the name. When the block raises, it is removed and
    the earlier file, if any, stays as it was.

    Raises:
        WriteError: when the system refuses to write (no space, no permission, not a folder...).
    """
    stand_in: Path | None = None
    try:
        with _replacing(path) as target:
            free = stand_in_of(target)
            free.touch(exist_ok=False)
            stand_in, mode = free, free.stat().st_mode
            yield stand_in
            stand_in.chmod(mode)  # a writer may have put a file of its own in this place, closed to others
            stand_in.replace(target)
    finally:
        if stand_in is not None:
            with suppress(OSError):
                stand_in.unlink(missing_ok=True)


def stand_in_of(path: Path) -> Path:
    """A free name beside `path` for what will replace it when it is complete."""
    return path.with_name(f".{_stand_in_key(path)}{secrets.token_hex(4)}{path.suffix}")


def _stand_in_key(path: Path) -> str:
    """What the names of all its stand-ins begin with, and as good as no other of the folder."""
    return f"{path.stem[:40]}-{zlib.crc32(path.name.encode('utf-8', 'surrogatepass')):08x}"


def remove_stand_ins(paths: Callable[[], Iterable[Path]], until: float = math.inf) -> None:
    """Removes what stands in for some files because its writer was killed.

    Args:
        paths: gives the files, of which there may be a million: it is called again where stand-ins are found.
        until: only those whose last change is no later, in seconds as the system of the files counts them: what others
            have written to since stays. Without it, nobody may be writing these files.
    """
    form = re.compile(r"\.(?P<key>.*-[0-9a-f]{8})[0-9a-f]{8}(\.[^.]*)?", re.DOTALL)
    found: dict[Path, str] = {}
    for folder in {path.parent for path in paths()}:
        with suppress(OSError):
            found |= {path: match["key"] for path in folder.iterdir() if (match := form.fullmatch(path.name))}
    keys = {(path.parent, _stand_in_key(path)) for path in paths()} if found else set()
    for path, key in found.items():
        with suppress(OSError):
            if (path.parent, key) in keys and not _changed_after(path, until):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _changed_after(path: Path, moment: float) -> bool:
    """Whether a file, or anything in a folder, was changed later."""
    return moment < math.inf and any(each.lstat().st_mtime > moment for each in chain([path], path.rglob("*")))


@contextmanager
def _replacing(path: str | Path) -> Iterator[Path]:
    """A path whose file is about to be replaced, in a folder that is there.

    Raises:
        WriteError: when it is no file, or the system refuses something within the block.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():
            raise WriteError(f"{target} is a folder or a device; give the name of a file to write.")
        yield target
    except OSError as error:
        raise WriteError(f"Cannot write {target}: {refusal(error)}; earlier files are untouched.") from error


class Frame(NamedTuple):
    """What stands in a file of records before the first one, after the last one and between two."""

    head: str = ""
    foot: str = ""
    between: str = ""


class GrowingFile:
    """A UTF-8 file of records that is whole after each of them.

    A record that the system refuses leaves the file as it was before, so others may follow.

    Args:
        file: open for reading and writing, without a buffer.
        path: what the file will be called, for messages.
        frame: what stands around the records.
        end: where the foot begins, of a file that has records already, what lies behind it being cut off; None begins
            anew.

    Attributes:
        end: where the foot begins.

    Raises:
        WriteError: when the system refuses to write.
    """

    def __init__(self, file: io.FileIO, path: Path, frame: Frame, end: int | None = None) -> None:
        self._file, self._path = file, path
        first, self._foot, self._between = (text.encode("utf-8", "backslashreplace") for text in frame)
        self._empty = end in (None, len(first))
        self.end = 0 if end is None else end
        self._put(first if end is None else b"")
        file.truncate(self.end + len(self._foot))

    def add(self, record: str) -> None:
        """Adds a record.

        Raises:
            WriteError: when the system refuses to write.
        """
        self._put((b"" if self._empty else self._between) + record.encode("utf-8", "backslashreplace"))
        self._empty = False

    def _put(self, text: bytes) -> None:
        try:
            _write_at(self._file, self.end, text + self._foot)
        except OSError as error:
            with suppress(OSError):  # these bytes were there before, so there is room for them
                _write_at(self._file, self.end, self._foot)
                self._file.truncate(self.end + len(self._foot))
            raise WriteError(f"Cannot write {self._path}: {refusal(error)}.") from error
        self.end += len(text)


@contextmanager
def growing_file(path: str | Path, frame: Frame, *, end: int | None = None) -> Iterator[GrowingFile]:
    """A `GrowingFile` beside `path`, which it replaces when the block ends well.

    It is called `part_of(path)` while it grows, and stays when the block raises: with the `end` that it had, the same
    call goes on with it, and what was written since is cut off. An earlier file at `path` stays as it was until then.

    Raises:
        WriteError: when the system refuses to write.
    """
    with _replacing(path) as target:
        part = part_of(target)
        with part.open("w+b" if end is None else "r+b", buffering=0) as file:
            yield GrowingFile(file, target, frame, end)
        part.replace(target)


def part_of(path: Path) -> Path:
    """What a `growing_file` is called until it is complete."""
    return path.with_name(f".{path.name}.part")


def _write_at(file: io.FileIO, place: int, data: bytes) -> None:
    file.seek(place)
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def write_picture(path: str | Path, image: Image, *, quality: int = 90) -> None:
    """Writes a Pillow image as PNG or JPEG, whichever the name ends in, whole or not at all.

    It is encoded in memory first: writing a JPEG straight to a file, Pillow does not notice when the disk is full.

    Args:
        path: a name that ends in .png, .jpg or .jpeg.
        image: the picture.
        quality: of a JPEG, 1 to 95.

    Raises:
        KirieError: when the name has another ending; a WriteError when the system refuses to write.
    """
    form = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}.get(Path(path).suffix.lower())
    if form is None:
        raise KirieError(f"A picture is written as .png or .jpg, got {path}.")
    data = io.BytesIO()
    image.save(data, form, **({"quality": quality} if form == "JPEG" else {}))
    with whole_file(path) as stand_in:
        stand_in.write_bytes(data.getvalue())


def numbers_image(numbers: npt.NDArray[Any], colors: Mapping[int, tuple[int, int, int]] | None = None) -> Image:
    """A map of whole numbers (H, W) as a Pillow image: of 8 bits for uint8, else of 16.

    Args:
        numbers: 0 to 65535.
        colors: RGB of the numbers, for the palette of an 8-bit image, in which all others are light grey; None makes it
            grey.
    """
    import numpy as np
    from PIL import Image

    if numbers.dtype != np.uint8:
        return Image.fromarray(numbers.astype(np.uint16))
    image = Image.fromarray(numbers)
    if colors is not None:
        palette = np.full((256, 3), 200, np.uint8)
        palette[list(colors)] = list(colors.values())
        image.putpalette(palette.tobytes())
    return image


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text to a file, whole or not at all.

    Raises:
        WriteError: when the system refuses to write.
    """
    with whole_file(path) as stand_in:
        stand_in.write_text(text, encoding="utf-8")
