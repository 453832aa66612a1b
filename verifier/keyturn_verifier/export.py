"""Evidence bundles: one consistent state of the database as files that a stranger can audit.

The export is itself a leaf of the verifier's log. To bind the two, the snapshot that everything is read from is
opened while the write lock is held, just before that leaf is appended: it holds every leaf but this one, and
nothing that a leaf doesn't cover.
"""

import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Connection, Engine, select

from keyturn_protocol.api import Trust
from keyturn_protocol.bundle import (
    MANIFEST,
    TOTALS,
    VERIFIER_LOG,
    LogRef,
    Manifest,
    evidence_path,
    lease_path,
    receipt_path,
    segment_path,
    statement_path,
)
from keyturn_protocol.canonical import encode_record, fit_text
from keyturn_protocol.chips import chip_table
from keyturn_protocol.ids import Hash, LogName
from keyturn_protocol.leaves import ExportBody
from keyturn_protocol.limits import TEXT_CHARS
from keyturn_protocol.merkle import leaf_hash, root_of
from keyturn_protocol.segment import node_key
from keyturn_protocol.tiles import ENTRIES, TILE_WIDTH, Tile, encode_bundle, encode_hashes
from keyturn_verifier import keyfiles, queries, translog
from keyturn_verifier.clock import Clock
from keyturn_verifier.config import Config
from keyturn_verifier.db.engine import reading, writing
from keyturn_verifier.db.statement_tables import statement
from keyturn_verifier.db.switch_tables import lease_issued
from keyturn_verifier.db.tables import evidence, segment, segment_body
from keyturn_verifier.errors import UsageError, VerifierError, stored
from keyturn_verifier.export_totals import TotalsFile
from keyturn_verifier.problems import Refusal
from keyturn_verifier.upload import decompress


class File(NamedTuple):
    """One file of a bundle; its chunks are there until the next file is asked for."""

    path: str
    size: int
    chunks: Iterable[bytes]

    @classmethod
    def of(cls, path: str, data: bytes) -> "File":
        """A file that is in memory."""
        return cls(path, len(data), (data,))


def export(settings: Config, engine: Engine, out: Path, case: str | None, clock: Clock) -> Path:
    """Write a bundle to ``out``, which must not exist; while the server runs. Returns ``out``.

    :raises VerifierError: ``out`` is there, or what is stored is damaged; no folder is left then.
    """
    if out.exists() or out.is_symlink():
        raise VerifierError(f"{out} is there already", hint="an export never overwrites; name a new folder")
    keys = keyfiles.load(settings.state, settings.deployment)
    out.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".keyturn-export-", dir=out.parent))
    try:
        for file in bundle_files(settings, engine, keys, case, clock):
            target = made / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out_file:
                out_file.writelines(file.chunks)
        made.chmod(0o755)
        made.rename(out)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return out


def bundle_files(
    settings: Config, engine: Engine, keys: keyfiles.Keys, case: str | None, clock: Clock
) -> Generator[File, None, None]:
    """Every file of a new bundle, one at a time, the manifest last: without it, what came before is no bundle.

    The snapshot stays open until the end or ``close()``.

    :raises UsageError: a case that can't be written down.
    :raises VerifierError: what is stored is damaged.
    """
    if case is not None and case != fit_text(case):
        raise UsageError(f"--case: at most {TEXT_CHARS} characters on one line, none of them a control character")
    hashes: dict[str, str] = {}
    refs: list[LogRef] = []
    with reading(engine) as snapshot:
        mark = _mark(engine, snapshot, keys.log, case, clock)
        for path, data in _parts(snapshot, refs, mark):
            hashes[path] = sha256(data).hexdigest()
            yield File.of(path, data)
        totals = _totals(snapshot)
    with totals:
        hashes[TOTALS] = totals.sha256
        yield File(TOTALS, totals.size, totals.chunks())
    manifest = encode_record(_manifest(settings, keys.trust(settings.deployment), mark, refs, hashes))
    yield File.of(MANIFEST, manifest)


@stored
def _totals(snapshot: Connection) -> TotalsFile:
    return TotalsFile(snapshot)


@dataclass(frozen=True, slots=True)
class _Mark:
    """The leaf that says that this export was made, and the checkpoint that covers it."""

    index: int
    leaf: bytes
    body: ExportBody
    checkpoint: bytes


def _mark(engine: Engine, snapshot: Connection, key: keyfiles.SigningKey, case: str | None, clock: Clock) -> _Mark:
    """Fix the state to export: open the snapshot under the write lock, then append the export's own leaf."""
    with writing(engine) as connection:
        before = translog.lock(connection)
        # The first read opens the snapshot; nobody can have written since the lock was taken.
        if translog.head(snapshot).size != before.size:
            raise VerifierError("the database changed under the write lock")
        body = ExportBody(
            until_us=max(clock(), before.time_us),
            case=case,
            exporter=f"keyturn-verifier {_version()}",
            root_sha256=_root(connection),
            chip_table=chip_table().version,
            left_out=[],
        )
        translog.append(connection, [body], body.until_us)
        checkpoint = translog.publish(connection, key, body.until_us)
        (leaf,) = translog.leaves(connection, before.size, 1)
    return _Mark(before.size, leaf, body, checkpoint)


