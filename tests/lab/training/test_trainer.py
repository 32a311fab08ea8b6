from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lowland.core.errors import ParameterError, UsageError
from lowland.lab.training.prepare import complete, loader_of
from lowland.lab.training.run import train
from lowland.lab.training.trainer import Trainer
from lowland.methods import METHODS


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
