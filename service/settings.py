"""The settings of the service: environment variables `WEIGHTGEN_<NAME>`, read when a Settings is made."""

import ipaddress
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from weightgen.errors import BadOption, UnknownName

PREFIX = "WEIGHTGEN_"
OTHERS = ("WEIGHTGEN_KEY", "WEIGHTGEN_SHARED", "WEIGHTGEN_URL")
"""Variables with this prefix that other parts of weightgen read."""
MIB = 2**20


def read_settings(**given: Any) -> "Settings":
    """The settings of the environment, with those `given` in place of its own.

    Raises UnknownName for a variable WEIGHTGEN_<NAME> that is no setting, and BadOption that lists every bad value.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for variable in sorted(os.environ):
        if variable.startswith(PREFIX) and variable not in known and variable not in OTHERS:
            raise UnknownName("setting", variable, known)
    try:
        return Settings(**given)
    except ValidationError as error:
        faults = (f"{PREFIX}{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in error.errors())
        raise BadOption("; ".join(faults)) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Settings(BaseSettings):
    """The service's settings. What is over a limit is refused, never clamped; the name of a limit says its unit."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    workers: int = Field(default=2, ge=1, le=64, description="Server processes; each serves requests and runs jobs.")
    data_dir: Path = Field(
        default=Path("runs/service"),
        description="Folder of the database, the artifacts and unfinished work; made if missing.",
    )
    database_url: str = Field(
        default="", description="SQLAlchemy URL of the job database; empty: the file jobs.sqlite in the data folder."
    )
    artifacts_url: str = Field(
        default="",
        description="Where artifacts and uploaded data sets lie: a folder or s3://<bucket>/<prefix>; empty: the data "
        "folder.",
    )
    s3_endpoint_url: str = Field(
        default="", description="URL of an S3 server other than Amazon's; boto finds the keys, as in AWS_ACCESS_KEY_ID."
    )
    insecure: bool = Field(
        default=False, description="Listen beyond loopback although there are no keys, and answer everybody."
    )

    max_queued_jobs: int = Field(default=256, ge=1, description="Jobs that may wait; the next one is refused.")
    max_queued_jobs_per_key: int = Field(
        default=64, ge=1, description="Jobs of one key that may wait; the next one is refused."
    )
    max_requests_per_key_per_minute: int = Field(
        default=600,
        ge=1,
        description="Requests that one key may make in a minute, over all processes; all of them may come at once.",
    )
    max_concurrent_requests_per_key: int = Field(
        default=32, ge=1, description="Requests of one key that one process answers at a time."
    )
    inline_seconds: float = Field(
        default=5.0, ge=0, le=9, description="How long a request waits for its result before it is answered with a job."
    )
    hub_seconds: float = Field(
        default=60.0,
        ge=0,
        description="How long a Hub client that asks what a repository holds waits for its weights: it asks only once.",
    )
    lease_seconds: float = Field(
        default=30.0, gt=0, description="How long a job stays with a process that gives no sign of life."
    )
    max_job_seconds: float = Field(
        default=3600.0, gt=0, description="How long a job may run; one that takes longer fails."
    )
    max_job_attempts: int = Field(
        default=3, ge=1, description="How often a job is started if its process dies each time."
    )
    runner_threads: int = Field(default=1, ge=0, le=64, description="Jobs that one process runs at a time; 0: none.")
    max_batch_jobs: int = Field(
        default=8, ge=1, le=64, description="Waiting jobs that one thread runs together, if their generator can."
    )
    max_samples: int = Field(default=8, ge=1, le=1024, description="Sets of weights that one request may ask for.")
    drain_seconds: float = Field(
        default=20.0, ge=0, le=20, description="How long a stopping process waits for its jobs; it still answers."
    )
    linger_seconds: float = Field(
        default=0.0,
        ge=0,
        le=20,
        description="How long a stopping process answers at least; /readyz says 503, so that load balancers leave it.",
    )
    keep_jobs_seconds: float = Field(
        default=30 * 86400.0, gt=0, description="How long a finished job is remembered after its last change."
    )

    keep_artifacts_seconds: float = Field(
        default=0,
        ge=0,
        description="How long an artifact is kept after it was last read or answered, at least 3600; 0: for ever.",
    )

    keep_datasets_seconds: float = Field(
        default=30 * 86400.0,
        ge=0,
        description="How long an uploaded data set is kept after its last use, at least 3600; 0: for ever.",
    )

    max_body_bytes: int = Field(default=1 * MIB, ge=1, description="Largest body of a request.")
    max_header_bytes: int = Field(default=16 * 1024, ge=1024, description="Headers of a request, all together.")
    max_request_seconds: float = Field(
        default=30.0, gt=0, le=3600, description="How long a request may take to arrive, its body included."
    )
    max_connections: int = Field(default=512, ge=1, description="Connections that one process has open at a time.")
    max_support_examples: int = Field(
        default=20_000, ge=1, description="Support examples of one request, over all classes."
    )
    max_parameters: int = Field(default=20_000_000, ge=1, description="Parameters of one generated network.")
    max_artifact_bytes: int = Field(default=1024 * MIB, ge=1, description="Largest artifact, all its files together.")
    max_cached_bytes: int = Field(
        default=16 * MIB,
        ge=0,
        description="Memory of one process for files that were read lately; one file takes at most a quarter of it.",
    )
    max_stored_bytes: int = Field(
        default=0, ge=0, description="Most bytes of all artifacts, and as many again of all uploads; 0: no limit."
    )
    max_loaded_generators: int = Field(default=4, ge=1, description="Generators that one process keeps in memory.")
    max_loaded_datasets: int = Field(default=2, ge=1, description="Data sets that one process keeps in memory.")

    max_upload_bytes: int = Field(default=64 * MIB, ge=1, description="Largest uploaded file.")
    max_uncompressed_bytes: int = Field(
        default=256 * MIB, ge=1, le=8192 * MIB, description="Size that an uploaded file may unpack to."
    )
    max_examples: int = Field(default=10_000, ge=4, description="Examples of an uploaded data set.")
    max_features: int = Field(default=4096, ge=1, description="Features of one uploaded example that is not an image.")
    max_classes: int = Field(default=1000, ge=2, description="Classes of a data set, uploaded or requested.")
    max_image_pixels: int = Field(default=2**24, ge=4, description="Height times width of an uploaded image.")
    max_archive_entries: int = Field(default=12_000, ge=1, description="Files and folders in an uploaded archive.")
    max_reading_seconds: int = Field(
        default=30, ge=1, description="Processor time that reading an uploaded file may take."
    )

    def location(self, kind: Literal["artifacts", "datasets"]) -> str:
        """The folder or URL of the store of artifacts or of uploaded data sets."""
        return f"{(self.artifacts_url or str(self.data_dir)).rstrip('/')}/{kind}"

    @field_validator("keep_artifacts_seconds", "keep_datasets_seconds")
    @classmethod
    def _keep_for_an_hour(cls, value: float) -> float:
        if 0 < value < 3600:  # use is noted only every few minutes, and a client needs time to read what it was given
            raise ValueError("expected 0 or at least 3600")
        return value

    @model_validator(mode="before")
    @classmethod
    def _place_database(cls, values: dict[str, object]) -> dict[str, object]:
        if not values.get("database_url"):
            folder = Path(str(values.get("data_dir") or cls.model_fields["data_dir"].default))
            values = {**values, "database_url": f"sqlite:///{folder.absolute() / 'jobs.sqlite'}"}
        return values
