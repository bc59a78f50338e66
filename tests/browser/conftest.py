"""Pages in headless Chromium; every test fails on an error in the console and on a request that leaves the folder."""

import os
from pathlib import Path

import pytest

from slimtts.report.content import read_content
from slimtts.report.page import write_folder, write_single_file
from slimtts.testing.finished_run import write_finished_run
from tasks.workspace import CHECKOUT

HERE = Path(__file__).parent
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --autoplay-policy=no-user-gesture-required"
)


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def content(tmp_path_factory):
    return read_content(write_finished_run(tmp_path_factory.mktemp("browser") / "toy", CHECKOUT / "params.yaml"))


@pytest.fixture(scope="session")
def folder(content, tmp_path_factory):
    return write_folder(content, tmp_path_factory.mktemp("page") / "report").parent


@pytest.fixture(scope="session")
def single_file(content, tmp_path_factory):
    return write_single_file(content, tmp_path_factory.mktemp("single") / "page.html")


@pytest.fixture
def open_page(chromium):
    """Opens an address in a context of its own; `allowed` is what every request must begin with."""
    contexts, problems = [], []

    def opened(address, allowed, expected_problems=(), **options):
        context = chromium.new_context(**{"viewport": {"width": 1400, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()

        def note(problem):
            if not any(expected in problem for expected in expected_problems):
                problems.append(problem)

        page.on("console", lambda said: note(f"console: {said.text}") if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: note(f"error: {error}"))
        page.on("requestfailed", lambda request: note(f"failed: {request.url}"))
        page.on("request", lambda request: None if request.url.startswith(allowed) else note(f"left: {request.url}"))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def page(open_page, folder):
    """The listening page, from disk."""
    return open_page((folder / "index.html").as_uri(), (folder.as_uri(), "data:", "blob:"))
