from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowland.bench import launches
from lowland.core.errors import UnknownNameError
from lowland.methods import METHODS
from lowland.planner.launches import Launches

# At most so many launches has the step with most of them, and the step with fewest. A faster method lowers its bound.
BOUNDS: dict[tuple[str, str], tuple[int, int]] = {
    ("plain", "SGD"): (3, 3),
    ("sam", "SGD"): (25, 25),
    ("sampa", "SGD"): (60, 60),
    ("sampa", "AdamW"): (90, 90),
    ("looksam", "SGD"): (60, 20),
    ("micro-sam", "SGD"): (120, 120),
    ("vsam", "SGD"): (40, 5),
    ("arsam", "SGD"): (40, 5),
    ("ausam", "SGD"): (69, 69),
    ("sl-sam", "SGD"): (30, 30),
    ("k-sam", "SGD"): (29, 29),
    ("esam", "SGD"): (39, 39),
    ("friendly-sam", "SGD"): (60, 60),
    ("stable-sam", "SGD"): (33, 33),
    ("adasam", "Adam"): (22, 22),
    ("asam", "SGD"): (30, 30),
    ("gsam", "SGD"): (60, 60),
    ("wsam", "SGD"): (60, 60),
    ("momentum-sam", "SGD"): (23, 23),
    ("momentum-sam", "AdamW"): (23, 23),
    ("bisam", "SGD"): (34, 34),
    ("functional-sam", "SGD"): (26, 26),
    ("le-sam", "SGD"): (33, 33),
    ("ae-sam", "SGD"): (25, 6),
    ("rst", "SGD"): (22, 3),
    ("async-sam", "SGD"): (30, 30),
    ("late", "SGD"): (22, 22),
    ("sam-on", "SGD"): (23, 23),
    ("unified-sam", "SGD"): (29, 29),
    ("vasso", "SGD"): (60, 60),
    ("xsam", "SGD"): (530, 80),  # a search of 21 forward passes
    ("logits-sam", "SGD"): (23, 23),
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """A case of two linear layers, which are four tensors."""

    def case() -> tuple[nn.Module, list[Any]]:
        chain, batches = launches._chain()
        return nn.Sequential(*chain.layers[:2]), batches  # type: ignore[index, misc]

    monkeypatch.setitem(launches.CASES, "tiny", case)
    return "tiny"


def _count(case: str, method: str, optimizer: str = "SGD") -> launches.Count:
    counts = [launches.count(case, launches.text_of(method), base) for base in launches.bases_of(method)]
    return next(c for c in counts if c.optimizer == optimizer)


@pytest.mark.parametrize(("method", "optimizer"), BOUNDS)
def test_no_method_launches_more_than_this(method: str, optimizer: str) -> None:
    # 160-tensors has no normalization layer, which SAM-ON needs
    counted = _count("resnet56" if method == "sam-on" else "160-tensors", method, optimizer)
    assert counted.most <= BOUNDS[method, optimizer][0]
    assert counted.least <= BOUNDS[method, optimizer][1]


def test_every_method_has_a_bound() -> None:
    params = [nn.Parameter(torch.zeros(1))]
    counted = {(name, type(base(params)).__name__) for name in METHODS for base in launches.bases_of(name)}
    assert counted == BOUNDS.keys()


def test_a_step_of_sam_by_hand(tiny: str) -> None:
    a_pass = ["mean", "ones_like", "cat"]  # of the losses, backward's start, the losses of all micro-batches
    norm = ["_foreach_norm", "stack", "linalg_vector_norm"]
    inverse = ["add", "reciprocal_", "ne", "mul_"]  # 1 / (norm + TINY), or 0
    ascent = ["mul", "_foreach_mul_"]  # rho times it; the gradient becomes the displacement
    displaced = ["_foreach_clone", "_foreach_add_", "_foreach_copy_"]  # save, move, restore
    expected = sorted([*a_pass, *norm, *inverse, *ascent, *displaced, *a_pass])
    counted = _count(tiny, "sam")
    assert sorted(name for name, number in counted.calls.items() for _ in range(number)) == expected
    assert (counted.launches, counted.most, counted.least, counted.passes) == (18, 18, 18, 2)
    # The norm reads P. Scaling reads and writes it, as saving and restoring do. Moving reads two P and writes one.
    assert counted.vectors == pytest.approx(1 + 2 + 2 + 3 + 2, abs=0.1)

    # On 160 tensors the norm joins them by two calls, and each of the four list operations launches twice.
    assert _count("160-tensors", "sam").most == 18 - len(norm) + (2 + 1) + 4


def test_a_method_without_arithmetic_moves_nothing(tiny: str) -> None:
    counted = _count(tiny, "plain")
    assert counted.calls == {"mean": 1, "ones_like": 1, "cat": 1}
    # bytes: 8 losses and their mean, the mean and its gradient, 8 losses twice
    assert counted.bytes == 4 * (9 + 2 + 16)


def test_a_cycle_has_a_dearest_and_a_cheapest_step(tiny: str) -> None:
    counted = _count(tiny, "looksam")
    assert counted.launches == (counted.most + 4 * counted.least) / 5
    assert counted.most == sum(counted.calls.values())
    assert counted.passes == 6 / 5


def test_two_counts_are_equal(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # AE-SAM decides by its gradients, RST and SL-SAM draw random numbers, SAMPa has two base optimizers.
    chosen = ("ae-sam", "rst", "sl-sam", "sampa", "sam-on")
    monkeypatch.setattr(launches, "METHODS", {name: METHODS[name] for name in chosen})
    ticks: list[int] = []
    first = launches.measure(tiny, tick=lambda: ticks.append(1))
    torch.manual_seed(1)  # the state of the generator outside has no influence
    assert launches.measure(tiny) == first
    assert len(ticks) == len(chosen)
    assert (first["case"], first["tensors"], first["parameters"]) == (tiny, 4, 2 * (32 * 32 + 32))
    assert first["left_out"] == ["sam-on"]
    counted = [(c["method"], c["optimizer"]) for c in first["counts"]]
    assert counted == [("ae-sam", "SGD"), ("rst:s=0.5", "SGD"), ("sl-sam", "SGD"), ("sampa", "SGD"), ("sampa", "AdamW")]


def test_nothing_is_left_out_where_there_are_normalization_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    def case() -> tuple[nn.Module, list[Any]]:
        batches = launches._resnet()[1]
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 10)), batches

    monkeypatch.setitem(launches.CASES, "normalized", case)
    monkeypatch.setattr(launches, "METHODS", {name: METHODS[name] for name in ("plain", "sam-on")})
    counted = launches.measure("normalized")
    assert [c["method"] for c in counted["counts"]] == ["plain", "sam-on"]
    assert counted["left_out"] == []


