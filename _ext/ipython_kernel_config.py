"""Read by every kernel that starts in .venv, before its first import.

A chapter's imports make a million objects that stay.  To look for garbage among them takes a tenth of their time.
"""

import gc

gc.set_threshold(100_000, 20, 100)
