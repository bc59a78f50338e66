"""What a listener does with the comparison: plays, stops, sorts, filters, by mouse and by keyboard."""

import functools
import http.server
import threading

import pytest

from slimtts.testing.finished_run import HOSTILE, SENTENCES

PLAYING = "() => player.current !== null && player.current.playing && player.current.audio.currentTime > 0"
STOPPED = "() => player.current === null || !player.current.playing"


def shown(page):
    return page.eval_on_selector_all("tbody.sentence:not([hidden])", "rows => rows.map(row => row.dataset.id)")


def current(page):
    return page.evaluate("() => player.current && [player.current.row.sentence.id, player.current.cell.dataset.column]")


def play_button(page, sentence, column):
    return page.locator(f'tbody[data-id="{sentence}"] td[data-column="{column}"] .play')


def test_a_clip_plays_shows_where_it_is_and_pauses(page):
    button = play_button(page, "u0", "student")
    button.click()
    page.wait_for_function(PLAYING)
    assert button.get_attribute("aria-label").startswith("Pause student")
    assert page.locator("td.current").get_attribute("data-column") == "student"
    assert page.locator('tbody[data-id="u0"] td[data-column="student"] .playhead').is_visible()
    button.click()
    page.wait_for_function(STOPPED)
    assert 0 < page.evaluate("() => player.current.share") < 1


def test_only_one_clip_sounds(page):
    play_button(page, "u0", "teacher").click()
    page.wait_for_function(PLAYING)
    play_button(page, "u0", "student").click()
    page.wait_for_function(PLAYING)
    sounding = "() => table.rows.flatMap(row => [...row.clips.values()]).filter(clip => clip.playing).length"
    assert page.evaluate(sounding) == 1


def test_play_all_goes_through_rows_in_order_and_pause_and_stop_hold(page):
    page.fill("#filter-text", "nora")
    page.evaluate("""() => {
        window.heard = [];
        const play = player.play.bind(player);
        player.play = (clip, queue) => { heard.push(clip.cell.dataset.column); play(clip, queue); };
    }""")
    page.click("#play-all")
    page.wait_for_function(PLAYING)
    page.click("#pause-all")
    page.wait_for_function(STOPPED)
    assert page.inner_text("#pause-all") == "Resume"
    page.click("#pause-all")
    page.wait_for_function("() => heard.length === 5 && !player.current.playing")
    assert page.evaluate("() => heard") == ["original", "original", "teacher", "student", "control"], "pruned is silent"
    page.click("#play-all")
    page.wait_for_function(PLAYING)
    page.click("#stop-all")
    page.wait_for_function(STOPPED)
    assert page.evaluate("() => [player.queue.length, player.current.share]") == [0, 0]
    page.wait_for_timeout(300)
    assert page.evaluate(STOPPED)


def test_the_keyboard_moves_and_plays(page):
    first, second = shown(page)[:2]
    page.keyboard.press("n")
    page.wait_for_function(PLAYING)
    assert current(page) == [first, "student"]
    for key, expected in [
        ("ArrowLeft", [first, "pruned"]), ("ArrowRight", [first, "student"]), ("2", [first, "teacher"]),
        ("ArrowDown", [second, "teacher"]), ("p", [first, "teacher"]), ("n", [second, "teacher"]),
        ("5", [second, "control"]),
    ]:  # fmt: skip
        page.keyboard.press(key)
        page.wait_for_function(PLAYING)
        assert current(page) == expected, key
    page.keyboard.press(" ")
    page.wait_for_function(STOPPED)
    page.keyboard.press(" ")
    page.wait_for_function(PLAYING)
    page.keyboard.press("Escape")
    page.wait_for_function(STOPPED)
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("/")
    page.keyboard.type("n p 1")
    assert page.input_value("#filter-text") == "n p 1", "letters belong to the search field"
    assert page.evaluate(STOPPED)


def test_worst_first_then_by_any_number_of_any_system(page):
    assert shown(page)[0] == "u4", "most errors of the student"
    rates = page.evaluate("() => table.shown.map(row => row.sentence.cells.student.wer)")
    assert rates == sorted(rates, reverse=True)
    page.click("#sort-direction")
    assert page.evaluate("() => table.shown.map(row => row.sentence.cells.student.wer)") == sorted(rates)
    page.click("#sort-direction")
    page.select_option("#sort-number", "similarity")
    assert shown(page) == ["u5", "u4", "u3", "u2", "u1", "u0"], "the lowest similarity is the worst"
    page.select_option("#sort-number", "mos")
    assert shown(page)[:4] == ["u0", "u1", "u2", "u3"] and set(shown(page)[4:]) == {"u4", "u5"}, "unrated ones last"
    page.select_option("#sort-number", "wer")
    page.click('thead th[data-column="pruned"] button')
    assert page.input_value("#sort-column") == "pruned"
    assert page.get_attribute('thead th[data-column="pruned"]', "aria-sort") == "descending"
    assert page.get_attribute('thead th[data-column="student"]', "aria-sort") is None
    page.click('thead th[data-column="pruned"] button')
    assert page.get_attribute('thead th[data-column="pruned"]', "aria-sort") == "ascending"


@pytest.mark.parametrize(
    ("control", "value", "expected"),
    [
        ("#filter-voice", "bert", {"u1", "u3", "u5"}),
        ("#filter-errors", "ours", {"u1", "u2", "u4", "u5"}),
        ("#filter-errors", "behind", {"u1", "u2", "u4", "u5"}),
        ("#filter-errors", "failed", {"u0", "u1", "u3"}),
        ("#filter-errors", "worst", {"u4", "u5"}),
        ("#filter-errors", "random", {"u0", "u1", "u2", "u3"}),
    ],
)
def test_filters(page, control, value, expected):
    page.select_option(control, value)
    assert set(shown(page)) == expected
    assert page.inner_text("#count") == f"{len(expected)} of {len(SENTENCES)} shown"
    odd = page.evaluate("() => table.shown.map(row => row.body.classList.contains('odd'))")
    assert odd == [place % 2 == 0 for place in range(len(expected))], "stripes stay regular"


