"""Kirie: semantic, instance and panoptic segmentation behind three verbs.

    import kirie

    model = kirie.load("runs/nuclei/model.safetensors")
    result = kirie.predict(model, "photo.jpg")
    kirie.draw(result, "photo.jpg").save("cut.png")

Every name below is imported when it is first used, so that `import kirie` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kirie.classes import Classes
    from kirie.conversion.convert import convert
    from kirie.data import open_dataset
    from kirie.data.dataset import Sample
    from kirie.data.inspect import inspect_dataset
    from kirie.data.listed import SampleList
    from kirie.drawing import draw
    from kirie.errors import KirieError
    from kirie.export.write import export_model
    from kirie.masks import Masks
    from kirie.merging import merge
    from kirie.metrics import dice, iou
    from kirie.models.file import save
    from kirie.models.unet import UNet
    from kirie.prediction.evaluate import evaluate
    from kirie.prediction.panoptic_pair import PanopticPair
    from kirie.prediction.predict import predict
    from kirie.prediction.predictor import Predictor
    from kirie.results import Instances, PanopticMap, SemanticMap, to_instances, to_panoptic, to_semantic
    from kirie.runtimes.load import load
    from kirie.training.fit import train
    from kirie.training.planned import plan
    from kirie.weights.load import import_checkpoint

__version__ = "0.1.0"

_HOMES = {
    "Classes": "kirie.classes",
    "Instances": "kirie.results",
    "KirieError": "kirie.errors",
    "Masks": "kirie.masks",
    "PanopticMap": "kirie.results",
    "PanopticPair": "kirie.prediction.panoptic_pair",
    "Predictor": "kirie.prediction.predictor",
    "Sample": "kirie.data.dataset",
    "SampleList": "kirie.data.listed",
    "SemanticMap": "kirie.results",
    "UNet": "kirie.models.unet",
    "convert": "kirie.conversion.convert",
    "dice": "kirie.metrics",
    "draw": "kirie.drawing",
    "evaluate": "kirie.prediction.evaluate",
    "export_model": "kirie.export.write",
    "import_checkpoint": "kirie.weights.load",
    "inspect_dataset": "kirie.data.inspect",
    "iou": "kirie.metrics",
    "load": "kirie.runtimes.load",
    "merge": "kirie.merging",
    "open_dataset": "kirie.data",
    "plan": "kirie.training.planned",
    "predict": "kirie.prediction.predict",
    "save": "kirie.models.file",
    "to_instances": "kirie.results",
    "to_panoptic": "kirie.results",
    "to_semantic": "kirie.results",
    "train": "kirie.training.fit",
}

__all__ = [
    "Classes",
    "Instances",
    "KirieError",
    "Masks",
    "PanopticMap",
    "PanopticPair",
    "Predictor",
    "Sample",
    "SampleList",
    "SemanticMap",
    "UNet",
    "convert",
    "dice",
    "draw",
    "evaluate",
    "export_model",
    "import_checkpoint",
    "inspect_dataset",
    "iou",
    "load",
    "merge",
    "open_dataset",
    "plan",
    "predict",
    "save",
    "to_instances",
    "to_panoptic",
    "to_semantic",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kirie' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
