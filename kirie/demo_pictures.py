"""Pictures of the demo data set: coins cut from a photograph and laid on ground from others, with exact truth.

The photographs are four that travel inside the scikit-image package (`brick`, `grass`, `gravel`, `coins`), so nothing
is downloaded. The outlines of the coins were placed by hand and lie beside this file in `demo_coins.json`.

Unseen is unseen: train, val and test never share a source pixel. The left 248 columns of every 512 x 512 ground
photograph serve train, the upper right 252 x 256 pixels val, the lower right ones test (8 pixels between them are used
by none); of the 24 coins 14 serve train, five val and five test. What the splits do share is that each ground was
photographed once: the same wall and the same light, so scores here say that the road works, not how well a model
would do on other walls.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from importlib import resources
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from kirie.errors import KirieError

CLASSES = ("brick", "grass", "gravel", "coin")
COLORS = ((178, 84, 62), (98, 164, 76), (146, 150, 160), (238, 186, 62))
COIN = CLASSES.index("coin")

# Which pixels of every ground photograph, and which coins (counted from 0 in demo_coins.json), serve which split.
REGIONS = {
    "train": (slice(0, 512), slice(0, 248)),
    "val": (slice(0, 252), slice(256, 512)),
    "test": (slice(260, 512), slice(256, 512)),
}
COINS = {
    "train": (0, 1, 4, 5, 6, 7, 10, 11, 12, 14, 15, 17, 19, 21),
    "val": (3, 8, 13, 18, 22),
    "test": (2, 9, 16, 20, 23),
}

# The photographs are grey. Tints (RGB factors) differ between classes only in tendency: each is drawn in a random
# strength down to none, so that colour alone does not tell the classes apart.
_GROUND_TINTS = (
    ((1.24, 0.92, 0.80), (1.12, 1.02, 0.84)),
    ((0.93, 1.10, 0.68), (1.10, 1.04, 0.72)),
    ((1.00, 1.00, 1.00), (1.12, 0.98, 0.86), (0.95, 1.00, 1.07)),
)
_COIN_TINTS = ((0.99, 1.00, 1.02), (1.26, 0.90, 0.68), (1.16, 1.02, 0.70))

_MIN_VISIBLE_PIXELS, _MIN_VISIBLE_SHARE = 30, 0.2


class Coin(NamedTuple):
    """One coin cut out of the photograph.

    Attributes:
        patch: uint8 (h, w), grey; outside the outline the coin's own edge goes on, so no background can shine through.
        outline: float64 (P, 2), x and y in pixels of the patch, counted from pixel edges, its centre at `centre`.
        centre: x and y of the outline's centre in the patch.
    """

    patch: NDArray[np.uint8]
    outline: NDArray[np.float64]
    centre: NDArray[np.float64]


@dataclass(frozen=True)
class DemoSource:
    """What the pictures of one split are made from: three grey ground photographs in class order, and coins."""

    grounds: tuple[NDArray[np.uint8], ...]
    coins: tuple[Coin, ...]


class _Shape(NamedTuple):
    """A coin turned and scaled, at its place: coverage in [0, 1] (h, w), top-left pixel, patch-to-coin 2 x 3 map."""

    coverage: NDArray[np.float32]
    top: int
    left: int
    to_coin: NDArray[np.float64]
    scale: float


class _Light(NamedTuple):
    """Where shadows fall (unit vector x, y), and their length and blur in pixels, and their strength in [0, 1]."""

    toward: NDArray[np.float64]
    length: float
    blur: float
    strength: float


# ---------------------------------------------------------------------------------------------------------- sources


@functools.cache
def demo_source(split: str) -> DemoSource:
    """The ground photographs and coins that belong to one split and to no other.

    Args:
        split: "train", "val" or "test".

    Raises:
        KirieError: The split is not one of these, or scikit-image is not installed.
    """
    if split not in COINS:
        raise KirieError(f"The demo has no split {split!r}; it has {', '.join(COINS)}.")
    photos = _photographs()
    coins = tuple(_cut_coin(photos["coins"], outline) for outline in _outlines(COINS[split]))
    grounds = tuple(np.ascontiguousarray(photos[name][REGIONS[split]]) for name in CLASSES[:COIN])
    return DemoSource(grounds, coins)


def _photographs() -> dict[str, NDArray[np.uint8]]:
    try:
        from skimage import data

        names = ("brick", "grass", "gravel", "coins")
        return {name: np.asarray(getattr(data, name)(), dtype=np.uint8) for name in names}
    except ImportError as error:
        raise KirieError(
            "The demo is made from photographs that come with scikit-image, which is not installed. "
            'Install it with: pip install ".[demo]" in the folder of kirie.'
        ) from error


def _outlines(numbers: tuple[int, ...]) -> list[NDArray[np.float64]]:
    text = resources.files("kirie").joinpath("demo_coins.json").read_text(encoding="utf-8")
    annotations = json.loads(text)["annotations"]
    return [np.array(annotations[number]["segmentation"][0]).reshape(-1, 2) for number in numbers]


def _cut_coin(photo: NDArray[np.uint8], outline: NDArray[np.float64], margin: int = 6) -> Coin:
    """The coin cut one pixel inside the hand-placed outline: the pixel on the edge is half background."""
    centre = (outline.min(axis=0) + outline.max(axis=0)) / 2
    radius = np.linalg.norm(outline - centre, axis=1, keepdims=True)
    outline = centre + (outline - centre) * (1 - 1 / radius)
    left, top = np.maximum(np.floor(outline.min(axis=0)).astype(int) - margin, 0)
    right, bottom = np.ceil(outline.max(axis=0)).astype(int) + margin
    patch = photo[top:bottom, left:right]
    outline = outline - (left, top)
    inside = _cover(outline, (patch.shape[0], patch.shape[1])) > 0.99
    weight = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), 2.5)
    spread = cv2.GaussianBlur(np.where(inside, patch, 0).astype(np.float32), (0, 0), 2.5) / np.maximum(weight, 1e-4)
    filled = np.where(inside, patch, np.clip(np.rint(spread), 0, 255)).astype(np.uint8)
    return Coin(filled, outline, centre - (left, top))


def _cover(outline: NDArray[np.float64], size: tuple[int, int], fine: int = 4) -> NDArray[np.float32]:
    """The share of every pixel (H, W) inside an outline in pixel-edge coordinates, from fine x fine samples."""
    canvas = np.zeros((size[0] * fine, size[1] * fine), np.uint8)
    points = np.rint((outline * fine - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(canvas, [points], 255, shift=4)
    small = cv2.resize(canvas, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / np.float32(255)


# --------------------------------------------------------------------------------------------------------- pictures


def demo_picture(
    rng: np.random.Generator, source: DemoSource, size: tuple[int, int] = (240, 320), *, grounds: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint16]]:
    """One picture of coins on the ground with its truth: image, labels and instance ids.

    Args:
        rng: Decides everything; the same state gives the same picture.
        source: Photographs and coins, from `demo_source(split)`.
        size: (H, W) in pixels. Scenes keep their look when the smaller side is between 96 and 360 pixels.
        grounds: How many of the three ground classes the picture shows, 1 to 3; random when not given.

    Returns:
        image uint8 (H, W, 3) RGB; labels uint8 (H, W), an index into `CLASSES`; ids uint16 (H, W), 0 where there is
        no coin and 1..N in the order in which the coins were laid down, a later one over an earlier one.

    Raises:
        KirieError: `grounds` is not 1, 2 or 3.
    """
    if grounds not in (None, 1, 2, 3):
        raise KirieError(f"A demo picture shows 1, 2 or 3 kinds of ground; got grounds={grounds}.")
    zoom = float(np.clip(min(size) / 240, 0.4, 1.5))
    count = int(rng.choice(3, p=(0.25, 0.45, 0.3))) + 1 if grounds is None else grounds
    canvas, labels = _lay_ground(rng, source, size, count, zoom)
    angle = rng.uniform(0, 2 * math.pi)
    light = _Light(
        np.array([math.cos(angle), math.sin(angle)]),
        length=zoom * rng.uniform(1.5, 4.0),
        blur=zoom * rng.uniform(1.2, 2.6),
        strength=rng.uniform(0.4, 0.7),
    )
    tray = _Tray(size)
    for _ in range(int(rng.integers(2, 13))):
        coin = source.coins[int(rng.integers(len(source.coins)))]
        for _ in range(20):  # places; a coin that finds none stays away
            shape = _turn_coin(rng, coin, size, zoom)
            if tray.put(shape):
                _paint_coin(rng, canvas, coin, shape, light)
                break
    labels[tray.ids > 0] = COIN
    return _expose(rng, canvas, light), labels, tray.ids


def _lay_ground(
    rng: np.random.Generator, source: DemoSource, size: tuple[int, int], count: int, zoom: float
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The ground (H, W, 3) in [0, 255] and its labels, `count` textures with smooth borders between them."""
    chosen = rng.permutation(len(source.grounds))[:count]
    labels = chosen[_divide(rng, size, count)].astype(np.uint8)
    canvas = np.zeros((*size, 3), np.float32)
    for k in chosen:
        region = labels == k
        grey = _warp_ground(rng, source.grounds[k], region, zoom)
        soft = cv2.GaussianBlur(region.astype(np.float32), (0, 0), 0.8)
        canvas += _colour(rng, grey, _GROUND_TINTS[k], spread=30.0) * soft[..., None]
    return canvas, labels


