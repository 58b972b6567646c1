"""Pictures in and words on them: any picture as RGB bytes, and text that no name can break."""

from __future__ import annotations

import os
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFont, ImageOps

from kirie.errors import KirieError
from kirie.reading.images import image_facts, read_image, stretch

Picture = npt.NDArray[np.uint8]
ImageLike = str | os.PathLike[str] | Image.Image | npt.NDArray[Any]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Fonts with Japanese, Chinese or Korean first, as Linux, macOS and Windows call them; looked up by file name.
_WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKjp-Regular.otf",
    "NotoSansJP-Regular.otf",
    "ipaexg.ttf",
    "ipag.ttf",
    "VL-Gothic-Regular.ttf",
    "ヒラギノ角ゴシック W3.ttc",
    "Hiragino Sans GB.ttc",
    "YuGothM.ttc",
    "meiryo.ttc",
    "msgothic.ttc",
    "wqy-microhei.ttc",
    "Arial Unicode.ttf",
    "DejaVuSans.ttf",
)


def as_picture(image: ImageLike) -> Picture:
    """Any picture as an (H, W, 3) uint8 RGB array; a new one, or the caller's own where it has that form already.

    Args:
        image: a path, a Pillow picture, or a uint8 array (H, W) or (H, W, C). Files are read by
            `reading.images.read_image`, as for prediction: upright, more than 8 bits stretched. One or two channels
            become grey; a fourth channel and those after it are left out.

    Raises:
        KirieError: when a file cannot be read or an array is not 8-bit or has another shape.
    """
    if isinstance(image, str | os.PathLike):
        image = _read(Path(image))
    elif isinstance(image, Image.Image):
        image = _from_pillow(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (2, 3) or not image.size:
        came = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise KirieError(
            f"A picture to draw on is a path, a Pillow image or a uint8 array (H, W) or (H, W, C), got {came}. "
            "Scale other values to 0..255 and convert them with .astype('uint8')."
        )
    if image.ndim == 2 or image.shape[2] < 3:
        grey = image if image.ndim == 2 else image[..., 0]
        return np.repeat(grey[..., None], 3, axis=2)
    return np.ascontiguousarray(image[..., :3])


def fit(picture: Picture, size: tuple[int, int], fill: tuple[int, int, int]) -> Picture:
    """A picture (H, W, 3) scaled to fit inside `size` (H, W), its shape kept and the rest filled with a colour."""
    height, width = size
    scale = min(height / picture.shape[0], width / picture.shape[1])
    inner = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    scaled = cv2.resize(picture, inner, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    out = np.empty((height, width, 3), np.uint8)
    out[:] = fill
    top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
    out[top : top + inner[1], left : left + inner[0]] = scaled
    return out


def plain(text: str) -> str:
    """Text on one line that every drawing library accepts: no control characters, no broken surrogates."""
    whole = str(text).encode("utf-8", "replace").decode("utf-8")
    return "".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in whole)


@lru_cache(maxsize=64)
def _font(size: int, wide: bool) -> Font:
    for name in _WIDE_FONTS if wide else ():
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def font_for(text: str, size: int) -> Font:
    """A font of `size` pixels that can most likely draw `text`; a letter it lacks is drawn as an empty box."""
    return _font(size, not text.isascii())


def font_file_for(text: str) -> str | None:
    """The file of a system font for text beyond ASCII, or None where the default font is the best there is."""
    path = getattr(font_for(text, 12), "path", None)
    return path if isinstance(path, str) else None


def shorten(text: str, font: Font, width: float) -> str:
    """Text cut in its middle, with an ellipsis, to at most `width` pixels; both ends of a file name stay readable."""
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:  # the most letters that still fit
        kept = (low + high + 1) // 2
        low, high = (kept, high) if font.getlength(_middle_cut(text, kept)) <= width else (low, kept - 1)
    return _middle_cut(text, low)


def _middle_cut(text: str, kept: int) -> str:
    tail = kept // 2
    return f"{text[: kept - tail]}...{text[len(text) - tail :]}"


def _read(path: Path) -> Picture:
    """The pixels (H, W, C) of a file as prediction sees them; a TIFF keeps all its channels."""
    facts = image_facts(path)
    return read_image(path, facts.channels if facts.format == "TIFF" else 3)


def _from_pillow(image: Image.Image) -> npt.NDArray[np.uint8]:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):  # 16 bits and more: stretched as files are, since `convert` cuts at 255
        pixels = np.asarray(upright)
        return stretch(pixels.astype(np.uint16) if pixels.dtype.itemsize == 2 else pixels, False, has_alpha=False)
    return np.asarray(upright.convert("RGB"))
