"""`python -m mechprobe.calibration --model M`: the probe of that name."""

import sys

from mechprobe.cli.app import run

if __name__ == "__main__":
    sys.exit(run(prefix=["probe", "calibration"]))
