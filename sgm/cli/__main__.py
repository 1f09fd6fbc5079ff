"""`python -m sgm.cli`: the command line where the script `sgm` is not on the path; also run by its path."""

import sys
from pathlib import Path

if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
    del sys.path[0]  # the current folder, or with a path this one: nothing is imported from there
sys.path.append(str(Path(__file__).resolve().parents[2]))  # the folder of this very `sgm`

from sgm.cli import main

main()