def _divide(rng: np.random.Generator, size: tuple[int, int], count: int) -> NDArray[np.int64]:
    """A map (H, W) of 0..count-1: nearest of random sites, distances made wavy by smooth noise.

    Every part has at least 12 % of the picture, every piece of it 1 %.
    """
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / np.float32(min(size))
    for _ in range(100):
        fields = np.empty((count, height, width), np.float32)
        for field in fields:
            site = rng.uniform(0, 1, 2) * (width / min(size), height / min(size))
            coarse, fine = (
                cv2.resize(rng.standard_normal((n, n)), (width, height), interpolation=cv2.INTER_CUBIC) for n in (4, 11)
            )
            field[...] = np.hypot(x - site[0], y - site[1]) + 0.16 * coarse + 0.035 * fine
        parts = np.argmin(fields, axis=0)
        for k, field in enumerate(fields):
            field[_islets(parts == k)] = np.inf  # they go to their neighbour
        parts = np.argmin(fields, axis=0)
        large = np.bincount(parts.ravel(), minlength=count).min() >= 0.12 * parts.size
        if large and not any(_islets(parts == k).any() for k in range(count)):
            break
    else:  # practically never: a hundred layouts out of shape
        parts = np.tile(np.arange(width) * count // width, (height, 1))
    return np.asarray(parts, np.int64)


def _islets(part: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels (H, W) of connected pieces under 1 % of the picture, too small to be recognised."""
    _, pieces, facts, _ = cv2.connectedComponentsWithStats(part.astype(np.uint8))
    small = facts[:, cv2.CC_STAT_AREA] < 0.01 * part.size
    return np.asarray(part & small[pieces], np.bool_)


def _warp_ground(
    rng: np.random.Generator, photo: NDArray[np.uint8], region: NDArray[np.bool_], zoom: float
) -> NDArray[np.uint8]:
    """The photograph (H, W) turned, flipped and scaled to lie under a region; mirrored past its edges.

    Of twelve random positions the one that needs the fewest mirrored pixels is taken.
    """
    rows, columns = np.nonzero(region[::6, ::6])
    points = np.stack([columns, rows]) * 6.0
    middle = (points.min(axis=1) + points.max(axis=1)) / 2
    edges = np.array(photo.shape[::-1])
    positions = []
    for _ in range(12):
        scale = zoom * math.exp(rng.uniform(math.log(0.7), math.log(1.4)))
        turn = _rotation(rng.uniform(0, 2 * math.pi)) * rng.choice([-1, 1], (1, 2)) / scale
        matrix = np.column_stack([turn, edges * rng.uniform(0.35, 0.65, 2) - turn @ middle])
        there = matrix[:, :2] @ points + matrix[:, 2:]
        mirrored = float(np.mean(np.any((there < 0) | (there > edges[:, None] - 1), axis=0)))
        positions.append((mirrored, scale, matrix))
    _, scale, matrix = min(positions, key=lambda position: position[0])
    return _warp(photo, matrix, region.shape, scale, cv2.BORDER_REFLECT_101)


def _rotation(angle: float) -> NDArray[np.float64]:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def _warp(
    photo: NDArray[np.uint8], matrix: NDArray[np.float64], size: tuple[int, ...], scale: float, border: int
) -> NDArray[np.uint8]:
    """The photograph seen through a 2 x 3 map from result to photograph, smoothed first where it shrinks."""
    if scale < 1:
        photo = np.asarray(cv2.GaussianBlur(photo, (0, 0), 0.5 * math.sqrt(scale**-2 - 1) + 1e-3), np.uint8)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(photo, matrix, (size[1], size[0]), flags=flags, borderMode=border), np.uint8)


def _colour(
    rng: np.random.Generator,
    grey: NDArray[np.uint8],
    tints: tuple[tuple[float, float, float], ...],
    spread: float,
) -> NDArray[np.float32]:
    """Grey (H, W) as RGB float32 (H, W, 3) with random brightness (+- spread), contrast and strength of tint."""
    tint = 1 + rng.uniform(0, 1.1) * (np.array(tints[int(rng.integers(len(tints)))]) - 1) + _cast(rng)
    value = np.arange(256, dtype=np.float32)
    tone = (value - 118) * rng.uniform(0.75, 1.35) + 118 + rng.uniform(-spread, spread)
    # Bright spots (mortar, dry blades, highlights) keep less of the tint, as in nature.
    strength = np.clip(1.35 - value / 230, 0.3, 1.0)
    table = tone[:, None] * (1 + (tint - 1) * strength[:, None])
    return np.asarray(np.clip(table, 0, 255), np.float32)[grey]


def _cast(rng: np.random.Generator) -> NDArray[np.float64]:
    """A random shift of RGB factors, mostly between warm and cool as daylight has it, hardly to pink."""
    return rng.normal(0.01, 0.035) * np.array([1, 0.1, -1]) + rng.normal(0, 0.012, 3)


# ------------------------------------------------------------------------------------------------------------ coins


class _Tray:
    """The coins laid down so far: `ids` (H, W) uint16, and how many pixels each would have if nothing hid it."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.ids = np.zeros(size, np.uint16)
        self._full = [0]

    def put(self, shape: _Shape) -> bool:
        """Lays a coin on top; False, and nothing changed, if it or an earlier one would hardly be seen."""
        here, there = _overlap(shape, self.ids.shape)
        solid = shape.coverage >= 0.5
        after = self.ids.copy()
        after[here][solid[there]] = len(self._full)
        full = np.array([*self._full, solid.sum()])
        seen = np.bincount(after.ravel(), minlength=len(full))
        if np.any(seen[1:] < np.maximum(_MIN_VISIBLE_PIXELS, _MIN_VISIBLE_SHARE * full[1:])):
            return False
        self.ids, self._full = after, full.tolist()
        return True


def _turn_coin(rng: np.random.Generator, coin: Coin, size: tuple[int, int], zoom: float) -> _Shape:
    """The coin at a random angle, size and place, its centre inside the picture."""
    scale = zoom * math.exp(rng.uniform(math.log(0.6), math.log(1.5)))
    turn = _rotation(rng.uniform(0, 2 * math.pi))
    outline = (coin.outline - coin.centre) @ turn.T * scale + rng.uniform(0, 1, 2) * size[::-1]
    margin = math.ceil(10 * zoom) + 4  # room for the shadow
    left, top = np.floor(outline.min(axis=0)).astype(int) - margin
    right, bottom = np.ceil(outline.max(axis=0)).astype(int) + margin
    outline = outline - (left, top)
    back = turn.T / scale
    start = outline[0] - 0.5  # warping counts from pixel centres, outlines count from pixel edges
    to_coin = np.column_stack([back, coin.outline[0] - 0.5 - back @ start])
    return _Shape(_cover(outline, (int(bottom - top), int(right - left))), int(top), int(left), to_coin, scale)


def _overlap(shape: _Shape, size: tuple[int, ...]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where the patch lies in the picture, and which part of the patch that is."""
    height, width = shape.coverage.shape
    top, left = max(shape.top, 0), max(shape.left, 0)
    bottom, right = min(shape.top + height, size[0]), min(shape.left + width, size[1])
    there = slice(top - shape.top, bottom - shape.top), slice(left - shape.left, right - shape.left)
    return (slice(top, bottom), slice(left, right)), there


def _paint_coin(
    rng: np.random.Generator, canvas: NDArray[np.float32], coin: Coin, shape: _Shape, light: _Light
) -> None:
    """Draws the coin's soft shadow and then the coin, lit at its rim, into the canvas (H, W, 3)."""
    cover = shape.coverage
    height, width = cover.shape
    grey = _warp(coin.patch, shape.to_coin, (height, width), shape.scale, cv2.BORDER_REPLICATE)
    face = _colour(rng, grey, _COIN_TINTS, spread=24.0)
    down, right = np.gradient(cv2.GaussianBlur(cover, (0, 0), 0.4 + 1.2 * shape.scale))
    rim = 1 + 1.5 * shape.scale * (right * light.toward[0] + down * light.toward[1])
    face = np.clip(face * rim[..., None], 0, 255)
    move = np.array([[1, 0, light.toward[0] * light.length], [0, 1, light.toward[1] * light.length]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(cover, move, (width, height)), (0, 0), light.blur)
    here, there = _overlap(shape, canvas.shape)
    alpha, shade = cover[there][..., None], 1 - np.float32(light.strength) * shadow[there][..., None]
    canvas[here] = canvas[here] * shade * (1 - alpha) + face[there] * alpha


def _expose(rng: np.random.Generator, canvas: NDArray[np.float32], light: _Light) -> NDArray[np.uint8]:
    """The canvas as uint8 after uneven light, exposure, white balance and noise of a camera."""
    height, width = canvas.shape[:2]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    slope = -np.float32(rng.uniform(0.02, 0.12)) * (x * light.toward[0] + y * light.toward[1]).astype(np.float32)
    gain = (rng.uniform(0.88, 1.2) * (1 + _cast(rng))).astype(np.float32)
    noise = rng.standard_normal((height, width), dtype=np.float32) * np.float32(rng.uniform(0.5, 3.0))
    return np.asarray(np.clip(canvas * (1 + slope)[..., None] * gain + noise[..., None] + 0.5, 0, 255), np.uint8)
