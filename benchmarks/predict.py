"""Whole predictions by the runtime that kirie picks, beside the public implementations in eager PyTorch, on a CPU.

    python -m benchmarks.predict [--repeats 9] [NAMES...]

Ours is what `kirie predict --runtime auto` does from the uint8 picture to its result, once `kirie export` has been run
for OpenVINO, in fp32 and in bf16 where that is accepted, and for ONNX Runtime. The U-Net and the SegFormer have learned
for some minutes on the demo's data, where bf16 may cost 0.01 of mIoU; 147 of the SegFormer's 150 classes never occur
there. The others have random weights, with which bf16 must give the same label maps. Theirs gets the normalised picture
as a float tensor: torchvision's DeepLabV3 and Mask R-CNN, transformers' SegFormer, and the networks of the U-Net and
YOLACT releases put together from torchvision's parts (`model_peers.py`).

"before and after" is the share of our time outside of the network and its heads: pictures to tensors, and outputs to
results. "of float32" and "of bfloat16" is the network's rate of multiplications beside that of one large matrix product
by PyTorch, on as many threads.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from benchmarks import mask_rcnn
from benchmarks.exports import picture, settle
from benchmarks.model_peers import PEERS, YOLACT
from benchmarks.models import logits_of
from kirie.demo import make_demo
from kirie.errors import KirieError
from kirie.export.write import export_model
from kirie.models import model_class
from kirie.models.contract import SegmentationModel
from kirie.models.file import save
from kirie.models.overview import describe
from kirie.prediction.predictor import Predictor
from kirie.runtimes import exported
from kirie.runtimes.load import load
from kirie.training.fit import train
from kirie.weights.load import import_checkpoint

CASES = {
    "unet": (256, 256),
    "segformer": (512, 512),
    "deeplabv3": (512, 512),
    "mask_rcnn": (480, 640),
    "yolact": (550, 550),
}
PROMISED = {"unet": 2.0}
TRAINED = {"unet": "{bias: false}", "segformer": "{}"}
CLASSES = {"unet": 3, "segformer": 150, "deeplabv3": 21, "mask_rcnn": 91, "yolact": 80}


def trained(name: str, folder: Path) -> tuple[Path, Path]:
    """A model of full size that has learned something, and its data."""
    data = make_demo(folder / "data", pictures=40, size=(256, 256))
    known = json.loads((data / "classes.json").read_text())["classes"]
    more = [f"absent {number}" for number in range(CLASSES[name] - len(known))]
    (data / "classes.json").write_text(json.dumps({"classes": known + more}))
    changes = {
        "data.path": data, "model.name": name, "model.arguments": TRAINED[name], "train.patch": "[128, 128]",
        "train.epochs": 12, "train.batch_size": 4, "train.validate_every": 12, "train.samples_every": 12,
    }  # fmt: skip
    run = train("demo/unet", changes=[f"{key}={value}" for key, value in changes.items()], out=folder / "run")
    return run.folder / "model.safetensors", data


def ours(name: str) -> SegmentationModel:
    """Our model with random weights that decide something."""
    torch.manual_seed(0)
    if name == "mask_rcnn":
        with tempfile.TemporaryDirectory() as folder:
            torch.save(mask_rcnn.peer(frozen=False).state_dict(), Path(folder) / "maskrcnn.pth")
            return import_checkpoint(Path(folder) / "maskrcnn.pth")[0]
    options = {"input_size": 544, "score_threshold": 0.05} if name == "yolact" else {}
    model = model_class(name)(3, CLASSES[name], **options).eval()  # type: ignore[call-arg]
    settle(model)
    return model


def theirs(name: str, image: np.ndarray) -> Callable[[], Any]:
    """What predicts the picture at each call by the public implementation."""
    tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    if name == "mask_rcnn":
        model = mask_rcnn.peer(frozen=False)

        @torch.inference_mode()
        def objects() -> Any:
            masks = model([tensor])[0]["masks"][:, 0] > 0.5
            return [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks.numpy()]

        return objects
    if name == "yolact":
        network = YOLACT(CLASSES[name]).eval()

        @torch.inference_mode()
        def masks() -> Any:
            return [coco_mask.encode(np.asfortranarray(m, np.uint8)) for m in network(tensor[None])[0].numpy()]

        return masks
    semantic = PEERS[name][1](CLASSES[name]).eval()

    @torch.inference_mode()
    def labels() -> Any:
        logits = logits_of(semantic(tensor[None]))
        return torch.nn.functional.interpolate(logits, image.shape[:2], mode="bilinear", align_corners=False).argmax(1)

    return labels


def exports(path: Path, image: np.ndarray, data: Path | None) -> None:
    """Every export of the model that is accepted."""
    for to, precision in (("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")):
        with contextlib.suppress(KirieError):
            export_model(path, to=to, precision=precision, data=data, pictures=[image])


class Clock:
    """Seconds spent in the network and the heads of a model, whatever runs them."""

    def __init__(self, model: SegmentationModel) -> None:
        self.seconds, self._run, self._begun = 0.0, exported._run, 0.0
        if model.artifact is None:
            for module in (model, *map(model.get_submodule, model.heads())):
                module.register_forward_pre_hook(lambda *_: self._start())
                module.register_forward_hook(lambda *_: self._stop())
        else:
            exported._run = self._graph  # type: ignore[assignment]

    def close(self) -> None:
        """Lets graphs run as they did before."""
        exported._run = self._run

    def _graph(self, graph: Any, inputs: Any) -> Any:
        self._start()
        found = self._run(graph, inputs)
        self._stop()
        return found

    def _start(self) -> None:
        self._begun = time.perf_counter()

    def _stop(self) -> None:
        self.seconds += time.perf_counter() - self._begun


def measure(name: str, repeats: int) -> str:
    """A row of the table."""
    image, rates = picture(CASES[name], 0), {kind: product_rate(kind) for kind in (torch.float32, torch.bfloat16)}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        if name in TRAINED:
            path, data = trained(name, Path(folder))
        else:
            path, data = save(ours(name), Path(folder) / "model.safetensors"), None
        exports(path, image, data)
        model = load(path, runtime="auto")
        predictor, other = Predictor(model, device="cpu"), theirs(name, image)
        clock = Clock(predictor.model)
        run: dict[str, Callable[[], Any]] = {"ours": lambda: _finished(predictor([image])[0]), "theirs": other}
        times: dict[str, list[float]] = {side: [] for side in run}
        shares = []
        for repeat in range(repeats + 1):
            for side in ("ours", "theirs") if repeat % 2 else ("theirs", "ours"):
                clock.seconds, begun = 0.0, time.perf_counter()
                run[side]()
                taken = time.perf_counter() - begun
                if repeat:  # the first warms up
                    times[side].append(taken)
                    if side == "ours":
                        shares.append(1 - clock.seconds / taken)
        clock.close()
    gflops = describe(name, size=CASES[name], classes=CLASSES[name]).gflops
    mine, peer = (statistics.median(times[side]) for side in ("ours", "theirs"))
    ratio = statistics.median(b / a for a, b in zip(times["ours"], times["theirs"], strict=True))
    share = statistics.median(shares)
    network = mine * (1 - share)
    own = [f"{2 * gflops / network / rate:.0%}" for rate in rates.values()]
    runtime = " ".join(model.artifact.split()[:2]) if model.artifact else "torch"
    if name == "mask_rcnn":
        own = ["-", "-"]  # the operations go by the number of proposals
    return (
        f"| `{name}` {CASES[name][0]} x {CASES[name][1]} | {runtime} | {1e3 * mine:.0f} ms | {1e3 * peer:.0f} ms | "
        f"{ratio:.2f} x | {PROMISED.get(name, 1.3)} x | {share:.0%} | {own[0]} | {own[1]} |"
    )


def _finished(result: Any) -> Any:
    """The result, with masks as run lengths as the peers give them."""
    return result.masks.rles() if hasattr(result, "masks") else result


def product_rate(kind: torch.dtype, side: int = 2048, runs: int = 7) -> float:
    """Thousand millions of operations a second, two for a multiplication with its addition, of one matrix product."""
    a, b = (torch.rand(side, side).to(kind) for _ in range(2))
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - begun)
    return 2 * side**3 / statistics.median(times) / 1e9


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}; all when left out")
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    rates = [product_rate(kind) for kind in (torch.float32, torch.bfloat16)]
    print(
        f"{torch.get_num_threads()} threads; a matrix product: {rates[0]:.0f} and in bfloat16 {rates[1]:.0f} GFLOP/s\n"
    )
    print("| model | runtime | kirie | peer | ratio | promised | before and after | of float32 | of bfloat16 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in given.names or CASES:
        print(measure(name, given.repeats), flush=True)


if __name__ == "__main__":
    main()
