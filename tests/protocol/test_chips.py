"""The chip table: every figure has a source, agrees with the others, and no chip is guessed."""

import hashlib
import json
import re
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn_protocol.chips import (
    PIPE_OF,
    UNCALIBRATED,
    ChipSpec,
    Figure,
    chip_table,
    lookup,
    parse_chip_table,
    table_sha256,
)
from keyturn_protocol.errors import Code, ProtocolError
from tests.support.rows import make_chip

TABLE = chip_table()
BY_SKU = {spec.sku: spec for spec in TABLE.chips}


def toml(repo: Path) -> str:
    return (repo / "protocol" / "keyturn_protocol" / "chips.toml").read_text()


PEAKS = [
    (spec.sku, kind, dtype)
    for spec in TABLE.chips
    for kind in ("tensor", "vector")
    for dtype in getattr(spec, f"peak_{kind}_gflops")
]


@pytest.mark.parametrize(("sku", "kind", "dtype"), PEAKS)
def test_rate_times_sms_times_clock_is_the_published_peak(sku: str, kind: str, dtype: str):
    """Within 1.7 %: data sheets of H200 round to whole TFLOPS, 33.5 to 34."""
    spec = BY_SKU[sku]
    nominal = kind == "tensor" and dtype != "fp64_tensor"
    clock = spec.clock_nominal_mhz if nominal else spec.clock_max_mhz
    k: Figure = getattr(spec, f"k_{kind}")[dtype]
    gflops = k.middle * spec.sms.middle * clock.middle / 1_000
    assert gflops == pytest.approx(getattr(spec, f"peak_{kind}_gflops")[dtype].middle, rel=0.017)


@pytest.mark.parametrize("spec", TABLE.chips, ids=lambda spec: spec.sku)
def test_every_tensor_type_of_a_chip_has_a_published_peak(spec: ChipSpec):
    assert spec.peak_tensor_gflops.keys() == spec.k_tensor.keys() <= PIPE_OF.keys()


@pytest.mark.parametrize("spec", TABLE.chips, ids=lambda spec: spec.sku)
def test_issue_bound_holds_each_vector_pipe(spec: ChipSpec):
    assert spec.vector_issue.high >= max(k.high for k in spec.k_vector.values())


@pytest.mark.parametrize("spec", TABLE.chips, ids=lambda spec: spec.sku)
def test_flop_per_joule_leaves_room_above_every_data_sheet_of_the_die(spec: ChipSpec):
    floating = max(f.high for dtype, f in spec.peak_tensor_gflops.items() if PIPE_OF[dtype] != "imma")
    sheet = floating * 10**9 / spec.tdp_w.low
    assert spec.flop_per_joule.high >= 2.5 * sheet


def figures_of(value: Any) -> list[Figure]:
    if isinstance(value, Figure):
        return [value]
    if hasattr(value, "values"):
        return [figure for item in value.values() for figure in figures_of(item)]
    if isinstance(value, ChipSpec):
        return [figure for name in value.__slots__ for figure in figures_of(getattr(value, name))]
    return []


@pytest.mark.parametrize("spec", TABLE.chips, ids=lambda spec: spec.sku)
def test_every_figure_names_its_document_and_place(spec: ChipSpec):
    figures = figures_of(spec)
    assert len(figures) > 20
    assert [f for f in figures if not re.fullmatch(r".{5,}: .{4,}", f.source)] == []


def test_calibration_is_what_the_recordings_say(repo: Path):
    """Every product of the die has it; floor and most likely value lie where the recorded runs put them."""
    truth = json.loads((repo / "hardware_fixtures/h100_pcie_training/ground_truth.json").read_text())
    trace = truth["trace"]
    seen = [run["executed_per_metered_ppm"] for run in (trace, *truth["summaries"])]
    seen.append(trace["executed_per_metered_by_rate_ppm"])
    raw = tomllib.loads(toml(repo))["die"]["gh100"]["calibration"]
    assert (min(seen), max(seen)) == (raw["seen_low_ppm"], raw["seen_high_ppm"])
    for spec in TABLE.chips:
        if spec.die == "gh100":
            assert spec.calibration.floor_ppm == 900_000 < min(seen)
            assert min(seen) < spec.calibration.best_ppm == 950_000 < max(seen)
            assert spec.calibration.measured_on == "H100 PCIe"


def test_a_die_without_recordings_has_no_floor():
    assert {BY_SKU[sku].calibration for sku in BY_SKU if sku.startswith("a100")} == {UNCALIBRATED}
    assert (UNCALIBRATED.floor_ppm, UNCALIBRATED.best_ppm) == (0, 1_000_000)


def test_sha256_is_that_of_the_file(repo: Path):
    assert table_sha256() == hashlib.sha256(toml(repo).encode()).hexdigest()


