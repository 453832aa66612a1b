"""Vectors of leases, and of the entries in which a node asks for one and says what it charged."""

from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.vectors.pieces import Case, Json, b64, bad, canonical, content, flip, good

Cases = Iterator[tuple[str, Case]]
NAME = "keyturn.example.org/lease"
SPEC = {"argv": "verified", "config": "declared", "data": "unchecked", "image": "verified"}
RUN = sha256(b"a request").hexdigest()


def permit(**fields: Any) -> Json:
    asked = {"kind": "run", "run": RUN, "lineage": None, "chips": ["GPU-a", "GPU-b"], "group": "aurora", "hosts": 2}
    return {**asked, "nonce": sha256(b"a nonce").hexdigest(), "spec": SPEC, **fields}


def report(**fields: Any) -> Json:
    said = {"lease": sha256(b"a lease").hexdigest(), "event": "report", "charged_flop": "73400000000000000"}
    return {**said, "gaps": [], "reason": None, **fields}


def gap(**fields: Any) -> Json:
    return {"chip": "GPU-a", "mono_from_us": 1_000_000, "mono_to_us": 3_000_000, "energy_mj": 812_000, **fields}


def entries(entry: Callable[[str, Json], Json]) -> Cases:
    """:param entry: makes one of a type and a body, after all others of a log."""
    accepted = {
        "permit": ("a host asks for a lease of a run", "permit", permit()),
        "permit_allowance": ("under the allowance", "permit", permit(kind="allowance", run=None, lineage="aurora-2")),
        "permit_diagnostics": ("for diagnostics", "permit", permit(kind="diagnostics", run=None)),
        "permit_mig": ("for a MIG instance", "permit", permit(chips=["MIG-5a/1/0"])),
        "lease": ("a usage report", "lease", report()),
        "lease_adopted": ("the first word on a lease", "lease", report(event="adopted", charged_flop="0")),
        "lease_gaps": ("time of which only the energy is known", "lease", report(gaps=[gap(), gap(chip="GPU-b")])),
        "lease_final": ("the last word on a lease", "lease", report(event="final", reason="suspended")),
        "lease_most": ("78 digits", "lease", report(charged_flop="9" * 78)),
    }
    for name, (what, kind, body) in accepted.items():
        yield f"good_{name}", good(what, "parse_entry", content(canonical(entry(kind, body))), None)
    unspecified = {part: said for part, said in SPEC.items() if part != "data"}
    refused = {
        "permit_of_no_run": ("a run that isn't named", "permit", permit(run=None), "bad_entry"),
        "permit_of_two": ("an allowance of a run", "permit", permit(kind="allowance", lineage="a"), "bad_entry"),
        "permit_no_lineage": (
            "an allowance without lineage",
            "permit",
            permit(kind="allowance", run=None),
            "bad_entry",
        ),
        "permit_lineage_of_run": ("a run with a lineage", "permit", permit(lineage="aurora-2"), "bad_entry"),
        "permit_empty_lineage": ("no text", "permit", permit(kind="allowance", run=None, lineage=""), "not_canonical"),
        "permit_no_chips": ("no chips", "permit", permit(chips=[]), "not_canonical"),
        "permit_chips_unsorted": ("chips out of order", "permit", permit(chips=["GPU-b", "GPU-a"]), "bad_entry"),
        "permit_chips_twice": ("a chip twice", "permit", permit(chips=["GPU-a", "GPU-a"]), "bad_entry"),
        "permit_chip_space": ("a space in a uuid", "permit", permit(chips=["GPU a"]), "not_canonical"),
        "permit_no_hosts": ("0 hosts", "permit", permit(hosts=0), "not_canonical"),
        "permit_kind": ("an unknown kind", "permit", permit(kind="favour"), "not_canonical"),
        "permit_short_nonce": ("31 bytes", "permit", permit(nonce="00" * 31), "not_canonical"),
        "permit_spec_part_missing": ("a part left out", "permit", permit(spec=unspecified), "not_canonical"),
        "permit_spec_word": ("an unknown word", "permit", permit(spec={**SPEC, "data": "seen"}), "not_canonical"),
        "permit_spec_part_unknown": (
            "a fifth part",
            "permit",
            permit(spec={**SPEC, "env": "declared"}),
            "not_canonical",
        ),
        "lease_reason_early": ("a reason before the end", "lease", report(reason="why not"), "bad_entry"),
        "lease_no_reason": ("an end without a reason", "lease", report(event="final"), "bad_entry"),
        "lease_event": ("an unknown event", "lease", report(event="renewed"), "not_canonical"),
        "lease_number": ("a number, not digits", "lease", report(charged_flop=7), "not_canonical"),
        "lease_signed": ("less than nothing", "lease", report(charged_flop="-1"), "not_canonical"),
        "lease_leading_zero": ("a leading zero", "lease", report(charged_flop="07"), "not_canonical"),
        "lease_79_digits": ("79 digits", "lease", report(charged_flop="9" * 79), "not_canonical"),
        "lease_gap_backwards": ("a gap of no length", "lease", report(gaps=[gap(mono_to_us=1_000_000)]), "bad_entry"),
        "lease_gap_later": ("a gap after its entry", "lease", report(gaps=[gap(mono_to_us=2**51)]), "bad_entry"),
        "lease_gaps_unsorted": (
            "chips out of order",
            "lease",
            report(gaps=[gap(chip="b"), gap(chip="a")]),
            "bad_entry",
        ),
        "lease_gaps_twice": ("a chip twice", "lease", report(gaps=[gap(), gap()]), "bad_entry"),
        "lease_gap_no_energy": ("no energy", "lease", report(gaps=[gap(energy_mj=None)]), "not_canonical"),
    }
    for name, (what, kind, body, code) in refused.items():
        yield name, bad(what, "parse_entry", content(canonical(entry(kind, body))), code)


