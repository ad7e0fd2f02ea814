import html
import math
from pathlib import Path

import pytest
import yaml

import kbe_ledger as ledger

CLAIM = dict(
    place="III", claim="It holds.", statistic="share", holds="low > 0.5", fails="high < 0.2", power="-",
    verdict="holds", page="model",
)  # fmt: skip


@pytest.fixture
def claims(tmp_path, monkeypatch):
    """Put other claims on record."""
    path, load = tmp_path / "claims.yml", ledger.load_claims

    def write(**entries):
        path.write_text(yaml.safe_dump(entries))
        monkeypatch.setattr(ledger, "load_claims", lambda: load(path))

    return write


def test_the_book_s_claims_are_valid_and_complete():
    claims = ledger.load_claims()
    assert {f"C{i}" for i in range(1, 25)} <= set(claims)


@pytest.mark.parametrize(
    ("rule", "met"),
    [("low > 0.5", True), ("high < 0.5", False), ("value >= 0.7 and high <= 0.8", True), ("value > 0.7", False),
     ("low > -1", True), ("low > 6e-1", False), ("value > 0.7 and high <= 0.8", False)],
)  # fmt: skip
def test_judge(rule, met):
    assert ledger.judge(rule, 0.7, 0.6, 0.8) == met


@pytest.mark.parametrize("rule", ["", "low", "low > x", "low > 0.5 or high < 1", "__import__('os')", "low == 0.5"])
def test_judge_reads_nothing_but_comparisons(rule):
    with pytest.raises(ValueError, match="rule must read like"):
        ledger.judge(rule, 0.7, 0.6, 0.8)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((0.6, 0.8), "holds"), ((0.4, 0.8), "holds in part"), ((0.1, 0.15), "does not hold")],
)
def test_verdict_is_what_the_rule_says_or_raises(claims, interval, verdict):
    value = sum(interval) / 2
    claims(X=CLAIM | {"verdict": verdict})
    box = ledger.verdict("X", value, interval, "10 runs")
    assert box.record["claim"] == "X"
    assert box.record["verdict"] == verdict
    data, metadata = box._repr_mimebundle_()
    assert verdict in data["text/html"]
    assert metadata == {"kbe": box.record}
    assert box.kind == {"holds": "tip", "holds in part": "warning", "does not hold": "danger"}[verdict]
    for other in {"holds", "holds in part", "does not hold", "open"} - {verdict}:
        claims(X=CLAIM | {"verdict": other})
        with pytest.raises(AssertionError, match=f'X {verdict} .* but the verdict on record is "{other}"'):
            ledger.verdict("X", value, interval, "10 runs")


def test_what_cannot_be_decided_is_shown_unjudged(claims):
    claims(X=CLAIM | {"verdict": "cannot be decided from the paper"})
    box = ledger.verdict("X", 0.7, (0.4999, 0.9), "-")
    assert box.record["verdict"] == "cannot be decided from the paper"
    assert box.record["chance of another"] == 0.0  # nothing is judged
    assert box.kind == "warning"


def test_the_box_of_a_verdict_in_full(claims):
    claims(X=CLAIM | {"claim": "It holds & lasts."})
    box = ledger.verdict("X", 0.71234, (0.6, 0.8), "10 runs")
    chance = ledger.chance_of_another_verdict(CLAIM, 0.71234, 0.6, 0.8)
    result = "0.712 (0.6 to 0.8), 10 runs"
    assert box.record == {"claim": "X", "verdict": "holds", "result": result, "chance of another": chance}
    assert chance > 0
    lines = ["It holds & lasts.", f"share: {result}.", "Holds if low > 0.5; fails if high < 0.2."]
    text = "  \n".join(["**X · holds**", *lines])
    assert repr(box) == text
    data, _ = box._repr_mimebundle_()
    body = '<p class="admonition-title">X · holds</p>' + "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    page = f'<div class="admonition tip" id="claim-X">{body}</div>'
    assert data == {"text/html": page, "text/markdown": text, "text/plain": text}
    assert ledger.verdict("X", 0.71234, (0.6, 0.8), "-", digits=4).record["result"] == "0.7123 (0.6 to 0.8), -"


@pytest.mark.parametrize(("value", "interval"), [(math.nan, (0, 1)), (2, (0, 1)), (0, (0, math.inf))])
def test_numbers_that_are_none(claims, value, interval):
    claims(X=CLAIM)
    with pytest.raises(ValueError, match="(value|interval) must (be finite|hold the value), got"):
        ledger.verdict("X", value, interval, "-")


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({k: v for k, v in CLAIM.items() if k != "power"}, "claim X must have the fields"),
        (CLAIM | {"power": 0.1}, "claim X: power must be text, got 0.1"),
        (CLAIM | {3: "x"}, "claim X must have the fields"),
        (CLAIM | {"colour": "red"}, "claim X must have the fields"),
        (CLAIM | {"verdict": "maybe"}, "claim X: verdict must be one of"),
        (CLAIM | {"holds": "always"}, "rule must read like"),
        ("text", "claim X must have the fields"),
        (5, r"claim X must have the fields .*, got \[\]"),
    ],
)
def test_a_wrong_ledger(claims, claim, message):
    claims(X=claim)
    with pytest.raises(ValueError, match=message):
        ledger.load_claims()


