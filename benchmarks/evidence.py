"""Runs the experiments of docs/plan_of_experiments.md, two trainings at once, each on one thread.

``python benchmarks/evidence.py [NAME…] [--list] [--jobs 2] [--out benchmarks/evidence]``

Every command of an experiment goes on where it was interrupted. An experiment whose commands have all ended is recorded
in ``done.json`` of its folder, with its commands, their seconds and the machine, and is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lowland.planner.ranks import memory

OUT = Path(__file__).parent / "evidence"
DONE = "done.json"
SPENT = "spent.json"  # the seconds of each command so far, with calls that were interrupted
ENDED = (0, 3)  # exit codes of commands that have ended; 3: a training diverged, which is a result

PLAIN = "plain equal-cost"
SHORT = f"{PLAIN} sam sampa:lam=0.2"
TEXTS = f"{SHORT} looksam micro-sam"
FAMILY = f"{PLAIN} sam sampa:lam=0 sampa:lam=0.2 looksam micro-sam arsam momentum-sam late"
RATE, RADIUS = "lr=0.002..0.5:log", "rho=0.02..1.0:log"
TUNED = " ".join(
    (
        f"plain@{RATE} plain@{RATE},epochs=80 plain@{RATE},ema=0.99..0.9995",
        *(f"{method}{RADIUS}@{RATE}" for method in ("sam:", "sampa:lam=0.2,", "looksam:", "micro-sam:m=4,", "arsam:")),
    )
)


@dataclass(frozen=True)
class Experiment:
    """One experiment of the plan.

    Args:
        name: Its name in the plan, and the name of its folder.
        commands: The commands that make it, in order; ``{out}`` stands for the folder of its runs.
        tuned: Whether the comparisons follow that the records of its sweeps name, which are those of the best trials.
    """

    name: str
    commands: tuple[str, ...]
    tuned: bool = False


def compared(name: str, task: str, methods: str, *, more: str = "", seeds: int = 3) -> Experiment:
    """An experiment that is one comparison."""
    return Experiment(name, (comparison(task, methods, more=more, seeds=seeds),))


def comparison(task: str, methods: str, *, more: str = "", seeds: int = 3) -> str:
    """The command of a comparison."""
    return f"compare --task {task} {more} --methods {methods} --seeds {seeds} --threads 1 --out {{out}}"


EXPERIMENTS = (
    compared(
        "cifar10",
        "cifar10",
        "plain plain@epochs=16 sam sampa:lam=0.2",
        more="--model resnet20 --epochs 8",
        seeds=1,
    ),
    compared(
        "cifar10-family",
        "cifar10",
        "plain plain@ema=0.999 sampa:lam=0 looksam micro-sam arsam momentum-sam late",
        more="--model resnet20 --epochs 8",
        seeds=1,
    ),
    compared(
        "cifar10-long-resnet",
        "cifar10:examples=10000",
        "plain plain@epochs=60 plain@ema=0.999 sam sampa:lam=0.2",
        more="--model resnet20 --epochs 30",
        seeds=1,
    ),
    compared("cifar10-small", "cifar10:examples=10000", FAMILY, more="--model convnet --epochs 8"),
    compared("cifar10-long", "cifar10:examples=10000", SHORT, more="--model convnet --epochs 30", seeds=1),
    compared("small-data", "cifar10:examples=5000", SHORT, more="--model resnet20-w8 --epochs 15"),
    Experiment(
        "width",
        tuple(
            comparison("cifar10:examples=2500", "plain sam", more=f"--model {model} --epochs 10")
            for model in ("resnet20-w4", "resnet20-w8", "resnet20", "resnet20-w32")
        ),
    ),
    Experiment(
        "human-noise",
        tuple(
            comparison(
                f"cifar10:{labels},examples=5000",
                f"{SHORT} friendly-sam wsam",
                more="--model convnet --epochs 10 --validation 0.1 --select best",
            )
            for labels in ("labels=worst", "noise=0.4")
        ),
    ),
    compared("vit", "cifar10:examples=5000", f"{SHORT} looksam", more="--model vit-tiny --epochs 8"),
    compared("trec", "trec", TEXTS, more="--epochs 10", seeds=5),
    compared("sst2", "sst2", TEXTS, more="--epochs 8 --limit 800"),
    compared("chars", "chars", SHORT, more="--epochs 8 --limit 600"),
    compared(
        "large-batch",
        "vit-large-batch:examples=10000",
        f"{PLAIN} looksam looksam:geometry=layerwise",
        more="--epochs 20",
        seeds=1,
    ),
    Experiment(
        "qat",
        (
            comparison("qat:bits=4", SHORT, seeds=5),
            comparison("qat:bits=4,displace=quantized", "plain sam sampa:lam=0.2", seeds=5),
        ),
    ),
    Experiment(
        "survival",
        (
            comparison(
                "fashion-mnist:examples=10000",
                f"{SHORT} micro-sam late late:inner=micro-sam",
                more="--model convnet --epochs 10",
            ),
            "survive {out} --forget permuted",
        ),
    ),
    compared("keypoints", "keypoints", SHORT),
    Experiment(
        "rho-lambda",
        tuple(
            f"sweep --task digits:noise=0.4 --model {model} --methods sampa:rho=0.02..0.5:log,lam=0.0..1.0 "
            "--sampler grid --grid 5 --seeds 2 --validation 0.2 --threads 1 --out {out}"
            for model in ("mlp", "convnet")
        ),
    ),
    Experiment(
        "rho-lambda-text",
        tuple(
            f"sweep --task trec --model {model} --methods sampa:rho=0.02..0.5:log,lam=0.0..1.0 "
            f"--sampler grid --grid {grid} --validation 0.1 --threads 1 --out {{out}}"
            for model, grid in (("encoder-tiny --epochs 6", 5), ("encoder-small --epochs 4", 3))
        ),
    ),
    Experiment(
        "m",
        (
            comparison(
                "digits:noise=0.2",
                "plain sam micro-sam:m=2 micro-sam:m=4 micro-sam:m=8 micro-sam:m=16",
                seeds=5,
            ),
            "sharpness {out} --measures worst average --out {out}/sharpness.html",
        ),
    ),
    Experiment(
        "tuned",
        tuple(
            f"sweep --task {task} --methods {TUNED} --trials 20 --validation 0.1 --threads 1 --out {{out}}"
            for task in ("digits", "digits:noise=0.2")
        ),
        tuned=True,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiments that are named, by default all that have not ended."""
    parser = argparse.ArgumentParser(description="Run the experiments of docs/plan_of_experiments.md.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments; by default all that have not ended")
    parser.add_argument("--list", action="store_true", help="print the experiments, and whether they have ended")
    parser.add_argument("--jobs", type=int, default=2, help="experiments that run at once, each on one thread")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the runs, one folder for each experiment")
    options = parser.parse_args(argv)
    known = {experiment.name: experiment for experiment in EXPERIMENTS}
    for name in options.names:
        if name not in known:
            parser.error(f"there is no experiment {name!r}; there are {', '.join(known)}")
    chosen = [known[name] for name in options.names or known]
    if options.list:
        for experiment in chosen:
            print(f"{experiment.name}: {_state(options.out / experiment.name)}")
            for command in experiment.commands:
                print(f"  lowland {command.format(out=options.out / experiment.name)}")
        return 0
    return run([e for e in chosen if not (options.out / e.name / DONE).exists()], options.out, options.jobs)