# Leases -----------------------------------------------------------------------------------------------------


class LeaseKey:
    """The verifier's lease key, from a fixed seed."""

    def __init__(self, name: str = NAME, seed: str = "lease") -> None:
        self.name = name
        self.private = Ed25519PrivateKey.from_private_bytes(sha256(f"keyturn test key: {seed}".encode()).digest())
        self.public = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.id = sha256(name.encode() + b"\n\x01" + self.public).digest()[:4]
        self.vkey = f"{name}+{self.id.hex()}+{b64(bytes([1]) + self.public)}"

    def line(self, text: bytes) -> bytes:
        return f"— {self.name} {b64(self.id + self.private.sign(text))}\n".encode()

    def note(self, text: bytes) -> bytes:
        return text + b"\n" + self.line(text)


def lease(**fields: Any) -> Json:
    granted = {"run": RUN, "allowance": None, "chips": ["GPU-a", "GPU-b"], "dtypes": ["bf16"], "epoch": 0}
    node = {"node_id": sha256(b"a node").hexdigest()[:32], "boot_id": "0c6b0f9e-7a51-4c1e-9f3e-000000000000"}
    under = {"root": sha256(b"a root").hexdigest(), "policy": sha256(b"a policy").hexdigest()}
    times = {"time_us": 1_790_000_000_000_000, "ttl_s": 172_800, "renew_s": 600}
    rest = {"sequence": 0, "charged_tflop": 12, "upto_tflop": 73_400, "nonce": sha256(b"a nonce").hexdigest()}
    return {
        **{"v": 1, "type": "lease", "deployment": "keyturn.example.org"},
        **granted, **node, **under, **times, **rest, **fields,
    }  # fmt: skip


def allowance(**fields: Any) -> Json:
    return lease(run=None, allowance={"kind": "allowance", "organisation": "Acme", "lineage": "aurora-2", **fields})


