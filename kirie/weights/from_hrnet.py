"""HRNet checkpoints of HRNet/HRNet-Semantic-Segmentation (code: MIT; the weights have no statement of their own).

Written from the tensor names of the releases. The body's names are kirie's own; the head, `last_layer`, is numbered 0
(1 x 1 convolution), 1 (norm), 3 (classifier). Network and loss were mostly saved together, so that names begin with
`model.` or `loss.`; `hrnet_cs_8090_torch11.pth` has neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kirie.class_lists import ADE20K, CITYSCAPES
from kirie.errors import KirieError
from kirie.models.hrnet import SIZES, Shape
from kirie.weights.structure import axis, count, known_classes
from kirie.weights.translation import Translation

_CLASSES = {"Cityscapes": CITYSCAPES, "ADE20K": ADE20K}  # as the releases have them
_FIRST = "stage2.0.branches.0.0.conv1.weight"
_LAYOUT = "HRNet-Semantic-Segmentation"
_ALIGNED = (
    "as in the W48 of the project's HRNet-OCR branch (hrnet_cs_8090_torch11.pth), whose names do not begin with "
    "`model.`; the tensors cannot tell. Set it to false for files of its pytorch-v1.1 branch."
)
_NOT_ALIGNED = (
    "as in the releases of the project's pytorch-v1.1 branch; the tensors cannot tell. Set it to true for files of its "
    "HRNet-OCR branch (W48 on Cityscapes, LIP, PASCAL-Context, COCO-Stuff and ADE20K)."
)


def recognises(state: Mapping[str, object]) -> bool:
    """Whether a state dict has this layout's names; so have HRNets for other tasks, which `translate` refuses."""
    return _FIRST in state or f"model.{_FIRST}" in state


def translate(state: Mapping[str, Tensor]) -> Translation:
    """The HRNet of a state dict in this layout, of any width, depth, channel and class count.

    Raises:
        KirieError: when it is an HRNet for classification or poses or one with OCR, or an entry is unknown, repeated,
            missing or no tensor.
    """
    prefix = "model." if f"model.{_FIRST}" in state else ""
    dropped = {name: "the loss's class weights, not part of the network" for name in state if name.startswith("loss.")}
    network = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name not in dropped}
    _refuse_other_tasks(network)
    renamed: dict[str, Tensor] = {}
    for name, tensor in network.items():
        part, _, rest = name.partition(".")
        new = f"head.{rest}" if part == "last_layer" else f"encoder.{name}"
        if not isinstance(tensor, Tensor):
            raise KirieError(f"{name!r:.120} of a {_LAYOUT} checkpoint holds {type(tensor).__name__}, not a tensor.")
        renamed[new] = tensor
    if len(renamed) + len(dropped) != len(state):
        raise KirieError(f"The checkpoint has entries both with and without {prefix!r} before the same name.")
    arguments = _arguments(_shape(network))
    aligned = not prefix and arguments.get("size") == "w48"
    assumed = {"align_corners": f"{str(aligned).lower()}, {_ALIGNED if aligned else _NOT_ALIGNED}"}
    classes, taken = known_classes(axis(network, "last_layer.3.weight", 0), _CLASSES)
    return Translation(
        architecture="hrnet",
        in_channels=axis(network, "conv1.weight", 1),
        classes=classes,
        arguments=arguments | {"align_corners": aligned},
        state=renamed,
        dropped=dropped,
        assumed=assumed | taken,
    )


def _refuse_other_tasks(network: Mapping[str, object]) -> None:
    parts = {name.partition(".")[0] for name in network}
    if parts & {"ocr_gather_head", "ocr_distri_head", "conv3x3_ocr", "aux_head"}:
        raise KirieError("This HRNet has an OCR head, which kirie does not have; take a release without OCR.")
    if parts & {"classifier", "incre_modules"}:
        raise KirieError(
            "This HRNet classifies whole pictures (ImageNet) and cannot segment. Give the file as `encoder_weights` of "
            "the model `hrnet` and train it."
        )
    if "last_layer" not in parts:
        raise KirieError("This HRNet lacks `last_layer`, the segmentation head; it is of another task or cut short.")


def _shape(network: Mapping[str, object]) -> Shape:
    """Widths, blocks and modules; whether all the rest fits them is seen when the names and shapes are compared."""
    modules = [count(network, f"stage{stage}.{{}}.branches.0.0.conv1.weight") for stage in (2, 3, 4)]
    return Shape(
        width=axis(network, _FIRST, 0),
        blocks=count(network, "stage2.0.branches.0.{}.conv1.weight"),
        modules=(modules[0], modules[1], modules[2]),
        layer1=(axis(network, "layer1.0.conv1.weight", 0), count(network, "layer1.{}.conv1.weight")),
    )


def _arguments(shape: Shape) -> dict[str, Any]:
    size = next((name for name, known in SIZES.items() if known == shape), None)
    return shape._asdict() if size is None else {"size": size}
