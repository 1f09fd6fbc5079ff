"""The command line, `sgm`: pictures to clips, sweeps, scores, weights, training and the app.

Every command imports its libraries when it runs, so that `sgm --help` is fast. Exit codes: 0, success; 1, failure; 2,
wrong usage; 130, stopped by Ctrl-C. Results go to stdout, everything else to stderr.
"""


def main() -> None:
    """The console script `sgm`. Its imports are inside, so that Ctrl-C during them ends it as quietly as later."""
    try:
        from sgm.cli.commands import cli
        from sgm.process import run_and_exit

        run_and_exit(lambda: cli(prog_name="sgm"))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
