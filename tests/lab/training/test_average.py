"""The average of the weights: against a recursion by hand, put in place and back, and resumed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import chain, count, islice
from pathlib import Path

import pytest
import torch

from lowland.lab.config import RunConfig
from lowland.lab.training.average import Average
from lowland.lab.training.prepare import loader_of
from lowland.lab.training.run import train
from lowland.lab.training.trainer import Trainer
from lowland.methods import make
from lowland.runs.reader import read_all


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


@pytest.mark.parametrize("model", ["mlp", "convnet"])
@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_it_follows_the_recursion_in_double_precision(config: RunConfig, model: str, decay: float) -> None:
    config = replace(config, model=model, recipe=config.recipe.replace(ema=decay))
    trainer, loader = Trainer(config, make("sam")), loader_of(config)
    assert trainer.average is not None
    mean = {name: t.double() for name, t in state(trainer.model).items()}
    steps = islice(chain.from_iterable(loader.batches(epoch) for epoch in count()), 15)
    for step, batch in enumerate(steps, start=1):
        trainer.step(batch, 0.3)
        own = min(decay, (1 + step) / (10 + step))
        mean = {name: own * mean[name] + (1 - own) * t.double() for name, t in state(trainer.model).items()}
    with trainer.evaluated() as judged:
        found = state(judged)
    floats = [name for name, t in found.items() if t.is_floating_point()]
    assert len(floats) > 3
    for name in floats:
        torch.testing.assert_close(found[name].double(), mean[name], rtol=1e-5, atol=1e-6)
    now = state(trainer.model)
    assert not all(torch.allclose(found[name], now[name], rtol=1e-4) for name in floats)
    for name in found.keys() - set(floats):  # what counts batches is no average
        assert torch.equal(found[name], now[name])


def test_the_weights_come_back_bit_for_bit() -> None:
    model = torch.nn.Linear(3, 2)
    average = Average(model, 0.9)
    torch.nn.init.normal_(model.weight)
    average.update(1)
    before = state(model)
    with average.in_place():
        assert not torch.equal(model.weight, before["weight"])
    assert all(torch.equal(t, before[name]) for name, t in state(model).items())
    with pytest.raises(KeyboardInterrupt), average.in_place():
        raise KeyboardInterrupt
    assert all(torch.equal(t, before[name]) for name, t in state(model).items())


def test_it_neither_follows_the_model_nor_moves_with_it() -> None:
    model = torch.nn.Linear(3, 2)
    average = Average(model, 0.9)
    initial = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
    assert torch.equal(average.tensors()["average/weight"], initial)
    average.update(1)  # the decay of the first step is 2/11
    torch.testing.assert_close(average.tensors()["average/weight"], initial + 9 / 11)


def test_what_is_judged_is_the_average_and_training_is_the_same(config: RunConfig, tmp_path: Path) -> None:
    own = replace(config, recipe=config.recipe.replace(ema=0.9))
    plain, averaged = train(config, tmp_path / "plain"), train(own, tmp_path / "averaged")
    one, other = read_all([tmp_path / "plain", tmp_path / "averaged"])
    assert [epoch.train_loss for epoch in one.epochs] == [epoch.train_loss for epoch in other.epochs]
    assert plain["weights_sha256"] != averaged["weights_sha256"]
    assert plain["test"] != averaged["test"]


def test_a_resume_goes_on_bit_for_bit(
    config: RunConfig, tmp_path: Path, kill: Callable[[int], AbstractContextManager[None]]
) -> None:
    own = replace(config, recipe=config.recipe.replace(ema=0.9), checkpoint_every=4)
    whole = train(own, tmp_path / "whole")
    with kill(4):
        train(own, tmp_path / "killed")
    again = train(own, tmp_path / "killed", resume=True)
    assert again["weights_sha256"] == whole["weights_sha256"]  # of the average
    assert again["test"] == whole["test"]
