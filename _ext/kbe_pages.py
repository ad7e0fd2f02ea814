"""What the pages are: nothing from outside and a policy that says so, boxes and functions that can be linked to."""

import base64
import gzip
import hashlib
import html
import re
from functools import cache
from pathlib import Path

import pybtex.plugin
from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

LOGGER = logging.getLogger(__name__)

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-hashes' {scripts}; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'"
)
INLINE_SCRIPT = re.compile(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)
INLINE_HANDLER = re.compile(r'\son[a-z]+="([^"]*)"')
# What fails WCAG 2.1 in the theme: roles that ARIA has withdrawn, and names other than what is seen.
WRONG_NAME = re.compile(r' role="(?:doc-biblioentry|list)"| aria-label="Toggle hidden content"')
SWITCH_ICON = re.compile(r'(<i class="theme-switch[^>]*?) title="[^"]*"')
# A script of 1.5 MB that draws twenty icons; kbe.css takes them from the font that the theme has anyway.
ICON_SCRIPT = re.compile(r'<script defer src="[^"]*fontawesome\.js[^"]*"></script>')

WEIGHTS, END = "<!-- weights -->", "<!-- end of weights -->"

ROOT = Path(__file__).resolve().parent.parent
# The names under which the chapters import the book's modules: kbe is kbe_lib, view is kbe_view.
MODULES = {"kbe": "kbe_lib"} | {path.stem.removeprefix("kbe_"): path.stem for path in ROOT.glob("kbe_*.py")}
CODE_NAME = re.compile(r"(\w+)\.(\w+)(?:\(.*\))?")


def content_policy(page: str) -> str:
    """The policy that lets a page run its own scripts and handlers, by their hashes, and load from its site alone."""
    bodies = INLINE_SCRIPT.findall(page) + [html.unescape(body) for body in INLINE_HANDLER.findall(page)]
    hashes = sorted({base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies})
    return POLICY.format(scripts=" ".join(f"'sha256-{digest}'" for digest in hashes))


def seal(page: str) -> str:
    """The page mended, with its policy, which must stand before the first script."""
    page = SWITCH_ICON.sub(r"\1", WRONG_NAME.sub("", ICON_SCRIPT.sub("", page)))
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>\n', "", page)
    policy = f'<meta http-equiv="Content-Security-Policy" content="{content_policy(page)}">\n'
    return page.replace("<head>", f"<head>\n{policy}", 1)


def seal_pages(app, exception):
    if exception or app.builder.name != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        if path.relative_to(app.outdir).parts[0] not in ("_static", "vendor"):
            page = path.read_text(encoding="utf-8")
            if "<head>" in page:
                path.write_text(seal(page), encoding="utf-8")


@cache
def compressed(path: Path) -> int:
    """Bytes of a script or style as servers send it; all pages need the same ones."""
    return len(gzip.compress(path.read_bytes()))


def page_weight(page: Path, site: Path) -> tuple[int, int]:
    """Bytes of a first visit to a page without its figures, and of its figures.

    Without them: the page, its scripts and styles, compressed as servers send them, and every font it may need.
    """
    text = page.read_text(encoding="utf-8")
    inside = re.findall(r'src="data:image/png;base64,([^"]*)"', text)
    text = re.sub(r'src="data:image[^"]*"', "", text)
    links = re.findall(r'src="([^"]+\.js)(?:\?[^"]*)?"', text) + re.findall(r'href="([^"]+\.css)(?:\?[^"]*)?"', text)
    needed = {(page.parent / link).resolve() for link in links}
    fonts = [path for path in site.rglob("*.woff*") if path.suffix == ".woff" or "solid" in path.name]
    pictures = {(page.parent / link).resolve() for link in re.findall(r'<img[^>]*src="([^":]*_images/[^"]*)"', text)}
    bare = len(gzip.compress(text.encode())) + sum(path.stat().st_size for path in fonts)
    bare += sum(compressed(path) for path in needed)
    return bare, sum(path.stat().st_size for path in pictures) + sum(len(picture) for picture in inside)


class Weights(SphinxDirective):
    """What every page weighs, filled in once all of them are written."""

    def run(self):
        text = f"{WEIGHTS}<p>Weighed when the pages are built: the table is on the page.</p>{END}"
        return [nodes.raw("", text, format="html")]


