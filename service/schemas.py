"""What is asked and answered over HTTP, in pydantic; unknown fields and values of another type are refused."""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from weightgen.canonical_json import encode_json

from service.jobs.job_store import Job, State
from weightgen import __version__

MAX_SEED = 2**63 - 1
MAX_SHOTS = 50
MAX_SAMPLES = 1024

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=67)]
"""Of something registered, or of an uploaded data set, up-<sha256>; a path or a URL is none."""
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Answered(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GenerationRequestBody(_Asked):
    """Weights of one architecture for the classes of one data set, from one generator."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"generator": "mip", "architecture": "cnn-tiny", "dataset": "digits"}]}
    )

    generator: Name = Field(description="A generator that GET /v1/generators lists.")
    architecture: Name = Field(
        description="An architecture that GET /v1/architectures lists; cnn and mlp take sizes, as in cnn-w16-d3."
    )
    dataset: Name = Field(description="A data set that GET /v1/datasets lists, or the name of an uploaded one.")
    support_per_class: int = Field(default=20, ge=1, le=MAX_SHOTS, description="Labelled examples of each class.")
    seed: int = Field(
        default=0, ge=0, le=MAX_SEED, description="Decides which examples are drawn, and every other random number."
    )
    num_samples: int = Field(
        default=1,
        ge=1,
        le=MAX_SAMPLES,
        description="Sets of weights to make; more than one from generators that sample.",
    )
    fallback: bool = Field(
        default=True,
        description="Whether a reference that does better than the generated weights is returned in their place.",
    )

    def canonical(self) -> dict[str, Any]:
        """The request as a job keeps it, every field present."""
        return self.model_dump(mode="json")

    def digest(self, *, contents: Mapping[str, str]) -> str:
        """sha256 of everything that decides the answer, hex: requests with one digest share one job.

        `contents` is what the names stand for (`Catalogue.check`).
        """
        parts = [self.canonical(), dict(contents), __version__]
        return hashlib.sha256(encode_json(parts, name="the request")).hexdigest()


class FileBody(_Answered):
    """One file of an artifact."""

    name: str
    sha256: Sha256
    size: int = Field(description="Bytes.")


class ArtifactBody(_Answered):
    """The files of an artifact; its name is the sha256 of their canonical list."""

    artifact: Sha256
    repository: str = Field(description="Its name for Hub clients with HF_ENDPOINT=<this server>/hf.")
    files: list[FileBody]


class SampleBody(ArtifactBody):
    """One set of weights."""

    report: dict[str, Any] = Field(description="Where the weights come from, how they were verified, their accuracy.")


class ResultBody(SampleBody):
    """What a job made: the first set of weights, and the list of all."""

    samples: list[SampleBody] = Field(description="Every set of weights, the first one included.")

    @model_validator(mode="before")
    @classmethod
    def _list_the_only_one(cls, result: Any) -> Any:
        is_single = isinstance(result, dict) and "samples" not in result  # written before there were more
        return {**result, "samples": [result]} if is_single else result


class ProblemPart(_Answered):
    """One thing that is wrong with a request."""

    detail: str
    pointer: str | None = Field(default=None, description="JSON pointer to the part of the body, as a URL fragment.")
    parameter: str | None = Field(default=None, description="The header, query or path parameter.")
    supported: list[str] | None = Field(default=None, description="What could be asked for instead.")


class ProblemBody(_Answered):
    """What went wrong, as application/problem+json (RFC 9457)."""

    type: str = Field(
        description="Stable; urn:weightgen:problem:<kind>.", examples=["urn:weightgen:problem:queue-full"]
    )
    title: str
    status: int
    detail: str
    errors: list[ProblemPart] = []


class ProgressBody(_Answered):
    """How far a job is."""

    stage: str
    done: int
    total: int


class JobBody(_Answered):
    """One accepted request and what became of it."""

    id: str
    state: State
    request: dict[str, Any]
    progress: ProgressBody | None = Field(default=None, description="null before a runner said anything.")
    result: ResultBody | None = Field(default=None, description="null unless the job has succeeded.")
    problem: ProblemBody | None = Field(default=None, description="null unless the job has failed.")
    attempt: int = Field(description="How often the job was begun.")
    created: float = Field(description="Seconds since the epoch.")
    updated: float = Field(description="Seconds since the epoch.")

    @classmethod
    def of(cls, job: Job) -> "JobBody":
        """The job as it is told."""
        told = {name: getattr(job, name) for name in cls.model_fields}
        return cls.model_validate({**told, "progress": job.progress or None})


class GeneratorBody(_Answered):
    """A released generator."""

    name: str
    sha256: Sha256 = Field(description="Of its file.")


class GeneratorsBody(_Answered):
    """What can be asked for as `generator`."""

    generators: list[GeneratorBody]


class ScoreboardBody(_Answered):
    """How well a generator did for one architecture on data sets that it never saw; accuracies are fractions."""

    architecture: str
    support_per_class: int
    accuracy: dict[str, dict[str, float]] = Field(description="By data set, then by what was scored there.")
    mean: dict[str, float] = Field(description="Over the data sets.")
    seconds: dict[str, float] = Field(description="Mean time to generate, and to train from scratch.")


class GeneratorFactsBody(GeneratorBody):
    """A released generator, what it serves and how well."""

    about: str
    architectures: list[str] | None = Field(description="It makes weights for these; null: for any.")
    scoreboards: list[ScoreboardBody]


class ArchitecturesBody(_Answered):
    """What can be asked for as `architecture`."""

    architectures: list[str]


class DatasetsBody(_Answered):
    """What can be asked for as `dataset`."""

    datasets: list[str]


class BandBody(_Answered):
    """Between which values a fraction is expected."""

    low: float
    high: float


class BasisBody(_Answered):
    """Where each estimate comes from, or why it is null, a sentence each."""

    seconds: str
    accuracy: str
    out_of_distribution: str


class EstimateBody(_Answered):
    """What a generation would give; null where that is not known."""

    parameters: int = Field(description="Numbers of one network.")
    bytes: int = Field(description="Of all tensors of all samples; a file adds a header of a few thousand.")
    seconds: float | None = Field(description="To make and verify the weights, without waiting.")
    accuracy: BandBody | None = Field(description="Expected on the data set's test part, a fraction.")
    out_of_distribution: bool | None = Field(
        description="Whether the task is unlike all that the generator learnt from, by the generator's own embedding."
    )
    basis: BasisBody


class ClassBody(_Answered):
    """One class of a data set."""

    name: str
    train: int = Field(description="Examples in the train part.")
    test: int = Field(description="Examples in the test part.")


class DatasetBody(_Answered):
    """A data set as a generator gets it."""

    name: str
    origin: Literal["registered", "uploaded"]
    kind: Literal["images", "features"]
    num_classes: int
    classes: list[ClassBody]
    examples: int
    train: int = Field(description="Examples in the train part.")
    test: int = Field(description="Examples in the test part.")
    shape: list[int] = Field(description="Of one example: channels, height and width of images, or how many features.")
    dtype: str
    notes: list[str] = Field(description="What was done to the data on the way in.")


class StatusBody(_Answered):
    """Whether the server is well."""

    status: str


class VersionBody(_Answered):
    """Which version answers."""

    weightgen: str
