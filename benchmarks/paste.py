"""Masks of a network at a picture's size, from its small maps to run lengths: `python -m benchmarks.paste`.

    python -m benchmarks.paste [--repeats 7]

Time: 100 maps of 28 x 28 probabilities in boxes of 16 to 900 pixels a side on a picture of 1080 x 1920. Theirs is
torchvision's `paste_masks_in_image`, the threshold, and pycocotools' encoder; ours gives the very same run lengths,
which is checked first. Memory: 300 objects on a picture of 4000 x 3000 in a process of its own, from what the network
answers to run lengths, above what the process had before; boxes are up to the whole picture.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import paste_masks_in_image

from kirie.models.parts.pasting import cut_boxes

FASTER, MEMORY = 20, 1000  # times; MB


def answers(count: int, size: tuple[int, int], largest: float) -> tuple[Tensor, Tensor]:
    """Round and ragged maps (N, 28, 28) of probabilities, and boxes (N, 4) with sides from 16 pixels on."""
    rough = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    place = torch.linspace(-1, 1, 28)
    fine = F.interpolate(rough, (28, 28), mode="bicubic")[:, 0] - 0.6 * (place[None] ** 2 + place[:, None] ** 2)
    rng = np.random.default_rng(0)
    sides = np.exp(rng.uniform(np.log(16), np.log(largest), (count, 2))).clip(max=size[::-1])
    first = rng.uniform(0, 1, (count, 2)) * (np.array(size[::-1]) - sides)
    boxes = np.concatenate([first, first + sides], 1).astype(np.float32)
    return (12 * fine).sigmoid(), torch.from_numpy(boxes)


def ours(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Run lengths by kirie, in torchvision's convention."""
    return cut_boxes(maps.numpy(), boxes.numpy(), size, whole_pixels=True).rles()


def theirs(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Run lengths by torchvision and pycocotools."""
    masks = paste_masks_in_image(maps[:, None], boxes, size)[:, 0] > 0.5
    return [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks.numpy()]


def speed(repeats: int) -> dict[str, Any]:
    """Medians of both sides over paired runs, and the median of the pairs' ratios."""
    size = (1080, 1920)
    given = (*answers(100, size, 900), size)
    if ours(*given) != theirs(*given):
        raise RuntimeError("The two sides give other masks: there is nothing to compare.")
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for repeat in range(repeats):
        for side in (ours, theirs) if repeat % 2 else (theirs, ours):
            begun = time.perf_counter()
            side(*given)
            times[side.__name__].append(time.perf_counter() - begun)
    ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
    return {
        "work": "100 masks of 28 x 28 into run lengths at 1080 x 1920",
        "threads": torch.get_num_threads(),
        "ms": {side: round(1e3 * statistics.median(values), 1) for side, values in times.items()},
        "ratio": round(statistics.median(ratios), 1),
        "promised": FASTER,
    }


def print_memory() -> None:
    """Prints the MB by which this process grows at its highest while it cuts 300 masks."""
    size = (3000, 4000)
    given = (*answers(300, size, 6000), size)
    before = _status("VmRSS")
    found = ours(*given)
    print(json.dumps({"objects": len(found), "MB": round((_status("VmHWM") - before) * 1024 / 1e6)}))


def memory() -> dict[str, Any]:
    """What a fresh process says of `print_memory`."""
    words = [sys.executable, "-m", "benchmarks.paste", "--memory"]
    found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return {"work": "300 objects on a picture of 4000 x 3000, memory above the idle process", **found, "most": MEMORY}


def _status(entry: str) -> int:
    """KiB of an entry of Linux's account of this process; the usual ru_maxrss would begin with the parent's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:"))


def main() -> None:
    """Prints the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory", action="store_true", help="only print what 300 objects take in this process")
    given = parser.parse_args()
    if given.memory:
        print_memory()
        return
    print(json.dumps([speed(given.repeats), memory()], indent=1))


if __name__ == "__main__":
    main()
