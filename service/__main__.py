"""Start the server: python -m service. Manage its keys: python -m service keys.

Settings are WEIGHTGEN_* in the environment; logs are JSON lines on stderr.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import uvicorn

from service.app import open_artifacts
from service.edge.http_protocol import guarded_http
from service.edge.request_head import MAX_TARGET_BYTES
from service.keys.key_commands import parse_command, run_command
from service.keys.key_store import KeyStore
from service.process.orphans import wait_for_port
from service.process.scratch import Scratch
from service.settings import Settings, is_loopback, read_settings
from service.telemetry.request_log import LOGGING
from weightgen.errors import BadOption, StorageFailed, WeightgenError

CLOSE_SECONDS = 5
"""How long a server that stops waits for the end of answers that it has begun."""
WORKER_ANSWER_SECONDS = 60
"""A worker that gives no sign of life for this long is replaced; loading generators on a busy machine takes a while."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal arrives, or run a `keys` command, and return the exit code."""
    asked = parse_command(arguments)
    try:
        if asked.group == "keys":
            print(run_command(asked))  # noqa: T201, what the user reads
            return 0
        settings = read_settings()
        _find_temporary_folder()
        keys = KeyStore(settings.database_url)
        keys.migrate()  # once, before the workers open it
        refuse_open_door(settings, has_key=keys.has_active())
        keys.close()
        open_artifacts(settings).check()
        metrics = Scratch(settings.data_dir / "metrics")
    except WeightgenError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201, what the user reads
        return error.exit_code
    signal.signal(signal.SIGTERM, _leave)
    wait_for_port(settings.host, settings.port)
    if settings.workers > 1:  # workers read this variable when they start; a single process has read it already
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics.folder)  # where the workers add up their measurements
    uvicorn.run(
        "service.app:create_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        http=guarded_http(max_request_seconds=settings.max_request_seconds, max_connections=settings.max_connections),
        h11_max_incomplete_event_size=settings.max_header_bytes + MAX_TARGET_BYTES,
        ws="none",
        workers=settings.workers,
        log_config=LOGGING,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=CLOSE_SECONDS,
        timeout_worker_healthcheck=WORKER_ANSWER_SECONDS,
    )
    return 0


def refuse_open_door(settings: Settings, *, has_key: bool) -> None:
    """Raise BadOption for a host beyond loopback without an active key, unless the settings say `insecure`."""
    if not is_loopback(settings.host) and not has_key and not settings.insecure:
        raise BadOption(
            f"host is {settings.host!r}, which others can reach, and there is no key to ask them for; make one with "
            "`python -m service keys make`, listen on 127.0.0.1, or set WEIGHTGEN_INSECURE=1 if the network itself "
            "keeps others out"
        )


def _find_temporary_folder() -> None:
    """Raise StorageFailed if there is no temporary folder, as on a read-only root file system without a /tmp."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise StorageFailed(
            "no temporary folder can be written; mount one at /tmp, or name one in the variable TMPDIR"
        ) from error


def _leave(signal_number: int, frame: FrameType | None) -> NoReturn:
    """Exit by an exception: uvicorn raises the signal again once it has stopped, and by default that kills at once."""
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
