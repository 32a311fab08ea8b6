"""Tasks and their text."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lowland.lab.names import make, spell
from lowland.lab.tasks.cifar import Cifar10, Cifar100
from lowland.lab.tasks.digits import Digits
from lowland.lab.tasks.fashion import FashionMnist

kinds: st.SearchStrategy[Any] = st.sampled_from([Digits, FashionMnist, Cifar10, Cifar100])
shares = st.one_of(st.just(0.0), st.floats(0, 1, exclude_max=True))


@given(kinds, shares, st.sampled_from(["symmetric", "asymmetric"]), st.none() | st.integers(0, 2**31))
def test_a_task_s_text_makes_it_again(kind: Any, noise: float, noise_kind: Any, seed: int | None) -> None:
    task = kind(noise=noise, noise_kind=noise_kind, noise_seed=seed)
    assert make(spell(task)) == task
    assert spell(make(spell(task))) == spell(task)
    assert hash(make(spell(task))) == hash(task)
