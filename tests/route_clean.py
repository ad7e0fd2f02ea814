"""Unit tests and notebooks in a clean environment: does `requirements.txt` name all that they need?

    python tests/route_clean.py PYTHON [--newest] [CHAPTER ...]

The committed state is cloned into a clean folder, where PYTHON, say python3.12, makes a fresh environment and installs
`requirements.txt`: the tested versions, or with --newest the newest that it allows.  There the unit tests run, and then
the chapters as notebooks, all of them if none is named.  What came out is written to tests/power.json.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "tests" / "power.json"  # what the page on testing shows
NEED_PAGES = ("test_book", "test_browser", "test_laboratory", "test_print")  # built ones, and a browser
NEED_PINS = ("test_supply_chain",)
TELLING = ("torch", "numpy", "scipy", "numba", "matplotlib", "scikit-learn", "jupyterlab")  # versions worth a record


def pytest(python: Path, clone: Path, *arguments: str) -> tuple[bool, str]:
    """Run pytest in the clone; whether all passed, and its closing counts."""
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CI")}
    done = subprocess.run(command, cwd=clone, env=variables, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(done.stdout[-5000:])
    closing = re.findall(r"^(\d+ (?:passed|failed|error).*?) in [\d.]+s", done.stdout, re.MULTILINE)
    return done.returncode == 0, closing[-1] if closing else f"exit status {done.returncode}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--newest", action="store_true", help="the newest versions that requirements.txt allows")
    parser.add_argument("python", help="the interpreter that makes the environment")
    parser.add_argument("chapters", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        if options.newest:
            (clone / "constraints.txt").write_text("")
        subprocess.run([options.python, "-m", "venv", clone / ".venv"], check=True)
        python = clone / ".venv" / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", "requirements.txt"], cwd=clone, check=True)
        version = subprocess.check_output([python, "--version"], text=True).split()[1]
        listed = json.loads(subprocess.check_output([python, "-m", "pip", "list", "--format=json"], text=True))
        installed = {package["name"]: package["version"] for package in listed}
        left_out = NEED_PAGES + (NEED_PINS if options.newest else ())
        tests, closing = pytest(python, clone, "tests", *(f"--ignore=tests/{name}.py" for name in left_out))
        print(f"unit tests: {closing}", flush=True)
        names = options.chapters or [path.stem for path in sorted((clone / "book").glob("*.ipynb"))]
        notebooks, ran = pytest(python, clone, "--nbmake", "--nbmake-timeout=900", *(f"book/{n}.ipynb" for n in names))
        print(f"notebooks: {ran}")
    chapters = ", ".join(options.chapters).replace("_", " ")
    entry = {
        "Python": version,
        "versions": "the newest allowed" if options.newest else "the tested ones",
        "among them": ", ".join(f"{name} {installed[name]}" for name in TELLING),
        "unit tests": closing,
        "chapters run as notebooks": f"{ran}: {chapters}" if chapters else ran,
    }
    record = json.loads(RECORD.read_text())
    same = ("Python", "versions")
    others = [e for e in record.get("clean environments", []) if [e[s] for s in same] != [entry[s] for s in same]]
    record["clean environments"] = [*others, entry]
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return not (tests and notebooks)


if __name__ == "__main__":
    sys.exit(main())
