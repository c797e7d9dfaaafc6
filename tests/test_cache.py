"""Oracles: the model without a cache, and a naive count of who uses which block."""

import random

import pytest
import torch
from test_engine import build, prompt

from cache import BLOCK, KVCache, Pool
from model import PRESETS


class Rows:
    """Rows of a cache, as many tokens of each text as have been fed so far."""

    def __init__(self, model, texts, width=None):
        self.model = model
        self.texts = texts  # (rows, block_size)
        self.width = width
        self.pool = Pool(1000)
        self.cache = KVCache(model.config)
        self.lengths = [0] * len(texts)
        self.tables = [[] for _ in texts]

    def feed(self, counts):
        """The next tokens of each row, padded to the longest piece: their logits, for each row."""
        for row, count in enumerate(counts):
            while len(self.tables[row]) * BLOCK < self.lengths[row] + count:
                self.tables[row].append(self.pool.take())
        self.cache.reserve(self.pool.size)
        last = [int(text[length - 1]) for text, length in zip(self.texts, self.lengths)]
        self.cache.select(self.tables, self.lengths, counts, last, self.width)
        inputs = torch.zeros(len(counts), max(counts), dtype=torch.int64)
        for row, count in enumerate(counts):
            start = self.lengths[row]
            inputs[row, :count] = self.texts[row, start : start + count]
            self.lengths[row] += count
        logits = self.model(inputs, cache=self.cache)
        return [row[:count] for row, count in zip(logits, counts)]


@pytest.mark.parametrize('preset', PRESETS)
@pytest.mark.parametrize('width', [None, 100])
@torch.inference_mode()
def test_cached_logits_are_the_full_ones(preset, width):
    """Rows of different lengths, prefilled in chunks with padding, decoded one by one, in random
    order: every logit within 1e-5, whatever stray values the blocks held before."""
    model = build(preset, block_size=100)
    texts = torch.tensor([prompt(100, seed) for seed in range(4)])
    full = model(texts)
    assert full.std() > 0.1  # of a model that says nothing all logits agree
    rows = Rows(model, texts, width)
    rows.cache.reserve(20)
    for tensor in (*rows.cache.keys, *rows.cache.values):
        tensor.fill_(1e4)
    draw = random.Random(0)
    while min(rows.lengths) < 100:
        counts = [draw.randrange(34) if draw.random() < 0.3 else 1 for _ in texts]
        counts = [min(count, 100 - n) for count, n in zip(counts, rows.lengths)]
        if not any(counts):
            continue
        starts = list(rows.lengths)
        for row, logits in enumerate(rows.feed(counts)):
            expected = full[row, starts[row] : rows.lengths[row]]
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_rows_share_the_blocks_of_a_beginning():
    """The second row is given the first one's full blocks and a copy of the next."""
    model = build(block_size=128)
    texts = torch.tensor([prompt(128)] * 2)
    texts[1, 70:] = torch.tensor(prompt(58, 1))
    rows = Rows(model, texts)
    rows.feed([70, 0])
    first, second, third = rows.tables[0]
    rows.tables[1] = [first, second, rows.pool.take()]
    rows.pool.share([first, second])
    rows.cache.reserve(rows.pool.size)
    rows.cache.copy(third, rows.tables[1][2:])
    rows.lengths[1] = 70
    full = model(texts)
    for at in range(70, 128):
        for row, logits in enumerate(rows.feed([1, 1])):
            torch.testing.assert_close(logits[0], full[row, at], atol=1e-5, rtol=0)
    assert rows.pool.users[first] == 2 and len(rows.pool.users) == 6


def test_found_beginnings_are_those_that_were_registered():
    pool = Pool(limit=6)
    ids = prompt(100)
    table = [pool.take() for _ in range(4)]
    pool.register(ids, table)
    assert pool.find(ids) == table[:3]
    assert pool.find(ids[:96]) == table[:2]  # one token at least is left to compute
    assert pool.find([*ids[:40], *prompt(60, 1)]) == table[:1]
    assert pool.find(ids[32:]) == []  # the same tokens after another beginning
    assert [pool.users[block] for block in table] == [4, 3, 2, 1]
    pool.forget()
    assert pool.find(ids) == []


def test_blocks_are_handed_out_once_and_kept_while_there_is_room():
    """Random texts come and go. A block has as many users as the model of this test says, and the
    tokens of a found block are those of its text."""
    draw = random.Random(1)
    pool, running, holds = Pool(limit=20, keep=8), [], {}
    found = refused = 0
    for _ in range(3000):
        if running and draw.random() < 0.5:
            ids, table = running.pop(draw.randrange(len(running)))
            pool.register(ids, table)
            pool.release(table)
        else:
            ids = [draw.randrange(2) for _ in range(draw.randrange(1, 5)) for _ in range(BLOCK)]
            ids = [ids[i // BLOCK * BLOCK] for i in range(len(ids))]  # equal beginnings are common
            table = pool.find(ids)
            assert [holds[block] for block in table] == [
                ids[: (i + 1) * BLOCK] for i in range(len(table))
            ]
            found += len(table)
            while len(table) * BLOCK < len(ids) and (block := pool.take()):
                table.append(block)
                holds[block] = ids[: len(table) * BLOCK]
            if len(table) * BLOCK < len(ids):
                refused += 1
                pool.release(table)
            else:
                running.append((ids, table))
        used = [block for _, table in running for block in table]
        assert pool.users == {block: used.count(block) for block in used}
        assert len(pool.users) + len(pool.idle) <= 20 and len(pool.idle) <= 8
        assert 0 not in pool.users and pool.size <= 21
        assert not set(pool.free) & (set(pool.users) | set(pool.idle))
    assert found > 100 and refused > 100
