"""Fetches a release over https: within a size limit, with a bar, checked by its checksum, and never half."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kirie.errors import KirieError
from kirie.progress import bar

SCHEMES = ("https",)
MAX_BYTES = 2 * 2**30  # the largest release has some 340 MB
TIMEOUT = 30  # seconds without a byte
_PIECE = 2**20


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to where a download may come from in the first place."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The request for the new address."""
        _check(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(url: str, place: Path, *, sha256: str | None = None, most: int = MAX_BYTES) -> None:
    """Writes what lies at `url` to the file `place`.

    Args:
        url: an https address; redirects must stay with https.
        place: the file to write; when this function raises, it may hold a part.
        sha256: the first hexadecimal digits of the checksum that the file must have.
        most: bytes; a longer file is refused.

    Raises:
        KirieError: when there is no network, the server refuses, the file is too long, cut off, or another than
            expected.
    """
    _check(url)
    request = urllib.request.Request(url, headers={"User-Agent": "kirie"})
    opener = urllib.request.build_opener(_Redirects)
    try:
        with opener.open(request, timeout=TIMEOUT) as answer:
            digest = _copied(answer, place, url, most)
    except urllib.error.HTTPError as error:
        error.close()
        raise KirieError(f"{urlsplit(url).netloc} answers {error.code} ({error.reason}) for {url}.") from error
    except http.client.HTTPException as error:
        raise KirieError(
            f"{urlsplit(url).netloc} broke off while sending {url} ({error!r:.120}); try again."
        ) from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise KirieError(f"There is no network connection to {urlsplit(url).netloc} ({reason!s:.120}).") from error
    if sha256 is not None and not digest.startswith(sha256):
        raise KirieError(f"{url} is not the file that was released: its sha256 begins {digest[:8]}, not {sha256}.")


def _check(url: str) -> None:
    if urlsplit(url).scheme not in SCHEMES:
        raise KirieError(f"Only https addresses are fetched from, got {url!r:.200}.")


def _copied(answer: Any, place: Path, url: str, most: int) -> str:
    """Writes an answer to a file piece by piece and returns the sha256 of all of it."""
    length = answer.headers.get("Content-Length", "")
    expected = int(length) if length.isdecimal() else None
    digest, received = hashlib.sha256(), 0
    with bar(f"{place.name} (MiB)", None if expected is None else expected // _PIECE) as line, place.open("wb") as file:
        while piece := answer.read(_PIECE):
            received += len(piece)
            if max(received, expected or 0) > most:
                raise KirieError(f"{url} is longer than {most:,} bytes; no release is.")
            digest.update(piece)
            file.write(piece)
            line.advance()
    if expected is not None and received != expected:
        raise KirieError(f"{url} was cut off after {received:,} of {expected:,} bytes; try again.")
    return digest.hexdigest()
