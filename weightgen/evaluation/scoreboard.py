"""The scoreboard: accuracy of generated weights and of every reference, on the test part of the same data.

Every reference has equal access to data: it sees the same support set. If it has a trunk, it refits BatchNorm's
statistics and the class head on that set. Where the comparison is not even, it favours the references: training from
scratch and fine-tuning count at the learning rate that is best on the TEST part, and training from scratch also with or
without augmentation, whichever is better. The generated weights at step 0 get one try.

Keys that cannot be filled (no reference zoo, a generator without a trunk condition) are null, and a note says why.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from weightgen.condition import Condition, SupportSet
from weightgen.errors import BadOption
from weightgen.evaluation.novelty import copying_statistic, describe_nearest, error_overlap, find_nearest
from weightgen.evaluation.training import FinetuneConfig, ScratchConfig, ScratchRun, finetune, sweep_from_scratch
from weightgen.labelled_data import LabelledData, draw_support, select_classes
from weightgen.method import Options
from weightgen.references import task_embedding
from weightgen.references.default_init import DefaultInit, RandomTrunkRidge
from weightgen.references.noise import Noise
from weightgen.references.retrieval import Retrieval
from weightgen.references.soup import Soup
from weightgen.references.zoo import ReferenceZoo
from weightgen.references.zoo_mean import ZooMean
from weightgen.request import GenerationRequest, HasTrunkCondition, TaskEmbedding, WeightGenerator
from weightgen.spec import State
from weightgen.target.network import Target
from weightgen.target.predict import accuracy, predict
from weightgen.target.trunk import num_classes_of

ARMS = (
    "generated",
    "scratch",
    "default_init",
    "retrieval",
    "soup",
    "zoo_mean",
    "noise",
    "shuffled_condition",
    "unconditioned_trunk",
    "random_trunk_ridge",
)
CURVES = ("generated", "default_init", "retrieval")
TIMED_CALLS = 5


@dataclass(frozen=True)
class ScoreboardConfig:
    """How the comparison is made."""

    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    finetune_rates: tuple[float, ...] = (3e-4, 2e-3, 1e-2)
    """Each arm's curve uses the rate that is best at `judged_at` steps."""
    judged_at: int = 50
    sigma: float = 0.1
    """Size of the noise that the reference `noise` adds to the nearest trunk."""

    def __post_init__(self) -> None:
        if self.judged_at not in self.finetune.record_at or 0 not in self.finetune.record_at:
            raise BadOption(
                f"steps 0 and {self.judged_at} have to be recorded, record_at is {list(self.finetune.record_at)}"
            )
        if not self.finetune_rates:
            raise BadOption("no learning rate to fine-tune with, expected at least one")


