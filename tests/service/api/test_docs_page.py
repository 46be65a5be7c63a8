"""The page of the API loads nothing from anywhere, and shows everything that the description tells."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from starlette.testclient import TestClient

from service.api.docs_page import HEADERS, render_page
from tests.helpers.service_standins import stand_in_app


class Tags(HTMLParser):
    """The elements of a page, and whether each that was opened was closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    app, _ = stand_in_app(tmp_path_factory.mktemp("data"))
    with TestClient(app) as client:
        return client.get("/docs"), client.get("/openapi.json").json()


def test_the_page_shows_every_operation_and_schema(answers):
    page, described = answers
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for path, operations in described["paths"].items():
        for method in operations:
            assert f'<span class="method">{method.upper()}</span> <code>{path}</code>' in page.text
    assert set(described["components"]["schemas"]) <= set(re.findall(r'id="(\w+)"', page.text))


def test_the_page_loads_nothing_and_its_policy_lets_only_its_style_in(answers):
    page, _ = answers
    tags = Tags(page.text)
    assert tags.open == [] and not {tag for tag, _ in tags.found} & {"script", "link", "img", "iframe", "base"}
    assert all((attrs["href"] or "").startswith(("#", "/openapi.json")) for tag, attrs in tags.found if tag == "a")
    style = re.search(r"<style>(.*?)</style>", page.text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert page.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in page.headers["content-security-policy"]


def test_what_a_description_says_is_text_not_markup():
    evil = "<script>alert(1)</script>"
    operation = {"description": evil, "parameters": [{"in": "query", "name": evil}], "responses": {evil: {}}}
    page = render_page({
        "info": {"title": evil, "version": "1", "description": f"`{evil}`\n\n{evil}"},
        "paths": {f"/{evil}": {"get": operation}},
        "components": {"schemas": {f'"{evil}': {"description": evil}}},
    })  # fmt: skip
    assert "<script" not in page and page.count("&lt;script&gt;") >= 7
