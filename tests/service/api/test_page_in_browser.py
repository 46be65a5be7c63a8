"""The page in a real browser, headless Chromium, against a real server.

Nothing here waits for a time: Playwright waits until the page says what is expected.
"""

import hashlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

from tests.helpers.browser import (
    FLAGS,
    PATIENCE_MS,
    ROOT,
    Visit,
    ask_for,
    choose,
    make,
    overflows,
    read_job,
    serving,
    write_upload,
)
from tests.helpers.service_standins import stand_in_app

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed; pip install playwright")
expect = playwright.expect

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def visit(browser) -> Iterator[Callable[..., Visit]]:
    visits: list[Visit] = []

    def open_page(base: str, path: str = "/", **context: Any) -> Visit:
        page = browser.new_context(viewport={"width": 1280, "height": 900}, **context).new_page()
        page.set_default_timeout(PATIENCE_MS)
        visits.append(Visit(page, base))
        visits[-1].watch()
        page.goto(base + path)
        return visits[-1]

    expect.set_options(timeout=PATIENCE_MS)
    yield open_page
    for made in visits:
        made.page.context.close()
    assert [fault for made in visits for fault in made.faults] == []


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("server")) as base:
        yield base


@pytest.fixture
def held_server(tmp_path) -> Iterator[tuple[str, Any]]:
    """A server whose jobs wait until `go_on` is set."""
    app, run = stand_in_app(tmp_path, inline_seconds=0)
    run.go_on.clear()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", run
        run.go_on.set()
        server.should_exit = True
        thread.join()


def test_weights_are_asked_for_shown_and_compared_with_references(visit, server):
    page = visit(server).page
    expect(page.locator("#dataset-about")).to_contain_text("10 classes of images of 28\u00d728; 899 examples")
    expect(page.locator("#estimate")).to_contain_text("2,464 parameters")
    ask_for(page, dataset="digits", architecture="cnn-tiny", generator="mip", seed=1)
    report = read_job(page, server)["result"]["report"]
    expect(page.locator("#result-title")).to_have_text("cnn-tiny for digits")
    expect(page.locator("#result-facts .big dd")).to_have_text(f"{100 * report['accuracy']:.1f} %")
    held = report["verification"]["held_back"]
    shown = page.locator("#held-back-chart .bar .value").all_text_contents()
    wanted = [held["generated"], *sorted(held["references"].values(), reverse=True)]
    assert shown == [f"{100 * value:.1f} %" for value in wanted]
    widths = [float(bar.get_attribute("width")) for bar in page.locator("#held-back-chart .bar rect").all()]
    assert np.allclose(np.array(widths) / widths[0], np.array(wanted) / wanted[0], atol=0.01)
    assert page.locator("#held-back-chart .given .name").text_content() == report["source"]
    assert page.evaluate("document.activeElement.id") == "result"


def test_a_result_that_fell_back_says_so(visit, server):
    asked = {"generator": "logah", "architecture": "cnn-tiny", "dataset": "digits", "support_per_class": 2}
    for seed in range(40):  # two examples a class: sooner or later a reference does better
        report = make(server, {**asked, "seed": seed})["result"]["report"]
        if report["fell_back"]:
            break
    assert report["fell_back"]
    page = visit(server).page
    ask_for(page, **asked, seed=seed)
    expect(page.locator("#verdict")).to_contain_text("Fell back to")
    expect(page.locator("#result-sentence")).to_contain_text("These are not logah's weights")
    given = page.locator("#held-back-chart .given .value").text_content()
    assert given == f"{100 * report['verification']['held_back']['references'][report['source']]:.1f} %"
    page.locator("label.tick").click()
    page.click("#generate")
    expect(page.locator("#fault")).to_contain_text("'logah' did not pass the gate: on 10 held-back")
    expect(page.locator("#result")).to_be_hidden()


def test_a_connection_that_breaks_is_taken_up_again_and_a_server_that_is_away_is_told(visit, server):
    page = visit(server).page
    broken: list[str] = []

    def break_once(route: Any) -> None:
        if broken:
            return route.continue_()
        broken.append(route.request.url)
        return route.abort()

    page.route("**/events", break_once)
    ask_for(page, seed=7)
    assert len(broken) == 1
    page.route("**/v1/generations", lambda route: route.abort())
    choose(page, seed=8)
    page.click("#generate")
    expect(page.locator("#fault")).to_have_text("The server cannot be reached.")


