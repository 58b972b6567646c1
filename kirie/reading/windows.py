"""Pictures larger than memory, read a few rows at a time: TIFF, OME-TIFF, Zarr and OME-Zarr; others while they fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from kirie.counting import occurrences
from kirie.errors import KirieError
from kirie.reading.georeference import TAGS, Tag
from kirie.reading.headers import MAX_PIXELS, damaged, decoding, first_series
from kirie.reading.images import (
    Pixels,
    counted_spread,
    image_facts,
    read_numbers,
    scaled,
    spread,
    stretched_together,
    with_channels,
)
from kirie.reading.remote import Url

ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")
SAMPLE = 2**24  # numbers of other than 8 and 16 bits by which a picture is stretched
PIECE = 2**26  # numbers in a strip or tile that has to be read whole, up to which it is read for its parts
ROWS = 512  # that are read at a time
BLOCK = 64  # pixels of a side, where not all of them can be
OTHER = "-"  # an axis that is no side of the picture and no channels
AXES = {
    "Y": ("y", "height", "row", "rows", "lat", "latitude", "northing"),
    "X": ("x", "width", "col", "cols", "column", "columns", "lon", "longitude", "easting"),
    "C": ("c", "channel", "channels", "s", "sample", "samples", "band", "bands", "rgb"),
}  # what axes of Zarr arrays are called

Read = Callable[[int, int, int, int], Pixels]  # top, bottom, left, right -> (h, w, C)


@dataclass
class LargePicture:
    """A picture of which parts are read when they are asked for.

    Attributes:
        path: of the file.
        size: (H, W).
        channels: C that are asked for.
        dtype: of the file's numbers.
        is_color: whether its first three channels are RGB.
        tags: what a TIFF of the same extent repeats: code, data type, count and value of each tag of the georeference.
        resolution: pixels per unit across and down and the unit, as TIFF has them; None where nothing is said.
    """

    path: Path
    size: tuple[int, int]
    channels: int
    dtype: np.dtype[Any]
    is_color: bool
    _read: Read
    tags: tuple[Tag, ...] = ()
    resolution: tuple[Any, Any, int] | None = None
    _limits: list[tuple[float, float]] = field(default_factory=list)

    def numbers(self, top: int, bottom: int, left: int, right: int) -> Pixels:
        """A part of the picture in the file's own numbers, (h, w, channels).

        Raises:
            KirieError: when the part cannot be read, or the file has not the channels asked for.
        """
        with decoding(self.path):
            pixels = self._read(top, bottom, left, right)
        if pixels.shape[:2] != (bottom - top, right - left):
            raise damaged(self.path, f"rows {top} to {bottom} are not all there")
        if pixels.dtype not in (np.uint8, np.uint16):
            pixels = pixels.astype(np.float32)
        return with_channels(self.path, pixels, self.channels, self.is_color)

    def read(self, top: int, bottom: int, left: int, right: int) -> npt.NDArray[np.uint8]:
        """A part of the picture as `read_image` would give it, (h, w, channels) uint8; raises as `numbers`.

        More than 8 bits are stretched by the percentiles of the whole picture: exactly for numbers of 16 bits, for
        others by evenly spread rows of it.
        """
        if self.dtype == np.uint8:
            return np.ascontiguousarray(self.numbers(top, bottom, left, right))
        with decoding(self.path):
            pixels = self._read(top, bottom, left, right)
        if self.dtype == np.bool_:
            eight = pixels.astype(np.uint8) * np.uint8(255)
        else:
            together = stretched_together(pixels.shape[2], self.is_color)
            self._limits = self._limits or self._spreads(together)
            eight = np.concatenate(
                [scaled(pixels[..., here], limits) for here, limits in zip(together, self._limits, strict=True)], 2
            )
        return np.ascontiguousarray(with_channels(self.path, eight, self.channels, self.is_color))

    def _spreads(self, together: list[slice]) -> list[tuple[float, float]]:
        height, width = self.size
        if self.dtype == np.uint16:
            counts = [np.zeros(65536, np.int64) for _ in together]
            for pixels in self._bands(1):
                for count, here in zip(counts, together, strict=True):
                    count += occurrences(pixels[..., here], 65536)
            return [counted_spread(count) if count.any() else (0.0, 0.0) for count in counts]
        every = max(1, height * width // SAMPLE)
        rows = [pixels[::every].reshape(-1, pixels.shape[2]).copy() for pixels in self._bands(every)]
        return [spread(np.concatenate([each[:, here] for each in rows])) if rows else (0.0, 0.0) for here in together]

    def _bands(self, every: int) -> Iterator[Pixels]:
        """The picture some rows at a time, without the parts that cannot be read: they are told with their windows."""
        step = max(ROWS // every, 1) * every
        for top in range(0, self.size[0], step):
            bottom = min(top + step, self.size[0])
            band = self._sound(top, bottom, 0, self.size[1])
            if band is not None:
                yield band
                continue
            for left in range(0, self.size[1], BLOCK):
                for upper in range(top, bottom, max(BLOCK // every, 1) * every):
                    lower = min(upper + max(BLOCK // every, 1) * every, bottom)
                    block = self._sound(upper, lower, left, min(left + BLOCK, self.size[1]))
                    if block is not None:
                        yield block

    def _sound(self, top: int, bottom: int, left: int, right: int) -> Pixels | None:
        try:
            with decoding(self.path):
                return self._read(top, bottom, left, right)
        except KirieError:
            return None


def is_zarr(path: str | Path) -> bool:
    """Whether a folder is a Zarr store."""
    return any((Path(path) / name).is_file() for name in ZARR_FILES)


def large_size(path: str | Path) -> tuple[int, int]:
    """(H, W) of a picture file or Zarr store of any size, without reading its pixels; raises as `open_large`."""
    if not is_zarr(path):
        return image_facts(path, in_parts=True).size
    with open_large(path, 1) as picture:
        return picture.size


@contextmanager
def open_large(path: str | Path, channels: int = 3) -> Iterator[LargePicture]:
    """A picture file or Zarr store of any size, to be read in parts while the block lasts.

    Args:
        path: a TIFF with a picture of any size, unpacked or in tiles or strips of up to `PIECE` numbers; a Zarr array,
            or a group by the OME-Zarr conventions, of which the first and finest level is taken; or another picture
            file of at most `MAX_PIXELS`.
        channels: as `read_image` takes them.

    Raises:
        KirieError: when it is missing, no picture, a stack of several, too large to be read in one piece where its
            format knows no parts, or what reads it is not installed.
    """
    path = path.local() if isinstance(path, Url) else Path(path)
    if is_zarr(path):
        yield _zarr_picture(path, channels)
        return
    facts = image_facts(path, in_parts=True)
    tags: tuple[Tag, ...] = ()
    resolution, is_color = None, None
    why: str | None = f"a {facts.format}"
    if facts.format == "TIFF":
        with ExitStack() as stack:
            with decoding(path):
                tiff = stack.enter_context(tifffile.TiffFile(path))
                tags = _geo_tags(tiff)
                why = _why_whole(tiff, facts.orientation)
                if facts.orientation == 1 and _is_plain(first_series(tiff).keyframe):
                    resolution, is_color = _resolution(tiff), _is_color(tiff)
                picture = _tiff_picture(path, tiff, channels) if why is None else None
            if picture is not None:
                yield picture
                return
    height, width = facts.size
    if height * width > MAX_PIXELS:
        raise KirieError(
            f"{path} has {height:,} x {width:,} pixels and is {why}, which can only be read whole: save it as an "
            "upright, tiled TIFF of grey or RGB or as Zarr."
        )
    pixels = read_numbers(path, channels)
    upright = tags if facts.orientation == 1 else ()
    is_color = pixels.shape[2] == 3 if is_color is None else is_color
    yield LargePicture(
        path, facts.size, channels, pixels.dtype, is_color, lambda t, b, l, r: pixels[t:b, l:r], upright, resolution
    )


def _why_whole(tiff: tifffile.TiffFile, orientation: int) -> str | None:
    """What keeps parts of a TIFF from being read by themselves, in words; None for nothing."""
    series = first_series(tiff)
    page = series.keyframe
    if orientation != 1 or not _is_plain(page):
        return "a TIFF of turned or other than grey or RGB pixels"
    if not _is_stored(series) and int(np.prod(page.chunks)) > PIECE:
        return f"a TIFF in pieces of {' x '.join(map(str, page.chunks[:2]))} pixels"
    return None


def _is_plain(page: Any) -> bool:
    """Whether the numbers in a TIFF are what is seen: grey or RGB, as they are or out of a JPEG."""
    kinds = tifffile.PHOTOMETRIC
    if page.photometric == kinds.YCBCR:
        return bool(page.compression == tifffile.COMPRESSION.JPEG)
    alpha = page.photometric == kinds.MINISBLACK and any(int(extra) for extra in page.extrasamples)
    return page.photometric in (kinds.MINISBLACK, kinds.RGB) and not alpha


def _geo_tags(tiff: tifffile.TiffFile) -> tuple[Tag, ...]:
    page = first_series(tiff).keyframe
    found = (page.tags.get(code) for code in TAGS)
    return tuple((tag.code, int(tag.dtype), tag.count, tag.value) for tag in found if tag)


def _tiff_picture(path: Path, tiff: tifffile.TiffFile, channels: int) -> LargePicture:
    series = first_series(tiff)
    axes, shape = "".join(series.axes), tuple(series.shape)
    height, width = shape[axes.index("Y")], shape[axes.index("X")]
    read = _stored_rows(path, series, (height, width)) if _is_stored(series) else _by_axes(_array(path, tiff), axes)
    kind, is_color = np.dtype(series.dtype), _is_color(tiff)
    return LargePicture(path, (height, width), channels, kind, is_color, read, _geo_tags(tiff), _resolution(tiff))


def _is_color(tiff: tifffile.TiffFile) -> bool:
    return first_series(tiff).keyframe.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)


def _resolution(tiff: tifffile.TiffFile) -> tuple[Any, Any, int] | None:
    tags = first_series(tiff).keyframe.tags
    said = [tag.value for tag in map(tags.get, ("XResolution", "YResolution", "ResolutionUnit")) if tag]
    return (said[0], said[1], int(said[2])) if len(said) == 3 else None


def _is_stored(series: Any) -> bool:
    """Whether the numbers of a TIFF lie in the file as they are, pixel after pixel or plane after plane."""
    return series.dataoffset is not None and _plain_axes(series) in ("YX", "YXS", "YXC", "SYX", "CYX")


def _plain_axes(series: Any) -> str:
    """The axes of a TIFF without those of length 1 that are no sides of the picture."""
    return "".join(axis for axis, length in zip(series.axes, series.shape, strict=True) if length > 1 or axis in "YX")


def _stored_rows(path: Path, series: Any, size: tuple[int, int]) -> Read:
    """Reads what lies in the file row after row, as it is."""
    height, width = size
    kind = np.dtype(series.dtype).newbyteorder(series.keyframe.parent.byteorder)
    channels = int(np.prod(series.shape)) // (height * width)
    planes, deep = (1, channels) if _plain_axes(series).startswith("Y") else (channels, 1)

    def read(top: int, bottom: int, left: int, right: int) -> Pixels:
        row = width * deep
        found = []
        for plane in range(planes):
            offset = series.dataoffset + (plane * height + top) * row * kind.itemsize
            flat = np.fromfile(path, kind, (bottom - top) * row, offset=offset)
            if len(flat) < (bottom - top) * row:
                raise damaged(path, f"the file ends within rows {top} to {bottom}")
            found.append(flat.reshape(bottom - top, width, deep)[:, left:right].astype(series.dtype, copy=False))
        return found[0] if planes == 1 else np.concatenate(found, 2)

    return read


def _array(path: Path, tiff: tifffile.TiffFile) -> Any:
    zarr = zarr_package(path)
    return zarr.open(first_series(tiff).aszarr(level=0), mode="r")


def zarr_package(path: Path) -> Any:
    """The package zarr, which reads and writes what a path is; raises a KirieError where it is not installed."""
    try:
        import zarr
    except ImportError:
        raise KirieError(
            f'{path} needs the package zarr, which reads and writes parts: pip install "kirie[large]".'
        ) from None
    return zarr


def _zarr_picture(path: Path, channels: int) -> LargePicture:
    zarr = zarr_package(path)
    with decoding(path):
        found = zarr.open(path, mode="r")
        names = None
        if hasattr(found, "shape"):
            array = found
            names = getattr(array.metadata, "dimension_names", None)
        else:
            array, names = _finest(path, found)
        axes = _axes(path, array.shape, names)
        read = _by_axes(array, axes)
    if array.dtype.kind not in "buif" or 0 in array.shape:
        raise KirieError(
            f"{path} holds an array of {array.dtype} and the shape {array.shape}; expected whole or real numbers, and "
            "at least one pixel."
        )
    shape = dict(zip(axes, array.shape, strict=True))
    stack = int(np.prod([length for axis, length in zip(axes, array.shape, strict=True) if axis == OTHER], initial=1))
    if stack > 1:
        raise KirieError(f"{path} is a stack of {stack} pictures, of the shape {array.shape}; give one of them.")
    count = int(shape.get("C", 1))
    is_color = count == 3
    with_channels(path, np.zeros((1, 1, count), np.uint8), channels, is_color)  # told now, not for each tile
    return LargePicture(path, (shape["Y"], shape["X"]), channels, array.dtype, is_color, read)


def _finest(path: Path, group: Any) -> tuple[Any, list[Any]]:
    """The array of the finest level of an OME-Zarr group, and the names of its axes."""
    attributes = dict(group.attrs)
    told = [each for each in (attributes.get("ome"), attributes) if isinstance(each, dict) and "multiscales" in each]
    if not told:
        raise KirieError(f"{path} is a Zarr group without OME's `multiscales`; give the path of an array in it.")
    try:
        scales = told[0]["multiscales"][0]
        array = group[scales["datasets"][0]["path"]]
        if not hasattr(array, "shape"):
            raise TypeError("it is a group")
        axes = [axis.get("name") if isinstance(axis, dict) else axis for axis in scales.get("axes") or "tczyx"]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise KirieError(
            f"{path} has OME metadata that lead to no array: expected `multiscales` with the `path` of an array as its "
            "first of `datasets`, and a list of `axes`. Give the path of an array in it."
        ) from error
    return array, axes


def _axes(path: Path, shape: tuple[int, ...], names: Any) -> str:
    """A letter for each axis: Y, X, C for channels, or `OTHER`."""
    words = [name.lower() if isinstance(name, str) else "" for name in names or ()]
    roles = [next((role for role, known in AXES.items() if word in known), OTHER) for word in words]
    if len(roles) == len(shape) and {"Y", "X"} & set(roles):
        if len(roles) == 2 and OTHER in roles:
            roles[roles.index(OTHER)] = "X" if "Y" in roles else "Y"
        # Channels of length 1 say nothing, and there may be two such axes.
        lengths = zip(roles, shape, strict=True)
        letters = "".join(OTHER if (role, length) == ("C", 1) else role for role, length in lengths)
        if letters.count("Y") != 1 or letters.count("X") != 1 or letters.count("C") > 1:
            raise KirieError(
                f"{path} has the shape {shape} and names its axes {', '.join(map(str, names))}; expected one `y`, one "
                "`x`, and `c` for channels at most once."
            )
        return letters
    if len(shape) == 2:
        return "YX"
    if len(shape) == 3:
        return "YXC" if shape[2] <= shape[0] else "CYX"
    raise KirieError(
        f"{path} has the shape {shape} and does not name its axes `y` and `x`: expected (H, W), (H, W, C) or (C, H, W)."
    )


def _by_axes(array: Any, axes: str) -> Read:
    """Reads parts of an array with these axes."""
    order = [axes.index("Y"), axes.index("X"), *(place for place, axis in enumerate(axes) if axis not in "YX")]

    def read(top: int, bottom: int, left: int, right: int) -> Pixels:
        parts = {"Y": slice(top, bottom), "X": slice(left, right)}
        pixels = np.asarray(array[tuple(parts.get(axis, slice(None)) for axis in axes)]).transpose(order)
        return pixels.reshape(*pixels.shape[:2], -1)

    return read


def in_memory(picture: npt.NDArray[np.uint8]) -> LargePicture:
    """A picture (H, W, C) that is in memory already."""
    height, width, channels = picture.shape
    return LargePicture(
        Path("the picture"), (height, width), channels, picture.dtype, False, lambda t, b, l, r: picture[t:b, l:r]
    )
