"""Properties of the fold: any partition gives the same bytes, parts sum to the whole, no time is lost."""

from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn_protocol.canonical import decode, encode
from keyturn_protocol.entries import Entry, Inventory, Usage, parse_entry
from keyturn_protocol.entry_inventory import Chip, InventoryBody
from keyturn_protocol.entry_usage import FIELDS, SUM_FIELDS, Share
from keyturn_protocol.ids import Origin, WorkloadId, parse_origin
from keyturn_protocol.limits import MAX_INT, MAX_TIME_US
from keyturn_protocol.merkle import leaf_hash
from keyturn_protocol.segment import EntryError, follow, start_of
from keyturn_protocol.usage import (
    EMPTY,
    FoldState,
    Gap,
    RowKey,
    Rows,
    Totals,
    add_sums,
    fold,
    merge,
    silence,
    split,
    to_row,
    totals_json,
)
from tests.support import naive_fold
from tests.support.naive_fold import HOUR_US
from tests.support.streams import ORIGIN, START_US, Stream, canonical, stream

LOG = Origin(ORIGIN)
seeds = st.integers(0, 2**32)


def parsed(run: Stream) -> list[Entry]:
    return [parse_entry(line) for line in run.lines]


def fold_in_parts(entries: list[Entry], cuts: list[int]) -> tuple[Rows, list[Gap], FoldState]:
    """Fold segment by segment, with the state through its bytes as a database would keep it."""
    rows: Rows = {}
    gaps: list[Gap] = []
    state = EMPTY
    for start, end in pairwise([0, *sorted(cuts), len(entries)]):
        part = fold(LOG, state, entries[start:end])
        merge(rows, part.rows)
        gaps.extend(part.gaps)
        state = decode(encode(part.state), FoldState)
    return rows, gaps, state


def totals(rows: Rows, gaps: list[Gap]) -> bytes:
    return totals_json([to_row(key, values) for key, values in rows.items()], gaps)


@settings(deadline=None, max_examples=150)
@given(seeds, st.integers(0, 60), st.data())
def test_any_partition_gives_the_bytes_of_the_plain_fold(seed: int, steps: int, data: st.DataObject) -> None:
    run = stream(Random(seed), steps)
    entries = parsed(run)
    cuts = data.draw(st.lists(st.integers(0, len(entries)), max_size=8))
    whole = fold(LOG, EMPTY, entries)
    rows, gaps, state = fold_in_parts(entries, cuts)
    assert state == whole.state
    assert gaps == list(whole.gaps)
    want = canonical(naive_fold.fold(ORIGIN, run.entries).totals())
    assert totals(whole.rows, list(whole.gaps)) == want
    assert totals(rows, gaps) == want
    assert encode(decode(want, Totals, limit=len(want))) == want


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(0, 40))
def test_one_entry_at_a_time(seed: int, steps: int) -> None:
    run = stream(Random(seed), steps)
    entries = parsed(run)
    whole = fold(LOG, EMPTY, entries)
    rows, gaps, state = fold_in_parts(entries, list(range(len(entries))))
    assert (rows, gaps, state) == (whole.rows, list(whole.gaps), whole.state)


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(0, 40), st.integers(0, 100))
def test_batches_may_be_merged_in_any_order(seed: int, steps: int, shuffle: int) -> None:
    """Pre-aggregated batches are upserts; a database applies them in the order of commits."""
    run = stream(Random(seed), steps)
    parts: list[Rows] = []
    state = EMPTY
    for entry in parsed(run):
        part = fold(LOG, state, [entry])
        state = part.state
        parts.append(part.rows)
    Random(shuffle).shuffle(parts)
    rows: Rows = {}
    for more in parts:
        merge(rows, more)
    assert rows == fold(LOG, EMPTY, parsed(run)).rows


@settings(deadline=None, max_examples=100)
@given(seeds, st.integers(0, 60))
def test_streams_are_valid_logs(seed: int, steps: int) -> None:
    """The generator of these tests writes what a verifier accepts; `public_key` is the one thing made up."""
    run = stream(Random(seed), steps)
    state = start_of(LOG)
    hashes = [leaf_hash(line) for line in run.lines]
    first: dict[str, Any] = decode(run.lines[0], dict[str, Any])
    after = state.__class__(
        **{f: getattr(state, f) for f in state.__struct_fields__}
        | {
            "size": 1,
            "prev": hashes[0].hex(),
            "boot_id": first["boot_id"],
            "boots": first["boots"],
            "mono_us": first["mono_us"],
            "time_us": first["time_us"],
            "source": "replay",
        }
    )
    assert follow(parse_origin(LOG), bytes(32), after, run.lines[1:], hashes[1:]).state.size == len(run.lines)


