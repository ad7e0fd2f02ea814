"""Run chapters again, outside the build, and hand back what they put out."""

import os
from collections.abc import Callable
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parent.parent
# as in the build: this checkout's helpers, one thread
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
os.environ.setdefault("OMP_NUM_THREADS", "1")
CHAPTERS = [path.with_suffix(".md") for path in sorted((ROOT / "book").glob("*.ipynb"))]


def chosen(names: list[str]) -> list[Path]:
    """The named chapters, or all."""
    return [ROOT / "book" / f"{name}.md" for name in names] if names else CHAPTERS


def run(chapter: Path, edit: Callable[[str], str] = lambda source: source, book: Path | None = None) -> NotebookNode:
    """The chapter, executed with every code cell edited first; errors are outputs like others."""
    notebook = jupytext.read(chapter)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = edit(cell.source)
    folder = str(book or chapter.parent)
    NotebookClient(notebook, timeout=900, allow_errors=True, resources={"metadata": {"path": folder}}).execute()
    return notebook


def errors(notebook: NotebookNode) -> list[str]:
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return [f"{output.ename} {output.evalue}" for output in outputs if output.output_type == "error"]
