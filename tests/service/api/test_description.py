"""The description tells every status that can be answered, every problem in its one form, and who may ask."""

import json

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.api.description import complete_description
from service.keys.authentication import PUBLIC
from service.problems import MEDIA_TYPE
from tests.helpers.service_standins import stand_in_app


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    app, _ = stand_in_app(tmp_path_factory.mktemp("data"))
    with TestClient(app) as client:
        return client.get("/openapi.json").json()


def operations(described):
    return [(method, path, operation) for path, ops in described["paths"].items() for method, operation in ops.items()]


def test_every_operation_tells_what_is_refused_before_it(described):
    for method, path, operation in operations(described):
        told = set(operation["responses"])
        assert {"400", "413", "414", "431"} <= told, path
        assert {"401", "403", "429", "503"} <= told or path in PUBLIC, path
        assert {"408", "415"} <= told or method not in ("post", "put", "patch"), path


def test_every_problem_has_one_form(described):
    for _, path, operation in operations(described):
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                schema = response["content"][MEDIA_TYPE]["schema"]
                assert schema == {"$ref": "#/components/schemas/ProblemBody"}, (path, status)
    assert "HTTPValidationError" not in json.dumps(described)


def test_no_answer_is_described_twice(described):
    for _, path, operation in operations(described):
        for status, response in operation["responses"].items():
            told = response["description"].split("; ")
            assert len(told) == len(set(told)), (path, status)


def test_who_may_ask_is_told(described):
    assert described["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    post, healthz = described["paths"]["/v1/generations"]["post"], described["paths"]["/healthz"]["get"]
    assert post["security"] == [{"bearer": []}] and "the scope `generate`" in post["description"]
    assert healthz["security"] == [] and "scope" not in healthz["description"]


def test_a_description_asked_for_again_is_the_same():
    app = FastAPI()

    @app.get("/v1/count")
    def count(number: int) -> None: ...

    complete_description(app)
    first = json.dumps(app.openapi())
    assert json.dumps(app.openapi()) == first and first.count("The request cannot be read") == 1
    assert set(app.openapi()["components"]["schemas"]) == {"ProblemBody", "ProblemPart"}
