"""What the server says while it runs: lines for people, or JSON objects for programs, on stderr."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

FORMATS: Final = ("text", "json")


class JsonFormatter(logging.Formatter):
    """One object a line: ``{"level": "error", "logger": …, "message": …, "time": "2026-01-31T12:00:00.000000Z"}``."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
        fields: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info is not None:
            fields["trace"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=True, sort_keys=True)


def configure(form: str) -> None:
    """Send all logging to stderr in one of :data:`FORMATS`, whatever was configured before."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("keyturn-verifier: %(levelname)s: %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("uvicorn", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
