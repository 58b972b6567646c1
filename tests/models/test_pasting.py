"""Maps enlarged to masks and masks shrunk to maps, against PyTorch's own resampling."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kirie.masks import Masks
from kirie.models.parts.pasting import (
    area_matrix,
    box_matrix,
    cut_mask,
    cut_masks,
    resize_matrix,
    resized_twice,
    shrunk,
)


def blobs(count, height, width, seed=0):
    rough = torch.rand(count, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(rough, (height, width), mode="bicubic").clamp(0, 1)[:, 0].numpy()


@pytest.mark.parametrize("size", [(31, 50), (7, 9), (160, 201), (13, 17), (1, 64)])
def test_masks_of_whole_pictures_are_those_of_interpolate(size):
    maps = blobs(3, 13, 17)
    expected = F.interpolate(torch.from_numpy(maps)[None], size, mode="bilinear", align_corners=False)[0] > 0.5
    found = cut_masks(maps, resize_matrix(size[0], 13), resize_matrix(size[1], 17))
    assert found.size == size
    np.testing.assert_array_equal(found.dense(), expected.numpy())
    assert 0.05 < found.dense().mean() < 0.95


def test_steps_of_resizing_multiply():
    maps = blobs(2, 10, 12)
    large = F.interpolate(torch.from_numpy(maps)[None], (40, 48), mode="bilinear", align_corners=False)[..., :37, :45]
    expected = F.interpolate(large, (90, 71), mode="bilinear", align_corners=False)[0] > 0.5
    rows = resize_matrix(90, 37) @ resize_matrix(40, 10)[:37]
    columns = resize_matrix(71, 45) @ resize_matrix(48, 12)[:45]
    np.testing.assert_array_equal(cut_masks(maps, rows, columns).dense(), expected.numpy())


@pytest.mark.parametrize("pixels", [90, 37, 20, 1])
def test_two_steps_of_resizing_are_their_product(pixels):
    first = resize_matrix(40, 10)[:37]
    np.testing.assert_allclose(resized_twice(pixels, 37, first), resize_matrix(pixels, 37) @ first, atol=1e-7)
    one = resize_matrix(4, 1)[:1]
    np.testing.assert_array_equal(resized_twice(pixels, 1, one), np.ones((pixels, 1), np.float32))


def test_masks_of_boxes_are_those_of_grid_sample():
    probabilities, (left, top, right, bottom) = blobs(1, 28, 28)[0], (7.3, 11.8, 52.1, 40.4)
    y, x = torch.arange(60) + 0.5, torch.arange(80) + 0.5
    across, down = (x - left) / (right - left) * 2 - 1, (y - top) / (bottom - top) * 2 - 1
    grid = torch.stack(torch.broadcast_tensors(across[None, :], down[:, None]), -1)[None]
    sampled = F.grid_sample(torch.from_numpy(probabilities)[None, None], grid, align_corners=False)[0, 0]
    rows, columns = box_matrix(top, bottom, 28, 9, 44), box_matrix(left, right, 28, 5, 56)
    found = Masks.from_crops([cut_mask(probabilities, rows, columns, corner=(9, 5))], (60, 80))
    np.testing.assert_array_equal(found.dense()[0], (sampled > 0.5).numpy())
    assert found.areas()[0] > 100


def test_a_map_without_a_probable_cell_is_an_empty_mask():
    found = cut_masks(np.full((1, 4, 4), 0.5, np.float32), resize_matrix(20, 4), resize_matrix(20, 4))
    assert found.areas().tolist() == [0]
    assert len(cut_masks(np.zeros((0, 4, 4), np.float32), resize_matrix(20, 4), resize_matrix(20, 4))) == 0


@pytest.mark.parametrize("cells", [(6, 8), (5, 7), (48, 64), (1, 1)])
def test_shrinking_averages_over_cells(cells):
    masks = blobs(4, 48, 64, seed=1) > 0.6
    found = shrunk(Masks.from_dense(masks), cells)
    rows, columns = area_matrix(cells[0], 48, 0, 48), area_matrix(cells[1], 64, 0, 64)
    np.testing.assert_allclose(rows.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(found, rows @ masks.astype(np.float32) @ columns.T, atol=1e-6)
    if 48 % cells[0] == 0 and 64 % cells[1] == 0:
        pooled = F.avg_pool2d(torch.from_numpy(masks).float(), (48 // cells[0], 64 // cells[1]))
        np.testing.assert_allclose(found, pooled.numpy(), atol=1e-6)


def test_shrinking_an_empty_mask_leaves_nothing():
    assert not shrunk(Masks.from_dense(np.zeros((2, 9, 9), bool)), (3, 3)).any()
