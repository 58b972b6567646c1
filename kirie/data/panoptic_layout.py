"""Where the JSON files, the PNG files and the pictures of a COCO panoptic data set lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kirie.data.coco_layout import (
    ANNOTATIONS,
    Search,
    distinct_places,
    find_listed,
    found_strays,
    home_of,
    json_files,
    path_parts,
    split_names,
)
from kirie.data.layouts import IMAGE_FOLDERS, FolderSettings, Layout, Pair
from kirie.data.panoptic_file import PanopticFile, is_panoptic, read_panoptic
from kirie.errors import KirieError, counted

MASKS = "panoptic"  # the folder of PNG files where it is not called as the JSON file
KNOWN_NAMES = ("panoptic*.json", "*panoptic*.json")


@dataclass(frozen=True)
class PanopticLayout(Layout):
    """What was found, with the files that were read for it.

    A pair's `mask` is the PNG file of a picture, `classes` the JSON file that says what its segments are. The JSON file
    stands as `mask` too where it has no annotation of a picture.

    Attributes:
        files: by path.
    """

    files: Mapping[str, PanopticFile] = field(default_factory=dict)


def panoptic_files(path: Path) -> dict[Path, str]:
    """The COCO panoptic JSON files of a folder, or the one that the path is, each with its split ('' for none).

    Raises:
        KirieError: when there are several of one split.
    """
    return json_files(path, [path, path / ANNOTATIONS], (*KNOWN_NAMES, "*.json"), is_panoptic)


def find_panoptic(path: Path, settings: FolderSettings) -> PanopticLayout:
    """The pictures that the JSON files of a data set list, with their PNG files.

    Raises:
        KirieError: when there is no such file, one cannot be read, or none of its pictures or PNG files is there.
    """
    if not path.exists():
        raise KirieError(
            f"There is no folder or file {path}; expected a COCO panoptic JSON file, or a folder with one."
        )
    splits = panoptic_files(path)
    if not splits:
        raise KirieError(
            f"{path} holds no COCO panoptic JSON file; expected {ANNOTATIONS}/panoptic_train.json or one of any name "
            "whose annotations have `segments_info`, the PNG files in a folder called as it, and pictures beside."
        )
    root = home_of(path)
    files = {str(file): read_panoptic(file) for file in splits}
    places = {str(file): _mask_folders(root, file, split, settings) for file, split in splits.items()}
    named = {place for found in places.values() for place in found} - {*IMAGE_FOLDERS, settings.images}
    avoid = [root / place for place in sorted(named) if (root / place).is_dir()]
    layout = find_listed(path, "COCO panoptic", splits, files, settings, avoid)
    masks = {file: _Masks(root, files[file], found) for file, found in places.items()}
    pairs = tuple(masks[pair.mask].joined(pair) for pair in layout.pairs)
    for found in masks.values():
        found.expect_some()
    return PanopticLayout(
        layout.words,
        pairs,
        MASKS,
        unfound=layout.unfound,
        seeded=layout.seeded,
        gaps=layout.gaps,
        faults=layout.faults,
        left_out=tuple(words for file in files.values() for words in found_strays(file)),
        files=files,
    )


def _mask_folders(root: Path, path: Path, split: str, settings: FolderSettings) -> list[str]:
    """Where the PNG files of a JSON file may lie, below `root`, the likeliest first."""
    here = path.parent.relative_to(root).as_posix()
    own = [f"{here}/{path.stem}", path.stem] if settings.masks is None else []
    top = settings.masks or MASKS
    inner = [f"{start}/{top}/{name}" for start in (here, ".") for name in (path.stem, *split_names(path, split))]
    return distinct_places([*own, *inner, f"{here}/{top}", top])


class _Masks:
    """The PNG files of a JSON file, found by name as they are asked for."""

    def __init__(self, root: Path, file: PanopticFile, places: list[str]) -> None:
        self.root, self.file = root, file
        self.search = Search(root, places)
        self.home = next(iter(self.search.folders), places[0])
        self.found, self.missing = 0, ""

    def joined(self, pair: Pair) -> Pair:
        """A pair of a picture and its JSON file with its PNG file too, at the place where it would be if missing."""
        name = self.file.mask(pair.row)
        if name is None:
            return pair._replace(classes=pair.mask)
        place = self.search.inside(name)
        self.found += place is not None
        if place is None:
            place = "/".join([self.home, *path_parts(name)])
            self.missing = self.missing or place
        return pair._replace(mask=f"{self.root}/{place}", classes=pair.mask)

    def expect_some(self) -> None:
        """Nothing, when there is a PNG file, or none was asked for.

        Raises:
            KirieError: when all are missing.
        """
        if self.missing and not self.found:
            what = counted(len(self.file.masks), "PNG file")
            raise KirieError(
                f"None of the {what} that {self.file.path} names is there, such as {self.root / self.missing}. Unpack "
                f"them into {self.root / self.home}, or name their folder with data.masks."
            )
