"""Runs a job: makes the weights that a request names, checks them at the gate and stores them as an artifact.

torch is imported when the first job runs. Generators, data sets and reference zoos stay in memory; the least recently
used go first. One generator works for one job at a time, because running a module with other weights swaps them in and
out of the module.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from service.artifacts.artifact_store import ArtifactStore
from service.jobs.runner import JobLost, Outcome, Progress, Task
from service.process.scratch import Scratch
from service.uploads.names import is_upload
from service.uploads.upload_store import Uploads
from service.work.contents import Contents
from service.work.size_limits import SizeLimits
from weightgen.errors import UnknownName, WeightgenError
from weightgen.method import Method
from weightgen.order import TERM_CHECKS, Order

if TYPE_CHECKING:
    from weightgen.labelled_data import LabelledData
    from weightgen.pipeline import Job, Made
    from weightgen.references.zoo import ReferenceZoo
    from weightgen.request import WeightGenerator

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

STAGES = ("load", "generate", "verify", "store")


def check_names(request: Mapping[str, Any]) -> None:
    """Raise UnknownName for a generator, architecture or data set that is not registered.

    Raises BadOption for an architecture with a size out of its range. Whether files exist is not checked, and neither
    are the names of uploaded data sets.
    """
    from model_zoo.architectures import make_module
    from model_zoo.data import list_data
    from model_zoo.released import RELEASED

    if request["generator"] not in RELEASED:
        raise UnknownName("generator", request["generator"], RELEASED)
    make_module(request["architecture"])
    if not is_upload(request["dataset"]) and request["dataset"] not in (known := list_data()):
        raise UnknownName("data set", request["dataset"], known)


def find_bad_term(request: Mapping[str, Any]) -> tuple[str, WeightgenError] | None:
    """The field of a request that its generator's method cannot honour, and the error that says why; None if all is
    well. The names have to be registered."""
    order, method = Order.from_json(request), method_of(request["generator"])
    for name, check in TERM_CHECKS.items():
        try:
            check(order, method)
        except WeightgenError as error:
            return name, error
    return None


@lru_cache(maxsize=64)
def method_of(generator: str) -> Method:
    """The method of a released generator."""
    from model_zoo.released import released_generator
    from weightgen.generators import method_of_file

    return method_of_file(released_generator(generator))


def import_libraries() -> None:
    """Import what requests and jobs need; otherwise the first of them waits seconds for it, and others with it."""
    for module in ("model_zoo.lookup", "weightgen.pipeline", "weightgen.evaluation.task_distance"):
        import_module(module)
    import_module("torch").set_num_threads(1)  # jobs run side by side, and small networks gain nothing from more


class Generation:
    """Runs canonical requests (`GenerationRequestBody.canonical`): a `service.jobs.runner.Run`."""

    def __init__(
        self,
        artifacts: ArtifactStore,
        uploads: Uploads,
        *,
        scratch: Path,
        max_generators: int,
        max_datasets: int,
        limits: SizeLimits | None = None,
    ) -> None:
        """`scratch`, a folder for unfinished work, must be on the same file system as the artifacts."""
        self._limits = limits
        self._artifacts, self._uploads, self._scratch, self._contents = artifacts, uploads, Scratch(scratch), Contents()
        self._generators: Loaded[tuple[Path, int], _Generator] = Loaded(_load_generator, max_generators)
        self._datasets: Loaded[tuple[str, str], LabelledData] = Loaded(self._load_data, max_datasets)
        self._references: Loaded[tuple[Path, str], ReferenceZoo] = Loaded(_load_references, max_generators)
        self._own = _Own(min(max_generators, max_datasets))

    def __call__(self, request: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """The result as JSON values: {artifact, repository, files, report, samples}.

        `samples` lists {artifact, repository, files, report} of every set of weights; the values of the first one are
        also at the top. Raises the library's WeightgenError.
        """
        (outcome,) = self.run_many([Task(request, progress)])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def group_of(self, request: Mapping[str, Any]) -> Hashable:
        """The group of a request: one pass of the generator is faster for several of a group. None: run it alone."""
        names = request["generator"], request["architecture"]
        try:
            is_joined = request["num_samples"] == 1 and _can_join(*names)
        except WeightgenError:
            return None  # it fails when it is run
        return (*names, request["support_per_class"]) if is_joined else None

    def run_many(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """The outcome of every task, in order; tasks of one generator are made together."""
        from weightgen.pipeline import make_weights_many

        begun = [self._begin(task) for task in tasks]
        made: dict[int, list[Made] | WeightgenError] = {}
        for generator in {id(each.generator): each.generator for each in begun if isinstance(each, _Begun)}.values():
            orders = {i: (each.job, each.order) for i, each in enumerate(begun) if isinstance(each, _Begun)
                      and each.generator is generator}  # fmt: skip
            tell = partial(self._tell_verify, [tasks[i] for i in orders])
            with generator.lock:
                found = make_weights_many(list(orders.values()), on_generated=tell)
            made.update(zip(orders, found, strict=True))
        for i, (task, each) in enumerate(zip(tasks, begun, strict=True)):
            yield self._end(task, made[i]) if isinstance(each, _Begun) else each

    def _tell_verify(self, tasks: Sequence[Task], places: Sequence[int]) -> None:
        for place in places:
            with suppress(JobLost):  # this job learns of it at its next stage; the others go on
                self._tell("verify", tasks[place].progress)

    def _begin(self, task: Task) -> "_Begun | Exception":
        """What a task asks for, loaded; or the error that prevents it."""
        request = task.request
        try:
            check_names(request)
            self._artifacts.refuse_when_full()
            self._tell("load", task.progress)
            job, generator = self._look_up(request)
            self._tell("generate", task.progress)
        except (WeightgenError, JobLost) as error:
            return error
        return _Begun(job, Order.from_json(request), generator)

    def _end(self, task: Task, made: "list[Made] | WeightgenError") -> Outcome:
        """Store the weights of a task and return its result."""
        if isinstance(made, WeightgenError):
            return made
        try:
            self._tell("store", task.progress)
            samples = [self._store(each) for each in made]
        except (WeightgenError, JobLost) as error:
            return error
        return {**samples[0], "samples": samples}

    def _store(self, made: "Made") -> dict[str, Any]:
        with self._scratch.new_place() as place:
            report = made.save(place)
            artifact = self._artifacts.add(place)
        del report["artifact"]  # its place in the scratch folder, where it is no longer
        files = [asdict(file) for file in self._artifacts.files(artifact)]
        return {"artifact": artifact, "repository": f"sha/{artifact}", "files": files, "report": report}

    def close(self) -> None:
        """Remove unfinished work; no job can run afterwards."""
        self._scratch.remove()

    def look_up(self, request: Mapping[str, Any]) -> "tuple[Job, threading.Lock]":
        """The loaded job of a canonical request, and the lock to hold while its generator works."""
        check_names(request)
        job, generator = self._look_up(request)
        return job, generator.lock

    def _tell(self, stage: str, progress: Progress) -> None:
        progress(stage, STAGES.index(stage), len(STAGES))

    def _look_up(self, request: Mapping[str, Any]) -> "tuple[Job, _Generator]":
        """The job for the names of a request, built as `model_zoo.lookup.look_up` builds it, and its generator."""
        from model_zoo.released import released_generator, released_references

        arch, file = request["architecture"], released_generator(request["generator"])
        generator = self._generators.get((file, file.stat().st_mtime_ns))
        data = self._find_data(request["dataset"])
        zoo = released_references(generator.generator.name, arch, data.in_channels) if data.in_channels else None
        references = self._references.get((zoo, self._contents.of_file(zoo))) if zoo else None
        job = self._own.jobs.get((generator, arch, data, references))
        if self._limits is not None:
            self._limits.check_task(num_classes=data.num_classes, support_per_class=request["support_per_class"])
            self._limits.check_network(arch, num_parameters=job.target.spec.num_parameters)
        return job, generator

    def _find_data(self, name: str) -> "LabelledData":
        """The data set with its present content, even if other content was loaded before; UnknownName if it is gone."""
        if is_upload(name):
            self._uploads.check(name)
            return self._datasets.get((name, name))
        return self._datasets.get((name, self._contents.of_dataset(name)))

    def _load_data(self, key: tuple[str, str]) -> "LabelledData":
        from model_zoo.data import load_data

        return self._uploads.load(key[0]) if is_upload(key[0]) else load_data(key[0])


class Loaded(Generic[Key, Value]):
    """Keeps what was loaded, at most `limit` things. If several threads ask at once, one loads and the others wait."""

    def __init__(self, load: Callable[[Key], Value], limit: int) -> None:
        self._load, self._limit = load, limit
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value:
        """The thing for `key`, loaded if need be. An error while loading is raised, and the next call tries again."""
        with self._lock:
            if key not in self._values:
                while len(self._values) >= self._limit:  # before loading: memory may not hold both
                    self._values.popitem(last=False)
                self._values[key] = self._load(key)
            self._values.move_to_end(key)
            return self._values[key]


@dataclass(frozen=True, eq=False)
class _Generator:
    generator: "WeightGenerator"
    sha256: str
    """sha256 of the generator's file, hex."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Own(threading.local):
    """The jobs of one thread; threads cannot share one, because its network holds the weights of one request."""

    def __init__(self, limit: int) -> None:
        self.jobs: Loaded[tuple[_Generator, str, LabelledData, ReferenceZoo | None], Job] = Loaded(_make_job, limit)


