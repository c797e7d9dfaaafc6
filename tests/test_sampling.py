"""Oracles: the filters as their definitions say them, numpy row by row, and str.find."""

import math

import numpy as np
import pytest
import torch

from sampling import Sampling, cut


def naive_probs(logits, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0):
    """Filters as their definitions say them, one token at a time."""
    probs = [math.exp(x / temperature) for x in logits]
    order = sorted(range(len(probs)), key=lambda i: -probs[i])[: top_k or None]
    total, kept, reached = sum(probs[i] for i in order), [], 0.0
    for i in order:
        if reached < top_p:
            kept.append(i)
            reached += probs[i] / total
    kept = [i for i in kept if probs[i] >= min_p * max(probs)]
    total = sum(probs[i] for i in kept)
    return [probs[i] / total if i in kept else 0.0 for i in range(len(probs))]


@pytest.mark.parametrize(
    'filters',
    [
        dict(),
        dict(temperature=0.5),
        dict(temperature=2.0, top_k=5),
        dict(top_k=0),
        dict(top_k=1000),
        dict(top_p=0.7),
        dict(temperature=1.3, top_k=9, top_p=0.8),
        dict(top_p=1e-9),
        dict(top_k=1),
        dict(min_p=0.2),
        dict(min_p=1.0),
        dict(temperature=0.6, top_k=9, top_p=0.9, min_p=0.1),
        dict(temperature=2.0, top_k=9, top_p=0.9, min_p=0.01),
    ],
)
def test_frequencies_are_those_of_the_naive_filters(filters):
    """Pearson's chi-square of 4,000 seeded draws, at most its mean plus 5 standard deviations; none
    is filtered."""
    logits = torch.randn(12, generator=torch.Generator().manual_seed(1))
    sampling, draws = Sampling(**filters), 4000
    uniform = torch.tensor(sampling.stream(0, 0, draws), dtype=torch.float64)
    counts = torch.bincount(sampling.draw(logits.expand(draws, 12), uniform), minlength=12)
    probs = naive_probs(logits.tolist(), **filters)
    kept = [i for i in range(12) if probs[i]]
    assert sum(counts[i] for i in kept) == draws
    chi2 = sum((int(counts[i]) - draws * probs[i]) ** 2 / (draws * probs[i]) for i in kept)
    freedom = len(kept) - 1
    assert chi2 <= freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize('temperature', [0, 1e-60, 1e-12])
def test_the_coldest_temperatures_are_argmax(temperature):
    logits = torch.tensor([1.0, 7.0, -math.inf, 6.9])
    sampling = Sampling(temperature=temperature, top_p=0.9)
    uniform = torch.tensor(sampling.stream(0, 0, 20), dtype=torch.float64)
    assert sampling.draw(logits.expand(20, 4), uniform).tolist() == [1] * 20


def test_streams_differ():
    """First draws of neighbouring seeds, prompts and samples look like independent uniform
    numbers."""
    keys = [
        (seed, number, sample) for seed in range(10) for number in range(10) for sample in range(10)
    ]
    first = torch.tensor([Sampling(seed=s).stream(n, i, 1)[0] for s, n, i in keys])
    assert len(first.unique()) == 1000
    assert abs(first.mean() - 0.5) < 5 / math.sqrt(12 * 1000)
    assert abs(torch.corrcoef(torch.stack((first[:-1], first[1:])))[0, 1]) < 5 / math.sqrt(1000)
    assert Sampling(seed=3).stream(1, 2, 9)[:4] == Sampling(seed=3).stream(1, 2, 4)


@pytest.mark.parametrize(
    'value',
    [dict(temperature=-1), dict(temperature=math.nan), dict(temperature=math.inf), dict(top_k=-1)]
    + [dict(top_p=0), dict(top_p=1.1), dict(top_p=math.nan), dict(seed=-1), dict(seed=(1, -2))]
    + [dict(min_p=-0.1), dict(min_p=1.5), dict(repetition_penalty=0), dict(top_logprobs=-1)],
)  # fmt: skip
def test_values_out_of_range_are_named(value):
    with pytest.raises(ValueError, match=f'{next(iter(value))} is '):
        Sampling(**value)


@pytest.mark.parametrize('top_k', [None, 1, 7, 40])
@pytest.mark.parametrize('top_p', [1.0, 0.9, 0.3, 1e-9])
@pytest.mark.parametrize('temperature', [0.3, 1.0, 3.0])
def test_a_batch_is_drawn_as_row_by_row_in_numpy(temperature, top_k, top_p):
    """Tokens by their likelihood where there is a filter, by their ids else; the first whose sum
    passes the number."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 3, (200, 20)).astype(np.float32)
    logits[generator.random(logits.shape) < 0.2] = -np.inf
    uniform = generator.random(200)
    uniform[:40] = [0.0, 1 - 1e-9] * 20
    expected = []
    for row, u in zip(logits.astype(np.float64), uniform):
        probs = np.exp(row / temperature - row.max() / temperature)
        probs /= probs.sum()
        order = np.arange(20)
        if top_k or top_p < 1:
            order = np.argsort(-probs, kind='stable')[:top_k]
            before = (
                np.cumsum(probs[order] / probs[order].sum()) - probs[order] / probs[order].sum()
            )
            order = order[before < top_p]
        kept = probs[order] / probs[order].sum()
        expected.append(next(i for i, reached in zip(order, np.cumsum(kept)) if reached > u))
    sampling = Sampling(temperature, top_k, top_p)
    drawn = sampling.draw(torch.tensor(logits), torch.tensor(uniform))
    assert drawn.tolist() == expected
    for u in (0.0, 1 - 2.0**-53):  # the ends of what a generator gives
        drawn_there = sampling.draw(
            torch.tensor(logits), torch.full((200,), u, dtype=torch.float64)
        )
        assert np.isfinite(logits[np.arange(200), drawn_there]).all()
    alone = [
        sampling.draw(torch.tensor(row)[None], torch.tensor([u])) for row, u in zip(logits, uniform)
    ]
    assert torch.equal(torch.cat(alone), drawn)


def test_a_penalty_divides_positive_logits_and_multiplies_negative_ones():
    logits = torch.tensor([2.0, -2.0, 0.5, -math.inf, 3.0])
    penalised = Sampling(repetition_penalty=2.0).penalise(logits, [1, 0, 0, 3])
    assert penalised.tolist() == [1.0, -4.0, 0.5, -math.inf, 3.0]


def test_pieces_of_a_text_are_cut_where_the_whole_text_would_be():
    """200 random texts of two letters, in pieces: what is shown ends at the first stop text, and no
    more is held back than the beginning of one."""
    generator = np.random.default_rng(1)

    def word(most):
        return ''.join(generator.choice(['a', 'b'], generator.integers(1, most + 1)))

    for _ in range(200):
        stops = tuple({word(4) for _ in range(3)})
        pieces = [word(5) for _ in range(6)]
        text = ''.join(pieces)
        ends = [(text.find(s) + len(s), text.find(s)) for s in stops if s in text]
        expected = text[: min(ends)[1]] if ends else text
        shown = held = ''
        found = False
        for piece in pieces:
            new, held, found = cut(held + piece, stops)
            shown += new
            assert any(s.startswith(held) and s != held for s in stops)
            if found:
                break
        assert shown + held == expected and found == (expected != text)
