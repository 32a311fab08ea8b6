"""skorch nets with a method: trajectories by hand, history, clipping, search, pickle, resume, refusals."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("skorch", exc_type=(ImportError, RuntimeError))

import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from skorch.callbacks import Checkpoint, GradientNormClipping, LRScheduler
from skorch.exceptions import NotInitializedError
from skorch.hf import AccelerateMixin
from torch import nn
from torch.nn.functional import cross_entropy

import lowland
from integrations.methods import METHODS
from integrations.trajectories import CUTS, Trajectory, apart
from lowland.core.errors import ArgumentError, LossError, StateError, UsageError
from lowland.integrations.skorch import SharpnessMixin

KINDS = ["sam", "sampa", "looksam", "msam"]
ROWS, EPOCHS, BATCH = 64, 2, 8


def data() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    return torch.randn(ROWS, 6, generator=g, dtype=torch.float64), torch.randint(0, 3, (ROWS,), generator=g)


class Module(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 3)).double()

    def forward(self, x: Any) -> Any:
        return self.layers(x)


class Net(SharpnessMixin, NeuralNetClassifier):  # type: ignore[misc]
    pass


def net(kind: Any, of: Any = Net, **more: Any) -> Any:
    given = {
        "criterion": nn.CrossEntropyLoss,
        "optimizer": torch.optim.SGD,
        "optimizer__momentum": 0.9,
        "lr": 0.1,
        "max_epochs": EPOCHS,
        "batch_size": BATCH,
        "train_split": None,
        "verbose": 0,
        "sharpness": METHODS.get(kind, kind) if isinstance(kind, str) else kind,
    }
    return of(Module, **{**given, **more})


def by_hand(kind: str, *, clip: float = 0.0, gamma: float = 1.0, epochs: int = EPOCHS) -> tuple[nn.Module, list[float]]:
    x, y = data()
    model = Module()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(base, 1, gamma=gamma)

    def loss(m: nn.Module, batch: Any) -> torch.Tensor:
        return cross_entropy(m(batch[0]), batch[1])

    def cut(batch: Any) -> Any:
        runs = torch.tensor_split(torch.arange(len(batch[0])), CUTS)
        return [((batch[0][run], batch[1][run]), len(run) / len(batch[0])) for run in runs]

    hand, means = Trajectory(kind, model, base, loss, cut), []
    for _ in range(epochs):
        found = []
        for start in range(0, ROWS, BATCH):
            base.zero_grad()
            found.append(float(hand.backward((x[start : start + BATCH], y[start : start + BATCH]))))
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            base.step()
        schedule.step()
        means.append(sum(found) / len(found))
    return model, means


@pytest.mark.parametrize("kind", KINDS)
def test_a_net_follows_the_trajectory_and_its_history_is_the_method_s(kind: str) -> None:
    made = net(kind).fit(*data())
    twin, means = by_hand(kind)
    assert apart(made.module_, twin) < 1e-10
    assert made.history[:, "train_loss"] == pytest.approx(means, abs=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_clipping_runs_once_a_step(kind: str) -> None:
    """S7: behind a closure every pass was clipped; LookSAM was 1.9e-2 away."""
    callbacks = [GradientNormClipping(0.05), LRScheduler(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)]
    made = net(kind, callbacks=callbacks).fit(*data())
    twin, _ = by_hand(kind, clip=0.05, gamma=0.5)
    assert apart(made.module_, twin) < 1e-10


def test_without_a_perturbation_it_is_the_net_bit_for_bit() -> None:
    seen: dict[str, list[Any]] = {"mine": [], "plain": []}

    def noting(name: str) -> Any:
        class Noting(Net if name == "mine" else NeuralNetClassifier):  # type: ignore[misc]
            def on_batch_end(self, net: Any, batch: Any = None, training: bool = False, **step: Any) -> None:
                seen[name].append((step["loss"].detach().clone(), step["y_pred"].detach().clone()))

        return Noting

    mine = net("plain", noting("mine"), module__dropout=0.3).fit(*data())
    options = ("lr", "max_epochs", "batch_size", "train_split", "verbose", "criterion", "optimizer")
    given = {name: net("plain").get_params()[name] for name in options}
    plain = noting("plain")(Module, optimizer__momentum=0.9, module__dropout=0.3, **given).fit(*data())
    assert apart(mine.module_, plain.module_) == 0
    assert all(
        torch.equal(a, b) for x, y in zip(seen["mine"], seen["plain"], strict=True) for a, b in zip(x, y, strict=True)
    )


def test_a_search_over_methods_and_clones() -> None:
    x, y = (t.numpy() for t in data())
    made = net("sam")
    assert clone(made).sharpness == made.sharpness
    made.set_params(sharpness=METHODS["looksam"])
    assert made.get_params()["sharpness"] == METHODS["looksam"]
    search = GridSearchCV(made, {"sharpness": [METHODS["plain"], METHODS["sam"]]}, cv=2, scoring="accuracy")
    search.fit(x, y)
    assert search.best_estimator_.engine_.method in (METHODS["plain"], METHODS["sam"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickled_net_goes_on_bit_for_bit(kind: str) -> None:
    made = net(kind, max_epochs=1).fit(*data())
    again = pickle.loads(pickle.dumps(made))
    made.partial_fit(*data())
    again.partial_fit(*data())
    assert apart(made.module_, again.module_) == 0
    assert apart(made.module_, by_hand(kind)[0]) < 1e-10
    assert again.engine_.step == 16


def test_a_net_with_another_method_is_pickled() -> None:
    made = net("looksam", max_epochs=1).fit(*data()).set_params(sharpness=METHODS["sampa"])
    again = pickle.loads(pickle.dumps(made))
    made.partial_fit(*data())
    again.partial_fit(*data())
    assert again.engine_.method == METHODS["sampa"]
    assert again.engine_.step == 8
    assert apart(made.module_, again.module_) == 0


@pytest.mark.parametrize("kind", ["sampa", "looksam"])
def test_a_resume_from_files(tmp_path: Path, kind: str) -> None:
    """S9: the engine's state goes with the optimizer's, or the resume is refused."""
    keep = Checkpoint(dirname=str(tmp_path), f_engine="engine.pt", monitor=None)
    net(kind, max_epochs=1, callbacks=[keep]).fit(*data())
    again = net(kind, max_epochs=1)
    again.load_params(checkpoint=keep)
    again.partial_fit(*data())
    assert apart(again.module_, by_hand(kind)[0]) < 1e-10
    files = {"f_params": str(tmp_path / "params.pt"), "f_optimizer": str(tmp_path / "optimizer.pt")}
    with pytest.raises(StateError, match=r"save it, too, by save_params\(f_engine=…\)"):
        net(kind).initialize().load_params(**files)
    net(kind, sharpness_resume="cold").initialize().load_params(**files)
    net("sam").initialize().load_params(**files)
    with pytest.raises(NotInitializedError, match="initialize first"):  # skorch's own words
        net(kind).load_params(**files)


def test_a_new_optimizer_on_the_same_module_keeps_the_method_s_memory() -> None:
    made = net("looksam", max_epochs=1).fit(*data())
    made.set_params(lr=0.05, optimizer__momentum=0.5)
    made.partial_fit(*data())
    assert made.engine_.step == 16
    assert made.engine_.optimizer is made.optimizer_


def test_another_method_is_that_of_the_next_training() -> None:
    """As in a new training of `Plain` from the weights that the first training gave; the method was the old one's."""
    made = net("sam", max_epochs=1, optimizer__momentum=0.0).fit(*data())
    plain = net("plain", max_epochs=1, optimizer__momentum=0.0).initialize()
    plain.module_.load_state_dict(made.module_.state_dict())
    made.set_params(sharpness=METHODS["plain"]).partial_fit(*data())
    plain.partial_fit(*data())
    assert made.engine_.method == METHODS["plain"]
    assert apart(made.module_, plain.module_) == 0
    with pytest.raises(ArgumentError, match="but is the class"):
        made.set_params(sharpness=lowland.SAM).partial_fit(*data())


