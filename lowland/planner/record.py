"""Surveys as JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lowland.planner.asks import Pass, Step
from lowland.planner.layout import Layout
from lowland.planner.line import Line
from lowland.planner.measure import Own, Rates
from lowland.planner.survey import Measured, Survey


def to_json(survey: Survey) -> dict[str, Any]:
    """A survey as dictionaries, lists, numbers and text."""
    return asdict(survey)


def from_json(data: Mapping[str, Any]) -> Survey:
    """The survey that :func:`to_json` has given."""
    return Survey(
        ranks=data["ranks"],
        examples=data["examples"],
        parameters=data["parameters"],
        quiet=_rates(data["quiet"]),
        busy=_rates(data["busy"]),
        rates=[_rates(each) for each in data["rates"]],
        own=[_own(each) for each in data["own"]],
        cuttable=data["cuttable"],
        fewest=data.get("fewest", 1),
        float32=data.get("float32", True),
        measured=[Measured(**{**each, "layout": Layout(**each["layout"])}) for each in data["measured"]],
    )


def _rates(data: Mapping[str, Any]) -> Rates:
    lines, collectives = (
        {kind: Line(**line) for kind, line in data[name].items()} for name in ("lines", "collectives")
    )
    return Rates(**{**data, "layout": Layout(**data["layout"]), "lines": lines, "collectives": collectives})


def _own(data: Mapping[str, Any]) -> Own:
    parts = {int(number): _steps(each) for number, each in data.get("parts", {}).items()}
    return Own(**{**data, "steps": _steps(data["steps"]), "seconds": tuple(data["seconds"]), "parts": parts})


def _steps(data: Any) -> tuple[Step, ...]:
    return tuple(tuple(tuple(Pass(*one) for one in ask) for ask in step) for step in data)
