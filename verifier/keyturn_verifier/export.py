"""Evidence bundles: one consistent state of the database as files that a stranger can audit.

The export is itself a leaf of the verifier's log. To bind the two, the snapshot that everything is read from is
opened while the write lock is held, just before that leaf is appended: it holds every leaf but this one, and
nothing that a leaf doesn't cover.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sqlalchemy import Connection, Engine, select

from keyturn_protocol.api import Trust
from keyturn_protocol.bundle import (
    MANIFEST,
    TOTALS,
    VERIFIER_LOG,
    LogRef,
    Manifest,
    evidence_path,
    receipt_path,
    segment_path,
)
from keyturn_protocol.canonical import encode_record, fit_text
from keyturn_protocol.chips import chip_table
from keyturn_protocol.ids import Hash, LogName
from keyturn_protocol.leaves import ExportBody
from keyturn_protocol.limits import TEXT_CHARS
from keyturn_protocol.merkle import leaf_hash, root_of
from keyturn_protocol.segment import node_key
from keyturn_protocol.tiles import ENTRIES, TILE_WIDTH, Tile, encode_bundle, encode_hashes
from keyturn_protocol.usage import totals_json
from keyturn_verifier import keyfiles, queries, translog
from keyturn_verifier.clock import Clock
from keyturn_verifier.config import Config
from keyturn_verifier.db.engine import reading, writing
from keyturn_verifier.db.tables import evidence, segment
from keyturn_verifier.errors import UsageError, VerifierError
from keyturn_verifier.problems import Refusal
from keyturn_verifier.upload import decompress


def export(settings: Config, engine: Engine, out: Path, case: str | None, clock: Clock) -> Path:
    """Write a bundle to ``out``, which must not exist; while the server runs. Returns ``out``.

    :raises VerifierError: ``out`` is there, or what is stored is damaged; no folder is left then.
    """
    if out.exists() or out.is_symlink():
        raise VerifierError(f"{out} is there already", hint="an export never overwrites; name a new folder")
    if case is not None and case != fit_text(case):
        raise UsageError(f"--case: at most {TEXT_CHARS} characters on one line, none of them a control character")
    keys = keyfiles.load(settings.state, settings.deployment)
    out.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".keyturn-export-", dir=out.parent))
    try:
        with reading(engine) as snapshot:
            mark = _mark(engine, snapshot, keys.log, case, clock)
            files = _Files(made)
            refs = _logs(files, snapshot)
            _evidence(files, snapshot)
            _verifier_log(files, snapshot, mark)
            names = queries.origins(snapshot)
            rows, gaps = queries.usage_rows(snapshot, names), queries.stored_gaps(snapshot, names)
            files.write(TOTALS, totals_json(rows, gaps))
        manifest = _manifest(settings, keys.trust(settings.deployment), mark, refs, files)
        (made / MANIFEST).write_bytes(encode_record(manifest))
        made.chmod(0o755)
        made.rename(out)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return out


@dataclass(frozen=True, slots=True)
class _Mark:
    """The leaf that says that this export was made, and the checkpoint that covers it."""

    index: int
    leaf: bytes
    body: ExportBody
    checkpoint: bytes


@dataclass(slots=True)
class _Files:
    """Writes files below a folder and remembers their hashes."""

    folder: Path
    hashes: dict[str, str] = field(default_factory=dict)

    def write(self, path: str, data: bytes) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        self.hashes[path] = sha256(data).hexdigest()


def _mark(engine: Engine, snapshot: Connection, key: keyfiles.SigningKey, case: str | None, clock: Clock) -> _Mark:
    """Fix the state to export: open the snapshot under the write lock, then append the export's own leaf."""
    with writing(engine) as connection:
        before = translog.head(connection)
        # The first read opens the snapshot; nobody can have written since the lock was taken.
        if translog.head(snapshot).size != before.size:
            raise VerifierError("the database changed under the write lock")
        body = ExportBody(
            until_us=max(clock(), before.time_us),
            case=case,
            exporter=f"keyturn-verifier {_version()}",
            root_sha256=None,
            chip_table=chip_table().version,
            left_out=[],
        )
        translog.append(connection, [body], body.until_us)
        checkpoint = translog.publish(connection, key)
        (leaf,) = translog.leaves(connection, before.size, 1)
    return _Mark(before.size, leaf, body, checkpoint)


