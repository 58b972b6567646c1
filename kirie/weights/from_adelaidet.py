"""Checkpoints of AdelaiDet's SOLOv2 (its licence: BSD for academic use, commercial use needs an agreement).

Written from the tensor names of the release: backbone and pyramid are Detectron2's; `ins_head` has the towers
`cate_tower` and `kernel_tower`, whose convolutions are 0, 3, 6... and their norms 1, 4, 7..., with `cate_pred` and
`kernel_pred`; `mask_head.convs_all_levels.N.convM` and `mask_head.conv_pred` make the mask features.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from kirie.class_lists import COCO
from kirie.errors import KirieError
from kirie.models.contract import InputFacts
from kirie.models.solov2 import GRIDS, RANGES, STRIDES
from kirie.weights.detectron2_backbone import translated
from kirie.weights.structure import axis, known_classes
from kirie.weights.translation import Translation

_CLASSES = {"COCO": COCO}
_GRIDS = {"grids": GRIDS, "strides": STRIDES, "scale_ranges": RANGES}
_OTHERS = re.compile(r"(bbox_head|mask_head)\.(kernel_convs|cls_convs|cate_convs)\.|mask_feat_head\.convs_all_levels\.")


def recognises(state: Mapping[str, object]) -> bool:
    """Whether a state dict has the names of a SOLOv2, of AdelaiDet or of another project, which is then refused."""
    own = any(name.startswith("ins_head.") for name in state)
    return (own and any(name.startswith("mask_head.") for name in state)) or any(map(_OTHERS.match, state))


def translate(state: Mapping[str, Tensor]) -> Translation:
    """The model of a state dict in this layout.

    Raises:
        KirieError: when it is another project's SOLOv2 or has deformable convolutions, or an entry is unknown, missing
            or no tensor.
    """
    if any(map(_OTHERS.match, state)):
        raise KirieError(
            "Its names are those of MMDetection or of the original SOLO, whose networks differ in details from "
            "AdelaiDet's: kirie takes AdelaiDet's SOLOv2 only, such as SOLOv2_R50_3x.pth."
        )
    if deformable := [name for name in state if "offset" in name]:
        raise KirieError(f"It has deformable convolutions ({deformable[0]:.120}), which kirie does not build.")
    shared = translated(state, _head, "A SOLOv2 of AdelaiDet")
    features = axis(state, "mask_head.conv_pred.0.weight", 0)
    values = axis(state, "ins_head.kernel_pred.weight", 0)
    if values not in (features, 9 * features):
        raise KirieError(f"Its kernels have {values} values for {features} mask features; 1 x 1 or 3 x 3 are known.")
    classes, assumed = known_classes(axis(state, "ins_head.cate_pred.weight", 0), _CLASSES)
    assumed["grids"] = (
        "they have 40, 36, 24, 16 and 12 cells a side (NUM_GRIDS), as in the configurations; where yours says "
        "otherwise, set grids to them, and likewise strides (FPN_INSTANCE_STRIDES) and scale_ranges (FPN_SCALE_RANGES)"
    )
    return Translation(
        architecture="solov2",
        in_channels=shared.in_channels,
        classes=classes,
        arguments=shared.arguments
        | {
            "width": axis(state, "ins_head.cate_tower.0.weight", 0),
            "depth": sum(f"ins_head.cate_tower.{3 * step}.weight" in state for step in range(len(state))),
            "mask_width": axis(state, "mask_head.convs_all_levels.0.conv0.0.weight", 0),
            "mask_channels": features,
            "kernel_size": 1 if values == features else 3,
            **_GRIDS,
        },
        state=shared.state,
        dropped=shared.dropped,
        inputs=InputFacts(short_side=800, long_side=1333),
        assumed=assumed | shared.assumed,
    )


def _head(name: str) -> str | None:
    """Kirie's name of an entry of the two heads, None when there is no such."""
    if match := re.fullmatch(r"ins_head\.(cate|kernel)_pred\.(weight|bias)", name):
        return f"head.{_PLACES[match[1]][1]}.{match[2]}"
    if match := re.fullmatch(r"ins_head\.(cate|kernel)_tower\.(\d+)\.(\w+)", name):
        step, layer = divmod(int(match[2]), 3)
        return f"head.{_PLACES[match[1]][0]}.{step}.0.{layer}.{match[3]}"
    if match := re.fullmatch(r"mask_head\.conv_pred\.([01])\.(\w+)", name):
        return f"mask_head.predictor.{match[1]}.{match[2]}"
    match = re.fullmatch(r"mask_head\.convs_all_levels\.(\d)\.conv(\d)\.([01])\.(\w+)", name)
    return match and f"mask_head.branches.{match[1]}.{2 * int(match[2])}.{match[3]}.{match[4]}"


_PLACES = {"cate": ("category_tower", "categories"), "kernel": ("kernel_tower", "kernels")}
