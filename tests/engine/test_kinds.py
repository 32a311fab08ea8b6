from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import lowland
from lowland.core.errors import ParameterError
from lowland.engine.kinds import Kinds, check_size


class Far:
    """Stands for a parameter on a device that is not here."""

    dtype = torch.float32

    def __init__(self, device: str, entries: int = 1) -> None:
        self.device, self.entries = torch.device(device), entries

    def numel(self) -> int:
        return self.entries


def square(model: nn.Module, x: Any) -> Any:
    return model(x).square().mean(1)


def made(model: nn.Module) -> lowland.Engine:
    return lowland.Engine(lowland.SAM(), model, torch.optim.SGD(model.parameters(), lr=0.1), square)


def test_weights_that_are_not_here_are_refused() -> None:
    with pytest.raises(ParameterError, match="must have values, but those of the model are on the meta device"):
        made(nn.Linear(5, 6, device="meta"))
    with pytest.raises(ParameterError, match="must be on one device, but are on cpu, meta"):
        made(nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3, device="meta")))


def test_frozen_weights_may_be_anywhere() -> None:
    model = nn.ModuleList([nn.Linear(5, 3), nn.Linear(5, 3, device="meta").requires_grad_(False)])
    engine = lowland.Engine(lowland.SAM(), model, torch.optim.SGD(model[0].parameters(), lr=0.1), lambda m, x: m[0](x))
    assert engine.names == ["0.weight", "0.bias"]


@pytest.mark.parametrize(
    ("now", "each", "names"),
    [
        (["cuda:0", "cuda:0"], False, "a and b are"),
        (["cuda:1", "cuda:1"], False, "a and b are"),
        (["cpu", "cuda:0"], True, "b is"),
    ],
)
def test_parameters_that_were_moved(now: list[str], each: bool, names: str) -> None:
    before: Any = [Far("cpu"), Far("cpu")]
    kinds, after = Kinds(["a", "b"], before), [Far(d) for d in now]
    kinds.check(before, each=True)
    with pytest.raises(ParameterError, match=rf"stay on their device.* {names.replace(' and', ',')} on another"):
        kinds.check(after, each=each)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", [0, 17, 256])
def test_one_dtype_of_many_is_seen_in_any_step(place: int) -> None:
    params = [torch.zeros(1) for _ in range(257)]
    kinds = Kinds([str(i) for i in range(257)], params)
    params[place] = params[place].double()
    with pytest.raises(ParameterError, match=f"since the engine was made {place} is of another"):
        kinds.check(params, each=False)


def test_an_engine_whose_model_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after ``model.cuda()``, which keeps the very parameters and puts other memory into them."""
    model = nn.Linear(5, 3)
    engine = made(model)
    engine.backward(torch.ones(4, 5))
    grads = [p.grad.clone() for p in engine.params]
    monkeypatch.setattr(engine.parameters._kinds, "_devices", [torch.device("cuda", 0)] * 2)
    with pytest.raises(ParameterError, match=r"weight, bias are on another, as after model.cuda\(\); move the model"):
        engine.backward(torch.ones(4, 5))
    assert engine.step == 1
    assert all(torch.equal(p.grad, g) for p, g in zip(engine.params, grads, strict=True))


@pytest.mark.parametrize(
    ("device", "entries", "version", "refused"),
    [
        ("cuda:0", 2**31, "2.7.1+cu126", True),
        ("cuda:0", 2**31 - 1, "2.7.1+cu126", False),
        ("cuda:0", 2**31, "2.8.0", False),
        ("cuda:0", 2**31, "2.13.0+cu130", False),
        ("cpu", 2**31, "2.6.0", False),
    ],
)
def test_tensors_of_more_entries_than_old_kernels_count(
    device: str, entries: int, version: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
    if refused:
        with pytest.raises(
            ParameterError, match=r"fewer than 2\*\*31 entries under torch 2.7.1.*head.weight has 2147483648"
        ):
            check_size("head.weight", Far(device, entries))
    else:
        check_size("head.weight", Far(device, entries))


def test_entries_that_share_memory_are_refused() -> None:
    model = nn.Linear(5, 6)
    model.weight = nn.Parameter(torch.zeros(1, 5).expand(6, 5))
    with pytest.raises(ParameterError, match=r"several entries of weight share one, as after expand\(\); clone it"):
        made(model)
    model.weight = nn.Parameter(torch.zeros(6, 1).expand(6, 1).clone().as_strided((6, 1), (1, 0)))  # one entry a row
    made(model)


@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(2, 5))])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_modules_of_torchscript_are_refused(make: Any, inside: bool) -> None:
    scripted = make(nn.Sequential(nn.Linear(5, 6), nn.Tanh()))
    with pytest.raises(ParameterError, match=r"made of Python modules, but (it|0) is a .*, as torch.jit.script and"):
        made(nn.Sequential(scripted, nn.Linear(6, 3)) if inside else scripted)


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has no grad_dtype")
def test_gradients_of_another_dtype_are_refused() -> None:
    for dtype, of_grad in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        model = nn.Linear(5, 6, dtype=dtype)
        model.weight.grad_dtype = of_grad
        with pytest.raises(ParameterError, match=rf"weight is {dtype} and its grad_dtype is {of_grad}; leave"):
            made(model)
    model.weight.grad_dtype = None  # any dtype, also the parameter's
    made(model.float()).backward(torch.ones(2, 5, dtype=torch.float32))