def test_the_marks_of_equations_in_full():
    one, two = ledger.equation(3, "limit", "holds"), ledger.equation([1, 24], "limit", "holds")
    assert repr(one) == "**Paper's equation 3: checked**  \nlimit: holds"
    assert repr(two) == "**Paper's equations 1, 24: checked**  \nlimit: holds"
    assert (one.name, two.name, one.kind) == ("checked-3", "checked-1-24", "note")


def test_equation_marks():
    assert ledger.equation(3, "a", "b").record == {"equations": [3], "kind": "a", "outcome": "b"}
    assert ledger.equation([1, 24], "a", "<b>").record["equations"] == [1, 24]
    assert "&lt;b&gt;" in ledger.equation(1, "a", "<b>")._repr_mimebundle_()[0]["text/html"]
    with pytest.raises(ValueError, match="numbers must be between 1 and 24, got 25"):
        ledger.equation([3, 25], "a", "b")
    with pytest.raises(ValueError, match="^numbers must not be empty$"):
        ledger.equation([], "a", "b")


def test_chance_of_another_verdict():
    far = ledger.chance_of_another_verdict(CLAIM, 0.8, 0.75, 0.85)  # ten standard errors from its limit of 0.5
    at_the_limit = ledger.chance_of_another_verdict(CLAIM, 0.6, 0.5001, 0.7)
    assert far == 0
    assert at_the_limit == pytest.approx(0.5, abs=0.01)
    # one standard error (0.0255) inside the limit: a difference of -1 / sqrt(2) standard deviations, 24 %
    near = ledger.chance_of_another_verdict(CLAIM, 0.5755, 0.5255, 0.6255)
    assert near == pytest.approx(0.24, abs=0.01)
    # a shift of one standard deviation is 1 for this interval: 45 % of them reach beyond 0.1255, 180 of 400
    half = 1.96 / math.sqrt(2)
    upwards = ledger.chance_of_another_verdict({"holds": "value < 0.1255", "fails": "value > 9"}, 0, -half, half)
    assert upwards == 180 / 400
    # value, low and high move together: all three stay above their limits for shifts above -0.1, 0.139 deviations
    together = {"holds": "value > 0 and low > -1 and high > 1", "fails": "value > 9"}
    assert ledger.chance_of_another_verdict(together, 0.1, -0.9, 1.1) == pytest.approx(0.445, abs=0.01)


@pytest.mark.parametrize("interval", [(0.6, 0.7), (0.7, 0.8), (0.7, 0.7)])
def test_a_value_at_the_end_of_its_interval(claims, interval):
    claims(X=CLAIM)
    assert ledger.verdict("X", 0.7, interval, "10 runs").record["verdict"] == "holds"


def test_claims_are_utf_8_whatever_the_machine_s_own_encoding(tmp_path, monkeypatch):
    def read_text(path, encoding=None):
        return path.read_bytes().decode(encoding or "ascii")  # as where the locale is C

    monkeypatch.setattr(Path, "read_text", read_text)
    path = tmp_path / "claims.yml"
    path.write_bytes(yaml.safe_dump({"X": CLAIM | {"claim": "σ > 0"}}, allow_unicode=True).encode())
    assert ledger.load_claims(path)["X"]["claim"] == "σ > 0"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"X: [", "YAML: "),
        (b"\xff\xfe", "YAML: "),
        (b"X: !!python/object:os.system x", "YAML: "),
        (b"- a\n- b", "a mapping of ids to claims, got list$"),
        (b"", "a mapping of ids to claims, got NoneType$"),
    ],
)
def test_files_that_are_no_ledger(tmp_path, content, message):
    """Damaged or foreign files; objects in YAML are not made."""
    path = tmp_path / "claims.yml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"claims.yml must be {message}"):
        ledger.load_claims(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(name=1), "name must be of type str, got 1"),
        (dict(interval=(0.6,)), "interval must be a pair"),
        (dict(interval=0.6), "interval must be of type Sequence, got 0.6"),
        (dict(interval=("a", "b")), "interval must be a number, got 'a'"),
        (dict(value=None), "value must be a number, got None"),
        (dict(runs=10), "runs must be of type str, got 10"),
        (dict(digits=0), "digits must be at least 1, got 0"),
        (dict(digits=2.5), "digits must be an integer, got 2.5"),
    ],
)
def test_verdict_names_what_is_wrong(claims, change, message):
    claims(X=CLAIM)
    with pytest.raises((ValueError, TypeError), match=message):
        ledger.verdict(**(dict(name="X", value=0.7, interval=(0.6, 0.8), runs="10 runs") | change))


def test_rules_at_their_bounds():
    at = dict(value=0.5, low=0.5, high=0.5)
    assert [ledger.judge(f"value {sign} 0.5", **at) for sign in (">", "<", ">=", "<=")] == [False, False, True, True]
