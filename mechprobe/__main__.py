"""`python -m mechprobe`."""

import sys

from mechprobe.cli import main

if __name__ == "__main__":
    sys.exit(main())
