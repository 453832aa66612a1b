"""The page for auditors without Keyturn: its blocks, and its SQL over a bundle."""

import re
from pathlib import Path

import duckdb

from tests.support.paths import REPO

PAGE = REPO / "docs" / "audit-by-hand.md"


def blocks(language: str) -> list[str]:
    """The page's blocks in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)


def recompute(folder: Path) -> tuple[duckdb.DuckDBPyConnection, list[tuple[object, ...]]]:
    """Run the page's SQL over ``folder/evidence``; returns the tables that it made, and all that its queries print."""
    connection = duckdb.connect(config={"threads": 2})
    connection.execute(f"SET file_search_path = '{folder}'")
    printed: list[tuple[object, ...]] = []
    for block in blocks("sql"):
        for statement in connection.extract_statements(block):
            result = connection.execute(statement)
            if statement.type is duckdb.StatementType.SELECT:
                printed += result.fetchall()
    return connection, printed
