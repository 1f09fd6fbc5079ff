"""`python -m sgm.cli`: the command line where the script `sgm` is not on the path."""

from sgm.cli import main

main()
