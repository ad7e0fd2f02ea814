"""Fetch MathJax's npm package, check it against its published checksum, and compare every vendored file with it.

python tests/verify_mathjax.py        (needs npm and a network)
"""

import base64
import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent.parent / "_vendor" / "vendor" / "mathjax"


def vendored() -> list[Path]:
    """The files that come from the package."""
    return [path for path in sorted(HERE.rglob("*")) if path.is_file() and path.name not in ("README.md", "SHA256SUMS")]


def main() -> int:
    published = re.search(r"sha512-([\w+/=]+)", (HERE / "README.md").read_text())[1]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", "mathjax@3.2.2"], cwd=folder, check=True)
        archive = next(Path(folder).glob("*.tgz"))
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != published:
            print(f"the package has the checksum {found}, published is {published}")
            return 1
        with tarfile.open(archive) as package:
            differing = []
            for path in vendored():
                name = path.relative_to(HERE).as_posix()
                member = f"package/{name}" if name == "LICENSE" else f"package/es5/{name}"
                if package.extractfile(member).read() != path.read_bytes():
                    differing.append(name)
    print(f"{len(vendored())} files compared with the published package, {len(differing)} differ", *differing)
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
