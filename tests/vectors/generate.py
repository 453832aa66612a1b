"""Writes the vectors beside it: one JSON file for each case, with what must come out or go wrong.

    python -m tests.vectors.generate            write all files, remove those that are no longer made
    python -m tests.vectors.generate --sign     first make the ML-DSA-44 signatures that are missing

Nothing here imports Keyturn: bytes come from ``json``, ``hashlib`` and ``cryptography``, expected sums from the
plain fold in tests/support. Keys come from fixed seeds, so that the same files come out every time. ML-DSA-44
signing draws randomness; its signatures are made once and kept in ``mldsa44_signatures.json``.

A file holds ``what`` (the case in words), ``check`` (what to call, see tests/protocol/test_vectors.py), ``input``,
and ``want``: ``{"error": code}`` or ``{"value": …}``. Bytes are ``{"utf8": …}`` or ``{"hex": …}``, or a list of
such parts, each with how many ``times`` it repeats.
"""

import base64
import json
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support import ed25519_reference, naive_merkle
from tests.support.naive_fold import FIELDS, fold
from tests.vectors import charging, leases, people, switch
from tests.vectors.pieces import Case, Json, b64, bad, canonical, content, flip, good

HERE = Path(__file__).parent
SIGNATURES = HERE / "mldsa44_signatures.json"
MAX_INT = 2**53 - 1


# Pieces -----------------------------------------------------------------------------------------------------


class Key:
    """A named Ed25519 key from a fixed seed, for one C2SP signature type."""

    def __init__(self, name: str, kind: int = 0x01, seed: str | None = None) -> None:
        self.name, self.kind = name, kind
        self.private = Ed25519PrivateKey.from_private_bytes(
            sha256(f"keyturn test key: {seed or name}".encode()).digest()
        )
        self.public = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def id(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public).digest()[:4]

    @property
    def vkey(self) -> str:
        return vkey(self.name, self.kind, self.public)

    def sign(self, message: bytes) -> bytes:
        return self.private.sign(message)

    def line(self, message: bytes) -> str:
        return line(self.name, self.id, self.sign(message))

    def cosign(self, text: bytes, time_s: int) -> str:
        signature = self.sign(b"cosignature/v1\ntime %d\n" % time_s + text)
        return line(self.name, self.id, time_s.to_bytes(8, "big") + signature)


class MlDsaKey:
    """A named ML-DSA-44 cosigner key from a fixed seed."""

    kind = 0x06

    def __init__(self, name: str) -> None:
        self.name = name
        self.private = MLDSA44PrivateKey.from_seed_bytes(sha256(f"keyturn test key: {name}".encode()).digest())
        self.public = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.id = sha256(name.encode() + b"\n" + bytes([self.kind]) + self.public).digest()[:4]
        self.vkey = vkey(name, self.kind, self.public)

    def sign(self, message: bytes) -> bytes:
        known: dict[str, str] = json.loads(SIGNATURES.read_text()) if SIGNATURES.exists() else {}
        name = f"{self.name} {sha256(message).hexdigest()}"
        if name not in known:
            if "--sign" not in sys.argv:
                raise SystemExit(f"no ML-DSA-44 signature for {name}: run with --sign")
            known[name] = b64(self.private.sign(message))
            SIGNATURES.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        return base64.b64decode(known[name])

    def cosign(self, origin: str, size: int, root: bytes, time_s: int, *, cosigner: str | None = None) -> str:
        name = (cosigner or self.name).encode()
        message = b"".join(
            (
                b"subtree/v1\n\0",
                bytes([len(name)]) + name,
                time_s.to_bytes(8, "big"),
                bytes([len(origin)]) + origin.encode(),
                (0).to_bytes(8, "big"),
                size.to_bytes(8, "big"),
                root,
            )
        )
        return line(self.name, self.id, time_s.to_bytes(8, "big") + self.sign(message))


def vkey(name: str, kind: int, public: bytes, key_id: bytes | None = None) -> str:
    ident = key_id or sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:4]
    return f"{name}+{ident.hex()}+{b64(bytes([kind]) + public)}"


def line(name: str, key_id: bytes, signature: bytes) -> str:
    return f"— {name} {b64(key_id + signature)}"


def note(text: bytes, *lines: str) -> bytes:
    return text + b"\n" + "".join(f"{each}\n" for each in lines).encode()


def checkpoint(origin: str, size: int, root: bytes) -> bytes:
    return f"{origin}\n{size}\n{b64(root)}\n".encode()


# Canonical JSON ---------------------------------------------------------------------------------------------


def canonical_json() -> Iterator[tuple[str, Case]]:
    def ok(name: str, what: str, data: bytes) -> tuple[str, Case]:
        return f"good_{name}", good(what, "decode", content(data), json.loads(data))

    yield ok("object", "keys in order, upper case before lower case", b'{"A":1,"B":2,"a":3,"b":4}')
    yield ok("nested", "lists and objects in each other", b'{"a":[{"b":[]},{}],"c":{"d":null}}')
    yield ok("integers", "both ends of the range", b"[-9007199254740991,-1,0,1,9007199254740991]")
    yield ok("literals", "the three literals", b"[false,null,true]")
    yield ok(
        "escapes", "two-character escapes where they exist, else \\u and lower-case hex", rb'"\b\t\n\f\r\u0000\u001f"'
    )
    yield ok("unescaped", "quote and backslash escaped, slash and DEL not", b'"\\"\\\\/\x7f"')
    yield ok("unicode", "text beyond ASCII as UTF-8, not normalised", '"Å Å € 😂 \u2028"'.encode())
    yield ok("empty_key", "an empty key, a control character in a key", b'{"":1,"\\n":2}')
    yield ok("depth_64", "64 levels below the top", b"[" * 65 + b"]" * 65)
    longest = [{"utf8": '"'}, {"utf8": "a", "times": 65_533}, {"utf8": '"'}]
    yield "good_at_cap", good("65,535 bytes", "decoded_length", longest, 65_533)

    refused = {
        "empty": ("no bytes", b""),
        "space_after_colon": ("white space", b'{"a": 1}'),
        "space_before": ("white space in front", b" 1"),
        "newline_at_end": ("a newline at the end", b'{"a":1}\n'),
        "byte_order_mark": ("a byte order mark", b"\xef\xbb\xbf1"),
        "utf16": ("UTF-16", '{"a":1}'.encode("utf-16-le")),
        "float": ("a number with a fraction", b"1.5"),
        "float_integral": ("an integer written as a float", b"1.0"),
        "exponent": ("an integer with an exponent", b"1e3"),
        "minus_zero": ("minus zero", b"-0"),
        "leading_zero": ("a leading zero", b"01"),
        "plus_sign": ("a plus sign", b"+1"),
        "above_range": ("2^53", b"9007199254740992"),
        "below_range": ("-2^53", b"-9007199254740992"),
        "beyond_64_bits": ("2^64", b"18446744073709551616"),
        "nan": ("NaN", b"NaN"),
        "infinity": ("Infinity", b"Infinity"),
        "unsorted": ("keys out of order", b'{"b":1,"a":2}'),
        "duplicate": ("a key twice", b'{"a":1,"a":2}'),
        "duplicate_equal": ("a key twice with one value", b'{"a":1,"a":1}'),
        "duplicate_escaped": ("a key twice, once escaped", rb'{"a":1,"\u0061":1}'),
        "key_beyond_ascii": ("a key that is not ASCII", '{"é":1}'.encode()),
        "escaped_slash": ("an escape that isn't needed", rb'"\/"'),
        "escaped_letter": ("an ASCII letter as an escape", rb'"\u0041"'),
        "escaped_beyond_ascii": ("an escape where UTF-8 does", rb'"\u00e9"'),
        "upper_case_escape": ("hex digits in upper case", rb'"\u001F"'),
        "long_escape": ("a \\u escape where a short one exists", rb'"\u000a"'),
        "surrogate_pair_escape": ("a character beyond the BMP as two escapes", rb'"\ud83d\ude02"'),
        "lone_surrogate": ("half a surrogate pair", rb'"\ud800"'),
        "surrogate_utf8": ("a surrogate in UTF-8", b'"\xed\xa0\x80"'),
        "overlong_utf8": ("an overlong encoding", b'"\xc0\x80"'),
        "beyond_unicode": ("a code point above U+10FFFF", b'"\xf4\x90\x80\x80"'),
        "invalid_utf8": ("a byte that no UTF-8 has", b'"\xff"'),
        "invalid_utf8_key": ("a byte that no UTF-8 has, in a key", b'{"\xff":1}'),
        "raw_control": ("a newline inside of a string", b'"a\nb"'),
        "single_quotes": ("single quotes", b"{'a':1}"),
        "trailing_comma": ("a trailing comma", b"[1,]"),
        "comment": ("a comment", b"[1/**/]"),
        "two_values": ("two values", b"1 1"),
        "truncated": ("cut in the middle", b'{"a":'),
        "depth_65": ("65 levels below the top", b"[" * 66 + b"]" * 66),
    }
    for name, (what, data) in refused.items():
        yield name, bad(what, "decode", content(data), "not_canonical")
    digits = [{"utf8": "1", "times": 5_000}]
    yield "five_thousand_digits", bad("more digits than Python turns into an int", "decode", digits, "not_canonical")
    yield "sixty_thousand_levels", bad("brackets only", "decode", [{"utf8": "[", "times": 60_000}], "not_canonical")
    over = [{"utf8": '"'}, {"utf8": "a", "times": 65_534}, {"utf8": '"'}]
    yield "over_cap", bad("65,536 bytes", "decode", over, "too_large")


# Identities -------------------------------------------------------------------------------------------------

NODE = "6f0c1d0e5ad81f0e9c7a3b5d2e4f6a81"


