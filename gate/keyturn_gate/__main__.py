"""``python -m keyturn_gate``."""

import sys

from keyturn_gate.cli import main

if __name__ == "__main__":
    sys.exit(main())
