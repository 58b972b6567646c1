"""A prediction divided among several runs, on one machine or many, that share nothing but the folder of the results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from kirie.errors import KirieError
from kirie.files import Frame, whole_file
from kirie.prediction.manifest import END, MANIFEST, is_finished

MOST = 10_000
FOLDER = "shards"


class Shard(NamedTuple):
    """Part `number` of `of`: of the pictures in their order the one at `number`, and each `of`-th after it."""

    number: int = 1
    of: int = 1

    def home(self, out: Path) -> Path:
        """Where its manifest and its part of the files about all pictures lie."""
        return out if self.of == 1 else out / FOLDER / f"{self.number}of{self.of}"


WHOLE = Shard()


def parse_shard(text: str) -> Shard:
    """A shard as it is typed: "2/4" is the second of four.

    Raises:
        KirieError: when it is none.
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    shard = Shard(*map(int, found.groups())) if found else Shard(0)
    if not 1 <= shard.number <= shard.of <= MOST:
        raise KirieError(
            f"--shard is a part and how many there are, such as 2/4 for the second of four, got {text!r:.60}."
        )
    return shard


def join_shards(out: Path, shards: int, facts: Mapping[str, Any]) -> bool:
    """Joins what all shards wrote about their pictures, in the order of the pictures, when the last one is done.

    The files are those that one run would have written, to the byte. Where several shards end at once, each joins them.

    Args:
        out: the folder of the results.
        shards: how many there are.
        facts: what all of them ran; see `open_manifest`.

    Returns:
        whether all shards were done.
    """
    homes = [Shard(number, shards).home(out) for number in range(1, shards + 1)]
    try:
        with ExitStack() as stack:
            manifests = [stack.enter_context((home / MANIFEST).open("rb")) for home in homes]
            for file in manifests:
                if not is_finished(file) or json.loads(file.readline()) != {"run": dict(facts)}:
                    return False
            frames = [json.loads(file.readline())["files"] for file in manifests]
            ends = list(_in_order(manifests))
    except FileNotFoundError:
        return False
    for name, frame in frames[0].items():
        _join(out / name, [home / name for home in homes], Frame(*frame), [each.get(name, 0) for each in ends])
    return True


def _in_order(manifests: Sequence[BinaryIO]) -> Iterator[dict[str, int]]:
    """Where the files of its shard ended after each picture, in the order of the pictures."""
    while True:
        for file in manifests:
            line = file.readline()
            if line == END:  # the first shard to have no more is the one whose turn it would be
                return
            yield json.loads(line)["ends"]


def _join(target: Path, parts: Sequence[Path], frame: Frame, ends: Sequence[int]) -> None:
    """Writes a file of records from those of the shards."""
    head, foot, between = (text.encode("utf-8", "backslashreplace") for text in frame)
    with ExitStack() as stack, whole_file(target) as stand_in:
        files = [stack.enter_context(part.open("rb")) for part in parts]
        out = stack.enter_context(stand_in.open("wb"))
        places = [len(head)] * len(parts)
        out.write(head)
        first = True
        for number, end in enumerate(ends):
            which = number % len(parts)
            begin = places[which]
            if end == begin:
                continue
            skipped = len(between) if begin > len(head) else 0
            files[which].seek(begin + skipped)
            out.write((b"" if first else between) + files[which].read(end - begin - skipped))
            places[which], first = end, False
        out.write(foot)