def identities() -> Iterator[tuple[str, Case]]:
    longest = "a" * 60 + "." + "b" * 60 + ".example.org/" + "c" * (160 - 134)
    assert len(longest) == 160
    for name, deployment, incarnation in [
        ("plain", "keyturn.example.org", 1),
        ("path", "example.org/labs/north_1", 42),
        ("one_label", "k", 2**53 - 1),
        ("longest", longest, 1),
        ("path_like_an_origin", f"example.org/node/{NODE}/1", 2),
    ]:
        origin = f"{deployment}/node/{NODE}/{incarnation}"
        value = {"deployment": deployment, "node_id": NODE, "incarnation": incarnation}
        yield f"good_origin_{name}", good("an origin taken apart", "parse_origin", origin, value)

    start = f"keyturn.example.org/node/{NODE}"
    refused = {
        "empty": ("nothing", ""),
        "incarnation_0": ("incarnations start at 1", f"{start}/0"),
        "leading_zero": ("a leading zero", f"{start}/01"),
        "incarnation_2_53": ("beyond 2^53-1", f"{start}/9007199254740992"),
        "incarnation_long": ("more digits than Python turns into an int", f"{start}/{'1' * 5000}"),
        "fullwidth_digit": ("a digit beyond ASCII", f"{start}/\uff11"),
        "arabic_digit": ("a digit beyond ASCII", f"{start}/\u0661"),
        "trailing_newline": ("a newline at the end, which $ would let pass", f"{start}/1\n"),
        "trailing_slash": ("a slash at the end", f"{start}/1/"),
        "upper_case_hex": ("hex digits in upper case", f"keyturn.example.org/node/{NODE.upper()}/1"),
        "short_node": ("31 hex digits", f"keyturn.example.org/node/{NODE[1:]}/1"),
        "no_deployment": ("no deployment", f"/node/{NODE}/1"),
        "scheme": ("a scheme", f"https://{start}/1"),
        "port": ("a port", f"keyturn.example.org:443/node/{NODE}/1"),
        "upper_case_host": ("a host name in upper case", f"Keyturn.example.org/node/{NODE}/1"),
        "hyphen_first": ("a label that starts with a hyphen", f"-a.example.org/node/{NODE}/1"),
        "hyphen_last": ("a label that ends with a hyphen", f"a-.example.org/node/{NODE}/1"),
        "label_of_64": ("a label of 64 characters", f"{'a' * 64}.org/node/{NODE}/1"),
        "empty_label": ("two dots", f"keyturn..org/node/{NODE}/1"),
        "empty_path": ("two slashes", f"keyturn.org//x/node/{NODE}/1"),
        "dot_dot": ("a path element that starts with a dot", f"keyturn.org/../node/{NODE}/1"),
        "long_deployment": ("161 characters", f"{longest}d/node/{NODE}/1"),
        "space": ("a space", f"keyturn.org /node/{NODE}/1"),
        "homoglyph": ("a Cyrillic letter", f"keyt\u0443rn.org/node/{NODE}/1"),
    }
    for name, (what, text) in refused.items():
        yield f"origin_{name}", bad(what, "parse_origin", text, "bad_identifier")

    for name, text in {
        "good_workload_run": "run:aurora-2",
        "good_workload_slurm": "slurm:alps:4711",
        "good_workload_path": "systemd:user.slice/run-r1.scope",
        "good_workload_longest": "k8s:" + "x" * 196,
    }.items():
        yield name, good("a workload id", "workload_id", text, text)
    for name, (what, text) in {
        "workload_pool": ("a pool is not a workload", "unattributed"),
        "workload_gap": ("a pool is not a workload", "gap"),
        "workload_no_name": ("no name", "run:"),
        "workload_no_kind": ("no kind", ":a"),
        "workload_space": ("a space", "run:a b"),
        "workload_newline": ("a newline at the end", "run:a\n"),
        "workload_beyond_ascii": ("a character beyond ASCII", "run:é"),
        "workload_upper_case_kind": ("a kind in upper case", "Run:a"),
        "workload_too_long": ("201 characters", "k8s:" + "x" * 197),
    }.items():
        yield name, bad(what, "workload_id", text, "bad_identifier")

    key = Key("keyturn.example.org/node")
    spki = bytes.fromhex("302a300506032b6570032100") + key.public
    want = sha256(spki).hexdigest()[:32]
    yield "good_node_id", good("the node id of a key", "node_id_of", key.public.hex(), want)


# Keys -------------------------------------------------------------------------------------------------------


