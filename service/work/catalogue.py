"""What a request can name, and the check that it names nothing else. Importing this loads no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from service.errors import OverLimit
from service.problems import Problem, problem_of
from service.uploads.names import is_upload
from service.uploads.upload_store import Uploads
from service.work.contents import Contents
from service.work.generation import check_names, find_bad_term, method_of
from service.work.size_limits import SizeLimits
from weightgen.errors import BadOption, UnknownName, UnsupportedTask, WeightgenError


def _released_facts(name: str) -> dict[str, Any]:
    from model_zoo.released import released_facts

    return {**released_facts(name), "method": method_of(name).to_json()}


_CONTENTS = Contents()


def _registered_contents(request: dict[str, Any]) -> dict[str, str]:
    contents = {"references": _CONTENTS.of_references(request["generator"], request["architecture"])}
    if not is_upload(request["dataset"]):
        contents["dataset"] = _CONTENTS.of_dataset(request["dataset"])
    return contents


def _describe_registered(name: str) -> dict[str, Any]:
    from model_zoo.data import list_data

    if name not in (known := list_data()):
        raise UnknownName("data set", name, known)
    return _describe_loaded(name, _CONTENTS.of_dataset(name))


@lru_cache(maxsize=64)
def _describe_loaded(name: str, contents: str) -> dict[str, Any]:
    from model_zoo.data import load_data
    from service.uploads.upload_data import describe_data

    return describe_data(load_data(name))


@lru_cache(maxsize=256)
def _fewest_parameters(arch: str) -> int:
    from model_zoo.architectures import make_meta, make_module

    try:
        make = make_module(arch, num_classes=2, in_features=1)
    except BadOption:  # it takes images
        make = make_module(arch, num_classes=2)
    return sum(parameter.numel() for parameter in make_meta(make).parameters())


@dataclass(frozen=True)
class Catalogue:
    """The registries behind a service."""

    generators: Callable[[], Mapping[str, str]]
    """Name -> sha256 of the generator's file."""
    architectures: Callable[[], list[str]]
    datasets: Callable[[], list[str]]
    check_names: Callable[[dict[str, Any]], None]
    """Raises UnknownName for a name that is not registered, and BadOption for a size out of its range.

    Uploaded data sets are not checked.
    """
    find_bad_term: Callable[[dict[str, Any]], tuple[str, WeightgenError] | None] = lambda request: None
    """The field of a request with registered names that the generator's method cannot honour, and why."""
    facts: Callable[[str], dict[str, Any]] = _released_facts
    """Generator -> {about, method, architectures, scoreboards}, see `benchmarks.reports.generator_facts`."""
    contents: Callable[[dict[str, Any]], dict[str, str]] = _registered_contents
    """sha256 of a request's reference zoos and data set as they are now; an uploaded one has it in its name."""
    describe: Callable[[str], dict[str, Any]] = _describe_registered
    """A registered data set as `service.uploads.upload_data.describe_data` describes it; UnknownName if unknown."""
    uploads: Uploads | None = None
    limits: SizeLimits | None = None
    fewest_parameters: Callable[[str], int] = _fewest_parameters
    """The fewest parameters that a network of an architecture can have, for any data."""

    def check(self, request: dict[str, Any]) -> dict[str, str]:
        """sha256 of what each name of a canonical request stands for now; Problem lists the names that exist."""
        generators = self.generators()
        if request["generator"] not in generators:
            raise self._unknown("generator", UnknownName("generator", request["generator"], generators))
        try:
            self.check_names(request)
            if self.uploads is not None and is_upload(request["dataset"]):
                self.uploads.check(request["dataset"])
            self._check_size(request)
        except OverLimit as error:
            raise problem_of(error) from error
        except UnknownName as error:
            raise self._unknown("dataset" if error.kind == "data set" else error.kind, error) from error
        except BadOption as error:
            part = {"detail": str(error), "pointer": "#/architecture"}  # only this name has a size in it
            raise Problem("invalid-request", str(error), errors=[part]) from error
        if (bad := self.find_bad_term(request)) is not None:
            field, error = bad
            kind = "unsupported" if isinstance(error, UnsupportedTask) else "invalid-request"
            part = {"detail": str(error), "pointer": f"#/{field}"}
            raise Problem(kind, str(error), errors=[part]) from error
        return {"generator": generators[request["generator"]], **self.contents(request)}

    def _check_size(self, request: dict[str, Any]) -> None:
        """Raise OverLimit if a request is too large, as far as is known without its data; the job checks the rest."""
        if self.limits is None:
            return
        arch, name = request["architecture"], request["dataset"]
        self.limits.check_network(arch, num_parameters=self.fewest_parameters(arch))
        if self.uploads is not None and is_upload(name):
            num_classes = self.uploads.describe(name)["num_classes"]
            self.limits.check_task(num_classes=num_classes, support_per_class=request["support_per_class"])

    def _unknown(self, field: str, error: UnknownName) -> Problem:
        known = {"generator": self.generators, "architecture": self.architectures, "dataset": self.datasets}
        part = {"detail": str(error), "pointer": f"#/{field}", "supported": sorted(known[field]())}
        return Problem("unknown-name", str(error), errors=[part])


def registered() -> Catalogue:
    """The released generators, the registered architectures and the data sets found here."""

    def architectures() -> list[str]:
        from model_zoo.architectures import ARCHITECTURES

        return sorted(ARCHITECTURES)

    def datasets() -> list[str]:
        from model_zoo.data import list_data

        return list_data()

    return Catalogue(_released_generators, architectures, datasets, check_names, find_bad_term)


def _released_generators() -> dict[str, str]:
    from model_zoo.released import RELEASED, expected_hashes

    hashes = expected_hashes()
    return {name: hashes[file] for name, file in sorted(RELEASED.items()) if file in hashes}
