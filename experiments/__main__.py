"""`python -m experiments` lists the experiments, `python -m experiments NAME` runs one, `report` prints what was reached."""

import sys

from experiments.harness import cli

if __name__ == "__main__":
    sys.exit(cli.main())
