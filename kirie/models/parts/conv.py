"""Convolution, batch norm and ReLU, as nearly every model here chains them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kirie.models.parts.checks import check_dropout


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that uses its running statistics, also in training, where a channel has one single value.

    That is so after pooling the only picture of a batch to 1 x 1 (in ASPP and in the pyramid of PSPNet), where the
    batch's own statistics say nothing and PyTorch's batch norm stops the training.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalised maps (B, C, h, w)."""
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def allow_single_values(network: nn.Module) -> None:
    """Makes the plain batch norms of a network `BatchNorm`s; their tensors and names stay as they are.

    For networks of others that pool to 1 x 1 inside, as ResNeSt does in its attention.
    """
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = BatchNorm


class ConvNorm(nn.Sequential):
    """A convolution without bias that keeps the size (but for its stride), batch norm, and ReLU unless `act` is off.

    (B, in_channels, h, w) -> (B, channels, ceil(h / stride), ceil(w / stride))
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        padding = dilation * (kernel - 1) // 2
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, channels, kernel, stride, padding, dilation, groups, bias=False),
            BatchNorm(channels),
        ]
        super().__init__(*layers, *([nn.ReLU(inplace=True)] if act else []))


class FCNHead(nn.Sequential):
    """A 3 x 3 convolution with batch norm and ReLU, dropout, and the 1 x 1 classifier: (B, C, h, w) -> (B, K, h, w).

    Args:
        in_channels: C.
        middle: channels between the two convolutions.
        classes: K.
        dropout: probability.
        whole: drop whole channels (Dropout2d) in place of single values.
    """

    def __init__(
        self, in_channels: int, middle: int, classes: int, *, dropout: float = 0.1, whole: bool = False
    ) -> None:
        check_dropout(dropout)
        super().__init__(
            ConvNorm(in_channels, middle, 3),
            nn.Dropout2d(dropout) if whole else nn.Dropout(dropout),
            nn.Conv2d(middle, classes, 1),
        )
