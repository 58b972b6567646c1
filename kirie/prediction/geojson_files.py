"""Objects as polygons for maps and microscopes: GeoJSON (RFC 7946), which QGIS and QuPath read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kirie.files import whole_file
from kirie.masks import Crop
from kirie.outlines import polygons
from kirie.prediction.predicted import Predicted
from kirie.reading.georeference import Georeference


def save_geojson(out: Path, one: Predicted) -> tuple[Path, ...]:
    """Writes `NAME.geojson`: a feature for each object that has a pixel, holes and parts as they are.

    Coordinates are those of the map where the picture's file says where it lies, with a `crs` as GDAL reads it beside,
    and otherwise x, y in pixels from the upper left corner. A feature's `id` is the number of the object that `ids` and
    tables have; its properties are class, score and area in pixels.
    """
    path = out / f"{one.name}.geojson"
    place = one.place
    head: dict[str, Any] = {"type": "FeatureCollection"}
    if place is not None and place.epsg is not None:
        head["crs"] = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{place.epsg}"}}
    with whole_file(path) as stand_in, stand_in.open("w", encoding="utf-8") as file:
        file.write(f'{json.dumps(head)[:-1]}, "features": [')
        number, between = 0, "\n"
        for part in one.parts():
            rows = zip(part.labels.tolist(), part.scores.tolist(), part.masks.crops(), strict=True)
            for label, score, crop in rows:
                number += 1
                if not crop.bits.size:
                    continue
                facts = {"class": part.classes.names[label], "score": round(score, 6), "area": int(crop.bits.sum())}
                feature = {"type": "Feature", "id": number, "properties": facts, "geometry": _geometry(crop, place)}
                file.write(between + json.dumps(feature))
                between = ",\n"
        file.write("\n]}\n")
    return (path,)


def _geometry(crop: Crop, place: Georeference | None) -> dict[str, Any]:
    parts = [
        [_ring(ring if place is None else place.place(ring), outer=index == 0) for index, ring in enumerate(rings)]
        for rings in polygons(*crop)
    ]
    if len(parts) == 1:
        return {"type": "Polygon", "coordinates": parts[0]}
    return {"type": "MultiPolygon", "coordinates": parts}


def _ring(points: npt.NDArray[Any], *, outer: bool) -> list[list[float]]:
    """A closed ring, anticlockwise as x goes right and y up when it is an outer one, otherwise clockwise."""
    x, y = points[:, 0].astype(np.float64), points[:, 1].astype(np.float64)
    turn = np.dot(x - x[0], np.roll(y, -1) - np.roll(y, 1))
    rows = points[::-1] if (turn > 0) != outer else points
    return [*rows.tolist(), rows[0].tolist()]
