"""Where things are: the checkout, and the shared material beside it."""

import os
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def shared_folder() -> Path:
    """Third-party vectors and traces: `KEYTURN_SHARED`, else the folder `shared` beside the checkout."""
    override = os.environ.get("KEYTURN_SHARED")
    return Path(override).resolve() if override else REPO.parent / "shared"
