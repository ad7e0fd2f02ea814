"""The book's Sphinx hooks: a cache that notices the helpers, kernels that find them, links that know where they are."""

import hashlib
import os
import re
import subprocess
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor

ROOT = Path(__file__).resolve().parent.parent
HELPERS = ("kbe_lib.py", "kbe_fast.py", "kbe_view.py", "constraints.txt")


def helper_hash() -> str:
    """A name for what the chapters import: another helper, another cache of executed notebooks."""
    digest = hashlib.sha256()
    for name in HELPERS:
        path = ROOT / name
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()[:16]


def cache_path() -> Path:
    return ROOT / "_build" / ".jupyter_cache" / helper_hash()


def prepare_execution(app, config):
    # jupyter-cache looks at the cells alone; the hash makes an edit of a helper execute the chapters again
    config.nb_execution_cache_path = str(cache_path())
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def execute_in_parallel(app):
    """Fill the cache on all cores; the build then finds every chapter there, and reports those that failed."""
    cache = get_cache(app.config.nb_execution_cache_path)
    chapters = [str(pair.with_suffix(".md")) for pair in sorted((ROOT / "book").glob("*.ipynb"))]
    for chapter in chapters:
        cache.add_nb_to_project(chapter, read_data={"name": "myst_nb_md", "type": "plugin"})
    executor = load_executor("local-parallel", cache)
    executor.run_and_cache(filter_uris=chapters, timeout=app.config.nb_execution_timeout)


def repository_url() -> str | None:
    """The public address of the repository that the book is built in, from CI's variables or the git remote."""
    if "GITHUB_REPOSITORY" in os.environ:
        return f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{os.environ['GITHUB_REPOSITORY']}"
    remote = subprocess.run(
        ["git", "remote", "get-url", "origin"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    match = re.fullmatch(
        r"(?:https://|git@|ssh://git@)(github\.com|gitlab\.com)[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?", remote
    )
    return f"https://{match[1]}/{match[2]}" if match else None


def link_to_repository(app, config):
    url = repository_url()
    options = config.html_theme_options
    if url is None:  # no public repository known: no links, rather than links to nowhere
        options.pop("launch_buttons", None)
        return
    options["repository_url"] = url
    options["repository_branch"] = os.environ.get("GITHUB_REF_NAME", "main") if os.environ.get("CI") else "main"
    options.setdefault("launch_buttons", {}).update(
        binderhub_url="https://mybinder.org", colab_url="https://colab.research.google.com"
    )
    options.update(use_repository_button=True, use_edit_page_button=True, use_issues_button=True)


def drop_second_thebe_script(app, pagename, templatename, context, doctree):
    # sphinx-thebe adds its inline settings twice, and "const" may be declared only once
    seen, kept = set(), []
    for script in context.get("script_files", []):
        body = getattr(script, "attributes", {}).get("body")
        if body and "thebe" in body:
            if body in seen:
                continue
            seen.add(body)
        kept.append(script)
    context["script_files"] = kept


def setup(app):
    app.connect("config-inited", prepare_execution)
    app.connect("config-inited", link_to_repository)
    app.connect("builder-inited", execute_in_parallel)
    app.connect("html-page-context", drop_second_thebe_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
