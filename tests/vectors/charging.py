"""Vectors of what a log charges to its leases; expected sums come from the plain fold in tests/support."""

from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

from tests.support.naive_charge import PEAK, NaiveCharge, subject_of
from tests.vectors.leases import RUN, gap, lease, permit, report
from tests.vectors.pieces import Case, Json, bad, canonical, good

COUNTED: Json = {
    **{"energy_mj": 3_000_000, "busy_us": 10_000_000, "elapsed_mcycles": 17_000, "active_mcycles": 15_000},
    **{"tensor_mcycles": 9_003, "hmma_mcycles": 9_001, "imma_mcycles": 0, "dmma_mcycles": 0},
    **{"fp64_mcycles": 1, "fp32_mcycles": 2_000, "fp16_mcycles": 100},
}


class Leased:
    """A log with one chip, and the leases that it names."""

    def __init__(self, log: Any, inventory: Callable[..., Json], *chips: Json) -> None:
        self.log, self.chips = log.genesis(), len(chips)
        self.log.add("inventory", inventory(*chips))
        self.leases: dict[str, Json] = {}
        self.naive = NaiveCharge(self.leases)
        self.fed = 0

    def adopt(self, **changes: Any) -> str:
        nonce = sha256(b"nonce %d" % len(self.leases)).hexdigest()
        made = lease(nonce=nonce, charged_tflop=0, chips=["GPU-a"], sequence=len(self.leases), **changes)
        digest = sha256(canonical(made) + b"\n").hexdigest()
        self.leases[digest] = made
        self.log.add("permit", permit(nonce=nonce, chips=["GPU-a"], hosts=1))
        self.log.add("lease", report(lease=digest, event="adopted", charged_flop="0"))
        return digest

    def works(self, **changes: Any) -> "Leased":
        self.log.usage(10, [], [{**COUNTED, **changes}] * self.chips)
        return self

    def says(self, digest: str, event: str = "report", **changes: Any) -> "Leased":
        reason = "done" if event == "final" else None
        self.log.add("lease", report(lease=digest, event=event, charged_flop="0", reason=reason, **changes))
        return self

    def case(self, what: str) -> Case:
        """``charged``: what each lease entry should say; the entries say 0, which is nobody's business here."""
        said = [self.naive.add(entry) for entry in self.log.entries]
        entries = [line.decode() for line in self.log.lines]
        given = {"entries": entries, "leases": [canonical(one).decode() for one in self.leases.values()]}
        total = str(self.naive.flop.get(subject_of(lease(run=RUN)), 0))
        value = {"charged": [str(one) for one in said if one is not None], "total": total}
        return good(what, "charge", given, value)


def charging(
    log: Callable[[], Any], inventory: Callable[..., Json], chip: Callable[..., Json]
) -> Iterator[tuple[str, Case]]:
    def begun(**changes: Any) -> tuple[Leased, str]:
        made = Leased(log(), inventory, chip("GPU-a"))
        return made, made.adopt(**changes)

    known, strange = chip("GPU-a"), chip("GPU-b", name="NVIDIA X999")
    peak = -(-2 * PEAK * 10**6 // 10**12)
    yield "good_peak", good("the peak of two chips, any type", "peak", {"chips": [known, known], "dtypes": []}, peak)
    yield "unknown_chip", bad("a chip without a bound", "peak", {"chips": [known, strange], "dtypes": []}, "refused")

    def measured(**changes: Any) -> Leased:
        made, digest = begun()
        return made.works(**changes).works().says(digest, "final")

    yield "good_declared", measured().case("two entries at the rate of bf16")
    yield "good_contradicted", measured(dmma_mcycles=1).case("an entry with cycles of a pipe that no type runs on")
    blind = dict.fromkeys(("hmma_mcycles", "imma_mcycles", "dmma_mcycles"))
    yield "good_pipes_unknown", measured(**blind).case("tensor cycles that are not told apart")
    bare: Json = dict.fromkeys(COUNTED)
    yield "good_energy_row", measured(**{**bare, "energy_mj": 700_000}).case("an entry with the energy alone")
    yield "good_not_read", measured(**bare, samples=0).case("a chip that was not read: the peak")
    made, digest = begun(dtypes=[])
    yield "good_any_dtype", made.works().says(digest, "final").case("of any data type: the undeclared high end")
    made, digest = begun()
    made.works().log.pass_time(7.5)
    yield "good_gap", made.works().says(digest, "final").case("7.5 s that no entry covers: the peak")
    made, digest = begun()
    made.works()
    at = made.log.mono_us
    made.log.pass_time(60)
    made.says(digest, gaps=[gap(mono_from_us=at, mono_to_us=made.log.mono_us, energy_mj=5_000_000)])
    yield "good_gap_energy", made.works().says(digest, "final").case("60 s of which the energy is known")
    made, digest = begun()
    made.works()
    at = made.log.mono_us + 1
    made.log.pass_time(60)
    made.says(digest, gaps=[gap(mono_from_us=at, mono_to_us=made.log.mono_us, energy_mj=5_000_000)])
    yield "good_gap_elsewhere", made.works().says(digest, "final").case("the energy of another time bounds nothing")
    made, digest = begun()
    made.works().log.pass_time(3)
    yield (
        "good_final",
        made.says(digest, "final").works().case("what is not covered up to the last word; nothing after"),
    )
    made, digest = begun()
    made.works().adopt()
    made.log.pass_time(5)
    yield "good_renewed", made.works().case("a renewal leaves no time out")
    made, digest = begun(ttl_s=100)
    made.works().log.pass_time(500)
    yield "good_ended", made.works().says(digest, "final").case("a gap is charged up to the end of the lease")
    for name, off_s, what in (
        ("good_reboot", 60, "a reboot: the peak until the new boot began"),
        ("good_reboot_clock_back", -3600, "a clock that was set back: all that was left of the lease"),
    ):
        made, digest = begun(ttl_s=1000)
        made.works().log.reboot(off_s)
        made.log.add("inventory", inventory(chip("GPU-a")))
        yield name, made.works().says(digest, "final").case(what)
