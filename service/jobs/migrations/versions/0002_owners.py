"""Owners of jobs, several idempotency keys for one job, and the artifact that a job made."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_JOBS = sa.table(
    "jobs", *(sa.column(name) for name in ("id", "idempotency_key", "artifact")), sa.column("result", sa.JSON)
)


def upgrade() -> None:
    keys = op.create_table(
        "idempotency_keys",
        sa.Column("owner", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("job", sa.String(32), nullable=False),
    )
    op.create_index("idempotency_keys_job", "idempotency_keys", ["job"])
    known = sa.select(sa.literal(""), _JOBS.c.idempotency_key, _JOBS.c.id).where(_JOBS.c.idempotency_key.is_not(None))
    op.execute(sa.insert(keys).from_select(["owner", "key", "job"], known))
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("idempotency_key")
        jobs.add_column(sa.Column("owner", sa.String(64), nullable=False, server_default=""))
        jobs.add_column(sa.Column("artifact", sa.String(64)))
    op.execute(sa.update(_JOBS).values(artifact=_JOBS.c.result["artifact"].as_string()))
    op.create_index("jobs_artifact", "jobs", ["artifact"])
