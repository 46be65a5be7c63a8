"""Jobs that survive a crash: one table for all processes of the service; the holder of a job's lease runs the job.

    queued ──claim──► running ──finish──► succeeded          queued | running ──cancel──► cancelled
       ▲                 │ └────fail────► failed
       └─────release─────┘   and a running job whose lease ran out can be claimed again

When a process dies, its leases run out. Another process then claims the job, with `attempt` one higher. Only the holder
of the lease can finish a job, so a job ends once, however often its work was started. One request (by digest) has at
most one job that is queued, running or succeeded: a unique index enforces that.

The database is SQLite in WAL mode by default, or PostgreSQL by URL. Times are seconds since the epoch by one clock for
all: that of the PostgreSQL server, or that of the machine with the SQLite file.
"""

import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import sqlalchemy as sa

from service.errors import Conflict, QueueFull
from service.jobs.database import exclude_others, open_database, upgrade
from weightgen.errors import NotFound

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
STATES: tuple[State, ...] = get_args(State)
FINAL: tuple[State, ...] = ("succeeded", "failed", "cancelled")
"""States that a job never leaves."""

METADATA = sa.MetaData()
_CURRENT = sa.text("state IN ('queued', 'running', 'succeeded')")
JOBS = sa.Table(
    "jobs",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True),  # the order of arrival
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("owner", sa.String(64), nullable=False, server_default=""),
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("progress", sa.JSON, nullable=False),
    sa.Column("result", sa.JSON(none_as_null=True)),
    sa.Column("artifact", sa.String(64)),  # of the result
    sa.Column("problem", sa.JSON(none_as_null=True)),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("runner", sa.String(128)),
    sa.Column("lease_until", sa.Float),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("updated", sa.Float, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Index("jobs_digest_current", "digest", unique=True, sqlite_where=_CURRENT, postgresql_where=_CURRENT),
    sa.Index("jobs_state_number", "state", "number"),
    sa.Index("jobs_artifact", "artifact"),
)
KEYS = sa.Table(  # `_forget` deletes them with their jobs
    "idempotency_keys",
    METADATA,
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("job", sa.String(32), nullable=False),
    sa.Index("idempotency_keys_job", "job"),
)
_LOOKED_THROUGH = 256
"""How many queued jobs are searched for jobs that can run together."""


@dataclass(frozen=True)
class Job:
    """One accepted request and what became of it."""

    id: str
    digest: str
    """sha256 of the request and of what its names stand for, hex."""
    owner: str
    """Id of the key that asked for it first; "" if no key was needed."""
    request: dict[str, Any]
    state: State
    progress: dict[str, Any]
    """{stage, done, total}; {} until a runner reports it."""
    result: dict[str, Any] | None
    problem: dict[str, Any] | None
    """Why the job failed; None unless it did."""
    attempt: int
    """How often it was started; a start that was handed back in good order does not count."""
    created: float
    updated: float
    version: int
    """Grows with every change of the values above; it is the id of the job's events."""


