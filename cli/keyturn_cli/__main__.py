"""``keyturn`` and ``python -m keyturn_cli``; an installation without the extra says so."""

import sys


def main() -> int:
    """Run the program, if what it needs is installed."""
    try:
        from keyturn_cli.main import main as run
    except ModuleNotFoundError as error:
        print(f"keyturn: error: this installation has no {error.name}, which keyturn needs", file=sys.stderr)
        print("keyturn: hint: pip install 'keyturn[cli]'", file=sys.stderr)
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
