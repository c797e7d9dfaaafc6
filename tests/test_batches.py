"""
batches.py against naive versions.

The law that every reader keeps: row g of a run is row order(epoch)[g mod n], with epoch = g div n.
"""

import pathlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_shards import BOS, documents, one_line, write

import batches
import conversation
from batches import (
    Ahead,
    Packed,
    Pairs,
    Reader,
    Rollouts,
    Shape,
    Stream,
    best_fit,
    count_spoken,
    find_documents,
)
from conversation import Chat
from engine import Engine, Sampling
from model import GPT, GPTConfig
from shards import Data, Shards
from tokenizer import PATTERN, BPETokenizer
from tools import calculate

# ---- Stream


def naive_row(ids, k, T, bos):
    """Stream's rule, word by word: from the first bos at or after k * T and before (k + 1) * T,
    else from k * T."""
    for start in range(k * T, (k + 1) * T):
        if ids[start] == bos:
            if start + T + 1 <= len(ids):
                return ids[start : start + T + 1]
            break
    return ids[k * T : k * T + T + 1]


def naive_order(g, num_rows, seed):
    epoch, place = divmod(g, num_rows)
    return int(np.random.default_rng((seed, epoch)).permutation(num_rows)[place])


def rows_of(reader, step):
    """The (T + 1,) ids of a step's rows on this rank that have a weight, micro-batch after
    micro-batch."""
    rows = []
    for inputs, targets, weights, *_ in reader[step]:
        assert (
            inputs.dtype == targets.dtype == torch.int64
            and inputs.is_contiguous()
            and targets.is_contiguous()
        )
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        some, every = (weights > 0).any(1), (weights > 0).all(1)
        assert torch.equal(some, every)
        rows += torch.cat((inputs, targets[:, -1:]), 1)[every].tolist()
    return rows


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    """103 ids in shards of 10; shards.ids are the same as a list."""
    ids = documents(103).tolist()
    assert 5 < ids.count(BOS) < 20
    found = Data(write(tmp_path_factory.mktemp('data'), ids, shard_tokens=10)).split('train')
    found.ids = ids
    return found


def test_rows_of_nanogpts_files_begin_at_gpt2s_bos(tmp_path):
    ids = np.arange(90, dtype='<u2')
    ids[3] = 50256
    ids.tofile(tmp_path / 'train.bin')
    data = Data(tmp_path)
    reader = Stream(data.split('train'), Shape(1, 1, 10), bos=data.tokenizer.bos, shuffle=False)
    assert next(reader[0]).inputs[0].tolist() == ids[3:13].tolist()


@pytest.mark.parametrize('T', [1, 4, 6, 25, 51, 102])
@pytest.mark.parametrize('bos', [None, BOS])
def test_rows_begin_where_the_rule_says(shards, T, bos):
    num_rows = 102 // T
    reader = Stream(shards, Shape(0, 3, T), bos=bos, shuffle=False)
    assert (len(reader), reader.num_rows) == (1, num_rows)
    assert rows_of(reader, 0) == [naive_row(shards.ids, k, T, bos) for k in range(num_rows)]


