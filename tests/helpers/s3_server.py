"""A server that speaks S3 over HTTP on a free loopback port, for the tests: moto's, in a thread of this process."""

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator
from unittest import mock

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@contextlib.contextmanager
def running_s3() -> Iterator[str]:
    """The URL of the server; its keys are in the environment meanwhile, and no others."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request
    without = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with mock.patch.dict(os.environ, {**without, **KEYS}, clear=True):
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        try:
            host, port = server.get_host_and_port()
            yield f"http://{host}:{port}"
        finally:
            server.stop()


def new_bucket(endpoint_url: str) -> str:
    """The name of an empty bucket."""
    import s3fs

    name = f"bucket-{secrets.token_hex(4)}"
    s3fs.S3FileSystem(endpoint_url=endpoint_url, skip_instance_cache=True).mkdir(name)
    return name