@settings(deadline=None, max_examples=150)
@given(seeds, st.integers(0, 60))
def test_every_microsecond_is_in_a_row_or_in_a_gap(seed: int, steps: int) -> None:
    """From a chip's first inventory to the point that its state names, over reboots and absences."""
    run = stream(Random(seed), steps, steady=True, retire=False)
    whole = fold(LOG, EMPTY, parsed(run))
    began: dict[str, int] = {}
    for entry in run.entries:
        if entry["type"] == "inventory":
            for chip in entry["body"]["chips"]:
                began.setdefault(chip["uuid"], entry["time_us"])
    known = {c.chip: c for c in [*whole.state.present, *whole.state.absent]}
    assert known.keys() == began.keys()
    for chip, point in known.items():
        in_rows = sum(values[0] or 0 for key, values in whole.rows.items() if key.chip == chip)
        in_gaps = sum(gap.to_us - gap.from_us for gap in whole.gaps if gap.chip == chip)
        assert in_rows + in_gaps == point.time_us - began[chip]
    # What comes after is silence, until someone asks.
    until = run.time_us + 1
    owed = {gap.chip: gap.to_us - gap.from_us for gap in silence(LOG, whole.state, until)}
    assert owed == {chip: until - point.time_us for chip, point in known.items() if point.time_us < until}


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.integers(0, 1_000_000), max_size=6),
    st.lists(st.none() | st.integers(0, MAX_INT), min_size=len(FIELDS) + 2, max_size=len(FIELDS) + 2),
)
def test_parts_of_a_split_sum_to_the_whole(cuts: list[int], values: list[int | None]) -> None:
    edges = sorted({0, *cuts})
    shares = [
        Share(chip=0, id=f"run:{i:02d}", class_="shared", share_ppm=high - low)
        for i, (low, high) in enumerate(pairwise(edges))
    ]
    parts = [part for _, part in split(shares, values)]
    sums = len(SUM_FIELDS) + 2
    for i, whole in enumerate(values):
        column = [part[i] for part in parts]
        if whole is None:
            assert {*column} == {None}
        elif i < sums:
            assert sum(value or 0 for value in column) == whole
            assert all(value is not None and value >= 0 for value in column)
        else:
            assert {*column} == {whole}


