"""``keyturn-verifier`` and ``python -m keyturn_verifier``; an installation without the extra says so."""

import gc
import sys


def main() -> int:
    """Run the program, if what it needs is installed."""
    try:
        gc.disable()  # what is imported stays: to look through it for garbage is a fifth of the time of a start
        from keyturn_verifier.cli import run

        gc.freeze()
        gc.enable()
    except ModuleNotFoundError as error:
        print(f"keyturn: error: this installation has no {error.name}, which keyturn-verifier needs", file=sys.stderr)
        print("keyturn: hint: pip install 'keyturn[verifier]'", file=sys.stderr)
        return 2
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
