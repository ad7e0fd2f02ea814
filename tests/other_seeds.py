"""Run every chapter with other seeds: each verdict of the ledger must come out as it is on record.

    python tests/other_seeds.py [OFFSET] [CHAPTER ...]

Every seed that a chapter states is moved by OFFSET (default 5000).  A verdict that comes out otherwise, or a chapter's
own assertion that fails, is printed, and the exit status is 1.  A run over all chapters goes on record.
"""

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor

from rerun import ROOT, chosen, errors, run

RECORD = ROOT / "tests" / "power.json"  # what the page on testing shows
SEED = re.compile(r"\b(manual_seed|default_rng)\(")


def main() -> int:
    offset = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    chapters = chosen(sys.argv[2:])

    def complaints(chapter):
        notebook = run(chapter, lambda source: SEED.sub(rf"\1({offset} + ", source))
        return [f"{chapter.stem}: {error}" for error in errors(notebook)]

    with ThreadPoolExecutor(2) as pool:  # each chapter has a kernel, that is a process, of its own
        found = [line for lines in pool.map(complaints, chapters) for line in lines]
    print(*found, f"{len(found)} contradictions in {len(chapters)} chapters, seeds moved by {offset}", sep="\n")
    if not sys.argv[2:]:
        put_on_record(found, len(chapters), offset)
    return bool(found)


def put_on_record(found: list[str], chapters: int, offset: int) -> None:
    record = json.loads(RECORD.read_text())
    rows = [
        ("chapters run with other seeds", f"{chapters}, seeds moved by {offset}"),
        ("came out otherwise", len(found)),
    ]
    rows += [line.split(": AssertionError ") for line in found]
    record["other seeds"] = [{"": where, "figure": what} for where, what in rows]
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
