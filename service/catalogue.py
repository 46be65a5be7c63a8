"""What can be asked for by name, and whether a request names only that. Importing it loads no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from service.contents import Contents
from service.problems import Problem, problem_of
from service.size_limits import OverLimit, SizeLimits
from service.uploads.upload_store import Uploads, is_upload
from weightgen.errors import BadOption, UnknownName


def _released_facts(name: str) -> dict[str, Any]:
    from model_zoo.released import released_facts

    return released_facts(name)


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
    """Name -> sha256 of its file."""
    architectures: Callable[[], list[str]]
    datasets: Callable[[], list[str]]
    check_names: Callable[[dict[str, Any]], None]
    """Raises UnknownName for a request that names what is not registered; BadOption for a size out of its range.

    Nothing is said of an uploaded data set.
    """
    facts: Callable[[str], dict[str, Any]] = _released_facts
    """Of a generator in `generators`: {about, architectures, scoreboards}, as `benchmarks.reports.generator_facts` says."""
    contents: Callable[[dict[str, Any]], dict[str, str]] = _registered_contents
    """What the data set and the reference zoo of a request stand for now, where its names do not say it."""
    describe: Callable[[str], dict[str, Any]] = _describe_registered
    """Of a registered data set, what `service.uploads.upload_data.describe_data` says; UnknownName if there is none."""
    uploads: Uploads | None = None
    limits: SizeLimits | None = None
    fewest_parameters: Callable[[str], int] = _fewest_parameters
    """Of an architecture, for whatever data."""

    def check(self, request: dict[str, Any]) -> dict[str, str]:
        """What the names of a canonical request stand for now; Problem says what could be asked for instead."""
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
            part = {"detail": str(error), "pointer": "#/architecture"}  # of the names only this one holds numbers
            raise Problem("invalid-request", str(error), errors=[part]) from error
        return {"generator": generators[request["generator"]], **self.contents(request)}

    def _check_size(self, request: dict[str, Any]) -> None:
        """Raise OverLimit for what is known to be too large without loading any data; the job looks at the rest."""
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

    def check_names(request: dict[str, Any]) -> None:
        from service.generation import check_names

        check_names(request)

    return Catalogue(_released_generators, architectures, datasets, check_names)


def _released_generators() -> dict[str, str]:
    from model_zoo.released import RELEASED, expected_hashes

    hashes = expected_hashes()
    return {name: hashes[file] for name, file in sorted(RELEASED.items()) if file in hashes}
