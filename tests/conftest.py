"""What all tests share."""

from __future__ import annotations

import os

# Tests, and what they start, run side by side, and tensors as small as theirs gain nothing from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No two signatures are alike, but files of equal clips are compared.
os.environ["SGM_C2PA"] = "off"
# The compiler of rembg's dependencies takes a minute in a new environment; tests have pictures too small to need it.
os.environ["NUMBA_DISABLE_JIT"] = "1"