@pytest.mark.parametrize(
    ("chip", "sku"),
    [
        (make_chip("NVIDIA H100 PCIe"), "h100-pcie"),
        (make_chip("nvidia h100 pcie", memory_mib=81_559), "h100-pcie"),
        (make_chip("NVIDIA H100 80GB HBM3", memory_mib=81_559), "h100-sxm5-80gb"),
        (make_chip("NVIDIA H100 NVL", memory_mib=95_830), "h100-nvl"),
        (make_chip("NVIDIA H200", memory_mib=143_771), "h200-sxm"),
        (make_chip("NVIDIA A100-SXM4-40GB", memory_mib=40_536), "a100-sxm4-40gb"),
        (make_chip("NVIDIA A100-SXM4-80GB", memory_mib=81_920), "a100-sxm4-80gb"),
        (make_chip("A100-PCIE-40GB", memory_mib=40_960), "a100-pcie-40gb"),
        (make_chip("NVIDIA A100 80GB PCIe"), "a100-pcie-80gb"),
        (make_chip("NVIDIA H100 PCIe", role="mig_parent", memory_mib=81_559), "h100-pcie"),
        (
            make_chip("NVIDIA A100-SXM4-40GB MIG 1g.5gb", role="mig_instance", parent="GPU-1", memory_mib=4_864),
            "a100-sxm4-40gb",
        ),
        (make_chip("NVIDIA A100-SXM4-40GB", role="mig_instance", parent="GPU-1", memory_mib=4_864), "a100-sxm4-40gb"),
        # Near names and other products are not taken for known ones.
        (make_chip("NVIDIA H100"), None),
        (make_chip("NVIDIA H100 PCIe "), None),
        (make_chip("NVIDIA H800 PCIe"), None),
        (make_chip("NVIDIA H200 NVL"), None),
        (make_chip("NVIDIA A100-SXM-64GB"), None),
        (make_chip("NVIDIA A100-SXM4-40GB MIG 1g.5gb"), None),
        (make_chip("NVIDIA H100 80GB HBM3", memory_mib=65_247), None),
        (make_chip("NVIDIA H100 PCIe", memory_mib=0), None),
        (make_chip(""), None),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else value or "unknown",
)
def test_lookup(chip, sku: str | None):
    spec = lookup(chip)
    assert (spec and spec.sku) == sku


def test_memory_tells_products_of_one_name_apart(repo: Path):
    table = parse_chip_table(toml(repo).replace('"NVIDIA A100-SXM4-80GB"', '"NVIDIA A100-SXM4-40GB"').encode())

    def found(memory_mib: int | None) -> str | None:
        spec = table.lookup(make_chip("NVIDIA A100-SXM4-40GB", memory_mib=memory_mib))
        return None if spec is None else spec.sku

    assert [found(40_960), found(81_920), found(None), found(60_000)] == [
        "a100-sxm4-40gb",
        "a100-sxm4-80gb",
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('version = "1"', "version = 1", "version"),
        ('version = "1"', "", "version"),
        ("sms = { value = 114,", "sms = { value = 114.0,", "int"),
        ("sms = { value = 114,", "sms = { value = 0,", ">= 1"),
        ("sms = { value = 114,", "sms = { value = -114,", ">= 1"),
        ("sms = { value = 114,", "sms = { value = 9007199254740993,", "<= 9007199254740991"),
        ("sms = { value = 114,", "sms = { low = 114, high = 113,", "h100-pcie.sms: neither a value nor a range"),
        ("sms = { value = 114,", "sms = { low = 114,", "h100-pcie.sms: neither a value nor a range"),
        ("sms = { value = 114,", "sms = { value = 114, low = 1, high = 2,", "neither a value nor a range"),
        ("sms = { value = 114,", "sms = { value = 114, guess = 1,", "guess"),
        (
            'sms = { value = 114, source = "h100-whitepaper: H100 specifications, PCIe" }',
            "sms = { value = 114 }",
            "source",
        ),
        ('"h100-whitepaper: H100 specifications, PCIe" }', '"someone: said so" }', "unknown source"),
        ('"h100-whitepaper: H100 specifications, PCIe" }', '"h100-whitepaper" }', "unknown source"),
        ("fp8 = { value = 8192", "fp6 = { value = 8192", "gh100.k_tensor: unknown data type"),
        ('sku = "h100-nvl"', 'sku = "h100-pcie"', "one SKU is listed twice"),
        ('sku = "h100-nvl"\ndie = "gh100"', 'sku = "h100-nvl"\ndie = "gh200"', "h100-nvl: unknown die"),
        ("floor_ppm = 900_000", "floor_ppm = 940_000", "gh100.calibration: out of order"),
        ("best_ppm = 950_000", "best_ppm = 1_000_001", "gh100.calibration: out of order"),
        ("clock_nominal_mhz = { value = 1620", "clock_nominal_mhz = { value = 1756", "nominal clock above"),
        ("value = 400_000", "value = 1_000_001", "utilisation_ppm"),
        ("fp16 = { value = 512, source", "fp64 = { value = 512, source", "TOML|overwrite|duplicate"),
        ("[die.gh100.k_vector]\nfp64 =", "[die.gh100.k_vector]\n# fp64 =", "gh100.k_vector"),
    ],
)
def test_a_wrong_table_is_refused(repo: Path, old: str, new: str, message: str):
    good = toml(repo)
    assert old in good
    with pytest.raises(ProtocolError, match=f"(?i){message}") as refused:
        parse_chip_table(good.replace(old, new, 1).encode())
    assert refused.value.code is Code.BAD_CHIP_TABLE


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_only_our_error_leaves_the_parser(data: bytes):
    with pytest.raises(ProtocolError) as refused:
        parse_chip_table(data)
    assert refused.value.code is Code.BAD_CHIP_TABLE


@given(st.data())
def test_only_our_error_leaves_the_parser_of_a_damaged_table(data: st.DataObject):
    good = Path(__file__).resolve().parents[2].joinpath("protocol/keyturn_protocol/chips.toml").read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    damaged = good[:at] + data.draw(st.binary(max_size=3)) + good[at + data.draw(st.integers(0, 3)) :]
    with suppress(ProtocolError):
        parse_chip_table(damaged)
