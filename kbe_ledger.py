"""The ledger: every claim with the rule that decides it, and the boxes that chapters show and the book collects.

`book/claims.yml` holds per claim what the paper says, the statistic, the rule fixed before the run, its power and the
verdict on record.  A chapter calls `verdict(id, value, interval)`; the rule is applied there and then, and a result
that contradicts the record raises.  `equation(numbers, kind, outcome)` marks numbered equations as checked.  Both
leave a machine-readable copy in the cell's output, from which the book makes its Verdicts and Equations pages.
"""

import html
import math
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import yaml

from kbe_check import instances, integers, numbers, require

CLAIMS = Path(__file__).parent / "book" / "claims.yml"
VERDICTS = ("holds", "holds in part", "does not hold", "cannot be decided from the paper", "open")
RECORD = "kbe"  # where an output's metadata hold the machine-readable copy
_FIELDS = {"place", "claim", "statistic", "holds", "fails", "power", "verdict", "page"}
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first is ten times as fast, where LibYAML was at hand
_CONDITION = re.compile(r"(value|low|high) (>=|<=|>|<) (-?\d+(?:\.\d+)?(?:e-?\d+)?)")


def load_claims(path: Path | str = CLAIMS) -> dict[str, dict[str, str]]:
    """The claims by id, validated.

    Raises:
        ValueError: if an entry lacks a field, has one too many, an unknown verdict, or a rule that cannot be read.
    """
    try:
        claims = yaml.load(Path(path).read_text(encoding="utf-8"), _LOADER)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be YAML: {error}") from None
    require(isinstance(claims, dict), f"{path} must be a mapping of ids to claims, got {type(claims).__name__}")
    for name, claim in claims.items():
        fields = set(claim) if isinstance(claim, dict) else set()
        require(
            fields == _FIELDS, f"claim {name} must have the fields {sorted(_FIELDS)}, got {sorted(fields, key=str)}"
        )
        for field, text in claim.items():
            require(isinstance(text, str), f"claim {name}: {field} must be text, got {text!r}")
        verdict = claim["verdict"]
        require(verdict in VERDICTS, f"claim {name}: verdict must be one of {VERDICTS}, got {verdict!r}")
        for rule in ("holds", "fails"):
            judge(claim[rule], 0.0, 0.0, 0.0)
    return claims


def judge(rule: str, value: float, low: float, high: float) -> bool:
    """Whether a rule such as "low > 0.9 and high < 1.1" is met.

    Raises:
        ValueError: if the rule is not made of comparisons of value, low or high with a number, joined by "and", or if
            one of these is not finite.
    """
    measured = {"value": value, "low": low, "high": high}
    instances(str, rule=rule)
    numbers(**measured)
    compare = {">": float.__gt__, "<": float.__lt__, ">=": float.__ge__, "<=": float.__le__}
    met = True
    for condition in rule.split(" and "):
        match = _CONDITION.fullmatch(condition)
        require(match is not None, f'rule must read like "low > 0.9 and high < 1.1", got {rule!r}')
        met &= compare[match[2]](float(measured[match[1]]), float(match[3]))
    return met


def decide(claim: dict[str, str], value: float, low: float, high: float) -> str:
    """The verdict that a claim's rules give for a value and its interval.

    Raises:
        ValueError: if the claim has no rules, or as `judge`.
    """
    instances(dict, claim=claim)
    require({"holds", "fails"} <= claim.keys(), f"claim must have the rules holds and fails, got {sorted(claim)}")
    if judge(claim["holds"], value, low, high):
        return "holds"
    return "does not hold" if judge(claim["fails"], value, low, high) else "holds in part"


def _check_interval(value: float, low: float, high: float) -> None:
    for number in (value, low, high):
        numbers(interval=number)
    require(low <= value <= high, f"interval must hold the value, got {value} and ({low}, {high})")


