"""The confusion table of one batch, beside torchmetrics, in one run: `python benchmarks/confusion.py`.

Both sides get the same labels in the type each is at home with: kirie the uint8 maps that label files and
`SemanticMap` hold, torchmetrics the int64 tensors that its documentation shows. Further rows show kirie on those int64
tensors, and torchmetrics without the check of its arguments. Turns are interleaved, and the tables are compared first.
"""

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from kirie.metrics import confusion_table

CLASSES, SHAPE, REPEATS, PROMISED = 19, (4, 1024, 2048), 5, 40


def labels() -> tuple[np.ndarray, np.ndarray]:
    """Result and truth (4, 1024, 2048) uint8: regions of 64 pixels, 10 % of the result wrong, 4 % of the truth void."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, CLASSES, (4, 16, 32), dtype=np.uint8).repeat(64, 1).repeat(64, 2)
    wrong = rng.random(SHAPE, dtype=np.float32) < 0.1
    result = np.where(wrong, rng.integers(0, CLASSES, SHAPE, dtype=np.uint8), truth)
    truth[rng.random(SHAPE, dtype=np.float32) < 0.04] = 255
    return result, truth


def interleaved(calls: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of every call, all in turn, `REPEATS` times after one turn to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(REPEATS + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def peer(*, validate_args: bool = True) -> MulticlassJaccardIndex:
    return MulticlassJaccardIndex(num_classes=CLASSES, ignore_index=255, validate_args=validate_args)


def measure() -> list[dict[str, Any]]:
    """One row per pairing: work, both medians in milliseconds, the median of the paired ratios."""
    result, truth = labels()
    tensors = torch.from_numpy(result).long(), torch.from_numpy(truth).long()
    checked, unchecked = peer(), peer(validate_args=False)
    checked.update(*tensors)
    table = confusion_table(result, truth, CLASSES)
    if not np.array_equal(table[:, :CLASSES], checked.confmat.numpy()):
        raise RuntimeError("The two tables differ: there is nothing to compare.")
    times = interleaved(
        {
            "kirie uint8": lambda: confusion_table(result, truth, CLASSES),
            "kirie int64": lambda: confusion_table(*tensors, CLASSES),
            "torchmetrics": lambda: checked.update(*tensors),
            "torchmetrics, validate_args=False": lambda: unchecked.update(*tensors),
        }
    )
    pairs = (
        ("kirie uint8", "torchmetrics"),
        ("kirie uint8", "torchmetrics, validate_args=False"),
        ("kirie int64", "torchmetrics"),
    )
    return [
        {
            "work": f"confusion table, {SHAPE}, {CLASSES} classes",
            "ours": ours,
            "ours_ms": 1e3 * statistics.median(times[ours]),
            "peer": other,
            "peer_ms": 1e3 * statistics.median(times[other]),
            "ratio": statistics.median(b / a for a, b in zip(times[ours], times[other], strict=True)),
            "promised": PROMISED if (ours, other) == pairs[0] else None,
        }
        for ours, other in pairs
    ]


def main() -> list[dict[str, Any]]:
    """Prints the rows as a markdown table and returns them."""
    rows = measure()
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    print("| work | ours | ms | peer | ms | ratio | promised |\n|---|---|---|---|---|---|---|")
    for row in rows:
        promised = f"{row['promised']} x" if row["promised"] else ""
        print(
            f"| {row['work']} | {row['ours']} | {row['ours_ms']:.1f} | {row['peer']} | {row['peer_ms']:.0f} "
            f"| {row['ratio']:.0f} x | {promised} |"
        )
    return rows


if __name__ == "__main__":
    main()
