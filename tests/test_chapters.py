"""The chapters' files: every chapter is a Markdown file with an output-free notebook of the same cells beside it."""

import ast
import functools
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


@functools.cache
def code_cells(page):
    return [cell for cell in jupytext.read(ROOT / f"{page}.md").cells if cell.cell_type == "code"]


def last_call(source):
    """What the last line of a cell calls: "show" for `view.show(...)`."""
    last = ast.parse(source).body[-1]
    return getattr(getattr(getattr(last, "value", None), "func", None), "attr", None)


@pytest.mark.parametrize("page", PAGES)
def test_page_has_one_title_and_a_text_for_every_figure(page):
    text = (ROOT / f"{page}.md").read_text()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    assert len(re.findall(r"^# ", prose, re.MULTILINE)) == 1
    for cell in code_cells(page):
        about = cell.metadata.get("mystnb", {})
        if "figure" in about:
            name, typed = about["figure"]["name"], "alt" in about.get("image", {})
            computed = last_call(cell.source) == "show"
            assert typed != computed, f"{name} must either end with view.show(fig, its text) or have `image: alt`"


SAMPLE = re.compile(
    r"nothing (here )?(is )?random|seeds? \d|\b(\d[\d ,]*|one|two|three|first|all|each|every)\b[^.;]{0,40}?"
    r"(networks?|trainings?|runs?|splits?|draws?|data sets?)",
    re.IGNORECASE,
)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_caption_says_what_was_run_how_often(chapter):
    for cell in code_cells(chapter):
        figure = cell.metadata.get("mystnb", {}).get("figure")
        assert figure is None or SAMPLE.search(figure["caption"]), f"{figure['name']}: how many runs does it show?"


@pytest.mark.parametrize("chapter", sorted({*CHAPTERS, "book/discussion"} - {"book/index", "book/laboratory"}))
def test_chapter_opens_the_laboratory_set_up_for_its_question(chapter):
    assert re.search(r'<a href="laboratory\.html#[^"]*=', (ROOT / f"{chapter}.md").read_text())


# Numbers in prose, captions and computed sentences that are neither a setting of the page's cells nor a result:
# (page, number): why it may stand.
ALLOWED = {
    ("equations", "24"): "the paper's count of equations",
    ("errata", "0.1"): "the paper's learning rate, the default of train",
    ("errata", "97"): "asserted in the cell below it",
    ("errata", "122"): "asserted in the cell below it",
    ("index", "8"): "the paper's setting",
    ("index", "0.1"): "the paper's learning rate, the default of train",
    ("index", "3.11"): "a version of Python",
    ("kernel_balanced_equation", "24"): "4! orders of four groups",
    ("measured_kernel", "120"): "the seed, 100 + N",
    ("model", "8"): "the paper's setting",
    ("model", "3"): "the paper's setting",
    ("modes", "97"): "the number of parameters, asserted in the model chapter",
    ("notation", "8"): "the paper's setting",
    ("notation", "3"): "the paper's setting",
    ("notation", "0.1"): "the paper's setting",
    ("notation", "10"): "defines a range of quantiles",
    ("notation", "80"): "defines a range of quantiles",
    ("notation", "90"): "defines a range of quantiles",
    ("notation", "95"): "defines the level of intervals",
    ("performance", "11"): "the sizes of the density chapter",
    ("rival_explanations", "95"): "defines when an abscissa wins, and the level of intervals",
    ("scaling_out", "9"): "the name of a signal",
    ("testing", "1.5"): "the limit that tests/test_book.py holds",
}
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?")
NOT_PROSE = [
    re.compile(r"^```\{code-cell\}.*?^```", re.MULTILINE | re.DOTALL),
    re.compile(r"\A---.*?^---$", re.MULTILINE | re.DOTALL),
    re.compile(r"^```\{.*?^```", re.MULTILINE | re.DOTALL),  # formulas, generated tables
    re.compile(
        r"\$[^$]*\$|`[^`]*`|\]\([^)]*\)|<a href=[^>]*>|\{[a-z:]+\}"
    ),  # formulas, code, targets of links and references
    re.compile(r"^(:{3,}|:label:|:class:|\(\S+\)=|#+).*$|^ *\d+\. ", re.MULTILINE),  # directives, headings, list marks
    re.compile(
        r"\b(eqs?\.?|equations?|FIG\.?|sections?|chapters?|claims?|rules?|item|paper:) *\d+(( ?,| to| and|–|-) ?\d+)*",
        re.IGNORECASE,
    ),  # references
    re.compile(r"\d+ minutes to read|\b(19|20)\d\d\b(?! epochs)"),  # reading times, years
    re.compile(r"\b10(–| to )90 %|\b95 %(?= ([\w-]+ )?(interval|band)s?\b)"),  # what a range and an interval are
]


@functools.cache
def settings_of(page):
    """The numbers in the code of a page's cells, not those in its comments, captions and sentences."""
    nodes = (node for cell in code_cells(page) for node in ast.walk(ast.parse(cell.source)))
    return {float(n.value) for n in nodes if isinstance(n, ast.Constant) and type(n.value) in (int, float)}


def results_in(text, page):
    """The numbers of a text that are neither settings of its page nor allowed."""
    for pattern in NOT_PROSE:
        text = pattern.sub(" ", text)
    settings = settings_of(page) | {0.0, 1.0, 2.0}  # labels, counts, powers
    return [
        number
        for number in NUMBER.findall(text)
        if not {float(number), float(number) / 100} & settings  # as a number, or in percent
        and (page.removeprefix("book/"), number) not in ALLOWED
    ]


def typed_in(node):
    """What is typed into a string, the computed parts of an f-string left out."""
    if isinstance(node, ast.JoinedStr):
        return " … ".join(typed_in(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return typed_in(node.left) + typed_in(node.right)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def sentences(cell):
    """The caption and the static text of a cell's figure, and the sentences that its code shows."""
    about = cell.metadata.get("mystnb", {})
    yield about.get("figure", {}).get("caption", "")
    yield about.get("image", {}).get("alt", "")
    for node in ast.walk(ast.parse(cell.source)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("show", "say", "verdict", "equation"):
            yield from map(typed_in, node.args)
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):  # a frame of a slider, and its text
            yield from map(typed_in, node.value.elts)


@pytest.mark.parametrize("page", PAGES)
def test_numbers_in_prose_are_settings_not_results(page):
    """A number in prose is a setting if one of the page's cells sets it; a result comes out of a cell."""
    found = results_in((ROOT / f"{page}.md").read_text(), page)
    assert not found, f"{found} typed into the prose of {page}; let a cell compute it, or say in ALLOWED why not"


@pytest.mark.parametrize("page", PAGES)
def test_numbers_in_captions_and_computed_sentences_are_settings_not_results(page):
    found = {
        text: numbers for cell in code_cells(page) for text in sentences(cell) if (numbers := results_in(text, page))
    }
    assert not found, f"typed into {page}: {found}; let a cell compute it, or say in ALLOWED why not"


def test_the_lint_sees_a_result_where_it_stands():
    cell = nbformat.v4.new_code_cell('view.show(fig, f"{N} points, V is 0.123 and {V:.3f}")')
    cell.metadata["mystnb"] = {"figure": {"caption": "It rises to 0.77."}}
    assert [number for text in sentences(cell) for number in results_in(text, "book/model")] == ["0.77", "0.123"]
