"""Where the bytes behind a URL come from. Data URLs always; a folder or a host only when the operator named it."""

from __future__ import annotations

import base64
import binascii
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sa2va_hf.serving.limits import Limits, Refused

SECONDS = 20.0  # that a host may take for one file


@dataclass(frozen=True)
class Sources:
    """folders: of which files may be read (links that lead out of them are refused). hosts: "name" or "name:port" of
    which http and https URLs may be fetched; a redirect is not followed."""

    folders: tuple[Path, ...] = ()
    hosts: tuple[str, ...] = ()

    def read(self, url: str, limits: Limits) -> bytes:
        """The bytes behind `url`, never more than `limits.max_bytes`.

        Raises:
            Refused: 400 a damaged data URL; 403 a source that the operator has not allowed; 404, 413, 502.
        """
        if url.startswith("data:"):
            return _from_data_url(url, limits)
        try:
            scheme = urlsplit(url).scheme.lower()
        except ValueError as error:
            raise Refused(400, "invalid_url", f"{url!r:.200}: {error}") from error
        if scheme in ("http", "https"):
            return self._fetch(url, limits)
        if scheme in ("", "file"):
            return self._from_file(url, limits)
        raise _forbidden(f"URLs of the scheme {scheme!r:.20}")

    def _from_file(self, url: str, limits: Limits) -> bytes:
        path = unquote(urlsplit(url).path) if url.lower().startswith("file:") else url
        if not self.folders or "\0" in path:
            raise _forbidden("files of the server")
        try:
            file = Path(path).resolve()
            inside = any(file.is_relative_to(folder.resolve()) for folder in self.folders)
            if not inside:
                raise _forbidden("this file of the server")
            if not file.is_file():
                raise Refused(404, "not_found", f"{path!r:.200}: no such file")
            limits.check_bytes(file.stat().st_size, "the file")
            with file.open("rb") as opened:
                return opened.read(limits.max_bytes + 1)
        except OSError as error:
            raise Refused(404, "not_found", f"{path!r:.200}: cannot be read") from error

    def _fetch(self, url: str, limits: Limits) -> bytes:
        try:
            parts = urlsplit(url)  # parts.port may raise
            names = {parts.hostname, f"{parts.hostname}:{parts.port}"} if parts.port else {parts.hostname}
        except ValueError as error:
            raise Refused(400, "invalid_url", f"{url!r:.200}: {error}") from error
        if not names & set(self.hosts) or parts.username:
            raise _forbidden(f"URLs of {parts.hostname!r:.100}")
        try:
            with _OPENER.open(url, timeout=SECONDS / 2) as answer:
                return _read_bounded(answer, limits)
        except (urllib.error.URLError, OSError, ValueError) as error:
            if isinstance(error, Refused):
                raise
            raise Refused(502, "source_failed", f"{url!r:.200}: {error}") from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """None: the redirect is an error. It could lead to a host that the operator has not named."""


_OPENER = urllib.request.build_opener(_NoRedirect)


def _read_bounded(answer: object, limits: Limits) -> bytes:
    data, end = bytearray(), time.monotonic() + SECONDS
    while chunk := answer.read(2**16):
        data += chunk
        limits.check_bytes(len(data), "the file")
        if time.monotonic() > end:
            raise TimeoutError(f"took longer than {SECONDS:g} seconds")
    return bytes(data)


def _from_data_url(url: str, limits: Limits) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise Refused(400, "invalid_url", "a data URL must read data:image/png;base64,... (the media's own type)")
    limits.check_bytes(len(body) * 3 // 4 - 2, "the data URL")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(400, "invalid_url", f"the data URL is not valid base64: {error}") from error


def _forbidden(what: str) -> Refused:
    return Refused(403, "forbidden_source", f"this server does not open {what}; send the bytes as a data URL")
