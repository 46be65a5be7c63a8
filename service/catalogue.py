"""What can be asked for by name, and whether a request names only that. Importing it loads no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from service.problems import Problem
from weightgen.errors import BadOption, UnknownName


def _released_facts(name: str) -> dict[str, Any]:
    from model_zoo.released import released_facts

    return released_facts(name)


@dataclass(frozen=True)
class Catalogue:
    """The registries behind a service."""

    generators: Callable[[], Mapping[str, str]]
    """Name -> sha256 of its file."""
    architectures: Callable[[], list[str]]
    datasets: Callable[[], list[str]]
    check_names: Callable[[dict[str, Any]], None]
    """Raises UnknownName for a request that names what is not registered; BadOption for a size out of its range."""
    facts: Callable[[str], dict[str, Any]] = _released_facts
    """Of a generator in `generators`: {about, architectures, scoreboards}, as `benchmarks.generator_facts` says."""

    def check(self, request: dict[str, Any]) -> str:
        """The sha256 of the generator that a canonical request names; Problem says what could be asked for instead."""
        generators = self.generators()
        if request["generator"] not in generators:
            raise self._unknown("generator", UnknownName("generator", request["generator"], generators))
        try:
            self.check_names(request)
        except UnknownName as error:
            raise self._unknown("dataset" if error.kind == "data set" else error.kind, error) from error
        except BadOption as error:
            part = {"detail": str(error), "pointer": "#/architecture"}  # of the names only this one holds numbers
            raise Problem("invalid-request", str(error), errors=[part]) from error
        return generators[request["generator"]]

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
