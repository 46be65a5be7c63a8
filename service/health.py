"""Whether the server of this environment's settings answers: python -m service.health, for a container's health check.

It asks /healthz and exits with 0 or 1; nothing but Python's own library is needed.
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
    """Where the server of these variables says that it lives."""
    host = environment.get("WEIGHTGEN_HOST", "")
    host = _EVERYWHERE.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{environment.get('WEIGHTGEN_PORT', '8000')}/healthz"


if __name__ == "__main__":
    sys.exit(main())
