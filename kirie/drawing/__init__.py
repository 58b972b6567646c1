"""Results as pictures, training as curves, an evaluation as one page.

`draw` lays a result over its picture, `difference` shows where a result is wrong, `contact_sheet` and `iou_panels` set
pictures side by side, the `..._figure` functions plot numbers, and `write_report` makes the page. Everything here takes
plain values and result types; nothing is computed that a metric should compute.

The names below are imported when they are first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kirie.drawing.curves import confusion_figure, distribution_figure, figure_png, history_figure, lines_figure
    from kirie.drawing.mistakes import difference, difference_key
    from kirie.drawing.overlay import draw
    from kirie.drawing.report import PictureRow, ReportContent, ReportFigure, write_report
    from kirie.drawing.sheet import contact_sheet, iou_panels

__all__ = [
    "PictureRow",
    "ReportContent",
    "ReportFigure",
    "confusion_figure",
    "contact_sheet",
    "difference",
    "difference_key",
    "distribution_figure",
    "draw",
    "figure_png",
    "history_figure",
    "iou_panels",
    "lines_figure",
    "write_report",
]

_HOMES = {
    "PictureRow": "report",
    "ReportContent": "report",
    "ReportFigure": "report",
    "confusion_figure": "curves",
    "contact_sheet": "sheet",
    "difference": "mistakes",
    "difference_key": "mistakes",
    "distribution_figure": "curves",
    "draw": "overlay",
    "figure_png": "curves",
    "history_figure": "curves",
    "iou_panels": "sheet",
    "lines_figure": "curves",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
