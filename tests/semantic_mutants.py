"""Mistakes that somebody could make in the helper, planted one at a time: who notices?

    python tests/semantic_mutants.py [WORD ...]

Each mutant is a text of a helper replaced by another, with the sentence of the mistake it stands for.  It is planted in
a copy of the project.  There the unit test named beside it must fail, and so must the chapter, where one is named, in
one of its own checks.  Before, all these tests and chapters must pass where "Nothing is changed".  With words, only
mutants with one of them in their sentence are tried.  What caught each is written to tests/power.json; the exit status
is 1 if one survived.
"""

import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "tests" / "power.json"


class Mutant(NamedTuple):
    mistake: str
    file: str
    old: str
    new: str
    test: str  # a file in tests/, and optionally a part of a test's name
    chapter: str | None = None


MUTANTS = [
    Mutant(
        "The loss has sigma where its square belongs.",
        "kbe_losses.py",
        "return _log(sigma, log_sigma) + 0.5 * ((y - mu) / sigma) ** 2 + 0.5 * math.log(2 * math.pi)",
        "return _log(sigma, log_sigma) + 0.5 * (y - mu) ** 2 / sigma.abs() + 0.5 * math.log(2 * math.pi)",
        "test_losses.py",
        "model",
    ),
    Mutant(
        "log sigma is taken for sigma, as equation 14 is printed.",
        "kbe_losses.py",
        "return _log(sigma, log_sigma) + 0.5 * ((y - mu) / sigma) ** 2 + 0.5 * math.log(2 * math.pi)",
        "return sigma.abs() + 0.5 * ((y - mu) / sigma) ** 2 + 0.5 * math.log(2 * math.pi)",
        "test_losses.py",
        "model",
    ),
    Mutant(
        "The one half in front of the squared error is forgotten.",
        "kbe_losses.py",
        "return _log(sigma, log_sigma) + 0.5 * ((y - mu) / sigma) ** 2 + 0.5 * math.log(2 * math.pi)",
        "return _log(sigma, log_sigma) + ((y - mu) / sigma) ** 2 + 0.5 * math.log(2 * math.pi)",
        "test_losses.py",
        "model",
    ),
    Mutant(
        "The loss is the sum over the points where the mean is meant.",
        "kbe_lib.py",
        'weight = data.y.shape[1] if reduction == "sum" else 1',
        'weight = data.y.shape[1] if reduction == "mean" else 1',
        "test_training.py -k torch",
        "model",
    ),
    Mutant(
        "The step goes up the gradient.",
        "kbe_lib.py",
        "state - lr * gradient, state)",
        "state + lr * gradient, state)",
        "test_training.py -k torch",
    ),
    Mutant(
        "A frozen network is updated all the same.",
        "kbe_lib.py",
        "theta = torch.where((frozen_at > epoch)[:, None], state - lr * gradient, state)",
        "theta = state - lr * gradient",
        "test_training.py -k torch",
    ),
    Mutant(
        "The epoch of a failure is counted from one too late.",
        "kbe_lib.py",
        "(finite & (moved <= jump)), epoch)",
        "(finite & (moved <= jump)), epoch + 1)",
        "test_training.py -k torch",
    ),
    Mutant(
        "Records are taken one epoch early.",
        "kbe_lib.py",
        "if epoch in checkpoints:",
        "if epoch + 1 in checkpoints or (epoch == epochs and epoch in checkpoints):",
        "test_training.py -k torch",
    ),
    Mutant(
        "Convolutions wrap around in place of zero padding.",
        "kbe_lib.py",
        "matrix = torch.einsum(",
        "shifts[0, -1, 0] = shifts[2, 0, -1] = 1\n    matrix = torch.einsum(",
        "test_network.py",
        "model",
    ),
    Mutant(
        "The taps of a convolution are read backwards.",
        "kbe_lib.py",
        "1 - k) for k in range(3)])",
        "k - 1) for k in range(3)])",
        "test_network.py",
        "model",
    ),
    Mutant(
        "There is no activation behind the last convolution.",
        "kbe_lib.py",
        "        h = F.elu(z)\n",
        "        h = F.elu(z) if name != names[-1] else z\n",
        "test_network.py",
        "model",
    ),
    Mutant(
        "The derivative of the ELU is taken at its output.",
        "kbe_lib.py",
        "z.clamp(max=0).exp().unsqueeze(",
        "F.elu(z).clamp(max=0).exp().unsqueeze(",
        "test_ntk.py",
        "model",
    ),
    Mutant(
        "The response is that of the heads where that of the outputs is asked for: the readout's slope is forgotten.",
        "kbe_lib.py",
        "    if readout is not None:\n        with torch.enable_grad():",
        "    if False:\n        with torch.enable_grad():",
        "test_ntk.py",
        "model",
    ),
    Mutant(
        "Biases take no part in the response.",
        "kbe_lib.py",
        "windows = F.pad(windows, (0, 0, 0, 1), value=1.0)",
        "windows = F.pad(windows, (0, 0, 0, 1), value=0.0)",
        "test_ntk.py",
        "model",
    ),
    Mutant(
        "All networks of an ensemble share one data set.",
        "kbe_lib.py",
        "return Dataset(inputs[drawn], labels)",
        "return Dataset(inputs[drawn[:1].expand_as(drawn)], labels[:1].expand_as(labels))",
        "test_properties.py -k data_of_their_own",
    ),
    Mutant(
        "Labels and strings come from one seed: a label is a bit of its string.",
        "kbe_lib.py",
        "return Dataset(inputs[drawn], labels)",
        "return Dataset(inputs[drawn], inputs[drawn][..., 0])",
        "test_data.py",
    ),
    Mutant(
        "Strings are drawn with replacement although it is switched off.",
        "kbe_lib.py",
        "    if replacement:\n",
        "    if replacement or True:\n",
        "test_data.py",
    ),
    Mutant(
        "Initial weights are scaled by the fan-in and not by its root.",
        "kbe_lib.py",
        "bound = 1 / math.sqrt(math.prod(shape[1:]))",
        "bound = 1 / math.prod(shape[1:])",
        "test_network.py",
    ),
    Mutant(
        "Initial weights are all positive.",
        "kbe_lib.py",
        "bound * (2 * uniform - 1)",
        "bound * uniform",
        "test_network.py",
    ),
    Mutant(
        "V* is the mean of sigma and not of its square.",
        "kbe_lib.py",
        "(run.sigma**2).mean(-1)",
        "run.sigma.mean(-1)",
        "test_training.py -k test_variances",
    ),
    Mutant(
        "The sign of equation 15 as printed: errors grow.",
        "kbe_lib.py",
        "learned = -torch.expm1(-rates.clamp(min=0)",
        "learned = -torch.expm1(rates.clamp(min=0)",
        "test_kernel_dynamics.py",
        "errata",
    ),
    Mutant(
        "The flow's limit forgets the labels: what is learned is the start.",
        "kbe_lib.py",
        "return start + ((rates > rounding) * amplitude)",
        "return start + 0 * ((rates > rounding) * amplitude)",
        "test_kernel_dynamics.py",
        "errata",
    ),
    Mutant(
        "The one half of equation 21 as printed: mu moves at half its speed.",
        "kbe_lib.py",
        "    mean_speed: float = 1.0,",
        "    mean_speed: float = 0.5,",
        "test_collapse.py",
        "one_point_training",
    ),
    Mutant(
        "sigma's force in equation 23 has the wrong power of sigma.",
        "kbe_lib.py",
        "(error**2 - sigma**2) / sigma**3])",
        "(error**2 - sigma**2) / sigma**2])",
        "test_collapse.py",
        "errata",
    ),
    Mutant(
        "The collapse time lacks the factor two of the square's derivative.",
        "kbe_lib.py",
        "/ (2 * theta)",
        "/ theta",
        "test_collapse.py",
        "errata",
    ),
    Mutant(
        "The streamline has log e where log e squared belongs.",
        "kbe_lib.py",
        "+ 2 * math.log(error0)",
        "+ math.log(error0)",
        "test_collapse.py",
        "one_point_training",
    ),
    Mutant(
        "Equation 20 is divided by N and not by the sum of the weights.",
        "kbe_lib.py",
        'weights = torch.softmax(exponent, -1) if normalise == "weights" else exponent.exp() / y.shape[-1]',
        "weights = exponent.exp() / y.shape[-1]",
        "test_kernel_dynamics.py",
        "local_average",
    ),
    Mutant(
        "Weights grow with the distance.",
        "kbe_lib.py",
        "exponent = -alpha[..., None, None] * distance",
        "exponent = alpha[..., None, None] * distance",
        "test_kernel_dynamics.py",
        "local_average",
    ),
    Mutant(
        "The kernel falls with the squared distance.",
        "kbe_lib.py",
        "return torch.exp(-beta * distance)",
        "return torch.exp(-beta * distance**2)",
        "test_ntk.py",
        "kernel_balanced_equation",
    ),
    Mutant(
        "Modes on the line are counted from one: k is k - 1.",
        "kbe_lib.py",
        "for k in range(n_modes)]",
        "for k in range(1, n_modes + 1)]",
        "test_kernel_dynamics.py",
        "kernel_balanced_equation",
    ),
    Mutant(
        "Walsh degrees are counted from one: k is k - 1.",
        "kbe_lib.py",
        "math.comb(k, j) * math.comb(n_bits - k, d - j)",
        "math.comb(max(k - 1, 0), j) * math.comb(n_bits - max(k - 1, 0), d - j)",
        "test_kernel_dynamics.py",
        "kernel_balanced_equation",
    ),
    Mutant(
        "Wilson's interval is replaced by Clopper and Pearson's.",
        "kbe_stats.py",
        'method="wilson"',
        'method="exact"',
        "test_properties.py -k wilson",
    ),
    Mutant(
        "Several samples are drawn again with one and the same draw.",
        "kbe_stats.py",
        "generator = torch.Generator().manual_seed(seed)",
        "generator = None",
        "test_properties.py -k bootstrap",
    ),
    Mutant(
        "A point is counted twice in a product on the line.",
        "kbe_kernels.py",
        "carried = r[i + 1] * (carried + v[row, i + 1])\n            out[row, i] += carried",
        "carried = r[i + 1] * (carried + v[row, i + 1])\n            out[row, i] += carried + v[row, i]",
        "test_kernels.py -k test_line_against_dense",
    ),
    Mutant(
        "A rule that asks for less is met by as much.",
        "kbe_ledger.py",
        '"<": float.__lt__',
        '"<": float.__le__',
        "test_ledger.py -k bounds",
    ),
    Mutant(
        "A verdict that contradicts the record passes in silence.",
        "kbe_ledger.py",
        '    if measured != claim["verdict"]:\n',
        '    if False and measured != claim["verdict"]:\n',
        "test_ledger.py",
    ),
]


