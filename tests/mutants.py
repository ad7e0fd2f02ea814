"""What `mutmut run` found: the score, and whether every survivor is one that we know and can give the reason for.

    python tests/mutants.py

`tests/mutants_survivors.yml` lists survivors by their function and by the line before and after.  Equivalent ones
compute the same; the others are gaps that we live with.  The record keeps the outcome of each function for as long as
its text does not change, so that a run over some of them, `mutmut run 'kbe_lib.x_train__mutmut_*'`, renews theirs
alone.  The exit status is 1 for a survivor that is not listed, for a listed one that no longer survives, for a mutant
that was never tried, or if less than 95 % of a module's mutants that are not equivalent are killed.
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
KILLED, BY_ITSELF = "killed", ("timeout", "segfault")


def function_of(name: str) -> str:
    """kbe_lib.x_train__mutmut_3 as kbe_lib.train, and kbe_sweep.xǁCellǁname__mutmut_3 as kbe_sweep.Cell.name."""
    module, mangled = name.split("__mutmut_")[0].split(".")
    return f"{module}.{mangled.removeprefix('x').removeprefix('_').strip('ǁ').replace('ǁ', '.')}"


def change(name: str, path: Path) -> tuple[str, str, str]:
    """A mutant as its function and what was and is there."""
    lines = get_diff_for_mutant(name, path=path).splitlines()[2:]
    was, now = ([line[1:].strip() for line in lines if line.startswith(sign)] for sign in "-+")
    return function_of(name), " ".join(was), " ".join(now)


def row(module: str, planted: int, functions: int, outcomes: list[dict[str, int]]) -> dict[str, str | int]:
    """What came of a module's mutants, as a line of the table."""
    total = sum((Counter(outcome) for outcome in outcomes), Counter())
    equivalent = total.pop("equivalent", 0)
    tried, by_itself = total.total(), sum(total[status] for status in BY_ITSELF)
    killed = total[KILLED] + by_itself
    return {
        "module": module,
        "functions": f"{len(outcomes)} of {functions}",
        "mutants tried": f"{tried} of {planted}",
        "killed": total[KILLED],
        "timed out": by_itself,
        "equivalent": equivalent,
        "survived": tried - killed - equivalent,
        "killed of the others": f"{100 * killed / (tried - equivalent):.1f} %" if tried else "–",
    }


def main() -> int:
    planted, texts, survivors = {}, {}, set()
    for meta in sorted((ROOT / "mutants").glob("*.py.meta")):
        found = json.loads(meta.read_text())
        texts |= {function_of(f"{meta.stem[:-3]}.{name}"): h for name, h in found["hash_by_function_name"].items()}
        for name, code in found["exit_code_by_key"].items():
            status = status_by_exit_code[code]
            planted.setdefault(function_of(name), Counter())[status] += 1
            if status not in ("not checked", KILLED, *BY_ITSELF):
                survivors.add(change(name, Path(meta.stem)))
    entries = yaml.safe_load(KNOWN.read_text()) or []
    listed = {(e["function"], e["was"], e["now"]): e["equivalent"] for e in entries}
    whole = {function for function, statuses in planted.items() if not statuses["not checked"]}
    unexplained = sorted(survivors - listed.keys())
    gone = sorted(s for s in listed.keys() - survivors if s[0] in whole or s[0] not in planted)

    record = json.loads(RECORD.read_text())
    known = {f: entry for f, entry in record["mutants by function"].items() if entry["text"] == texts.get(f)}
    for function in whole:
        of_it = [equivalent for entry, equivalent in listed.items() if entry in survivors and entry[0] == function]
        known[function] = {"text": texts[function], "equivalent": sum(of_it), **planted[function]}
    record["mutants by function"] = {function: known[function] for function in planted if function in known}
    outcomes = {f: {k: v for k, v in entry.items() if k != "text"} for f, entry in known.items()}
    rows = []
    for prefix in [*sorted({function.split(".")[0] + "." for function in planted}), ""]:
        own = [function for function in planted if function.startswith(prefix)]
        mutants = sum(planted[function].total() for function in own)
        rows.append(row(prefix[:-1] or "all", mutants, len(own), [outcomes[f] for f in own if f in outcomes]))
    record["mutants"] = rows
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    for kind, changes in (("survived and is not listed", unexplained), ("is listed and did not survive", gone)):
        for function, was, now in changes:
            print(f"{kind}: {function}\n    - {was}\n    + {now}")
    for line in rows:
        print(*(f"{name}: {figure}" for name, figure in line.items()), sep="; ")
    return bool(unexplained or gone or missing(rows))


def missing(rows: list[dict[str, str | int]]) -> bool:
    """Whether there are mutants that were never tried, or too few that were killed."""
    return any(
        len(set(line["mutants tried"].split(" of "))) > 1 or float(line["killed of the others"].removesuffix(" %")) < 95
        for line in rows
    )


if __name__ == "__main__":
    sys.exit(main())
