"""Vectors of what people sign with: public keys, SSH signatures, statements in their envelopes."""

import base64
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.ssh_signer import ALGORITHMS, SshKey, armor, mpint, string
from tests.vectors.pieces import Case, Json, b64, bad, canonical, content, flip, good

Cases = Iterator[tuple[str, Case]]
FIELD_256 = 2**256 - 2**224 + 2**192 + 2**96 - 1
FIELD_25519 = 2**255 - 19
NODES = [sha256(name).hexdigest()[:32] for name in (b"old", b"new")]


class FileKey:
    """An Ed25519 key in a file, from a fixed seed."""

    def __init__(self, seed: str) -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(sha256(f"keyturn file key: {seed}".encode()).digest())
        self.point = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.text = f"ed25519 {b64(self.point)}"
        self.id = sha256(b"keyturn/public-key/v1\ned25519\n" + self.point).hexdigest()

    def sign(self, message: bytes) -> bytes:
        return self.private.sign(message)


def short_name(algorithm: str) -> str:
    return algorithm.split("@")[0].replace("-", "_")


# Public keys ------------------------------------------------------------------------------------------------


def public_keys() -> Cases:
    file = FileKey("operator")
    yield (
        "good_file",
        good(
            "a key in a file: the algorithm and 32 bytes",
            "parse_public_key",
            file.text,
            {"curve": "ed25519", "point": file.point.hex(), "application": None, "id": file.id},
        ),
    )
    for algorithm in ALGORITHMS:
        key = SshKey(algorithm)
        value = {
            **{"curve": key.curve, "point": key.point.hex(), "id": key.id},
            "application": key.application if key.sk else None,
        }
        yield f"good_{short_name(algorithm)}", good(f"{algorithm}", "parse_public_key", key.text, value)

    ed, ec, sk = (SshKey(name) for name in ("ssh-ed25519", "ecdsa-sha2-nistp256", "sk-ssh-ed25519@openssh.com"))

    def text(algorithm: str, *parts: bytes | str, tail: bytes = b"") -> str:
        return f"{algorithm} {b64(b''.join(map(string, parts)) + tail)}"

    def p256(point: bytes) -> str:
        return text(ec.algorithm, ec.algorithm, "nistp256", point)

    x, y = ec.point[1:33], ec.point[33:]
    refused = {
        "empty": ("nothing", ""),
        "no_key": ("an algorithm alone", "ssh-ed25519"),
        "comment": ("a comment, as in a .pub file", f"{ed.text} operator@example"),
        "two_spaces": ("two spaces", ed.text.replace(" ", "  ")),
        "newline": ("a newline at the end", ed.text + "\n"),
        "unpadded": ("base64 without its padding", file.text.rstrip("=")),
        "url_base64": ("base64 of URLs", "ed25519 " + base64.urlsafe_b64encode(b"\xff" * 32).decode()),
        "rsa": ("an RSA key", text("ssh-rsa", "ssh-rsa", b"\1\0\1", b"\0" + b"\xc5" * 256)),
        "dsa": ("a DSA key", text("ssh-dss", "ssh-dss", b"\1", b"\1", b"\1", b"\1")),
        "ed448": ("an Ed448 key", text("ssh-ed448", "ssh-ed448", bytes(57))),
        "certificate": (
            "a certificate",
            text("ssh-ed25519-cert-v01@openssh.com", "ssh-ed25519-cert-v01@openssh.com", bytes(32), ed.point),
        ),
        "webauthn": ("WebAuthn's own form", ec.text.replace("ecdsa", "webauthn-sk-ecdsa", 1)),
        "another_algorithm": ("a blob of another algorithm", f"{ec.algorithm} {ed.text.split()[1]}"),
        "another_curve": ("a curve that isn't the algorithm's", text(ec.algorithm, ec.algorithm, "nistp384", ec.point)),
        "upper_case": ("the algorithm in upper case", ed.text.replace("ssh-", "SSH-", 1)),
        "cut": ("a blob that is cut short", f"ssh-ed25519 {b64(ed.blob[:-1])}"),
        "longer": ("a blob that goes on", f"ssh-ed25519 {b64(ed.blob + b'x')}"),
        "huge_length": ("a length beyond the blob", f"ssh-ed25519 {b64(bytes([255] * 4) + ed.blob[4:])}"),
        "short_point": ("31 bytes", f"ed25519 {b64(file.point[:31])}"),
        "long_point": ("33 bytes", f"ed25519 {b64(file.point + b'x')}"),
        "low_order": ("the neutral point", f"ed25519 {b64((1).to_bytes(32, 'little'))}"),
        "low_order_ssh": ("a point of order 4 as an SSH key", text("ssh-ed25519", "ssh-ed25519", bytes(32))),
        "not_canonical_y": ("y = 3 + p", f"ed25519 {b64((3 + FIELD_25519).to_bytes(32, 'little'))}"),
        "infinity": ("the point at infinity", p256(b"\0")),
        "compressed": ("a compressed point", p256(bytes([2 + (y[-1] & 1)]) + x)),
        "hybrid": ("a hybrid point", p256(bytes([6 + (y[-1] & 1)]) + x + y)),
        "off_curve": ("a point beside the curve", p256(flip(ec.point, 64))),
        "zero_point": ("zeros", p256(b"\4" + bytes(64))),
        "beyond_the_field": ("coordinates beyond the field", p256(b"\4" + b"\xff" * 64)),
        "no_application": ("a security key without its application", text(sk.algorithm, sk.algorithm, sk.point)),
        "web_application": ("made for a web site", SshKey(sk.algorithm, application="example.org").text),
        "empty_application": ("made for nothing", SshKey(sk.algorithm, application="").text),
        "application_control": ("a control character", SshKey(sk.algorithm, application="ssh:\n").text),
        "application_too_long": ("256 bytes of application", SshKey(sk.algorithm, application="ssh:" + "a" * 252).text),
        "application_of_a_plain_key": (
            "an application where none belongs",
            text("ssh-ed25519", "ssh-ed25519", ed.point, "ssh:"),
        ),
        "over_cap": ("more than 1,024 characters", "ed25519 " + "A" * 1_020),
    }
    for name, (what, given) in refused.items():
        yield name, bad(what, "parse_public_key", given, "bad_key")


