"""Pictures of pages: what is missing is one line; a picture holds what the page showed when it was ready."""

import shutil

import pytest
from PIL import Image

from infra.screenshots import DRAWN_S, Shot, browsing, free_port, main, running, take
from slimtts.errors import MissingToolError


def test_a_missing_store_or_browser_is_one_line(tmp_path, capsys):
    for options, said in (
        (["--chromium", "no-such-browser"], "no-such-browser: observed not installed"),
        (["--chromium", "sh"], "mlflow.db"),
    ):
        assert main(["--out", str(tmp_path), "--runs", str(tmp_path), *options]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_a_server_that_ends_says_why():
    command = ["python3", "-c", "raise SystemExit('no such store')"]
    with pytest.raises(MissingToolError, match="no such store"), running(command, {}, "http://127.0.0.1:9", "/"):
        pass


def test_a_server_is_stopped_with_its_block(tmp_path):
    port = free_port()
    command = ["python3", "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    url = f"http://127.0.0.1:{port}"
    with running(command, {}, url, "/") as address:
        assert address == url
    with pytest.raises(MissingToolError), running(["false"] * 3, {}, url, "/"):
        pass


@pytest.mark.browser
def test_a_picture_is_taken_when_the_page_is_ready_and_clicked(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        """<body style="margin:0"><p id="text"></p><script>
        setTimeout(() => { text.innerHTML = "<b onclick='document.body.style.background=\\"red\\"'>ready</b>" }, 300)
        </script>"""
    )
    with browsing(shutil.which("chromium")) as browser:
        path = take(browser, Shot("page", page.as_uri(), "ready", ("ready",), 200), tmp_path / "out")
    picture = Image.open(path).convert("RGB")
    assert picture.size == (1600, 200)
    assert picture.getpixel((1500, 150)) == (255, 0, 0)
    assert DRAWN_S > 0
