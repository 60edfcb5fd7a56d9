"""Logs as one JSON object a line, with run, step and shard: by HARMON_LOG=json in the environment.

The environment and no option, so that every command and every child process does alike. Without it nothing is set up
here, and logs look as they always did.
"""

import json
import logging
import os
import sys
from datetime import UTC, datetime

from pipelines.errors import ConfigurationError
from pipelines.log_facts import facts_now

VARIABLE = "HARMON_LOG"


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time, level, logger, message, what it is about, and an error's traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        told: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **facts_now(),
        }
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return json.dumps(told)


def wants_json() -> bool:
    """Whether the environment asks for it. Raises ConfigurationError where it asks for something else."""
    asked = os.environ.get(VARIABLE, "text")
    if asked not in ("json", "text"):
        raise ConfigurationError(f"{VARIABLE}={asked}: say json or text, or unset it.")
    return asked == "json"


def set_up_logs() -> None:
    """Have the root logger write JSON on stderr where that is asked for; once a process."""
    if wants_json() and not any(isinstance(one.formatter, JsonLines) for one in logging.root.handlers):
        logging.root.addHandler(_handler())
        logging.root.setLevel(logging.INFO)


def set_up_prefect_logs() -> None:
    """Have Prefect write the same lines; called after its import, which puts its console at the root.

    Its handlers that send lines to its server stay.
    """
    if wants_json():
        for handler in [one for one in logging.root.handlers if hasattr(one, "console")]:
            logging.root.removeHandler(handler)
        set_up_logs()


def _handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    return handler
