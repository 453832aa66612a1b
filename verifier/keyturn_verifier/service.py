"""What a running verifier is made of, built once and handed to every route."""

from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine

from keyturn_protocol.chips import chip_table
from keyturn_protocol.findings import Finding
from keyturn_verifier import translog
from keyturn_verifier.clock import Clock
from keyturn_verifier.computed import Computed
from keyturn_verifier.config import Config
from keyturn_verifier.ingest import Ingest
from keyturn_verifier.keyfiles import Keys
from keyturn_verifier.leasing import Leaser
from keyturn_verifier.metrics import Metrics
from keyturn_verifier.permits import Permits
from keyturn_verifier.rollup.keeper import Keeper
from keyturn_verifier.rollup.reader import Totals
from keyturn_verifier.rollup.sources import Sources
from keyturn_verifier.snapshot_keeper import SnapshotKeeper
from keyturn_verifier.switch_state import Counts, SwitchState
from keyturn_verifier.taking import Taker
from keyturn_verifier.watch import Watch
from keyturn_verifier.webhooks import Webhooks


@dataclass(frozen=True, slots=True)
class Service:
    """One verifier process."""

    config: Config
    engine: Engine
    keys: Keys
    clock: Clock
    ingest: Ingest
    totals: Totals
    keeper: Keeper
    snapshots: SnapshotKeeper
    webhooks: Webhooks
    switch: SwitchState
    taker: Taker
    leaser: Leaser
    watch: Watch
    permits: Permits
    metrics: Metrics = field(default_factory=Metrics)
    computed: Computed = field(default_factory=Computed)

    def about_leases(self, connection: Connection) -> list[Finding]:
        """What was wrong with what nodes said about their leases."""
        with self.switch.caught_up(connection, translog.head(connection).size):
            return [found for _, found in self.switch.findings()]

    def counts(self, connection: Connection) -> Counts:
        """How much there is of everything in the start switch.

        :raises DamagedError: what is stored can't be folded.
        """
        with self.switch.caught_up(connection, translog.head(connection).size):
            return self.switch.counts(self.clock())

    def said(self) -> None:
        """Something was said here: whoever waits for news of a run, or sends it on, looks at once."""
        self.webhooks.woken()
        self.watch.said()


def build(config: Config, engine: Engine, keys: Keys, clock: Clock) -> Service:
    """Put the parts together; nothing runs yet.

    :raises VerifierError: a webhook without its secret.
    """
    table, sources = chip_table(), Sources()
    switch = SwitchState(config.deployment)
    return Service(
        config,
        engine,
        keys,
        clock,
        Ingest(config, engine, keys, clock),
        Totals(engine, table, sources),
        Keeper(engine, table, config.limits.rollup_interval_ms, sources),
        SnapshotKeeper(engine, config.deployment),
        Webhooks(engine, config.webhooks, config.limits.webhook_days, clock),
        switch,
        Taker(config, engine, keys, switch, clock),
        Leaser(config, engine, keys, switch, table, clock),
        Watch(engine, switch, config.limits.waiting_hosts),
        Permits(config.deployment, engine, switch),
    )
