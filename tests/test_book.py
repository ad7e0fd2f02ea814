"""The built pages.  Without a build these tests skip on a user's machine and fail in CI, which builds first."""

import os
import re
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from test_chapters import PAGES, ROOT

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
