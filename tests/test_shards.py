"""shards.py: what a Writer leaves on the disk, what Data refuses, and what is read back."""

import errno
import hashlib
import json
import os
import pathlib

import numpy as np
import pytest
from conftest import one_line

import disk
import shards as shards_module
from data.writing import write_text
from shards import (
    Data,
    Writer,
    check_isolate,
    check_kind,
    check_tokenizer,
    id_dtype,
    mixture,
    open_data,
)
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


def test_meta_json_holds_the_facts_of_the_shards(tmp_path):
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
        sizes = [300, 300, 300, 100] if name == 'train' else [70]
        assert [shard['tokens'] for shard in shards] == sizes
        for i, shard in enumerate(shards):
            held = ids[300 * i : 300 * (i + 1)]
            assert shard['largest_id'] == held.max()
            content = (tmp_path / shard['name']).read_bytes()
            assert content == held.astype('<u2').tobytes()
            assert shard['sha256'] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize('bad', [[-1], [257], [0, 70000], [65535 + 1]])
def test_ids_out_of_range_are_refused(tmp_path, bad):
    with pytest.raises(ValueError, match=r'expected 0\.\.256'), Writer(tmp_path, BYTES) as out:
        out.write('train', [1, 2], 2)
        out.write('train', bad, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_beyond_uint16_has_uint32_shards(tmp_path):
    special = {f'<|{i}|>': 256 + i for i in range(2**16)} | {'<|bos|>': 256 + 2**16}
    tokenizer = BPETokenizer(PATTERN, [], special)
    texts = ['a document', 'another one']
    with Writer(tmp_path, tokenizer) as out:
        write_text(out, [('train', text) for text in texts])
    data = Data(tmp_path)
    ids = data.split('train').read(0, 100).tolist()
    assert data.dtype == np.dtype('<u4') and data.meta['dtype'] == 'uint32'
    assert ids == [i for text in texts for i in [tokenizer.bos, *tokenizer.encode(text)]]


def test_an_exception_keeps_the_old_data_and_leaves_nothing_else(tmp_path):
    write(tmp_path, documents(50), shard_tokens=20)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        with Writer(tmp_path, CharTokenizer('ab'), shard_tokens=4) as out:
            out.write('train', [0, 1] * 9, 18)
            raise KeyboardInterrupt
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_is_one_line_and_keeps_the_old_data(tmp_path, monkeypatch):
    write(tmp_path, documents(50), shard_tokens=20)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_, **how):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for owner, name in ((shards_module, 'open'), (pathlib.Path, 'mkdir'), (disk, 'sync')):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(owner, name, full, raising=False)
            write(tmp_path, documents(30))
        assert str(tmp_path) in stop.value.code and 'No space left on device' in stop.value.code
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_hash_differs_for_other_data_of_the_same_tokenizer(tmp_path):
    ones, twos = documents(40, seed=1), documents(40, seed=2)
    for name, ids in (('a', ones), ('b', twos)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, ids)
    datasets = ('a', 'b', 'a,b', 'b,a', 'a:2')
    hashes = {dataset: open_data(tmp_path, dataset).hash for dataset in datasets}
    assert len(set(hashes.values())) == 5
    write(tmp_path / 'a', ones)
    assert open_data(tmp_path, 'a,b').hash == hashes['a,b']
    write(tmp_path / 'b', documents(40, seed=3))
    assert open_data(tmp_path, 'a,b').hash != hashes['a,b']
    for name in ('meta.json', 'tok.json'):
        (tmp_path / 'b' / name).unlink()
    assert Data(tmp_path / 'b').hash is None


@pytest.mark.parametrize('links', [True, False])
def test_adopted_shards_are_those_of_other_folders(tmp_path, monkeypatch, links):
    """They may be adopted again, also by the folder that they are in."""
    if not links:  # as on exFAT

        def fail(*args):
            raise OSError(errno.EPERM, 'Operation not permitted')

        monkeypatch.setattr(os, 'link', fail)
    found = []
    for i, ids in enumerate([[1, 2], [3], [4, 5, 6]]):
        write(tmp_path / str(i), ids)
        facts = facts_of(tmp_path / str(i))['splits']['train']
        found.append((tmp_path / str(i) / 'train.bin', dict(facts['shards'][0], bytes=len(ids))))
    (tmp_path / 'all').mkdir()
    (tmp_path / 'all' / 'train_00000.bin.part').write_bytes(b'of a killed process')
    for count in (2, 1, 2):
        with Writer(tmp_path / 'all', BYTES) as out:
            for source in found[:count]:
                out.adopt('train', *source)
            out.adopt('val', *found[2])
        data = Data(tmp_path / 'all')
        expected = [1, 2, 3][: count + 1]
        assert data.split('train').read(0, 9).tolist() == expected
        assert data.split('val').read(0, 9).tolist() == [4, 5, 6]
        facts = data.meta['splits']['train']
        assert (facts['tokens'], facts['bytes']) == (len(expected), len(expected))
        name = facts['shards'][0]['name']
        found[0] = (tmp_path / 'all' / name, facts['shards'][0])
    assert not list((tmp_path / 'all').glob('*.part'))


