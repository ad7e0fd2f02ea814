"""A notebook to take along for each chapter: executed, its MyST turned into Markdown that every Jupyter shows.

Written to downloads/NAME.ipynb beside the pages, where the download button finds it.  Where the repository is known,
the first cell fetches the book when it is opened in Colab, and does nothing elsewhere.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from sphinx.util import logging

from kbe_book import repository_url

LOGGER = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parent.parent
FOLDER = "downloads"
BRANCH = "notebooks"  # where the workflow puts them for Colab, which opens files of a repository alone

COLAB_CELL = """\
# In Colab this fetches the book and its helper modules; everywhere else it does nothing.
try:
    import google.colab
except ImportError:
    pass
else:
    import importlib.util, os, subprocess, sys

    if importlib.util.find_spec("kbe_lib") is None:
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", "{url}", "the_book"], check=True)
        sys.path.insert(0, os.path.abspath("the_book"))
        os.chdir("the_book/book")
"""

ROLE = re.compile(r"\{([a-z:]+)\}`([^`]+)`")
PAGE_LINK = re.compile(r"\]\((?!\w+:|#)([\w./-]+)\.md(#[\w-]+)?\)")
HTML_LINK = re.compile(r'<a href="([\w-]+)\.html')
LABEL_LINK = re.compile(r"\]\(([a-z][\w-]*)\)")
TARGET = re.compile(r"^\([\w-]+\)=\n", re.MULTILINE)
SCRIPT = re.compile(r"<script[^>]*></script>\n?|<link [^>]*>\n?")  # no Jupyter runs them
DOLLAR_LABEL = re.compile(r"\$\$\s*\(([\w-]+)\)\s*$", re.MULTILINE)
FENCE = re.compile(r"(?P<mark>`{3,}|:{3,})\{(?P<name>[\w:-]+)\} *(?P<argument>.*)")
OPTION = re.compile(r":([\w-]+): *(.*)")
LEFT_OVER = re.compile(r"^ *(:{3,}|`{3,}\{)|\{[a-z:]+\}`", re.MULTILINE)
MADE_WITH_THE_PAGES = ("verdicts", "equations", "tested", "weights", "take", "bibliography", "nb-exec-table")
BOXES = ("note", "tip", "warning", "important", "caution", "danger", "hint", "attention", "seealso", "admonition")


class Book:
    """What directives and roles say on the pages: numbers, citations, addresses."""

    def __init__(self, env, address: str):
        self.env, self.address = env, address
        self.bibliography = env.get_domain("cite").bibdata.data.entries

    def number(self, kind: str, page: str, target: str) -> str:
        number = self.env.toc_fignumbers.get(page, {}).get(kind, {}).get(target)
        if number is None:
            LOGGER.warning("a notebook cannot number %r", target)
        return ".".join(map(str, number or "?"))

    def equation(self, label: str) -> str:
        page, _ = self.env.get_domain("math").equations.get(label, (None, None))
        return self.number("displaymath", page, f"equation-{label}")

    def labelled(self, label: str) -> str:
        page, target = self.env.get_domain("std").anonlabels.get(label, (None, label))
        return f"Fig. {self.number('figure', page, target)}"

    def title(self, label: str) -> str:
        return self.env.get_domain("std").labels.get(label, (None, None, label))[2]

    def citation(self, keys: str, in_text: bool) -> str:
        words = []
        for key in keys.split(","):
            entry = self.bibliography[key.strip()]
            names = [" ".join([*person.prelast_names, *person.last_names]) for person in entry.persons["author"]]
            names = names[0] if len(names) == 1 else " and ".join(names) if len(names) == 2 else f"{names[0]} et al."
            names, year = re.sub(r"\\.|[{}]", "", names), entry.fields["year"]
            words.append(f"{names} ({year})" if in_text else f"{names}, {year}")
        return ", ".join(words) if in_text else f"({'; '.join(words)})"

    def page(self, name: str) -> str:
        return f"{self.address}/book/{name}.html"

    def place(self, label: str) -> str:
        page, target = self.env.get_domain("std").anonlabels[label]
        return f"{self.page(Path(page).name)}#{target}"


def role(book: Book, name: str, content: str) -> str:
    explicit = re.fullmatch(r"(.*?)\s*<([^<>]+)>", content, re.DOTALL)
    words, target = (explicit[1], explicit[2]) if explicit else (None, content)
    match name:
        case "eq":
            return f"({book.equation(target)})"
        case "numref":
            return words or book.labelled(target)
        case "cite:p" | "cite":
            return book.citation(target, in_text=False)
        case "cite:t":
            return book.citation(target, in_text=True)
        case "ref":
            return words or book.title(target.lower())
        case "doc":
            return f"[{words or target}]({book.page(Path(target).name)})"
        case "sub":
            return f"<sub>{content}</sub>"
    LOGGER.warning("a notebook cannot show the role %r", name)
    return words or content


def inline(book: Book, text: str) -> str:
    """Markdown without directives: roles, targets and links between pages."""
    text = SCRIPT.sub("", TARGET.sub("", text))
    text = DOLLAR_LABEL.sub(lambda match: rf"\tag{{{book.equation(match[1])}}}$$", text)
    text = ROLE.sub(lambda match: role(book, match[1], match[2]), text)
    text = HTML_LINK.sub(lambda match: f'<a href="{book.page(match[1])}', text)
    text = LABEL_LINK.sub(lambda match: f"]({book.place(match[1])})", text)
    return PAGE_LINK.sub(lambda match: f"]({book.page(Path(match[1]).name)}{match[2] or ''})", text)


def quoted(title: str, body: str) -> str:
    lines = f"**{title}**\n\n{body}".strip().splitlines()
    return "\n".join(f"> {line}".rstrip() for line in lines)


def directive(book: Book, page: str, name: str, argument: str, options: dict[str, str], body: str) -> str:
    """Plain Markdown for one directive; the body of a container has been converted already."""
    number: Callable[[str], str] = lambda kind: book.number(kind, page, options["label"])  # noqa: E731
    match name:
        case "math":
            tag = rf" \tag{{{book.equation(options['label'])}}}" if "label" in options else ""
            body = "\n".join(filter(None, [argument, body.strip()]))
            inner = body if r"\begin{" in body or r"\\" not in body else rf"\begin{{aligned}}{body}\end{{aligned}}"
            return f"$$\n{inner}{tag}\n$$"
        case "exercise":
            return quoted(f"Exercise {number('exercise')}{' · ' + argument if argument else ''}", body)
        case "solution":
            exercise = book.number("exercise", page, argument)
            return f"<details><summary>Solution of exercise {exercise}</summary>\n\n{body.strip()}\n\n</details>"
        case "grid-item-card" | "card" | "tab-item":
            return f"**{argument}**\n\n{body.strip()}"
        case "dropdown":
            return f"<details><summary>{argument}</summary>\n\n{body.strip()}\n\n</details>"
        case "grid" | "tab-set" | "div" | "container":
            return body.strip()
        case "figure" | "image":
            text = f"![{options.get('alt', '')}]({argument})"
            return f"{text}\n\n{body.strip()}".strip()
        case _ if name in MADE_WITH_THE_PAGES:
            return f"*(Made when the book is built: see [the page]({book.page(Path(page).name)}).)*"
        case "raw":
            return f"*(Works on [the page]({book.page(Path(page).name)}) alone.)*"
    if name not in BOXES:
        LOGGER.warning("a notebook cannot show the directive %r", name, location=page)
    return quoted(argument or name.capitalize(), body)


def plain(book: Book, page: str, text: str) -> str:
    """A Markdown cell without MyST: directives, roles and targets become what they say."""
    done, prose, lines = [], [], text.splitlines()

    def flush():
        done.append(inline(book, "\n".join(prose)))
        prose.clear()

    position = 0
    while position < len(lines):
        line, fence = lines[position], FENCE.fullmatch(lines[position].strip())
        position += 1
        if fence is None:
            if line.startswith("```"):  # code that is shown, not run: as it is
                flush()
                end = lines.index("```", position)
                done.append("\n".join(lines[position - 1 : end + 1]))
                position = end + 1
            elif not line.startswith("% "):
                prose.append(line)
            continue
        flush()
        end = next(i for i in range(position, len(lines)) if lines[i].strip() == fence["mark"])
        body, options = lines[position:end], {}
        while body and (option := OPTION.fullmatch(body[0].strip())):
            options[option[1]] = option[2]
            body.pop(0)
        position = end + 1
        verbatim = fence["name"] in ("math", "raw", *MADE_WITH_THE_PAGES)
        content = "\n".join(body) if verbatim else plain(book, page, "\n".join(body))
        done.append(
            "\n" + directive(book, page, fence["name"], inline(book, fence["argument"]), options, content) + "\n"
        )
    flush()
    result = re.sub(r"\n{3,}", "\n\n", "\n".join(done)).strip()
    if left := LEFT_OVER.search(re.sub(r"^```.*?^```$|`[^`]*`", "", result, flags=re.MULTILINE | re.DOTALL)):
        LOGGER.warning("the notebook of %s still holds MyST: %s", page, left[0])
    return result


def still_picture(data: dict) -> dict:
    """A slider's output as the frame that it starts with: moving it takes a kernel, or the page."""
    if "kbe-slider" not in data.get("text/html", ""):
        return {kind: content for kind, content in data.items() if "widget" not in kind}
    frame = re.search(r'<img src="data:image/png;base64,([^"]+)"[^>]*width="\d+">', data["text/html"])
    return {"image/png": frame[1], "text/plain": data["text/plain"]}


