"""transformers' Trainer with a method: trajectories by hand, the untouched Trainer, resume, ranks, refusals."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", exc_type=(ImportError, RuntimeError))
pytest.importorskip("accelerate", exc_type=(ImportError, RuntimeError))

import torch
from transformers import BatchEncoding, Trainer, TrainerCallback, TrainingArguments

import lowland
from integrations import hf
from integrations.hf import Tiny, by_hand, classes, llama, texts, trained, twins
from integrations.methods import METHODS
from integrations.trajectories import Trajectory, adamw, apart, sgd
from lowland.core.schedule import Schedule
from lowland.integrations.transformers import SharpnessTrainer

# Trajectories in float64 differ by summation order alone; transformers computes a causal model's loss in float32.
DOUBLE, SINGLE = 1e-10, 1e-7
DATA = {"classes": classes(), "texts": texts()}
MODELS: dict[str, Any] = {"classes": Tiny, "texts": llama}


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("kind", ["sam", "sampa", "looksam", "msam"])
@pytest.mark.parametrize("task", ["classes", "texts"])
def test_one_perturbation_for_all_micro_batches(tmp_path: Path, task: str, kind: str, k: int) -> None:
    model, twin = twins(MODELS[task])
    trainer = trained(kind, tmp_path, model, DATA[task], k)
    losses = by_hand(kind, twin, DATA[task], k)
    assert apart(model, twin) < (DOUBLE if task == "classes" else SINGLE)
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(float(sum(losses)) / len(losses), rel=1e-5)
    assert trainer.engine.step == hf.STEPS


@pytest.mark.parametrize("kind", ["sam", "sampa", "looksam", "msam"])
def test_clipping_schedule_and_adamw_are_the_trainer_s_own(tmp_path: Path, kind: str) -> None:
    model, twin = twins(Tiny)
    trained(kind, tmp_path, model, DATA["classes"], 2, optimizer=adamw, max_grad_norm=0.05, lr_scheduler_type="linear")

    def linear(base: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(base, lambda t: 1 - t / hf.STEPS)

    by_hand(kind, twin, DATA["classes"], 2, optimizer=adamw, clip=0.05, schedule=linear)
    assert apart(model, twin) < DOUBLE


class Quirk(Tiny):
    """As BertForSequenceClassification: forward takes anything, but its loss is a mean all the same."""

    def forward(self, input_ids: Any, labels: Any = None, **kwargs: Any) -> Any:
        return super().forward(input_ids, labels)


SAME: dict[str, dict[str, Any]] = {
    "k=1": {},
    "k=2": {"k": 2},
    "k=3": {"k": 3},
    "k=4, clip": {"k": 4, "max_grad_norm": 0.05},
    "linear schedule": {"k": 2, "lr_scheduler_type": "linear", "warmup_steps": 2},
    "dropout": {"make": lambda: Tiny(0.3), "k": 2},
    "bf16": {"make": lambda: Tiny(dtype=torch.float32), "k": 2, "bf16": True},
    "kwargs without normalization": {"make": Quirk, "k": 2},
    "texts": {"make": llama, "task": "texts", "k": 3},
    "label smoothing": {"make": llama, "task": "texts", "k": 2, "label_smoothing_factor": 0.1},
    "a stream that ends in a step": {"k": 3, "rows": 20, "stream": True},
    "ragged end": {"k": 3, "rows": 22, "max_steps": -1, "num_train_epochs": 2, "dataloader_drop_last": False},
}


@pytest.mark.parametrize("case", SAME)
@pytest.mark.parametrize("method", ["plain", "zero"])
def test_without_a_perturbation_it_is_the_trainer_bit_for_bit(tmp_path: Path, case: str, method: str) -> None:
    given: dict[str, Any] = {"make": Tiny, "task": "classes", "k": 1, **SAME[case]}
    if method == "zero":
        given["mixin"] = {"sharpness_options": {"rng": "shared"}}  # one dropout mask for both passes
    make, task, rows = given.pop("make"), given.pop("task"), given.pop("rows", 128)
    data: Any = classes(rows) if task == "classes" else texts(rows)
    data = hf.Stream(data) if given.pop("stream", False) else data
    model, twin = twins(make)
    torch.manual_seed(5)
    ours = trained("plain" if method == "plain" else lowland.SAM(rho=0.0), tmp_path / "a", model, data, **given)
    torch.manual_seed(5)
    given.pop("mixin", None)
    theirs = trained(None, tmp_path / "b", twin, data, **given)
    assert apart(model, twin) == 0
    mine, plain = (t.state.log_history[-1]["train_loss"] for t in (ours, theirs))
    assert mine == pytest.approx(plain, rel=1e-6)  # the Trainer adds micro-batches up in float32


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [Tiny, llama])
def test_with_default_arguments_it_is_the_trainer_bit_for_bit(tmp_path: Path, make: Any) -> None:
    """Its own fused AdamW with two groups, its clipping, its schedule."""
    model, twin = twins(make)
    given: dict[str, Any] = {"max_steps": 4, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
    for made, m, more in ((SharpnessTrainer, model, {"sharpness": lowland.Plain()}), (Trainer, twin, {})):
        args = TrainingArguments(output_dir=str(tmp_path), **given)
        made(model=m, args=args, train_dataset=DATA["classes" if make is Tiny else "texts"], **more).train()
    assert apart(model, twin) == 0
    assert apart(model, make()) > 0


def test_the_norm_that_is_logged_is_that_of_the_method_s_gradient(tmp_path: Path) -> None:
    """Before clipping; LookSAM's gradient between SAM steps is longer than that at the weights."""
    norms: list[float] = []

    class Noting(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            grads = [p.grad for group in self.param_groups for p in group["params"]]
            norms.append(float(torch.nn.utils.get_total_norm(grads)))
            super().step()

    model, twin = twins(Tiny)
    logged = {"logging_strategy": "steps", "logging_steps": 1, "max_grad_norm": 1e9}
    trainer = trained("looksam", tmp_path, model, DATA["classes"], 2, **logged)
    by_hand("looksam", twin, DATA["classes"], 2, optimizer=lambda m: Noting(m.parameters(), lr=0.05, momentum=0.9,
                                                                           weight_decay=1e-2))  # fmt: skip
    found = [float(entry["grad_norm"]) for entry in trainer.state.log_history if "grad_norm" in entry]
    assert found == pytest.approx(norms, rel=1e-6)


@pytest.mark.parametrize("kind", ["sam", "sampa", "looksam", "msam"])
def test_micro_batches_that_are_padded_to_other_lengths(tmp_path: Path, kind: str) -> None:
    """A collator pads every micro-batch to its own longest row, so that micro-batches cannot be concatenated."""
    rows = classes()
    for i, row in enumerate(rows.rows):
        row["input_ids"] = row["input_ids"][: 2 + i // hf.ROWS % 5]  # rows of a micro-batch are alike

    model, twin = twins(Tiny)
    trained(kind, tmp_path, model, rows, 2)
    base = sgd(twin)

    def loss(m: Any, pieces: Any) -> Any:
        return sum((w * m(**b).loss for b, w in pieces), torch.zeros((), dtype=torch.float64))

    def cut(pieces: Any) -> Any:
        """Of two micro-batches of the same number of rows, one part each."""
        return [([piece], 1.0) for piece in pieces]

    hand = Trajectory(kind, twin, base, loss, cut)
    for batches in (hf.micro_batches(rows, 2 * hf.STEPS)[2 * t : 2 * t + 2] for t in range(hf.STEPS)):
        base.zero_grad()
        hand.backward([(each[0], 0.5) for each in batches])
        base.step()
    assert apart(model, twin) < DOUBLE


def test_a_cut_goes_through_a_mean_that_the_trainer_does_not_divide(tmp_path: Path) -> None:
    model, twin = twins(Quirk)
    trained("msam", tmp_path, model, DATA["classes"])
    by_hand("msam", twin, DATA["classes"])
    assert apart(model, twin) < DOUBLE


@pytest.mark.parametrize("kind", ["sam", "sampa", "looksam", "msam"])
def test_an_epoch_that_ends_in_fewer_and_shorter_micro_batches(tmp_path: Path, kind: str) -> None:
    """22 rows in micro-batches of 4: two steps of three micro-batches an epoch, the last one of two rows."""
    model, twin = twins(Tiny)
    more = {"max_steps": -1, "num_train_epochs": 2, "dataloader_drop_last": False}
    trained(kind, tmp_path, model, classes(22), 3, **more)
    base, rows = sgd(twin), classes(22)

    def loss(m: Any, pieces: Any) -> Any:
        return sum((w * m(**b).loss for b, w in pieces), torch.zeros((), dtype=torch.float64))

    def cut(pieces: Any) -> Any:
        """Two runs of rows; every row weighs what it weighs in its micro-batch's mean."""
        each = [({k: v[i : i + 1] for k, v in b.items()}, w / len(b["labels"])) for b, w in pieces for i in
                range(len(b["labels"]))]  # fmt: skip
        half = (len(each) + 1) // 2
        runs = [each[:half], each[half:]]
        return [([(b, w) for b, w in run], 1.0) for run in runs]

    hand = Trajectory(kind, twin, base, loss, cut)
    for _ in range(2):
        for start in (0, 12):
            at = [range(a, min(a + 4, 22)) for a in range(start, min(start + 12, 22), 4)]
            pieces = [{key: torch.stack([rows[i][key] for i in r]) for key in rows[0]} for r in at]
            base.zero_grad()
            hand.backward([(b, 1 / len(pieces)) for b in pieces])
            base.step()
    assert apart(model, twin) < DOUBLE


def test_periods_and_schedules_count_optimizer_steps(tmp_path: Path) -> None:
    """S11: with one step of the method for each micro-batch, LookSAM(k=5) would take 5 SAM steps in 24."""
    seen: list[int] = []

    @dataclass(frozen=True)
    class Noting(Schedule):
        def at(self, step: int, lr: Any, progress: float | None = None) -> float:
            seen.append(step)
            return 0.05

    trainer = trained(lowland.LookSAM(rho=Noting(), k=5), tmp_path, Tiny(), DATA["classes"], 4)
    assert trainer.engine.step == hf.STEPS
    # 6 steps and 2 SAM steps, of 4 micro-batches each.
    assert trainer.engine.cost.gradients == 8
    assert seen == [0, 5]


@pytest.mark.parametrize("rho", [0.0, 0.2])
def test_a_radius_by_parameter_group(tmp_path: Path, rho: float) -> None:
    """The embedding's own radius; 0 excludes it."""

    def grouped(model: Any) -> torch.optim.Optimizer:
        own = list(model.embed.parameters())
        rest = [p for name, p in model.named_parameters() if not name.startswith("embed")]
        return torch.optim.SGD([{"params": own, "rho": rho}, {"params": rest}], lr=0.05, momentum=0.9)

    model, twin = twins(Tiny)
    trained("sam", tmp_path, model, DATA["classes"], optimizer=grouped)
    base = grouped(twin)
    for (batch,) in hf.micro_batches(DATA["classes"], hf.STEPS):
        found = torch.autograd.grad(twin(**batch).loss, list(twin.parameters()))
        radii = [rho if name.startswith("embed") else 0.05 for name, _ in twin.named_parameters()]
        norm = torch.sqrt(sum((g * g).sum() for g, r in zip(found, radii, strict=True) if r))
        before = copy.deepcopy(twin.state_dict())
        with torch.no_grad():
            for p, g, r in zip(twin.parameters(), found, radii, strict=True):
                p.add_(r * g / norm)
        base.zero_grad()
        twin(**batch).loss.backward()
        twin.load_state_dict(before)
        base.step()
    assert apart(model, twin) < DOUBLE


def test_a_method_that_goes_by_progress_knows_the_whole_training(tmp_path: Path) -> None:
    method = lowland.Late(start=0.5, inner=lowland.SAM())
    trainer = trained(method, tmp_path, Tiny(), DATA["classes"], 2)
    assert trainer.engine.cost.gradients == hf.STEPS + hf.STEPS // 2


def test_hooks_run_once_for_a_step_and_a_tokenizer_s_batch_is_taken(tmp_path: Path) -> None:
    calls: dict[str, int] = {}

    class Counting(TrainerCallback):  # type: ignore[misc]
        pass

    for name in ("on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_substep_end"):

        def note(self: Any, args: Any, state: Any, control: Any, _name: str = name, **_: Any) -> None:
            calls[_name] = calls.get(_name, 0) + 1

        setattr(Counting, name, note)
    data = DATA["classes"]
    model, twin = twins(Tiny)
    trainer = SharpnessTrainer(
        model=model,
        args=hf.arguments(tmp_path, 2),
        train_dataset=data,
        optimizers=(sgd(model), None),
        callbacks=[Counting()],
        data_collator=lambda rows: BatchEncoding({key: torch.stack([r[key] for r in rows]) for key in rows[0]}),
        sharpness=METHODS["msam"],
    )
    trainer.train()
    by_hand("msam", twin, data, 2)
    assert apart(model, twin) < DOUBLE
    assert calls == {"on_pre_optimizer_step": 6, "on_optimizer_step": 6, "on_step_end": 6, "on_substep_end": 6}
    assert trainer.state.global_step == 6


def test_statistics_of_batch_norm_are_updated_once_for_a_micro_batch(tmp_path: Path) -> None:
    class Normed(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(16).double()

        def forward(self, input_ids: Any, labels: Any = None) -> Any:
            hidden = self.norm(torch.tanh(self.hidden(self.embed(input_ids).mean(1))))
            return {"loss": torch.nn.functional.cross_entropy(self.out(hidden), labels)}

    model = Normed()
    trained("sam", tmp_path, model, DATA["classes"], 2)
    assert int(model.norm.num_batches_tracked) == 2 * hf.STEPS
