"""The report in a browser: zoom, brush, click, tap, keyboard, no script, print, and what axe-core finds.

They need Chromium and `pip install -e ".[browser]"`; without them they are skipped.
"""

import shutil
from importlib import resources

import pytest
from fake_run import fake_run

from diptych.reporting.report import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("there is no Chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason='pip install -e ".[browser]"')


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return report(fake_run(tmp_path_factory.mktemp("runs") / "first", mapped=400))


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def show(browser, file):
    """Open the page: show(width=1440, ...options of a context); every error of its scripts fails the test."""
    contexts, errors = [], []

    def open_page(width: int = 1440, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(f"file://{file}")
        if options.get("java_script_enabled", True):
            page.locator("#explorer canvas").scroll_into_view_if_needed()
            page.wait_for_function("document.getElementById('explorer').dataset.pictures > 0")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors


def state(page) -> dict:
    page.wait_for_timeout(80)  # a frame is drawn
    return page.evaluate("({...document.getElementById('explorer').dataset})")


def middle(page) -> tuple[float, float]:
    box = page.locator("#explorer canvas").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def picked(page) -> str:
    return page.locator(".panel .subject b").inner_text()


def test_the_wheel_zooms_and_more_pictures_appear(show):
    page = show()
    before = state(page)
    page.mouse.move(*middle(page))
    page.mouse.wheel(0, -600)
    after = state(page)
    assert float(before["zoom"]) == 1 and float(after["zoom"]) > 2
    assert int(after["pictures"]) > int(before["pictures"])
    page.locator("[data-do=reset]").click()
    assert float(state(page)["zoom"]) == 1


def test_a_wheel_that_cannot_zoom_out_scrolls_the_page(show):
    page = show()
    top = page.evaluate("scrollY")
    page.mouse.move(*middle(page))
    page.mouse.wheel(0, 300)
    page.wait_for_timeout(300)
    assert page.evaluate("scrollY") > top and float(state(page)["zoom"]) == 1


def test_a_click_shows_neighbours_in_three_spaces(show):
    page = show()
    x, y = middle(page)
    for offset in range(0, 200, 12):  # an image is somewhere there
        page.mouse.click(x + offset, y)
        if page.locator(".panel h3").count():
            break
    assert page.locator(".panel h3").all_inner_texts() == ["trained", "untrained", "raw pixels"]
    buttons = page.locator(".panel button")
    assert buttons.count() == 24
    first, label = picked(page), buttons.nth(3).get_attribute("aria-label")
    assert label.startswith("trained neighbour 4: ") and "cosine" in label
    names = page.locator(".panel .subject small").all_inner_texts()
    buttons.nth(3).click()
    assert page.locator(".panel .subject small").all_inner_texts() != names or picked(page) != first


def test_an_area_gives_names_to_copy(show):
    page = show()
    page.locator("[data-mode=select]").click()
    box = page.locator("#explorer canvas").bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 20, steps=4)
    page.mouse.up()
    names = page.locator(".chosen textarea").input_value().split("\n")
    assert 0 < len(names) < 400 and all(name.startswith("test/") for name in names)
    assert page.locator(".chosen b").inner_text() == f"{len(names)} images selected."
    assert page.locator(".chosen .grid button").count() == min(len(names), 240)
    page.get_by_role("button", name="Close").click()
    assert not page.locator(".chosen").is_visible()


def test_a_filter_and_colours(show):
    page = show()
    button = page.locator(".legend button").first
    button.click()
    assert button.get_attribute("aria-pressed") == "true" and 0 < int(state(page)["shown"]) < 400
    button.click()
    assert state(page)["shown"] == "400"
    pixels = [page.locator("#explorer canvas").screenshot()]
    for value in ("error", "density"):
        page.locator(".tools select").select_option(value)
        page.wait_for_timeout(80)
        pixels.append(page.locator("#explorer canvas").screenshot())
    assert len(set(pixels)) == 3


def test_the_keyboard_reaches_every_part(show):
    page = show()
    page.locator("#explorer canvas").focus()
    page.keyboard.press("ArrowRight")
    first = page.locator(".panel .subject small").first.inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator(".panel .subject small").first.inner_text() != first
    page.keyboard.press("+")
    assert float(state(page)["zoom"]) == 1.5
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.className") == "panel"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("trained neighbour 1")
    page.locator("#explorer canvas").focus()
    page.keyboard.press("Escape")
    assert page.locator(".panel .subject").count() == 0


def test_a_tap_picks_and_two_fingers_zoom(show):
    page = show(390, has_touch=True, is_mobile=True)
    x, y = middle(page)
    for offset in range(-100, 100, 14):
        page.touchscreen.tap(x + offset, y)
        if page.locator(".panel h3").count():
            break
    assert page.locator(".panel h3").count() == 3
    page.locator("#explorer canvas").scroll_into_view_if_needed()
    x, y = middle(page)
    session = page.context.new_cdp_session(page)
    for kind, apart in (("touchStart", 20), ("touchMove", 40), ("touchMove", 80), ("touchEnd", None)):
        points = [] if apart is None else [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert float(state(page)["zoom"]) > 1.5
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing runs over the edge"


def test_without_scripts_a_still_map_stands_there(show):
    page = show(java_script_enabled=False)
    assert page.locator(".plane .still").is_visible() and not page.locator(".tools").is_visible()
    assert page.locator("#neighbours .cut").count() == 8 * 13


def test_print_has_the_still_map_and_all_sections(show):
    page = show()
    page.emulate_media(media="print")
    assert page.locator(".plane .still").is_visible() and not page.locator("#explorer canvas").is_visible()
    assert not page.locator("nav").is_visible() and page.pdf()[:4] == b"%PDF"


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(show, width, scheme):
    page = show(width, color_scheme=scheme, reduced_motion="reduce")  # a page that still scrolls hides parts
    page.locator("#explorer canvas").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(500)
    page.evaluate(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8"))
    found = page.evaluate(
        "axe.run().then((result) => result.violations.map((v) => [v.id, v.nodes.map((n) => n.html)]))"
    )
    assert found == []
