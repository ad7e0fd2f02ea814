"""What `mutmut run` found: the score, and whether every survivor is one that we know and can give the reason for.

    python tests/mutants.py

`tests/mutants_survivors.yml` lists survivors by their function and by the line before and after.  Equivalent ones
compute the same; the others are gaps that we live with.  The exit status is 1 for a survivor that is not listed, for a
listed one that no longer survives, or if less than 95 % of the mutants that are not equivalent are killed.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import yaml
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "tests" / "power.json"
KNOWN = ROOT / "tests" / "mutants_survivors.yml"
KILLED = ("killed", "timeout", "segfault")


def change(name: str, path: Path) -> tuple[str, str, str]:
    """A mutant as its function and what was and is there."""
    lines = get_diff_for_mutant(name, path=path).splitlines()[2:]
    was, now = ([line[1:].strip() for line in lines if line.startswith(sign)] for sign in "-+")
    return name.split(".x_")[1].split("__mutmut_")[0], " ".join(was), " ".join(now)


def main() -> int:
    found, survivors, functions = Counter(), set(), {}
    for meta in sorted((ROOT / "mutants").glob("*.py.meta")):
        for name, code in json.loads(meta.read_text())["exit_code_by_key"].items():
            status = status_by_exit_code[code]
            status = "killed" if status in KILLED else status
            found[status] += 1
            functions.setdefault(name.split(".x_")[1].split("__mutmut_")[0], Counter())[status] += 1
            if status in ("survived", "no tests"):
                survivors.add(change(name, Path(meta.stem)))
    listed = {(e["function"], e["was"], e["now"]): e for e in yaml.safe_load(KNOWN.read_text()) or []}
    unexplained, gone = sorted(survivors - listed.keys()), sorted(listed.keys() - survivors)
    equivalent = sum(listed[s]["equivalent"] for s in survivors & listed.keys())
    tried = sum(found.values()) - found["not checked"]
    score = found["killed"] / max(1, tried - equivalent)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record["mutants"] = dict(found) | {"equivalent": equivalent, "score": round(score, 4)}
    record["mutants"]["functions tried"] = sorted(f for f, n in functions.items() if not n["not checked"])
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    for kind, entries in (("survived and is not listed", unexplained), ("is listed and did not survive", gone)):
        for function, was, now in entries:
            print(f"{kind}: {function}\n    - {was}\n    + {now}")
    print(f"{dict(found)}, {equivalent} equivalent, {100 * score:.1f} % of the others killed")
    return bool(unexplained or gone or score < 0.95 or found["not checked"])


if __name__ == "__main__":
    sys.exit(main())