def compare(
    generator: WeightGenerator,
    target: Target,
    data: LabelledData,
    *,
    per_class: int,
    seed: int,
    references: ReferenceZoo | None = None,
    options: Options | None = None,
    tasks: int = 1,
    ways: int | None = None,
    other: LabelledData | None = None,
    config: ScoreboardConfig | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The scoreboard of one generator on one data set, JSON values only; accuracies are fractions.

    With `tasks` > 1 every number is the mean over tasks, each with its own support set and, with `ways`, its own class
    subset of that size; `target` then has `ways` classes. The shuffled condition is a support set of `other` data if
    given, else that of another task, else the same images under other labels. `say` gets lines of progress.
    """
    config = config or ScoreboardConfig()
    say = say or (lambda _: None)
    subsets = _draw_subsets(data, tasks=tasks, ways=ways, seed=seed)
    _check_classes(target, ways or data.num_classes, data.name)
    drawn = [
        _Task(
            data=data if classes is None else select_classes(data, classes),
            support=draw_support(data, per_class, rng=torch.Generator().manual_seed(seed + i), classes=classes),
            classes=classes,
            seed=seed + i,
        )
        for i, classes in enumerate(subsets)
    ]
    notes = list(data.notes)
    zoo, embed = _usable_references(generator, target, references, notes)
    shuffled, how = _other_supports(drawn, other, per_class=per_class, seed=seed)
    switched_off = generator.without_condition() if isinstance(generator, HasTrunkCondition) else None
    if switched_off is None:
        notes.append("unconditioned_trunk is null: this generator has no trunk condition to switch off")
    scored = []
    for i, (task, elsewhere) in enumerate(zip(drawn, shuffled, strict=True)):
        say(f"task {i + 1} of {tasks}" if tasks > 1 else f"comparing on {data.name}")
        bench = _Bench(generator, target, task, options, config, say)
        scored.append(_score_task(bench, zoo=zoo, embed=embed, switched_off=switched_off, elsewhere=elsewhere))
    board = _merge(scored, zoo)
    board["request"] = {
        "generator": generator.name,
        "arch": target.spec.arch,
        "num_parameters": target.spec.num_parameters,
        "data": data.name,
        "data_sha256": data.digest(),
        "per_class": per_class,
        "tasks": tasks,
        "ways": ways,
        "num_classes": ways or data.num_classes,
        "seed": seed,
        "test_examples": [len(task.data.y_test) for task in drawn] if tasks > 1 else len(drawn[0].data.y_test),
        "shuffled_condition": how,
        "finetune_rates": list(config.finetune_rates),
        "scratch_rates": list(config.scratch.learning_rates),
        "notes": notes,
    }
    if tasks > 1:
        board["per_task"] = scored
    return board


@dataclass(frozen=True, eq=False)
class _Task:
    data: LabelledData
    support: SupportSet
    classes: list[int] | None
    seed: int


@dataclass(frozen=True, eq=False)
class _Bench:
    """One task and everything that stays the same while its arms are scored."""

    generator: WeightGenerator
    target: Target
    task: _Task
    options: Options | None
    config: ScoreboardConfig
    say: Callable[[str], None]

    @property
    def request(self) -> GenerationRequest:
        condition = Condition(support=self.task.support)
        return GenerationRequest(self.target, condition, seed=self.task.seed, options=self.options)

    def score(self, state: State) -> float:
        return accuracy(self.target, state, self.task.data.x_test, self.task.data.y_test)

    def find_errors(self, state: State) -> Tensor:
        return predict(self.target, state, self.task.data.x_test).argmax(1) != self.task.data.y_test


def _score_task(
    bench: _Bench,
    *,
    zoo: ReferenceZoo | None,
    embed: TaskEmbedding | None,
    switched_off: WeightGenerator | None,
    elsewhere: SupportSet,
) -> dict[str, Any]:
    """The scoreboard of one task."""
    request = bench.request
    state, seconds = _time_generation(bench.generator, request)
    shifted = replace(request, condition=Condition(support=elsewhere))
    states: dict[str, State | None] = dict.fromkeys(ARMS)
    states["generated"] = state
    states["shuffled_condition"] = bench.generator.generate(shifted)[0]
    states["unconditioned_trunk"] = switched_off.generate(request)[0] if switched_off is not None else None
    states["default_init"] = DefaultInit().generate(request)[0]
    states["random_trunk_ridge"] = RandomTrunkRidge().generate(request)[0]
    if zoo is not None and embed is not None:
        for reference in (
            Retrieval(zoo, embed=embed),
            Soup(zoo, embed=embed),
            ZooMean(zoo),
            Noise(zoo, embed=embed, sigma=bench.config.sigma),
        ):
            states[reference.name] = reference.generate(request)[0]
    bench.say("training from scratch, with and without augmentation")
    start = time.perf_counter()
    runs = sweep_from_scratch(bench.target, bench.task.support, bench.config.scratch, seed=bench.task.seed)
    sweep_seconds = time.perf_counter() - start
    # The quickest of equally accurate runs: generation is compared with its seconds.
    ranked = sorted(runs, key=lambda run: (-bench.score(run.state), run.seconds))
    states["scratch"] = ranked[0].state
    scores = {arm: bench.score(s) if s is not None else None for arm, s in states.items()}
    curve, rates = {}, {}
    for arm in CURVES:
        start_state = states[arm]
        curve[arm], rates[arm] = None, None
        if start_state is not None:
            bench.say(f"fine-tuning from {arm}")
            curve[arm], rates[arm] = _draw_curve(bench, start_state)
    return {
        "accuracy": scores,
        "seconds": {"generate": seconds, "scratch": ranked[0].seconds, "scratch_sweep": sweep_seconds},
        "curve": curve,
        "novelty": _measure_novelty(bench, state, zoo, ranked, states["retrieval"]),
        "details": {
            "classes": bench.task.classes,
            "finetune_rate": rates,
            "area_under_curve": {arm: _area(points) for arm, points in curve.items() if points is not None},
            "steps_to_scratch": {
                arm: next((int(step) for step, value in points.items() if value >= scores["scratch"]), None)
                for arm, points in curve.items()
                if points is not None
            },
            "scratch": {
                "learning_rate": ranked[0].learning_rate,
                "augmented": ranked[0].augmented,
                "steps": ranked[0].steps,
                "train_loss": ranked[0].train_loss,
            },
        },
    }


def _time_generation(generator: WeightGenerator, request: GenerationRequest) -> tuple[State, float]:
    """A generated state, and the median seconds of a call after a first one that warms up."""
    state, seconds = generator.generate(request)[0], []
    for _ in range(TIMED_CALLS):
        start = time.perf_counter()
        generator.generate(request)
        seconds.append(time.perf_counter() - start)
    return state, statistics.median(seconds)


def _draw_curve(bench: _Bench, state: State) -> tuple[dict[str, float], float]:
    """Accuracy after every recorded number of steps at the learning rate that is best at `judged_at`, and the rate."""
    config, best = bench.config, None
    for rate in config.finetune_rates:
        rng = torch.Generator().manual_seed(bench.task.seed)
        states = finetune(
            bench.target, state, bench.task.support, replace(config.finetune, learning_rate=rate), rng=rng
        )
        judged = bench.score(states[config.judged_at])
        if best is None or judged > best[0]:
            best = judged, rate, states
    assert best is not None
    judged, rate, states = best
    known = {config.judged_at: judged}
    return {str(step): known[step] if step in known else bench.score(s) for step, s in states.items()}, rate


def _area(points: Mapping[str, float]) -> float:
    """Mean accuracy over the steps of a curve, by straight lines between its points."""
    steps, values = [int(s) for s in points], list(points.values())
    pairs = zip(range(len(steps) - 1), range(1, len(steps)), strict=True)
    area = sum((steps[j] - steps[i]) * (values[i] + values[j]) / 2 for i, j in pairs)
    return area / (steps[-1] - steps[0]) if len(steps) > 1 else values[0]


def _measure_novelty(
    bench: _Bench,
    state: State,
    zoo: ReferenceZoo | None,
    scratch: Sequence[ScratchRun],
    nearest_refit: State | None,
) -> dict[str, Any] | None:
    """Distance of the generated trunk to trained ones, and the overlap of their errors.

    `error_iou` compares it with the retrieved trunk under a refitted head. `independent_error_iou` compares the two
    best networks trained from scratch, which share only the support set.
    """
    if zoo is None:
        return None
    nearest = find_nearest(zoo, bench.target, state)
    independent = None
    if len(scratch) > 1:
        independent = error_overlap(*(bench.find_errors(run.state) for run in scratch[:2]))
    overlap = None
    if nearest_refit is not None:
        overlap = error_overlap(bench.find_errors(state), bench.find_errors(nearest_refit))
    return {
        "nearest": describe_nearest(zoo, nearest),
        "distance": nearest.distance,
        "leave_one_out_median": float(zoo.leave_one_out.median()),
        "ratio": nearest.ratio,
        "z_u": copying_statistic([nearest.distance], zoo.leave_one_out.tolist()),
        "error_iou": overlap,
        "independent_error_iou": independent,
    }


def _merge(scored: list[dict[str, Any]], zoo: ReferenceZoo | None) -> dict[str, Any]:
    """Means over tasks, laid out like the scoreboard of one task, with their spread."""
    if len(scored) == 1:
        board = dict(scored[0])
    else:
        board = {
            "accuracy": _average([s["accuracy"] for s in scored]),
            "seconds": _average([s["seconds"] for s in scored]),
            "curve": {
                arm: _average([s["curve"][arm] for s in scored]) if scored[0]["curve"][arm] is not None else None
                for arm in CURVES
            },
            "spread": {
                arm: _describe_spread([s["accuracy"][arm] for s in scored])
                for arm in ARMS
                if scored[0]["accuracy"][arm] is not None
            },
        }
        board["novelty"] = None
        if zoo is not None:
            numbers = ("distance", "leave_one_out_median", "ratio", "error_iou", "independent_error_iou")
            board["novelty"] = _average([{key: s["novelty"][key] for key in numbers} for s in scored])
            distances = [s["novelty"]["distance"] for s in scored]
            board["novelty"]["z_u"] = copying_statistic(distances, zoo.leave_one_out.tolist())
    if zoo is None:
        board["novelty"] = {"reason": "there is no reference zoo for this architecture and generator"} | dict.fromkeys(
            ("nearest", "distance", "leave_one_out_median", "ratio", "z_u", "error_iou", "independent_error_iou")
        )
    return board


def _average(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Mean of each key over the rows that have a number for it."""
    found = {key: [row[key] for row in rows if row[key] is not None] for key in rows[0]}
    return {
        key: statistics.fmean(v for v in values if v is not None) if values else None for key, values in found.items()
    }


def _describe_spread(values: Sequence[float]) -> dict[str, float]:
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return {"sd": statistics.stdev(values), "median": statistics.median(values), "p10": tenths[0]}


def _draw_subsets(data: LabelledData, *, tasks: int, ways: int | None, seed: int) -> list[list[int] | None]:
    if not 1 <= tasks <= 10_000:
        raise BadOption(f"{tasks} tasks, expected 1 to 10000")
    if ways is None:
        return [None] * tasks
    if not 2 <= ways <= data.num_classes:
        raise BadOption(f"{ways} ways, expected 2 to the {data.num_classes} classes of {data.name!r}")
    rng = torch.Generator().manual_seed(seed)
    return [torch.randperm(data.num_classes, generator=rng)[:ways].tolist() for _ in range(tasks)]


def _check_classes(target: Target, num_classes: int, name: str) -> None:
    have = num_classes_of(target.spec)
    if have != num_classes:
        raise BadOption(f"the target network has {have} classes, the tasks of {name!r} have {num_classes}")


def _usable_references(
    generator: WeightGenerator, target: Target, references: ReferenceZoo | None, notes: list[str]
) -> tuple[ReferenceZoo | None, TaskEmbedding | None]:
    """The zoo and the embedding if references can be made from them; otherwise None, and a note says why."""
    embed, reason = task_embedding(generator, target.spec.arch, references)
    if references is None or embed is None:
        notes.append(f"retrieval, soup, zoo_mean and noise are null: {reason}")
        return None, None
    references.check(target)
    return references, embed


def _other_supports(
    drawn: Sequence[_Task], other: LabelledData | None, *, per_class: int, seed: int
) -> tuple[list[SupportSet], str]:
    """For every task the support set of another task with as many classes, and words that say where they come from."""
    num_classes = drawn[0].support.num_classes
    if other is not None:
        if other.num_classes < num_classes or other.x_train.shape[1:] != drawn[0].data.x_train.shape[1:]:
            raise BadOption(
                f"{other.name!r} has {other.num_classes} classes of shape {list(other.x_train.shape[1:])}; for the "
                f"shuffled condition expected at least {num_classes} of {list(drawn[0].data.x_train.shape[1:])}"
            )
        rng = torch.Generator().manual_seed(seed)
        subsets = [torch.randperm(other.num_classes, generator=rng)[:num_classes].tolist() for _ in drawn]
        supports = [draw_support(other, per_class, rng=rng, classes=classes) for classes in subsets]
        return supports, f"support sets of {other.name}"
    supports = [task.support for task in drawn]
    if len(drawn) > 1 and drawn[0].classes is not None:
        return supports[1:] + supports[:1], "the next task's support set"
    return [derange_labels(s, seed=seed) for s in supports], "the same images, every class under another class's label"


def derange_labels(support: SupportSet, *, seed: int) -> SupportSet:
    """Every class relabelled as another one, by a random cycle through all classes."""
    cycle = torch.randperm(support.num_classes, generator=torch.Generator().manual_seed(seed))
    renamed = torch.empty_like(cycle)
    renamed[cycle] = cycle.roll(1)
    return replace(support, labels=renamed[support.labels])
