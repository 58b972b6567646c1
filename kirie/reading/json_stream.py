"""A large JSON file, entry by entry: as much of it is in memory as its largest entry takes."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from kirie.errors import KirieError
from kirie.progress import bar

CHUNK = 2**20  # bytes read at a time
MAX_ENTRY = 2**24  # characters: one entry decodes to some twenty times as many bytes at worst
SHOWN = 2**25  # bytes: reading a file above this shows a bar

_SPACE = re.compile(r"[ \t\r\n]*")


def json_entries(path: str | Path) -> Iterator[tuple[str, Iterator[Any]]]:
    """The keys of the object that a JSON file is, in their order, each with the entries of its value.

    The entries are the elements of a list, and the value itself where it is no list. Those that are not taken before
    the next key are passed over, checked like the others.

    Args:
        path: UTF-8, with or without byte order mark.

    Raises:
        KirieError: when the file cannot be read, is no JSON, holds no object, or an entry has more than `MAX_ENTRY`
            characters or is nested too deeply; with the place in the file.
    """
    try:
        with open(path, "rb") as file, bar(f"reading {Path(path).name}", _length(path), hidden=_is_short(path)) as line:
            window = _Window(path, file, line.advance)
            yield from _walk(window)
    except OSError as error:
        raise KirieError(f"{path} cannot be read ({error.strerror or error}).") from None


def _length(path: str | Path) -> int:
    return Path(path).stat().st_size


def _is_short(path: str | Path) -> bool:
    return _length(path) < SHOWN


def _walk(window: _Window) -> Iterator[tuple[str, Iterator[Any]]]:
    window.expect("{", "a JSON object, which begins with {")
    if window.next() == "}":
        window.step()
    else:
        while True:
            if window.next() != '"':
                raise window.wrong("expected a key in quotes")
            key = window.value()
            window.expect(":", "a colon behind the key")
            entries = _entries(window)
            yield key, entries
            for _ in entries:
                pass
            if window.next() != ",":
                break
            window.step()
        window.expect("}", "a comma or the closing }")
    if window.next():
        raise window.wrong("expected nothing behind the closing }")


def _entries(window: _Window) -> Iterator[Any]:
    if window.next() != "[":
        yield window.value()
        return
    window.step()
    if window.next() == "]":
        window.step()
        return
    while True:
        yield window.value()
        if window.next() != ",":
            break
        window.step()
    window.expect("]", "a comma or the closing ]")


class _Window:
    """The part of a file's text that is being decoded, and how far it has come."""

    def __init__(self, path: str | Path, file: BinaryIO, advance: Callable[[int], None]) -> None:
        self._path, self._file, self._advance = path, file, advance
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._json = json.JSONDecoder().raw_decode
        self._text, self._at, self._ended = "", 0, False
        self._characters = self._lines = self._column = 0  # before the window

    def next(self) -> str:
        """The next character that is no white space; '' at the end of the file."""
        while True:
            if self._at < len(self._text) and self._text[self._at] not in " \t\r\n":
                return self._text[self._at]
            place = _SPACE.match(self._text, self._at)
            self._at = place.end() if place else self._at
            if self._at == len(self._text) and not self._more(CHUNK):
                return ""

    def step(self) -> None:
        """Passes over the character that `next` told."""
        self._at += 1

    def expect(self, character: str, words: str) -> None:
        """Passes over this character.

        Raises:
            KirieError: when another one comes.
        """
        if self.next() != character:
            raise self.wrong(f"expected {words}")
        self.step()

    def value(self) -> Any:
        """The value that comes next.

        Raises:
            KirieError: when it is no JSON, too long or too deep.
        """
        self.next()
        while True:
            try:
                found, end = self._json(self._text, self._at)
            except json.JSONDecodeError as error:
                ahead = error.pos - self._at
                if self._cut(error) and self._longer():
                    continue
                self._at += ahead
                raise self.wrong(error.msg[:1].lower() + error.msg[1:]) from None
            except RecursionError:
                raise self.wrong("lists or objects are nested too deeply") from None
            except ValueError as error:  # a number of thousands of digits
                raise self.wrong(str(error)) from None
            ahead = end - self._at
            # A number that ends with the window may go on behind it, as 12 or the 12 of "12." and "12e-".
            if len(self._text) - end > len("e-") or not self._longer():
                self._at += ahead
                return found

    def wrong(self, words: str) -> KirieError:
        """The error that the file is wrong at this place."""
        before = self._text[: self._at]
        line = self._lines + before.count("\n") + 1
        last = before.rfind("\n")
        column = self._at - last if last >= 0 else self._column + self._at + 1
        rest = self._text[self._at : self._at + 30].split("\n")[0]
        found = f"there is {rest!r}" if rest else "the file ends"
        return KirieError(
            f"{self._path} is no sound JSON at line {line:,}, column {column:,} (character "
            f"{self._characters + self._at + 1:,}): {words}, but {found}. Write or copy the file again."
        )

    def _cut(self, error: json.JSONDecodeError) -> bool:
        """Whether the end of the window may be all that is wrong."""
        rest = len(self._text) - error.pos
        return rest < len("-Infinity") or error.msg.startswith("Unterminated") or not self._text[error.pos :].strip()

    def _longer(self) -> bool:
        """Reads on so that the value at hand, which the window may have cut, gets twice the room; False at the end."""
        have = len(self._text) - self._at
        if have > MAX_ENTRY:
            raise self.wrong(f"expected entries of at most {MAX_ENTRY:,} characters")
        return self._more(max(CHUNK, have))

    def _more(self, length: int) -> bool:
        """Drops what was read and adds up to `length` bytes; False at the end of the file."""
        if self._ended:
            return False
        passed = self._text[: self._at]
        self._characters += len(passed)
        self._lines += passed.count("\n")
        last = passed.rfind("\n")
        self._column = self._column + len(passed) if last < 0 else len(passed) - last - 1
        rest, self._at = self._text[self._at :], 0
        chunk = self._file.read(length)
        self._advance(len(chunk))
        self._ended = not chunk
        try:
            self._text = rest + self._decode(chunk, self._ended)
        except UnicodeDecodeError:
            self._text = rest
            raise self.wrong("expected UTF-8 text") from None
        return not self._ended
