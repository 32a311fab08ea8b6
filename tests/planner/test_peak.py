"""Predicted peaks of memory against peaks of trainings, counted by live tensors."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import Tensor, nn

from lowland.core.batch import Batches
from lowland.planner import peak
from lowland.planner.asks import Pass, read
from lowland.planner.fits import memory
from lowland.planner.layout import Layout, suits
from lowland.planner.line import Line
from lowland.planner.memory import LiveTensors
from lowland.planner.planning import named
from lowland.planner.subject import Subject
from lowland.planner.survey import meshes

METHODS = ["plain", "sam", "sampa", "looksam", "micro-sam:m=4", "esam", "asam", "gsam", "sl-sam"]
PARALLEL = ["plain", "sam", "sampa", "micro-sam:m=4", "looksam"]


def losses(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def subject(model: nn.Module, *shape: int) -> Subject:
    batch = torch.randn(*shape), torch.randint(3, (shape[0],))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Subject(model, [optimizer], losses, batch, Batches())


def perceptron() -> Subject:
    """Most of its memory are parameters."""
    layers = [layer for _ in range(3) for layer in (nn.Linear(64, 64), nn.ReLU())]
    return subject(nn.Sequential(*layers, nn.Linear(64, 3)), 32, 64)


def convnet() -> Subject:
    """Most of its memory are activations."""
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return subject(nn.Sequential(*layers, nn.Linear(32, 3)), 32, 1, 12, 12)


@pytest.mark.slow
@pytest.mark.parametrize("made", [perceptron, convnet])
def test_predicted_is_measured(made: Any) -> None:
    training = made()
    methods = dict(map(named, METHODS))
    predicted = memory(training, methods)
    for text, method in methods.items():
        for layout in (Layout(), Layout(micro_batch=16), Layout(micro_batch=8)):
            truth = peak.measured(training, method, layout)
            assert predicted[text](layout) == pytest.approx(truth, rel=0.1), f"{text} on {layout}"


LINES: dict[peak.Kind, Line] = {"again": Line(100, 10), "displaced": Line(200, 10), "forward": Line(0, 5)}


def test_a_peak_is_the_highest_pass_or_the_arithmetic() -> None:
    whole, up, loss = Pass(1.0, 1.0, False, True), Pass(0.5, 1.0, True, True), Pass(1.0, 0.0, False, False, 0.0)
    kept = peak.Kept(passes=((whole, 1000), (up, 1100), (loss, 50)), arithmetic=700)
    # 1000 + 100 + 10 · 16, 1100 + 200 + 10 · 8, and 50 + 5 · 16
    assert kept.peak(LINES, Layout(), 16) == 1380
    assert kept.peak(LINES, Layout(data=2), 16) == 1100 + 200 + 10 * 4
    assert kept.peak(LINES, Layout(micro_batch=2), 16) == 1100 + 200 + 10 * 2
    cut = {kind: Line(line.base + 50, line.slope) for kind, line in LINES.items()}
    assert kept.peak(LINES, Layout(micro_batch=2), 16, cut) == 1100 + 250 + 10 * 2
    assert kept.peak(LINES, Layout(micro_batch=8), 16, cut) == 1100 + 200 + 10 * 8  # half of the batch is not cut
    some = Pass(1.0, 0.5, True, True, 0.25)  # a quarter of the displacement, which takes 100
    assert peak.Kept(passes=((some, 1000),), arithmetic=0).peak(LINES, Layout(), 16) == 1000 + 100 + 25 + 10 * 16
    assert peak.Kept(passes=((loss, 50),), arithmetic=700).peak(LINES, Layout(), 16) == 700


def excess(texts: list[str], shared: bool) -> list[tuple[str, str, float]]:
    """The measured peak beyond the predicted one, in multiples of the parameters, on two ranks."""
    warnings.simplefilter("ignore")
    training = perceptron()
    methods = dict(map(named, texts))
    predicted = memory(training, methods)
    rows = []
    mesh = meshes([Layout(data=2), Layout(probe=2)], "cpu")
    for layout, devices in mesh.items():
        index = devices["data"].get_local_rank() if layout.data > 1 else 0
        batch = training.batches.chunk(training.batch, layout.data)[index]
        for text, method in methods.items():
            if not suits(layout, read(method, width=layout.width)):
                continue
            with LiveTensors() as meter:
                engine, optimizers = training.engine(method, layout, devices)
                peak._train(engine, optimizers, batch, peak.STEPS)
            # LiveTensors counts all of the memory that two ranks share, the prediction a rank's half
            others = 2 * training.parameters if shared and layout.probe > 1 else 0
            rows.append((text, str(layout), (meter.peak - others - predicted[text](layout)) / training.parameters))
            del engine, optimizers
            gc.collect()
    return rows


@pytest.mark.slow
def test_the_buffers_of_exchanges(way: str) -> None:
    for rows in on_ranks(2, excess, PARALLEL, way == "memory"):
        assert {(text, layout) for text, layout, _ in rows} == {
            *((text, "data=2") for text in PARALLEL),
            ("sampa", "probe=2"),
            ("micro-sam:m=4", "probe=2"),
        }
        for text, layout, more in rows:
            assert abs(more) < 0.25, f"{text} on {layout}: {more:.2f} times the parameters"


def test_exchanges_in_multiples_of_the_parameters() -> None:
    def of(synced: bool = True, shared: bool = True, **sizes: int) -> float:
        return peak.exchanged(Layout(**sizes), synced=synced, shared=shared)

    assert of() == 0
    assert (of(data=2), of(data=4), of(data=2, synced=False)) == (1, 1, 2)
    assert (of(probe=2), of(probe=4), of(probe=2, shared=False), of(probe=4, shared=False)) == (2, 2, 3, 5)
    assert of(probe=2, data=2) == 3
