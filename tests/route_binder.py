"""The Binder route, tried: an environment from .binder/ alone, its Jupyter server, a slider in Lab, every notebook.

    pip install jupyter-kernel-client==1.0.2 playwright
    python tests/route_binder.py [--no-extra-index] [CHAPTER ...]

The committed state is cloned into a clean folder; a fresh environment takes what `.binder/requirements.txt` names and
runs `.binder/postBuild`.  In a real browser Lab is opened from the server that starts there, a chapter is run, and its
slider moved until the picture changes.  Then every notebook is fetched from the server and run, cell by cell, by one of
its kernels.  What came out is written to tests/power.json, if no chapter was named.
"""

import argparse
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from jupyter_kernel_client import JupyterKernelClient

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "tests" / "power.json"  # what the page on testing shows
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
FAILED = Path(tempfile.gettempdir(), "lab.png")  # what Lab showed when its part failed
PIXELS = """async image => {  // what an image shows, whatever its address
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas.toDataURL();
}"""


def environment(clone: Path, extra_index: bool) -> Path:
    """A fresh environment in the clone, as `.binder/` describes it; its folder of programs."""
    requirements = clone / ".binder" / "requirements.txt"
    if not extra_index:
        lines = requirements.read_text().splitlines()
        requirements.write_text("\n".join(line for line in lines if not line.startswith("--extra-index-url")))
    subprocess.run([sys.executable, "-m", "venv", clone / "env"], check=True)
    programs = clone / "env" / "bin"
    subprocess.run([programs / "python", "-m", "pip", "install", "-q", "-r", requirements], cwd=clone, check=True)
    variables = dict(os.environ, PATH=f"{programs}:{os.environ['PATH']}")
    subprocess.run([clone / ".binder" / "postBuild"], cwd=clone, check=True, env=variables)
    return programs


def start_server(clone: Path, programs: Path) -> tuple[subprocess.Popen, str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    server = subprocess.Popen(
        [programs / "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}",
         f"--IdentityProvider.token={token}"],
        cwd=clone, env=variables | {"OMP_NUM_THREADS": "1", "PATH": f"{programs}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{url}/api?token={token}", timeout=5)
            return server, url, token
        except OSError:
            time.sleep(0.5)
    server.kill()
    raise RuntimeError("the Jupyter server did not start within a minute")


def run_through_server(url: str, token: str, notebook: str) -> str | None:
    """Fetch a notebook from the server and run it cell by cell in a kernel there; the first error, or None."""
    with urllib.request.urlopen(f"{url}/api/contents/{notebook}?token={token}", timeout=60) as answer:
        cells = json.load(answer)["content"]["cells"]
    kernel = JupyterKernelClient(server_url=url, token=token)
    kernel.start(path=notebook)
    try:
        for source in (cell["source"] for cell in cells if cell["cell_type"] == "code"):
            reply = kernel.execute(source, timeout=900)
            if reply["status"] != "ok":
                output = next((o for o in reply["outputs"] if o["output_type"] == "error"), {})
                return f"{output.get('ename')}: {output.get('evalue')}"
    except TimeoutError:
        return "a cell ran for more than 15 minutes"
    finally:
        kernel.stop()
    return None


def move_a_slider(url: str, token: str, notebook: str) -> str | None:
    """Open a chapter in Lab, run it, press a key on its slider; what went wrong, or None."""
    from playwright.sync_api import Error, expect, sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        # what Lab may ask first: which kernel, and whether it may bring news
        accept, no = page.locator(".jp-Dialog .jp-mod-accept"), page.get_by_role("button", name="No", exact=True)
        for button in (accept, no):
            page.add_locator_handler(button, lambda button: button.click())
        try:
            page.goto(f"{url}/lab/tree/book/{notebook}?token={token}&reset")
            # before the notebook has its kernel, the menu has other words and does nothing
            expect(page.locator(".jp-KernelName")).to_contain_text("Python", timeout=120_000)
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
            handle, picture = page.locator(".noUi-handle").first, page.locator("img.widget-image").first
            handle.wait_for(state="attached", timeout=600_000)
            expect(page.locator(".jp-Notebook-ExecutionIndicator")).to_have_attribute(
                "data-status", "idle", timeout=600_000
            )
            before = picture.evaluate(PIXELS)
            handle.focus()
            page.keyboard.press("ArrowRight")
            for _ in range(30):
                if picture.evaluate(PIXELS) != before:
                    return None
                page.wait_for_timeout(1000)
        except (Error, AssertionError) as error:
            page.screenshot(path=FAILED)
            return f"{str(error).splitlines()[0]} ({FAILED} shows Lab)"
        return "the slider moved and the picture stayed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-extra-index", action="store_true", help="where PyTorch's own index cannot be reached")
    parser.add_argument("--slider", default="one_point_training.ipynb", help="the notebook whose slider is moved")
    parser.add_argument("chapters", nargs="*")
    options = parser.parse_args()
    failures, ran = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        programs = environment(clone, not options.no_extra_index)
        lab = subprocess.check_output([programs / "jupyter", "lab", "--version"], text=True).strip()
        size = sum(f.stat().st_size for f in (clone / "env").rglob("*") if f.is_file() and not f.is_symlink())
        print(f"environment: {size / 1e9:.2f} GB", flush=True)
        server, url, token = start_server(clone, programs)
        try:
            moved = move_a_slider(url, token, options.slider)
            failures += moved is not None
            print(f"slider in Lab: {moved or 'moved, and the picture changed'}", flush=True)
            names = options.chapters or [path.stem for path in sorted((clone / "book").glob("*.ipynb"))]
            for name in names:
                start = time.perf_counter()
                error = run_through_server(url, token, f"book/{name}.ipynb")
                failures += error is not None
                ran += error is None
                print(f"{name}: {error or 'ran'} ({time.perf_counter() - start:.0f} s)", flush=True)
            if not options.chapters:
                record = json.loads(RECORD.read_text())
                record["the Binder route"] = {
                    "environment from .binder/ alone": f"{size / 1e9:.2f} GB",
                    "notebooks run through its Jupyter server": f"{ran} of {len(names)}",
                    f"slider in JupyterLab {lab}, moved in a browser": moved or "the picture changed",
                }
                RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        finally:
            server.terminate()
            server.wait()
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
