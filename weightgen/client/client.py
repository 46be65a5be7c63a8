"""A client of the service: gets the weights that `weightgen generate` makes over HTTP, without loading torch.

client = weightgen.Client("http://127.0.0.1:8000")
result = client.generate(generator="mip", architecture="cnn-tiny", dataset="digits")
client.download(result, "out/digits")
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from weightgen.client.download import RemoteFile, download_artifact, parse_files
from weightgen.client.events import FINAL, follow
from weightgen.client.http import Connection, error_of_problem, object_in
from weightgen.client.upload import pack
from weightgen.errors import BadOption, ServiceFailed, WeightgenError
from weightgen.order import Order

if TYPE_CHECKING:
    import numpy as np

DEFAULT_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Sample:
    """One set of weights on the service."""

    artifact: str
    """sha256 of the canonical list of files."""
    repository: str
    """Name for Hub clients with HF_ENDPOINT=<url>/hf."""
    files: tuple[RemoteFile, ...]
    report: Mapping[str, Any]
    """Where the weights come from, how they were verified, their accuracy."""


@dataclass(frozen=True)
class Result:
    """What a job made: as many sets of weights as were asked for."""

    job: str
    """Id of the job; its name for Hub clients is job/<id>."""
    samples: tuple[Sample, ...]

    @property
    def artifact(self) -> str:
        """sha256 of the first sample's artifact; the other properties are the first sample's too."""
        return self.samples[0].artifact

    @property
    def repository(self) -> str:
        return self.samples[0].repository

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        return self.samples[0].files

    @property
    def report(self) -> Mapping[str, Any]:
        return self.samples[0].report


class Client:
    """A client of one service, for one thread. Every method raises WeightgenError with the server's message."""

    def __init__(self, url: str = DEFAULT_URL, key: str | None = None, *, patience_seconds: float = 120.0) -> None:
        """`patience_seconds` is how long the client retries a busy or lost server without progress."""
        self._connection = Connection(url, key, patience_seconds)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def generate(
        self,
        *,
        generator: str,
        architecture: str,
        dataset: str,
        support_per_class: int = 20,
        num_samples: int = 1,
        seed: int = 0,
        fallback: bool = True,
        target_accuracy: float | None = None,
        options: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> Result:
        """Ask for weights of an architecture for the classes of a data set, and wait for them.

        `options` are those of the generator's method, by name. Without `fallback`, VerificationFailed is raised if a
        reference does better. `progress` shows a bar on stderr.
        """
        order = Order(
            generator,
            architecture,
            dataset,
            support_per_class=support_per_class,
            num_samples=num_samples,
            seed=seed,
            fallback=fallback,
            target_accuracy=target_accuracy,
            options=options or {},
        )
        return self.submit(order, progress=progress)

    def submit(self, order: Order, *, progress: bool = True) -> Result:
        """What an order asks for, waited for; `progress` is a bar on stderr."""
        # One key for all attempts at this request: however often a broken connection makes us post it, it is one job.
        headers = {"Idempotency-Key": secrets.token_hex(16)}
        job = self._connection.ask("POST", "/v1/generations", json=order.to_json(), headers=headers)
        if object_in(job, "state", str) not in FINAL:
            job = self._wait_for(job, progress=progress)
        return _result_of(job)

    def estimate(self, order: Order) -> dict[str, Any]:
        """What an order would cost and bring: parameters, bytes, seconds, accuracy; null where nobody knows."""
        return self._connection.ask("POST", "/v1/estimate", json=order.to_json())

    def upload(
        self,
        data: "str | Path | Mapping[str, np.ndarray]",
        *,
        label: str | None = None,
        shape: str | None = None,
        progress: bool = True,
    ) -> dict[str, Any]:
        """Upload labelled data and return the service's description of it; pass its `name` as `dataset`.

        `data` is a file (.npz, .zip, .csv, .parquet), a folder of class folders of pictures, or arrays by name (x and
        y). For a table, `label` is the column of the classes, and `shape`, such as 28x28, is the shape of the images in
        the other columns.
        """
        options = {name: value for name, value in (("label", label), ("shape", shape)) if value is not None}
        with pack(data) as body:
            headers = {"Content-Type": body.media_type, "Content-Length": str(body.size)}
            content = body.content(progress=progress)
            return self._connection.ask("POST", "/v1/datasets", params=options, headers=headers, content=content)

    def download(self, result: Result | Sample | str, folder: str | Path, *, progress: bool = True) -> Path:
        """Download the files of a result, or of an artifact given by its sha256, into a new folder; return the folder.

        Several samples go into folders 0, 1, … inside it. Each is written whole or not at all. Every byte is checked
        against the artifact's sha256. If a download breaks off, what arrived is kept beside the folder, and the next
        attempt resumes it.
        """
        samples = result.samples if isinstance(result, Result) else (result,)
        for i, sample in enumerate(samples):
            place = Path(folder) / str(i) if len(samples) > 1 else Path(folder)
            artifact, files = (sample, None) if isinstance(sample, str) else (sample.artifact, sample.files)
            if files is None:
                _refuse_path("artifact", artifact)
                files = parse_files(artifact, self._connection.ask("GET", f"/v1/artifacts/{artifact}").get("files"))
            download_artifact(self._connection, artifact, files, place, progress=progress)
        return Path(folder)

    def generators(self) -> list[str]:
        """The names that `generator` takes."""
        listed = object_in(self._connection.ask("GET", "/v1/generators"), "generators", list)
        return [object_in(generator, "name", str) for generator in listed]

    def architectures(self) -> list[str]:
        """The names that `architecture` takes."""
        return object_in(self._connection.ask("GET", "/v1/architectures"), "architectures", list)

    def datasets(self) -> list[str]:
        """The names that `dataset` takes, besides those of uploads."""
        return object_in(self._connection.ask("GET", "/v1/datasets"), "datasets", list)

    def job(self, job_id: str) -> dict[str, Any]:
        """A job as the server describes it: state, progress, result or problem."""
        _refuse_path("job", job_id)
        return self._connection.ask("GET", f"/v1/jobs/{job_id}")

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job that is queued or running, and return it."""
        _refuse_path("job", job_id)
        return self._connection.ask("DELETE", f"/v1/jobs/{job_id}")

    def _wait_for(self, job: dict[str, Any], *, progress: bool) -> dict[str, Any]:
        job_id = object_in(job, "id", str)
        _refuse_path("job", job_id)
        with tqdm(total=1, desc="queued", disable=not progress, bar_format="{desc} {bar} {elapsed}") as bar:
            for job in follow(self._connection, job_id):
                reached = job.get("progress")
                if isinstance(reached, dict):
                    bar.total = max(object_in(reached, "total", int), 1)
                    bar.n = object_in(reached, "done", int)
                    bar.set_description_str(object_in(reached, "stage", str), refresh=False)
                if job["state"] == "succeeded":
                    bar.n = bar.total
                bar.refresh()
        return job


def _result_of(job: dict[str, Any]) -> Result:
    """The result of a job that has ended; raises the error for its problem if it failed."""
    job_id, state = object_in(job, "id", str), job.get("state")
    if state == "cancelled":
        raise WeightgenError(f"job {job_id} was cancelled; ask again")
    if state != "succeeded":
        problem = job.get("problem")
        raise error_of_problem(problem) if isinstance(problem, dict) else ServiceFailed(f"job {job_id} failed")
    result = object_in(job, "result", dict)
    samples = object_in(result, "samples", list)
    if not samples:
        raise ServiceFailed(f"job {job_id} succeeded without a result; is it of another version?")
    return Result(job_id, tuple(map(_parse_sample, samples)))


def _parse_sample(described: Any) -> Sample:
    artifact = object_in(described, "artifact", str)
    return Sample(
        artifact=artifact,
        repository=object_in(described, "repository", str),
        files=parse_files(artifact, object_in(described, "files", list)),
        report=object_in(described, "report", dict),
    )


def _refuse_path(kind: str, name: str) -> None:
    """Raise BadOption for a name that would lead to another route."""
    if not name.isascii() or not name.isalnum():
        raise BadOption(f"{name[:80]!r} is no name of a {kind}; expected letters and digits as the service gave them")
