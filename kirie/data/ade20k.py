"""ADE20K scene parsing: `images` and `annotations` with the folders `training` and `validation`, 0 for void.

As the scene parsing benchmark describes it (Zhou and others, "Scene Parsing through ADE20K Dataset", CVPR 2017): label
files hold 1 to 150 for the classes in the order of `objectInfo150.txt`, and 0 where nothing is labelled.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from kirie.class_lists import ADE20K
from kirie.data.class_table import ClassTable, read_class_table, table_text
from kirie.data.folder_layout import find_layout
from kirie.data.folders import FolderDataset
from kirie.data.labels import LabelFormat, find_format
from kirie.data.layouts import FolderSettings, Layout, drop_unlabelled_test, moved_below
from kirie.errors import KirieError

SPLITS = ("training", "validation")
ARCHIVE = "ADEChallengeData2016"
MARKS = ("objectInfo*.txt", "sceneCategories.txt", "images/*/ADE_*")


class Ade20kDataset(FolderDataset):
    """`images/training/*.jpg` with `annotations/training/*.png`; 0 is void, 1 to K are the classes.

    The path is that folder or one with `ADEChallengeData2016` in it. Classes are those of a table beside the data, 1 to
    K unless it gives ids; else those of `objectInfo*.txt`; else the 150 of the benchmark. Plain folders may be called
    the same, so one of `MARKS` is asked for, or the name of the archive; `data.format: ade20k` says it without.
    """

    @staticmethod
    def recognises(path: str | Path, task: str | None = None, settings: FolderSettings | None = None) -> bool:
        """Whether the folders are there and something that only ADE20K has."""
        home = _home(Path(path))
        there = any((home / "images" / s).is_dir() and (home / "annotations" / s).is_dir() for s in SPLITS)
        return there and (home.name == ARCHIVE or any(any(home.glob(mark)) for mark in MARKS))

    @staticmethod
    def find_layout(path: Path, settings: FolderSettings, task: str | None) -> Layout:
        """The pictures with their label files, as in any folders with splits inside.

        Raises:
            KirieError: as `folder_layout.find_layout`.
        """
        home = _home(path)
        layout = find_layout(home, replace(settings, masks=settings.masks or "annotations"), task)
        layout = replace(layout, words=f"ADE20K scene parsing, {layout.words}")
        return drop_unlabelled_test(moved_below(path, home, layout))

    @staticmethod
    def find_format(path: Path, layout: Layout, settings: FolderSettings, task: str | None) -> LabelFormat:
        """Classes 1 to K and 0 for void.

        Raises:
            KirieError: as `labels.find_format`, or when `objectInfo*.txt` cannot be read.
        """
        table = _table(_home(path))
        names = settings.classes
        if names is not None and len(names) != len(table.names):
            table = ClassTable("data.classes", names, void_ids=table.void_ids)
        if not table.ids:
            table = replace(table, ids=tuple(range(1, len(table.names) + 1)))
        if table.void_ids is None:
            table = replace(table, void_ids=(0,))
        return find_format(path, layout, settings, task, table)


def _home(path: Path) -> Path:
    return path / ARCHIVE if (path / ARCHIVE).is_dir() else path


def _table(home: Path) -> ClassTable:
    table = read_class_table(home)
    if table.names:
        return table
    found = sorted(home.glob("objectInfo*.txt"))
    own = _object_info(found[0]) if found else None
    return ClassTable.of(ADE20K, "ADE20K") if own is None or own.ids == ADE20K.ids else own


def _object_info(path: Path) -> ClassTable:
    """The classes in a file of tab-separated columns `Idx`, ..., `Name`, and `Stuff` (1 or 0) where it is there.

    Raises:
        KirieError: when it is no such file.
    """
    try:
        head, *rows = (line.split("\t") for line in table_text(path).splitlines() if line.strip())
        columns = {name.strip().lower(): index for index, name in enumerate(head)}
        ids = tuple(int(row[columns["idx"]]) for row in rows)
        whole = [row[columns["name"]].strip() for row in rows]
        stuff = [row[columns["stuff"]].strip() != "0" if "stuff" in columns else True for row in rows]
    except (ValueError, KeyError, IndexError):
        raise KirieError(f"{path} is no table of classes with the columns Idx and Name between tabs.") from None
    first = [name.replace(";", ",").split(",")[0].strip() for name in whole]
    times = Counter(first)
    names = tuple(short if times[short] == 1 else long for short, long in zip(first, whole, strict=True))
    things = tuple(name for name, is_stuff in zip(names, stuff, strict=True) if not is_stuff)
    return ClassTable(str(path), names, (), things, ids, (0,))
