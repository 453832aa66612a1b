"""Every byte of a bundle is held by something: no flip of any byte of any file passes.

In the short form every third; all of them under `make faults`.
"""

from functools import cache

import pytest

from keyturn_protocol.audit import Report, audit
from keyturn_protocol.bundle import MANIFEST
from keyturn_protocol.chips import chip_table
from keyturn_protocol.errors import ProtocolError
from tests.faults.table import LONG
from tests.support.bundles import Bundle, small

MASKS = (0x01, 0x20)
"""A neighbour (0 and 1, a and b) and the other case, in turns: what finds a byte finds it by its place."""


STEP = 1 if LONG else 3


@cache
def bundle() -> Bundle:
    return small()[1]


def outcome(changed: Bundle) -> Report | None:
    """The report, or None where the manifest can't be read at all."""
    try:
        return audit(changed, changed.trust, chip_table())
    except ProtocolError:
        return None


def test_the_clean_bundle_passes() -> None:
    report = outcome(bundle())
    assert report is not None
    assert (report.outcome, report.reasons) == ("pass", ())


@pytest.mark.parametrize("path", sorted(bundle().files))
def test_any_flipped_byte_is_found(path: str) -> None:
    passed = []
    for at in range(0, len(bundle().files[path]), STEP):
        report = outcome(bundle().flip(path, at, MASKS[at % len(MASKS)]))
        if report is not None and report.outcome != "contradicted":
            passed.append(at)
    assert passed == []


@pytest.mark.parametrize("path", sorted(set(bundle().files) - {MANIFEST}))
def test_a_flipped_byte_is_found_under_a_manifest_that_agrees(path: str) -> None:
    """The hashes of the manifest are for convenience: nothing rests on them."""
    passed = []
    for at in range(0, len(bundle().files[path]), STEP):
        report = outcome(bundle().flip(path, at).rehashed())
        if report is not None and report.outcome != "contradicted":
            passed.append(at)
    assert passed == []


def entry_bytes(path: str) -> list[tuple[int, int]]:
    """(offset, entry) of every byte inside an entry of a segment."""
    start = int(path.rpartition("/")[2].partition("-")[0])
    found, at = [], 0
    for i, line in enumerate(bundle().files[path].partition(b"\n\n")[0].split(b"\n")):
        found += [(at + j, start + i) for j in range(len(line))]
        at += len(line) + 1
    return found


@pytest.mark.parametrize("path", bundle().segments())
def test_a_flip_inside_an_entry_names_that_entry(path: str) -> None:
    """Braces become newlines, which cuts the entry short."""
    data, wrong = bundle().files[path], []
    for at, seq in entry_bytes(path)[::STEP]:
        mask = {ord("{"): 0x71, ord("}"): 0x77}.get(data[at], MASKS[at % len(MASKS)])
        report = outcome(bundle().flip(path, at, mask))
        assert report is not None
        first = report.contradictions[0]
        if (first.where, first.seq) != (path, seq):
            wrong.append((at, seq, first))
    assert wrong == []


@pytest.mark.parametrize("path", sorted(bundle().files))
def test_a_file_cut_short_or_grown_is_found(path: str) -> None:
    data = bundle().files[path]
    for changed in (b"", data[:-1], data[: len(data) // 2], data + b"\n", data + data, b"\n" + data):
        report = outcome(bundle().put(path, changed))
        assert report is None or report.outcome == "contradicted"
