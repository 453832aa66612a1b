"""Every file of tests/vectors gives what it says; the files are what their generator writes."""

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest

from keyturn_protocol import segment as seg
from keyturn_protocol.canonical import decode, encode
from keyturn_protocol.charging import Charge, peak_tflop_s
from keyturn_protocol.checkpoint import open_checkpoint
from keyturn_protocol.chips import chip_table
from keyturn_protocol.cosignature import parse_receipt, verify_cosignature
from keyturn_protocol.dsse import key_set, pae, verify
from keyturn_protocol.entries import format_entry, parse_entry
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import Origin, parse_origin, workload_id
from keyturn_protocol.keys import node_id_of, parse_vkey
from keyturn_protocol.lease import Lease, lease_subject, lease_text, open_lease, parse_lease
from keyturn_protocol.merkle import Frontier, leaf_hash
from keyturn_protocol.note import open_note, parse_note, parse_signature
from keyturn_protocol.permit import open_permit_bundle, parse_permit_bundle
from keyturn_protocol.public_keys import parse_public_key
from keyturn_protocol.sshsig import format_armor, parse_armor, verify_sshsig
from keyturn_protocol.statements import format_statement, parse_payload, parse_statement
from keyturn_protocol.tiles import decode_bundle, decode_hashes, encode_bundle, encode_hashes, parse_tile_path
from keyturn_protocol.usage import EMPTY, fold, silence, to_row, totals_json
from tests.support.streams import canonical
from tests.support.vectors import VECTORS, content, names, vector
from tests.vectors import generate


def check_decode(given: Any) -> Any:
    value: Any = decode(content(given), Any)
    assert encode(value) == content(given)
    return value


def check_decoded_length(given: Any) -> int:
    return len(check_decode(given))


def check_parse_origin(given: str) -> Any:
    name = parse_origin(given)
    assert name.origin == given
    return {"deployment": name.deployment, "node_id": name.node_id, "incarnation": name.incarnation}


def check_workload_id(given: str) -> Any:
    return workload_id(given)


def check_node_id_of(given: str) -> Any:
    return node_id_of(bytes.fromhex(given))


def check_parse_vkey(given: str) -> Any:
    key = parse_vkey(given)
    assert str(key) == given
    return {"name": key.name, "kind": key.kind, "public_key": key.public_key.hex(), "id": key.id.hex()}


def check_open_note(given: Any) -> Any:
    data = content(given["note"])
    note = parse_note(data)
    assert note.to_bytes() == data
    verified = open_note(note, [parse_vkey(text) for text in given["vkeys"]])
    return {"text": note.text.decode(), "verified": [str(key) for key in verified]}


def check_open_checkpoint(given: Any) -> Any:
    data = content(given["note"])
    head = open_checkpoint(data, parse_vkey(given["vkey"]))
    assert head.to_text() == parse_note(data).text
    return {"origin": head.origin, "size": head.size, "root": head.root.hex()}


def check_verify_cosignature(given: Any) -> Any:
    line = parse_signature(given["line"])
    assert str(line) == given["line"]
    return verify_cosignature(content(given["checkpoint"]), line, parse_vkey(given["vkey"]))


def check_parse_receipt(given: Any) -> Any:
    receipt = parse_receipt(content(given))
    assert receipt.to_bytes() == content(given)
    return {"name": receipt.name, "key_id": receipt.key_id.hex(), "signature": receipt.signature.hex()}


def check_parse_tile_path(given: str) -> Any:
    tile = parse_tile_path(given)
    assert tile.path == given
    return {"level": tile.level, "index": tile.index, "width": tile.width}


def check_decode_bundle(given: Any) -> Any:
    entries = decode_bundle(content(given["bytes"]), given["count"])
    assert encode_bundle(entries) == content(given["bytes"])
    return [entry.decode() for entry in entries]


def check_bundle_lengths(given: Any) -> Any:
    return [len(entry) for entry in check_decode_bundle(given)]


def check_decode_hashes(given: Any) -> Any:
    hashes = decode_hashes(content(given["bytes"]), given["count"])
    assert encode_hashes(hashes) == content(given["bytes"])
    return [each.hex() for each in hashes]


def check_parse_entry(given: Any) -> None:
    line = content(given)
    assert format_entry(parse_entry(line)) == line


def check_receive(given: Any) -> Any:
    """Segments one after the other, as a verifier and an auditor take them."""
    origin, public_key = Origin(given["origin"]), bytes.fromhex(given["public_key"])
    name, key = parse_origin(origin), seg.node_key(origin, public_key)
    frontier, state = Frontier(), seg.start_of(origin)
    for part in given["segments"]:
        data = content(part)
        segment = seg.parse_segment(data)
        assert segment.to_bytes() == data
        seg.verify_head(segment, key)
        if segment.start != frontier.size:
            raise ProtocolError(Code.BROKEN_CHAIN, "not the next segment")
        hashes = segment.leaf_hashes()
        frontier = frontier.extend(hashes)
        if frontier.root() != segment.checkpoint.root:
            raise ProtocolError(Code.WRONG_ROOT, "entries that don't hash to the root")
        state = seg.follow(name, public_key, state, segment.lines, hashes).state
        state = decode(encode(state), seg.ChainState)
    return {
        "size": state.size,
        "root": frontier.root().hex(),
        "prev": state.prev,
        "source": state.source,
        "closed": state.closed,
        "next_key": state.next_key,
    }


