"""What is charged is never less than what was done, however a log is cut, killed, rebooted or renamed."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import to_builtins

from keyturn_protocol.authority import Refused, Why
from keyturn_protocol.charging import Charge, peak_tflop_s
from keyturn_protocol.chips import chip_table
from keyturn_protocol.entry_switch import SPENT
from keyturn_protocol.flop import energy_bound, peak_rate
from keyturn_protocol.lease_accounts import TERA
from tests.support.metered import RUN, SECOND, WORK, Metered, h100, in_runs, with_restarts
from tests.support.naive_charge import NaiveCharge

ANY: frozenset[str] = frozenset()
PEAK = peak_rate(h100(), ANY, chip_table()) or 0
"""FLOP a µs."""
SMS = 114


def leased(dtypes: list[str] | None = None, *, chips: int = 1, **changes: Any) -> tuple[Metered, str]:
    host = Metered()
    uuids = [f"GPU-{'abcd'[i]}" for i in range(chips)]
    host.genesis().chips_are(*map(h100, uuids))
    return host, host.lease(uuids, dtypes=dtypes or [], **changes)


def per_row(dtypes: list[str], **counters: int | None) -> int:
    host, _ = leased(dtypes)
    return host.works({**WORK, **counters}).charged()


class TestRows:
    def test_by_the_fastest_type_that_was_signed_for(self) -> None:
        vector = per_row(["bf16"], tensor_mcycles=0, hmma_mcycles=0)
        assert per_row(["bf16"]) - vector == 9_000 * 10**6 * 4096 * SMS
        assert per_row(["bf16", "tf32"]) == per_row(["bf16"])
        assert per_row(["tf32"]) - vector == 9_000 * 10**6 * 2048 * SMS
        assert per_row(["bf16", "fp8"]) == per_row([])
        assert per_row([]) - vector == 9_000 * 10**6 * 8192 * SMS

    @pytest.mark.parametrize(
        ("dtypes", "counters"),
        [
            (["bf16"], {"dmma_mcycles": 1}),
            (["bf16"], {"imma_mcycles": 1}),
            (["fp64_tensor"], {"hmma_mcycles": 1}),
            (["int8"], {"hmma_mcycles": 1}),
        ],
    )
    def test_cycles_of_a_pipe_on_which_none_of_them_runs_charge_the_undeclared(
        self, dtypes: list[str], counters: dict[str, int]
    ) -> None:
        assert per_row(dtypes, **counters) == per_row([], **counters)

    def test_integer_work_that_was_signed_for_is_none(self) -> None:
        idle = per_row(["int8"], tensor_mcycles=0, hmma_mcycles=0)
        assert per_row(["int8"], tensor_mcycles=9_000, hmma_mcycles=0, imma_mcycles=9_000) == idle

    def test_all_work_on_a_leased_chip_whoever_did_it(self) -> None:
        host, _ = leased()
        mine = host.works().charged()
        assert host.works(workload="user:7").charged() == 2 * mine
        assert host.works(workload=None).charged() == 3 * mine

    def test_nothing_of_other_chips_and_nothing_before_and_after(self) -> None:
        host = Metered()
        host.genesis().chips_are(h100("GPU-a"), h100("GPU-b")).works()
        lease = host.lease(["GPU-a"])
        assert host.charged() == 0
        once = host.works().charged()
        host.say(lease, "final")
        assert host.works().charged() == once == per_row([])

    def test_a_chip_that_was_not_read_may_have_done_anything(self) -> None:
        host, _ = leased()
        assert host.works(dict.fromkeys(WORK)).charged() == 10 * SECOND * PEAK


class TestGaps:
    def test_killing_the_agent_costs_the_peak(self) -> None:
        host, _ = leased()
        before = host.works().charged()
        assert host.wait(60 * SECOND).works().charged() == 2 * before + 60 * SECOND * PEAK

    def test_energy_over_exactly_that_time_bounds_it(self) -> None:
        host, lease = leased()
        before = host.works().charged()
        at = host.mono_us
        host.wait(60 * SECOND)
        bound = energy_bound(5_000_000, 60 * SECOND, h100(), chip_table())
        assert bound is not None
        assert bound < 60 * SECOND * PEAK
        assert host.say(lease, gaps=(host.gap("GPU-a", at, 5_000_000),)) == before + bound
        assert host.works().charged() == 2 * before + bound

    @pytest.mark.parametrize("off_us", [-1, 1])
    def test_energy_of_any_other_time_bounds_nothing(self, off_us: int) -> None:
        host, lease = leased()
        before = host.works().charged()
        at = host.mono_us + off_us
        host.wait(60 * SECOND)
        host.say(lease, gaps=(host.gap("GPU-a", at, 5_000_000),))
        assert host.works().charged() == 2 * before + 60 * SECOND * PEAK

    def test_less_energy_than_a_chip_at_rest_takes_is_a_broken_counter(self) -> None:
        host, lease = leased()
        at = host.mono_us
        host.wait(60 * SECOND)
        assert host.say(lease, gaps=(host.gap("GPU-a", at, 599_999),)) == 60 * SECOND * PEAK

    def test_what_no_usage_covers_up_to_the_last_word(self) -> None:
        host, lease = leased()
        before = host.works().charged()
        assert host.wait(3 * SECOND).say(lease, "final") == before + 3 * SECOND * PEAK

    def test_the_rest_of_a_lease_that_is_too_little_to_run_on(self) -> None:
        host, lease = leased(upto_tflop=10**6)
        assert host.works().charged() < 10**6 * TERA
        assert host.say(lease, "final", reason=SPENT) == 10**6 * TERA
        again, over = leased(upto_tflop=1)
        before = again.works().charged()
        assert again.say(over, "final", reason=SPENT) == before > TERA, "what was charged on top stays"

    def test_no_longer_than_the_lease_lives(self) -> None:
        host, _ = leased(ttl_s=100)
        assert host.wait(5000 * SECOND).works({}).charged() == 110 * SECOND * PEAK, "100 s, and 10 s not read"

    def test_a_chip_that_leaves_the_inventory_is_owed(self) -> None:
        host, lease = leased(chips=2)
        host.chips_are(h100("GPU-a")).works({**WORK})
        one = per_row([])
        assert host.say(lease, "final") == one + 10 * SECOND * PEAK

    def test_a_chip_that_was_not_listed_when_the_lease_was_adopted(self) -> None:
        host = Metered()
        host.genesis().chips_are(h100("GPU-b"))
        host.lease(["GPU-a"])
        host.works().chips_are(h100("GPU-a"), h100("GPU-b")).works()
        assert host.charged() == per_row([]) + 10 * SECOND * PEAK

    def test_a_renewal_leaves_no_time_out(self) -> None:
        host, _ = leased()
        host.works().wait(5 * SECOND)
        host.lease(["GPU-a"])
        assert host.wait(5 * SECOND).works().charged() == 2 * per_row([]) + 10 * SECOND * PEAK

    def test_a_renewal_with_fewer_chips_is_the_last_word_on_the_others(self) -> None:
        host, _ = leased(chips=2)
        host.wait(5 * SECOND)
        host.lease(["GPU-a"])
        assert host.charged() == 5 * SECOND * PEAK
        assert host.works().charged() == 10 * SECOND * PEAK + per_row([])


class TestReboots:
    def test_the_peak_until_the_new_boot_began(self) -> None:
        host, lease = leased()
        before = host.works().charged()
        host.reboot(off_s=60).chips_are(h100())
        assert host.charged() == before + 60 * SECOND * PEAK
        assert host.works().charged() == before + 60 * SECOND * PEAK, "the lease is void"
        assert host.say(lease, "final") == before + 60 * SECOND * PEAK

    def test_a_clock_that_was_set_back_hides_nothing(self) -> None:
        host, _ = leased(ttl_s=1000)
        before = host.works().charged()
        host.reboot(off_s=60, clock_s=-3600).chips_are(h100())
        assert host.charged() == before + 990 * SECOND * PEAK

    def test_a_host_that_was_off_for_long_used_no_more_than_its_lease_allowed(self) -> None:
        host, _ = leased(ttl_s=1000)
        host.reboot(off_s=10**6).chips_are(h100())
        assert host.charged() == 1000 * SECOND * PEAK


class TestMig:
    def parent(self) -> Any:
        return h100("GPU-a", role="mig_parent")

    def instance(self, uuid: str, sms: int = 16) -> Any:
        return h100(uuid, role="mig_instance", parent="GPU-a", sms=sms, memory_mib=None)

    def test_an_instance_is_charged_for_its_own_sms(self) -> None:
        host = Metered()
        host.genesis().chips_are(self.parent(), self.instance("MIG-1"), self.instance("MIG-2"))
        host.lease(["MIG-1"])
        assert host.works().charged() * SMS == per_row([]) * 16

    def test_dividing_a_leased_gpu_hides_nothing(self) -> None:
        host, _ = leased()
        host.chips_are(self.parent(), self.instance("MIG-1", 57), self.instance("MIG-2", 57))
        assert host.works().charged() == per_row([])


class TestUnknown:
    strange = h100(name="NVIDIA X999")

    def test_a_chip_without_a_bound_cannot_be_leased(self) -> None:
        with pytest.raises(Refused) as refusal:
            peak_tflop_s([h100(), self.strange], [], chip_table())
        assert refusal.value.why is Why.UNKNOWN_CHIP

    def test_the_peak_of_known_ones(self) -> None:
        assert peak_tflop_s([h100(), h100("GPU-b")], [], chip_table()) == -(-2 * PEAK * SECOND // TERA)
        assert peak_tflop_s([h100()], ["bf16"], chip_table()) < peak_tflop_s([h100()], [], chip_table())

    def test_one_that_becomes_unknown_uses_the_lease_up(self) -> None:
        host, _ = leased(upto_tflop=10**6)
        host.works().chips_are(self.strange)
        assert host.works().charged() == 10**6 * TERA


def test_a_host_that_knows_of_less_than_it_reported_goes_on_from_that() -> None:
    host, _ = leased(charged_tflop=5000)
    assert host.charged() == 5000 * TERA
    assert host.works().charged() == 5000 * TERA + per_row([])


def test_a_lease_that_nobody_knows_charges_nothing() -> None:
    host, lease = leased()
    del host.leases[lease]
    assert host.works().charged() == 0


class TestSurvivors:
    def test_a_workload_that_goes_on_after_the_last_word(self) -> None:
        host, lease = leased()
        host.works().say(lease, "final")
        assert not host.charge().survivors
        host.works()
        assert {(one.workload, one.chip) for one in host.charge().survivors.values()} == {("run:a", "GPU-a")}

    def test_another_workload_or_one_under_another_lease_is_none(self) -> None:
        host, lease = leased()
        host.works().say(lease, "final")
        host.works(workload="user:7")
        assert not host.charge().survivors
        host.lease(["GPU-a"], run="42" * 32)
        host.works()
        assert not host.charge().survivors


counters = st.fixed_dictionaries(
    {
        "energy_mj": st.one_of(st.none(), st.integers(200, 3500).map(lambda n: n * 1000)),
        "active_mcycles": st.one_of(st.none(), st.integers(0, 17_000)),
        "elapsed_mcycles": st.just(17_000),
        "busy_us": st.just(10_000_000),
    }
    | {name: st.one_of(st.none(), st.integers(0, 4_000)) for name in ("hmma_mcycles", "imma_mcycles", "dmma_mcycles")}
    | {name: st.one_of(st.none(), st.integers(0, 5_000)) for name in ("fp64_mcycles", "fp32_mcycles", "fp16_mcycles")}
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("works"), counters),
        st.tuples(st.just("waits"), st.integers(1, 100)),
        st.tuples(st.just("reports"), st.none()),
        st.tuples(st.just("renews"), st.none()),
        st.tuples(st.just("reboots"), st.integers(-100, 1000)),
        st.tuples(st.just("ends"), st.none()),
    ),
    max_size=25,
)
dtype_sets = st.sampled_from([[], ["bf16"], ["bf16", "fp8"], ["fp64_tensor"], ["int8"], ["tf32"]])


def lived(steps: list[Any], dtypes: list[str], *, killed: frozenset[int] = frozenset()) -> Metered:
    """:param killed: steps whose usage nobody writes down."""
    host, lease = leased(dtypes)
    for number, (what, value) in enumerate(steps):
        match what:
            case "works" if number in killed:
                host.wait(10 * SECOND)
            case "works":
                host.works({**value, "tensor_mcycles": None if value["hmma_mcycles"] is None else 4_000})
            case "waits":
                host.wait(value * SECOND)
            case "reports":
                host.say(lease, flop=0)
            case "renews":
                lease = host.lease(["GPU-a"], dtypes=dtypes)
            case "reboots":
                host.reboot(60, clock_s=value).chips_are(h100())
            case "ends":
                host.say(lease, "final", flop=0)
    host.say(lease, "final", flop=0)
    return host


@settings(max_examples=60, deadline=None)
@given(steps, dtype_sets)
def test_the_same_however_the_log_is_read(steps: list[Any], dtypes: list[str]) -> None:
    host = lived(steps, dtypes)
    charged = host.charged()
    assert in_runs(host.entries, host.leases) == charged
    assert with_restarts(host.entries, host.leases) == charged


@settings(max_examples=100, deadline=None)
@given(steps, dtype_sets)
def test_the_same_as_a_second_opinion(steps: list[Any], dtypes: list[str]) -> None:
    host = lived(steps, dtypes)
    naive = NaiveCharge({digest: to_builtins(lease) for digest, lease in host.leases.items()})
    ours = Charge(chip_table(), host.leases)
    for line, entry in zip(host.lines, host.entries, strict=True):
        assert ours.entry(entry) == naive.add(json.loads(line))
    assert host.charged() == naive.flop.get(RUN, 0)


full = st.fixed_dictionaries(
    dict.fromkeys(("hmma_mcycles", "imma_mcycles", "dmma_mcycles"), st.sampled_from([0, 0, 1, 700, 3_000]))
    | {"tensor_mcycles": st.one_of(st.none(), st.integers(0, 9_000))}
)


@settings(max_examples=80, deadline=None)
@given(st.lists(full, min_size=1, max_size=8), dtype_sets)
def test_the_same_in_one_sum_where_every_counter_is_there(rows: list[dict[str, int | None]], dtypes: list[str]) -> None:
    host, _ = leased(dtypes)
    for row in rows:
        host.works({**WORK, **row})
    assert in_runs(host.entries, host.leases) == sum(per_row(dtypes, **row) for row in rows)


@settings(max_examples=60, deadline=None)
@given(steps, dtype_sets, st.frozensets(st.integers(0, 24)))
def test_killing_the_agent_saves_nothing(steps: list[Any], dtypes: list[str], killed: frozenset[int]) -> None:
    """Whenever, and for as long as it likes: unmeasured time costs no less than any work that can be done in it."""
    assert lived(steps, dtypes, killed=killed).charged() >= lived(steps, dtypes).charged()


cycles = st.integers(0, 4_000)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(cycles, cycles, cycles), min_size=1, max_size=6),
    st.sampled_from([["bf16"], ["bf16", "fp8"], ["fp64_tensor"], ["tf32"], ["bf16", "fp64_tensor"]]),
)
def test_no_less_than_the_truth(rows: list[tuple[int, int, int]], dtypes: list[str]) -> None:
    """On each pipe the fastest of what was signed for, all cycles at full rate, whatever of it was measured."""
    spec = chip_table().lookup(h100())
    assert spec is not None
    k = {dtype: figure.high for dtype, figure in spec.k_tensor.items() if dtype in dtypes}
    h, d, v = max(k.get(x, 0) for x in ("bf16", "fp8", "tf32")), k.get("fp64_tensor", 0), spec.k_vector["fp32"].high
    true = sum(hmma * h + dmma * d + fp32 * v for hmma, dmma, fp32 in rows) * 10**6 * SMS
    counted, blind, bare = leased(dtypes)[0], leased(dtypes)[0], leased(dtypes)[0]
    for hmma, dmma, fp32 in rows:
        row = {**WORK, "hmma_mcycles": hmma, "dmma_mcycles": dmma, "tensor_mcycles": hmma + dmma, "fp32_mcycles": fp32}
        counted.works(row)
        blind.works({**row, "hmma_mcycles": None, "dmma_mcycles": None, "fp32_mcycles": None})
        bare.works({"elapsed_mcycles": 17_000})
    assert min(counted.charged(), blind.charged(), bare.charged()) >= true


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 4_000).map(lambda n: 2 * n), min_size=1, max_size=6), dtype_sets.filter(bool))
def test_splitting_an_entry_changes_nothing(cycles: list[int], dtypes: list[str]) -> None:
    whole, halves = leased(dtypes)[0], leased(dtypes)[0]
    for n in cycles:
        row = {**WORK, "hmma_mcycles": n, "tensor_mcycles": n, "active_mcycles": 16_000}
        half = {name: value // 2 for name, value in row.items()}
        whole.works(row)
        halves.works(half, s=5).works(half, s=5)
    assert whole.charged() == halves.charged()


def test_nothing_is_charged_to_another_run() -> None:
    host, _ = leased()
    host.works()
    assert host.charged("42" * 32) == 0
    assert host.charged(RUN) > 0
