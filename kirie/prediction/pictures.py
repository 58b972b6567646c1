"""Whatever a person calls a picture (a path, an array, a Pillow image) as the bytes that a model takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from kirie.errors import KirieError
from kirie.reading.images import plain_mode, read_image, stretch, with_channels

Picture = npt.NDArray[np.uint8]


def as_picture(image: Any, channels: int) -> Picture:
    """A picture as (H, W, channels) uint8, upright, with the rules by which `read_image` reads a file.

    Grey becomes RGB where three channels are asked for, and RGB grey where it is one; alpha is dropped or added. More
    than 8 bits are stretched linearly between the picture's own 0.1 % and 99.9 % percentiles.

    Args:
        image: a path, a Pillow image, or an array (H, W) or (H, W, C) of uint8 or uint16; three or four channels are
            RGB or RGBA.
        channels: C of the model.

    Raises:
        KirieError: when it is none of these, cannot be read, or has not the channels asked for.
    """
    if isinstance(image, str | Path):
        return read_image(image, channels)
    if isinstance(image, Image.Image):
        pixels = _from_pillow(image, channels)
    elif isinstance(image, np.ndarray) and image.dtype in (np.uint8, np.uint16):
        pixels = image
    else:
        came = f"an array of {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise KirieError(
            f"A picture is a path, a Pillow image or an array of uint8 or uint16, got {came}. Scale other numbers to "
            "0..255 and convert them with .astype('uint8')."
        )
    if pixels.ndim not in (2, 3) or not pixels.size:
        raise KirieError(f"A picture has the shape (H, W) or (H, W, C), got {pixels.shape}.")
    is_color = pixels.ndim == 3 and pixels.shape[2] in (3, 4)
    if pixels.dtype != np.uint8:
        pixels = stretch(pixels, is_color, has_alpha=False)
    return np.ascontiguousarray(with_channels("The picture", pixels, channels, is_color))


def _from_pillow(image: Image.Image, channels: int) -> npt.NDArray[Any]:
    """Upright pixels (H, W) or (H, W, C): uint8, or the image's own numbers where they have more than 8 bits."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # `convert` would cut them at 255
        pixels = np.asarray(image)
        return pixels.astype(np.uint16) if pixels.dtype.itemsize == 2 else pixels  # such files may be big-endian
    return np.asarray(plain_mode(image, alpha=channels == 4))
