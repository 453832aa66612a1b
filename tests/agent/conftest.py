"""Fixtures of the agent's tests: the stub of NVML in place of a driver's library."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyturn_agent.procs import Attribution
from keyturn_agent.sources.nvml_source import NvmlSource
from tests.agent.nvml_stub.stub import Script, Stub, build
from tests.support.optional import require_program


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(require_program("cc"), tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def old_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a driver from before GPM, event reasons and versioned process lists."""
    return build(require_program("cc"), tmp_path_factory.mktemp("old_nvml"), "-DOLD_DRIVER")


@pytest.fixture
def stub(library: Path, tmp_path: Path) -> Iterator[Stub]:
    with Stub(library, tmp_path).installed() as stub:
        yield stub


@pytest.fixture
def old_stub(old_library: Path, tmp_path: Path) -> Iterator[Stub]:
    with Stub(old_library, tmp_path).installed() as stub:
        yield stub


class Sources:
    """Makes sources, and ends them before the library goes."""

    def __init__(self) -> None:
        self._made: list[tuple[NvmlSource, Stub]] = []

    def __call__(
        self,
        stub: Stub,
        script: Script,
        *,
        period_us: int = 1_000_000,
        open_deadline_s: float = 30,
        read_deadline_s: float = 30,
        sysfs: Path = Path("/nonexistent"),
        attribution: Attribution | None = None,
    ) -> NvmlSource:
        stub.play(script)
        source = NvmlSource(
            stub.clock,
            period_us=period_us,
            open_deadline_s=open_deadline_s,
            read_deadline_s=read_deadline_s,
            sysfs=sysfs,
            attribution=attribution,
        )
        self._made.append((source, stub))
        return source

    def end(self) -> None:
        for source, stub in self._made:
            release(stub, source)
            source.stop()
            source.worker.join()


def release(stub: Stub, source: NvmlSource) -> None:
    """Let a call that hangs come back, and wait until it has."""
    stub.control.set("release", 1)
    while source.worker.hangs:
        time.sleep(0.001)


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Iterator[Sources]:
    # The stub first, so that it is taken down last.
    for name in ("stub", "old_stub"):
        if name in request.fixturenames:
            request.getfixturevalue(name)
    sources = Sources()
    yield sources
    sources.end()
