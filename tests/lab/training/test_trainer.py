from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils import _pytree as pytree

from lowland.core.errors import ParameterError, UsageError
from lowland.lab.training.prepare import complete, loader_of
from lowland.lab.training.run import train
from lowland.lab.training.trainer import Trainer
from lowland.methods import METHODS
from lowland.parallel import World


def trainer(config, method, **recipe):
    config = replace(config, method=method, recipe=config.recipe.replace(**recipe))
    return Trainer(config, complete(config, loader_of(config)))


@pytest.mark.parametrize("method", [key for key in METHODS if key != "sam-on"])
def test_the_first_question_leaves_no_trace(config, method):
    found = trainer(config, method)
    assert (found.engine.step, found.engine.cost.gradients) == (0, 0)
    again = trainer(config, method)
    assert found.engine.rng.getstate() == again.engine.rng.getstate()
    assert not found.optimizer.state
    assert all(p.grad is None for p in found.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(found.engine.params, again.engine.params, strict=True))
    fresh = found.engine.method.init([p.detach() for p in found.engine.params])
    assert str(found.engine.memory) == str(fresh)


@pytest.mark.parametrize("method", ["sam-on", "late:inner=sam-on", "late:inner=late:inner=sam-on"])
def test_sam_on_without_normalization_is_refused_before_there_is_a_folder(config, tmp_path, method):
    with pytest.raises(ParameterError, match="the model must have a normalization layer for SAMON"):
        train(replace(config, method=method), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert trainer(replace(config, model="convnet"), method).engine.step == 0


def test_momentum_sam_without_momentum_is_refused_as_early(config):
    with pytest.raises(UsageError, match="momentum must be > 0"):
        trainer(config, "momentum-sam", momentum=0.0, nesterov=False)


def test_functional_sam_trains_on_a_task_in_two_parts_and_is_refused_on_another(config, tmp_path):
    found = trainer(config, "functional-sam", precision="bf16")
    batch = next(iter(loader_of(config).batches(0)))
    before = found.engine.params[0].detach().clone()
    assert found.step(batch, 0.0).isfinite()
    assert not torch.equal(found.engine.params[0], before)

    class Own(type(config.task)):
        def training_loss(self, model, batch, recipe):
            return self.loss(model, batch)

    with pytest.raises(UsageError, match=r"must be a lowland\.Criterion.*; for a task, define its training_criterion"):
        trainer(replace(config, task=Own()), "functional-sam")


def test_a_geometry_without_its_second_moment_is_refused_as_early(config):
    with pytest.raises(UsageError, match="the second moment is known for Adam and AdamW, but the optimizer is SGD"):
        trainer(config, "sam:geometry=preconditioned")
    found = trainer(config, "sam:geometry=preconditioned", optimizer="adamw", lr=1e-3, momentum=0.0, nesterov=False)
    assert found.step(next(iter(loader_of(config).batches(0))), 0.0).isfinite()


class OnHost(torch.Tensor):
    """What ``tensor.cpu()`` gives here; every other tensor stands for one on a GPU."""


@pytest.mark.parametrize("method", ["sampa", "ausam", "late:start=0,inner=sampa"])
def test_what_ranks_send_each_other_is_on_the_host(config, method, monkeypatch):
    """An unpickled CUDA tensor would be on the sender's GPU, or fail where a rank does not see it."""
    sent = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: tensor.detach().as_subclass(OnHost))
    monkeypatch.setattr(World, "gather", lambda world, value: sent.append(value) or [value])
    found = trainer(config, method)
    batch = next(iter(loader_of(config).batches(0)))
    found.step(batch, 0.0)
    state = found.state()
    (own,) = sent
    tensors = [t for t in pytree.tree_leaves(own["values"]) if isinstance(t, torch.Tensor)]
    assert tensors
    assert all(isinstance(t, OnHost) for t in tensors)
    assert own["rng"].device == torch.device("cpu")  # torch keeps random states on the host
    assert {type(v) for k, v in own.items() if k not in ("values", "rng")} <= {int, type(None)}
    assert state["shares"] == [own]
