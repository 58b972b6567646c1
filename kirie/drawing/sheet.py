"""Pictures side by side: contact sheets, and the four panels that explain IoU."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from kirie.drawing.picture import ImageLike, Picture, as_picture, fit, font_for, plain, shorten
from kirie.errors import KirieError

Color = tuple[int, int, int]

_PAPER: Color = (255, 255, 255)
_MAT: Color = (236, 238, 241)
_INK: Color = (45, 49, 56)

_TRUTH: Color = (47, 111, 190)
_RESULT: Color = (228, 122, 36)
_BOTH: Color = (42, 145, 90)
_EITHER: Color = (120, 81, 169)


def contact_sheet(
    pictures: Sequence[tuple[str, Sequence[ImageLike]]], *, columns: int = 4, cell: tuple[int, int] = (240, 320)
) -> Image.Image:
    """A sheet of captioned pictures in rows, as an RGB Pillow image.

    Args:
        pictures: a caption, and one or more pictures to set side by side in the cell (say picture and overlay), for
            each cell. Pictures keep their shape; a caption that is too long is cut in its middle.
        columns: cells in a row.
        cell: (H, W) in pixels of the most space that the pictures of one cell take; a row is only as high as its
            highest picture. Captions stand below.

    Raises:
        KirieError: without pictures, for a cell without one, or when columns or cell are too small.
    """
    if not pictures:
        raise KirieError("A contact sheet needs at least one picture, got none.")
    if columns < 1 or min(cell) < 32:
        raise KirieError(f"A contact sheet needs columns >= 1 and cells of 32 pixels or more, got {columns}, {cell}.")
    columns = min(columns, len(pictures))
    height, width = cell
    size = max(11, height // 17)
    gap, line = max(8, width // 26), round(size * 1.8)
    cells = [_side_by_side(caption, images, cell) for caption, images in pictures]
    heights = [max(len(each) for each in cells[first : first + columns]) for first in range(0, len(cells), columns)]
    tops = [gap + sum(heights[:row]) + row * (line + gap) for row in range(len(heights) + 1)]
    sheet = Image.new("RGB", (gap + columns * (width + gap), tops[-1]), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, (caption, _) in enumerate(pictures):
        row, column = divmod(number, columns)
        left, top = gap + column * (width + gap), tops[row]
        pictured = fit(cells[number], (heights[row], width), _MAT)
        sheet.paste(Image.fromarray(pictured), (left, top))
        text = plain(caption)
        font = font_for(text, size)
        middle = (left, top + heights[row] + line / 2)
        pen.text(middle, shorten(text, font, width), fill=_INK, font=font, anchor="lm")
    return sheet


def iou_panels(truth: npt.NDArray[Any], result: npt.NDArray[Any]) -> Image.Image:
    """Four panels that explain IoU: truth, result, their intersection and their union, with areas and the IoU.

    Two empty masks agree: their IoU is 1.

    Args:
        truth: (H, W) bool or 0/1.
        result: (H, W) bool or 0/1.

    Raises:
        KirieError: when the masks are not of one shape (H, W).
    """
    if truth.ndim != 2 or truth.shape != result.shape or not truth.size:
        raise KirieError(f"Expected two masks of one shape (H, W), got {truth.shape} and {result.shape}.")
    truth, result = truth.astype(bool), result.astype(bool)
    both, either = truth & result, truth | result
    overlap, union = int(both.sum()), int(either.sum())
    iou = overlap / union if union else 1.0
    panels = [
        (f"Truth: {int(truth.sum()):,} pixels", [_panel([(truth, _TRUTH)])]),
        (f"Prediction: {int(result.sum()):,} pixels", [_panel([(result, _RESULT)])]),
        (f"Intersection: {overlap:,} pixels", [_panel([(either, (214, 219, 224)), (both, _BOTH)])]),
        (f"Union: {union:,} pixels, IoU = {iou:.4f}", [_panel([(either, _EITHER)])]),
    ]
    return contact_sheet(panels, columns=4, cell=(320, 320))


def _panel(layers: list[tuple[npt.NDArray[np.bool_], Color]]) -> Picture:
    panel = np.full((*layers[0][0].shape, 3), 248, np.uint8)
    for mask, color in layers:
        panel[mask] = color
    return panel


def _side_by_side(caption: str, images: Sequence[ImageLike], cell: tuple[int, int]) -> Picture:
    if not len(images):
        raise KirieError(f"The cell {caption!r} of a contact sheet has no picture; give it one or more.")
    width = cell[1]
    seam = 2 * (len(images) > 1)
    edges = np.linspace(0, width + seam, len(images) + 1).round().astype(int)
    widths = [int(right - seam - left) for left, right in pairwise(edges)]
    arrays = [as_picture(image) for image in images]
    wanted = [round(w * array.shape[0] / array.shape[1]) for w, array in zip(widths, arrays, strict=True)]
    height = min(max(1, *wanted), cell[0])
    out = np.empty((height, width, 3), np.uint8)
    out[:] = _PAPER
    for array, left, w in zip(arrays, edges[:-1], widths, strict=True):
        out[:, left : left + w] = fit(array, (height, w), _MAT)
    return out
