"""Uploads over HTTP: every way to send one, and what is answered."""

import re

import pytest
from starlette.testclient import TestClient

from service.uploads.upload_body import FORMATS
from tests.helpers.service_standins import ASKED, stand_in_app
from tests.helpers.upload_samples import csv_bytes, npz_bytes, some_images

IMAGES, LABELS = some_images()
NPZ = npz_bytes(x=IMAGES, y=LABELS)
CSV = csv_bytes(IMAGES.reshape(len(IMAGES), -1), LABELS, label="digit")


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    app, _ = stand_in_app(tmp_path_factory.mktemp("data"), max_upload_bytes=200_000)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def post(client: TestClient, content, media_type: str = "application/octet-stream", **params: str):
    return client.post("/v1/datasets", content=content, headers={"Content-Type": media_type}, params=params)


def test_an_upload_is_described_where_its_location_says(client):
    answer = post(client, NPZ, "application/x-npz")
    assert answer.status_code in (200, 201)
    about = answer.json()
    assert re.fullmatch("up-[0-9a-f]{64}", about["name"]) and about["origin"] == "uploaded"
    assert answer.headers["location"] == f"/v1/datasets/{about['name']}"
    assert (about["kind"], about["num_classes"], about["shape"]) == ("images", 3, [1, 28, 28])
    assert about["classes"][0] == {"name": "0", "train": 5, "test": 1}
    assert client.get(answer.headers["location"]).json() == about


def test_the_same_data_have_the_same_name_however_they_are_sent(client):
    first = post(client, npz_bytes(x=255 - IMAGES, y=LABELS))
    table = csv_bytes(255 - IMAGES.reshape(len(IMAGES), -1), LABELS, label="digit")
    form = {"label": "digit", "shape": "28x28"}
    again = [
        post(client, iter([npz_bytes(x=255 - IMAGES, y=LABELS)]), "application/zip"),
        client.post("/v1/datasets", files={"file": ("../../etc/passwd", npz_bytes(X=255 - IMAGES, y=LABELS))}),
        post(client, table, "text/csv; charset=utf-8", **form),
        client.post("/v1/datasets", files={"file": ("a.npz", table)}, data=form),
        client.post("/v1/datasets", files={"file": ("a", table)}, data={"label": "digit"}, params={"shape": "28x28"}),
    ]
    assert first.status_code == 201
    assert [answer.status_code for answer in again] == [200] * len(again)
    assert {answer.json()["name"] for answer in again} == {first.json()["name"]}


def test_an_upload_can_be_asked_for_until_it_is_forgotten(client):
    name = post(client, NPZ).json()["name"]
    asked = {**ASKED, "dataset": name}
    assert client.post("/v1/generations", json=asked).json()["request"]["dataset"] == name
    assert client.get(f"/hf/api/models/gen/cnn-tiny.{name}.mip.s0").status_code == 200
    assert client.delete(f"/v1/datasets/{name}").json()["name"] == name
    assert client.get(f"/v1/datasets/{name}").status_code == client.delete(f"/v1/datasets/{name}").status_code == 404
    refused = client.post("/v1/generations", json=asked)
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "#/dataset")
    assert "upload it again" in refused.json()["detail"]
    gone = client.get(f"/hf/api/models/gen/cnn-tiny.{name}.mip.s0")
    assert (gone.status_code, gone.headers["x-error-code"]) == (404, "RepoNotFound")
    assert post(client, NPZ).json()["name"] == name


def test_a_registered_data_set_is_described_but_not_forgotten(client):
    about = client.get("/v1/datasets/digits").json()
    assert (about["origin"], about["num_classes"], about["examples"]) == ("registered", 10, 1797)
    refused = client.delete("/v1/datasets/digits")
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:weightgen:problem:conflict")


@pytest.mark.parametrize("name", ["digit", "up-" + "0" * 64, "up-0", "..", "%2e%2e%2fjobs.sqlite"])
def test_what_is_no_data_set_is_not_found(client, name):
    for answer in (client.get(f"/v1/datasets/{name}"), client.delete(f"/v1/datasets/{name}")):
        assert answer.status_code in (404, 405) and "problem" in answer.headers["content-type"]


def test_an_upload_over_the_limit_is_refused(client):
    answer = post(client, b"0" * 200_001)
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:weightgen:problem:body-too-large")
    assert post(client, iter([b"0" * 70_000] * 3)).status_code == 413


@pytest.mark.parametrize("media_type", ["application/json", "text/plain", "image/png", "application/x-npz2", ""])
def test_a_type_that_is_not_read_is_refused_with_those_that_are(client, media_type):
    answer = post(client, NPZ, media_type)
    assert (answer.status_code, answer.json()["type"]) == (415, "urn:weightgen:problem:wrong-content-type")
    assert all(known in answer.json()["detail"] for known in FORMATS)


@pytest.mark.parametrize("media_type", ["text/csv", "application/vnd.apache.parquet"])
def test_a_file_that_is_not_what_its_type_says_is_refused(client, media_type):
    answer = post(client, NPZ, media_type)
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:weightgen:problem:unusable-data")
    assert "but it is npz" in answer.json()["detail"]


@pytest.mark.parametrize(
    "params", [{"shape": "28"}, {"shape": "28x28x2"}, {"shape": "0x28"}, {"label": ""}, {"lable": "x"}]
)
def test_options_that_mean_nothing_are_refused(client, params):
    in_query = post(client, CSV, "text/csv", **params)
    assert (in_query.status_code, in_query.json()["type"]) == (422, "urn:weightgen:problem:invalid-request")
    in_form = client.post("/v1/datasets", files={"file": ("a", CSV)}, data=params)
    assert (in_form.status_code, in_form.json()["type"]) == (422, "urn:weightgen:problem:invalid-request")


def test_an_option_given_twice_is_refused(client):
    answer = client.post("/v1/datasets", files={"file": ("a", CSV)}, data={"label": "x"}, params={"label": "y"})
    assert answer.status_code == 422 and "'label' is given twice" in answer.json()["detail"]


@pytest.mark.parametrize(
    "files",
    [{"data": ("a", CSV)}, [("file", ("a", CSV)), ("file", ("b", CSV))], {"file": ("a", CSV), "file2": ("b", CSV)}],
    ids=["misnamed", "two", "one more"],
)
def test_a_form_without_exactly_one_file_is_refused(client, files):
    assert client.post("/v1/datasets", files=files).status_code in (400, 422)


@pytest.mark.parametrize(
    "body", [b"", b"--b\r\n", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", b"-" * 99]
)
def test_a_form_that_is_none_is_refused(client, body):
    for media_type in ("multipart/form-data", "multipart/form-data; boundary=b"):
        assert post(client, body, media_type).status_code in (400, 422)


def test_the_way_in_is_described_with_every_type(client):
    body = client.get("/openapi.json").json()["paths"]["/v1/datasets"]["post"]["requestBody"]
    assert set(body["content"]) == {*FORMATS, "multipart/form-data"}
