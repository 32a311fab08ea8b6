"""Plans of small trainings: what is refused, what is left out, and that nothing of the user's engine changes."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lowland import SAM, Engine, LookSAM, Loss, Parts
from lowland.core.errors import ArgumentError, BatchError, UsageError
from lowland.methods import make
from lowland.planner import planning as planner
from lowland.planner.layout import Layout
from lowland.planner.planning import catalog, fitting, joined, named, plan
from lowland.planner.subject import Subject
from lowland.planner.survey import Survey

CPU = torch.device("cpu")
METHODS = ["plain", "sam", "sampa", "micro-sam:m=4", "esam"]


def losses(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def data(size: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 6).to(dtype), torch.randint(3, (size,))


def mlp(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), *between, nn.ReLU(), nn.Linear(8, 3))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))  # type: ignore[no-any-return]


def frozen() -> nn.Module:
    model = mlp()
    model[0].weight.requires_grad_(False)
    return model


def engine(model: nn.Module, loss_fn: Any = losses, method: Any = None, **options: Any) -> Engine:
    trained = [p for p in model.parameters() if p.requires_grad]
    return Engine(method or SAM(), model, torch.optim.SGD(trained, lr=0.1, momentum=0.9), loss_fn, **options)


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowland.planner.turns.FEWEST", 2)
    monkeypatch.setattr("lowland.planner.turns.MOST", 2)


def state(one: Engine) -> dict[str, Any]:
    """Everything of a training that a plan could change."""
    return copy.deepcopy(
        {
            "model": one.model.state_dict(),
            "grads": [p.grad for p in one.params],
            "optimizer": one.optimizers[0].state_dict(),
            "engine": one.state_dict(),
            "training": one.model.training,
            "rng": torch.get_rng_state(),
            "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in one.model.modules()],
            "cost": vars(one.cost),
        }
    )


def entries_of(value: Any) -> list[tuple[Any, Any]]:
    return list(pytree.tree_flatten_with_path(value)[0])


def test_nothing_of_the_engine_changes() -> None:
    one = engine(mlp(nn.BatchNorm1d(8), nn.Dropout(0.5)), method=LookSAM(k=2))
    optimizer, batch = one.optimizers[0], data()
    for _ in range(3):
        optimizer.zero_grad()
        one.backward(batch)
        optimizer.step()
    before, entries = state(one), copy.deepcopy(batch)
    found = plan(one, batch, METHODS, seconds=0.01)
    assert {p.method for p in found.predictions} == set(METHODS)
    for (place, after), (_, earlier) in zip(entries_of(state(one)), entries_of(before), strict=True):
        assert torch.equal(after, earlier) if isinstance(after, Tensor) else after == earlier, place
    assert all(torch.equal(a, b) for a, b in zip(batch, entries, strict=True))


def test_the_engines_own_method_is_the_default() -> None:
    found = plan(engine(mlp(), method=SAM(rho=0.2)), data(), seconds=0.01)
    assert {p.method for p in found.predictions} == {"sam:rho=0.2"}
    assert found.best() == found.best("sam:rho=0.2") == found.predictions[0]
    assert found.surveys[0].parameters == 4 * (6 * 8 + 8 + 8 * 3 + 3)
    assert str(found).startswith("sam:rho=0.2 on one device")
    with pytest.raises(ArgumentError, match=r"one of those that were planned, sam:rho=0.2, but is 'sam'"):
        found.best("sam")


MODELS: dict[str, Callable[[], nn.Module]] = {
    "frozen": frozen,
    "tied": Tied,
    "dropout": lambda: mlp(nn.Dropout(0.3)),
    "bfloat16": lambda: mlp().to(torch.bfloat16),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    model = MODELS[name]()
    dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
    found = plan(engine(model), data(dtype=dtype), METHODS, seconds=0.01)
    assert {p.method for p in found.predictions} == set(METHODS)
    assert not found.left_out
    trained = {p for p in model.parameters() if p.requires_grad}
    assert found.surveys[0].parameters == sum(p.numel() * p.element_size() for p in trained)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_small_batches_with_batch_normalization(size: int) -> None:
    # A batch of two is timed at one example, too, which normalization refuses.
    model = mlp(nn.BatchNorm1d(8)) if size > 2 else mlp()
    found = plan(engine(model), data(size), ["plain", "sam"], seconds=0.01)
    assert {p.method for p in found.predictions} == {"plain", "sam"}


@pytest.mark.parametrize("expanded", [False, True])
def test_a_mean_is_not_cut_and_leaves_out_the_methods_that_cut(expanded: bool) -> None:
    def mean(model: nn.Module, batch: Any) -> Any:
        found = losses(model, batch).mean()
        return found.expand(len(batch[1])) if expanded else found

    found = plan(engine(mlp(), mean), data(), ["plain", "sampa", "micro-sam:m=2"], seconds=0.01)
    assert {p.method for p in found.predictions} == {"plain", "sampa"}
    assert "loss_fn must return what a part of a batch weighs" in found.left_out["micro-sam:m=2"]
    assert {p.layout.micro_batch for p in found.predictions} == {None}


def test_a_mean_leaves_out_the_methods_that_choose_by_losses() -> None:
    found = plan(engine(mlp(), lambda m, b: losses(m, b).mean()), data(), METHODS, seconds=0.01)
    assert {p.method for p in found.predictions} == set(METHODS) - {"esam", "micro-sam:m=4"}
    assert "loss_fn must return one loss per example" in found.left_out["esam"]
    assert "loss_fn must return what a part of a batch weighs" in found.left_out["micro-sam:m=4"]


def test_a_loss_with_its_count() -> None:
    def total(model: nn.Module, batch: Any) -> Loss:
        return Loss(losses(model, batch).sum(), len(batch[1]))

    found = plan(engine(mlp(), total), data(), ["plain", "sampa"], seconds=0.01)
    assert {p.method for p in found.predictions} == {"plain", "sampa"}


class Opaque:
    """A batch that nothing can cut."""

    def __init__(self, size: int) -> None:
        self.data = data(size)


def test_batches_that_are_too_small_or_cannot_be_cut() -> None:
    with pytest.raises(ArgumentError, match=r"batch must have at least two examples, .* but has 1; pass"):
        plan(engine(mlp()), data(1), ["plain"])
    with pytest.raises(ArgumentError, match="batch must be one that can be cut"):
        plan(engine(mlp(), lambda m, b: losses(m, b.data)), Opaque(8), ["plain"])


def test_what_cannot_be_planned() -> None:
    with pytest.raises(UsageError, match="the engine has loss_fn=None; pass Engine"):
        plan(engine(mlp(), None), data())
    with pytest.raises(ArgumentError, match="no method can train here: none is given"):
        plan(engine(mlp()), data(), [])
    with pytest.raises(ArgumentError, match=r"no method can train here: .*normalization"):
        plan(engine(mlp()), data(), ["sam-on"])


def test_a_method_that_refuses_its_first_step_is_left_out() -> None:
    subject = Subject.of(engine(mlp()), data())
    shown, reasons = fitting(subject, dict(map(named, ["plain", "ausam"])))
    assert set(shown) == {"plain"}
    assert "the batch must carry their positions" in reasons["ausam"]


def test_the_catalog_is_every_method_without_required_fields() -> None:
    assert {"plain", "sam", "sampa"} <= set(catalog())
    assert not {"ausam", "late"} & set(catalog())
    assert all(make(name) is not None for name in catalog())


def test_names_of_methods() -> None:
    assert named("sam:rho=0.2") == ("sam:rho=0.2", SAM(rho=0.2))
    assert named(SAM(rho=0.2)) == ("sam:rho=0.2", SAM(rho=0.2))


def test_no_layout_or_no_memory_is_an_error() -> None:
    subject = Subject.of(engine(mlp()), data())
    methods = dict(map(named, ["plain"]))
    found = planner.surveyed(subject, methods, seconds=0.01)
    with pytest.raises(
        ArgumentError, match="every rank must have the memory of a step, at least 3 MB, but all together have 1 MB"
    ):
        joined([found], {"plain": lambda layout: 3e6}, methods, left_out={}, room=1_000_000, device=CPU)
    nowhere = Survey(
        ranks=3, examples=8, parameters=1, quiet=found.quiet, busy=found.busy, rates=[], own=found.own
    )  # fmt: skip
    with pytest.raises(ArgumentError, match="the ranks must divide the batch or a method's probes"):
        joined([nowhere], {}, methods, left_out={}, room=None, device=CPU)


def test_micro_batches_are_halves_and_quarters_of_a_ranks_part() -> None:
    found = plan(engine(mlp()), data(8), ["plain"], seconds=0.01)
    assert {p.layout for p in found.predictions} == {Layout(), Layout(micro_batch=4), Layout(micro_batch=2)}


def test_ranks_that_can_divide_nothing_are_refused_before_anything_is_measured() -> None:
    with pytest.raises(ArgumentError, match=r"must divide the batch or a method's probes, but 1 ranks divide neither"):
        planner.surveyed(Subject.of(engine(mlp()), data()), dict([named("plain")]), where=lambda layout: False)


class Centered(nn.Module):
    """A loss with a center, a count, a teacher with statistics and a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(3))
        self.teacher = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)).requires_grad_(False)
        self.count, self.generator = 0, torch.Generator().manual_seed(1)

    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        noise = torch.randn(batch[0].shape, generator=self.generator) * random.random() * np.random.random()
        outputs = model(batch[0] + noise.float()) + self.teacher(batch[0])
        self.center.mul_(0.9).add_(outputs.detach().mean(0))
        self.count += 1
        return nn.functional.cross_entropy(outputs - self.center, batch[1], reduction="none")


