"""The ledger of leases as a value: what must be kept of a fold to go on from there as if all of it had been folded.

    {"accounts":{"41d0…":{"keyturn.example.org/node/6f0c…/1":{"asked_seq":3,"charged_flop":"40000000000000",…}}},…}

``ledger_of(ledger_state(ledger))`` answers every question as ``ledger`` does, now and after any leaves that both take;
and one history has one state, byte for byte, however often it was kept on the way. Sums are not in it: they are made
again. This is the one module that reads the insides of :mod:`~keyturn_protocol.leases`, of
:mod:`~keyturn_protocol.allowance` and :mod:`~keyturn_protocol.holds`.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from keyturn_protocol.allowance import Free, Spending
from keyturn_protocol.canonical import Decimal, Record
from keyturn_protocol.holds import Holds
from keyturn_protocol.ids import Origin, parse_origin
from keyturn_protocol.lease import AllowanceName
from keyturn_protocol.lease_accounts import Account, Grant, Subject
from keyturn_protocol.leases import Ledger

RULES: Final = 1
"""Grows when the same leaves would give another state: what was kept by other rules is of no use."""


class AccountState(Record, frozen=True, kw_only=True):
    """One :class:`~keyturn_protocol.lease_accounts.Account`."""

    charged_flop: Decimal
    counted_flop: Decimal
    possible_flop: Decimal
    settled_us: int
    open: tuple[Grant, ...]
    sequence: int
    asked_seq: int
    final_seq: int
    heard_us: int
    written_off_tflop: Decimal


class HoldsState(Record, frozen=True, kw_only=True):
    """Chips at once of one run, or of an organisation under its allowance."""

    limit: int
    holders: dict[str, tuple[int, int]]
    ends: list[tuple[int, str]]
    """Sorted, which is a heap as well; a fold's own heap lies in memory as its past has it."""


class SpendingState(Record, frozen=True, kw_only=True):
    """What was taken of one allowance."""

    spent: list[tuple[int, Decimal]]
    outstanding: list[tuple[str, Origin, Decimal, int]]


class LedgerState(Record, frozen=True, kw_only=True):
    """All of a :class:`~keyturn_protocol.leases.Ledger`."""

    accounts: dict[str, dict[Origin, AccountState]]
    """By subject and log."""
    chips: dict[str, tuple[str, Origin]]
    logs: dict[Origin, list[str]]
    """Logs that their nodes didn't leave for others → subjects of which they have open leases."""
    holds: dict[str, HoldsState]
    names: dict[str, AllowanceName]
    organisations: dict[str, SpendingState]
    lineages: dict[str, SpendingState]
    nodes: dict[str, SpendingState]


def ledger_state(ledger: Ledger) -> LedgerState:
    """What to keep. It stays as it is when the ledger goes on."""
    free = ledger.free
    return LedgerState(
        accounts={
            subject: {origin: _account_state(one) for origin, one in found.accounts.items()}
            for subject, found in ledger.subjects.items()
        },
        chips=dict(ledger._chips),
        logs={origin: sorted(subjects) for logs in ledger._logs.values() for origin, subjects in logs.items()},
        holds={
            name: HoldsState(limit=one.limit, holders=dict(one._holders), ends=sorted(one._ends))
            for name, one in ledger._holds.items()
        },
        names=dict(free._names),
        organisations=_spending_states(free.organisations),
        lineages=_spending_states(free.lineages),
        nodes=_spending_states(free.nodes),
    )


def ledger_of(state: LedgerState) -> Ledger:
    """The ledger that a state was kept of.

    :raises ProtocolError: ``bad_identifier``: what is no log's name.
    """
    ledger = Ledger()
    for subject, accounts in state.accounts.items():
        found = ledger.subjects[subject] = Subject()
        for origin, kept in accounts.items():
            account = found.accounts[origin] = _account(kept)
            found.charged_tflop += account.counted_tflop
            found.committed_tflop += account.committed_tflop
            ledger._open.update({grant.hash: (subject, origin) for grant in account.open})
    ledger._chips = dict(state.chips)
    for origin, subjects in state.logs.items():
        ledger._logs.setdefault(parse_origin(origin).node_id, {})[origin] = set(subjects)
    ledger._holds = {name: _holds(one) for name, one in state.holds.items()}
    ledger.free = _free(state)
    return ledger


def _account_state(account: Account) -> AccountState:
    return AccountState(
        charged_flop=str(account.charged_flop),
        counted_flop=str(account.counted_flop),
        possible_flop=str(account.possible_flop),
        settled_us=account.settled_us,
        open=account.open,
        sequence=account.sequence,
        asked_seq=account.asked_seq,
        final_seq=account.final_seq,
        heard_us=account.heard_us,
        written_off_tflop=str(account.written_off_tflop),
    )


def _account(state: AccountState) -> Account:
    account = Account(
        charged_flop=int(state.charged_flop),
        counted_flop=int(state.counted_flop),
        possible_flop=int(state.possible_flop),
        settled_us=state.settled_us,
        sequence=state.sequence,
        asked_seq=state.asked_seq,
        final_seq=state.final_seq,
        heard_us=state.heard_us,
        written_off_tflop=int(state.written_off_tflop),
    )
    account.hold(state.open)
    return account


def _holds(state: HoldsState) -> Holds:
    holds = Holds()
    holds.limit, holds._holders, holds._ends = state.limit, dict(state.holders), list(state.ends)
    holds._sum = sum(chips for chips, _ in state.holders.values())
    return holds


def _free(state: LedgerState) -> Free:
    free = Free()
    free._names = dict(state.names)
    free.organisations = dict(_spendings(state.organisations))
    free.lineages = dict(_spendings(state.lineages))
    free.nodes = dict(_spendings(state.nodes))
    return free


def _spending_states(found: Mapping[str, Spending]) -> dict[str, SpendingState]:
    return {
        name: SpendingState(
            spent=[(hour_us, str(tflop)) for hour_us, tflop in one.spent],
            outstanding=[(*account, str(tflop), us) for account, (tflop, us) in sorted(one.outstanding.items())],
        )
        for name, one in found.items()
    }


def _spendings(states: Mapping[str, SpendingState]) -> Iterator[tuple[str, Spending]]:
    for name, one in states.items():
        spent = [(hour_us, int(tflop)) for hour_us, tflop in one.spent]
        outstanding = {(subject, origin): (int(tflop), us) for subject, origin, tflop, us in one.outstanding}
        yield name, Spending(spent, outstanding)
