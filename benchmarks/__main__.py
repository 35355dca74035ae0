"""`python -m benchmarks`: what the layer costs, beside what people write instead."""

import sys

from benchmarks.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