def test_the_files_are_those_of_the_artifact_one_by_one_and_all_together(visit, server):
    page = visit(server, accept_downloads=True).page
    ask_for(page, seed=2)
    files = read_job(page, server)["result"]["files"]
    sums = {file["name"]: file["sha256"] for file in files}
    assert page.locator("#files tbody a").all_text_contents() == list(sums)
    with page.expect_download() as one:
        page.click("#files a:text-is('model.safetensors')")
    content = Path(one.value.path()).read_bytes()
    assert hashlib.sha256(content).hexdigest() == sums["model.safetensors"]
    with page.expect_download() as whole:
        page.click("#download-all")
    assert whole.value.suggested_filename.endswith(".zip")
    with zipfile.ZipFile(io.BytesIO(Path(whole.value.path()).read_bytes())) as archive:
        assert archive.testzip() is None
        assert {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()} == sums


@pytest.mark.parametrize("shots", [20, 5], ids=["by its readable name", "by its content"])
def test_the_snippets_run_as_they_are_copied(visit, server, tmp_path, shots):
    page = visit(server, permissions=["clipboard-read", "clipboard-write"]).page
    ask_for(page, seed=3, support_per_class=shots)
    copied = {}
    for tab in ("Python", "State dict", "hf", "curl"):
        page.get_by_role("tab", name=tab).click()
        page.click("#copy")
        expect(page.locator("#copy")).to_have_text("Copied")
        copied[tab] = page.evaluate("navigator.clipboard.readText()")
    repository = "gen/cnn-tiny.digits.mip.s3" if shots == 20 else read_job(page, server)["result"]["repository"]
    assert repository in copied["Python"] and repository in copied["State dict"] and repository in copied["hf"]
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    for tab, check in (("Python", "print(tuple(logits.shape))"), ("State dict", "print(len(state) > 0)")):
        run = [sys.executable, "-c", f"{copied[tab]}{check}"]
        ended = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ended.returncode == 0 and ended.stdout.strip() in ("(1, 10)", "True"), ended.stderr
    for tab in ("hf", "curl"):
        if shutil.which(tab, path=environment["PATH"]):
            subprocess.run(["bash", "-ec", copied[tab]], env=environment, cwd=tmp_path, capture_output=True, check=True)
    if shutil.which("curl"):
        assert (tmp_path / "model.safetensors").stat().st_size > 1000


def test_a_network_of_another_library_is_loaded_by_that(visit, server, tmp_path):
    pytest.importorskip("transformers", reason="vit-hf-tiny needs transformers")
    page = visit(server).page
    ask_for(page, architecture="vit-hf-tiny", generator="logah")
    snippet = page.text_content("#snippet")
    assert "from transformers import AutoModelForImageClassification" in snippet
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {"HF_HOME": str(tmp_path)}
    run = [sys.executable, "-c", f"{snippet}print(tuple(logits.shape))"]
    ended = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.stdout.strip() == "(1, 10)", ended.stderr


def test_several_samples_are_shown_one_at_a_time(visit, server):
    page = visit(server, accept_downloads=True).page
    ask_for(page, generator="d2nwg", num_samples=2)
    samples = read_job(page, server)["result"]["samples"]
    assert len({sample["artifact"] for sample in samples}) == 2
    for sample, button in zip(samples, page.locator("#samples button").all(), strict=True):
        button.click()
        expect(button).to_have_attribute("aria-pressed", "true")
        expect(page.locator("#result-facts .big dd")).to_have_text(f"{100 * sample['report']['accuracy']:.1f} %")
        expect(page.locator("#snippet")).to_contain_text(sample["repository"])
        link = page.locator("#files a:text-is('model.safetensors')")
        expect(link).to_have_attribute("href", f"/v1/artifacts/{sample['artifact']}/files/model.safetensors")


def test_a_result_has_an_address_and_stays_in_this_browser_until_it_is_forgotten(visit, server):
    page = visit(server).page
    ask_for(page, seed=4)
    page.reload()
    expect(page.locator("#snippet")).not_to_be_empty()
    expect(page.locator("#seed")).to_have_value("4")
    ask_for(page, seed=5)
    page.locator("#recent-jobs .job", has_text="seed 4").click()
    expect(page.locator("#result-facts")).to_contain_text(re.compile(r"4\s*seed|seed\s*4"))
    assert page.evaluate("Object.keys(localStorage)") == ["weightgen.jobs"]
    page.click("#forget")
    expect(page.locator("#recent")).to_be_hidden()
    assert page.evaluate("localStorage.length") == 0


