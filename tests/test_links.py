"""Links to the repository follow the place where the book is built; without one there are none."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "_ext"))
import kbe_book


class Config:
    def __init__(self):
        self.html_theme_options = {"launch_buttons": {"notebook_interface": "jupyterlab"}}


def at_remote(monkeypatch, remote):
    for name in ("GITHUB_REPOSITORY", "GITHUB_SERVER_URL", "GITHUB_REF_NAME", "CI"):
        monkeypatch.delenv(name, raising=False)
    answer = subprocess.CompletedProcess([], 0, stdout=remote + "\n")
    monkeypatch.setattr(kbe_book.subprocess, "run", lambda *_, **__: answer)


@pytest.mark.parametrize(
    ("remote", "url"),
    [
        ("https://github.com/someone/a.book.git", "https://github.com/someone/a.book"),
        ("git@github.com:someone/book.git", "https://github.com/someone/book"),
        ("ssh://git@gitlab.com/group/book", "https://gitlab.com/group/book"),
        ("/srv/git/book.git", None),
        ("https://example.org/someone/book", None),
        ("", None),
    ],
)
def test_from_the_git_remote(monkeypatch, remote, url):
    at_remote(monkeypatch, remote)
    assert kbe_book.repository_url() == url


def test_ci_knows_better(monkeypatch):
    at_remote(monkeypatch, "https://github.com/someone/book")
    monkeypatch.setenv("GITHUB_REPOSITORY", "fork/book")
    assert kbe_book.repository_url() == "https://github.com/fork/book"


def test_no_repository_no_links(monkeypatch):
    at_remote(monkeypatch, "")
    config = Config()
    kbe_book.link_to_repository(None, config)
    assert config.html_theme_options == {}


def test_a_repository_gets_all_links(monkeypatch):
    at_remote(monkeypatch, "https://github.com/someone/book")
    config = Config()
    kbe_book.link_to_repository(None, config)
    options = config.html_theme_options
    assert options["repository_url"] == "https://github.com/someone/book"
    assert options["use_edit_page_button"]
    assert set(options["launch_buttons"]) == {"notebook_interface", "binderhub_url", "colab_url"}


def test_an_edit_of_a_helper_makes_another_cache(monkeypatch, tmp_path):
    (tmp_path / "kbe_lib.py").write_text("one")
    monkeypatch.setattr(kbe_book, "ROOT", tmp_path)
    before = kbe_book.cache_path()
    (tmp_path / "kbe_lib.py").write_text("two")
    changed = kbe_book.cache_path()
    (tmp_path / "kbe_lib.py").write_text("one")
    assert before != changed
    assert kbe_book.cache_path() == before
