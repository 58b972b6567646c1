"""Mask R-CNN beside torchvision's, whole predictions on a CPU, both eager: `python -m benchmarks.mask_rcnn`.

    python -m benchmarks.mask_rcnn [--repeats 5] [--frozen]

Both sides hold the same random weights: torchvision's `maskrcnn_resnet50_fpn`, and what `kirie import` makes of its
state dict. A picture of 480 x 640 pixels is resized to a shorter side of 800, as both do by default, and leaves with
100 objects whose masks are run lengths: torchvision's pasted by itself and encoded by pycocotools, as its own
evaluation does it. Ours is what `kirie predict` does, from the uint8 picture on. With `--frozen` torchvision's batch
norm is its `FrozenBatchNorm2d`, as in its released weights, in place of PyTorch's, which is quicker.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import nn
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d

from kirie.prediction.predictor import Predictor
from kirie.weights.load import import_checkpoint

SIZE, PROMISED = (480, 640), 1.2


def peer(*, frozen: bool) -> nn.Module:
    """Torchvision's network with random weights that find at least 100 objects in any picture."""
    torch.manual_seed(0)
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    with torch.no_grad():
        model.rpn.head.bbox_pred.weight.normal_(0, 0.02)
        model.roi_heads.box_predictor.cls_score.weight.normal_(0, 0.3)
        # Outputs that stand for no category of COCO are never the answer, as in released weights.
        unused = [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
        model.roi_heads.box_predictor.cls_score.bias[unused] = -100.0
    if frozen:
        freeze(model)
    return model.eval()


def freeze(module: nn.Module) -> None:
    """Puts torchvision's frozen batch norm, with the same numbers, in place of PyTorch's."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            own = FrozenBatchNorm2d(child.num_features, child.eps)
            own.load_state_dict(
                {key: value for key, value in child.state_dict().items() if key != "num_batches_tracked"}
            )
            setattr(module, name, own)
        else:
            freeze(child)


def picture() -> np.ndarray:
    """A smooth picture (480, 640, 3) of uint8."""
    rough = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    return cv2.resize(rough, SIZE[::-1], interpolation=cv2.INTER_CUBIC)


def runners(*, frozen: bool) -> dict[str, Callable[[], list[Any]]]:
    """What predicts the picture at each call and gives its masks as run lengths, per side."""
    theirs = peer(frozen=frozen)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(theirs.state_dict(), Path(folder) / "maskrcnn.pth")
        ours, _ = import_checkpoint(Path(folder) / "maskrcnn.pth")
    predictor, image = Predictor(ours, device="cpu"), picture()

    @torch.inference_mode()
    def run_theirs() -> list[Any]:
        tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        masks = theirs([tensor])[0]["masks"][:, 0] > 0.5
        return [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks.numpy()]

    return {"ours": lambda: predictor([image])[0].masks.rles(), "theirs": run_theirs}


def measure(repeats: int, *, frozen: bool) -> dict[str, Any]:
    """Both sides' medians over paired runs and the median of the pairs' ratios."""
    runs = runners(frozen=frozen)
    counts = {side: len(run()) for side, run in runs.items()}  # warms up as well
    times: dict[str, list[float]] = {side: [] for side in runs}
    for repeat in range(repeats):
        for side in ("ours", "theirs") if repeat % 2 else ("theirs", "ours"):
            begun = time.perf_counter()
            runs[side]()
            times[side].append(time.perf_counter() - begun)
    ratios = [theirs / ours for ours, theirs in zip(times["ours"], times["theirs"], strict=True)]
    return {
        "work": f"Mask R-CNN R50-FPN, {SIZE[0]} x {SIZE[1]} at a shorter side of 800, masks as run lengths",
        "threads": torch.get_num_threads(),
        "objects": counts,
        "peer": "torchvision maskrcnn_resnet50_fpn" + (", frozen batch norm" if frozen else ""),
        "ms": {side: round(1e3 * statistics.median(values)) for side, values in times.items()},
        "ratio": round(statistics.median(ratios), 2),
        "promised": PROMISED,
    }


def main() -> None:
    """Prints the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--frozen", action="store_true", help="give torchvision its frozen batch norm")
    given = parser.parse_args()
    print(json.dumps(measure(given.repeats, frozen=given.frozen), indent=1))


if __name__ == "__main__":
    main()
