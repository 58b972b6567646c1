"""An evaluation as one HTML file that needs nothing else: no network, no scripts, no files beside it."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import cv2
from matplotlib.figure import Figure
from PIL import Image

from kirie.drawing.curves import figure_png
from kirie.drawing.mistakes import Mark
from kirie.drawing.picture import ImageLike, as_picture
from kirie.drawing.report_style import STYLE
from kirie.errors import KirieError
from kirie.files import write_text

Cell = str | int | float | None

_WIDTH = 480  # pixels that a picture in the page has at most

MEANINGS: dict[str, str] = {
    "iou": "Pixels that truth and prediction share, divided by the pixels that either has: TP / (TP + FP + FN). "
    "1 is perfect, 0 is no overlap.",
    "dice": "Twice the shared pixels, divided by the pixels of both: 2 TP / (2 TP + FP + FN). Kinder than IoU, "
    "in the same order.",
    "precision": "Of the pixels or objects that were predicted to be the class, the share that is: TP / (TP + FP). "
    "Low means false alarms.",
    "recall": "Of the pixels or objects that are the class, the share that was found: TP / (TP + FN). "
    "Low means misses.",
    "ap": "Average precision: precision averaged over recall and, unless a threshold is named, over the IoU thresholds "
    "0.50 to 0.95.",
    "ap50": "Average precision where an object counts as found at an IoU of 0.50 or more.",
    "ap75": "Average precision where an object counts as found at an IoU of 0.75 or more.",
    "box ap": "AP of the boxes instead of the masks.",
    "f1": "Harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN).",
    "pq": "Panoptic quality: SQ x RQ.",
    "sq": "Segmentation quality: the mean IoU of the segments that were matched.",
    "rq": "Recognition quality: the F1 score of finding segments.",
    "pixels": "Pixels of the class in the truth. A class with few has uncertain scores.",
}


@dataclass(frozen=True)
class ReportFigure:
    """A figure with the sentence below it: a matplotlib Figure, or the bytes of a PNG file."""

    caption: str
    picture: bytes | Figure


@dataclass(frozen=True)
class PictureRow:
    """One picture with what is true, what was predicted and where the two differ; None leaves a place out.

    Attributes:
        name: how to name the picture to a person.
        score: its score; not finite shows as a dash.
        image: the picture.
        truth: the picture with the truth drawn over it.
        prediction: the picture with the result drawn over it.
        difference: where the result is wrong.
    """

    name: str
    score: float
    image: ImageLike | None
    truth: ImageLike | None
    prediction: ImageLike | None
    difference: ImageLike | None = None


@dataclass(frozen=True)
class ReportContent:
    """All that a report shows, as plain values; empty parts are left out.

    Attributes:
        title: the heading.
        subtitle: a line below it, say model, data set and number of pictures.
        summary: (label, value, note) of the headline numbers, the most important first. The note says what it means.
        conventions: sentences that say how the numbers were computed.
        header: column names of the table, the first for the class names.
        rows: one row per class. Floats in [0, 1] get a bar, None and NaN a dash.
        colors: an RGB colour for each row, shown beside its name; or none.
        figures: figures in order, say confusion and distribution.
        worst: the pictures with the lowest scores, the lowest first.
        best: the pictures with the highest scores, the highest first.
        score_name: what the scores of the pictures are, say "mean IoU".
        marks: how errors are drawn in the pictures of differences, see `kirie.drawing.difference_key`.
        marks_note: what else is to be seen there.
        meanings: what further columns mean, by their name; those of common metrics are known.
        language: the language of the names, as HTML writes it.
    """

    title: str
    subtitle: str = ""
    summary: tuple[tuple[str, str, str], ...] = ()
    conventions: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()
    figures: tuple[ReportFigure, ...] = ()
    worst: tuple[PictureRow, ...] = ()
    best: tuple[PictureRow, ...] = ()
    score_name: str = "score"
    marks: tuple[Mark, ...] = ()
    marks_note: str = ""
    meanings: Mapping[str, str] = field(default_factory=dict)
    language: str = "en"

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise KirieError(f"A table row has {len(row)} cells and the header {len(self.header)}: {row}.")
        if self.colors and len(self.colors) != len(self.rows):
            raise KirieError(f"{len(self.colors)} colours for {len(self.rows)} table rows; give one each, or none.")


def write_report(path: str | os.PathLike[str], content: ReportContent) -> None:
    """Writes the report as one HTML file, which replaces an older one only when it is complete.

    Pictures are scaled to at most 480 pixels wide and stored inside the file. Every text is escaped.

    Raises:
        KirieError: when a picture cannot be read or the file not be written.
    """
    write_text(Path(path), report_html(content))


def report_html(content: ReportContent) -> str:
    """The report as HTML text; what a reader needs first stands first."""
    body = [
        f"<header><h1>{_text(content.title)}</h1>{_paragraph(content.subtitle, 'soft')}</header>",
        _summary(content),
        _table(content),
        _figures(content.figures),
        _pictures("Worst pictures", "The lowest scores, the lowest first: look here for what to mend.", content, True),
        _pictures("Best pictures", "The highest scores, the highest first.", content, False),
    ]
    return (
        f'<!doctype html>\n<html lang="{_text(content.language)}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{_text(content.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _text(text: object) -> str:
    return escape(str(text).encode("utf-8", "replace").decode("utf-8"), quote=True)


def _paragraph(text: str, kind: str) -> str:
    return f'<p class="{kind}">{_text(text)}</p>' if text else ""


def _summary(content: ReportContent) -> str:
    cards = [
        f'<div><dt>{_text(label)}</dt><dd class="value">{_text(value)}</dd>'
        + (f'<dd class="note">{_text(note)}</dd></div>' if note else "</div>")
        for label, value, note in content.summary
    ]
    parts = [f'<dl class="headlines">{"".join(cards)}</dl>'] if cards else []
    if content.conventions:
        sentences = "".join(f"<p>{_text(sentence)}</p>" for sentence in content.conventions)
        parts.append(f'<div class="conventions">{sentences}</div>')
    return f"<section>{''.join(parts)}</section>" if parts else ""


def _table(content: ReportContent) -> str:
    if not content.rows:
        return ""
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in content.header)
    lines = []
    for number, row in enumerate(content.rows):
        swatch = _swatch(content.colors[number]) if content.colors else ""
        cells = "".join(_cell(value) for value in row[1:])
        name = f'<span class="name">{swatch}<span>{_text(_written(row[0]))}</span></span>'
        lines.append(f"<tr><td>{name}</td>{cells}</tr>")
    return (
        '<section><h2>By class</h2><div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>{_meanings(content)}</section>"
    )


def _meanings(content: ReportContent) -> str:
    known = {**MEANINGS, **{name.lower(): meaning for name, meaning in content.meanings.items()}}
    entries = [
        f"<dt>{_text(name)}</dt><dd>{_text(known[name.lower()])}</dd>"
        for name in content.header[1:]
        if name.lower() in known
    ]
    if any(_is_missing(value) for row in content.rows for value in row[1:]):
        entries.append("<dt>\N{EN DASH}</dt><dd>No value: nothing to divide by, so the class is not in the means.</dd>")
    return f'<dl class="meanings">{"".join(entries)}</dl>' if entries else ""


def _is_missing(value: Cell) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _written(value: Cell) -> str:
    if value is None or _is_missing(value):
        return "\N{EN DASH}"
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}" if abs(value) <= 1 else f"{value:,.2f}"


def _cell(value: Cell) -> str:
    if _is_missing(value):
        return f'<td class="none">{_written(value)}</td>'
    if isinstance(value, float) and 0 <= value <= 1:
        return f'<td class="bar"><span style="--share:{value * 100:.1f}%">{_written(value)}</span></td>'
    return f"<td>{_text(_written(value))}</td>"


def _swatch(color: tuple[int, int, int]) -> str:
    red, green, blue = (int(part) for part in color)
    return f'<i class="swatch" style="background:rgb({red},{green},{blue})"></i>'


def _figures(figures: tuple[ReportFigure, ...]) -> str:
    blocks = []
    for figure in figures:
        png = figure.picture if isinstance(figure.picture, bytes) else figure_png(figure.picture)
        address = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
        caption = _text(figure.caption)
        blocks.append(f'<figure><img src="{address}" alt="{caption}"><figcaption>{caption}</figcaption></figure>')
    return f'<section><h2>In figures</h2><div class="figures">{"".join(blocks)}</div></section>' if blocks else ""


def _pictures(heading: str, lead: str, content: ReportContent, worst: bool) -> str:
    rows = content.worst if worst else content.best
    if not rows:
        return ""
    key = _marks(content) if worst and any(row.difference is not None for row in rows) else ""
    blocks = "".join(_row(row, content.score_name) for row in rows)
    opening = f'<h2>{heading}</h2><p class="soft lead">{_text(lead)}</p>{key}'
    return f'<section>{opening}<div class="rows">{blocks}</div></section>'


def _marks(content: ReportContent) -> str:
    """What the colours and outlines in the pictures of errors mean."""
    if not content.marks:
        return ""
    signs = "".join(f"<li>{_sign(mark)}{_text(mark.meaning)}</li>" for mark in content.marks)
    return f'<ul class="marks">{signs}</ul>{_paragraph(content.marks_note, "soft lead")}'


def _sign(mark: Mark) -> str:
    red, green, blue = (int(part) for part in mark.color)
    return f'<i class="mark {mark.style}" style="--mark:rgb({red},{green},{blue})"></i>'


def _row(row: PictureRow, score_name: str) -> str:
    places = (("Picture", row.image), ("Truth", row.truth), ("Prediction", row.prediction), ("Errors", row.difference))
    strip = "".join(
        f"<figure>{_image(picture, f'{caption}: {row.name}')}<figcaption>{caption}</figcaption></figure>"
        for caption, picture in places
        if picture is not None
    )
    score = f"{row.score:.4f}" if math.isfinite(row.score) else "\N{EN DASH}"
    return (
        f'<article class="row"><h3><span>{_text(row.name)}</span><b>{_text(score_name)} {score}</b></h3>'
        f'<div class="strip">{strip}</div></article>'
    )


def _image(picture: Any, told: str) -> str:
    """An `img` with the picture inside it: JPEG, or PNG for one so small that every pixel is seen."""
    values = as_picture(picture)
    height, width = values.shape[:2]
    if width > _WIDTH:
        size = (_WIDTH, max(1, round(height * _WIDTH / width)))
        values = cv2.resize(values, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    tiny = width <= 160
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG" if tiny else "JPEG", **({} if tiny else {"quality": 86}))
    address = f"data:image/{'png' if tiny else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    size_now = f'width="{values.shape[1]}" height="{values.shape[0]}"'
    return f'<img{" class=tiny" if tiny else ""} src="{address}" {size_now} alt="{_text(told)}">'
