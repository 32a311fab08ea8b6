from __future__ import annotations

import io

import torch

from lowland.lagged import Lagged


def test_values_come_back_one_call_later_by_name():
    lagged = Lagged()
    assert lagged.swap("a", torch.tensor(1.0)) is None
    assert lagged.swap("b", torch.tensor([1.0, 2.0])) is None
    assert lagged.swap("a", torch.tensor(3.0)) == 1.0
    assert lagged.swap("b", torch.tensor([4.0, 5.0])) == [1.0, 2.0]
    assert lagged.swap("a", torch.tensor(6.0)) == 3.0


def test_what_was_sent_does_not_change_with_the_tensor():
    lagged, tensor = Lagged(), torch.tensor(1.0, requires_grad=True)
    lagged.swap("a", tensor)
    with torch.no_grad():
        tensor.fill_(7.0)
    assert lagged.swap("a", tensor) == 1.0


def test_state_goes_on_where_it_was_taken():
    lagged, other = Lagged(), Lagged()
    lagged.swap("a", torch.tensor(1.0))
    file = io.BytesIO()
    torch.save(lagged.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.swap("a", torch.tensor(2.0)) == 1.0
    assert lagged.swap("a", torch.tensor(2.0)) == 1.0


def test_state_shares_no_memory():
    lagged = Lagged()
    lagged.swap("a", torch.tensor(1.0))
    state = lagged.state_dict()
    other = Lagged()
    other.load_state_dict(state)
    state["a"].fill_(9.0)
    assert lagged.swap("a", torch.tensor(0.0)) == 1.0
    assert other.swap("a", torch.tensor(0.0)) == 1.0
