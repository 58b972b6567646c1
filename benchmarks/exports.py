"""Every architecture of full size exported to ONNX Runtime and OpenVINO: agreement at three sizes, time and file size.

    python -m benchmarks.exports [NAMES...]

Models have their default arguments and random weights that decide something (normalised statistics, spread class
logits). What is compared is whole predictions, as `kirie export` compares them: the share of equal pixels of label
maps; of objects, whether both find the same ones, and the least IoU of their masks; at these three sizes and the odd
ones of every export. Times are whole predictions of one picture of the first size, medians of runs in turn.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from kirie.errors import KirieError
from kirie.export.write import export_model
from kirie.models import MODELS, model_class
from kirie.models.contract import SegmentationModel
from kirie.models.file import save
from kirie.runtimes import RUNTIMES

SIZES = ((512, 512), (301, 447), (200, 333))
# Untrained models find hundreds of objects, in the flat parts of a picture many of one score, between which rounding
# decides; the surest few are compared.
SURE = {
    "mask_rcnn": {"score_threshold": 0.3}, "yolact": {"input_size": 544, "score_threshold": 0.3},
    "solov2": {"score_threshold": 0.8}, "panoptic_fpn": {"score": 0.3, "stuff_area": 64},
}  # fmt: skip


def build(name: str) -> SegmentationModel:
    """The model with default arguments, 21 classes, and weights whose answers are decided."""
    torch.manual_seed(0)
    model: Any = model_class(name)(3, 21, **SURE.get(name, {}))  # type: ignore[call-arg]
    settle(model)
    return model.eval()


@torch.no_grad()
def settle(model: Any) -> None:
    """Batch norms get the statistics of a few noisy pictures; the layers that answer, weights of some size."""
    momenta = {}
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            momenta[module], module.momentum = module.momentum, None
            module.reset_running_stats()
            module.train()
    model.network(
        torch.stack([torch.from_numpy(picture((256, 320), seed)).permute(2, 0, 1) / 255 for seed in range(2)])
    )
    for module, momentum in momenta.items():
        module.momentum = momentum
    own = getattr(model, "instance", model)
    if hasattr(own, "box_head"):
        own.box_head.logits.weight.normal_(0, 0.3)
        own.proposals.codes.weight.normal_(0, 0.02)
    if type(model).__name__ == "SOLOv2":
        model.head.categories.weight.normal_(0, 0.05)
        model.head.kernels.weight.normal_(0, 0.05)


def picture(size: tuple[int, int], seed: int) -> np.ndarray:
    """A smooth picture (H, W, 3) of uint8."""
    rough = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    return cv2.resize(rough, size[::-1], interpolation=cv2.INTER_CUBIC)


def measure(name: str, folder: Path) -> list[str]:
    """A row of the table for each runtime."""
    path = save(build(name), folder / f"{name}.safetensors")
    pictures = [picture(size, seed) for seed, size in enumerate(SIZES)]
    rows = []
    for runtime in RUNTIMES:
        try:
            done = export_model(path, to=runtime, pictures=pictures)
        except KirieError as error:
            rows.append(f"| `{name}` | {runtime} | {error} |")
            continue
        proof, times = done.proof, done.export.milliseconds
        same = f"{proof.equal:.4%} of pixels"
        if proof.least_iou is not None:
            same = f"{proof.equal:.1%} of objects, IoU {proof.least_iou:.4f}"
        files = [done.path, *(done.path.with_name(file) for file in done.export.files)]
        rows.append(
            f"| `{name}` | {runtime} | {same} | {proof.difference:.1e} | {times['torch']:.0f} ms | "
            f"{times[runtime]:.0f} ms | {done.export.gain:.2f} x | "
            f"{sum(file.stat().st_size for file in files) / 2**20:.0f} MiB |"
        )
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of models; all when left out")
    given = parser.parse_args()
    print("| model | runtime | the same | largest difference | kirie in PyTorch | in the runtime | ratio | files |")
    print("|---|---|---|---|---|---|---|---|")
    for name in given.names or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            for row in measure(name, Path(folder)):
                print(row, flush=True)


if __name__ == "__main__":
    main()
