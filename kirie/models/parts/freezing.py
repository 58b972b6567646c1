"""Parts of a network that do not learn, and stay as they are in prediction whatever mode the network is in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from torch import nn


class Freezable(nn.Module):
    """A network that can freeze parts of itself.

    Frozen parts are known by their names: a copy freezes its own, and so does a network whose batch norms were
    replaced, as by `nn.SyncBatchNorm.convert_sync_batchnorm`.
    """

    _frozen: tuple[str, ...] = ()

    def freeze(self, modules: Iterable[nn.Module]) -> None:
        """Keeps these modules of the network from learning, beside those frozen before.

        Their own parameters get no gradient, their batch norms use the running statistics and do not move them, and
        nothing in them is dropped.

        Args:
            modules: each for itself, without its children.
        """
        chosen = {id(module) for module in modules}
        self._frozen += tuple(name for name, module in self.named_modules() if id(module) in chosen)
        for name in self._frozen:
            for parameter in self.get_submodule(name).parameters(recurse=False):
                parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of all parts but the frozen ones, which stay in evaluation."""
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).training = False
        return self