def test_the_scoreboard_follows_the_choice(visit, server):
    page = visit(server).page
    facts = httpx.get(f"{server}/v1/generators/mip").json()
    board = next(b for b in facts["scoreboards"] if b["architecture"] == "vit-tiny")
    choose(page, architecture="vit-tiny")
    expect(page.locator("#board-title")).to_contain_text("mip for vit-tiny")
    expect(page.locator("#board-chart .mean .value")).to_have_text(f"{100 * board['mean']['generated']:.1f} %")
    expect(page.locator("#board-chart .chosen .name")).to_have_text("digits")
    page.locator("#board-details summary").click()
    row = page.locator("#board-table tbody tr", has_text="digits").locator("td").all_text_contents()
    assert row[0] == f"{100 * board['accuracy']['digits']['generated']:.1f}"
    choose(page, architecture="resnet8")
    expect(page.locator("#board-sentence")).to_have_text("It makes weights for cnn, cnn-tiny, vit-tiny.")
    expect(page.locator("#generators")).to_contain_text("not for resnet8")


def test_what_is_wrong_is_told_at_its_field(visit, server):
    visited = visit(server)
    visited.may_refuse.add(422)
    page = visited.page
    choose(page, support_per_class=99)
    page.click("#generate")
    expect(page.locator("#fault-support_per_class")).to_contain_text("less than or equal to 50")
    expect(page.locator("#support_per_class")).to_have_attribute("aria-invalid", "true")
    assert page.evaluate("document.activeElement.id") == "support_per_class"
    choose(page, support_per_class=5, seed="")
    page.click("#generate")
    expect(page.locator("#fault-seed")).to_have_text("Expected a whole number")
    expect(page.locator("#fault-support_per_class")).to_be_empty()
    page.locator("label:has(input[value=other])").click()
    page.fill("#custom-architecture", "cnn-w99999")
    page.fill("#seed", "0")
    page.click("#generate")
    expect(page.locator("#fault-architecture")).to_contain_text("of 'cnn-w99999' is 99999, expected 1 to 4096")


def test_what_the_generator_cannot_serve_is_told_in_a_sentence(visit, server):
    visited = visit(server)
    visited.may_refuse.add(422)
    choose(visited.page, architecture="mlp", dataset="iris", generator="mip")
    visited.page.click("#generate")
    expect(visited.page.locator("#fault")).to_contain_text("'mip' makes weights for cnn, cnn-tiny, vit-tiny")
    expect(visited.page.locator("#generate")).to_be_enabled()
    expect(visited.page.locator("#result")).to_be_hidden()


def test_a_job_shows_its_progress_and_can_be_cancelled(visit, held_server):
    base, _ = held_server
    visited = visit(base)
    page = visited.page
    page.click("#generate")
    expect(page.locator("#stage")).to_have_text("Generating")  # what the stand-in says
    expect(page.locator("#generate")).to_be_disabled()
    page.click("#cancel")
    expect(page.locator("#fault")).to_have_text("Cancelled; nothing was made.")
    expect(page.locator("#running")).to_be_hidden()
    expect(page.locator("#generate")).to_be_enabled()
    assert read_job(page, base)["state"] == "cancelled"


def test_a_data_set_is_uploaded_described_and_used(visit, server, tmp_path):
    page = visit(server).page
    expect(page.locator("#upload")).to_be_visible()
    page.set_input_files("#file", write_upload(tmp_path / "mine.npz"))
    expect(page.locator("#upload-status")).to_contain_text("mine.npz: 10 classes of images of 28\u00d728 in colour;")
    expect(page.locator("#dataset option:checked")).to_have_text("mine.npz")
    expect(page.locator("#dataset-about")).to_contain_text("10 classes of images of 28\u00d728 in colour;")
    ask_for(page)
    job = read_job(page, server)
    assert re.fullmatch("up-[0-9a-f]{64}", job["request"]["dataset"]) and job["result"]["report"]["accuracy"] > 0.5
    expect(page.locator("#result-title")).to_have_text("cnn-tiny for mine.npz")
    expect(page.locator("#recent-jobs")).to_contain_text("cnn-tiny for mine.npz, by mip, seed 0")
    page.reload()
    expect(page.locator("#dataset option:checked")).to_have_text(f"{job['request']['dataset'][:11]}…")


