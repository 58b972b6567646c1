"""The public releases whose weights kirie takes: where they are, what they tell apart, what they may be used for.

Scores are those that the publishers state, with the page that states them; kirie did not measure them. None means that
no source for the fact is known. Every score of a foreign release depends on its own way of testing (crops, flips,
several scales), which `metric` names.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kirie.errors import KirieError

if TYPE_CHECKING:
    from kirie.models.contract import InputFacts
    from kirie.weights.translation import Translation


@dataclass(frozen=True)
class Release:
    """One public file of weights.

    Attributes:
        publisher: the row of `PUBLISHERS` that translates it.
        architecture: the row of `MODELS` that it becomes.
        form: arguments of the model that tell it from the publisher's other releases.
        file: its name, often the default name of the publisher's own training, which proves nothing.
        page: where the publisher offers it.
        url: where it can be fetched directly; None when it must be fetched by hand from the page.
        folder: the end of the folder's name that it lies in, for names such as pytorch_model.bin that say nothing.
        sha256: the first hexadecimal digits of its checksum, where the publisher states them.
        count: how many classes it tells apart.
        classes: the name of their list in `kirie.class_lists`, which settles them; None when they are not named.
        data: what it was trained on.
        score: as published, in per cent.
        metric: what the score is.
        source: the page that states it.
        licence: what is known of the terms of the weights.
        short_side: pixels of a picture's shorter side that the publisher resizes to; None keeps pictures as they are.
        patch: (H, W) of the patches it was trained on.
        long_side: most pixels that the longer side then has; None for no limit.
        arguments: arguments of the model that the file cannot tell.
        note: what else to know.
    """

    publisher: str
    architecture: str
    form: Mapping[str, Any]
    file: str
    page: str
    count: int
    licence: str
    data: str
    url: str | None = None
    folder: str | None = None
    sha256: str | None = None
    classes: str | None = None
    score: float | None = None
    metric: str | None = None
    source: str | None = None
    short_side: int | None = None
    patch: tuple[int, int] | None = None
    long_side: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    note: str | None = None

    @property
    def inputs(self) -> InputFacts:
        """What the publisher does to a picture beforehand."""
        from kirie.models.contract import InputFacts

        return InputFacts(self.short_side, self.patch, self.long_side)

    def fits(self, translation: Translation) -> bool:
        """Whether a translated checkpoint has this release's publisher, architecture, form and number of classes."""
        classes = translation.classes
        count = classes if isinstance(classes, int) else len(classes)
        same = (translation.publisher, translation.architecture) == (self.publisher, self.architecture)
        form = all(translation.arguments.get(name) == value for name, value in self.form.items())
        return same and form and count == self.count

    def score_words(self) -> str:
        """The published score with what it is and who states it."""
        if self.score is None:
            return "without a published score that kirie knows"
        return f"{self.score:g} {self.metric} (as stated by {self.source})"

    def settled(self) -> dict[str, Any]:
        """The arguments that need not be assumed once a file is known to be this release, its classes among them."""
        return {**({"classes": self.classes} if self.classes else {}), **self.arguments}

    def is_called(self, path: Path) -> bool:
        """Whether a file has this release's name and place, as a file that the user trained may have too."""
        places = path.absolute().parts[:-1]
        within = self.folder is None or any(part.endswith(self.folder) for part in places)
        return path.name == self.file and within


def named(name: str) -> Release:
    """The row of `RELEASES` of a name.

    Raises:
        KirieError: when there is none; the message gives the nearest.
    """
    if name not in RELEASES:
        near = difflib.get_close_matches(name, RELEASES, 3, 0.4)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise KirieError(f"There is no release {name!r:.80}; {hint}`kirie load` lists them all.")
    return RELEASES[name]


def find_release(path: Path, translation: Translation) -> str | None:
    """The name of the release that a file is by its checksum, or None where no known checksum is its own."""
    known = {row.sha256: name for name, row in alike(translation).items() if row.sha256 is not None}
    if not known:
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return next((name for start, name in known.items() if digest.startswith(start)), None)


def alike(translation: Translation) -> dict[str, Release]:
    """The releases that a checkpoint may be or may have been trained from, by its form alone."""
    return {name: row for name, row in RELEASES.items() if row.fits(translation)}


