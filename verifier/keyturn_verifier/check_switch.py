"""Leases and openings as they are stored, against what nodes signed and what the start switch allows."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, select

from keyturn_protocol.canonical import parse
from keyturn_protocol.claims import Claims, Naming
from keyturn_protocol.entry_switch import LeaseBody
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import Origin, parse_origin
from keyturn_protocol.keys import parse_vkey
from keyturn_protocol.lease import open_lease, parse_lease
from keyturn_protocol.leases import Asked
from keyturn_protocol.leaves import Lease, NodeCheckpoint
from keyturn_protocol.openings import Opening, Value, commitment
from keyturn_protocol.switch import Switch
from keyturn_verifier.chip_claims import naming_by_size
from keyturn_verifier.db.rows import Row
from keyturn_verifier.db.switch_tables import lease_issued, lease_report, opening
from keyturn_verifier.db.tables import log
from keyturn_verifier.differences import Difference, by_key, plain
from keyturn_verifier.errors import DamagedError
from keyturn_verifier.lease_requests import Waiting, every

_ISSUED = ("leaf", "sha256", "kind", "time_us", "log_id", "seq", "run")


class Leases:
    """Every lease, issued once more. What nodes asked and reported is held against their segments elsewhere."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows = {row.leaf: row for row in connection.execute(select(lease_issued))}
        self._asked: dict[tuple[str, str], dict[tuple[int, int], Waiting]] = {}
        for one in every(connection):
            said = self._asked.setdefault((one.node_id, one.asked.body.nonce), {})
            said[one.log_id, one.asked.seq] = one
        self._reports: dict[int, list[Any]] = {}
        query = select(lease_report, log.c.origin).join(log, log.c.id == lease_report.c.log_id)
        for row in connection.execute(query.order_by(lease_report.c.seq)):
            self._reports.setdefault(row.leaf, []).append(row)
        self._expected: list[Row] = []
        self._claims = Claims()
        self._namings: dict[tuple[str, int], Naming] = {}
        for stored in connection.execute(select(log)).all():
            with suppress(DamagedError):  # named where its segments are decided about again
                found = naming_by_size(connection, stored)
                self._namings |= {(stored.origin, size): naming for size, naming in found.items()}

    def checkpoint(self, switch: Switch, leaf: NodeCheckpoint) -> Iterator[Difference]:
        """What a node reported counts from here on, and which chips it has."""
        heard = leaf.body
        naming = self._namings.pop((heard.origin, heard.size), None)
        self._claims.received(parse_origin(heard.origin), heard.receipt_s, naming)
        for row in self._reports.pop(leaf.index, []):
            try:
                body: LeaseBody = parse(row.body, LeaseBody)
                switch.report(Origin(row.origin), row.seq, body, leaf.index, leaf.time_us)
            except (ProtocolError, ValueError) as error:
                yield Difference(lease_report.name, row.origin, f"entry {row.seq}: {error}")

    def lease(self, switch: Switch, leaf: Lease) -> Iterator[Difference]:
        """A lease of the verifier's log: signed by its key, for what a node asked, and allowed."""
        row = self._rows.get(leaf.index)
        digest = bytes.fromhex(leaf.body.sha256)
        if row is None:
            self._expected.append((leaf.index, digest, leaf.body.kind, leaf.time_us, None, None, None))
            return  # by_key names it
        values: Row = (row.log_id, row.seq, row.run)
        try:
            signed = parse_lease(bytes(row.note))
            if signed.hash != digest or switch.standing is None:
                raise ProtocolError(Code.BAD_LEASE, "not the lease that the verifier's log names")
            lease = open_lease(bytes(row.note), parse_vkey(switch.standing.root.services.lease_vkey))
            said = self._asked.get((lease.node_id, lease.nonce))
            if said is None:
                raise ProtocolError(Code.BAD_LEASE, "it answers no entry that is here", got=lease.node_id)
            one = said.get((row.log_id, row.seq)) or next(iter(said.values()))
            values = (one.log_id, one.asked.seq, lease.run)
            self._take(switch, leaf, one.asked, bytes(row.note))
        except (ProtocolError, ValueError) as error:
            yield Difference(lease_issued.name, f"leaf {leaf.index}", f"note: {error}")
        self._expected.append((leaf.index, digest, leaf.body.kind, leaf.time_us, *values))

    def _take(self, switch: Switch, leaf: Lease, asked: Asked, note: bytes) -> None:
        lease = parse_lease(note).lease
        if asked.index >= leaf.index:
            raise ProtocolError(Code.BAD_LEASE, "asked for after it was issued", got=f"leaf {asked.index}")
        try:
            switch.check_lease(lease, asked, self._claims, leaf.index, leaf.time_us)
        finally:
            # Whoever was granted it may have used it.
            switch.grant(lease, leaf.body.sha256, asked, leaf.index, leaf.time_us)

    def rest(self, switch: Switch) -> Iterator[Difference]:
        """What no leaf names, and what commitments open to."""
        query = select(*(lease_issued.c[name] for name in _ISSUED))
        stored = [plain(row) for row in self._connection.execute(query)]
        yield from by_key(lease_issued, "leases", _ISSUED, 1, self._expected, stored)
        for row in self._connection.execute(select(opening)):
            where = f"run {row.run}"
            try:
                given = Opening(salt=bytes(row.salt).hex(), value=parse(bytes(row.value), Value))
                if row.run not in switch.runs or commitment(row.part, given) != bytes(row.commitment):
                    raise ProtocolError(Code.BAD_STATEMENT, f"{row.part} opens no commitment of a run")
            except (ProtocolError, ValueError, TypeError) as error:
                yield Difference(opening.name, where, str(error))