@pytest.mark.parametrize('first, second', [(7, 100), (100, 7), (5, 20)])
def test_shards_of_earlier_data_are_removed(tmp_path, first, second):
    for name in ('train_notes.bin', 'trainer.bin', 'input.txt'):
        (tmp_path / name).write_bytes(b'not ours')
    write(tmp_path, documents(60, seed=1), documents(30, seed=1), shard_tokens=first)
    train, val = documents(60, seed=2), documents(30, seed=2)
    write(tmp_path, train, val, shard_tokens=second)
    splits = facts_of(tmp_path)['splits'].values()
    listed = {shard['name'] for split in splits for shard in split['shards']}
    others = {'train_notes.bin', 'trainer.bin', 'input.txt', 'meta.json', 'tok.json'}
    assert {path.name for path in tmp_path.iterdir()} == listed | others
    assert Data(tmp_path).split('train').read(0, 60).tolist() == train.tolist()
    assert Data(tmp_path).split('val').read(0, 30).tolist() == val.tolist()


@pytest.mark.parametrize('name', ['train.bin', 'val_00003.bin', 'meta.json', 'tok.json'])
@pytest.mark.parametrize('prepared', [False, True])
def test_foreign_files_are_refused_and_kept(tmp_path, name, prepared):
    if prepared:
        write(tmp_path, documents(40), shard_tokens=20)
        if name in ('meta.json', 'tok.json'):
            (tmp_path / 'meta.json').unlink()
    (tmp_path / name).write_bytes(b'mine')
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SystemExit) as stop:
        write(tmp_path, documents(30))
    one_line(stop, tmp_path / name, 'move it away')
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_foreign_tok_json_may_be_used_in_its_own_folder(tmp_path):
    BYTES.save(tmp_path / 'tok.json')
    assert len(Data(write(tmp_path, documents(40))).split('train')) == 40


def test_an_added_file_is_replaced_until_it_is_edited(tmp_path):
    def prepare(content):
        with Writer(tmp_path, BYTES) as out:
            out.write('train', [1, 2], 2)
            if content:
                out.add('problems.jsonl', content)

    path = tmp_path / 'problems.jsonl'
    for content in (b'a', b'b', None, b'c'):
        prepare(content)
        assert (path.read_bytes() if path.exists() else None) == content
    path.write_bytes(b'c, edited')
    with pytest.raises(SystemExit) as stop:
        prepare(b'd')
    one_line(stop, path, 'no preparation wrote it as it is')
    prepare(None)
    assert path.read_bytes() == b'c, edited' and list(tmp_path.glob('*.part')) == []


def test_older_data_whose_meta_json_lists_no_other_files(tmp_path):
    write(tmp_path, documents(40), shard_tokens=20)
    edit_meta(tmp_path, lambda meta: meta.pop('files'))
    (tmp_path / 'problems.jsonl').write_bytes(b'mine')
    write(tmp_path, documents(30))
    assert len(Data(tmp_path).split('train')) == 30 and len(list(tmp_path.glob('train*.bin'))) == 1
    assert (tmp_path / 'problems.jsonl').read_bytes() == b'mine'


class Crash(BaseException):
    """The machine stops, so no cleaning up runs either."""


def test_a_crash_at_any_moment_leaves_the_old_data_or_the_new_or_a_refusal(tmp_path, monkeypatch):
    """The machine stops before each rename, removal and fsync of the Writer in turn."""
    old, new = documents(40, seed=1), documents(40, seed=2)
    left = {'operations': 0}

    def mortal(function):
        def call(*args, **kwargs):
            left['operations'] -= 1
            if left['operations'] < 0:
                raise Crash
            return function(*args, **kwargs)

        return call

    operations = (pathlib.Path, 'replace'), (pathlib.Path, 'unlink'), (os, 'fsync'), (os, 'replace')
    for owner, name in operations:
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
        write(folder, new, tokenizer=BYTES, shard_tokens=15)  # replaces what is left
        assert Data(folder).split('train').read(0, 100).tolist() == new.tolist()
        assert list(folder.glob('meta.json*')) == [folder / 'meta.json']
    assert survived > 10 and seen >= {'old', 'refused'}


