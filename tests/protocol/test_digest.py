"""Reading lines as columns is a shortcut: whatever the lines are, it ends where going entry by entry ends."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from keyturn_protocol.digest import Digest, digest
from keyturn_protocol.entries import Usage
from keyturn_protocol.findings import in_entries
from keyturn_protocol.ids import Origin, parse_origin
from keyturn_protocol.limits import MAX_INT
from keyturn_protocol.merkle import leaf_hash
from keyturn_protocol.segment import ChainState, EntryError, follow, start_of
from keyturn_protocol.usage import EMPTY, FoldState, fold
from keyturn_protocol.usage_runs import RUN, read_run
from tests.support.mutation import mutated
from tests.support.naive_fold import FIELDS
from tests.support.streams import ORIGIN, Stream, canonical, chip, leaf, share, stream

LOG = Origin(ORIGIN)
NAME = parse_origin(ORIGIN)
KEY = bytes(32)
seeds = st.integers(0, 2**32)


def after_genesis(line: bytes) -> ChainState:
    """The state after the first entry, whose key is made up."""
    first = json.loads(line)
    clocks = {name: first[name] for name in ("boot_id", "boots", "mono_us", "time_us")}
    return structs.replace(start_of(LOG), size=1, prev=leaf(line), source="replay", **clocks)


def after_inventory(run: Stream) -> tuple[ChainState, FoldState]:
    """The states after the second entry: from here on lines can be read as columns."""
    first = digest(NAME, KEY, after_genesis(run.lines[0]), EMPTY, run.lines[1:2], [leaf_hash(run.lines[1])])
    return first.chain, first.fold


def in_columns(lines: list[bytes], first: ChainState, before: FoldState = EMPTY) -> Digest | tuple[int, str, str]:
    try:
        return digest(NAME, KEY, first, before, lines, [leaf_hash(line) for line in lines])
    except EntryError as error:
        return error.seq, error.code, error.reason


def one_by_one(lines: list[bytes], first: ChainState, before: FoldState = EMPTY) -> Digest | tuple[int, str, str]:
    try:
        followed = follow(NAME, KEY, first, lines, [leaf_hash(line) for line in lines])
        folded = fold(LOG, before, followed.entries)
    except EntryError as error:
        return error.seq, error.code, error.reason
    events = tuple(e for e in followed.entries if not isinstance(e, Usage))
    findings = in_entries(LOG, (first.boots, first.time_us), followed.entries)
    return Digest(followed.state, folded.state, events, folded.rows, folded.gaps, tuple(findings), {})


def relinked(lines: list[bytes], prev: str) -> list[bytes]:
    """The lines with links that fit, so that nothing else than what was changed is wrong with them."""
    fitted = []
    for line in lines:
        try:
            entry = json.loads(line)
            if canonical(entry) == line and isinstance(entry, dict):
                line = canonical(entry | {"prev": prev})
        except (ValueError, RecursionError):
            pass
        fitted.append(line)
        prev = leaf(line)
    return fitted


def calm(seed: int, count: int) -> Stream:
    """A host on which nothing happens: usage every 10 s, a heartbeat now and then."""
    run = Stream(Random(seed))
    run.genesis("00" * 32)
    run.inventory()
    workloads = [share(at, "slurm:alps:4711", "exclusive", 1_000_000) for at in range(len(run.present))]
    for at in range(count):
        start = {"from_us": run.time_us, "mono_from_us": run.mono_us}
        run.pass_time(
            10_000_000 if run.time_us // 3_600_000_000 == (run.time_us + 10_000_000 - 1) // 3_600_000_000 else 1
        )
        values = {f: [run.random.randrange(1000) for _ in run.present] for f in FIELDS}
        run.add(
            "usage", start | {"to_us": run.time_us, "samples": [10] * len(run.present), "workloads": workloads} | values
        )
        if at % 6 == 5:
            run.add("heartbeat", {"verifier_checkpoint": None})
    return run


@settings(deadline=None, max_examples=150)
@given(seeds, st.integers(0, 80), st.data())
def test_any_log_comes_to_the_same(seed: int, steps: int, data: st.DataObject) -> None:
    run = stream(Random(seed), steps)
    first, lines = after_genesis(run.lines[0]), run.lines[1:]
    assert in_columns(lines, first) == one_by_one(lines, first)
    at = data.draw(st.integers(0, len(lines) - 1))
    lines[at] = data.draw(mutated([lines[at]]))
    for damaged in (lines, relinked(lines, first.prev)):
        assert in_columns(damaged, first) == one_by_one(damaged, first)


@settings(deadline=None, max_examples=300)
@given(seeds, st.data())
def test_damage_in_a_calm_log_is_named_alike(seed: int, data: st.DataObject) -> None:
    run = calm(seed % 50, RUN)
    (first, before), lines = after_inventory(run), run.lines[2:]
    at = data.draw(st.integers(0, len(lines) - 1))
    lines[at] = data.draw(mutated([lines[at]]))
    for damaged in (lines, relinked(lines, first.prev)):
        assert in_columns(damaged, first, before) == one_by_one(damaged, first, before)


def test_a_calm_log_is_read_as_columns() -> None:
    """Or these tests compare one way with itself."""
    run = calm(1, 40)
    state, _ = after_inventory(run)
    read = read_run(state, run.lines[2:], [leaf_hash(line) for line in run.lines[2:]])
    assert read is not None
    assert read.run is not None
    assert (len(read.run.from_us), len(read.heartbeats)) == (40, 6)
    assert read.state.size == len(run.lines)


def _body(**values: object) -> Callable[[dict[str, Any]], None]:
    return lambda entry: entry["body"].update(values)


def _first(field: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda entry: entry["body"][field].__setitem__(0, value)


def _shares(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[dict[str, Any]], None]:
    return lambda entry: (change(entry["body"]["workloads"]), None)[1]


def _unread(entry: dict[str, Any], *, shared: bool, value: int | None = None) -> None:
    """The first chip has no samples."""
    body = entry["body"]
    if not shared:
        del body["workloads"][0]
    body.update({field: [None, *body[field][1:]] for field in FIELDS}, samples=[0, *body["samples"][1:]])
    body["fp16_mcycles"][0] = value


LIES: dict[str, Callable[[dict[str, Any]], None]] = {
    "nothing": lambda _: None,
    "seq": lambda e: e.update(seq=e["seq"] + 1),
    "version": lambda e: e.update(v=2),
    "another boot": lambda e: e.update(boot_id="ffffffff-0000-4000-8000-000000000000"),
    "no boot id": lambda e: e.update(boot_id="x"),
    "another count of boots": lambda e: e.update(boots=e["boots"] + 1),
    "a clock that goes back": lambda e: e.update(mono_us=0),
    "a clock beyond time": lambda e: e.update(mono_us=MAX_INT),
    "a wall clock that goes back": lambda e: e.update(time_us=0),
    "a field too many": lambda e: e.update(more=1),
    "a field too few": lambda e: e.pop("time_us") and None,
    "a body's field too many": _body(more=[1]),
    "a body's field too few": lambda e: e["body"].pop("energy_mj") and None,
    "an empty interval": lambda e: e["body"].update(to_us=e["body"]["from_us"]),
    "an interval backwards": lambda e: e["body"].update(to_us=e["body"]["from_us"] - 1),
    "two hours": lambda e: e["body"].update(to_us=e["body"]["to_us"] + 3_600_000_000),
    "an overlap": lambda e: e["body"].update(mono_from_us=e["body"]["mono_from_us"] - 1),
    "an interval after its entry": lambda e: e["body"].update(mono_from_us=e["mono_us"]),
    "a hole": lambda e: e["body"].update(mono_from_us=e["body"]["mono_from_us"] + 1, to_us=e["body"]["to_us"] - 1),
    "a negative value": _first("energy_mj", -1),
    "a value beyond integers": _first("energy_mj", MAX_INT + 1),
    "the largest value": _first("energy_mj", MAX_INT),
    "a float": _first("energy_mj", 1.5),
    "a float that is whole": _first("energy_mj", 1.0),
    "a text": _first("energy_mj", "1"),
    "true": _first("energy_mj", True),
    "a null": _first("energy_mj", None),
    "a null maximum": _first("clock_mhz_max", None),
    "a short column": lambda e: e["body"]["dram_busy_us"].pop() and None,
    "a long column": lambda e: e["body"]["samples"].append(10),
    "columns for no chip": lambda e: e["body"].update({f: [] for f in (*FIELDS, "samples")}),
    "no samples and values": _first("samples", 0),
    "no samples and a value": lambda e: _unread(e, shared=False, value=0),
    "no samples": lambda e: _unread(e, shared=False),
    "no samples and a share": lambda e: _unread(e, shared=True),
    "no shares": _body(workloads=[]),
    "shares that are no list": _body(workloads=None),
    "a share of a chip that isn't there": _shares(lambda s: s[-1].update(chip=99)),
    "a share twice": _shares(lambda s: s.insert(0, dict(s[0]))),
    "a share of more than all": _shares(lambda s: s[0].update(share_ppm=1_000_001)),
    "a smaller share": _shares(lambda s: s[0].update(share_ppm=999_999)),
    "a share of another": _shares(lambda s: s[0].update(id="user:1")),
    "a share of nobody": _shares(lambda s: s[0].update(id="nobody")),
    "a share of a class that isn't one": _shares(lambda s: s[0].update({"class": "mine"})),
    "a shared share": _shares(lambda s: s[0].update({"class": "shared"})),
    "a share with more": _shares(lambda s: s[0].update(more=1)),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_every_rule_of_usage_holds_in_columns(lie: str) -> None:
    for seed in (3, 7):
        run = calm(seed, 12)
        (first, before), lines = after_inventory(run), run.lines[2:]
        for at in (0, 1, 7, len(lines) - 2):
            entry = json.loads(lines[at])
            LIES[lie](entry)
            changed = relinked([*lines[:at], canonical(entry), *lines[at + 1 :]], first.prev)
            assert in_columns(changed, first, before) == one_by_one(changed, first, before)


ENVELOPE = ("seq", "version", "another boot", "no boot id", "another count of boots", "a clock that goes back",
            "a clock beyond time", "a wall clock that goes back", "a field too many", "a field too few")  # fmt: skip


@pytest.mark.parametrize("lie", ENVELOPE)
def test_heartbeats_between_them_are_entries_too(lie: str) -> None:
    run = calm(3, 12)
    (first, before), lines = after_inventory(run), run.lines[2:]
    entry = json.loads(lines[6])
    assert entry["type"] == "heartbeat"
    LIES[lie](entry)
    changed = relinked([*lines[:6], canonical(entry), *lines[7:]], first.prev)
    assert in_columns(changed, first, before) == one_by_one(changed, first, before)


@pytest.mark.parametrize("chips", [0, 1, 3])
def test_columns_that_fit_each_other_and_not_the_inventory(chips: int) -> None:
    run = calm(3, 12)
    (first, before), lines = after_inventory(run), run.lines[2:]
    entries = [json.loads(line) for line in lines]
    for body in (entry["body"] for entry in entries if entry["type"] == "usage"):
        body.update({field: [1] * chips for field in FIELDS}, samples=[1] * chips, workloads=[])
    lines = relinked(list(map(canonical, entries)), first.prev)
    want = one_by_one(lines, first, before)
    assert isinstance(want, tuple) == (chips != first.chips)
    assert in_columns(lines, first, before) == want


def test_shares_that_fitted_an_earlier_inventory() -> None:
    """What is known of shares is known for a number of chips."""
    run = calm(3, RUN)
    (first, before), lines = after_inventory(run), run.lines[2 : 2 + RUN]
    assert len(run.present) > 1
    count, run.lines, run.prev = len(lines), [], leaf(lines[-1])
    run.entries = [{}] * (2 + count)
    run.present = run.present[:1]
    body = dict.fromkeys(("driver_version", "nvml_version", "cuda_version", "pci"))
    run.add("inventory", body | {"chips": [chip(run.present[0])], "gate": "none"})
    for _ in range(RUN - 1):
        run.add("heartbeat", {"verifier_checkpoint": None})
    usage = json.loads(lines[0])["body"]
    usage |= {field: [1] for field in (*FIELDS, "samples")}
    usage |= {"from_us": run.time_us, "to_us": run.time_us + 1, "mono_from_us": run.mono_us}
    run.pass_time(1)
    run.add("usage", usage)
    lines += run.lines
    want = one_by_one(lines, first, before)
    assert isinstance(want, tuple)
    assert "a chip that isn't there" in want[2]
    assert in_columns(lines, first, before) == want


SPELLINGS = {
    "a space": (b'"samples":[', b'"samples": ['),
    "a space in shares": (b'"workloads":[', b'"workloads":[ '),
    "a space after shares": (b"}]}", b"} ]}"),
    "a space around shares": (b'"workloads":', b'"workloads": '),
    "an escape in shares": (b"slurm:alps", b"sl\\u0075rm:alps"),
    "an escape in a key": (b'"seq"', b'"s\\u0065q"'),
    "a key twice": (b'"seq":', b'"seq":1,"seq":'),
    "an exponent": (b"[10", b"[1e1"),
    "a zero before": (b"[10", b"[010"),
    "no UTF-8": (b"slurm:alps", b"slurm:\xff"),
    "two lines": (b'"samples"', b'\n"samples"'),
    "a return": (b'"v":1}', b'"v":1}\r'),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_only_the_canonical_spelling_passes(spelling: str) -> None:
    run = calm(3, 12)
    (first, before), lines = after_inventory(run), run.lines[2:]
    honest, other = SPELLINGS[spelling]
    assert honest in lines[4]
    lines[4] = lines[4].replace(honest, other, 1)
    lines = relinked(lines, first.prev)
    want = one_by_one(lines, first, before)
    assert isinstance(want, tuple)
    assert want[0] == 6
    assert in_columns(lines, first, before) == want


def test_a_fold_that_fails_is_reported_after_an_entry_that_does_not_follow() -> None:
    """As if all entries were followed before the first one is folded."""
    run = Stream(Random(1))
    run.genesis("00" * 32)
    for host in range(30):
        run.present = [f"GPU-{host:03d}-{i:04d}" for i in range(150)]
        run.add(
            "inventory",
            {
                "chips": [chip(u) for u in run.present],
                "driver_version": None,
                "nvml_version": None,
                "cuda_version": None,
                "gate": "none",
                "pci": None,
            },
        )
    for _ in range(RUN * 2):
        run.add("heartbeat", {"verifier_checkpoint": None})
    first, lines = after_genesis(run.lines[0]), run.lines[1:]
    want = one_by_one(lines, first)
    assert isinstance(want, tuple)
    assert in_columns(lines, first) == want
    lines[-1] = lines[-1].replace(b'"v":1}', b'"v":1} ')
    want = one_by_one(lines, first)
    assert isinstance(want, tuple)
    assert want[0] == len(lines)
    assert in_columns(lines, first) == want