def test_an_upload_that_cannot_be_used_is_told_why_and_can_be_sent_again(visit, server, tmp_path):
    visited = visit(server)
    visited.may_refuse.add(422)
    page = visited.page
    expect(page.locator("#upload")).to_be_visible()
    page.set_input_files("#file", write_upload(tmp_path / "few.npz", faulty=True))
    expect(page.locator("#upload-fault")).to_contain_text("1797 examples")
    expect(page.locator("#dataset")).to_have_value("digits")
    table = tmp_path / "table.csv"
    table.write_text("a,b,kind\n" + "".join(f"{i},{i % 7},{'xy'[i % 2]}\n" for i in range(40)))
    page.locator("#table-options summary").click()
    page.fill("#upload-label", "sort")
    page.set_input_files("#file", table)
    expect(page.locator("#upload .fault", has_text="sort")).to_be_visible()
    page.fill("#upload-label", "kind")
    page.click("#upload-again")
    expect(page.locator("#upload-status")).to_contain_text("table.csv: 2 classes of 2 numbers;")
    expect(page.locator("#upload-fault")).to_be_empty()


def test_a_file_is_dropped_and_its_upload_cancelled(visit, server):
    page = visit(server).page
    expect(page.locator("#upload")).to_be_visible()
    page.route("**/v1/datasets", lambda route: None if route.request.method == "POST" else route.continue_())
    script = "() => { const data = new DataTransfer(); data.items.add(new File(['1'], 'dropped.npz')); return data; }"
    page.dispatch_event("#drop", "drop", {"dataTransfer": page.evaluate_handle(script)})
    expect(page.locator("#upload-status")).to_contain_text("dropped.npz")
    page.click("#upload-cancel")
    expect(page.locator("#upload-fault")).to_have_text("Cancelled; nothing of dropped.npz is kept.")
    expect(page.locator("#uploading")).to_be_hidden()


def test_a_key_is_asked_for_once_and_used_for_everything(visit, tmp_path):
    make = [sys.executable, "-m", "service", "keys", "make", "--name", "page"]
    for scope in ("read", "generate", "upload"):
        make += ["--scope", scope]
    environment = os.environ | {"WEIGHTGEN_DATA_DIR": str(tmp_path)}
    key = subprocess.run(make, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    with serving(tmp_path) as base:
        visited = visit(base, accept_downloads=True)
        visited.may_refuse.add(401)
        page = visited.page
        page.fill("#key", "wg_nonsense")
        page.click("#key-form button")
        expect(page.locator("#key-fault")).to_contain_text("holds no key")
        page.fill("#key", key)
        page.keyboard.press("Enter")
        expect(page.locator("#key-form")).to_be_hidden()
        visited.may_refuse.clear()
        page.reload()
        ask_for(page)
        expect(page.locator("#snippet")).to_contain_text('os.environ["HF_TOKEN"]')
        with page.expect_download() as one:
            page.click("#files a:text-is('config.json')")
        assert b"num_classes" in Path(one.value.path()).read_bytes()
        with page.expect_download() as whole:
            page.click("#download-all")
        assert zipfile.ZipFile(whole.value.path()).testzip() is None
        assert key not in page.content() and page.evaluate("JSON.stringify(localStorage)").find(key) == -1


def test_a_server_without_uploads_and_estimates_shows_none(visit, held_server):
    page = visit(held_server[0]).page
    expect(page.locator("#version")).not_to_be_empty()
    paths = httpx.get(f"{held_server[0]}/openapi.json").json()["paths"]
    assert page.locator("#upload").is_hidden() == ("post" not in paths["/v1/datasets"])
    assert page.locator("#estimate").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_window_needs_no_sideways_scrolling(visit, server, scheme):
    page = visit(server, color_scheme=scheme).page
    page.set_viewport_size({"width": 380, "height": 800})
    expect(page.locator("#board-chart svg")).to_be_visible()
    assert not overflows(page)
    ask_for(page, seed=6)
    page.locator("#board-details summary").click()
    assert not overflows(page)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(246, 246, 243)", "dark": "rgb(17, 19, 21)"}[scheme]


def test_the_form_is_filled_in_and_sent_by_keyboard_alone(visit, server):
    page = visit(server).page
    expect(page.locator("#generators input")).to_have_count(3)
    page.focus("#dataset")
    page.keyboard.press("Tab")
    if page.evaluate("document.activeElement.id") == "file":
        page.keyboard.press("Tab")  # the place for files
        page.keyboard.press("Tab")  # how to read a table
    assert page.evaluate("document.activeElement.value") == "cnn-tiny"
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.value") == "cnn"
    expect(page.locator("#board-title")).to_contain_text("mip for cnn:")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.value") == "mip"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#snippet")).not_to_be_empty()
    page.locator("#tab-0").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-1")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#snippet")).to_contain_text("hf_hub_download")