NOTHING = "Nothing is changed."


def controls() -> list[Mutant]:
    """Every test and chapter once without a mistake, where they must pass."""
    same = (NOTHING, "kbe_lib.py", '"""The science behind', '"""The science behind')
    tests, chapters = (sorted({getattr(m, who) for m in MUTANTS} - {None}) for who in ("test", "chapter"))
    return [Mutant(*same, test) for test in tests] + [Mutant(*same, "", chapter) for chapter in chapters]


def copy_with(mutant: Mutant, folder: Path) -> None:
    """The helpers, the tests and the book in the folder, with the mutant planted.  Compiled kernels go along."""
    for path in ROOT.glob("*.py"):
        shutil.copy2(path, folder)
    for name in ("tests", "book", "__pycache__", "benchmarks"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.pyc"))
    target = folder / mutant.file
    text = target.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.file} must hold this once: {mutant.old!r}")
    target.write_text(text.replace(mutant.old, mutant.new))


def failing_test(selection: str) -> str | None:
    """Which test fails first, in the current directory."""
    import pytest

    class First:
        name = None

        def pytest_runtest_logreport(self, report):
            if report.failed and self.name is None:
                self.name = report.nodeid.split("/")[-1]

        def pytest_collectreport(self, report):
            self.pytest_runtest_logreport(report)

    first, (file, *more) = First(), selection.split(" ")
    ended = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--rootdir=.", f"tests/{file}", *more], plugins=[first])
    if ended == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise ValueError(f"no test is {selection}")
    return first.name


