from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from kirie.classes import Classes
from kirie.data import open_dataset
from kirie.data.gaps import parted
from kirie.data.layouts import FolderSettings
from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.results import Instances, to_semantic


def tiles(seed=0, size=(60, 80)):
    """Object ids (H, W): patches that touch one another, some pixels of nobody between them."""
    rng = np.random.default_rng(seed)
    ids = np.kron(rng.permutation(12 * 16).reshape(12, 16), np.ones((5, 5), int))[: size[0], : size[1]]
    ids[ndimage.gaussian_filter(rng.random(size), 3) > 0.51] = 0
    return ids.astype(np.int32)


def objects(ids):
    numbers = [number for number in np.unique(ids) if number]
    return Instances.from_masks(Masks.from_ids(ids, numbers), [0] * len(numbers), Classes(("cell",)))


@pytest.mark.parametrize("gap", [1, 2, 3])
def test_pixels_near_another_object_are_background(gap):
    ids = tiles()
    expected = ids > 0
    for number in np.unique(ids[ids > 0]):
        others = (ids > 0) & (ids != number)
        expected &= ~((ids == number) & (ndimage.distance_transform_edt(~others) <= gap))
    result = parted(objects(ids), gap)
    assert result.classes.names == ("background", "cell") and 0 < expected.sum() < (ids > 0).sum()
    np.testing.assert_array_equal(result.labels, expected)


def test_a_crowd_parts_nothing_and_stays_whole():
    ids = np.zeros((20, 30), np.int32)
    ids[5:15, 2:12], ids[5:15, 12:25] = 1, 2
    truth = replace(objects(ids), crowd=np.array([False, True]))
    np.testing.assert_array_equal(parted(truth, 3).labels, to_semantic(truth).labels)


def test_the_gap_is_learned_from_and_not_measured(tmp_path):
    for split in ("train", "val"):
        for kind in ("images", "ids"):
            (tmp_path / kind / split).mkdir(parents=True)
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "images" / split / "a.png")
        ids = np.zeros((20, 30), np.uint16)
        ids[5:15, 5:15], ids[5:15, 15:25] = 1, 2
        Image.fromarray(ids).save(tmp_path / "ids" / split / "a.png")
    settings = FolderSettings(gap=2)
    train = open_dataset(tmp_path, "train", task="semantic", settings=settings)
    assert train[0].truth.labels[10].tolist() == [0] * 5 + [1] * 8 + [0] * 4 + [1] * 8 + [0] * 5
    assert train.only("val", own_size=True)[0].truth.labels[10].sum() == 20
    with pytest.raises(KirieError, match=r"data\.gap is 2, which parts objects"):
        open_dataset(tmp_path, "train", task="instance", settings=settings)
    with pytest.raises(KirieError, match=r"data\.gap is -1; expected 0 to 64"):
        FolderSettings(gap=-1)
