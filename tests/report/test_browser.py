"""The page in a real browser: no errors, nothing from a network, and everything on it works and fits."""

import shutil
from pathlib import Path

import pytest

from alignlab.report import write_report

RESULTS = Path(__file__).parents[2] / "reports" / "results"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SERIOUS = ("serious", "critical")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    # Heatmaps, curves, forests, tables, captions, sliders, pictures.
    write_report([RESULTS / name for name in ("measure-scenes", "table4", "table2", "compute-paper")], path)
    return path


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, report):
    """The report on a desktop, with what it said and what it asked for beside it."""
    yield from _opened(browser, report, 1280, 900, "light")


@pytest.fixture
def phone(browser, report):
    yield from _opened(browser, report, 390, 844, "dark")


def _opened(browser, report, width, height, scheme):
    screen = {"width": width, "height": height}
    context = browser.new_context(viewport=screen, color_scheme=scheme, reduced_motion="reduce")
    context.set_default_timeout(60_000)  # a busy machine is no failure
    opened = context.new_page()
    said, asked = [], []
    opened.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: None if request.url.startswith("data:") else asked.append(request.url))
    opened.goto(report.as_uri())
    opened.said, opened.asked = said, asked
    yield opened
    assert said == []
    assert asked == [report.as_uri()]
    context.close()


def _fits_and_reads_well(opened, width):
    """No sideways scrolling, no serious finding of axe-core, no picture without words; with everything unfolded."""
    from axe_playwright_python.sync_playwright import Axe

    opened.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.evaluate("document.body.scrollWidth") <= width
    found = Axe().run(opened).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in SERIOUS] == []
    assert opened.locator("img:not([alt]), img[alt='']").count() == 0


@pytest.mark.parametrize("screen", ["page", "phone"])
def test_it_fits_the_screen_and_axe_finds_nothing_serious(request, screen):
    opened = request.getfixturevalue(screen)
    _fits_and_reads_well(opened, opened.viewport_size["width"])


@pytest.mark.parametrize("which", ["one measurement", "the committed page of all"])
def test_so_do_one_measurement_and_everything(browser, which, tmp_path):
    path = RESULTS.parent / "embedded.html"
    if which == "one measurement":
        path = write_report([RESULTS / "measure-scenes"], tmp_path / "one.html").path
    for width, height, scheme in ((1280, 900, "dark"), (390, 844, "light")):
        for opened in _opened(browser, path, width, height, scheme):
            _fits_and_reads_well(opened, width)


def test_a_heading_sorts_its_table_by_numbers_and_back(page):
    table = page.locator("figure.table", has_text="Alignment with smollm2 on scenes").first
    heading = table.get_by_role("button", name="z", exact=True)

    def column():
        return [float(x) for x in table.locator("tbody td:nth-child(6)").all_inner_texts()]

    before = column()
    heading.click()
    assert table.locator("th[aria-sort=ascending]").inner_text().startswith("z")
    assert column() == sorted(before) != before
    heading.focus()
    page.keyboard.press("Enter")
    assert column() == sorted(before, reverse=True)


def test_the_slider_moves_the_border_between_two_versions(page):
    gallery = page.locator(".gallery:has(input[type=range])").first
    slide = gallery.locator(".slide").first
    shown = slide.locator("img:visible")
    assert shown.count() == 2
    right = slide.locator("img.right")

    def border():
        return right.evaluate("one => getComputedStyle(one).clipPath")

    assert "50%" in border()
    slide.locator("input").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert "55%" in border()
    gallery.locator("select[data-side=right]").select_option("truth")
    assert slide.locator("img.right").get_attribute("data-label") == "truth"
    assert slide.locator("img:visible").count() == 2


