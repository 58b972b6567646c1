"""What a data set is to the rest of kirie: numbered samples, each a picture with its truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from kirie.classes import Classes
from kirie.results import Result

Task = Literal["semantic", "instance", "panoptic"]


@dataclass(frozen=True)
class Sample:
    """One labelled picture.

    Attributes:
        image: (H, W, C) uint8, RGB where C is 3.
        truth: what is in it, of the same size.
        name: how to name the picture to a person: its path below the data set's folder.
    """

    image: npt.NDArray[np.uint8]
    truth: Result
    name: str


class Dataset(Protocol):
    """Samples by number. Reading one touches only that sample's files; nothing but an index is held in memory.

    Attributes:
        classes: the classes of the truth.
        task: which of the three result types the truth has.
        splits: the splits that the data themselves give (folders, list files), empty where they give none.
        unfound: the pictures that lists or a JSON file name and that are not there, so that they are left out.
        left_out: what else is left out of the data, a sentence each.
    """

    classes: Classes
    task: Task
    splits: tuple[str, ...]
    unfound: tuple[str, ...]
    left_out: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def only(self, split: str | None, *, own_size: bool = False) -> Dataset:
        """The same data set with the pictures of another split (None for all), its index not built anew.

        Args:
            split: of the whole data set, whichever split this one shows.
            own_size: whether pictures keep their own size where the settings resize them.

        Raises:
            KirieError: when there is no such split or it has no pictures.
        """
        ...

    def name(self, index: int) -> str:
        """The name of a sample without reading it."""
        ...

    def file_facts(self, index: int) -> dict[str, Any]:
        """The paths of the files a sample is read from, by role (`image`, `mask`), without reading them."""
        ...
