"""What a step spends its time on, and what of a plan is in doubt, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from lowland.planner.predict import Prediction
from lowland.planner.survey import Survey


def why(one: Prediction, all_of_it: Sequence[Prediction]) -> str:
    """One sentence: what a step spends its time on, and what the fastest other mesh would take.

    Args:
        one: The prediction.
        all_of_it: The predictions of all layouts of the method.
    """
    parts = [
        ("passes", one.passes),
        ("other ranks that compute at the same time", one.busy),
        ("exchanges", one.exchange),
        ("arithmetic and update", one.own),
    ]
    told = [(name, time) for name, time in parts if name == "passes" or abs(time) >= 0.005 * one.seconds]
    saved = {"other ranks that compute at the same time": "passes that are faster there than alone"}
    spent = f"passes {told[0][1] * 1e3:.2f}" + "".join(
        f" + {name} {time * 1e3:.2f}" if time >= 0 else f" − {saved.get(name, name)} {-time * 1e3:.2f}"
        for name, time in told[1:]
    )
    others = [p for p in all_of_it if p.layout.mesh != one.layout.mesh]
    sentence = f"{one.layout}: {one.seconds * 1e3:.2f} ms = {spent}"
    if others:
        other = min(others, key=lambda p: p.seconds)
        sentence += f"; {other.layout} would take {other.seconds / one.seconds:.2f} times as long"
    return sentence


def doubts(surveys: Sequence[Survey]) -> list[str]:
    """What is known less well from surveys."""
    said = []
    if not all(each.float32 for each in surveys):
        said.append(
            "Bytes and memory are not modeled, because not all weights are float32: methods keep and send vectors of "
            "other types than the weights'."
        )
    untimed: dict[str, float] = {}
    for own in (own for each in surveys for own in each.own if own.untimed):
        untimed[own.method] = max(untimed.get(own.method, 0.0), own.untimed)
    return said + [
        f"{name}: the arithmetic of {100 * part:.0f} % of its steps is that of its most similar steps, because none of "
        "them was timed; give more seconds."
        for name, part in untimed.items()
    ]