def take_along(app, page: str, cells: list, url: str | None, address: str) -> nbformat.NotebookNode:
    """The executed cells of a chapter as a notebook without MyST."""
    book, notebook = Book(app.env, address), nbformat.v4.new_notebook()
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    new = notebook.cells
    if url:
        hidden = {"tags": ["hide-input"], "jupyter": {"source_hidden": True}, "cellView": "form"}
        new.append(nbformat.v4.new_code_cell(COLAB_CELL.format(url=url), metadata=hidden))
    for cell in cells:
        if cell.cell_type == "markdown":
            new.append(nbformat.v4.new_markdown_cell(plain(book, page, cell.source)))
            continue
        if cell.cell_type != "code":
            continue
        hidden = {"hide-input", "hide-cell", "remove-input"} & set(cell.metadata.get("tags", []))
        metadata = {"jupyter": {"source_hidden": True}} if hidden else {}
        code = nbformat.v4.new_code_cell(cell.source, metadata=metadata, execution_count=cell.execution_count)
        code.outputs = json.loads(json.dumps(cell.get("outputs", [])))
        for output in code.outputs:
            if "data" in output:
                output["data"] = still_picture(output["data"])
        code.outputs = [nbformat.from_dict(output) for output in code.outputs]
        new.append(code)
        figure = cell.metadata.get("mystnb", {}).get("figure", {})
        if figure:
            caption = plain(book, page, figure["caption"])
            new.append(nbformat.v4.new_markdown_cell(f"**{book.labelled(figure['name'])}.** {caption}"))
    for position, cell in enumerate(new):
        cell.id = f"cell-{position}"  # the same in every build
    nbformat.validate(notebook)
    return notebook


