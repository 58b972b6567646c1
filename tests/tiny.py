"""A tiny data set of red, green and blue areas, a U-Net that tells them apart exactly, and the command line in-process.

Used by the tests of prediction, of the command line and of bad input, which need results that are known beforehand.
"""

import json
import sys
from unittest import mock

import numpy as np
import torch
from PIL import Image

from kirie.classes import Classes
from kirie.cli import main
from kirie.models.unet import UNet

torch.set_num_threads(1)  # for pictures this small, threads cost more time than they save

CLASSES = Classes(("red", "green", "blue"))
SIZE = (24, 32)


def colour_unet(classes=CLASSES, in_channels=3):
    """A U-Net whose logits are the channels of the picture: the class of a pixel is its strongest channel."""
    model = UNet(in_channels, classes, width=max(in_channels, len(classes)), depth=1, norm="none")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        straight = [model.down[0][0], model.down[0][2], model.up[0].conv[0], model.up[0].conv[2], model.head]
        for conv in straight:
            for channel in range(min(conv.weight.shape[:2])):
                conv.weight[channel, channel, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = 1
    return model.eval()


def random_unet(classes=CLASSES, in_channels=3, seed=0, **arguments):
    """A U-Net of random weights, in evaluation mode, whose logits of all classes are alike on noise."""
    torch.manual_seed(seed)
    model = UNet(in_channels, classes, width=4, depth=2, **arguments).eval()
    with torch.no_grad():
        logits = model(torch.rand(4, in_channels, 32, 32)).logits
        model.head.weight /= logits.std((0, 2, 3))[:, None, None, None]
        model.head.bias /= logits.std((0, 2, 3))
        model.head.bias -= model(torch.rand(4, in_channels, 32, 32)).logits.mean((0, 2, 3))
    return model


def blobs(size, classes=3, seed=0):
    """(H, W) uint8 labels 0..K-1 in areas of some pixels."""
    small = np.random.default_rng(seed).integers(0, classes, (-(-size[0] // 4), -(-size[1] // 4)), np.uint8)
    return small.repeat(4, 0).repeat(4, 1)[: size[0], : size[1]]


def painted(labels, seed=0):
    """A noisy picture (H, W, 3) uint8 whose strongest channel is the label."""
    noise = np.random.default_rng(seed).integers(0, 100, (*labels.shape, 3), np.uint8)
    noise[np.arange(len(labels))[:, None], np.arange(labels.shape[1]), labels] += 120
    return noise


def make_data(root, counts=(("train", 4), ("val", 2), ("test", 3)), size=SIZE):
    """A data set in folders `images/SPLIT` and `masks/SPLIT` (all in `images` and `masks` for the split '')."""
    seed = 0
    for split, count in counts:
        for number in range(count):
            seed += 1
            labels = blobs(size, seed=seed)
            add_sample(root, split, f"{split or 'p'}{number}", painted(labels, seed), labels)
    (root / "classes.json").write_text(json.dumps({"classes": list(CLASSES.names), "ignore_index": 255}))
    return root


def add_sample(root, split, name, picture, labels):
    for folder, array in (("images", picture), ("masks", labels)):
        path = root / folder / split / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def run_cli(capsys, *words):
    """Exit code, standard output and standard error of `kirie WORDS...`, run in this process."""
    capsys.readouterr()
    with mock.patch.object(sys, "argv", ["kirie", *map(str, words)]):
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    told = capsys.readouterr()
    return code, told.out, told.err
