"""Bearer keys: who may ask, and for what.

A key is `wg_<id>_<secret>`. The secret has 256 random bits and is shown once. The table keeps its sha256, which is as
safe as a slow hash for so many random bits. Keys are revoked and never deleted: once there is a key, the service needs
one for good.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import sqlalchemy as sa

from service.jobs.database import open_database, upgrade
from service.jobs.job_store import METADATA
from weightgen.errors import BadOption, NotFound

Scope = Literal["read", "generate", "upload"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

DAY_SECONDS = 86400.0
LAST_USED_SECONDS = 60.0
"""How often `last_used` is written at most, so that a busy key costs one write a minute."""
_KEY = re.compile(r"wg_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

API_KEYS = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("id", sa.String(12), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("secret_sha256", sa.String(64), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("expires", sa.Float),
    sa.Column("revoked", sa.Float),
    sa.Column("last_used", sa.Float),
    # The token bucket of the key's requests, which all processes draw from: the tokens left, and at what time.
    sa.Column("tokens", sa.Float),
    sa.Column("tokens_at", sa.Float),
)


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its secret. Times are seconds since the epoch."""

    id: str
    name: str
    secret_sha256: str
    scopes: frozenset[Scope]
    created: float
    expires: float | None
    revoked: float | None
    last_used: float | None
    """Not exact: up to a minute before the last request."""

    def has_secret(self, secret: str) -> bool:
        """Whether this is the key's secret; the time that it takes does not show how much of it is right."""
        return hmac.compare_digest(self.secret_sha256, _hash(secret))

    def is_active(self, now: float) -> bool:
        """Whether the key is accepted."""
        return self.revoked is None and (self.expires is None or now < self.expires)


class KeyStore:
    """The keys of one database, which any number of processes and threads may have open."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        """Raises BadOption for a URL that cannot be used."""
        self._engine = open_database(url)
        self.clock = clock

    def migrate(self) -> None:
        """Migrate the tables to this version, as JobStore.migrate does."""
        upgrade(self._engine)

    def close(self) -> None:
        """Close the connections; the store opens new ones if it is used again."""
        self._engine.dispose()

    def make(self, name: str, scopes: Sequence[str], *, expires_days: float | None = None) -> tuple[str, Key]:
        """Make a key; returns its whole text, which is not stored, and what is stored of it.

        Raises BadOption for a wrong name, for wrong scopes or none, or for an expiry that is not in the future.
        """
        if not _NAME.fullmatch(name):
            raise BadOption(f"name is {name[:80]!r}, expected at most 64 letters, digits, '_', '.' and '-'")
        unknown = sorted(set(scopes) - set(SCOPES))
        if unknown or not scopes:
            got = f"got {', '.join(map(repr, unknown))}" if unknown else "got none"
            raise BadOption(f"a key has one or more of the scopes {', '.join(SCOPES)}; {got}")
        if expires_days is not None and not 0 < expires_days <= 36_500:
            raise BadOption(f"expires_days is {expires_days:g}, expected more than 0 and at most 36500")
        key_id, secret, now = secrets.token_hex(6), secrets.token_urlsafe(32), self.clock()
        made = sa.insert(API_KEYS).values(
            id=key_id, name=name, secret_sha256=_hash(secret), scopes=sorted(set(scopes)), created=now,
            expires=None if expires_days is None else now + expires_days * DAY_SECONDS,
        ).returning(API_KEYS)  # fmt: skip
        with self._writing() as connection:
            return f"wg_{key_id}_{secret}", _key(connection.execute(made).one())

    def list(self) -> list[Key]:
        """Every key, revoked and expired ones too, the oldest first."""
        with self._engine.connect() as connection:
            return [
                _key(row) for row in connection.execute(sa.select(API_KEYS).order_by(API_KEYS.c.created, API_KEYS.c.id))
            ]

    def revoke(self, key_id: str) -> Key:
        """Revoke a key; a key that was revoked before stays as it is. NotFound if no key has this id."""
        with self._writing() as connection:
            live = sa.and_(API_KEYS.c.id == key_id, API_KEYS.c.revoked.is_(None))
            connection.execute(sa.update(API_KEYS).where(live).values(revoked=self.clock()))
            row = connection.execute(sa.select(API_KEYS).where(API_KEYS.c.id == key_id)).one_or_none()
        if row is None:
            raise NotFound(f"there is no key {key_id[:80]!r}; `python -m service keys list` lists them by id")
        return _key(row)

    def find(self, key_id: str) -> Key | None:
        """The key of this id, or None; notes that the key is used, at most once a minute."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(API_KEYS).where(API_KEYS.c.id == key_id)).one_or_none()
        if row is None:
            return None
        key, now = _key(row), self.clock()
        if key.is_active(now) and now - (key.last_used or 0) > LAST_USED_SECONDS:
            with self._writing() as connection:
                connection.execute(sa.update(API_KEYS).where(API_KEYS.c.id == key_id).values(last_used=now))
        return key

    def exist(self) -> bool:
        """Whether there is any key, active or not."""
        with self._engine.connect() as connection:
            return connection.execute(sa.select(API_KEYS.c.id).limit(1)).one_or_none() is not None

    def has_active(self) -> bool:
        """Whether any key is active."""
        return any(key.is_active(self.clock()) for key in self.list())

    def draw_requests(self, key_id: str, *, per_minute: int, at_most: int) -> tuple[int, float]:
        """How many requests the key may make now, of the `at_most` asked for, and seconds until the next if none.

        A token bucket that holds `per_minute` and fills at that rate. What a process draws is spent for all processes.
        """
        with self._writing() as connection:
            row = connection.execute(sa.select(API_KEYS).where(API_KEYS.c.id == key_id).with_for_update()).one()
            now, rate = self.clock(), per_minute / 60
            tokens = float(per_minute) if row.tokens is None else row.tokens + max(0.0, now - row.tokens_at) * rate
            tokens = min(tokens, float(per_minute))
            drawn = min(int(tokens), at_most)
            if drawn == 0:
                return 0, (1 - tokens) / rate
            left = {"tokens": tokens - drawn, "tokens_at": now}
            connection.execute(sa.update(API_KEYS).where(API_KEYS.c.id == key_id).values(left))
            return drawn, 0.0

    def _writing(self):
        return self._engine.execution_options(writes=True).begin()


def parse_key(text: str) -> tuple[str, str] | None:
    """The id and the secret in the whole text of a key; None if it is not a key."""
    match = _KEY.fullmatch(text)
    return None if match is None else (match[1], match[2])


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: sa.Row[Any]) -> Key:
    values = {name: row._mapping[name] for name in Key.__dataclass_fields__}
    return Key(**{**values, "scopes": frozenset(row.scopes)})