def test_a_meta_json_with_a_byte_order_mark_is_read(tmp_path):
    folder = write(tmp_path / 'data', documents(40))
    meta = (folder / 'meta.json').read_bytes()
    (folder / 'meta.json').write_bytes(b'\xef\xbb\xbf' + meta)
    assert Data(folder).meta == json.loads(meta)


# ---- Data


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


def with_facts(**facts):
    return lambda folder: edit_meta(folder, lambda meta: meta.update(facts))


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
    'meta.pkl': (
        both(remove('meta.json', 'tok.json'), put('meta.pkl', b'x')),
        ['meta.pkl', 'meta.json', 'prepare'],
    ),
    'cut short': (remove('meta.json'), ['{}/meta.json is missing', 'cut short', 'prepare']),
    'no JSON': (put('meta.json', b'{"a": '), ['{}/meta.json cannot be read', 'prepare']),
    'no UTF-8': (put('meta.json', b'\xff\xff'), ['{}/meta.json cannot be read', 'prepare']),
    'a list': (put('meta.json', b'[1]'), ['{}/meta.json cannot be read', 'prepare']),
    'null': (put('meta.json', b'null'), ['{}/meta.json cannot be read', 'prepare']),
    'no hash': (without('tokenizer_hash'), ['{}/meta.json cannot be read', "'tokenizer_hash'"]),
    'no splits': (without('splits'), ['{}/meta.json cannot be read', "'splits'"]),
    'splits of a wrong type': (with_facts(splits=3), ['cannot be read']),
    'tokenizer of a wrong type': (with_facts(tokenizer=3), ['cannot be read']),
    'another tokenizer': (retrain, ['{}/tok.json has hash', BYTES.hash[:12], 'prepare']),
    'another hash': (
        with_facts(tokenizer_hash='0123456789abcdef'),
        ['{}/tok.json has hash', BYTES.hash[:12], '0123456789ab', 'prepare'],
    ),
    'control characters': (with_facts(tokenizer_hash='\x1b[2J'), ['expects [2J']),
    'a hash of a wrong type': (with_facts(tokenizer_hash=7), ['expects 7']),
    'a tokenizer edited by hand': (spoil_tokenizer, ['{}/tok.json', 'hash', 'prepare']),
    'no tokenizer': (remove('tok.json'), ['{}/tok.json does not exist', 'custom']),
    'odd': (
        put('train.bin', b'\0' * 21),
        ['{}/train.bin has 21 bytes', 'multiple of 2', 'uint16', 'prepare'],
    ),
    'too short': (
        put('train.bin', b'\0' * 20),
        ['{}/train.bin has 10 tokens', 'meta.json says 40', 'prepare'],
    ),
    'too long': (
        put('train.bin', b'\0' * 82),
        ['{}/train.bin has 41 tokens', 'meta.json says 40', 'prepare'],
    ),
    'empty': (put('train.bin', b''), ['{} has no tokens', "'train'", 'prepare']),
    'one more shard': (
        put('train_00001.bin', b'\0\0'),
        ['train_00001.bin', 'meta.json lists', 'prepare'],
    ),
    'an unknown dtype': (
        with_facts(dtype='int64'),
        ['{}/meta.json cannot be read', 'int64', 'prepare'],
    ),
    'id beyond': (id_beyond, ['{}/train.bin', '257', 'vocab_size = 257', 'prepare']),
}


@pytest.mark.parametrize('case', REFUSALS)
def test_what_is_wrong_with_a_folder_is_one_line_with_a_hint(tmp_path, case):
    change, words = REFUSALS[case]
    folder = write(tmp_path / 'my däta', documents(40))
    assert len(Data(folder).split('train')) == 40  # valid before the change
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
    """They are train.bin and val.bin alone. An id that GPT-2 lacks is named when it is read."""
    ids = np.random.default_rng(0).integers(0, 50257, 90).astype('<u2')
    ids[3] = 50256
    for name in ('train', 'val'):
        ids.tofile(tmp_path / f'{name}.bin')
    data = Data(tmp_path)
    assert data.meta is None and (data.tokenizer.vocab_size, data.tokenizer.bos) == (50257, 50256)
    assert data.split('train').read(0, 90).tolist() == ids.tolist()

    ids[77] = 50257
    ids.tofile(tmp_path / 'val.bin')
    val = Data(tmp_path).split('val')
    assert len(val.read(0, 77)) == 77
    for start, count in ((77, 1), (60, 30), (0, 90)):
        with pytest.raises(SystemExit) as stop:
            val.read(start, count)
        one_line(stop, f'{tmp_path}/val.bin', 50257, 'vocab_size')


