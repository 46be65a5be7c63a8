"""Limits the requests of one key: per minute over all processes, and at a time in each process.

The token bucket of a key is in the database. A process draws from it what the key may use in one second. So a busy key
costs one transaction a second in each process, not one for each request. What is drawn stays with the process until the
key uses it there. Over all processes a key never gets more than the bucket gives.

Requests without a key have no such limits. On loopback they come from users of this machine. With WEIGHTGEN_INSECURE=1
addresses do not help, because behind a proxy all clients have the same one.
"""

import math
import time
from collections import Counter
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from service.keys.key_store import KeyStore
from service.problems import RETRY_SECONDS, Problem, refuse


class KeyLimits:
    """ASGI middleware that limits requests by key; it runs inside of Authentication."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: KeyStore,
        max_per_minute: int,
        max_concurrent: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._keys, self._clock = app, keys, clock
        self._per_minute, self._max_concurrent = max_per_minute, max_concurrent
        self._in_flight: Counter[str] = Counter()
        self._drawn: Counter[str] = Counter()
        self._empty_until: dict[str, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        owner = scope["state"]["owner"] if scope["type"] == "http" else ""
        if not owner:
            return await self._app(scope, receive, send)
        self._in_flight[owner] += 1
        try:
            try:
                self._check_concurrent(owner)
                await self._spend(owner)
            except Problem as problem:
                return await refuse(problem, scope)(scope, receive, send)
            await self._app(scope, receive, send)
        finally:
            self._in_flight[owner] -= 1

    def _check_concurrent(self, owner: str) -> None:
        if self._in_flight[owner] > self._max_concurrent:
            detail = f"a key may have {self._max_concurrent} requests at a time; wait for one to end"
            raise Problem("too-many-requests", detail, headers={"Retry-After": "1"})

    async def _spend(self, owner: str) -> None:
        if self._drawn[owner] == 0:
            wait = self._empty_until.get(owner, 0.0) - self._clock()
            if wait <= 0:
                wait = await self._draw(owner)
            if self._drawn[owner] == 0:  # and no other request of this process drew meanwhile
                seconds = max(1, math.ceil(wait))
                detail = f"a key may make {self._per_minute} requests a minute; ask again in {seconds} seconds"
                raise Problem("too-many-requests", detail, headers={"Retry-After": str(seconds)})
        self._drawn[owner] -= 1

    async def _draw(self, owner: str) -> float:
        """Draw from the bucket; returns the seconds until it has something again, if it is empty."""
        at_most = max(1, self._per_minute // 60)
        draw, asked = self._keys.draw_requests, self._clock()
        try:
            drawn, wait = await run_in_threadpool(draw, owner, per_minute=self._per_minute, at_most=at_most)
        except SQLAlchemyError as error:
            retry = {"Retry-After": str(RETRY_SECONDS)}
            raise Problem("not-ready", "the database of the keys does not answer", headers=retry) from error
        self._drawn[owner] += drawn
        if not drawn:
            self._empty_until[owner] = asked + wait
        return wait
