"""The tar stream of a bundle: ordinary ustar, in one encoding."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.limits import BUNDLE_FILE_BYTES
from keyturn_protocol.tar import BLOCK, END, Member, format_member, parse_member

PATHS = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}(/[a-z0-9][a-z0-9._-]{0,20}){0,3}", fullmatch=True)


@given(PATHS, st.integers(0, BUNDLE_FILE_BYTES))
def test_a_header_is_parsed_as_it_was_written(path: str, size: int) -> None:
    assert parse_member(format_member(path, size)) == Member(path, size)


@given(st.dictionaries(PATHS, st.binary(max_size=1_500), max_size=4))
def test_other_programs_read_the_stream(files: dict[str, bytes]) -> None:
    stream = b"".join(format_member(p, len(d)) + d + bytes(Member(p, len(d)).padding) for p, d in files.items()) + END
    with tarfile.open(fileobj=io.BytesIO(stream), mode="r:") as archive:
        members = archive.getmembers()
        assert [m.name for m in members] == list(files)
        assert all(m.isreg() and m.mode == 0o644 for m in members)
        for member in members:
            content = archive.extractfile(member)
            assert content is not None
            assert content.read() == files[member.name]


@given(st.integers(0, BLOCK - 1), st.integers(1, 255))
def test_no_byte_of_a_header_can_be_another(at: int, flip: int) -> None:
    head = bytearray(format_member("logs/a/1/0-3.segment", 1_234))
    head[at] ^= flip
    with pytest.raises(ProtocolError):
        parse_member(bytes(head))


@pytest.mark.parametrize("path", ["", "/x", "../x", "a//b", "A", "a/", "x" * 101, "a\0b", "é"])
def test_a_path_that_no_bundle_has(path: str) -> None:
    with pytest.raises(ProtocolError):
        format_member(path, 1)


def test_links_folders_and_other_kinds_are_refused() -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE):
        info = tarfile.TarInfo("a")
        info.type = kind
        with pytest.raises(ProtocolError):
            parse_member(info.tobuf(tarfile.USTAR_FORMAT))


def test_zeros_are_the_end() -> None:
    assert parse_member(bytes(BLOCK)) is None