def test_statistics_of_batch_norm_are_updated_once() -> None:
    class Normed(Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)).double()

    made = net("sam")
    made.module = Normed
    made.fit(*data())
    assert int(made.module_.layers[1].num_batches_tracked) == EPOCHS * ROWS // BATCH


def test_what_fails_inside_a_step_leaves_no_trace() -> None:
    class Failing(Net):
        calls, fails = 0, True

        def get_loss(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.fails and self.calls == 2:
                raise RuntimeError("out of memory")
            return super().get_loss(*args, **kwargs)

    made = net("sam", Failing).initialize()
    with pytest.raises(RuntimeError, match="out of memory"):
        made.partial_fit(*data())
    assert apart(made.module_, Module()) == 0
    assert made.engine_.step == 0
    made.fails = False
    made.partial_fit(*data())
    assert apart(made.module_, by_hand("sam")[0]) < 1e-10


def test_a_loss_that_cannot_be_cut_is_refused() -> None:
    class Weighted(nn.CrossEntropyLoss):
        def __init__(self) -> None:
            super().__init__(weight=torch.tensor([1.0, 5.0, 0.1], dtype=torch.float64))

    with pytest.raises(LossError, match="must have a loss that is the mean over its examples"):
        net("msam", criterion=Weighted).fit(*data())
    assert net("sam", criterion=Weighted).fit(*data()).engine_.step == 16


def test_refusals() -> None:
    with pytest.raises(ArgumentError, match="all that get_loss gives, but AUSAM needs a loss for every example"):
        net(lowland.AUSAM()).initialize()
    with pytest.raises(ArgumentError, match="but is the class"):
        net(lowland.SAM).initialize()
    with pytest.raises(UsageError, match="calls it as often as it likes"):
        net("sam", optimizer=lambda params, **_: torch.optim.LBFGS(params)).initialize()

    class Accelerated(SharpnessMixin, AccelerateMixin, NeuralNetClassifier):  # type: ignore[misc]
        pass

    from accelerate import Accelerator

    with pytest.raises(UsageError, match="leave AccelerateMixin out"):
        net("sam", Accelerated, accelerator=Accelerator(cpu=True)).initialize()

    class Two(Net):
        def initialize_optimizer(self) -> Any:
            self.optimizer2_ = torch.optim.SGD(self.module_.layers[0].parameters(), lr=0.1)
            return super().initialize_optimizer()

    with pytest.raises(UsageError, match=r"must have one optimizer, but has .*optimizer2"):
        net("sam", Two).initialize()

    class Closing(Net):
        def initialize_optimizer(self) -> Any:
            self.optimizer = lambda params, **_: lowland.ClosureOptimizer(
                lowland.Engine(lowland.SAM(), self.module_, torch.optim.SGD(self.module_.parameters(), lr=0.1))
            )
            return super().initialize_optimizer()

    with pytest.raises(UsageError, match="pass the SGD inside it"):
        net("sam", Closing).initialize()
