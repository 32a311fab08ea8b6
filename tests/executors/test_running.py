"""Running statistics where several probes update them on several ranks."""

from __future__ import annotations

import pytest
import torch
from meshed import engine_on, steps
from problems import batch, net
from ranks import on_ranks
from torch import Tensor, nn

from lowland import MicroSAM, SAMPa
from lowland.core.errors import UsageError

pytestmark = pytest.mark.usefixtures("way")


def counted(ranks: bool, momentum: float | None, shared: bool) -> dict[str, Tensor]:
    model = net(norm=True)
    model.norm.momentum = momentum
    if shared:  # a layer that is run twice in a pass
        model.second = nn.Sequential(model.second, model.norm)
    # Both probes of a step update statistics, in two parts each.
    steps(engine_on(MicroSAM(m=2), model, ranks=ranks, micro_batch=2), 5)
    return dict(model.state_dict())


@pytest.mark.parametrize("momentum", [0.1, None, 0.0])
@pytest.mark.parametrize("shared", [False, True])
def test_statistics_of_layers_that_run_several_times(momentum: float | None, shared: bool) -> None:
    expected = counted(False, momentum, shared)
    first, second = on_ranks(2, counted, True, momentum, shared)
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-10, atol=1e-10)


def instances() -> None:
    model = nn.Sequential(nn.Unflatten(1, (1, 5)), nn.InstanceNorm1d(1, track_running_stats=True).double())
    model.extend([nn.Flatten(), nn.Linear(5, 3, dtype=torch.float64)])
    engine = engine_on(MicroSAM(m=2), model)
    with pytest.raises(UsageError, match="need layers that count their batches"):
        engine.backward(batch())
    steps(engine_on(SAMPa(), model), 2)  # one probe updates them


def test_instance_norm_does_not_count() -> None:
    on_ranks(2, instances)
