"""Background between objects that touch, for a model of classes of pixels to learn to keep them apart."""

from __future__ import annotations

import cv2
import numpy as np

from kirie.results import Instances, SemanticMap, id_map, to_semantic


def parted(truth: Instances, gap: int) -> SemanticMap:
    """A map of objects in which those that touch lie apart, as in the U-Net paper (Ronneberger et al. 2015).

    Args:
        truth: the objects; crowds stay as they are.
        gap: so near to another object, in pixels, an object's own pixels become background. Objects that lie apart
            already lose nothing unless they are nearer than this.
    """
    shown = to_semantic(truth)
    ids = id_map(truth[~truth.crowd]).astype(
        np.float32
    )  # OpenCV knows no int32 here; objects are few enough to be exact
    reach = np.arange(-gap, gap + 1)
    disk = (reach[:, None] ** 2 + reach**2 <= gap**2).astype(np.uint8)
    inside = ids > 0
    highest = cv2.dilate(ids, disk)
    lowest = cv2.erode(np.where(inside, ids, np.float32(2**24)), disk)
    labels = shown.labels.copy()
    labels[inside & ((highest != ids) | (lowest != ids)) & (labels != shown.classes.void)] = 0
    return SemanticMap(labels, shown.classes)
