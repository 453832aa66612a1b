"""What a running verifier is made of, built once and handed to every route."""

from dataclasses import dataclass

from sqlalchemy import Engine

from keyturn_verifier.clock import Clock
from keyturn_verifier.config import Config
from keyturn_verifier.ingest import Ingest
from keyturn_verifier.keyfiles import Keys


@dataclass(frozen=True, slots=True)
class Service:
    """One verifier process."""

    config: Config
    engine: Engine
    keys: Keys
    clock: Clock
    ingest: Ingest


def build(config: Config, engine: Engine, keys: Keys, clock: Clock) -> Service:
    """Put the parts together; nothing runs yet."""
    return Service(config, engine, keys, clock, Ingest(config, engine, keys, clock))
