"""Print the whole book, built as one page, to PDF: make pdf.

    python _ext/print_book.py _build/singlehtml OUT.pdf

References between chapters become links inside the PDF, headings its outline, and each page has its number.
"""

import re
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SMALL = "font-size: 8px; width: 100%; text-align: center; color: #555;"


def print_book(site: Path, pdf: Path) -> None:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("chromium or google-chrome is needed to print the book, and neither is installed")
    pdf.parent.mkdir(parents=True, exist_ok=True)
    # the builder puts the page into book/, with addresses as if it stood here, and calls it by name inside itself
    whole = site / "whole.html"
    text = (site / "book" / "index.html").read_text(encoding="utf-8")
    whole.write_text(re.sub(r'href="book/index.html#?', 'href="#', text), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        page = browser.new_page(color_scheme="light")
        page.set_default_timeout(600_000)  # a thousand formulas on a busy machine
        page.goto(whole.resolve().as_uri())
        page.evaluate("MathJax.startup.promise")
        page.pdf(
            path=pdf, format="A4", scale=0.85, print_background=True, outline=True, tagged=True,
            display_header_footer=True,
            margin={"top": "18mm", "bottom": "18mm", "left": "18mm", "right": "18mm"},
            header_template="<span></span>",
            footer_template=f'<div style="{SMALL}"><span class="pageNumber"></span></div>',
        )  # fmt: skip
        browser.close()
    print(f"{pdf}: {pdf.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    print_book(Path(sys.argv[1]), Path(sys.argv[2]))
