r"""Panoptic FPN: Kirillov, Girshick, He and Dollar, "Panoptic Feature Pyramid Networks", CVPR 2019 (arXiv 1901.02446).

    image -- encoder -- pyramid --+-- Mask R-CNN: objects with masks, of the things ----------.
                                  |                                                        (merge)-- segments
                                  +-- Semantic FPN's head: things as one class, and the stuff-'

A Mask R-CNN and the head of a Semantic FPN over one encoder and one pyramid; see `mask_rcnn.py`, `parts/fpn.py` and
`kirie/merging.py`. This is the network of Detectron2 (`panoptic_fpn_R_50`), and takes its checkpoints.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kirie.classes import BACKGROUND, Classes
from kirie.errors import KirieError
from kirie.losses import cross_entropy, widened
from kirie.merging import MergeSettings, merge, split, split_classes
from kirie.models.contract import Frame, SegmentationModel
from kirie.models.mask_rcnn import MaskRCNN, MaskRCNNRaw
from kirie.models.parts.checks import check_numbers, check_whole
from kirie.models.parts.fpn import SemanticFPNHead, covering
from kirie.models.parts.instance import refuse_nan
from kirie.models.parts.semantic import resized
from kirie.results import Instances, PanopticMap, Result, SemanticMap

_AT_ONCE = 8  # classes whose logits are enlarged at a time: all of them may be gigabytes
_NOT_TAKEN = ("in_channels", "classes", "shown_threshold")  # of Mask R-CNN's; `score` is in place of the last


class PanopticRaw(NamedTuple):
    """What `PanopticFPN.forward` gives.

    Attributes:
        instances: see `MaskRCNNRaw`.
        logits: (B, 1 + S, h, w) over the padded pictures at the stride of the finest map, of all things together and of
            each of the S classes of stuff.
    """

    instances: MaskRCNNRaw
    logits: Tensor


class PanopticFPN(SegmentationModel):
    """Panoptic FPN for any number of channels and classes and any picture size, on any timm encoder.

    Args:
        in_channels: C of the images.
        classes: the classes, things and stuff in any order; or how many, at least two: the first is stuff, called
            background, and all others are things.
        width: channels of the semantic head's convolutions, each followed by group norm.
        semantic_weight: factor of the semantic head's loss.
        instance_weight: factor of the losses of proposals, boxes and masks.
        score: objects score at least so much; see `MergeSettings`.
        overlap: an object goes of which more than this share is covered by surer ones.
        stuff_area: stuff of fewer pixels becomes void, which suits pictures of 640 x 480; lower it for smaller ones.
        instance: all other arguments of `MaskRCNN`, by name: encoder, encoder_weights, encoder_options, channels, norm,
            anchor_sizes, max_detections, mean, std...

    Attributes:
        settings: of the merge, as above; may be changed at any time. See `merging`.
        instance: the Mask R-CNN of the things, with encoder and pyramid; it may be given other limits at any time.

    Raises:
        KirieError: when an argument is unknown or out of range, the classes have no things or no stuff, or the encoder
            or its weights cannot be had.
    """

    task = "panoptic"
    frame_fill = "mean"
    advice = "For every pixel: things as single objects, all else by its class; a little dearer than Mask R-CNN."

    def __init__(
        self,
        in_channels: int = 3,
        classes: Classes | int = 2,
        *,
        width: int = 128,
        semantic_weight: float = 0.5,
        instance_weight: float = 1.0,
        score: float = 0.5,
        overlap: float = 0.5,
        stuff_area: int = 4096,
        **instance: Any,
    ) -> None:
        known = [name for name in inspect.signature(MaskRCNN).parameters if name not in _NOT_TAKEN]
        unknown = sorted(set(instance) - set(known))
        if unknown:
            raise KirieError(f"A Panoptic FPN has no argument {unknown[0]!r:.60}; of Mask R-CNN's: {', '.join(known)}.")
        check_whole("width", width, 1, 4096)
        check_numbers("semantic_weight and instance_weight", (semantic_weight, instance_weight))
        settings = MergeSettings(score, overlap, stuff_area)
        classes = classes if isinstance(classes, Classes) else _numbered(classes)
        split_up = split_classes(classes)
        body = MaskRCNN(in_channels, split_up[1], shown_threshold=score, **instance)
        arguments = {
            "width": width, "semantic_weight": semantic_weight, "instance_weight": instance_weight,
            **{name: value for name, value in body.arguments.items() if name not in _NOT_TAKEN},
        }  # fmt: skip
        pixels = {
            name: getattr(body.encoder, name) if body.arguments[name] is None else body.arguments[name]
            for name in ("mean", "std")
        }
        super().__init__(in_channels, classes, arguments, **pixels)  # these normalise, not the Mask R-CNN's
        self.split_classes = split_up
        self.settings = settings
        self.semantic_weight, self.instance_weight = semantic_weight, instance_weight
        self.instance = body
        self.semantic = SemanticFPNHead(arguments["channels"], body.strides, len(split_up[0]), width)

    def levels(self) -> Sequence[Sequence[nn.Module]]:
        """The encoder's levels, then all the rest; see `SegmentationModel.levels`."""
        *encoder, rest = self.instance.levels()
        return [*encoder, [*rest, self.semantic]]

    def network(self, images: Tensor) -> dict[str, Tensor]:
        """The pyramid, all proposals and the semantic logits for images (B, C, H, W) in [0, 1] of any size."""
        maps = self.instance.pyramid(self.normalise(images))
        return {**self.instance.proposed(maps), "logits": self.semantic(maps[:-1])}

    @property
    def frame(self) -> Frame:
        """See `SegmentationModel.frame`."""
        return self.instance.frame

    def raw_of(self, outputs: Mapping[str, Tensor], size: tuple[int, int]) -> PanopticRaw:
        """See `SegmentationModel.raw_of`."""
        return PanopticRaw(self.instance.raw_of(outputs, size), outputs["logits"])

    def heads(self) -> dict[str, tuple[Tensor, ...]]:
        """See `SegmentationModel.heads`."""
        return {f"instance.{name}": inputs for name, inputs in self.instance.heads().items()}

    def loss(self, raw: PanopticRaw, truths: Sequence[Result]) -> dict[str, Tensor]:
        """The five losses of the Mask R-CNN, and semantic: cross entropy, the mean over all pixels that are not void.

        Things, crowds too, are one class for the semantic head. Each loss is already times its weight.

        Raises:
            KirieError: when the truths are no panoptic maps of the model's classes or have another size than the
                pictures.
        """
        maps, objects = self._heads_truths(truths)
        own = self.instance.loss(raw.instances, objects)
        losses = {name: value * self.instance_weight for name, value in own.items()}
        labels = torch.from_numpy(np.stack([each.labels for each in maps])).to(raw.logits.device, non_blocking=True)
        logits = self.covering(widened(raw.logits), raw.instances.seen[0])
        semantic = cross_entropy(logits, labels, void=self.split_classes[0].void)
        return losses | {"semantic": semantic * self.semantic_weight}

    def _heads_truths(self, truths: Sequence[Result]) -> tuple[list[SemanticMap], list[Instances]]:
        """What each head learns; numbers and sizes are checked by the Mask R-CNN."""
        found = [truth for truth in truths if isinstance(truth, PanopticMap)]
        wrong = {type(truth).__name__ for truth in truths if not isinstance(truth, PanopticMap)}
        if wrong:
            raise KirieError(f"A panoptic model learns from PanopticMap truths, got {', '.join(sorted(wrong))}.")
        pairs = [split(truth, self.split_classes) for truth in found]
        return [one for one, _ in pairs], [other for _, other in pairs]

    @property
    def settings(self) -> MergeSettings:
        """The limits of the merge; new ones are kept in the model's file too."""
        return self._settings

    @settings.setter
    def settings(self, new: MergeSettings) -> None:
        self._settings = new
        self.arguments = {**self.arguments, **asdict(new)}

    def merging(self, **changes: Any) -> Self:
        """The same model with other limits of the merge, by their names in `MergeSettings`.

        It is another object, of the same parts and weights, so that the limits of this one stay.

        Raises:
            KirieError: when a limit is out of range.
        """
        other = copy.copy(self)
        other.settings = replace(self.settings, **changes)
        return other

    def covering(self, logits: Tensor, seen: Tensor) -> Tensor:
        """Logits (B, K, H, W) for pictures of H and W = `seen` (2,), out of those (B, K, h, w) of `raw`."""
        height, width = seen.tolist()
        return covering(logits, self.instance.strides[0], (height, width))

    @torch.no_grad()
    def decode(self, raw: PanopticRaw, sizes: Sequence[tuple[int, int]], *, scores: bool = False) -> list[PanopticMap]:
        """One panoptic map per image at the sizes (H, W) asked for; see `merge`.

        Objects have one score each and stuff has none: `scores`, for probabilities per pixel, changes nothing.

        Raises:
            KirieError: when there are more or fewer sizes than pictures, or the network's outputs are NaN.
        """
        refuse_nan(raw.logits)
        objects = self.instance.decode(raw.instances, sizes, least=self.settings.score)
        semantic, _, joint = self.split_classes
        found = []
        for index, own in enumerate(objects):
            labels = self.semantic_labels(raw.logits[index : index + 1], raw.instances.seen[index], own.size)
            found.append(merge(SemanticMap(labels, semantic), own, joint, self.settings))
        return found

    def semantic_labels(self, logits: Tensor, seen: Tensor, size: tuple[int, int]) -> npt.NDArray[Any]:
        """The semantic class of each pixel of one picture, (H, W) uint8, int32 beyond 255 classes.

        Args:
            logits: (1, 1 + S, h, w).
            seen: (2,), H and W of the picture without padding.
            size: (H, W) that is asked for; logits are resized to `seen` and from that to it, before the arg max.
        """
        best = best_label = logits.new_empty(0)
        for start in range(0, logits.shape[1], _AT_ONCE):
            full = resized(self.covering(logits[:, start : start + _AT_ONCE].float(), seen), size)[0]
            highest, label = full.max(0)
            if start:
                better = highest > best
                best, best_label = torch.where(better, highest, best), torch.where(better, label + start, best_label)
            else:
                best, best_label = highest, label
        return best_label.cpu().numpy().astype(np.uint8 if self.split_classes[0].void == 255 else np.int32)


def _numbered(count: object) -> Classes:
    """So many classes without known names, the first of them stuff; of 1, that is an object and background as well."""
    if type(count) is not int or count < 1:
        raise KirieError(f"classes must be a Classes value or a number above 0, got {count!r:.80}.")
    if count <= 2:
        return Classes((BACKGROUND, "object"), things=(False, True))
    names = (BACKGROUND, *(f"class {index}" for index in range(1, count)))
    return Classes(names, things=(False,) + (True,) * (count - 1))
