"""`python -m parity`: the grid, then both training runs (see `python -m parity --help`)."""

import sys

from parity.cli.main import main
from parity.scratch import end_by_sigterm


def entry() -> None:
    """Run the command line and leave with its exit code."""
    end_by_sigterm()
    sys.exit(main())


if __name__ == "__main__":
    entry()
