"""weightgen remote …: the same over HTTP, from a service that runs elsewhere (docs/service.md)."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightgen.cli.output import JsonOption, print_json, print_table
from weightgen.cli.weights import SeedOption, ShotsOption

if TYPE_CHECKING:
    from weightgen.client import Client

app = typer.Typer(
    name="remote",
    help="Ask a service over HTTP for weights; --url and --key, or WEIGHTGEN_URL and WEIGHTGEN_KEY, say which.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

UrlOption = Annotated[str, typer.Option(envvar="WEIGHTGEN_URL", help="Where the service listens.")]
KeyOption = Annotated[
    str | None,
    typer.Option(envvar="WEIGHTGEN_KEY", help="A key of the service; the variable keeps it out of lists of processes."),
]
GeneratorOption = Annotated[str, typer.Option(help="A generator of the service (weightgen remote list).")]
ArchOption = Annotated[str, typer.Option(help="The architecture of the target network.")]
DataOption = Annotated[str, typer.Option(help="A data set of the service (weightgen remote list).")]
JobArgument = Annotated[str, typer.Argument(help="The id of a job.", metavar="JOB")]
DEFAULT_URL = "http://127.0.0.1:8000"


@app.command()
def generate(
    generator: GeneratorOption,
    arch: ArchOption,
    data: DataOption,
    out: Annotated[Path, typer.Option(help="The artifact folder to write.")],
    support_per_class: ShotsOption = 20,
    seed: SeedOption = 0,
    no_fallback: Annotated[
        bool, typer.Option("--no-fallback", help="Fail when a reference beats the generated weights.")
    ] = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have the service make weights for labelled data, and download them as `weightgen generate` writes them."""
    with _client(url, key) as client:
        result = client.generate(
            generator=generator,
            architecture=arch,
            dataset=data,
            support_per_class=support_per_class,
            seed=seed,
            fallback=not no_fallback,
        )
        client.download(result, out)
    report = {"artifact": str(out), "job": result.job, "repository": result.repository, "report": dict(result.report)}
    if as_json:
        print_json(report)
        return
    rows = [("artifact", str(out)), ("job", result.job), ("repository", result.repository)]
    rows += [(name, result.report[name]) for name in ("source", "seconds") if name in result.report]
    if isinstance(found := result.report.get("accuracy"), float):
        rows.append(("test accuracy", f"{found:.1%}"))
    print_table(rows)


@app.command()
def estimate(
    generator: GeneratorOption,
    arch: ArchOption,
    data: DataOption,
    support_per_class: ShotsOption = 20,
    seed: SeedOption = 0,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """What `remote generate` would take and bring, without doing it."""
    with _client(url, key) as client:
        told = client.estimate(
            generator=generator,
            architecture=arch,
            dataset=data,
            support_per_class=support_per_class,
            seed=seed,
        )
    _show(told, as_json=as_json)


@app.command("list")
def list_names(url: UrlOption = DEFAULT_URL, key: KeyOption = None, as_json: JsonOption = False) -> None:
    """The generators, architectures and data sets of the service."""
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
    """How far a job is, and what became of it."""
    with _client(url, key) as client:
        _show_job(client.job(job), as_json=as_json)


@app.command()
def cancel(job: JobArgument, url: UrlOption = DEFAULT_URL, key: KeyOption = None, as_json: JsonOption = False) -> None:
    """Cancel a job that is queued or running."""
    with _client(url, key) as client:
        _show_job(client.cancel(job), as_json=as_json)


@contextlib.contextmanager
def _client(url: str, key: str | None) -> "Iterator[Client]":
    from weightgen.client import Client

    with Client(url, key) as client:
        yield client


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


def _show(told: dict[str, Any], *, as_json: bool) -> None:
    """An answer of the service, its objects on one line each."""
    if as_json:
        print_json(told)
        return
    rows = []
    for name, value in told.items():
        if isinstance(value, dict):
            value = ", ".join(f"{inner} {part}" for inner, part in value.items())
        rows.append((name, "unknown" if value is None else value))
    print_table(rows)
