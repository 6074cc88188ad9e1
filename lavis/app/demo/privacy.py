"""The demo's process talks to its visitors and to nobody else.

What the libraries below it would send (usage statistics, checks for new versions) is switched off by their settings.
Beside that, Python's audit events of sockets are watched: connections and look-ups of names that leave the machine are
refused, whoever asks for them. Answers to visitors are not affected; they come in by connections that visitors opened.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SETTINGS = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
OFFLINE = {"LAVIS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}

_CONNECTING = ("socket.connect", "socket.sendto")
_LOOKING_UP = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
_watching = False  # the hook is there; audit hooks can't be taken away again
_closed = 0  # how many `no_connections` are open


@contextmanager
def settings(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables, and put back what was there."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def no_connections() -> Iterator[None]:
    """Refuse connections to other machines while this is open; whoever tries gets a PermissionError."""
    global _watching, _closed
    if not _watching:
        sys.addaudithook(_watch)
        _watching = True
    _closed += 1
    try:
        yield
    finally:
        _closed -= 1


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _closed or not event.startswith("socket."):
        return
    if event in _CONNECTING:
        address = arguments[1]
        if isinstance(address, tuple) and not is_local(address[0], names=True):
            raise PermissionError(f"the demo makes no connections to other machines (to {address[0]})")
    elif event in _LOOKING_UP:
        host = arguments[0]
        if host and not is_local(host, names=False):
            raise PermissionError(f"the demo looks up no names of other machines ({host})")


def is_local(host: Any, *, names: bool) -> bool:
    """Whether a host can be asked without a packet leaving: `names`: it is to be connected to, else looked up."""
    text = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
    if text in ("localhost", ""):
        return True
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified if names else True
