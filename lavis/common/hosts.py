"""Turns for requests to many hosts: never more than a few at a time to one, and none while it asks to wait.

Workers call `take`, which waits until some host is free, and afterwards `finish` or `again`. Requests are drawn
from their iterator only as far as there is credit, so a list of millions is never in memory.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
import urllib.parse
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Request(Protocol):
    """Anything with an address."""

    @property
    def url(self) -> str: ...


R = TypeVar("R", bound=Request)


@dataclass
class _Host(Generic[R]):
    waiting: deque[R] = field(default_factory=deque)
    running: int = 0
    not_before: float = 0.0  # monotonic seconds


def host_of(url: str) -> str:
    """The host and port of an address, "" if it has none."""
    try:
        return urllib.parse.urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return ""


class Turns(Generic[R]):
    """See the module's docstring.

    Args:
        requests: in the order in which they are begun as far as hosts are free.
        per_host: requests at a time to one host.
        credit: requests that may be drawn before `more` gives further credit.
    """

    def __init__(self, requests: Iterator[R], per_host: int, credit: int) -> None:
        self._requests, self._per_host, self._credit = requests, per_host, credit
        self._hosts: OrderedDict[str, _Host[R]] = OrderedDict()
        self._later: list[tuple[float, int, R]] = []  # a heap: when, tie-breaker, what
        self._count = itertools.count()
        self._running = 0
        self._drawn_all = self._closed = False
        self._change = threading.Condition()

    def take(self) -> R | None:
        """The next request whose host is free; None when there are no more, or after `close`."""
        with self._change:
            while not self._closed:
                self._draw()
                now = time.monotonic()
                while self._later and self._later[0][0] <= now:
                    self._enqueue(heapq.heappop(self._later)[2])
                request, wake = self._ready(now)
                if request is not None:
                    return request
                if self._drawn_all and not self._running and not self._later and wake is None:
                    self.close()
                    return None
                if self._later:
                    wake = self._later[0][0] if wake is None else min(wake, self._later[0][0])
                self._change.wait(None if wake is None else max(0.0, wake - now))
            return None

    def finish(self, request: R) -> None:
        """A request that was taken is over."""
        with self._change:
            self._hosts[host_of(request.url)].running -= 1
            self._running -= 1
            self._change.notify_all()

    def again(self, request: R, after_s: float, pause_s: float = 0.0) -> None:
        """A request is over and shall be tried again after some seconds; its host is left alone for `pause_s`."""
        with self._change:
            now = time.monotonic()
            host = self._hosts[host_of(request.url)]
            host.not_before = max(host.not_before, now + pause_s)
            heapq.heappush(self._later, (now + max(after_s, pause_s), next(self._count), request))
        self.finish(request)

    def more(self, credit: int) -> None:
        """Allow further requests to be drawn."""
        with self._change:
            self._credit += credit
            self._change.notify_all()

    def close(self) -> None:
        """Give up what is waiting: every `take` returns None."""
        with self._change:
            self._closed = True
            self._change.notify_all()

    # ------------------------------------------------------------------ with the lock held
    def _draw(self) -> None:
        while self._credit > 0 and not self._drawn_all:
            request = next(self._requests, None)
            if request is None:
                self._drawn_all = True
            else:
                self._credit -= 1
                self._enqueue(request)

    def _enqueue(self, request: R) -> None:
        self._hosts.setdefault(host_of(request.url), _Host()).waiting.append(request)

    def _ready(self, now: float) -> tuple[R | None, float | None]:
        """A request that may start now, or the time at which a paused host may be asked again."""
        wake: float | None = None
        for name, host in list(self._hosts.items()):
            if not host.waiting:
                if not host.running and host.not_before <= now:
                    del self._hosts[name]
            elif host.not_before > now:
                wake = host.not_before if wake is None else min(wake, host.not_before)
            elif host.running < self._per_host:
                host.running += 1
                self._running += 1
                self._hosts.move_to_end(name)  # the others first, next time
                return host.waiting.popleft(), None
        return None, wake