def state_weights(app, exception):
    site = Path(app.outdir)
    pages = sorted((site / "book").glob("*.html"))
    stating = [page for page in pages if WEIGHTS in page.read_text(encoding="utf-8")]
    if exception or app.builder.name != "html" or not stating:
        return
    weights = {page.stem: page_weight(page, site) for page in pages}
    rows = "".join(
        f'<tr><td><a href="{name}.html">{name}</a></td><td>{bare / 1e6:.2f}</td><td>{figures / 1e6:.2f}</td></tr>'
        for name, (bare, figures) in weights.items()
    )
    head = "<tr><th>page</th><th>without its figures, MB</th><th>its figures, MB</th></tr>"
    table = f'<table class="table"><thead>{head}</thead><tbody>{rows}</tbody></table>'
    for page in stating:
        text = page.read_text(encoding="utf-8")
        filled = f'<div class="pst-scrollable-table-container">{table}</div>'
        page.write_text(re.sub(f"(?<={WEIGHTS}).*?(?={END})", filled, text), encoding="utf-8")


def drop_thebe(app, pagename, templatename, context, doctree):
    # Jupyter Book always loads sphinx-thebe, which would fetch scripts from elsewhere; nothing here uses it
    def stays(file):
        return "thebe" not in str(getattr(file, "filename", "")) + str(getattr(file, "attributes", {}).get("body", ""))

    for files in ("script_files", "css_files"):
        context[files] = [file for file in context.get(files, []) if stays(file)]


def name_boxes(app, doctree):
    """Make the boxes of verdicts and checked equations known as targets of references: claim-c18, PAGE-checked-7."""
    page = app.env.docname
    for raw in doctree.findall(nodes.raw):
        match = re.match(r'<div class="admonition \w+" id="((?:claim|checked)-[\w-]+)">', raw.astext())
        if match:
            name = match[1] if match[1].startswith("claim") else f"{Path(page).name}-{match[1]}"
            app.env.get_domain("std").note_hyperlink_target(name.lower(), page, match[1])


def link_code(app, doctree, docname):
    """`kbe.train` in the text leads to the documentation of the function."""
    functions = app.env.get_domain("py").objects
    for literal in list(doctree.findall(nodes.literal)):
        match = CODE_NAME.fullmatch(literal.astext())
        if match and not isinstance(literal.parent, nodes.reference | nodes.title):
            entry = functions.get(f"{MODULES.get(match[1], match[1])}.{match[2]}")
            if entry and entry.docname != docname:
                link = make_refnode(app.builder, docname, entry.docname, entry.node_id, literal.deepcopy())
                literal.replace_self(link)


def read_as_written(app, what, name, obj, options, lines):
    """Docstrings are plain text with `code`, not reStructuredText: |x| is an absolute value and * a product."""
    for position, line in enumerate(lines):
        parts = re.split(r"`+([^`]+)`+", line)  # text and code in turn
        parts[::2] = [re.sub(r"([|*\\])", r"\\\1", text) for text in parts[::2]]
        parts[1::2] = [f"``{code}``" for code in parts[1::2]]
        lines[position] = "".join(parts)


def skip_fields(app, what, name, obj, skip, options):
    # the fields of a NamedTuple are told in its docstring; on their own they would read "alias for field number 0"
    return skip or type(obj).__name__ == "_tuplegetter"


def complete_single_page(app):
    # sphinx-exercise names its writers for the single page, and with that Sphinx forgets those of all other extensions
    writers = app.registry.translation_handlers
    writers["singlehtml"] = writers["html"] | writers.get("singlehtml", {})


def setup(app):
    # for every citation it reads the lists of all installed packages anew
    pybtex.plugin.find_plugin = cache(pybtex.plugin.find_plugin)
    app.connect("builder-inited", complete_single_page)
    app.connect("autodoc-process-docstring", read_as_written, priority=400)  # before the sections are found
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("html-page-context", drop_thebe)
    app.connect("doctree-read", name_boxes)
    app.connect("doctree-resolved", link_code)
    app.connect("build-finished", seal_pages)
    app.connect("build-finished", state_weights, priority=600)  # of what is published
    app.add_directive("weights", Weights)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
