"""The panoptic quality of one picture, beside torchmetrics, in one run: `python benchmarks/panoptic.py`.

Both sides get the same segments in the type each is at home with: kirie two `PanopticMap`s, torchmetrics int64 tensors
with the class and the object of every pixel. A second row makes kirie's maps anew, with their checks, in each turn.
Turns are interleaved, and the counts and scores of both are compared first.

The two follow different conventions where a result leaves pixels void, which this one does not: torchmetrics takes them
out of the truth's area and forgives a miss that is mostly void, kirie and panopticapi do neither. Nor does torchmetrics
know crowds, and it takes all stuff of a class for one segment, as it is here.
"""

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torchmetrics.detection import PanopticQuality

from kirie.classes import Classes
from kirie.metrics import PanopticMetric
from kirie.results import PanopticMap, Segment

SHAPE, SEGMENTS, STUFF, THINGS, REPEATS, PROMISED = (640, 1280), 500, 11, 8, 7, 100
CLASSES = Classes(tuple(f"class {i}" for i in range(STUFF + THINGS)), things=(False,) * STUFF + (True,) * THINGS)
VOID = len(CLASSES)  # what torchmetrics is told where the truth is void


def labelled() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Ids (H, W) and class of each id of result and truth: cells as 500 segments, shifted, some renamed, 4 % void."""
    rng = np.random.default_rng(0)
    things, cells = SEGMENTS - STUFF, 3 * SEGMENTS // 2  # the other cells are parts of the stuff
    seeds = np.zeros(SHAPE, np.int32)
    seeds.flat[rng.choice(seeds.size, cells, replace=False)] = np.arange(1, cells + 1)
    nearest = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    cell = seeds[tuple(nearest)]
    ids = np.where(cell <= things, STUFF + cell, 1 + cell % STUFF).astype(np.int32)
    labels = np.concatenate(
        [np.arange(-1, STUFF), rng.integers(STUFF, STUFF + THINGS, things)]
    )  # of each id; 0 is void
    renamed = np.where(rng.random(len(labels)) < 0.1, rng.integers(STUFF, STUFF + THINGS, len(labels)), labels)
    renamed[: STUFF + 1] = labels[: STUFF + 1]
    result = np.roll(ids, (3, 5), (0, 1))
    ids[rng.random((SHAPE[0] // 16, SHAPE[1] // 16)).repeat(16, 0).repeat(16, 1) < 0.04] = 0
    return (result, renamed), (ids, labels)


def panoptic(ids: np.ndarray, labels: np.ndarray) -> PanopticMap:
    """What kirie takes: a map of labelled segments."""
    areas = np.bincount(ids.ravel(), minlength=len(labels)).tolist()
    rows = enumerate(labels.tolist())
    segments = [Segment(i, k, CLASSES.things[k], 1.0, areas[i]) for i, k in rows if i and areas[i]]
    return PanopticMap(ids, tuple(segments), CLASSES)


def tensor(ids: np.ndarray, labels: np.ndarray) -> torch.Tensor:
    """What torchmetrics takes: the same as (1, H, W, 2)."""
    classes = np.where(ids == 0, VOID, labels[ids])
    return torch.from_numpy(np.stack([classes, ids.astype(np.int64)], -1)[None])


def peer() -> PanopticQuality:
    return PanopticQuality(things=set(range(STUFF, VOID)), stuffs=set(range(STUFF)))


def compare(maps: tuple[PanopticMap, ...], tensors: tuple[torch.Tensor, ...]) -> None:
    """Raises where the two do not count and score alike."""
    metric, other = PanopticMetric(CLASSES), peer()
    metric.update(*maps)
    other.update(*tensors)
    counts = torch.stack([other.true_positives, other.false_positives, other.false_negatives]).numpy()
    order = [*range(STUFF, VOID), *range(STUFF)]  # torchmetrics has the things first
    alike = np.array_equal(metric.counts[:, order], counts)
    # torchmetrics divides in float32.
    if not alike or not np.isclose(metric.quick_score(), float(other.compute()), rtol=1e-6):
        raise RuntimeError("The two disagree: there is nothing to compare.")


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


def measure() -> list[dict[str, Any]]:
    """One row per pairing: work, both medians in milliseconds, the median of the paired ratios."""
    sides = labelled()
    maps, tensors = tuple(panoptic(*side) for side in sides), tuple(tensor(*side) for side in sides)
    if {len(each.segments) for each in maps} != {SEGMENTS}:
        raise RuntimeError(f"Expected {SEGMENTS} segments, got {[len(each.segments) for each in maps]}.")
    compare(maps, tensors)
    ours, other = PanopticMetric(CLASSES), peer()
    times = interleaved(
        {
            "kirie": lambda: ours.update(*maps),
            "kirie, maps made anew": lambda: ours.update(*(panoptic(*side) for side in sides)),
            "torchmetrics": lambda: other.update(*tensors),
        }
    )
    return [
        {
            "work": f"panoptic quality, {SHAPE}, {SEGMENTS} segments",
            "ours": name,
            "ours_ms": 1e3 * statistics.median(times[name]),
            "peer": "torchmetrics",
            "peer_ms": 1e3 * statistics.median(times["torchmetrics"]),
            "ratio": statistics.median(b / a for a, b in zip(times[name], times["torchmetrics"], strict=True)),
            "promised": PROMISED if name == "kirie" else None,
        }
        for name in ("kirie", "kirie, maps made anew")
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
            f"| {row['work']} | {row['ours']} | {row['ours_ms']:.2f} | {row['peer']} | {row['peer_ms']:.0f} "
            f"| {row['ratio']:.0f} x | {promised} |"
        )
    return rows


if __name__ == "__main__":
    main()
