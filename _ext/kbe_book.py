"""What the book is made from: a cache that notices the helpers, tables of executed results, links to the repository."""

import gc
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from binascii import a2b_base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor
from myst_nb.core.read import myst_nb_reader_plugin
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

LOGGER = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import kbe_ledger  # noqa: E402, found only now that the checkout is on the path

CLAIMS = ROOT / "book" / "claims.yml"
FACTS = ROOT / "_build" / "facts.json"
WHAT_CHAPTERS_USE = ("kbe_*.py", "constraints.txt", "book/claims.yml", "benchmarks/results.json")


def helper_hash() -> str:
    """A name for what the chapters import and read: another helper, another cache of executed notebooks."""
    digest = hashlib.sha256()
    for pattern in WHAT_CHAPTERS_USE:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def cache_path() -> Path:
    return ROOT / "_build" / ".jupyter_cache" / helper_hash()


def prepare_execution(app, config):
    # jupyter-cache looks at the cells alone; the hash makes an edit of a helper execute the chapters again
    config.nb_execution_cache_path = str(cache_path())
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def read_chapters(app):
    """The chapters as their Markdown files hold them, read once in a build."""
    pairs = sorted((ROOT / "book").glob("*.ipynb"))
    app.kbe_chapters = {pair.stem: myst_nb_reader_plugin(str(pair.with_suffix(".md"))) for pair in pairs}


def cached_record(app, chapter):
    """The cache's record of a chapter's execution, or None."""
    try:
        return get_cache(app.config.nb_execution_cache_path).match_cache_notebook(app.kbe_chapters[chapter])
    except KeyError:
        return None


def execute_in_parallel(app):
    """Fill the cache on all cores; the build then finds every chapter there, and reports those that failed.

    The longest first, by the length of their text, and each core takes the next when it is free: so none is idle at
    the end.
    """
    cache = get_cache(app.config.nb_execution_cache_path)
    missing = [chapter for chapter in app.kbe_chapters if cached_record(app, chapter) is None]
    paths = [str(ROOT / "book" / f"{chapter}.md") for chapter in missing]
    # a short text that starts a cluster takes as long as one of 40 kB
    paths.sort(key=lambda path: 40_000 if path.endswith("scaling_out.md") else Path(path).stat().st_size, reverse=True)
    for path in paths:
        cache.add_nb_to_project(path, read_data={"name": "myst_nb_md", "type": "plugin"})

    def execute(path):
        executor = load_executor("local-serial", cache)
        executor.run_and_cache(filter_uris=[path], timeout=app.config.nb_execution_timeout)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each chapter has a kernel, that is a process, of its own
        list(pool.map(execute, paths))


def collect_records(app):
    """What the chapters' executed cells left: records for the pages of verdicts and equations, texts of pictures."""
    cache = get_cache(app.config.nb_execution_cache_path)
    app.kbe_records, app.kbe_texts = [], {}
    for chapter in app.kbe_chapters:
        record = cached_record(app, chapter)
        if record is None:  # the chapter has failed; the build reports it
            continue
        cells = cache.get_cache_bundle(record.pk).nb.cells
        for output in (output for cell in cells for output in cell.get("outputs", [])):
            metadata = output.get("metadata", {})
            if kbe_ledger.RECORD in metadata:
                app.kbe_records.append(dict(metadata[kbe_ledger.RECORD], page=chapter))
            if "alt" in metadata.get("image/png", {}):
                picture = a2b_base64(output["data"]["image/png"])
                app.kbe_texts[hashlib.sha256(picture).hexdigest()] = metadata["image/png"]["alt"]
    write_facts(app)


def write_facts(app):
    """Keep in a file, touched only when they change, what the pages with tables depend on beside their text."""
    facts = {"published at": app.config.ogp_site_url, "repository": repository_url(), "records": app.kbe_records}
    text = json.dumps(facts, ensure_ascii=False, indent=1)
    if not FACTS.exists() or FACTS.read_text(encoding="utf-8") != text:
        FACTS.write_text(text, encoding="utf-8")


def describe_pictures(app, doctree):
    """Give every picture the text that its cell computed; myst-nb names the file by the picture's hash."""
    for image in doctree.findall(nodes.image):
        text = app.kbe_texts.get(Path(image["uri"]).stem)
        if text:
            image["alt"] = text


class Table(SphinxDirective):
    """A table made of executed results, made again when they change."""

    def run(self):
        for path in (FACTS, CLAIMS):
            self.env.note_dependency(str(path))
        node = nodes.container(classes=[f"kbe-{self.name}"])
        lines = list(self.lines(self.env.app.kbe_records))
        self.state.nested_parse(StringList(lines, source=self.env.docname), self.content_offset, node)
        return [node]

    def complain(self, message):
        LOGGER.warning(message, location=self.get_location())


def cell(text):
    """Text that Markdown leaves as it is, inside a table too."""
    return re.sub(r"([|*_\\<])", r"\\\1", str(text))


def plural(verdict):
    """ "holds" of several claims: "hold"."""
    return verdict.replace("does", "do").replace("holds", "hold").replace("open", "are open")


