"""Where a result differs from the truth, in colours and outlines that can be told apart without seeing colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from kirie.classes import Classes
from kirie.drawing.overlay import CLEAR, PAINTED, VOID, Layer, borders, line_width, paint, sized
from kirie.drawing.palette import Color
from kirie.drawing.picture import ImageLike, Picture, font_for, shorten
from kirie.errors import KirieError
from kirie.masks import Crop, Masks
from kirie.matches import Matches, matched, overlaps
from kirie.results import Instances, PanopticMap, Result, SemanticMap, to_instances, to_semantic

FALSE_POSITIVE: Color = (235, 80, 45)
FALSE_NEGATIVE: Color = (60, 145, 255)
WRONG: Color = (225, 40, 60)
FOUND: Color = (90, 215, 120)

IOU = 0.5  # from which on an object counts as found
ABOVE_IOU = float(np.nextafter(IOU, 1))  # from which on a segment does, as panoptic quality asks for more than a half

Style = Literal["area", "line", "double", "dashes"]
Task = Literal["semantic", "instance", "panoptic"]


@dataclass(frozen=True)
class Mark:
    """One entry of the key: how a kind of error is drawn, and what it means."""

    color: Color
    style: Style
    meaning: str


def difference(
    result: Result,
    truth: Result,
    image: ImageLike | None = None,
    *,
    legend: bool = False,
) -> Image.Image:
    """Where a result is wrong, as an RGB Pillow image on a dim grey picture.

    Of maps right pixels stay grey. With two classes red-orange is a false positive (class 1 in the result, not in the
    truth) and blue a false negative; with more classes red is a wrong class. Void of the truth is hatched, and the
    truth's borders are thin white lines.

    Of objects a found one has a thin green outline, a missed one is blue with a dashed outline and a false one
    red-orange with a double outline. An object is found when a result of its class is matched with it, one to one, at
    an IoU of 0.5 or more; one of the wrong class is therefore both missed and false. Crowds of the truth are hatched.

    Of panoptic maps pixels of a wrong class are red, of stuff and of things, and things have the outlines of objects.
    A thing is found where panoptic quality matches it: by one of its class at an IoU above 0.5, without the pixels that
    are void in the truth. Void and crowds are hatched, and the borders of true stuff are thin white lines.

    Args:
        result: any of the three; all objects are shown, so leave out those with low scores before.
        truth: of the same kind, size and number of classes.
        image: the picture; without one the ground is plain grey.
        legend: whether to add a strip below the picture that says what the colours mean.

    Raises:
        KirieError: when kinds, sizes or the numbers of classes differ, or the picture cannot be read.
    """
    _check(result, truth)
    dim = _dimmed(image, truth.size)
    task: Task
    if isinstance(result, SemanticMap) and isinstance(truth, SemanticMap):
        task, drawn = "semantic", _of_maps(result, truth, dim)
    elif isinstance(result, Instances) and isinstance(truth, Instances):
        task, drawn = "instance", _of_objects(result, truth, dim)
    elif isinstance(result, PanopticMap) and isinstance(truth, PanopticMap):
        task, drawn = "panoptic", _of_segments(result, truth, dim)
    else:
        raise KirieError(f"Cannot show where {type(result).__name__} differ from {type(truth).__name__}.")
    picture = Image.fromarray(drawn)
    return _with_key(picture, difference_key(truth.classes, task)) if legend else picture


def difference_key(classes: Classes, task: Task) -> tuple[Mark, ...]:
    """What the colours and outlines of a `difference` between results of a task mean."""
    outlines = (
        Mark(FOUND, "line", "found"),
        Mark(FALSE_NEGATIVE, "dashes", "missed: true but not predicted"),
        Mark(FALSE_POSITIVE, "double", "false: predicted but not true"),
    )
    if task == "instance":
        return outlines
    if task == "panoptic":
        return (Mark(WRONG, "area", "wrong class"), *outlines)
    if len(classes) == 2:
        return (
            Mark(FALSE_POSITIVE, "area", "predicted but not true"),
            Mark(FALSE_NEGATIVE, "area", "true but not predicted"),
        )
    return (Mark(WRONG, "area", "wrong class"),)


def _check(result: Result, truth: Result) -> None:
    if result.size != truth.size:
        raise KirieError(
            f"The result has size {result.size} (H, W) and the truth {truth.size}; compare like with like."
        )
    if len(result.classes) != len(truth.classes):  # names may differ: weights from elsewhere often have none
        raise KirieError(f"The result tells {len(result.classes)} classes apart and the truth {len(truth.classes)}.")


def _dimmed(image: ImageLike | None, size: tuple[int, int]) -> Picture:
    if image is None:
        return np.full((*size, 3), 90, np.uint8)
    grey = cv2.cvtColor(sized(image, size), cv2.COLOR_RGB2GRAY)
    return np.repeat(cv2.convertScaleAbs(grey, alpha=0.5, beta=35)[..., None], 3, axis=2)


def _of_maps(result: SemanticMap, truth: SemanticMap, dim: Picture) -> Picture:
    verdict = _verdict(result, truth)
    dim[borders(truth.labels, line_width(truth.size)) > 0] = 205
    colors = np.array([(0, 0, 0), (200, 200, 200), FALSE_POSITIVE, FALSE_NEGATIVE, WRONG], np.uint8)
    kinds = np.array([CLEAR, VOID, PAINTED, PAINTED, PAINTED], np.uint8)
    return paint(dim, Layer(verdict, colors, kinds, False), 0.85, contours=False)


def _verdict(result: SemanticMap, truth: SemanticMap) -> npt.NDArray[np.uint8]:
    """(H, W): 0 right, 1 void in the truth, 2 false positive, 3 false negative, 4 wrong class."""
    wrong = result.labels != truth.labels
    verdict = np.zeros(truth.size, np.uint8)
    verdict[wrong] = 4
    if len(truth.classes) == 2:
        verdict[wrong & (result.labels == 1)] = 2
        verdict[wrong & (truth.labels == 1)] = 3
    verdict[truth.labels == truth.classes.void] = 1
    return verdict


def _of_objects(result: Instances, truth: Instances, dim: Picture) -> Picture:
    matches = matched(overlaps(result, truth, within_class=True), truth.crowd, IOU)
    tinted = np.zeros(truth.size, np.uint8)  # the kind of each pixel, as in `colors`
    false, missed = result.masks[matches.false], truth.masks[matches.missed]
    for kind, masks in ((1, truth.masks[truth.crowd]), (2, false), (3, missed)):
        tinted[masks.id_map() > 0] = kind
    colors = np.array([(0, 0, 0), (200, 200, 200), FALSE_POSITIVE, FALSE_NEGATIVE], np.uint8)
    kinds = np.array([CLEAR, VOID, PAINTED, PAINTED], np.uint8)
    drawn = paint(dim, Layer(tinted, colors, kinds, False), 0.3, contours=False)
    _outline_matches(drawn, result.masks, truth.masks, matches)
    return drawn


def _of_segments(result: PanopticMap, truth: PanopticMap, dim: Picture) -> Picture:
    verdict = np.zeros(truth.size, np.uint8)  # the kind of each pixel, as in `colors`
    verdict[to_semantic(result).labels != to_semantic(truth).labels] = 2
    verdict[np.isin(truth.ids, [0, *(segment.id for segment in truth.segments if segment.crowd)])] = 1
    dim[_stuff_borders(truth)] = 205
    colors = np.array([(0, 0, 0), (200, 200, 200), WRONG], np.uint8)
    drawn = paint(dim, Layer(verdict, colors, np.array([CLEAR, VOID, PAINTED], np.uint8), False), 0.6, contours=False)
    found, there = to_instances(result), to_instances(truth)
    _outline_matches(drawn, found.masks, there.masks, _matched_things(result, truth, found, there))
    return drawn


def _stuff_borders(truth: PanopticMap) -> npt.NDArray[np.bool_]:
    """(H, W) the borders of the segments but those of things, which have outlines of their own."""
    width, things = line_width(truth.size), [segment.id for segment in truth.segments if segment.is_thing]
    inside = np.isin(truth.ids, things)
    lines: npt.NDArray[np.bool_] = (borders(truth.ids, width) > 0) & (borders(inside, width) == 0) & ~inside
    return lines


def _matched_things(result: PanopticMap, truth: PanopticMap, found: Instances, there: Instances) -> Matches:
    """The matches of the things of two maps, `found` and `there`, as panoptic quality makes them."""
    things = [segment.id for segment in result.segments if segment.is_thing]
    counting = found.with_masks(slice(None), Masks.from_ids(np.where(truth.ids == 0, 0, result.ids), things))
    matches = matched(overlaps(counting, there, within_class=True), there.crowd, ABOVE_IOU)
    mostly_void = 2 * counting.masks.areas() < found.masks.areas()
    return matches._replace(false=matches.false & ~mostly_void)


def _outline_matches(picture: Picture, found: Masks, there: Masks, matches: Matches) -> None:
    """Draws what of the masks of a result and a truth is found, false and missed in place."""
    width = max(1, round(max(picture.shape[:2]) / 400))
    _outline(picture, found[matches.results], FOUND, "line", width)
    _outline(picture, found[matches.false], FALSE_POSITIVE, "double", width)
    _outline(picture, there[matches.missed], FALSE_NEGATIVE, "dashes", width)


def _outline(picture: Picture, masks: Masks, color: Color, style: Style, width: int) -> None:
    """Draws the outlines of masks in place."""
    for crop in masks.crops():
        if style == "double":
            _rings(picture, crop, color, 3 * width)
            _rings(picture, crop, (255, 255, 255), max(1, width // 2))
        elif style == "dashes":
            _rings(picture, crop, (20, 20, 20), 2 * width)
            _rings(picture, crop, color, 2 * width, dash=5 * width)
        else:
            _rings(picture, crop, color, width)


def _rings(picture: Picture, crop: Crop, color: Color, width: int, *, dash: int = 0) -> None:
    """Every ring round a mask, whole or in dashes of so many pixels with gaps as long."""
    if not crop.bits.size:
        return
    way = cv2.CHAIN_APPROX_NONE if dash else cv2.CHAIN_APPROX_SIMPLE
    rings, _ = cv2.findContours(crop.bits.astype(np.uint8), cv2.RETR_CCOMP, way, offset=(crop.left, crop.top))
    if not dash:
        cv2.polylines(picture, rings, True, color, width)
        return
    for ring in rings:
        pieces = [ring[start : start + dash] for start in range(0, len(ring), 2 * dash)]
        cv2.polylines(picture, pieces, False, color, width)


def _with_key(image: Image.Image, marks: tuple[Mark, ...]) -> Image.Image:
    """The image with a white strip below it: a line for each mark."""
    size = max(11, max(image.size) // 50)
    line = round(1.7 * size)
    out = Image.new("RGB", (image.width, image.height + line * len(marks) + size), "white")
    out.paste(image, (0, 0))
    pen = ImageDraw.Draw(out)
    for number, mark in enumerate(marks):
        top = image.height + size // 2 + line * number
        _sign(pen, mark, (size, top, 3 * size, top + size))
        font = font_for(mark.meaning, size)
        text = shorten(mark.meaning, font, max(image.width - 5 * size, size))
        pen.text((3.6 * size, top + size / 2), text, fill=(40, 40, 40), font=font, anchor="lm")
    return out


def _sign(pen: ImageDraw.ImageDraw, mark: Mark, box: tuple[int, int, int, int]) -> None:
    """A swatch in the colour and style of a mark, on the grey of the picture."""
    left, top, right, bottom = box
    thick = max(1, (bottom - top) // 5)
    pen.rectangle(box, fill=mark.color if mark.style == "area" else (90, 90, 90))
    middle = (top + bottom) // 2
    if mark.style == "line":
        pen.line((left, middle, right, middle), fill=mark.color, width=thick)
    elif mark.style == "double":
        pen.line((left, middle, right, middle), fill=mark.color, width=3 * thick)
        pen.line((left, middle, right, middle), fill="white", width=thick)
    elif mark.style == "dashes":
        for start in range(left, right, 6 * thick):
            pen.line((start, middle, min(start + 3 * thick, right), middle), fill=mark.color, width=2 * thick)
