from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lowland.core.errors import UnknownNameError
from lowland.lab.data.tokens import CLS, PAD, SEP
from lowland.lab.models.encoder import ENCODERS, Encoder, encoder, segments
from lowland.lab.models.gpt import GPT, GPTS, gpt
from lowland.lab.models.transformer import STD, Block, Size

SMALL = Size(layers=2, heads=2, width=8)
PAIR = torch.tensor([[CLS, 5, 6, SEP, 7, 5, SEP, PAD, PAD], [CLS, 6, SEP, 7, SEP, PAD, PAD, PAD, PAD]])


def small_encoder() -> Encoder:
    return Encoder(SMALL, vocab=11, length=16, classes=3, dropout=0.5).double().eval()


def small_gpt(tied: bool = False) -> GPT:
    return GPT(SMALL, vocab=11, context=9, tied=tied, dropout=0.5).double().eval()


def attention_by_hand(block: Block, x: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """The block for one example (T, width), with a loop over heads; ``allowed`` (T, T) is who attends to whom."""
    normed = block.norm1(x)
    q, k, v = (normed @ w.T + b for w, b in zip(block.qkv.weight.chunk(3), block.qkv.bias.chunk(3), strict=True))
    size = q.shape[1] // block.heads
    mixed = []
    for head in range(block.heads):
        place = slice(head * size, (head + 1) * size)
        scores = (q[:, place] @ k[:, place].T / math.sqrt(size)).masked_fill(~allowed, -math.inf)
        mixed.append(scores.softmax(1) @ v[:, place])
    x = x + block.out(torch.cat(mixed, 1))
    return x + block.down(nn.functional.gelu(block.up(block.norm2(x))))


@pytest.mark.parametrize("causal", [True, False])
def test_a_block_by_hand(causal: bool) -> None:
    block, x = Block(SMALL, 0.0, causal=causal).double(), torch.randn(2, 5, 8, dtype=torch.float64)
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    allowed = [torch.ones(5, 5).tril().bool() if causal else row.expand(5, 5) for row in real]
    expected = torch.stack([attention_by_hand(block, each, who) for each, who in zip(x, allowed, strict=True)])
    torch.testing.assert_close(block(x, None if causal else real[:, None, None, :]), expected, rtol=1e-12, atol=1e-12)


def test_segments() -> None:
    assert segments(PAIR).tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1, 1]]


def test_padding_changes_nothing_but_rounding() -> None:
    model = small_encoder()
    together, alone = model(PAIR), torch.cat([model(PAIR[:1, :7]), model(PAIR[1:, :5])])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    wide = nn.functional.pad(PAIR, (0, 6), value=PAD)
    torch.testing.assert_close(model(wide), together, rtol=1e-12, atol=1e-12)


def test_gradients_do_not_depend_on_padding() -> None:
    found = []
    for width in (7, 16):
        torch.manual_seed(0)
        model = small_encoder()
        model(nn.functional.pad(PAIR, (0, 16))[:, :width]).square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


def test_an_encoder_sees_order_and_text() -> None:
    model = small_encoder()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))  # far from the small initial weights
    first = torch.tensor([[CLS, 5, 6, SEP, 7, SEP]])
    others = [[CLS, 6, 5, SEP, 7, SEP], [CLS, 5, SEP, 6, 7, SEP], [CLS, 5, 6, SEP, 8, SEP]]
    for other in others:
        assert not torch.allclose(model(first), model(torch.tensor([other])), rtol=1e-3)


@pytest.mark.parametrize("tied", [False, True])
def test_a_language_model_does_not_see_what_follows(tied: bool) -> None:
    model, tokens = small_gpt(tied), torch.randint(11, (2, 9))
    logits = model(tokens)
    assert logits.shape == (2, 9, 11)
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    difference = (model(changed) - logits).abs().amax((0, 2))
    assert bool((difference[:5] == 0).all())
    assert bool((difference[5:] > 1e-6).all())


def test_a_tied_head_is_the_embedding() -> None:
    tied, free = small_gpt(True), small_gpt(False)
    assert tied.head.weight is tied.token.weight
    assert sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in tied.parameters()) == 11 * 8


def test_initial_weights() -> None:
    model = gpt("gpt-mini", vocab=66, context=128, tied=False, dropout=0.0)
    for name, p in model.named_parameters():
        if p.ndim > 1:
            last = name.endswith(("out.weight", "down.weight"))
            expected = STD / math.sqrt(12) if last else STD
            assert float(p.detach().std()) == pytest.approx(expected, rel=0.05), name
        elif "norm" in name and name.endswith("weight"):
            assert bool((p == 1).all())
        else:
            assert bool((p == 0).all())


def test_a_fresh_language_model_knows_nothing() -> None:
    model = gpt("gpt-nano", vocab=66, context=32, tied=False, dropout=0.0)
    logits = model(torch.randint(66, (4, 32))).flatten(0, 1)
    loss = nn.functional.cross_entropy(logits, torch.randint(66, (128,)))
    assert loss.item() == pytest.approx(math.log(66), rel=0.02)


@pytest.mark.parametrize(("name", "layers", "width", "vocab"), [("gpt-nano", 3, 48, 66), ("gpt-mini", 6, 192, 66)])
def test_sizes_of_language_models(name: str, layers: int, width: int, vocab: int) -> None:
    block = 12 * width**2 + 13 * width
    model = gpt(name, vocab=vocab, context=128, tied=False, dropout=0.0)
    assert sum(p.numel() for p in model.parameters()) == layers * block + 2 * vocab * width + 128 * width + 2 * width


@pytest.mark.parametrize(("name", "layers", "width"), [("encoder-tiny", 2, 64), ("encoder-small", 4, 128)])
def test_sizes_of_encoders(name: str, layers: int, width: int) -> None:
    block = 12 * width**2 + 13 * width
    model = encoder(name, vocab=4000, length=64, classes=6, dropout=0.1)
    embeddings = (4000 + 64 + 2) * width
    assert sum(p.numel() for p in model.parameters()) == layers * block + embeddings + 2 * width + 6 * width + 6


def test_names() -> None:
    assert list(ENCODERS) == ["encoder-tiny", "encoder-small"]
    assert list(GPTS) == ["gpt-nano", "gpt-mini"]
    with pytest.raises(UnknownNameError, match="unknown model 'gpt-nan': did you mean 'gpt-nano'"):
        gpt("gpt-nan", vocab=2, context=2, tied=False, dropout=0.0)
    with pytest.raises(UnknownNameError, match=r"unknown model 'tiny': .*known are encoder-small, encoder-tiny"):
        encoder("tiny", vocab=2, length=2, classes=2, dropout=0.0)
