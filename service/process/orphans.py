"""A worker whose parent was killed leaves: it would keep the port from the next server and be stopped by nobody."""

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
"""How long a server waits for its port: what was killed a moment ago may still be leaving."""

_log = logging.getLogger(__name__)


def leave_with_parent(hurry: Callable[[], object], *, is_serving: Callable[[], bool]) -> None:
    """Close the door at once and stop in good order when the process that started this one has died.

    `hurry` is called first; a worker that is not serving yet has nothing to put in order. Does nothing in a process
    that was not started as a worker.
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
        # Unlike SIGTERM, after which requests are still answered for a while: the port is needed.
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(EXIT_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="orphan-watch", daemon=True).start()


def wait_for_port(host: str, port: int, *, seconds: float = PORT_SECONDS) -> None:
    """Return once nobody listens on the port, at the latest after this time; whoever binds it then is told why not."""
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
