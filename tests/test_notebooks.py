"""The notebooks to take along: plain Markdown, the cell for Colab, and, where there is a build, what was written."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from test_chapters import CHAPTERS, ROOT

sys.path.insert(0, str(ROOT / "_ext"))
import kbe_notebooks

WRITTEN = ROOT / "_build" / "html" / "downloads"


class Book:
    """Numbers and addresses as the pages would have them."""

    def equation(self, label):
        return {"eq-one": "1.1"}[label]

    def number(self, kind, page, target):
        return {("exercise", "ex-one"): "1.2"}[kind, target]

    def labelled(self, label):
        return {"fig-one": "Fig. 1.3"}[label]

    def citation(self, keys, in_text):
        return "Somebody (2023)" if in_text else "(Somebody, 2023)"

    def page(self, name):
        return f"../book/{name}.html"

    def place(self, label):
        return {"a-target": "../book/one.html#a-target"}[label]


@pytest.mark.parametrize(
    ("myst", "markdown"),
    [
        ("After {eq}`eq-one`, {cite:t}`x`.", "After (1.1), Somebody (2023)."),
        ("{numref}`fig-one` and {numref}`the figure <fig-one>`", "Fig. 1.3 and the figure"),
        ("(a-target)=\n## Heading", "## Heading"),
        ("[model](model.md#words)", "[model](../book/model.html#words)"),
        ('<a href="laboratory.html#N=1">See</a>', '<a href="../book/laboratory.html#N=1">See</a>'),
        ("[there](a-target)", "[there](../book/one.html#a-target)"),
        ("[elsewhere](https://example.org/a.md)", "[elsewhere](https://example.org/a.md)"),
        ("```{math}\n:label: eq-one\nx=1\n```", "$$\nx=1 \\tag{1.1}\n$$"),
        ("$$x=1$$ (eq-one)", r"$$x=1\tag{1.1}$$"),
        (":::{note}\nAfter {eq}`eq-one`.\n:::", "> **Note**\n>\n> After (1.1)."),
        (":::{exercise}\n:label: ex-one\nWhy?\n:::", "> **Exercise 1.2**\n>\n> Why?"),
        ("::::{grid} 1 2\n:::{grid-item-card} A\nText.\n:::\n::::", "**A**\n\nText."),
        ("```python\n{eq}`not-a-role`\n```\n", "```python\n{eq}`not-a-role`\n```"),
    ],
)
def test_myst_becomes_markdown(myst, markdown):
    assert kbe_notebooks.plain(Book(), "book/page", myst) == markdown


def run_cell(tmp_path, url, colab):
    """Run the cell in a bare interpreter, with or without a module google.colab; where it stands then."""
    if colab:
        (tmp_path / "modules" / "google" / "colab").mkdir(parents=True)
    cell = kbe_notebooks.COLAB_CELL.format(url=url)
    ask = f"{cell}\nimport os, sys; print(os.getcwd()); print(sys.path[0])"
    command = [sys.executable, "-S", "-c", ask]  # without site packages: not even the book's own modules are there
    variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path / "modules")}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
    return [Path(line) for line in done.stdout.split()]


def test_cell_does_nothing_outside_colab(tmp_path):
    assert run_cell(tmp_path, "https://example.org/nowhere", colab=False)[0] == tmp_path
    assert not list(tmp_path.iterdir())


def test_cell_fetches_the_book_in_colab(tmp_path):
    origin = tmp_path / "origin"
    (origin / "book").mkdir(parents=True)
    (origin / "kbe_lib.py").write_text("")
    (origin / "book" / "claims.yml").write_text("")
    git = ["git", "-C", origin, "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "book"]):
        subprocess.run([*git, *command], check=True)
    folder, path = run_cell(tmp_path, f"file://{origin}", colab=True)
    assert (folder, path) == (tmp_path / "the_book" / "book", tmp_path / "the_book")
    assert (path / "kbe_lib.py").exists()


@pytest.mark.skipif(not WRITTEN.exists(), reason="no built book: run `make book` first")
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_written_notebook_is_executed_and_plain(chapter):
    notebook = nbformat.read(WRITTEN / f"{chapter.removeprefix('book/')}.ipynb", as_version=4)
    source = nbformat.read(ROOT / f"{chapter}.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if "google.colab" in code[0].source:
        code = code[1:]
    assert [cell.source for cell in code] == [cell.source for cell in source.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    pictures = [o for cell in code for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= sum("figure" in cell.metadata.get("mystnb", {}) for cell in source.cells)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"^```\w*\n.*?^```$", "", cell.source, flags=re.MULTILINE | re.DOTALL)
            assert not re.search(r"\{[a-z:]+\}`|^ *(:{3,}|`{3,}\{)|^\([\w-]+\)=$", text, re.MULTILINE)
