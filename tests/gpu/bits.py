"""Section bits: what must be equal is equal bit for bit."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from conformance import ALL
from torch import Tensor

from gpu.checks import Check
from gpu.training import Training, batch_of, deterministic, difference

STEPS, SAVED = 6, 3
DROPOUT = 0.3
BACK = "backward leaves every weight as it was, bit for bit, at the address where it was"
RESUMED = "after a resume the weights are bit for bit those of an uninterrupted training, with dropout"
SHARED = 'with rng="shared" both passes of a step have one dropout mask'
FREE = 'with rng="free" they have two masks, so that the check above can fail'
TWICE = ("sam", "gsam", "wsam", "friendly-sam")  # their passes are on the same examples


def checks() -> Iterator[Check]:
    """All methods with all settings, in float32, as they are trained."""
    for text in ALL:
        yield Check(f"{text}, moved or changed", partial(_changed, text), BACK, 0, "tensors")
    for text in ALL:
        yield Check(f"{text}, resumed", partial(_resumed, text), RESUMED, 0)
    for text in TWICE:
        yield Check(f"{text}, other entries", partial(_other_entries, text, "shared"), SHARED, 0)
    yield Check("sam, equal entries", lambda: 1 - _other_entries("sam", "free"), FREE, 0.9)


def _changed(text: str) -> float:
    """How many weights are not what or where they were, over all steps."""
    training = Training(text, dtype=torch.float32, dropout=DROPOUT)
    params, changed = list(training.net.parameters()), 0
    for number in range(STEPS):
        before = [(p.data_ptr(), p.detach().clone()) for p in params]
        with training.branches():
            training.engine.backward(batch_of(number, training.device, training.dtype))
        for p, (address, value) in zip(params, before, strict=True):
            changed += p.data_ptr() != address or not torch.equal(p, value)
        training.step()
    return changed


def _resumed(text: str) -> float:
    """The largest difference between an uninterrupted training and one that was resumed from a file."""
    with deterministic():
        whole = Training(text, dtype=torch.float32, dropout=DROPOUT)
        torch.manual_seed(0)
        whole.run(SAVED)
        file = io.BytesIO()
        torch.save(_state(whole), file)
        whole.run(STEPS - SAVED, start=SAVED)
        file.seek(0)
        resumed = Training(text, dtype=torch.float32, dropout=DROPOUT)
        _load(resumed, torch.load(file, weights_only=True))
        return difference(whole, resumed.run(STEPS - SAVED, start=SAVED))


def _state(training: Training) -> dict[str, Any]:
    on_gpu = training.device.type == "cuda"
    return {
        "net": training.net.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "engine": training.engine.state_dict(),
        "random": torch.cuda.get_rng_state() if on_gpu else torch.get_rng_state(),
    }


def _load(training: Training, state: dict[str, Any]) -> None:
    training.net.load_state_dict(state["net"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.engine.load_state_dict(state["engine"])
    restore = torch.cuda.set_rng_state if training.device.type == "cuda" else torch.set_rng_state
    restore(state["random"])


def _other_entries(text: str, rng: str) -> float:
    """The fraction of entries of dropout's masks that differ between the two passes of a step."""
    training, masks = Training(text, dtype=torch.float32, dropout=0.5, rng=rng), []

    def see(module: Any, inputs: Any, output: Tensor) -> None:
        masks.append(output == 0)

    training.net.drop.register_forward_hook(see)
    training.run(1)
    first, second = masks
    return float((first != second).float().mean())
