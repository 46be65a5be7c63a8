"""weightgen generate, compare: the main job and its scoreboard."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from weightgen.cli.options import takes_order
from weightgen.cli.output import JsonOption, print_json, print_table, say
from weightgen.order import Order


@takes_order("support_per_class", "samples", "seed", "target_accuracy", "no_fallback")
def generate(
    order: Order,
    out: Annotated[Path, typer.Option(help="The artifact folder to write.")],
    as_json: JsonOption = False,
) -> None:
    """Make weights for labelled data, verify them, and write them as a folder that any Hub client loads."""
    from model_zoo.lookup import look_up
    from weightgen.pipeline import make_weights

    say(f"loading {order.generator} and {order.dataset}")
    job = look_up(order)
    say(f"making {order.num_samples} x {order.architecture} for {job.data.num_classes} classes of {job.data.name}")
    made = make_weights(job, order)
    reports = [one.save(folder) for one, folder in zip(made, folders_of(order, out), strict=True)]
    show_reports(reports, _summarise, as_json=as_json)


@takes_order("support_per_class", "seed")
def compare(
    order: Order,
    tasks: Annotated[int, typer.Option(help="Support sets to draw; what is printed is the mean.")] = 1,
    ways: Annotated[int | None, typer.Option(help="Random classes of each task; all of them if not given.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare generated weights with every reference; all of them get the same examples."""
    from model_zoo.lookup import look_up
    from weightgen.pipeline import compare_job

    say(f"loading {order.generator} and {order.dataset}")
    job = look_up(order)
    report = compare_job(job, order, tasks=tasks, ways=ways, say=say)
    if as_json:
        print_json(report)
        return
    scores = sorted(((v, name) for name, v in report["accuracy"].items() if v is not None), reverse=True)
    rows = [(name, f"{value:.1%}") for value, name in scores]
    rows += [(f"seconds to {name}", f"{report['seconds'][name]:.3f}") for name in ("generate", "scratch")]
    rows += [("note", note) for note in report["request"]["notes"]]
    print_table(rows, title=f"{order.architecture} on {job.data.name}, accuracy on its test part")


def folders_of(order: Order, out: Path) -> list[Path]:
    """Where the samples of an order go: `out` itself for one, numbered folders in it for several."""
    return [out] if order.num_samples == 1 else [out / str(i) for i in range(order.num_samples)]


def show_reports(
    reports: list[dict[str, Any]], summarise: Callable[[dict[str, Any]], list[tuple[str, Any]]], *, as_json: bool
) -> None:
    """Reports of samples as JSON, an object for one and a list for several, or as a table each."""
    if as_json:
        print_json(reports[0] if len(reports) == 1 else {"samples": reports})
        return
    for report in reports:
        print_table(summarise(report))


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
