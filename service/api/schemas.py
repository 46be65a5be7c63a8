"""The JSON objects that the API answers with. The body of a request is in `service.work.request_body`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.jobs.job_store import Job, State

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Answered(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileBody(_Answered):
    """One file of an artifact."""

    name: str
    sha256: Sha256
    size: int = Field(description="Bytes.")


class ArtifactBody(_Answered):
    """The files of an artifact. The artifact is named by the sha256 of their canonical list."""

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
        is_single = isinstance(result, dict) and "samples" not in result  # stored by a version that made one sample
        return {**result, "samples": [result]} if is_single else result


class ProblemPart(_Answered):
    """One thing that is wrong with a request."""

    detail: str
    pointer: str | None = Field(default=None, description="JSON pointer to the part of the body, as a URL fragment.")
    parameter: str | None = Field(default=None, description="The header, query or path parameter.")
    supported: list[str] | None = Field(default=None, description="The names that exist.")


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
    progress: ProgressBody | None = Field(default=None, description="null until a runner reports it.")
    result: ResultBody | None = Field(default=None, description="null unless the job has succeeded.")
    problem: ProblemBody | None = Field(default=None, description="null unless the job has failed.")
    attempt: int = Field(description="How often the job was started.")
    created: float = Field(description="Seconds since the epoch.")
    updated: float = Field(description="Seconds since the epoch.")

    @classmethod
    def of(cls, job: Job) -> "JobBody":
        """The body for a job."""
        told = {name: getattr(job, name) for name in cls.model_fields}
        return cls.model_validate({**told, "progress": job.progress or None})


class GeneratorBody(_Answered):
    """A released generator."""

    name: str
    sha256: Sha256 = Field(description="sha256 of the generator's file.")


class GeneratorsBody(_Answered):
    """The names that a request can give as `generator`."""

    generators: list[GeneratorBody]


class ScoreboardBody(_Answered):
    """How well a generator did for one architecture on data sets that it never saw; accuracies are fractions."""

    architecture: str
    support_per_class: int
    accuracy: dict[str, dict[str, float]] = Field(description="Accuracy by data set, then by method.")
    mean: dict[str, float] = Field(description="Mean accuracy over the data sets, by method.")
    seconds: dict[str, float] = Field(description="Mean time to generate, and to train from scratch.")


class OptionBody(_Answered):
    """One option of a method."""

    name: str
    kind: Literal["int", "float", "str", "bool"]
    default: int | float | str | bool | None = Field(
        description="null: leaving it out means something that no value says."
    )
    help: str
    low: float | None = Field(description="The least allowed value; null: none.")
    high: float | None = Field(description="The greatest allowed value; null: none.")
    choices: list[str] = Field(description="The allowed words; empty: any.")


class MethodBody(_Answered):
    """What a method has to be given, what it can use, and its own options."""

    name: str
    title: str
    needs: list[str] = Field(description="Parts of a request without which it makes nothing.")
    uses: list[str] = Field(description="Parts of a request that it can use besides.")
    samples: bool = Field(description="Whether num_samples may be more than 1.")
    options: list[OptionBody]


class GeneratorFactsBody(GeneratorBody):
    """A released generator, what it serves and how well."""

    about: str
    method: MethodBody
    architectures: list[str] | None = Field(description="Architectures that it makes weights for; null: any.")
    scoreboards: list[ScoreboardBody]


class ArchitecturesBody(_Answered):
    """The names that a request can give as `architecture`."""

    architectures: list[str]


class DatasetsBody(_Answered):
    """The names that a request can give as `dataset`, without uploaded data sets."""

    datasets: list[str]


class BandBody(_Answered):
    """The lowest and the highest value to expect of a fraction."""

    low: float
    high: float


class BasisBody(_Answered):
    """One sentence for each estimate: where it comes from, or why it is null."""

    seconds: str
    accuracy: str
    out_of_distribution: str


class EstimateBody(_Answered):
    """What a generation would give; null where that is not known."""

    parameters: int = Field(description="Parameters of one network.")
    bytes: int = Field(
        description="Size of all tensors of all samples; each file adds a header of a few thousand bytes."
    )
    seconds: float | None = Field(description="Time to make and verify the weights, without the time in the queue.")
    accuracy: BandBody | None = Field(description="Expected on the data set's test part, a fraction.")
    out_of_distribution: bool | None = Field(
        description="Whether the task is unlike all training tasks of the generator, by the generator's own embedding."
    )
    basis: BasisBody


class ClassBody(_Answered):
    """One class of a data set."""

    name: str
    train: int = Field(description="Examples in the train part.")
    test: int = Field(description="Examples in the test part.")


class DatasetBody(_Answered):
    """A data set in the form that a generator gets."""

    name: str
    origin: Literal["registered", "uploaded"]
    kind: Literal["images", "features"]
    num_classes: int
    classes: list[ClassBody]
    examples: int
    train: int = Field(description="Examples in the train part.")
    test: int = Field(description="Examples in the test part.")
    shape: list[int] = Field(
        description="One example: channels, height and width of an image, or the number of features."
    )
    dtype: str
    notes: list[str] = Field(description="What was done to the data on the way in.")


class StatusBody(_Answered):
    """Whether the server is well."""

    status: str


class VersionBody(_Answered):
    """Which version answers."""

    weightgen: str
