"""Reading picture and label files: limits before decoding, one plain sentence when a file is broken.

JPEG and PNG are decoded by OpenCV, about one and a half times as fast as Pillow with equal pixels; Pillow reads the
headers and the other files, tifffile the TIFF files with more than 8 bits or other than 1, 3 or 4 channels. OpenCV
neither names the file that is broken nor refuses every cut one, so the structure of a file is checked before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, TiffImagePlugin

from kirie.counting import occurrences
from kirie.errors import KirieError
from kirie.reading.headers import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    PLUGINS,
    ImageFacts,
    damaged,
    decoding,
    first_series,
    image_facts,
    image_size,
    opened,
    read_facts,
    sound_jpeg,
    sound_png,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "ImageFacts",
    "image_facts",
    "image_size",
    "palette_colors",
    "read_image",
    "read_label_file",
    "read_numbers",
]

Pixels = npt.NDArray[Any]


def read_image(path: str | Path, channels: int = 3) -> npt.NDArray[np.uint8]:
    """The picture in a file as (H, W, channels) uint8, upright, RGB where there are three channels.

    Pictures with more than 8 bits are scaled linearly so that 0 and 255 are the picture's own 0.1 % and 99.9 %
    percentiles: microscopes and satellites fill 10 to 14 of 16 bits, and dividing by 256 would leave them black. The
    three colours of an RGB picture are scaled together, which keeps the hue; other channels each on their own.

    Args:
        path: PNG, JPEG, TIFF, BMP or WebP.
        channels: 1 for grey (Rec. 601 luma of colours), 3 for RGB (alpha is dropped), 4 for RGBA; another number
            needs a TIFF with that many channels.

    Raises:
        KirieError: when the file is missing, a folder, empty, no picture, damaged, cut short, above `MAX_PIXELS`, or
            has not the channels asked for.
    """
    with opened(path) as file:
        facts = read_facts(path, file)
        pixels, is_color = _decode(path, file, facts, alpha=channels == 4)
    if pixels.dtype != np.uint8:
        pixels = stretch(pixels, is_color, has_alpha=facts.format == "PNG")
    return np.ascontiguousarray(with_channels(path, pixels, channels, is_color))


def read_numbers(path: str | Path, channels: int = 3) -> Pixels:
    """The picture in a file as `read_image` gives it, but (H, W, channels) in the file's own numbers, to measure with.

    Raises:
        KirieError: as `read_image`.
    """
    with opened(path) as file:
        pixels, is_color = _decode(path, file, read_facts(path, file), alpha=channels == 4)
    if pixels.dtype not in (np.uint8, np.uint16):
        pixels = pixels.astype(np.float32)
    return np.ascontiguousarray(with_channels(path, pixels, channels, is_color))


def read_label_file(path: str | Path) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """The numbers in a label file: ids (H, W) uint8 or uint16, or colours (H, W, 3) uint8.

    A palette file gives its indices, a file of 1, 2 or 4 bits its numbers unscaled; alpha is dropped. Nothing is
    scaled or interpolated.

    Raises:
        KirieError: as `read_image`, and when the numbers are not whole or not in 0..65535.
    """
    with opened(path) as file:
        facts = read_facts(path, file)
        pixels = _decode_labels(path, file, facts)
    if pixels.ndim == 3:
        pixels = pixels[..., 0] if pixels.shape[2] <= 2 else pixels[..., :3]
    if pixels.dtype == np.bool_ or pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels.astype(np.uint8, copy=False))
    if pixels.ndim == 3:
        raise KirieError(f"{path} holds colours of {facts.bits} bits; label files hold ids or 8-bit colours.")
    if pixels.dtype != np.uint16:
        low, high = pixels.min(), pixels.max()
        if not (low >= 0 and high <= 65535 and (pixels == np.floor(pixels)).all()):
            raise KirieError(
                f"{path} holds {pixels.dtype} numbers from {low} to {high}; label files hold whole numbers in 0..65535."
            )
    return np.ascontiguousarray(pixels.astype(np.uint16, copy=False))


def palette_colors(path: str | Path) -> tuple[tuple[int, int, int], ...]:
    """The RGB colour table of a palette file, up to 256 entries; empty when the file has none."""
    with opened(path) as file:
        facts = read_facts(path, file)
        if not facts.palette:
            return ()
        with decoding(path):
            flat = PLUGINS[facts.format](file).getpalette() or []
    return tuple((flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat) - 2, 3))


# Decoding


def _decode(path: str | Path, file: BinaryIO, facts: ImageFacts, alpha: bool) -> tuple[Pixels, bool]:
    """Upright pixels (H, W) or (H, W, C) of any number type, and whether the first three channels are RGB."""
    if facts.format == "TIFF":
        return _decode_tiff(path, file, facts)
    # OpenCV reads the CMYK of a JPEG in its own way, and an alpha channel costs it the greys.
    fast = facts.channels in (1, 3) if facts.format == "JPEG" else facts.channels != 2 and not alpha
    if facts.format in ("PNG", "JPEG") and fast:
        return _turn(_decode_fast(path, file.read(), facts), facts.orientation), facts.channels > 1
    if facts.bits == 16:  # grey with alpha, or alpha asked for: Pillow would cut such a PNG to 8 bits
        return _turn(_decode_deep(path, file.read()), facts.orientation), facts.channels > 1
    with decoding(path):
        picture = PLUGINS[facts.format](file)
        pixels = np.asarray(plain_mode(picture, alpha))
    return _turn(pixels, facts.orientation), pixels.ndim == 3


def plain_mode(picture: Image.Image, alpha: bool) -> Image.Image:
    """The picture as L, RGB or RGBA."""
    if alpha:
        return picture.convert("RGBA")
    if picture.mode in ("1", "L", "LA"):
        return picture.convert("L")
    if picture.mode == "P" and "transparency" in picture.info:
        return picture.convert("RGBA").convert("RGB")  # straight to RGB would warn
    return picture.convert("RGB")


def _decode_fast(path: str | Path, data: bytes, facts: ImageFacts) -> Pixels:
    """Pixels (H, W) or (H, W, 3) of a PNG or JPEG, not turned."""
    data = sound_png(path, data) if facts.format == "PNG" else sound_jpeg(path, data)
    color = cv2.IMREAD_GRAYSCALE if facts.channels == 1 else cv2.IMREAD_COLOR_RGB
    flags = color | cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_ANYDEPTH
    with decoding(path):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise damaged(path, "its picture data cannot be unpacked")
    return pixels


def _decode_deep(path: str | Path, data: bytes) -> Pixels:
    """Pixels (H, W, 4) RGBA uint16 of a PNG of 16 bits, not turned."""
    with decoding(path):
        pixels = cv2.imdecode(np.frombuffer(sound_png(path, data), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise damaged(path, "its picture data cannot be unpacked")
    if pixels.ndim == 2:
        return pixels
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def _decode_tiff(path: str | Path, file: BinaryIO, facts: ImageFacts) -> tuple[Pixels, bool]:
    if facts.bits in (1, 8) and facts.channels <= 4:
        picture = _pillow_tiff(path, file)
        if picture is not None:
            pixels = np.asarray(plain_mode(picture, alpha=picture.mode == "RGBA"))
            return pixels, pixels.ndim == 3
    pixels, is_color = _tiff_array(path, file)
    return _turn(pixels, facts.orientation), is_color


def _pillow_tiff(path: str | Path, file: BinaryIO) -> Image.Image | None:
    """The first page, decoded and turned by Pillow, which knows more compressions; None for other channels."""
    with decoding(path):
        with tifffile.TiffFile(file) as tiff:
            series = first_series(tiff)
            page = series.keyframe
            other = 0 in page.extrasamples  # channels that are neither colour nor alpha
            plain = len(series.pages) == 1 and page.dtype in (np.uint8, np.bool_) and not other
        file.seek(0)
        if not plain:
            return None
        picture: Image.Image = TiffImagePlugin.TiffImageFile(file)
        picture.load()
        return picture


def _tiff_array(path: str | Path, file: BinaryIO) -> tuple[Pixels, bool]:
    """Pixels (H, W) or (H, W, C), not turned, and whether they are RGB."""
    file.seek(0)
    with decoding(path), tifffile.TiffFile(file) as tiff:
        series = first_series(tiff)
        pixels, axes = np.asarray(series.asarray()), series.axes
        is_color = series.keyframe.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
        planes = [axis for axis in range(len(axes)) if axes[axis] not in "YX"]
        pixels = pixels.transpose(axes.index("Y"), axes.index("X"), *planes)
        if pixels.size > pixels.shape[0] * pixels.shape[1]:
            return pixels.reshape(*pixels.shape[:2], -1), is_color  # (H, W, C)
        return pixels.reshape(pixels.shape[:2]), False


def _decode_labels(path: str | Path, file: BinaryIO, facts: ImageFacts) -> Pixels:
    if facts.format == "TIFF":
        return _turn(_tiff_array(path, file)[0], facts.orientation)
    whole = facts.bits >= 8 and not facts.palette
    if facts.format == "PNG" and whole and (facts.channels in (1, 3) or facts.bits == 16):
        return _turn(_decode_fast(path, file.read(), facts), facts.orientation)
    with decoding(path):
        picture = PLUGINS[facts.format](file)
        if picture.mode not in ("1", "L", "P", "LA", "PA", "RGB", "RGBA"):
            picture = picture.convert("RGB")
        pixels = np.asarray(picture)
    if picture.mode == "L" and facts.bits in (2, 4):
        pixels = pixels // (85 if facts.bits == 2 else 17)  # Pillow spreads such greys over 0..255
    return _turn(pixels, facts.orientation)


def _turn(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels made upright as EXIF orientation 1..8 asks."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


# Numbers and channels


def stretch(pixels: Pixels, is_color: bool, has_alpha: bool) -> npt.NDArray[np.uint8]:
    """Pixels (H, W) or (H, W, C) of any number type as uint8, from their own 0.1 % to their own 99.9 % percentile.

    The three planes of colour are stretched together, so that colours keep; others each by itself, but alpha as it is.
    """
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.ndim == 2:
        return scaled(pixels, spread(pixels))
    alpha = pixels.shape[2] - 1 if has_alpha else -1
    planes = []
    for here in stretched_together(pixels.shape[2], is_color):
        plane = pixels[..., here]
        planes.append((plane >> 8).astype(np.uint8) if here.start == alpha else scaled(plane, spread(plane)))
    return np.concatenate(planes, axis=2)


def stretched_together(channels: int, is_color: bool) -> list[slice]:
    """Which of so many planes are stretched together: the three of colour, and others each by itself."""
    first = 3 if is_color and channels >= 3 else 0
    return [*([slice(0, 3)] if first else []), *(slice(index, index + 1) for index in range(first, channels))]


def spread(plane: Pixels) -> tuple[float, float]:
    """The 0.1 % and the 99.9 % percentile of numbers; the least and the most where these are equal."""
    if plane.dtype == np.uint16:
        return counted_spread(occurrences(plane, 65536))
    values = plane.astype(np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 0.0
    low, high = np.percentile(finite, [0.1, 99.9])
    return (float(low), float(high)) if low < high else (float(finite.min()), float(finite.max()))


def counted_spread(counts: npt.NDArray[np.int64]) -> tuple[float, float]:
    """`spread` of the numbers 0..65535 that occur so many times each."""
    total = np.cumsum(counts)
    low, high = np.searchsorted(total, [0.001 * total[-1], 0.999 * total[-1]])
    if low == high:
        low, high = np.flatnonzero(counts)[[0, -1]]
    return float(low), float(high)


def scaled(plane: Pixels, limits: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Numbers as 0..255 from the lower to the upper limit; 0 where these are equal, and for what is no number."""
    low, high = limits
    if plane.dtype == np.uint16:
        return _linear(np.arange(65536, dtype=np.float64), low, high)[plane]
    values = plane.astype(np.float64)
    return _linear(np.nan_to_num(values, nan=low, posinf=high, neginf=low), low, high)


def _linear(values: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.uint8]:
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def with_channels(path: str | Path, pixels: Pixels, channels: int, is_color: bool) -> Pixels:
    """Pixels (H, W) or (H, W, C) as (H, W, channels)."""
    planes = pixels[..., None] if pixels.ndim == 2 else pixels
    count = planes.shape[2]
    if count == channels:
        return planes
    if channels == 1 and is_color:
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(planes[..., :3]), cv2.COLOR_RGB2GRAY))[..., None]
    if channels == 3 and is_color:
        return planes[..., :3]
    if channels in (3, 4) and (count == 1 or is_color):
        rgb = np.repeat(planes, 3, axis=2) if count == 1 else planes[..., :3]
        solid = np.full((*rgb.shape[:2], 1), 255, rgb.dtype)
        return rgb if channels == 3 else np.concatenate([rgb, solid], axis=2)
    raise KirieError(
        f"{path} has {count} channel{'s' if count > 1 else ''} but {channels} are asked for; "
        f"use pictures with {channels} channels, or ask for {count}."
    )
