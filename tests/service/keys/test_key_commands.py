import re

import pytest

from service.__main__ import main
from service.keys.key_store import KeyStore, parse_key
from service.settings import read_settings


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTGEN_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("WEIGHTGEN_DATABASE_URL", raising=False)
    store = KeyStore(read_settings().database_url)
    yield store
    store.close()


def test_a_key_is_made_listed_and_revoked(store, capsys):
    assert main(["keys", "make", "--name", "ci", "--scope", "generate", "--scope", "read", "--expires-days", "2"]) == 0
    text = capsys.readouterr().out.strip()
    parts = parse_key(text)
    assert parts is not None and store.list()[0].has_secret(parts[1])
    assert main(["keys", "list"]) == 0
    listed = capsys.readouterr().out
    assert re.search(rf"^{parts[0]}  ci +generate,read  active +20\d\d-.*Z  20\d\d-.*Z  -$", listed, re.MULTILINE)
    assert parts[1] not in listed and store.list()[0].secret_sha256 not in listed
    assert main(["keys", "revoke", parts[0]]) == 0
    assert capsys.readouterr().out == f"{parts[0]} (ci) is revoked\n"
    assert main(["keys", "list"]) == 0 and "revoked" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["keys", "revoke", "000000000000"], 5, "error: there is no key '000000000000'"),
        (["keys", "make", "--name", "a b", "--scope", "read"], 2, "error: name is 'a b'"),
        (["keys", "make", "--name", "a", "--scope", "read", "--expires-days", "-1"], 2, "error: expires_days is -1"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(store, capsys, arguments, code, sentence):
    assert main(arguments) == code
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(sentence) and said.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["keys"], ["key"], ["keys", "make", "--name", "a"], ["keys", "make", "--name", "a", "--scope", "all"]]
)
def test_a_command_that_cannot_be_read_ends_with_code_2(capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage: python -m service" in capsys.readouterr().err
