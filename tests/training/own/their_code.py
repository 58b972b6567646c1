"""What a user may bring along: a model with dropout, and an augmentation that draws from every random state."""

import random

import numpy as np
import torch
from torch import nn

from kirie.models.parts.semantic import SemanticModel, SemanticRaw


class TinyNet(SemanticModel):
    def __init__(self, in_channels, classes, *, width=8, binary=None):
        super().__init__(in_channels, classes, {"width": width}, binary=binary)
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout2d(0.2),
            nn.Conv2d(width, width, 3, padding=2, dilation=2),
            nn.ReLU(),
        )
        self.head = nn.Conv2d(width, self.logit_channels, 1)

    def forward(self, images):
        return SemanticRaw(self.head(self.body(self.normalise(images))))


def shaken(image, mask):
    shift = random.randrange(5) + np.random.randint(5) + int(torch.randint(5, ()))
    light = np.random.normal(0, 5)
    image = np.clip(image.astype(float) + light, 0, 255).astype(np.uint8)
    return {"image": np.roll(image, shift, 1), "mask": np.roll(mask, shift, 1)}


def broken(image, mask):
    raise ZeroDivisionError("their own mistake")


not_callable = 3