def up_to_date(app, folder: Path) -> bool:
    """Whether all notebooks were written after any page was last read; numbers of figures come from other pages."""
    written = [path.stat().st_mtime for path in folder.glob("*.ipynb")]
    read = (path.stat().st_mtime for path in Path(app.doctreedir).rglob("*.doctree"))
    return len(written) == len(app.kbe_chapters) and min(written) > max(read)


def write_notebooks(app, exception):
    folder = Path(app.outdir) / FOLDER
    if exception or app.builder.name != "html" or up_to_date(app, folder):
        return
    url = repository_url()
    cache = get_cache(app.config.nb_execution_cache_path)
    folder.mkdir(exist_ok=True)
    address = app.config.ogp_site_url.rstrip("/") or ".."
    for chapter, source in app.kbe_chapters.items():
        _, executed = cache.merge_match_into_notebook(source)
        notebook = take_along(app, f"book/{chapter}", executed.cells, url, address)
        nbformat.write(notebook, folder / f"{chapter}.ipynb")


def offer_notebook(app, pagename, templatename, context, doctree):
    """The download button gives this notebook; the Colab button opens it from its branch."""
    groups = {group.get("label"): group for group in context.get("header_buttons", [])}
    if not (ROOT / f"{pagename}.ipynb").exists() or "download-buttons" not in groups:
        return
    buttons = groups["download-buttons"]["buttons"]
    buttons[:] = [button for button in buttons if button["label"] != "download-notebook-button"]
    buttons.insert(
        0,
        {
            "type": "link",
            "url": context["pathto"](f"{FOLDER}/{Path(pagename).name}.ipynb", 1),
            "text": ".ipynb",
            "icon": "fas fa-code",
            "tooltip": "Download the executed notebook",
            "label": "download-notebook-button",
        },
    )
    for button in groups.get("launch-buttons", {}).get("buttons", []):
        if button["text"] == "Colab":
            button["url"] = re.sub(r"/blob/[^/]+/book/", f"/blob/{BRANCH}/", button["url"])


def setup(app):
    app.connect("build-finished", write_notebooks)
    app.connect("html-page-context", offer_notebook, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
