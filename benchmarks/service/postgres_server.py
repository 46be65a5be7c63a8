"""A private PostgreSQL server for tests and benchmarks: a temporary folder with a Unix socket, no port."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path

import psycopg

_START_SECONDS = 60.0


class PostgresServer:
    """A running server, from Debian's package or the PATH; it runs as an ordinary user, also if root starts it."""

    def __init__(self) -> None:
        """Raises FileNotFoundError if PostgreSQL is not installed."""
        self._programs = _find_programs()
        self._user = _ordinary_user()
        self.folder = Path(tempfile.mkdtemp(prefix="weightgen-postgres-"))
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        self._numbers = count()
        self._server: subprocess.Popen[bytes] | None = None
        self._run("initdb", "--auth=trust", "--username=weightgen", "--encoding=UTF8", "--locale=C", "--no-sync",
                  f"--pgdata={self.folder}/data").check_returncode()  # fmt: skip
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        # fsync is for power cuts: without it, committed data still survive a kill of the server's processes.
        self._server = subprocess.Popen(
            [self._programs / "postgres", "-D", f"{self.folder}/data", "-k", self.folder, "-c", "listen_addresses=",
             "-c", "fsync=off"],
            cwd=self.folder, user=self._user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                return self._connect().close()
            except psycopg.OperationalError:
                if self._server.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT ends its clients' work in order, SIGQUIT acts like a crash."""
        assert self._server is not None
        self._server.send_signal(how)
        self._server.wait()

    def remove(self) -> None:
        """Stop it and delete its folder."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder)

    def make_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"jobs_{next(self._numbers)}"
        with self._connect() as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql://weightgen@/{name}?host={self.folder}"

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(host=str(self.folder), user="weightgen", dbname="postgres", autocommit=True)

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self._programs / program, *arguments], cwd=self.folder, user=self._user, stdout=subprocess.DEVNULL
        )


def _find_programs() -> Path:
    """The folder of initdb and postgres in the newest version."""
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    found = sorted(versions, key=lambda path: [int(part) for part in path.parts[4].split(".")])
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        raise FileNotFoundError("PostgreSQL's initdb is not installed (apt-get install postgresql)")
    return (found[-1] if found else Path(str(on_path))).parent


def _ordinary_user() -> str | None:
    """The user to run as; None for the current user. PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    names = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"
