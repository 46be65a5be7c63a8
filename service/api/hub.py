"""The read side of a model hub under /hf, for clients with HF_ENDPOINT=<this server>/hf.

    gen/<architecture>.<dataset>.<generator>.s<seed>   made when it is first read
    job/<id>                                           the result of a job
    sha/<sha256>                                       an artifact by its content

`--` can stand for `.` between the four parts, but huggingface_hub refuses such names before it asks. The revision
`main` is the newest. A commit is the first 40 digits of the artifact's sha256, so its files never change.
"""

import json
import re
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from service.artifacts.artifact_store import ArtifactFile
from service.edge.file_reply import FOREVER, reply_with_file
from service.jobs.job_store import Job
from service.problems import RETRY_SECONDS, Problem, raise_described, told_in_headers
from service.work.intake import Intake
from service.work.request_body import GenerationRequestBody
from weightgen.errors import NotFound

MAX_NAME = 96
"""Most characters in one part of a repository's name, by the Hub's rules."""
FORM = "gen/<architecture>.<dataset>.<generator>.s<seed>, job/<id> or sha/<sha256>"
MAX_PATHS = 1000
_PART = "[A-Za-z0-9][A-Za-z0-9_-]*?"
_GENERATION = re.compile(rf"({_PART})(\.|--)({_PART})\2({_PART})\2s(0|[1-9][0-9]{{0,18}})")


@dataclass(frozen=True)
class Repository:
    """A repository whose files exist."""

    name: str
    artifact: str
    files: list[ArtifactFile]

    @property
    def commit(self) -> str:
        return self.artifact[:40]

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Repo-Commit": self.commit}


def parse_generation(name: str) -> GenerationRequestBody:
    """The request that a repository name below gen/ stands for; NotFound for a name of another form."""
    match = _GENERATION.fullmatch(name) if len(name) <= MAX_NAME else None
    if match is None:
        raise NotFound(f"no repository is called {'gen/' + name[:96]!r}; expected {FORM}")
    architecture, _, dataset, generator, seed = match.groups()
    try:
        return GenerationRequestBody(
            architecture=architecture, dataset=dataset, generator=generator, seed=int(seed)
        )  # fmt: skip
    except ValidationError as error:
        raise NotFound(f"no repository is called {'gen/' + name!r}: {error.errors()[0]['msg']}") from error


def hub_routes(intake: Intake) -> APIRouter:
    """The routes under /hf."""
    routes = APIRouter(prefix="/hf", include_in_schema=False)

    @routes.head("/{org}/{name}/resolve/{revision}/{path:path}", include_in_schema=False)
    @routes.get("/{org}/{name}/resolve/{revision}/{path:path}")
    async def resolve(org: str, name: str, revision: str, path: str, request: Request) -> Response:
        repository = await _find(intake, request, org, name, revision)
        file = next((f for f in repository.files if f.name == path), None)
        if file is None:
            raise _no_entry(repository, path)
        read = partial(intake.artifacts.read, repository.artifact, file)
        cache = "no-cache" if revision == "main" else FOREVER
        return await run_in_threadpool(reply_with_file, request, read, file, cache=cache, headers=repository.headers)

    @routes.get("/api/models/{org}/{name}")
    async def describe(org: str, name: str, request: Request) -> dict[str, Any]:
        return _describe(await _find_whole(intake, request, org, name, "main"))

    @routes.get("/api/models/{org}/{name}/revision/{revision}")
    async def describe_revision(org: str, name: str, revision: str, request: Request) -> dict[str, Any]:
        return _describe(await _find_whole(intake, request, org, name, revision))

    @routes.get("/api/models/{org}/{name}/tree/{revision}")
    async def list_tree(org: str, name: str, revision: str, request: Request) -> list[dict[str, Any]]:
        """An array, unlike our own answers: the Hub's clients expect one."""
        return [_describe_file(file) for file in (await _find_whole(intake, request, org, name, revision)).files]

    @routes.get("/api/models/{org}/{name}/tree/{revision}/{path:path}")
    async def list_folder(org: str, name: str, revision: str, path: str, request: Request) -> list[dict[str, Any]]:
        raise _no_entry(await _find_whole(intake, request, org, name, revision), path)

    @routes.post("/api/models/{org}/{name}/paths-info/{revision}")
    async def list_paths(org: str, name: str, revision: str, request: Request) -> list[dict[str, Any]]:
        """The requested paths that exist; the others are left out, as the Hub does."""
        asked = _parse_paths(request.headers.get("content-type", ""), await request.body())
        repository = await _find_whole(intake, request, org, name, revision)
        return [_describe_file(file) for file in repository.files if file.name in asked]

    @routes.get("/api/models/{org}/{name}/refs")
    async def list_refs(org: str, name: str, request: Request) -> dict[str, Any]:
        repository = await _find_whole(intake, request, org, name, "main")
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repository.commit}
        return {"branches": [main], "converts": [], "tags": [], "pullRequests": []}

    @routes.get("/api/whoami-v2")
    async def tell_who_asks(request: Request) -> dict[str, Any]:
        name = getattr(request.state, "owner", "") or "everybody"
        token = {"type": "access_token", "accessToken": {"displayName": name, "role": "read"}}
        return {"type": "user", "id": name, "name": name, "fullname": name, "orgs": [], "auth": token}

    @routes.head("/{path:path}", include_in_schema=False)
    @routes.get("/{path:path}")
    async def refuse_others(path: str) -> None:
        raise _absent("RepoNotFound", f"nothing is served under {'/hf/' + path[:80]!r}; there are models only: {FORM}")

    return routes


