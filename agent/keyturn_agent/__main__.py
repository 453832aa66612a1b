"""``python -m keyturn_agent``."""

import sys

from keyturn_agent.cli import main

if __name__ == "__main__":
    sys.exit(main())
