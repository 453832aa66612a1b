"""What the tests of NVML tell the stub, and how they go through it second by second."""

from keyturn_agent.losses import Losses
from keyturn_agent.ports import Reading, Sample
from keyturn_agent.sampler import Sampler
from keyturn_agent.sources.nvml_source import NvmlSource
from keyturn_protocol.entries import Inventory, format_entry
from keyturn_protocol.entry_inventory import InventoryBody
from keyturn_protocol.entry_log import GapBody
from keyturn_protocol.entry_usage import UsageBody
from tests.agent.nvml_stub.stub import START_US, Script, Stub

SECOND_US = 1_000_000


def to_start(stub: Stub, source: NvmlSource) -> InventoryBody:
    """Open NVML some time before the story begins, as an agent that is started."""
    inventory = source.inventory()
    stub.control.set("now_us", START_US)
    return inventory


def read(stub: Stub, source: NvmlSource, t_us: int) -> Sample:
    stub.control.set("now_us", t_us)
    return source.read(t_us)


def read_seconds(stub: Stub, source: NvmlSource, seconds: int, start_us: int = START_US) -> list[Sample]:
    return [read(stub, source, start_us + second * SECOND_US) for second in range(seconds + 1)]


def only(sample: Sample) -> Reading:
    (reading,) = sample.chips
    assert reading is not None, sample.error
    return reading


def steady_gpu(**properties: object) -> Script:
    return Script().gpu(**properties).steady()


def body_of(inventory: InventoryBody) -> bytes:
    """The inventory as an entry: the protocol's own rules hold for it."""
    entry = Inventory(
        v=1, seq=0, prev="00" * 32, boot_id="00000000-0000-4000-8000-000000000000", boots=1, mono_us=0, time_us=0,
        body=inventory,
    )  # fmt: skip
    return format_entry(entry)


def two_gpus() -> Script:
    return Script().gpu(0).gpu(1).steady("0").steady("1")


def metered(samples: list[Sample], interval_us: int = 10 * SECOND_US) -> tuple[list[UsageBody], list[GapBody]]:
    """The usage entries and gaps that the daemon would write."""
    chips = len(samples[0].chips)
    sampler, losses = Sampler(chips, interval_us, 0), Losses(chips)
    bodies: list[UsageBody] = []
    gaps: list[GapBody] = []
    last_us = None
    for sample in samples:
        step = sampler.add(sample)
        bodies += [*step.before, *step.after]
        if last_us is not None:
            found = losses.see(last_us, sample.mono_us, step.spans)
            gaps += [body for body in found if isinstance(body, GapBody)]
        last_us = sample.mono_us
    return [*bodies, *sampler.flush()], gaps


def usage(source: NvmlSource, stub: Stub, seconds: int) -> list[UsageBody]:
    return metered(read_seconds(stub, source, seconds))[0]
