"""The whole book on paper: page numbers in the contents, links, outline."""

import os
import re
import shutil
import sys

import pytest
from pypdf import PdfReader
from test_chapters import ROOT

sys.path.insert(0, str(ROOT / "_ext"))
import print_book

if shutil.which("chromium") is None and shutil.which("google-chrome") is None:
    if os.environ.get("CI"):
        pytest.fail("no browser: chromium or google-chrome is needed", pytrace=False)
    pytest.skip("no browser: chromium or google-chrome is needed", allow_module_level=True)

BOOK = """<html lang="en"><head><title>A book</title><link rel="stylesheet" href="kbe.css"></head><body>
<div id="jb-print-docs-body"><div id="jb-print-toc"><h2>Contents</h2><a href="#document-book/one">1. One</a>
<a href="#document-book/two">2. Two</a></div></div>
<div class="toctree-wrapper bd-article"><span id="document-book/one"></span><section><h2>1. One</h2>
<p style="height: 2000px"></p></section>
<span id="document-book/two"></span><section><h2>2. Two</h2><p style="height: 700px"></p>
<div class="highlight" style="display: flex; break-inside: avoid"><pre style="overflow: auto">{code}</pre></div>
<a href="#there">There</a></section>
<span id="document-book/three"></span><section><h2 id="there">3. Three</h2></section></div></body></html>"""


@pytest.fixture(scope="module")
def pdf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("print")
    shutil.copy(ROOT / "_static" / "kbe.css", folder)
    (folder / "book.html").write_text(BOOK.replace("{code}", "\n".join(f"line {k}" for k in range(60))))
    print_book.print_page(folder / "book.html", folder / "book.pdf")
    return PdfReader(folder / "book.pdf")


def test_chapters_begin_on_new_pages_and_the_contents_say_where(pdf):
    texts = [page.extract_text() for page in pdf.pages]
    begins = [
        next(k for k, text in enumerate(texts, 1) if text.startswith(heading)) for heading in ("1. One", "2. Two")
    ]
    stated = re.search(r"1\. One\s*(\d+)\s*2\. Two\s*(\d+)", texts[0])
    assert [int(stated[1]), int(stated[2])] == begins
    assert texts[-1].startswith("3. Three")


def test_long_code_goes_on_over_the_page(pdf):
    texts = [page.extract_text() for page in pdf.pages]
    assert "line 0\n" in next(text for text in texts if text.startswith("2. Two"))


def test_links_lead_to_their_page_and_the_outline_names_the_headings(pdf):
    assert pdf.get_destination_page_number(pdf.named_destinations["/there"]) == len(pdf.pages) - 1
    assert [item.title for item in pdf.outline] == ["Contents", "1. One", "2. Two", "3. Three"]
    assert pdf.metadata.title == "A book"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1.2. 1.2. The lossThe loss", "1.2. The loss"),
        ("Cite itCite it", "Cite it"),
        ("1.1. One", "1.1. One"),
        ("V*", "V*"),
    ],
)
def test_headings_that_the_outline_says_twice(written, meant):
    assert print_book.once(written) == meant


def test_links_of_the_single_page_lead_somewhere():
    page = (
        '<a class="x" href="book/index.html#a"></a><p id="a"></p><span id="document-book/laboratory"></span>'
        '<a class="x image-reference" href="_images/b.png"><img></a><a href="laboratory.html#N=1,lr=0.1">See</a>'
        '<span class="bibtex-citation" id="id1"><a class="x" href="#id1">cited</a></span><p id="id1"></p>'
    )
    plain, published = (print_book.as_one_page(page, address) for address in ("", "https://example.org/"))
    assert 'href="#a"' in plain
    assert "b.png" not in plain
    assert plain.count('id="id1"') == 1
    assert 'href="#document-book/laboratory"' in plain
    assert 'href="https://example.org/book/laboratory.html#N=1,lr=0.1"' in published


@pytest.mark.parametrize("targets", ["", '<p id="a"></p><p id="a"></p>'])
def test_a_link_to_no_place_or_to_two_is_refused(targets):
    with pytest.raises(ValueError, match="not: a"):
        print_book.as_one_page(f'<a class="x" href="#a"></a>{targets}', "")