# SSH signatures ---------------------------------------------------------------------------------------------


def sshsig() -> Cases:
    message = b"DSSEv1 12 text/example 5 hello"

    def case(key: SshKey | str, blob: bytes, text: bytes = message) -> Json:
        shown = key if isinstance(key, str) else key.text
        return {"key": shown, "message": content(text), "armor": armor(blob)}

    for algorithm in ALGORITHMS:
        key = SshKey(algorithm)
        for hash_algorithm in ("sha256", "sha512"):
            name = f"good_{short_name(algorithm)}_{hash_algorithm}"
            blob = key.sshsig(message, hash_algorithm=hash_algorithm)
            yield name, good(f"{algorithm} over {hash_algorithm}", "verify_sshsig", case(key, blob), key.id)
    ed, ec, sk = (SshKey(name) for name in ("ssh-ed25519", "ecdsa-sha2-nistp256", "sk-ssh-ed25519@openssh.com"))
    touched = sk.sshsig(message, flags=5, counter=2**32 - 1)
    yield "good_user_verified", good("a security key with a PIN", "verify_sshsig", case(sk, touched), sk.id)
    yield "good_empty", good("no message", "verify_sshsig", case(ed, ed.sshsig(b""), b""), ed.id)

    signature = ed.sshsig(message)
    sk_end = len(sk.sshsig(message)) - 1
    file = f"ed25519 {b64(ed.point)}"
    wrong: dict[str, tuple[str, Json, str]] = {
        "another_message": ("another message", case(ed, signature, message + b"."), "bad_signature"),
        "another_key": ("by another key", case(SshKey("ssh-ed25519", "another"), signature), "bad_signature"),
        "key_swapped": (
            "names the right key, is by another",
            case(ed, SshKey("ssh-ed25519", "another").sshsig(message, named=ed)),
            "bad_signature",
        ),
        "file_key": ("by the same key in a file", case(file, signature), "bad_signature"),
        "sk_of_plain": ("by the same key without a security key", case(sk, signature), "bad_signature"),
        "plain_of_sk": ("by the same key in a security key", case(ed, sk.sshsig(message)), "bad_signature"),
        "another_application": (
            "by the same key for another application",
            case(sk, SshKey(sk.algorithm, application="ssh:x").sshsig(message)),
            "bad_signature",
        ),
        "application_swapped": (
            "names the right application, is for another",
            case(sk, SshKey(sk.algorithm, application="ssh:x").sshsig(message, named=sk)),
            "bad_signature",
        ),
        "untouched": ("a security key that nobody touched", case(sk, sk.sshsig(message, flags=0)), "bad_signature"),
        "only_verified": ("a PIN and no touch", case(sk, sk.sshsig(message, flags=4)), "bad_signature"),
        "attested_data": ("flags of data that isn't there", case(sk, sk.sshsig(message, flags=0x41)), "bad_sshsig"),
        "extension_data": ("flags of extensions", case(sk, sk.sshsig(message, flags=0x81)), "bad_sshsig"),
        "counter_changed": ("another counter", case(sk, flip(sk.sshsig(message), sk_end)), "bad_signature"),
        "namespace_git": ("what was signed for git", case(ed, ed.sshsig(message, namespace="git")), "bad_sshsig"),
        "namespace_file": ("what was signed as a file", case(ed, ed.sshsig(message, namespace="file")), "bad_sshsig"),
        "namespace_empty": ("no namespace", case(ed, ed.sshsig(message, namespace="")), "bad_sshsig"),
        "namespace_longer": (
            "a namespace that begins with ours",
            case(ed, ed.sshsig(message, namespace="keyturn\0")),
            "bad_sshsig",
        ),
        "reserved": ("a reserved field", case(ed, ed.sshsig(message, reserved=b"x")), "bad_sshsig"),
        "version_2": ("version 2", case(ed, ed.sshsig(message, version=2)), "bad_sshsig"),
        "sha1": ("over SHA-1", case(ed, ed.sshsig(message, hash_algorithm="sha1")), "bad_sshsig"),
        "sha384": ("over SHA-384", case(ed, ed.sshsig(message, hash_algorithm="sha384")), "bad_sshsig"),
        "another_algorithm": (
            "an algorithm that isn't its key's",
            case(ed, ed.sshsig(message, algorithm="ecdsa-sha2-nistp256")),
            "bad_sshsig",
        ),
        "webauthn": (
            "WebAuthn's own form",
            case(ec, ec.sshsig(message, algorithm="webauthn-sk-ecdsa-sha2-nistp256@openssh.com")),
            "bad_sshsig",
        ),
        "raw_ed25519": ("a bare signature", case(ed, ed.raw(message)), "bad_sshsig"),
        "longer": ("bytes after the end", case(ed, ed.sshsig(message, tail=b"\0")), "bad_sshsig"),
        "longer_inside": (
            "bytes after the inner signature",
            case(ed, ed.sshsig(message, inner_tail=b"x")),
            "bad_sshsig",
        ),
        "longer_counter": ("bytes after the counter", case(sk, sk.sshsig(message, inner_tail=b"x")), "bad_sshsig"),
        "cut": ("cut short", case(ed, signature[:-1]), "bad_sshsig"),
        "empty": ("nothing in the armor", case(ed, b""), "bad_sshsig"),
        "short_ed25519": ("63 bytes of signature", case(ed, ed.sshsig(message, inner=bytes(63))), "bad_signature"),
        "flipped": ("one bit", case(ed, flip(signature, len(signature) - 20)), "bad_signature"),
        "ecdsa_der": (
            "ECDSA in DER",
            case(ec, ec.sshsig(message, inner=bytes.fromhex("3006020101020101"))),
            "bad_sshsig",
        ),
        "ecdsa_zero": ("r = 0", case(ec, ec.sshsig(message, inner=string(b"") + mpint(1))), "bad_sshsig"),
        "ecdsa_negative": ("r < 0", case(ec, ec.sshsig(message, inner=string(b"\x80") + mpint(1))), "bad_sshsig"),
        "ecdsa_padded": (
            "r with a zero too many",
            case(ec, ec.sshsig(message, inner=string(b"\0\1") + mpint(1))),
            "bad_sshsig",
        ),
        "ecdsa_huge": ("r of 33 bytes", case(ec, ec.sshsig(message, inner=mpint(2**257) + mpint(1))), "bad_sshsig"),
        "ecdsa_three": ("three integers", case(ec, ec.sshsig(message, inner=mpint(1) * 3)), "bad_sshsig"),
        "ecdsa_flipped": ("one bit", case(ec, flip(ec.sshsig(message), len(ec.sshsig(message)) - 5)), "bad_signature"),
        "over_cap": ("over the cap", case(ed, ed.sshsig(message, inner=bytes(2_048))), "too_large"),
    }
    for name, (what, given, code) in wrong.items():
        yield name, bad(what, "verify_sshsig", given, code)
    text = armor(signature)
    for name, what, other in (
        ("armor_no_end", "no last line", text.rpartition("-----END")[0]),
        ("armor_no_newline", "no newline at the end", text[:-1]),
        ("armor_crlf", "carriage returns", text.replace("\n", "\r\n")),
        ("armor_space", "a space at the beginning", " " + text),
        ("armor_64", "folded at 64 columns", armor(signature, 64)),
        ("armor_one_line", "not folded", armor(signature, 1_000)),
        ("armor_blank_line", "a blank line", text.replace("\n", "\n\n", 1)),
        ("armor_two", "two signatures", text * 2),
        ("armor_other_label", "another label", text.replace("SSH", "PGP")),
        ("armor_only_ends", "nothing between the lines", armor(b"")),
    ):
        yield name, bad(what, "verify_sshsig", {**case(ed, signature), "armor": other}, "bad_sshsig")