class Verdicts(Table):
    """Every claim of the ledger with what was measured; `:brief:` lists the paper's own by verdict, `:count:` them."""

    option_spec: ClassVar[dict] = {"brief": directives.flag, "count": directives.flag}

    def lines(self, records):
        claims = kbe_ledger.load_claims(CLAIMS)
        measured = {record["claim"]: record["result"] for record in records if "claim" in record}
        for name, claim in claims.items():
            if claim["verdict"] != "open" and name not in measured:
                self.complain(f"claim {name} is on record as {claim['verdict']!r}, but no chapter has measured it")
        if "count" in self.options:
            own = [claim["verdict"] for claim in claims.values() if claim["place"] != "beyond the paper"]
            counts = [f"{own.count(v)} {plural(v)}" for v in kbe_ledger.VERDICTS if v in own]
            yield f"Of {len(own)} claims that we found in the paper {', '.join(counts)}."
            return
        if "brief" in self.options:
            for verdict in kbe_ledger.VERDICTS:
                own = {n: c for n, c in claims.items() if c["verdict"] == verdict and c["place"] != "beyond the paper"}
                links = (f"[{cell(c['claim'].rstrip('.'))}]({c['page']}.md) ({name})" for name, c in own.items())
                if own:
                    yield f"- **{verdict[0].upper() + verdict[1:]}** ({len(own)}): {'; '.join(links)}."
            return
        # the verdict beside its claim: a phone shows the first columns
        yield "| | verdict | claim | statistic and result | rule, and its power | place |"
        yield "|---|---|---|---|---|---|"
        for name, claim in claims.items():
            statistic = f"{cell(claim['statistic'])}: **{cell(measured.get(name, 'not measured yet'))}**"
            verdict = f"[{claim['verdict']}]({claim['page']}.md)"
            if name in measured:  # to the very box
                verdict = f"{{ref}}`{claim['verdict']} <claim-{name.lower()}>`"
            rule = cell(f"holds if {claim['holds']}; fails if {claim['fails']}; {claim['power']}")
            yield f"| {name} | {verdict} | {cell(claim['claim'])} | {statistic} | {rule} | {cell(claim['place'])} |"
        chances = {record["claim"]: record["chance of another"] for record in records if "claim" in record}
        at_least_one = 1 - math.prod(1 - chance for chance in chances.values())
        close = ", ".join(f"{name} ({100 * c:.0f} %)" for name, c in chances.items() if c > 0.01)
        yield ""
        yield "If everything is run again with other seeds,"
        yield f"{sum(chances.values()):.2f} of the {len(chances)} verdicts are expected to come out otherwise,"
        yield f"and at least one does with a probability of {100 * at_least_one:.0f} %."
        yield f"Closest to their limits: {close or 'none'}."


class Equations(Table):
    """The paper's 24 numbered equations with the checks that ran."""

    def lines(self, records):
        yield "| equation | kind of check | outcome | chapter |"
        yield "|---|---|---|---|"
        checks = [record for record in records if "equations" in record]
        for number in range(1, 25):
            own = [record for record in checks if number in record["equations"]]
            if not own:
                self.complain(f"equation {number} has no check")
            for check in own:
                page, box = check["page"], "-".join(map(str, check["equations"]))
                link = f"{{ref}}`{page.replace('_', ' ')} <{page}-checked-{box}>`"
                yield f"| {number} | {cell(check['kind'])} | {cell(check['outcome'])} | {link} |"
        yield ""
        checked = set().union(*(check["equations"] for check in checks))
        yield f"**{len(checked)} of 24** equations have an executed check."


class Tested(Table):
    """What tests/power.json keeps of the long checks: `:of:` names the part."""

    option_spec: ClassVar[dict] = {"of": directives.unchanged_required}

    def lines(self, records):
        path = ROOT / "tests" / "power.json"
        self.env.note_dependency(str(path))
        part = json.loads(path.read_text(encoding="utf-8")).get(self.options["of"])
        if part is None:
            yield "*This has not been run since it was last changed.*"
            return
        if isinstance(part, dict):
            words = (", ".join(value) if isinstance(value, list) else value for value in part.values())
            part = [{"": key, "figure": word} for key, word in zip(part, words, strict=True)]
        columns = list(dict.fromkeys(column for row in part for column in row))
        yield f"| {' | '.join(columns)} |"
        yield "|" + "---|" * len(columns)
        for row in part:
            yield f"| {' | '.join(cell(row.get(column, '–')) for column in columns)} |"


class Take(Table):
    """Where the whole book can be had as one file: links where the pages are published, else how to make them."""

    def lines(self, _):
        address = self.config.ogp_site_url
        if address:
            name = f"{address}downloads/kernel-balanced-equation"
            yield f"The whole book as [one PDF]({name}.pdf), or as [one zip of pages]({name}.zip) that need no network."
        else:
            yield "`make pdf` makes the whole book as one PDF, and `make zip` one zip of pages that need no network."
        yield "Each chapter's download button gives it as an executed notebook."


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
    config.ogp_site_url = re.sub(r"/*$", "/", os.environ["BOOK_URL"]) if os.environ.get("BOOK_URL") else ""
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


def setup(app):
    # Sphinx makes a million nodes that live to the end; to look among them for garbage takes a sixth of its time
    gc.set_threshold(100_000, 20, 100)
    app.connect("config-inited", prepare_execution)
    app.connect("config-inited", link_to_repository)
    app.connect("builder-inited", read_chapters, priority=400)
    app.connect("builder-inited", execute_in_parallel)
    app.connect("builder-inited", collect_records, priority=600)
    app.connect("doctree-read", describe_pictures)
    app.add_directive("verdicts", Verdicts)
    app.add_directive("equations", Equations)
    app.add_directive("tested", Tested)
    app.add_directive("take", Take)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
