import numpy as np
import pytest
from pycocotools import mask as coco_mask
from skimage.measure import euler_number, label

from kirie.outlines import joined, outline, outlines

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools


def filled(rings, size):
    """The mask of rings, filled by the COCO API."""
    flat = [ring.ravel().astype(float).tolist() for ring in rings]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, *size))).astype(bool)


def placed(bits, top, left, size):
    mask = np.zeros(size, bool)
    mask[top : top + bits.shape[0], left : left + bits.shape[1]] = bits
    return mask


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 1])
def test_rings_fill_back_to_the_same_mask(share):
    random = np.random.default_rng(int(share * 10))
    for _ in range(150):
        h, w, top, left, below, right = random.integers((1, 1, 0, 0, 0, 0), (14, 14, 4, 4, 4, 4)).tolist()
        bits = random.random((h, w)) < share
        bits[random.integers(h), random.integers(w)] = True
        size = (top + h + below, left + w + right)
        expected = placed(bits, top, left, size)
        rings = outlines(top, left, bits)
        assert np.array_equal(filled(rings, size), expected)
        assert np.array_equal(filled([outline(top, left, bits)], size), expected)
        assert len(rings) == label(bits, connectivity=1).max()


def test_a_pixel_is_a_square_and_a_rectangle_has_four_corners():
    assert outline(5, 3, np.ones((1, 1), bool)).tolist() == [[3, 5], [4, 5], [4, 6], [3, 6]]
    assert len(outline(0, 0, np.ones((40, 70), bool))) == 4


def test_an_empty_mask_has_no_outline():
    assert outline(0, 0, np.zeros((0, 0), bool)) is None
    assert outlines(2, 2, np.zeros((3, 4), bool)) == []


def test_holes_are_joined_to_their_own_part():
    bits = np.zeros((9, 20), bool)
    bits[0:9, 0:9] = bits[1:8, 11:20] = True
    bits[2:4, 2:4] = bits[5:7, 5:8] = bits[3:6, 13:17] = False
    bits[4, 15] = True  # an island in a hole
    first, second, island = outlines(0, 0, bits)
    assert euler_number(bits, connectivity=1) == 0  # three parts, three holes
    assert first[:, 0].max() == 9 and second[:, 0].min() == 11 and len(island) == 4
    for ring, area in ((first, 81 - 4 - 6), (second, 63 - 12), (island, 1)):
        assert filled([ring], (9, 20)).sum() == area


def test_a_ring_alone_stays_as_it_is():
    ring = np.array([[0, 0], [4, 0], [4, 3], [0, 3]])
    assert joined([ring]).tolist() == ring.tolist()


def test_thousands_of_specks_take_no_long_time():
    bits = np.random.default_rng(1).random((300, 300)) < 0.5
    assert np.array_equal(filled([outline(0, 0, bits)], (300, 300)), bits)