# Statements -------------------------------------------------------------------------------------------------


def replacement(**changes: Any) -> Json:
    return {
        "deployment": "keyturn.example.org",
        "new": NODES[1],
        "old": NODES[0],
        "reason": "new disk, image 44",
        "root": None,
        "time_us": 1_790_000_000_000_000,
        "type": "replacement",
        "v": 1,
    } | changes


def pae(kind: str, payload: bytes) -> bytes:
    name = f"application/vnd.keyturn.{kind}+json"
    return f"DSSEv1 {len(name)} {name} {len(payload)} ".encode() + payload


def signed(payload: bytes, *keys: FileKey | SshKey, kind: str = "replacement", over: bytes | None = None) -> Json:
    message = pae(kind, payload) if over is None else over
    signatures = [
        {"keyid": key.id, "sig": b64(key.sign(message) if isinstance(key, FileKey) else key.sshsig(message))}
        for key in keys
    ]
    return {
        "payload": b64(payload),
        "payloadType": f"application/vnd.keyturn.{kind}+json",
        "signatures": sorted(signatures, key=lambda one: one["keyid"]),
    }


def statements() -> Cases:
    file, ssh, sk = FileKey("operator"), SshKey("ssh-ed25519"), SshKey("sk-ecdsa-sha2-nistp256@openssh.com")
    payload = canonical(replacement())

    def given(envelope: Json | bytes, *keys: str) -> Json:
        data = envelope if isinstance(envelope, bytes) else canonical(envelope)
        return {"envelope": content(data), "keys": list(keys or (file.text,))}

    def value(*keys: FileKey | SshKey, of: bytes = payload) -> Json:
        return {"hash": sha256(of).hexdigest(), "signers": sorted(key.id for key in keys)}

    yield (
        "good_replacement",
        good("signed with a key in a file", "open_statement", given(signed(payload, file)), value(file)),
    )
    for key in map(SshKey, ALGORITHMS):
        made = given(signed(payload, key), key.text, file.text)
        yield (
            f"good_{short_name(key.algorithm)}",
            good(f"signed with {key.algorithm}", "open_statement", made, value(key)),
        )
    three = given(signed(payload, sk, file, ssh), file.text, ssh.text, sk.text)
    yield "good_three_signers", good("three signers", "open_statement", three, value(file, ssh, sk))
    unicode = canonical(replacement(reason="disco nuevo – Größe 2 µm 盤"))
    yield (
        "good_unicode_reason",
        good("a reason beyond ASCII", "open_statement", given(signed(unicode, file)), value(file, of=unicode)),
    )
    yield (
        "good_dsse_pae",
        good(
            "what is signed, byte for byte",
            "pae",
            {"kind": "replacement", "payload": content(payload)},
            pae("replacement", payload).decode(),
        ),
    )

    envelope = signed(payload, file)
    (signature,) = envelope["signatures"]
    two = signed(payload, file, ssh)

    def other(**changes: Any) -> Json:
        return given(envelope | changes)

    def one(**changes: Any) -> Json:
        return other(signatures=[signature | changes])

    def about(code: str, what: str, **changes: Any) -> tuple[str, Json, str]:
        return what, given(signed(canonical(replacement(**changes)), file)), code

    def by_ssh(blob: bytes) -> Json:
        return given(envelope | {"signatures": [{"keyid": ssh.id, "sig": b64(blob)}]}, ssh.text)

    plain = f"ed25519 {b64(ssh.point)}"
    message = pae("replacement", payload)
    for_git = by_ssh(ssh.sshsig(message, namespace="git"))
    as_policy = given(signed(payload, file, over=pae("policy", payload)))
    wish = given(signed(canonical(replacement(type="wish")), file, kind="wish"))
    before, after = canonical(envelope | {"payload": "…"}).decode().split("…")
    parts = [{"utf8": before}, {"utf8": "YWFh", "times": 87_382}, {"utf8": after}]
    huge = {"envelope": parts, "keys": [file.text]}
    ours = "application/vnd.keyturn.replacement+json"
    sha_payload = given(signed(payload, file, over=payload))
    wrong: dict[str, tuple[str, Json, str]] = {
        "forged": (
            "signed with another key under this one's id",
            one(sig=b64(FileKey("x").sign(message))),
            "bad_signature",
        ),
        "foreign_key": ("signed by a key that may not", given(signed(payload, FileKey("x"))), "unknown_key"),
        "one_foreign_key": ("one of two signers may not", given(two), "unknown_key"),
        "over_the_payload": ("signed without type and lengths", sha_payload, "bad_signature"),
        "over_another_kind": ("signed as another kind", as_policy, "bad_signature"),
        "payload_changed": (
            "another payload under the signature",
            other(payload=b64(canonical(replacement(old="0" * 32)))),
            "bad_signature",
        ),
        "raw_by_ssh_key": ("a bare signature by an SSH key", by_ssh(ssh.raw(message)), "bad_sshsig"),
        "ssh_by_file_key": (
            "an SSH signature by a key that signs in a file",
            given(signed(payload, ssh), plain),
            "bad_signature",
        ),
        "namespace_git": ("an SSH signature for git", for_git, "bad_sshsig"),
        "armored": (
            "the armored form in place of its bytes",
            by_ssh(armor(ssh.sshsig(message)).encode()),
            "bad_sshsig",
        ),
        "key_twice": ("one key signs twice", other(signatures=[signature, signature]), "bad_statement"),
        "key_in_two_forms": ("one key may sign in two forms", given(envelope, plain, ssh.text), "bad_key"),
        "unsorted": (
            "signatures out of order",
            given(two | {"signatures": two["signatures"][::-1]}, file.text, ssh.text),
            "bad_statement",
        ),
        "unsigned": ("no signature", other(signatures=[]), "not_canonical"),
        "too_many": ("65 signatures", other(signatures=[signature] * 65), "not_canonical"),
        "empty_signature": ("a signature of no bytes", one(sig=""), "bad_statement"),
        "signature_over_cap": ("a signature over the cap", one(sig=b64(bytes(2_049))), "bad_statement"),
        "short_signature": ("63 bytes", one(sig=b64(bytes(63))), "bad_signature"),
        "unpadded": ("base64 without padding", one(sig=signature["sig"].rstrip("=")), "bad_statement"),
        "stray_bits": ("base64 with stray bits", other(payload="QQ==".replace("Q=", "R=")), "bad_statement"),
        "url_base64": ("base64 of URLs", one(sig=base64.urlsafe_b64encode(b"\xff" * 64).decode()), "bad_statement"),
        "key_id_upper_case": ("a key id in upper case", one(keyid=signature["keyid"].upper()), "not_canonical"),
        "key_id_short": ("a short key id", one(keyid=signature["keyid"][:8]), "not_canonical"),
        "no_key_id": ("no key id", other(signatures=[{"sig": signature["sig"]}]), "not_canonical"),
        "unknown_field": ("a field that isn't known", other(comment="hello"), "not_canonical"),
        "not_sorted_fields": (
            "fields out of order",
            given(b'{"payloadType":"","payload":"","signatures":[]}'),
            "not_canonical",
        ),
        "spaces": ("white space", given(canonical(envelope).replace(b",", b", ")), "not_canonical"),
        "newline": ("a newline at the end", given(canonical(envelope) + b"\n"), "not_canonical"),
        "type_of_others": (
            "a type that isn't ours",
            other(payloadType="application/vnd.in-toto+json"),
            "bad_statement",
        ),
        "type_upper_case": ("a type in upper case", other(payloadType=ours.replace("rep", "Rep")), "bad_statement"),
        "type_with_newline": ("a type with a newline", other(payloadType=ours + "\n"), "bad_statement"),
        "unknown_kind": ("a kind that there isn't", wish, "bad_statement"),
        "type_of_another_kind": (
            "a payload of another kind than its type says",
            about("", "", type="policy")[1],
            "not_canonical",
        ),
        "version_2": about("not_canonical", "version 2", v=2),
        "root_short": about("not_canonical", "a root that is no hash", root="ab"),
        "old_upper_case": about("not_canonical", "a node id in upper case", old="ABCDEF" + "0" * 26),
        "old_fullwidth": about("not_canonical", "a digit that only looks like one", old="\uff10" + "0" * 31),
        "old_cyrillic": about("not_canonical", "a letter that only looks like one", old="\u0430" + "0" * 31),
        "old_newline": about("not_canonical", "a newline at the end of a node id", old="0" * 32 + "\n"),
        "new_is_an_origin": about("not_canonical", "an origin in place of a node id", new="keyturn.example.org/node/1"),
        "itself": about("bad_statement", "a node that replaces itself", old=NODES[1]),
        "no_reason": about("not_canonical", "no reason", reason=""),
        "reason_turned_around": about("not_canonical", "a reason that turns its direction around", reason="a\u202eb"),
        "reason_too_long": about("not_canonical", "a reason over 1,024 characters", reason="a" * 1_025),
        "time_too_late": about("not_canonical", "a time over 2^52-1", time_us=2**52),
        "bad_deployment": about("bad_identifier", "no deployment's name", deployment="Keyturn.example.org"),
        "time_as_float": (
            "a time as a float",
            given(signed(payload.replace(b"000000,", b"000000.0,"), file)),
            "not_canonical",
        ),
        "payload_over_cap": ("a payload over the cap", huge, "too_large"),
    }
    for name, (what, case, code) in wrong.items():
        yield name, bad(what, "open_statement", case, code)
