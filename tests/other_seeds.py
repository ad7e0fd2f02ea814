"""Run every chapter with other seeds: each verdict of the ledger must come out as it is on record.

    python tests/other_seeds.py [OFFSET] [CHAPTER ...]

Every seed that a chapter states is moved by OFFSET (default 5000).  A verdict that comes out otherwise, or a chapter's
own assertion that fails, is printed, and the exit status is 1.
"""

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
SEED = re.compile(r"\b(manual_seed|default_rng)\(")


def complaints(chapter: Path, offset: int) -> list[str]:
    """What went wrong in a chapter whose seeds are moved by offset."""
    notebook = jupytext.read(chapter)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = SEED.sub(rf"\1({offset} + ", cell.source)
    NotebookClient(notebook, allow_errors=True, resources={"metadata": {"path": str(chapter.parent)}}).execute()
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return [f"{chapter.stem}: {o.ename} {o.evalue}" for o in outputs if o.output_type == "error"]


def main() -> int:
    offset = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    names = sys.argv[2:] or [path.stem for path in sorted((ROOT / "book").glob("*.ipynb"))]
    chapters = [ROOT / "book" / f"{name}.md" for name in names]
    with ThreadPoolExecutor(2) as pool:  # each chapter has a kernel, that is a process, of its own
        found = [line for lines in pool.map(lambda c: complaints(c, offset), chapters) for line in lines]
    print(*found, f"{len(found)} contradictions in {len(chapters)} chapters, seeds moved by {offset}", sep="\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
