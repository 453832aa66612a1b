"""``--db`` of the commands that open the database: another one than ``verifier.toml`` names."""

import argparse

from keyturn_verifier import config


def db_too(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Let a command take the database's URL."""
    parser.add_argument("--db", metavar="URL", help="the database, in place of the one that verifier.toml names")
    return parser


def settings_of(options: argparse.Namespace) -> config.Config:
    """The configuration of a command that :func:`db_too` was asked for."""
    return config.load(options.state, options.db)
