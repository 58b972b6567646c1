"""COCO instances: one JSON file a split, with the outlines, boxes and classes of the objects of many pictures.

As the COCO data format describes it (Lin and others, "Microsoft COCO: Common Objects in Context", ECCV 2014), and as
Roboflow, CVAT, Label Studio and others write it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from kirie.class_lists import COCO
from kirie.classes import Classes
from kirie.data.coco_file import CocoFile, Outline
from kirie.data.coco_layout import CocoLayout, coco_files, find_coco
from kirie.data.coco_objects import BROKEN, REWRITE, coco_objects
from kirie.data.coco_pictures import annotation_name, class_names, kept_categories
from kirie.data.fault import named
from kirie.data.folder_layout import find_layout
from kirie.data.folders import FolderDataset
from kirie.data.labels import LabelFormat, find_format
from kirie.data.layouts import FolderSettings, Layout, Pair
from kirie.data.objects import Objects
from kirie.data.panoptic_file import is_panoptic
from kirie.errors import KirieError, counted


@dataclass(frozen=True)
class CocoFormat(LabelFormat):
    """How to read the truth of a COCO data set.

    Attributes:
        files: what was read, by path.
        labels: class ids by the files' category ids; -1 for those that are ignored.
    """

    files: Mapping[str, CocoFile] = field(default_factory=dict)
    labels: Mapping[int, int] = field(default_factory=dict)

    @property
    def has_instances(self) -> bool:
        """True: annotations are objects."""
        return True


class CocoDataset(FolderDataset):
    """Pictures with a COCO instances JSON, or one per split; the path is their folder or a JSON file.

    Classes keep the files' category ids. The files are read once, into arrays that worker processes share. Annotations
    without an outline, without a pixel, of pictures that are not listed, or of a category in `data.ignore` are left out
    (`left_out` says how many of the first and third kind).

    Raises:
        KirieError: as `FolderDataset`, and when annotations have a category that the files do not list or an outline
            that is none.
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
        form = cast(CocoFormat, self.form)
        for file in form.files.values():
            _check_annotations(file, form.labels)

    @staticmethod
    def recognises(path: str | Path, task: str | None = None, settings: FolderSettings | None = None) -> bool:
        """Whether a path is a JSON file that is not panoptic, or a folder with such and no label files that serve."""
        path, read = Path(path), settings or FolderSettings()
        if path.is_file():
            return path.suffix.lower() == ".json" and not is_panoptic(path)
        try:
            found = path.is_dir() and bool(coco_files(path, read))
        except KirieError:  # opening says it
            found = True
        return found and not label_files_serve(path, task, read)

    @staticmethod
    def find_layout(path: Path, settings: FolderSettings, task: str | None) -> CocoLayout:
        """The pictures that the files list.

        Raises:
            KirieError: as `coco_layout.find_coco`, or when a setting is of no use here.
        """
        settings.refuse("suffix", "kind", format_name="COCO")
        return find_coco(path, settings)

    @staticmethod
    def find_format(path: Path, layout: Layout, settings: FolderSettings, task: str | None) -> CocoFormat:
        """The classes of the files' categories.

        Raises:
            KirieError: when there are none, two files disagree on them, `data.classes` does not fit them, or the
                annotations of a file are boxes alone.
        """
        files = cast(CocoLayout, layout).files
        ignored = settings.ignore or ()
        categories = kept_categories(files, ignored, "id and name")
        for file in files.values():
            _expect_outlines(file, ignored)
        names = class_names(categories, settings.classes, files)
        ids = tuple(c.id for c in categories)
        classes = Classes(names, things=(True,) * len(names), ids=ids)
        published = (classes.names, ids) == (COCO.names, COCO.ids)
        classes = COCO if published else classes
        labels = {**dict.fromkeys(ignored, -1), **{number: label for label, number in enumerate(ids)}}
        return CocoFormat("coco", classes, published="COCO" if published else "", files=files, labels=labels)

    @staticmethod
    def find_objects(pair: Pair, form: LabelFormat, size: tuple[int, int] | None) -> Objects:
        """The objects of a picture, of the size that the file states for it.

        An outline that cannot be used refuses the whole picture: its other objects alone would teach that there is
        nothing where this one is.
        """
        coco = cast(CocoFormat, form)
        return coco_objects(coco.files[pair.mask], pair.row, coco.labels, coco.classes, size)

    def image_id(self, index: int) -> int | str:
        """The id that the file has for a sample's picture."""
        pair = self._pairs[index]
        return cast(CocoFormat, self.form).files[pair.mask].image_id(pair.row)


def label_files_serve(path: Path, task: str | None, settings: FolderSettings) -> bool:
    """Whether a folder has label files for its pictures that serve the task as well."""
    try:
        layout = find_layout(path, settings, task)
        if not any(pair.mask for pair in layout.pairs):
            return False
        form = None if task in (None, "semantic") else find_format(path, layout, settings, task)
    except KirieError:
        return False
    return form is None or (form.segments if task == "panoptic" else form.has_instances)


def _expect_outlines(file: CocoFile, ignored: Sequence[int]) -> None:
    """Nothing, when there are no annotations or any of them has an outline.

    Raises:
        KirieError: when all are boxes, which would be learned as pictures without objects.
    """
    rows = file.listed()
    outlines = file.outlines[rows[~np.isin(file.category_ids[rows], ignored)]]
    if len(outlines) and (outlines == Outline.NONE).all():
        raise KirieError(
            f"{file.path}: none of {counted(len(outlines), 'annotation')} has an outline (segmentation): these labels "
            "are for detection (boxes). Export the data for segmentation, with an outline for each object."
        )


def _check_annotations(file: CocoFile, labels: Mapping[int, int]) -> None:
    """Nothing, when annotations can be used as far as opening the file shows: no training should meet the others later.

    Raises:
        KirieError: on categories that are not listed, and on outlines that are none.
    """
    rows = file.listed()
    numbers = file.category_ids[rows]
    unknown = sorted(set(numbers.tolist()) - set(labels))
    if unknown:
        raise KirieError(
            f"{file.path}: annotations have the category_id {', '.join(map(str, unknown[:6]))}, which `categories` "
            f"does not list. Add it there, or leave them out with data.ignore: {unknown[:6]}."
        )
    ignored = [number for number, label in labels.items() if label < 0]
    broken = rows[(file.outlines[rows] == Outline.BROKEN) & ~np.isin(numbers, ignored)].tolist()
    if broken:
        places = named([annotation_name(int(file.annotation_ids[row]), row) for row in broken])
        what = counted(len(broken), "annotation")
        raise KirieError(f"{file.path} has {what} with a segmentation that cannot be used{places}. {BROKEN} {REWRITE}")
