"""One training step's forward half, in a module of its own so that distributed wrappers see one `forward`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as torch_distributed
from torch import Tensor, nn

from kirie.models.contract import SegmentationModel
from kirie.results import Result


class LossModule(nn.Module):
    """A model together with its loss.

    Args:
        model: the model to train.
        channels_last: whether images and weights are laid out channels last.
    """

    def __init__(self, model: SegmentationModel, *, channels_last: bool = True) -> None:
        super().__init__()
        self.model = model
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=self.layout)

    def forward(self, images: Tensor, truths: Sequence[Result]) -> dict[str, Tensor]:
        """The sum of the losses as `loss` and each as `loss_...`, for images (B, C, H, W) uint8 and their truths."""
        pixels = images.to(memory_format=self.layout).float().div_(255)
        losses = self.model.loss(self.model(pixels), truths)
        total = torch.stack(list(losses.values())).sum()
        if torch_distributed.is_initialized():
            # Processes wait for the gradient of every parameter, also of branches that had no part in this step.
            total = total + 0 * torch.stack([p.sum() for p in self.model.parameters() if p.requires_grad]).sum()
        return {"loss": total, **{f"loss_{n}": v for n, v in losses.items()}}


def group_size(batch: int, batches: int, accumulate: int) -> int:
    """How many batches share the optimiser step that a batch belongs to; the last step of an epoch may have fewer.

    Args:
        batch: its place in the epoch, from 0.
        batches: of the epoch.
        accumulate: batches per optimiser step.
    """
    return min(accumulate, batches - batch // accumulate * accumulate)


def ends_group(batch: int, batches: int, accumulate: int) -> bool:
    """Whether the weights move after a batch; see `group_size`."""
    return (batch + 1) % accumulate == 0 or batch + 1 == batches
