"""Parsers under a fuzzer that follows coverage: `python -m tests.fuzz [--seconds N] [PARSER…]`.

Each parser of `tests.support.parsers` runs in a process of its own, from the inputs that it takes. It passes when
whatever bytes were made up either came back byte for byte or were refused with ProtocolError. What the fuzzer finds it
leaves in `build/fuzz/<parser>/`, where the next run begins.
"""

import argparse
import subprocess
import sys

from tests.support.paths import REPO


def child(name: str, seconds: int) -> None:
    """Fuzz one parser; atheris ends the process, with 0 when nothing was found."""
    import atheris  # instruments what is imported after it, so nothing of protocol may have been

    with atheris.instrument_imports(include=["keyturn_protocol"]):
        from tests.support.parsers import PARSERS, held
    corpus = REPO / "build" / "fuzz" / name
    corpus.mkdir(parents=True, exist_ok=True)
    parser = PARSERS[name]
    for at, data in enumerate(parser.like):
        (corpus / f"given-{at}").write_bytes(data)

    def one(data: bytes) -> None:
        held(parser, data)

    options = [
        f"-max_total_time={seconds}",
        "-max_len=20000",
        f"-artifact_prefix={corpus.parent}/{name}-",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    """Fuzz the named parsers, all of them by default; 1 if one of them let something through."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]))
    from tests.support.parsers import PARSERS

    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    arguments.add_argument("parsers", nargs="*", metavar="PARSER", help="of: " + ", ".join(PARSERS))
    arguments.add_argument("--seconds", type=int, default=20, help="for each parser (default 20)")
    given = arguments.parse_args()
    if unknown := set(given.parsers) - set(PARSERS):
        arguments.error(f"no such parser: {', '.join(sorted(unknown))}")
    failed = []
    for name in given.parsers or PARSERS:
        command = [sys.executable, "-m", "tests.fuzz", "--child", name, str(given.seconds)]
        ended = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
        runs = next((line.split()[-1] for line in ended.stderr.splitlines() if "number_of_executed_units" in line), "?")
        print(f"{name:20} {runs:>9} inputs  {'held' if ended.returncode == 0 else 'FAILED'}", flush=True)
        if ended.returncode:
            failed.append(name)
            print(ended.stdout[-2000:], ended.stderr[-2000:], sep="\n", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
