"""Prediction of every semantic architecture beside the public implementation it equals, on a CPU, both eager.

    python -m benchmarks.models [--size 512] [--repeats 9] [NAMES...]

Ours is what `kirie predict` does between reading a picture and writing its labels: a uint8 picture goes in, its label
map comes out. Theirs gets the normalised float picture and does no more than its network, the resize to the picture's
size and the arg max. Where a project is on PyPI it is run itself (torchvision, transformers); the others cannot be
installed, and their networks are put together in `model_peers.py` from torchvision's and timm's parts with the same
convolutions in the same order, as the equal numbers of parameters show. Batch 1, float32, random weights, 21 classes.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.model_peers import PEERS
from kirie.models import model_class
from kirie.prediction.predictor import Predictor

CLASSES = 21
OURS: dict[str, dict[str, Any]] = {
    "unet": {"bias": False},
    "fcn": {},
    "deeplabv3": {},
    "deeplabv3plus": {"output_stride": 16},
    "lraspp": {},
    "pspnet": {"encoder": "resnet50s", "encoder_options": {"dilate_first": True}},
    "hrnet": {"size": "w18_small_v2"},
    "segformer": {"size": "b0"},
    "semantic_fpn": {"encoder_options": {"stride_first": True}},
}


def build(name: str, side: str) -> nn.Module:
    """Our model of that name, or its peer, in prediction mode."""
    torch.manual_seed(0)
    model = model_class(name)(3, CLASSES, **OURS[name]) if side == "ours" else PEERS[name][1](CLASSES)  # type: ignore[call-arg]
    return model.eval()


def runner(model: nn.Module, side: str, size: int) -> Callable[[], Any]:
    """What predicts one and the same picture at each call."""
    picture = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    if side == "ours":
        predictor = Predictor(model, device="cpu")  # type: ignore[arg-type]
        return lambda: predictor([picture])
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255

    @torch.inference_mode()
    def run() -> Tensor:
        logits = logits_of(model(image))
        full = nn.functional.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
        return full.argmax(1)

    return run


def logits_of(answer: Any) -> Tensor:
    """The logits in what a peer answers: a tensor, torchvision's dict, or transformers' record."""
    if isinstance(answer, Tensor):
        return answer
    return answer["out"] if "out" in answer else answer["logits"]


def parameters(model: nn.Module) -> int:
    """How many numbers it learned."""
    return sum(p.numel() for p in model.parameters())


def peak_memory(name: str, side: str, size: int) -> float:
    """MiB that building and running a model adds to a fresh process at its highest."""
    words = [sys.executable, "-m", "benchmarks.models", name, "--memory", side, "--size", str(size)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def print_memory(name: str, side: str, size: int) -> None:
    """Prints that number for this process."""
    before = _status("VmRSS")
    run = runner(build(name, side), side, size)
    for _ in range(2):
        run()
    print((_status("VmHWM") - before) / 1024)


def _status(entry: str) -> int:
    """KiB of an entry of Linux's account of this process; the usual ru_maxrss would begin with the parent's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:"))


def measure(name: str, size: int, repeats: int) -> dict[str, Any]:
    """Both sides' medians over paired runs, the median of the pairs' ratios, parameters and peak memory."""
    models = {side: build(name, side) for side in ("ours", "theirs")}
    counts = {side: parameters(model) for side, model in models.items()}
    runs = {side: runner(model, side, size) for side, model in models.items()}
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for repeat in range(repeats + 1):
        for side in ("ours", "theirs") if repeat % 2 else ("theirs", "ours"):
            begun = time.perf_counter()
            runs[side]()
            if repeat:  # the first is a warm-up
                times[side].append(time.perf_counter() - begun)
    ratios = [theirs / ours for ours, theirs in zip(times["ours"], times["theirs"], strict=True)]
    return {
        "model": name,
        "peer": PEERS[name][0],
        "parameters": counts,
        "ms": {side: 1e3 * statistics.median(values) for side, values in times.items()},
        "ratio": statistics.median(ratios),
        "memory": {side: peak_memory(name, side, size) for side in times},
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of models; all when left out")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--memory", choices=("ours", "theirs"), help="only print what one side of one model takes")
    given = parser.parse_args()
    if given.memory:
        print_memory(given.names[0], given.memory, given.size)
        return
    size, repeats = given.size, given.repeats
    print(f"{size} x {size} pixels, {torch.get_num_threads()} threads, {repeats} paired runs\n")
    print("| model | parameters | kirie | peer | ratio | peak memory, kirie | peer |")
    print("|---|---|---|---|---|---|---|")
    for name in given.names or OURS:
        row = measure(name, size, repeats)
        ms, mib, count = row["ms"], row["memory"], row["parameters"]
        same = "" if count["ours"] == count["theirs"] else f" (peer: {count['theirs']:,})"
        print(
            f"| {name} | {count['ours']:,}{same} | {ms['ours']:.0f} ms | {row['peer']}: {ms['theirs']:.0f} ms "
            f"| {row['ratio']:.2f} x | {mib['ours']:.0f} MiB | {mib['theirs']:.0f} MiB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
