import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.api.page import FOLDER, TYPES
from service.work.generation import STAGES
from tests.helpers.service_standins import stand_in_app

FILES = sorted(path.name for path in FOLDER.iterdir())
MODULES = [name for name in FILES if name.endswith(".js")]
NAMESPACE = "http://www.w3.org/2000/svg"
SMALLEST_CONTRAST = 4.5
"""Of text, by WCAG 2.2 AA."""


class Page(HTMLParser):
    """Every element of an HTML file with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def values(self, *names: str) -> list[str]:
        return [value for _, given in self.elements for name in names if (value := given.get(name))]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(read("index.html"))


@pytest.fixture
def client(tmp_path):
    app, _ = stand_in_app(tmp_path)
    with TestClient(app) as client:
        yield client


def read(name: str) -> str:
    return (FOLDER / name).read_text()


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_served_with_its_type_and_asked_again_by_its_etag(client, name):
    answer = client.get(f"/static/{name}")
    assert answer.status_code == 200 and answer.content == (FOLDER / name).read_bytes()
    assert answer.headers["content-type"] == TYPES[Path(name).suffix]
    assert answer.headers["cache-control"] == "no-cache"
    again = client.get(f"/static/{name}", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/", "/static/app.js"])
def test_a_head_is_answered_as_a_get(client, path):
    head, get = client.head(path), client.get(path)
    assert head.status_code == 200
    assert {k: v for k, v in head.headers.items() if k != "x-request-id"} == {
        k: v for k, v in get.headers.items() if k != "x-request-id"
    }


def test_the_page_may_load_from_this_server_alone(client):
    answer = client.get("/")
    assert answer.text == read("index.html")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; ") and "unsafe" not in policy and "//" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["none.js", "..%2fpage.py", "page.py", ".", "a%20b"])
def test_what_is_no_file_of_the_page_is_not_found(client, name):
    answer = client.get(f"/static/{name}")
    assert answer.status_code == 404 and answer.headers["content-type"] == "application/problem+json"


def test_the_page_is_no_part_of_the_api(client):
    assert not {"/", "/static/{name}"} & set(client.get("/openapi.json").json()["paths"])


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_another_host(name):
    text = read(name).replace(NAMESPACE, "")
    assert re.findall(r"(?:https?:)?//[a-z0-9]", re.sub(r"^\s*(//|/\*).*$", "", text, flags=re.MULTILINE)) == []


def test_the_html_is_closed_and_holds_no_script_or_style_of_its_own(page):
    assert page.open == []
    assert [given for tag, given in page.elements if tag == "script"] == [{"type": "module", "src": "/static/app.js"}]
    assert not [tag for tag, _ in page.elements if tag == "style"]
    assert not [name for _, given in page.elements for name in given if name == "style" or name.startswith("on")]


def test_every_id_is_there_once_and_whatever_refers_to_one_finds_it(page):
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    referred = " ".join(page.values("for", "aria-describedby", "aria-labelledby", "aria-controls")).split()
    referred += [link[1:] for link in page.values("href") if link.startswith("#")]
    referred += re.findall(r'byId\("([^"]+)"\)', "".join(map(read, MODULES)))
    assert set(referred) - set(ids) == set()


def test_every_field_has_a_label(page):
    labelled = set(page.values("for"))
    fields = [given for tag, given in page.elements if tag in ("input", "select", "textarea")]
    inside = {"fallback"}  # within its label
    assert {field["id"] for field in fields} - labelled == inside


def test_every_module_and_every_export_that_is_imported_is_there():
    for name in MODULES:
        for names, module in re.findall(r'import \{([^}]*)\} from "\./([^"]+)"', read(name)):
            exported = re.findall(r"export (?:async )?(?:function\*?|class|const) (\w+)", read(module))
            assert set(re.findall(r"\w+", names)) <= set(exported), (name, module)
    loaded = set(re.findall(r'from "\./([^"]+)"', "".join(map(read, MODULES)))) | {"app.js"}
    assert loaded == set(MODULES)


def test_every_stage_of_a_job_has_words():
    table = re.search(r"const STAGES = \[(.*?)\n\];", read("running.js"), re.DOTALL)
    assert table and re.findall(r'\["(\w+)"', table[1]) == ["queued", *STAGES]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("text", "ground"),
    [
        *((text, ground) for text in ("ink", "soft", "accent", "fault") for ground in ("paper", "card", "field")),
        ("accent", "tint"), ("soft", "tint"), ("warn", "warn-tint"), ("on-accent", "accent"),
    ],
)  # fmt: skip
def test_text_stands_out_from_its_ground(scheme, text, ground):
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6});", part)) for part in read_colours())
    colours = light if scheme == "light" else light | dark
    bright, dim = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
    assert (bright + 0.05) / (dim + 0.05) >= SMALLEST_CONTRAST


def read_colours() -> tuple[str, str]:
    first, second = re.findall(r":root \{(.*?)\}", read("style.css"), re.DOTALL)
    return first, second


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2.2."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
