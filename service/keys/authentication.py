"""Finds the bearer key of a request, and checks that it has the scope that the request needs.

    scope["state"]["owner"]    id of the key; "" if no key is needed
    scope["state"]["scopes"]   what the key may do; everything if no key is needed

As long as there are no keys, none is needed. Every process remembers a key for `KNOWN_SECONDS`. So it takes at most
that long until a revoked key is refused, and until the first key closes the service to everybody else.
"""

import time
from collections.abc import Callable, Mapping

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Asked

from service.keys.key_store import SCOPES, Key, KeyStore, Scope, parse_key
from service.problems import RETRY_SECONDS, Problem, refuse

KNOWN_SECONDS = 1.0
PUBLIC = frozenset({"/", "/docs", "/favicon.ico", "/healthz", "/metrics", "/openapi.json", "/readyz", "/version"})
PUBLIC_PREFIXES = ("/static/",)
NEEDED: Mapping[tuple[str, str], Scope] = {
    ("POST", "/v1/generations"): "generate",
    ("POST", "/v1/estimate"): "read",
    ("DELETE", "/v1/jobs/"): "generate",
    ("POST", "/v1/datasets"): "upload",
    ("DELETE", "/v1/datasets/"): "upload",
    ("POST", "/hf/"): "read",
}
"""(Method, beginning of the path) -> scope. Other requests need "read" to look at things, "generate" to change them."""
_LOOKING = ("GET", "HEAD", "OPTIONS")


def needed_scope(method: str, path: str) -> Scope | None:
    """The scope that a request needs; None if it needs no key."""
    if path in PUBLIC or path.startswith(PUBLIC_PREFIXES):
        return None
    for (of_method, start), scope in NEEDED.items():
        if method == of_method and path.startswith(start):
            return scope
    return "read" if method in _LOOKING else "generate"


class KeyRing:
    """The keys that one process remembers, each for `KNOWN_SECONDS`."""

    def __init__(self, store: KeyStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._known: dict[str, tuple[Key, float]] = {}  # at most one entry for each key
        self._exist, self._exist_until = False, float("-inf")

    def now(self) -> float:
        """The present time for the expiry of keys, seconds since the epoch."""
        return self._store.clock()

    async def exist(self) -> bool:
        """Whether there are keys. Keys are never deleted, so a yes is remembered."""
        if not self._exist and self._clock() >= self._exist_until:
            self._exist = await run_in_threadpool(self._store.exist)
            self._exist_until = self._clock() + KNOWN_SECONDS
        return self._exist

    def is_known_empty(self) -> bool:
        """Whether there was no key at the last look, at most `KNOWN_SECONDS` ago."""
        return not self._exist and self._clock() < self._exist_until

    async def find(self, key_id: str) -> Key | None:
        """The key of this id; None if there is none."""
        key, until = self._known.get(key_id, (None, 0.0))
        if key is None or self._clock() >= until:
            asked = self._clock()
            key = await run_in_threadpool(self._store.find, key_id)
            if key is not None:
                self._known[key_id] = key, asked + KNOWN_SECONDS
        return key


class Authentication:
    """ASGI middleware that finds the key of a request and checks its scope."""

    def __init__(self, app: ASGIApp, *, keys: KeyRing, may_be_open: bool) -> None:
        """`may_be_open` is whether everybody may ask while there is no key."""
        self._app, self._keys, self._may_be_open = app, keys, may_be_open

    async def __call__(self, scope: Asked, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        state = scope.setdefault("state", {})
        state["owner"], state["scopes"] = "", frozenset(SCOPES)
        needed = needed_scope(scope["method"], scope["path"])
        if needed is not None:
            try:
                key = await self._who(Headers(scope=scope))
                if key is not None:
                    state["owner"], state["scopes"] = key.id, key.scopes
                    send = _keep_private(send)
                require(needed, state["scopes"])
            except Problem as problem:
                return await refuse(problem, scope)(scope, receive, send)
        await self._app(scope, receive, send)

    async def _who(self, headers: Headers) -> Key | None:
        """The key of a request; None if no key is needed. Problem if it is missing or wrong."""
        try:
            if not await self._keys.exist() and self._may_be_open:
                return None
            return await self._check(headers.getlist("authorization"))
        except SQLAlchemyError as error:
            retry = {"Retry-After": str(RETRY_SECONDS)}
            raise Problem("not-ready", "the database of the keys does not answer", headers=retry) from error

    async def _check(self, given: list[str]) -> Key:
        if not given:
            raise _unauthorized("this service asks for a key; send it as Authorization: Bearer <key>")
        kind, _, text = given[0].partition(" ")
        parts = parse_key(text.strip())
        if len(given) > 1 or kind.lower() != "bearer" or parts is None:
            raise _unauthorized("the Authorization header holds no key; expected one, as Bearer wg_<id>_<secret>")
        key_id, secret = parts
        key = await self._keys.find(key_id)
        if key is None or not key.has_secret(secret):
            raise _unauthorized("the key is not one of this service; ask its operator for one")
        if not key.is_active(self._keys.now()):
            how = "was revoked" if key.revoked is not None else "has expired"
            raise _unauthorized(f"the key {key.name!r} {how}; ask the operator for another")
        return key


def _keep_private(send: Send) -> Send:
    """A `send` that marks answers as private, so that no shared cache gives them to others."""

    async def send_private(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            cache = headers.get("cache-control", "")
            headers["Cache-Control"] = cache.replace("public", "private") if cache else "private"
        await send(message)

    return send_private


def require(needed: Scope, scopes: frozenset[Scope]) -> None:
    """Raise Problem unless `needed` is one of the scopes."""
    if needed not in scopes:
        has = ", ".join(sorted(scopes))
        challenge = {"WWW-Authenticate": f'Bearer realm="weightgen", error="insufficient_scope", scope="{needed}"'}
        raise Problem("forbidden", f"this needs a key with the scope {needed!r}; yours has {has}", headers=challenge)


def _unauthorized(detail: str) -> Problem:
    return Problem("unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="weightgen"'})
