"""The built pages in a real browser, with the network cut.

Without a build or a browser these tests skip on a user's machine and fail in CI, which has both.
"""

import functools
import http.server
import os
import re
import shutil
import threading
from types import SimpleNamespace

import pytest
from axe_playwright_python.sync_playwright import Axe
from test_chapters import PAGES, ROOT

HTML = ROOT / "_build" / "html"
PROGRAM = shutil.which("chromium") or shutil.which("google-chrome")
MISSING = [
    what for what, there in (("a built book: run `make book`", HTML.exists()), ("chromium", PROGRAM)) if not there
]
if MISSING:
    if os.environ.get("CI"):
        pytest.fail(f"missing: {' and '.join(MISSING)}", pytrace=False)
    pytest.skip(f"missing: {' and '.join(MISSING)}", allow_module_level=True)

WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
# Pages that are made from code, beside those of the contents.
MADE = ["search", "genindex", "_modules/kbe_lib"]
ALL = PAGES + MADE

AXE_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
# The insides of formulas are MathJax's and number thousands of elements per page; their colours are the text's own.
AXE_CONTEXT = {"exclude": [["mjx-container"]]}
CONTRAST = {"preload": False, "resultTypes": ["violations"], "runOnly": {"type": "rule", "values": ["color-contrast"]}}
EVERYTHING = {
    "preload": False,
    "resultTypes": ["violations"],
    "runOnly": {"type": "tag", "values": AXE_TAGS},
    "rules": {"region": {"enabled": True}, "label-content-name-mismatch": {"enabled": True}},
}
STRUCTURE = EVERYTHING | {"rules": EVERYTHING["rules"] | {"color-contrast": {"enabled": False}}}

# formulas in the text that end beyond the screen, where nothing scrolls
CUT_OFF = """[...document.querySelectorAll('.bd-article mjx-container:not([display])')]
    .filter(formula => !formula.closest('table') && formula.getBoundingClientRect().right > innerWidth + 1)
    .map(formula => (formula.closest('p, li') ?? formula).textContent.slice(0, 80))"""
VISIBLE_FRAME = "slider => [...slider.querySelectorAll('img')].find(image => image.offsetParent !== null).src"


@pytest.fixture(scope="session")
def server():
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=HTML))
    threading.Thread(target=site.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{site.server_port}"
    site.shutdown()


def open_page(browser, address: str, allowed: str):
    """A page with the network cut: what it asked for elsewhere, and what it complained of."""
    context = browser.new_context(viewport=WIDE, color_scheme="light", reduced_motion="reduce")
    page, asked, complaints = context.new_page(), [], []

    def gate(route):
        if route.request.url.startswith((allowed, "data:")):
            return route.continue_()
        asked.append(route.request.url)
        return route.abort()

    context.route("**/*", gate)
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"not loaded: {request.url}"))
    page.goto(address)
    page.evaluate("window.MathJax?.startup?.promise")
    return page, asked, complaints


def violations(page, options) -> list[str]:
    found = Axe().run(page, context=AXE_CONTEXT, options=options).response["violations"]
    return [f"{rule['id']}: {node['html'][:150]}" for rule in found for node in rule["nodes"]]


def move_sliders(page) -> list[str]:
    """Move every slider by a key; what stayed as it was."""
    stuck = []
    for slider in page.query_selector_all(".kbe-slider"):
        name, handle = slider.get_attribute("aria-label"), slider.query_selector("input")
        before = slider.evaluate(VISIBLE_FRAME), handle.get_attribute("aria-valuetext")
        handle.focus()
        page.keyboard.press("ArrowLeft" if handle.input_value() == handle.get_attribute("max") else "ArrowRight")
        after = slider.evaluate(VISIBLE_FRAME), handle.get_attribute("aria-valuetext")
        stuck += [f"{name}: {what}" for what, a, b in zip(("picture", "text"), before, after, strict=True) if a == b]
    return stuck


