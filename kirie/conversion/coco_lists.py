"""The lists of COCO's JSON files, written row by row: pictures, annotations, and the categories at the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kirie.classes import Classes
from kirie.coco_words import category_ids
from kirie.conversion.writer import Entry


class CocoLists:
    """`NAME_SPLIT.json` for each split, `NAME.json` where there are none; only the numbers of rows are kept.

    Args:
        root: the folder to write into.
        name: how the files begin.
        classes: the categories.
        splits: of the data set, empty where it has none.

    Attributes:
        category_ids: their numbers.
        notes: what a person should know of them, a sentence each.
    """

    def __init__(self, root: Path, name: str, classes: Classes, splits: Sequence[str]) -> None:
        self.root, self.name, self.classes = root, name, classes
        self.category_ids = category_ids(classes)
        self.notes: list[str] = []
        if self.category_ids != classes.ids:
            self.notes.append("The categories are 1, 2, 3... in the new files, in the order of the classes.")
        self._counts = {split: {"images": 0, "annotations": 0} for split in splits or ("",)}

    def picture(self, entry: Entry) -> int:
        """Adds a picture to the list of its split; its number."""
        height, width = entry.size
        picture = self._counts[entry.split]["images"] + 1
        row = {"id": picture, "file_name": entry.name + entry.ending, "height": height, "width": width}
        self._append(entry.split, "images", [row])
        return picture

    def annotated(self, split: str) -> int:
        """How many annotations a split has so far."""
        return self._counts[split]["annotations"]

    def annotations(self, split: str, rows: Sequence[dict[str, Any]]) -> None:
        """Adds annotations to the list of a split."""
        self._append(split, "annotations", rows)

    def finish(self, things: Sequence[bool]) -> None:
        """Joins the lists of each split to its file, with the categories; `things` says which of these are."""
        rows = zip(self.category_ids, self.classes.names, self.classes.colors, things, strict=True)
        categories = [
            {"id": own, "name": name, "supercategory": name, "color": list(color), "isthing": int(thing)}
            for own, name, color, thing in rows
        ]
        for split in self._counts:
            path = self.root / f"{f'{self.name}_{split}' if split else self.name}.json"
            with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f'{{"categories": {json.dumps(categories, ensure_ascii=False)}')
                for part in ("images", "annotations"):
                    file.write(f',\n"{part}": [')
                    self._pour(self._rows(split, part), file)
                    file.write("\n]")
                file.write("}\n")

    def _append(self, split: str, part: str, rows: Sequence[dict[str, Any]]) -> None:
        with self._rows(split, part).open("a", encoding="utf-8", errors="backslashreplace") as file:
            for row in rows:
                file.write(f",\n{json.dumps(row, ensure_ascii=False)}")
        self._counts[split][part] += len(rows)

    def _rows(self, split: str, part: str) -> Path:
        return self.root / f".{part}_{split}"

    @staticmethod
    def _pour(rows: Path, file: Any) -> None:
        """Moves the rows that `_append` wrote into a file, without the comma before the first."""
        if not rows.exists():
            return
        with rows.open(encoding="utf-8") as source:
            source.read(1)
            shutil.copyfileobj(source, file)
        rows.unlink()
