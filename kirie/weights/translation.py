"""What a translator makes of another project's checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from kirie.classes import Classes
from kirie.models.contract import InputFacts


@dataclass(frozen=True)
class Translation:
    """A checkpoint in kirie's terms.

    Attributes:
        architecture: a row of `MODELS`.
        in_channels: C of the images.
        classes: the classes, or how many where the checkpoint does not name them.
        arguments: the constructor's other arguments.
        state: the tensors under kirie's names.
        dropped: entries that were left out, each with the reason.
        inputs: what the publisher does to a picture beforehand, unless a release of its says otherwise.
        assumed: arguments that the checkpoint cannot tell, each with what was assumed and when it is otherwise.
        publisher: the row of `PUBLISHERS` that recognised it; set by `load.translate`.
        release: the row of `RELEASES` that the file is, as far as known; set by `load.import_checkpoint`.
    """

    architecture: str
    in_channels: int
    classes: Classes | int
    arguments: Mapping[str, Any]
    state: Mapping[str, Tensor]
    dropped: Mapping[str, str] = field(default_factory=dict)
    inputs: InputFacts = field(default_factory=InputFacts)
    assumed: Mapping[str, str] = field(default_factory=dict)
    publisher: str = ""
    release: str | None = None
