"""The report as Chromium shows it."""

import os
import shutil

import pytest

from wenet.report.figures import PALETTE
from wenet.report.write import write_report

from .runs import add_audit, copy_run, edit_json

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        path = CHROMIUM or driver.chromium.executable_path
        if not os.path.exists(path):
            pytest.skip("needs Chromium: playwright install chromium")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(searched, trained, tmp_path_factory):
    """Reports of a search with an audit, and of a training."""
    run = copy_run(searched, tmp_path_factory.mktemp("page") / "search-of-a-text-with-a-long-name-20260101-120000")
    add_audit(run)
    write_report(run)
    return {"search": run / "report.html", "train": trained / "report.html"}


@pytest.fixture
def look(browser, pages):
    """Open a report; whatever the page complains of or asks for is collected, and must be nothing but the page."""
    opened, complaints = [], []

    def open_page(kind, width=1000, **options):
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url))
        page.goto(pages[kind].as_uri() if kind in pages else kind)
        opened.append(page)
        return page

    yield open_page
    for page in opened:
        page.close()
    assert complaints == []


@pytest.mark.parametrize(
    ("kind", "figures"),
    [("search", ["cell", "weights", "trajectories", "learning", "audit"]), ("train", ["cell", "learning"])],
)
@pytest.mark.parametrize("width", [400, 1000])
def test_every_figure_is_there_and_fits(look, kind, figures, width):
    page = look(kind, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in figures:
        figure = page.get_by_role("img", name=page.locator(f"#{name}-title").text_content())
        box = figure.bounding_box()
        assert box["width"] > 250 and box["height"] > 150 and box["x"] + box["width"] <= width
    texts = page.evaluate(
        "[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height).filter(h => h > 0)"
    )
    assert min(texts) > 8  # pixels: still to be read where the page is narrow


def test_rounds_by_keyboard(look):
    page = look("search")
    slider = page.get_by_role("slider", name="Round")
    slider.focus()
    assert page.locator("#round-text").text_content().startswith("Round 3:")
    page.keyboard.press("Home")
    assert page.locator("#round-text").text_content().startswith("Round 1:")
    assert slider.get_attribute("aria-valuetext") == "round 1"
    shown = "id => getComputedStyle(document.querySelector(`#weights-round-${id} path`)).opacity"
    assert [page.evaluate(shown, f"{number}-kept") for number in (1, 2, 3)] == ["1", "0", "0"]
    page.keyboard.press("ArrowRight")
    assert [page.evaluate(shown, f"{number}-equal") for number in (1, 2, 3)] == ["0", "1", "0"]


def test_all_can_be_reached_by_keyboard(look):
    page = look("search")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.tagName + ' ' + document.activeElement.className"))
    assert {"A ", "INPUT ", "SUMMARY ", "DIV table", "PRE "} <= reached


def test_the_first_column_stays_where_a_table_is_wide(look):
    page = look("search", 400)
    page.locator("#settings summary").click()
    table = page.locator("#settings .table")
    before = table.locator("tbody th").nth(3).bounding_box()
    table.evaluate("table => table.scrollLeft = 1000")
    assert table.evaluate("table => table.scrollLeft") > 50
    assert table.locator("tbody th").nth(3).bounding_box()["x"] == before["x"]
    cover = table.locator("tbody th").nth(3).evaluate("cell => getComputedStyle(cell).backgroundColor")
    assert cover == rgb(PALETTE["paper"][0])  # what scrolls under it does not show


@pytest.mark.parametrize("allowed", [True, False])
def test_commands_are_copied(look, browser, allowed):
    page = look("search")
    if not allowed:
        page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.evaluate("addEventListener('copy', () => (window.copied = getSelection().toString()))")
    if allowed:
        page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text }")
    button = page.locator("#again pre + .copy")
    button.click()
    assert button.text_content() == "Copied"
    assert page.evaluate("window.copied").strip() == page.locator("#again pre").text_content().strip()


def rgb(colour: str) -> str:
    """A colour as browsers report it."""
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_follow_the_reader(look, theme):
    page = look("search", color_scheme=theme)
    paper, ink, blue = (rgb(PALETTE[name][theme == "dark"]) for name in ("paper", "ink", "blue"))
    for element, style, colour in (
        ("html", "backgroundColor", paper),
        ("body", "color", ink),
        ("#weights-patch_1 path", "fill", paper),
        ("#weights svg text", "fill", ink),
        ("#weights-round-3-kept path", "fill", blue),
    ):
        found = page.evaluate(f"getComputedStyle(document.querySelector('{element}')).{style}")
        assert found == colour, element


def test_without_scripts_the_last_round_shows(look):
    page = look("search", java_script_enabled=False)
    assert not page.locator("#rounds").is_visible()
    assert page.get_by_role("img", name="Sorted network weights").is_visible()


def test_a_live_page_reads_itself_again_unless_told_not_to(look, pages, tmp_path):
    run = copy_run(pages["search"].parent, tmp_path / "run")
    edit_json(run / "best.json", rounds=1)
    write_report(run, live=True)
    text = (run / "report.html").read_text().replace('data-seconds="15"', 'data-seconds="0.5"')
    (run / "report.html").write_text(text)
    page = look((run / "report.html").as_uri())
    with page.expect_navigation():
        pass
    page.get_by_label("read this page again").uncheck()
    page.evaluate("window.untouched = true")
    page.wait_for_timeout(1500)
    assert page.evaluate("window.untouched")
    page.reload()
    assert not page.get_by_label("read this page again").is_checked()
