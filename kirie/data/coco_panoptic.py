"""COCO panoptic: a JSON file a split that lists the segments of each picture, and a PNG file with their pixels.

As https://cocodataset.org/#format-data describes it (Kirillov and others, "Panoptic Segmentation", CVPR 2019): the
colour of a pixel is the id of its segment, R + 256 G + 65536 B, and black is void; `segments_info` says the category of
each segment and whether it is a crowd, `categories` which of them are things.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from kirie.class_lists import COCO_PANOPTIC
from kirie.classes import Classes
from kirie.data.coco import label_files_serve
from kirie.data.coco_layout import coco_files
from kirie.data.coco_pictures import class_names, kept_categories
from kirie.data.folders import FolderDataset
from kirie.data.labels import LabelFormat
from kirie.data.layouts import FolderSettings, Layout, Pair
from kirie.data.objects import Objects
from kirie.data.panoptic_file import PanopticFile, is_panoptic
from kirie.data.panoptic_layout import PanopticLayout, find_panoptic, panoptic_files
from kirie.data.panoptic_segments import picture_segments
from kirie.errors import KirieError
from kirie.results import PanopticMap, things_of


@dataclass(frozen=True)
class PanopticFormat(LabelFormat):
    """How to read the truth of a COCO panoptic data set.

    Attributes:
        files: what was read, by path.
        labels: class ids by the files' category ids, among those of `whole`; -1 for those that are ignored.
        whole: all classes, of which `classes` are the things alone for task "instance".
        grey_serves: whether PNG files will do that say the category of each pixel and not its segment.
    """

    files: Mapping[str, PanopticFile] = field(default_factory=dict)
    labels: Mapping[int, int] = field(default_factory=dict)
    whole: Classes = field(default_factory=lambda: COCO_PANOPTIC)
    grey_serves: bool = False


class CocoPanopticDataset(FolderDataset):
    """Pictures with a COCO panoptic JSON file, or one per split, and its PNG files; the path is their folder or a JSON.

    Gives PanopticMaps with the files' segment ids; with task "instance" the things alone, crowds as crowds, and with
    task "semantic" the classes of all pixels, for which PNG files of grey values serve, too, each the category of its
    pixel. Areas are counted. Classes keep the files' category ids. The JSON files are read once, into arrays that
    worker processes share. Segments of a category in `data.ignore` are void, those that have no pixel are left out.

    Raises:
        KirieError: as `FolderDataset`, and when segments have a category that the files do not list.
    """

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        *,
        task: str | None = None,
        settings: FolderSettings | None = None,
    ) -> None:
        super().__init__(path, split, task=task, settings=settings)
        form = cast(PanopticFormat, self.form)
        for file in form.files.values():
            _check_categories(file, form.labels)

    @staticmethod
    def recognises(path: str | Path, task: str | None = None, settings: FolderSettings | None = None) -> bool:
        """Whether a path is a COCO panoptic JSON file or a folder with one.

        A folder whose other labels serve the task as well is read by these, unless the task is panoptic.
        """
        path, read = Path(path), settings or FolderSettings()
        if path.is_file():
            return path.suffix.lower() == ".json" and is_panoptic(path)
        try:
            found = path.is_dir() and bool(panoptic_files(path))
        except KirieError:  # opening says it
            found = True
        return found and (task == "panoptic" or not _others_serve(path, task, read))

    @staticmethod
    def find_layout(path: Path, settings: FolderSettings, task: str | None) -> PanopticLayout:
        """The pictures that the files list.

        Raises:
            KirieError: as `panoptic_layout.find_panoptic`, or when a setting is of no use here.
        """
        settings.refuse("suffix", "kind", format_name="COCO panoptic")
        return find_panoptic(path, settings)

    @staticmethod
    def find_format(path: Path, layout: Layout, settings: FolderSettings, task: str | None) -> PanopticFormat:
        """The classes of the files' categories; for task "instance" the things among them.

        Raises:
            KirieError: when there are none, two files disagree on them, or `data.classes` does not fit them.
        """
        files = cast(PanopticLayout, layout).files
        ignored = settings.ignore or ()
        whole = _classes(files, settings)
        labels = {**dict.fromkeys(ignored, -1), **{number: label for label, number in enumerate(whole.ids)}}
        published = "COCO panoptic" if whole == COCO_PANOPTIC else ""
        form = PanopticFormat(
            "panoptic", whole, published=published, segments=True, files=files, labels=labels, whole=whole,
            grey_serves=task == "semantic",
        )  # fmt: skip
        if task != "instance":
            return form
        things = [label for label, thing in enumerate(whole.things) if thing]
        if not things:
            raise KirieError(
                f"{', '.join(files)} lists no things (categories with isthing 1), so there are no objects for task "
                "'instance'. Use task 'panoptic' or 'semantic'."
            )
        return replace(form, classes=whole.subset(things), segments=False)

    @staticmethod
    def find_objects(pair: Pair, form: LabelFormat, size: tuple[int, int] | None) -> Objects:
        """The segments of a picture, or its things, of the size of its PNG file.

        Pixels of a segment that is not listed refuse the whole picture: nobody knows what they are.

        Raises:
            KirieError: when the PNG file cannot be read, or is no picture of colours.
        """
        known = cast(PanopticFormat, form)
        found = picture_segments(
            known.files[pair.classes], pair.row, pair.mask, known.labels, known.whole, grey_serves=known.grey_serves
        )
        if form.segments or not isinstance(found.truth, PanopticMap):
            return found
        return found._replace(truth=things_of(found.truth))

    def file_facts(self, index: int) -> dict[str, Any]:
        """The paths of the files of a sample: `image`, `mask`, the PNG file, and `classes`, the JSON file."""
        return {**super().file_facts(index), "classes": self._pairs[index].classes}

    def image_id(self, index: int) -> int | str:
        """The id that the file has for a sample's picture."""
        pair = self._pairs[index]
        return cast(PanopticFormat, self.form).files[pair.classes].image_id(pair.row)


def _others_serve(path: Path, task: str | None, settings: FolderSettings) -> bool:
    """Whether a folder has label files or COCO instances that serve the task as well."""
    try:
        instances = bool(coco_files(path, settings))
    except KirieError:  # several of one split
        instances = True
    return instances or label_files_serve(path, task, settings)


def _classes(files: Mapping[str, PanopticFile], settings: FolderSettings) -> Classes:
    """The classes of the categories that are not ignored."""
    categories = kept_categories(files, settings.ignore or (), "id, name and isthing")
    names = class_names(categories, settings.classes, files)
    ids, things = tuple(c.id for c in categories), tuple(bool(c.is_thing) for c in categories)
    if (names, ids, things) == (COCO_PANOPTIC.names, COCO_PANOPTIC.ids, COCO_PANOPTIC.things):
        return COCO_PANOPTIC
    colors = tuple(c.color for c in categories if c.color is not None)
    return Classes(names, colors if len(colors) == len(categories) else (), things, ids, (0,))


def _check_categories(file: PanopticFile, labels: Mapping[int, int]) -> None:
    """Nothing, when all categories of the segments are known: no training should meet the others later.

    Raises:
        KirieError: when some are not.
    """
    unknown = [number for number in file.listed_categories().tolist() if number not in labels]
    if unknown:
        raise KirieError(
            f"{file.path}: segments have the category_id {', '.join(map(str, unknown[:6]))}, which `categories` does "
            f"not list. Add it there, or make them void with data.ignore: {unknown[:6]}."
        )
