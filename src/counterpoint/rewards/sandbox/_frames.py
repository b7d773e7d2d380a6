"""Frames on a socket between the sandbox's processes."""

import json
import socket
from typing import Any

MAX_FRAME = 32 << 20


class Gone(BaseException):
    """The other side hung up. Not an ``Exception``: a test's own ``except Exception`` must not hide it."""


def send_frame(sock: socket.socket, payload: bytes) -> None:
    """Sends one frame: four bytes of length, then ``payload``."""
    if len(payload) > MAX_FRAME:
        raise Gone(f"a message of {len(payload)} bytes is over the limit of {MAX_FRAME}")
    try:
        sock.sendall(len(payload).to_bytes(4, "big") + payload)
    except OSError as error:
        raise Gone(str(error)) from None


def recv_frame(sock: socket.socket) -> bytes:
    """Receives one frame and not one byte more: another process may read the next one. Raises ``Gone`` at the end."""
    size = int.from_bytes(_recv_exactly(sock, 4), "big")
    if size > MAX_FRAME:
        raise Gone(f"a message of {size} bytes is over the limit of {MAX_FRAME}")
    return _recv_exactly(sock, size)


def _recv_exactly(sock: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        try:
            part = sock.recv(min(size, 1 << 20))
        except OSError as error:
            raise Gone(str(error)) from None
        if not part:
            raise Gone("the connection was closed")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def send_message(sock: socket.socket, message: Any) -> None:
    """Sends plain data as one frame of JSON."""
    send_frame(sock, json.dumps(message).encode())


def recv_message(sock: socket.socket) -> Any:
    """Receives what ``send_message`` sent. ``ValueError`` where the frame holds no JSON."""
    return json.loads(recv_frame(sock))
