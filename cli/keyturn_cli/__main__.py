"""``python -m keyturn_cli``."""

import sys

from keyturn_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
