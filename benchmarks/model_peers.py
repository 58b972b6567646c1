"""The public implementations that `models.py` measures beside ours; each is (what it is, build(classes))."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet50, segmentation
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.ops import FeaturePyramidNetwork


def block(before: int, after: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True))


def resized(x: Tensor, size: Any, align: bool = False) -> Tensor:
    """Bilinear, to the height and width given."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align)


class Stages(nn.Module):
    """torchvision's ResNet-50 without its classifier: the outputs of its four stages."""

    def __init__(self, dilated: tuple[bool, bool, bool] = (False, False, False)) -> None:
        super().__init__()
        net = resnet50(weights=None, replace_stride_with_dilation=list(dilated))
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.stages = nn.ModuleList([net.layer1, net.layer2, net.layer3, net.layer4])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Stage outputs, finest first."""
        x, out = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            out.append(x)
        return out


class UNet(nn.Module):
    """The common PyTorch U-Net: four steps, transposed convolutions, convolutions without bias."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = [64, 128, 256, 512, 1024]
        self.down = nn.ModuleList(self._double(i, o) for i, o in zip([3, *widths], widths, strict=False))
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in steps)
        self.conv = nn.ModuleList(self._double(i, o) for i, o in steps)
        self.head = nn.Conv2d(64, classes, 1)

    @staticmethod
    def _double(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(block(before, after), block(after, after))

    def forward(self, x: Tensor) -> Tensor:
        """Logits at the picture's size."""
        skips = []
        for level, conv in enumerate(self.down):
            x = conv(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for up, conv, skip in zip(self.up, self.conv, skips[-2::-1], strict=True):
            x = conv(torch.cat([skip, up(x)], 1))
        return self.head(x)


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ on ResNet-50 at stride 16 with plain convolutions, as in VainF/DeepLabV3Plus-Pytorch."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = Stages((False, False, True))
        self.low = block(256, 48, 1)
        self.aspp = ASPP(2048, [6, 12, 18])
        self.head = nn.Sequential(block(304, 256), nn.Conv2d(256, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits at a quarter of the picture's size."""
        first, *_, last = self.body(x)
        low = self.low(first)
        return self.head(torch.cat([low, resized(self.aspp(last), low.shape[-2:])], 1))


class PSPNet(nn.Module):
    """PSPNet on ResNet-50 with a deep stem, all dilated, as in hszhao/semseg; with the auxiliary head's weights."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = Stages((False, True, True))
        pool = nn.MaxPool2d(3, 2, 1)
        self.body.stem = nn.Sequential(block(3, 64, stride=2), block(64, 64), block(64, 128), pool)
        first = self.body.stages[0][0]
        first.conv1, first.downsample[0] = nn.Conv2d(128, 64, 1, bias=False), nn.Conv2d(128, 256, 1, bias=False)
        for stage, rate in ((2, 2), (3, 4)):
            self.body.stages[stage][0].conv2.dilation = self.body.stages[stage][0].conv2.padding = (rate, rate)
        self.pyramid = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(b), block(2048, 512, 1)) for b in (1, 2, 3, 6))
        self.head = nn.Sequential(block(4096, 512), nn.Conv2d(512, classes, 1))
        self.auxiliary = nn.Sequential(block(1024, 256), nn.Conv2d(256, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits at the picture's size."""
        size, last = x.shape[-2:], self.body(x)[-1]
        bins = [resized(pooled(last), last.shape[-2:], align=True) for pooled in self.pyramid]
        return resized(self.head(torch.cat([last, *bins], 1)), size, align=True)


class SemanticFPN(nn.Module):
    """Semantic FPN on ResNet-50 (stride in the first 1 x 1), as in Detectron2."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = Stages()
        for stage in list(self.body.stages)[1:]:
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
        self.fpn = FeaturePyramidNetwork([256, 512, 1024, 2048], 256)
        self.branches = nn.ModuleList(nn.ModuleList(self._step(i) for i in range(max(n, 1))) for n in range(4))
        self.head = nn.Conv2d(128, classes, 1)

    @staticmethod
    def _step(index: int) -> nn.Sequential:
        convolution = nn.Conv2d(128 if index else 256, 128, 3, padding=1, bias=False)
        return nn.Sequential(convolution, nn.GroupNorm(32, 128), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """Logits at the picture's size."""
        size = x.shape[-2:]
        features = dict(enumerate(self.body(x)))
        total: Any = 0
        for level, (branch, maps) in enumerate(zip(self.branches, self.fpn(features).values(), strict=True)):
            for step in branch:
                maps = step(maps)
                if level:
                    maps = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
            total = total + maps
        return resized(self.head(total), size)


class HRNet(nn.Module):
    """timm's HRNet body (its fusion resizes by nearest, which costs less) with the head of the segmentation release."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = timm.create_model("hrnet_w18_small_v2", features_only=True, feature_location="")
        width = 18 + 36 + 72 + 144
        self.head = nn.Sequential(
            nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Conv2d(width, classes, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits at a quarter of the picture's size."""
        maps = self.body(x)[-4:]
        size = maps[0].shape[-2:]
        return self.head(torch.cat([maps[0], *(resized(m, size) for m in maps[1:])], 1))


class YOLACT(nn.Module):
    """YOLACT on ResNet-50 at 550 pixels, put together from torchvision's body as in dbolya/yolact."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = Stages()
        self.lateral = nn.ModuleList(nn.Conv2d(channels, 256, 1) for channels in (512, 1024, 2048))
        self.smooth = nn.ModuleList(nn.Conv2d(256, 256, 3, padding=1) for _ in range(3))
        self.down = nn.ModuleList(nn.Conv2d(256, 256, 3, 2, 1) for _ in range(2))
        self.protonet = nn.ModuleList(nn.Conv2d(256, 256, 3, padding=1) for _ in range(4))
        self.prototypes = nn.Conv2d(256, 32, 1)
        self.shared = nn.Conv2d(256, 256, 3, padding=1)
        self.heads = nn.ModuleList(nn.Conv2d(256, 3 * each, 3, padding=1) for each in (1 + classes, 4, 32))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The masks (N, H, W) as numbers 0 and 1, classes (N,) and scores (N,) of at most 100 objects."""
        size = x.shape[-2:]
        maps: list[Tensor] = []
        above: Tensor | None = None
        for feature, lateral, smooth in zip(
            self.body(resized(x, (550, 550)))[:0:-1], self.lateral[::-1], self.smooth[::-1], strict=True
        ):
            own = lateral(feature)
            above = own if above is None else own + resized(above, own.shape[-2:])
            maps.insert(0, F.relu(smooth(above)))
        for convolution in self.down:
            maps.append(convolution(maps[-1]))
        prototypes = maps[0]
        for index, convolution in enumerate(self.protonet):
            prototypes = F.relu(convolution(resized(prototypes, (138, 138)) if index == 3 else prototypes))
        prototypes = F.relu(self.prototypes(prototypes))[0]
        rows = [[h(F.relu(self.shared(m))).permute(0, 2, 3, 1).flatten(1) for h in self.heads] for m in maps]
        logits, codes, coefficients = (torch.cat(parts, 1)[0] for parts in zip(*rows, strict=True))
        coefficients = coefficients.reshape(-1, 32).tanh()
        scores = logits.reshape(len(coefficients), -1).softmax(1)[:, 1:].T
        # The reference's priors differ from place to place; what they cost does not.
        half = codes.reshape(-1, 4)[:, 2:].mul(0.2).exp() * 0.05
        centres = torch.rand(len(half), 2) + codes.reshape(-1, 4)[:, :2] * 0.01
        boxes = torch.cat([centres - half, centres + half], 1)
        kept = scores.amax(0) > 0.05
        scores, boxes, coefficients = scores[:, kept], boxes[kept], coefficients[kept]
        top, index = scores.sort(1, descending=True)
        top, index = top[:, :200], index[:, :200]
        iou = self.overlaps(boxes[index]).triu_(1).amax(1)
        alive = (iou <= 0.5) & (top > 0.05)
        labels = torch.arange(len(top))[:, None].expand_as(index)[alive]
        score, order = top[alive].sort(descending=True)
        chosen, labels = index[alive][order[:100]], labels[order[:100]]
        masks = (prototypes.permute(1, 2, 0) @ coefficients[chosen].T).sigmoid().permute(2, 0, 1)
        masks = masks * self.inside(boxes[chosen] * 138, 138)
        return resized(masks[None], size)[0].gt(0.5), labels, score[:100]

    @staticmethod
    def overlaps(boxes: Tensor) -> Tensor:
        """IoU (K, C, C) of boxes (K, C, 4)."""
        low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
        high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
        shared = (high - low).clamp(min=0).prod(3)
        areas = (boxes[..., 2:] - boxes[..., :2]).prod(2)
        return shared / (areas[:, :, None] + areas[:, None] - shared)

    @staticmethod
    def inside(boxes: Tensor, side: int) -> Tensor:
        """(N, side, side) of 1 in boxes (N, 4) of cells and 0 elsewhere."""
        place = torch.arange(side, dtype=torch.float32)
        rows = (place >= boxes[:, 1:2]) & (place < boxes[:, 3:4])
        columns = (place >= boxes[:, :1]) & (place < boxes[:, 2:3])
        return (rows[:, :, None] & columns[:, None]).float()


def segformer(classes: int) -> nn.Module:
    """SegFormer-B0 of Hugging Face."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=classes))


def of_torchvision(name: str, **options: Any) -> Callable[[int], nn.Module]:
    """One of torchvision's networks, without weights."""
    return lambda classes: getattr(segmentation, name)(
        weights=None, weights_backbone=None, num_classes=classes, **options
    )


PEERS: dict[str, tuple[str, Callable[[int], nn.Module]]] = {
    "unet": ("the same network written out", UNet),
    "fcn": ("torchvision `fcn_resnet50`", of_torchvision("fcn_resnet50", aux_loss=True)),
    "deeplabv3": ("torchvision `deeplabv3_resnet50`", of_torchvision("deeplabv3_resnet50", aux_loss=True)),
    "deeplabv3plus": ("torchvision's parts as in VainF's", DeepLabV3Plus),
    "lraspp": ("torchvision `lraspp_mobilenet_v3_large`", of_torchvision("lraspp_mobilenet_v3_large")),
    "pspnet": ("torchvision's parts as in semseg", PSPNet),
    "hrnet": ("timm's body as in the release", HRNet),
    "segformer": ("transformers `SegformerForSemanticSegmentation` B0", segformer),
    "semantic_fpn": ("torchvision's parts as in Detectron2", SemanticFPN),
}
