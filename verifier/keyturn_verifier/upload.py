"""From the bytes of a request to a segment, within limits whatever the bytes are."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from backports import zstd

from keyturn_protocol.api import ProblemCode
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.limits import SEGMENT_BYTES
from keyturn_protocol.receive import Head
from keyturn_protocol.segment import Segment, claimed_origin, node_key, parse_segment, verify_head
from keyturn_verifier.problems import Refusal

WINDOW_LOG: Final = 23
"""2^23 bytes: what a frame may ask its decoder to remember. A segment has less than 2^22 + 1."""
_OPTIONS: Final[dict[int, int]] = {zstd.DecompressionParameter.window_log_max: WINDOW_LOG}
_LEVEL: Final = 3


@dataclass(frozen=True, slots=True)
class Upload:
    """A parsed segment, its decoded bytes, and one zstd frame of them as they will be stored."""

    segment: Segment
    data: bytes
    frame: bytes

    @property
    def sha256(self) -> bytes:
        """Of the decoded bytes."""
        return sha256(self.data).digest()


def open_upload(body: bytes, *, plain: bool) -> Upload:
    """Decompress and parse.

    :param plain: the body isn't compressed.
    :raises Refusal: ``too_large`` or ``bad_segment``.
    """
    data = body if plain else decompress(body)
    try:
        segment = parse_segment(data)
    except ProtocolError as error:
        code = ProblemCode.TOO_LARGE if error.code is Code.TOO_LARGE else ProblemCode.BAD_SEGMENT
        raise Refusal(code, str(error)) from None
    return Upload(segment, data, compress(data) if plain else body)


def segment_size(body: bytes, *, plain: bool) -> int:
    """How many bytes the segment has, by what a frame's header says; as many as one may have where it doesn't say.

    Nothing is decompressed. A header that lies makes a frame that can't be decompressed.
    """
    if plain:
        return len(body)
    try:
        said: int | None = zstd.get_frame_info(body).decompressed_size
    except zstd.ZstdError:
        return len(body)
    return SEGMENT_BYTES if said is None else min(said, SEGMENT_BYTES)


def claimed_log(body: bytes, *, plain: bool) -> str | None:
    """The log that an upload says it is of, unverified; None for what can't be a segment.

    :raises Refusal: as :func:`decompress`.
    """
    return claimed_origin(body if plain else decompress(body))


def follows(body: bytes, head: Head, *, plain: bool) -> bool:
    """Whether the key of a log has signed an upload, and it begins where the log ends."""
    try:
        segment = parse_segment(body if plain else decompress(body))
        verify_head(segment, node_key(head.name.origin, head.public_key))
    except (Refusal, ProtocolError):
        return False
    return segment.start == head.size


def compress(data: bytes) -> bytes:
    """One zstd frame."""
    return zstd.compress(data, _LEVEL)


def decompress(frame: bytes) -> bytes:
    """The content of exactly one zstd frame; never makes more than ``SEGMENT_BYTES + 1`` bytes.

    :raises Refusal: ``too_large`` for more than a segment, ``bad_segment`` for anything else that isn't one frame.
    """
    decoder = zstd.ZstdDecompressor(options=_OPTIONS)
    try:
        data = decoder.decompress(frame, max_length=SEGMENT_BYTES + 1)
    except zstd.ZstdError as error:
        raise Refusal(ProblemCode.BAD_SEGMENT, f"not a zstd frame within limits: {error}") from None
    if len(data) > SEGMENT_BYTES:
        raise Refusal(ProblemCode.TOO_LARGE, f"decodes to more than {SEGMENT_BYTES} bytes")
    if not decoder.eof:
        raise Refusal(ProblemCode.BAD_SEGMENT, "the zstd frame is cut short")
    if decoder.unused_data:
        raise Refusal(ProblemCode.BAD_SEGMENT, f"{len(decoder.unused_data)} bytes after the zstd frame")
    return data
