import os
import shutil
import threading

import pytest
import torch
from hypothesis import Phase, settings
from tqdm import tqdm

# Properties are tried on the same examples in every run, few and small; HYPOTHESIS_PROFILE=search looks for new ones,
# and "quick" is content with the first example that fails, as a mutant is.
same = dict(derandomize=True, max_examples=8, deadline=None, database=None)
settings.register_profile("same", **same)
settings.register_profile("quick", phases=[Phase.generate], **same)
settings.register_profile("search", max_examples=200, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# Forked processes share the lock of all progress bars: one that is killed while it holds it stops the others for ever.
tqdm.monitor_interval = 0
tqdm.set_lock(threading.RLock())


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def browser():
    """The system's chromium, once for all tests of a process: Playwright cannot be started twice in one."""
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        yield browser
        browser.close()
