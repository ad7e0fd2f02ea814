"""The check, checked: break the book in one way after the other and see that something notices, and what.

    python tests/break_the_build.py [NAME ...]

Each breakage is made in a clone of the committed state, beside the environment and a copy of the built book; the
command that ought to notice must fail, and its output must say why.  Without any breakage all commands must pass.
Needs `make book` first.  What the builder notices is tried with a book of two pages, under the settings and with the
command of the whole one.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nbformat

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "tests" / "power.json"  # what the page on testing shows
BUILD = "make -o .venv/installed book"
FILES = ".venv/bin/python -m pytest -q tests/test_chapters.py"
PAGES = ".venv/bin/python -m pytest -q tests/test_book.py -k links_inside"
NOTEBOOK = ".venv/bin/python -m pytest -q --nbmake book/one_point_training.ipynb"  # it judges C1, and runs in seconds
RAISES = ".venv/bin/python -m pytest -q --nbmake book/errata.ipynb"
COUNT = "bash .ci/count"
LINT = "make -o .venv/installed lint"


class Breakage(NamedTuple):
    mistake: str  #                  what somebody did, as a sentence
    damage: Callable[[Path], None]
    command: str  #                  what must fail
    says: str  #                     a pattern that its output must show


def replace(file: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(clone: Path) -> None:
        text = (clone / file).read_text()
        assert old in text, f"{old!r} is not in {file} any more"
        (clone / file).write_text(text.replace(old, new, 1))

    return damage


def add_cell(file: str, source: str) -> Callable[[Path], None]:
    def damage(clone: Path) -> None:
        with (clone / file).open("a") as chapter:
            chapter.write(f"\n```{{code-cell}} ipython3\n{source}\n```\n")

    return damage


def add_cell_to_notebook(file: str, source: str) -> Callable[[Path], None]:
    def damage(clone: Path) -> None:
        notebook = nbformat.read(clone / file, as_version=4)
        notebook.cells.append(nbformat.v4.new_code_cell(source))
        nbformat.write(notebook, clone / file)

    return damage


def store_output(clone: Path) -> None:
    path = clone / "book" / "index.ipynb"
    notebook = nbformat.read(path, as_version=4)
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    cell.outputs = [nbformat.v4.new_output("stream", text="42")]
    nbformat.write(notebook, path)


def other_verdict(clone: Path) -> None:
    path = clone / "book" / "claims.yml"
    entries = re.split(r"(?m)^(?=\w+:$)", path.read_text())
    changed = [e.replace("verdict: holds\n", "verdict: does not hold\n") if e.startswith("C1:") else e for e in entries]
    assert changed != entries
    path.write_text("".join(changed))


def remove_a_picture(clone: Path) -> None:
    page = (clone / "_build/html/book/index.html").read_text()
    (clone / "_build/html" / re.search(r"_images/[0-9a-f]+\.png", page)[0]).unlink()


HEADER = "---\njupytext: {formats: 'ipynb,md:myst', text_representation: {extension: .md, format_name: myst}}\n"
HEADER += "kernelspec: {display_name: Python 3, language: python, name: python3}\n---\n\n"
TWO_PAGES = {
    "_toc.yml": "format: jb-book\nroot: book/index\nchapters:\n- file: book/chapter\n",
    "book/index.md": "# A book\n\n[Its chapter](chapter.md).\n",
    "book/chapter.md": HEADER + "# A chapter\n\n```{code-cell} ipython3\nimport kbe_lib\n\nkbe_lib.JUMP\n```\n",
}


def two_pages(clone: Path) -> None:
    """The book cut down to two pages, its settings kept."""
    for page in [*clone.glob("book/*.md"), *clone.glob("book/*.ipynb")]:
        page.unlink()
    for name, text in TWO_PAGES.items():
        (clone / name).write_text(text)
    shutil.rmtree(clone / "_build")
    convert = [clone / ".venv/bin/jupytext", "--quiet", "--to", "ipynb", clone / "book/chapter.md"]
    subprocess.run(convert, check=True)


BREAKAGES = {
    "notebook raises": Breakage(
        "A cell of a chapter raises, in the build.", add_cell("book/chapter.md", "raise RuntimeError('broken')"),
        BUILD, "RuntimeError.*: broken",
    ),
    "notebook raises in the test": Breakage(
        "A cell of a chapter raises, in the notebook.",
        add_cell_to_notebook("book/errata.ipynb", "raise RuntimeError('broken')"),
        RAISES, "RuntimeError.*: broken",
    ),
    "page missing": Breakage(
        "A chapter is left out of the contents.", replace("_toc.yml", "      - file: book/errata\n", ""),
        FILES, "test_every_file_of_the_book_is_in_the_contents",
    ),
    "page not built": Breakage(
        "A page was not built.", lambda clone: (clone / "_build/html/book/errata.html").unlink(),
        PAGES, "errata.html",
    ),
    "figure missing": Breakage("A figure's file is gone.", remove_a_picture, PAGES, "_images"),
    "pair out of step": Breakage(
        "The Markdown was edited and the notebook was not.", replace("book/errata.md", "# Errata", "# Erratum"),
        FILES, "run `make format`",
    ),
    "output stored": Breakage("A notebook was saved with its outputs.", store_output, FILES, "index"),
    "tests lost": Breakage(
        "A test file is not collected any more.",
        lambda clone: (clone / "tests/test_kernels.py").rename(clone / "tests/kernels.py"),
        COUNT, "fewer than",
    ),
    "verdict changes": Breakage(
        "The record says otherwise than the measurement.", other_verdict, NOTEBOOK, "but the verdict on record is",
    ),
    "link breaks": Breakage(
        "A page links to a page that is not there.",
        replace("book/chapter.md", "# A chapter", "# A chapter\n\n[x](y.md)\n"), BUILD, r"WARNING.*y\.md",
    ),
    "warning": Breakage(
        "A reference leads nowhere.",
        replace("book/chapter.md", "# A chapter", "# A chapter\n\n{eq}`eq-nowhere`\n"), BUILD, "WARNING.*eq-nowhere",
    ),
    "style": Breakage(
        "An import is not used.", replace("kbe_view.py", "import io\n", "import io\nimport os\n"), LINT, "F401",
    ),
}  # fmt: skip


def fresh_clone(folder: str, command: str) -> Path:
    clone = Path(folder).resolve() / "clone"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    (clone / ".venv").symlink_to((ROOT / ".venv").resolve())
    shutil.copytree(ROOT / "_build" / "html", clone / "_build" / "html", symlinks=True)
    if command == BUILD:
        two_pages(clone)
    return clone


def attempt(clone: Path, command: str) -> tuple[int, str]:
    variables = dict(os.environ, CI="true", PYTHONPATH=str(clone), OMP_NUM_THREADS="1")
    done = subprocess.run(
        command, shell=True, cwd=clone, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.returncode, done.stdout


def main() -> int:
    names = sys.argv[1:] or list(BREAKAGES)
    outcome, unnoticed = [], 0
    for command in dict.fromkeys(BREAKAGES[name].command for name in names):
        with tempfile.TemporaryDirectory() as folder:
            code, output = attempt(fresh_clone(folder, command), command)
        if code:
            print(f"fails without any breakage: {command}\n{output[-2000:]}")
            return 1
        print(f"passes without any breakage: {command}", flush=True)
    for name in names:
        mistake, damage, command, says = BREAKAGES[name]
        with tempfile.TemporaryDirectory() as folder:
            clone = fresh_clone(folder, command)
            damage(clone)
            code, output = attempt(clone, command)
        caught = code != 0 and re.search(says, output) is not None
        unnoticed += not caught
        noticed = command.removeprefix(".venv/bin/") if caught else "nothing"
        outcome.append({"what somebody did": mistake, "what noticed": noticed})
        print(f"{'caught' if caught else 'NOT CAUGHT'}: {mistake} ({command})", flush=True)
        if not caught:
            print(output[-1500:])
    if not sys.argv[1:]:
        record = json.loads(RECORD.read_text()) | {"breakages": outcome}
        RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return bool(unnoticed)


if __name__ == "__main__":
    sys.exit(main())
