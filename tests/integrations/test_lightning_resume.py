"""Lightning with a method: resume, second fits, failures inside a step, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lightning", exc_type=(ImportError, RuntimeError))

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import cross_entropy

import lowland
from integrations import pl
from integrations.loops import net
from integrations.methods import METHODS
from integrations.pl import Module, by_hand, fitted, loader, trainer
from integrations.trajectories import apart, sgd
from lowland.core.errors import ArgumentError, LossError, ParameterError, StateError, UsageError
from lowland.integrations import refusals
from lowland.integrations.lightning import Sharpness

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec.*"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:.*mid-epoch checkpoint"),
    pytest.mark.filterwarnings("ignore:.*`dataloader_iter`"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]
KINDS = ["sam", "sampa", "looksam", "msam"]


def saving(folder: Path) -> dict[str, Any]:
    keep = ModelCheckpoint(dirpath=folder, every_n_train_steps=8, save_top_k=-1, filename="{step}")
    return {"enable_checkpointing": True, "keep": keep}


def saved(kind: Any, module: Any, folder: Path, **more: Any) -> Any:
    options = saving(folder)
    return fitted(kind, module, options.pop("keep"), **options, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    """S9: 0.11 apart without the engine's state."""
    whole, resumed = Module(), Module()
    saved(kind, whole, tmp_path)
    fit = saved(kind, resumed, tmp_path, ckpt_path=tmp_path / "step=8.ckpt")
    assert apart(whole.net, resumed.net) == 0
    assert fit.sharp.engine.step == 16
    assert len(resumed.outputs) == 8


@pytest.mark.parametrize("kind", ["sampa", "looksam"])
def test_a_checkpoint_of_plain_training_is_refused(tmp_path: Path, kind: str) -> None:
    saved(None, Module(), tmp_path)
    path = tmp_path / "step=8.ckpt"
    with pytest.raises(StateError, match=r"let the method start anew: Sharpness\(…, resume=\"cold\"\)"):
        fitted(kind, Module(), ckpt_path=path)
    assert fitted(kind, Module(), ckpt_path=path, resume="cold").sharp.engine.step == 8
    assert fitted("sam", Module(), ckpt_path=path).sharp.engine.step == 8


def test_a_second_fit_begins_anew_and_nothing_is_left_behind() -> None:
    module, twin = Module(), net()
    sharp = Sharpness(METHODS["looksam"])
    first = trainer(sharp)
    first.fit(module, loader())
    engine = sharp.engine
    assert not {"training_step", "backward"} & set(vars(first.strategy))
    assert not {"log", "log_dict"} & set(vars(module))
    module.net.load_state_dict(net().state_dict())
    trainer(sharp).fit(module, loader())
    by_hand("looksam", twin)
    assert apart(module.net, twin) < 1e-10
    assert sharp.engine is not engine


def test_a_loss_that_fails_leaves_no_trace() -> None:
    class Failing(Module):
        fails = True

        def training_step(self, batch: Any, index: int) -> Any:
            found = super().training_step(batch, index)
            if self.fails and self.calls.count == 6:  # the second pass of step 2
                raise RuntimeError("out of memory")
            return found

    module, twin = Failing(optimizer=lambda m: sgd(m, lr=0.0)), net()
    sharp = Sharpness(METHODS["sam"])
    fit = trainer(sharp)
    with pytest.raises(RuntimeError, match="out of memory"):
        fit.fit(module, loader())
    assert apart(module.net, twin) == 0
    assert not {"training_step", "backward"} & set(vars(fit.strategy))
    assert not {"log", "log_dict"} & set(vars(module))
    assert sharp.engine is not None
    assert sharp.engine.step == 2
    module.fails, module.make = False, sgd
    trainer(sharp).fit(module, loader())
    by_hand("sam", twin)
    assert apart(module.net, twin) < 1e-10


@pytest.mark.parametrize(
    "method",
    [
        METHODS["sampa"],
        METHODS["looksam"],
        lowland.VSAM(),
        lowland.AESAM(),
        lowland.FriendlySAM(),
        lowland.Late(start=0.5, total=100, inner=lowland.SAM()),
        lowland.Switch(inner=lowland.SAM(), when=lowland.schedule.every(2)),
        lowland.SAM(rho=lowland.schedule.linear(0.0, 0.1, steps=10)),
    ],
    ids=lambda m: m.kind,
)
def test_accumulation_is_refused_for_methods_that_count_steps(method: lowland.Method) -> None:
    """S11: with one step of the method for every batch, LookSAM's period would count batches."""
    with pytest.raises(UsageError, match=r"2 times larger, and cut them: Sharpness\(method, micro_batch=…\)"):
        fitted(method, Module(), accumulate_grad_batches=2)