def test_the_cases() -> None:
    tensors = {name: [p.numel() for p in case()[0].parameters()] for name, case in launches.CASES.items()}
    assert {name: (len(sizes), sum(sizes)) for name, sizes in tensors.items()} == {
        "160-tensors": (160, 84480),
        "resnet56": (167, 853018),
    }
    with pytest.raises(UnknownNameError, match="160-tensors"):
        launches.measure("160-tensor")


def _some(number: int) -> list[Tensor]:
    return [torch.ones(10) for _ in range(number)]


def test_a_call_on_a_list_counts_once_for_110_tensors() -> None:
    many, others = _some(111), _some(111)
    with Launches() as counter:
        torch._foreach_add_(many[:110], others[:110])
        assert counter.launches == 1
        torch._foreach_add_(many, others)
        assert counter.launches == 1 + 2
        torch._foreach_mul_(many, torch.tensor(2.0))  # one 0-dim tensor for all
        assert counter.launches == 1 + 2 + 2


def test_a_call_on_lists_with_0_dim_tensors_counts_once_for_each() -> None:
    three, others, factors = _some(3), _some(3), [torch.tensor(2.0) for _ in range(3)]
    with Launches() as counter:
        torch._foreach_mul_(three, factors)
        torch._foreach_mul(three, factors)
        torch._foreach_mul(three, others)
    assert counter.calls == {"_foreach_mul_": 3, "_foreach_mul": 3 + 1}


def test_joining_counts_once_for_128_tensors() -> None:
    with Launches() as counter:
        torch.cat(_some(128))
        torch.cat(_some(129))
    assert counter.calls["cat"] == 1 + 2


def test_views_and_empty_memory_are_free() -> None:
    x = torch.ones(4, 5)
    with Launches() as counter:
        x.view(20).split(10)[0][2:].detach().unsqueeze(0)
        torch.empty_like(x).t()
    assert (counter.launches, counter.bytes) == (0, 0)


@pytest.mark.parametrize(
    ("operation", "moved"),
    [
        (lambda a, b, c: a.copy_(b), 2),  # reads b, writes a
        (lambda a, b, c: a.zero_(), 1),
        (lambda a, b, c: a.add_(b), 3),  # reads both, writes a
        (lambda a, b, c: a.mul_(2.0), 2),
        (lambda a, b, c: a * b, 3),  # reads both, writes the product
        (lambda a, b, c: torch.mul(a, b, out=c), 3),
        (lambda a, b, c: a * a, 2),  # reads a once
        (lambda a, b, c: torch._foreach_copy_([a], [b]), 2),
        (lambda a, b, c: torch._foreach_add_([a, c], [b, b]), 5),
        (lambda a, b, c: torch._foreach_mul([a, c], [b, b]), 5),
    ],
)
def test_bytes_by_hand(operation: Any, moved: int) -> None:
    a, b, c = _some(3)
    with Launches() as counter:
        operation(a, b, c)
    assert counter.bytes == moved * 40


def test_bytes_by_dtype() -> None:
    half = torch.ones(10, dtype=torch.bfloat16)
    with Launches() as counter:
        half.float()
    assert counter.bytes == 20 + 40


def test_forward_and_backward_are_not_counted() -> None:
    model, batch = nn.Linear(4, 3), (torch.randn(8, 4), torch.randint(3, (8,)))
    with Launches() as counter:
        losses = launches._losses(model, batch)
        assert counter.launches == 0
        losses.sum().backward()  # type: ignore[no-untyped-call]
    assert model.weight.grad is not None
    assert counter.calls == {"sum": 1, "ones_like": 1}  # ones_like makes the gradient that backward starts from


def test_what_a_displaced_pass_launches_is_kept(tiny: str) -> None:
    # After a displaced pass the engine restores the Python state that a loss function reaches. A counter within its
    # reach would forget the pass.
    assert _count(tiny, "sam").calls["mean"] == 2
    assert _count(tiny, "micro-sam").calls["mean"] == 8
