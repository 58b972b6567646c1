"""One coordinate map for all geometric augmentation, and how images, label maps and instance crops follow it.

A `Geometry` tells for each pixel of the output which point of the source it shows:

    source(p) = matrix @ (lines(p) + bend(p))

`matrix` is the product of crop, shift, scale, rotation, flips and 90° turns; `lines` stretches columns and rows (grid
distortion), `bend` is a smooth random displacement (elastic). Everything is looked up once: bilinear for images,
nearest for masks. A map of flips, turns and whole-pixel crops only is done by slicing and is exact, bit for bit.

Points are pixel indices: (0, 0) is the centre of the first pixel, x runs along columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from kirie.errors import KirieError
from kirie.masks import Crop

Array = npt.NDArray[Any]
Matrix = npt.NDArray[np.float64]
Field = npt.NDArray[np.float32]

LONGEST_SIDE = 32766  # cv2.remap counts pixels in 16 bits
BLOCK = 32


class Window(NamedTuple):
    """A rectangle of whole source pixels; it may stick out of the picture."""

    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where each pixel of an output of `size` (h, w) lies in the source.

    Attributes:
        size: (h, w) of the output.
        matrix: (3, 3) float64, takes output points (x, y, 1) to source points.
        lines: stretched x of the w columns and y of the h rows, or None.
        bend: (rows, columns, 2) float32, coarse picture of the displacement (x, y) in output pixels, or None.
    """

    size: tuple[int, int]
    matrix: Matrix
    lines: tuple[Field, Field] | None = None
    bend: Field | None = None

    @property
    def exact(self) -> bool:
        """Whether the map only flips, turns by 90° and moves by whole pixels."""
        linear = np.abs(self.matrix[:2, :2])
        whole = np.array_equal(self.matrix, np.rint(self.matrix))
        straight = self.lines is None and self.bend is None
        return straight and whole and bool((linear.sum(0) == 1).all() and (linear.sum(1) == 1).all())

    @cached_property
    def window(self) -> Window:
        """The source pixels that the output can show, with room for interpolation."""
        height, width = self.size
        edge, room = (0.0, 0.0) if self.exact else (0.5, 2.0)
        corners = [(x, y, 1.0) for x in (-edge, width - 1 + edge) for y in (-edge, height - 1 + edge)]
        points = (self.matrix @ np.array(corners).T)[:2]
        if self.bend is not None:  # twice: bicubic enlargement overshoots the coarse values a little
            room = room + 2 * np.abs(self.bend).max((0, 1)) @ np.abs(self.matrix[:2, :2]).T
        left, top = np.floor(points.min(1) - room).astype(int)
        right, bottom = np.ceil(points.max(1) + room).astype(int) + 1
        return Window(int(top), int(left), int(bottom), int(right))

    def warp_image(self, image: npt.NDArray[np.uint8], reflect: bool) -> npt.NDArray[np.uint8]:
        """The output image (h, w, C), bilinear.

        Where the output shrinks the source twice or more, the source is averaged by that whole factor first, so that
        fine texture does not alias.

        Args:
            image: (H, W, C).
            reflect: what lies outside the picture: its mirror image, or else its mean colour.
        """
        if self.exact:
            return in_fours(lambda planes: self._turned_image(planes, reflect), image)
        factor = max(1, int(np.linalg.svd(self.matrix[:2, :2], compute_uv=False)[1] + 1e-9))
        maps = self._maps if factor == 1 else self._maps_of(factor)
        return in_fours(lambda planes: self._mapped_image(planes, reflect, factor, maps), image)

    def _turned_image(self, image: npt.NDArray[np.uint8], reflect: bool) -> npt.NDArray[np.uint8]:
        fill = None if reflect else _mean_color(image)
        return np.array(self._oriented(cut(image, self.window, fill)), order="C")

    def _mapped_image(
        self, image: npt.NDArray[np.uint8], reflect: bool, factor: int, maps: tuple[Field, Field]
    ) -> npt.NDArray[np.uint8]:
        """The output image from a source averaged by `factor`; `maps` are those of that factor."""
        window = self.window
        fill = None if reflect else _mean_color(image)
        if factor > 1:
            rows = -(-(window.bottom - window.top) // factor)
            columns = -(-(window.right - window.left) // factor)
            bottom, right = window.top + rows * factor, window.left + columns * factor
            source = cut(image, Window(window.top, window.left, bottom, right), fill)
            source = cv2.resize(source, (columns, rows), interpolation=cv2.INTER_AREA)
        else:
            source = cut(image, window, fill)
        warped: Any = cv2.remap(source, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        shaped: npt.NDArray[np.uint8] = warped.reshape(*self.size, image.shape[2])  # cv2 drops a single channel's axis
        return shaped

    def warp_labels(self, labels: Array, fill: int | None) -> Array:
        """The output label or id map (h, w), nearest; same dtype, no new values but `fill`.

        Args:
            labels: (H, W) uint8 or int32.
            fill: the value outside the picture; None for its mirror image.
        """
        source = cut(labels, self.window, None if fill is None else (fill,))
        if self.exact:
            return np.array(self._oriented(source), order="C")
        return _looked_up(source, self._nearest, cv2.BORDER_REPLICATE)

    def warp_crops(self, crops: Sequence[Crop]) -> list[Crop | None]:
        """The instance masks in the output, one by one, None where nothing is left to see.

        Only one mask is spread out at a time, and only over the blocks of the output that can show it.
        """
        follow = self._orient_crop if self.exact else self._warp_crop
        return [_trimmed(follow(crop)) for crop in map(self._within_window, crops)]

    @cached_property
    def _maps(self) -> tuple[Field, Field]:
        """Source x and y (h, w) for each output pixel, counted from the window's corner."""
        return self._maps_of(1)

    def _maps_of(self, factor: int) -> tuple[Field, Field]:
        """`_maps` for a source that was averaged to pixels `factor` wide."""
        _check_window(self.window)
        height, width = self.size
        xs, ys = self.lines or (np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        origin = np.array([self.window.left, self.window.top])
        linear = self.matrix[:2, :2] / factor
        start = (self.matrix[:2, 2] - origin + 0.5) / factor - 0.5
        maps = []
        for (along_x, along_y), offset in zip(linear, start, strict=True):
            row = (along_x * xs + offset).astype(np.float32)
            column = (along_y * ys).astype(np.float32)
            if self.bend is None:
                maps.append(np.add(row[None, :], column[:, None]))
                continue
            coarse = np.ascontiguousarray(self.bend @ np.array([along_x, along_y], np.float32))
            shift = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
            shift += row[None, :]
            shift += column[:, None]
            maps.append(shift)
        return maps[0], maps[1]

    @cached_property
    def _nearest(self) -> npt.NDArray[np.int16]:
        """Nearest source pixel (x, y) of each output pixel, (h, w, 2), counted from the window's corner."""
        map_x, map_y = self._maps
        nearest: Any = cv2.convertMaps(map_x, map_y, cv2.CV_16SC2, nninterpolation=True)[0]
        rounded: npt.NDArray[np.int16] = nearest
        return rounded

    @cached_property
    def _block_reach(self) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
        """The smallest and largest source (x, y) in each block of the output, (block rows, block columns, 2) each."""
        rows, columns = (np.arange(0, length, BLOCK) for length in self.size)
        low = np.minimum.reduceat(np.minimum.reduceat(self._nearest, rows, axis=0), columns, axis=1)
        high = np.maximum.reduceat(np.maximum.reduceat(self._nearest, rows, axis=0), columns, axis=1)
        return low, high

    def _oriented(self, source: Array) -> Array:
        """The window (rows, columns, ...) flipped and turned as an exact map says; a view."""
        linear = self.matrix[:2, :2]
        if linear[0, 0] == 0:
            source = source.swapaxes(0, 1)
        along_x, along_y = linear.sum(0)
        return source[:: int(along_y), :: int(along_x)]

    def _within_window(self, crop: Crop) -> Crop:
        """The part of a crop inside the window, counted from the window's corner; perhaps without pixels."""
        top, left = crop.top - self.window.top, crop.left - self.window.left
        height, width = self.window.bottom - self.window.top, self.window.right - self.window.left
        bits = crop.bits[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
        return Crop(max(0, top), max(0, left), bits)

    def _orient_crop(self, crop: Crop) -> Crop:
        rows, columns = crop.bits.shape
        top, left = crop.top, crop.left
        if self.matrix[0, 0] == 0:
            rows, columns, top, left = columns, rows, left, top
        along_x, along_y = self.matrix[:2, :2].sum(0)
        top = top if along_y > 0 else self.size[0] - top - rows
        left = left if along_x > 0 else self.size[1] - left - columns
        return Crop(top, left, self._oriented(crop.bits))

    def _warp_crop(self, crop: Crop) -> Crop:
        rows, columns = crop.bits.shape
        nothing = Crop(0, 0, np.zeros((0, 0), bool))
        if crop.bits.size == 0:
            return nothing
        low, high = self._block_reach
        corner = np.array([crop.left, crop.top])
        seen = ((high >= corner) & (low < corner + np.array([columns, rows]))).all(2)
        if not seen.any():
            return nothing
        (top, bottom), (left, right) = _extent(seen)
        top, bottom, left, right = top * BLOCK, bottom * BLOCK, left * BLOCK, right * BLOCK
        nearest = self._nearest[top:bottom, left:right] - corner.astype(np.int16)
        bits = np.ascontiguousarray(crop.bits).view(np.uint8)
        # Not replicated: an object touches its crop's edge and would be smeared over the rest.
        return Crop(top, left, _looked_up(bits, nearest, cv2.BORDER_CONSTANT).view(bool))


def cut(array: Array, window: Window, fill: tuple[float, ...] | None) -> Array:
    """The pixels of a window out of an image (H, W, C) or a map (H, W); it may stick out or lie outside altogether.

    Args:
        array: the picture.
        window: what to cut.
        fill: the value outside the picture; None for its mirror image (without repeating the edge pixel).
    """
    (y0, y1), (x0, x1) = (
        _mirror_reach(start, stop, length)
        for start, stop, length in zip(window[:2], window[2:], array.shape[:2], strict=True)
    )
    inner = np.ascontiguousarray(array[y0:y1, x0:x1])
    top, left = max(0, y0 - window.top), max(0, x0 - window.left)
    bottom, right = max(0, window.bottom - y1), max(0, window.right - x1)
    if top or bottom or left or right:
        border = cv2.BORDER_REFLECT_101 if fill is None else cv2.BORDER_CONSTANT
        inner = cv2.copyMakeBorder(inner, top, bottom, left, right, border, value=fill or 0)
        inner = inner.reshape(*inner.shape[:2], *array.shape[2:])
    skip_y, skip_x = window.top - (y0 - top), window.left - (x0 - left)
    return inner[skip_y : skip_y + window.bottom - window.top, skip_x : skip_x + window.right - window.left]


def in_fours(
    change: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]], image: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """The image (H, W, C) changed four channels at a time, since OpenCV takes no more; `change` keeps their number."""
    channels = image.shape[2]
    if channels <= 4:
        return change(image)
    groups = (np.ascontiguousarray(image[..., first : first + 4]) for first in range(0, channels, 4))
    return np.concatenate([change(group) for group in groups], axis=2)


def turning(turns: int, size: tuple[int, int]) -> Matrix:
    """The map (3, 3) of `np.rot90(image, turns)`, from the turned picture to the picture of `size` (H, W)."""
    height, width = size
    rows = {
        0: [[1, 0, 0], [0, 1, 0]],
        1: [[0, -1, width - 1], [1, 0, 0]],
        2: [[-1, 0, width - 1], [0, -1, height - 1]],
        3: [[0, 1, 0], [-1, 0, height - 1]],
    }
    return np.array([*rows[turns % 4], [0, 0, 1]], np.float64)


def flipping(horizontal: bool, vertical: bool, size: tuple[int, int]) -> Matrix:
    """The map (3, 3) of a mirrored picture of `size` (H, W)."""
    height, width = size
    x = [-1, 0, width - 1] if horizontal else [1, 0, 0]
    y = [0, -1, height - 1] if vertical else [0, 1, 0]
    return np.array([x, y, [0, 0, 1]], np.float64)


def cropping(top: int, left: int, crop: tuple[int, int], size: tuple[int, int]) -> Matrix:
    """The map (3, 3) from an output of `size` (h, w) to the rectangle `crop` (height, width) at (top, left)."""
    y, x = crop[0] / size[0], crop[1] / size[1]
    return np.array([[x, 0, left + (x - 1) / 2], [0, y, top + (y - 1) / 2], [0, 0, 1]], np.float64)


def moving(shift: tuple[float, float], scale: float, degrees: float, size: tuple[int, int]) -> Matrix:
    """The map (3, 3) of a picture of `size` (h, w) scaled and rotated about its centre, then shifted by (x, y) pixels.

    Positive degrees turn anticlockwise, as `np.rot90` does; a scale above 1 enlarges.
    """
    cos, sin = math.cos(math.radians(degrees)) / scale, math.sin(math.radians(degrees)) / scale
    x, y = (size[1] - 1) / 2, (size[0] - 1) / 2
    to_x, to_y = x + shift[0], y + shift[1]
    return np.array([[cos, -sin, x - cos * to_x + sin * to_y], [sin, cos, y - sin * to_x - cos * to_y], [0, 0, 1]])


def elastic_bend(size: tuple[int, int], strength: float, smoothness: float, rng: np.random.Generator) -> Field:
    """A smooth random displacement for an output of `size` (h, w), as a coarse picture (rows, columns, 2).

    It is white noise under a Gaussian filter (Simard, Steinkraus and Platt 2003), drawn on a grid of half the filter's
    width, as nothing finer survives the filter, and enlarged when it is used.

    Args:
        size: (h, w) of the output.
        strength: standard deviation of the displacement in pixels; above 0.4 * smoothness the picture folds over.
        smoothness: standard deviation of the filter in pixels.
        rng: source of the noise.
    """
    rows, columns = (max(2, math.ceil(length / max(1.0, smoothness / 2))) for length in size)
    sigma_y, sigma_x = smoothness * rows / size[0], smoothness * columns / size[1]
    reach = math.ceil(3 * max(sigma_x, sigma_y))  # so that the edge is as smooth as the middle
    noise = rng.standard_normal((rows + 2 * reach, columns + 2 * reach, 2), dtype=np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), sigma_x, sigmaY=sigma_y)[reach : reach + rows, reach : reach + columns]
    # Filtering divides the standard deviation of white noise by 2 sqrt(pi sigma_x sigma_y).
    bend: Any = smooth * np.float32(strength * 2 * math.sqrt(math.pi * sigma_x * sigma_y))
    field: Field = bend
    return field


def grid_line(length: int, steps: int, limit: float, rng: np.random.Generator) -> Field:
    """Where `length` pixels come from when a line is cut into `steps` equal pieces and each is stretched anew.

    A piece shows between 1 - limit and 1 + limit of its own share; the ends stay in place and the order is kept.
    """
    shares = 1 + rng.uniform(-limit, limit, steps)
    knots = np.concatenate([[0.0], np.cumsum(shares)]) * (length / shares.sum()) - 0.5
    line: npt.NDArray[np.float64] = np.interp(np.arange(length), np.linspace(-0.5, length - 0.5, steps + 1), knots)
    return line.astype(np.float32)


def _mirror_reach(start: int, stop: int, length: int) -> tuple[int, int]:
    """The part of 0..length that a window start..stop shows, its mirrored pixels included; never empty."""
    low = max(0, min(start, 2 * length - 1 - stop))
    high = min(length, max(stop, 1 - start))
    return low, high


def _mean_color(image: npt.NDArray[np.uint8]) -> tuple[float, ...]:
    """The mean of each channel, over a sample of some 256 x 256 pixels."""
    step = max(1, min(image.shape[:2]) // 256)
    mean = image[::step, ::step].mean((0, 1))
    return tuple(float(value) for value in np.rint(mean))


def _looked_up(source: Array, nearest: npt.NDArray[np.int16], border: int) -> Array:
    """The source value at each nearest pixel (h, w, 2); zero outside with a constant border."""
    no_fractions: Any = None
    warped: Any = cv2.remap(source, nearest, no_fractions, cv2.INTER_NEAREST, borderMode=border)
    found: Array = warped
    return found


def _trimmed(crop: Crop) -> Crop | None:
    if not crop.bits.any():
        return None
    (top, bottom), (left, right) = _extent(crop.bits)
    return Crop(crop.top + top, crop.left + left, np.array(crop.bits[top:bottom, left:right], order="C"))


def _extent(flags: npt.NDArray[np.bool_]) -> tuple[tuple[int, int], tuple[int, int]]:
    """First row and last + 1, first column and last + 1, of the True entries; there must be one."""
    rows, columns = (np.flatnonzero(np.logical_or.reduce(flags, axis)) for axis in (1, 0))
    return (int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)


def _check_window(window: Window) -> None:
    if max(window.bottom - window.top, window.right - window.left) > LONGEST_SIDE:
        raise KirieError(
            f"Cannot warp {window.bottom - window.top} x {window.right - window.left} pixels at once; the longest side "
            f"is {LONGEST_SIDE}. Train on patches: give `size`, and share less of the picture with `crop_scale`."
        )
