"""Settings come from WEIGHTGEN_* variables; what cannot be meant is refused in one sentence."""

import os
from pathlib import Path

import pytest

from service.settings import PREFIX, Settings, read_settings
from weightgen.errors import BadOption, UnknownName


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


def test_variables_become_settings(monkeypatch):
    monkeypatch.setenv("WEIGHTGEN_PORT", "9000")
    monkeypatch.setenv("WEIGHTGEN_DATA_DIR", "/var/lib/weightgen")
    monkeypatch.setenv("WEIGHTGEN_SHARED", "/data")  # read by model_zoo
    settings = read_settings()
    assert (settings.host, settings.port, settings.data_dir) == ("127.0.0.1", 9000, Path("/var/lib/weightgen"))
    assert settings.database_url == "sqlite:////var/lib/weightgen/jobs.sqlite"


def test_what_is_given_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("WEIGHTGEN_DATABASE_URL", "postgresql+psycopg://localhost/jobs")
    assert read_settings().database_url == "postgresql+psycopg://localhost/jobs"
    assert read_settings(database_url="sqlite:////x.sqlite").database_url == "sqlite:////x.sqlite"


@pytest.mark.parametrize("url", [None, ""])
def test_the_database_lies_in_the_data_folder_unless_said_otherwise(monkeypatch, tmp_path, url):
    monkeypatch.chdir(tmp_path)
    if url is not None:
        monkeypatch.setenv("WEIGHTGEN_DATABASE_URL", url)
    assert read_settings(data_dir=Path("here")).database_url == f"sqlite:///{tmp_path}/here/jobs.sqlite"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"PORT": "eighty"}, "WEIGHTGEN_PORT: Input should be a valid integer"),
        ({"LEASE_SECONDS": "0"}, "WEIGHTGEN_LEASE_SECONDS: Input should be greater than 0"),
        ({"LEASE_SECONDS": "nan"}, "WEIGHTGEN_LEASE_SECONDS: Input should be"),
        ({"PORT": "-1", "INSECURE": "perhaps"}, "WEIGHTGEN_INSECURE: .*"),
        ({"HOST": ""}, "WEIGHTGEN_HOST: String should have at least 1 character"),
    ],
)
def test_values_out_of_range_are_told_by_their_variable(monkeypatch, values, sentence):
    for name, value in values.items():
        monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(BadOption, match=sentence) as caught:
        read_settings()
    assert all(PREFIX + name in str(caught.value) for name in values)


def test_a_variable_that_means_nothing_is_refused(monkeypatch):
    monkeypatch.setenv("WEIGHTGEN_PROT", "9000")
    with pytest.raises(UnknownName, match="no setting is called 'WEIGHTGEN_PROT'; did you mean 'WEIGHTGEN_PORT'?"):
        read_settings()


def test_every_setting_is_described_and_limits_name_their_unit():
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        if name.startswith("max_"):
            assert name.partition("_per_")[0].rpartition("_")[2] in (
                "bytes",
                "seconds",
                "requests",
                "connections",
                "jobs",
                "generators",
                "datasets",
                "examples",
                "features",
                "classes",
                "parameters",
                "samples",
                "pixels",
                "entries",
                "attempts",
            ), name
