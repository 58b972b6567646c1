import numpy as np
import pytest

from kirie.errors import KirieError
from kirie.prediction.grid import Grid


@pytest.mark.parametrize("length", [1, 32, 33, 63, 64, 65, 95, 96, 97, 127, 200, 1000, 1001])
@pytest.mark.parametrize(("tile", "overlap"), [(64, 0), (64, 16), (64, 32), (100, 25), (96, 24)])
def test_windows_cover_a_picture_and_share_enough(length, tile, overlap):
    grid = Grid.of((length, 50), tile, overlap)
    covered, owned = np.zeros(length, int), np.zeros(length, int)
    for span in grid.rows:
        assert 0 <= span.start < span.stop <= length and span.start <= span.first < span.last <= span.stop
        assert span.start % 32 == 0 and span.stop - span.start <= min(tile, length)
        assert span.stop - span.start > grid.rows[0].stop - 32
        covered[span.start : span.stop] += 1
        owned[span.first : span.last] += 1
    assert covered.min() >= 1 and (owned == 1).all()
    for before, after in zip(grid.rows, grid.rows[1:], strict=False):
        assert before.stop - after.start >= overlap and before.start < after.start
        assert min(before.stop - before.last, after.first - after.start) >= overlap // 2
    step = (tile // 32 * 32 - overlap) // 32 * 32  # the largest there can be
    assert len(grid.rows) == 1 or (len(grid.rows) - 2) * step + tile // 32 * 32 < length


def test_windows_of_a_picture_a_little_larger_than_one_share_little_more_than_they_have_to():
    grid = Grid.of((600, 600), 512, 64)
    assert [(span.start, span.stop) for span in grid.rows] == [(0, 352), (256, 600)]
    assert len(grid) == 4 and grid.shared == 96


@pytest.mark.parametrize(
    ("tile", "overlap", "words"), [(63, 4, "at least 64"), (64, 33, "0 to 32"), (64, -1, "0 to 32")]
)
def test_windows_that_cannot_be_are_refused(tile, overlap, words):
    with pytest.raises(KirieError, match=words):
        Grid.of((100, 100), tile, overlap)
