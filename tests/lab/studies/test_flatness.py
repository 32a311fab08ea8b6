"""Measures of finished runs: their values, what is kept, what is left out, and what an interruption leaves."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lowland import sharpness
from lowland.core.errors import ArgumentError, MissingExtraError
from lowland.lab import load_run, names
from lowland.lab.budget import Budget
from lowland.lab.config import RunConfig
from lowland.lab.studies import flatness
from lowland.lab.studies.flatness import NAMES, Flatness, measure_runs
from lowland.lab.studies.gauges import Gauges
from lowland.lab.training.evaluate import evaluate
from lowland.lab.training.run import train
from lowland.runs import landscape, measures
from lowland.runs.measures import MEASURES_FILE, Measure
from lowland.runs.reader import read_all

SMALL = Flatness(
    measures=NAMES, m=32, examples=64, steps=2, directions=2, eigenvalues=2, samples=2, depth=4, points=3,
    plane_points=3,
)  # fmt: skip
QUICK = replace(SMALL, measures=("average", "slices"))


class Told:
    """Remembers what is shown."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.lines: list[str] = []

    def begin(self, text: str) -> None:
        self.begun.append(text)

    def end(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of digits with equal seeds, after three steps."""
    folder = tmp_path_factory.mktemp("runs")
    task = names.make("digits")
    for method in ("plain", "sam"):
        config = RunConfig(
            task=task, model="mlp", method=method, seed=1, recipe=task.recipe("mlp").replace(epochs=1),
            budget=Budget(limit=3), device="cpu",
        )  # fmt: skip
        train(config, folder / method)
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


def measured(folder: Path, wanted: Flatness, **options: bool) -> tuple[dict[str, Measure], Told]:
    """Measure one run, and what its folder then has."""
    told = Told()
    assert measure_runs(read_all([folder]), wanted, told, device="cpu", **options) == 1
    (record,) = read_all([folder])
    return {m.name: m for m in record.measures}, told


def test_the_values_are_those_of_the_functions(runs: Path) -> None:
    told = Told()
    assert measure_runs(read_all([runs]), SMALL, told, device="cpu") == 2
    run = load_run(runs / "sam", device="cpu")
    found = {m.name: m for m in run.record.measures}
    weights = run.record.end.weights_sha256  # type: ignore[union-attr]
    batches = list(run.loader.evaluation(32, part="train", most=64))
    given = (run.model, run.task.loss, batches)
    seen = {"examples": 64, "part": "train"}

    value, error = sharpness.worst_sharpness(*given, m=32, steps=2)
    assert (found["worst"].value, found["worst"].error) == (float(value), float(error))
    ball = {"rho": 0.05, "m": 32, "norm": "l2", "adaptive": False}
    assert found["worst"].settings == ball | {"steps": 2, "starts": 1} | seen
    value, error = sharpness.average_sharpness(*given, m=32, directions=2)
    assert (found["average"].value, found["average"].error) == (float(value), float(error))
    assert found["average"].settings == ball | {"directions": 2, "seed": 0} | seen

    whole = (run.model, run.task.loss, list(run.loader.evaluation(256, part="train", most=64)))
    values = sharpness.hessian_eigenvalues(*whole, k=2).values.tolist()
    assert [found["eigenvalue 1"].value, found["eigenvalue 2"].value] == values
    assert found["smallest eigenvalue"].value == float(sharpness.hessian_eigenvalues(*whole, which="smallest").values)
    value, error = sharpness.hessian_trace(*whole, samples=2)
    assert (found["trace"].value, found["trace"].error) == (float(value), float(error))
    assert found["critical"].value == sharpness.critical_sharpness(*whole).sharpness
    assert all(m.weights == weights for m in found.values())

    curves = landscape.read(runs / "sam", weights)
    assert set(curves) == {"density", "line", "plane", "between"}
    assert curves["plane"].values == sharpness.loss_plane(*whole, points=3).losses.tolist()
    assert curves["line"].values == sharpness.loss_line(*whole, points=3).losses.tolist()
    positions, density = sharpness.hessian_density(*whole, depth=4).smoothed()
    assert (curves["density"].positions, curves["density"].values) == (positions.tolist(), density.tolist())
    assert set(landscape.read(runs / "plain", read_all([runs / "plain"])[0].end.weights_sha256)) == {  # type: ignore[union-attr]
        "density", "line", "plane"
    }  # fmt: skip


def test_the_line_from_the_baseline_has_the_losses_of_both(runs: Path) -> None:
    told = Told()
    measure_runs(read_all([runs]), replace(SMALL, measures=("between",)), told, device="cpu")
    records = {record.contestant: record for record in read_all([runs])}
    end = records["sam"].end
    assert end is not None
    curve = landscape.read(runs / "sam", end.weights_sha256)["between"]
    assert curve.positions == sorted(curve.positions)
    for position, name in ((0.0, "plain"), (1.0, "sam")):
        run = load_run(runs / name, device="cpu")
        batches = run.loader.evaluation(64, part="train", most=64)
        expected = evaluate(run.task, run.model, batches, device=torch.device("cpu"))["loss"]
        assert curve.values[curve.positions.index(position)] == pytest.approx(expected, rel=1e-5)
    told = Told()
    measure_runs([records["sam"]], replace(SMALL, measures=("between",)), told, device="cpu")
    assert "no plain run of its seed has finished among these runs" in told.lines[0]


def test_what_is_there_is_kept(runs: Path) -> None:
    first, _ = measured(runs / "sam", QUICK)
    files = {path: path.read_bytes() for path in (runs / "sam").glob("*.json*")}
    again, told = measured(runs / "sam", QUICK)
    assert again == first
    assert files == {path: path.read_bytes() for path in (runs / "sam").glob("*.json*")}
    assert told.begun == []
    assert len(told.lines) == 3
    assert all(line.endswith("(kept)") for line in told.lines)

    _, told = measured(runs / "sam", QUICK, again=True)
    assert len(told.begun) == 3
    other, _ = measured(runs / "sam", replace(QUICK, rho=0.1))
    assert len((runs / "sam" / MEASURES_FILE).read_text().splitlines()) == 3
    assert other["average"].settings["rho"] == 0.1
    _, told = measured(runs / "sam", replace(QUICK, plane_points=5, rho=0.1))
    assert [line.rpartition(": ")[2] for line in told.begun] == ["plane"]


def test_the_settings_have_the_examples_that_were_seen(runs: Path) -> None:
    found, _ = measured(runs / "sam", replace(QUICK, measures=("average",), part="test", examples=10_000, m=500))
    assert (found["average"].settings["examples"], found["average"].settings["part"]) == (500, "test")


def test_what_cannot_be_measured_is_left_out_aloud(runs: Path) -> None:
    lines = (runs / "sam" / "run.jsonl").read_text().splitlines()
    for name, kept in {"unfinished": lines[:-1], "diverged": lines, "lost": lines}.items():
        shutil.copytree(runs / "sam", runs / name)
        if name == "diverged":
            kept = [*lines[:-1], json.dumps(json.loads(lines[-1]) | {"diverged": True})]
        if name == "lost":
            shutil.rmtree(runs / name / "checkpoints")
        (runs / name / "run.jsonl").write_text("\n".join(kept) + "\n")
    told = Told()
    records = read_all([runs / name for name in ("unfinished", "diverged", "lost", "plain")])
    assert measure_runs(records, replace(QUICK, measures=("critical",)), told, device="cpu") == 1
    texts = [line.partition(": ")[2] for line in told.lines]
    assert texts[:2] == ["left out, it has not finished", "left out, it has diverged"]
    assert texts[2].startswith("left out, runs must have a checkpoint")
    assert texts[3].startswith("critical ")
    assert not list(runs.glob("[udl]*/measures.jsonl"))


def test_an_interruption_leaves_what_was_measured(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(self: Gauges) -> None:
        raise KeyboardInterrupt

    both = replace(QUICK, measures=("average", "critical"))
    records = read_all([runs / "sam"])
    with monkeypatch.context() as patch:
        patch.setattr(Gauges, "_critical", stopped)
        with pytest.raises(KeyboardInterrupt):
            measure_runs(records, both, Told(), device="cpu")
    _, told = measured(runs / "sam", both)
    assert [line.endswith("(kept)") for line in told.lines] == [True, False]
    (record,) = read_all([runs / "sam"])
    assert record.end is not None
    assert len(measures.read(runs / "sam", record.end.weights_sha256)) == 2


def test_variants_have_titles_of_their_own(runs: Path) -> None:
    wanted = replace(QUICK, measures=("worst",))
    titles = [
        measured(runs / "sam", replace(wanted, norm=norm, adaptive=adaptive))[0]["worst"].title  # type: ignore[arg-type]
        for norm, adaptive in (("l2", False), ("l2", True), ("linf", False), ("linf", True))
    ]
    assert titles == ["worst case", "worst case, adaptive", "worst case, l∞", "worst case, adaptive, l∞"]
    assert len(read_all([runs / "sam"])[0].measures) == 4


def test_refusals(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = read_all([runs])
    for wrong, text in (
        ({"measures": ("worst", "hessian")}, "measures must be one of 'worst'"),
        ({"measures": ()}, "measures must name at least one"),
        ({"examples": 0}, "examples must be"),
        ({"m": 0}, "m must be"),
        ({"eigenvalues": 0}, "eigenvalues must be"),
        ({"part": "validation"}, "part must be one of"),
    ):
        with pytest.raises(ArgumentError, match=text):
            measure_runs(records, replace(QUICK, **wrong), Told(), device="cpu")  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        patch.setenv("RANK", "0")
        with pytest.raises(ArgumentError, match="by a single process, but there are 2 ranks"):
            measure_runs(records, QUICK, Told(), device="cpu")

    def missing() -> None:
        raise MissingExtraError("curvlinops-for-pytorch", "curvature")

    monkeypatch.setattr(flatness, "curvlinops", missing)
    with pytest.raises(MissingExtraError):
        measure_runs(records, SMALL, Told(), device="cpu")
    assert measure_runs(records, replace(QUICK, measures=("critical",)), Told(), device="cpu") == 2
