"""Every cap and every domain tag, in one place.

Caps hold before parsing, and again after decompression. Sizes are in bytes unless the name says otherwise.
"""

from typing import Final

MAX_INT: Final = 2**53 - 1
"""The largest integer that every JSON reader keeps exactly (RFC 7493 §2.2)."""

MAX_TIME_US: Final = 2**52 - 1
"""Clocks in entries end here (UTC: September 2112), so that a time and a span after it is never over MAX_INT."""

ENTRY_BYTES: Final = 65_535
"""An entry or a leaf: the length prefix of a C2SP entry bundle has 16 bits."""
SEGMENT_ENTRIES: Final = 256
SEGMENT_BYTES: Final = 4 * 1024 * 1024
"""Decoded bytes of a segment, checkpoint included."""
UPLOAD_BYTES: Final = SEGMENT_BYTES + 65_536
"""Compressed bytes of an upload: zstd can grow what doesn't compress, by less than this."""

NOTE_BYTES: Final = 128 * 1024
"""16 ML-DSA-44 signatures take 52 kB."""
NOTE_SIGNATURES: Final = 32
KEY_NAME_BYTES: Final = 255
"""C2SP tlog-cosignature: names and origins have an 8-bit length in the ML-DSA message."""
PROOF_HASHES: Final = 64

DEPLOYMENT_CHARS: Final = 160
WORKLOAD_CHARS: Final = 200
TEXT_CHARS: Final = 1_024
"""Free text in an entry: a reason, a detail, a product name."""
CHIPS_PER_HOST: Final = 1_024
"""Metered units of one inventory, MIG instances included."""
CHIPS_OWED: Final = 4_096
"""Units of one log that are listed, or were and are neither back nor retired: what a verifier must remember."""

USAGE_SPAN_US: Final = 3_600_000_000
"""A usage entry lies in one UTC hour."""

BUNDLE_FILE_BYTES: Final = 1024**3
MANIFEST_BYTES: Final = 256 * 1024 * 1024
TRUST_BYTES: Final = 64 * 1024

STATEMENT_BYTES: Final = 256 * 1024
"""The payload of a statement by people, decoded."""
STATEMENT_SIGNATURES: Final = 64
SIGNATURE_BYTES: Final = 2_048
"""One of them, decoded. An SSH signature by a hardware key takes some 300 bytes."""
ENVELOPE_BYTES: Final = 544 * 1024
"""A statement with its signatures, in base64."""

LEAF_PREFIX: Final = b"\x00"
NODE_PREFIX: Final = b"\x01"
"""RFC 6962 §2.1 domain separation."""
COSIGNATURE_V1: Final = b"cosignature/v1\n"
SUBTREE_V1: Final = b"subtree/v1\n\0"
KEY_ROLL_V1: Final = b"keyturn/key-roll/v1\n"
PUBLIC_KEY_V1: Final = b"keyturn/public-key/v1\n"
SSHSIG_NAMESPACE: Final = b"keyturn"
"""The only namespace of SSH signatures that is read: what a key signed for git or a file counts for nothing here."""
COMMIT_V1: Final = b"keyturn/commit/v1\n"

PARTIES: Final = 256
PERSONS: Final = 1_024
KEYS_PER_PERSON: Final = 16
STEWARDS: Final = 64
"""Witnesses, and watchers, of a root."""
TIERS: Final = 16
ANCESTORS: Final = 1_024
SCOPE_ITEMS: Final = 4_096
"""Chips, and sites, that a scope names."""
ANSWERED: Final = 1_024
"""Events of a run that a proposal names: the last ones."""
OPENINGS_BYTES: Final = 256 * 1024
"""What the commitments of a run were made from."""
ARGUMENTS: Final = 4_096
"""Of a command line in an opening."""
SAID_BYTES: Final = 1024 * 1024
"""What one person says about one run, in bytes as a permit bundle has them; what stops a run may be more."""
ABOUT_BYTES: Final = 7 * 1024 * 1024
"""What all parties say about one run, in the same bytes, in equal shares."""
REQUESTER_BYTES: Final = 1024 * 1024
"""What the requester's party says beyond its share."""
SIGNED_BYTES: Final = 1024
"""What a statement counts beside its payload in base64, for each signature: none of the keys that sign takes more."""
VETO_BYTES: Final = 8 * 1024
"""A veto of an amendment, which takes no more."""
CALLS: Final = 64
"""Suspensions of one run by one person that are in force at once."""
PENDING: Final = 64
"""Requests of one person that nobody has decided yet."""
ASKED_US: Final = 86_400_000_000
"""Within this time, one person's requests are ASKED_BYTES at most, however they end: they are kept for good."""
ASKED_BYTES: Final = PENDING * STATEMENT_BYTES
"""In bytes of payload. As many of the largest ones as may be pending."""
ASKED_LEAST_BYTES: Final = 16 * 1024
"""What each request counts at least: 1,024 of them in a day."""
AUTHORITY_BYTES: Final = 6 * 1024 * 1024
"""All roots and policies there ever were, in the same bytes; half of it, where the next one is a policy."""
PERMIT_BUNDLE_BYTES: Final = 16 * 1024 * 1024
"""Every root and policy, and all that was said about one run."""
TOML_BYTES: Final = 1024 * 1024
"""A policy or a root as people write it."""
