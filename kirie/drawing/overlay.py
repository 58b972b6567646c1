"""A result laid over its picture, and where a result differs from the truth."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from kirie.classes import Classes
from kirie.drawing.picture import ImageLike, Picture, as_picture, font_for, plain, shorten
from kirie.errors import KirieError
from kirie.results import Instances, PanopticMap, Result, SemanticMap

Color = tuple[int, int, int]

FALSE_POSITIVE: Color = (235, 80, 45)
FALSE_NEGATIVE: Color = (60, 145, 255)
WRONG: Color = (225, 40, 60)

_CLEAR, _PAINTED, _VOID = 0, 1, 2
_BAND = 256  # rows painted at once, so that working memory does not grow with the picture
_CROWD = 30  # objects from which on small ones go without words
_GOLDEN = 0.61803398875


@dataclass(frozen=True)
class _Layer:
    """What to paint: (H, W) whole numbers, and for each number an RGB colour and whether it is clear or void."""

    ids: npt.NDArray[Any]
    colors: npt.NDArray[np.uint8]  # (M, 3)
    kinds: npt.NDArray[np.uint8]  # (M,)
    objects: bool  # objects have bright contours in their colour, areas have dark ones


@dataclass(frozen=True)
class _Tag:
    """Words to write on a picture.

    Attributes:
        text: name and score; its middle is cut when it is too long.
        color: RGB of the plate behind the words.
        box: (left, top, right, bottom) of the object, which the words stand above, in or below; or one point twice,
            round which they stand.
    """

    text: str
    color: Color
    box: tuple[float, float, float, float]


def draw(
    result: Result,
    image: ImageLike | None = None,
    *,
    alpha: float = 0.5,
    contours: bool = True,
    legend: bool = False,
    names: bool = True,
) -> Image.Image:
    """A result laid over its picture, as an RGB Pillow image.

    A class has its own colour, an object a colour of its own near that of its class. Background stays clear, void is
    hatched in grey.

    Args:
        result: a SemanticMap, Instances or PanopticMap.
        image: the picture as a path, a Pillow image or a uint8 array (H, W) or (H, W, C); without one the colours
            stand alone on white.
        alpha: how much of the colour covers the picture, 0 (nothing) to 1 (all).
        contours: whether to draw the borders of classes and objects.
        legend: whether to add a strip below the picture with the classes that occur in it.
        names: whether to write class and score on objects and segments, where there is room.

    Raises:
        KirieError: when the picture cannot be read, differs in size from the result, or alpha is out of range.
    """
    if not 0 <= alpha <= 1:
        raise KirieError(f"alpha is how much colour covers the picture, from 0 to 1, got {alpha}.")
    layer = _layer_of(result)
    if image is None:
        picture, alpha = np.full((*result.size, 3), 255, np.uint8), 1.0
    else:
        picture = _sized(image, result.size)
    painted = Image.fromarray(_paint(picture, layer, alpha, contours))
    if names and not isinstance(result, SemanticMap):
        _write(painted, _tags_of(result, layer))
    return _with_legend(painted, _legend_of(result)) if legend else painted


def difference(result: SemanticMap, truth: SemanticMap, image: ImageLike | None = None) -> Image.Image:
    """Where a result is wrong, as an RGB Pillow image: right pixels are a dim grey picture, wrong ones are coloured.

    With two classes red-orange is a false positive (class 1 in the result, not in the truth) and blue a false negative;
    with more classes red is a wrong class. Void of the truth is hatched, and the truth's borders are thin white lines.

    Raises:
        KirieError: when sizes or the numbers of classes differ, or the picture cannot be read.
    """
    if result.size != truth.size:
        raise KirieError(
            f"The result has size {result.size} (H, W) and the truth {truth.size}; compare like with like."
        )
    if len(result.classes) != len(truth.classes):  # names may differ: weights from elsewhere often have none
        raise KirieError(f"The result tells {len(result.classes)} classes apart and the truth {len(truth.classes)}.")
    verdict = _verdict(result, truth)
    if image is None:
        dim = np.full((*truth.size, 3), 90, np.uint8)
    else:
        grey = cv2.cvtColor(_sized(image, truth.size), cv2.COLOR_RGB2GRAY)
        dim = np.repeat(cv2.convertScaleAbs(grey, alpha=0.5, beta=35)[..., None], 3, axis=2)
    dim[_borders(truth.labels, _line_width(truth.size)) > 0] = 205
    colors = np.array([(0, 0, 0), (200, 200, 200), FALSE_POSITIVE, FALSE_NEGATIVE, WRONG], np.uint8)
    kinds = np.array([_CLEAR, _VOID, _PAINTED, _PAINTED, _PAINTED], np.uint8)
    return Image.fromarray(_paint(dim, _Layer(verdict, colors, kinds, False), 0.85, contours=False))


def object_colors(labels: Sequence[int], classes: Classes) -> npt.NDArray[np.uint8]:
    """A colour (N, 3) for each object: that of its class for the first of a class, and hues around it for the others.

    Each class keeps its share of the hue circle, so the fewer classes there are the more their objects differ.
    """
    foreground = len(classes) - classes.has_background
    share = 0.85 / max(foreground, 1)
    seen: dict[int, int] = {}
    colors = np.zeros((len(labels), 3), np.uint8)
    for row, label in enumerate(labels):
        turn = seen.get(label, 0)
        seen[label] = turn + 1
        colors[row] = _varied(classes.colors[label], turn, share)
    return colors


def _varied(color: Color, turn: int, share: float) -> Color:
    if turn == 0 and max(color) >= 100:
        return color
    hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in color))
    hue = (hue + share * ((turn * _GOLDEN + 0.5) % 1 - 0.5)) % 1
    value = max(value, 0.65) * (1, 0.82, 0.92)[turn % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, max(saturation, 0.5), value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _sized(image: ImageLike, size: tuple[int, int]) -> Picture:
    picture = as_picture(image)
    if picture.shape[:2] != size:
        raise KirieError(
            f"The picture has size {picture.shape[:2]} (H, W) and the result {size}; give the picture that the result "
            "was made from."
        )
    return picture


def _layer_of(result: Result) -> _Layer:
    classes = result.classes
    if isinstance(result, SemanticMap):
        colors = classes.color_table()
        kinds = np.full(len(colors), _VOID, np.uint8)
        kinds[: len(classes)] = _PAINTED
        if classes.has_background:
            kinds[0] = _CLEAR
        return _Layer(result.labels, colors, kinds, False)
    if isinstance(result, Instances):
        order = np.argsort(result.scores, kind="stable")  # the surest object lies on top
        ids = result.masks[order].id_map([int(i) + 1 for i in order])
        colors = np.concatenate([np.zeros((1, 3), np.uint8), object_colors(result.labels.tolist(), classes)])
        kinds = np.full(len(colors), _PAINTED, np.uint8)
        kinds[0] = _CLEAR
        return _Layer(ids, colors, kinds, True)
    return _panoptic_layer(result)


def _panoptic_layer(result: PanopticMap) -> _Layer:
    classes, segments = result.classes, result.segments
    things = [segment.label for segment in segments if segment.is_thing]
    thing_colors = iter(object_colors(things, classes))
    colors = np.full((len(segments) + 1, 3), 200, np.uint8)
    kinds = np.full(len(segments) + 1, _PAINTED, np.uint8)
    kinds[0] = _VOID
    for row, segment in enumerate(segments, 1):
        colors[row] = next(thing_colors) if segment.is_thing else classes.colors[segment.label]
        if segment.label == 0 and classes.has_background:
            kinds[row] = _CLEAR
    return _Layer(_ranks(result.ids, [segment.id for segment in segments]), colors, kinds, True)


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


def _line_width(size: tuple[int, int]) -> int:
    return max(1, round(max(size) / 1200))


def _borders(ids: npt.NDArray[Any], width: int) -> npt.NDArray[np.uint8]:
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


def _paint(picture: Picture, layer: _Layer, alpha: float, contours: bool) -> Picture:
    """The picture (H, W, 3) with the layer on it, painted band by band."""
    edges = _borders(layer.ids, _line_width((picture.shape[0], picture.shape[1]))) if contours else None
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
        cv2.copyTo(painted, (kinds == _PAINTED).view(np.uint8), out[rows])
        _hatch(out[rows], kinds == _VOID, top, period)
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


def _tags_of(result: Instances | PanopticMap, layer: _Layer) -> list[_Tag]:
    if isinstance(result, PanopticMap):
        return _segment_tags(result, layer)
    truth = bool((result.scores == 1).all())  # truth is sure of everything: its scores say nothing
    tags = []
    for index in np.argsort(-result.scores, kind="stable"):
        name, score = result.classes.names[result.labels[index]], float(result.scores[index])
        left, top, right, bottom = result.boxes[index].tolist()
        text = name if truth else f"{name} {score:.2f}"
        tags.append(_Tag(text, _rgb(layer.colors[index + 1]), (left, top, right, bottom)))
    return tags


def _segment_tags(result: PanopticMap, layer: _Layer) -> list[_Tag]:
    """A tag at the innermost point of each segment, found on a small copy of the map; the largest segments first."""
    step = -(-max(result.size) // 320)
    small = layer.ids[::step, ::step]
    tags = []
    for row in sorted(range(len(result.segments)), key=lambda i: -result.segments[i].area):
        segment = result.segments[row]
        inside = np.pad(small == row + 1, 1).astype(np.uint8)
        if layer.kinds[row + 1] == _CLEAR or not inside.any():
            continue
        _, _, _, (x, y) = cv2.minMaxLoc(cv2.distanceTransform(inside, cv2.DIST_L2, 3))
        name = result.classes.names[segment.label]
        text = f"{name} {segment.score:.2f}" if segment.is_thing and segment.score < 1 else name
        across, down = (x - 0.5) * step, (y - 0.5) * step
        tags.append(_Tag(text, _rgb(layer.colors[row + 1]), (across, down, across, down)))
    return tags


def _write(image: Image.Image, tags: list[_Tag]) -> None:
    """Writes the tags that find a free place, in place; one that would cover another is left out."""
    size = max(11, max(image.size) // 75)
    pad = max(2, size // 5)
    pen = ImageDraw.Draw(image)
    taken = np.zeros((0, 4))
    for tag in tags:
        font = font_for(text := plain(tag.text), size)
        left, _, right, _ = tag.box
        text = shorten(text, font, min(max(1.5 * (right - left), 9 * size), image.width - 2 * pad))
        width, height = font.getlength(text) + 2 * pad, size + 2 * pad
        if len(tags) > _CROWD and 0 < right - left < width:
            continue  # among many small objects words would hide more than they tell
        for x, y in _places(tag.box, width, height):
            x, y = min(max(x, 0), image.width - width), min(max(y, 0), image.height - height)
            box = np.array([x, y, x + width, y + height])
            if not (np.minimum(taken[:, 2:], box[2:]) > np.maximum(taken[:, :2], box[:2])).all(1).any():
                taken = np.concatenate([taken, box[None]])
                pen.rounded_rectangle(tuple(box), pad, fill=tag.color)
                pen.text((x + pad, y + height / 2), text, fill=_ink(tag.color), font=font, anchor="lm")
                break


def _places(box: tuple[float, float, float, float], width: float, height: float) -> list[tuple[float, float]]:
    """Where words of a size may stand, (left, top) with the best place first."""
    left, top, right, bottom = box
    if left == right:
        return [(left - width / 2, top - height / 2)]
    return [(left, top - height - 1), (left, top), (left, bottom)]


def _legend_of(result: Result) -> list[tuple[str, Color | None]]:
    """Name and colour of each class that occurs in a result; void has no colour."""
    classes = result.classes
    if isinstance(result, SemanticMap):
        found = np.flatnonzero(np.bincount(result.labels.ravel(), minlength=1)).tolist()
        void = classes.void in found
    elif isinstance(result, Instances):
        found, void = np.unique(result.labels).tolist(), False
    else:
        found = sorted({segment.label for segment in result.segments})
        void = bool((result.ids == 0).any())
    shown = [i for i in found if i < len(classes) and not (i == 0 and classes.has_background)]
    entries: list[tuple[str, Color | None]] = [(classes.names[i], classes.colors[i]) for i in shown]
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


def _rgb(color: npt.NDArray[np.uint8]) -> Color:
    red, green, blue = color.tolist()
    return red, green, blue


def _ink(color: Color) -> Color:
    """Black or white, whichever reads better on a colour."""
    bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    return (15, 15, 15) if bright else (255, 255, 255)
