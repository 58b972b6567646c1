"""Maps that are larger than memory as files that others open: tiled TIFF with its place on Earth, and Zarr."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from kirie.errors import WriteError, refusal
from kirie.files import stand_in_of, whole_file
from kirie.prediction.large_result import BAND
from kirie.reading.windows import LargePicture, zarr_package

Bands = Iterable[npt.NDArray[Any]]
OURS = {"written_by": "kirie predict"}  # the attribute of arrays that may be replaced
BIG = 2**31  # bytes of pixels from which on a TIFF has 64-bit offsets, however well they are packed


def write_tiff(
    path: Path,
    bands: Bands,
    shape: tuple[int, ...],
    dtype: Any,
    picture: LargePicture,
    colors: Mapping[int, tuple[int, int, int]] | None = None,
) -> None:
    """Writes a map as TIFF in tiles of 256 x 256, packed without loss, whole or not at all.

    Where the picture lies on Earth and how large its pixels are is said as in the picture's own file.

    Args:
        path: of the file.
        bands: `BAND` rows of the map at a time, from the top.
        shape: (H, W), or (H, W, 3) for colours.
        dtype: of its numbers.
        picture: what the map is of.
        colors: RGB of the numbers of an 8-bit map; all others are light grey.

    Raises:
        WriteError: when the system refuses to write.
    """
    options: dict[str, Any] = {"photometric": "rgb" if len(shape) == 3 else "minisblack"}
    if colors is not None:
        palette = np.full((3, 256), 200 * 257, np.uint16)
        for number, color in colors.items():
            palette[:, number] = np.array(color, np.uint16) * 257
        options |= {"photometric": "palette", "colormap": palette}
    if picture.resolution is not None:
        across, down, unit = picture.resolution
        options |= {"resolution": (across, down), "resolutionunit": unit}
    with whole_file(path) as stand_in:
        size = int(np.prod([int(side) for side in shape])) * np.dtype(dtype).itemsize
        with tifffile.TiffWriter(stand_in, bigtiff=size >= BIG) as tiff:
            tiff.write(
                _tiles(bands, np.dtype(dtype)),
                shape=shape,
                dtype=dtype,
                tile=(BAND, BAND),
                compression="zlib",
                metadata=None,
                extratags=[(code, kind, count, value, True) for code, kind, count, value in picture.tags],
                **options,
            )


def _tiles(bands: Bands, dtype: Any) -> Iterator[npt.NDArray[Any]]:
    """The tiles of bands, row by row; those at the right and lower edge are filled up with zeros."""
    for band in bands:
        for left in range(0, band.shape[1], BAND):
            part = band[:, left : left + BAND].astype(dtype, copy=False)
            lacking = [(0, BAND - part.shape[0]), (0, BAND - part.shape[1]), *[(0, 0)] * (part.ndim - 2)]
            yield np.ascontiguousarray(np.pad(part, lacking) if any(map(sum, lacking)) else part)


def write_zarr(path: Path, bands: Bands, shape: tuple[int, int], dtype: Any, attributes: Mapping[str, Any]) -> None:
    """Writes a map as a Zarr array (format 3) in chunks of 1024 x 1024, whole or not at all.

    Args:
        path: of the folder; an array that this function wrote is replaced, but nothing else is.
        bands: `BAND` rows at a time, from the top.
        shape: (H, W).
        dtype: of its numbers.
        attributes: what is to be said of it, plain JSON.

    Raises:
        WriteError: when something else lies there or the system refuses to write.
    """
    zarr = zarr_package(path)
    if path.exists() and not _is_ours(path):
        raise WriteError(f"{path} was not written by kirie and is not replaced: move it, or choose another folder.")
    stand_in = stand_in_of(path)
    try:
        array = zarr.create_array(
            store=str(stand_in), shape=shape, dtype=np.dtype(dtype), chunks=tuple(min(1024, side) for side in shape),
            dimension_names=("y", "x"), attributes={**attributes, **OURS},
        )  # fmt: skip
        held: list[npt.NDArray[Any]] = []
        top = 0
        for band in bands:
            held.append(band)
            if sum(map(len, held)) >= 1024:
                top = _put(array, top, held)
        _put(array, top, held)
        if path.exists():
            shutil.rmtree(path)
        stand_in.replace(path)
    except OSError as error:
        raise WriteError(f"Cannot write {path}: {refusal(error)}.") from error
    finally:
        with suppress(OSError):
            shutil.rmtree(stand_in)


def _is_ours(path: Path) -> bool:
    try:
        facts = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
        return bool(facts["node_type"] == "array" and OURS.items() <= facts["attributes"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _put(array: Any, top: int, held: list[npt.NDArray[Any]]) -> int:
    if not held:
        return top
    rows = np.concatenate(held)
    held.clear()
    array[top : top + len(rows)] = rows
    return top + len(rows)
