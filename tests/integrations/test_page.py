"""docs/integrations.md does what it says: its Python runs with each framework, its versions are those of the tests."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r'^```python title="([\w ]+)"\n(.*?)^```', PAGE, flags=re.DOTALL | re.MULTILINE))


def ran(title: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(BLOCKS[title], f"docs/integrations.md, {title}", "exec"), names)
    return names


@pytest.mark.filterwarnings("ignore")
def test_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers", exc_type=(ImportError, RuntimeError))
    from integrations import hf
    from integrations.trajectories import apart

    model = hf.Tiny()
    names = ran("transformers", {"model": model, "args": hf.arguments(tmp_path), "train_dataset": hf.classes()})
    assert names["trainer"].engine.step == hf.STEPS
    assert apart(model, hf.Tiny()) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trl(tmp_path: Path) -> None:
    pytest.importorskip("trl", exc_type=(ImportError, RuntimeError))
    from datasets import Dataset
    from trl import SFTConfig

    from integrations import hf
    from integrations.test_trl import COMMON, tokenizer

    rows = Dataset.from_list([{"text": f"w{i} w{i + 1} w{i + 2} w{i + 3}"} for i in range(2, 34)])
    args = SFTConfig(output_dir=str(tmp_path), **COMMON)
    names = ran("trl", {"model": hf.llama(), "args": args, "train_dataset": rows, "tokenizer": tokenizer()})
    assert names["trainer"].engine.step == hf.STEPS


def test_accelerate() -> None:
    pytest.importorskip("accelerate", exc_type=(ImportError, RuntimeError))
    import torch

    from integrations import loops
    from integrations.trajectories import apart, sgd

    loops.fresh()
    loops.AcceleratorState._reset_state(False)
    model = loops.net()
    optimizer = sgd(model)
    loader = torch.utils.data.DataLoader(loops.data(32), batch_size=8)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    given = {"model": model, "optimizer": optimizer, "loader": loader, "scheduler": scheduler}
    assert ran("accelerate", given)["sharp"].engine.step == 2
    assert apart(model, loops.net()) > 0


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning", exc_type=(ImportError, RuntimeError))
    from integrations import pl
    from integrations.loops import net
    from integrations.trajectories import apart

    monkeypatch.chdir(tmp_path)  # Lightning logs and saves beside the program
    module = pl.Module()
    names = ran("lightning", {"module": module, "loader": pl.loader()})
    assert names["trainer"].global_step == pl.BATCHES * 2
    assert apart(module.net, net()) > 0


def test_skorch() -> None:
    pytest.importorskip("skorch", exc_type=(ImportError, RuntimeError))
    from integrations import test_skorch as nets

    x, y = nets.data()
    given = {"Module": nets.Module, "criterion": nets.nn.CrossEntropyLoss, "X": x, "y": y}
    assert ran("skorch", given)["net"].engine_.step == 2  # 64 rows, skorch's batches of 128


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_peft(tmp_path: Path) -> None:
    pytest.importorskip("peft", exc_type=(ImportError, RuntimeError))
    from integrations import hf

    names = ran("peft", {"model": hf.llama(), "args": hf.arguments(tmp_path), "train_dataset": hf.texts()})
    engine = names["trainer"].engine
    assert engine.step == hf.STEPS
    assert all("lora" in name for name in engine.names)


@pytest.mark.filterwarnings("ignore")
def test_fabric() -> None:
    pytest.importorskip("lightning", exc_type=(ImportError, RuntimeError))
    from integrations import pl
    from integrations.loops import net
    from integrations.trajectories import apart, sgd

    model = net()
    names = ran("fabric", {"model": model, "optimizer": sgd(model), "loader": pl.loader()})
    assert names["engine"].step == pl.BATCHES
    assert apart(model, net()) > 0


@pytest.mark.filterwarnings("ignore")
def test_timm() -> None:
    pytest.importorskip("integrations.torchvision_operators")
    pytest.importorskip("timm")
    from integrations import test_timm as models
    from integrations.trajectories import apart

    model = models.vit()
    names = ran("timm", {"model": model, "loader": models.loader()})
    assert names["engine"].step == models.BATCHES
    assert apart(model, models.vit()) > 0


@pytest.mark.filterwarnings("ignore")
def test_fastai() -> None:
    pytest.importorskip("integrations.torchvision_operators")
    pytest.importorskip("fastai.callback.all")
    from integrations import learners
    from integrations.trajectories import apart

    model = learners.net()
    given = {"model": model, "dls": learners.learner(learners.net()).dls, "loss_func": learners.CrossEntropyLossFlat()}
    assert ran("fastai", given)["learn"].sharpness.engine.step == 2 * learners.ROWS // learners.BATCH
    assert apart(model, learners.net()) > 0


def test_averages() -> None:
    import torch
    from torch import nn

    def model() -> Any:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)).double()

    after: list[Any] = []  # the weights after every step

    class Noting(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step()
            after.append([p.detach().clone() for group in self.param_groups for p in group["params"]])

    g = torch.Generator().manual_seed(5)
    loader = [(torch.randn(8, 6, generator=g).double(), torch.randint(0, 3, (8,), generator=g)) for _ in range(6)]
    trained = model()
    names = ran("averages", {"model": trained, "optimizer": Noting(trained.parameters(), lr=0.1), "loader": loader})
    average = names["average"].module
    expected = after[0]
    for weights in after[1:]:
        expected = [0.99 * a + 0.01 * w for a, w in zip(expected, weights, strict=True)]
    for mine, theirs in zip(average.parameters(), expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)
    means = torch.stack([average[0](inputs).mean(0) for inputs, _ in loader]).mean(0)
    assert torch.allclose(average[1].running_mean, means, rtol=0, atol=1e-12)
    assert not average.training
    assert int(trained[1].num_batches_tracked) == len(loader)


@pytest.mark.slow
def test_fsdp2(tmp_path: Path) -> None:
    """The three blocks about shards, on two processes: a trajectory by hand, and a resume."""
    from integrations.launch import two_processes

    found = two_processes("two_processes_page.py", tmp_path)
    for rank in found["trajectory"]:
        assert isinstance(rank, float), rank
        assert rank < 1e-10
    assert found["resume"] == [0.0, 0.0]


def test_every_block_is_run_here() -> None:
    assert {f"test_{title.split()[0]}" for title in BLOCKS} <= set(globals())


def test_the_versions_are_those_that_are_installed() -> None:
    files = ("constraints-integrations.txt", "requirements-torchvision.txt")
    constraints = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in files)
    said = re.findall(r"(\w+) (\d+\.\d+\.\d+)", PAGE)
    assert said
    for name, version in said:
        assert f"\n{name}=={version}\n" in f"\n{constraints}"
        if importlib.util.find_spec(name) is not None:
            assert importlib.metadata.version(name) == version
