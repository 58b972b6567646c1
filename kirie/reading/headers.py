"""What the header of a picture file says, limits, and whether the file is whole: all before its pixels are decoded."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tifffile
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from kirie.errors import KirieError
from kirie.reading.remote import Url

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
MAX_PIXELS = 2**28  # 268 million: 0.8 GB as RGB
MAX_BYTES = 2**31
ORIENTATION = 0x0112  # the EXIF and TIFF tag

# The plugins are called by name, since `Image.open` warns about large pictures before their size can be judged here.
PLUGINS: dict[str, Any] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
}
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_MODE_CHANNELS = {"1": 1, "L": 1, "P": 3, "RGB": 3, "RGBA": 4, "RGBX": 4, "CMYK": 4, "LA": 2, "PA": 4, "YCbCr": 3}


class ImageFacts(NamedTuple):
    """What the header of a picture file says.

    Attributes:
        size: (H, W) as `read_image` returns it, rotation done.
        channels: numbers per pixel in the file; 3 for a palette.
        bits: bits per number in the file.
        format: PNG, JPEG, TIFF, BMP or WebP.
        palette: whether the pixels are numbers of a colour table.
        orientation: EXIF orientation 1..8; 1 is upright.
    """

    size: tuple[int, int]
    channels: int
    bits: int
    format: str
    palette: bool
    orientation: int


def image_facts(path: str | Path, *, in_parts: bool = False) -> ImageFacts:
    """Size, channels, bits and format of a picture file, from its header alone.

    Args:
        path: of the file.
        in_parts: whether the file is read in parts, so that it may be of any size.

    Raises:
        KirieError: when the file is missing, a folder, empty, no picture or above `MAX_PIXELS`.
    """
    with opened(path, in_parts=in_parts) as file:
        return read_facts(path, file, in_parts=in_parts)


def image_size(path: str | Path) -> tuple[int, int]:
    """(H, W) of a picture file as `read_image` returns it, from its header alone; raises as `image_facts` does."""
    return image_facts(path).size


@contextmanager
def opened(path: str | Path, *, in_parts: bool = False) -> Iterator[BinaryIO]:
    """The open file, when it is one, not empty and, unless it is read in parts, not above `MAX_BYTES`.

    Raises:
        KirieError: otherwise.
    """
    place = path.local() if isinstance(path, Url) else Path(path)
    try:
        with place.open("rb") as file:
            size = place.stat().st_size
            if size == 0:
                raise KirieError(f"{path} is empty (0 bytes); expected a picture. Save it again or take it away.")
            if size > MAX_BYTES and not in_parts:
                raise KirieError(f"{path} has {size:,} bytes, more than the {MAX_BYTES:,} that are read at once.")
            yield file
    except FileNotFoundError:
        raise KirieError(f"There is no file {path}.") from None
    except IsADirectoryError:
        raise KirieError(f"{path} is a folder; expected a picture file.") from None
    except OSError as error:
        raise KirieError(f"{path} cannot be opened: {error.strerror or error}.") from None


@contextmanager
def decoding(path: str | Path) -> Iterator[None]:
    """A block in which whatever a decoder raises on a broken file becomes one sentence."""
    try:
        yield
    except KirieError:
        raise
    except Exception as error:
        raise damaged(path, str(error) or type(error).__name__) from None


def damaged(path: str | Path, why: str) -> KirieError:
    """The error for a file that cannot be decoded, to be raised by the caller."""
    text = " ".join(why.split()).rstrip(".")
    return KirieError(f"{path} is damaged or cut short ({text[:160]}). Copy or save it again, or take it away.")


def _format(path: str | Path, head: bytes) -> str:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if head.startswith(b"BM"):
        return "BMP"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    raise KirieError(
        f"{path} is no picture that kirie reads (it starts with {head[:8]!r}); expected PNG, JPEG, TIFF, BMP or WebP. "
        "Convert it, or take it away."
    )


def read_facts(path: str | Path, file: BinaryIO, *, in_parts: bool = False) -> ImageFacts:
    """The facts in the header of an open file, which is left at its first byte; raises as `image_facts` does."""
    head = file.read(32)
    file.seek(0)
    kind = _format(path, head)
    with decoding(path):
        if kind == "TIFF":
            return _tiff_facts(path, file, in_parts)
        if kind == "WebP":  # Pillow makes room for the whole canvas when it opens one
            _check_pixels(path, _webp_size(head), in_parts)
        picture = PLUGINS[kind](file)
        width, height = picture.size
        _check_pixels(path, (height, width), in_parts)
        channels, bits = _MODE_CHANNELS.get(picture.mode, 1), 1 if picture.mode == "1" else 8
        if kind == "PNG":
            channels, bits = _PNG_CHANNELS[head[25]], head[24]
        orientation = _orientation(picture)
    file.seek(0)
    size = (width, height) if orientation > 4 else (height, width)
    return ImageFacts(size, channels, bits, kind, picture.mode in ("P", "PA"), orientation)


def _orientation(picture: Image.Image) -> int:
    if not {"exif", "Raw profile type exif"} & set(picture.info):
        return 1
    # The method of the base class: that of a PNG would decode the whole picture first.
    value = Image.Image.getexif(picture).get(ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _tiff_facts(path: str | Path, file: BinaryIO, in_parts: bool) -> ImageFacts:
    with tifffile.TiffFile(file) as tiff:
        series = first_series(tiff)
        page = series.keyframe
        height, width = int(page.imagelength), int(page.imagewidth)
        _check_pixels(path, (height, width), in_parts)
        count = _pictures_in(tiff)
        if count > 1:
            raise KirieError(
                f"{path} is a stack of {count} pictures; kirie reads single pictures. Save each one as a file of its "
                "own."
            )
        channels = int(np.prod(series.shape)) // max(height * width, 1)
        _check_pixels(path, (height, width * max(channels // 4, 1)), in_parts)
        palette = page.photometric == tifffile.PHOTOMETRIC.PALETTE
        tag = page.tags.get("Orientation")
        orientation = int(tag.value) if tag is not None and tag.value in range(1, 9) else 1
        bits = page.bitspersample
    file.seek(0)
    size = (width, height) if orientation > 4 else (height, width)
    return ImageFacts(
        size, 3 if palette else channels, max(bits) if isinstance(bits, tuple) else bits, "TIFF", palette, orientation
    )


def first_series(tiff: tifffile.TiffFile) -> Any:
    """The first picture in a TIFF itself; an OME-TIFF may list those of files beside it, and before it."""
    return _own_series(tiff)[0]


def _own_series(tiff: tifffile.TiffFile) -> list[Any]:
    return [series for series in tiff.series if series.keyframe.parent is tiff] or list(tiff.series)


def _pictures_in(tiff: tifffile.TiffFile) -> int:
    """How many pictures of the first one's height and width a TIFF holds: in depth, in time, or page by page."""
    first = first_series(tiff).keyframe
    return sum(
        _depth(series)
        for series in _own_series(tiff)
        if (series.keyframe.imagelength, series.keyframe.imagewidth) == (first.imagelength, first.imagewidth)
        and (series.keyframe is first or not series.keyframe.is_mask)
    )


