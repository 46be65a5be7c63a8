"""What tests of the page in a browser share: a server of its own process, and pages that are watched."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from sklearn.datasets import load_digits

from tests.helpers.paths import ROOT

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 60_000
"""How long Playwright waits for what is expected: importing torch on a busy machine takes a while."""


@dataclass
class Visit:
    """A page in the browser, and what it was answered that it should not have been."""

    page: Any
    base: str
    may_refuse: set[int] = field(default_factory=set)
    """Statuses of 400 and more that the test is about."""
    faults: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("console", lambda m: self.faults.append(m.text) if _is_fault(m) else None)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", self._check_host)
        self.page.on("response", self._check_status)

    def _check_host(self, request: Any) -> None:
        if not request.url.startswith((self.base, "blob:" + self.base)):
            self.faults.append(f"asked {request.url}")

    def _check_status(self, response: Any) -> None:
        if response.status >= 400 and response.status not in self.may_refuse:
            self.faults.append(f"{response.url} answered {response.status}")


def _is_fault(message: Any) -> bool:
    return message.type in ("error", "warning") and not message.text.startswith("Failed to load resource")


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server of its own process, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {"WEIGHTGEN_DATA_DIR": str(folder), "WEIGHTGEN_PORT": str(port), "WEIGHTGEN_WORKERS": "1"}
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "service"], cwd=ROOT, env=os.environ | settings, stderr=log, stdout=log
        )
    try:
        while server.poll() is None:
            try:
                httpx.get(f"http://127.0.0.1:{port}/readyz").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.05)
        assert server.poll() is None, (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def choose(page: Any, **request: Any) -> None:
    """Fill the form in."""
    for name, value in request.items():
        if name == "dataset":
            page.select_option("#dataset", value)
        elif name in ("architecture", "generator"):
            page.locator(f"label:has(input[name={name}][value={value}])").click()
        else:
            page.fill(f"#{name}", str(value))


def ask_for(page: Any, **request: Any) -> None:
    """Ask for weights and wait until they are shown."""
    choose(page, **request)
    page.click("#generate")
    page.wait_for_selector("#snippet:not(:empty)")


def read_job(page: Any, base: str) -> dict[str, Any]:
    job = re.search(r"#job=(\w+)$", page.url)
    assert job
    return httpx.get(f"{base}/v1/jobs/{job[1]}").json()


def make(base: str, request: dict[str, Any]) -> dict[str, Any]:
    """The job of a request, made without the page, once it has succeeded."""
    job = httpx.post(f"{base}/v1/generations", json=request, timeout=60).json()
    while job["state"] in ("queued", "running"):
        job = httpx.get(f"{base}/v1/jobs/{job['id']}").json()
    assert job["state"] == "succeeded", job
    return job


def overflows(page: Any) -> bool:
    return page.evaluate("document.documentElement.scrollWidth > innerWidth")


def write_upload(path: Path, *, faulty: bool = False) -> Path:
    """scikit-learn's digits in colour as an .npz; labels are too few if `faulty`."""
    digits: Any = load_digits()
    x = np.stack([(digits.images * 15).astype(np.uint8)] * 3, axis=-1)
    np.savez(path, x=x, y=digits.target[1:] if faulty else digits.target)
    return path