@pytest.fixture(scope="module", params=[pytest.param(page, marks=pytest.mark.xdist_group(page)) for page in ALL])
def visit(request, browser):
    """One visit to a page from the file system, in both modes and on a phone: what was seen."""
    address = (HTML / f"{request.param}.html").as_uri()
    page, asked, complaints = open_page(browser, address, "file:///")
    seen = SimpleNamespace(name=request.param, source=(HTML / f"{request.param}.html").read_text())
    seen.formulas = page.locator("mjx-container").count()
    seen.bad_formulas = page.locator("mjx-merror").count()
    seen.blank = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)")
    seen.sliders, seen.stuck = page.locator(".kbe-slider").count(), move_sliders(page)
    seen.light = violations(page, EVERYTHING)
    page.emulate_media(color_scheme="dark")
    # by a selector: a function would travel as text, which the pages' policy stops
    page.wait_for_selector("html[data-theme='dark']", state="attached")
    page.wait_for_timeout(500)  # colours fade from one mode to the other
    seen.dark = violations(page, CONTRAST)
    page.set_viewport_size(PHONE)
    seen.too_wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    seen.cut_off = page.evaluate(CUT_OFF)
    seen.phone = violations(page, STRUCTURE)
    seen.asked, seen.complaints = asked, list(complaints)
    page.context.close()
    return seen


def test_page_asks_no_other_host_and_complains_of_nothing(visit):
    assert visit.asked == []
    assert visit.complaints == []


def test_every_formula_is_typeset_and_every_picture_there(visit):
    assert visit.formulas == len(re.findall(r'class="math notranslate', visit.source))
    assert visit.bad_formulas == 0
    assert visit.blank == []


def test_every_slider_moves(visit):
    source = ROOT / f"{visit.name}.md"
    made = source.read_text().count("view.slider(") if source.exists() else 0
    assert visit.sliders == made
    assert visit.stuck == []


def test_page_is_accessible_in_light_and_dark_and_on_a_phone(visit):
    assert visit.light == []
    assert visit.dark == []
    assert visit.phone == []


def test_page_fits_a_phone(visit):
    assert visit.too_wide <= 0
    assert visit.cut_off == []


@pytest.mark.parametrize("name", ["book/index", "book/kernel_balanced_equation", "search"])
def test_page_is_as_good_from_a_server(name, browser, server):
    page, asked, complaints = open_page(browser, f"{server}/{name}.html", server)
    assert page.locator("mjx-container").count() == (HTML / f"{name}.html").read_text().count('class="math notranslate')
    assert (asked, complaints) == ([], [])
    page.context.close()


def test_search_finds_without_a_server(browser):
    address = (HTML / "search.html").as_uri() + "?q=collapse"
    page, asked, complaints = open_page(browser, address, "file:///")
    page.wait_for_selector("#search-results li a")
    assert page.locator("#search-results li a[href*='collapse.html']").count()
    assert (asked, complaints) == ([], [])
    page.context.close()


def test_policy_stops_a_script_that_is_not_the_pages_own(browser):
    page, _, complaints = open_page(browser, (HTML / "book" / "index.html").as_uri(), "file:///")
    page.evaluate("document.head.append(Object.assign(document.createElement('script'), {text: 'window.foreign = 1'}))")
    page.evaluate("document.body.append(Object.assign(new Image(), {src: 'https://example.org/pixel.png'}))")
    page.wait_for_timeout(200)
    assert page.evaluate("window.foreign") is None
    assert len([text for text in complaints if "Content Security Policy" in text]) == 2
    page.context.close()


def test_buttons_with_a_script_of_their_own_still_work(browser):
    page, _, complaints = open_page(browser, (HTML / "book" / "index.html").as_uri(), "file:///")
    page.evaluate("window.print = () => (window.printed = true)")
    page.eval_on_selector(".btn-download-pdf-button", "button => button.click()")
    assert page.evaluate("window.printed")
    assert complaints == []
    page.context.close()
