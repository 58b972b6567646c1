"""Pictures in stores other than the file system, which fsspec reads: object stores, web servers, archives."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Any

from kirie.errors import KirieError

_VERSIONS = ("ETag", "etag", "generation", "md5", "content_md5", "CRC", "LastModified", "last_modified", "mtime")


def is_url(text: str) -> bool:
    """Whether a text is the address of a file, or of many, in another store: "s3://bucket/photos", say."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", text) is not None


class Url(str):
    """The address of a picture, which answers what is asked of the name of a `Path`; it is read from a copy.

    Args:
        text: the address.
        folder: where the copy is made, for whoever gives the folder to remove; None for an address that is not read.
    """

    __slots__ = ("_folder",)
    _folder: Path | None

    def __new__(cls, text: str, folder: Path | None = None) -> Url:
        """An address; see above."""
        url = super().__new__(cls, text)
        url._folder = folder
        return url

    @property
    def _place(self) -> PurePosixPath:
        place = self.partition("::")[0].partition("://")[2]
        return PurePosixPath(place.partition("?")[0] if self.startswith("http") else place)

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self._place.name

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return self._place.stem

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""
        return self._place.suffix

    @property
    def parent(self) -> PurePosixPath:
        """What stands before the name."""
        return self._place.parent

    def as_posix(self) -> str:
        """The address."""
        return str(self)

    def state(self) -> tuple[int, str]:
        """Its size in bytes, -1 where that is not known, and what the store calls this version of it."""
        with suppress(Exception):  # whatever is the matter, reading it will tell
            store, place = _store(self)
            facts = store.info(place)
            version = next((facts[key] for key in _VERSIONS if facts.get(key) is not None), "")
            return -1 if facts.get("size") is None else int(facts["size"]), str(version)
        return -1, ""

    def local(self) -> Path:
        """A copy of it on this machine, made when it is first asked for.

        Raises:
            KirieError: when the store does not give it, or there is no room for it.
        """
        if self._folder is None:
            raise KirieError(f"{self} is a URL, and is read by Ray workers only: kirie predict --engine ray.")
        copy = self._folder / f"{hashlib.blake2b(self.encode(errors='surrogatepass')).hexdigest()[:32]}{self.suffix}"
        if copy.exists():
            return copy
        try:
            store, place = _store(self)
            store.get_file(place, str(copy))
        except Exception as error:
            copy.unlink(missing_ok=True)
            if isinstance(error, FileNotFoundError):
                raise KirieError(f"There is no file {self}.") from None
            raise KirieError(f"{self} cannot be read: {_words(error)}.") from error
        return copy


def pictures_at(url: str, suffixes: Sequence[str]) -> list[Url] | Path:
    """The pictures that an address means: one, all of a folder with these suffixes, or those that a pattern matches.

    Returns:
        their addresses, sorted; or for an address of this machine's own files, "file:///photos", what it is without
        the scheme.

    Raises:
        KirieError: when fsspec does not know such stores, the store does not answer, or nothing is there.
    """
    from fsspec.implementations.local import LocalFileSystem

    try:
        store, place = _store(url)
        if isinstance(store, LocalFileSystem):
            return Path(place)
        one = Url(url)
        if has_magic(place):
            found = [path for path, facts in store.glob(place, detail=True).items() if facts["type"] == "file"]
        elif one.suffix.lower() in suffixes or not store.isdir(place):
            return [one]
        else:
            listed = (facts["name"] for facts in store.ls(place, detail=True) if facts["type"] == "file")
            names = ((path, PurePosixPath(path)) for path in listed)
            found = [path for path, pure in names if pure.suffix.lower() in suffixes and pure.name[0] != "."]
        tail = "".join(url.partition("::")[1:])
        urls = [Url(store.unstrip_protocol(path) + tail) for path in sorted(found)]
    except Exception as error:
        raise KirieError(f"{url} cannot be listed: {_words(error)}.") from error
    if not urls:
        raise KirieError(f"No file matches {url}." if has_magic(place) else f"The folder {url} holds no pictures.")
    return urls


def _store(url: str) -> tuple[Any, str]:
    """The store of an address, and what the store calls it."""
    from fsspec.core import url_to_fs

    store, place = url_to_fs(str(url))
    return store, place


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
