"""Numbers that say how well results agree with the truth, each stating its own convention.

Every metric is a class with `update(result, truth)`, `merge(other)` and `compute()`; its state is counts, or what makes
counts, so that metrics of several processes add up to the metric of all pictures, and the division happens once, at the
end. The metric of a task and its report are as `report.Metric` and `report.Report` say.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kirie.errors import KirieError
from kirie.lookup import look_up

if TYPE_CHECKING:
    from kirie.metrics.boundary import (
        BoundaryMetric,
        BoundaryReport,
        average_surface_distance,
        boundary_f,
        boundary_iou,
        hausdorff,
        hausdorff95,
    )
    from kirie.metrics.instance import InstanceMetric, InstanceReport
    from kirie.metrics.panoptic import PanopticMetric, PanopticReport
    from kirie.metrics.semantic import SemanticMetric, SemanticReport, confusion_table, dice, iou

METRICS = {
    "semantic": "kirie.metrics.semantic:SemanticMetric",
    "instance": "kirie.metrics.instance:InstanceMetric",
    "panoptic": "kirie.metrics.panoptic:PanopticMetric",
    "boundary": "kirie.metrics.boundary:BoundaryMetric",
}

__all__ = [
    "METRICS",
    "BoundaryMetric",
    "BoundaryReport",
    "InstanceMetric",
    "InstanceReport",
    "PanopticMetric",
    "PanopticReport",
    "SemanticMetric",
    "SemanticReport",
    "average_surface_distance",
    "boundary_f",
    "boundary_iou",
    "confusion_table",
    "dice",
    "hausdorff",
    "hausdorff95",
    "iou",
    "metric_class",
]

_HOMES = {
    "BoundaryMetric": "boundary",
    "BoundaryReport": "boundary",
    "InstanceMetric": "instance",
    "InstanceReport": "instance",
    "PanopticMetric": "panoptic",
    "PanopticReport": "panoptic",
    "SemanticMetric": "semantic",
    "SemanticReport": "semantic",
    "average_surface_distance": "boundary",
    "boundary_f": "boundary",
    "boundary_iou": "boundary",
    "confusion_table": "semantic",
    "dice": "semantic",
    "hausdorff": "boundary",
    "hausdorff95": "boundary",
    "iou": "semantic",
}


def metric_class(name: str) -> Any:
    """The class of a metric, a row of `METRICS`: the name of a task for what models of that task are compared by.

    Raises:
        KirieError: when there is no such metric.
    """
    if name not in METRICS:
        raise KirieError(f"There is no metric {name!r:.80}. Known: {', '.join(METRICS)}.")
    return look_up(METRICS[name])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
