"""What augmentation does to light: tone, colour, noise and blur of an 8-bit image, each a pure function."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from kirie.data.geometry import in_fours

Image = npt.NDArray[np.uint8]

# Luma weights of ITU-R BT.601: a colour matrix around them turns hue without changing brightness.
LUMA = np.array([0.299, 0.587, 0.114])


def tone_table(brightness: float, contrast: float, gamma: float) -> Image:
    """One look-up table (256,) uint8 for contrast about mid-grey, then brightness, then gamma.

    Args:
        brightness: added share of full white, -1..1; 0 changes nothing.
        contrast: grey values move 1 + contrast times as far from mid-grey; 0 changes nothing.
        gamma: exponent on values in 0..1; 1 changes nothing, above darkens.
    """
    grey = np.arange(256) / 255.0
    grey = np.clip((grey - 0.5) * (1 + contrast) + 0.5 + brightness, 0, 1) ** gamma
    return np.rint(grey * 255).astype(np.uint8)


def color_matrix(degrees: float, saturation: float) -> npt.NDArray[np.float32]:
    """The matrix (3, 3) that turns the hue of RGB values and scales their saturation; greys stay as they are.

    Args:
        degrees: turn about the grey axis.
        saturation: factor on the distance from grey; 1 changes nothing, 0 gives a grey picture.
    """
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    axis = np.full(3, 1 / math.sqrt(3))
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn = cos * np.eye(3) + sin * cross + (1 - cos) * np.outer(axis, axis)
    grey = np.tile(LUMA, (3, 1))
    chroma = np.eye(3) - grey
    matrix: npt.NDArray[np.float32] = (grey + saturation * chroma @ turn @ chroma).astype(np.float32)
    return matrix


def with_tone(image: Image, table: Image) -> Image:
    """The image (H, W, C) with each value looked up in a table (256,)."""
    return in_fours(lambda planes: _shaped(cv2.LUT(planes, table), planes), image)


def with_color(image: Image, matrix: npt.NDArray[np.float32]) -> Image:
    """The RGB image (H, W, 3) with each colour multiplied by a matrix (3, 3)."""
    return _shaped(cv2.transform(image, matrix), image)


def with_noise(image: Image, deviation: float, rng: np.random.Generator) -> Image:
    """The image with Gaussian noise of a standard deviation in grey levels, each channel on its own."""
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise *= np.float32(deviation)
    noise += image
    return np.clip(np.rint(noise, out=noise), 0, 255).astype(np.uint8)


def blurred(image: Image, sigma: float) -> Image:
    """The image (H, W, C) under a Gaussian filter with a standard deviation in pixels."""
    return in_fours(lambda planes: _shaped(cv2.GaussianBlur(planes, (0, 0), sigma), planes), image)


def _shaped(values: Any, like: Image) -> Image:
    # cv2 drops the axis of a single channel.
    shaped: Image = values.reshape(like.shape)
    return shaped
