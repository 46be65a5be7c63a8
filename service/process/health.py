"""Check that the server answers: python -m service.process.health, for the health check of a container.

It asks /healthz of the server that this environment's settings describe, and exits with 0 or 1. It needs only Python's
own library.
"""

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping

TIMEOUT_SECONDS = 4
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}


def main() -> int:
    """Ask once, and return the exit code."""
    url = health_url(os.environ)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS):
            return 0
    except (urllib.error.URLError, OSError) as error:
        print(f"{url} does not answer: {error}", file=sys.stderr)  # noqa: T201, what the health check's log shows
        return 1


def health_url(environment: Mapping[str, str]) -> str:
    """The URL of /healthz of a server with these environment variables."""
    host = environment.get("WEIGHTGEN_HOST", "")
    host = _EVERYWHERE.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{environment.get('WEIGHTGEN_PORT', '8000')}/healthz"


if __name__ == "__main__":
    sys.exit(main())