def _state(folder: Path) -> str:
    done = folder / DONE
    if not done.exists():
        return "begun" if folder.exists() else "not begun"
    return f"ended, {sum(json.loads(done.read_text())['seconds']):,.0f} s"


def run(experiments: Sequence[Experiment], out: Path, jobs: int, say: Callable[[str], None] = print) -> int:
    """Run experiments, ``jobs`` at once; SIGINT and SIGTERM reach the trainings, which save and stop.

    Returns:
        0; 1 if a command failed; 130 or 143 after a signal.
    """
    stopped = threading.Event()
    children: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def stop(signum: int, frame: object) -> None:
        received.append(signum)
        stopped.set()
        for child in children:
            child.send_signal(signum)

    previous = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        with ThreadPoolExecutor(max_workers=jobs) as pool:
            tasks = [pool.submit(_run, e, out / e.name, stopped, children, say) for e in experiments]
            ended = [task.result() for task in tasks]
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if received:
        return 128 + received[0]
    return 0 if all(ended) else 1


def _run(
    experiment: Experiment,
    folder: Path,
    stopped: threading.Event,
    children: list[subprocess.Popen[bytes]],
    say: Callable[[str], None],
) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    spent = folder / SPENT
    seconds: dict[str, float] = json.loads(spent.read_text(encoding="utf-8")) if spent.exists() else {}
    commands = []
    for command in _commands(experiment, folder):
        if stopped.is_set():
            return False
        say(f"{experiment.name}: lowland {command}")
        start, written = time.monotonic(), f"lowland {command.replace(str(folder), 'runs')}"
        with (folder / "log.txt").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "lowland", *shlex.split(command)],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C reaches it once, from here
                env={**os.environ, **memory(), "OMP_NUM_THREADS": "1"},
            )
            children.append(child)
            code = child.wait()
            children.remove(child)
        seconds[written] = round(seconds.get(written, 0.0) + time.monotonic() - start, 1)
        spent.write_text(json.dumps(seconds, indent=1) + "\n", encoding="utf-8")
        commands.append(written)
        if code not in ENDED:
            say(f"{experiment.name}: the command ended with {code}; see {folder / 'log.txt'}")
            return False
    done = {"commands": commands, "seconds": [seconds[command] for command in commands], "machine": _machine()}
    (folder / DONE).write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    spent.unlink(missing_ok=True)
    say(f"{experiment.name}: ended in {sum(done['seconds']):,.0f} s")
    return True


def _commands(experiment: Experiment, folder: Path) -> Iterator[str]:
    """The commands, one after the other: those of the tuned comparisons are known when the sweeps have ended."""
    for command in experiment.commands:
        yield command.format(out=folder)
    if not experiment.tuned:
        return
    own = {f"lowland {command.format(out=folder)}" for command in experiment.commands}
    for file in sorted(folder.glob("sweep-*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["command"] in own:  # the folder may have a sweep of an earlier plan
            yield from (command.removeprefix("lowland ") for command in record["comparison"])


def _machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = names[0].partition(":")[2].strip() if names else platform.machine()
    return f"{name}, {os.cpu_count()} cores"


if __name__ == "__main__":
    sys.exit(main())