def _make_job(parts: "tuple[_Generator, str, LabelledData, ReferenceZoo | None]") -> "Job":
    from model_zoo.lookup import target_for
    from weightgen.pipeline import Job

    generator, arch, data, references = parts
    return Job(
        generator=generator.generator,
        generator_sha256=generator.sha256,
        data=data,
        target_for=partial(target_for, arch),
        references=references,
    )


@dataclass(frozen=True, eq=False)
class _Begun:
    """A task with everything that it needs loaded."""

    job: "Job"
    order: Order
    generator: _Generator


@lru_cache(maxsize=1024)
def _can_join(generator: str, architecture: str) -> bool:
    """Whether the generator can make several networks of the architecture in one pass.

    Raises UnknownName and BadOption as `check_names` does.
    """
    from model_zoo.architectures import make_module
    from weightgen.generators import class_of
    from weightgen.request import MakesMany
    from weightgen.target.side_by_side import can_run_side_by_side

    is_able = issubclass(class_of(method_of(generator)), MakesMany)
    return is_able and can_run_side_by_side(make_module(architecture).func)


def _load_generator(key: tuple[Path, int]) -> _Generator:
    from weightgen.files.storage import sha256_file
    from weightgen.generators import load_generator
    from weightgen.runtime.global_rng import borrowed_rng

    with borrowed_rng():  # a new module draws random numbers, and another job may be drawing too
        return _Generator(load_generator(key[0]), sha256_file(key[0]))


def _load_references(key: tuple[Path, str]) -> "ReferenceZoo":
    from weightgen.references.zoo import ReferenceZoo

    return ReferenceZoo.load(key[0])