def test_search_finds_written_and_heard_words_and_says_when_there_are_none(page):
    page.fill("#filter-text", "CAMEL")
    assert shown(page) == ["u4"]
    page.fill("#filter-text", "weights")
    assert shown(page) == ["u4"]
    page.fill("#filter-text", "zebra")
    assert shown(page) == [] and page.locator("#nothing").is_visible()


def test_text_is_text(page):
    assert page.title() == "toy: listen and compare"
    assert page.inner_text('tbody[data-id="u2"] .text') == HOSTILE
    assert page.locator("#table b:not(thead b), #table i, #table script").count() == 0


def test_errors_are_told_without_colour(page):
    cell = page.locator('tbody[data-id="u4"] td[data-column="student"] .words')
    assert cell.locator(".substitution").count() + cell.locator(".insertion").count() == 4
    assert "[error: heard camel for six]" in cell.text_content()
    struck = cell.locator("del").first.evaluate("node => getComputedStyle(node).textDecorationLine")
    assert struck == "line-through"


def test_missing_and_silent_audio_are_shown_as_that(page):
    missing = page.locator('tbody[data-id="u3"] td[data-column="pruned"]')
    assert "audio is missing" in missing.inner_text() and missing.locator(".play").count() == 0
    assert "silent" in page.inner_text('tbody[data-id="u1"] td[data-column="pruned"]')
    assert "never ended" in page.inner_text('tbody[data-id="u0"] td[data-column="pruned"]')


def test_a_file_that_went_missing_is_shown_as_missing_and_the_next_one_plays(open_page, content, tmp_path):
    from slimtts.report.page import write_folder

    folder = write_folder(content, tmp_path / "report").parent
    (folder / "audio" / "teacher" / "u0.wav").unlink()
    page = open_page((folder / "index.html").as_uri(), (folder.as_uri(), "data:"), ("audio/teacher/u0.wav", "ERR_FILE"))
    page.evaluate("() => table.playRows([table.rows.find(row => row.sentence.id === 'u0')])")
    page.wait_for_function("() => player.current.cell.dataset.column === 'pruned' && player.current.playing")
    assert "audio is missing" in page.inner_text('tbody[data-id="u0"] td[data-column="teacher"]')


def test_waveforms_are_drawn_and_spectrograms_are_loaded(page):
    page.locator(".spectrogram").first.scroll_into_view_if_needed()
    page.wait_for_function("() => document.querySelector('.spectrogram').naturalWidth > 20")
    drawn = """() => {
        const canvas = document.querySelector('canvas.wave');
        return canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(value => value > 0);
    }"""
    assert page.evaluate(drawn)


def test_a_click_into_the_picture_plays_from_there(page):
    box = page.locator('tbody[data-id="u0"] td[data-column="student"] .picture').bounding_box()
    page.evaluate("() => scrollTo(0, 0)")
    picture = page.locator('tbody[data-id="u0"] td[data-column="student"] .picture')
    picture.click(position={"x": 0.6 * box["width"], "y": 10})
    page.wait_for_function(PLAYING)
    assert page.evaluate("() => player.current.share") > 0.5


@pytest.mark.parametrize("width", [390, 768, 1400])
def test_nothing_is_wider_than_the_window(open_page, folder, width):
    page = open_page(
        (folder / "index.html").as_uri(), (folder.as_uri(), "data:"), viewport={"width": width, "height": 800}
    )
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    assert page.evaluate("() => table.made.classList.contains('stacked')") == (width < 860)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_system_decides_on_light_and_dark(open_page, folder, scheme):
    page = open_page((folder / "index.html").as_uri(), (folder.as_uri(), "data:"), color_scheme=scheme)
    paper = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(value) for value in paper.removeprefix("rgb(").removesuffix(")").split(","))
    assert (brightness > 384) == (scheme == "light")


def test_a_static_host_serves_it_too(open_page, folder):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        page = open_page(address + "index.html", (address, "data:"))
        play_button(page, "u0", "student").click()
        page.wait_for_function(PLAYING)
        server.shutdown()


def test_one_file_alone_plays(open_page, single_file):
    page = open_page(single_file.as_uri(), (single_file.as_uri(), "data:"))
    play_button(page, "u0", "student").click()
    page.wait_for_function(PLAYING)


def test_a_viewer_that_locks_the_file_into_a_frame_still_plays_it(open_page, single_file, tmp_path):
    """MLflow shows an HTML artifact as a blob in a frame that may run scripts and nothing else."""
    (tmp_path / "viewer.html").write_text(
        '<iframe id="view" sandbox="allow-scripts" width="1300" height="800"></iframe>'
    )
    page = open_page((tmp_path / "viewer.html").as_uri(), (tmp_path.as_uri(), "data:", "blob:"))
    show = "text => { view.src = URL.createObjectURL(new Blob([text], {type: 'text/html'})); }"
    page.evaluate(show, single_file.read_text())
    frame = page.frame_locator("#view")
    frame.locator('tbody[data-id="u0"] td[data-column="student"] .play').click()
    frame.locator('tbody[data-id="u0"] td[data-column="student"] .play.on').wait_for()
    frame.locator("#open-blind").click()
    assert "lets no votes out" in frame.locator("#blind").inner_text()