@pytest.mark.parametrize("stepped", [False, True])
def test_the_state_of_the_loss_and_all_random_numbers_stay(stepped: bool) -> None:
    loss = Centered()
    of = engine(mlp(), loss)
    if stepped:
        of.backward(data())

    def state() -> list[bytes]:
        own = [*loss.state_dict().values(), torch.get_rng_state(), loss.generator.get_state(), loss.count]
        return [pickle.dumps(each) for each in (*map(str, own), random.getstate(), np.random.get_state())]

    batch, torch_state = data(), torch.get_rng_state()
    before = state()
    plan(of, batch, ["plain", "sampa"], seconds=0.01)
    assert state() == before
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_what_cannot_be_planned_is_refused_in_words() -> None:
    batch, bare = data(), mlp()
    with pytest.raises(ArgumentError, match=r"engine must be a lowland\.Engine, but is a Sequential"):
        plan(bare, batch)  # type: ignore[arg-type]
    with pytest.raises(BatchError, match="Parts may be padded differently; pass one batch"):
        plan(engine(bare), Parts([batch, batch]))
    one, two = nn.Linear(6, 4), nn.Linear(4, 3)
    both = torch.optim.SGD([*one.parameters(), *two.parameters()], lr=0.1)
    several = Engine(SAM(), [one, two], both, lambda m, b: losses(nn.Sequential(*m), b))
    with pytest.raises(UsageError, match=r"this engine has several modules, .* such as nn\.ModuleList"):
        plan(several, batch)

    def bound() -> Any:  # the name of the function that makes the loss of several modules
        return lambda m, b: losses(m, b)

    assert plan(engine(mlp(), bound()), batch, ["plain"], seconds=0.01).predictions
    closures = Engine(SAM(), bare, torch.optim.LBFGS(bare.parameters()), losses)
    with pytest.raises(UsageError, match=r"LBFGS\.step needs a closure"):
        plan(closures, batch)
    keeping = engine(mlp())
    keeping.model.last = keeping.model(batch[0])
    with pytest.raises(ArgumentError, match=r"they cannot be copied .* keep no outputs of its passes"):
        plan(keeping, batch, ["plain"], seconds=0.01)
    with pytest.raises(BatchError, match="parts of the batch that are measured must have two examples or more"):
        plan(engine(mlp(nn.BatchNorm1d(8))), data(2), ["plain"], seconds=0.01)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "5", None])
def test_seconds_must_be_above_0(seconds: Any) -> None:
    with pytest.raises(ArgumentError, match="seconds must be a number above 0, but is"):
        plan(engine(mlp()), data(), ["plain"], seconds=seconds)


@pytest.mark.parametrize("methods", ["sam", SAM(), [5], [None]])
def test_methods_must_be_a_list_of_texts_or_methods(methods: Any) -> None:
    with pytest.raises(ArgumentError, match=r"methods must be (a list|texts or lowland methods), but"):
        plan(engine(mlp()), data(), methods, seconds=0.01)


def test_a_model_in_evaluation_mode_is_planned_so() -> None:
    """Its statistics are frozen, so a single example is enough."""
    model = mlp(nn.BatchNorm1d(8)).eval()
    found = plan(engine(model), data(2), ["plain"], seconds=0.01)
    assert found.predictions
    assert not any(m.training for m in model.modules())


class Rateless(torch.optim.Optimizer):
    """An optimizer whose groups have no learning rate."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing."""


def test_an_optimizer_without_a_learning_rate() -> None:
    model = mlp()
    assert plan(Engine(SAM(), model, Rateless(model.parameters()), losses), data(), ["sam"], seconds=0.01).predictions
