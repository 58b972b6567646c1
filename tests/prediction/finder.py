"""A model of objects whose results are known beforehand, and pictures for it."""

from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage

from kirie.classes import Classes
from kirie.masks import Masks
from kirie.models.parts.instance import InstanceModel
from kirie.results import Instances

CLASSES = Classes(("red cell", "green", "blue"), things=(True,) * 3, ids=(7, 3, 90))


class Raw(NamedTuple):
    images: torch.Tensor


class Finder(InstanceModel):
    """Finds every connected area where a channel is above a third; its class is the channel."""

    def __init__(self, in_channels=3, classes=CLASSES, *, max_detections=100):
        super().__init__(in_channels, classes, {"max_detections": max_detections})
        self.max_detections = max_detections
        self.shown_threshold = getattr(type(self), "shown_threshold", 0.5)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return Raw(images)

    def loss(self, raw, truths):
        raise NotImplementedError

    def choose(self, raw, size):
        raise NotImplementedError

    def maps(self, raw, sources):
        raise NotImplementedError

    @staticmethod
    def cut(boxes, maps, seen, size):
        raise NotImplementedError

    def decode(self, raw, sizes, *, scores=False):
        return [found(image.permute(1, 2, 0).numpy(), self.classes, self.max_detections) for image in raw.images]


def found(picture, classes=CLASSES, most=100):
    """The areas of a picture (H, W, C) in 0..1, the surest first."""
    masks, labels, scores = [], [], []
    for label in range(picture.shape[2]):
        areas, count = ndimage.label(picture[..., label] > 1 / 3)
        for index in range(1, count + 1):
            mask = areas == index
            masks.append(mask)
            labels.append(label)
            scores.append(picture[mask][:, label].max())
    order = np.argsort(-np.array(scores), kind="stable")[:most]
    column = Masks.from_dense(np.stack(masks)[order]) if masks else Masks(picture.shape[:2])
    return Instances.from_masks(column, np.array(labels, int)[order], classes, np.array(scores)[order])


def areas_picture(size=(60, 80), seed=0, channels=3):
    """A picture (H, W, C) uint8 of overlapping areas of any form, with holes, each in its own brightness."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 80, (*size, channels), np.uint8)
    for label in range(channels):
        areas, count = ndimage.label(ndimage.gaussian_filter(rng.random(size), 2) > 0.55)
        for index in range(1, count + 1):
            picture[areas == index, label] = rng.integers(90, 256)
    return picture