def _depth(series: Any) -> int:
    """How many pictures a series of pages is."""
    lengths = dict(zip(series.axes, series.shape, strict=True))
    # Axes without a name (Q) are the channels, unless the numbers of a pixel already lie side by side (S).
    own = "YXS" if lengths.get("S", 1) > 1 else "YXSCQ"
    return int(np.prod([length for axis, length in lengths.items() if axis not in own]))


def _webp_size(head: bytes) -> tuple[int, int]:
    kind = head[12:16]
    if kind == b"VP8X":
        return int.from_bytes(head[27:30], "little") + 1, int.from_bytes(head[24:27], "little") + 1
    if kind == b"VP8L":
        packed = int.from_bytes(head[21:25], "little")
        return (packed >> 14 & 0x3FFF) + 1, (packed & 0x3FFF) + 1
    width, height = struct.unpack("<HH", head[26:30])
    return height & 0x3FFF, width & 0x3FFF


def _check_pixels(path: str | Path, size: tuple[int, int], in_parts: bool) -> None:
    height, width = size
    if height < 1 or width < 1:
        raise KirieError(f"{path} says it is {height} x {width} pixels; expected at least 1 x 1.")
    if height * width > MAX_PIXELS and not in_parts:
        raise KirieError(
            f"{path} is {height:,} x {width:,} = {height * width:,} pixels, more than the {MAX_PIXELS:,} that are read "
            "at once. Cut it into smaller pictures; `kirie predict` reads such a TIFF in tiles."
        )


def sound_png(path: str | Path, data: bytes) -> bytes:
    """The chunks of a PNG that its pixels need, checked; the others make OpenCV print warnings (colour profiles)."""
    kept, start = [data[:8]], 8
    while start + 12 <= len(data):
        length = int.from_bytes(data[start : start + 4], "big")
        end = start + length + 12
        name = data[start + 4 : start + 8]
        if end > len(data):
            break
        if name[:1].isupper():
            if zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
                raise damaged(path, f"the checksum of its chunk {name.decode('latin-1')} is wrong")
            kept.append(data[start:end])
        if name == b"IEND":
            return b"".join(kept)
        start = end
    raise damaged(path, "the file ends before its last chunk")


def sound_jpeg(path: str | Path, data: bytes) -> bytes:
    """A JPEG up to its end mark, checked to have one: decoders paint what is missing grey."""
    array = np.frombuffer(data, np.uint8)
    # A mark is 0xFF and a byte; in packed data 0xFF is followed by 0, or by a restart mark 0xD0..0xD7.
    after = array[1:]
    marks = np.flatnonzero((array[:-1] == 0xFF) & (after != 0) & (after != 0xFF) & ((after & 0xF8) != 0xD0))
    start = 2
    while True:
        found = int(np.searchsorted(marks, start))
        if found == len(marks):
            raise damaged(path, "the file ends before its end mark")
        start = int(marks[found])
        code = data[start + 1]
        if code == 0xD9:
            return data[: start + 2]
        if code < 0xC0 or code == 0xD8:
            raise damaged(path, f"its picture data break off at byte {start}")
        start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
