"""weightgen generate, compare: the main job and its scoreboard."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightgen.cli.output import JsonOption, print_json, print_table, say

if TYPE_CHECKING:
    from weightgen.generators.d2nwg.method import D2nwgOptions

GeneratorOption = Annotated[str, typer.Option(help="A released generator or a generator file.", metavar="NAME_OR_FILE")]
ArchOption = Annotated[str, typer.Option(help="The architecture of the target network.")]
DataOption = Annotated[str, typer.Option(help="A data set, a file or a folder of images.", metavar="NAME_OR_FILE")]
ShotsOption = Annotated[int, typer.Option("--support-per-class", help="Labelled examples of each class, 1 to 50.")]
SeedOption = Annotated[int, typer.Option(help="Decides which examples are drawn, and every other random number.")]

SchedulerOption = Annotated[str | None, typer.Option(help="For d2nwg: ddim, dpm or flow; dpm if not given.")]
StepsOption = Annotated[int | None, typer.Option(help="For d2nwg: steps of the scheduler; 2 if not given.")]
GuidanceOption = Annotated[
    float | None, typer.Option(help="For d2nwg: classifier-free guidance; 1, the condition as it is, if not given.")
]
RefinementsOption = Annotated[
    int | None,
    typer.Option(help="For d2nwg: steps of a sample along its loss on the examples; all learnt if not given."),
]


def generate(
    generator: GeneratorOption,
    arch: ArchOption,
    data: DataOption,
    out: Annotated[Path, typer.Option(help="The artifact folder to write.")],
    support_per_class: ShotsOption = 20,
    samples: Annotated[int, typer.Option(help="How many sets of weights to make.")] = 1,
    seed: SeedOption = 0,
    scheduler: SchedulerOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    refinements: RefinementsOption = None,
    target_accuracy: Annotated[
        float | None, typer.Option(help="For d2nwg: the accuracy to ask for, 0 to 1; none if not given.")
    ] = None,
    no_fallback: Annotated[
        bool, typer.Option("--no-fallback", help="Fail when a reference beats the generated weights.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make weights for labelled data, verify them, and write them as a folder that any Hub client loads."""
    from model_zoo.lookup import look_up
    from weightgen.pipeline import make_weights

    sampling = _sampling(scheduler, steps, guidance, refinements)
    say(f"loading {generator} and {data}")
    job = look_up(generator=generator, arch=arch, data=data)
    job = replace(job, sampling=sampling, target_accuracy=target_accuracy)
    say(f"making {samples} x {arch} for {job.data.num_classes} classes of {job.data.name}")
    made = make_weights(job, per_class=support_per_class, num_samples=samples, seed=seed, fallback=not no_fallback)
    folders = [out] if samples == 1 else [out / str(i) for i in range(samples)]
    reports = [one.save(folder) for one, folder in zip(made, folders, strict=True)]
    if as_json:
        print_json(reports[0] if samples == 1 else {"samples": reports})
        return
    for report in reports:
        print_table(_summarise(report))


def compare(
    generator: GeneratorOption,
    arch: ArchOption,
    data: DataOption,
    support_per_class: ShotsOption = 20,
    tasks: Annotated[int, typer.Option(help="Support sets to draw; what is printed is the mean.")] = 1,
    ways: Annotated[int | None, typer.Option(help="Random classes of each task; all of them if not given.")] = None,
    seed: SeedOption = 0,
    scheduler: SchedulerOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    refinements: RefinementsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score generated weights beside every reference with equal access to the same examples."""
    from model_zoo.lookup import look_up
    from weightgen.pipeline import compare_job

    sampling = _sampling(scheduler, steps, guidance, refinements)
    say(f"loading {generator} and {data}")
    job = replace(look_up(generator=generator, arch=arch, data=data), sampling=sampling)
    report = compare_job(job, per_class=support_per_class, tasks=tasks, ways=ways, seed=seed, say=say)
    if as_json:
        print_json(report)
        return
    scores = sorted(((v, name) for name, v in report["accuracy"].items() if v is not None), reverse=True)
    rows = [(name, f"{value:.1%}") for value, name in scores]
    rows += [(f"seconds to {name}", f"{report['seconds'][name]:.3f}") for name in ("generate", "scratch")]
    rows += [("note", note) for note in report["request"]["notes"]]
    print_table(rows, title=f"{arch} on {job.data.name}, accuracy on its test part")


def _sampling(
    scheduler: str | None, steps: int | None, guidance: float | None, refinements: int | None
) -> "D2nwgOptions | None":
    """What was asked for of sampling; None if nothing was."""
    from weightgen.generators.d2nwg.method import D2nwgOptions

    given = {"scheduler": scheduler, "steps": steps, "guidance": guidance, "refinements": refinements}
    chosen = {name: value for name, value in given.items() if value is not None}
    return D2nwgOptions(**chosen) if chosen else None


def _summarise(report: dict[str, Any]) -> list[tuple[str, Any]]:
    rows = [
        ("artifact", report["artifact"]),
        ("weights", f"{report['parameters']:,} of {report['arch']} for {report['classes']} classes"),
        ("source", report["source"] + (" (a reference did better)" if report["fell_back"] else "")),
        ("test accuracy", f"{report['accuracy']:.1%}"),
        ("verification", report["verification"]["sentence"]),
        ("seconds", f"{report['seconds']:.2f}"),
    ]
    return rows + [("note", note) for note in report["notes"]]
