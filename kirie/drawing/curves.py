"""Numbers as figures: training history, confusion between classes, scores over pictures.

Figures are made with matplotlib's objects and drawn by Agg; `pyplot` and its global state are never touched, so these
functions work in threads and leave a notebook's own figures alone.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import get_data_path
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import MaxNLocator

from kirie.drawing.picture import font_file_for, plain
from kirie.errors import KirieError
from kirie.files import whole_file

INK = "#2d3138"
FAINT = "#8a919c"
ACCENT = "#2f6fbe"
BEST = "#d1481f"
LINES = ("#2f6fbe", "#e47a24", "#2a915a", "#7851a9", "#b8860b", "#0f8b8d", "#c2417c", "#6b7280")

_NUMBERED = 30  # classes up to which a confusion figure shows its numbers
_NAMED = 60  # classes up to which it shows their names


def figure_png(figure: Figure, dpi: int = 144) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def history_figure(rows: Sequence[Mapping[str, float]], path: str | os.PathLike[str]) -> None:
    """Writes the history of a training run as a PNG of up to three panels: losses, validation score, learning rate.

    Args:
        rows: one mapping per epoch. `epoch` counts them (1, 2, ... when missing); `loss` and `loss_...` are training
            losses, `val_loss` and `val_loss_...` validation losses, other `val_...` scores where more is better, of
            which the first has its best epoch marked; `lr` is the learning rate. Values that are missing or not finite
            leave a gap, other entries are not drawn.
        path: the file to write; an older one is replaced only when the new one is complete.

    Raises:
        KirieError: when there are no rows, or none of their entries is known.
    """
    if not rows:
        raise KirieError("A history figure needs at least one epoch, got no rows.")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    epochs = _column(rows, "epoch") if "epoch" in keys else np.arange(1.0, len(rows) + 1)
    losses = [key for key in keys if key.removeprefix("val_").split("_")[0] == "loss"]
    scores = [key for key in keys if key.startswith("val_") and key not in losses]
    panels = [(draw, names) for draw, names in ((_losses, losses), (_scores, scores)) if names]
    panels += [(_rate, ["lr"])] if "lr" in keys else []
    if not panels:
        raise KirieError(f"A history figure needs loss, val_... or lr in its rows, got only {', '.join(keys)}.")
    figure = Figure(figsize=(4.6 * len(panels), 3.4), layout="constrained")
    for axes, (draw, names) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        _plain_axes(axes)
        axes.set_xlabel("epoch", color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, steps=[1, 2, 5, 10]))
        draw(axes, epochs, {name: _column(rows, name) for name in names})
        if len(rows) == 1:  # so that the only number below it is its own
            axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
    png = figure_png(figure)
    with whole_file(Path(path)) as stand_in:
        stand_in.write_bytes(png)


def confusion_figure(table: npt.NDArray[Any], names: Sequence[str]) -> Figure:
    """A heat map of a confusion table: of each true class (row), the share that got each class (column).

    Args:
        table: (K, K) or (K, K + 1) counts, rows truth, columns result; the last of K + 1 columns is "no class" and
            shown only where it has counts.
        names: K class names. Numbers in per cent are written up to 30 classes, names up to 60.

    Raises:
        KirieError: when table and names do not fit.
    """
    count = len(names)
    if table.ndim != 2 or count < 1 or table.shape not in ((count, count), (count, count + 1)):
        raise KirieError(f"Expected a ({count}, {count}) or ({count}, {count + 1}) table, got {table.shape}.")
    columns = list(names)
    if table.shape[1] > count:
        keep = bool(table[:, count].any())
        table, columns = table[:, : count + keep], columns + ["no class"] * keep
    totals = table.sum(1, keepdims=True).astype(float)
    share = np.divide(table, totals, out=np.full(table.shape, np.nan), where=totals > 0)
    side = min(max(2.0 + (0.5 if count <= 12 else 0.4) * len(columns), 3.6), 13.0 if count <= _NAMED else 9.0)
    figure = Figure(figsize=(side + 1.1, side), layout="compressed")  # for axes of a fixed shape
    axes = figure.subplots()
    axes.set_facecolor("#eceef1")
    shown = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    _confusion_axes(axes, list(names), columns)
    if count <= _NUMBERED:
        _write_shares(axes, share, 10 if count <= 12 else 8)
    bar = figure.colorbar(shown, ax=axes, shrink=0.7, aspect=30, format=lambda value, _: f"{value:.0%}")
    bar.outline.set_visible(False)
    bar.ax.tick_params(color=FAINT, labelcolor=FAINT, labelsize=8)
    return figure


def distribution_figure(values: Sequence[float] | npt.NDArray[Any], name: str) -> Figure:
    """A histogram of one number per picture, with the median marked.

    Args:
        values: any number of values; those that are not finite are left out.
        name: what the values are, say "IoU of each picture".

    Raises:
        KirieError: when no value is finite.
    """
    given = np.asarray(values, float).ravel()
    finite = given[np.isfinite(given)]
    if not len(finite):
        raise KirieError(f"A distribution of {name} needs at least one finite value, got {len(given)} without one.")
    low, high = float(finite.min()), float(finite.max())
    limits = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high if high > low else low + 1)
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    _plain_axes(axes)
    axes.hist(finite, bins=20, range=limits, color=ACCENT, alpha=0.85, edgecolor="white", linewidth=0.8)
    median = float(np.median(finite))
    axes.axvline(median, color=BEST, linewidth=1.6, label=f"median {median:.3f}")
    axes.set_xlim(limits)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.set_xlabel(**_written(name))
    axes.set_ylabel(f"pictures (of {len(finite):,})", color=INK)
    axes.legend(frameon=False, labelcolor=INK, loc="upper left" if median > sum(limits) / 2 else "upper right")
    return figure


def lines_figure(
    x: npt.NDArray[Any], lines: Mapping[str, npt.NDArray[Any]], *, across: str, up: str, marks: bool = False
) -> Figure:
    """Shares as lines over one axis.

    Args:
        x: (N,) places on the axis, ascending.
        lines: (N,) values in [0, 1] by the name of the line; those that are not finite leave a gap.
        across: what the places are.
        up: what the values are.
        marks: whether to mark each value with a dot.

    Raises:
        KirieError: when there is no finite value.
    """
    if not any(np.isfinite(values).any() for values in lines.values()):
        raise KirieError(f"A figure of {up} needs at least one finite value, got none.")
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    _plain_axes(axes)
    for turn, (name, values) in enumerate(lines.items()):
        dash = ("-", "--", "-.", ":")[turn % 4]  # so that lines differ without colours
        color, dot = LINES[turn % len(LINES)], "o" if marks else ""
        axes.plot(x, values, dash, color=color, linewidth=2, label=name, marker=dot, markersize=4, clip_on=False)
    margin = 0.02 * float(x[-1] - x[0])
    axes.set_xlim(x[0] - margin, x[-1] + margin)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(across, color=INK)
    axes.set_ylabel(up, color=INK)
    _legend(axes)
    return figure


def _column(rows: Sequence[Mapping[str, float]], key: str) -> npt.NDArray[np.float64]:
    values = []
    for row in rows:
        try:
            value = float(row.get(key, math.nan))
        except (TypeError, ValueError):  # an empty field of a CSV file
            value = math.nan
        values.append(value if math.isfinite(value) else math.nan)
    return np.array(values)


def _losses(axes: Axes, epochs: npt.NDArray[Any], columns: dict[str, npt.NDArray[Any]]) -> None:
    axes.set_title("Loss", color=INK, loc="left", fontweight="bold")
    for turn, (name, values) in enumerate(columns.items()):
        whole, held_out = name in ("loss", "val_loss"), name.startswith("val_")
        label = {"loss": "training", "val_loss": "validation"}.get(name, "validation " * held_out + _spoken(name))
        _line(axes, epochs, values, LINES[turn % len(LINES)], label, 2.2 if whole else 1.2, "--" if held_out else "-")
    _legend(axes)
    found = np.concatenate(list(columns.values()))
    if np.nanmin(found, initial=np.inf) >= 0:
        axes.set_ylim(bottom=0)


def _scores(axes: Axes, epochs: npt.NDArray[Any], columns: dict[str, npt.NDArray[Any]]) -> None:
    axes.set_title("Validation", color=INK, loc="left", fontweight="bold")
    for turn, (name, values) in enumerate(columns.items()):
        label = _spoken(name)
        _line(axes, epochs, values, LINES[turn % len(LINES)], label, 1.4 if turn else 2.2, "-")
    name, values = next(iter(columns.items()))
    if np.isfinite(values).any():
        best = int(np.nanargmax(values))
        told = f"best {_spoken(name)} {values[best]:.4f}, epoch {epochs[best]:g}"
        axes.plot([epochs[best]], [values[best]], "o", color=BEST, markersize=8, label=told, zorder=5)
    axes.margins(y=0.12)
    _legend(axes)


def _rate(axes: Axes, epochs: npt.NDArray[Any], columns: dict[str, npt.NDArray[Any]]) -> None:
    axes.set_title("Learning rate", color=INK, loc="left", fontweight="bold")
    _line(axes, epochs, columns["lr"], FAINT, "lr", 2.0, "-")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylim(bottom=0)


def _spoken(name: str) -> str:
    """A column of the history as a person writes it: `val_mean_dice` is mean Dice, `loss_dice` Dice."""
    words = name.removeprefix("val_").removeprefix("loss_").split("_")
    proper = {
        "miou": "mIoU",
        "iou": "IoU",
        "fwiou": "fwIoU",
        "dice": "Dice",
        "ap": "AP",
        "ap50": "AP50",
        "ap75": "AP75",
        "pq": "PQ",
        "sq": "SQ",
        "rq": "RQ",
    }
    return " ".join(proper.get(word, word) for word in words)


def _line(
    axes: Axes, epochs: npt.NDArray[Any], values: npt.NDArray[Any], color: str, label: str, width: float, dash: str
) -> None:
    held = np.isfinite(values)  # a score measured every few epochs is joined across the gaps
    marker = "o" if held.sum() <= 3 else ""
    axes.plot(epochs[held], values[held], dash, color=color, linewidth=width, label=label, marker=marker, markersize=4)


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)


def _plain_axes(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c4c9d0")
    axes.tick_params(color="#c4c9d0", labelcolor=FAINT, labelsize=9)
    axes.grid(axis="y", color="#eceef1", linewidth=1)
    axes.set_axisbelow(True)


def _confusion_axes(axes: Axes, rows: list[str], columns: list[str]) -> None:
    axes.set_ylabel("truth", color=INK, fontweight="bold")
    axes.set_xlabel("prediction", color=INK, fontweight="bold")
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    size = 10 if len(rows) <= 12 else 8 if len(rows) <= _NUMBERED else 6
    for axis, words in ((axes.xaxis, columns), (axes.yaxis, rows)):
        if len(rows) > _NAMED:
            axis.set_major_locator(MaxNLocator(integer=True, nbins=12))
            axis.set_tick_params(labelcolor=FAINT, labelsize=8)
            continue
        styles = [_text_style(word) for word in words]
        axis.set_ticks(range(len(words)), [style.pop("text") for style in styles])
        for label, style in zip(axis.get_ticklabels(), styles, strict=True):
            label.set(**style)
            label.set_fontsize(size)
    if len(columns) > 6 or max(map(len, columns)) > 7:
        for label in axes.get_xticklabels() if len(rows) <= _NAMED else []:
            label.set(rotation=45, ha="left", rotation_mode="anchor")


def _write_shares(axes: Axes, share: npt.NDArray[Any], size: int) -> None:
    """Each cell's share in per cent; shares that round to 0 are left out, so that the eye finds the errors."""
    for (row, column), value in np.ndenumerate(share):
        if not math.isfinite(value) or round(value * 100) == 0:
            continue
        color = "white" if value > 0.55 else INK
        axes.text(column, row, f"{value * 100:.0f}", ha="center", va="center", color=color, fontsize=size)
    for row in np.flatnonzero(np.isnan(share).all(1)):
        middle = (share.shape[1] - 1) / 2
        axes.text(
            middle, int(row), "not in the truth", ha="center", va="center", color=FAINT, fontsize=size, style="italic"
        )


def _written(text: str) -> dict[str, Any]:
    style = _text_style(text)
    return {"xlabel": style.pop("text"), **style}


def _text_style(text: str) -> dict[str, Any]:
    """Text with the font that has its letters; letters that no font here has become question marks, without a warning.

    `$` is not mathematics in a class name.
    """
    text = plain(text)
    style: dict[str, Any] = {"color": INK, "parse_math": False}
    letters = {ord(letter) for letter in text}
    default = os.path.join(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    for path in (default, font_file_for(text)):
        if path is None or letters - FT2Font(path).get_charmap().keys():
            continue
        return (
            {**style, "text": text} if path == default else {**style, "text": text, "font": FontProperties(fname=path)}
        )
    known = FT2Font(default).get_charmap().keys()
    return {**style, "text": "".join(letter if ord(letter) in known else "?" for letter in text)}
