"""The chapters' files: every chapter is a Markdown file with an output-free notebook of the same cells beside it."""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml

ROOT = Path(__file__).parent.parent
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"]] + [chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]]
CHAPTERS = [page for page in PAGES if "{code-cell}" in (ROOT / f"{page}.md").read_text()]


def test_every_file_of_the_book_is_in_the_contents():
    assert {str(path.relative_to(ROOT).with_suffix("")) for path in (ROOT / "book").glob("*.md")} == set(PAGES)
    assert {str(path.relative_to(ROOT).with_suffix("")) for path in (ROOT / "book").glob("*.ipynb")} == set(CHAPTERS)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_pair_is_in_step_and_holds_no_outputs(chapter):
    markdown = jupytext.read(ROOT / f"{chapter}.md").cells
    notebook = nbformat.read(ROOT / f"{chapter}.ipynb", as_version=4).cells

    def content(cells):
        return [(cell.cell_type, cell.source, dict(cell.metadata)) for cell in cells]

    assert content(notebook) == content(markdown), "run `make format`"
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook if cell.cell_type == "code")


@pytest.mark.parametrize("page", PAGES)
def test_page_has_one_title_and_a_text_for_every_figure(page):
    text = (ROOT / f"{page}.md").read_text()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    assert len(re.findall(r"^# ", prose, re.MULTILINE)) == 1
    assert len(re.findall(r"figure:", text)) == len(re.findall(r"\balt:", text))
