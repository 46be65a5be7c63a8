"""weightgen remote …: the same commands over HTTP, answered by a service (docs/service.md)."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightgen.cli.options import takes_method_options
from weightgen.cli.output import JsonOption, print_json, print_table, say
from weightgen.cli.weights import AccuracyOption, SeedOption, ShotsOption

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
GeneratorOption = Annotated[str, typer.Option(help="A generator of the service (weightgen remote list).")]
ArchOption = Annotated[str, typer.Option(help="The architecture of the target network.")]
DataOption = Annotated[
    str,
    typer.Option(
        help="A data set of the service, or a local file or folder (its path has a / or a .), which is uploaded first.",
        metavar="NAME_OR_FILE",
    ),
]
SamplesOption = Annotated[int, typer.Option(help="How many sets of weights to make.")]
JobArgument = Annotated[str, typer.Argument(help="The id of a job.", metavar="JOB")]
DEFAULT_URL = "http://127.0.0.1:8000"


@app.command()
@takes_method_options
def generate(
    generator: GeneratorOption,
    arch: ArchOption,
    data: DataOption,
    out: Annotated[Path, typer.Option(help="The artifact folder to write.")],
    support_per_class: ShotsOption = 20,
    samples: SamplesOption = 1,
    seed: SeedOption = 0,
    target_accuracy: AccuracyOption = None,
    no_fallback: Annotated[
        bool, typer.Option("--no-fallback", help="Fail when a reference beats the generated weights.")
    ] = False,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
    as_json: JsonOption = False,
    *,
    options: dict[str, Any],
) -> None:
    """Have the service make weights for labelled data, and download them as `weightgen generate` writes them."""
    with _client(url, key) as client:
        result = client.generate(
            generator=generator,
            architecture=arch,
            dataset=_dataset(client, data),
            support_per_class=support_per_class,
            num_samples=samples,
            seed=seed,
            fallback=not no_fallback,
            target_accuracy=target_accuracy,
            options=options,
        )
        client.download(result, out)
    folders = [out] if samples == 1 else [out / str(i) for i in range(samples)]
    reports = [
        {"artifact": str(folder), "job": result.job, "repository": sample.repository, "report": dict(sample.report)}
        for folder, sample in zip(folders, result.samples, strict=True)
    ]
    if as_json:
        print_json(reports[0] if samples == 1 else {"samples": reports})
        return
    for report in reports:
        print_table(_summarise(report))


@app.command()
@takes_method_options
def estimate(
    generator: GeneratorOption,
    arch: ArchOption,
    data: DataOption,
    support_per_class: ShotsOption = 20,
    samples: SamplesOption = 1,
    seed: SeedOption = 0,
    target_accuracy: AccuracyOption = None,
    url: UrlOption = DEFAULT_URL,
    key: KeyOption = None,
    as_json: JsonOption = False,
    *,
    options: dict[str, Any],
) -> None:
    """Estimate the size, time and accuracy of `remote generate` without running it."""
    with _client(url, key) as client:
        answer = client.estimate(
            generator=generator,
            architecture=arch,
            dataset=_dataset(client, data),
            support_per_class=support_per_class,
            num_samples=samples,
            seed=seed,
            target_accuracy=target_accuracy,
            options=options,
        )
    _show(answer, as_json=as_json)


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


def _dataset(client: "Client", data: str) -> str:
    """The name of a data set on the service; what looks like a path is uploaded."""
    # A word without / and . is a name on the service, even if a local file has that name.
    if "/" not in data and "." not in data:
        return data
    say(f"uploading {data}")
    return client.upload(data)["name"]


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
