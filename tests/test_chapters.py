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


# Numbers that are neither a setting of the page's cells nor a result: (page, number): why it may stand.
ALLOWED = {
    ("equations", "24"): "the paper's count of equations",
    ("errata", "0.1"): "the paper's learning rate, the default of train",
    ("errata", "97"): "asserted in the cell below it",
    ("errata", "122"): "asserted in the cell below it",
    ("index", "8"): "the paper's setting",
    ("index", "3.11"): "a version of Python",
    ("instability", "95"): "the level of Wilson intervals, a default",
    ("kernel_balanced_equation", "24"): "4! orders of four groups",
    ("model", "8"): "the paper's setting",
    ("model", "3"): "the paper's setting",
    ("notation", "8"): "the paper's setting",
    ("notation", "3"): "the paper's setting",
    ("notation", "0.1"): "the paper's setting",
    ("notation", "10"): "defines a range of quantiles",
    ("notation", "80"): "defines a range of quantiles",
    ("notation", "90"): "defines a range of quantiles",
    ("notation", "95"): "defines the level of intervals",
    ("scaling_out", "9"): "the name of a signal",
}
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?")
CELL = re.compile(r"^```\{code-cell\}.*?^```", re.MULTILINE | re.DOTALL)
NOT_PROSE = [
    CELL,
    re.compile(r"\A---.*?^---$", re.MULTILINE | re.DOTALL),
    re.compile(r"^```\{.*?^```", re.MULTILINE | re.DOTALL),  # formulas, generated tables
    re.compile(r"\$[^$]*\$|`[^`]*`|\]\([^)]*\)|\{[a-z:]+\}"),  # formulas, code, targets of links and references
    re.compile(r"^(:{3,}|:label:|:class:|\(\S+\)=|#+).*$|^ *\d+\. ", re.MULTILINE),  # directives, headings, list marks
    re.compile(
        r"\b(eqs?\.?|equations?|FIG\.?|sections?|chapters?|claims?|rules?|item|paper:) *\d+(( ?,| to| and|–|-) ?\d+)*",
        re.IGNORECASE,
    ),  # references
    re.compile(r"\d+ minutes to read|\b(19|20)\d\d\b(?! epochs)"),  # reading times, years
]


@pytest.mark.parametrize("page", PAGES)
def test_numbers_in_prose_are_settings_not_results(page):
    """A number in prose is a setting if one of the page's cells sets it; a result comes out of a cell."""
    text = (ROOT / f"{page}.md").read_text()
    settings = {
        float(number.replace("_", ""))
        for cell in CELL.findall(text)
        for number in re.findall(r"\d[\d_]*(?:\.\d+)?(?:e-?\d+)?", cell)
    }
    for pattern in NOT_PROSE:
        text = pattern.sub(" ", text)
    for number in NUMBER.findall(text):
        small = float(number) in (0, 1, 2)  # labels, counts, powers
        percent = float(number) / 100 in settings
        known = small or percent or float(number) in settings or (page.removeprefix("book/"), number) in ALLOWED
        assert known, f"{number} is typed into the prose of {page}; let a cell compute it, or say in ALLOWED why not"
