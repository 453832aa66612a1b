"""What the commitments of runs open to, as far as somebody has given it. Nobody is believed: a value opens what was
signed, or isn't taken."""

from collections.abc import Iterator, Mapping

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from keyturn_protocol.canonical import encode, parse
from keyturn_protocol.lifecycle import Run
from keyturn_protocol.openings import Opening, Openings, Value, commitment, format_openings
from keyturn_protocol.runs import Amend
from keyturn_protocol.values import SPEC_PARTS, SpecPart
from keyturn_verifier.db.engine import is_postgres
from keyturn_verifier.db.switch_tables import opening
from keyturn_verifier.errors import stored

Spec = Mapping[SpecPart, str | None]


def specs(run: Run) -> Iterator[Spec]:
    """Every spec of a run that somebody may want to know: as asked for, as it is, as it is proposed to be."""
    yield run.request.spec
    yield run.spec
    yield from (p.statement.spec for p in run.proposals.values() if isinstance(p.statement, Amend))


def fitting(given: Openings, run: Run) -> SpecPart | None:
    """The first part that opens no commitment of a run; None if all do."""
    known = list(specs(run))
    for part, one in given.parts.items():
        digest = commitment(part, one).hex()
        if not any(spec.get(part) == digest for spec in known):
            return part
    return None


def keep(connection: Connection, run: str, given: Openings) -> None:
    """Store what was given; in a write transaction. The same again changes nothing."""
    make = postgresql.insert if is_postgres(connection) else sqlite.insert
    rows = [
        {
            "run": run,
            "commitment": commitment(part, one),
            "part": part,
            "salt": bytes.fromhex(one.salt),
            "value": encode(one.value),
        }
        for part, one in given.parts.items()
    ]
    if rows:
        connection.execute(make(opening).on_conflict_do_nothing(), rows)


@stored
def of_spec(connection: Connection, run: str, spec: Spec) -> bytes | None:
    """The openings of a spec, as far as they were given; None if none was."""
    rows = {bytes(row.commitment).hex(): row for row in connection.execute(select(opening).where(opening.c.run == run))}
    parts: dict[SpecPart, Opening] = {}
    for part in SPEC_PARTS:
        row = rows.get(spec.get(part) or "")
        if row is not None and row.part == part:
            parts[part] = Opening(salt=row.salt.hex(), value=parse(row.value, Value))
    return format_openings(Openings(v=1, parts=parts)) if parts else None
