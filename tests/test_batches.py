"""
batches.py against naive versions: the file format, what Data refuses, and the laws that every reader keeps.

A law here is the one of batches.py's docstring: row g of a run is row order(epoch)[g mod n], epoch = g div n.
"""

import hashlib
import json
import os
import pathlib
import sys

import numpy as np
import pytest
import torch

import batches
from batches import Ahead, Data, Reader, Shape, Shards, Stream, Writer
from tokenizer import PATTERN, BPETokenizer, CharTokenizer, GPT2Tokenizer

BOS = 256
BYTES = BPETokenizer(PATTERN, [], {'<|bos|>': BOS})  # 257 ids


def write(folder, train, val=(1, 2, 3), tokenizer=BYTES, shard_tokens=2**27):
    with Writer(folder, tokenizer, shard_tokens) as out:
        out.write('train', train, len(train))
        out.write('val', val, len(val))
    return folder


def documents(count, seed=0, mean=9):
    """count ids below 256, with a bos before each document."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(count) < 1 / mean, BOS, rng.integers(0, 256, count))


def facts_of(folder):
    return json.loads((folder / 'meta.json').read_text(encoding='utf-8'))


def one_line(stop, *words):
    """The words of an error for the user, checked to be one line that holds each of `words`."""
    message = str(stop.value.code)
    assert '\n' not in message
    assert [word for word in map(str, words) if word not in message] == [], message


# ---- Writer


@pytest.mark.parametrize('shard_tokens, names', [
    (100, ['train.bin']),
    (99, ['train_00000.bin', 'train_00001.bin']),
    (50, ['train_00000.bin', 'train_00001.bin']),
    (13, [f'train_{i:05d}.bin' for i in range(8)]),
])  # fmt: skip
def test_the_files_are_the_ids_as_raw_little_endian_uint16(tmp_path, shard_tokens, names):
    ids = np.random.default_rng(0).integers(0, 50257, 100)
    with Writer(tmp_path, GPT2Tokenizer(), shard_tokens) as out:
        for part in np.split(ids, [1, 1, 14, 60, 99]):  # an empty part too
            out.write('train', part.tolist(), 2)
    assert sorted(path.name for path in tmp_path.glob('*.bin')) == names
    files = [(tmp_path / name).read_bytes() for name in names]
    assert b''.join(files) == b''.join(int(i).to_bytes(2, 'little') for i in ids)
    assert {len(file) for file in files[:-1]} <= {2 * shard_tokens}
    assert list(tmp_path.glob('*.part')) == []


def test_meta_json_holds_the_truth(tmp_path):
    train, val = documents(1000, seed=1), documents(70, seed=2)
    with Writer(tmp_path, BYTES, shard_tokens=300) as out:
        out.write('train', train[:420], 400)
        out.write('val', val, 65)
        out.write('train', train[420:], 555)
    meta = facts_of(tmp_path)
    assert (meta['vocab_size'], meta['dtype'], meta['tokenizer']) == (257, 'uint16', 'tok.json')
    assert meta['tokenizer_hash'] == BYTES.hash == Data(tmp_path).tokenizer.hash
    assert {name: (split['tokens'], split['bytes']) for name, split in meta['splits'].items()} == {
        'train': (1000, 955),
        'val': (70, 65),
    }
    for name, ids in (('train', train), ('val', val)):
        shards = meta['splits'][name]['shards']
        assert [shard['tokens'] for shard in shards] == ([300, 300, 300, 100] if name == 'train' else [70])
        for i, shard in enumerate(shards):
            held = ids[300 * i : 300 * (i + 1)]
            assert shard['largest_id'] == held.max()
            assert shard['sha256'] == hashlib.sha256((tmp_path / shard['name']).read_bytes()).hexdigest()
            assert shard['sha256'] == hashlib.sha256(held.astype('<u2').tobytes()).hexdigest()


@pytest.mark.parametrize('bad', [[-1], [257], [0, 70000], [65535 + 1]])
def test_ids_out_of_range_are_refused(tmp_path, bad):
    with pytest.raises(ValueError, match=r'expected 0\.\.256'), Writer(tmp_path, BYTES) as out:
        out.write('train', [1, 2], 2)
        out.write('train', bad, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_beyond_uint16_is_refused(tmp_path):
    class Large:
        vocab_size = 2**16 + 1

    with pytest.raises(SystemExit) as stop:
        Writer(tmp_path, Large())
    one_line(stop, 65537, 65536)


def test_an_exception_keeps_the_old_data_and_leaves_nothing_else(tmp_path):
    write(tmp_path, documents(50), shard_tokens=20)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path, CharTokenizer('ab'), shard_tokens=4) as out:
        out.write('train', [0, 1] * 9, 18)
        raise KeyboardInterrupt
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize('first, second', [(7, 100), (100, 7), (5, 20)])
def test_shards_of_the_data_before_are_removed(tmp_path, first, second):
    for name in ('train_notes.bin', 'trainer.bin', 'input.txt'):
        (tmp_path / name).write_bytes(b'not ours')
    write(tmp_path, documents(60, seed=1), documents(30, seed=1), shard_tokens=first)
    train, val = documents(60, seed=2), documents(30, seed=2)
    write(tmp_path, train, val, shard_tokens=second)
    listed = {shard['name'] for split in facts_of(tmp_path)['splits'].values() for shard in split['shards']}
    others = {'train_notes.bin', 'trainer.bin', 'input.txt', 'meta.json', 'tok.json'}
    assert {path.name for path in tmp_path.iterdir()} == listed | others
    assert Data(tmp_path).split('train').read(0, 60).tolist() == train.tolist()
    assert Data(tmp_path).split('val').read(0, 30).tolist() == val.tolist()


class Crash(BaseException):
    """The machine stops: nothing that would clean up runs either."""


def test_a_crash_at_any_moment_leaves_the_old_data_or_the_new_or_a_refusal(tmp_path, monkeypatch):
    """Every rename, removal and fsync of the Writer is once the one before which the machine stops."""
    old, new = documents(40, seed=1), documents(40, seed=2)
    left = {'operations': 0}

    def mortal(function):
        def call(*args, **kwargs):
            left['operations'] -= 1
            if left['operations'] < 0:
                raise Crash
            return function(*args, **kwargs)

        return call

    for owner, name in ((pathlib.Path, 'replace'), (pathlib.Path, 'unlink'), (os, 'fsync'), (os, 'replace')):
        monkeypatch.setattr(owner, name, mortal(getattr(owner, name)))
    seen = set()
    for survived in range(100):
        folder = tmp_path / str(survived)
        left['operations'] = 1000
        write(folder, old, tokenizer=BYTES, shard_tokens=15)
        left['operations'] = survived
        try:
            write(folder, new, tokenizer=BYTES, shard_tokens=15)
            break
        except Crash:
            left['operations'] = 1000
        try:
            data = Data(folder)
            data.split('val')
            read = data.split('train').read(0, 100).tolist()
        except SystemExit as stop:
            seen.add('refused')
            assert 'meta.json is missing' in stop.code or 'no data' in stop.code
        else:
            assert read in (old.tolist(), new.tolist())
            seen.add('old' if read == old.tolist() else 'new')
    assert survived > 10 and seen >= {'old', 'refused'}


# ---- what Data refuses


def edit_meta(folder, change):
    meta = facts_of(folder)
    change(meta)
    (folder / 'meta.json').write_text(json.dumps(meta), encoding='utf-8')


def remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def put(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def retrain(folder):
    CharTokenizer('abc').save(folder / 'tok.json')


def hash_of_another(folder):
    edit_meta(folder, lambda meta: meta.update(tokenizer_hash='0123456789abcdef'))


def id_beyond(folder):
    edit_meta(folder, lambda meta: meta['splits']['train']['shards'][0].update(largest_id=257))


def spoil_tokenizer(folder):
    text = (folder / 'tok.json').read_text(encoding='utf-8')
    (folder / 'tok.json').write_text(text.replace('"<|bos|>"', '"<|boss|>"'), encoding='utf-8')


def without(name):
    return lambda folder: edit_meta(folder, lambda meta: meta.pop(name))


def both(*changes):
    return lambda folder: [change(folder) for change in changes]


REFUSALS = {
    'no train.bin': (remove('train.bin'), ['no data', '{}/train.bin', 'custom']),
    'no train.bin, prepare.py': (
        both(remove('train.bin'), put('prepare.py', b'')),
        ['{}/train.bin', 'run: python {}/prepare.py'],
    ),
    'meta.pkl': (both(remove('meta.json', 'tok.json'), put('meta.pkl', b'x')), ['meta.pkl', 'meta.json', 'prepare']),
    'cut short': (remove('meta.json'), ['{}/meta.json is missing', 'cut short', 'prepare']),
    'no JSON': (put('meta.json', b'{"a": '), ['{}/meta.json cannot be read', 'prepare']),
    'no UTF-8': (put('meta.json', b'\xff\xff'), ['{}/meta.json cannot be read', 'prepare']),
    'a list': (put('meta.json', b'[1]'), ['{}/meta.json cannot be read', 'prepare']),
    'null': (put('meta.json', b'null'), ['{}/meta.json cannot be read', 'prepare']),
    'no hash': (without('tokenizer_hash'), ['{}/meta.json cannot be read', "'tokenizer_hash'"]),
    'no splits': (without('splits'), ['{}/meta.json cannot be read', "'splits'"]),
    'splits are none': (lambda folder: edit_meta(folder, lambda meta: meta.update(splits=3)), ['cannot be read']),
    'tokenizer is none': (lambda folder: edit_meta(folder, lambda meta: meta.update(tokenizer=3)), ['cannot be read']),
    'another tokenizer': (retrain, ['{}/tok.json has hash', BYTES.hash[:12], 'prepare']),
    'another hash': (hash_of_another, ['{}/tok.json has hash', BYTES.hash[:12], '0123456789ab', 'prepare']),
    'a hash that is none': (lambda f: edit_meta(f, lambda meta: meta.update(tokenizer_hash=7)), ['expects 7']),
    'a tokenizer edited by hand': (spoil_tokenizer, ['{}/tok.json', 'hash', 'prepare']),
    'no tokenizer': (remove('tok.json'), ['{}/tok.json does not exist', 'custom']),
    'odd': (put('train.bin', b'\0' * 21), ['{}/train.bin has 21 bytes', 'even', 'prepare']),
    'too short': (put('train.bin', b'\0' * 20), ['{}/train.bin has 10 tokens', 'meta.json says 40', 'prepare']),
    'too long': (put('train.bin', b'\0' * 82), ['{}/train.bin has 41 tokens', 'meta.json says 40', 'prepare']),
    'empty': (put('train.bin', b''), ['{} has no tokens', "'train'", 'prepare']),
    'one more shard': (put('train_00001.bin', b'\0\0'), ['train_00001.bin', 'meta.json lists', 'prepare']),
    'id beyond': (id_beyond, ['{}/train.bin', '257', 'vocab_size = 257', 'prepare']),
}


@pytest.mark.parametrize('case', REFUSALS)
def test_what_is_wrong_with_a_folder_is_one_line_with_its_mend(tmp_path, case):
    change, words = REFUSALS[case]
    folder = write(tmp_path / 'my däta', documents(40))
    assert len(Data(folder).split('train')) == 40  # so that the change alone is to blame
    change(folder)
    with pytest.raises(SystemExit) as stop:
        Data(folder).split('train')
    one_line(stop, *[word.replace('{}', str(folder)) for word in words])


def test_a_missing_folder_and_a_missing_split_are_named(tmp_path):
    with pytest.raises(SystemExit) as stop:
        Data(tmp_path / 'nowhere')
    one_line(stop, f'{tmp_path / "nowhere"}/train.bin', 'custom')
    write(tmp_path, documents(40), val=[])
    with pytest.raises(SystemExit) as stop:
        Data(tmp_path).split('val')
    one_line(stop, tmp_path, "'val'", 'no tokens')


def test_files_of_nanogpt_are_gpt2s(tmp_path):
    """Its folders hold train.bin and val.bin alone; an id that GPT-2 lacks is named when its row is read."""
    ids = np.random.default_rng(0).integers(0, 50257, 90).astype('<u2')
    ids[3] = 50256
    for name in ('train', 'val'):
        ids.tofile(tmp_path / f'{name}.bin')
    data = Data(tmp_path)
    assert data.meta is None and (data.tokenizer.vocab_size, data.tokenizer.bos) == (50257, 50256)
    assert data.split('train').read(0, 90).tolist() == ids.tolist()
    first = next(Stream(data.split('train'), Shape(1, 1, 10), bos=50256, shuffle=False)[0])
    assert first.inputs[0].tolist() == ids[3:13].tolist()

    ids[77] = 50257
    ids.tofile(tmp_path / 'val.bin')
    val = Data(tmp_path).split('val')
    assert len(val.read(0, 77)) == 77
    for start, count in ((77, 1), (60, 30), (0, 90)):
        with pytest.raises(SystemExit) as stop:
            val.read(start, count)
        one_line(stop, f'{tmp_path}/val.bin', 50257, 'vocab_size')


def test_an_id_beyond_is_told_of_the_shard_that_holds_it(tmp_path):
    for i, ids in enumerate(([1, 2], [3, 60000], [4, 5])):
        np.array(ids, '<u2').tofile(tmp_path / f'train_{i:05d}.bin')
    with pytest.raises(SystemExit) as stop:
        Data(tmp_path).split('train').read(0, 6)
    one_line(stop, 'train_00001.bin', 60000)


# ---- Shards


@pytest.mark.parametrize('shard_tokens', [1, 3, 7, 19, 20])
def test_shards_read_as_one_sequence(tmp_path, shard_tokens):
    ids = documents(20).tolist()
    shards = Data(write(tmp_path, ids, shard_tokens=shard_tokens)).split('train')
    assert len(shards) == 20
    for start in range(22):
        for count in range(23):
            read = shards.read(start, count)
            assert read.dtype == np.int64 and read.tolist() == ids[start : start + count]


# ---- Stream


def naive_row(ids, k, T, bos):
    """DESIGN's rule, read aloud: from the first bos at or after k * T and before (k + 1) * T, else from k * T."""
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
    """The (T + 1,) ids of a step's rows on this rank that have a weight, micro-batch after micro-batch."""
    rows = []
    for inputs, targets, weights, _ in reader[step]:
        assert inputs.dtype == targets.dtype == torch.int64 and inputs.is_contiguous() and targets.is_contiguous()
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
        found = Shards(paths, [path.stat().st_size // 2 for path in paths], vocab_size=257, checked=True)
        expected = [naive_row(ids, k, 4, BOS) for k in range((count - 1) // 4)]
        assert rows_of(Stream(found, Shape(0, 2, 4), bos=BOS, shuffle=False), 0) == expected


@pytest.mark.parametrize('rows_per_step', [1, 3, 5, 17, 40])  # of 17 rows: steps span epochs, and small data wraps
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
    assert [naive_order(g, 17, seed) for g in range(17)] != [naive_order(17 + g, 17, seed) for g in range(17)]


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
        assert all(torch.equal(a, b) for one, other in zip(fresh, again) for a, b in zip(one, other))
    halves = iter(reader[2])
    next(halves)
    middle = rows_of(reader, 7)  # another step read in between does not disturb it
    assert [batch.inputs.tolist() for batch in halves] == [b.inputs.tolist() for b in list(reader[2])[1:]]
    assert middle == rows_of(Stream(shards, shape, bos=BOS), 7)


@pytest.mark.parametrize('world_size', [1, 2, 3, 5])
@pytest.mark.parametrize('batch_size', [1, 2, 3, 8])
@pytest.mark.parametrize('rows_per_step', [8, 0, 3])
def test_ranks_share_a_step_in_micro_batches_of_one_shape(shards, world_size, batch_size, rows_per_step):
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
        dealt = [mine[j % world_size][j // world_size] for j in range(wanted)]  # ranks take rows r, r + N, …
        assert dealt == [naive_row(shards.ids, k, 6, BOS) for k in ranks[0].rows(step)]
    (rows, T), *more = shapes
    assert not more and T == 6 and 1 <= rows <= batch_size
    assert len(counts) == 1
    assert (rows * counts.pop() - -(-wanted // world_size)) < -(-wanted // world_size)  # less than half is filler


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
        assert all(sorted(pair) == [[0, 1, 2, 3, 4, 5], [5, 6, 7, 8, 9, 10]] for pair in zip(rows[::2], rows[1::2]))


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
        counted = [(batch.inputs[0, 0], w) for reader in ranks for batch in reader[step] for w in batch.weights.sum(1)]
        assert abs(sum(float(w) for _, w in counted) - 1) < 1e-12
        assert all(abs(float(w) - int(r) / total) < 1e-12 for r, w in counted)
    nothing = Masked(1, Shape(2, 2, 4))  # its only row has no supervised target: loss 0, not 0 / 0
    assert all(batch.weights.eq(0).all() for batch in nothing[0])


def test_a_batch_goes_to_a_device_and_keeps_the_rest(shards):
    batch = next(Stream(shards, Shape(2, 2, 6))[0])._replace(metrics={'a': 1.0})
    moved = batch.to('meta')
    assert {t.device.type for t in moved[:3]} == {'meta'} and moved.metrics == {'a': 1.0}
    assert [t.shape for t in moved[:3]] == [t.shape for t in batch[:3]]
    assert all(torch.equal(a, b) for a, b in zip(batch.to('cpu')[:3], batch[:3]))


# ---- Ahead


@pytest.mark.parametrize('steps', [range(12), range(5, 9), [3, 4, 9, 0, 1, 1, 7, 6, 8, 7]])
def test_ahead_gives_what_the_reader_gives(shards, steps):
    reader = Stream(shards, Shape(5, 2, 6), bos=BOS)
    ahead = Ahead(Stream(shards, Shape(5, 2, 6), bos=BOS), 'cpu')
    assert len(ahead) == len(reader) == 4
    for step in steps:
        ours, theirs = list(ahead[step]), list(reader[step])
        assert len(ours) == len(theirs)
        assert all(torch.equal(a, b) for one, other in zip(ours, theirs) for a, b in zip(one[:3], other[:3]))


class Noted:
    """A reader that notes which steps it was asked for, and whose third one fails."""

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


# ---- trap 25: memory

MEMORY = """
import sys
from pathlib import Path

from batches import Ahead, Data, Shape, Stream


def resident():
    lines = Path('/proc/self/status').read_text(encoding='utf-8').splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('VmRSS')) / 1024


steps = Ahead(Stream(Data(sys.argv[1]).split('train'), Shape(8, 8, 1024), bos=50256), 'cpu')
for step in range(3):
    steps[step]
before, peak = resident(), 0  # early: the first 200 steps touch most of a mapped file
for step in range(3, 5003):
    steps[step]
    if step % 50 == 0:
        peak = max(peak, resident())
print('growth', peak - before)
"""


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='resident memory is read from /proc/self/status')
def test_memory_stays_bounded_over_5000_steps(tmp_path, run_program):
    """A file of 200 MB; a reader that maps or keeps it would grow by most of that, ours by less than 30 MB."""
    (tmp_path / 'data').mkdir()
    part = (np.arange(2**20) % 50257).astype('<u2').tobytes()
    with open(tmp_path / 'data' / 'train.bin', 'wb') as file:
        file.writelines([part] * 100)
    (tmp_path / 'read.py').write_text(MEMORY, encoding='utf-8')
    root = pathlib.Path(batches.__file__).parent
    done = run_program(tmp_path / 'read.py', tmp_path / 'data', env={'PYTHONPATH': root})
    assert float(done.stdout.split()[1]) < 30
