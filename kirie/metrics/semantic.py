"""Agreement of masks and of label maps: IoU, Dice, and mean IoU from one confusion table over a whole data set."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.results import SemanticMap

Table = npt.NDArray[np.int64]
PerClass = npt.NDArray[np.float64]

CHUNK = 2**22  # pixels counted at a time: bounds the memory, and stays below 2**24 where cv2's float32 counts round


def iou(a: Any, b: Any, *, empty: float = 1.0) -> float:
    """Intersection over union of two masks, |a & b| / |a | b|, in [0, 1].

    Args:
        a: mask of any shape, bool or 0/1, NumPy array or tensor on any device.
        b: mask of the same shape.
        empty: the value for two empty masks, which agree. One empty mask beside one that is not gives 0.

    Raises:
        KirieError: when the shapes differ or a mask holds anything but 0 and 1.
    """
    xp, a, b = mask_pair(a, b)
    union = int(xp.count_nonzero(a | b))
    return int(xp.count_nonzero(a & b)) / union if union else empty


def dice(a: Any, b: Any, *, empty: float = 1.0) -> float:
    """Dice coefficient of two masks, 2 |a & b| / (|a| + |b|), in [0, 1]; arguments and errors as for `iou`."""
    xp, a, b = mask_pair(a, b)
    total = int(xp.count_nonzero(a)) + int(xp.count_nonzero(b))
    return 2 * int(xp.count_nonzero(a & b)) / total if total else empty


def confusion_table(result: Any, truth: Any, classes: int, *, void: int = 255) -> Table:
    """Pixel counts by truth (rows) and result (columns), exact, as (K, K+1) int64.

    Column K counts the result pixels without a valid class: void, or outside 0..K-1. Pixels whose truth is void are
    in no cell. Where `void` is itself one of 0..K-1, that class has neither row nor column.

    Args:
        result: label map of any shape, e.g. (H, W) or (B, H, W); any integer type, NumPy array or tensor. Tensors on
            an accelerator are counted there.
        truth: label map of the same shape.
        classes: K.
        void: the id that marks truth pixels to leave out.

    Raises:
        KirieError: when shapes differ, labels are not whole numbers, or the truth holds ids that are neither a class
            nor void; the message names them with their pixel counts.
    """
    xp, result, truth = label_pair(result, truth)
    result, truth = result.reshape(-1), truth.reshape(-1)
    table = np.zeros((classes + 2, classes + 1), np.int64)
    for start in range(0, len(truth), CHUNK):
        part = slice(start, start + CHUNK)
        table += _count(xp, result[part], truth[part], classes, void)
    if table[classes + 1].any():
        raise unknown_ids(truth, classes, void)
    return table[:classes]


def label_pair(a: Any, b: Any) -> tuple[Any, Any, Any]:
    """The module that computes on both (numpy or torch), and two integer label arrays of one shape on one device.

    Raises:
        KirieError: when the shapes differ or the labels are not whole numbers.
    """
    xp, a, b = _pair(a, b)
    for labels in (a, b):
        whole = labels.dtype.kind in "bui" if xp is np else not (labels.is_floating_point() or labels.is_complex())
        if not whole:
            raise KirieError(
                f"Label maps hold whole numbers, got {labels.dtype}. Take the argmax of scores over the classes, "
                "or convert with .astype(int)."
            )
    return xp, a, b


def mask_pair(a: Any, b: Any) -> tuple[Any, Any, Any]:
    """The module that computes on both (numpy or torch), and two bool masks of one shape on one device.

    Raises:
        KirieError: when the shapes differ or a mask holds anything but 0 and 1.
    """
    xp, a, b = _pair(a, b)
    return xp, _as_bool(xp, a), _as_bool(xp, b)


def _as_bool(xp: Any, mask: Any) -> Any:
    if mask.dtype == xp.bool:
        return mask
    inside = mask != 0
    if not bool((mask == inside).all()):
        raise KirieError(
            "A mask is bool or holds only 0 and 1; got other values. Compare first: mask == 255 for a 0/255 mask, "
            "labels == c for one class of a label map, scores > 0.5 for probabilities."
        )
    return inside


def _pair(a: Any, b: Any) -> tuple[Any, Any, Any]:
    """Both as NumPy arrays; both as tensors where one lies on an accelerator, so that nothing large is copied back."""
    torch: Any = sys.modules.get("torch")  # a tensor can only come from someone who has imported it
    is_tensor = [torch is not None and isinstance(x, torch.Tensor) for x in (a, b)]
    device = next((x.device for x, t in zip((a, b), is_tensor, strict=True) if t and x.device.type != "cpu"), None)
    if device is None:
        a, b = (x.detach().numpy() if t else np.asarray(x) for x, t in zip((a, b), is_tensor, strict=True))
    else:
        a, b = (
            x.detach().to(device) if t else torch.tensor(np.asarray(x), device=device)
            for x, t in zip((a, b), is_tensor, strict=True)
        )
    if a.shape != b.shape:
        raise KirieError(
            f"Result and truth must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}. Resize the result "
            "to the size of the truth (nearest for labels), never the truth."
        )
    return np if device is None else torch, a, b


def _count(xp: Any, result: Any, truth: Any, classes: int, void: int) -> Table:
    """The full table of one chunk, (K+2, K+1): row K is void truth, row K+1 is truth that is no class."""
    if xp is np:
        result_bytes, truth_bytes = _as_bytes(result), _as_bytes(truth)
        if result_bytes is not None and truth_bytes is not None:
            every = np.arange(256)
            counts = _count_bytes(result_bytes, truth_bytes)
            return _tally(np, np.tile(every, 256), np.repeat(every, 256), (classes, void), counts)
        return _tally(np, result.astype(np.int64), truth.astype(np.int64), (classes, void))
    return _tally(xp, result.to(xp.int64), truth.to(xp.int64), (classes, void))


def _tally(xp: Any, result: Any, truth: Any, scheme: tuple[int, int], counts: Any = None) -> Table:
    """Adds 1, or `counts`, at every pair of ids (int64, one dimension)."""
    classes, void = scheme
    column = xp.where((result >= 0) & (result < classes) & (result != void), result, classes)
    row = xp.where((truth >= 0) & (truth < classes), truth, classes + 1)
    row = xp.where(truth == void, classes, row)
    # Weighted counts are float64, exact up to 2**53.
    table = xp.bincount(row * (classes + 1) + column, counts, minlength=(classes + 2) * (classes + 1))
    on_host: npt.NDArray[Any] = table if xp is np else table.cpu().numpy()
    return on_host.astype(np.int64).reshape(classes + 2, classes + 1)


def _as_bytes(labels: npt.NDArray[Any]) -> npt.NDArray[np.uint8] | None:
    """The labels as uint8 where all fit, else None."""
    if labels.dtype in (np.bool_, np.uint8):
        return labels.view(np.uint8)
    return labels.astype(np.uint8) if labels.min() >= 0 and labels.max() <= 255 else None


def _count_bytes(result: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """How often each code 256 * truth + result occurs, (65536,), exact for up to 2**24 pixels.

    The two bytes side by side are the code already, read as one little-endian 16-bit number: nothing is widened to
    64 bits, and cv2 interleaves and counts on all cores.
    """
    codes = cv2.merge([np.ascontiguousarray(result)[None], np.ascontiguousarray(truth)[None]]).view("<u2")[..., 0]
    counts: Any = cv2.calcHist([codes], [0], None, [65536], [0, 65536])
    flat: npt.NDArray[np.float32] = counts.reshape(-1)
    return flat


def unknown_ids(truth: Any, classes: int, void: int) -> KirieError:
    """The error that names the truth ids that are neither a class nor void, with their pixel counts."""
    host = truth if isinstance(truth, np.ndarray) else truth.cpu().numpy()
    ids, counts = np.unique(host[((host < 0) | (host >= classes)) & (host != void)], return_counts=True)
    listed = ", ".join(f"{i} ({n} pixels)" for i, n in zip(ids[:8].tolist(), counts[:8].tolist(), strict=True))
    more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
    return KirieError(
        f"The truth holds ids that are neither a class (0..{classes - 1}) nor void ({void}): {listed}{more}. Map them "
        "with the ids and void_ids of Classes when the labels are read."
    )


def labels_of(value: Any, classes: Classes) -> Any:
    """The label array of a SemanticMap that has the same class names; any other value as it is.

    Raises:
        KirieError: when the map has other classes, as its ids would mean something else.
    """
    if not isinstance(value, SemanticMap):
        return value
    if value.classes.names != classes.names:
        raise KirieError(
            f"A map with the classes {list(value.classes.names)} cannot be scored by a metric for "
            f"{list(classes.names)}: the ids would mean different things. Build both with the same Classes."
        )
    return value.labels


def quotient(above: npt.NDArray[Any], below: npt.NDArray[Any]) -> PerClass:
    """Quotients as float64, NaN where `below` is 0."""
    out = np.full(above.shape, np.nan)
    np.divide(above, below, out=out, where=below != 0)
    return out


def mean_of_defined(values: PerClass) -> float:
    """The mean of the values that are not NaN; NaN when there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def json_safe(value: Any) -> Any:
    """The value with every NaN inside its dicts and lists replaced by None, as JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list):
        return [json_safe(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


@dataclass(frozen=True, eq=False)
class SemanticReport:
    """Scores of a data set, all from one confusion table.

    With TP, FP and FN of a class counted over all pixels of all pictures whose truth is not void:

    Attributes:
        classes: the K classes.
        table: (K, K+1) int64, see `confusion_table`. A truth pixel whose result has no class is a FN.
    """

    classes: Classes
    table: Table

    @property
    def _hits(self) -> Table:
        return np.diagonal(self.table)

    @property
    def truth_pixels(self) -> Table:
        """(K,) pixels of each class in the truth."""
        return np.asarray(self.table.sum(1))

    @property
    def result_pixels(self) -> Table:
        """(K,) pixels of each class in the result, void truth left out."""
        return np.asarray(self.table[:, : len(self.classes)].sum(0))

    @cached_property
    def iou(self) -> PerClass:
        """(K,) TP / (TP + FP + FN); NaN for a class in neither truth nor result, 0 for one only in the result."""
        return quotient(self._hits, self.truth_pixels + self.result_pixels - self._hits)

    @cached_property
    def dice(self) -> PerClass:
        """(K,) 2 TP / (2 TP + FP + FN); NaN for a class in neither. With two classes, `dice[1]` is the foreground's."""
        return quotient(2 * self._hits, self.truth_pixels + self.result_pixels)

    @cached_property
    def precision(self) -> PerClass:
        """(K,) TP / (TP + FP); NaN for a class not in the result."""
        return quotient(self._hits, self.result_pixels)

    @cached_property
    def recall(self) -> PerClass:
        """(K,) TP / (TP + FN); NaN for a class not in the truth."""
        return quotient(self._hits, self.truth_pixels)

    @property
    def miou(self) -> float:
        """Mean of the IoU over the classes in truth or result; NaN without any."""
        return mean_of_defined(self.iou)

    @property
    def score(self) -> float:
        """The number that training keeps the best of: `miou`."""
        return self.miou

    @property
    def mean_dice(self) -> float:
        """Mean of the Dice over the classes in truth or result; NaN without any."""
        return mean_of_defined(self.dice)

    @property
    def fwiou(self) -> float:
        """Mean of the IoU weighted by the pixels of each class in the truth; NaN without any."""
        total = self.truth_pixels.sum()
        return float((np.nan_to_num(self.iou) * self.truth_pixels).sum() / total) if total else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """Share of the pixels with a truth that are right; NaN without any."""
        total = self.table.sum()
        return float(self._hits.sum() / total) if total else float("nan")

    @property
    def mean_accuracy(self) -> float:
        """Mean of the recall over the classes in the truth; NaN without any."""
        return mean_of_defined(self.recall)

    @property
    def classes_counted(self) -> int:
        """How many classes entered `miou`."""
        return int(np.count_nonzero(~np.isnan(self.iou)))

    @property
    def convention(self) -> str:
        """How `miou` was made, in one sentence."""
        return (
            "One confusion table over all pictures; IoU = TP / (TP + FP + FN) per class; pixels whose truth is void "
            f"({self.classes.void}) are left out, result pixels without a class count as missed; a class in neither "
            "truth nor result is left out of the mean, a class only in the result counts 0; mean over "
            f"{self.classes_counted} of {len(self.classes)} classes."
        )

    def headline(self) -> tuple[tuple[str, float, str], ...]:
        """The name, the value and a note on each of the few numbers to look at, the most important first."""
        counted = f"mean over {self.classes_counted} classes"
        lines = [("mIoU", self.miou, counted), ("mean Dice", self.mean_dice, counted)]
        if len(self.classes) == 2:
            dice = f"Dice of {self.classes.names[1]}"
            lines.insert(0, (dice, float(self.dice[1]), "over all pixels of all pictures"))
        lines.append(("pixel accuracy", self.pixel_accuracy, "share of right pixels"))
        return (*lines, ("frequency-weighted IoU", self.fwiou, "classes weighted by their pixels"))

    def history_row(self) -> dict[str, float]:
        """The few scores that a training writes down at each measurement, `score` among them."""
        row = {"miou": self.miou, "dice": self.mean_dice, "accuracy": self.pixel_accuracy}
        return row | {"foreground_dice": float(self.dice[1])} if len(self.classes) == 2 else row

    def rows(self) -> list[dict[str, Any]]:
        """One dict per class for a table: class, iou, dice, precision, recall (float, NaN where undefined), pixels."""
        return [
            {
                "class": name,
                "iou": float(self.iou[k]),
                "dice": float(self.dice[k]),
                "precision": float(self.precision[k]),
                "recall": float(self.recall[k]),
                "truth_pixels": int(self.truth_pixels[k]),
                "result_pixels": int(self.result_pixels[k]),
            }
            for k, name in enumerate(self.classes.names)
        ]

    def to_dict(self) -> dict[str, Any]:
        """All scores, the rows and the table as plain JSON values; None where a score is undefined."""
        names = ("miou", "mean_dice", "fwiou", "pixel_accuracy", "mean_accuracy", "classes_counted", "convention")
        scores = {name: getattr(self, name) for name in names}
        plain: dict[str, Any] = json_safe(scores | {"per_class": self.rows(), "table": self.table.tolist()})
        return plain


