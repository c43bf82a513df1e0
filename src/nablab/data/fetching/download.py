"""One file from one address.

The wait for the connection is short, a broken download is resumed, and a login page is
told from the file.
"""

from __future__ import annotations

import errno
import hashlib
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

from nablab.data.fetching.progress import Progress, Step

CONNECT_SECONDS = 4.0  # a reachable server takes well under one
STALL_SECONDS = 20.0  # no byte for so long: the connection is dead
RESUMPTIONS = 5  # after each of which at least one byte must have come
BYTES_PER_READ = 1 << 18
BEGINNING = 64  # bytes that tell a web page from a file

# By host and port ("*": all of them), why it cannot be reached from this process.
_closed: dict[str, str] = {}


class SourceError(Exception):
    """A source does not serve a data set.

    The text says why, for the list of what was tried.
    """


def download(
    url: str, folder: Path, progress: Progress, *, most: int | None = None
) -> Path:
    """Fetch a file, going on where an earlier attempt stopped.

    Args:
        url: http or https.
        folder: Where the file goes; an unfinished one stays there as ``*.part``.
        progress: Told how far it is.
        most: The bytes that it may have; a server that sends more is refused.

    Returns:
        The complete file. Its content is not checked beyond its length and that it is
        no HTML page.

    Raises:
        SourceError: The server cannot be reached, refuses, or stops in the middle.
        OSError: The file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # two mirrors' parts must not be mixed
    key = hashlib.sha256(url.encode()).hexdigest()[:8]
    name = f"{key}-{Path(urlsplit(url).path).name}"
    part, complete = folder / f"{name}.part", folder / name
    if complete.exists():
        return complete
    _reach(url)
    for attempt in range(RESUMPTIONS):
        before = part.stat().st_size if part.exists() else 0
        try:
            _receive(url, part, progress, most)
            break
        except SourceError:
            part.unlink(missing_ok=True)
            raise
        except (
            urllib.error.URLError,
            HTTPException,
            ssl.SSLError,
            TimeoutError,
            ConnectionError,
        ) as error:
            gained = part.exists() and part.stat().st_size > before
            if (
                isinstance(error, urllib.error.HTTPError)
                or not gained
                or attempt == RESUMPTIONS - 1
            ):
                raise SourceError(_reason(error)) from error
    part.replace(complete)
    return complete


def _receive(url: str, part: Path, progress: Progress, most: int | None) -> None:
    """Append what is missing to ``part``.

    An incomplete answer raises and keeps what came.
    """
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(
        url, headers={"User-Agent": "nablab", "Accept-Encoding": "identity"}
    )
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        # A fresh opener: the module's own keeps the proxies of its first use.
        response: HTTPResponse = urllib.request.build_opener().open(
            request, timeout=STALL_SECONDS
        )
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the part is longer than the file, or all of it
            raise
        part.unlink()
        _receive(url, part, progress, most)
        return
    with response:
        if response.status != 206:  # the server knows no ranges: from the beginning
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        text = f"{Path(urlsplit(url).path).name} from {urlsplit(url).hostname}"
        piece = response.read(BEGINNING)
        if not have:
            _refuse_page(piece, response)
        with part.open("ab" if have else "wb") as file:
            while piece:
                file.write(piece)
                file.flush()  # so that a killed process leaves all that came
                have += len(piece)
                if most is not None and have > most:
                    raise SourceError(
                        f"sends more than the {most:,} bytes that the file may have"
                    )
                progress(Step(text, have, total))
                # what has come; `read` would wait for a whole piece
                piece = response.read1(BYTES_PER_READ)
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have:,} of {total:,} bytes")


def _refuse_page(beginning: bytes, response: HTTPResponse) -> None:
    """Raise if this is a web page: a proxy's or a hotel's login, or a server's apology."""
    declared = response.headers.get("Content-Type", "").startswith("text/html")
    if not (declared or re.match(rb"\s*<(!doctype|html)", beginning, re.I)):
        return
    found = re.search(
        rb"<title[^>]*>(.*?)</title>", beginning + response.read(4096), re.I | re.S
    )
    title = (
        f" titled '{' '.join(found[1].decode(errors='replace').split())[:80]}'"
        if found
        else ""
    )
    raise SourceError(
        f"answered with an HTML page{title} in place of the file, as a "
        "proxy or a login does"
    )


def _reach(url: str) -> None:
    """Raise at once or within seconds if the host is out of reach.

    `urlopen` has one timeout for connecting and reading, and gives it to each of a
    host's addresses in turn: behind a firewall that drops packets it would wait for
    minutes. So the connection is tried first. With a proxy the host need not be
    reachable, and nothing is tried.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(
        host
    ):
        return
    for known in ("*", parts.netloc):
        if known in _closed:
            raise SourceError(_closed[known])
    try:
        _connect(host, parts.port or (443 if parts.scheme == "https" else 80))
    except OSError as error:
        temporary = (
            isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        )
        everywhere = (
            temporary
            or isinstance(error, TimeoutError)
            or error.errno == errno.ENETUNREACH
        )
        reason = _reason(error)
        _closed["*" if everywhere else parts.netloc] = f"{reason} (found out before)"
        raise SourceError(reason) from error


def _connect(host: str, port: int) -> None:
    deadline = time.monotonic() + CONNECT_SECONDS
    failure: OSError = TimeoutError(f"no connection within {CONNECT_SECONDS:g} s")
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        with socket.socket(family, kind, protocol) as trial:
            trial.settimeout(min(left, CONNECT_SECONDS / 2))
            try:
                trial.connect(address)
                return
            except TimeoutError:
                continue
            except OSError as error:
                failure = error
    raise failure


def _reason(error: BaseException) -> str:
    """Tell what went wrong, in a few words."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}".rstrip()
    if isinstance(cause, socket.gaierror):
        return "the host's name cannot be resolved"
    if isinstance(cause, TimeoutError):
        return (
            str(cause)
            if "within" in str(cause)
            else f"no answer within {STALL_SECONDS:g} s"
        )
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return str(cause) or type(cause).__name__