def test_an_id_outside_the_vocabulary_is_named_with_its_shard(tmp_path):
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


# ---- the type of ids


@pytest.mark.parametrize(
    'vocab_size, name', [(2, 'uint16'), (2**16, 'uint16'), (2**16 + 1, 'uint32')]
)
def test_ids_are_as_narrow_as_the_vocabulary_allows(vocab_size, name):
    assert id_dtype(vocab_size).name == name
    assert id_dtype(vocab_size) == id_dtype(vocab_size).newbyteorder('<')


def as_uint32(folder):
    """Rewrite a folder's shards as what a larger vocabulary would need."""
    for path in folder.glob('*.bin'):
        np.fromfile(path, '<u2').astype('<u4').tofile(path)
    edit_meta(folder, lambda meta: meta.update(dtype='uint32'))


def test_uint32_files_are_read_as_meta_json_says(tmp_path):
    ids = documents(20).tolist()
    narrow = Data(write(tmp_path / 'narrow', ids, shard_tokens=7))
    as_uint32(write(tmp_path / 'wide', ids, shard_tokens=7))
    shards = Data(tmp_path / 'wide').split('train')
    assert len(shards) == 20
    for start in (0, 3, 7, 19, 20):
        for count in (0, 1, 9, 30):
            assert shards.read(start, count).tolist() == ids[start : start + count]
    both = open_data(tmp_path, 'narrow,wide').split('train')
    assert both.read(0, 99).tolist() == narrow.split('train').read(0, 99).tolist() * 2


def test_uint32_files_are_checked(tmp_path):
    folder = write(tmp_path / 'a', documents(40))
    as_uint32(folder)
    whole = (folder / 'train.bin').read_bytes()
    beyond = np.array([BOS + 1], '<u4').tobytes()
    cases = {
        whole[:-2]: ['train.bin has 158 bytes', 'multiple of 4', 'uint32', 'prepare'],
        whole[:-4]: ['train.bin has 39 tokens', 'meta.json says 40', 'prepare'],
        whole[:-4] + beyond: ['train.bin holds the id 257', 'vocab_size = 257'],
    }
    for content, words in cases.items():
        (folder / 'train.bin').write_bytes(content)
        with pytest.raises(SystemExit) as stop:
            Data(folder).split('train').read(0, 40)
        one_line(stop, *words)


# ---- notes, problems, mixtures


def test_meta_json_holds_the_notes_which_replace_no_fact(tmp_path):
    notes = {'about': 'I know animals. 你好', 'prompts': ['hi'], 'vocab_size': 3}
    with Writer(tmp_path, BYTES, notes=notes) as out:
        out.write('train', [1, 2], 2)
        out.write('val', [3], 1)
    meta = Data(tmp_path).meta
    assert (meta['about'], meta['prompts'], meta['vocab_size']) == (
        'I know animals. 你好',
        ['hi'],
        257,
    )


def test_problems_lie_in_the_folder_or_above_it(tmp_path):
    folder = write(tmp_path / 'world' / 'sft', [1, 2, 3])
    assert Data(folder).problems is None
    for place in (folder.parent, folder):
        (place / 'problems.jsonl').write_text('', encoding='utf-8')
        assert Data(folder).problems == place / 'problems.jsonl'


@pytest.mark.parametrize('dataset, parts', [
    ('smoltalk', [('smoltalk', 1)]),
    ('tinyworld/sft', [('tinyworld/sft', 1)]),
    ('smoltalk, mmlu:3 ,gsm8k:4', [('smoltalk', 1), ('mmlu', 3), ('gsm8k', 4)]),
    ('C:\\data', [('C:\\data', 1)]),
    ('C:\\data:2', [('C:\\data', 2)]),
])  # fmt: skip
def test_a_mixture_is_names_and_repeats(dataset, parts):
    assert mixture(dataset) == parts


@pytest.mark.parametrize('dataset', ['', 'a,,b', 'a:0', ',', ' '])
def test_a_wrong_mixture_is_named(dataset):
    with pytest.raises(SystemExit) as stop:
        mixture(dataset)
    one_line(stop, f"dataset is '{dataset}'", 'smoltalk,gsm8k:4')