def chance_of_another_verdict(claim: dict[str, str], value: float, low: float, high: float) -> float:
    """How likely a repetition with other seeds is to come out with another verdict, if nothing else changes.

    The difference of two runs is taken as normal, with sqrt(2) times the standard error that the 95 % interval implies;
    the interval moves with the value.  Rough for fractions near 0 or 1, good enough to add up over the ledger.

    Raises:
        ValueError: if the value lies outside its interval, or as `decide`.
    """
    _check_interval(value, low, high)
    error = math.sqrt(2) * (high - low) / (2 * 1.96)
    normal = NormalDist(0, 1)
    shifts = [error * normal.inv_cdf((k + 0.5) / 400) for k in range(400)]
    same = decide(claim, value, low, high)
    return sum(decide(claim, value + d, low + d, high + d) != same for d in shifts) / len(shifts)


class Box:
    """A box for the page, Lab and Colab (HTML or Markdown), with a record for the build in the output's metadata."""

    def __init__(self, name: str, kind: str, title: str, lines: list[str], record: dict):
        self.name, self.kind, self.title, self.lines, self.record = name, kind, title, lines, record

    def __repr__(self) -> str:
        return "  \n".join([f"**{self.title}**", *self.lines])

    def _repr_mimebundle_(self, **_) -> tuple[dict, dict]:
        title, *lines = map(html.escape, [self.title, *self.lines])
        body = f'<p class="admonition-title">{title}</p>' + "".join(f"<p>{line}</p>" for line in lines)
        box = f'<div class="admonition {self.kind}" id="{self.name}">{body}</div>'
        data = {"text/html": box, "text/markdown": repr(self), "text/plain": repr(self)}
        return data, {RECORD: self.record}


def verdict(name: str, value: float, interval: tuple[float, float], runs: str, digits: int = 3) -> Box:
    """Judge a claim by its own rule and show the result.

    "holds" if the rule `holds` is met by value and interval, "does not hold" if the rule `fails` is, else "holds in
    part".  A claim whose record is "cannot be decided from the paper" is shown with its number, unjudged.

    Args:
        name: the claim's id in claims.yml.
        value, interval: the statistic and its interval.
        runs: what stands behind the number ("256 networks, seed 1").

    Raises:
        KeyError: for an unknown id.
        ValueError: if numbers are not finite or the value lies outside its interval.
        AssertionError: if the verdict contradicts the one on record.
    """
    instances(str, name=name, runs=runs)
    integers(digits=digits)
    instances(Sequence, interval=interval)
    require(len(interval) == 2, f"interval must be a pair (low, high), got {interval!r}")
    numbers(value=value)
    _check_interval(value, *interval)
    value, low, high = (float(number) for number in (value, *interval))
    claim = load_claims()[name]
    decidable = claim["verdict"] != "cannot be decided from the paper"
    measured = decide(claim, value, low, high) if decidable else claim["verdict"]
    result = f"{value:.{digits}g} ({low:.{digits}g} to {high:.{digits}g}), {runs}"
    if measured != claim["verdict"]:
        raise AssertionError(f'{name} {measured} ({result}), but the verdict on record is "{claim["verdict"]}"')
    style = {"holds": "tip", "does not hold": "danger"}.get(measured, "warning")
    lines = [
        claim["claim"],
        f"{claim['statistic']}: {result}.",
        f"Holds if {claim['holds']}; fails if {claim['fails']}.",
    ]
    chance = chance_of_another_verdict(claim, value, low, high) if decidable else 0.0
    record = {"claim": name, "verdict": measured, "result": result, "chance of another": chance}
    return Box(f"claim-{name}", style, f"{name} · {measured}", lines, record)


def equation(numbers: int | Sequence[int], kind: str, outcome: str) -> Box:
    """Mark numbered equations of the paper as checked: what kind of check, and what came out.

    Raises:
        ValueError: if the paper has no such equation.
    """
    numbers = [numbers] if isinstance(numbers, int) else list(numbers)
    require(len(numbers) > 0, "numbers must not be empty")
    for number in numbers:
        integers(1, 24, numbers=number)
    instances(str, kind=kind, outcome=outcome)
    title = f"Paper's equation{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}: checked"
    record = {"equations": numbers, "kind": kind, "outcome": outcome}
    return Box(f"checked-{'-'.join(map(str, numbers))}", "note", title, [f"{kind}: {outcome}"], record)
