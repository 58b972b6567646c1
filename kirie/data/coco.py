"""COCO instances: one JSON file a split, with the outlines, boxes and classes of the objects of many pictures.

As the COCO data format describes it (Lin and others, "Microsoft COCO: Common Objects in Context", ECCV 2014), and as
Roboflow, CVAT, Label Studio and others write it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from kirie.class_lists import COCO
from kirie.classes import Classes
from kirie.data.coco_file import Category, CocoFile
from kirie.data.coco_layout import CocoLayout, coco_files, find_coco
from kirie.data.coco_objects import coco_objects
from kirie.data.folders import FolderDataset
from kirie.data.labels import LabelFormat, find_format
from kirie.data.layouts import FolderSettings, Layout, Pair, find_layout
from kirie.data.objects import Objects
from kirie.errors import KirieError


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
        KirieError: as `FolderDataset`, and when annotations have a category that the files do not list.
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
            # A training should not run for an hour before it meets one.
            unknown = sorted(set(file.category_ids.tolist()) - set(form.labels))
            if unknown:
                raise KirieError(
                    f"{file.path}: annotations have the category_id {', '.join(map(str, unknown[:6]))}, which "
                    f"`categories` does not list. Add it there, or leave them out with data.ignore: {unknown[:6]}."
                )

    @staticmethod
    def recognises(path: str | Path, task: str | None = None) -> bool:
        """Whether a path is a JSON file, or a folder with COCO files and no label files beside that serve the task."""
        path = Path(path)
        if path.is_file():
            return path.suffix.lower() == ".json"
        try:
            found = path.is_dir() and bool(coco_files(path, FolderSettings()))
        except KirieError:  # opening says it
            found = True
        return found and not _label_files_serve(path, task)

    @staticmethod
    def find_layout(path: Path, settings: FolderSettings, task: str | None) -> CocoLayout:
        """The pictures that the files list.

        Raises:
            KirieError: as `coco_layout.find_coco`.
        """
        return find_coco(path, settings)

    @staticmethod
    def find_format(path: Path, layout: Layout, settings: FolderSettings, task: str | None) -> CocoFormat:
        """The classes of the files' categories.

        Raises:
            KirieError: when there are none, two files disagree on them, or `data.classes` does not fit them.
        """
        files = cast(CocoLayout, layout).files
        ignored = settings.ignore or ()
        categories = [c for c in _categories(files.values()) if c.id not in ignored]
        if not categories:
            raise KirieError(f"{', '.join(files)} lists no `categories`; expected the id and name of each class.")
        names = settings.classes or _distinct(categories)
        if len(names) != len(categories):
            raise KirieError(
                f"data.classes has {len(names)} names, but {', '.join(files)} {len(categories)} categories: "
                f"{', '.join(c.name for c in categories[:12])}."
            )
        ids = tuple(c.id for c in categories)
        classes = Classes(tuple(names), things=(True,) * len(names), ids=ids)
        published = (classes.names, ids) == (COCO.names, COCO.ids)
        classes = COCO if published else classes
        labels = {**dict.fromkeys(ignored, -1), **{number: label for label, number in enumerate(ids)}}
        return CocoFormat("coco", classes, published="COCO" if published else "", files=files, labels=labels)

    @staticmethod
    def find_objects(pair: Pair, form: LabelFormat, size: tuple[int, int] | None) -> Objects:
        """The objects of a picture, of the size that the file states for it.

        A category that is unknown, or an outline that cannot be used, refuses the whole picture: its other objects
        alone would teach that there is nothing where this one is.
        """
        coco = cast(CocoFormat, form)
        return coco_objects(coco.files[pair.mask], pair.row, coco.labels, coco.classes, size)

    def image_id(self, index: int) -> int | str:
        """The id that the file has for a sample's picture."""
        pair = self._pairs[index]
        found = cast(CocoFormat, self.form).files[pair.mask].ids[pair.row]
        return found if isinstance(found, str) else int(found)


def _label_files_serve(path: Path, task: str | None) -> bool:
    """Whether a folder has label files for its pictures that serve the task as well."""
    settings = FolderSettings()
    try:
        layout = find_layout(path, settings, task)
        if not any(pair.mask for pair in layout.pairs):
            return False
        return task != "instance" or find_format(path, layout, settings, task).has_instances
    except KirieError:
        return False


def _categories(files: Iterable[CocoFile]) -> list[Category]:
    known: dict[int, Category] = {}
    for file in files:
        for category in file.categories:
            other = known.setdefault(category.id, category)
            if other.name != category.name:
                raise KirieError(
                    f"{file.path} calls category {category.id} {category.name!r}, and another file of the data set "
                    f"calls it {other.name!r}; all files of a data set need the same categories."
                )
    return list(known.values())


def _distinct(categories: list[Category]) -> tuple[str, ...]:
    """The names, with the id behind those that repeat."""
    times = Counter(category.name for category in categories)
    return tuple(c.name if times[c.name] == 1 else f"{c.name} ({c.id})" for c in categories)
