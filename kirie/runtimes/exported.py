"""An exported model as a `SegmentationModel`: its network and heads run in another program, all else is its own code.

It is built from the card in the file, without weights. What `decode` does besides the heads (NMS, RoIAlign, the choice
of objects, their masks) needs none, so that every option of prediction works as with the model file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from kirie.errors import KirieError
from kirie.models.contract import SegmentationModel
from kirie.models.file import ModelCard, load, outline, take_facts
from kirie.runtimes import graph_class
from kirie.runtimes.graph import Graph
from kirie.runtimes.record import Export, check_files, digest_of, head_file, read_record


def load_export(path: str | Path, *, architecture: type[SegmentationModel] | None = None) -> SegmentationModel:
    """The model of an exported file, which predicts like any other and cannot be trained or saved.

    Args:
        path: a file that `kirie export` wrote.
        architecture: your own class, for a model of one.

    Raises:
        KirieError: when the runtime is not installed, or a file is missing, damaged or not of this export.
    """
    path = Path(path)
    card, export, code = read_record(path)
    check_files(export, path)
    return with_graphs(outline(card, path, architecture), card, export, path, code=code)


def with_graphs(
    model: SegmentationModel,
    card: ModelCard,
    export: Export,
    path: Path,
    graph: Callable[[Path, str], Graph] | None = None,
    code: str = "draft",
) -> SegmentationModel:
    """A model without weights, of `outline`, made to run the graphs of files in their place.

    Args:
        model: the outline.
        card: what it was made from.
        export: what the files are.
        path: that of the network; those of the heads lie beside it.
        graph: makes a file of a precision ready to run; None for what the runtime has.
        code: what tells the export from any other.
    """
    _empty(model, card, path)
    graph = graph or graph_class(export.runtime)
    for name in export.heads:
        try:
            model.get_submodule(name)
        except AttributeError as error:
            raise KirieError(f"{path} has a graph for {name!r:.60}, which its architecture has not.") from error
        model.set_submodule(name, _Head(graph(head_file(path, name), export.precision)))
    model.network = _Network(model, graph(path, export.precision), export, path)  # type: ignore[method-assign]
    # Those that write `forward` themselves have the network in it.
    model.forward = lambda images: SegmentationModel.forward(model, images)  # type: ignore[method-assign]
    model.artifact = f"{export.runtime} {export.precision} {code}"
    return model.eval()


class _Head(nn.Module):
    """A graph in the place of a module whose inputs and outputs have rows."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What the module would give."""
        rows = len(inputs[0])
        given = inputs if rows else [x.new_zeros(1, *x.shape[1:]) for x in inputs]  # no runtime is fond of no rows
        found = tuple(x[:rows] for x in _run(self.graph, given).values())
        return found[0] if len(found) == 1 else found


class _Network:
    """A graph in the place of `SegmentationModel.network`; pictures too small for it are left to the model file."""

    def __init__(self, model: SegmentationModel, graph: Graph, export: Export, path: Path) -> None:
        self._model, self._graph, self._export, self._path = model, graph, export, path
        self._original: SegmentationModel | None = None

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """The named outputs for images (B, C, H, W)."""
        if min(images.shape[-2:]) >= self._export.least_side:
            return _run(self._graph, [self._model.framed(images)])
        if self._original is None:
            self._original = self._source((int(images.shape[-2]), int(images.shape[-1])))
        outputs = self._original.to(images.device).network(images)
        return {name: tensor for name, tensor in outputs.items() if name not in self._original.for_loss}

    def _source(self, size: tuple[int, int]) -> SegmentationModel:
        """The model that was exported, from its file beside the export."""
        stem = self._path.stem.removesuffix(f"-{self._export.precision}")
        file = self._path.with_name(f"{stem}.safetensors")
        if file.is_file() and digest_of(file) == self._export.source:
            return load(file)
        least = self._export.least_side
        raise KirieError(
            f"{self._path} takes pictures from {least} x {least} pixels on, got {size[0]} x {size[1]}; smaller ones "
            f"are predicted by the model it was exported from, which is not beside it as {file.name}."
        )


def _run(graph: Graph, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    found = graph([x.detach().cpu().numpy() for x in inputs])
    return {name: torch.from_numpy(array).to(inputs[0].device) for name, array in found.items()}


def _empty(model: SegmentationModel, card: ModelCard, path: Path) -> None:
    """Takes all weights out of a model, which leaves its code and its numbers."""
    if card.mean is None or card.std is None:
        raise KirieError(f"{path} does not say what its model takes off the pictures: export it anew.")
    for module in model.modules():
        module._parameters.clear()
        module._buffers.clear()
        if isinstance(module, SegmentationModel):
            for name in ("mean", "std"):
                module.register_buffer(name, torch.zeros(1, module.in_channels, 1, 1), persistent=False)
    take_facts(model, card)
