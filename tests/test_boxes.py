"""Boxes against torchvision and hand-worked numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_area, box_convert, box_iou, clip_boxes_to_image

from kirie import boxes


def some_boxes(count, seed):
    corners = np.random.default_rng(seed).uniform(-10, 90, (count, 2, 2))
    return np.concatenate([corners.min(1), corners.max(1)], 1)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_areas_and_iou_are_those_of_torchvision(dtype):
    a, b = some_boxes(30, 0).astype(dtype), some_boxes(20, 1).astype(dtype)
    expected = box_iou(torch.from_numpy(a).double(), torch.from_numpy(b).double()).numpy()
    assert np.allclose(boxes.areas(a), box_area(torch.from_numpy(a).double()).numpy(), rtol=1e-12, atol=0)
    # Corners are compared in the type that came, sides are taken in 64 bits.
    assert np.allclose(boxes.iou_matrix(a, b), expected, rtol=0, atol=1e-9)


def test_iou_by_hand():
    a = np.array([[0, 0, 4, 4], [0, 0, 0, 0]], np.float32)
    b = np.array([[2, 2, 6, 6], [4, 0, 8, 4], [0, 0, 4, 4], [3, 3, 3, 3]], np.float32)
    assert np.allclose(boxes.iou_matrix(a, b), [[4 / 28, 0, 1, 0], [0, 0, 0, 0]], rtol=0, atol=1e-12)


def test_iou_with_no_boxes_has_the_right_shape():
    none, two = np.zeros((0, 4), np.float32), some_boxes(2, 0)
    assert boxes.iou_matrix(none, two).shape == (0, 2)
    assert boxes.iou_matrix(two, none).shape == (2, 0)


def test_boxes_turned_inside_out_have_no_area():
    assert boxes.areas(np.array([[5, 5, 2, 2], [5, 0, 2, 9], [1, 1, 1, 9]], np.float32)).tolist() == [0, 0, 0]


def test_clip_is_that_of_torchvision():
    wild = some_boxes(30, 2).astype(np.float32) * 2
    clipped = boxes.clip(wild, (40, 70))
    assert clipped.dtype == np.float32
    assert np.array_equal(clipped, clip_boxes_to_image(torch.from_numpy(wild), (40, 70)).numpy())
    assert boxes.clip(np.zeros((0, 4), np.float32), (4, 4)).shape == (0, 4)


def test_xywh_is_that_of_torchvision():
    assert boxes.to_xywh(np.array([[3, 5, 4, 7]])).tolist() == [[3, 5, 1, 2]]
    assert boxes.to_xywh(np.array([])).shape == (0, 4)
    wild = torch.from_numpy(some_boxes(30, 2))
    assert np.array_equal(boxes.to_xywh(wild.numpy()), box_convert(wild.double(), "xyxy", "xywh"))


def test_the_box_of_one_pixel_and_of_none():
    mask = np.zeros((9, 7), bool)
    assert boxes.of_mask(mask) is None
    mask[5, 3] = True
    assert boxes.of_mask(mask) == (3, 5, 4, 6)
    mask[8, 0] = mask[0, 6] = True
    assert boxes.of_mask(mask) == (0, 0, 7, 9)
    assert boxes.of_mask(np.zeros((0, 0), bool)) is None