def _logs(snapshot: Connection, refs: list[LogRef]) -> Iterator[tuple[str, bytes]]:
    """Every log's segments as they were received, with their receipts; ``refs`` gets a line for each log."""
    for log_id, name, row in queries.logs(snapshot):
        size = 0
        for start, end, data, receipt in _segments(snapshot, log_id, name):
            path = segment_path(name, start, end)
            yield path, data
            yield receipt_path(path), receipt
            size = end
        if size != row.size:
            raise VerifierError(f"{name.origin}: {size} entries are stored where the head says {row.size}")
        refs.append(
            LogRef(
                origin=name.origin,
                vkey=str(node_key(name.origin, row.public_key)),
                organisation=row.organisation,
                site=row.site,
                size=size,
            )
        )


def _segments(snapshot: Connection, log_id: int, name: LogName) -> Iterator[tuple[int, int, bytes, bytes]]:
    """One log's segments in order: start, end, decoded bytes, receipt."""
    query = (
        select(segment.c.start, segment.c.end, segment.c.sha256, segment.c.receipt, segment_body.c.body)
        .join(segment_body, (segment_body.c.log_id == segment.c.log_id) & (segment_body.c.start == segment.c.start))
        .where(segment.c.log_id == log_id)
        .order_by(segment.c.start)
    )
    for row in snapshot.execute(query.execution_options(yield_per=64)):
        yield (
            row.start,
            row.end,
            _decoded(f"{name.origin} {row.start} … {row.end - 1}", row.body, row.sha256),
            row.receipt,
        )


def _parts(snapshot: Connection, refs: list[LogRef], mark: _Mark) -> Iterator[tuple[str, bytes]]:
    """Everything but totals and manifest."""
    return chain(
        _logs(snapshot, refs),
        _evidence(snapshot),
        _statements(snapshot),
        _leases(snapshot),
        _verifier_log(snapshot, mark),
    )


def _statements(snapshot: Connection) -> Iterator[tuple[str, bytes]]:
    for row in snapshot.execute(select(statement.c.sha256, statement.c.envelope).execution_options(yield_per=64)):
        yield statement_path(row.sha256.hex()), row.envelope


def _root(connection: Connection) -> str | None:
    """The newest root: they come into force in the order of their leaves."""
    query = select(statement.c.sha256).where(statement.c.kind == "root").order_by(statement.c.leaf.desc()).limit(1)
    newest = connection.execute(query).scalar()
    return None if newest is None else bytes(newest).hex()


def _leases(snapshot: Connection) -> Iterator[tuple[str, bytes]]:
    query = select(lease_issued.c.sha256, lease_issued.c.note).execution_options(yield_per=256)
    for row in snapshot.execute(query):
        yield lease_path(row.sha256.hex()), row.note


def _evidence(snapshot: Connection) -> Iterator[tuple[str, bytes]]:
    query = select(evidence.c.sha256, evidence.c.body).execution_options(yield_per=16)
    for row in snapshot.execute(query):
        name = row.sha256.hex()
        yield evidence_path(name), _decoded(f"evidence {name}", row.body, row.sha256)


def _decoded(what: str, frame: bytes, digest: bytes) -> bytes:
    """The bytes that were received; a damaged disk is found here, and not by the auditor."""
    try:
        data = decompress(frame)
    except Refusal as error:
        raise VerifierError(f"{what}: the stored segment is damaged: {error}") from None
    if sha256(data).digest() != digest:
        raise VerifierError(f"{what}: the stored segment is damaged: its hash differs")
    return data


def _verifier_log(snapshot: Connection, mark: _Mark) -> Iterator[tuple[str, bytes]]:
    """The checkpoint, and all tiles of its size, computed from the leaves."""
    yield VERIFIER_LOG + "checkpoint", mark.checkpoint
    hashes: list[Hash] = []
    for index, bundle in enumerate(_bundles(snapshot, mark)):
        yield VERIFIER_LOG + Tile(ENTRIES, index, len(bundle)).path, encode_bundle(bundle)
        hashes += map(leaf_hash, bundle)
    level = 0
    while hashes:
        full = len(hashes) // TILE_WIDTH
        for first in range(0, len(hashes), TILE_WIDTH):
            tile = hashes[first : first + TILE_WIDTH]
            yield VERIFIER_LOG + Tile(level, first // TILE_WIDTH, len(tile)).path, encode_hashes(tile)
        hashes = [root_of(hashes[i * TILE_WIDTH : (i + 1) * TILE_WIDTH]) for i in range(full)]
        level += 1


def _bundles(snapshot: Connection, mark: _Mark) -> Iterator[Sequence[bytes]]:
    """The leaves of the snapshot and the export's own, 256 at a time."""
    for start in range(0, mark.index + 1, TILE_WIDTH):
        bundle = translog.leaves(snapshot, start, min(TILE_WIDTH, mark.index - start))
        yield [*bundle, mark.leaf] if start + len(bundle) == mark.index and len(bundle) < TILE_WIDTH else bundle


def _manifest(settings: Config, trust: Trust, mark: _Mark, refs: list[LogRef], hashes: dict[str, str]) -> Manifest:
    return Manifest(
        v=1,
        deployment=settings.deployment,
        export_index=mark.index,
        export=mark.body,
        verifier=trust,
        logs=sorted(refs, key=lambda ref: ref.origin),  # "…/10" before "…/2", as the format says
        files=hashes,
    )


def _version() -> str:
    try:
        return version("keyturn")
    except PackageNotFoundError:
        return "not installed"
