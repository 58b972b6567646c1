"""The weight map of the U-Net paper: pixels between objects that nearly touch count more."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kirie.errors import KirieError


def boundary_weights(
    labels: NDArray[Any],
    w0: float = 10.0,
    sigma: float = 5.0,
    void: int = 255,
    instance_ids: NDArray[Any] | None = None,
) -> NDArray[np.float32]:
    """How much each pixel counts: 1, and up to 1 + w0 where two objects nearly touch; 0 on void pixels.

    1 + w0 * exp(-(d1 + d2)^2 / (2 sigma^2)), d1 and d2 being the distances in pixels to the nearest and the second
    nearest object (0 on the object itself); 1 where there are fewer than two. Ronneberger et al. 2015, eq. 2. Objects
    whose term is below 1e-7 are not looked at, so work grows with the objects' boxes and not with N x H x W.

    Args:
        labels: (H, W) class ids, 0 background.
        w0: height of the extra weight.
        sigma: its reach, in pixels.
        void: the label to leave out.
        instance_ids: (H, W) integers, 0 for no object; without it, objects are the 8-connected regions of labels that
            are neither 0 nor void, whatever their class.

    Returns:
        (H, W) float32.

    Raises:
        KirieError: if a shape does not fit or a number is out of range.
    """
    if not (0 <= w0 < math.inf and 1e-3 <= sigma < math.inf):
        raise KirieError(f"w0 must be a number of at least 0 and sigma one of at least 0.001, got {w0} and {sigma}")
    if labels.ndim != 2 or (instance_ids is not None and instance_ids.shape != labels.shape):
        shapes = f"{labels.shape}" if instance_ids is None else f"{labels.shape} and {instance_ids.shape}"
        raise KirieError(f"boundary weights need labels (H, W) and instance ids of the same size, got {shapes}")
    outside = labels == void
    if instance_ids is None:
        objects = ndimage.label((labels != 0) & ~outside, structure=np.ones((3, 3)))[0]
    else:
        ids, places = np.unique(np.where(outside, 0, instance_ids), return_inverse=True)
        objects = (np.cumsum(ids != 0) * (ids != 0))[places].reshape(labels.shape)  # 1..N
    nearest = np.full(labels.shape, np.inf)
    second = nearest.copy()
    reach = math.ceil(sigma * math.sqrt(2 * math.log(max(w0, 1e-7) / 1e-7)))
    for number, box in enumerate(ndimage.find_objects(objects), start=1):
        window = tuple(slice(max(side.start - reach, 0), side.stop + reach) for side in box)
        distance = ndimage.distance_transform_edt(objects[window] != number)
        second[window] = np.minimum(second[window], np.maximum(nearest[window], distance))
        nearest[window] = np.minimum(nearest[window], distance)
    weights = 1 + w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return np.where(outside, 0, weights).astype(np.float32)