def check_fold(given: Any) -> Any:
    origin = Origin(given["origin"])
    lines = [text.encode() for text in given["entries"]]
    hashes = [leaf_hash(line) for line in lines]
    public_key = bytes.fromhex(given["public_key"])
    entries = seg.follow(parse_origin(origin), public_key, seg.start_of(origin), lines, hashes).entries
    folded = fold(origin, EMPTY, entries)
    totals = totals_json([to_row(key, values) for key, values in folded.rows.items()], folded.gaps)
    silent = sorted(silence(origin, folded.state, given["silent_until_us"]), key=lambda gap: gap.chip)
    fields = ("chip", "from_us", "to_us", "inventory_seq", "cause")
    found: Any = decode(totals, Any, limit=len(totals))
    assert canonical(found) == totals
    return {"totals": found, "silence": [{field: getattr(gap, field) for field in fields} for gap in silent]}


def check_charge(given: Any) -> Any:
    leases: dict[str, Lease] = {
        sha256(text.encode() + b"\n").hexdigest(): decode(text.encode(), Lease) for text in given["leases"]
    }
    charge = Charge(chip_table(), leases)
    said = [charge.entry(parse_entry(line.encode())) for line in given["entries"]]
    (subject,) = {lease_subject(lease) for lease in leases.values()}
    return {"charged": [str(one) for one in said if one is not None], "total": str(charge.charged_flop(subject))}


def check_peak(given: Any) -> int:
    return peak_tflop_s([decode(canonical(one), Chip) for one in given["chips"]], given["dtypes"], chip_table())


def check_parse_public_key(given: str) -> Any:
    key = parse_public_key(given)
    assert str(key) == given
    return {"curve": key.curve, "point": key.point.hex(), "application": key.application, "id": key.id}


def check_verify_sshsig(given: Any) -> str:
    key, blob = parse_public_key(given["key"]), parse_armor(given["armor"])
    verify_sshsig(key, blob, content(given["message"]))
    assert format_armor(blob) == given["armor"]
    return key.id


def check_open_statement(given: Any) -> Any:
    envelope, statement = parse_statement(content(given["envelope"]))
    assert envelope.to_bytes() == content(given["envelope"])
    assert format_statement(statement) == envelope.payload
    signers = verify(envelope, key_set(map(parse_public_key, given["keys"])))
    return {"hash": envelope.hash.hex(), "signers": [key.id for key in signers]}


def check_open_lease(given: Any) -> Any:
    data = content(given["note"])
    lease = open_lease(data, parse_vkey(given["vkey"]))
    signed = parse_lease(data)
    assert signed.to_bytes() == data
    assert lease_text(lease) == signed.note.text
    return {"hash": signed.hash.hex(), "subject": lease_subject(lease)}


def check_parse_payload(given: Any) -> Any:
    payload = content(given["payload"])
    statement = parse_payload(given["kind"], payload)
    assert format_statement(statement) == payload
    return {"hash": sha256(payload).hexdigest()}


def check_open_permit_bundle(given: Any) -> Any:
    data = content(given["bundle"])
    bundle = parse_permit_bundle(data)
    assert bundle.to_bytes() == data
    opened = open_permit_bundle(bundle, given["root"], given["deployment"])
    run = opened.run
    return {
        "root": opened.standing.root.version,
        "policy": opened.authority.policies[-1][2].version,
        "permit": run.permit.index if run and run.permit else None,
        "epoch": run.epoch if run else None,
        "stop_at_us": run.stop_at_us if run else None,
        "chips": run.scope.chips if run else None,
        "started": run.started_us is not None if run else None,
    }


def check_pae(given: Any) -> str:
    return pae(given["kind"], content(given["payload"])).decode()


CHECKS: dict[str, Callable[[Any], Any]] = {
    name.removeprefix("check_"): value for name, value in globals().items() if name.startswith("check_")
}


@pytest.mark.parametrize("name", names())
def test_vector(name: str) -> None:
    case = vector(name)
    check = CHECKS[case["check"]]
    match case["want"]:
        case {"error": code}:
            with pytest.raises(ProtocolError) as refused:
                check(case["input"])
            assert refused.value.code == Code(code), refused.value
            assert len(str(refused.value)) < 1500
            assert str(refused.value).isprintable()
        case {"value": value}:
            assert check(case["input"]) == value
        case want:
            pytest.fail(f"{want} is no expectation")


def test_files_are_what_the_generator_writes() -> None:
    made = generate.build()
    there = {f"{name}.json": (VECTORS / f"{name}.json").read_bytes() for name in names()}
    assert made.keys() == there.keys()
    assert [name for name, data in made.items() if there[name] != data] == []


def test_every_area_has_both_kinds() -> None:
    for area in generate.AREAS:
        wants = {key for name in names(area) for key in vector(name)["want"]}
        assert wants == ({"value"} if area == "usage" else {"value", "error"}), area


def test_every_check_has_vectors() -> None:
    assert {vector(name)["check"] for name in names()} == CHECKS.keys()
