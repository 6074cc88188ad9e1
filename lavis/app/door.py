"""Which requests a local web server answers: those of its own pages and of programs, not those of other sites' pages.

A page of another site can send requests to a server on its reader's machine. Browsers say where a request comes from
(`Origin`, `Sec-Fetch-Site`); programs such as curl say nothing, and are no danger. A site can also give its own name
the address of this machine (DNS rebinding); then its requests are "same-origin", but under a name that is not ours.
"""

from __future__ import annotations

import ipaddress
import socket
import urllib.parse
from collections.abc import Collection

_OURS = ("same-origin", "none")  # of Sec-Fetch-Site; "none": the reader's own doing, such as an address typed
_READING = ("GET", "HEAD")


def name_of(host: str) -> str:
    """The name of a Host header without its port, lower case; an IPv6 address without brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def is_known(host: str, names: Collection[str]) -> bool:
    """Whether a Host header names this machine: one of `names`, or, where "*" is among them, any address as well.

    An address can't be rebound; only names can.
    """
    name = name_of(host)
    if name in names:
        return True
    if "*" not in names:
        return False
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def names_of(host: str, more: Collection[str] = ()) -> frozenset[str]:
    """The names under which a server that listens at `host` is asked for; see `is_known`."""
    loopback = {"127.0.0.1", "localhost", "::1"}
    found = {name.lower() for name in more} | loopback
    if host not in loopback:
        own = socket.gethostname().lower()
        found |= {host.lower(), own, f"{own}.local", "*"}
    return frozenset(found)


def is_foreign(
    method: str, host: str, origin: str | None, site: str | None, mode: str | None, reads_much: bool = False
) -> bool:
    """Whether a request was made by a page of another site (or of another port of this machine).

    Args:
        host, origin, site, mode: the headers Host, Origin, Sec-Fetch-Site and Sec-Fetch-Mode; None where there is none.
        reads_much: a link to it from elsewhere is not followed, either.
    """
    # "null" is what a sandboxed page and a file say
    if origin is not None and urllib.parse.urlsplit(origin.strip().lower()).netloc != host.strip().lower():
        return True
    if site is None or site.strip().lower() in _OURS:
        return False
    return not (method in _READING and mode == "navigate" and not reads_much)
