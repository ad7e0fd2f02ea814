"""The built pages.  Without a build these tests skip on a user's machine and fail in CI, which builds first."""

import base64
import hashlib
import os
import re
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from test_chapters import PAGES, ROOT

sys.path.insert(0, str(ROOT / "_ext"))
import kbe_pages

HTML = ROOT / "_build" / "html"

if not HTML.exists():
    if os.environ.get("CI"):
        pytest.fail("no built book: run `make book` first", pytrace=False)
    pytest.skip("no built book: run `make book` first", allow_module_level=True)


class Page(HTMLParser):
    """Links, anchors, images and classes of one page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.images, self.classes = [], set(), [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.add(attributes.get("id"))
        self.classes.update((attributes.get("class") or "").split())
        if tag == "img":
            self.images.append(attributes)
        for name in ("href", "src"):
            if attributes.get(name):
                self.links.append(attributes[name])


@pytest.fixture(scope="module")
def pages():
    return {page: Page(HTML / f"{page}.html") for page in PAGES}


@pytest.mark.parametrize("page", PAGES)
def test_page_has_its_figures_with_alternative_text(page, pages):
    source = (ROOT / f"{page}.md").read_text()
    for name in re.findall(r"^ +figure: *\{?\n? *name: *([\w-]+)", source, re.MULTILINE):
        assert name in pages[page].anchors
    figures = [image for image in pages[page].images if "_images" in image["src"]]
    assert len(figures) >= source.count("figure:")
    for image in figures:
        assert len(image.get("alt", "")) > 40, f"a sentence for {image['src']}"


@pytest.mark.parametrize("page", PAGES)
def test_no_cell_printed_an_error_or_a_warning(page, pages):
    assert not pages[page].classes & {"traceback", "stderr", "output_error"}
    assert "Traceback (most recent call last)" not in (HTML / f"{page}.html").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_the_book_lead_somewhere(page, pages):
    here = (HTML / f"{page}.html").parent
    anchors = {str((HTML / f"{name}.html").resolve()): parsed.anchors for name, parsed in pages.items()}
    for link in pages[page].links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (here / unquote(parts.path)).resolve() if parts.path else (HTML / f"{page}.html").resolve()
        assert target.exists(), link
        settings = target.stem == "laboratory" and "=" in parts.fragment  # tests/test_laboratory.py reads those
        if parts.fragment and not settings and str(target) in anchors:
            assert unquote(parts.fragment) in anchors[str(target)], link


def test_front_door_leads_to_the_index():
    assert "book/index.html" in (HTML / "index.html").read_text()


def words_and_more(page):
    """Words outside code and formulas of a built page, displayed formulas, figures."""
    text = (HTML / f"{page}.html").read_text(encoding="utf-8")
    article = text[text.index('<article class="bd-article">') : text.index("</article>")]
    displayed, figures = article.count('<div class="math notranslate'), article.count("<figure")
    for pattern in (r'<div class="highlight">.*?</div>', r'<(span|div) class="math notranslate.*?</\1>', r"<[^>]+>"):
        article = re.sub(pattern, " ", article, flags=re.DOTALL)
    return len(re.findall(r"[\w'’-]+", article)), displayed, figures


@pytest.mark.parametrize("page", PAGES)
def test_time_to_read_is_about_right(page):
    """Told on every chapter that is read from end to end; within 5 minutes and 30 % of what its length says."""
    told = re.search(r"(\d+) minutes to read", (HTML / f"{page}.html").read_text())
    if told is None:
        assert page.removeprefix("book/") in NOT_READ_FROM_END_TO_END
        return
    words, displayed, figures = words_and_more(page)
    expected = words / 200 + 0.3 * displayed + 0.7 * figures
    assert abs(int(told[1]) - expected) <= 5 + 0.3 * expected, f"about {expected:.0f} minutes to read"


NOT_READ_FROM_END_TO_END = {
    "index", "laboratory", "verdicts", "equations", "notation", "api", "bibliography",
}  # fmt: skip

LIMIT = 1_500_000
SITE = [path for path in HTML.rglob("*.html") if path.relative_to(HTML).parts[0] not in ("_static", "vendor", "lab")]


@pytest.mark.parametrize("page", PAGES)
def test_page_is_light_without_its_figures(page):
    weight, _ = kbe_pages.page_weight(HTML / f"{page}.html", HTML)
    assert weight < LIMIT, f"{weight / 1e6:.2f} MB"
    text = (HTML / "book" / "testing.html").read_text()
    stated = re.search(rf'href="{page.removeprefix("book/")}\.html">[^<]*</a></td><td>([\d.]+)</td>', text)
    assert float(stated[1]) == pytest.approx(weight / 1e6, abs=0.011)  # of the table itself, and of rounding


def test_page_weight_counts_what_a_page_loads(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "_images").mkdir()
    noise = {
        name: os.urandom(size) for name, size in (("a.js", 4000), ("b.css", 2000), ("c.woff", 1000), ("d.png", 700))
    }
    for name, content in noise.items():
        (tmp_path / ("_images" if name == "d.png" else "") / name).write_bytes(content)
    page = tmp_path / "book" / "page.html"
    page.write_text(
        '<script src="../a.js?v=1"></script><link href="../b.css"><img alt="" src="../_images/d.png">'
        f'<img src="data:image/png;base64,{"A" * 300}">'
    )
    bare, figures = kbe_pages.page_weight(page, tmp_path)
    assert bare == pytest.approx(7000, abs=300)  # random bytes do not compress
    assert figures == 1000


@pytest.mark.parametrize("path", SITE, ids=lambda path: str(path.relative_to(HTML)))
def test_page_names_its_scripts_and_loads_nothing_from_elsewhere(path):
    text = path.read_text(encoding="utf-8")
    if "<head>" not in text:  # the front door, which only leads to the index
        return
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', text)
    assert policy.start() < text.index("<script")
    for body in re.findall(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", text, re.DOTALL):
        assert base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() in policy[1]
    assert "'unsafe-inline'" not in policy[1].split("script-src")[1].split(";")[0]
    assert not re.findall(r'<(?:script|img|iframe|source)[^>]*\ssrc="(?:https?:)?//', text)
    assert not re.findall(r'<link[^>]*rel="(?:stylesheet|preload|preconnect|icon)"[^>]*href="(?:https?:)?//', text)


@pytest.mark.parametrize("page", PAGES)
def test_every_icon_is_in_the_style(page, pages):
    style = (ROOT / "_static" / "kbe.css").read_text()
    icons = {name for name in pages[page].classes if re.fullmatch(r"fa-[a-z-]+", name)} - {"fa-solid", "fa-lg"}
    assert icons
    assert {name for name in icons if f".{name}::before" not in style} == set()


@pytest.mark.parametrize("page", PAGES)
def test_social_card(page):
    text = (HTML / f"{page}.html").read_text()
    card = re.search(r'<meta property="og:image" content="[^"]*(_images/social_previews/[^"]+)"', text)
    assert (HTML / card[1]).stat().st_size > 10_000
    assert '<meta property="og:description"' in text


def test_every_module_is_documented():
    text = (HTML / "book" / "api.html").read_text()
    for module in ROOT.glob("kbe_*.py"):
        assert f'id="module-{module.stem}"' in text


def test_code_in_the_text_leads_to_its_documentation():
    links = re.findall(
        r'href="api.html#kbe_[\w.]+"[^>]*><code[^>]*>(.+?)</code>', (HTML / "book/notation.html").read_text()
    )
    assert "kbe.predict" in re.sub(r"<[^>]+>", "", " ".join(links))
