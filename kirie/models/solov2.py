r"""SOLOv2: Wang et al., "SOLOv2: Dynamic and Fast Instance Segmentation", NeurIPS 2020 (arXiv 2003.10152), figure 2.

    image -- encoder -- pyramid -.- 1/4 to 1/32 -- mask head: convolutions to 1/4, sum ---- features (C, 1/4)
                                 |                                                              |
                                 '- 1/4 to 1/64, each resized to S x S cells -.- kernels (C) ---*-- a mask per cell
                                                                              '- categories ------- its class

No boxes and no regions: the cell in which an object's centre lies gives its class and the 1 x 1 kernel of its mask;
Matrix NMS takes off the score of what resembles a better one. This is the network of AdelaiDet (`configs/SOLOv2`), and
takes its checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.models.contract import Frame
from kirie.models.parts.checks import check_pixels, check_share, check_whole
from kirie.models.parts.dynamic_masks import MASK, mask_facts, mask_logits, matrix_nms, point_nms
from kirie.models.parts.encoder import Encoder, build_encoder
from kirie.models.parts.fpn import FPN, SemanticBranch
from kirie.models.parts.grid_cells import TaughtCells, category_loss, checked_grids
from kirie.models.parts.instance import Chosen, InstanceModel, by_number, numbered, seen_sizes
from kirie.models.parts.pasting import cut_masks, on_cells, resize_matrix, resized_twice
from kirie.models.parts.sizes import at_least, padded
from kirie.results import Instances, Result

CELL = 4  # pixels of a cell of the mask features, the stride of the pyramid's first map
GRIDS = (40, 36, 24, 16, 12)
STRIDES = (8, 8, 16, 32, 32)
RANGES = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
WEIGHTS = {"category": 1.0, "mask": 3.0}


class SOLOv2Raw(NamedTuple):
    """What `forward` gives for B pictures.

    Attributes:
        categories: per grid (B, K, S, S) logits.
        kernels: per grid (B, C * kernel_size ** 2, S, S).
        features: (B, C, h, w) at a quarter of the padded picture's size, which the kernels are for.
        seen: (B, 2) int64, height and width of the picture without padding.
    """

    categories: tuple[Tensor, ...]
    kernels: tuple[Tensor, ...]
    features: Tensor
    seen: Tensor


class Candidates(NamedTuple):
    """What may be objects of one picture, the surest first; see `SOLOv2.candidates`.

    Attributes:
        labels: (N,) int64.
        scores: (N,) probability of the class times the mask's certainty.
        kernels: (N, C * kernel_size ** 2).
        areas: (N,) cells of the mask features.
        overlaps: (N, N) cells that two masks share.
        boxes: (N, 4) `xyxy` in cells.
    """

    labels: Tensor
    scores: Tensor
    kernels: Tensor
    areas: Tensor
    overlaps: Tensor
    boxes: Tensor


class SOLOv2(InstanceModel):
    """SOLOv2 for any number of channels and classes and any picture size, on any timm encoder with a map at stride 4.

    Two objects of about one size whose centres fall into one cell cannot both be found: `grids` must be fine enough.
    For small objects close together, such as nuclei of 10 to 30 pixels in patches of 256, take for example
    `grids=(64, 36, 16), strides=(4, 8, 16), scale_ranges=((1, 24), (16, 64), (48, 256)), least_cells=2,
    max_detections=400`.

    The paper's light form has `width=256, depth=2, mask_channels=128`, the bounds of `scale_ranges` about halved
    ((1, 56), (28, 112), (56, 224), (112, 448), (224, 896)), and pictures of a short side of 448.

    Args:
        in_channels: C of the images.
        classes: the K classes of objects, or how many; background is none of them.
        encoder: a timm architecture.
        encoder_weights: see `Encoder`; used once and not kept in the model file.
        encoder_options: other options of `Encoder`; AdelaiDet's ResNets have {"stride_first": True, "frozen_norm":
            True}.
        channels: of the pyramid's maps.
        grids: cells along each side of the picture, one number for each map of the pyramid that is used, finest first.
        strides: to which each of these maps is resized before it is sampled at the cells.
        scale_ranges: from and to how many pixels an object, the root of its box's area, belongs to each grid; the first
            begins at 0 and the last has no end, whatever is written.
        width: channels of the towers that give categories and kernels.
        depth: convolutions of each tower.
        mask_width: channels of the mask head.
        mask_channels: channels of the mask features.
        kernel_size: 1 or 3, of the dynamic kernels.
        max_positives: most cells of a picture whose masks are learned in one step, drawn at random where there are
            more, which bounds the memory; categories are learned by all cells.
        mean: per channel, taken off images in [0, 1]; None for what the encoder expects.
        std: per channel, above 0, what they are then divided by; None for what the encoder expects.
        score_threshold: a cell is a candidate for a class with more than this probability.
        shown_threshold: the score from which on objects are worth showing to a person.
        update_threshold: the score that an object must still have after Matrix NMS.
        least_cells: a mask of no more cells of 4 x 4 pixels is none; None for as many as the stride of its grid, as in
            AdelaiDet, which leaves out objects below about 12 pixels.
        max_candidates: how many candidates take part, those with the best probability.
        max_detections: most objects of a picture.

    Attributes:
        score_threshold, shown_threshold, update_threshold, least_cells: as above; may be changed at any time.
        max_candidates, max_detections: likewise.

    Raises:
        KirieError: when an argument is out of range, or the encoder or its weights cannot be had.
    """

    advice = "Objects without boxes: exact outlines at any size in one pass, where centres are apart by a grid's cell."

    def __init__(
        self,
        in_channels: int = 3,
        classes: Classes | int = 80,
        *,
        encoder: str = "resnet50",
        encoder_weights: str | None = None,
        encoder_options: Mapping[str, Any] | None = None,
        channels: int = 256,
        grids: Sequence[int] = GRIDS,
        strides: Sequence[int] = STRIDES,
        scale_ranges: Sequence[Sequence[float]] = RANGES,
        width: int = 512,
        depth: int = 4,
        mask_width: int = 128,
        mask_channels: int = 256,
        kernel_size: int = 1,
        max_positives: int = 256,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        score_threshold: float = 0.1,
        shown_threshold: float = 0.3,
        update_threshold: float = 0.05,
        least_cells: int | None = None,
        max_candidates: int = 500,
        max_detections: int = 100,
    ) -> None:
        sizes = {"channels": channels, "width": width, "mask_width": mask_width, "mask_channels": mask_channels}
        limits = {
            "max_positives": max_positives, "max_candidates": max_candidates, "max_detections": max_detections,
        }  # fmt: skip
        thresholds = {
            "score_threshold": score_threshold, "shown_threshold": shown_threshold,
            "update_threshold": update_threshold,
        }  # fmt: skip
        for name, value in sizes.items():
            check_whole(name, value, 1, 4096)
        for name, value in limits.items():
            check_whole(name, value, 1, 10000)
        for name, share in thresholds.items():
            check_share(name, share)
        check_whole("depth", depth, 1, 64)
        if least_cells is not None:
            check_whole("least_cells", least_cells, 0, 10000)
        if kernel_size not in (1, 3) or type(kernel_size) is not int:
            raise KirieError(f"kernel_size must be 1 or 3, got {kernel_size!r:.80}.")
        check_pixels(mean, std)
        body = build_encoder(encoder, in_channels, encoder_options, weights=encoder_weights)
        if CELL not in body.strides:
            raise KirieError(f"{encoder!r} has maps at strides {body.strides}; the pyramid begins at {CELL}.")
        skipped = body.strides.index(CELL)
        own_strides = body.strides[skipped:]
        grids, strides, scale_ranges = checked = checked_grids(grids, strides, scale_ranges, own_strides)
        arguments = {
            "encoder": encoder, "encoder_options": body.options, "grids": grids, "strides": strides,
            "scale_ranges": scale_ranges, "depth": depth, "kernel_size": kernel_size, "mean": mean, "std": std,
            "least_cells": least_cells, **sizes, **limits, **thresholds,
        }  # fmt: skip
        own = {"mean": body.mean if mean is None else mean, "std": body.std if std is None else std}
        super().__init__(in_channels, classes, arguments, **own)
        self.skipped_maps = skipped
        self.grids, self.strides, self.scale_ranges = checked
        self.kernel_size, self.max_positives = kernel_size, max_positives
        self.score_threshold, self.shown_threshold = score_threshold, shown_threshold
        self.update_threshold = update_threshold
        self.least_cells = least_cells
        self.max_candidates, self.max_detections = max_candidates, max_detections
        self.encoder: Encoder = body
        self.fpn = FPN(body.channels[self.skipped_maps :], channels, extra=1)
        self.head = _GridHead(channels, len(self.classes), mask_channels * kernel_size**2, width, depth, self.grids)
        self.mask_head = _MaskHead(channels, len(own_strides), mask_width, mask_channels)

    def network(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs for images (B, C, H, W) in [0, 1] of any size: those of `SOLOv2Raw`, numbered by grid."""
        x = self.normalise(images)
        x = padded(x, self.encoder.strides[-1])
        maps = self.fpn(self.encoder(x)[self.skipped_maps :])
        features = self.mask_head(maps[:-1])
        resized = []
        for map_, own, stride in zip(
            maps, (*self.encoder.strides[self.skipped_maps :], None), self.strides, strict=False
        ):
            size = [side * CELL // stride for side in features.shape[-2:]]
            resized.append(map_ if own == stride else F.interpolate(map_, size, mode="bilinear", align_corners=False))
        categories, kernels = self.head(resized)
        return numbered("categories", categories) | numbered("kernels", kernels) | {"features": features}

    @property
    def frame(self) -> Frame:
        """See `SegmentationModel.frame`."""
        return Frame(self.encoder.strides[-1], least=2 * self.encoder.strides[-1])

    def raw_of(self, outputs: Mapping[str, Tensor], size: tuple[int, int]) -> SOLOv2Raw:
        """See `SegmentationModel.raw_of`."""
        categories, kernels = (by_number(name, outputs) for name in ("categories", "kernels"))
        return SOLOv2Raw(categories, kernels, outputs["features"], seen_sizes(size, outputs["features"]))

    # ---- prediction

    def giving(self, most: int) -> Self:
        """See `InstanceModel.giving`."""
        more = super().giving(most)
        more.max_candidates = max(self.max_candidates, 2 * most)
        return more

    def choose(self, raw: SOLOv2Raw, size: Tensor) -> Chosen:
        """The objects of one picture; see `InstanceModel.choose`. Their sources are kernels.

        The boxes are those of the maps, exact to a cell; `instances` has those of the masks.
        """
        found = self.candidates(raw)
        scores = matrix_nms(found.scores, found.labels, found.areas, found.overlaps)
        scores, order = scores.sort(descending=True, stable=True)
        rank = torch.arange(scores.shape[0], device=scores.device)
        kept = (scores >= self.update_threshold) & (rank < self.max_detections)
        chosen, seen = order[kept], raw.seen[0]
        sides = seen.flip(0).repeat(2).to(scores)
        boxes = (found.boxes[chosen] * CELL).minimum(sides) * (size.flip(0).repeat(2).to(scores) / sides)
        return Chosen(boxes, found.labels[chosen], scores[kept], (found.kernels[chosen],), seen)

    def maps(self, raw: SOLOv2Raw, sources: tuple[Tensor, ...]) -> Tensor:
        """The maps (N, h, w) of the padded picture; see `InstanceModel.maps`."""
        return mask_logits(raw.features[0].float(), sources[0], self.kernel_size).sigmoid_()

    def candidates(self, raw: SOLOv2Raw) -> Candidates:
        """What of one picture enters Matrix NMS; N may be 0. `raw` has a batch axis of length 1."""
        count = raw.categories[0].shape[1]
        peaks = [point_nms(logits.float().sigmoid()) for logits in raw.categories]
        scores = torch.cat([peak[0].permute(1, 2, 0).flatten() for peak in peaks])  # (cells * K,)
        scores, places = scores.topk(min(self.max_candidates, scores.shape[0]))
        sure = scores > self.score_threshold
        scores, cells, labels = scores[sure], places[sure] // count, places[sure] % count
        kernels = torch.cat([each[0].float().flatten(1) for each in raw.kernels], 1).T[cells]
        # As many strips as the padded picture has rows at least.
        strips = 2 * self.encoder.strides[-1] // CELL
        areas, certainty, overlaps, boxes = mask_facts(raw.features[0].float(), kernels, self.kernel_size, parts=strips)
        least = [stride if self.least_cells is None else self.least_cells for stride in self.strides]
        per_cell = torch.cat([scores.new_full((g * g,), each) for g, each in zip(self.grids, least, strict=True)])
        large = torch.nonzero(areas > per_cell[cells])[:, 0]
        scores, order = (scores * certainty)[large].sort(descending=True, stable=True)
        order = large[order]
        return Candidates(labels[order], scores, kernels[order], areas[order], overlaps[order][:, order], boxes[order])

    def instances(self, boxes: Tensor, labels: Tensor, scores: Tensor, masks: Masks) -> Instances:
        """Instances with the boxes of their masks, without those that have no pixel; see `InstanceModel.instances`."""
        given = super().instances(boxes, labels, scores, masks)
        kept = given[given.masks.areas() > 0]
        return Instances.from_masks(kept.masks, kept.labels, kept.classes, kept.scores)

    @staticmethod
    def cut(boxes: npt.NDArray[Any], maps: npt.NDArray[Any], seen: tuple[int, int], size: tuple[int, int]) -> Masks:
        """The masks (N) at `size` (H, W), where the maps lie above 0.5.

        They are enlarged bilinearly to the picture that was seen and from there to `size`.
        """
        rows, columns = (
            resized_twice(pixels, side, resize_matrix(cells * CELL, cells)[:side])
            for pixels, side, cells in zip(size, seen, maps.shape[1:], strict=True)
        )
        return cut_masks(maps, rows, columns, threshold=MASK)

    # ---- training

    def loss(self, raw: SOLOv2Raw, truths: Sequence[Result]) -> dict[str, Tensor]:
        """Named losses against Instances of the pictures' size, weighted by `WEIGHTS`.

        `category` is the focal loss of all cells and classes per positive cell and one; `mask` the mean Dice loss of
        the masks of the positive cells. Which cells are positive, `TaughtCells` says; those that a crowd reaches learn
        nothing about its class.

        Raises:
            KirieError: when the truths do not belong to this batch and model; see `InstanceModel.own_truths`.
        """
        own = self.own_truths(truths, len(raw.features), (int(raw.seen[0, 0]), int(raw.seen[0, 1])))
        cells = raw.features.shape[2:]
        frame = (CELL * cells[0], CELL * cells[1])
        taught = [TaughtCells.of(truth, frame, self.grids, self.scale_ranges) for truth in own]
        with torch.autocast(raw.features.device.type, enabled=False):
            losses = {
                "category": category_loss(torch.cat([c.float().flatten(2) for c in raw.categories], 2), taught),
                "mask": self._mask_loss(torch.cat([k.float().flatten(2) for k in raw.kernels], 2), raw, taught),
            }
        return {name: value * WEIGHTS[name] for name, value in losses.items()}

    def _mask_loss(self, kernels: Tensor, raw: SOLOv2Raw, taught: Sequence[TaughtCells]) -> Tensor:
        """The mean Dice loss of the masks that positive cells give; `kernels` (B, C * kernel_size ** 2, cells)."""
        features = raw.features.float()
        cells = (features.shape[2], features.shape[3])
        # Of nothing, for a batch without positives: every part of the network takes part in every step.
        losses = [kernels[:, :0].sum((1, 2))[:0], features[:, :0].sum((1, 2, 3))[:0]]
        for index, truth in enumerate(taught):
            positive = torch.from_numpy(np.flatnonzero(truth.owners >= 0))
            positive = positive[torch.randperm(len(positive))[: self.max_positives]]
            rows, places = np.unique(truth.owners[positive.numpy()], return_inverse=True)
            masks = torch.from_numpy(on_cells(truth.masks[rows], cells)).to(features.device)
            own = kernels[index][:, positive.to(features.device)].T
            soft = mask_logits(features[index], own, self.kernel_size).sigmoid()  # (P, h, w)
            losses.append(_dice(soft.flatten(1), masks[torch.from_numpy(places).to(masks.device)].flatten(1)))
        each = torch.cat(losses)
        return each.sum() / max(len(each), 1)


class _GridHead(nn.Module):
    """Categories and kernels at the cells of each grid, by the same towers for all of them."""

    def __init__(self, channels: int, classes: int, kernel: int, width: int, depth: int, grids: Sequence[int]) -> None:
        super().__init__()
        self.grids = tuple(grids)
        self.category_tower = _tower(channels, width, depth)
        self.kernel_tower = _tower(channels + 2, width, depth)
        self.categories = nn.Conv2d(width, classes, 3, padding=1)
        self.kernels = nn.Conv2d(width, kernel, 3, padding=1)
        for convolution, bias in ((self.categories, -math.log(99)), (self.kernels, 0.0)):  # objects are rare: 1 %
            nn.init.normal_(convolution.weight, std=0.01)
            nn.init.constant_(convolution.bias, bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Per grid (B, K, S, S) logits, and per grid (B, kernel, S, S), for one map (B, C, h, w) for each."""
        cells = [
            F.interpolate(_with_places(x), (grid, grid), mode="bilinear", align_corners=False)
            for x, grid in zip(maps, self.grids, strict=True)
        ]
        categories = tuple(self.categories(self.category_tower(x[:, :-2])) for x in cells)
        return categories, tuple(self.kernels(self.kernel_tower(x)) for x in cells)


class _MaskHead(nn.Module):
    """The mask features (B, C, h, w): all maps brought to the finest one's size, of which the last knows its places."""

    def __init__(self, channels: int, maps: int, width: int, out_channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            SemanticBranch(channels + (2 if index == maps - 1 else 0), width, index) for index in range(maps)
        )
        convolution = nn.Conv2d(width, out_channels, 1, bias=False)
        norm = nn.GroupNorm(math.gcd(32, out_channels), out_channels)
        self.predictor = nn.Sequential(convolution, norm, nn.ReLU(inplace=True))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Features (B, C, h, w) at the first map's size for maps (B, channels, h_i, w_i), finest first."""
        placed = [*maps[:-1], _with_places(maps[-1])]
        first, *others = (branch(x) for branch, x in zip(self.branches, placed, strict=True))
        for other in others:
            first = first + other
        features: Tensor = self.predictor(first)
        return features


def _tower(channels: int, width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(SemanticBranch(width if step else channels, width, 0) for step in range(depth)))


def _with_places(x: Tensor) -> Tensor:
    """`x` (B, C, h, w) and two more channels, column and row of each cell from -1 to 1."""
    height, width = x.shape[-2:]
    # An export would tie `torch.linspace` to one size.
    row, column = (
        torch.arange(count, device=x.device, dtype=x.dtype) * 2 / at_least(count - 1, 1) - 1
        for count in (height, width)
    )
    places = torch.stack([column.expand(height, width), row[:, None].expand(height, width)])
    return torch.cat([x, places.expand(x.shape[0], -1, -1, -1)], 1)


def _dice(soft: Tensor, masks: Tensor) -> Tensor:
    """1 - 2 sum(p q) / (sum(p^2) + sum(q^2)), (P,), for probabilities p (P, cells) and bool masks q of any cells."""
    overlap = (soft * masks).sum(1)
    losses: Tensor = 1 - 2 * overlap / (soft.square().sum(1) + masks.sum(1))
    return losses