def keys() -> Iterator[tuple[str, Case]]:
    plain, mldsa = Key("keyturn.example.org/log"), MlDsaKey("witness.example.org/w1")
    receipt = Key("keyturn.example.org/receipt", 0x04)
    named = Key("n" * 255)
    beyond_ascii = Key("schlüssel.example.org")
    named_keys: list[tuple[str, str, Key | MlDsaKey]] = [
        ("ed25519", "an Ed25519 key", plain),
        ("cosignature", "an Ed25519 cosigner's key", receipt),
        ("mldsa44", "an ML-DSA-44 cosigner's key", mldsa),
        ("longest_name", "a name of 255 bytes", named),
        ("beyond_ascii", "a name beyond ASCII", beyond_ascii),
    ]
    for name, what, key in named_keys:
        value = {"name": key.name, "kind": key.kind, "public_key": key.public.hex(), "id": key.id.hex()}
        yield f"good_{name}", good(what, "parse_vkey", key.vkey, value)

    name, public = plain.name, plain.public
    material = b64(b"\x01" + public)
    ident = plain.id.hex()
    off_curve = next(y for y in range(2, 99) if ed25519_reference.decode(y.to_bytes(32, "little")) is None)
    p = ed25519_reference.P
    not_canonical = next(
        y for y in range(2, 19) if ed25519_reference.decode((y + p).to_bytes(32, "little")) is not None
    )
    refused = {
        "empty": ("nothing", ""),
        "two_parts": ("no key material", f"{name}+{ident}"),
        "wrong_id": ("the key id of another key", vkey(name, 1, public, Key("other").id)),
        "renamed": ("the key id that goes with another name", vkey("keyturn.example.net/log", 1, public, plain.id)),
        "retyped": ("the key id that goes with another type", f"{name}+{ident}+{b64(bytes([4]) + public)}"),
        "upper_case_id": ("a key id in upper case", f"{name}+{ident.upper()}+{material}"),
        "short_id": ("a key id of 7 digits", f"{name}+{ident[:7]}+{material}"),
        "no_name": ("no name", vkey("", 1, public)),
        "long_name": ("a name of 256 bytes", vkey("n" * 256, 1, public)),
        "name_with_space": ("a space in the name", vkey("a b", 1, public)),
        "name_with_no_break_space": ("a Unicode space in the name", vkey("a\u00a0b", 1, public)),
        "name_with_line_separator": ("a line separator in the name", vkey("a\u2028b", 1, public)),
        "name_with_zero_width_space": ("an invisible character in the name", vkey("a\u200bb", 1, public)),
        "name_with_direction": ("a name that would be shown in another order", vkey("a\u202eb", 1, public)),
        "name_with_newline": ("a newline in the name", vkey("a\nb", 1, public)),
        "name_with_nul": ("a NUL in the name", vkey("a\0b", 1, public)),
        "name_with_plus": ("a plus in the name", vkey("a+b", 1, public)),
        "type_ecdsa": ("a type that is not supported", vkey(name, 2, public)),
        "type_rfc6962": ("a type that is not supported", vkey(name, 5, public)),
        "type_ff": ("a type that is not supported", vkey(name, 0xFF, public)),
        "no_material": ("neither type nor key", f"{name}+{ident}+"),
        "type_only": ("a type without a key", vkey(name, 1, b"")),
        "short_key": ("31 bytes", vkey(name, 1, public[:31])),
        "long_key": ("33 bytes", vkey(name, 1, public + b"\0")),
        "mldsa_short_key": ("an ML-DSA-44 key that is cut", vkey(mldsa.name, 6, mldsa.public[:-1])),
        "low_order_identity": ("the identity, of order 1", vkey(name, 1, (1).to_bytes(32, "little"))),
        "low_order_2": ("the point of order 2", vkey(name, 1, (p - 1).to_bytes(32, "little"))),
        "low_order_4": ("a point of order 4", vkey(name, 1, bytes(32))),
        "low_order_8": (
            "a point of order 8",
            vkey(name, 1, bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")),
        ),
        "low_order_cosigner": ("a weak key of the cosigner type", vkey(name, 4, (1).to_bytes(32, "little"))),
        "not_canonical": ("y above the prime", vkey(name, 1, (not_canonical + p).to_bytes(32, "little"))),
        "sign_of_zero": ("x = 0 with a sign", vkey(name, 1, (1 | 1 << 255).to_bytes(32, "little"))),
        "off_curve": ("no point of the curve", vkey(name, 1, off_curve.to_bytes(32, "little"))),
        "base64_nul": ("a NUL after the base64", plain.vkey + "\0"),
        "base64_newline": ("a newline after the base64", plain.vkey + "\n"),
        "base64_url": ("the URL alphabet", plain.vkey[:-3] + "-_A"),
        "base64_stray_bits": ("bits after the last byte", vkey(name, 1, public + b"\0")[:-2] + "B="),
        "base64_double": ("more after the padding", plain.vkey + "=" * 4),
    }
    for case, (what, text) in refused.items():
        yield case, bad(what, "parse_vkey", text, "bad_key")


# Notes ------------------------------------------------------------------------------------------------------


def notes() -> Iterator[tuple[str, Case]]:
    a, b = Key("alpha.example.org"), Key("beta.example.org")
    text = b"If it isn't signed,\nit isn't said.\n"
    plain = note(text, a.line(text))

    def opened(what: str, data: bytes, known: list[Key], by: list[Key]) -> Case:
        value = {"text": content(text)["utf8"], "verified": [key.vkey for key in by]}
        return good(what, "open_note", {"note": content(data), "vkeys": [key.vkey for key in known]}, value)

    yield "good_one_signature", opened("one signature", plain, [a], [a])
    both = note(text, a.line(text), b.line(text))
    yield "good_two_signatures", opened("two signatures by two keys", both, [a, b], [a, b])
    yield "good_unknown_ignored", opened("a signature by an unknown key beside", both, [b], [b])
    stranger = note(text, line("gamma.example.org", b"\1\2\3\4", b"anything"), a.line(text))
    yield "good_unknown_type_ignored", opened("an unknown signature of unknown length beside", stranger, [a], [a])
    namesake = note(text, line(a.name, flip(a.id, 0), bytes(64)), a.line(text))
    yield "good_namesake_ignored", opened("another key of the same name beside", namesake, [a], [a])
    same_id = note(text, line(b.name, a.id, bytes(64)), a.line(text))
    yield "good_same_id_ignored", opened("another name with the same id beside", same_id, [a], [a])
    lines = b"one\n\n\ntwo \xe2\x80\x94\n\n"
    value = {"text": lines.decode(), "verified": [a.vkey]}
    given = {"note": content(note(lines, a.line(lines))), "vkeys": [a.vkey]}
    yield "good_empty_lines", good("empty lines in the text", "open_note", given, value)
    many = [Key(f"k{i}.example.org") for i in range(32)]
    given = {"note": content(note(text, *(k.line(text) for k in many))), "vkeys": [many[31].vkey]}
    value = {"text": text.decode(), "verified": [many[31].vkey]}
    yield "good_32_signatures", good("as many signatures as are read", "open_note", given, value)

    signature = a.line(text)
    raw = a.id + a.sign(text)
    beginning = f"— {a.name} "
    refused: dict[str, tuple[str, bytes, str]] = {
        "empty": ("nothing", b"", "bad_note"),
        "no_signature": ("text only", text, "bad_note"),
        "no_blank_line": ("no blank line", text + signature.encode() + b"\n", "bad_note"),
        "no_text": ("a blank line and a signature", b"\n" + signature.encode() + b"\n", "bad_note"),
        "no_newline_at_end": ("the last newline is missing", plain[:-1], "bad_note"),
        "two_newlines_at_end": ("a blank line at the end", plain + b"\n", "bad_note"),
        "text_after": ("text after the signatures", plain + b"more\n", "bad_note"),
        "same_line_twice": ("one signature twice", plain + f"{signature}\n".encode(), "bad_note"),
        "two_by_one_key": (
            "two signatures of one key",
            note(text, signature, line(a.name, a.id, flip(a.sign(text), 0))),
            "bad_note",
        ),
        "unknown_key": ("only an unknown key", note(text, b.line(text)), "unknown_key"),
        "wrong_key_id": (
            "the right key under a wrong id",
            note(text, line(a.name, flip(a.id, 3), a.sign(text))),
            "unknown_key",
        ),
        "wrong_name": ("the right key under a wrong name", note(text, line(b.name, a.id, a.sign(text))), "unknown_key"),
        "flipped_text": ("a bit of the text flipped", note(flip(text, 0), signature), "bad_signature"),
        "flipped_signature": (
            "a bit of the signature flipped",
            note(text, line(a.name, a.id, flip(a.sign(text), 63))),
            "bad_signature",
        ),
        "cut_signature": ("63 bytes of signature", note(text, line(a.name, a.id, a.sign(text)[:63])), "bad_signature"),
        "longer_signature": (
            "65 bytes of signature",
            note(text, line(a.name, a.id, a.sign(text) + b"\0")),
            "bad_signature",
        ),
        "no_signature_bytes": ("a key id and nothing more", note(text, f"{beginning}{b64(a.id)}"), "bad_note"),
        "tab": ("a tab in the text", note(b"a\tb\n", a.line(b"a\tb\n")), "bad_note"),
        "carriage_return": ("line ends of another system", plain.replace(b"\n", b"\r\n"), "bad_note"),
        "nul": ("a NUL in the text", note(b"a\0b\n", a.line(b"a\0b\n")), "bad_note"),
        "invalid_utf8": ("text that is not UTF-8", note(b"\xff\n", a.line(b"\xff\n")), "bad_note"),
        "hyphen": ("a hyphen for the dash", plain.replace("—".encode(), b"-"), "bad_note"),
        "en_dash": ("an en dash for the em dash", plain.replace("—".encode(), "–".encode()), "bad_note"),
        "two_spaces": ("two spaces", plain.replace(f"{a.name} ".encode(), f"{a.name}  ".encode()), "bad_note"),
        "no_name": ("no key name", note(text, f"—  {b64(raw)}"), "bad_note"),
        "plus_in_name": ("a plus in the key name", note(text, f"— a+b {b64(raw)}"), "bad_note"),
        "space_at_end": ("a space after the signature", note(text, f"{signature} "), "bad_note"),
        "no_padding": (
            "base64 without its padding",
            note(text, f"{beginning}{b64(raw + b'12').rstrip('=')}"),
            "bad_note",
        ),
        "base64_stray_bits": ("bits after the last byte", note(text, f"{beginning}{b64(raw)[:-2]}B="), "bad_note"),
        "base64_url": ("the URL alphabet", note(text, f"{beginning}{b64(raw)[:-4]}-_A="), "bad_note"),
        "33_signatures": ("more signatures than are read", note(text, *(k.line(text) for k in [*many, a])), "bad_note"),
    }
    for name, (what, data, code) in refused.items():
        yield name, bad(what, "open_note", {"note": content(data), "vkeys": [a.vkey]}, code)
    given = {"note": content(note(text, signature, line(b.name, b.id, bytes(64)))), "vkeys": [a.vkey, b.vkey]}
    yield "one_of_two_fails", bad("a good and a bad signature by known keys", "open_note", given, "bad_signature")
    cosigner = Key(a.name, 0x04)
    given = {"note": content(note(text, line(a.name, cosigner.id, cosigner.sign(text)))), "vkeys": [cosigner.vkey]}
    yield "cosigner_key", bad("a cosigner's key signs no notes", "open_note", given, "unknown_key")
    over = [{"utf8": "a", "times": 128 * 1024}, {"utf8": f"\n\n{signature}\n"}]
    yield "over_cap", bad("over 128 KiB", "open_note", {"note": over, "vkeys": [a.vkey]}, "too_large")


# Checkpoints ------------------------------------------------------------------------------------------------


def checkpoints() -> Iterator[tuple[str, Case]]:
    key = Key("keyturn.example.org/log")
    root = sha256(b"a root").digest()
    empty = sha256(b"").digest()

    for name, what, size, of in [
        ("plain", "a checkpoint", 20_852_163, root),
        ("empty", "an empty tree", 0, empty),
        ("largest", "the largest tree", MAX_INT, root),
    ]:
        text = checkpoint(key.name, size, of)
        value = {"origin": key.name, "size": size, "root": of.hex()}
        given = {"note": content(note(text, key.line(text))), "vkey": key.vkey}
        yield f"good_{name}", good(what, "open_checkpoint", given, value)
    text = checkpoint(key.name, 5, root)
    witness = Key("witness.example.org/w1", 0x04)
    given = {"note": content(note(text, key.line(text), witness.cosign(text, 1_790_000_000))), "vkey": key.vkey}
    value = {"origin": key.name, "size": 5, "root": root.hex()}
    yield "good_cosigned", good("a cosignature beside", "open_checkpoint", given, value)

    other = Key("keyturn.example.net/log")
    origin = key.name
    texts = {
        "extension_line": ("an extension line", text + b"extension\n"),
        "empty_extension": ("an empty line at the end", text + b"\n"),
        "no_root": ("no root", f"{origin}\n5\n".encode()),
        "no_size": ("no size", f"{origin}\n{b64(root)}\n".encode()),
        "empty_origin": ("an empty origin", f"\n5\n{b64(root)}\n".encode()),
        "origin_with_space": ("a space in the origin", checkpoint("key turn", 5, root)),
        "another_origin": ("the origin of another log", checkpoint(other.name, 5, root)),
        "leading_zero": ("a leading zero", f"{origin}\n05\n{b64(root)}\n".encode()),
        "negative": ("a negative size", f"{origin}\n-5\n{b64(root)}\n".encode()),
        "plus_sign": ("a plus sign", f"{origin}\n+5\n{b64(root)}\n".encode()),
        "underscore": ("an underscore, as Python reads it", f"{origin}\n1_0\n{b64(root)}\n".encode()),
        "space_in_size": ("a space after the size", f"{origin}\n5 \n{b64(root)}\n".encode()),
        "fullwidth_digit": ("a digit beyond ASCII", f"{origin}\n\uff15\n{b64(root)}\n".encode()),
        "size_2_53": ("2^53", checkpoint(origin, 2**53, root)),
        "size_long": ("more digits than Python turns into an int", f"{origin}\n{'1' * 5000}\n{b64(root)}\n".encode()),
        "hex_root": ("a root in hex", f"{origin}\n5\n{root.hex()}\n".encode()),
        "short_root": ("31 bytes", checkpoint(origin, 5, root[:31])),
        "long_root": ("33 bytes", checkpoint(origin, 5, root + b"\0")),
        "no_padding": ("base64 without its padding", f"{origin}\n5\n{b64(root)[:-1]}\n".encode()),
        "stray_bits": ("bits after the last byte", f"{origin}\n5\n{b64(bytes(32))[:-2]}B=\n".encode()),
        "root_of_nothing": ("an empty tree with a root of its own", checkpoint(origin, 0, root)),
    }
    for name, (what, signed) in texts.items():
        given = {"note": content(note(signed, key.line(signed))), "vkey": key.vkey}
        yield name, bad(what, "open_checkpoint", given, "bad_checkpoint")
    given = {"note": content(note(text, witness.cosign(text, 1))), "vkey": key.vkey}
    yield "only_cosigned", bad("a cosignature is not the log's signature", "open_checkpoint", given, "unknown_key")
    given = {"note": content(note(text, key.line(checkpoint(origin, 6, root)))), "vkey": key.vkey}
    yield "other_size_signed", bad("the signature of another size", "open_checkpoint", given, "bad_signature")
    given = {"note": content(note(text, key.line(text))), "vkey": other.vkey}
    yield "foreign_key", bad("the key of another log", "open_checkpoint", given, "unknown_key")


# Cosignatures -----------------------------------------------------------------------------------------------


def cosignatures() -> Iterator[tuple[str, Case]]:
    origin, size, root, now = "keyturn.example.org/log", 20_852_163, sha256(b"a root").digest(), 1_790_000_000
    text = checkpoint(origin, size, root)
    ed, other = Key("witness.example.org/w1", 0x04), Key("witness.example.org/w2", 0x04)
    ml = MlDsaKey("witness.example.org/w1")

    def given(signature_line: str, key: Any, of: bytes = text) -> Json:
        return {"checkpoint": content(of), "line": signature_line, "vkey": key.vkey}

    yield "good_ed25519", good("Ed25519", "verify_cosignature", given(ed.cosign(text, now), ed), now)
    yield "good_ed25519_time_0", good("at the epoch", "verify_cosignature", given(ed.cosign(text, 0), ed), 0)
    last = ed.cosign(text, MAX_INT)
    yield "good_ed25519_last_time", good("the last time", "verify_cosignature", given(last, ed), MAX_INT)
    ml_line = ml.cosign(origin, size, root, now)
    yield "good_mldsa44", good("ML-DSA-44", "verify_cosignature", given(ml_line, ml), now)

    message = b"cosignature/v1\ntime %d\n" % now + text
    ed_raw, ml_raw = (base64.b64decode(each.split(" ")[2])[4:] for each in (ed.cosign(text, now), ml_line))
    extended = text + b"extension\n"
    signer = Key(ed.name, 0x01)
    refused: dict[str, tuple[str, Json, str]] = {
        "another_key": ("another cosigner", given(other.cosign(text, now), ed), "unknown_key"),
        "wrong_id": ("a wrong key id", given(line(ed.name, flip(ed.id, 0), ed_raw), ed), "unknown_key"),
        "type_of_id": ("the id of the same key as a log's", given(line(ed.name, signer.id, ed_raw), ed), "unknown_key"),
        "flipped_time": ("another time", given(line(ed.name, ed.id, flip(ed_raw, 7)), ed), "bad_signature"),
        "flipped_signature": ("a flipped bit", given(line(ed.name, ed.id, flip(ed_raw, 40)), ed), "bad_signature"),
        "no_time": ("a plain signature", given(line(ed.name, ed.id, ed.sign(message)), ed), "bad_signature"),
        "no_header": (
            "a signature over the text only",
            given(line(ed.name, ed.id, now.to_bytes(8, "big") + ed.sign(text)), ed),
            "bad_signature",
        ),
        "cut": ("71 bytes", given(line(ed.name, ed.id, ed_raw[:-1]), ed), "bad_signature"),
        "longer": ("73 bytes", given(line(ed.name, ed.id, ed_raw + b"\0"), ed), "bad_signature"),
        "time_2_53": ("a time beyond 2^53-1", given(ed.cosign(text, 2**53), ed), "bad_signature"),
        "time_2_64": ("the largest u64", given(ed.cosign(text, 2**64 - 1), ed), "bad_signature"),
        "another_size": (
            "a checkpoint of another size",
            given(ed.cosign(text, now), ed, checkpoint(origin, size + 1, root)),
            "bad_signature",
        ),
        "another_origin": (
            "a checkpoint of another log",
            given(ed.cosign(text, now), ed, checkpoint("keyturn.example.net/log", size, root)),
            "bad_signature",
        ),
        "extension_line": ("an extension line", given(ed.cosign(extended, now), ed, extended), "bad_checkpoint"),
        "not_a_cosigner": ("a log's key", given(line(signer.name, signer.id, ed_raw), signer), "bad_signature"),
        "mldsa44_flipped_time": ("another time", given(line(ml.name, ml.id, flip(ml_raw, 7)), ml), "bad_signature"),
        "mldsa44_flipped_signature": (
            "a flipped bit",
            given(line(ml.name, ml.id, flip(ml_raw, 99)), ml),
            "bad_signature",
        ),
        "mldsa44_cut": ("a byte short", given(line(ml.name, ml.id, ml_raw[:-1]), ml), "bad_signature"),
        "mldsa44_another_root": (
            "a checkpoint with another root",
            given(ml_line, ml, checkpoint(origin, size, sha256(b"another").digest())),
            "bad_signature",
        ),
        "mldsa44_another_origin": (
            "a checkpoint of another log",
            given(ml_line, ml, checkpoint("keyturn.example.net/log", size, root)),
            "bad_signature",
        ),
        "mldsa44_another_cosigner": (
            "signed in another cosigner's name",
            given(ml.cosign(origin, size, root, now, cosigner="witness.example.org/w2"), ml),
            "bad_signature",
        ),
        "mldsa44_of_ed25519": ("an Ed25519 cosignature", given(line(ml.name, ml.id, ed_raw), ml), "bad_signature"),
    }
    for name, (what, of, code) in refused.items():
        yield name, bad(what, "verify_cosignature", of, code)

    receipt = ed.cosign(text, now)
    value = {"name": ed.name, "key_id": ed.id.hex(), "signature": ed_raw.hex()}
    yield "good_receipt", good("a receipt", "parse_receipt", {"utf8": f"{receipt}\n"}, value)
    for name, what, data in [
        ("receipt_empty", "nothing", ""),
        ("receipt_no_newline", "no newline", receipt),
        ("receipt_two_lines", "two lines", f"{receipt}\n{other.cosign(text, now)}\n"),
        ("receipt_blank_line", "a blank line before", f"\n{receipt}\n"),
        ("receipt_carriage_return", "line ends of another system", f"{receipt}\r\n"),
        ("receipt_whole_note", "the checkpoint with it", f"{text.decode()}\n{receipt}\n"),
    ]:
        yield name, bad(what, "parse_receipt", {"utf8": data}, "bad_note")
    over = [{"utf8": f"— {ed.name} "}, {"utf8": "A", "times": 128 * 1024}, {"utf8": "\n"}]
    yield "receipt_over_cap", bad("over 128 KiB", "parse_receipt", over, "too_large")


# Tiles ------------------------------------------------------------------------------------------------------


def tiles() -> Iterator[tuple[str, Case]]:
    for name, path, level, index, width in [
        ("first", "tile/0/000", 0, 0, 256),
        ("partial", "tile/1/000.p/17", 1, 0, 17),
        ("long_index", "tile/0/x001/x234/067", 0, 1_234_067, 256),
        ("entries", "tile/entries/x001/000.p/255", -1, 1000, 255),
        ("last", "tile/0/x035/x184/x372/x088/831", 0, 2**45 - 1, 256),
        ("high_level", "tile/63/000.p/1", 63, 0, 1),
    ]:
        value = {"level": level, "index": index, "width": width}
        yield f"good_path_{name}", good("the path of a tile", "parse_tile_path", path, value)
    for name, what, path in [
        ("empty", "nothing", ""),
        ("level_64", "a level above 63", "tile/64/000"),
        ("level_leading_zero", "a leading zero", "tile/00/000"),
        ("level_negative", "a negative level", "tile/-1/000"),
        ("width_0", "no hashes", "tile/0/000.p/0"),
        ("width_256", "a full tile as a partial one", "tile/0/000.p/256"),
        ("width_300", "wider than a tile", "tile/0/000.p/300"),
        ("width_leading_zero", "a leading zero", "tile/0/000.p/01"),
        ("short_group", "two digits", "tile/0/00"),
        ("no_x", "no x before a group that isn't the last", "tile/0/001/000"),
        ("x_last", "an x before the last group", "tile/0/x000"),
        ("leading_group", "a group of zeros in front", "tile/0/x000/000"),
        ("fullwidth_digit", "a digit beyond ASCII", "tile/0/00\uff11"),
        ("newline", "a newline at the end", "tile/0/000\n"),
        ("leading_slash", "a slash in front", "/tile/0/000"),
        ("dot_dot", "a way out", "tile/0/../000"),
        ("beyond", "an index beyond 2^53-1 leaves", "tile/0/x035/x184/x372/x088/832"),
        ("endless", "more digits than Python turns into an int", "tile/0/" + "x999/" * 1500 + "999"),
    ]:
        yield f"path_{name}", bad(what, "parse_tile_path", path, "bad_tile")

    entries = [b"one", b"", "drei €".encode()]
    data = b"".join(len(e).to_bytes(2, "big") + e for e in entries)
    given: Json = {"bytes": content(data), "count": 3}
    yield "good_bundle", good("an entry bundle", "decode_bundle", given, [e.decode() for e in entries])
    given = {"bytes": {"utf8": ""}, "count": 0}
    yield "good_bundle_empty", good("no entries", "decode_bundle", given, [])
    longest = [{"hex": "ffff"}, {"utf8": "a", "times": 65_535}]
    given = {"bytes": longest, "count": 1}
    yield "good_bundle_longest", good("the longest entry", "bundle_lengths", given, [65_535])
    for name, what, raw, count in [
        ("cut_entry", "cut inside of an entry", data[:-1], 3),
        ("cut_length", "cut inside of a length", data + b"\0", 4),
        ("more", "an entry more than asked for", data, 2),
        ("fewer", "an entry less than asked for", data, 4),
        ("garbage", "bytes after the last entry", data + b"\0", 3),
    ]:
        yield f"bundle_{name}", bad(what, "decode_bundle", {"bytes": content(raw), "count": count}, "bad_tile")
    hashes = [sha256(bytes([i])).digest() for i in range(3)]
    given = {"bytes": content(b"".join(hashes)), "count": 3}
    yield "good_hashes", good("a hash tile", "decode_hashes", given, [h.hex() for h in hashes])
    for name, what, raw, count in [
        ("cut", "a byte short", b"".join(hashes)[:-1], 3),
        ("more", "a hash more than asked for", b"".join(hashes), 2),
        ("fewer", "a hash less than asked for", b"".join(hashes), 4),
    ]:
        yield f"hashes_{name}", bad(what, "decode_hashes", {"bytes": content(raw), "count": count}, "bad_tile")


# Entries ----------------------------------------------------------------------------------------------------

START_US = 1_790_000_000_000_000
"""2026-09-21 14:13:20 UTC, 2800 s before a full hour."""
BOOTS = [f"0c6b0f9e-7a51-4c1e-9f3e-{i:012x}" for i in range(4)]


def chip(uuid: str, **changes: Any) -> Json:
    return {
        "uuid": uuid,
        "name": "NVIDIA H100 PCIe",
        "role": "gpu",
        "parent": None,
        "sms": 114,
        "memory_mib": 81_559,
        "clock_max_mhz": 1_755,
        "power_limit_mw": 350_000,
        "pci_bus_id": "00000000:17:00.0",
        "nvlink_links": 0,
        "fabric": None,
        "measured_by": {"busy_us": "nvml_utilization", "energy_mj": "nvml_energy"},
        "not_measured": {"nvlink_tx_kib": "no links"},
        **changes,
    }


def inventory(*chips: Json) -> Json:
    return {
        "chips": list(chips),
        "driver_version": "570.86.15",
        "nvml_version": "12.570.86.15",
        "cuda_version": "12.8",
        "gate": "none",
        "pci": None,
    }


def share(at: int, workload: str, ppm: int = 1_000_000, kind: str = "exclusive") -> Json:
    return {"chip": at, "id": workload, "class": kind, "share_ppm": ppm}


class Log:
    """Writes a node's log entry by entry, as an agent would."""

    def __init__(self, deployment: str = "keyturn.example.org", incarnation: int = 1, seed: str = "node") -> None:
        self.key = Key("unnamed", seed=seed)
        self.first_key = self.key
        self.node_id = sha256(bytes.fromhex("302a300506032b6570032100") + self.key.public).hexdigest()[:32]
        self.deployment, self.incarnation = deployment, incarnation
        self.key.name = self.origin
        self.entries: list[Json] = []
        self.lines: list[bytes] = []
        self.boot, self.mono_us, self.time_us = 0, 12_000_000, START_US
        self.chips = 0

    @property
    def origin(self) -> str:
        return f"{self.deployment}/node/{self.node_id}/{self.incarnation}"

    def pass_time(self, seconds: float) -> "Log":
        self.mono_us += round(seconds * 1_000_000)
        self.time_us += round(seconds * 1_000_000)
        return self

    def reboot(self, off_s: int) -> "Log":
        self.boot += 1
        self.mono_us = 9_000_000
        self.time_us += off_s * 1_000_000
        return self

    def entry(self, kind: str, body: Json, **changes: Any) -> Json:
        before = self.lines[-1] if self.lines else self.origin.encode()
        return {
            "v": 1,
            "seq": len(self.lines),
            "prev": naive_merkle.leaf(before).hex(),
            "boot_id": BOOTS[self.boot],
            "boots": self.boot + 1,
            "mono_us": self.mono_us,
            "time_us": self.time_us,
            "type": kind,
            "body": body,
            **changes,
        }

    def add(self, kind: str, body: Json, **changes: Any) -> "Log":
        return self.add_line(self.entry(kind, body, **changes))

    def add_line(self, entry: Json) -> "Log":
        self.entries.append(entry)
        self.lines.append(canonical(entry))
        if entry["type"] == "inventory":
            self.chips = len(entry["body"]["chips"])
        return self

    def genesis(self, **changes: Any) -> "Log":
        return self.add("genesis", {**self.genesis_body(), **changes})

    def genesis_body(self) -> Json:
        return {
            "agent_version": "0.1.0",
            "agent_sha256": sha256(b"agent").hexdigest(),
            "source": "replay",
            "public_key": self.key.public.hex(),
            "trust_sha256": None,
            "root_sha256": None,
            "previous": None,
        }

    def usage_body(self, span_s: float, workloads: list[Json], columns: list[Json | None], back_s: float = 0) -> Json:
        """An interval that ends ``back_s`` before now. ``columns``: the values of each chip, None for no samples."""
        span, back = round(span_s * 1_000_000), round(back_s * 1_000_000)
        body: Json = {
            "from_us": self.time_us - back - span,
            "to_us": self.time_us - back,
            "mono_from_us": self.mono_us - back - span,
            "samples": [0 if values is None else values.get("samples", 10) for values in columns],
            "workloads": workloads,
        }
        return body | {field: [None if v is None else v.get(field) for v in columns] for field in FIELDS}

    def usage(self, span_s: float, workloads: list[Json], columns: list[Json | None]) -> "Log":
        """Let ``span_s`` pass and measure it."""
        self.pass_time(span_s)
        return self.add("usage", self.usage_body(span_s, workloads, columns))

    def root(self, size: int) -> bytes:
        return naive_merkle.root([naive_merkle.leaf(each) for each in self.lines[:size]])

    def checkpoint(self, size: int, **changes: Any) -> bytes:
        return checkpoint(changes.get("origin", self.origin), size, changes.get("root", self.root(size)))

    def segment(self, start: int, end: int, **changes: Any) -> bytes:
        text = self.checkpoint(end, **changes)
        key = changes.get("key", self.key)
        return self.unsigned(start, end) + b"\n" + note(text, key.line(text))

    def unsigned(self, start: int, end: int) -> bytes:
        return b"".join(each + b"\n" for each in self.lines[start:end])


BUSY: Json = {
    "energy_mj": 3_141_592,
    "busy_us": 9_700_000,
    "elapsed_mcycles": 17_550,
    "active_mcycles": 16_001,
    "tensor_mcycles": 5_003,
    "dram_busy_us": 4_400_000,
    "pcie_tx_kib": 77,
    "pcie_rx_kib": 1_234_567,
    "throttled_us": 0,
    "memory_mib_max": 70_001,
    "clock_mhz_max": 1_755,
}
IDLE: Json = {**BUSY, "energy_mj": 500_003, "busy_us": 0, "tensor_mcycles": 0, "memory_mib_max": 3}


def sample_log() -> Log:
    """One of each entry type, in a log that a verifier accepts."""
    log = Log().genesis()
    log.add("inventory", inventory(chip("GPU-a"), chip("GPU-b", name="NVIDIA A100 80GB PCIe", sms=108)))
    log.add(
        "workload_started",
        {
            "id": "run:aurora-2",
            "class": "exclusive",
            "chips": [0],
            "declared_dtype": "bf16",
            "name_commitment": None,
            "parents": [
                {
                    "workload": "run:aurora-1",
                    "output_sha256": sha256(b"weights").hexdigest(),
                    "flop_low": None,
                    "flop_high": None,
                    "basis": None,
                },
                {
                    "workload": None,
                    "output_sha256": None,
                    "flop_low": "100000000000000000000000",
                    "flop_high": "200000000000000000000000",
                    "basis": "published by its maker",
                },
            ],
        },
    )
    log.usage(10, [share(0, "run:aurora-2")], [BUSY, IDLE])
    shares = [share(0, "run:aurora-2"), share(1, "slurm:alps:4711", 333_333, "shared")]
    log.usage(10, shares, [BUSY, {**BUSY, "tensor_mcycles": None}])
    log.pass_time(1).add("heartbeat", {"verifier_checkpoint": None})
    now = log.time_us
    log.add("gap", {"chips": [1], "from_us": now, "to_us": now + 5_000_000, "cause": "gpu_lost", "detail": "Xid 79"})
    log.add("degraded", {"cause": "gpm_denied", "interval_us": 10_000_000, "detail": None})
    log.add("recovered", {"bytes": 211, "sha256": sha256(b"torn").hexdigest()})
    log.add("paused", {"for_us": 900_000_000, "reason": "driver upgrade"})
    log.time_us += 7
    log.add("clock_step", {"before_us": now, "after_us": now + 7, "step_us": 7})
    log.add(
        "workload_ended",
        {"id": "run:aurora-2", "output_sha256": sha256(b"more weights").hexdigest(), "reason": "exit 0"},
    )
    log.add("shutdown", {"reason": "stopped by the operator"})
    log.add("retired", {"chips": ["GPU-b"], "reason": "returned to its maker"})
    log.add("key_roll", key_roll_body(log))
    return log


def key_roll_body(log: Log, **changes: Any) -> Json:
    new = changes.get("new", Key("next"))
    seq = changes.get("seq", len(log.lines))
    message = f"keyturn/key-roll/v1\n{log.origin}\n{seq}\n{log.key.public.hex()}\n{new.public.hex()}\n".encode()
    return {
        "next_incarnation": changes.get("next_incarnation", log.incarnation + 1),
        "next_public_key": new.public.hex(),
        "next_signature": changes.get("signer", new).sign(message).hex(),
    }


def entries() -> Iterator[tuple[str, Case]]:
    log = sample_log()
    seen: dict[str, Json] = {}
    for entry in log.entries:
        seen.setdefault(entry["type"], entry)
    for kind, entry in seen.items():
        yield f"good_{kind}", good(f"a {kind} entry", "parse_entry", content(canonical(entry)), None)

    def change(kind: str, **fields: Any) -> bytes:
        return canonical({**seen[kind], **fields})

    def body(kind: str, **fields: Any) -> bytes:
        return canonical({**seen[kind], "body": {**seen[kind]["body"], **fields}})

    def without(kind: str, field: str) -> bytes:
        return canonical({**seen[kind], "body": {k: v for k, v in seen[kind]["body"].items() if k != field}})

    usage = seen["usage"]["body"]
    genesis = seen["genesis"]["body"]
    previous = {"origin": log.origin, "size": 7, "root": "00" * 32, "reason": "rollback"}
    mig = chip("MIG-1", role="mig_instance", parent="GPU-a", sms=16)
    accepted = {
        "usage_last_instant": ("a usage interval that ends with the hour", hour_edge(log, 0)),
        "usage_no_chips": ("usage of a host without chips", no_chips(usage)),
        "usage_pools": ("a chip that nobody has", body("usage", workloads=[])),
        "usage_share_0": ("a workload with no share", body("usage", workloads=[share(0, "run:a", 0)])),
        "inventory_mig": ("a MIG instance", body("inventory", chips=[chip("GPU-a", role="mig_parent"), mig])),
        "inventory_empty": ("no chips", body("inventory", chips=[])),
        "inventory_pci": (
            "the PCI bus",
            body("inventory", pci=[{"bus_id": "0000:17:00.0", "vendor": 4318, "device": 9009, "driver": "vfio-pci"}]),
        ),
        "genesis_previous": ("a later incarnation", body("genesis", previous=previous)),
        "gap_host": ("a gap of the whole host", body("gap", chips=None)),
        "retired_host": ("the whole host", body("retired", chips=None)),
        "clock_step_back": ("a step back", body("clock_step", before_us=9, after_us=2, step_us=-7)),
        "reason_text": ("any text, as UTF-8", body("shutdown", reason='Störung "4" \\ 停電 😂')),
        "reason_longest": ("1024 characters", body("shutdown", reason="é" * 1024)),
    }
    for name, (what, data) in accepted.items():
        yield f"good_{name}", good(what, "parse_entry", content(data), None)

    yield from leases.entries(log.entry)

    columns = {**usage, "energy_mj": [None, 1], "samples": [0, 10]}
    of_nothing = {field: [None, *usage[field][1:]] for field in FIELDS} | {"samples": [0, 10]}
    refused: dict[str, tuple[str, bytes, str]] = {
        # The shape
        "no_type": ("no type", canonical({k: v for k, v in seen["shutdown"].items() if k != "type"}), "not_canonical"),
        "unknown_type": ("an unknown type", change("shutdown", type="startup"), "not_canonical"),
        "reserved_attestation": ("a reserved type", change("shutdown", type="attestation"), "not_canonical"),
        "body_of_another_type": ("the body of another type", change("shutdown", type="heartbeat"), "not_canonical"),
        "mig_parent_alone": (
            "a MIG parent without instances",
            body("inventory", chips=[chip("GPU-a", role="mig_parent")]),
            "bad_entry",
        ),
        "mig_instance_of_nothing": ("a MIG instance without its parent", body("inventory", chips=[mig]), "bad_entry"),
        "chip_without_sms": ("a chip with 0 SMs", body("inventory", chips=[chip("GPU-a", sms=0)]), "bad_entry"),
        "version_2": ("another version", change("shutdown", v=2), "not_canonical"),
        "version_text": ("a version as text", change("shutdown", v="1"), "not_canonical"),
        "version_true": ("true for 1", change("shutdown", v=True), "not_canonical"),
        "no_version": (
            "no version",
            canonical({k: v for k, v in seen["shutdown"].items() if k != "v"}),
            "not_canonical",
        ),
        "unknown_field": ("an unknown field", change("shutdown", note="x"), "not_canonical"),
        "unknown_body_field": ("an unknown field in the body", body("shutdown", code=1), "not_canonical"),
        "missing_null": ("a null field left out", without("heartbeat", "verifier_checkpoint"), "not_canonical"),
        "missing_column": ("a column left out", without("usage", "energy_mj"), "not_canonical"),
        "float": ("a float", change("shutdown", time_us=1.5), "not_canonical"),
        "float_integral": (
            "an integer as a float",
            canonical(seen["shutdown"]).replace(b'"v":1', b'"v":1.0'),
            "not_canonical",
        ),
        "text_for_integer": ("a number as text", change("shutdown", seq="12"), "not_canonical"),
        "negative_seq": ("a negative seq", change("shutdown", seq=-1), "not_canonical"),
        "integer_2_53": ("2^53", change("shutdown", time_us=2**53), "not_canonical"),
        "duplicate_key": (
            "a key twice",
            canonical(seen["shutdown"]).replace(b'"v":1', b'"v":1,"v":1'),
            "not_canonical",
        ),
        "duplicate_type": (
            "two types",
            canonical(seen["shutdown"]).replace(b'"type":', b'"type":"heartbeat","type":'),
            "not_canonical",
        ),
        "duplicate_equal_type": (
            "the type twice",
            canonical(seen["shutdown"]).replace(b'"type":', b'"type":"shutdown","type":'),
            "not_canonical",
        ),
        "unsorted": (
            "type before everything",
            b'{"type":"shutdown",' + canonical(seen["shutdown"]).replace(b'"type":"shutdown",', b"")[1:],
            "not_canonical",
        ),
        "space": ("a space", canonical(seen["shutdown"]).replace(b'"v":1', b'"v": 1'), "not_canonical"),
        "newline": ("the newline, which isn't part of it", canonical(seen["shutdown"]) + b"\n", "not_canonical"),
        "upper_case_prev": ("upper-case hex", change("shutdown", prev="AB" * 32), "not_canonical"),
        "short_prev": ("31 bytes", change("shutdown", prev="ab" * 31), "not_canonical"),
        "prev_with_newline": ("a newline after the hex", change("shutdown", prev="ab" * 32 + "\n"), "not_canonical"),
        "prev_fullwidth": ("a digit beyond ASCII", change("shutdown", prev="\uff11" + "0" * 63), "not_canonical"),
        "boot_id_upper_case": (
            "a boot id in upper case",
            change("shutdown", boot_id=BOOTS[0].upper()),
            "not_canonical",
        ),
        "reason_too_long": ("1025 characters", body("shutdown", reason="é" * 1025), "not_canonical"),
        "too_large": (
            "65,536 bytes",
            pad(body("heartbeat", verifier_checkpoint=""), 65_536),
            "too_large",
        ),
        "not_an_object": ("a list", b"[]", "not_canonical"),
        # Usage
        "usage_empty_interval": ("an interval without length", body("usage", to_us=usage["from_us"]), "bad_entry"),
        "usage_negative_interval": ("an interval backwards", body("usage", to_us=usage["from_us"] - 1), "bad_entry"),
        "usage_crosses_hour": ("an interval over a full hour", hour_edge(log, 1), "bad_entry"),
        "usage_ends_later": (
            "an interval that ends after its entry",
            body("usage", mono_from_us=usage["mono_from_us"] + 1),
            "bad_entry",
        ),
        "usage_short_column": ("a value short", body("usage", busy_us=[1]), "bad_entry"),
        "usage_long_column": ("a value more", body("usage", busy_us=[1, 2, 3]), "bad_entry"),
        "usage_long_samples": ("samples of a third chip", body("usage", samples=[1, 2, 3]), "bad_entry"),
        "usage_value_of_nothing": (
            "a value without samples",
            canonical({**seen["usage"], "body": {**columns, "energy_mj": [5, 1]}}),
            "bad_entry",
        ),
        "usage_share_of_nothing": (
            "a share of a chip without samples",
            canonical({**seen["usage"], "body": {**usage, **of_nothing}}),
            "bad_entry",
        ),
        "usage_negative": ("a negative value", body("usage", energy_mj=[-1, 1]), "not_canonical"),
        "usage_share_over_chip": ("a share of a third chip", body("usage", workloads=[share(2, "run:a")]), "bad_entry"),
        "usage_share_over_whole": (
            "shares of more than the whole",
            body("usage", workloads=[share(0, "run:a", 500_000), share(0, "run:b", 500_001)]),
            "bad_entry",
        ),
        "usage_share_over_million": (
            "a share of more than the whole",
            body("usage", workloads=[share(0, "run:a", 1_000_001)]),
            "not_canonical",
        ),
        "usage_shares_unsorted": (
            "shares out of order",
            body("usage", workloads=[share(0, "run:b", 1), share(0, "run:a", 1)]),
            "bad_entry",
        ),
        "usage_chips_unsorted": (
            "chips out of order",
            body("usage", workloads=[share(1, "run:a"), share(0, "run:b")]),
            "bad_entry",
        ),
        "usage_share_twice": (
            "one workload twice on a chip",
            body("usage", workloads=[share(0, "run:a", 1), share(0, "run:a", 1)]),
            "bad_entry",
        ),
        "usage_pool_as_share": (
            "a pool as a workload",
            body("usage", workloads=[share(0, "unattributed")]),
            "bad_identifier",
        ),
        "usage_unknown_class": (
            "an unknown class",
            body("usage", workloads=[share(0, "run:a", 1, "stolen")]),
            "not_canonical",
        ),
        # Inventory
        "inventory_chip_twice": ("a chip twice", body("inventory", chips=[chip("GPU-a"), chip("GPU-a")]), "bad_entry"),
        "inventory_orphan": (
            "a MIG instance without a parent",
            body("inventory", chips=[{**mig, "parent": None}]),
            "bad_entry",
        ),
        "inventory_parent_of_gpu": (
            "a GPU with a parent",
            body("inventory", chips=[chip("x", parent="y")]),
            "bad_entry",
        ),
        "inventory_both": (
            "a field that is measured and isn't",
            body("inventory", chips=[chip("x", not_measured={"busy_us": "denied"})]),
            "bad_entry",
        ),
        "inventory_unknown_field": (
            "not a field of usage",
            body("inventory", chips=[chip("x", measured_by={"flop": "guess"})]),
            "bad_entry",
        ),
        "inventory_no_uuid": ("a chip without a uuid", body("inventory", chips=[chip("")]), "not_canonical"),
        "inventory_uuid_space": ("a space in a uuid", body("inventory", chips=[chip("GPU a")]), "not_canonical"),
        "inventory_unknown_role": (
            "an unknown role",
            body("inventory", chips=[chip("x", role="cpu")]),
            "not_canonical",
        ),
        # The others
        "workload_chips_unsorted": ("chips out of order", body("workload_started", chips=[1, 0]), "bad_entry"),
        "workload_chips_twice": ("a chip twice", body("workload_started", chips=[0, 0]), "bad_entry"),
        "workload_bad_id": ("not a workload id", body("workload_started", id="aurora"), "bad_identifier"),
        "workload_ended_bad_id": ("not a workload id", body("workload_ended", id="gap"), "bad_identifier"),
        "workload_parent_reversed": (
            "a parent with low above high",
            body("workload_started", parents=[{**seen["workload_started"]["body"]["parents"][1], "flop_high": "9"}]),
            "bad_entry",
        ),
        "workload_parent_leading_zero": (
            "a decimal with a leading zero",
            body("workload_started", parents=[{**seen["workload_started"]["body"]["parents"][1], "flop_low": "01"}]),
            "not_canonical",
        ),
        "workload_parent_bad_id": (
            "a parent that is no workload",
            body("workload_started", parents=[{**seen["workload_started"]["body"]["parents"][0], "workload": "gap"}]),
            "bad_identifier",
        ),
        "time_too_late": ("a time after 2^52-1", canonical({**seen["heartbeat"], "time_us": 2**52}), "not_canonical"),
        "gap_backwards": ("a gap that ends before it begins", body("gap", from_us=9, to_us=8), "bad_entry"),
        "gap_chips_unsorted": ("chips out of order", body("gap", chips=[1, 0]), "bad_entry"),
        "gap_cause_upper_case": ("not a word for programs", body("gap", cause="Lost"), "not_canonical"),
        "clock_step_sum": ("a step that isn't the difference", body("clock_step", step_us=8), "bad_entry"),
        "retired_unsorted": ("chips out of order", body("retired", chips=["b", "a"]), "bad_entry"),
        "retired_twice": ("a chip twice", body("retired", chips=["a", "a"]), "bad_entry"),
        "genesis_bad_previous": (
            "not the origin of a node's log",
            body("genesis", previous={**previous, "origin": "example.org"}),
            "bad_identifier",
        ),
        "genesis_unknown_reason": (
            "an unknown reason",
            body("genesis", previous={**previous, "reason": "whim"}),
            "not_canonical",
        ),
        "genesis_unknown_source": ("an unknown source", body("genesis", source="dream"), "not_canonical"),
        "genesis_short_key": ("a short key", body("genesis", public_key=genesis["public_key"][2:]), "not_canonical"),
        "key_roll_incarnation_0": ("incarnation 0", body("key_roll", next_incarnation=0), "not_canonical"),
        "key_roll_short_signature": ("a short signature", body("key_roll", next_signature="00" * 63), "not_canonical"),
    }
    for name, (what, data, code) in refused.items():
        given = content(data) if code != "too_large" else repeated(data, b" ")
        yield name, bad(what, "parse_entry", given, code)


def pad(data: bytes, size: int) -> bytes:
    """A heartbeat whose quoted checkpoint fills ``size`` bytes."""
    return data.replace(b'""', b'"' + b" " * (size - len(data)) + b'"')


def repeated(data: bytes, filler: bytes) -> list[Json]:
    """``data`` as parts, its longest run of ``filler`` written once."""
    count = max(len(run) for run in data.split(b'"') if set(run) == {filler[0]})
    head, _, tail = data.partition(filler * count)
    return [content(head), {**content(filler), "times": count}, content(tail)]


def hour_edge(log: Log, over_us: int) -> bytes:
    """A usage entry of 10 s that ends at a full hour, or ``over_us`` after it."""
    entry = json.loads(canonical(next(e for e in log.entries if e["type"] == "usage")))
    entry["body"]["to_us"] = (START_US // 3_600_000_000 + 1) * 3_600_000_000 + over_us
    entry["body"]["from_us"] = entry["body"]["to_us"] - 10_000_000
    return canonical(entry)


def no_chips(usage: Json) -> bytes:
    body: Json = {**usage, "samples": [], "workloads": [], **{field: [] for field in FIELDS}}
    log = Log().genesis().add("inventory", inventory()).pass_time(10)
    body |= {"from_us": log.time_us - 10_000_000, "to_us": log.time_us, "mono_from_us": log.mono_us - 10_000_000}
    return canonical(log.entry("usage", body))


# Segments ---------------------------------------------------------------------------------------------------


def receive(log: Log, *segments: bytes | list[Json]) -> Json:
    """Segments for a verifier that knows the log's key and has nothing of it yet."""
    parts = [each if isinstance(each, list) else content(each) for each in segments]
    return {"origin": log.origin, "public_key": log.key.public.hex(), "segments": parts}


def received(log: Log, size: int, **changes: Any) -> Json:
    """What a verifier knows after ``size`` entries."""
    value = {"size": size, "root": log.root(size).hex(), "prev": naive_merkle.leaf(log.lines[size - 1]).hex()}
    return {**value, "source": "replay", "closed": None, "next_key": None, **changes}


def segments() -> Iterator[tuple[str, Case]]:
    log = sample_log()
    n = len(log.lines)
    rolled = {"closed": "key_roll", "next_key": Key("next").public.hex()}
    yield (
        "good_whole",
        good("a log in one segment", "receive", receive(log, log.segment(0, n)), received(log, n, **rolled)),
    )
    pieces = [log.segment(0, 1), log.segment(1, 4), log.segment(4, n)]
    yield "good_three", good("a log in three segments", "receive", receive(log, *pieces), received(log, n, **rolled))
    yield "good_first", good("the first entries only", "receive", receive(log, pieces[0]), received(log, 1))

    whole = log.segment(0, 4)
    lines = log.lines[:4]
    tail = whole[len(log.unsigned(0, 4)) :]
    text = log.checkpoint(4)

    def other_lines(changed: list[bytes], *, signed: bool = True) -> bytes:
        """Other lines, under a root that was signed for them or under the true one."""
        root = naive_merkle.root([naive_merkle.leaf(each) for each in changed]) if signed else log.root(4)
        of = checkpoint(log.origin, len(changed), root)
        return b"".join(each + b"\n" for each in changed) + b"\n" + note(of, log.key.line(of))

    def changed(at: int, **fields: Any) -> bytes:
        """Entry ``at`` with other fields as the last one, under a root that was signed for it."""
        return other_lines([*lines[:at], canonical({**log.entries[at], **fields})])

    stranger = Key(log.origin, seed="stranger")
    witness = Key("witness.example.org/w1", 0x04)
    foreign = Log("keyturn.example.net").genesis()
    extended = text + b"extension\n"
    flipped = flip(whole, whole.index(b"H100") + 1)
    refused: dict[str, tuple[str, bytes, str]] = {
        "empty": ("nothing", b"", "bad_segment"),
        "only_note": ("a checkpoint without entries", tail[1:], "bad_segment"),
        "only_blank_note": ("an empty line and a checkpoint", tail, "bad_segment"),
        "only_entries": ("entries without a checkpoint", log.unsigned(0, 4), "bad_segment"),
        "unsigned": ("a checkpoint without a signature", log.unsigned(0, 4) + b"\n" + text, "bad_segment"),
        "truncated": ("cut in the signature", whole[:-10], "bad_note"),
        "truncated_newline": ("the last newline is missing", whole[:-1], "bad_note"),
        "truncated_entries": ("cut in the entries", whole[:600], "bad_segment"),
        "first_line_missing": ("an entry dropped in front", whole[len(lines[0]) + 1 :], "broken_start"),
        "last_line_missing": ("an entry dropped at the end", other_lines(lines[:3], signed=False), "wrong_root"),
        "middle_line_missing": ("an entry dropped, and signed so", other_lines([*lines[:2], lines[3]]), "broken_chain"),
        "reordered": ("two entries swapped", other_lines([lines[0], lines[2], lines[1], lines[3]]), "broken_chain"),
        "reordered_unsigned": (
            "two entries swapped on the way",
            note_of([lines[0], lines[2], lines[1], lines[3]], tail),
            "wrong_root",
        ),
        "duplicated": ("an entry twice", other_lines([*lines[:2], lines[1], *lines[2:]]), "broken_chain"),
        "flipped_entry": ("a bit of an entry flipped on the way", flipped, "wrong_root"),
        "flipped_newline": (
            "two entries joined, so that the segment starts later",
            whole.replace(b"\n", b" ", 1),
            "broken_chain",
        ),
        "flipped_root": (
            "another root, signature as it was",
            whole.replace(b64(log.root(4)).encode(), b64(log.root(3)).encode()),
            "bad_signature",
        ),
        "blank_line": ("an empty line among the entries", whole.replace(b"\n", b"\n\n", 1), "bad_segment"),
        "blank_line_for_entry": (
            "an empty line where an entry is missing",
            log.segment(1, 4).replace(b"\n", b"\n\n", 1),
            "bad_segment",
        ),
        "blank_line_first": ("an empty line in front", b"\n" + whole, "bad_segment"),
        "carriage_return": ("line ends of another system", whole.replace(b"\n", b"\r\n"), "bad_segment"),
        "byte_order_mark": ("a byte order mark", b"\xef\xbb\xbf" + whole, "wrong_root"),
        "utf16": ("UTF-16", whole.decode().encode("utf-16-le"), "bad_segment"),
        "latin1": ("an em dash that isn't UTF-8", whole.replace("—".encode(), b"\x97"), "bad_note"),
        "not_utf8_entry": (
            "an entry that isn't UTF-8",
            other_lines([lines[0].replace(b"replay", b"repl\xff")]),
            "not_canonical",
        ),
        "spaces": ("an entry laid out for people", other_lines([json.dumps(log.entries[0]).encode()]), "not_canonical"),
        "float": ("a float", changed(3, time_us=1.5), "not_canonical"),
        "unknown_field": ("an unknown field", changed(3, extra=1), "not_canonical"),
        "missing_field": (
            "a field left out",
            other_lines([lines[0], without(log.entries[1], "boots")]),
            "not_canonical",
        ),
        "duplicate_key": ("a key twice", other_lines([lines[0].replace(b'"v":1', b'"v":1,"v":1')]), "not_canonical"),
        "integer_2_53": ("2^53", changed(3, time_us=2**53), "not_canonical"),
        # The note
        "wrong_signature": (
            "signed by a stranger",
            log.unsigned(0, 4) + b"\n" + note(text, line(log.origin, log.key.id, stranger.sign(text))),
            "bad_signature",
        ),
        "unknown_key": (
            "a stranger's key",
            log.unsigned(0, 4) + b"\n" + note(text, stranger.line(text)),
            "unknown_key",
        ),
        "wrong_key_id": (
            "a wrong key id",
            log.unsigned(0, 4) + b"\n" + note(text, line(log.origin, flip(log.key.id, 0), log.key.sign(text))),
            "unknown_key",
        ),
        "two_signatures": (
            "two signatures of one key",
            log.unsigned(0, 4) + b"\n" + note(text, log.key.line(text), line(log.origin, log.key.id, bytes(64))),
            "bad_note",
        ),
        "witness_signature": (
            "a cosignature beside",
            log.unsigned(0, 4) + b"\n" + note(text, log.key.line(text), witness.cosign(text, 1)),
            "bad_segment",
        ),
        "name_of_another": (
            "a signature in another log's name",
            log.unsigned(0, 4) + b"\n" + note(text, foreign.key.line(text)),
            "bad_segment",
        ),
        "extension_line": (
            "an extension line",
            log.unsigned(0, 4) + b"\n" + note(extended, log.key.line(extended)),
            "bad_checkpoint",
        ),
        "size_below_lines": (
            "more entries than the checkpoint covers",
            log.segment(0, 4).replace(b"\n4\n", b"\n3\n"),
            "bad_segment",
        ),
        "verifier_origin": (
            "the origin of a verifier's log",
            log.segment(0, 4, origin="keyturn.example.org/log", key=Key("keyturn.example.org/log")),
            "bad_identifier",
        ),
        "another_deployment": ("a segment for another deployment", foreign.segment(0, 1), "unknown_key"),
        "wrong_root": ("a root that isn't the entries'", log.segment(0, 4, root=log.root(3)), "wrong_root"),
        # The chain
        "wrong_prev": ("a wrong link", changed(2, prev="00" * 32), "broken_chain"),
        "wrong_first_prev": ("a first link to nothing", changed(0, prev="00" * 32), "broken_chain"),
        "seq_skips": ("a seq too far", changed(1, seq=2), "broken_chain"),
        "mono_back": ("a monotonic clock that goes back", changed(3, mono_us=11_999_999), "bad_entry"),
        "boots_change": ("a boot counter that changes within a boot", changed(1, boots=2), "broken_chain"),
        "boots_same": ("a new boot with the old counter", changed(1, boot_id=BOOTS[1]), "broken_chain"),
        "no_genesis": ("a log that starts with an inventory", other_lines([first_of(log, 1)]), "broken_chain"),
        "other_key_in_genesis": (
            "a genesis with another key",
            other_lines([canonical({**log.entries[0], "body": {**log.genesis_body(), "public_key": "00" * 32}})]),
            "bad_entry",
        ),
    }
    for name, (what, data, code) in refused.items():
        if code == "broken_start":
            # Nothing is wrong with these bytes by themselves: they are entries 1 … 3 of the log.
            yield name, bad(what, "receive", receive(log, data), "broken_chain")
        else:
            yield name, bad(what, "receive", receive(log, data), code)

    yield from chains()
    yield from caps(log)


def note_of(lines: list[bytes], tail: bytes) -> bytes:
    return b"".join(each + b"\n" for each in lines) + tail


def without(entry: Json, field: str) -> bytes:
    return canonical({k: v for k, v in entry.items() if k != field})


def first_of(log: Log, at: int) -> bytes:
    """Entry ``at`` made the first."""
    return canonical({**log.entries[at], "seq": 0, "prev": naive_merkle.leaf(log.origin.encode()).hex()})


def started() -> Log:
    return Log().genesis().add("inventory", inventory(chip("GPU-a"), chip("GPU-b")))


def chains() -> Iterator[tuple[str, Case]]:
    """What a whole log can get wrong though each entry is right."""
    cases: dict[str, tuple[str, Log]] = {}
    cases["second_genesis"] = ("a second genesis", started().genesis())
    log = started()
    body = log.pass_time(10).usage_body(10, [], [BUSY])
    cases["too_few_columns"] = ("columns for one chip of two", log.add("usage", body))
    log = Log().genesis().pass_time(10)
    cases["usage_before_inventory"] = ("usage of unknown chips", log.add("usage", log.usage_body(10, [], [BUSY])))
    log = started().usage(10, [], [BUSY, BUSY]).pass_time(1)
    cases["overlap"] = ("usage of a time that is covered", log.add("usage", log.usage_body(2, [], [BUSY, BUSY])))
    log = started()
    now = log.time_us
    gap = {"chips": [2], "from_us": now, "to_us": now, "cause": "lost", "detail": None}
    cases["gap_of_unknown_chip"] = ("a gap of a third chip", log.add("gap", gap))
    start = {**sample_log().entries[2]["body"], "chips": [0, 2], "parents": []}
    cases["workload_on_unknown_chip"] = ("a workload on a third chip", started().add("workload_started", start))
    log = started()
    log.mono_us -= 1
    cases["mono_back_by_1"] = ("a monotonic clock that goes back", log.add("shutdown", {"reason": "x"}))
    log = started().reboot(60)
    fewer = {"boots": 1}
    cases["boots_back"] = ("a boot counter that doesn't grow", log.add("shutdown", {"reason": "x"}, **fewer))
    log = started()
    log.add("retired", {"chips": None, "reason": "scrapped"})
    cases["after_retirement"] = ("an entry after the end", log.add("shutdown", {"reason": "x"}))
    log = started()
    log.add("key_roll", key_roll_body(log))
    cases["after_key_roll"] = ("an entry after the end", log.add("shutdown", {"reason": "x"}))
    for name, (what, of) in cases.items():
        yield name, bad(what, "receive", receive(of, of.segment(0, len(of.lines))), "broken_chain")
        pieces = [of.segment(0, len(of.lines) - 1), of.segment(len(of.lines) - 1, len(of.lines))]
        yield f"{name}_apart", bad(f"{what}, in a segment of its own", "receive", receive(of, *pieces), "broken_chain")

    halves = [share(0, "run:a", 500_000), share(0, "run:b", 500_000)]
    for name, what, workloads, code in [
        ("second_over_whole", "shares of more than the whole", [*halves, share(0, "run:c", 1)], "bad_entry"),
        ("second_unsorted", "shares out of order", halves[::-1], "bad_entry"),
        ("second_over_chip", "a share of a third chip", [*halves, share(2, "run:a")], "bad_entry"),
        ("second_pool", "a pool as a workload", [share(0, "gap")], "bad_identifier"),
    ]:
        of = started().usage(10, halves, [BUSY, BUSY]).usage(10, workloads, [BUSY, BUSY])
        given = receive(of, of.segment(0, 4))
        yield f"usage_{name}", bad(f"{what}, after an entry that is right", "receive", given, code)
    of = started().usage(10, halves, [BUSY, BUSY]).usage(10, halves, [None, BUSY])
    given = receive(of, of.segment(0, 4))
    yield "usage_second_of_nothing", bad("the same shares, of a chip without samples", "receive", given, "bad_entry")
    of = started().usage(10, [share(1, "run:a")], [BUSY, BUSY]).add("inventory", inventory(chip("GPU-a")))
    of.usage(10, [share(1, "run:a")], [BUSY])
    given = receive(of, of.segment(0, 5))
    yield "usage_second_fewer_chips", bad("the same shares, of a chip that is gone", "receive", given, "bad_entry")

    log = started().usage(10, [], [BUSY, BUSY]).reboot(60).pass_time(10)
    log.add("usage", log.usage_body(10, [], [BUSY, BUSY]))
    n = len(log.lines)
    yield "good_reboot", good("a reboot", "receive", receive(log, log.segment(0, n)), received(log, n))
    log = started()
    log.add("retired", {"chips": None, "reason": "scrapped"})
    want = received(log, 3, closed="retired")
    yield "good_retired", good("a host that is retired", "receive", receive(log, log.segment(0, 3)), want)
    log = started()
    log.time_us -= 3_600_000_000
    log.add("clock_step", {"before_us": START_US, "after_us": log.time_us, "step_us": -3_600_000_000})
    yield (
        "good_clock_step",
        good("a wall clock that steps back", "receive", receive(log, log.segment(0, 3)), received(log, 3)),
    )

    log = Log(incarnation=2, seed="node")
    before = {"origin": Log().origin, "size": 9, "root": "00" * 32, "reason": "rollback"}
    log.genesis(previous=before)
    yield (
        "good_incarnation_2",
        good("a later incarnation", "receive", receive(log, log.segment(0, 1)), received(log, 1)),
    )
    other = Log("keyturn.example.net").origin
    for name, what, incarnation, previous in [
        ("first_with_previous", "a first incarnation that follows another", 1, before),
        ("second_without_previous", "a second incarnation that follows nothing", 2, None),
        ("previous_of_another", "an incarnation of another deployment before it", 2, {**before, "origin": other}),
        ("previous_is_itself", "an incarnation that follows itself", 2, {**before, "origin": log.origin}),
    ]:
        of = Log(incarnation=incarnation, seed="node").genesis(previous=previous)
        yield name, bad(what, "receive", receive(of, of.segment(0, 1)), "bad_entry")
    of = Log()
    of.node_id = "00" * 16
    of.key.name = of.origin
    of.genesis()
    yield "node_id_of_another", bad("the node id of another key", "receive", receive(of, of.segment(0, 1)), "bad_entry")


def caps(log: Log) -> Iterator[tuple[str, Case]]:
    """256 entries, 65,535 bytes an entry, 4 MiB."""
    long = Log().genesis()
    while len(long.lines) < 257:
        long.add("heartbeat", {"verifier_checkpoint": None})
    given = receive(long, long.segment(0, 256))
    yield "good_256_entries", good("as many entries as a segment holds", "receive", given, received(long, 256))
    yield "257_entries", bad("an entry too many", "receive", receive(long, long.segment(0, 257)), "too_large")
    text, size = log.checkpoint(4), 4 * 1024 * 1024
    parts: list[Json] = [{"utf8": "a", "times": 65_536}, {"utf8": "\n\n"}, content(note(text, log.key.line(text)))]
    yield "entry_over_cap", bad("an entry of 65,536 bytes", "receive", receive(log, parts), "too_large")
    parts = [{"utf8": "a\n", "times": size // 2}, {"utf8": "\n"}, content(note(text, log.key.line(text)))]
    yield "segment_over_cap", bad("over 4 MiB", "receive", receive(log, parts), "too_large")
    parts = [{"utf8": "a\n", "times": size // 4}, {"utf8": "\n"}, content(note(text, log.key.line(text)))]
    yield "a_million_entries", bad("2 MiB of one-byte entries", "receive", receive(log, parts), "too_large")
    parts = [{"utf8": "a\n"}, {"utf8": "\n", "times": size // 2}]
    yield "a_million_blank_lines", bad("2 MiB of newlines", "receive", receive(log, parts), "too_large")


# Key rolls --------------------------------------------------------------------------------------------------


def key_rolls() -> Iterator[tuple[str, Case]]:
    def rolled(**changes: Any) -> Log:
        log = started()
        body = key_roll_body(log, **changes)
        return log.add("key_roll", {**body, **changes.get("body", {})})

    log = rolled()
    want = received(log, 3, closed="key_roll", next_key=Key("next").public.hex())
    yield "good", good("a key roll", "receive", receive(log, log.segment(0, 3)), want)
    same = rolled(new=log.key)
    want = received(same, 3, closed="key_roll", next_key=log.key.public.hex())
    yield "good_same_key", good("a roll to the same key", "receive", receive(same, same.segment(0, 3)), want)
    weak = (1).to_bytes(32, "little").hex()
    for name, what, of, code in [
        ("wrong_seq", "signed for another place in the log", rolled(seq=1), "bad_signature"),
        ("signed_by_old", "signed by the old key", rolled(signer=log.key), "bad_signature"),
        ("skips_incarnation", "a roll over an incarnation", rolled(next_incarnation=3), "bad_entry"),
        ("stays", "a roll to this incarnation", rolled(next_incarnation=1), "bad_entry"),
        ("weak_key", "a key of low order", rolled(body={"next_public_key": weak}), "bad_key"),
        (
            "other_key",
            "a key that didn't sign",
            rolled(body={"next_public_key": Key("x").public.hex()}),
            "bad_signature",
        ),
        ("no_signature", "no signature", rolled(body={"next_signature": "00" * 64}), "bad_signature"),
    ]:
        yield name, bad(what, "receive", receive(of, of.segment(0, 3)), code)
    replay = Log("keyturn.example.net").genesis().add("inventory", inventory(chip("GPU-a"), chip("GPU-b")))
    replay.add("key_roll", log.entries[2]["body"])
    given = receive(replay, replay.segment(0, 3))
    yield "of_another_log", bad("a roll that was signed for another log", "receive", given, "bad_signature")


# Usage ------------------------------------------------------------------------------------------------------


def usage() -> Iterator[tuple[str, Case]]:
    cases: dict[str, tuple[str, Log]] = {}
    both: list[Json | None] = [BUSY, BUSY]

    log = started().usage(10, [share(0, "run:a")], [BUSY, IDLE]).usage(10, [share(0, "run:a")], [BUSY, IDLE])
    cases["two_entries"] = ("one workload and an idle chip; 20 s in one row each", log)
    thirds = [share(0, "run:a", 333_333, "shared"), share(0, "run:b", 333_333, "shared")]
    odd = {**BUSY, "energy_mj": 10, "busy_us": 1, "samples": 7}
    cases["shared"] = ("parts by running sum, the rest unattributed", started().usage(10, thirds, [odd, BUSY]))
    cases["partial"] = (
        "a workload that had a chip for a part of the time",
        started().usage(10, [share(1, "run:a", 1)], both),
    )
    cases["share_0"] = ("a workload with no share has no row", started().usage(10, [share(0, "run:a", 0)], both))
    lost = {**BUSY, "tensor_mcycles": None}
    log = started().usage(10, [], both).usage(10, [], [lost, BUSY]).usage(10, [], both)
    cases["null_pattern"] = ("a counter that is lost and comes back: two rows", log)
    log = started().usage(10, [share(0, "run:a")], both).usage(10, [], [None, BUSY])
    cases["no_samples"] = ("a chip that wasn't read: time in the pool of gaps", log)
    log = started().usage(10, [], both).pass_time(3).usage(10, [], both)
    cases["missing"] = ("3 s that no entry covers", log)
    log = started().usage(10, [], both)
    body = {"chips": None, "from_us": log.time_us, "to_us": log.time_us, "cause": "driver_lost", "detail": None}
    cases["missing_cause"] = ("a gap entry says why", log.add("gap", body).pass_time(3).usage(10, [], both))
    log = started().pass_time(2_790).usage(10, [], both).usage(10, [], both)
    cases["hour"] = ("entries on both sides of a full hour", log)
    log = started().usage(10, [], both).pass_time(1).add("inventory", inventory(chip("GPU-b")))
    log.usage(10, [], [BUSY]).pass_time(1).add("inventory", inventory(chip("GPU-b"), chip("GPU-a"))).usage(10, [], both)
    cases["leaves_and_returns"] = ("a chip that was away is owed the time", log)
    log = started().usage(10, [], both).add("inventory", inventory(chip("GPU-a"), chip("GPU-b"))).usage(10, [], both)
    cases["gap_cites_inventory"] = ("a gap names the inventory in force", log.pass_time(5).usage(10, [], both))
    log = started().usage(10, [], both).reboot(60).pass_time(10)
    cases["reboot"] = ("across a reboot the wall clock tells", log.add("usage", log.usage_body(10, [], both)))
    log = started().usage(10, [], both).reboot(-60).pass_time(100)
    what = "after a clock that was set back, the time of the new boot is owed"
    cases["reboot_clock_back"] = (what, log.usage(10, [], both))
    log = started().usage(10, [], both)
    before, log.time_us = log.time_us, log.time_us + 1_000_000_000
    log.add("clock_step", {"before_us": before, "after_us": log.time_us, "step_us": 1_000_000_000})
    cases["clock_step"] = ("a step of the wall clock is no gap", log.usage(10, [], both))
    log = started().usage(10, [], both).pass_time(5).add("retired", {"chips": ["GPU-b"], "reason": "sold"})
    cases["retired"] = ("a retired chip is owed up to then", log.pass_time(5).usage(10, [], [BUSY, None]))
    log = started().usage(10, [], both).pass_time(5).add("retired", {"chips": ["GPU-b"], "reason": "sold"})
    cases["retired_and_measured"] = ("a chip with samples was never gone", log.pass_time(5).usage(10, [], both))
    log = started().usage(10, [], both).pass_time(5).add("retired", {"chips": ["GPU-b"], "reason": "sold"})
    log.pass_time(60).add("inventory", inventory(chip("GPU-a"), chip("GPU-b"))).pass_time(5).usage(10, [], both)
    cases["retired_and_listed"] = ("listed again, owed again", log)
    log = started().usage(10, [], both).pass_time(5).add("retired", {"chips": None, "reason": "scrapped"})
    cases["retired_host"] = ("a host that is retired", log)
    most = {**BUSY, "energy_mj": MAX_INT, "clock_mhz_max": MAX_INT}
    cases["saturation"] = ("sums stop at 2^53-1", started().usage(10, [], [most, BUSY]).usage(10, [], [most, BUSY]))
    cases["no_usage"] = ("an inventory and nothing more", started())

    for name, (what, log) in cases.items():
        want = fold(log.origin, log.entries)
        given: Json = {
            "origin": log.origin,
            "public_key": log.key.public.hex(),
            "entries": [each.decode() for each in log.lines],
        }
        until = log.time_us + 60_000_000
        silent = [
            {
                "chip": chip,
                "from_us": point.time_us,
                "to_us": until,
                "inventory_seq": point.inventory_seq,
                "cause": want.causes.get(chip, "silent"),
            }
            for chip, point in sorted(want.points.items())
            if chip not in want.retired
        ]
        given["silent_until_us"] = until
        yield name, good(what, "fold", given, {"totals": want.totals(), "silence": silent})


AREAS: dict[str, Callable[[], Iterator[tuple[str, Case]]]] = {
    "canonical": canonical_json,
    "identities": identities,
    "keys": keys,
    "notes": notes,
    "checkpoints": checkpoints,
    "cosignatures": cosignatures,
    "tiles": tiles,
    "entries": entries,
    "segments": segments,
    "key_rolls": key_rolls,
    "usage": usage,
    "public_keys": people.public_keys,
    "sshsig": people.sshsig,
    "statements": people.statements,
    "leases": leases.leases,
    "charging": lambda: charging.charging(Log, inventory, chip),
    "kinds": switch.kinds,
    "permits": switch.permits,
}


def build() -> dict[str, bytes]:
    """Every file, by its path below this folder."""
    files: dict[str, bytes] = {}
    for area, cases in AREAS.items():
        for name, case in cases():
            path = f"{area}/{name}.json"
            assert path not in files, path
            files[path] = (json.dumps(case, indent=1, ensure_ascii=False) + "\n").encode()
    return files


def main() -> None:
    files = build()
    for area in AREAS:
        for path in (HERE / area).glob("*.json"):
            if f"{area}/{path.name}" not in files:
                path.unlink()
    for name, data in files.items():
        path = HERE / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    main()