_TORCHVISION_LICENCE = (
    "published with BSD-3-Clause code and without terms of their own; torchvision says that weights may be bound by "
    "the terms of their training data (here COCO)"
)
_DETECTRON2_LICENCE = (
    "Creative Commons Attribution-ShareAlike 3.0 (CC BY-SA 3.0), as Detectron2's MODEL_ZOO.md says; trained on COCO"
)
_NVIDIA_LICENCE = "NVIDIA Source Code License for SegFormer: research and evaluation only, no commercial use"
_VOC_LICENCE = "MIT repository, no statement on the weights; trained on Pascal VOC and SBD"
_CITYSCAPES_LICENCE = "MIT repository, no statement on the weights; trained on Cityscapes (data for non-commercial use)"
_ADE_LICENCE = "MIT repository, no statement on the weights; trained on ADE20K (pictures for research and education)"
_YOLACT_LICENCE = "MIT repository, no statement on the weights; trained on COCO"
_ADELAIDET_LICENCE = (
    "published with AdelaiDet (2-clause BSD for academic use, commercial use needs an agreement), no statement on the "
    "weights; trained on COCO"
)
_GPL_LICENCE = "published with a GPL-3.0 repository, no statement on the weights"


def _torchvision(file: str, architecture: str, encoder: str, score: float) -> Release:
    stem, _, digits = file.removesuffix(".pth").rpartition("-")
    return Release(
        publisher="torchvision",
        architecture=architecture,
        form={"encoder": encoder},
        file=file,
        page=f"https://docs.pytorch.org/vision/stable/models/generated/torchvision.models.segmentation."
        f"{stem.removesuffix('_coco')}.html",
        url=f"https://download.pytorch.org/models/{file}",
        sha256=digits,
        count=21,
        classes="VOC",
        data="COCO with Pascal VOC's classes",
        score=score,
        metric="mIoU on COCO val2017 with Pascal VOC's classes",
        source="torchvision.models.segmentation, weights COCO_WITH_VOC_LABELS_V1",
        licence=_TORCHVISION_LICENCE,
        short_side=520,
        patch=(480, 480),
    )


def _torchvision_mask_rcnn(file: str, score: float, *, norm: bool) -> Release:
    stem, _, digits = file.removesuffix(".pth").rpartition("-")
    return Release(
        publisher="torchvision",
        architecture="mask_rcnn",
        form={"encoder": "resnet50", "norm": norm},
        file=file,
        page="https://docs.pytorch.org/vision/stable/models/generated/torchvision.models.detection."
        f"{stem.removesuffix('_coco')}.html",
        url=f"https://download.pytorch.org/models/{file}",
        sha256=digits,
        count=80,
        classes="COCO",
        data="COCO",
        score=score,
        metric="mask AP on COCO val2017",
        source="torchvision.models.detection, weights COCO_V1",
        licence=_TORCHVISION_LICENCE,
        short_side=800,
        long_side=1333,
        # The first release's frozen batch norm learned with nothing added to the variance.
        arguments={"anchor_sizes": (32, 64, 128, 256, 512), "anchor_ratios": (0.5, 1.0, 2.0)}
        | ({} if norm else {"encoder_options": {"frozen_norm": True, "norm_eps": 0.0}}),
    )


def _detectron2(config: str, folder: int, digits: str, encoder: str, score: float) -> Release:
    """A Mask R-CNN or a Panoptic FPN of the model zoo, by the name of its configuration."""
    panoptic = config.startswith("panoptic")
    divided = encoder.startswith("resnext")  # ResNeXts divide by the deviation and have the stride in the 3 x 3
    deviation = (58.395, 57.12, 57.375) if divided else (1.0, 1.0, 1.0)
    return Release(
        publisher="detectron2",
        architecture="panoptic_fpn" if panoptic else "mask_rcnn",
        form={"encoder": encoder},
        file=f"model_final_{digits}.pkl",
        page="https://github.com/facebookresearch/detectron2/blob/main/MODEL_ZOO.md",
        url=f"https://dl.fbaipublicfiles.com/detectron2/COCO-{'Panoptic' if panoptic else 'Instance'}Segmentation/"
        f"{config}/{folder}/model_final_{digits}.pkl",
        count=133 if panoptic else 80,
        classes="COCO_PANOPTIC" if panoptic else "COCO",
        data="COCO panoptic" if panoptic else "COCO",
        score=score,
        metric=f"{'PQ' if panoptic else 'mask AP'} on COCO val2017",
        source="MODEL_ZOO.md of detectron2",
        licence=_DETECTRON2_LICENCE,
        short_side=800,
        long_side=1333,
        arguments={
            "encoder_options": {"frozen_norm": True, "stride_first": not divided},
            "mean": tuple(value / 255 for value in (123.675, 116.28, 103.53)),
            "std": tuple(value / 255 for value in deviation),
            "anchor_sizes": (32, 64, 128, 256, 512),
            "anchor_ratios": (0.5, 1.0, 2.0),
        },
    )


