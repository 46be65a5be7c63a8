"""Ends a worker whose parent process was killed: otherwise it keeps the port from the next server, and never stops."""

import errno
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

from service.process.drain import EXIT_SECONDS

PORT_SECONDS = 30.0
"""How long a server waits for its port: the workers of a server that was just killed may still hold it."""

_log = logging.getLogger(__name__)


def leave_with_parent(hurry: Callable[[], object], *, is_serving: Callable[[], bool]) -> None:
    """Close the port at once and stop in good order when the parent process has died.

    `hurry` is called first. A worker that does not serve yet exits at once. In a process that is not a worker this does
    nothing.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        _log.warning("the server that this worker belongs to was killed; the worker leaves")
        if not is_serving():
            os._exit(1)
        hurry()
        # Not SIGTERM, after which requests are still answered for a while: the port has to become free.
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(EXIT_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="orphan-watch", daemon=True).start()


def wait_for_port(host: str, port: int, *, seconds: float = PORT_SECONDS) -> None:
    """Return when the port is free, or after `seconds`; if it is still taken, binding it fails with the reason."""
    end = time.monotonic() + seconds
    while port and time.monotonic() < end:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                return probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    return
                time.sleep(0.1)
