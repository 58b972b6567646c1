"""Writing files whole: beside the target under another name, renamed when complete, so earlier files never break."""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kirie.errors import KirieError

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL.Image import Image


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A path to write to in place of `path`, which it replaces when the block ends well.

    The stand-in lies in the same folder and keeps the ending of the name. When the block raises, it is removed and
    the earlier file, if any, stays as it was.

    Raises:
        KirieError: when the system refuses to write (no space, no permission, not a folder...).
    """
    target = Path(path)
    stand_in: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():
            raise KirieError(f"{target} is a folder or a device; give the name of a file to write.")
        free = target.with_name(f".{target.stem[:40]}-{secrets.token_hex(8)}{target.suffix}")
        free.touch(exist_ok=False)
        stand_in, mode = free, free.stat().st_mode
        yield stand_in
        stand_in.chmod(mode)  # a writer may have put a file of its own in this place, closed to others
        stand_in.replace(target)
    except OSError as error:
        raise KirieError(
            f"Cannot write {target}: {error.strerror or error}. Free some space or choose another place; "
            "earlier files are untouched."
        ) from error
    finally:
        if stand_in is not None:
            with suppress(OSError):
                stand_in.unlink(missing_ok=True)


@contextmanager
def growing_file(
    path: str | Path, head: str = "", foot: str = "", between: str = ""
) -> Iterator[Callable[[str], None]]:
    """A function that adds a record to a UTF-8 file, which is whole after each of them and is put in place at the end.

    A record that the system refuses leaves the file as it was before, so others may follow. When the block raises,
    an earlier file stays as it was.

    Args:
        path: the file.
        head: what stands before the first record.
        foot: what stands after the last one.
        between: what stands between two.

    Raises:
        KirieError: when the system refuses to write.
    """
    with whole_file(path) as stand_in, stand_in.open("r+b", buffering=0) as file:
        ending = foot.encode()
        end, joint = 0, b""  # where the foot begins; what precedes the next record

        def put(text: bytes) -> None:
            nonlocal end
            try:
                _write_at(file, end, text + ending)
            except OSError as error:
                with suppress(OSError):  # these bytes were there before, so there is room for them
                    _write_at(file, end, ending)
                    file.truncate(end + len(ending))
                raise KirieError(f"Cannot write {path}: {error.strerror or error}. Free some space.") from error
            end += len(text)

        def add(record: str) -> None:
            nonlocal joint
            put(joint + record.encode("utf-8", "backslashreplace"))
            joint = between.encode()

        put(head.encode("utf-8", "backslashreplace"))
        yield add


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
        KirieError: when the name has another ending or the system refuses to write.
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
        KirieError: when the system refuses to write.
    """
    with whole_file(path) as stand_in:
        stand_in.write_text(text, encoding="utf-8")