def failing_check(chapter: str) -> str | None:
    """What a chapter raises first, as it runs cell by cell in its own directory."""
    import jupytext
    from IPython.core.interactiveshell import InteractiveShell

    cells = jupytext.read(f"book/{chapter}.md").cells
    os.chdir("book")
    shell = InteractiveShell.instance()
    for number, cell in enumerate(cell for cell in cells if cell.cell_type == "code"):
        result = shell.run_cell(cell.source)
        error = result.error_in_exec or result.error_before_exec
        if error is not None:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if "ipython" in f.filename]
            line = frames[-1].line if frames else ""
            return f"{chapter}, code cell {number + 1}, {type(error).__name__}: {line}"
    return None


def in_copy(mutant: Mutant, find, what: str) -> str | None:
    """find(what) in a process of its own, in a copy that has the mutant."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        copy_with(mutant, folder)

        def work(answer):
            os.chdir(folder)
            os.environ["PYTHONPATH"] = str(folder)
            sys.path[:] = [
                str(folder),
                *(path for path in sys.path if Path(path).resolve() not in (ROOT, ROOT / "tests")),
            ]
            sys.stdout = sys.stderr = open(os.devnull, "w")
            answer.put(find(what))

        context = multiprocessing.get_context("fork")
        answer = context.SimpleQueue()
        process = context.Process(target=work, args=(answer,))
        process.start()
        process.join(900)
        process.kill()
        return answer.get() if not answer.empty() else f"{what}: the process ended with {process.exitcode}"


def read_record() -> dict:
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def write_record(part: str, found) -> None:
    RECORD.write_text(json.dumps(read_record() | {part: found}, indent=1, ensure_ascii=False) + "\n")


def try_controls() -> None:
    """Run what the mutants run, without a mistake; an error if anything fails."""
    passed = {"unit tests that pass": [], "chapters that pass": []}
    for control in controls():
        find, what = (failing_test, control.test) if control.test else (failing_check, control.chapter)
        failure = in_copy(control, find, what)
        if failure:
            raise AssertionError(f"fails without any mistake: {failure}")
        passed["unit tests that pass" if control.test else "chapters that pass"].append(what)
        print(f"{what}: passes", flush=True)
    write_record(NOTHING, {kind: f"{len(names)}: {', '.join(names)}" for kind, names in passed.items()})


def main() -> int:
    # so that every process has them without importing them again
    import IPython
    import matplotlib
    import scipy.optimize
    import torch

    matplotlib.use("Agg")
    torch.set_num_threads(1)
    del IPython, scipy
    words = sys.argv[1:] or [""]
    if any(word in NOTHING for word in words):
        try_controls()
    known = {entry["mistake"]: entry for entry in read_record().get("semantic mutants", [])}
    known = {mutant.mistake: known.get(mutant.mistake) for mutant in MUTANTS}
    chosen = [m for m in MUTANTS if any(word in m.mistake for word in words)]
    for mutant in chosen:
        entry = {"mistake": mutant.mistake, "file": mutant.file}
        entry["test"] = in_copy(mutant, failing_test, mutant.test)
        if mutant.chapter:
            entry["chapter"] = in_copy(mutant, failing_check, mutant.chapter)
        known[mutant.mistake] = entry
        print(json.dumps(entry), flush=True)
        write_record("semantic mutants", [entry for entry in known.values() if entry])
    entries = [entry for entry in known.values() if entry]
    by_test, by_chapter = (sum(bool(e.get(who)) for e in entries) for who in ("test", "chapter"))
    print(f"{len(entries)} planted, {by_test} killed by a test, {by_chapter} by a chapter")
    return any(not known[m.mistake]["test"] or (m.chapter and not known[m.mistake]["chapter"]) for m in chosen)


if __name__ == "__main__":
    sys.exit(main())
