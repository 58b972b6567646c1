"""Architectures behind the contract of `contract.py`, looked up by name in one written table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kirie.errors import KirieError
from kirie.lookup import look_up

if TYPE_CHECKING:
    from kirie.models.contract import SegmentationModel

MODELS = {
    "deeplabv3": "kirie.models.deeplab:DeepLabV3",
    "deeplabv3plus": "kirie.models.deeplab:DeepLabV3Plus",
    "fcn": "kirie.models.fcn:FCN",
    "hrnet": "kirie.models.hrnet:HRNet",
    "lraspp": "kirie.models.lraspp:LRASPP",
    "mask_rcnn": "kirie.models.mask_rcnn:MaskRCNN",
    "panoptic_fpn": "kirie.models.panoptic_fpn:PanopticFPN",
    "pspnet": "kirie.models.pspnet:PSPNet",
    "segformer": "kirie.models.segformer:SegFormer",
    "semantic_fpn": "kirie.models.semantic_fpn:SemanticFPN",
    "solov2": "kirie.models.solov2:SOLOv2",
    "unet": "kirie.models.unet:UNet",
    "yolact": "kirie.models.yolact:YOLACT",
}


def model_class(name: str, *, own_code: bool = False) -> type[SegmentationModel]:
    """The class of an architecture.

    Args:
        name: a row of `MODELS`; or, where `own_code` allows it, a user's own `package.module:Class`.
        own_code: whether the name may lead to code outside kirie. True only for names that the user typed or wrote in
            a recipe; a model file never imports code.

    Raises:
        KirieError: when there is no such architecture, or the user's class cannot be imported or breaks the contract.
    """
    from kirie.models.contract import SegmentationModel

    if name not in MODELS and not (own_code and ":" in name):
        raise KirieError(f"There is no architecture {name!r:.80}. Known: {', '.join(sorted(MODELS))}.")
    found = look_up(MODELS.get(name, name))
    if not (isinstance(found, type) and issubclass(found, SegmentationModel)):
        raise KirieError(f"{name!r} is not a SegmentationModel; see kirie/models/contract.py for what it must offer.")
    return found


def model_name(model: SegmentationModel) -> str:
    """The row of `MODELS` a model belongs to, or `package.module:Class` for a user's own class."""
    path = f"{type(model).__module__}:{type(model).__qualname__}"
    return next((name for name, row in MODELS.items() if row == path), path)
