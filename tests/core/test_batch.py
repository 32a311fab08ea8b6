from __future__ import annotations

from collections import OrderedDict, namedtuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowland.core import batch as batches
from lowland.core.errors import ArgumentError, BatchError

Pair = namedtuple("Pair", ["inputs", "targets"])
quick = settings(max_examples=60, deadline=None)


def pair(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(2.0 * count).reshape(count, 2), torch.arange(count)


TREES = {
    "tensor": lambda x, y: y,
    "tuple": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "dict": lambda x, y: {"x": x, "y": y},
    "ordered": lambda x, y: OrderedDict(x=x, y=y),
    "named": lambda x, y: Pair(x, y),
    "nested": lambda x, y: ({"x": (x, (x,))}, y),
    "none": lambda x, y: (x, None, y),
}
every_tree = pytest.mark.parametrize("tree", TREES.values(), ids=TREES)


def leaves(batch) -> list[torch.Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(batch) if t is not None]


@every_tree
def test_size_is_dimension_zero(tree):
    assert batches.size(tree(*pair(5))) == 5


@every_tree
@quick
@given(st.integers(1, 40), st.integers(1, 12))
def test_chunk_gives_exactly_as_many_even_parts(tree, count, parts):
    whole = tree(*pair(count))
    found = batches.chunk(whole, parts)
    sizes = [batches.size(part) for part in found]
    assert len(found) == min(parts, count)
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    assert type(found[0]) is type(whole)
    for i, leaf in enumerate(leaves(whole)):
        assert torch.equal(torch.cat([leaves(part)[i] for part in found]), leaf)


def test_chunk_of_nine_in_four_is_not_three():
    assert [batches.size(part) for part in batches.chunk(pair(9), 4)] == [3, 2, 2, 2]


@quick
@given(st.integers(1, 40), st.integers(1, 12))
def test_split_has_a_limit_and_one_rest(count, most):
    found = batches.split(pair(count), most)
    sizes = [batches.size(part) for part in found]
    assert sum(sizes) == count
    assert all(n == most for n in sizes[:-1])
    assert 1 <= sizes[-1] <= most
    assert torch.equal(torch.cat([y for _, y in found]), pair(count)[1])


@every_tree
def test_take_follows_the_index(tree):
    index = torch.tensor([3, 0, 3])
    x, y = pair(5)
    for found, expected in zip(leaves(batches.take(tree(x, y), index)), leaves(tree(x[index], y[index])), strict=True):
        assert torch.equal(found, expected)
    assert batches.size(batches.take(tree(x, y), slice(1, 3))) == 2


def test_stack_puts_equal_batches_under_a_new_dimension():
    x, y = batches.stack([pair(3), pair(3)])
    assert x.shape == (2, 3, 2)
    assert y.shape == (2, 3)


def test_stack_keeps_none():
    assert batches.stack([(torch.ones(2), None)] * 2)[1] is None


@pytest.mark.parametrize("parts", [[], [pair(3), pair(2)], [(torch.ones(2),), (torch.ones(2), torch.ones(2))]])
def test_stack_refuses_what_differs(parts):
    with pytest.raises(ArgumentError, match=r"equal shapes.*run them apart"):
        batches.stack(parts)


REFUSED = {
    "none": (None, r"at least one tensor.*pass inputs and targets"),
    "tuple": ((), r"at least one tensor.*pass inputs and targets"),
    "empty": (torch.zeros(0, 3), r"at least one example.*has 0.*skip empty"),
    "ragged": ((torch.ones(3, 2), torch.ones(2)), r"share dimension 0.*batch\[0\] has 3, batch\[1\] has 2.*cut"),
    "dict": ({"x": torch.ones(3), "y": torch.ones(4)}, r"batch\['x'\] has 3, batch\['y'\] has 4"),
    "object": ((torch.ones(3), object()), r"batch\[1\] is a object.*only tensors.*Engine\(…, cut=…\)"),
    "constants": ((torch.tensor(1.0), 5, "a"), r"at least one tensor"),
    "short list": ({"x": torch.ones(3), "id": ["a", "b"]}, r"batch\['id'\] has 2 entries for 3 examples"),
    "two readings": ({"x": torch.ones(2), "y": [torch.ones(2)] * 2}, r"batch\['y'\] can be read in both ways.*tuple"),
    "images": ([torch.ones(3, 4, 4)] * 8, r"batch has several readings.*pass a tuple"),
}


@pytest.mark.parametrize(("batch", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_batch_is_refused_by_name(batch, message):
    for use in (batches.size, lambda b: batches.chunk(b, 2), lambda b: batches.split(b, 2)):
        with pytest.raises(BatchError, match=message):
            use(batch)


@pytest.mark.parametrize(
    ("share", "count", "expected"),
    [(1.0, 7, 7), (0.5, 7, 3), (0.29, 100, 29), (0.07, 100, 7), (0.01, 3, 1), (1e-9, 1, 1)],
)
def test_a_part_is_rounded_down_to_at_least_one(share, count, expected):
    assert batches.part(share, count) == expected


def test_take_refuses_an_index_on_another_device():
    with pytest.raises(BatchError, match=r"on the device of its losses, meta, but is on cpu; move it there before"):
        batches.take((torch.ones(3), None), torch.ones(2, dtype=torch.long, device="meta"))


def test_indices_are_the_third_entry_or_under_their_key():
    index = torch.tensor([3, 1])
    assert batches.indices((torch.ones(2), torch.ones(2), index), "AUSAM") is index
    assert batches.indices([torch.ones(2), torch.ones(2), index, torch.ones(2)], "AUSAM") is index
    assert batches.indices({"x": torch.ones(2), "index": index}, "AUSAM") is index


WITHOUT = {
    "pair": ((torch.ones(2), torch.ones(2)), "None"),
    "tensor": (torch.ones(2, 3), "None"),
    "dict": ({"x": torch.ones(2)}, "None"),
    "floats": ((torch.ones(2), torch.ones(2), torch.ones(2)), r"a torch.float32 tensor of shape \(2,\)"),
    "flags": ((torch.ones(2), torch.ones(2), torch.ones(2).bool()), r"a torch.bool tensor of shape \(2,\)"),
    "matrix": ((torch.ones(2), torch.ones(2), torch.ones(2, 1).long()), r"a torch.int64 tensor of shape \(2, 1\)"),
}


@pytest.mark.parametrize(("batch", "shown"), WITHOUT.values(), ids=WITHOUT)
def test_missing_indices_are_explained(batch, shown):
    message = (
        rf"AUSAM keeps a score for every .*as \(inputs, targets, index\) or under .*it has {shown}; let the data set"
    )
    with pytest.raises(BatchError, match=message):
        batches.indices(batch, "AUSAM")


def test_a_copy_of_pinned_memory_is_pinned(monkeypatch):
    """An upload from other memory waits for the GPU."""
    pinned, made = torch.arange(12.0).reshape(3, 4).t(), []
    empty_like = torch.empty_like

    def empty(t, pin_memory=False):
        made.append(pin_memory)
        return empty_like(t)

    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda t: t is pinned or t.data_ptr() == pinned.data_ptr())
    monkeypatch.setattr(torch, "empty_like", empty)
    other = torch.arange(4)
    first, second = batches.copy((pinned, other))
    assert made == [True]  # of the first entry alone
    assert torch.equal(first, pinned)
    assert first.stride() == pinned.stride()
    assert first.data_ptr() != pinned.data_ptr()
    assert torch.equal(second, other)
    assert second.data_ptr() != other.data_ptr()


def test_copies_of_sparse_and_of_distant_tensors():
    sparse, far = torch.eye(3).to_sparse(), torch.ones(3, device="meta")
    one, two = batches.copy((sparse, far))
    assert torch.equal(one.to_dense(), sparse.to_dense())
    assert one is not sparse
    assert two.device == far.device
