"""Sizes of pictures as networks want them, which are symbols while a network is being exported.

What asks a symbol whether it is equal or larger would tie the graph to one size; these functions do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def same(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two sizes are equal; of symbols, whether they are so for every picture."""
    return all(_always(a == b) for a, b in zip(one, other, strict=True))


def at_least(side: int, least: int) -> int:
    """The larger of the two, also of symbols."""
    if _always(side >= least):
        return side
    larger: Any = torch.sym_max(side, least)
    return larger  # type: ignore[no-any-return]


def padded(x: Tensor, divisor: int) -> Tensor:
    """Normalised pictures (B, C, H, W) with zeros, the mean colour, to the right and below up to multiples of a number.

    To two of them a side at least, as batch norm cannot learn from a map of one cell.
    """
    down, right = (at_least(-(-side // divisor), 2) * divisor - side for side in x.shape[-2:])
    return x if same((down, right), (0, 0)) else F.pad(x, (0, right, 0, down))


def _always(holds: bool | torch.SymBool) -> bool:
    """Whether a comparison holds; of symbols, whether it does so for every picture."""
    if isinstance(holds, bool):
        return holds
    # Only an export comes here, which has loaded what the module needs already.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(holds)
