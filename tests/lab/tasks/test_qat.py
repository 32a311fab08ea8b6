"""Quantization-aware training: the checks of tasks, what is evaluated, and both kinds of displacement."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lowland import SAM
from lowland.core.errors import ArgumentError
from lowland.lab import load_run, models, names
from lowland.lab.budget import Budget
from lowland.lab.config import RunConfig
from lowland.lab.data.images import ImageSet
from lowland.lab.quantize import FakeQuantize, quantized, targets
from lowland.lab.tasks.cifar import Cifar10
from lowland.lab.tasks.digits import Digits
from lowland.lab.tasks.qat import Qat
from lowland.lab.testing import check_task
from lowland.lab.training.evaluate import evaluate
from lowland.lab.training.prepare import loader_of
from lowland.lab.training.run import train
from lowland.lab.training.trainer import Trainer
from lowland.methods import make


def config(task: Qat, model: str = "mlp", method: str = "sam", steps: int = 6) -> RunConfig:
    recipe = task.recipe(model)
    return RunConfig(
        task=task, model=model, method=method, seed=1, recipe=recipe, budget=Budget(limit=steps), device="cpu"
    )


@pytest.mark.parametrize("text", ["qat", "qat:bits=4,granularity=tensor,displace=quantized", "qat:noise=0.2,bits=4"])
def test_the_checks_of_tasks(text: str) -> None:
    task = names.make(text)
    assert check_task(task) == []
    assert names.spell(task) == text


@pytest.mark.parametrize("model", ["convnet", "resnet20"])
def test_the_checks_with_convolutions(model: str) -> None:
    assert check_task(Qat(bits=4, displace="quantized"), model) == []


def test_the_other_task_gives_data_models_and_recipe(cifar10_files: Path) -> None:
    task = Qat(data="cifar10")
    assert (task.shape, task.classes, task.models) == (Cifar10.shape, 10, Cifar10.models)
    assert task.recipe("resnet20") == Cifar10().recipe("resnet20")
    assert task.defaults("looksam", "resnet20") == Cifar10().defaults("looksam", "resnet20")
    found = task.images(cifar10_files)
    assert isinstance(found, ImageSet)
    assert torch.equal(found.test_inputs, Cifar10().images(cifar10_files).test_inputs)
    assert names.make("qat:data=fashion-mnist").models[0] == "convnet"


@pytest.mark.data
@pytest.mark.parametrize(("data", "folder"), [("fashion-mnist", "FashionMNIST"), ("cifar10", "cifar-10-batches-py")])
def test_the_checks_on_real_data(data: str, folder: str, real: Callable[[str], Path]) -> None:
    assert check_task(Qat(data=data, bits=4, displace="quantized"), root=real(folder)) == []  # type: ignore[arg-type]


def test_every_matrix_is_quantized_and_starts_from_the_latent_weights_of_the_other_task() -> None:
    plain = models.seeded(lambda: Digits().model("resnet20"), 3)
    model = models.seeded(lambda: Qat(bits=4).model("resnet20"), 3)
    assert sum(isinstance(m, FakeQuantize) for m in model.modules()) == 20
    for own, other in zip(targets(model), targets(plain), strict=True):
        assert torch.equal(own.tensor, quantized(other.tensor, 4))
    latent = {name.replace("parametrizations.", "").replace(".original", ""): p for name, p in model.named_parameters()}
    assert all(torch.equal(p, latent[name]) for name, p in plain.named_parameters())


def test_a_run_evaluates_the_quantized_weights(tmp_path: Path) -> None:
    task = Qat(bits=4)
    end = train(config(task, steps=30), tmp_path / "run")
    trained = load_run(tmp_path / "run", device="cpu")
    assert trained.task == task
    deployed = Digits().model("mlp")
    with torch.no_grad():
        for own, other in zip(targets(trained.model), targets(deployed), strict=True):
            other.module.bias.copy_(own.module.bias)
            original = own.module.parametrizations.weight.original
            other.tensor.copy_(quantized(original, 4))
            assert not torch.equal(other.tensor, original)
    figures = evaluate(Digits(), deployed, trained.loader.evaluation(), device=torch.device("cpu"))
    assert figures == end["test"]


@pytest.mark.parametrize("displace", ["latent", "quantized"])
def test_sam_follows_its_formula(displace: str) -> None:
    """One step by hand: the second gradient at Q(w + e) or at Q(w) + e, where e = rho g / ||g|| over all weights."""
    task = Qat(bits=4, displace=displace)  # type: ignore[arg-type]
    setting = config(task)
    trainer = Trainer(setting, make("sam:rho=0.2"))
    batch = next(iter(loader_of(setting).batches(0)))
    plain = Digits().model("mlp")
    latent = [p.detach().clone() for p in trainer.model.parameters()]
    order = [i for i, (name, _) in enumerate(trainer.model.named_parameters()) if "original" in name]

    def gradient(weights: list[torch.Tensor]) -> list[torch.Tensor]:
        """The gradient of the unquantized network at these weights, in the order of the quantized network."""
        layers = [m for m in plain.modules() if isinstance(m, nn.Linear)]
        loss = task.loss(plain, batch).mean()
        with torch.no_grad():
            for layer, i in zip(layers, order, strict=True):
                layer.weight.copy_(weights[i])
                layer.bias.copy_(weights[i - 1])
        loss = task.loss(plain, batch).mean()
        grads = torch.autograd.grad(loss, [t for layer in layers for t in (layer.bias, layer.weight)])
        return list(grads)

    def q(weights: list[torch.Tensor]) -> list[torch.Tensor]:
        return [quantized(w, 4) if i in order else w for i, w in enumerate(weights)]

    g = gradient(q(latent))
    length = torch.sqrt(sum((t.double() ** 2).sum() for t in g))
    at = [(0.2 * t / length).float() for t in g]
    moved = [w + e for w, e in zip(latent, at, strict=True)]
    there = q(moved) if displace == "latent" else [w + e for w, e in zip(q(latent), at, strict=True)]
    expected = gradient(there)
    trainer.engine.backward(batch)
    for p, other in zip(trainer.model.parameters(), expected, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, other, rtol=1e-4, atol=1e-6)  # float32, in another order of sums
    assert all(torch.equal(p, w) for p, w in zip(trainer.model.parameters(), latent, strict=True))


@pytest.mark.parametrize("displace", ["latent", "quantized"])
@pytest.mark.parametrize("method", ["sampa", "looksam:k=2", "asam", "momentum-sam", "gsam"])
def test_other_methods_train(displace: str, method: str, tmp_path: Path) -> None:
    task = Qat(bits=4, displace=displace)  # type: ignore[arg-type]
    end = train(config(task, method=method, steps=4), tmp_path / "run")
    assert not end.get("diverged")


def test_plain_training_does_not_depend_on_where_a_perturbation_would_be_added(tmp_path: Path) -> None:
    ends = [
        train(config(Qat(bits=4, displace=displace), method="plain"), tmp_path / displace)  # type: ignore[arg-type]
        for displace in ("latent", "quantized")
    ]
    assert ends[0]["weights_sha256"] == ends[1]["weights_sha256"]


def test_a_run_resumes_bit_for_bit(kill: Callable[[int], AbstractContextManager[None]], tmp_path: Path) -> None:
    setting = replace(config(Qat(displace="quantized"), steps=8), checkpoint_every=4)
    end = train(setting, tmp_path / "whole")
    with kill(4):
        train(setting, tmp_path / "cut")
    assert train(setting, tmp_path / "cut", resume=True)["weights_sha256"] == end["weights_sha256"]


def test_refusals() -> None:
    for field, message in {
        "bits=3": "bits must be 4 or 8, but is 3",
        "data=cifar100": "data must be one of",
        "granularity=row": "granularity must be one of",
        "displace=both": "displace must be one of",
        "noise=2": "noise must be in",
    }.items():
        with pytest.raises(ArgumentError, match=message):
            names.make(f"qat:{field}")
    setting = replace(config(Qat()), model=lambda: Digits().model("mlp"))
    with pytest.raises(ArgumentError, match="model must be one that the task qat makes, but quantizes no weight"):
        Trainer(setting, SAM())


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_two_ranks(shard: bool, tmp_path: Path) -> None:
    """Two ranks take the steps of one, up to the order of sums; sharded weights are refused."""
    words = ["train", "--task", "qat:bits=4,displace=quantized", "--method", "sam:rho=0.5", "--limit", "6"]
    words += ["--threads", "1", "--device", "cpu", "--out", str(tmp_path), "--name", "ranks", *["--shard"] * shard]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lowland"]
    ran = subprocess.run([*torchrun, *words], capture_output=True, text=True, timeout=120, check=False)
    if shard:
        assert ran.returncode != 0
        assert "a layer must see the parameters that a pass displaces" in ran.stderr
        return
    assert ran.returncode == 0, ran.stderr
    setting = config(Qat(bits=4, displace="quantized"), method="sam:rho=0.5", steps=6)
    train(replace(setting, seed=0), tmp_path / "one")
    one, two = (load_run(tmp_path / name, device="cpu").model for name in ("one", "ranks"))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)  # the weights move by 1e-2
