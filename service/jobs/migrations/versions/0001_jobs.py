"""The table of jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_CURRENT = sa.text("state IN ('queued', 'running', 'succeeded')")


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("idempotency_key", sa.String(255), unique=True),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("progress", sa.JSON, nullable=False),
        sa.Column("result", sa.JSON),
        sa.Column("problem", sa.JSON),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("runner", sa.String(128)),
        sa.Column("lease_until", sa.Float),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("updated", sa.Float, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
    )
    op.create_index(
        "jobs_digest_current", "jobs", ["digest"], unique=True, sqlite_where=_CURRENT, postgresql_where=_CURRENT
    )
    op.create_index("jobs_state_number", "jobs", ["state", "number"])
