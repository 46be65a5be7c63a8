"""Runs the migrations in the transaction that `service.jobs.database.upgrade` opened."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