def _segformer(size: str, data: str, score: float) -> Release:
    ade = data.startswith("ade")
    name = f"segformer-{size}-finetuned-{data}"
    side = int(data.rpartition("-")[2])
    return Release(
        publisher="huggingface",
        architecture="segformer",
        form={"size": size},
        file="pytorch_model.bin",
        folder=name,
        page=f"https://huggingface.co/nvidia/{name}",
        url=f"https://huggingface.co/nvidia/{name}/resolve/main/pytorch_model.bin",
        count=150 if ade else 19,
        classes="ADE20K" if ade else "CITYSCAPES",
        data="ADE20K" if ade else "Cityscapes",
        score=score,
        metric="mIoU on ADE20K val, one scale" if ade else "mIoU on Cityscapes val, one scale, sliding window",
        source="SegFormer paper (arXiv 2105.15203), table 1",
        licence=_NVIDIA_LICENCE,
        short_side=side if ade else None,
        patch=(side, side),
        note=None if ade else "the published score slides a window of 1024 x 1024 over pictures of 1024 x 2048",
    )


def _vainf(name: str, architecture: str, encoder: str, data: str, score: float, **more: Any) -> Release:
    voc = data == "voc"
    return Release(
        publisher="vainf",
        architecture=architecture,
        form={"encoder": encoder},
        file=f"best_{name}_{data}_os16.pth",
        page="https://github.com/VainF/DeepLabV3Plus-Pytorch",
        count=21 if voc else 19,
        classes="VOC" if voc else "CITYSCAPES",
        data="Pascal VOC 2012 with SBD" if voc else "Cityscapes",
        score=score,
        metric="mIoU on Pascal VOC 2012 val, centre crops of 513 x 513" if voc else "mIoU on Cityscapes val",
        source="README of VainF/DeepLabV3Plus-Pytorch",
        licence=_VOC_LICENCE if voc else _CITYSCAPES_LICENCE,
        patch=(513, 513) if voc else (768, 768),
        arguments={"output_stride": 16},
        **more,
    )


def _semseg(depth: int, data: str, score: float) -> Release:
    count, classes, words, licence, side, epochs = {
        "ade20k": (150, "ADE20K", "ADE20K", _ADE_LICENCE, 473, 100),
        "voc2012": (21, "VOC", "Pascal VOC 2012", _VOC_LICENCE, 473, 50),
        "cityscapes": (19, "CITYSCAPES", "Cityscapes", _CITYSCAPES_LICENCE, 713, 200),
    }[data]
    return Release(
        publisher="semseg",
        architecture="pspnet",
        form={"encoder": f"resnet{depth}s"},
        file=f"train_epoch_{epochs}.pth",
        folder=f"pspnet{depth}",
        page="https://github.com/hszhao/semseg",
        count=count,
        classes=classes,
        data=f"{words} with SBD" if data == "voc2012" else words,
        score=score,
        metric=f"mIoU on {words} val, one scale, sliding window of {side} x {side}",
        source="README of hszhao/semseg",
        licence=licence,
        patch=(side, side),
        note="the project tests crops whose sides minus 1 divide by 8; other sizes are padded here",
    )


def _hrnet(size: str, file: str, data: str, score: float, *, ocr_branch: bool) -> Release:
    ade = data == "ADE20K"
    branch = "HRNet-OCR" if ocr_branch else "pytorch-v1.1"
    direct = f"https://github.com/hsfzxjy/models.storage/releases/download/HRNet-OCR/{file}"
    return Release(
        publisher="hrnet",
        architecture="hrnet",
        form={"size": size},
        file=file,
        page=f"https://github.com/HRNet/HRNet-Semantic-Segmentation/tree/{branch}",
        url=direct if ocr_branch else None,
        count=150 if ade else 19,
        classes="ADE20K" if ade else "CITYSCAPES",
        data=data,
        score=score,
        metric=f"mIoU on {data} val, one scale, no flip",
        source=f"README of HRNet/HRNet-Semantic-Segmentation, branch {branch}",
        licence=_ADE_LICENCE if ade else _CITYSCAPES_LICENCE,
        patch=(520, 520) if ade else (512, 1024),
        arguments={"align_corners": ocr_branch},
    )


def _milesial(tag: str, file: str, **more: Any) -> Release:
    return Release(
        publisher="milesial",
        architecture="unet",
        form={"width": 64, "depth": 4, "up": "transposed", "bias": False},
        file=file,
        page="https://github.com/milesial/Pytorch-UNet/releases",
        url=f"https://github.com/milesial/Pytorch-UNet/releases/download/{tag}/{file}",
        count=2,
        data="Carvana (cars in a studio)",
        licence=_GPL_LICENCE,
        **more,
    )


