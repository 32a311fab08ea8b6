"""Records that somebody has edited."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def edited(path: Path, entries: Any, place: Sequence[Any], value: Any) -> Path:
    """Write a record as JSON, with another value at one place."""
    made = json.loads(json.dumps(entries))
    inner = made
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path.write_text(json.dumps(made), encoding="utf-8")
    return path