class SemanticMetric:
    """Collects the confusion table of a data set.

    Attributes:
        classes: the K classes.
        table: (K, K+1) int64, all there is of state: the tables of several processes may simply be added.
    """

    def __init__(self, classes: Classes) -> None:
        self.classes = classes
        self.table: Table = np.zeros((len(classes), len(classes) + 1), np.int64)

    def update(self, result: Any, truth: Any) -> None:
        """Adds one picture or a batch: SemanticMaps, or label arrays or tensors of one shape with ids 0..K-1 or void.

        Raises:
            KirieError: as `confusion_table`, or when a map has other classes.
        """
        result, truth = labels_of(result, self.classes), labels_of(truth, self.classes)
        self.table += confusion_table(result, truth, len(self.classes), void=self.classes.void)

    def merge(self, other: SemanticMetric) -> None:
        """Adds what another metric for the same classes has collected.

        Raises:
            KirieError: when the classes differ.
        """
        if other.classes.names != self.classes.names:
            raise KirieError("Only metrics for the same classes can be merged.")
        self.table += other.table

    def quick_score(self) -> float:
        """The mean IoU of what was collected; NaN without any."""
        return self.compute().score

    def compute(self) -> SemanticReport:
        """The report on everything collected so far; the metric may go on collecting."""
        return SemanticReport(self.classes, self.table.copy())
