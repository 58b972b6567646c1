r"""YOLACT: Bolya, Zhou, Xiao and Lee, "YOLACT: Real-time Instance Segmentation", ICCV 2019 (arXiv 1904.02689).

    image -- encoder -- 1/8  --(+)-- p3 --.-- protonet, x 2 -- prototypes (M, 1/4) ------------------.
                        1/16 --(+)-- p4 --|                                                          |
                        1/32 ---+--- p5 --|-- head, one for all maps -- classes, boxes, coefficients-+-- masks
                              1/64 - p6 --|                                                (M a box)
                             1/128 - p7 --'

A mask is the sum of all prototypes by the coefficients of its box, a sigmoid, and cut off outside of the box. This is
the network of dbolya/yolact, and takes its checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.models.contract import Frame
from kirie.models.parts.checks import check_flag, check_numbers, check_pixels, check_share, check_whole
from kirie.models.parts.encoder import Encoder, build_encoder
from kirie.models.parts.instance import Chosen, InstanceModel, seen_sizes
from kirie.models.parts.pasting import cut_masks, resize_matrix
from kirie.models.parts.priors import BACKGROUND, coded, decoded, fast_nms, grid_priors, hardest, matched
from kirie.models.parts.prototypes import PictureTruth, assembled, inside
from kirie.models.parts.sizes import padded
from kirie.results import Result

FINEST = 8  # the stride of the pyramid's first map; what an encoder has above that is not used
EXTRA = 2  # maps that the pyramid has beyond the encoder's
CELL = 4  # the stride of the prototypes
WEIGHTS = {"classification": 1.0, "box": 1.5, "mask": 6.125, "semantic": 1.0}
_RELEASED = 550, 24  # the input size of the releases and the scale of its first priors


class YOLACTRaw(NamedTuple):
    """What `forward` gives for B pictures and P priors. Boxes are relative to the picture; see `parts/priors.py`.

    Attributes:
        logits: (B, P, 1 + K), background first.
        codes: (B, P, 4), boxes by their priors.
        coefficients: (B, P, M) in [-1, 1].
        prototypes: (B, M, h, w), at least 0.
        finest: (B, C, h / 2, w / 2), the pyramid's first map, from which `loss` makes classes per pixel; C is 0 where
            it is of no use.
        priors: (B, P, 4) centres and sides.
        seen: (B, 2) int64, height and width of the picture that the network saw, without padding.
    """

    logits: Tensor
    codes: Tensor
    coefficients: Tensor
    prototypes: Tensor
    finest: Tensor
    priors: Tensor
    seen: Tensor


class YOLACT(InstanceModel):
    """YOLACT for any number of channels and classes and any picture size, on any timm encoder.

    Args:
        in_channels: C of the images.
        classes: the K classes of objects, or how many; background is none of them.
        encoder: a timm architecture.
        encoder_weights: see `Encoder`; used once and not kept in the model file.
        encoder_options: other options of `Encoder`; the reference's Darknet has {"leak": 0.1}.
        input_size: every picture is resized to a square of so many pixels a side, as the reference does with 550; None
            keeps its size and shape.
        scales: the side of a prior in pixels (after that resizing) on each map of the pyramid, finest first; None for
            24 and so on doubling with the stride, which `input_size` makes larger or smaller in proportion.
        ratios: width to height of the priors of one place.
        square: whether they are squares all the same, of `scale * sqrt(ratio)` a side, as in the reference.
        channels: of the pyramid's maps.
        prototypes: M.
        mean: per channel, taken off images in [0, 1]; None for what the encoder expects.
        std: per channel, above 0, what they are then divided by; None for what the encoder expects.
        score_threshold: a prior takes part in prediction when its best class has more than this probability.
        shown_threshold: the score from which on objects are worth showing to a person.
        nms_threshold: the IoU with a better box of its class above which a box goes.
        candidates: how many boxes of each class take part in that, the best.
        max_detections: most objects of a picture.

    Attributes:
        score_threshold, shown_threshold, nms_threshold, candidates, max_detections: as above; may be changed at any
            time.

    Raises:
        KirieError: when an argument is out of range, or the encoder or its weights cannot be had.
    """

    for_loss = frozenset({"finest"})
    advice = "The fast one for objects: one pass, masks of 1/4 of the size; Mask R-CNN is more exact and much slower."

    def __init__(
        self,
        in_channels: int = 3,
        classes: Classes | int = 80,
        *,
        encoder: str = "resnet50",
        encoder_weights: str | None = None,
        encoder_options: Mapping[str, Any] | None = None,
        input_size: int | None = None,
        scales: Sequence[float] | None = None,
        ratios: Sequence[float] = (1.0, 0.5, 2.0),
        square: bool = True,
        channels: int = 256,
        prototypes: int = 32,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        score_threshold: float = 0.05,
        shown_threshold: float = 0.15,
        nms_threshold: float = 0.5,
        candidates: int = 200,
        max_detections: int = 100,
    ) -> None:
        for name, value in (("channels", channels), ("prototypes", prototypes)):
            check_whole(name, value, 1, 4096)
        for name, value in (("candidates", candidates), ("max_detections", max_detections)):
            check_whole(name, value, 1, 10000)
        if input_size is not None:
            check_whole("input_size", input_size, 32, 8192)
        check_flag("square", square)
        check_share("score_threshold", score_threshold)
        check_share("shown_threshold", shown_threshold)
        check_share("nms_threshold", nms_threshold)
        check_pixels(mean, std)
        body = build_encoder(encoder, in_channels, encoder_options, weights=encoder_weights)
        if input_size is not None and input_size % body.divisor:
            raise KirieError(f"input_size must be a multiple of {body.divisor} for {encoder!r}, got {input_size}.")
        arguments = {
            "encoder": encoder, "encoder_options": body.options, "input_size": input_size, "scales": scales,
            "ratios": ratios, "square": square, "channels": channels, "prototypes": prototypes, "mean": mean,
            "std": std, "score_threshold": score_threshold, "shown_threshold": shown_threshold,
            "nms_threshold": nms_threshold, "candidates": candidates, "max_detections": max_detections,
        }  # fmt: skip
        own = {"mean": body.mean if mean is None else mean, "std": body.std if std is None else std}
        super().__init__(in_channels, classes, arguments, **own)
        self.encoder: Encoder = body
        self.skipped_maps = sum(1 for stride in body.strides if stride < FINEST)
        self.strides = body.strides[self.skipped_maps :]
        if self.strides[:1] != [FINEST]:
            raise KirieError(f"{encoder!r} has maps at strides {body.strides}; the pyramid begins at {FINEST}.")
        self.strides += [self.strides[-1] * 2 ** (step + 1) for step in range(EXTRA)]
        self.input_size = input_size
        self.scales = _scales(scales, input_size, self.strides)
        self.ratios = check_numbers("ratios", ratios)
        self.square = square
        self.score_threshold, self.nms_threshold = score_threshold, nms_threshold
        self.shown_threshold = shown_threshold
        self.candidates, self.max_detections = candidates, max_detections
        self.pyramid = _Pyramid(body.channels[self.skipped_maps :], channels)
        self.protonet = nn.Sequential(
            *(_convolution(channels, channels, relu=True) for _ in range(3)),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            _convolution(channels, channels, relu=True),
            nn.Conv2d(channels, prototypes, 1),
        )
        self.head = _Head(channels, len(self.ratios), len(self.classes), prototypes)
        self.semantic = nn.Conv2d(channels, len(self.classes), 1)
        for module in (*self.pyramid.modules(), *self.protonet.modules(), *self.head.modules(), self.semantic):
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def network(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs for images (B, C, H, W) in [0, 1] of any size, by their names in `YOLACTRaw`."""
        x = self.normalise(images)
        if self.input_size is not None:
            x = F.interpolate(x, (self.input_size, self.input_size), mode="bilinear", align_corners=False)
        else:
            x = padded(x, self.encoder.strides[-1])
        maps = self.pyramid(self.encoder(x)[self.skipped_maps :])
        prototypes = F.relu(self.protonet(maps[0]))
        logits, codes, coefficients = (torch.cat(parts, 1) for parts in zip(*map(self.head, maps), strict=True))
        return {
            "logits": logits, "codes": codes, "coefficients": coefficients, "prototypes": prototypes, "finest": maps[0],
        }  # fmt: skip

    @property
    def frame(self) -> Frame:
        """See `SegmentationModel.frame`."""
        return Frame() if self.input_size else Frame(self.encoder.strides[-1], least=2 * self.encoder.strides[-1])

    def raw_of(self, outputs: Mapping[str, Tensor], size: tuple[int, int]) -> YOLACTRaw:
        """See `SegmentationModel.raw_of`."""
        prototypes = outputs["prototypes"]
        given = {"finest": prototypes[:, :0], **outputs}
        size = size if self.input_size is None else (self.input_size, self.input_size)
        cells = [(prototypes.shape[2] // 2, prototypes.shape[3] // 2)]  # of each map, half as many as of the one before
        for _ in self.strides[1:]:
            cells.append((-(-cells[-1][0] // 2), -(-cells[-1][1] // 2)))
        priors = self._priors(cells, size, prototypes.device).expand(len(prototypes), -1, -1)
        return YOLACTRaw(**given, priors=priors, seen=seen_sizes(size, prototypes))

    def _priors(self, maps: Sequence[tuple[int, int]], size: tuple[int, int], device: torch.device) -> Tensor:
        """The priors (P, 4) of maps of (h_i, w_i) cells, relative to a picture of `size`."""
        found = []
        for cells, stride, scale in zip(maps, self.strides, self.scales, strict=True):
            sides = [(scale * r**0.5, scale * r**0.5 if self.square else scale / r**0.5) for r in self.ratios]
            relative = torch.tensor(sides, device=device) / torch.tensor([size[1], size[0]], device=device)
            cell = [
                stride / side if self.input_size is None else 1 / count for side, count in zip(size, cells, strict=True)
            ]
            found.append(grid_priors(cells, cell, relative))
        return torch.cat(found)

    # ---- prediction

    def giving(self, most: int) -> Self:
        """See `InstanceModel.giving`."""
        more = super().giving(most)
        more.candidates = max(self.candidates, 2 * most)
        return more

    def choose(self, raw: YOLACTRaw, size: Tensor) -> Chosen:
        """The objects of one picture; see `InstanceModel.choose`. Their sources are coefficients and relative boxes."""
        rows, boxes, labels, scores = self._chosen(raw)
        pixels = size.to(boxes).flip(0).repeat(2)
        whole = torch.minimum((boxes * pixels).clamp(min=0), pixels)
        return Chosen(whole, labels, scores, (raw.coefficients[0][rows].float(), boxes), raw.seen[0])

    def maps(self, raw: YOLACTRaw, sources: tuple[Tensor, ...]) -> Tensor:
        """The maps (N, h, w), cut off at their boxes; see `InstanceModel.maps`."""
        coefficients, boxes = sources
        maps = assembled(coefficients, raw.prototypes[0].float()).sigmoid_()
        covered = raw.seen[0] / torch.tensor(self._cell(maps.shape[1:]), device=maps.device)
        for axis in inside(boxes * covered.flip(0).repeat(2), maps.shape[1], maps.shape[2]):
            maps *= axis
        return maps

    def _chosen(self, raw: YOLACTRaw) -> tuple[Tensor, ...]:
        """Rows of the priors (N,), relative boxes (N, 4), labels (N,) and scores (N,) of what one picture shows."""
        scores = raw.logits[0].float().softmax(1)[:, 1:]
        kept = torch.nonzero(scores.amax(1) > self.score_threshold)[:, 0]
        boxes = decoded(raw.codes[0][kept].float(), raw.priors[0][kept])
        best, labels, scores = fast_nms(
            boxes, scores[kept], threshold=self.nms_threshold, candidates=self.candidates, most=self.max_detections
        )
        return kept[best], boxes[best], labels, scores

    def cut(
        self, boxes: npt.NDArray[Any], maps: npt.NDArray[Any], seen: tuple[int, int], size: tuple[int, int]
    ) -> Masks:
        """The masks (N) at `size` (H, W): where the maps, enlarged bilinearly, lie above 0.5."""
        sides = zip(size, maps.shape[1:], seen, self._cell(maps.shape[1:]), strict=True)
        rows, columns = (resize_matrix(pixels, cells, side / cell) for pixels, cells, side, cell in sides)
        return cut_masks(maps, rows, columns)

    def _cell(self, cells: Sequence[int]) -> list[float]:
        """Height and width in pixels of one of (h, w) cells of the prototypes.

        They divide a picture of `input_size` evenly, as in the reference; otherwise they have the stride's size and the
        last ones lie beyond the picture.
        """
        return [CELL if self.input_size is None else self.input_size / count for count in cells]

    # ---- training

    def loss(self, raw: YOLACTRaw, truths: Sequence[Result]) -> dict[str, Tensor]:
        """Named losses against Instances that all have one size (H, W), weighted by `WEIGHTS`.

        `classification` is the cross entropy of the positive priors and of the hardest background ones, see `hardest`;
        `box` the smooth L1 distance of the codes; `mask` the binary cross entropy within the true box, divided by the
        box's cells; all per positive prior. `semantic` is the binary cross entropy of classes per pixel, summed over
        the classes. Crowds teach nothing where they lie.

        Raises:
            KirieError: when the truths do not belong to this batch and model; see `InstanceModel.own_truths`.
        """
        seen = None if self.input_size else (int(raw.seen[0, 0]), int(raw.seen[0, 1]))
        own = self.own_truths(truths, len(raw.logits), seen)
        cells = raw.prototypes.shape[2:]
        covered = [side / cell for side, cell in zip(raw.seen[0].tolist(), self._cell(cells), strict=True)]
        with torch.autocast(raw.logits.device.type, enabled=False):
            taught = [PictureTruth.of(truth, cells, covered, raw.logits.device) for truth in own]
            losses = self._losses(YOLACTRaw(*(part.float() for part in raw)), taught)
        return {name: value * WEIGHTS[name] for name, value in losses.items()}

    def _losses(self, raw: YOLACTRaw, truths: Sequence[PictureTruth]) -> dict[str, Tensor]:
        learned = torch.stack([matched(p, t.boxes, t.crowds) for p, t in zip(raw.priors, truths, strict=True)])
        positive = learned >= 0
        chosen = positive | hardest(raw.logits, positive, learned == BACKGROUND)
        targets = [F.pad(t.labels, (0, 1))[rows.clamp(min=-1)] for rows, t in zip(learned, truths, strict=True)]
        semantic = self.semantic(raw.finest)
        # Of nothing, for a batch without positives: every part of the network takes part in every step.
        boxes, masks, pixels = (part[:, :0].sum() for part in (raw.codes, raw.prototypes, semantic))
        for index, truth in enumerate(truths):
            mine = positive[index]
            rows = learned[index][mine]
            goal = coded(truth.boxes[rows], raw.priors[index][mine])
            boxes = boxes + F.smooth_l1_loss(raw.codes[index][mine], goal, reduction="sum")
            masks = masks + truth.mask_loss(raw.coefficients[index][mine], raw.prototypes[index], rows)
            pixels = pixels + truth.semantic_loss(semantic[index])
        classes = F.cross_entropy(raw.logits[chosen], torch.stack(targets)[chosen], reduction="sum")
        count = positive.sum().clamp(min=1)
        return {
            "classification": classes / count,
            "box": boxes / count,
            "mask": masks / count,
            "semantic": pixels / semantic[:, 0].numel(),
        }


class _Pyramid(nn.Module):
    """The feature pyramid of YOLACT: bilinear on the way down, ReLU after the outputs, and strided convolutions on.

    Args:
        in_channels: of the encoder's maps, finest first.
        channels: of each map of the pyramid.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(before, channels, 1) for before in in_channels)
        self.outputs = nn.ModuleList(_convolution(channels, channels, relu=True) for _ in in_channels)
        self.extra = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(EXTRA))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The pyramid (B, C, h_i, w_i), finest first, for maps (B, C_i, h_i, w_i); the extra ones have no ReLU."""
        merged: Tensor | None = None
        maps: list[Tensor] = []
        for x, lateral, output in zip(features[::-1], self.laterals[::-1], self.outputs[::-1], strict=True):
            side = lateral(x)
            if merged is not None:
                side = side + F.interpolate(merged, side.shape[-2:], mode="bilinear", align_corners=False)
            merged = side
            maps.insert(0, output(side))
        # In bfloat16 on a CPU a strided convolution of a map of one cell gives gradients out of unset memory.
        kind = next(self.parameters()).dtype
        with torch.autocast("cpu", enabled=False):
            for convolution in self.extra:
                maps.append(convolution(maps[-1].to(kind)))
        return maps


class _Head(nn.Module):
    """Classes, box codes and mask coefficients of the A priors of every place of a map (B, C, h, w)."""

    def __init__(self, channels: int, priors: int, classes: int, prototypes: int) -> None:
        super().__init__()
        self.shared = _convolution(channels, channels, relu=True)
        self.logits = _convolution(channels, priors * (1 + classes))
        self.codes = _convolution(channels, priors * 4)
        self.coefficients = _convolution(channels, priors * prototypes)
        self.priors = priors

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, h * w * A, 1 + K) logits, (B, h * w * A, 4) codes and (B, h * w * A, M) coefficients in [-1, 1]."""
        x = self.shared(x)
        parts = (convolution(x) for convolution in (self.logits, self.codes, self.coefficients))
        rows = [p.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, p.shape[1] // self.priors)) for p in parts]
        return rows[0], rows[1], rows[2].tanh()


def _convolution(before: int, after: int, *, relu: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(before, after, 3, padding=1)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


def _scales(given: object, input_size: int | None, strides: Sequence[int]) -> tuple[float, ...]:
    """The side of a prior on each map; as the reference has them where none are given."""
    if given is None:
        size, first = _RELEASED
        doubled = [first * stride // strides[0] for stride in strides]
        return tuple(max(s if input_size is None else s * input_size // size, 1) for s in doubled)
    scales = check_numbers("scales", given)
    if len(scales) != len(strides):
        raise KirieError(
            f"scales must be {len(strides)} numbers, one for each of the strides {list(strides)}, got {len(scales)}."
        )
    return scales
