"""What a job does: names become weights that passed the gate, kept as an artifact. torch is imported when one runs.

Generators, data sets and reference zoos stay in memory, the least recently used go first. One generator makes weights
for one job at a time: running a module with other weights swaps them in and out of it.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from service.artifacts import ArtifactStore
from service.contents import Contents
from service.runner import Progress
from service.scratch import Scratch
from service.uploads import Uploads, is_upload
from weightgen.errors import UnknownName

if TYPE_CHECKING:
    from weightgen.generator import WeightGenerator
    from weightgen.labelled_data import LabelledData
    from weightgen.pipeline import Job
    from weightgen.reference_zoo import ReferenceZoo

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

STAGES = ("load", "generate", "store")


def check_names(request: Mapping[str, Any]) -> None:
    """Raise UnknownName for a generator, architecture or data set that is not registered, whatever files there are.

    An architecture with a size out of its range raises BadOption. The names of uploaded data sets are let through.
    """
    from model_zoo.architectures import make_module
    from model_zoo.data import list_data
    from model_zoo.released import RELEASED

    if request["generator"] not in RELEASED:
        raise UnknownName("generator", request["generator"], RELEASED)
    make_module(request["architecture"])
    if not is_upload(request["dataset"]) and request["dataset"] not in (known := list_data()):
        raise UnknownName("data set", request["dataset"], known)


class Generation:
    """Runs canonical requests (`GenerationRequestBody.canonical`): a `service.runner.Run`."""

    def __init__(
        self, artifacts: ArtifactStore, uploads: Uploads, *, scratch: Path, max_generators: int, max_datasets: int
    ) -> None:
        """`scratch`, a folder for unfinished work, has to lie on the file system of the artifacts."""
        self._artifacts, self._uploads, self._scratch, self._contents = artifacts, uploads, Scratch(scratch), Contents()
        self._generators: Loaded[tuple[Path, int], _Generator] = Loaded(_load_generator, max_generators)
        self._datasets: Loaded[tuple[str, str], LabelledData] = Loaded(self._load_data, max_datasets)
        self._references: Loaded[tuple[Path, str], ReferenceZoo] = Loaded(_load_references, max_generators)

    def __call__(self, request: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """{artifact, repository, files, report}, JSON values; raises whatever of WeightgenError the library raises."""
        from weightgen.pipeline import make_weights

        check_names(request)
        self._artifacts.refuse_when_full()
        self._tell("load", progress)
        job, lock = self._look_up(request)
        self._tell("generate", progress)
        with lock:
            made = make_weights(
                job,
                per_class=request["support_per_class"],
                num_samples=request["num_samples"],
                seed=request["seed"],
                fallback=request["fallback"],
            )
        self._tell("store", progress)
        with self._scratch.new_place() as place:
            report = made[0].save(place)
            artifact = self._artifacts.add(place)
        del report["artifact"]  # where it was written before it was added
        files = [asdict(file) for file in self._artifacts.files(artifact)]
        return {"artifact": artifact, "repository": f"sha/{artifact}", "files": files, "report": report}

    def close(self) -> None:
        """Remove unfinished work; nothing can be made any more."""
        self._scratch.remove()

    def look_up(self, request: Mapping[str, Any]) -> "tuple[Job, threading.Lock]":
        """What a canonical request names, loaded, and the lock to hold while its generator works."""
        check_names(request)
        return self._look_up(request)

    def _tell(self, stage: str, progress: Progress) -> None:
        progress(stage, STAGES.index(stage), len(STAGES))

    def _look_up(self, request: Mapping[str, Any]) -> "tuple[Job, threading.Lock]":
        """The job that the names mean, as `model_zoo.lookup.look_up` builds it, and the lock of its generator."""
        from model_zoo.lookup import target_for
        from model_zoo.released import released_generator, released_references
        from weightgen.pipeline import Job

        arch, file = request["architecture"], released_generator(request["generator"])
        generator = self._generators.get((file, file.stat().st_mtime_ns))
        data = self._find_data(request["dataset"])
        zoo = released_references(generator.generator.name, arch, data.in_channels) if data.in_channels else None
        job = Job(
            generator=generator.generator,
            generator_sha256=generator.sha256,
            data=data,
            target_for=partial(target_for, arch),
            references=self._references.get((zoo, self._contents.of_file(zoo))) if zoo else None,
        )
        return job, generator.lock

    def _find_data(self, name: str) -> "LabelledData":
        """The data set as it is now, whether or not another was loaded under its name; UnknownName if it is gone."""
        if is_upload(name):
            self._uploads.check(name)
            return self._datasets.get((name, name))
        return self._datasets.get((name, self._contents.of_dataset(name)))

    def _load_data(self, key: tuple[str, str]) -> "LabelledData":
        from model_zoo.data import load_data

        return self._uploads.load(key[0]) if is_upload(key[0]) else load_data(key[0])


class Loaded(Generic[Key, Value]):
    """Things loaded once and kept, at most `limit` of them; of several threads that ask one loads, the others wait."""

    def __init__(self, load: Callable[[Key], Value], limit: int) -> None:
        self._load, self._limit = load, limit
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value:
        """What `key` stands for; raises what loading it raises, and tries again the next time."""
        with self._lock:
            if key not in self._values:
                while len(self._values) >= self._limit:  # before loading: the two may not fit together
                    self._values.popitem(last=False)
                self._values[key] = self._load(key)
            self._values.move_to_end(key)
            return self._values[key]


@dataclass(frozen=True, eq=False)
class _Generator:
    generator: "WeightGenerator"
    sha256: str
    """Of its file."""
    lock: threading.Lock = field(default_factory=threading.Lock)


def _load_generator(key: tuple[Path, int]) -> _Generator:
    from weightgen.generators import load_generator
    from weightgen.global_rng import borrowed_rng
    from weightgen.storage import sha256_file

    with borrowed_rng():  # modules draw when they are made, and another job may be drawing
        return _Generator(load_generator(key[0]), sha256_file(key[0]))


def _load_references(key: tuple[Path, str]) -> "ReferenceZoo":
    from weightgen.reference_zoo import ReferenceZoo

    return ReferenceZoo.load(key[0])
