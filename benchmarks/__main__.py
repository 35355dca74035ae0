"""`python -m benchmarks`: what a layer costs, beside what people write instead; with `models`, whole models."""

import sys

from benchmarks import command, models

if __name__ == "__main__":
    if sys.argv[1:2] == ["models"]:
        sys.exit(models.main(sys.argv[2:]))
    sys.exit(command.main(sys.argv[1:]))
