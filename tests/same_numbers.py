"""Run chapters again and compare every word and picture with what the build put on the page.

    make book; python tests/same_numbers.py [CHAPTER ...]

On one machine two runs must give the same outputs, byte for byte.  Only measured times may differ: cells whose source
speaks of a clock are left out, and counted.  The record has the totals of the last run of all chapters, and for each
chapter what its own last run gave.
"""

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor

from jupyter_cache import get_cache
from myst_nb.core.read import myst_nb_reader_plugin
from rerun import ROOT, chosen, run

sys.path.insert(0, str(ROOT / "_ext"))
import kbe_book

RECORD = ROOT / "tests" / "power.json"  # what the page on testing shows
CLOCK = re.compile(
    r"running_time|perf_counter|process_time|seconds|results\.json|tqdm|sweep\(|Cluster|timed\(|at one time \| here"
)
ADDRESS = re.compile(r"0x[0-9a-f]+|model_id\": \"[0-9a-f]+")  # where an object happens to lie in memory


def contents(outputs) -> list:
    """What a reader sees of a cell, by kind; what it prints in one piece, however it came."""
    printed = [output for output in outputs if output.output_type == "stream"]
    seen = [
        (name, ADDRESS.sub("", "".join(output.text for output in printed if output.name == name)))
        for name in sorted({output.name for output in printed})
    ]
    for output in outputs:
        data = output.get("data") or {"error": output.get("evalue")} if output.output_type != "stream" else {}
        seen += [
            (kind, ADDRESS.sub("", str(value))) for kind, value in sorted(data.items()) if "widget-view" not in kind
        ]
    return seen


def main() -> int:
    cache = get_cache(str(kbe_book.cache_path()))
    chapters = chosen(sys.argv[1:])

    def compare(chapter):
        stored = cache.get_cache_bundle(cache.match_cache_notebook(myst_nb_reader_plugin(str(chapter))).pk).nb.cells
        built = [cell for cell in stored if cell.cell_type == "code"]
        again = [cell for cell in run(chapter).cells if cell.cell_type == "code"]
        lines, compared, left_out = [], 0, 0
        for old, new in zip(built, again, strict=True):
            if CLOCK.search(new.source):
                left_out += 1
                continue
            compared += 1
            if contents(old.outputs) != contents(new.outputs):
                lines.append(f"{chapter.stem}: other output of the cell that begins {new.source[:60]!r}")
        return lines, compared, left_out

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(compare, chapters))
    found = [line for lines, _, _ in results for line in lines]
    compared, left_out = (sum(result[i] for result in results) for i in (1, 2))
    print(*found, sep="\n")
    print(f"{compared} cells of {len(chapters)} chapters compared, {len(found)} differ; {left_out} left out, they time")
    record = json.loads(RECORD.read_text())
    rows = {row["chapter"]: row for row in record.get("the same numbers again, by chapter", [])}
    for chapter, (lines, n_compared, n_left_out) in zip(chapters, results, strict=True):
        numbers = {"cells compared": n_compared, "differ": len(lines), "left out": n_left_out}
        rows[chapter.stem] = {"chapter": chapter.stem, **numbers}
    record["the same numbers again, by chapter"] = [rows[name] for name in sorted(rows)]
    if not sys.argv[1:]:
        record["the same numbers again"] = {
            "chapters executed twice": len(chapters),
            "cells compared, words and pictures": compared,
            "cells that differ": len(found),
            "which": [line.replace("other output of the cell that begins ", "") for line in found] or "none",
            "cells left out, because they show measured times": left_out,
        }
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
