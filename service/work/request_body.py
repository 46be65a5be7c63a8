"""The body of a request for weights, and its digest. Unknown fields and values of another type are refused."""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from weightgen import __version__
from weightgen.canonical_json import encode_json
from weightgen.order import MAX_SHOTS, Order

MAX_SEED = 2**63 - 1
MAX_SAMPLES = 1024

OptionName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=67)]
"""The name of something registered, or up-<sha256> for an uploaded data set. Paths and URLs do not match."""


class GenerationRequestBody(BaseModel):
    """Weights of one architecture for the classes of one data set, from one generator."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        json_schema_extra={"examples": [{"generator": "mip", "architecture": "cnn-tiny", "dataset": "digits"}]},
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
        description="Sets of weights to make; only generators that sample can make more than one.",
    )
    fallback: bool = Field(
        default=True,
        description="Whether a reference that does better than the generated weights is returned in their place.",
    )

    target_accuracy: float | None = Field(
        default=None, ge=0, le=1, description="The accuracy to ask for, of a generator that can use it."
    )
    options: dict[OptionName, bool | int | float | str] = Field(
        default={},
        description="Options of the generator's method, by name; GET /v1/generators/{name} lists them.",
        max_length=32,
    )

    def order(self) -> Order:
        """The order, as every other way in gives it."""
        return Order(**self.model_dump(mode="json"))

    def canonical(self) -> dict[str, Any]:
        """The request as a job stores it, with every field."""
        return self.order().to_json()

    def digest(self, *, contents: Mapping[str, str]) -> str:
        """sha256 of everything that decides the answer, hex. Requests with equal digests share one job.

        `contents` is what the names stand for, from `Catalogue.check`.
        """
        parts = [self.canonical(), dict(contents), __version__]
        return hashlib.sha256(encode_json(parts, name="the request")).hexdigest()
