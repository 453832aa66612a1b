"""Fixtures of the gate's tests: a gate in a process, runs for it, and the stub of NVML."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.agent.nvml_stub.stub import Control, Script, build
from tests.support.gates import Gate, Running, cgroup_place, gate, until
from tests.support.optional import require, require_program


def script(folder: Path, made: Script | None = None) -> None:
    """What the stub shows from the next opening on: two GPUs, unless it is told otherwise."""
    made = Script().gpu(0, uuid="GPU-0").gpu(1, uuid="GPU-1") if made is None else made
    made.write(folder / "script.txt")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for a socket in it."""
    with tempfile.TemporaryDirectory(prefix="kt-gate-") as name:
        yield Path(name)


@pytest.fixture
def observing(folder: Path) -> Iterator[Gate]:
    with gate(folder) as made:
        yield made


@pytest.fixture
def begin(folder: Path) -> Iterator[Callable[..., Running]]:
    """Begins runs, and ends them with the test."""
    made: list[Running] = []

    def begin(script: str = "echo ready; sleep 1000", cgroup: Path | None = None) -> Running:
        place = folder / f"run{len(made)}"
        place.mkdir()
        made.append(Running(place, script, cgroup))
        return made[-1]

    yield begin
    for run in made:
        run.close()


@pytest.fixture
def group(folder: Path) -> Iterator[Path]:
    """A cgroup for one run."""
    place = cgroup_place()
    require("cgroups", place is not None, "no cgroup may be made here")
    assert place is not None
    made = place / f"keyturn-run-{folder.name}.scope"
    made.mkdir()
    yield made
    with suppress(OSError):
        (made / "cgroup.kill").write_text("1")
    until(lambda: not any(path.read_text() for path in made.rglob("cgroup.procs")), "the group isn't empty")
    for below in sorted(made.rglob("*/"), reverse=True):
        below.rmdir()
    made.rmdir()


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(require_program("cc"), tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def control(folder: Path) -> Control:
    return Control(folder / "control")


@pytest.fixture
def stub_environ(library: Path, folder: Path, control: Control) -> dict[str, str]:
    """The loader finds the stub by the driver's name, in a process of its own; it has two GPUs."""
    script(folder)
    return {
        "LD_LIBRARY_PATH": str(library.parent),
        "KEYTURN_NVML_STUB": str(folder / "script.txt"),
        "KEYTURN_NVML_CONTROL": str(control.path),
    }


@pytest.fixture
def served(folder: Path, stub_environ: dict[str, str]) -> Iterator[Gate]:
    """A gate that locks chips and stops runs."""
    with gate(folder, "compute-mode", stub_environ) as made:
        yield made
