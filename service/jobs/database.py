"""Opens, locks and migrates the database of jobs and keys, on SQLite and on PostgreSQL."""

import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError

from weightgen.errors import BadOption, StorageFailed, UnsupportedTask

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 30.0
"""How long a writer waits for another process's transaction on SQLite."""
_GIVE_UP = {"connect_timeout": 5, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
"""When psycopg gives up on a server that does not answer, in seconds and tries; libpq by itself waits for hours."""
_LOCK = 0x77656967  # any number that nobody else takes as an advisory lock in this database


def open_database(url: str) -> sa.Engine:
    """An engine for reading; with the execution option `writes` its transactions take SQLite's write lock at once.

    Raises BadOption for a URL that cannot be used. Nothing is connected yet.
    """
    try:
        parsed = sa.make_url(url)
    except ArgumentError as error:
        raise BadOption("database_url is not a URL; expected sqlite:///FILE or postgresql://…") from error
    kind, shown = parsed.get_backend_name(), parsed.render_as_string(hide_password=True)
    if kind not in ("sqlite", "postgresql"):
        raise BadOption(f"database_url is of kind {kind!r}, expected sqlite:///FILE or postgresql://…")
    try:
        if kind == "sqlite":
            if not parsed.database or parsed.database == ":memory:":
                raise BadOption("database_url names no file, which processes could share; expected sqlite:///FILE")
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            engine = sa.create_engine(parsed, connect_args={"timeout": BUSY_SECONDS})
        else:
            if parsed.drivername == "postgresql":  # SQLAlchemy would take a driver that is not used here
                parsed = parsed.set(drivername="postgresql+psycopg")
            engine = sa.create_engine(parsed, pool_pre_ping=True, connect_args=_GIVE_UP)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise BadOption(
            f"database_url {shown!r} needs a driver that is not installed: {error}; expected postgresql://… with "
            "weightgen[postgres] installed"
        ) from error
    except OSError as error:
        raise StorageFailed(f"the folder of {shown!r} cannot be made: {error.strerror}") from error
    if kind == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def exclude_others(connection: sa.Connection) -> None:
    """Wait for the other transactions that called this, and keep them out until this transaction ends.

    On SQLite every transaction that writes does so already.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})


def upgrade(engine: sa.Engine) -> None:
    """Migrate the tables to this version, in one transaction; other processes that try this wait for its end.

    Raises UnsupportedTask for a database that a newer version wrote, StorageFailed if it cannot be reached.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    where = engine.url.render_as_string(hide_password=True)
    try:
        with engine.execution_options(writes=True).begin() as connection:
            exclude_others(connection)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as error:
        raise UnsupportedTask(
            f"the database {where!r} was written by another version of weightgen: {error}; use that version or another "
            "database"
        ) from error
    except DatabaseError as error:
        reason = str(error.orig).partition("\n")[0]  # psycopg adds lines of advice
        raise StorageFailed(f"the database {where!r} cannot be used: {reason}") from error


def _set_up_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # the driver begins no transactions of its own: `_begin_sqlite` does
    # NORMAL: commits survive when a process dies; a power cut may lose the last commits, but not the file.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
            break
        except sqlite3.OperationalError as error:
            # Another process is switching a new file to WAL; SQLite does not wait for that by itself.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    connection.execute("PRAGMA synchronous=NORMAL").close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later would fail, not wait, when another wrote in between.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")
