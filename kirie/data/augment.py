"""Random changes to a training picture and its truth: one composed coordinate map, then light.

The geometric steps happen in this order, whatever was drawn: 90° turn, flips, crop, scale and rotation with shift,
elastic, grid distortion; they are composed and looked up once (`geometry.py`), so a picture is interpolated once. Then
come blur, tone, colour and noise (`light.py`), for the image alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from kirie.data import light
from kirie.data.geometry import Geometry, cropping, elastic_bend, flipping, grid_line, moving, turning
from kirie.data.panoptic_maps import recounted
from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.results import Instances, PanopticMap, Result, SemanticMap, id_map

Image = npt.NDArray[np.uint8]
Size = tuple[int, int]

PROBABILITIES = (
    "flip_horizontal",
    "flip_vertical",
    "rotate90",
    "shift_scale_rotate",
    "elastic",
    "grid_distortion",
    "resized_crop",
    "brightness_contrast",
    "gamma",
    "hue",
    "noise",
    "blur",
)
EDGE = 2  # pixels from the edge of a patch, where an anchor that left it is put
BELOW_ONE = ("scale", "grid_limit", "contrast", "saturation")
RANGES = ("crop_scale", "crop_ratio", "gamma_range", "blur_sigma")


@dataclass(frozen=True)
class AugmentSettings:
    """How often each step happens and how far it goes; by default nothing happens.

    Attributes:
        flip_horizontal: probability to mirror left and right.
        flip_vertical: probability to mirror top and bottom.
        rotate90: probability to turn by 90°, 180° or 270°; a picture that is not square and keeps its size turns by
            180° only.
        shift_scale_rotate: probability to shift, scale and rotate together.
        shift: most that moves, as a share of the output's height and width.
        scale: largest factor is 1 + scale, smallest 1 - scale.
        rotate: largest angle in degrees, either way.
        elastic: probability of a smooth random displacement.
        elastic_strength: its standard deviation in output pixels; keep it under 0.4 * elastic_smoothness, above that
            the picture folds over itself.
        elastic_smoothness: standard deviation in output pixels of the Gaussian filter that makes it smooth.
        grid_distortion: probability to stretch and squeeze bands of columns and rows.
        grid_steps: bands per direction.
        grid_limit: a band shows between 1 - grid_limit and 1 + grid_limit of its share.
        resized_crop: probability to scale a random part of the picture to the output, instead of a crop at its own
            scale. Large pictures are averaged before they shrink, so there is no limit on how much they may.
        crop_scale: share of the picture's area that the part has, smallest and largest.
        crop_ratio: how many times wider than the output the part may be for its height.
        brightness_contrast: probability to change both.
        brightness: most that is added, as a share of full white.
        contrast: largest factor about mid-grey is 1 + contrast, smallest 1 - contrast.
        gamma: probability to raise values in 0..1 to a power.
        gamma_range: smallest and largest exponent.
        hue: probability to change hue and saturation; images of three channels only.
        hue_shift: largest turn in degrees, either way.
        saturation: largest factor is 1 + saturation, smallest 1 - saturation.
        noise: probability to add Gaussian noise.
        noise_std: its largest standard deviation in grey levels.
        blur: probability of a Gaussian blur.
        blur_sigma: smallest and largest standard deviation in output pixels.

    Raises:
        KirieError: on a probability outside 0..1, a negative limit or a range that does not rise from above 0.
    """

    flip_horizontal: float = 0.0
    flip_vertical: float = 0.0
    rotate90: float = 0.0
    shift_scale_rotate: float = 0.0
    shift: float = 0.1
    scale: float = 0.2
    rotate: float = 45.0
    elastic: float = 0.0
    elastic_strength: float = 5.0
    elastic_smoothness: float = 20.0
    grid_distortion: float = 0.0
    grid_steps: int = 5
    grid_limit: float = 0.3
    resized_crop: float = 0.0
    crop_scale: tuple[float, float] = (0.5, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 1.333)
    brightness_contrast: float = 0.0
    brightness: float = 0.2
    contrast: float = 0.2
    gamma: float = 0.0
    gamma_range: tuple[float, float] = (0.8, 1.25)
    hue: float = 0.0
    hue_shift: float = 10.0
    saturation: float = 0.3
    noise: float = 0.0
    noise_std: float = 8.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.3, 1.5)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in PROBABILITIES:
                expected, right = "a probability in 0..1", 0 <= value <= 1
            elif field.name in BELOW_ONE:
                expected, right = "at least 0 and below 1", 0 <= value < 1
            elif field.name in RANGES:
                expected, right = "two values above 0, the smaller first", len(value) == 2 and 0 < value[0] <= value[1]
            elif field.name in ("grid_steps", "elastic_smoothness"):
                expected, right = "above 0", value > 0
            else:
                expected, right = "0 or more", 0 <= value < math.inf
            if not right:
                raise KirieError(f"augment.{field.name} is {value}; expected {expected}.")
        if self.crop_scale[1] > 1:
            raise KirieError(f"augment.crop_scale is {self.crop_scale}; a part has at most the whole area, 1.")


PRESETS: dict[str, AugmentSettings] = {
    "none": AugmentSettings(),
    "light": AugmentSettings(
        flip_horizontal=0.5,
        shift_scale_rotate=0.5,
        shift=0.05,
        scale=0.1,
        rotate=10.0,
        brightness_contrast=0.3,
        brightness=0.1,
        contrast=0.1,
    ),
    "medical": AugmentSettings(
        flip_horizontal=0.5,
        flip_vertical=0.5,
        rotate90=0.5,
        shift_scale_rotate=0.5,
        elastic=0.3,
        grid_distortion=0.3,
        brightness_contrast=0.5,
    ),
    "street": AugmentSettings(
        flip_horizontal=0.5,
        resized_crop=0.8,
        crop_scale=(0.25, 1.0),
        crop_ratio=(0.9, 1.1),
        brightness_contrast=0.5,
        hue=0.3,
        blur=0.2,
    ),
}


@overload
def augment(
    image: Image,
    truth: Result,
    settings: AugmentSettings,
    rng: np.random.Generator,
    size: Size | None = None,
    anchor: Size | None = None,
) -> tuple[Image, Result]: ...


@overload
def augment(
    image: Image,
    truth: None,
    settings: AugmentSettings,
    rng: np.random.Generator,
    size: Size | None = None,
    anchor: Size | None = None,
) -> tuple[Image, None]: ...


def augment(
    image: Image,
    truth: Result | None,
    settings: AugmentSettings,
    rng: np.random.Generator,
    size: Size | None = None,
    anchor: Size | None = None,
) -> tuple[Image, Result | None]:
    """A new picture and truth, changed alike; all randomness comes from `rng`, and nothing given is changed.

    What an output shows beyond the picture's edge is its mirror image, labels included, for a `SemanticMap`. For the
    other truths, where a mirrored object would be one too many, it is the picture's mean colour without instance and
    void. Instances and segments that are no longer in view are dropped; `SemanticMap.scores` do not follow.

    Args:
        image: (H, W, C) uint8, of any number of channels.
        truth: of the same size, or None.
        settings: what may happen.
        rng: source of all randomness.
        size: (h, w) of the output: a random crop, padded evenly where the picture is smaller. None keeps (H, W).
        anchor: (y, x) of a pixel of the picture that the output must show; see `draw_geometry`.

    Returns:
        The image (h, w, C) and the truth of that size.

    Raises:
        KirieError: on another type or shape of image, or a truth of another size.
    """
    _check(image, truth)
    geometry = draw_geometry(settings, (image.shape[0], image.shape[1]), size, rng, anchor)
    reflect = truth is None or isinstance(truth, SemanticMap)
    warped = geometry.warp_image(image, reflect)
    return _relight(warped, settings, rng), None if truth is None else follow(truth, geometry)


def draw_geometry(
    settings: AugmentSettings,
    source: Size,
    size: Size | None,
    rng: np.random.Generator,
    anchor: Size | None = None,
) -> Geometry:
    """A random map from an output of `size` (h, w), or `source` where None, to a picture of size `source` (H, W).

    An anchor (y, x), a pixel of the picture, lies in the output: anywhere in it with equal chance where the crop alone
    decides, at the edge that it was moved over where it would have left it. Bends, which are small, come on top.
    """
    out = source if size is None else size
    turns = _draw_turns(settings, rng, half_only=size is None and source[0] != source[1])
    turned = source if turns % 2 == 0 else (source[1], source[0])
    mirror = flipping(_chance(settings.flip_horizontal, rng), _chance(settings.flip_vertical, rng), turned)
    matrix = turning(turns, source) @ mirror
    seen = None if anchor is None else _place(matrix, anchor)
    matrix = matrix @ _draw_crop(settings, turned, out, rng, seen)
    if _chance(settings.shift_scale_rotate, rng):
        down, right = (length * rng.uniform(-settings.shift, settings.shift) for length in out)
        scale = 1 + rng.uniform(-settings.scale, settings.scale)
        matrix = matrix @ moving((right, down), scale, rng.uniform(-settings.rotate, settings.rotate), out)
    if anchor is not None:
        matrix = matrix @ _back_into(out, _place(matrix, anchor))
    bend, lines = None, None
    if _chance(settings.elastic, rng):
        bend = elastic_bend(out, settings.elastic_strength, settings.elastic_smoothness, rng)
    if _chance(settings.grid_distortion, rng):
        height, width = out
        lines = (
            grid_line(width, settings.grid_steps, settings.grid_limit, rng),
            grid_line(height, settings.grid_steps, settings.grid_limit, rng),
        )
    return Geometry(out, matrix, lines, bend)


def follow(truth: Result, geometry: Geometry) -> Result:
    """The truth as the output of `geometry` shows it."""
    if isinstance(truth, SemanticMap):
        return SemanticMap(geometry.warp_labels(truth.labels, None), truth.classes)
    if isinstance(truth, PanopticMap):
        return recounted(geometry.warp_labels(truth.ids, 0), truth)
    crops = geometry.warp_crops(truth.masks.crops())
    kept = np.array([index for index, crop in enumerate(crops) if crop is not None], np.intp)
    masks = Masks.from_crops([crop for crop in crops if crop is not None], geometry.size)
    return truth.with_masks(kept, masks)


@overload
def apply_callable(f: Callable[..., Any], image: Image, truth: Result) -> tuple[Image, Result]: ...


@overload
def apply_callable(f: Callable[..., Any], image: Image, truth: None) -> tuple[Image, None]: ...


def apply_callable(f: Callable[..., Any], image: Image, truth: Result | None) -> tuple[Image, Result | None]:
    """The picture and truth after a user's function `f(image=, mask=)`, albumentations' convention.

    The function gets the image (H, W, C) uint8 and a mask (H, W), and returns a dict with both as "image" and "mask",
    of any size that they share. The mask is the labels of a `SemanticMap`; the ids of a `PanopticMap`, 0 being void;
    for `Instances` an int32 map with 1..N, 0 being none, where they cover one another by `stacking`; zeros without
    truth. Values that the function fills in have to fit this: for a `SemanticMap` best `classes.void`.

    Raises:
        KirieError: when what comes back is not such a dict, or has other types, shapes or ids.
    """
    _check(image, truth)
    mask = _as_mask(truth, (image.shape[0], image.shape[1]))
    answer = f(image=image.copy(), mask=mask.copy())  # what it gets it may change
    new_image, new_mask = _checked_answer(answer, image, mask)
    if truth is None:
        return new_image, None
    if isinstance(truth, SemanticMap):
        return new_image, SemanticMap(new_mask, truth.classes)
    unknown = np.setdiff1d(new_mask, np.append(np.unique(mask), 0))
    if unknown.size:
        raise KirieError(
            f"The augmentation function returned a mask with the ids {unknown[:5].tolist()}, which were not in the "
            "mask it got; ids may move or vanish, not change. Use nearest interpolation and fill with 0."
        )
    if isinstance(truth, PanopticMap):
        return new_image, recounted(new_mask, truth)
    kept = np.setdiff1d(new_mask, [0])
    masks = Masks.from_ids(new_mask, kept.tolist())
    return new_image, truth.with_masks(kept - 1, masks)


def _chance(probability: float, rng: np.random.Generator) -> bool:
    return probability > 0 and rng.random() < probability


def _draw_turns(settings: AugmentSettings, rng: np.random.Generator, half_only: bool) -> int:
    if not _chance(settings.rotate90, rng):
        return 0
    return 2 if half_only else int(rng.integers(1, 4))


def _place(matrix: npt.NDArray[np.float64], anchor: Size) -> tuple[float, float]:
    """Where the output of a map shows a source pixel (y, x), as (y, x)."""
    x, y, _ = np.linalg.solve(matrix, (anchor[1], anchor[0], 1.0))
    return float(y), float(x)


def _back_into(out: Size, seen: tuple[float, float]) -> npt.NDArray[np.float64]:
    """The shift that brings a place (y, x) into the output, a little from its edge where it was beyond it."""
    down, right = (_excess(at, length) for at, length in zip(seen, out, strict=True))
    return np.array([[1, 0, right], [0, 1, down], [0, 0, 1]], np.float64)


def _excess(at: float, length: int) -> float:
    if -0.5 <= at <= length - 0.5:
        return 0.0
    margin = min(EDGE, (length - 1) / 2)
    return at - min(max(at, margin), length - 1 - margin)


def _draw_crop(
    settings: AugmentSettings,
    source: Size,
    out: Size,
    rng: np.random.Generator,
    seen: tuple[float, float] | None,
) -> npt.NDArray[np.float64]:
    """The map from the output to a random rectangle of the source: at its own scale, or a resized crop.

    A place (y, x) of the source that must be seen lies in the rectangle.
    """
    crop = out
    if _chance(settings.resized_crop, rng):
        low, high = np.log(settings.crop_ratio)
        ratio = out[1] / out[0] * math.exp(rng.uniform(low, high))
        height = math.sqrt(source[0] * source[1] * rng.uniform(*settings.crop_scale) / ratio)
        fit = min(1.0, source[0] / height, source[1] / (height * ratio))
        crop = (max(1, round(height * fit)), max(1, round(height * ratio * fit)))
    ends = [None, None] if seen is None else [round(at) for at in seen]
    top, left = (_draw_start(*side, rng) for side in zip(source, crop, ends, strict=True))
    return cropping(top, left, crop, out)


def _draw_start(length: int, part: int, seen: int | None, rng: np.random.Generator) -> int:
    if length > part:
        first, last = (0, length - part) if seen is None else (max(0, seen - part + 1), min(seen, length - part))
        return int(rng.integers(first, last + 1))
    return -((part - length) // 2)


def _relight(image: Image, settings: AugmentSettings, rng: np.random.Generator) -> Image:
    if _chance(settings.blur, rng):
        image = light.blurred(image, rng.uniform(*settings.blur_sigma))
    toned, brightness, contrast, gamma = False, 0.0, 0.0, 1.0
    if _chance(settings.brightness_contrast, rng):
        brightness = rng.uniform(-settings.brightness, settings.brightness)
        contrast, toned = rng.uniform(-settings.contrast, settings.contrast), True
    if _chance(settings.gamma, rng):
        low, high = np.log(settings.gamma_range)
        gamma, toned = math.exp(rng.uniform(low, high)), True
    if toned:
        image = light.with_tone(image, light.tone_table(brightness, contrast, gamma))
    if _chance(settings.hue, rng) and image.shape[2] == 3:
        degrees = rng.uniform(-settings.hue_shift, settings.hue_shift)
        factor = 1 + rng.uniform(-settings.saturation, settings.saturation)
        image = light.with_color(image, light.color_matrix(degrees, factor))
    if _chance(settings.noise, rng):
        image = light.with_noise(image, rng.uniform(0, settings.noise_std), rng)
    return image


def _check(image: Image, truth: Result | None) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or not image.size:
        raise KirieError(
            f"Augmentation takes uint8 images of shape (H, W, C), none of them 0, got {image.dtype} {image.shape}."
        )
    if truth is not None and truth.size != image.shape[:2]:
        raise KirieError(f"The image has size {image.shape[:2]} but its truth {truth.size}; they must be the same.")


def _as_mask(truth: Result | None, size: Size) -> npt.NDArray[Any]:
    if truth is None:
        return np.zeros(size, np.uint8)
    if isinstance(truth, SemanticMap):
        return truth.labels
    return id_map(truth) if isinstance(truth, Instances) else truth.ids


def _checked_answer(answer: Any, image: Image, mask: npt.NDArray[Any]) -> tuple[Image, npt.NDArray[Any]]:
    """The image and the mask that a user's function returned, the mask in the type that it was given in."""
    wanted = 'The augmentation function must return a dict with "image" and "mask"'
    if not isinstance(answer, dict) or not {"image", "mask"} <= set(answer):
        came = f"a dict with {sorted(map(str, answer))}" if isinstance(answer, dict) else f"a {type(answer).__name__}"
        raise KirieError(f"{wanted}, got {came}. Write it as f(image=, mask=) -> {{'image': ..., 'mask': ...}}.")
    new_image, new_mask = answer["image"], answer["mask"]
    for name, array, kind in (("image", new_image, np.uint8), ("mask", new_mask, np.integer)):
        if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, kind):
            came = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise KirieError(
                f"{wanted}; its {name} must be a numpy array of {kind.__name__}, got {came}. Leave out steps that "
                "normalise or make tensors: the model does that itself."
            )
    if new_image.ndim == 2:
        new_image = new_image[:, :, None]
    if new_image.ndim != 3 or new_image.shape[2] != image.shape[2] or new_image.shape[:2] != new_mask.shape:
        raise KirieError(
            f"{wanted} of one size; got an image {new_image.shape} and a mask {new_mask.shape} for an image "
            f"{image.shape}. Expected (h, w, {image.shape[2]}) and (h, w)."
        )
    limits = np.iinfo(mask.dtype)
    if new_mask.size and not limits.min <= new_mask.min() <= new_mask.max() <= limits.max:
        raise KirieError(
            f"The augmentation function returned a mask with values {new_mask.min()}..{new_mask.max()}; it got "
            f"{mask.dtype} and may only move those values."
        )
    return new_image, new_mask.astype(mask.dtype)