def test_every_picture_is_there_where_it_is_shown_again_too(browser):
    for opened in _opened(browser, RESULTS.parent / "embedded.html", 1280, 900, "light"):
        again = opened.locator("img[data-picture]")
        numbers = again.evaluate_all("all => all.map(one => one.dataset.picture)")
        assert len(set(numbers)) < len(numbers)
        widths = "all => Promise.all(all.map(one => one.decode().then(() => one.naturalWidth)))"
        assert min(again.evaluate_all(widths)) > 0
        sources = again.evaluate_all("all => all.map(one => one.src)")
        assert len(set(sources)) == len(set(numbers)) == len(set(zip(numbers, sources, strict=True)))


def test_a_heatmap_tells_the_value_under_the_pointer_and_by_keys(page):
    import json

    matrix = json.loads((RESULTS / "measure-scenes" / "result.json").read_text())["pairs"][1]["matrix"]
    page.locator("summary", has_text="Every pair of layers on scenes").first.click()
    figure = page.locator("figure.plot", has_text="cka of mae and smollm2").first
    figure.scroll_into_view_if_needed()
    cells = figure.locator(".over")
    box = cells.bounding_box()
    rows, columns = len(matrix), len(matrix[0])
    # The cell of encoder layer 6 and language model layer 1: row 0 is at the bottom.
    page.mouse.move(box["x"] + 1.5 * box["width"] / columns, box["y"] + (rows - 6 - 0.5) * box["height"] / rows)
    readout = figure.locator(".readout")
    assert readout.inner_text().startswith(f"mae layer 6, smollm2 layer 1: {matrix[6][1]:.3f}")
    assert "shuffled" in readout.inner_text()
    page.mouse.move(0, 0)
    figure.locator(".scroll").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    assert readout.inner_text().startswith("mae layer ")


def test_the_cells_of_a_heatmap_lie_where_they_are_drawn(page):
    """The layer with the values covers the picture of the matrix, not its axes."""
    page.locator("summary", has_text="Every pair of layers on scenes").first.click()
    figure = page.locator("figure.plot", has_text="cka of mae and smollm2").first
    over, drawn = figure.locator(".over").bounding_box(), figure.locator("svg image").first.bounding_box()
    for side in ("x", "y", "width", "height"):
        assert over[side] == pytest.approx(drawn[side], abs=2.5)


def test_dark_and_light_follow_the_reader_and_the_button(phone):
    def ground():
        return phone.evaluate("getComputedStyle(document.body).backgroundColor")

    dark = ground()
    assert dark == "rgb(21, 23, 27)"
    phone.get_by_role("button", name="Light").click()
    assert ground() == "rgb(253, 253, 252)"
    # Figures take the page's colour.
    ink = phone.evaluate("getComputedStyle(document.querySelector('.plot svg text')).fill")
    assert ink == "rgb(27, 29, 33)"
    phone.get_by_role("button", name="Dark").click()
    assert ground() == dark


def test_on_paper_everything_is_open_and_nothing_is_cut(page):
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("[...document.querySelectorAll('details')].every(one => one.open)")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 within its margins
    assert not page.locator("#theme").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    assert page.evaluate("[...document.querySelectorAll('pre')].every(one => one.scrollWidth <= one.clientWidth + 1)")
    # Every version of a picture, with its name.
    slide = page.locator(".slide").first
    assert slide.locator("img:visible").count() == slide.locator("img").count() > 2
    assert slide.locator("small:visible").count() == slide.locator("img").count()
    assert len(page.pdf()) > 10_000


def test_a_finger_reads_a_heatmap(browser, report):
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, reduced_motion="reduce")
    opened = context.new_page()
    opened.goto(report.as_uri())
    opened.locator("summary", has_text="Every pair of layers on scenes").first.tap()
    figure = opened.locator("figure.plot", has_text="cka of mae and smollm2").first
    figure.scroll_into_view_if_needed()
    figure.locator(".over").tap()
    assert "smollm2 layer" in figure.locator(".readout").inner_text()
    context.close()


def test_the_first_stop_of_the_keyboard_leads_to_the_results(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the results"
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")
