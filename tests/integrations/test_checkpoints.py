"""The engine's state in the folder of a framework's checkpoint: races, interrupted writes, other methods and ranks."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import lowland
from lowland.core.errors import StateError
from lowland.integrations import checkpoints

COLD: dict[str, Any] = {"resume": "exact", "option": 'Sharpness(…, resume="cold")', "knows_progress": False}


def engine(method: lowland.Method, steps: int = 0) -> lowland.Engine:
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made = lowland.Engine(method, model, optimizer, lambda m, b: cross_entropy(m(b[0]), b[1], reduction="none"))
    for _ in range(steps):
        made.backward((torch.randn(8, 6), torch.zeros(8, dtype=torch.long)))
    return made


LINEAR = lowland.schedule.linear(0.0, 0.1)  # over the whole training
RAMP, STILL = lowland.UnifiedSAM(lam="1-1/t"), lowland.UnifiedSAM(lam=0.5)


@pytest.mark.parametrize(
    ("method", "counts"),
    [
        (RAMP, True),
        (lowland.Late(inner=RAMP, start=0.5), True),
        (lowland.Late(inner=lowland.SAM(rho=LINEAR), start=4), True),
        (STILL, False),
        (lowland.Late(inner=STILL, start=0.5), False),
        (lowland.Late(inner=lowland.SAM(rho=LINEAR), start=0.5), False),
    ],
)
def test_a_method_that_counts_steps_does_not_resume_without_its_state(
    tmp_path: Path, method: lowland.Method, counts: bool
) -> None:
    """Where the framework knows the fraction of the training; a ramp over steps, or a first step, began again."""
    made = engine(method)
    assert checkpoints.keeps(made, knows_progress=True) == counts
    expected = pytest.raises(StateError, match="counts steps") if counts else contextlib.nullcontext()
    with expected:
        checkpoints.load(made, tmp_path, 0, **{**COLD, "knows_progress": True})


def test_any_rank_may_be_the_first_in_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    """Half of the trainings hung where a rank wrote before the first rank had made the folder."""
    folder, made = tmp_path / "checkpoint-3" / "state", engine(lowland.LookSAM(), steps=1)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda rank: checkpoints.save(made, folder, rank), range(8)))
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"lowland_{rank}.pt" for rank in range(8))


def test_what_an_interrupted_write_has_left_is_no_state(tmp_path: Path) -> None:
    checkpoints.path_of(tmp_path, 0).with_suffix(".tmp").write_bytes(b"half")
    with pytest.raises(StateError, match="must hold the state of LookSAM"):
        checkpoints.load(engine(lowland.LookSAM()), tmp_path, 0, **COLD)
    checkpoints.save(engine(lowland.LookSAM(), steps=2), tmp_path, 0)  # writes over it
    resumed = engine(lowland.LookSAM())
    checkpoints.load(resumed, tmp_path, 0, **COLD)
    assert resumed.step == 2
    assert [p.name for p in tmp_path.iterdir()] == ["lowland_0.pt"]


@pytest.mark.parametrize("method", [lowland.SAM(), lowland.SAMPa()])
def test_the_state_of_another_method_is_refused(tmp_path: Path, method: lowland.Method) -> None:
    """With resume="cold", too: that is for checkpoints of plain training."""
    checkpoints.save(engine(lowland.LookSAM(), steps=1), tmp_path, 0)
    for resume in checkpoints.RESUME:
        with pytest.raises(StateError, match=f"comes from LookSAM and the engine runs {method.kind}"):
            checkpoints.load(engine(method), tmp_path, 0, **{**COLD, "resume": resume})


def test_a_rank_without_a_file_reads_the_first_rank_s_if_the_state_is_the_same_on_all(tmp_path: Path) -> None:
    checkpoints.save(engine(lowland.LookSAM(), steps=3), tmp_path, 0)
    resumed = engine(lowland.LookSAM())
    checkpoints.load(resumed, tmp_path, 5, **COLD)
    assert resumed.step == 3


@pytest.mark.parametrize(
    ("method", "found"),
    [
        (lowland.Plain(), False),
        (lowland.SAM(), False),
        (lowland.MicroSAM(m=2), False),
        (lowland.SAM(rho=lowland.schedule.linear(0.0, 0.1, steps=10)), True),
        (lowland.Late(start=3, inner=lowland.SAM()), True),
        (lowland.Switch(inner=lowland.SAM(), when=lowland.schedule.every(2)), True),
        *((method, True) for method in (lowland.SAMPa(), lowland.LookSAM(), lowland.FriendlySAM(), lowland.VSAM())),
    ],
    ids=lambda value: getattr(value, "kind", str(value)),
)
def test_which_methods_need_their_state(method: lowland.Method, found: bool) -> None:
    assert checkpoints.keeps(engine(method), knows_progress=False) is found
