"""Where SAMPa on two groups of devices is faster than SAM: the closed form of the difference, and its zeros.

B examples on N devices; a gradient of n examples takes ``g(n) = a + b n``, its backward ``w(n)``, which is g without
forward. An all-reduce over r devices takes n messages of ``m_r`` seconds, the exchange of two gradients n messages of x
seconds, and omega is the overlap. What does not hide of an all-reduce is::

    U_r(w) = max(m_r, n m_r - omega w)          U_1 = 0

From :mod:`lowland.planner.ideal`, without arithmetic and update::

    SAM on one device                    T_1  = 2 g(B)
    SAM, data parallel on N devices      T_dp = 2 (g(B / N) + U_N(w(B / N)))
    SAMPa on 2 x N / 2 devices           T_pa = g(2 B / N) + U_(N/2)(w(2 B / N)) + X
                                         X = max(x, n x - omega w(B)) if N = 2, else n x

Because ``2 g(B / N) = g(2 B / N) + a``, SAMPa is faster than data parallelism if and only if::

    a + 2 U_N(w(B / N))  >  U_(N/2)(w(2 B / N)) + X

Data parallelism pays the base of a pass and an all-reduce twice; SAMPa pays them once, the all-reduce over half of the
devices, and one exchange. If nothing hides, the batch drops out. Then on two devices the difference is a, three
latencies, and one gradient over the bandwidth, so SAMPa is always faster. With overlap it is still never slower there,
because the base of a backward is at most a. On more devices the exchange cannot hide while the all-reduces can, so
large batches favor data parallelism. SAMPa is faster than one device if and only if ``2 g(B) > T_pa``; on two devices
and without overlap, if ``a + b B > n x``. What SAMPa's arithmetic takes longer than SAM's counts against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from lowland.core import checks
from lowland.core.errors import ArgumentError
from lowland.planner.links import Link
from lowland.planner.setting import Setting

Rival: TypeAlias = Literal["data", "one"]
Quantity: TypeAlias = Literal["batch", "size", "latency", "bandwidth"]

FAR = 1e12  # beyond the last kink, zeros are looked for up to so many times its place
ROUNDING = 1e-12  # a difference that is smaller, as a fraction of the times, counts as 0


def meshes(setting: Setting) -> tuple[Setting, Setting, Setting]:
    """The settings of SAM on one device, of data-parallel SAM, and of SAMPa, with equally many examples in a step.

    Args:
        setting: Data-parallel SAM: ``probe=1``, and an even number of devices.

    Raises:
        ArgumentError: It has groups, or an odd number of devices.
    """
    if setting.probe != 1 or setting.data % 2:
        raise ArgumentError(
            f"setting must have probe=1 and an even number of devices, but has probe={setting.probe} and "
            f"data={setting.data}; it is that of data-parallel SAM"
        )
    whole = replace(setting, batch=setting.examples, per_device=None)
    return replace(whole, data=1), whole, replace(whole, probe=2, data=setting.data // 2)


def advantage(setting: Setting, rival: Rival = "data", extra: float = 0.0) -> float:
    """Seconds by which a step of SAMPa is shorter than one of its rival; negative if it is longer.

    Args:
        setting: Data-parallel SAM; see :func:`meshes`.
        rival: SAM on equally many devices, "data", or on one, "one".
        extra: Seconds that SAMPa's arithmetic takes longer than SAM's.

    Example:
        >>> from lowland.planner.line import Line
        >>> from lowland.planner.links import flat
        >>> lines = {"gradient": Line(0.25, 0.5), "forward": Line(0.0, 0.25), "network": flat(Link(0.5, 8.0))}
        >>> advantage(Setting(**lines, size=4, data=2, batch=4))  # 0.25 + 3 * 0.5 + 4 / 8
        2.25
    """
    checks.one_of("rival", rival, ("data", "one"))
    theirs, own = _both(setting, rival)
    return theirs - own - extra


def critical_base(setting: Setting, rival: Rival = "data", extra: float = 0.0) -> float:
    """The base of a gradient, a, above which SAMPa is faster, in seconds; below 0 if it always is.

    The backward stays as it is, so forward has the same change. The difference grows as a against both rivals.

    Args:
        setting: See :func:`advantage`.
        rival: See :func:`advantage`.
        extra: See :func:`advantage`.
    """
    return setting.gradient.base - advantage(setting, rival, extra)


def critical(
    setting: Setting,
    quantity: Quantity,
    rival: Rival = "data",
    *,
    extra: float = 0.0,
    link: Literal["within", "between"] = "within",
) -> list[float]:
    """The values of one quantity at which SAMPa and its rival take equally long, in ascending order.

    The difference is linear in each of the quantities between the values at which an exchange begins to hide
    completely, so its zeros are exact. It does not change the sign at any other value, up to 1e12 times the last of
    these values.

    Args:
        setting: Data-parallel SAM; its own value of the quantity does not count.
        quantity: "batch", in examples of a step on all devices; "size", the bytes of a gradient; "latency" or
            "bandwidth" of a link.
        rival: See :func:`advantage`.
        extra: See :func:`advantage`.
        link: Whose latency or bandwidth.

    Raises:
        ArgumentError: A gradient is shorter than its forward, or the size is asked for where it changes the number of
            messages.
    """
    checks.one_of("quantity", quantity, ("batch", "size", "latency", "bandwidth"))
    checks.one_of("link", link, ("within", "between"))
    if setting.gradient.base < setting.forward.base or setting.gradient.slope < setting.forward.slope:
        raise ArgumentError(
            f"gradient must take longer than forward, but is {setting.gradient} beside {setting.forward}; measure again"
        )
    if quantity == "size" and setting.bucket < float("inf"):
        raise ArgumentError(
            f"bucket must be infinite where the size varies, but is {setting.bucket!r}, which makes steps; leave it out"
        )
    setting = replace(setting, batch=setting.examples, per_device=None)
    changed = _changes(setting, quantity, link)

    def difference(x: float) -> float:
        theirs, own = _both(changed(x), rival)
        return 0.0 if abs(theirs - own - extra) < ROUNDING * (theirs + own) else theirs - own - extra

    found = _zeros(difference, _kinks(changed, quantity, rival))
    return sorted(1 / x for x in found if x) if quantity == "bandwidth" else found


def _changes(setting: Setting, quantity: Quantity, link: str) -> Callable[[float], Setting]:
    """The setting as a function of the quantity; of a bandwidth, of its inverse, in which times are linear."""
    old: Link = getattr(setting.network, link)

    def changed(x: float) -> Setting:
        if quantity == "batch":
            return replace(setting, batch=max(x, 1e-300))  # a setting has examples
        if quantity == "size":
            return replace(setting, size=x)
        new = Link(x, old.bandwidth) if quantity == "latency" else Link(old.latency, 1 / x if x else float("inf"))
        parts: dict[str, Any] = {link: new}
        return replace(setting, network=replace(setting.network, **parts))

    return changed


def _kinks(changed: Callable[[float], Setting], quantity: Quantity, rival: Rival) -> list[float]:
    """The values at which ``(n - 1) message = overlap * backward``, so that an exchange begins to hide completely."""
    unit = {"batch": 1.0, "size": 1.0, "latency": 1e-6, "bandwidth": 1e-9}[quantity]

    def room(number: int, gather: bool) -> Callable[[float], float]:
        def of(x: float) -> float:
            mesh = meshes(changed(x))[number]
            each = _message(mesh, gather=gather)
            return (mesh.messages - 1) * each - mesh.overlap * mesh.backward_seconds(1.0)

        return of

    rooms = [room(2, False), room(2, True), *([room(1, False)] if rival == "data" else [])]
    lines = [(of(0.0), (of(unit) - of(0.0)) / unit) for of in rooms]
    return [unit, *(-start / slope for start, slope in lines if slope and -start / slope > 0)]


def _zeros(of: Callable[[float], float], kinks: Iterable[float]) -> list[float]:
    """Where a function changes its sign that is linear between its kinks and beyond the last of them."""
    places = sorted({0.0, *kinks})
    points = [(x, of(x)) for x in (*places, FAR * places[-1])]
    found = []
    for n, (x, y) in enumerate(points):
        further, other = next(((u, v) for u, v in points[n + 1 :] if v), (x, y))
        if y * other < 0:
            touched = points[n + 1][0] < further  # the function is 0 at a kink in between
            found.append(points[n + 1][0] if touched else x + (further - x) * y / (y - other))
    return found


def _both(setting: Setting, rival: Rival) -> tuple[float, float]:
    """Seconds of a step of the rival and of SAMPa, without arithmetic and update."""
    one, data, pa = meshes(setting)
    backward = pa.backward_seconds(1.0)
    sampa = pa.gradient(pa.local) + _reduced(pa, backward) + _gathered(pa, backward)
    if rival == "one":
        return 2 * one.gradient(one.local), sampa
    return 2 * (data.gradient(data.local) + _reduced(data, data.backward_seconds(1.0))), sampa


def _message(mesh: Setting, *, gather: bool) -> float:
    """Seconds of one message of an exchange of two gradients, or of an all-reduce."""
    network, size = mesh.network, mesh.size / mesh.messages
    return network.all_gather(mesh.probes, size) if gather else network.all_reduce(mesh.replicas, size)


def _reduced(mesh: Setting, backward: float) -> float:
    """U: what an all-reduce of a gradient takes besides what hides."""
    each = _message(mesh, gather=False)
    return max(each, mesh.messages * each - mesh.overlap * backward)


def _gathered(mesh: Setting, backward: float) -> float:
    """X: what the exchange of two gradients takes besides what hides."""
    each = _message(mesh, gather=True)
    return max(each, mesh.messages * each - (mesh.overlap * backward if mesh.data == 1 else 0.0))