def _parse_paths(content_type: str, body: bytes) -> set[str]:
    """The paths in a form or a JSON object, as Hub clients post them; Problem for anything else."""
    if content_type.partition(";")[0].strip().lower() == "application/json":
        try:
            paths = json.loads(body)["paths"]
        except (ValueError, TypeError, KeyError):
            paths = None
    else:
        try:
            paths = parse_qs(body.decode("ascii"), max_num_fields=MAX_PATHS).get("paths")
        except ValueError:
            paths = None
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise Problem("malformed-request", f"the body has to be a form with at most {MAX_PATHS} fields, each 'paths'")
    return set(paths)


async def _find_whole(intake: Intake, request: Request, org: str, name: str, revision: str) -> Repository:
    """`_find` for questions that Hub clients ask only once: it waits longer for the weights."""
    return await _find(intake, request, org, name, revision, seconds=intake.settings.hub_seconds)


async def _find(
    intake: Intake, request: Request, org: str, name: str, revision: str, *, seconds: float | None = None
) -> Repository:
    """The repository, its weights made if need be; Problem with the header in which Hub clients look for the reason."""
    full_name = f"{org}/{name}"
    try:
        artifact = await _find_artifact(intake, request, org, name, seconds)
        files = await run_in_threadpool(intake.artifacts.files, artifact)
    except NotFound as error:
        raise _absent("RepoNotFound", str(error)) from error
    except Problem as problem:
        if problem.kind != "unknown-name":
            raise told_in_headers(problem) from problem
        raise _absent("RepoNotFound", problem.detail) from problem
    repository = Repository(full_name, artifact, files)
    if revision not in ("main", repository.commit):
        raise _absent("RevisionNotFound", f"{full_name!r} has no revision {revision[:80]!r}; expected 'main' or "
                                          f"'{repository.commit}'")  # fmt: skip
    return repository


async def _find_artifact(intake: Intake, request: Request, org: str, name: str, seconds: float | None) -> str:
    if org == "sha":
        return name
    if org == "gen":
        owner, may_make = request.state.owner, "generate" in request.state.scopes
        job = await run_in_threadpool(intake.accept, parse_generation(name), owner=owner, may_make=may_make)
    elif org == "job":
        job = await run_in_threadpool(intake.jobs.get, name)
    else:
        raise NotFound(f"no repository is called {f'{org}/{name}'[:96]!r}; expected {FORM}")
    return _artifact_of(await intake.wait(job, seconds=seconds))


def _artifact_of(job: Job) -> str:
    if job.result is not None:
        return job.result["artifact"]
    if job.problem is not None:
        raise_described(job.problem)
    if job.state == "cancelled":
        raise NotFound(f"job {job.id} was cancelled")
    detail = f"job {job.id} is {job.state}; ask again in {RETRY_SECONDS} seconds"
    raise Problem("still-generating", detail, headers={"Retry-After": str(RETRY_SECONDS)})


def _absent(code: str, detail: str, headers: dict[str, str] | None = None) -> Problem:
    problem = Problem("not-found", detail, headers={**(headers or {}), "X-Error-Code": code})
    return told_in_headers(problem)


def _no_entry(repository: Repository, path: str) -> Problem:
    names = ", ".join(file.name for file in repository.files)
    detail = f"{repository.name!r} has no file {path[:80]!r}; it has {names}"
    return _absent("EntryNotFound", detail, repository.headers)


def _describe(repository: Repository) -> dict[str, Any]:
    siblings = [
        {"rfilename": f.name, "size": f.size, "blobId": f.sha256[:40], "lfs": _describe_lfs(f)}
        for f in repository.files
    ]
    return {
        "_id": repository.artifact[:24],
        "id": repository.name,
        "modelId": repository.name,
        "sha": repository.commit,
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "library_name": "weightgen",
        "tags": ["generated-weights", "weightgen"],
        "siblings": siblings,
    }


def _describe_file(file: ArtifactFile) -> dict[str, Any]:
    lfs = {"oid": file.sha256, "size": file.size, "pointerSize": _POINTER_BYTES}
    return {"type": "file", "path": file.name, "size": file.size, "oid": file.sha256[:40], "lfs": lfs}


def _describe_lfs(file: ArtifactFile) -> dict[str, Any]:
    return {"sha256": file.sha256, "size": file.size, "pointerSize": _POINTER_BYTES}


_POINTER_BYTES = 134
"""Size of a git-lfs pointer. There are none here, but clients expect a number."""
