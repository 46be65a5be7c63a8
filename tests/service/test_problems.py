import json

import pytest
from fastapi import Body, FastAPI
from starlette.testclient import TestClient

import weightgen.errors
from service.api.schemas import ProblemBody
from service.errors import Conflict, OverLimit, QueueFull
from service.problems import (
    ERRORS,
    KINDS,
    MEDIA_TYPE,
    Problem,
    describe_problem,
    problem_of,
    raise_described,
    reply,
    tell_problems,
)
from service.work.request_body import GenerationRequestBody
from tests.helpers.service_standins import ASKED, Refused
from weightgen.errors import StorageFailed, UnknownName, UnsupportedTask, WeightgenError

EVERY_ERROR = [e for e in vars(weightgen.errors).values() if isinstance(e, type) and issubclass(e, WeightgenError)]


def make(error: type[WeightgenError]) -> WeightgenError:
    return UnknownName("generator", "mop", ["mip"]) if error is UnknownName else error("a sentence")


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    tell_problems(app)

    @app.post("/generations")
    def generate(body: GenerationRequestBody) -> None:
        raise UnsupportedTask("it cannot")

    @app.post("/names")
    def name(names: dict[str, int] = Body()) -> None: ...  # noqa: B008

    @app.get("/bug")
    def bug() -> None:
        raise ZeroDivisionError("secret")

    @app.delete("/names")
    def forget_names() -> None: ...

    @app.get("/count")
    def count(number: int) -> None: ...

    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize("error", [*EVERY_ERROR, Conflict, OverLimit, QueueFull])
def test_every_error_is_in_the_table_and_its_problem_is_as_the_schema_says(error):
    assert error in ERRORS
    body = ProblemBody.model_validate(describe_problem(make(error)))
    assert body.status == KINDS[ERRORS[error]][0] and body.type == f"urn:weightgen:problem:{ERRORS[error]}"


def test_every_kind_is_the_fault_of_a_client_or_of_the_server():
    assert all(400 <= status < 600 and title for status, title in KINDS.values())


def test_an_error_that_the_table_lacks_is_told_as_its_nearest_ancestor():
    class CannotWiden(UnsupportedTask): ...

    assert problem_of(CannotWiden("no")).kind == "unsupported" and problem_of(Refused("no")).kind == "unsupported"


def test_where_files_of_the_server_lie_is_not_told():
    assert "/srv" not in json.dumps(describe_problem(StorageFailed("/srv/data/x: cannot be written")))


def test_a_queue_that_is_full_says_when_to_ask_again():
    assert problem_of(QueueFull("full")).headers == {"Retry-After": "2"}


def test_a_described_problem_is_raised_as_it_was():
    body = describe_problem(UnsupportedTask("it cannot"))
    with pytest.raises(Problem) as raised:
        raise_described(body)
    assert raised.value.body() == body


def test_a_problem_of_a_kind_that_is_not_known_any_more_is_the_servers():
    with pytest.raises(Problem) as raised:
        raise_described({"type": "urn:weightgen:problem:of-old", "detail": "once"})
    assert raised.value.status_code == 500


def test_a_name_that_utf8_cannot_write_is_told_in_ascii():
    answer = reply(Problem("unknown-name", "no generator is called '\ud800'"))
    assert json.loads(bytes(answer.body))["detail"].endswith("'\ud800'")


def test_what_a_route_raises_is_told(client):
    answer = client.post("/generations", json=ASKED)
    assert (answer.status_code, answer.headers["content-type"]) == (422, MEDIA_TYPE)
    assert answer.json()["detail"] == "it cannot"


def test_a_request_with_faults_is_told_all_of_them_by_json_pointer(client):
    answer = client.post("/generations", json={**ASKED, "seed": "1", "a/b~c": 1})
    assert answer.status_code == 422 and answer.json()["type"] == "urn:weightgen:problem:invalid-request"
    assert {part["pointer"] for part in answer.json()["errors"]} == {"#/seed", "#/a~1b~0c"}
    assert ProblemBody.model_validate(answer.json())


def test_a_field_whose_name_utf8_cannot_write_is_refused(client):
    content = rb'{"generator": "mip", "\ud800": 1}'
    answer = client.post("/generations", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


def test_a_query_that_cannot_be_read_is_told_by_its_parameter(client):
    assert [part["parameter"] for part in client.get("/count?number=x").json()["errors"]] == ["number"]


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"])
def test_a_body_that_is_no_json_is_malformed(client, content):
    answer = client.post("/names", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.json()["type"] == "urn:weightgen:problem:malformed-request"


def test_a_path_and_a_method_that_are_not_served_are_told(client):
    absent, wrong = client.get("/nothing"), client.delete("/bug")
    assert (absent.status_code, absent.json()["title"]) == (404, KINDS["not-found"][1])
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET")
    assert wrong.headers["content-type"] == MEDIA_TYPE


def test_hub_clients_are_told_in_a_header_and_others_in_the_body_alone(client):
    assert "nothing is served" in client.get("/hf/nothing").headers["x-error-message"]
    assert "x-error-message" not in client.get("/nothing").headers


def test_a_path_of_several_routes_tells_the_methods_of_all(client):
    assert client.patch("/names").headers["allow"] == "DELETE, POST"


def test_a_bug_is_told_without_its_inside(client):
    answer = client.get("/bug")
    assert answer.status_code == 500 and answer.headers["content-type"] == MEDIA_TYPE
    assert "secret" not in answer.text and "Traceback" not in answer.text
