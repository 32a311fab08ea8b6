"""Methods whose memory holds more than vectors: all of it survives a checkpoint of the lab."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lowland.lab.training.run import train


@pytest.mark.parametrize(("method", "model"), [
    ("ausam:warmup=2,ramp=6", "mlp"),  # a table over the examples
    ("sl-sam", "mlp"),  # probabilities, and what was drawn
    ("friendly-sam", "mlp"),
    ("vasso:theta=0.4", "mlp"),
    ("unified-sam:lam=1/t", "mlp"),  # by the step
    ("xsam:every=6", "mlp"),  # saved between two searches
    ("ae-sam", "mlp"),  # running moments, and norms on their way to the host
    ("async-sam", "mlp"),
    ("late:start=3,inner=looksam:k=4", "mlp"),  # saved in the middle of the inner method's cycle
    ("late:start=0.5,inner=ausam:warmup=0", "mlp"),
    ("esam", "convnet"),
    ("sam-on", "convnet"),
])  # fmt: skip
def test_resume_in_the_middle(config, tmp_path, kill, method, model):
    config = replace(config, method=method, model=model, checkpoint_every=4)
    whole = train(config, tmp_path / "whole")
    with kill(4):
        train(config, tmp_path / "killed")
    again = train(config, tmp_path / "killed", resume=True)
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert again["gradients_per_step"] == whole["gradients_per_step"]
