"""What a running verifier is made of, built once and handed to every route."""

from dataclasses import dataclass, field

from sqlalchemy import Engine

from keyturn_protocol.chips import chip_table
from keyturn_verifier.clock import Clock
from keyturn_verifier.computed import Computed
from keyturn_verifier.config import Config
from keyturn_verifier.ingest import Ingest
from keyturn_verifier.keyfiles import Keys
from keyturn_verifier.metrics import Metrics
from keyturn_verifier.rollup.keeper import Keeper
from keyturn_verifier.rollup.reader import Totals
from keyturn_verifier.rollup.sources import Sources
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
    webhooks: Webhooks
    metrics: Metrics = field(default_factory=Metrics)
    computed: Computed = field(default_factory=Computed)


def build(config: Config, engine: Engine, keys: Keys, clock: Clock) -> Service:
    """Put the parts together; nothing runs yet.

    :raises VerifierError: a webhook without its secret.
    """
    table, sources = chip_table(), Sources()
    return Service(
        config,
        engine,
        keys,
        clock,
        Ingest(config, engine, keys, clock),
        Totals(engine, table, sources),
        Keeper(engine, table, config.limits.rollup_interval_ms, sources),
        Webhooks(engine, config.webhooks, config.limits.webhook_days, clock),
    )
