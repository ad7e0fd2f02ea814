"""What `mutmut run` found: the score, and whether every survivor is one that we know and can give the reason for.

    python tests/mutants.py

`tests/mutants_survivors.yml` lists survivors by their function and by the line before and after.  Equivalent ones
compute the same; the others are gaps that we live with.  The record keeps the outcome of each function, so that a run
over some of them, `mutmut run 'kbe_lib.x_train__mutmut_*'`, renews theirs alone.  The exit status is 1 for a survivor
that is not listed, for a listed one that no longer survives, for a mutant that was never tried, or if less than 95 % of
the mutants that are not equivalent are killed.
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
    functions, survivors = {}, set()
    for meta in sorted((ROOT / "mutants").glob("*.py.meta")):
        for name, code in json.loads(meta.read_text())["exit_code_by_key"].items():
            status = status_by_exit_code[code]
            functions.setdefault(name.split(".x_")[1].split("__mutmut_")[0], Counter())[status] += 1
            if status in ("survived", "no tests"):
                survivors.add(change(name, Path(meta.stem)))
    entries = yaml.safe_load(KNOWN.read_text()) or []
    listed = {(e["function"], e["was"], e["now"]): e["equivalent"] for e in entries}
    whole = {f for f, statuses in functions.items() if not statuses["not checked"]}
    unexplained = sorted(survivors - listed.keys())
    gone = sorted(s for s in listed.keys() - survivors if s[0] in whole or s[0] not in functions)

    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    known = record.get("mutants by function", {})
    for function in whole:
        of_it = [equivalent for entry, equivalent in listed.items() if entry in survivors and entry[0] == function]
        known[function] = dict(functions[function]) | {"equivalent": sum(of_it)}
    record["mutants by function"] = {function: known[function] for function in functions if function in known}
    total = sum((Counter(statuses) for statuses in record["mutants by function"].values()), Counter())
    planted = sum(sum(statuses.values()) for statuses in functions.values())
    tried = total.total() - total["equivalent"]
    killed = sum(total[status] for status in KILLED)
    score = killed / max(1, tried - total["equivalent"])
    record["mutants"] = {
        "functions": f"{len(record['mutants by function'])} of {len(functions)}",
        "mutants tried": f"{tried} of {planted}",
        "killed by a test": total["killed"],
        "ended by the limit of time, or a crash": killed - total["killed"],
        "survived, but equivalent": total["equivalent"],
        "survived": tried - killed - total["equivalent"],
        "killed, of those that are not equivalent": f"{100 * score:.1f} %",
    }
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    for kind, changes in (("survived and is not listed", unexplained), ("is listed and did not survive", gone)):
        for function, was, now in changes:
            print(f"{kind}: {function}\n    - {was}\n    + {now}")
    print(*(f"{name}: {figure}" for name, figure in record["mutants"].items()), sep="\n")
    return bool(unexplained or gone or score < 0.95 or tried < planted)


if __name__ == "__main__":
    sys.exit(main())
