"""Print the whole book, built as one page, to PDF: make pdf.

    python _ext/print_book.py _build/singlehtml OUT.pdf

References between chapters become links inside the PDF, headings its outline, and each page has its number.  It is
printed twice: where a chapter begins is known after the first time, and stands in the contents of the second.
"""

import logging
import os
import re
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import NameObject, TextStringObject

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SMALL = "font: 8px sans-serif; width: 100%; text-align: center; color: #555;"
CONTENTS = "#jb-print-toc a[href^='#']"
NUMBER_CONTENTS = """(links, pages) => {
  for (const link of links) {
    link.querySelector(".kbe-page")?.remove();
    link.insertAdjacentHTML("beforeend", `<span class="kbe-page">${pages[link.hash.slice(1)] ?? ""}</span>`);
  }
}"""


def as_one_page(text: str, address: str) -> str:
    """The single page with links that lead somewhere on paper; the laboratory's to its page, where that has an address.

    Raises:
        ValueError: if a link leads nowhere, or to one of several targets of the same name.
    """
    # the builder puts the page into book/, with addresses as if it stood beside it, and calls it by name inside itself
    text = re.sub(r'href="book/index.html#?', 'href="#', text)
    text = text.replace('href="#document-book/index"', 'href="#jb-print-docs-body"')
    # chapters count their citations from one again
    text = re.sub(r'(<span class="bibtex-citation") id="id\d+"', r"\1", text)
    text = re.sub(r'<a class="[^"]*image-reference[^"]*" href="_images/[^"]*">(.*?)</a>', r"\1", text, flags=re.DOTALL)
    laboratory = f"{address}book/laboratory.html#" if address else "#document-book/laboratory"
    text = re.sub(
        r'href="(?:laboratory\.html)?#(\w+=[^"]*)"',
        lambda match: f'href="{laboratory}{match[1] if address else ""}"',
        text,
    )
    names = re.findall(r'\sid="([^"]+)"', text)
    links = set(re.findall(r'<a class="(?!headerlink)[^"]*" href="#([^"]+)"', text))
    wrong = sorted(link for link in links if names.count(link) != 1)
    if wrong:
        raise ValueError(f"links of the book must lead to one place each, these do not: {', '.join(wrong)}")
    return text


def once(title: str) -> str:
    """A heading's words in the outline, where Chromium writes those twice that it moves to the next page."""
    match = re.fullmatch(r"(?:([\d.]+ )\1)?(.+)\2", title)
    return (match[1] or "") + match[2] if match else title


def begins(pdf: Path) -> dict[str, int]:
    """The page on which each target of a link stands, by its name."""
    reader = PdfReader(pdf)
    places = reader.named_destinations.items()
    return {name.removeprefix("/"): reader.get_destination_page_number(place) + 1 for name, place in places}


def finish(pdf: Path, title: str) -> None:
    """Outline in plain words, language and title."""
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it counts the copy's objects aloud
    writer = PdfWriter(clone_from=pdf)
    writer.add_metadata({"/Title": title})
    writer.root_object[NameObject("/Lang")] = TextStringObject("en")

    def walk(item):
        while item is not None:
            item = item.get_object()
            if "/Title" in item:
                item[NameObject("/Title")] = TextStringObject(once(item["/Title"]))
            if "/First" in item:
                walk(item["/First"])
            item = item.get("/Next")

    walk(writer.root_object["/Outlines"])
    writer.write(pdf)


def print_page(whole: Path, pdf: Path) -> None:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("chromium or google-chrome is needed to print the book, and neither is installed")
    pdf.parent.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        page = browser.new_page(color_scheme="light")
        page.set_default_timeout(600_000)  # a thousand formulas on a busy machine
        page.goto(whole.resolve().as_uri())
        page.evaluate("window.MathJax?.startup.promise")
        title = page.title()
        pages = {}
        for _ in range(2):
            page.eval_on_selector_all(CONTENTS, NUMBER_CONTENTS, pages)
            page.pdf(
                path=pdf, format="A4", scale=0.85, print_background=True, outline=True, tagged=True,
                display_header_footer=True,
                margin={"top": "20mm", "bottom": "18mm", "left": "18mm", "right": "18mm"},
                header_template=f'<div style="{SMALL}"><span class="title"></span></div>',
                footer_template=f'<div style="{SMALL}"><span class="pageNumber"></span></div>',
            )  # fmt: skip
            pages = begins(pdf)
        browser.close()
    finish(pdf, title)


def print_book(site: Path, pdf: Path) -> None:
    whole = site / "whole.html"
    text = (site / "book" / "index.html").read_text(encoding="utf-8")
    address = re.sub(r"/*$", "/", os.environ["BOOK_URL"]) if os.environ.get("BOOK_URL") else ""
    whole.write_text(as_one_page(text, address), encoding="utf-8")
    print_page(whole, pdf)
    print(f"{pdf}: {pdf.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    print_book(Path(sys.argv[1]), Path(sys.argv[2]))