def _yolact(name: str, encoder: str, score: float, input_size: int = 550) -> Release:
    return Release(
        publisher="yolact",
        architecture="yolact",
        form={"encoder": encoder},
        file=f"yolact_{name}_54_800000.pth",
        page="https://github.com/dbolya/yolact",
        count=80,
        classes="COCO",
        data="COCO",
        score=score,
        metric="mask AP on COCO test-dev",
        source="README of dbolya/yolact",
        licence=_YOLACT_LICENCE,
        arguments={"input_size": input_size, "scales": None},
    )


def _solov2(depth: int, score: float) -> Release:
    return Release(
        publisher="adelaidet",
        architecture="solov2",
        form={"encoder": f"resnet{depth}", "width": 512},
        file=f"SOLOv2_R{depth}_3x.pth",
        page="https://github.com/aim-uofa/AdelaiDet/blob/master/configs/SOLOv2/README.md",
        count=80,
        classes="COCO",
        data="COCO",
        score=score,
        metric="mask AP on COCO val2017",
        source="README of AdelaiDet's SOLOv2",
        licence=_ADELAIDET_LICENCE,
        short_side=800,
        long_side=1333,
    )


RELEASES: dict[str, Release] = {
    "torchvision/deeplabv3_resnet50": _torchvision(
        "deeplabv3_resnet50_coco-cd0a2569.pth", "deeplabv3", "resnet50", 66.4
    ),
    "torchvision/deeplabv3_resnet101": _torchvision(
        "deeplabv3_resnet101_coco-586e9e4e.pth", "deeplabv3", "resnet101", 67.4
    ),
    "torchvision/deeplabv3_mobilenet_v3_large": _torchvision(
        "deeplabv3_mobilenet_v3_large-fc3c493d.pth", "deeplabv3", "mobilenetv3_large_100", 60.3
    ),
    "torchvision/fcn_resnet50": _torchvision("fcn_resnet50_coco-1167a1af.pth", "fcn", "resnet50", 60.5),
    "torchvision/fcn_resnet101": _torchvision("fcn_resnet101_coco-7ecb50ca.pth", "fcn", "resnet101", 63.7),
    "torchvision/lraspp_mobilenet_v3_large": _torchvision(
        "lraspp_mobilenet_v3_large-d234d4ea.pth", "lraspp", "mobilenetv3_large_100", 57.9
    ),
    "torchvision/maskrcnn_resnet50_fpn": _torchvision_mask_rcnn(
        "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", 34.6, norm=False
    ),
    "torchvision/maskrcnn_resnet50_fpn_v2": _torchvision_mask_rcnn(
        "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth", 41.8, norm=True
    ),
    "detectron2/mask-rcnn-r50-fpn-1x": _detectron2("mask_rcnn_R_50_FPN_1x", 137260431, "a54504", "resnet50", 35.2),
    "detectron2/mask-rcnn-r50-fpn-3x": _detectron2("mask_rcnn_R_50_FPN_3x", 137849600, "f10217", "resnet50", 37.2),
    "detectron2/mask-rcnn-r101-fpn-3x": _detectron2("mask_rcnn_R_101_FPN_3x", 138205316, "a3ec72", "resnet101", 38.6),
    "detectron2/mask-rcnn-x101-fpn-3x": _detectron2(
        "mask_rcnn_X_101_32x8d_FPN_3x", 139653917, "2d9806", "resnext101_32x8d", 39.5
    ),
    "detectron2/panoptic-fpn-r50-1x": _detectron2("panoptic_fpn_R_50_1x", 139514544, "dbfeb4", "resnet50", 39.4),
    "detectron2/panoptic-fpn-r50-3x": _detectron2("panoptic_fpn_R_50_3x", 139514569, "c10459", "resnet50", 41.5),
    "detectron2/panoptic-fpn-r101-3x": _detectron2("panoptic_fpn_R_101_3x", 139514519, "cafdb1", "resnet101", 43.0),
    "nvidia/segformer-b0-ade20k": _segformer("b0", "ade-512-512", 37.4),
    "nvidia/segformer-b1-ade20k": _segformer("b1", "ade-512-512", 42.2),
    "nvidia/segformer-b2-ade20k": _segformer("b2", "ade-512-512", 46.5),
    "nvidia/segformer-b3-ade20k": _segformer("b3", "ade-512-512", 49.4),
    "nvidia/segformer-b4-ade20k": _segformer("b4", "ade-512-512", 50.3),
    "nvidia/segformer-b5-ade20k": _segformer("b5", "ade-640-640", 51.0),
    "nvidia/segformer-b0-cityscapes": _segformer("b0", "cityscapes-1024-1024", 76.2),
    "nvidia/segformer-b1-cityscapes": _segformer("b1", "cityscapes-1024-1024", 78.5),
    "nvidia/segformer-b2-cityscapes": _segformer("b2", "cityscapes-1024-1024", 81.0),
    "nvidia/segformer-b3-cityscapes": _segformer("b3", "cityscapes-1024-1024", 81.7),
    "nvidia/segformer-b4-cityscapes": _segformer("b4", "cityscapes-1024-1024", 82.3),
    "nvidia/segformer-b5-cityscapes": _segformer("b5", "cityscapes-1024-1024", 82.4),
    "semseg/pspnet50-ade20k": _semseg(50, "ade20k", 41.89),
    "semseg/pspnet101-ade20k": _semseg(101, "ade20k", 43.10),
    "semseg/pspnet50-voc": _semseg(50, "voc2012", 77.05),
    "semseg/pspnet101-voc": _semseg(101, "voc2012", 79.07),
    "semseg/pspnet50-cityscapes": _semseg(50, "cityscapes", 77.30),
    "semseg/pspnet101-cityscapes": _semseg(101, "cityscapes", 78.63),
    "hrnet/w18-small-v1-cityscapes": _hrnet(
        "w18_small_v1",
        "hrnet_w18_small_v1_cityscapes_cls19_1024x2048_trainset.pth",
        "Cityscapes",
        70.3,
        ocr_branch=False,
    ),
    "hrnet/w18-small-v2-cityscapes": _hrnet(
        "w18_small_v2",
        "hrnet_w18_small_v2_cityscapes_cls19_1024x2048_trainset.pth",
        "Cityscapes",
        76.2,
        ocr_branch=False,
    ),
    "hrnet/w48-cityscapes": _hrnet("w48", "hrnet_cs_8090_torch11.pth", "Cityscapes", 80.9, ocr_branch=True),
    "hrnet/w48-ade20k": _hrnet("w48", "hrnet_ade20k_4312_torch04.pth", "ADE20K", 43.1, ocr_branch=True),
    "vainf/deeplabv3-mobilenet-voc": _vainf("deeplabv3_mobilenet", "deeplabv3", "mobilenetv2_100", "voc", 70.1),
    "vainf/deeplabv3-resnet50-voc": _vainf("deeplabv3_resnet50", "deeplabv3", "resnet50", "voc", 76.9),
    "vainf/deeplabv3-resnet101-voc": _vainf("deeplabv3_resnet101", "deeplabv3", "resnet101", "voc", 77.3),
    "vainf/deeplabv3plus-mobilenet-voc": _vainf(
        "deeplabv3plus_mobilenet", "deeplabv3plus", "mobilenetv2_100", "voc", 71.1
    ),
    "vainf/deeplabv3plus-resnet50-voc": _vainf("deeplabv3plus_resnet50", "deeplabv3plus", "resnet50", "voc", 77.2),
    "vainf/deeplabv3plus-resnet101-voc": _vainf("deeplabv3plus_resnet101", "deeplabv3plus", "resnet101", "voc", 78.3),
    "vainf/deeplabv3plus-mobilenet-cityscapes": _vainf(
        "deeplabv3plus_mobilenet", "deeplabv3plus", "mobilenetv2_100", "cityscapes", 72.1
    ),
    "vainf/deeplabv3plus-resnet101-cityscapes": _vainf(
        "deeplabv3plus_resnet101", "deeplabv3plus", "resnet101", "cityscapes", 76.2
    ),
    "milesial/unet-carvana-half": _milesial(
        "v3.0",
        "unet_carvana_scale0.5_epoch2.pth",
        short_side=640,
        note="trained on pictures at half their size, which for Carvana's is a shorter side of 640",
    ),
    "milesial/unet-carvana": _milesial("v3.0", "unet_carvana_scale1.0_epoch2.pth"),
    "adelaidet/solov2-r50": _solov2(50, 37.6),
    "adelaidet/solov2-r101": _solov2(101, 39.0),
    "yolact/resnet50": _yolact("resnet50", "resnet50", 28.2),
    "yolact/darknet53": _yolact("darknet53", "darknet53", 28.7),
    "yolact/base": _yolact("base", "resnet101", 29.8),
    "yolact/im700": _yolact("im700", "resnet101", 31.2, 700),
}
