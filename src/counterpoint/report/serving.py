"""The page of a run or a study over HTTP, fresh while the run goes; only the page, read-only.

>>> from counterpoint.report.serving import serve
>>> serve(Path("runs/demo-mgs"), port=0, announce=print)  # until Ctrl-C  # doctest: +SKIP
"""

import contextlib
import ipaddress
import json
import socket
import sys
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from counterpoint.errors import RunError
from counterpoint.report import page_of
from counterpoint.report._live import LivePage, Shown

LOOPBACK = "127.0.0.1"
PORT = 8377


class ReportServer(ThreadingHTTPServer):
    """Serves one live page at ``url``; ``serve_forever`` runs it, ``server_close`` ends it.

    No host, as a shell variable that is not set gives one, is this machine alone. ``loopback`` says whether the address
    that the host turned out to be can be reached from this machine alone.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int, live: LivePage) -> None:
        self.live = live
        self.host = host.strip() or LOOPBACK
        if ":" in self.host:
            self.address_family = socket.AF_INET6
        super().__init__((self.host, port), _Handler)
        self.loopback = _is_loopback(str(self.server_address[0]))
        self.url = f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.server_address[1]}/"

    def __str__(self) -> str:
        return self.url

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away in the middle of an answer is nothing to report."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def open_server(path: Path, compare: Sequence[Path] = (), host: str = LOOPBACK, port: int = PORT) -> ReportServer:
    """A server of the page on ``path``, bound but not yet running; ``port`` 0 takes any free one.

    Raises:
        RunError: ``path`` is neither run nor study, or the address cannot be had.
    """
    live = LivePage([path, *compare], lambda version: page_of(path, compare, version))
    if not 0 <= port <= 65535:
        raise RunError(
            f"A port is a number from 0 to 65535, found {port}. Leave out --port, or give 0 for any free one."
        )
    try:
        return ReportServer(host, port, live)
    except OSError as error:
        raise RunError(
            f"Cannot serve at {host}, port {port} ({error.strerror or error}). Give another port with --port, or "
            "--port 0 for any free one; --host takes an address of this machine."
        ) from error


def serve(
    path: Path,
    compare: Sequence[Path] = (),
    host: str = LOOPBACK,
    port: int = PORT,
    announce: Callable[[ReportServer], None] = print,
) -> None:
    """Serves the page until Ctrl-C and writes nothing. ``announce`` is told the server before it starts.

    Raises:
        RunError: as ``open_server``.
    """
    with open_server(path, compare, host, port) as server, contextlib.suppress(KeyboardInterrupt):  # the way to end it
        announce(server)
        server.serve_forever()


class _Handler(BaseHTTPRequestHandler):
    """Answers for a handful of names and for nothing else: no path of a request ever reaches the disk."""

    server: ReportServer
    timeout = 30
    server_version = "counterpoint"
    sys_version = ""

    def do_GET(self) -> None:
        if self.server.loopback and not self._asked_locally():
            self._answer(403, "text/plain", "This page is for this machine alone; see counterpoint report --help.")
            return
        shown = self.server.live.now()
        found = _ANSWERS.get(self.path.partition("?")[0])
        if found is None:
            self._answer(404, "text/plain", "There is nothing here. The page is at /.")
        else:
            kind, body = found
            self._answer(200, kind, body(shown))

    do_HEAD = do_GET

    def _asked_locally(self) -> bool:
        """A page of some other site, under a name that leads here, must not read the answer (DNS rebinding)."""
        try:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        except ValueError:
            return False
        return _is_loopback(name) or name == self.server.host.lower()

    def _answer(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in (
            ("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"), ("X-Frame-Options", "DENY"),
        ):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: the terminal belongs to the reader."""


def _version(shown: Shown) -> str:
    return json.dumps({"version": shown.version, "problem": shown.problem})


_ANSWERS: dict[str, tuple[str, Callable[[Shown], str]]] = {
    "/": ("text/html", lambda shown: shown.page),
    "/content": ("text/html", lambda shown: shown.content),
    "/version": ("application/json", _version),
}


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
