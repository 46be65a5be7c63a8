"""The database of the jobs opens, upgrades once however many try, and refuses what it cannot be."""

import re
import threading
import time

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy.exc import OperationalError

import service.keys.key_store  # noqa: F401, whose table is of the same database
from service.jobs.database import MIGRATIONS, exclude_others, open_database, upgrade
from service.jobs.job_store import METADATA, JobStore
from weightgen.errors import BadOption, StorageFailed, UnsupportedTask


@pytest.fixture
def engine(database_url):
    engine = open_database(database_url)
    yield engine
    engine.dispose()


def test_the_migrations_make_the_tables_that_the_code_uses(engine):
    upgrade(engine)
    upgrade(engine)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    index = next(index for index in sa.inspect(engine).get_indexes("jobs") if index["name"] == "jobs_digest_current")
    condition = str(index["dialect_options"][f"{engine.dialect.name}_where"])
    assert index["unique"] and re.findall("'([a-z]+)'", condition) == ["queued", "running", "succeeded"]


FIRST_JOBS = """
INSERT INTO jobs (id, digest, idempotency_key, request, state, progress, result, attempt, created, updated, version)
VALUES ('one', 'a', 'k', '{}', 'succeeded', '{}', '{"artifact": "f00d"}', 1, 5, 6, 3),
       ('two', 'b', NULL, '{}', 'queued', '{}', NULL, 0, 7, 7, 1)
"""


def test_jobs_and_keys_of_the_first_version_are_kept(engine):
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.execution_options(writes=True).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(sa.text(FIRST_JOBS))
    store = JobStore(engine.url.render_as_string(hide_password=False))
    store.migrate()
    one, is_new = store.submit({}, digest="a", idempotency_key="k", max_queued=1)
    assert (one.id, one.owner, one.result, one.updated, is_new) == ("one", "", {"artifact": "f00d"}, 6, False)
    assert store.get("two").state == "queued"
    assert store.forget_artifact("f00d") == 1
    assert store.submit({}, digest="c", idempotency_key="k", max_queued=2)[1] is True
    store.close()


def test_processes_that_upgrade_at_once_wait_for_each_other(database_url):
    engines = [open_database(database_url) for _ in range(3)]
    faults: list[Exception] = []

    def try_upgrade(engine: sa.Engine) -> None:
        try:
            upgrade(engine)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=try_upgrade, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for engine in engines:
        engine.dispose()
    assert faults == []


def test_a_writing_transaction_excludes_another_from_its_begin_on_sqlite(tmp_path):
    engine = open_database(f"sqlite:///{tmp_path}/new/jobs.sqlite")
    upgrade(engine)
    with engine.execution_options(writes=True).begin(), engine.connect() as reader:
        assert reader.execute(sa.text("SELECT count(*) FROM jobs")).scalar_one() == 0
        reader.exec_driver_sql("PRAGMA busy_timeout = 1")
        with pytest.raises(OperationalError, match="locked"):
            reader.exec_driver_sql("DELETE FROM jobs")
    engine.dispose()


def test_a_transaction_that_excludes_others_waits_for_another_on_postgresql(postgres):
    engine, order = open_database(postgres.make_database()), []

    def write() -> None:
        with engine.begin() as connection:
            exclude_others(connection)
            order.append("second")

    second = threading.Thread(target=write)
    waiting = sa.text(
        "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database "
        "WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"
    )
    with engine.begin() as connection:
        exclude_others(connection)
        second.start()
        while connection.execute(waiting).scalar_one() == 0:
            time.sleep(0.01)
        order.append("first")
    second.join()
    engine.dispose()
    assert order == ["first", "second"]


def test_a_database_of_a_newer_version_is_refused(engine):
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UnsupportedTask, match=r"was written by another version of weightgen: .*9999"):
        upgrade(engine)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("jobs.sqlite", "database_url is not a URL; expected sqlite:///FILE or postgresql"),
        ("sqlite://", "names no file, which processes could share"),
        ("sqlite:///:memory:", "names no file, which processes could share"),
        ("mysql://root@localhost/jobs", "is of kind 'mysql', expected sqlite:///FILE or postgresql"),
        (
            "postgresql+nothing://me:secret@localhost/jobs",
            r"'postgresql.nothing://me:.*' needs a driver .*; expected postgresql://… with weightgen\[postgres\]",
        ),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url, sentence):
    with pytest.raises(BadOption, match=sentence) as caught:
        open_database(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("kind", ["postgresql", "postgresql+psycopg"])
def test_postgresql_is_spoken_to_by_psycopg(kind):
    engine = open_database(f"{kind}://me@localhost/jobs")
    assert engine.dialect.driver == "psycopg"
    engine.dispose()


def test_a_server_that_is_not_there_is_told_in_one_sentence(tmp_path):
    engine = open_database(f"postgresql://me:secret@/jobs?host={tmp_path}")
    with pytest.raises(StorageFailed, match="^the database 'postgresql.*' cannot be used: .*failed.*$") as caught:
        upgrade(engine)
    engine.dispose()
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_database_is_told(tmp_path):
    (tmp_path / "jobs.sqlite").write_bytes(b"this is no database, but long enough to be read as one" * 100)
    engine = open_database(f"sqlite:///{tmp_path}/jobs.sqlite")
    with pytest.raises(StorageFailed, match="cannot be used: file is not a database"):
        upgrade(engine)
    engine.dispose()


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFailed, match="cannot be made: .*"):
        open_database(f"sqlite:///{tmp_path}/file/jobs.sqlite")
