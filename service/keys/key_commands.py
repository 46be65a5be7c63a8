"""python -m service keys make | list | revoke: the keys of the database that the settings name."""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime

from service.keys.key_store import SCOPES, Key, KeyStore
from service.settings import read_settings


def parse_command(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The parsed command line; ends the program with a message if it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m service", description="Serve weights over HTTP, or manage keys.")
    groups = parser.add_subparsers(dest="group", metavar="command", description="Without a command: serve.")
    keys = groups.add_parser("keys", help="make, list and revoke bearer keys", allow_abbrev=False)
    commands = keys.add_subparsers(dest="command", metavar="command", required=True)
    make = commands.add_parser("make", help="make a key and print it, once", allow_abbrev=False)
    make.add_argument("--name", required=True, help="what the key is for; letters, digits, '_', '.' and '-'")
    make.add_argument(
        "--scope", action="append", required=True, choices=SCOPES, dest="scopes", help="may be given several times"
    )
    make.add_argument("--expires-days", type=float, help="after so many days the key is refused; default: never")
    commands.add_parser("list", help="list all keys, without their secrets", allow_abbrev=False)
    revoke = commands.add_parser("revoke", help="refuse a key from now on", allow_abbrev=False)
    revoke.add_argument("id", help="as keys list prints it, the middle part of the key")
    return parser.parse_args(arguments)


def run_command(asked: argparse.Namespace) -> str:
    """Run a `keys` command and return its output; raises as KeyStore does."""
    store = KeyStore(read_settings().database_url)
    try:
        store.migrate()
        if asked.command == "make":
            text, _ = store.make(asked.name, asked.scopes, expires_days=asked.expires_days)
            return text
        if asked.command == "revoke":
            key = store.revoke(asked.id)
            return f"{key.id} ({key.name}) is revoked"
        return _table(store.list(), now=store.clock())
    finally:
        store.close()


def _table(keys: Sequence[Key], *, now: float) -> str:
    header = ("id", "name", "scopes", "state", "created", "expires", "last used")
    rows = [header, *(_describe(key, now=now) for key in keys)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _describe(key: Key, *, now: float) -> tuple[str, ...]:
    state = "revoked" if key.revoked is not None else "active" if key.is_active(now) else "expired"
    times = (_tell_time(time) for time in (key.created, key.expires, key.last_used))
    return key.id, key.name, ",".join(sorted(key.scopes)), state, *times


def _tell_time(time: float | None) -> str:
    return "-" if time is None else datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%MZ")
