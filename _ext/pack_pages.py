"""Pack the built pages into one zip that opens at index.html: make zip.

python _ext/pack_pages.py _build/html OUT.zip
"""

import sys
import zipfile
from pathlib import Path


def pack(pages: Path, target: Path) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(pages.rglob("*")):
            # neither the zip itself, nor maps that only a debugger of the theme's scripts would load
            if path.is_file() and path.suffix not in (".zip", ".map"):
                archive.write(path, Path(target.stem) / path.relative_to(pages))
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]))
