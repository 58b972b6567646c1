"""What all semantic models hold beyond the contract: logits of a known size, in place, probabilities that add up."""

import numpy as np
import pytest
import torch

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.models import model_class
from tests.models.contract import SMALL, build, each_semantic, pictures


def stride_of(raw, size):
    """The power of two by which the logits are smaller than the picture, rounded up; 1 where they have its size."""
    found = tuple(raw.logits.shape[-2:])
    strides = [s for s in (1, 2, 4, 8, 16, 32) if found == tuple(-(-side // s) for side in size)]
    assert strides, f"logits of {found} do not cover a picture of {size}"
    return strides[0]


def probabilities(model, image):
    size = tuple(image.shape[-2:])
    raw = model(image)
    return torch.from_numpy(model.decode(raw, [size], scores=True)[0].scores)[0], stride_of(raw, size)


def moved_by(found, expected, most=8):
    """By how many columns `found` (H, W) must be moved to the right to be most like `expected`."""
    inner = slice(most, expected.shape[1] - most)

    def likeness(columns):
        pair = torch.stack([found.roll(columns, 1)[:, inner].flatten(), expected[:, inner].flatten()])
        return torch.corrcoef(pair)[0, 1]

    return max(range(-most, most + 1), key=likeness)


@each_semantic
@torch.no_grad()
def test_nothing_moves_where_the_picture_is_cut_off(name):
    """At the right of a picture as at the same place of one that goes on, to less than one pixel of the logits."""
    model = build(name).eval()
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    image = image.repeat_interleave(4, 2).repeat_interleave(4, 3)
    image[..., 61:] = image[..., 60:61]
    image[..., 61:, :] = image[..., 60:61, :]
    whole, stride = probabilities(model, image)
    for axis in (0, 1):
        cut, _ = probabilities(model, image[..., :61] if axis else image[..., :61, :])
        pair = (cut, whole[: cut.shape[0], : cut.shape[1]])
        found, expected = (p if axis else p.T for p in pair)
        assert abs(moved_by(found[:, 24:], expected[:, 24:])) < stride


@each_semantic
@pytest.mark.parametrize("classes", [1, 2, 5, 300])
def test_scores_are_probabilities_that_agree_with_the_labels(name, classes):
    model = build(name, classes=classes).eval()
    raw = model(pictures())  # with gradients, which decoding must not trip over
    for size in [(24, 40), (13, 57)]:
        result = model.decode(raw, [size] * 2, scores=True)[0]
        assert result.scores.shape == (len(model.classes), *size)
        assert result.scores.min() >= 0
        np.testing.assert_allclose(result.scores.sum(0), 1, atol=1e-5)
        best = np.take_along_axis(result.scores, result.labels[None].astype(np.int64), 0)[0]
        assert (best >= result.scores.max(0) - 1e-6).all()
    assert model.decode(raw, [(24, 40)] * 2)[0].scores is None


@each_semantic
def test_a_single_class_is_refused_with_the_mend(name):
    with pytest.raises(KirieError, match=r"'cell' is the only class.*with_background"):
        model_class(name)(3, Classes(("cell",)), **SMALL[name])