def test_a_mixture_is_read_like_one_folder(tmp_path):
    for name, train, val in (('a', [1, 2, 3], [4, 5]), ('b', range(10, 35), [6])):
        with Writer(tmp_path / name, BYTES, shard_tokens=10, notes={'about': name, name: 1}) as out:
            out.write('train', train, 1)
            out.write('val', val, 1)
    (tmp_path / 'b' / 'problems.jsonl').write_text('', encoding='utf-8')
    assert isinstance(open_data(tmp_path, 'a'), Data) and isinstance(
        open_data('x', str(tmp_path / 'a')), Data
    )
    data = open_data(tmp_path, 'a:3,b')
    b = list(range(10, 35))
    assert data.split('train').read(0, 99).tolist() == [1, 2, 3] + b + [1, 2, 3] * 2
    assert data.split('train').copies.tolist() == [0, 0, 0, 0, 1, 2]
    assert data.split('val').read(0, 99).tolist() == [4, 5, 6]  # evaluation data is read once
    assert (data.tokenizer.hash, data.problems) == (BYTES.hash, tmp_path / 'b' / 'problems.jsonl')
    assert (data.meta['about'], data.meta['a'], data.meta['b']) == ('a', 1, 1)


def test_parts_of_a_mixture_have_one_tokenizer(tmp_path):
    write(tmp_path / 'a', [1, 2, 3])
    write(tmp_path / 'c', [0, 1, 1], val=[1], tokenizer=CharTokenizer('ab'))
    with pytest.raises(SystemExit) as stop:
        open_data(tmp_path, 'a,c')
    one_line(stop, tmp_path / 'c', 'another tokenizer', f'--tokenizer={tmp_path / "a"}')


def test_text_in_meta_json_is_made_valid_utf8(tmp_path):
    write(tmp_path / 'a', [0, 1, 1], val=[1], tokenizer=CharTokenizer('ab'))
    path = tmp_path / 'a' / 'meta.json'
    meta = json.loads(path.read_text(encoding='utf-8'))
    path.write_text(json.dumps({**meta, 'about': '\ud83d'}), encoding='utf-8')
    assert Data(tmp_path / 'a').meta == {**meta, 'about': '\ufffd'}


# ---- checks of data against a run


def test_data_of_another_tokenizer_is_refused(tmp_path):
    data = Data(write(tmp_path, documents(40)))
    check_tokenizer(data, BYTES.hash, 'out/a/ckpt.pt')
    with pytest.raises(SystemExit) as stop:
        check_tokenizer(data, CharTokenizer('ab').hash, 'out/a/ckpt.pt')
    one_line(
        stop, tmp_path, 'another tokenizer', '--tokenizer=out/a/ckpt.pt', 'data/custom/prepare.py'
    )


@pytest.mark.parametrize(
    'kind, stage, fits',
    [
        (None, 'pretrain', True),
        (None, 'dpo', True),
        ('text', 'pretrain', True),
        ('conversations', 'sft', True),
        ('preferences', 'dpo', True),
        ('preferences', 'sft', False),
        ('conversations', 'dpo', False),
    ],
)
def test_preferences_are_for_dpo_alone(tmp_path, kind, stage, fits):
    with Writer(tmp_path, BYTES, notes={'kind': kind} if kind else None) as out:
        out.write('train', [1, 2, 3], 3)
    data = Data(tmp_path)
    if fits:
        check_kind(data, stage)
        return
    with pytest.raises(SystemExit) as stop:
        check_kind(data, stage)
    one_line(stop, tmp_path, f'holds {kind}', f'stage is {stage}', '--stage=dpo')


def test_prompts_are_for_rl_alone(tmp_path):
    with Writer(tmp_path, BYTES, notes={'kind': 'prompts'}) as out:
        out.write('train', [1, 2, 3], 3)
    check_kind(Data(tmp_path), 'rl')
    for stage in ('pretrain', 'mid', 'sft'):
        with pytest.raises(SystemExit) as stop:
            check_kind(Data(tmp_path), stage)
        one_line(stop, tmp_path, 'holds prompts', f'stage is {stage}', '--reward')


def test_isolate_needs_a_token_that_begins_a_document(tmp_path):
    check_isolate(Data(write(tmp_path / 'a', documents(40))))
    data = Data(write(tmp_path / 'b', [0, 1, 1], val=[1], tokenizer=CharTokenizer('ab')))
    with pytest.raises(SystemExit) as stop:
        check_isolate(data)
    one_line(stop, tmp_path / 'b', 'no token that begins a document', '--isolate')