@pytest.mark.parametrize("k", [1, 2])
def test_progress_is_that_of_the_whole_fit(k: int) -> None:
    """Lightning's own count of optimizer steps, so that accumulation does not matter."""
    fit = fitted(lowland.Late(start=0.5, inner=lowland.SAM()), Module(), accumulate_grad_batches=k)
    assert fit.sharp.engine.cost.gradients == 16 + 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": lowland.SAM}, "but is the class"),
        ({"method": lowland.KSAM()}, "all that training_step gives, but KSAM needs a loss for every example"),
        ({"method": lowland.SAM(), "scaler": None}, "options must be some of rng, seed, cut, micro_batch"),
        ({"method": lowland.SAM(), "resume": "warm"}, "resume must be"),
    ],
)
def test_arguments_that_break_their_rule(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Sharpness(**given)


def test_modules_that_do_it_themselves_are_refused() -> None:
    manual = Module()
    manual.automatic_optimization = False
    with pytest.raises(UsageError, match=r"call engine\.backward\(batch\) in training_step"):
        fitted("sam", manual)

    class Other(Sharpness):
        """Of another name, so that Lightning itself does not complain."""

    with pytest.raises(UsageError, match=r"must have one Sharpness, but have several.*lowland\.Switch"):
        fitted("sam", Module(), Other(METHODS["looksam"]))

    class Two(Module):
        def configure_optimizers(self) -> Any:
            return [sgd(self.net[0]), sgd(self.net[3])]

    with pytest.raises((UsageError, RuntimeError), match=r"one optimizer|multiple optimizers"):
        fitted("sam", Two())

    class Backward(Module):
        def backward(self, loss: Any) -> None:
            loss.backward()

    with pytest.raises(UsageError, match="move what it does to on_before_backward"):
        fitted("sam", Backward())

    class Fetching(Module):
        def training_step(self, dataloader_iter: Any) -> Any:
            return super().training_step(next(dataloader_iter)[0], 0)

    with pytest.raises(UsageError, match=r"write training_step\(self, batch, batch_idx\)"):
        fitted("sam", Fetching())

    class Skipping(Module):
        def training_step(self, batch: Any, index: int) -> Any:
            return None if index == 1 else super().training_step(batch, index)

    with pytest.raises(UsageError, match="filter batches in the data set"):
        fitted("sam", Skipping())


@pytest.mark.parametrize(
    "kind", ["DeepSpeedStrategy", "FSDPStrategy", "ModelParallelStrategy", "SingleDeviceXLAStrategy"]
)
def test_strategies_that_are_refused(kind: str) -> None:
    strategy = type(kind, (), {})()
    module = SimpleNamespace(automatic_optimization=True)
    with pytest.raises(UsageError, match=f'but is {kind}.*use strategy="ddp"'):
        refusals.check_lightning(SimpleNamespace(optimizers=[sgd(net())], strategy=strategy), module, Sharpness)
    with pytest.raises(UsageError, match="but gives 2; train with manual optimization"):
        refusals.check_lightning(SimpleNamespace(optimizers=[1, 2], strategy=strategy), module, Sharpness)


def test_a_closure_optimizer_is_refused_with_and_without_a_scaler() -> None:
    """S1: with a GradScaler the closure runs outside of step, and the training was plain."""

    class Closing(Module):
        def configure_optimizers(self) -> Any:
            return lowland.ClosureOptimizer(lowland.Engine(lowland.SAM(), self.net, sgd(self.net)))

    with pytest.raises(UsageError, match="pass the SGD inside it"):
        fitted("sam", Closing())
    from lightning.pytorch.plugins.precision import MixedPrecision

    plugin = MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(UsageError, match="would train without the method"):
        fitted(None, Closing().float(), sent=loader(dtype=torch.float32), plugins=[plugin])


def test_a_cut_through_a_loss_that_is_no_mean_over_examples_is_refused() -> None:
    """S5: a part of such a loss weighs something else than its number of examples."""

    class Weighted(Module):
        def training_step(self, batch: Any, index: int) -> Any:
            x, y = batch
            return cross_entropy(self.net(x), y, weight=torch.tensor([1.0, 5.0, 0.1], dtype=x.dtype))

    with pytest.raises(LossError, match=r"over the batch's two halves.*lowland\.Loss\(total, count\)"):
        fitted("msam", Weighted())
    with pytest.raises(LossError, match="must have a loss that is the mean over its examples"):
        fitted("sam", Weighted(), micro_batch=4)
    assert fitted("sam", Weighted()).sharp.engine.step == 16


def test_parameters_outside_the_optimizer_are_named() -> None:
    class Part(Module):
        def configure_optimizers(self) -> Any:
            return sgd(self.net[0])

    with pytest.raises(ParameterError, match=r"net\.3"):
        fitted("sam", Part())


def test_a_lightning_optimizer_is_unwrapped_in_manual_optimization() -> None:
    """self.optimizers() handed to an engine of one's own: SAMPa could not preview its step."""

    class Manual(Module):
        engine: Any = None

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, index: int) -> Any:
            optimizer = self.optimizers()
            if self.engine is None:
                self.engine = lowland.Engine(
                    METHODS["sampa"], self.net, optimizer, lambda m, b: cross_entropy(m(b[0]), b[1])
                )
            loss = self.engine.backward(batch)
            optimizer.step()
            optimizer.zero_grad()
            return {"loss": loss}

    module, twin = Manual(), net()
    trainer(epochs=pl.EPOCHS).fit(module, loader())
    by_hand("sampa", twin)
    assert apart(module.net, twin) < 1e-10
