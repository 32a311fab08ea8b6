"""Finds what a pass for several probes has written that each probe would have to write in turn."""

from __future__ import annotations

from lowland.executors import modes
from lowland.executors.containers import Containers, Moment
from lowland.executors.names import OWN, holds
from lowland.executors.registrations import Registrations


def take_back(containers: Containers, before: Moment, registered: int) -> list[str]:
    """Take back what was written to containers and names, and what was registered.

    Integers of modules count only in a pass that must leave no trace: what counts steps is told so by
    :func:`lowland.displaced`, and is written once for all probes.

    Args:
        containers: The containers and names.
        before: What they held before.
        registered: The length of ``Registrations.log`` before.

    Returns:
        The names of what was written, except integers of objects that are no modules, as for one probe.
    """
    found = [f"{type(m).__name__}.{key}" for m, _, key in Registrations.log[registered:]]
    modules = {m for m, _, _ in Registrations.log[registered:]}
    Registrations.undo(registered, modules)
    for (name, owner, always), earlier in before.names.changed():
        for key in dict.fromkeys([*earlier, *owner]):
            old, new = earlier.get(key), owner.get(key)
            number = always and modes.displaced() and isinstance(new, int) and isinstance(old, int)
            if old is not new and key not in OWN and (holds(old) or holds(new) or (number and old != new)):
                found.append(f"{name}.{key}".lstrip("."))
    written, containers.written = containers.written, {}
    containers.restore(before)
    found += containers.written.values()
    containers.written = written
    return found
