"""Settings for pytest and for the notebook kernels that it starts."""

import os
from pathlib import Path

# Kernels start in book/ and do not see pytest's own path.
here = str(Path(__file__).parent)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
# Two threads that wait for each other by spinning are slower than one; processes are what runs side by side here.
os.environ.setdefault("OMP_NUM_THREADS", "1")