class JobStore:
    """The jobs of one database, which any number of processes and threads may have open."""

    def __init__(self, url: str, *, clock: Callable[[], float] | None = None) -> None:
        """`clock` replaces the clock of the database. Raises BadOption for a URL that cannot be used."""
        self._engine = open_database(url)
        self._clock = clock

    def migrate(self) -> None:
        """Migrate the tables to this version; if several processes try, one does it and the others wait.

        Raises UnsupportedTask for a database that a newer version wrote, StorageFailed if it cannot be reached.
        """
        upgrade(self._engine)

    def close(self) -> None:
        """Close the connections; the store opens new ones if it is used again."""
        self._engine.dispose()

    def submit(
        self,
        request: Mapping[str, Any],
        *,
        digest: str,
        owner: str = "",
        idempotency_key: str | None = None,
        max_queued: int,
        max_queued_of_owner: int | None = None,
    ) -> tuple[Job, bool]:
        """The job of this request, and whether it is new.

        A job of the same digest that is queued, running or succeeded is returned, whoever asked for it first. So is the
        job, in any state, that this owner got with this idempotency key before. Raises Conflict if the key belongs to
        another digest. Raises QueueFull if the job would be new but `max_queued` jobs wait already, or
        `max_queued_of_owner` jobs of the owner.
        """
        with self._writing() as connection:
            exclude_others(connection)  # else two equal requests, or two for the last place, could both get in
            if idempotency_key is not None:
                known = _find_by_key(connection, owner, idempotency_key)
                if known is not None and known.digest != digest:
                    raise Conflict(f"the idempotency key {idempotency_key[:80]!r} belongs to another request; send "
                                   "each request under its own key")  # fmt: skip
                if known is not None:
                    return _job(known), False
            current = JOBS.c.state.in_(("queued", "running", "succeeded"))
            row = connection.execute(sa.select(JOBS).where(JOBS.c.digest == digest, current)).one_or_none()
            is_new = row is None
            if row is None:
                _refuse_over(connection, JOBS.c.owner == owner, max_queued_of_owner, "of your jobs")
                _refuse_over(connection, sa.true(), max_queued, "jobs")
                row = self._insert(connection, {"digest": digest, "owner": owner, "request": dict(request)})
            if idempotency_key is not None:
                connection.execute(sa.insert(KEYS).values(owner=owner, key=idempotency_key, job=row.id))
            return _job(row), is_new

    def _insert(self, connection: sa.Connection, given: Mapping[str, Any]) -> sa.Row[Any]:
        now = self._now()
        made = sa.insert(JOBS).values(
            id=secrets.token_hex(16), **given, state="queued", progress={}, attempt=0, created=now, updated=now,
            version=1,
        )  # fmt: skip
        return connection.execute(made.returning(JOBS)).one()

    def get(self, job_id: str) -> Job:
        """The job of this id; NotFound if there is none."""
        with self._engine.connect() as connection:
            return _job(_find(connection, job_id))

    def claim(self, runner: str, *, lease_seconds: float) -> Job | None:
        """The oldest job to run, now leased to `runner`; None if there is none.

        A job can run if it is queued, or if it is running and its lease ran out. Runners that claim at the same time
        get different jobs.
        """
        open_jobs = sa.or_(
            JOBS.c.state == "queued", sa.and_(JOBS.c.state == "running", JOBS.c.lease_until < self._now())
        )
        oldest = sa.select(JOBS.c.number).where(open_jobs).order_by(JOBS.c.number).limit(1)
        with self._engine.connect() as connection:  # an idle runner takes no lock
            if connection.execute(oldest).one_or_none() is None:
                return None
        with self._writing() as connection:
            number = connection.execute(oldest.with_for_update(skip_locked=True)).scalar_one_or_none()
            if number is None:
                return None
            changes = {"state": "running", "runner": runner, "attempt": JOBS.c.attempt + 1,
                       "lease_until": self._now() + lease_seconds, "progress": {}}  # fmt: skip
            row = connection.execute(self._change(JOBS.c.number == number, changes).returning(JOBS)).one()
            return _job(row)

    def claim_more(
        self,
        runner: str,
        *,
        lease_seconds: float,
        limit: int,
        sharers: int = 1,
        is_wanted: Callable[[dict[str, Any]], bool],
    ) -> list[Job]:
        """The oldest queued jobs whose request is wanted, now leased to `runner`; [] if there are none.

        At most `limit` jobs, and at most this runner's share of those that `sharers` runners could take. Only jobs that
        were never started: a job that killed its process runs alone.
        """
        fresh = sa.and_(JOBS.c.state == "queued", JOBS.c.attempt == 0)
        seen = sa.select(JOBS.c.number, JOBS.c.request).where(fresh).order_by(JOBS.c.number).limit(_LOOKED_THROUGH)
        with self._engine.connect() as connection:
            wanted = [row.number for row in connection.execute(seen) if is_wanted(row.request)]
        chosen = wanted[: min(limit, math.ceil(len(wanted) / sharers))]
        if not chosen:
            return []
        free = sa.select(JOBS.c.number).where(fresh, JOBS.c.number.in_(chosen)).with_for_update(skip_locked=True)
        with self._writing() as connection:
            numbers = connection.execute(free).scalars().all()
            changes = {"state": "running", "runner": runner, "attempt": 1, "progress": {},
                       "lease_until": self._now() + lease_seconds}  # fmt: skip
            rows = connection.execute(self._change(JOBS.c.number.in_(numbers), changes).returning(JOBS)).all()
            return sorted((_job(row) for row in rows), key=lambda job: job.created)

    def renew(
        self, job_id: str, runner: str, *, lease_seconds: float, progress: Mapping[str, Any] | None = None
    ) -> bool:
        """Keep the lease for another `lease_seconds` and store the progress; False if `runner` has lost the job."""
        held, until = _held(job_id, runner), self._now() + lease_seconds
        if progress is None:
            change = sa.update(JOBS).where(held).values(lease_until=until)
        else:
            change = self._change(held, {"lease_until": until, "progress": dict(progress)})
        return self._apply(change)

    def finish(self, job_id: str, runner: str, result: Mapping[str, Any]) -> bool:
        """End a job with its result; False, and nothing changes, if `runner` does not hold it any more."""
        changes = {"state": "succeeded", "result": dict(result), "artifact": result.get("artifact")}
        return self._apply(self._change(_held(job_id, runner), changes))

    def fail(self, job_id: str, runner: str, problem: Mapping[str, Any]) -> bool:
        """End a job with what went wrong; False, and nothing changes, if `runner` does not hold it any more."""
        return self._apply(self._change(_held(job_id, runner), {"state": "failed", "problem": dict(problem)}))

    def release(self, job_id: str, runner: str) -> bool:
        """Hand a job back unfinished; it waits again, and this attempt does not count."""
        changes = {"state": "queued", "runner": None, "lease_until": None, "attempt": JOBS.c.attempt - 1}
        return self._apply(self._change(_held(job_id, runner), changes))

    def cancel(self, job_id: str) -> Job:
        """End a job that is queued or running; its runner learns of it when it next renews.

        A job cancelled before is returned as it is. Raises NotFound, and Conflict for a job that has ended otherwise.
        """
        with self._writing() as connection:
            live = sa.and_(JOBS.c.id == job_id, JOBS.c.state.in_(("queued", "running")))
            connection.execute(self._change(live, {"state": "cancelled"}))
            job = _job(_find(connection, job_id))
        if job.state != "cancelled":
            raise Conflict(f"job {job.id} has {job.state}; only a queued or running job can be cancelled")
        return job

    def count(self) -> dict[str, int]:
        """How many jobs are in each state, 0 included."""
        with self._engine.connect() as connection:
            found = connection.execute(sa.select(JOBS.c.state, sa.func.count().label("number")).group_by(JOBS.c.state))
            counts = {row.state: row.number for row in found}
        return {state: counts.get(state, 0) for state in STATES}

    def latest_results(self, *, limit: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """(request, result) of the newest jobs that succeeded, newest first, `limit` at most."""
        succeeded = sa.select(JOBS.c.request, JOBS.c.result).where(JOBS.c.state == "succeeded")
        with self._engine.connect() as connection:
            rows = connection.execute(succeeded.order_by(JOBS.c.number.desc()).limit(limit))
            return [(row.request, row.result) for row in rows]

    def prune(self, *, older_than: float) -> int:
        """Forget the jobs that ended more than `older_than` seconds ago, with their keys; returns how many."""
        return self._forget(sa.and_(JOBS.c.state.in_(FINAL), JOBS.c.updated < self._now() - older_than))

    def forget_artifact(self, artifact: str) -> int:
        """Forget the jobs whose result is this artifact, with their keys; returns how many.

        For an artifact that is deleted: the next equal request is a new job.
        """
        return self._forget(JOBS.c.artifact == artifact)

    def let_go_of(self, artifact: str, *, unchanged_since: float) -> bool:
        """Forget the jobs with this artifact if none of them has changed since a time; returns whether none is left."""
        named = JOBS.c.artifact == artifact
        newer = sa.select(JOBS.c.id).where(named, JOBS.c.updated >= unchanged_since).exists()
        self._forget(sa.and_(named, ~newer))
        with self._engine.connect() as connection:
            return connection.execute(sa.select(JOBS.c.id).where(named).limit(1)).one_or_none() is None

    def _forget(self, which: sa.ColumnElement[bool]) -> int:
        with self._writing() as connection:
            exclude_others(connection)  # else a key could be written for a job that is being deleted
            gone = connection.execute(sa.delete(JOBS).where(which).returning(JOBS.c.id)).scalars().all()
            for start in range(0, len(gone), 1000):  # the parameters of a statement are limited
                connection.execute(sa.delete(KEYS).where(KEYS.c.job.in_(gone[start : start + 1000])))
            return len(gone)

    def _now(self) -> Any:
        """Seconds since the epoch: a number, or an SQL expression for one."""
        if self._clock is None and self._engine.dialect.name == "postgresql":
            return sa.cast(sa.extract("epoch", sa.func.statement_timestamp()), sa.Float)
        return (self._clock or time.time)()

    def _change(self, which: sa.ColumnElement[bool], changes: Mapping[str, Any]) -> sa.Update:
        return sa.update(JOBS).where(which).values(**changes, updated=self._now(), version=JOBS.c.version + 1)

    def _apply(self, change: sa.Update) -> bool:
        with self._writing() as connection:
            return connection.execute(change).rowcount == 1

    def _writing(self):
        return self._engine.execution_options(writes=True).begin()


def _find_by_key(connection: sa.Connection, owner: str, key: str) -> sa.Row[Any] | None:
    found = sa.select(JOBS).join(KEYS, KEYS.c.job == JOBS.c.id).where(KEYS.c.owner == owner, KEYS.c.key == key)
    return connection.execute(found).one_or_none()


def _refuse_over(connection: sa.Connection, which: sa.ColumnElement[bool], limit: int | None, whose: str) -> None:
    if limit is None:
        return
    counted = sa.select(sa.func.count()).where(JOBS.c.state == "queued", which)
    waiting = connection.execute(counted).scalar_one()
    if waiting >= limit:
        raise QueueFull(f"{waiting} {whose} wait, at most {limit} may; ask again later")


def _held(job_id: str, runner: str) -> sa.ColumnElement[bool]:
    return sa.and_(JOBS.c.id == job_id, JOBS.c.state == "running", JOBS.c.runner == runner)


def _find(connection: sa.Connection, job_id: str) -> sa.Row[Any]:
    row = connection.execute(sa.select(JOBS).where(JOBS.c.id == job_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no job {job_id[:80]!r}; jobs that ended are forgotten after a while")
    return row


def _job(row: sa.Row[Any]) -> Job:
    return Job(**{name: value for name, value in row._mapping.items() if name in Job.__dataclass_fields__})
