r"""Mask R-CNN: He, Gkioxari, Dollar and Girshick, ICCV 2017 (arXiv 1703.06870), over a feature pyramid.

    image -- encoder -- pyramid --+-- proposals: at each anchor, whether there is an object, and its box
                                  |       | the best ones
                                  +-- RoIAlign 7 x 7 --- box head: class, box
                                  |                        | the best ones
                                  +-- RoIAlign 14 x 14 -- mask head: 28 x 28 probabilities for that class

Ren et al., "Faster R-CNN", NIPS 2015 (arXiv 1506.01497) for proposals and box head, Lin et al., "Feature Pyramid
Networks", CVPR 2017 (arXiv 1612.03144) for the pyramid. These are the networks of Detectron2 (`mask_rcnn_R_50_FPN`) and
of torchvision (`maskrcnn_resnet50_fpn` and its second version), which differ in conventions; both releases come in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kirie.classes import Classes
from kirie.errors import KirieError
from kirie.masks import Masks
from kirie.models.contract import Frame
from kirie.models.parts.anchors import cell_anchors, clipped, grid_anchors
from kirie.models.parts.checks import check_flag, check_numbers, check_pixels, check_share, check_whole
from kirie.models.parts.encoder import Encoder, build_encoder
from kirie.models.parts.fpn import FPN
from kirie.models.parts.instance import Chosen, InstanceModel, by_number, numbered, seen_sizes
from kirie.models.parts.pasting import cut_boxes
from kirie.models.parts.proposals import (
    ProposalHead,
    by_anchor,
    matched,
    proposal_losses,
    sampled,
    select,
)
from kirie.models.parts.regions import BoxHead, MaskHead, box_losses, detected, mask_aims, pooled
from kirie.models.parts.sizes import padded
from kirie.results import Instances, Result

FINEST = 4  # the stride of the pyramid's first map; what an encoder has above that is not used
CANDIDATES = {"prediction": 1000, "training": 2000}  # proposals of each map that take part
PROPOSALS = 1000  # that are left, all maps together
WITH_OBJECT = 0.25  # share of the regions that learn with an object, at the most
BOX_CELLS, MASK_CELLS = 7, 14


@dataclass(frozen=True)
class Flavour:
    """What two families of releases do differently with the same network.

    Attributes:
        whole_pixel_anchors: corners of anchors are whole pixels, and maps' steps the padded picture's sides
            divided by their cells.
        aligned: RoIAlign takes pixels where they are; otherwise half a pixel away.
        samples_per_cell: of RoIAlign per cell and axis; 0: as many as there are pixels.
        learning_proposals: how many are left in training.
        least_proposal: proposals must be wider and higher than so many pixels.
        least_box: so must objects.
        divide_by_sample_limit: see `proposal_losses`.
        soft_mask_truths: see `mask_aims`.
        beta: of smooth L1 for boxes; 0 for L1.
        whole_pixels: masks are enlarged with a rim of a cell, in boxes of whole pixels.
    """

    whole_pixel_anchors: bool
    aligned: bool
    samples_per_cell: int
    learning_proposals: int
    least_proposal: float
    least_box: float
    divide_by_sample_limit: bool
    soft_mask_truths: bool
    beta: float
    whole_pixels: bool


FLAVOURS = {
    "detectron2": Flavour(
        whole_pixel_anchors=False, aligned=True, samples_per_cell=0, learning_proposals=PROPOSALS, least_proposal=0.0,
        least_box=0.0, divide_by_sample_limit=True, soft_mask_truths=False, beta=0.0, whole_pixels=False,
    ),
    "torchvision": Flavour(
        whole_pixel_anchors=True, aligned=False, samples_per_cell=2, learning_proposals=2000, least_proposal=1e-3,
        least_box=1e-2, divide_by_sample_limit=False, soft_mask_truths=True, beta=1 / 9, whole_pixels=True,
    ),
}  # fmt: skip


class MaskRCNNRaw(NamedTuple):
    """What `MaskRCNN.forward` gives.

    Attributes:
        maps: of the pyramid, finest first, (B, C, h_i, w_i) float32 each, without the coarsest, which is for proposals
            alone.
        objectness: logits (B, A, h_i, w_i) at the anchors of each map of the pyramid.
        codes: (B, 4 * A, h_i, w_i), their boxes.
        seen: (B, 2) int64, H and W of the pictures without padding.
    """

    maps: tuple[Tensor, ...]
    objectness: tuple[Tensor, ...]
    codes: tuple[Tensor, ...]
    seen: Tensor


class MaskRCNN(InstanceModel):
    """Mask R-CNN for any number of channels and classes and any picture size, on any timm encoder.

    Args:
        in_channels: C of the images.
        classes: the classes of objects, without background, or how many.
        encoder: a timm architecture.
        encoder_weights: see `Encoder`; used once and not kept in the model file.
        encoder_options: other options of `Encoder`; Detectron2's ResNets have {"stride_first": True, "frozen_norm":
            True}.
        channels: of the pyramid's maps.
        norm: whether the convolutions of the pyramid, the box head and the mask head have batch norm.
        flavour: conventions of "detectron2" or "torchvision"; see `Flavour`.
        anchor_sizes: per map of the pyramid, finest first, the side of its square anchor in pixels. Smaller ones for
            small objects.
        anchor_ratios: of height to width, of the anchors at each place.
        proposal_convs: 3 x 3 convolutions of the proposal head.
        box_convs: 3 x 3 convolutions of the box head.
        box_layers: linear layers after them.
        box_width: of these.
        mask_convs: 3 x 3 convolutions of the mask head.
        mask_width: channels of the mask head.
        regions: of each picture, so many at the most teach the heads. 128 suffice where pictures are small or hold few
            objects, and take much less time.
        spare_logits: logits of the box head that stand for nothing and are never answered; they are there in networks
            that learned with gaps between the numbers of their classes, and count in the softmax.
        beta: of smooth L1 for boxes, 0 for L1; None for what the flavour has.
        max_detections: objects of a picture at the most.
        score_threshold: objects have a higher score.
        shown_threshold: the score from which on objects are worth showing to a person.
        nms_threshold: the IoU above which a box goes that overlaps a better one of its class.
        mean: per channel, taken off images in [0, 1]; None for what the encoder expects.
        std: per channel, above 0, what they are then divided by; None for what the encoder expects.

    Attributes:
        max_detections: as above; may be changed at any time, like the two next.
        score_threshold: as above.
        shown_threshold: as above.
        nms_threshold: as above.

    Raises:
        KirieError: when an argument is out of range, or the encoder or its weights cannot be had.
    """

    advice = "The standard for objects with masks: accurate boxes and outlines of few or many objects; not for video."

    def __init__(
        self,
        in_channels: int = 3,
        classes: Classes | int = 1,
        *,
        encoder: str = "resnet50",
        encoder_weights: str | None = None,
        encoder_options: Mapping[str, Any] | None = None,
        channels: int = 256,
        norm: bool = False,
        flavour: str = "detectron2",
        anchor_sizes: Sequence[float] = (32, 64, 128, 256, 512),
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        proposal_convs: int = 1,
        box_convs: int = 0,
        box_layers: int = 2,
        box_width: int = 1024,
        mask_convs: int = 4,
        mask_width: int = 256,
        regions: int = 512,
        spare_logits: int = 0,
        beta: float | None = None,
        max_detections: int = 100,
        score_threshold: float = 0.05,
        shown_threshold: float = 0.5,
        nms_threshold: float = 0.5,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        for name, value, least, most in (
            ("channels", channels, 1, 4096), ("proposal_convs", proposal_convs, 0, 16), ("box_convs", box_convs, 0, 16),
            ("box_layers", box_layers, 0, 16), ("box_width", box_width, 1, 2**16), ("mask_convs", mask_convs, 0, 64),
            ("mask_width", mask_width, 1, 4096), ("regions", regions, 1, 2**16),
            ("spare_logits", spare_logits, 0, 2**16), ("max_detections", max_detections, 1, 2**20),
        ):  # fmt: skip
            check_whole(name, value, least, most)
        check_flag("norm", norm)
        if not isinstance(flavour, str) or flavour not in FLAVOURS:
            raise KirieError(f"flavour must be {' or '.join(FLAVOURS)}, got {flavour!r:.80}.")
        anchor_sizes = check_numbers("anchor_sizes", anchor_sizes)
        anchor_ratios = check_numbers("anchor_ratios", anchor_ratios)
        shares = {
            "score_threshold": score_threshold,
            "shown_threshold": shown_threshold,
            "nms_threshold": nms_threshold,
        }
        for name, share in (shares if beta is None else shares | {"beta": beta}).items():
            check_share(name, share)
        check_pixels(mean, std)
        body = build_encoder(encoder, in_channels, encoder_options, weights=encoder_weights)
        arguments = {
            "encoder": encoder, "encoder_options": body.options, "channels": channels, "norm": norm,
            "flavour": flavour, "anchor_sizes": anchor_sizes, "anchor_ratios": anchor_ratios,
            "proposal_convs": proposal_convs, "box_convs": box_convs, "box_layers": box_layers,
            "box_width": box_width, "mask_convs": mask_convs, "mask_width": mask_width,
            "regions": regions, "spare_logits": spare_logits, "beta": beta, "max_detections": max_detections,
            "score_threshold": score_threshold, "shown_threshold": shown_threshold,
            "nms_threshold": nms_threshold, "mean": mean, "std": std,
        }  # fmt: skip
        own = {"mean": body.mean if mean is None else mean, "std": body.std if std is None else std}
        super().__init__(in_channels, classes, arguments, **own)
        self.flavour = FLAVOURS[flavour]
        self.beta = self.flavour.beta if beta is None else beta
        self.max_detections, self.score_threshold, self.nms_threshold = max_detections, score_threshold, nms_threshold
        self.shown_threshold = shown_threshold
        self.most_proposals = PROPOSALS
        self.regions = regions
        self.encoder: Encoder = body
        self.skipped_maps = sum(1 for stride in body.strides if stride < FINEST)
        self.strides = body.strides[self.skipped_maps :]
        if len(anchor_sizes) != len(self.strides) + 1:
            raise KirieError(
                f"anchor_sizes must be {len(self.strides) + 1} sizes, for the strides {self.strides} of {encoder!r} "
                f"and one more, got {len(anchor_sizes)}."
            )
        self.fpn = FPN(body.channels[self.skipped_maps :], channels, extra=1, norm=norm)
        self.proposals = ProposalHead(channels, len(anchor_ratios), proposal_convs)
        self.box_head = BoxHead(
            channels, BOX_CELLS, len(self.classes),
            width=box_width, layers=box_layers, convs=box_convs, norm=norm, spare=spare_logits,
        )  # fmt: skip
        self.mask_head = MaskHead(channels, len(self.classes), width=mask_width, convs=mask_convs, norm=norm)
        self.anchor_sizes, self.anchor_ratios = anchor_sizes, anchor_ratios

    @property
    def cell_anchors(self) -> Tensor:
        """The anchors of each map's first cell, (maps, A, 4) float32 on the CPU; no buffer, which casts would round."""
        cells = (
            cell_anchors(s, self.anchor_ratios, rounded=self.flavour.whole_pixel_anchors) for s in self.anchor_sizes
        )
        return torch.stack(list(cells))

    def network(self, images: Tensor) -> dict[str, Tensor]:
        """The pyramid and all proposals for images (B, C, H, W) in [0, 1] of any size, as `proposed` has them."""
        return self.proposed(self.pyramid(self.normalise(images)))

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Maps (B, C, h_i, w_i), finest first, of normalised pictures (B, C, H, W) of any size."""
        maps: list[Tensor] = self.fpn(self.encoder(padded(x, self.strides[-1]))[self.skipped_maps :])
        return maps

    def proposed(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """All proposals for the maps of a pyramid, and all maps but the last: as in `MaskRCNNRaw`, numbered."""
        objectness, codes = zip(*(self.proposals(x) for x in maps), strict=True)
        return numbered("map", maps[:-1]) | numbered("objectness", objectness) | numbered("codes", codes)

    @property
    def frame(self) -> Frame:
        """See `SegmentationModel.frame`."""
        return Frame(self.strides[-1], least=2 * self.strides[-1])

    def raw_of(self, outputs: Mapping[str, Tensor], size: tuple[int, int]) -> MaskRCNNRaw:
        """See `SegmentationModel.raw_of`; other outputs than those of `proposed` are passed over."""
        maps, objectness, codes = (by_number(name, outputs) for name in ("map", "objectness", "codes"))
        # RoIAlign reads them channels first, for boxes and for every few masks: turned round here, once.
        turned = tuple(x.float().contiguous() for x in maps)
        return MaskRCNNRaw(turned, objectness, codes, seen_sizes(size, maps[0]))

    def heads(self) -> dict[str, tuple[Tensor, ...]]:
        """See `SegmentationModel.heads`."""
        channels, rows = self.arguments["channels"], 3
        boxes, masks = (torch.zeros(rows, channels, cells, cells) for cells in (BOX_CELLS, MASK_CELLS))
        return {"box_head": (boxes,), "mask_head": (masks, torch.zeros(rows, dtype=torch.int64))}

    # ---- learning

    def loss(self, raw: MaskRCNNRaw, truths: Sequence[Result]) -> dict[str, Tensor]:
        """The five losses of the paper: objectness and rpn_box of the proposals, classification, box and mask.

        Anchors and regions that learn are drawn at random, with PyTorch's generator. Crowds are neither objects nor
        background.

        Raises:
            KirieError: when the truths are no instances of the model's classes or have another size than the pictures.
        """
        own = self.own_truths(truths, len(raw.seen), (int(raw.seen[0, 0]), int(raw.seen[0, 1])))
        given = [_Learned(truth, raw.seen.device) for truth in own]
        anchors = self._anchors(raw)
        logits = [by_anchor(x, 1)[..., 0] for x in raw.objectness]  # (B, P_i)
        codes = [by_anchor(x, 4) for x in raw.codes]  # (B, P_i, 4)
        objectness, rpn_box = proposal_losses(
            torch.cat(logits, 1), torch.cat(codes, 1), torch.cat(anchors),
            [truth.boxes for truth in given], [truth.crowds for truth in given],
            beta=self.beta, fixed=self.flavour.divide_by_sample_limit,
        )  # fmt: skip
        regions, rows = [], []
        for index, truth in enumerate(given):
            found = self._select(
                [x[index].detach() for x in logits], [x[index].detach() for x in codes], anchors, raw.seen[index],
                CANDIDATES["training"], self.flavour.learning_proposals,
            )  # fmt: skip
            all_of_it = torch.cat([found, truth.boxes])
            state = matched(all_of_it, truth.boxes, truth.crowds, positive=0.5, negative=0.5)
            positive, negative = sampled(state, self.regions, WITH_OBJECT)
            regions.append(all_of_it[torch.cat([positive, negative])])
            rows.append(state[positive])  # the first regions are those with an object
        classification, box = self._box_losses(raw.maps, regions, rows, given)
        mask = self._mask_loss(raw.maps, regions, rows, given)
        return {
            "objectness": objectness, "rpn_box": rpn_box, "classification": classification, "box": box, "mask": mask,
        }  # fmt: skip

    def _box_losses(
        self, maps: Sequence[Tensor], regions: list[Tensor], rows: list[Tensor], given: list[_Learned]
    ) -> tuple[Tensor, Tensor]:
        if not sum(map(len, regions)):
            return _nothing(self.box_head), _nothing(self.box_head)
        labels = [
            F.pad(truth.labels[row], (0, len(own) - len(row)), value=-1)
            for truth, row, own in zip(given, rows, regions, strict=True)
        ]
        aims = torch.cat([truth.boxes[row] for truth, row in zip(given, rows, strict=True)])
        logits, codes = self.box_head(self._pooled(maps, regions, BOX_CELLS))
        return box_losses(logits, codes, torch.cat(regions), torch.cat(labels), aims, beta=self.beta)

    def _mask_loss(
        self, maps: Sequence[Tensor], regions: list[Tensor], rows: list[Tensor], given: list[_Learned]
    ) -> Tensor:
        if not sum(map(len, rows)):
            return _nothing(self.mask_head)
        with_object = [own[: len(row)] for own, row in zip(regions, rows, strict=True)]
        labels = torch.cat([truth.labels[row] for truth, row in zip(given, rows, strict=True)])
        logits = self.mask_head(self._pooled(maps, with_object, MASK_CELLS), labels).float()
        aims = [
            mask_aims(
                truth.masks, row, own, 2 * MASK_CELLS, aligned=self.flavour.aligned, soft=self.flavour.soft_mask_truths
            )
            for truth, row, own in zip(given, rows, with_object, strict=True)
        ]
        return F.binary_cross_entropy_with_logits(logits, torch.cat(aims))

    # ---- answering

    def giving(self, most: int) -> Self:
        """See `InstanceModel.giving`."""
        more = super().giving(most)
        more.most_proposals = max(self.most_proposals, 2 * most)
        return more

    def choose(self, raw: MaskRCNNRaw, size: Tensor) -> Chosen:
        """The objects of one picture; see `InstanceModel.choose`. Their sources are regions and labels."""
        seen = raw.seen[0]
        regions = self._select(
            [by_anchor(x, 1)[0, :, 0] for x in raw.objectness], [by_anchor(x, 4)[0] for x in raw.codes],
            self._anchors(raw), seen, max(CANDIDATES["prediction"], self.most_proposals), self.most_proposals,
        )  # fmt: skip
        logits, codes = self.box_head(self._pooled(raw.maps, [regions], BOX_CELLS))
        boxes, labels, scores = detected(
            logits, codes, regions, seen,
            score=self.score_threshold, overlap=self.nms_threshold, most=self.max_detections,
            least=self.flavour.least_box,
        )  # fmt: skip
        scale = (size.to(boxes.dtype) / seen.to(boxes.dtype)).flip(0).repeat(2)
        return Chosen(clipped(boxes * scale, size), labels, scores, (boxes, labels), seen)

    def maps(self, raw: MaskRCNNRaw, sources: tuple[Tensor, ...]) -> Tensor:
        """The maps (N, 28, 28) of boxes; see `InstanceModel.maps`."""
        boxes, labels = sources
        logits: Tensor = self.mask_head(self._pooled(raw.maps, [boxes], MASK_CELLS), labels)
        return logits.float().sigmoid()

    def cut(
        self, boxes: npt.NDArray[Any], maps: npt.NDArray[Any], seen: tuple[int, int], size: tuple[int, int]
    ) -> Masks:
        """The masks of boxes (N, 4) in a picture of `size` from their maps (N, h, w), each within its box."""
        return cut_boxes(maps, boxes, size, whole_pixels=self.flavour.whole_pixels)

    # ---- both

    def _anchors(self, raw: MaskRCNNRaw) -> list[Tensor]:
        """The anchors (P_i, 4) of each map."""
        tall, wide = (side * self.strides[0] for side in raw.maps[0].shape[-2:])
        out = []
        for own, x, stride in zip(
            self.cell_anchors, raw.objectness, [*self.strides, 2 * self.strides[-1]], strict=True
        ):
            height, width = x.shape[-2:]
            steps = (tall // height, wide // width) if self.flavour.whole_pixel_anchors else (stride, stride)
            out.append(grid_anchors(own.to(x.device), (height, width), steps))
        return out

    def _select(
        self,
        logits: Sequence[Tensor],
        codes: Sequence[Tensor],
        anchors: Sequence[Tensor],
        seen: Tensor,
        candidates: int,
        most: int,
    ) -> Tensor:
        return select(
            logits, codes, anchors, seen, candidates=candidates, most=most, least=self.flavour.least_proposal
        )[0]

    def _pooled(self, maps: Sequence[Tensor], regions: Sequence[Tensor], cells: int) -> Tensor:
        found = pooled(
            maps, regions, self.strides, cells, aligned=self.flavour.aligned, samples=self.flavour.samples_per_cell
        )
        own = next(self.box_head.parameters(), found)  # of another type in a model cast to half precision
        return found.to(own.dtype)


class _Learned:
    """The objects of a truth that have area, and its crowds, on a device."""

    def __init__(self, truth: Instances, device: torch.device) -> None:
        there = (truth.boxes[:, 2:] > truth.boxes[:, :2]).all(1)
        single, crowd = there & ~truth.crowd, there & truth.crowd
        self.boxes = torch.from_numpy(truth.boxes[single]).to(device)  # (N, 4)
        self.labels = torch.from_numpy(truth.labels[single]).to(device)  # (N,)
        self.masks = truth.masks[single]
        self.crowds = torch.from_numpy(truth.boxes[crowd]).to(device)  # (M, 4)


def _nothing(module: nn.Module) -> Tensor:
    """0, with a gradient of 0 for every parameter: what a head loses where no region learns."""
    return 0 * torch.stack([parameter.float().sum() for parameter in module.parameters()]).sum()
