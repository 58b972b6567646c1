"""What the page of an evaluation shows of the numbers of each task; the page itself is the same for all."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from kirie.drawing import ReportContent, ReportFigure, confusion_figure, difference_key, lines_figure
from kirie.metrics.average_precision import RECALLS
from kirie.metrics.instance import InstanceReport
from kirie.metrics.matching import IOUS
from kirie.metrics.panoptic import PanopticReport
from kirie.metrics.report import Report
from kirie.metrics.semantic import SemanticReport


def numbers_page(task: str, report: Report, title: str) -> ReportContent:
    """The page of a report, without its pictures."""
    return PAGES[task](report, title)


def semantic_page(report: SemanticReport, title: str) -> ReportContent:
    """Of IoU and Dice by class, and of which class was taken for which."""
    columns = {"IoU": "iou", "Dice": "dice", "Precision": "precision", "Recall": "recall", "Pixels": "truth_pixels"}
    shares = confusion_figure(report.table, report.classes.names)
    return ReportContent(
        title=title,
        figures=(ReportFigure("Of the pixels of each true class, the share that was given each class.", shares),),
        score_name="mean IoU",
        marks=difference_key(report.classes, "semantic"),
        marks_note="Right pixels are grey, white lines are the borders of the truth, and hatched pixels have no truth "
        "and do not count.",
        **_numbers(report, columns),
    )


def instance_page(report: InstanceReport, title: str) -> ReportContent:
    """Of AP and matches by class, with precision over recall and matches over the IoU asked for."""
    columns = {
        "AP": "ap",
        "AP50": "ap50",
        "AP75": "ap75",
        "Box AP": "box_ap",
        "Accuracy": "matching_accuracy",
        "Precision": "precision",
        "Recall": "recall",
        "Objects": "objects",
        "Results": "results",
    }
    shown = f"results with a score of {report.threshold:.2f} or more"
    return ReportContent(
        title=title,
        figures=tuple(_instance_figures(report)),
        score_name="matching accuracy",
        marks=difference_key(report.classes, "instance"),
        marks_note=f"Only {shown} are drawn. Found means matched one to one with a result of its class at an IoU of "
        "0.5 or more, so an object with the wrong class is both missed and false. Hatched regions are crowds, which do "
        "not count.",
        meanings={
            "Accuracy": "Matched pairs at an IoU of 0.50, divided by all objects of truth and prediction, a pair "
            f"counted once: TP / (TP + FP + FN) of {shown}. Precision and recall are of the same matches.",
            "Objects": "Objects of the class in the truth, without crowds. A class with few has uncertain scores.",
            "Results": f"The {shown}, without those in crowds.",
        },
        **_numbers(report, columns),
    )


def _instance_figures(report: InstanceReport) -> list[ReportFigure]:
    figures = []
    curves = {f"IoU {iou:.2f}": report.masks.curve(iou) for iou in (0.5, 0.75)}
    if not np.isnan(list(curves.values())).all():
        told = (
            "Precision of the masks over recall, mean over classes, as the score from which results count goes down. "
            "The area below is AP50 and AP75; far to the right lie the objects that are hard to find."
        )
        figures.append(ReportFigure(told, lines_figure(RECALLS, curves, across="recall", up="precision")))
    matching = report.matching
    lines = {"matching accuracy": matching.accuracy, "F1": matching.f1, "panoptic quality": matching.panoptic_quality}
    if not np.isnan(list(lines.values())).all():
        told = (
            f"Matches of results with a score of {report.threshold:.2f} or more by the IoU that is asked for, classes "
            "ignored. A line that falls early: objects are found, but their outlines are not exact."
        )
        figure = lines_figure(np.array(IOUS), lines, across="IoU threshold", up="score", marks=True)
        figures.append(ReportFigure(told, figure))
    return figures


def panoptic_page(report: PanopticReport, title: str) -> ReportContent:
    """Of PQ by class, and of the segments that make it up."""
    columns = {"Kind": "kind", "PQ": "pq", "SQ": "sq", "RQ": "rq", "TP": "tp", "FP": "fp", "FN": "fn"}
    return ReportContent(
        title=title,
        score_name="panoptic quality",
        marks=difference_key(report.classes, "panoptic"),
        marks_note="Pixels of the right class are grey, and things have outlines: found means matched with a result of "
        "its class at an IoU above 0.5, so a thing with the wrong class is both missed and false. White lines are the "
        "borders of true stuff; hatched are void and crowds, which do not count.",
        meanings={
            "Kind": "Of things each object is a segment, of stuff all of a class in a picture is one.",
            "TP": "Segments of the result matched with one of the truth of their class, at an IoU above 0.5.",
            "FP": "Segments of the result without a match, but those mostly in void or in crowds of their class.",
            "FN": "Segments of the truth without a match, but crowds.",
        },
        **_numbers(report, columns),
    )


PAGES: dict[str, Callable[[Any, str], ReportContent]] = {
    "semantic": semantic_page,
    "instance": instance_page,
    "panoptic": panoptic_page,
}


def _numbers(report: Report, columns: dict[str, str]) -> dict[str, Any]:
    """The parts of a page that every report fills in the same way; `columns` of the table by the key in its rows."""
    return {
        "summary": tuple((label, written(value), note) for label, value, note in report.headline()),
        "conventions": (report.convention,),
        "header": ("Class", *columns),
        "rows": tuple((row["class"], *(row[key] for key in columns.values())) for row in report.rows()),
        "colors": report.classes.colors,
    }


def written(value: float) -> str:
    """A score as text; "no value" where it is undefined."""
    return "no value" if math.isnan(value) else f"{value:.4f}"
