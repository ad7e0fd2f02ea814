"""What the book is made from: the locked set, the vendored MathJax, the workflows."""

import hashlib
import re

import pytest
import yaml
from test_chapters import ROOT
from verify_mathjax import HERE, vendored

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def pins(file: str) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / file).read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_lock_holds_the_tested_versions_with_hashes():
    tested, locked = pins("constraints.txt"), pins("requirements.lock")
    del tested["torch"]  # its CPU and CUDA builds have one version and different hashes
    assert locked == tested, "run `make lock`"
    blocks = re.split(r"^(?=\S)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
    assert all("--hash=sha256:" in block for block in blocks if "==" in block)


def test_every_requirement_is_pinned():
    files = [(ROOT / name).read_text() for name in ("requirements.txt", "requirements-run.txt")]
    named = re.findall(r"^([A-Za-z][\w.-]*)", "\n".join(files), re.MULTILINE)
    assert {re.sub(r"[-_.]+", "-", name).lower() for name in named} <= pins("constraints.txt").keys()


def test_mathjax_is_the_published_one():
    listed = dict(line.split(maxsplit=1)[::-1] for line in (HERE / "SHA256SUMS").read_text().splitlines())
    found = {
        f"./{path.relative_to(HERE).as_posix()}": hashlib.sha256(path.read_bytes()).hexdigest() for path in vendored()
    }
    assert found == listed


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_is_pinned_and_has_least_rights(path):
    text = path.read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    for action in re.findall(r"uses: (\S+)", text):
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", action), action
    assert "secrets." not in text
    assert "pull_request_target" not in text
    checkouts, credentials = text.count("actions/checkout@"), text.count("persist-credentials: false")
    assert checkouts == credentials
    for job in workflow["jobs"].values():
        assert "timeout-minutes" in job or set(job.get("permissions", {})) == {"pages", "id-token"}


def test_the_one_job_that_may_write_runs_after_a_push_to_main_and_executes_nothing_of_the_repository():
    may_write = {
        (path.stem, name): (workflow, job)
        for path in WORKFLOWS
        for workflow in [yaml.safe_load(path.read_text())]
        for name, job in workflow["jobs"].items()
        if job.get("permissions", {}).get("contents") == "write"
    }
    assert set(may_write) == {("publish", "notebooks")}
    workflow, job = may_write["publish", "notebooks"]
    assert workflow[True] == {"push": {"branches": ["main"]}}  # `on` reads as true in YAML
    assert job["permissions"] == {"contents": "write"}
    assert [step["uses"].split("@")[0] for step in job["steps"] if "uses" in step] == ["actions/download-artifact"]
    lines = [line for step in job["steps"] for line in step.get("run", "").splitlines()]
    assert all(line.startswith("git ") for line in lines)
