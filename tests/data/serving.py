"""A web server on this machine that misbehaves as it is told."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Server:
    """What is served, and how.

    Attributes:
        port: Where it listens.
        contents: By path.
        ranges: Whether requests for a part are honored.
        page: An HTML page that is the answer to everything, as a proxy's login.
        cut: So many answers end after half of what they announced.
        pause: Seconds to wait before each quarter of an answer.
        log: Path and wanted range of each request.
    """

    port: int
    contents: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    page: str = ""
    page_type: str = "text/html; charset=utf-8"
    cut: int = 0
    pause: float = 0
    log: list[tuple[str, str]] = field(default_factory=list)

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def offer(self, folder: str, files: dict[str, bytes]) -> None:
        """Serve files as gzip."""
        for name, content in files.items():
            self.contents[f"{folder}{name}.gz"] = gzip.compress(content, mtime=0)

    @staticmethod
    @contextmanager
    def running() -> Iterator[Server]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(server, self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        listening.daemon_threads = True
        server = Server(listening.server_address[1])
        thread = threading.Thread(
            target=listening.serve_forever, kwargs={"poll_interval": 0.02}
        )
        thread.start()
        try:
            yield server
        finally:
            listening.shutdown()
            listening.server_close()
            thread.join()


def answer(server: Server, request: BaseHTTPRequestHandler) -> None:
    wanted = request.headers.get("Range", "")
    server.log.append((request.path, wanted))
    if server.page:
        _send(request, 200, server.page.encode(), server.page_type)
        return
    content = server.contents.get(request.path)
    if content is None:
        request.send_error(404)
        return
    start = (
        int(wanted.removeprefix("bytes=").rstrip("-"))
        if wanted and server.ranges
        else 0
    )
    if start >= len(content):
        request.send_error(416)
        return
    body = content[start:]
    half = server.cut > 0
    server.cut -= half
    _send(
        request,
        206 if start else 200,
        body,
        "application/gzip",
        half=half,
        pause=server.pause,
    )


def _send(
    request: BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    kind: str,
    *,
    half: bool = False,
    pause: float = 0,
) -> None:
    request.send_response(status)
    request.send_header("Content-Type", kind)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    sent = body[: len(body) // 2] if half else body
    quarter = max(1, -(-len(sent) // 4))
    try:
        for start in range(0, len(sent), quarter):
            time.sleep(pause)
            request.wfile.write(sent[start : start + quarter])
            request.wfile.flush()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the client has gone, as some tests want