@pytest.mark.parametrize('count', range(9, 18))
def test_a_bos_near_the_end_never_makes_a_row_short(tmp_path, count):
    paths = [tmp_path / f'train_{i:05d}.bin' for i in range(-(-count // 5))]
    for place in range(count):
        ids = [*range(count - 1), BOS]
        ids[place] = BOS
        for i, path in enumerate(paths):
            np.array(ids[5 * i : 5 * i + 5], '<u2').tofile(path)
        found = Shards(paths, [path.stat().st_size // 2 for path in paths], vocab_size=257)
        expected = [naive_row(ids, k, 4, BOS) for k in range((count - 1) // 4)]
        assert rows_of(Stream(found, Shape(0, 2, 4), bos=BOS, shuffle=False), 0) == expected


# of 17 rows: steps span epochs, and small data wraps around
@pytest.mark.parametrize('rows_per_step', [1, 3, 5, 17, 40])
@pytest.mark.parametrize('seed', [1337, 7])
def test_row_g_of_a_run_is_where_the_law_says(shards, rows_per_step, seed):
    reader = Stream(shards, Shape(rows_per_step, 2, 6, seed=seed), bos=BOS)
    assert len(reader) == -(-17 // rows_per_step)
    order = [naive_order(g, 17, seed) for g in range(4 * 17 + 2 * rows_per_step)]
    for epoch in range(4):
        assert sorted(order[17 * epoch : 17 * (epoch + 1)]) == list(range(17))  # every row once
    for step in range(-(-4 * 17 // rows_per_step)):
        expected = order[step * rows_per_step : (step + 1) * rows_per_step]
        assert reader.rows(step) == expected
        assert rows_of(reader, step) == [naive_row(shards.ids, k, 6, BOS) for k in expected]
    assert order[:17] != order[17:34]


def test_orders_of_past_epochs_are_forgotten(shards):
    reader = Stream(shards, Shape(5, 2, 6))
    for step in range(60):
        reader.rows(step)
    assert len(reader.orders) <= 2  # an order of 10B tokens takes 37 MB


def test_a_step_is_a_pure_function_of_its_number(shards):
    shape = Shape(5, 2, 6)
    reader = Stream(shards, shape, bos=BOS)
    for step in [9, 0, 3, 3, 25, 4, 0, 9, 8, 100, 1]:
        fresh = [tuple(batch[:3]) for batch in Stream(shards, shape, bos=BOS)[step]]
        again = [tuple(batch[:3]) for batch in reader[step]]
        assert len(fresh) == len(again) > 0
        for one, other in zip(fresh, again):
            assert all(torch.equal(a, b) for a, b in zip(one, other))
    # reading another step in between changes nothing
    halves = iter(reader[2])
    next(halves)
    middle = rows_of(reader, 7)
    rest = [batch.inputs.tolist() for batch in halves]
    assert rest == [batch.inputs.tolist() for batch in list(reader[2])[1:]]
    assert middle == rows_of(Stream(shards, shape, bos=BOS), 7)


@pytest.mark.parametrize('world_size', [1, 2, 3, 5])
@pytest.mark.parametrize('batch_size', [1, 2, 3, 8])
@pytest.mark.parametrize('rows_per_step', [8, 0, 3])
def test_ranks_share_a_step_in_micro_batches_of_one_shape(
    shards, world_size, batch_size, rows_per_step
):
    shape = Shape(rows_per_step, batch_size, 6, world_size=world_size, dtype=torch.float64)
    ranks = [Stream(shards, shape._replace(rank=rank), bos=BOS) for rank in range(world_size)]
    wanted = rows_per_step or 17
    shapes, counts = set(), set()
    for step in range(5):
        micro_batches = [list(reader[step]) for reader in ranks]
        shapes |= {tuple(batch.inputs.shape) for mine in micro_batches for batch in mine}
        counts |= {len(mine) for mine in micro_batches}
        weights = torch.cat([batch.weights.flatten() for mine in micro_batches for batch in mine])
        assert abs(float(weights.sum()) - 1) < 1e-12
        assert set(weights.tolist()) <= {0.0, 1 / (wanted * 6)}
        mine = [rows_of(reader, step) for reader in ranks]
        assert sum(map(len, mine)) == wanted  # the others are filler
        # rank r takes rows r, r + world_size, …
        dealt = [mine[j % world_size][j // world_size] for j in range(wanted)]
        assert dealt == [naive_row(shards.ids, k, 6, BOS) for k in ranks[0].rows(step)]
    (rows, T), *more = shapes
    assert not more and T == 6 and 1 <= rows <= batch_size
    assert len(counts) == 1
    fullest = -(-wanted // world_size)
    assert rows * counts.pop() < 2 * fullest  # less than half is filler


def test_float32_weights_are_float32(shards):
    assert {batch.weights.dtype for batch in Stream(shards, Shape(8, 2, 6))[0]} == {torch.float32}


@pytest.mark.parametrize('limit', [None, 1, 5, 17, 1000])
def test_unshuffled_rows_hold_each_target_once_in_order(shards, limit):
    reader = Stream(shards, Shape(0, 4, 6), shuffle=False, limit=limit)
    rows = min(17, limit or 17)
    assert (len(reader), reader.num_rows) == (1, rows)
    targets = [i for row in rows_of(reader, 0) for i in row[1:]]
    assert targets == shards.ids[1 : 1 + 6 * rows]
    assert rows_of(reader, 0) == rows_of(reader, 3)  # the same rows each time


def test_a_corpus_smaller_than_a_batch_lasts_for_epochs(tmp_path):
    found = Data(write(tmp_path, list(range(11)))).split('train')  # two rows of 5
    reader = Stream(found, Shape(8, 4, 5))
    assert len(reader) == 1
    for step in range(3):
        rows = rows_of(reader, step)
        assert len(rows) == 8
        assert all(
            sorted(pair) == [[0, 1, 2, 3, 4, 5], [5, 6, 7, 8, 9, 10]]
            for pair in zip(rows[::2], rows[1::2])
        )


@pytest.mark.parametrize('count', [1, 2, 5])
def test_a_corpus_smaller_than_a_row_is_named(tmp_path, count):
    found = Data(write(tmp_path, list(range(count)))).split('train')
    with pytest.raises(SystemExit) as stop:
        Stream(found, Shape(8, 4, 5))
    one_line(stop, tmp_path / 'train.bin', f'{count} tokens', 'expected 6', '--block_size')
    assert len(Stream(Data(write(tmp_path, list(range(6)))).split('train'), Shape(8, 4, 5))) == 1


# ---- any reader


class Masked(Reader):
    """Rows of 4 of which row r has r supervised targets."""

    def count(self, r):
        return r

    def row(self, r):
        return np.full(5, r), np.arange(4) < r


@pytest.mark.parametrize('world_size', [1, 3])
def test_a_masked_step_is_divided_by_all_its_supervised_targets(world_size):
    shape = Shape(4, 1, 4, world_size=world_size, dtype=torch.float64)
    ranks = [Masked(5, shape._replace(rank=rank)) for rank in range(world_size)]
    for step in range(6):
        total = sum(ranks[0].rows(step))
        parts = [batch for reader in ranks for batch in reader[step]]
        counted = [(batch.inputs[0, 0], w) for batch in parts for w in batch.weights.sum(1)]
        assert abs(sum(float(w) for _, w in counted) - 1) < 1e-12
        assert all(abs(float(w) - int(r) / total) < 1e-12 for r, w in counted)
    nothing = Masked(1, Shape(2, 2, 4))  # no supervised target: loss 0, not 0 / 0
    assert all(batch.weights.eq(0).all() for batch in nothing[0])


def test_a_batch_goes_to_a_device_and_keeps_the_rest(shards):
    batch = next(Stream(shards, Shape(2, 2, 6))[0])._replace(metrics={'a': 1.0})
    moved = batch.to('meta')
    assert {t.device.type for t in moved[:3]} == {'meta'} and moved.metrics == {'a': 1.0}
    assert [t.shape for t in moved[:3]] == [t.shape for t in batch[:3]]
    assert all(torch.equal(a, b) for a, b in zip(batch.to('cpu')[:3], batch[:3]))
    assert moved.share is None and moved.reference is None
    of_pairs = batch._replace(share=torch.ones(2), reference=torch.ones(2)).to('meta')
    assert {of_pairs.share.device.type, of_pairs.reference.device.type} == {'meta'}


# ---- conversations for the readers below, with what the assistant says known by construction

SPECIAL = {name: 256 + i for i, name in enumerate(conversation.SPECIAL)}
TALK = BPETokenizer(PATTERN, [], SPECIAL)  # 265 ids
CHAT = Chat(TALK)
(BOS_, USER, USER_END, ASSISTANT, ASSISTANT_END, PYTHON, PYTHON_END, OUTPUT, OUTPUT_END) = (
    SPECIAL.values()
)
CHATML = Chat(
    BPETokenizer(PATTERN, [], {'<|endoftext|>': 256, '<|im_start|>': 257, '<|im_end|>': 258})
)


class Talks:
    """Random conversations as lists of (id, whether the assistant says it). An id of text occurs
    only once in all of them."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.next = 300

    def text(self, mean, said):
        count = 1 + int(self.rng.poisson(mean))
        self.next += count
        assert self.next <= 65536
        return [(i, said) for i in range(self.next - count, self.next)]

    def answer(self, mean):
        out = self.text(mean, True)
        while self.rng.random() < 0.3:
            out += [(PYTHON, True), *self.text(3, True), (PYTHON_END, True)]
            out += [(OUTPUT, False), *self.text(2, False), (OUTPUT_END, False)]
            out += self.text(mean, True) if self.rng.random() < 0.7 else []
        return [(ASSISTANT, False), *out, (ASSISTANT_END, True)]

    def one(self, mean=4):
        out = [(BOS_, False)]
        for _ in range(1 + int(self.rng.poisson(0.6))):
            out += [(USER, False), *self.text(mean, False), (USER_END, False), *self.answer(mean)]
        return out

    def some(self, count, mean=4):
        return [self.one(mean) for _ in range(count)]


def ids_of(talks):
    return [i for talk in talks for i, _ in talk]


def spoken_of(talks):
    return [i for talk in talks for i, said in talk if said]


def shards_of(folder, ids, shard_tokens=10**9):
    folder.mkdir(exist_ok=True)
    paths = []
    for i in range(0, len(ids), shard_tokens):
        paths.append(folder / f'train_{i:08d}.bin')
        np.array(ids[i : i + shard_tokens], '<u2').tofile(paths[-1])
    return Shards(paths, [path.stat().st_size // 2 for path in paths], 65536)


def full_rows(reader, step=0):
    """[(T + 1 ids, T weights)] of this rank's rows that have a weight."""
    rows = []
    for batch in reader[step]:
        assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
        rows_of_batch = torch.cat((batch.inputs, batch.targets[:, -1:]), 1).tolist()
        for ids, weights in zip(rows_of_batch, batch.weights.tolist()):
            if any(weights):
                rows.append((ids, weights))
    return rows


def taught(rows):
    """The targets with a weight, row by row."""
    return [i for ids, weights in rows for i, w in zip(ids[1:], weights) if w]


# ---- Packed


def naive_best_fit(sizes, capacity):
    """The room left in each row, by searching all rows for the best fit."""
    rooms = []
    for size in sorted(sizes, reverse=True):
        fitting = [room for room in rooms if room >= size]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append(min(fitting, default=capacity) - size)
    return sorted(rooms)


@pytest.mark.parametrize('seed', range(8))
def test_best_fit_is_the_naive_one(seed):
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(1, 60))
    sizes = rng.integers(1, capacity + 1, rng.integers(1, 300))
    row_of, num_rows = best_fit(sizes, capacity)
    used = np.bincount(row_of, sizes, num_rows)
    assert sorted(capacity - used) == naive_best_fit(sizes.tolist(), capacity)
    assert set(row_of.tolist()) == set(range(num_rows))
    assert np.array_equal(row_of, best_fit(sizes, capacity)[0])


def test_a_hundred_thousand_conversations_fill_their_rows():
    """Lengths distributed like SmolTalk's: log-normal, a few hundred ids."""
    sizes = np.clip(np.random.default_rng(0).lognormal(5.5, 1, 100_000).astype(np.int64), 4, 2049)
    row_of, num_rows = best_fit(sizes, 2049)
    assert np.bincount(row_of, sizes).max() <= 2049
    assert sizes.sum() / (num_rows * 2049) > 0.999


def test_reading_a_file_in_parts_gives_the_same_counts(tmp_path):
    """More ids than are read at a time, with a document longer than that."""
    part = ids_of(Talks().some(1000))
    long = [BOS_, USER, 5, USER_END, ASSISTANT, *[7] * 1_500_000, ASSISTANT_END]
    ids = np.concatenate((np.tile(part, 80), long, np.tile(part, 40)))
    assert len(ids) > 2**22
    shards = shards_of(tmp_path, ids, 10**6)
    starts = find_documents(shards, BOS_)
    assert np.array_equal(starts, [*np.flatnonzero(ids == BOS_), len(ids)])
    said = np.concatenate(([False], CHAT.is_spoken(ids)))
    for size in (20, len(ids)):
        kept = said & (np.arange(len(ids)) - np.repeat(starts[:-1], np.diff(starts)) < size)
        expected = np.add.reduceat(kept.astype(int), starts[:-1])
        assert np.array_equal(count_spoken(shards, CHAT, starts, size), expected)


@pytest.mark.parametrize('T', [6, 11, 24, 60, 200])
@pytest.mark.parametrize('shard_tokens', [10**9, 97])
def test_packed_teaches_every_word_of_the_assistants_once_an_epoch(tmp_path, T, shard_tokens):
    talks = Talks(T).some(300)
    # for every T, some are cut or some are packed
    assert max(map(len, talks)) > 60 > 30 > min(map(len, talks))
    shards = shards_of(tmp_path, ids_of(talks), shard_tokens)
    reader = Packed(shards, CHAT, Shape(0, 7, T, dtype=torch.float64))
    rows = full_rows(reader)
    assert sorted(taught(rows)) == sorted(spoken_of(talks))
    assert all(len(ids) == T + 1 for ids, _ in rows) and len(rows) == reader.num_rows
    assert {w for _, weights in rows for w in weights} <= {0.0, 1 / len(spoken_of(talks))}
    # no id occurs twice, except headers, which the pieces of cut conversations repeat
    text = [i for ids, _ in rows for i in ids if i >= 300]
    assert len(text) == len(set(text))
    assert [i for i in set(spoken_of(talks)) - set(text) if i >= 300] == []
    for ids, weights in rows:  # in order and in context
        assert ids[0] == BOS_
        assert [w > 0 for w in weights] == CHAT.is_spoken(ids).tolist()


def test_whole_conversations_lie_whole_in_full_rows(tmp_path):
    talks = Talks().some(1500, mean=3)
    T = max(map(len, talks)) - 1
    reader = Packed(shards_of(tmp_path, ids_of(talks)), CHAT, Shape(0, 64, T))
    rows = full_rows(reader)
    ends = [np.flatnonzero(np.array(ids) == BOS_) for ids, _ in rows]
    found = [part.tolist() for (ids, _), cuts in zip(rows, ends) for part in np.split(ids, cuts)]
    whole = sorted(part for part in found if len(part) > 1)
    assert whole == sorted(ids_of([talk]) for talk in talks)
    assert sum(len(talk) for talk in talks) / (len(rows) * (T + 1)) > 0.99
    oracle = {i: said for talk in talks for i, said in talk if i >= 300}
    for ids, weights in rows:
        assert all((w > 0) == oracle[i] for i, w in zip(ids[1:], weights) if i >= 300)


def test_packed_chatml_masks_row_by_row_as_piece_by_piece(tmp_path):
    messages = [
        [{'role': 'system', 'content': 'short'}, {'role': 'user', 'content': 'a' * n}]
        + [{'role': 'assistant', 'content': 'b' * (5 + n)}, {'role': 'user', 'content': 'c'}]
        * (n % 3)
        + [{'role': 'assistant', 'content': 'B' * (40 - n)}]
        for n in range(1, 40)
    ]
    messages = [talk for talk in messages if talk[-2]['role'] == 'user']
    talks = [CHATML.render(talk) for talk in messages]
    for T in (40, 150):
        reader = Packed(shards_of(tmp_path, sum(talks, [])), CHATML, Shape(0, 4, T))
        masked = [pair for ids in talks for pair in zip(ids[1:], CHATML.is_spoken(ids))]
        expected = sorted(i for i, said in masked if said)
        assert sorted(taught(full_rows(reader))) == expected
        roles = [message['role'] for talk in messages for message in talk]
        assert expected.count(258) == roles.count('assistant')
        assert {ord('B'), ord('b')} <= set(expected) and not {ord('a'), ord('c')} & set(expected)


@pytest.mark.parametrize('rows_per_step', [1, 4])
def test_every_step_has_something_to_teach_where_all_conversations_are_too_long(
    tmp_path, rows_per_step
):
    """Long questions, answers of one word: each step has a supervised target, so no 0 / 0."""
    talks = []
    for n in range(9):
        question = [(USER, False), *Talks(n).text(90, False), (USER_END, False)]
        answer = [(ASSISTANT, False), (7, True), (ASSISTANT_END, True)]
        talks.append([(BOS_, False), *question, *answer])
    T = 16
    assert min(map(len, talks)) > 3 * T
    shape = Shape(rows_per_step, 2, T, dtype=torch.float64)
    reader = Packed(shards_of(tmp_path, ids_of(talks)), CHAT, shape)
    seen = []
    for step in range(20):
        parts = list(reader[step])
        supervised = sum(b.metrics['supervised'] for b in parts)
        assert supervised == sum(int((b.weights > 0).sum()) for b in parts) > 0
        assert abs(sum(float(b.weights.sum()) for b in parts) - 1) < 1e-12
        seen += taught(full_rows(reader, step))
    epoch = seen[: len(seen) // (20 * rows_per_step) * reader.num_rows]
    assert set(epoch) == {7, ASSISTANT_END} and epoch.count(7) == epoch.count(ASSISTANT_END)


def test_a_packed_corpus_smaller_than_a_step_lasts_for_epochs(tmp_path):
    talks = Talks().some(3)
    reader = Packed(shards_of(tmp_path, ids_of(talks)), CHAT, Shape(8, 4, max(map(len, talks))))
    assert (len(reader), 1 <= reader.num_rows <= 3) == (1, True)
    for step in range(3 * 3):
        assert len(full_rows(reader, step)) == 8
    seen = sorted(i for step in range(reader.num_rows) for i in taught(full_rows(reader, step)))
    assert seen == sorted(spoken_of(talks) * 8)


def test_limited_rows_are_the_same_for_every_seed_and_stand_for_all(tmp_path):
    talks = Talks().some(400)
    shards = shards_of(tmp_path, ids_of(talks))

    def make(seed, limit):
        return Packed(shards, CHAT, Shape(0, 8, 40, seed=seed), shuffle=False, limit=limit)

    whole, some, other = make(1, None), make(1, 20), make(2, 20)
    ids = [[row for row, _ in full_rows(reader)] for reader in (whole, some, other)]
    assert ids[1] == ids[2] == ids[0][:20]
    assert (some.num_rows, make(1, 0).num_rows) == (20, whole.num_rows)
    per_row = [[row.count(BOS_) for row in rows] for rows in (ids[0], ids[1])]
    # best fit alone would put the longest talks first
    assert min(per_row[1]) < np.mean(per_row[0]) < max(per_row[1])


def test_conversations_without_an_answer_are_named(tmp_path):
    silent = [BOS_, USER, 5, USER_END] * 30
    headless = ['does not begin with <|bos|>']
    cases = [
        (Packed, silent, ['no token that the assistant says']),
        (Pairs, silent, ['no answer']),
        *[(reader, ids, headless) for reader in (Packed, Pairs) for ids in ([5, *silent], [5, 6])],
    ]
    for reader, ids, words in cases:
        with pytest.raises(SystemExit) as stop:
            reader(shards_of(tmp_path, ids), CHAT, Shape(4, 2, 8))
        one_line(stop, 'train_00000000.bin', *words)


# ---- Pairs


def preferences(count, seed=0, mean=4):
    talks = Talks(seed)
    return [
        [(BOS_, False), (USER, False), *question, (USER_END, False), *talks.answer(mean)]
        for question in (talks.text(mean, False) for _ in range(count))
        for _ in range(2)
    ]


@pytest.mark.parametrize('block_size, T', [(1024, 128), (128, 128), (100, 100), (63, 63)])
def test_pairs_are_padded_once_to_the_longest_document(tmp_path, capsys, block_size, T):
    documents = preferences(20)
    documents[3] = [*documents[3][:-1], *Talks(9).text(0, True) * 90, (ASSISTANT_END, True)]
    longest, count = max(map(len, documents)), sum(len(d) > block_size + 1 for d in documents)
    assert 90 < longest < 129
    shards = shards_of(tmp_path, ids_of(documents), 77)
    reader = Pairs(shards, CHAT, Shape(0, 6, block_size), shuffle=False)
    assert reader.shape.block_size == T
    said = capsys.readouterr().out
    assert (f'{count} of 40 documents' in said and said.count('\n') == 1) if count else said == ''
    rows = full_rows(reader)
    for (ids, weights), document in zip(rows, documents):
        expected = (document + [(BOS_, False)] * T)[: T + 1]
        assert ids == [i for i, _ in expected]
        assert weights == [float(said) for _, said in expected[1:]]  # undivided
    assert len(rows) == 40


def test_a_document_that_just_fits_is_not_padded_further(tmp_path):
    for length, T in ((65, 64), (66, 128), (64, 64)):
        document = [BOS_, USER, 5, USER_END, ASSISTANT, *[6] * (length - 6), ASSISTANT_END]
        reader = Pairs(shards_of(tmp_path, document * 2), CHAT, Shape(2, 2, 512))
        assert reader.shape.block_size == T


@pytest.mark.parametrize('world_size', [1, 2, 5])
@pytest.mark.parametrize('batch_size, rows_per_step', [(2, 8), (4, 8), (6, 24), (32, 0)])
def test_pairs_stay_together_with_their_shares_and_references(
    tmp_path, world_size, batch_size, rows_per_step
):
    documents = preferences(7)
    number = {tuple(i for i, _ in document): n for n, document in enumerate(documents)}
    shards = shards_of(tmp_path, ids_of(documents))
    shape = Shape(rows_per_step, batch_size, 64, dtype=torch.float64)
    reference = -np.arange(14) - 0.25
    ranks = [
        Pairs(shards, CHAT, shape._replace(rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert next(ranks[0][0]).reference is None  # not computed yet
    for reader in ranks:
        reader.reference = reference
    pairs = (rows_per_step or 14) // 2
    for step in range(4):
        seen = []
        for reader in ranks:
            mine = []
            for batch in reader[step]:
                assert len(batch.inputs) % 2 == 0 and len(batch.inputs) <= batch_size
                mine_alone = batch.share > 0  # without rows that the rank lacks
                assert torch.equal(mine_alone, batch.weights.any(1))
                assert set(batch.share.tolist()) <= {0.0, 1 / pairs}
                assert batch.reference[~mine_alone].eq(0).all()
                rows = torch.cat((batch.inputs, batch.targets[:, -1:]), 1)[mine_alone].tolist()
                rows = [number[(BOS_, *(i for i in ids if i != BOS_))] for ids in rows]
                assert all(b == a + 1 and a % 2 == 0 for a, b in zip(rows[::2], rows[1::2]))
                assert batch.reference[: len(rows)].tolist() == reference[rows].tolist()
                mine += rows
            assert mine == reader.mine(step)
            seen += mine
        assert sorted(seen) == sorted(ranks[0].rows(step)) and len(seen) == 2 * pairs


def test_what_is_wrong_with_pairs_is_named(tmp_path):
    documents = preferences(3)
    good = shards_of(tmp_path / 'good', ids_of(documents))
    odd = shards_of(tmp_path / 'odd', ids_of(documents[:-1]))
    silent = shards_of(tmp_path / 'silent', [*ids_of(documents[:-1]), BOS_, USER, 5, USER_END])
    cases = [
        (odd, Shape(4, 2, 64), ['odd', '5 documents']),
        (silent, Shape(4, 2, 64), ['silent', 'document 5', 'no answer', 'shorten']),
        (good, Shape(4, 2, 3), ['document 0', 'within 4 tokens']),
        (good, Shape(6, 3, 64), ['3 rows', 'batch_size', 'cpu_micro_batch_size', 'even']),
        (good, Shape(5, 2, 64), ['5 rows', 'gradient_accumulation_steps', 'multiple of 2']),
    ]
    for shards, shape, words in cases:
        with pytest.raises(SystemExit) as stop:
            Pairs(shards, CHAT, shape)
        one_line(stop, *words)
    with pytest.raises(SystemExit) as stop:
        Pairs(good, CHAT, Shape(4, 2, 64), reference=[0.0] * 4)
    one_line(stop, '4 log-probabilities', '6 rows')
    for limit, rows in ((None, 6), (0, 6), (1, 2), (2, 2), (5, 4), (99, 6)):
        reader = Pairs(good, CHAT, Shape(0, 2, 64), limit=limit, shuffle=False)
        assert reader.rows(0) == list(range(rows))


# ---- Rollouts

QUESTIONS = [
    {'messages': [{'role': 'user', 'content': 'q' * (3 + n)}], 'answer': n} for n in range(7)
]
QUESTIONS[2]['messages'] = [
    *QUESTIONS[0]['messages'],
    {'role': 'assistant', 'content': 'yes'},
    *QUESTIONS[2]['messages'],
]


def fake_generate(prompts, numbers, n, seed):
    """Answers that depend on the stream alone, as the engine's do: words, sometimes a call, and an
    end or none."""
    samples = []
    for number in numbers:
        for j in range(n):
            rng = np.random.default_rng((*seed, number, j))
            ids = rng.integers(97, 123, 1 + rng.integers(9)).tolist()
            spoken = [True] * len(ids)
            if rng.random() < 0.5:
                ids += [PYTHON, 49, PYTHON_END, OUTPUT, 50, OUTPUT_END]
                spoken += [True] * 3 + [False] * 3
            ended = rng.random() < 0.7
            ids += [ASSISTANT_END] * ended
            spoken += [True] * ended
            text = TALK.decode(i for i in ids if i < 256 and i != 49 and i != 50)
            reason = 'stop' if ended else 'length'
            samples.append(SimpleNamespace(ids=ids, spoken=spoken, text=text, finish_reason=reason))
    return samples


def fake_grades(problems, texts):
    return list(map(fake_grade, problems, texts))


def fake_grade(problem, text):
    """A third of the answers is right. Those to question 3 are always right, those to 5 never."""
    return {3: 1.0, 5: 0.1}.get(problem['answer'], float(sum(map(ord, text)) % 3 == 0))


def rollouts(
    shape, generate=fake_generate, samples=4, max_tokens=20, add_up=list, note=None,
    problems=QUESTIONS,
):  # fmt: skip
    return Rollouts(generate, fake_grades, problems, CHAT, shape, samples, max_tokens, add_up, note)


def naive_grpo(shape, step, samples=4):
    """{(ids of a row without padding): [weights of its answer's targets]} and the metrics, sample
    by sample."""
    questions = shape.rows_per_step // samples
    order = [naive_order(g, 7, shape.seed) for g in range(step * questions, (step + 1) * questions)]
    weights, rewards, lengths = {}, [], []
    flat = cut = 0
    for q, problem in enumerate(order):
        prompt = CHAT.prompt(QUESTIONS[problem]['messages'])
        group = fake_generate([prompt], [q], samples, (shape.seed, step))
        marks = [fake_grade(QUESTIONS[problem], sample.text) for sample in group]
        for sample, mark in zip(group, marks):
            advantage = mark - sum(marks) / len(marks) if len(set(marks)) > 1 else 0.0
            key = q, problem, tuple(prompt + sample.ids)
            weights[key] = [advantage * said for said in sample.spoken]
            lengths.append(sum(sample.spoken))
            cut += sample.finish_reason != 'stop'
        rewards += marks
        flat += len(set(marks)) == 1
    count = sum(lengths)
    weights = {key[2]: [w / count for w in row] for key, row in weights.items() if any(row)}
    rows = shape.rows_per_step
    return weights, {
        'reward': sum(rewards) / rows,
        'no_signal': flat / questions,
        'truncated': cut / rows,
        'length': count / rows,
    }


def all_ranks(make, shape, world_size, step):
    """The micro-batches of every rank. The first pass collects the numbers that add_up gets, the
    second gets their sums."""
    heard = []
    ranks = [shape._replace(rank=rank, world_size=world_size) for rank in range(world_size)]
    for rank in ranks:
        list(make(rank, add_up=lambda numbers: heard.append(numbers) or numbers)[step])
    sums = [sum(column) for column in zip(*heard)]
    assert not heard or len(heard) == world_size  # called once per step
    return [list(make(rank, add_up=lambda numbers: sums)[step]) for rank in ranks]


@pytest.mark.parametrize('world_size', [1, 2, 5])
@pytest.mark.parametrize('batch_size', [3, 4, 64])
def test_rollouts_weigh_answers_as_the_naive_formula(world_size, batch_size):
    shape, seen = Shape(12, batch_size, 64, dtype=torch.float64), 0
    for step in range(6):
        weights, metrics = naive_grpo(shape, step)
        ranks = all_ranks(rollouts, shape, world_size, step)
        got = dict.fromkeys(metrics, 0.0)
        for mine in ranks:
            assert len(mine) >= 1 and all(batch.metrics == {} for batch in mine[1:])
            # every micro-batch teaches something, except perhaps the first
            assert all(batch.weights.any() for batch in mine[1:])
            assert {tuple(batch.inputs.shape) for batch in mine} == {(mine[0].inputs.shape[0], 64)}
            got = {name: got[name] + mine[0].metrics[name] for name in got}
        assert got == pytest.approx(metrics, abs=1e-12)
        rows = []
        for batch in (batch for mine in ranks for batch in mine):
            pairs = zip(batch.inputs.tolist(), batch.weights.tolist())
            rows += [(ids, row) for ids, row in pairs if any(row)]
        assert len(rows) == len(weights)
        for ids, row in rows:
            key = next(key for key in weights if tuple(ids[: len(key)]) == key)
            expected = [0.0] * (len(key) - len(weights[key]) - 1) + weights.pop(key)
            assert ids[len(key) :] == [BOS_] * (64 - len(key))
            assert row == pytest.approx(expected + [0.0] * (64 - len(expected)), abs=1e-15)
            seen += 1
    assert seen > 20


def test_streams_have_the_same_numbers_on_any_number_of_ranks():
    def heard(world_size):
        said = {}

        def generate(prompts, numbers, n, seed):
            for prompt, number in zip(prompts, numbers):
                said[number] = (tuple(prompt), n, seed)
            return fake_generate(prompts, numbers, n, seed)

        for rank in range(world_size):
            list(rollouts(Shape(16, 4, 64, rank=rank, world_size=world_size, seed=3), generate)[9])
        return said

    alone = heard(1)
    assert sorted(alone) == [0, 1, 2, 3] and {row[1:] for row in alone.values()} == {(4, (3, 9))}
    assert heard(2) == heard(5) == alone


@pytest.mark.parametrize('world_size', [2, 5])
def test_a_real_engine_says_the_same_on_any_number_of_ranks(world_size):
    """Token by token, calls of the calculator included; the mask agrees on what it has sampled."""
    torch.manual_seed(0)
    config = GPTConfig(
        block_size=64, vocab_size=TALK.vocab_size, n_layer=2, n_head=2, n_embd=32, zero_init=False
    )
    model = GPT(config).double()
    with torch.no_grad():  # make special tokens likely: calls and ends
        model.lm_head.weight[256:265] *= 30
    engine = Engine(model, TALK, CHAT, calculate, rows=4, slots=64)
    said = []

    def generate(prompts, numbers, n, seed):
        samples = engine.generate(prompts, 20, Sampling(seed=seed), n, numbers)
        said.extend(samples)
        return samples

    grade = lambda problems, texts: [float(len(text) % 3) for text in texts]
    make = lambda shape, add_up: Rollouts(generate, grade, QUESTIONS, CHAT, shape, 4, 20, add_up)
    shape, rows = Shape(12, 4, 64, dtype=torch.float64), []
    for count in (1, world_size):
        every = [batch for mine in all_ranks(make, shape, count, 3) for batch in mine]
        pairs = [pair for b in every for pair in zip(b.inputs.tolist(), b.weights.tolist())]
        rows.append(sorted((row, w) for row, w in pairs if any(w)))
    assert rows[0] == rows[1] and len(rows[0]) > 4
    assert any(OUTPUT in sample.ids for sample in said)
    assert {sample.finish_reason for sample in said} == {'stop', 'length'}


def test_a_step_without_signal_teaches_nothing_and_says_so():
    assert np.mean([0.1] * 3) != 0.1  # a rounding error must not count as an advantage
    reader = rollouts(Shape(6, 4, 64), samples=3, problems=[QUESTIONS[3], QUESTIONS[5]])
    (batch,) = reader[0]
    assert not batch.weights.any() and batch.inputs.shape == (3, 64)
    assert batch.metrics['no_signal'] == 1 and batch.metrics['reward'] == pytest.approx(0.55)


def test_rollouts_note_one_answer_a_step_with_its_calls():
    notes, shape = [], Shape(16, 4, 64)
    for rank in range(2):
        reader = rollouts(shape._replace(rank=rank, world_size=2), note=notes.append)
        for step in range(8):
            list(reader[step])
    assert len(notes) == 8 and {tuple(note) for note in notes} == {('prompt', 'text', 'reward')}
    questions = {problem['messages'][-1]['content'] for problem in QUESTIONS}
    assert {note['prompt'] for note in notes} <= questions
    assert {'<<1=2>>' in note['text'] for note in notes} == {True, False}


def test_an_engine_and_a_mask_that_differ_are_noticed():
    def generate(*args):
        samples = fake_generate(*args)
        samples[-1].spoken[0] = False
        return samples

    with pytest.raises(AssertionError, match='must agree'):
        next(rollouts(Shape(8, 4, 64), generate)[0])


def test_rollouts_are_on_the_device_that_was_asked_for():
    reader = Rollouts(
        fake_generate, fake_grades, QUESTIONS, CHAT, Shape(8, 4, 64), 4, 20, list, device='meta'
    )
    assert {t.device.type for batch in reader[0] for t in batch[:3]} == {'meta'}


def test_what_is_wrong_with_rollouts_is_named_before_anything_is_generated():
    cases = [
        (dict(shape=Shape(10, 4, 64)), ['10 rows', 'multiple of 4']),
        (dict(shape=Shape(8, 4, 64), samples=1), ['1 samples']),
        (dict(shape=Shape(8, 4, 64), problems=[]), ['0 problems']),
        (dict(shape=Shape(8, 4, 32)), ['qqqqq', 'block_size - rl_tokens = 32 - 20', '--rl_tokens']),
    ]
    for arguments, words in cases:
        with pytest.raises(SystemExit) as stop:
            rollouts(**arguments, generate=None)
        one_line(stop, *words)
    # rows hold the longest question and answer, rounded up to 64
    assert rollouts(Shape(8, 4, 512)).shape.block_size == 64
    assert rollouts(Shape(8, 4, 512), max_tokens=60).shape.block_size == 128


# ---- for all readers: the sums of a step do not depend on how its rows are dealt


def toy(batch):
    """Loss and metrics of a formula instead of a model. For Pairs the loss is DPO's."""
    nll = torch.sin(0.37 * batch.inputs + 1.3 * batch.targets) ** 2
    if batch.share is None:
        return {'loss': float((batch.weights * nll).sum()), **batch.metrics}
    rows = -(batch.weights * nll).sum(1) - batch.reference
    losses = torch.nn.functional.softplus(rows[1::2] - rows[::2])
    return {'loss': float((batch.share[::2] * losses).sum())}


@pytest.mark.parametrize('name', ['stream', 'packed', 'pairs', 'rollouts'])
def test_splits_and_ranks_agree(tmp_path, name):
    shards = shards_of(tmp_path, ids_of(preferences(40)))
    make = {
        'stream': lambda shape, add_up: Stream(shards, shape, BOS_),
        'packed': lambda shape, add_up: Packed(shards, CHAT, shape),
        'pairs': lambda shape, add_up: Pairs(shards, CHAT, shape, reference=np.sin(np.arange(80))),
        'rollouts': lambda shape, add_up: rollouts(shape, add_up=add_up),
    }[name]
    for step in (0, 1, 5):
        results = []
        for world_size in (1, 2, 5):
            for batch_size in (2, 4, 6, 24):
                shape = Shape(24, batch_size, 64, dtype=torch.float64)
                ranks = all_ranks(make, shape, world_size, step)
                assert len({batch.inputs.shape for mine in ranks for batch in mine}) == 1
                sums = {}
                for batch in (batch for mine in ranks for batch in mine):
                    for key, x in toy(batch).items():
                        sums[key] = sums.get(key, 0.0) + x
                results.append(sums)
        assert all(result == pytest.approx(results[0], abs=1e-12) for result in results)
        assert abs(results[0]['loss']) > 1e-3
        assert len(results[0]) == {'packed': 2, 'rollouts': 5}.get(name, 1)


def test_a_row_never_holds_a_conversation_twice(tmp_path):
    """Best fit puts conversations of one length side by side, so also the copies of a mixture."""
    talks = Talks().some(40)
    once = shards_of(tmp_path, ids_of(talks))
    shards = Shards(once.paths * 3, [len(once)] * 3, 65536, copies=[0, 1, 2])
    T = 3 * max(map(len, talks))
    rows = full_rows(Packed(shards, CHAT, Shape(0, 8, T)))
    assert sorted(taught(rows)) == sorted(spoken_of(talks) * 3)
    for ids, _ in rows:
        text = [i for i in ids if i >= 300]
        assert len(text) == len(set(text))
    careless = Shards(once.paths * 3, [len(once)] * 3, 65536)  # without copies
    rows = full_rows(Packed(careless, CHAT, Shape(0, 8, T)))
    texts = [[i for i in ids if i >= 300] for ids, _ in rows]
    assert any(len(text) > len(set(text)) for text in texts)


# ---- Ahead


@pytest.mark.parametrize('steps', [range(12), range(5, 9), [3, 4, 9, 0, 1, 1, 7, 6, 8, 7]])
def test_ahead_gives_what_the_reader_gives(shards, steps):
    reader = Stream(shards, Shape(5, 2, 6), bos=BOS)
    ahead = Ahead(Stream(shards, Shape(5, 2, 6), bos=BOS), 'cpu')
    assert len(ahead) == len(reader) == 4
    for step in steps:
        ours, theirs = list(ahead[step]), list(reader[step])
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs):
            assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3]))


class Noted:
    """A reader that notes the steps it was asked for. Step 3 fails."""

    def __init__(self):
        self.asked = []

    def __getitem__(self, step):
        self.asked.append(step)
        if step == 3:
            raise SystemExit('the data are broken')
        yield from ()


def test_ahead_prepares_the_next_step_and_no_step_twice():
    reader = Noted()
    ahead = Ahead(reader, 'cpu')
    ahead[0]
    ahead.ready.result()
    assert reader.asked == [0, 1]
    ahead[1]
    ahead.ready.result()
    assert reader.asked == [0, 1, 2]


def test_an_error_in_the_thread_is_raised_where_its_step_is_asked_for():
    ahead = Ahead(Noted(), 'cpu')
    assert [list(ahead[step]) for step in (0, 1, 2)] == [[], [], []]
    with pytest.raises(SystemExit, match='the data are broken'):
        ahead[3]
    assert list(ahead[4]) == []
    with pytest.raises(SystemExit, match='the data are broken'):
        ahead[3]  # a jump
    assert list(ahead[5]) == []


# ---- memory

MEMORY = """
import sys
from pathlib import Path

from batches import Ahead, Shape, Stream
from shards import Data


def resident():
    lines = Path('/proc/self/status').read_text(encoding='utf-8').splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('VmRSS')) / 1024


steps = Ahead(Stream(Data(sys.argv[1]).split('train'), Shape(8, 8, 8192), bos=50256), 'cpu')
for step in range(3):
    steps[step]
before = resident()  # early: the first steps touch most of a mapped file
peak = 0
for step in range(3, 1003):
    steps[step]
    if step % 10 == 0:
        peak = max(peak, resident())
print('growth', peak - before)
"""


@pytest.mark.skipif(
    not sys.platform.startswith('linux'), reason='resident memory is read from /proc/self/status'
)
def test_memory_stays_bounded_over_1000_steps(tmp_path, run_program):
    """A file of 200 MB. A reader that maps or keeps it would grow by most of that, ours by less
    than 30 MB."""
    (tmp_path / 'data').mkdir()
    part = (np.arange(2**20) % 50257).astype('<u2').tobytes()
    with open(tmp_path / 'data' / 'train.bin', 'wb') as file:
        file.writelines([part] * 100)
    (tmp_path / 'read.py').write_text(MEMORY, encoding='utf-8')
    root = pathlib.Path(batches.__file__).parent
    done = run_program(tmp_path / 'read.py', tmp_path / 'data', env={'PYTHONPATH': root})
    assert float(done.stdout.split()[1]) < 30