def leases() -> Cases:
    key = LeaseKey()

    def line(value: Json) -> bytes:
        return canonical(value) + b"\n"

    def given(note: bytes, vkey: str = key.vkey) -> Json:
        return {"note": content(note), "vkey": vkey}

    slashes = allowance(organisation="a/b", lineage="c d%")
    diagnostics = allowance(kind="diagnostics", lineage=None)
    accepted = {
        "run": ("of a run", lease(), RUN),
        "allowance": ("of an organisation's allowance", allowance(), "allowance/allowance/Acme/aurora-2"),
        "allowance_slashes": ("names that would run together", slashes, "allowance/allowance/a%2Fb/c%20d%25"),
        "diagnostics": ("of a node's diagnostics", diagnostics, "allowance/diagnostics/Acme/"),
        "any_dtype": ("of any data type", lease(dtypes=[]), RUN),
    }
    for name, (what, value, subject) in accepted.items():
        want = {"hash": sha256(line(value)).hexdigest(), "subject": subject}
        yield f"good_{name}", good(what, "open_lease", given(key.note(line(value))), want)
    refused = {
        "of_nothing": ("neither a run nor an allowance", lease(run=None), "bad_lease"),
        "of_two": ("a run and an allowance", {**allowance(), "run": RUN}, "bad_lease"),
        "allowance_no_lineage": ("an allowance of no lineage", allowance(lineage=None), "bad_lease"),
        "diagnostics_lineage": ("diagnostics with a lineage", allowance(kind="diagnostics"), "bad_lease"),
        "allowance_epoch": ("an allowance with an epoch", {**allowance(), "epoch": 1}, "bad_lease"),
        "chips_unsorted": ("chips out of order", lease(chips=["GPU-b", "GPU-a"]), "bad_lease"),
        "chips_twice": ("a chip twice", lease(chips=["GPU-a", "GPU-a"]), "bad_lease"),
        "no_chips": ("no chips", lease(chips=[]), "not_canonical"),
        "dtypes_unsorted": ("data types out of order", lease(dtypes=["fp8", "bf16"]), "bad_lease"),
        "dtype_unknown": ("no type of the tensor pipe", lease(dtypes=["bf17"]), "bad_lease"),
        "of_no_tflop": ("up to nothing", lease(upto_tflop=0), "not_canonical"),
        "of_no_more": ("up to what was charged", lease(upto_tflop=12), "bad_lease"),
        "no_time": ("no time to live", lease(ttl_s=0), "not_canonical"),
        "deployment": ("not the name of a deployment", lease(deployment="Keyturn"), "bad_identifier"),
        "other_deployment": ("of another deployment", lease(deployment="keyturn.example.net"), "bad_lease"),
        "node_short": ("a node id of 31 digits", lease(node_id="0" * 31), "not_canonical"),
        "version_2": ("another version", lease(v=2), "not_canonical"),
        "type": ("another type", lease(type="permit"), "not_canonical"),
        "unknown_field": ("an unknown field", lease(tflop=7), "not_canonical"),
        "missing_field": ("a field left out", {k: v for k, v in lease().items() if k != "nonce"}, "not_canonical"),
    }
    for name, (what, value, code) in refused.items():
        yield name, bad(what, "open_lease", given(key.note(line(value))), code)
    text = line(lease())
    more = canonical(lease(upto_tflop=10**9)) + b"\n"
    other, receipts = LeaseKey(seed="another"), LeaseKey("keyturn.example.org/receipt")
    notes = {
        "forged": ("by another key of that name", given(other.note(text)), "unknown_key"),
        "altered": ("altered after it was signed", given(more + key.note(text)[len(text) :]), "bad_signature"),
        "signature_flipped": ("a bit of the signature flipped", given(flip(key.note(text), -6, 1)), "bad_signature"),
        "other_name": ("by a key of another name", given(receipts.note(text), receipts.vkey), "bad_lease"),
        "signed_twice": ("a second signature", given(key.note(text) + other.line(text)), "bad_lease"),
        "unsigned": ("no signature", given(text), "bad_note"),
        "two_lines": ("a line more", given(key.note(text + b"more\n")), "not_canonical"),
        "spaces": ("white space", given(key.note(text.replace(b":", b": "))), "not_canonical"),
        "empty": ("nothing", given(b""), "bad_note"),
    }
    for name, (what, note, code) in notes.items():
        yield name, bad(what, "open_lease", note, code)