def _logs(files: _Files, snapshot: Connection) -> list[LogRef]:
    """Every log's segments as they were received, with their receipts."""
    refs = []
    for log_id, name, row in queries.logs(snapshot):
        size = _segments(files, snapshot, log_id, name)
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
    return refs


def _segments(files: _Files, snapshot: Connection, log_id: int, name: LogName) -> int:
    """One log's segments; returns where they end."""
    query = (
        select(segment.c.start, segment.c.end, segment.c.sha256, segment.c.receipt, segment.c.body)
        .where(segment.c.log_id == log_id)
        .order_by(segment.c.start)
    )
    end = 0
    for row in snapshot.execute(query.execution_options(yield_per=64)):
        data = _decoded(f"{name.origin} {row.start} … {row.end - 1}", row.body, row.sha256)
        path = segment_path(name, row.start, row.end)
        files.write(path, data)
        files.write(receipt_path(path), row.receipt)
        end = row.end
    return end


def _evidence(files: _Files, snapshot: Connection) -> None:
    for row in snapshot.execute(select(evidence.c.sha256, evidence.c.body)):
        name = row.sha256.hex()
        files.write(evidence_path(name), _decoded(f"evidence {name}", row.body, row.sha256))


def _decoded(what: str, frame: bytes, digest: bytes) -> bytes:
    """The bytes that were received; a damaged disk is found here, and not by the auditor."""
    try:
        data = decompress(frame)
    except Refusal as error:
        raise VerifierError(f"{what}: the stored segment is damaged: {error}") from None
    if sha256(data).digest() != digest:
        raise VerifierError(f"{what}: the stored segment is damaged: its hash differs")
    return data


def _verifier_log(files: _Files, snapshot: Connection, mark: _Mark) -> None:
    """The checkpoint, and all tiles of its size, computed from the leaves."""
    files.write(VERIFIER_LOG + "checkpoint", mark.checkpoint)
    hashes: list[Hash] = []
    for index, bundle in enumerate(_bundles(snapshot, mark)):
        files.write(VERIFIER_LOG + Tile(ENTRIES, index, len(bundle)).path, encode_bundle(bundle))
        hashes += map(leaf_hash, bundle)
    level = 0
    while hashes:
        full = len(hashes) // TILE_WIDTH
        for first in range(0, len(hashes), TILE_WIDTH):
            tile = hashes[first : first + TILE_WIDTH]
            files.write(VERIFIER_LOG + Tile(level, first // TILE_WIDTH, len(tile)).path, encode_hashes(tile))
        hashes = [root_of(hashes[i * TILE_WIDTH : (i + 1) * TILE_WIDTH]) for i in range(full)]
        level += 1


def _bundles(snapshot: Connection, mark: _Mark) -> Iterator[Sequence[bytes]]:
    """The leaves of the snapshot and the export's own, 256 at a time."""
    for start in range(0, mark.index + 1, TILE_WIDTH):
        bundle = translog.leaves(snapshot, start, min(TILE_WIDTH, mark.index - start))
        yield [*bundle, mark.leaf] if start + len(bundle) == mark.index and len(bundle) < TILE_WIDTH else bundle


def _manifest(settings: Config, trust: Trust, mark: _Mark, refs: list[LogRef], files: _Files) -> Manifest:
    return Manifest(
        v=1,
        deployment=settings.deployment,
        export_index=mark.index,
        export=mark.body,
        verifier=trust,
        logs=refs,
        files=files.hashes,
    )


def _version() -> str:
    try:
        return version("keyturn")
    except PackageNotFoundError:
        return "not installed"
