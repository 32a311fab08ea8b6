"""Lightning with a method: trajectories by hand, the untouched Trainer, what is logged, hooks and clipping."""

from __future__ import annotations

import copy
from typing import Any

import pytest

pytest.importorskip("lightning", exc_type=(ImportError, RuntimeError))

import torch
from torch import nn

import lowland
from integrations import pl
from integrations.loops import net
from integrations.methods import METHODS
from integrations.pl import Module, by_hand, fitted, loader, trainer
from integrations.trajectories import adamw, apart, sgd
from lowland.integrations.lightning import Sharpness

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec.*"),
]
KINDS = ["sam", "sampa", "looksam", "msam"]
STEPS = pl.BATCHES * pl.EPOCHS


@pytest.mark.parametrize("base", [sgd, adamw])
@pytest.mark.parametrize("kind", KINDS)
def test_a_lightning_module_follows_the_trajectory(kind: str, base: Any) -> None:
    module, twin = Module(optimizer=base), net()
    fit = fitted(kind, module)
    losses = by_hand(kind, twin, optimizer=base)
    assert apart(module.net, twin) < 1e-10
    assert module.outputs == pytest.approx(losses, abs=1e-10)
    assert fit.sharp.engine.step == STEPS


@pytest.mark.parametrize(
    "more", [{"gradient_clip_val": 0.05}, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}]
)
@pytest.mark.parametrize("kind", KINDS)
def test_clipping_and_schedule_are_lightning_s(kind: str, more: dict[str, Any]) -> None:
    """S7: behind a closure every pass was clipped; LookSAM was 1.9e-2 away."""
    module, twin = Module(step_lr=True), net()
    fitted(kind, module, **more)
    name = "clip_value" if "gradient_clip_algorithm" in more else "clip"
    by_hand(kind, twin, step_lr=True, **{name: more["gradient_clip_val"]})
    assert apart(module.net, twin) < 1e-10


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("kind", ["sam", "msam"])
def test_accumulation_perturbs_each_batch(kind: str, k: int) -> None:
    module, twin = Module(), net()
    fitted(kind, module, accumulate_grad_batches=k)
    by_hand(kind, twin, k)
    assert apart(module.net, twin) < 1e-10


@pytest.mark.parametrize("kind", ["sam", "sampa", "looksam"])
def test_micro_batch_is_the_same_step_in_less_memory(kind: str) -> None:
    module, twin = Module(), net()
    fit = fitted(kind, module, micro_batch=3)
    by_hand(kind, twin)
    assert apart(module.net, twin) < 1e-10
    assert module.outputs[-1] == pytest.approx(float(fit.sharp.engine.loss), abs=1e-12)


SAME: dict[str, dict[str, Any]] = {
    "k=1": {},
    "k=2, clip": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05},
    "k=3": {"accumulate_grad_batches": 3, "bound": 1e-12},  # Lightning divides the loss, lowland the gradient
    "k=4": {"accumulate_grad_batches": 4},
    "dropout": {"dropout": 0.3},
    "schedule": {"step_lr": True},
    "bf16": {"precision": "bf16-mixed", "dtype": torch.float32},
}


