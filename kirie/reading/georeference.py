"""Where on Earth a picture lies, out of the tags of a GeoTIFF (OGC 19-008r4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

PIXEL_SCALE, TIE_POINTS, TRANSFORMATION, KEYS = 33550, 33922, 34264, 34735
# What repeats the georeference: the four above and the two lists that the keys point into.
TAGS = (PIXEL_SCALE, TIE_POINTS, TRANSFORMATION, KEYS, 34736, 34737)
_RASTER_TYPE, _GEOGRAPHIC, _PROJECTED = 1025, 2048, 3072
_POINT, _USER_DEFINED = 2, 32767

Tag = tuple[int, int, int, Any]  # code, data type, count, value


class Georeference(NamedTuple):
    """How pixel edges become map coordinates.

    Attributes:
        transform: a, b, c, d, e, f of x' = a x + b y + c and y' = d x + e y + f, x and y from the upper left corner.
        epsg: the number of the coordinate system, or None.
    """

    transform: tuple[float, float, float, float, float, float]
    epsg: int | None

    def place(self, points: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Map coordinates (P, 2) of pixel edges x, y (P, 2)."""
        a, b, c, d, e, f = self.transform
        x, y = points[:, 0], points[:, 1]
        return np.stack([a * x + b * y + c, d * x + e * y + f], 1)


def georeference(tags: Sequence[Tag]) -> Georeference | None:
    """What the tags of a TIFF say; None where they do not place the picture by one affine map."""
    values = {code: value for code, _, _, value in tags}
    matrix = np.asarray(values.get(TRANSFORMATION, ()), float)
    scale = np.asarray(values.get(PIXEL_SCALE, ()), float)
    ties = np.asarray(values.get(TIE_POINTS, ()), float)
    if matrix.size == 16:
        a, b, _, c, d, e, _, f = matrix[:8].tolist()
    elif scale.size >= 2 and ties.size == 6:
        column, row, _, x, y, _ = ties.tolist()
        a, b, d, e = float(scale[0]), 0.0, 0.0, -float(scale[1])
        c, f = x - a * column, y - e * row
    else:
        return None
    keys = _keys(values.get(KEYS, ()))
    if keys.get(_RASTER_TYPE) == _POINT:  # coordinates are those of the middle of a pixel
        c, f = c - (a + b) / 2, f - (d + e) / 2
    epsg = keys.get(_PROJECTED, keys.get(_GEOGRAPHIC))
    return Georeference((a, b, c, d, e, f), None if epsg in (None, 0, _USER_DEFINED) else epsg)


def _keys(directory: Any) -> dict[int, int]:
    """The keys whose value is a number in the directory itself."""
    entries = np.asarray(directory, np.int64)
    if entries.size < 4 or entries.size % 4:
        return {}
    return {int(key): int(value) for key, place, _, value in entries.reshape(-1, 4)[1:] if place == 0}
