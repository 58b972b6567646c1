"""A result laid over its picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from kirie.drawing.palette import Color, beside, legend_color, object_colors, rgb
from kirie.drawing.picture import ImageLike, Picture, as_picture, font_for, plain, shorten
from kirie.drawing.tags import Tag, too_small, write_tags
from kirie.errors import KirieError
from kirie.results import Instances, PanopticMap, Result, SemanticMap, id_map

CLEAR, PAINTED, VOID = 0, 1, 2
_BAND = 256  # rows painted at once, so that working memory does not grow with the picture


@dataclass(frozen=True)
class Layer:
    """What to paint: (H, W) whole numbers, and for each number an RGB colour and whether it is clear or void."""

    ids: npt.NDArray[Any]
    colors: npt.NDArray[np.uint8]  # (M, 3)
    kinds: npt.NDArray[np.uint8]  # (M,)
    objects: bool  # objects have bright contours in their colour, areas have dark ones


def draw(
    result: Result,
    image: ImageLike | None = None,
    *,
    alpha: float = 0.5,
    contours: bool = True,
    boxes: bool = True,
    names: bool = True,
    scores: bool = True,
    legend: bool = False,
) -> Image.Image:
    """A result laid over its picture, as an RGB Pillow image.

    A class has its own colour, an object a shade of that of its class, unlike the objects beside it; the surest objects
    lie on top, and among equally sure ones the small. Background stays clear, void and crowds are hatched in grey.

    Args:
        result: a SemanticMap, Instances or PanopticMap.
        image: the picture as a path, a Pillow image or a uint8 array (H, W) or (H, W, C); without one the colours
            stand alone on white.
        alpha: how much of the colour covers the picture, 0 (nothing) to 1 (all).
        contours: whether to draw the borders of classes and objects.
        boxes: whether to draw the boxes of objects; among many objects, small ones have neither box nor words.
        names: whether to write their classes on objects and segments, where there is room; on objects of the only class
            there is, no name is written.
        scores: whether to write the scores of objects there, except those of a truth, which are all 1.
        legend: whether to add a strip below the picture with the classes that occur in it; there is none for objects of
            the only class there is, whose colours just tell them apart.

    Raises:
        KirieError: when the picture cannot be read, differs in size from the result, or alpha is out of range.
    """
    if not 0 <= alpha <= 1:
        raise KirieError(f"alpha is how much colour covers the picture, from 0 to 1, got {alpha}.")
    layer = _layer_of(result)
    if image is None:
        picture, alpha = np.full((*result.size, 3), 255, np.uint8), 1.0
    else:
        picture = sized(image, result.size)
    pixels = paint(picture, layer, alpha, contours)
    if boxes and isinstance(result, Instances):
        _draw_boxes(pixels, result, layer)
    painted = Image.fromarray(pixels)
    if (names or scores) and not isinstance(result, SemanticMap):
        write_tags(painted, _tags_of(result, layer, names, scores))
    return _with_legend(painted, _legend_of(result)) if legend else painted


def sized(image: ImageLike, size: tuple[int, int]) -> Picture:
    """A picture (H, W, 3); a KirieError when it has another size (H, W) than is expected."""
    picture = as_picture(image)
    if picture.shape[:2] != size:
        raise KirieError(
            f"The picture has size {picture.shape[:2]} (H, W) and the result {size}; give the picture that the result "
            "was made from."
        )
    return picture


def _layer_of(result: Result) -> Layer:
    classes = result.classes
    if isinstance(result, SemanticMap):
        colors = classes.color_table()
        kinds = np.full(len(colors), VOID, np.uint8)
        kinds[: len(classes)] = PAINTED
        if classes.has_background:
            kinds[0] = CLEAR
        return Layer(result.labels, colors, kinds, False)
    return _instance_layer(result) if isinstance(result, Instances) else _panoptic_layer(result)


def _instance_layer(result: Instances) -> Layer:
    ids = id_map(result)
    shades = object_colors(result.labels.tolist(), result.classes, beside(ids, len(result)))
    kinds = np.concatenate([[CLEAR], np.where(result.crowd, VOID, PAINTED)]).astype(np.uint8)
    return Layer(ids, np.concatenate([np.zeros((1, 3), np.uint8), shades]), kinds, True)


def _panoptic_layer(result: PanopticMap) -> Layer:
    classes, segments = result.classes, result.segments
    ids = _ranks(result.ids, [segment.id for segment in segments])
    things = np.array([segment.is_thing for segment in segments], bool)
    place = np.cumsum(things) - 1  # of a segment among the things
    pairs = beside(ids, len(segments))
    pairs = place[pairs[things[pairs].all(1)]]
    thing_colors = iter(object_colors([s.label for s in segments if s.is_thing], classes, pairs))
    colors = np.full((len(segments) + 1, 3), 200, np.uint8)
    kinds = np.full(len(segments) + 1, PAINTED, np.uint8)
    kinds[0] = VOID
    for row, segment in enumerate(segments, 1):
        colors[row] = next(thing_colors) if segment.is_thing else classes.colors[segment.label]
        if segment.label == 0 and classes.has_background:
            kinds[row] = CLEAR
    return Layer(ids, colors, kinds, True)


def _ranks(ids: npt.NDArray[np.int32], wanted: list[int]) -> npt.NDArray[Any]:
    """The place of each id in `wanted`, counted from 1; 0 for id 0."""
    top = max(wanted, default=0)
    if top < 1 << 24:  # every id that a COCO panoptic PNG can hold
        table = np.zeros(top + 1, np.int32)
        table[wanted] = np.arange(1, len(wanted) + 1)
        return np.take(table, ids)
    known = np.array([0, *wanted])
    order = np.argsort(known)
    ranks: npt.NDArray[Any] = order[np.searchsorted(known[order], ids)].astype(np.int32)
    return ranks


def line_width(size: tuple[int, int]) -> int:
    """How many pixels wide the borders in a picture of a size (H, W) are."""
    return max(1, round(max(size) / 1200))


def borders(ids: npt.NDArray[Any], width: int) -> npt.NDArray[np.uint8]:
    """(H, W) 0/1: pixels within `width` of a pixel with another id."""
    edge = np.zeros(ids.shape, np.uint8)
    across, down = ids[:, 1:] != ids[:, :-1], ids[1:] != ids[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    if width == 1:
        return edge
    return np.asarray(cv2.dilate(edge, np.ones((2 * width - 1, 2 * width - 1), np.uint8)), np.uint8)


def paint(picture: Picture, layer: Layer, alpha: float, contours: bool) -> Picture:
    """The picture (H, W, 3) with the layer on it, painted band by band."""
    edges = borders(layer.ids, line_width((picture.shape[0], picture.shape[1]))) if contours else None
    period = max(8, round(max(picture.shape[:2]) / 70))
    out = np.empty_like(picture)
    for top in range(0, len(picture), _BAND):
        rows = slice(top, top + _BAND)
        kinds = np.take(layer.kinds, layer.ids[rows])
        colors = np.take(layer.colors, layer.ids[rows], axis=0)
        painted = cv2.addWeighted(picture[rows], 1 - alpha, colors, alpha, 0)
        if edges is not None:
            line = colors if layer.objects else cv2.convertScaleAbs(painted, alpha=0.5)
            cv2.copyTo(line, edges[rows], painted)
        out[rows] = picture[rows]
        cv2.copyTo(painted, (kinds == PAINTED).view(np.uint8), out[rows])
        _hatch(out[rows], kinds == VOID, top, period)
    return out


def _hatch(band: Picture, void: npt.NDArray[np.bool_], top: int, period: int) -> None:
    """Grey diagonal stripes on the void pixels of a band, in place; what lies below stays visible but loses colour."""
    if not void.any():
        return
    rows, columns = np.arange(top, top + len(band))[:, None], np.arange(band.shape[1])[None]
    stripe = (rows + columns) % period < max(2, period // 4)  # (rows of the band, W)
    grey = cv2.cvtColor(band, cv2.COLOR_RGB2GRAY)
    shade = cv2.convertScaleAbs(grey, alpha=0.6, beta=90)
    cv2.copyTo(cv2.convertScaleAbs(grey, alpha=0.25, beta=124), stripe.view(np.uint8), shade)
    cv2.copyTo(cv2.cvtColor(shade, cv2.COLOR_GRAY2RGB), void.view(np.uint8), band)


def _draw_boxes(picture: Picture, result: Instances, layer: Layer) -> None:
    """Draws the boxes inside their edges, in place, the surest on top."""
    hidden = result.crowd | too_small(result.boxes, result.size)
    for index in np.argsort(result.scores, kind="stable"):
        left, top, right, bottom = np.rint(result.boxes[index]).astype(int).tolist()
        for line in range(line_width(result.size)):
            ends = (left + line, top + line), (right - 1 - line, bottom - 1 - line)
            if not hidden[index] and ends[0][0] <= ends[1][0] and ends[0][1] <= ends[1][1]:
                cv2.rectangle(picture, *ends, rgb(layer.colors[index + 1]))


def _tags_of(result: Instances | PanopticMap, layer: Layer, names: bool, scores: bool) -> list[Tag]:
    if isinstance(result, PanopticMap):
        return _segment_tags(result, layer, names, scores)
    sure = bool((result.scores == 1).all())  # as truth is of everything: its scores say nothing
    names = names and len(result.classes) > 1
    tags = []
    for index in np.argsort(-result.scores, kind="stable"):
        name = result.classes.names[result.labels[index]] if names else ""
        score = f"{result.scores[index]:.2f}" if scores and not sure else ""
        left, top, right, bottom = result.boxes[index].tolist()
        if not result.crowd[index] and (text := f"{name} {score}".strip()):
            tags.append(Tag(text, rgb(layer.colors[index + 1]), (left, top, right, bottom)))
    return tags


def _segment_tags(result: PanopticMap, layer: Layer, names: bool, scores: bool) -> list[Tag]:
    """A tag at the innermost point of each segment, found on a small copy of the map; the largest segments first."""
    step = -(-max(result.size) // 320)
    small = layer.ids[::step, ::step]
    tags = []
    for row in sorted(range(len(result.segments)), key=lambda i: -result.segments[i].area):
        segment = result.segments[row]
        name = result.classes.names[segment.label] if names else ""
        score = f"{segment.score:.2f}" if scores and segment.is_thing and segment.score < 1 else ""
        inside = np.pad(small == row + 1, 1).astype(np.uint8)
        if layer.kinds[row + 1] == CLEAR or not inside.any() or not (name or score):
            continue
        _, _, _, (x, y) = cv2.minMaxLoc(cv2.distanceTransform(inside, cv2.DIST_L2, 3))
        across, down = (x - 0.5) * step, (y - 0.5) * step
        tags.append(Tag(f"{name} {score}".strip(), rgb(layer.colors[row + 1]), (across, down, across, down)))
    return tags


def _legend_of(result: Result) -> list[tuple[str, Color | None]]:
    """Name and colour of each class that occurs in a result; void has no colour."""
    classes = result.classes
    objects: set[int]  # classes that are drawn as objects, in shades of their colour
    if isinstance(result, SemanticMap):
        found = np.flatnonzero(np.bincount(result.labels.ravel(), minlength=1)).tolist()
        void, objects = classes.void in found, set()
    elif isinstance(result, Instances):
        found, void = np.unique(result.labels).tolist() if len(classes) > 1 else [], False
        objects = set(found)
    else:
        found = sorted({segment.label for segment in result.segments})
        void, objects = bool((result.ids == 0).any()), {s.label for s in result.segments if s.is_thing}
    shown = [i for i in found if i < len(classes) and not (i == 0 and classes.has_background)]
    entries: list[tuple[str, Color | None]] = [
        (classes.names[i], legend_color(i, classes) if i in objects else classes.colors[i]) for i in shown
    ]
    return [*entries, ("void", None)] if void else entries


def _with_legend(image: Image.Image, entries: list[tuple[str, Color | None]]) -> Image.Image:
    """The image with a white strip below it: a swatch and a name per class, in as many lines as they need."""
    if not entries:
        return image
    size = max(11, max(image.size) // 50)
    gap, line = round(size * 0.8), round(size * 1.7)
    spots: list[tuple[int, int, str]] = []
    x, y = gap, gap
    for name, _ in entries:
        text = plain(name)
        text = shorten(text, font_for(text, size), max(image.width - 2 * gap - 2 * size, size))
        width = round(1.4 * size + font_for(text, size).getlength(text))
        if x > gap and x + width + gap > image.width:
            x, y = gap, y + line
        spots.append((x, y, text))
        x += width + 2 * gap
    out = Image.new("RGB", (image.width, image.height + y + size + gap), "white")
    out.paste(image, (0, 0))
    pen = ImageDraw.Draw(out)
    for (_, color), (x, y, text) in zip(entries, spots, strict=True):
        top = image.height + y
        _swatch(pen, (x, top, size), color)
        pen.text((x + 1.4 * size, top + size / 2), text, fill=(40, 40, 40), font=font_for(text, size), anchor="lm")
    return out


def _swatch(pen: ImageDraw.ImageDraw, place: tuple[int, int, int], color: Color | None) -> None:
    left, top, size = place
    box = (left, top, left + size - 1, top + size - 1)
    pen.rectangle(box, fill=color or (225, 225, 225), outline=(120, 120, 120))
    for shift in range(size // 3, size, max(3, size // 3)) if color is None else ():
        pen.line((left + shift, top + 1, left + 1, top + shift), fill=(150, 150, 150))
