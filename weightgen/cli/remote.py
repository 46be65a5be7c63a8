"""weightgen remote …: the same commands over HTTP, answered by a service (docs/service.md)."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightgen.cli.options import takes_order
from weightgen.cli.output import JsonOption, print_json, print_table, say
from weightgen.cli.weights import folders_of, show_reports
from weightgen.order import Order

if TYPE_CHECKING:
    from weightgen.client.client import Client

app = typer.Typer(
    name="remote",
    help="Get weights from a service over HTTP; --url and --key, or WEIGHTGEN_URL and WEIGHTGEN_KEY, select it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

UrlOption = Annotated[str, typer.Option(envvar="WEIGHTGEN_URL", help="Where the service listens.")]
KeyOption = Annotated[
    str | None,
    typer.Option(envvar="WEIGHTGEN_KEY", help="A key of the service; set the variable to hide it from process lists."),
]
NAMES_THERE = {
    "generator": typer.Option(help="A generator of the service (weightgen remote list)."),
    "arch": typer.Option(help="The architecture of the target network."),
    "data": typer.Option(
        help="A data set of the service, or a file or folder here, which is uploaded first (its path has a / or a .).",
        metavar="NAME_OR_FILE",
    ),
}
JobArgument = Annotated[str, typer.Argument(help="The id of a job.", metavar="JOB")]
DEFAULT_URL = "http://127.0.0.1:8000"


@app.command()
@takes_order("support_per_class", "samples", "seed", "target_accuracy", "no_fallback", names=NAMES_THERE)
def generate(
    order: Order,
    out: Annotated[Path, typer.Option(help="The artifact folder to write.")],
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have the service make weights for labelled data, and download them as `weightgen generate` writes them."""
    with _client(url, key) as client:
        result = client.submit(_with_dataset(client, order))
        client.download(result, out)
    reports = [
        {"artifact": str(folder), "job": result.job, "repository": sample.repository, "report": dict(sample.report)}
        for folder, sample in zip(folders_of(order, out), result.samples, strict=True)
    ]
    show_reports(reports, _summarise, as_json=as_json)


@app.command()
@takes_order("support_per_class", "samples", "seed", "target_accuracy", names=NAMES_THERE)
def estimate(order: Order, url: UrlOption = DEFAULT_URL, key: KeyOption = None, as_json: JsonOption = False) -> None:
    """What `remote generate` would take and bring, without doing it."""
    with _client(url, key) as client:
        told = client.estimate(_with_dataset(client, order))
    _show(told, as_json=as_json)


@app.command()
def upload(
    data: Annotated[Path, typer.Argument(help="A file or a folder of images.", metavar="FILE_OR_FOLDER")],
    label: Annotated[str | None, typer.Option(help="For a table: the column of the classes.")] = None,
    shape: Annotated[
        str | None, typer.Option(help="For a table: the shape of the images in its other columns, such as 28x28.")
    ] = None,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload labelled data to the service, and print the name to pass as `--data`."""
    with _client(url, key) as client:
        answer = client.upload(data, label=label, shape=shape)
    _show(answer, as_json=as_json)


@app.command("list")
def list_names(url: UrlOption = DEFAULT_URL, key: KeyOption = None, as_json: JsonOption = False) -> None:
    """List the generators, architectures and data sets of the service."""
    with _client(url, key) as client:
        names = {
            "generators": client.generators(),
            "architectures": client.architectures(),
            "datasets": client.datasets(),
        }
    if as_json:
        print_json(names)
        return
    print_table([(kind, ", ".join(found)) for kind, found in names.items()])


@app.command()
def status(job: JobArgument, url: UrlOption = DEFAULT_URL, key: KeyOption = None, as_json: JsonOption = False) -> None:
    """Show the state, progress and result of a job."""
    with _client(url, key) as client:
        _show_job(client.job(job), as_json=as_json)


@app.command()
def cancel(job: JobArgument, url: UrlOption = DEFAULT_URL, key: KeyOption = None, as_json: JsonOption = False) -> None:
    """Cancel a job that is queued or running."""
    with _client(url, key) as client:
        _show_job(client.cancel(job), as_json=as_json)


@contextlib.contextmanager
def _client(url: str, key: str | None) -> "Iterator[Client]":
    from weightgen.client.client import Client

    with Client(url, key) as client:
        yield client


def _with_dataset(client: "Client", order: Order) -> Order:
    """The order with the name of a data set on the service; what looks like a path is uploaded."""
    # A name stays a name where a file of that name lies about.
    if "/" not in order.dataset and "." not in order.dataset:
        return order
    say(f"uploading {order.dataset}")
    return replace(order, dataset=client.upload(order.dataset)["name"])


def _summarise(report: dict[str, Any]) -> list[tuple[str, Any]]:
    rows = [(name, report[name]) for name in ("artifact", "job", "repository")]
    details = report["report"]
    rows += [(name, details[name]) for name in ("source", "seconds") if name in details]
    if isinstance(found := details.get("accuracy"), float):
        rows.append(("test accuracy", f"{found:.1%}"))
    return rows


def _show_job(job: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(job)
        return
    rows = [(name, job[name]) for name in ("id", "state", "attempt") if name in job]
    if progress := job.get("progress"):
        rows.append(("progress", "{stage}, {done} of {total}".format(**progress)))
    if problem := job.get("problem"):
        rows.append(("problem", problem["detail"]))
    if result := job.get("result"):
        rows.append(("repository", result["repository"]))
    print_table(rows)


def _show(answer: dict[str, Any], *, as_json: bool) -> None:
    """Print an answer of the service: each object on one line, each list as the names of its items."""
    if as_json:
        print_json(answer)
        return
    rows = []
    for name, value in answer.items():
        if isinstance(value, dict):
            value = ", ".join(f"{inner} {part}" for inner, part in value.items())
        elif isinstance(value, list):
            value = ", ".join(str(part.get("name", part) if isinstance(part, dict) else part) for part in value)
        rows.append((name, "unknown" if value is None else value))
    print_table(rows)
