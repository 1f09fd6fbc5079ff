"""What all tests share."""

from __future__ import annotations

import os

# Tests run side by side, and tensors as small as theirs gain nothing from threads. So does what they start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
