"""Optional parts: a tool, a folder or a service that a machine may lack.

A test that needs one says so with `require`. Where the part is missing the test is skipped and the reason
printed; where `KEYTURN_REQUIRE` names the part (a comma list, as CI sets it) the same test fails instead, so
that a part can't go missing unseen.
"""

import os
import shutil

import pytest


def required_parts() -> frozenset[str]:
    """The names listed in `KEYTURN_REQUIRE`."""
    return frozenset(name.strip() for name in os.environ.get("KEYTURN_REQUIRE", "").split(",") if name.strip())


def require(name: str, available: bool, reason: str) -> None:
    """Goes on when `available`; otherwise skips, or fails where `KEYTURN_REQUIRE` lists `name`."""
    if available:
        return
    if name in required_parts():
        pytest.fail(f"{name} is required here (KEYTURN_REQUIRE) and missing: {reason}", pytrace=False)
    pytest.skip(f"{name}: {reason}")


def require_program(name: str) -> str:
    """The path of a program on PATH, under the rules of `require`."""
    path = shutil.which(name)
    require(name, path is not None, f"no program called {name} on PATH")
    assert path is not None
    return path