@given(st.lists(st.integers(0, MAX_INT), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_saturation_is_blind_to_the_order(values: list[int], random: Random) -> None:
    key = RowKey(LOG, "GPU-0", 0, WorkloadId("run:x"), 1, 0)

    def total(ordered: list[int]) -> int | None:
        rows: Rows = {}
        for value in ordered:
            add_sums(rows, key, [value] * (len(FIELDS) + 2))
        return rows[key][0]

    shuffled = values.copy()
    random.shuffle(shuffled)
    assert total(values) == total(shuffled) == min(sum(values), MAX_INT)


def test_a_gap_cites_the_same_inventory_however_the_log_is_cut() -> None:
    """Usage, a missing stretch and usage again, after an inventory that lists a chip a second time."""
    run = Stream(Random(1), steady=True)
    run.genesis("00" * 32)
    run.random = Random(0)
    run.inventory()
    run.usage()
    chips = run.present
    run.pass_time(1_000_000)
    run.random = Random(0)
    run.present = []
    run.inventory()
    run.present = chips
    for _ in range(3):
        run.pass_time(5_000_000)
        run.usage()
    entries = parsed(run)
    whole = fold(LOG, EMPTY, entries)
    assert len({gap.inventory_seq for gap in whole.gaps}) == 2
    assert fold_in_parts(entries, list(range(len(entries))))[1] == list(whole.gaps)


def test_a_gap_at_the_end_of_time_is_whole_and_still_an_integer() -> None:
    run = Stream(Random(3), steady=True)
    run.genesis("00" * 32)
    run.time_us = MAX_TIME_US
    run.inventory()
    listed = run.mono_us
    run.mono_us = run.covered_us = MAX_TIME_US - HOUR_US
    run.time_us = START_US
    run.random = Random(5)
    run.usage()
    began = parsed(run)[-1].body.mono_from_us  # type: ignore[union-attr]
    whole = fold(LOG, EMPTY, parsed(run))
    assert {gap.to_us - gap.from_us for gap in whole.gaps} == {began - listed}
    assert MAX_TIME_US < max(gap.to_us for gap in whole.gaps) <= MAX_INT
    data = totals(whole.rows, list(whole.gaps))
    assert encode(decode(data, Totals)) == data


def test_a_clock_that_was_set_back_over_a_reboot_hides_none_of_the_new_boot() -> None:
    run = Stream(Random(3), steady=True)
    run.genesis("00" * 32)
    run.inventory()
    run.usage()
    left = run.time_us
    run.boots, run.mono_us, run.covered_us = run.boots + 1, 7_200_000_000, 7_200_000_000
    run.time_us -= 60_000_000
    run.inventory_mono_us = run.mono_us
    run.random = Random(5)
    run.usage()
    entries = parsed(run)
    before, after = (entry for entry in entries if isinstance(entry, Usage))
    covered, began = before.body.to_us, after.body.mono_from_us
    gaps = fold(LOG, EMPTY, entries).gaps
    assert left - 60_000_000 < covered
    assert {(gap.from_us, gap.to_us) for gap in gaps} == {(covered, covered + began)}


def test_a_retired_chip_that_is_listed_again_is_owed_again() -> None:
    run = Stream(Random(5), steady=True)
    run.genesis("00" * 32)
    run.inventory()
    chip = run.present[0]
    run.pass_time(1_000_000)
    run.add("retired", {"chips": [chip], "reason": "sold"})
    retired = fold(LOG, EMPTY, parsed(run))
    later = run.time_us + 60_000_000
    assert chip not in {gap.chip for gap in silence(LOG, retired.state, later)}
    run.pass_time(1_000_000)
    while True:
        run.inventory()
        if chip in run.present:
            break
    listed = run.time_us
    again = fold(LOG, EMPTY, parsed(run))
    owed = [gap for gap in silence(LOG, again.state, later) if gap.chip == chip]
    assert [gap.from_us for gap in owed] == [listed]


def test_a_retired_chip_that_is_measured_again_was_never_gone() -> None:
    run = Stream(Random(3), steady=True)
    run.genesis("00" * 32)
    run.inventory()
    retired = run.time_us
    run.add("retired", {"chips": sorted(run.present), "reason": "sold"})
    run.pass_time(1_000_000)
    run.covered_us = run.mono_us
    run.random = Random(1)
    run.usage()
    last = parsed(run)[-1]
    assert isinstance(last, Usage)
    whole = fold(LOG, EMPTY, parsed(run))
    again = {chip for chip, samples in zip(run.present, last.body.samples, strict=True) if samples}
    assert again
    assert {gap.chip: (gap.from_us, gap.to_us) for gap in whole.gaps} == dict.fromkeys(
        again, (retired, last.body.from_us)
    )
    assert {gap.chip for gap in silence(LOG, whole.state, MAX_INT)} == again


def test_a_host_that_keeps_listing_new_chips_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyturn_protocol.usage.CHIPS_OWED", 3)
    state = EMPTY
    for at in range(3):
        inventory = _inventory(seq=at + 1, uuids=[f"GPU-{at}"])
        state = fold(Origin("o/node/x/1"), state, [inventory]).state
    with pytest.raises(EntryError, match="without being retired"):
        fold(Origin("o/node/x/1"), state, [_inventory(seq=4, uuids=["GPU-3"])])


def _inventory(seq: int, uuids: list[str]) -> Inventory:
    chips = [
        Chip(
            uuid=uuid,
            name="NVIDIA H100 PCIe",
            role="gpu",
            parent=None,
            sms=None,
            memory_mib=None,
            clock_max_mhz=None,
            power_limit_mw=None,
            pci_bus_id=None,
            nvlink_links=None,
            fabric=None,
            measured_by={},
            not_measured={},
        )
        for uuid in uuids
    ]
    body = InventoryBody(chips=chips, driver_version=None, nvml_version=None, cuda_version=None, gate="none", pci=None)
    boot = "0c6b1a2e-1111-4222-8333-444455556666"
    return Inventory(v=1, seq=seq, prev="0" * 64, boot_id=boot, boots=1, mono_us=seq, time_us=seq, body=body)