@pytest.mark.parametrize("case", SAME)
@pytest.mark.parametrize("method", ["plain", "zero"])
def test_without_a_perturbation_it_is_the_trainer_bit_for_bit(case: str, method: str) -> None:
    given = dict(SAME[case])
    own = {name: given.pop(name) for name in ("dropout", "step_lr") if name in given}
    dtype, bound = given.pop("dtype", torch.float64), given.pop("bound", 0.0)
    found = []
    for kind in ("plain" if method == "plain" else lowland.SAM(rho=0.0), None):
        module = Module(**own).to(dtype)
        torch.manual_seed(3)
        fit = fitted(kind, module, sent=loader(dtype=dtype), rng="shared", **given)
        found.append((module, fit))
    (module, fit), (twin, plain) = found
    assert apart(module.net, twin.net) <= bound
    assert module.outputs == pytest.approx(twin.outputs, abs=bound)
    assert module.hooks == twin.hooks
    assert fit.global_step == plain.global_step
    mine, theirs = ({name: float(v) for name, v in t.callback_metrics.items()} for t in (fit, plain))
    assert mine == pytest.approx(theirs, abs=bound)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_logged_is_the_step_s_and_hooks_run_once(kind: str) -> None:
    """S6: behind a closure loss, progress bar and metrics were those of the perturbed pass, and hooks ran twice."""
    module, twin = Module(), net()
    bar: list[float] = []

    class Noting(Sharpness):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            bar.append(float(trainer.progress_bar_metrics["loss_step"]))

    fit = trainer(Noting(METHODS[kind]))
    fit.fit(module, loader())
    losses = by_hand(kind, twin)
    assert bar == pytest.approx(losses, abs=1e-6)
    assert float(fit.callback_metrics["loss_epoch"]) == pytest.approx(sum(losses[8:]) / 8, abs=1e-6)
    assert module.hooks == dict.fromkeys(pl.HOOKS, STEPS)
    assert fit.global_step == STEPS
    passes = {"sam": 2 * STEPS, "sampa": 2 * STEPS, "looksam": STEPS + STEPS // 2, "msam": 4 * STEPS}[kind]
    looks = {0: 3, 1: 3, 2: 3, 4: 3, 8: 3} if kind == "msam" else {}  # whether the loss can be cut
    assert module.calls.count == passes + sum(looks.values())


def test_metrics_count_every_example_once() -> None:
    found = []
    for kind in ("plain", "sam", "msam"):
        module = Module(optimizer=lambda m: sgd(m, lr=0.0))  # all epochs alike
        fit = fitted(kind, module, epochs=1)
        found.append((float(fit.callback_metrics["accuracy"]), int(module.accuracy._update_count)))
    assert found[0] == found[1]
    assert found[0][0] == found[2][0]


def test_values_of_parts_are_combined_as_lightning_combines_those_of_batches() -> None:
    """8 and 2 examples in parts of 3, 3, 2 and 2: a mean weighed batches by their last part, a sum was a mean."""

    class Logs(Module):
        def training_step(self, batch: Any, index: int) -> Any:
            loss, rows = super().training_step(batch, index)["loss"], len(batch[0])
            self.log("weighed", loss, on_step=False, on_epoch=True, batch_size=rows)
            for how in ("sum", torch.max, "min"):
                name = getattr(how, "__name__", how)
                self.log(name, float(rows), on_step=False, on_epoch=True, reduce_fx=how, batch_size=rows)
            return loss

    def logged(kind: Any, **more: Any) -> dict[str, float]:
        module = Logs(optimizer=lambda m: sgd(m, lr=0.0))
        rows = torch.utils.data.Subset(loader().dataset, range(10))
        sent = torch.utils.data.DataLoader(rows, batch_size=8)
        return {k: float(v) for k, v in fitted(kind, module, sent=sent, epochs=1, **more).callback_metrics.items()}

    plain, parts = logged(None), logged("plain", micro_batch=3)
    assert parts["weighed"] == pytest.approx(plain["weighed"], abs=1e-6)  # Lightning adds up in fp32
    assert (plain["sum"], parts["sum"]) == (10, 10)
    assert (parts["max"], parts["min"]) == (3, 2)  # of a part


def test_statistics_of_batch_norm_are_updated_once() -> None:
    module = Module()
    module.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3)).double()
    fitted("sam", module)
    assert int(module.net[1].num_batches_tracked) == STEPS


def scaling() -> Any:
    from lightning.pytorch.plugins.precision import MixedPrecision

    return MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_scaler_gives_what_the_engine_gives_bit_for_bit(kind: str) -> None:
    module, twin = Module().float(), net().float()
    fitted(kind, module, epochs=1, sent=loader(dtype=torch.float32), plugins=[scaling()], gradient_clip_val=0.5)
    base, scaler = sgd(twin), torch.amp.GradScaler("cpu", init_scale=1024.0)

    def loss(model: Any, batch: Any) -> Any:
        with torch.autocast("cpu", torch.float16):
            mean = nn.functional.cross_entropy(model(batch[0]), batch[1])
        return lowland.Loss(mean * len(batch[0]), len(batch[0])) if kind == "msam" else mean

    engine = lowland.Engine(METHODS[kind], twin, base, loss, scaler=scaler)
    for batch in loader(dtype=torch.float32):
        engine.backward(batch)
        scaler.unscale_(base)
        nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        scaler.step(base)
        scaler.update()
        base.zero_grad()
    assert apart(module.net, twin) == 0


def test_an_overflow_skips_the_step_and_keeps_the_vector() -> None:
    module = Module().float()
    at: list[Any] = []

    class Watching(Sharpness):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
            at.append((copy.deepcopy(pl_module.net), self.engine.memory["g_v"]))
            if index == 4:
                batch[0].fill_(float("inf"))

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            net_before, vector = at[-1]
            skipped = len(at) == 5
            assert (apart(pl_module.net, net_before) == 0) == skipped
            if skipped:
                assert all(torch.equal(a, b) for a, b in zip(vector, self.engine.memory["g_v"], strict=True))

    fit = trainer(Watching(METHODS["looksam"]), epochs=1, plugins=[scaling()])
    fit.fit(module, loader(dtype=torch.float32))
    assert len(at) == pl.BATCHES


def test_a_batch_that_overflows_is_no_loss_that_cannot_be_cut() -> None:
    """The comparison of two halves in step 0 decides nothing; the scaler skips the step."""
    module = Module().float()
    rows = loader(dtype=torch.float32)
    rows.dataset.tensors[0][: pl.ROWS] = float("inf")
    fit = fitted("msam", module, epochs=1, sent=rows, plugins=[scaling()])
    assert all(p.isfinite().all() for p in module.net.parameters())
    assert fit.precision_plugin.scaler.get_scale() == 512.0


def test_the_other_name_of_the_package() -> None:
    other = pytest.importorskip("pytorch_lightning")

    class Renamed(other.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def training_step(self, batch: Any, index: int) -> Any:
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return sgd(self.net)

    module, twin = Renamed(), net()
    more = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    sharp = Sharpness(METHODS["sampa"])
    other.Trainer(max_epochs=pl.EPOCHS, accelerator="cpu", callbacks=[sharp], **more).fit(module, loader())
    by_hand("sampa", twin)
    assert apart(module.net, twin) < 1e-10
