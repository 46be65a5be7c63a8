"""weightgen generate, compare: the main job and its scoreboard."""

from pathlib import Path
from typing import Annotated, Any

import typer

from weightgen.cli.options import takes_method_options
from weightgen.cli.output import JsonOption, print_json, print_table, say
from weightgen.order import Order

GeneratorOption = Annotated[str, typer.Option(help="A released generator or a generator file.", metavar="NAME_OR_FILE")]
ArchOption = Annotated[str, typer.Option(help="The architecture of the target network.")]
DataOption = Annotated[str, typer.Option(help="A data set, a file or a folder of images.", metavar="NAME_OR_FILE")]
ShotsOption = Annotated[int, typer.Option("--support-per-class", help="Labelled examples of each class, 1 to 50.")]
SeedOption = Annotated[int, typer.Option(help="Decides which examples are drawn, and every other random number.")]

AccuracyOption = Annotated[
    float | None, typer.Option(help="The accuracy to ask for, 0 to 1, if the generator can use it.")
]


@takes_method_options
def generate(
    generator: GeneratorOption,
    arch: ArchOption,
    data: DataOption,
    out: Annotated[Path, typer.Option(help="The artifact folder to write.")],
    support_per_class: ShotsOption = 20,
    samples: Annotated[int, typer.Option(help="How many sets of weights to make.")] = 1,
    seed: SeedOption = 0,
    target_accuracy: AccuracyOption = None,
    no_fallback: Annotated[
        bool, typer.Option("--no-fallback", help="Fail when a reference beats the generated weights.")
    ] = False,
    as_json: JsonOption = False,
    *,
    options: dict[str, Any],
) -> None:
    """Make weights for labelled data, verify them, and write them as a folder that any Hub client loads."""
    from model_zoo.lookup import look_up
    from weightgen.pipeline import make_weights

    order = Order(
        generator=generator,
        architecture=arch,
        dataset=data,
        support_per_class=support_per_class,
        num_samples=samples,
        seed=seed,
        fallback=not no_fallback,
        target_accuracy=target_accuracy,
        options=options,
    )
    say(f"loading {generator} and {data}")
    job = look_up(order)
    say(f"making {samples} x {arch} for {job.data.num_classes} classes of {job.data.name}")
    made = make_weights(job, order)
    folders = [out] if samples == 1 else [out / str(i) for i in range(samples)]
    reports = [one.save(folder) for one, folder in zip(made, folders, strict=True)]
    if as_json:
        print_json(reports[0] if samples == 1 else {"samples": reports})
        return
    for report in reports:
        print_table(_summarise(report))


@takes_method_options
def compare(
    generator: GeneratorOption,
    arch: ArchOption,
    data: DataOption,
    support_per_class: ShotsOption = 20,
    tasks: Annotated[int, typer.Option(help="Support sets to draw; the mean over them is printed.")] = 1,
    ways: Annotated[int | None, typer.Option(help="Random classes in each task; all classes if not given.")] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    *,
    options: dict[str, Any],
) -> None:
    """Compare generated weights with every reference; all of them get the same examples."""
    from model_zoo.lookup import look_up
    from weightgen.pipeline import compare_job

    order = Order(
        generator=generator,
        architecture=arch,
        dataset=data,
        support_per_class=support_per_class,
        seed=seed,
        options=options,
    )
    say(f"loading {generator} and {data}")
    job = look_up(order)
    report = compare_job(job, order, tasks=tasks, ways=ways, say=say)
    if as_json:
        print_json(report)
        return
    scores = sorted(((v, name) for name, v in report["accuracy"].items() if v is not None), reverse=True)
    rows = [(name, f"{value:.1%}") for value, name in scores]
    rows += [(f"seconds to {name}", f"{report['seconds'][name]:.3f}") for name in ("generate", "scratch")]
    rows += [("note", note) for note in report["request"]["notes"]]
    print_table(rows, title=f"{arch} on {job.data.name}, accuracy on its test part")


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
