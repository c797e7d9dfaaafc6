"""
The tokenizers compared with tiktoken and with naive versions of training and encoding; round trips;
files; the program.
"""

import base64
import codecs
import errno
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import regex
import tiktoken
from conftest import LINES, PATIENCE, random_text
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

import checkpoint
import conversation
import segments
import tokenizer as tokenizers
from tokenizer import PATTERN, BPETokenizer, CharTokenizer, train_bpe

SPECIAL = ['<|bos|>', '<|user_start|>', '<|assistant_end|>']


def naive_merge(ids, pair, new_id):
    for i in range(len(ids) - 1):
        if tuple(ids[i : i + 2]) == pair:
            return ids[:i] + [new_id] + naive_merge(ids[i + 2 :], pair, new_id)
    return ids


def naive_train(texts, num_merges, pattern):
    """Count all pairs again for each merge."""
    chunks = [list(chunk.encode()) for text in texts for chunk in regex.findall(pattern, text)]
    merges = []
    while len(merges) < num_merges:
        counts = Counter(pair for chunk in chunks for pair in zip(chunk, chunk[1:]))
        if not counts:
            break
        merges.append(min(counts, key=lambda pair: (-counts[pair], pair)))
        chunks = [naive_merge(chunk, merges[-1], 255 + len(merges)) for chunk in chunks]
    return merges


def naive_encode(tokenizer, text):
    """Apply all merges to each chunk, in the order they were learned."""
    ids = []
    for chunk in regex.findall(tokenizer.pattern, text):
        part = list(chunk.encode())
        for i, pair in enumerate(tokenizer.merges):
            part = naive_merge(part, pair, 256 + i)
        ids += part
    return ids


@pytest.fixture(scope='module')
def trained():
    rng = random.Random(0)
    return train_bpe([random_text(rng, 4000) for _ in range(5)], 700, SPECIAL)


# -----------------------------------------------------------------------------
# Training


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('pattern', [PATTERN, tokenizers.GPT2_PATTERN, r'(?s).+'])
def test_training_equals_naive_training(seed, pattern):
    rng = random.Random(seed)
    texts = [random_text(rng, 150) for _ in range(3)]
    trained = train_bpe(iter(texts), 256 + 60 + 1, ['<|bos|>'], pattern)
    assert trained.merges == naive_train(texts, 60, pattern)
    assert trained.special == {'<|bos|>': 256 + len(trained.merges)}


@pytest.mark.parametrize(
    'text', ['a' * 50, 'abababab', 'aaab aaab', 'aabaab ' * 4, 'zzzz zz zzz', 'ab']
)
def test_training_on_runs_and_ties_until_no_pair_is_left(text):
    trained = train_bpe([text], 500, ['<|bos|>'])
    assert trained.merges == naive_train([text], 500, PATTERN)
    assert trained.vocab_size == 257 + len(trained.merges) < 500
    assert trained.decode(trained.encode(text)) == text


def library(size):
    """Sources of the standard library, `size` bytes or a little more."""
    texts, found = [], 0
    for path in sorted(Path(sysconfig.get_path('stdlib')).glob('*.py')) + sorted(
        Path(sysconfig.get_path('stdlib')).glob('[a-su-z]*/**/*.py')  # without test/
    ):
        if found < size and 'site-packages' not in path.parts:
            try:
                texts.append(path.read_text(encoding='utf-8'))
            except UnicodeDecodeError:
                continue
            found += len(texts[-1].encode())
    assert found >= size
    return texts


@pytest.mark.parametrize('vocab_size, num_workers', [(8192, 2), (16384, 1)])
def test_training_equals_rustbpe(vocab_size, num_workers, oracle):
    """The same merges in the same order, on 2 MB of Python."""
    texts = library(2_000_000)
    theirs = oracle('rustbpe').Tokenizer()
    theirs.train_from_iterator(iter(texts), vocab_size, pattern=PATTERN)
    ours = train_bpe(iter(texts), vocab_size, num_workers=num_workers)
    ranks = {bytes(piece): rank for piece, rank in theirs.get_mergeable_ranks()}
    assert ranks == {ours.decode_bytes([i]): i for i in range(vocab_size)}


def test_training_reads_in_bounded_memory(monkeypatch):
    """Ten times the text with the same words takes the same memory, much less than the text."""
    monkeypatch.setattr(segments, 'BLOCK', 2**14)
    peaks = []
    for repeats in (20, 200):
        words = ' '.join(f'word{i % 500}' for i in range(2000))
        tracemalloc.start()
        train_bpe((words + str(i % 10) for i in range(repeats)), 300)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 200 * len(words) / 2


def test_training_cuts_long_texts_exactly(monkeypatch):
    rng = random.Random(7)
    text = random_text(rng, 20_000)
    expected = train_bpe([text], 600).merges
    monkeypatch.setattr(segments, 'BLOCK', 500)
    assert train_bpe([text], 600).merges == train_bpe([text], 600, num_workers=2).merges == expected


def test_special_tokens_may_come_first():
    texts = LINES * 3
    last, first = train_bpe(texts, 400, SPECIAL), train_bpe(texts, 400, SPECIAL, special_first=True)
    assert list(first.special.values()) == [0, 1, 2] and list(last.special.values()) == [
        397,
        398,
        399,
    ]
    for line in LINES:
        assert (
            first.encode(line) == [i + 3 for i in last.encode(line)]
            and first.decode(first.encode(line)) == line
        )


@pytest.mark.parametrize('pattern, words', [
    ('(', 'does not compile'),
    (r'(a)|.', 'groups that capture'),
    (r'a*|.', 'empty chunk'),
    (r'\w+', 'leaves out 3 of 11 characters'),
    ('[[:bad:]]', 'does not compile'),
])  # fmt: skip
def test_an_unusable_pattern_is_refused(pattern, words):
    with pytest.raises(SystemExit, match=words):
        train_bpe(['a text to b'], 300, pattern=pattern)


def test_ties_go_to_the_smallest_pair():
    assert train_bpe(['ba dc'], 257).merges == [(ord(' '), ord('d'))]
    assert train_bpe(['b\na'], 300).merges == []  # no two bytes of one chunk


def test_training_without_text_gives_bytes():
    trained = train_bpe([], 300, SPECIAL)
    assert trained.vocab_size == 259 and trained.encode('hé') == list('hé'.encode())


@pytest.mark.parametrize('vocab_size', [0, 256, 258, 65537, 200000])
def test_an_impossible_vocabulary_size_is_refused(vocab_size):
    with pytest.raises(SystemExit, match=str(vocab_size)):
        train_bpe(['text'], vocab_size, SPECIAL)


def test_a_chunk_has_at_most_two_digits():
    assert regex.findall(PATTERN, 'in 12345 days') == ['in', ' ', '12', '34', '5', ' days']
    assert regex.findall(PATTERN, "it's\n\n  x = {}\n") == [
        'it',
        "'s",
        '\n\n',
        ' ',
        ' x',
        ' =',
        ' {}\n',
    ]


# -----------------------------------------------------------------------------
# Encoding and decoding


def test_encoding_equals_naive_encoding(trained):
    rng = random.Random(1)
    for text in [*LINES, *(random_text(rng, 200) for _ in range(40))]:
        assert trained.encode(text) == naive_encode(trained, text)


def mixed_texts(size):
    """Code, prose in several scripts, emoji, control characters, and long lines without a blank."""
    rng = random.Random(5)
    yield from library(size // 2)
    for start, end in (
        (0x4E00, 0x9FFF),
        (0x3041, 0x3096),
        (0xAC00, 0xD7A3),
        (0x1F300, 0x1F64F),
        (0, 0x20),
        (0x400, 0x500),
    ):
        signs = '，。 \n' if start >= 0x3000 else ' ,.\n'
        # control characters have no place to split: such a text must stay below 2**18 characters
        number = size // 250 if start else size // 750
        words = (
            ''.join(chr(rng.randint(start, end)) for _ in range(rng.randint(1, 9)))
            for _ in range(number)
        )
        yield ''.join(word + rng.choice(signs) for word in words)
    yield base64.b64encode(rng.randbytes(size // 16)).decode()
    yield rng.randbytes(size // 16).hex()
    yield from (random_text(rng, size // 200) for _ in range(20))
    yield from ['', ' ', '\n', "don't", "'", 'a', '\0', '']


@pytest.mark.parametrize('size', [1_000_000, pytest.param(12_000_000, marks=pytest.mark.slow)])
def test_ids_equal_tiktokens(size):
    """One by one and in bulk. tiktoken gets each text whole, and the pattern unchanged."""
    texts = list(mixed_texts(size))
    assert sum(len(text.encode()) for text in texts) > 0.85 * size
    ours = train_bpe(texts[::3], 4096, SPECIAL)
    ranks = {ours.decode_bytes([i]): i for i in range(4096 - len(SPECIAL))}
    oracle = tiktoken.Encoding('oracle', pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    bulk = ours.encode_batch(iter(texts), num_workers=2)
    for text, ids in zip(texts, bulk, strict=True):
        expected = oracle.encode_ordinary(text)
        assert ids.dtype == np.uint16 and ids.tolist() == expected == ours.encode(text)
        assert ours.decode(ids) == text


@pytest.mark.parametrize('kind', ['forgets', 'gives up', 'another pattern'])
def test_bulk_encoding_equals_encoding(kind, trained, monkeypatch):
    rng = random.Random(6)
    texts = [random_text(rng, rng.randint(0, 500)) for _ in range(100)] + [
        'surrogates a\ud83d\ude00b\ud800'
    ]
    monkeypatch.setattr(segments, 'BLOCK', 4000)
    if kind == 'forgets':
        monkeypatch.setattr(segments, 'CACHE', 50)
        texts += texts
    if kind == 'gives up':
        texts[20:80] = [rng.randbytes(300).hex(' ', 20) for _ in range(60)]
    if kind == 'another pattern':
        trained = BPETokenizer(r'(?s).{1,7}', trained.merges, trained.special)
    assert [ids.tolist() for ids in trained.encode_batch(texts)] == [
        trained.encode(text) for text in texts
    ]


def test_bulk_encoding_of_characters():
    assert [ids.tolist() for ids in CharTokenizer('abc').encode_batch(['ab', '', 'c'])] == [
        [0, 1],
        [],
        [2],
    ]


def test_random_bytes_come_back(trained):
    rng = random.Random(8)
    for length in range(60):
        content = rng.randbytes(length)
        assert trained.decode_bytes(trained.byte_ids[byte] for byte in content) == content
        for text in (content.decode('latin-1'), content.decode('utf-8', 'replace')):
            assert trained.decode(trained.encode(text)) == text


def test_a_stream_shows_no_half_characters(trained):
    """The bytes of one id at a time through Python's incremental decoder, as in sample.py."""
    text, shown = '你好🌍 Straße', ''
    decoder = codecs.getincrementaldecoder('utf-8')()
    for i in trained.encode(text):
        shown += decoder.decode(trained.decode_bytes([i]))
        assert text.startswith(shown)
    assert shown == text


def test_round_trip_and_bytes_per_id(trained):
    rng = random.Random(2)
    for text in ['', *LINES, *(random_text(rng, 300) for _ in range(40))]:
        for tokenizer in (trained, CharTokenizer(text)):
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids) == text
            assert tokenizer.decode_bytes(np.array(ids, dtype=np.uint16)) == text.encode()
            assert tokenizer.bytes_per_id[np.array(ids, dtype=int)].sum() == len(text.encode())
            assert all(type(i) is int for i in ids)


def test_facts_of_a_bpe(trained):
    assert trained.vocab_size == 700 == len(trained.bytes_per_id)
    assert trained.special == {'<|bos|>': 697, '<|user_start|>': 698, '<|assistant_end|>': 699}
    assert trained.bos == 697 and trained.kind == 'bpe'
    assert trained.bytes_per_id.dtype == np.int64 and list(trained.bytes_per_id[697:]) == [0, 0, 0]
    assert (trained.bytes_per_id[:697] > 0).all()


def test_text_never_becomes_a_special_token(trained):
    for name, special_id in trained.special.items():
        for text in (name, f'{name}{name}', f'x{name} y', f'\n{name}'):
            ids = trained.encode(text)
            assert special_id not in ids and trained.decode(ids) == text
        assert trained.decode_bytes([special_id]) == b''
    gpt2_like = BPETokenizer(PATTERN, [], {'<|endoftext|>': 256})
    assert gpt2_like.bos == 256 not in gpt2_like.encode('<|endoftext|>')


def test_surrogates_do_not_break_it(trained):
    assert trained.decode(trained.encode('a\ud83d\ude00b')) == 'a😀b'  # a pair, as JSON spells it
    assert trained.decode(trained.encode('a\ud800b')) == 'a\ufffdb'
    assert train_bpe(['a\udfffb' * 3], 300).decode([97]) == 'a'


def test_half_a_character_decodes_to_a_replacement(trained):
    assert BPETokenizer(PATTERN, [], {}).decode('é'.encode()[:1]) == '\ufffd'


@pytest.mark.parametrize('wrong', [-1, 700])
def test_an_id_beyond_the_vocabulary_is_named(trained, wrong):
    with pytest.raises(ValueError, match=f'id {wrong}, '):
        trained.decode([1, wrong])


@pytest.mark.parametrize('blank', [' ', '\n', 'a'])
def test_half_a_million_of_one_character(blank, trained):
    text = 'x' + blank * 500_000 + 'y'
    assert trained.decode(trained.encode(text)) == text


def test_characters_are_nanogpts(tmp_path):
    text = 'hello, wörld\n'
    tokenizer = CharTokenizer(text)
    assert tokenizer.encode('\n d') == [0, 1, sorted(set(text)).index('d')]
    assert (
        tokenizer.vocab_size == len(set(text)) and tokenizer.bos is None and tokenizer.special == {}
    )
    tokenizer.save(tmp_path / 'tok.json')
    again = tokenizers.load(tmp_path / 'tok.json')
    assert (
        again.encode(text) == tokenizer.encode(text)
        and again.hash == tokenizer.hash
        and again.kind == 'char'
    )


def test_an_unknown_character_is_named():
    with pytest.raises(ValueError, match=r"'é' \(U\+00E9\) at position 3.*holds 3$"):
        CharTokenizer('abc').encode('abcé')


# -----------------------------------------------------------------------------
# Files


def test_save_and_load(trained, tmp_path):
    path = tmp_path / 'ein Ordner' / 'tök.json'
    path.parent.mkdir()
    trained.save(path)
    trained.save(path)  # over an old one
    again = tokenizers.load(path)
    assert [file.name for file in path.parent.iterdir()] == ['tök.json']
    assert again.to_dict() == trained.to_dict() and again.hash == trained.hash
    assert again.encode(LINES[2]) == trained.encode(LINES[2])


def test_a_full_disk_is_one_line_and_keeps_the_old_table(trained, tmp_path, monkeypatch):
    path = tmp_path / 'tok.json'
    path.write_bytes(b'old')
    with pytest.raises(SystemExit) as stop:
        trained.save(path / 'below.json')
    assert str(path / 'below.json') in stop.value.code and '\n' not in stop.value.code

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(SystemExit, match='No space left on device'):
        trained.save(path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [('tok.json', b'old')]


def test_the_hash_is_of_the_content(trained):
    table = {**trained.table()}
    assert (
        tokenizers.from_dict({**dict(reversed(table.items())), 'hash': trained.hash}).hash
        == trained.hash
    )
    assert train_bpe(['other text'], 300, SPECIAL).hash != trained.hash
    assert CharTokenizer('ab').hash != CharTokenizer('abc').hash


DAMAGE = {
    'hash': ({'hash': '0' * 64}, "hash .*'0000"),
    'merges': ({'merges': [[97, 98]]}, 'damaged|hash'),
    'a merge from the future': ({'merges': [[97, 300]], 'special': {}}, 'damaged.*300'),
    'two equal merges': ({'merges': [[97, 98], [97, 98]], 'special': {}}, 'same bytes'),
    'ids that clash': ({'merges': [], 'special': {'<|bos|>': 5}}, 'must differ'),
    'pattern': ({'pattern': r'\w+|\W'}, 'hash'),
    'version': ({'version': 99}, 'version 99'),
    'kind': ({'kind': 'sentencepiece'}, 'sentencepiece'),
    'no merges': ({'merges': None}, 'damaged'),
    'special tokens without ids': ({'special': ['<|bos|>']}, 'damaged'),
}


@pytest.mark.parametrize('name', DAMAGE)
def test_a_damaged_file_is_refused_by_name(name, trained, tmp_path):
    change, message = DAMAGE[name]
    path = tmp_path / 'tok.json'
    path.write_text(json.dumps({**trained.to_dict(), **change}), encoding='utf-8')
    with pytest.raises(SystemExit, match=f'tok.json: .*({message})') as error:
        tokenizers.load(path)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('content', [b'', b'{"kind": ', b'[]', b'\xff\xfe', None])
def test_a_file_that_is_not_a_tokenizer_is_refused_by_name(content, tmp_path):
    path = tmp_path / 'tok.json'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit, match=r'tok\.json: '):
        tokenizers.load(path)


def test_special_tokens_first_and_bytes_in_any_order(trained, tmp_path):
    """MiniMind's layout: three special tokens, permuted bytes, merges. Same pieces, other ids."""
    byte_ids = [3 + (byte * 7 + 5) % 256 for byte in range(256)]
    new_ids = {
        **{byte: byte_ids[byte] for byte in range(256)},
        **{256 + i: 259 + i for i in range(441)},
    }
    merges = [(new_ids[left], new_ids[right]) for left, right in trained.merges]
    other = BPETokenizer(
        PATTERN, merges, {'<|endoftext|>': 0, '<|im_start|>': 1, '<|im_end|>': 2}, byte_ids
    )
    other.save(tmp_path / 'tok.json')
    other = tokenizers.load(tmp_path / 'tok.json')
    assert (
        other.vocab_size == 700 and other.bos == 0 and list(other.bytes_per_id[:4]) == [0, 0, 0, 1]
    )
    for line in LINES:
        assert other.encode(line) == [new_ids[i] for i in trained.encode(line)]
        assert other.decode(other.encode(line)) == line


# -----------------------------------------------------------------------------
# GPT-2's table and tiktoken's


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, no cache of tiktoken's earlier downloads, no files in data/gpt2."""

    def refuse(*args, **kwargs):
        raise OSError('the network is off')

    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    monkeypatch.setattr(socket, 'create_connection', refuse)
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(tmp_path / 'nothing'))
    monkeypatch.setattr(tokenizers, 'GPT2_FOLDER', tmp_path / 'data' / 'gpt2')
    monkeypatch.setattr(tiktoken.registry, 'ENCODINGS', {})


def write_gpt2_files(folder, num_merges=100):
    """Write small files in GPT-2's format. Returns the ranks that tiktoken reads from them."""
    trained = train_bpe(LINES * 3, 256 + num_merges)
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order += [byte for byte in range(256) if byte not in order]
    letters = {byte: chr(byte if i < 188 else 256 + i - 188) for i, byte in enumerate(order)}

    def spell(i):
        return ''.join(letters[byte] for byte in trained.decode_bytes([i]))

    lines = [f'{spell(left)} {spell(right)}' for left, right in trained.merges]
    names = (
        [letters[byte] for byte in order]
        + [line.replace(' ', '') for line in lines]
        + ['<|endoftext|>']
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'vocab.bpe').write_text('#version: 0.2\n' + '\n'.join(lines) + '\n', encoding='utf-8')
    encoder = {name: i for i, name in enumerate(names)}
    (folder / 'encoder.json').write_text(json.dumps(encoder), encoding='utf-8')
    return data_gym_to_mergeable_bpe_ranks(str(folder / 'vocab.bpe'), str(folder / 'encoder.json'))


@pytest.fixture
def made_up(offline, monkeypatch, tmp_path):
    """(folder, tiktoken's Encoding of the files in it)"""
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', '')  # no cache: it is keyed by path
    ranks = write_gpt2_files(tmp_path / 'files')
    pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
    special = {'<|endoftext|>': len(ranks)}
    return tmp_path / 'files', tiktoken.Encoding(
        'gpt2', pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
    )


def test_gpt2_from_files_equals_tiktoken(made_up):
    folder, oracle = made_up
    table = tokenizers.gpt2(folder)
    assert (
        table.special == {'<|endoftext|>': 356}
        and table.bos == 356
        and table.vocab_size == oracle.n_vocab == 357
    )
    rng = random.Random(4)
    for text in [*LINES, '<|endoftext|>', *(random_text(rng, 200) for _ in range(40))]:
        assert table.encode(text) == oracle.encode_ordinary(text)
        assert table.decode(table.encode(text)) == text


def test_files_with_a_byte_order_mark_are_the_same(made_up, tmp_path):
    """Some editors add a byte order mark."""
    folder, _ = made_up
    table = tokenizers.gpt2(folder)
    table.save(tmp_path / 'tok.json')
    for path in (tmp_path / 'tok.json', folder / 'vocab.bpe', folder / 'encoder.json'):
        path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
    assert (
        tokenizers.gpt2(folder).to_dict()
        == tokenizers.load(tmp_path / 'tok.json').to_dict()
        == table.to_dict()
    )


def test_gpt2_from_tiktoken_is_the_same_table(made_up, monkeypatch):
    folder, oracle = made_up
    monkeypatch.setattr(tiktoken, 'get_encoding', lambda name: oracle)
    assert tokenizers.gpt2().to_dict() == tokenizers.gpt2(folder).to_dict()


def test_gpt2_files_that_are_damaged_are_refused(made_up):
    folder, _ = made_up
    lines = (folder / 'vocab.bpe').read_text(encoding='utf-8').split('\n')
    for broken in (lines[:50], lines[:50] + lines[51:], lines[:50] + ['nonsense'] + lines[50:]):
        (folder / 'vocab.bpe').write_text('\n'.join(broken), encoding='utf-8')
        with pytest.raises(
            SystemExit, match=r'files: vocab\.bpe (and|or) encoder\.json .*fetch both again'
        ):
            tokenizers.gpt2(folder)


def test_gpt2_without_a_network_says_which_files_to_put_where(offline, tmp_path):
    for folder, where in ((None, tmp_path / 'data' / 'gpt2'), (tmp_path, tmp_path)):
        with pytest.raises(SystemExit) as error:
            tokenizers.gpt2(folder)
        message = str(error.value)
        assert (
            'vocab.bpe and encoder.json' in message
            and message.endswith(f'into {where}')
            and '\n' not in message
        )


def test_the_facts_of_gpt2_need_no_table(offline, made_up, monkeypatch, tmp_path):
    named = tokenizers.from_dict({'kind': 'gpt2'})
    assert (named.vocab_size, named.bos, named.hash) == (50257, 50256, 'gpt2')
    assert named.special == {'<|endoftext|>': 50256} and named.to_dict() == {'kind': 'gpt2'}
    named.save(tmp_path / 'tok.json')
    named = tokenizers.load(tmp_path / 'tok.json')
    with pytest.raises(SystemExit, match=r'vocab\.bpe and encoder\.json'):
        named.encode('text')
    folder, oracle = made_up
    monkeypatch.setattr(tokenizers, 'GPT2_FOLDER', folder)
    with pytest.raises(SystemExit, match="not GPT-2's"):  # another table of the same format
        named.encode('text')
    digest = tokenizers.gpt2(folder).hash
    monkeypatch.setattr(tokenizers, 'GPT2_DIGEST', digest)
    assert named.encode(LINES[0]) == oracle.encode_ordinary(LINES[0])
    assert named.decode(named.encode(LINES[2])) == LINES[2] and len(named.bytes_per_id) == 357
    assert tokenizers.gpt2(folder).hash == 'gpt2'  # the table and the name are one tokenizer


def test_gpt2s_real_table():
    if not all((tokenizers.GPT2_FOLDER / name).exists() for name in tokenizers.GPT2_FILES):
        pytest.skip(f'vocab.bpe and encoder.json are not in {tokenizers.GPT2_FOLDER}')
    table = tokenizers.gpt2()
    assert table.hash == 'gpt2' and table.vocab_size == 50257 and table.bos == 50256
    assert table.encode('Hello, world!') == [15496, 11, 995, 0]


def test_an_encoding_of_tiktoken_with_a_gap_for_its_special_token(offline, monkeypatch):
    """p50k_base's layout: a special token between the merges."""
    trained = train_bpe(LINES * 3, 256 + 80)
    ranks = {trained.decode_bytes([i]): i + (i >= 300) for i in range(336)}
    oracle = tiktoken.Encoding(
        'x', pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={'<|endoftext|>': 300}
    )
    monkeypatch.setattr(tiktoken, 'get_encoding', lambda name: oracle)
    table = tokenizers.from_tiktoken('p50k_base')
    assert table.bos == 300 and table.vocab_size == 337
    for line in LINES:
        assert table.encode(line) == oracle.encode_ordinary(line)


@pytest.mark.parametrize('name', ['cl100k_base', 'o200k_base', 'gpt5'])
def test_encodings_that_do_not_fit_are_refused_by_name(name, offline):
    with pytest.raises(SystemExit, match=name):
        tokenizers.from_tiktoken(name)


def test_the_program_trains_one(run_program, tmp_path):
    text = tmp_path / 'ein Text ü.TXT'
    text.write_text(''.join(LINES) * 5, encoding='utf-8', newline='\n')
    out = tmp_path / 'tok.json'
    done = run_program(
        'tokenizer.py', f'--input={text}', '--vocab_size=300', f'--out={out}', cwd=tmp_path
    )
    assert 'counting: 100%' in done.stderr  # in bytes, for any script
    expected = train_bpe([text.read_text(encoding='utf-8')], 300, ['<|bos|>'])
    assert tokenizers.load(out).to_dict() == expected.to_dict()
    done = run_program('tokenizer.py', '--input=nothing.txt', cwd=tmp_path, check=False)
    assert done.returncode == 1 and done.stderr.strip().startswith(
        '--input=nothing.txt: no such file'
    )


def test_the_tokenizer_of_a_run_is_shown(tmp_path, monkeypatch, capsys, trained):
    state = dict(
        model={}, model_config={}, tokenizer=trained.to_dict(), stage='sft', step=1, config={}
    )
    checkpoint.save(tmp_path / 'ckpt.pt', state)
    for path in (tmp_path, tmp_path / 'ckpt.pt'):
        monkeypatch.setattr('sys.argv', ['tokenizer.py', '--show=low lower', f'--out={path}'])
        runpy.run_path(tokenizers.__file__, run_name='__main__')
        assert capsys.readouterr().out.splitlines()[1] == ' '.join(
            map(str, trained.encode('low lower'))
        )


def test_the_program_finds_its_modules_under_python_p(tmp_path):
    """python -P, or PYTHONSAFEPATH=1, leaves the program's folder out of sys.path."""
    environment = {**os.environ, 'PYTHONSAFEPATH': '1'}
    environment.pop('PYTHONPATH', None)
    command = [sys.executable, tokenizers.__file__, '--help']
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr


BAD_INPUT = {
    'no UTF-8': (['--input={bad}'], r'bad\.txt: .*UTF-8 at byte 7: '),
    'empty': (['--input={empty}'], 'empty.txt: no character in it'),
    'no such file': (['--input=nothing.txt'], '--input=nothing.txt: no such file'),
    'no input': ([], '--input=: no such file'),
    'a kind that is not read': (['--input={bad},' + __file__], r'test_tokenizer\.py: .*\.txt'),
    'vocabulary too small': (['--input={text}', '--vocab_size=256'], 'vocab_size=256: .* 257'),
    'vocabulary too large': (['--input={text}', '--vocab_size=65537'], '65537 ids: at most 65536'),
    'pattern': (['--input={text}', '--pattern=('], r"pattern '\(' does not compile"),
    'special tokens that repeat': (['--input={text}', '--special=a,a'], 'tokens a, a: .*differ'),
    'a limit below zero': (['--input={text}', '--max_chars=-1'], 'max_chars=-1 .* at least 0'),
    'workers below zero': (['--input={text}', '--num_workers=-1'], 'num_workers=-1.* at least 0'),
    'nowhere to write': (['--input={text}', '--out=nowhere/tok.json'], 'nowhere/tok.json cannot'),
    'a run to write to': (['--input={text}', '--out=ckpt.pt'], '--out=ckpt.pt: cannot be written'),
    'a character not known': (['--show=ab', '--out={characters}'], r"characters\.txt: .*'b'"),
    'no tokenizer': (['--show=text'], 'tok.json: cannot read the tokenizer'),
    'a changed tokenizer': (['--show=text', '--out={changed}'], "hash .*'00'"),
}  # fmt: skip


@pytest.mark.parametrize('name', BAD_INPUT)
def test_bad_input_is_named_in_one_line(name, monkeypatch, capsys, tmp_path, trained):
    contents = {'bad': b'\xc3\xa4 text\xff', 'empty': b'', 'text': b'some text'}
    contents['changed'] = json.dumps({**trained.to_dict(), 'hash': '00'}).encode()
    contents['characters'] = json.dumps(CharTokenizer('a').to_dict()).encode()
    paths = {name: tmp_path / f'{name}.txt' for name in contents}
    for key, content in contents.items():
        paths[key].write_bytes(content)
    arguments, message = BAD_INPUT[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', ['tokenizer.py', *(a.format(**paths) for a in arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(tokenizers.__file__, run_name='__main__')
    assert regex.search(message, stop.value.code) and '\n' not in stop.value.code
    assert not (tmp_path / 'tok.json').exists()


def test_the_program_reads_several_files_and_says_when_it_ends_early(run_program, tmp_path):
    (tmp_path / 'a.txt').write_text('abab', encoding='utf-8')
    (tmp_path / 'b.jsonl').write_text(
        '{"text": "abab"}\n{"text": "never read"}\n', encoding='utf-8'
    )
    done = run_program(
        'tokenizer.py', '--input=a.txt,*.jsonl', '--vocab_size=400', '--max_chars=8', cwd=tmp_path
    )
    assert '259 ids, not 400' in done.stdout
    made = tokenizers.load(tmp_path / 'tok.json')
    assert made.merges == train_bpe(['abab', 'abab'], 400).merges == [(97, 98), (256, 256)]
    shown = run_program('tokenizer.py', '--show=abab a', '--merges=True', cwd=tmp_path).stdout
    assert shown.splitlines()[:2] == ['abab| |a|', '257 32 97']
    assert "257 = 256 b'ab' + 256 b'ab'" in shown and "256 = 97 b'a' + 98 b'b'" in shown


@pytest.mark.parametrize('size, names, first', [
    (6400, ('<|endoftext|>', '<|im_start|>', '<|im_end|>'), True),
    (65536, conversation.SPECIAL, False),
])  # fmt: skip
def test_the_two_configurations(size, names, first, run_program, tmp_path):
    (tmp_path / 'a.txt').write_text(''.join(LINES), encoding='utf-8')
    config = Path(tokenizers.__file__).parent / 'config' / f'tokenizer_{size}.py'
    done = run_program('tokenizer.py', config, '--input=a.txt', cwd=tmp_path)
    assert f' ids, not {size:,}' in done.stdout
    made = tokenizers.load(tmp_path / 'tok.json')
    first_id = 0 if first else made.vocab_size - len(names)
    assert (
        made.special == {name: first_id + i for i, name in enumerate(names)}
        and made.bos == first_id
    )


@pytest.mark.skipif(sys.platform == 'win32', reason='no SIGKILL')
@pytest.mark.parametrize('phase, num_workers', [(b'merging', 1), (b'counting', 2)])
def test_a_killed_training_leaves_nothing(phase, num_workers, tmp_path):
    """No file, and no worker: communicate() waits until all of them have closed stderr."""
    digits_to_letters = {ord('0') + digit: ord('a') + digit for digit in range(10)}
    words = ' '.join(str(i * 7919 % 99991) for i in range(200_000)).translate(digits_to_letters)
    (tmp_path / 'a.txt').write_text(words * 8, encoding='utf-8')
    command = [sys.executable, tokenizers.__file__, '--input=a.txt', '--vocab_size=60000']
    running = subprocess.Popen(
        [*command, f'--num_workers={num_workers}'], cwd=tmp_path, stderr=subprocess.PIPE
    )
    seen = b''
    while phase not in seen:
        seen += running.stderr.read1()
    time.sleep(0.2)  # into the middle of the phase, which takes a second
    running.send_signal(signal.SIGKILL)
    assert running.communicate(timeout=PATIENCE) and running.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ['a.txt']


def test_the_comparison_of_encodings(run_program, trained, tmp_path):
    """Without a network GPT-2 and GPT-4 are left out, with a message."""
    BPETokenizer(PATTERN, [], {}).save(tmp_path / 'bytes.json')
    trained.save(tmp_path / 'tok.json')
    offline = {'HTTPS_PROXY': 'http://127.0.0.1:9', 'TIKTOKEN_CACHE_DIR': tmp_path / 'nothing'}
    done = run_program('tokenizer.py', '--evaluate=bytes.json, tok.json', cwd=tmp_path, env=offline)
    assert 'left out: cl100k_base: tiktoken could not get it' in done.stdout
    assert '| bytes per token | bytes.json | tok.json |' in done.stdout
    for kind in tokenizers.SAMPLES:
        assert f'| {kind} | 1.00 | ' in done.stdout


def test_tokens_are_shown_in_alternating_colours(trained):
    characters = CharTokenizer('ab')
    painted, ids = tokenizers.show_tokens(characters, 'ab', derive=True).splitlines()[:2]
    assert painted == '\x1b[30;46ma\x1b[0m\x1b[30;103mb\x1b[0m' and ids == '0 1'
    single_bytes = BPETokenizer(PATTERN, [], {})
    bars = tokenizers.show_tokens(single_bytes, 'é', colour=False).splitlines()[0]
    assert bars == r'\xc3|\xa9|'


def test_tokens_that_are_control_characters_are_spelled():
    """A line break is spelled, and breaks the line too."""
    single_bytes = BPETokenizer(PATTERN, [], {})
    shown = tokenizers.show_tokens(single_bytes, 'a\x1b\n\x07', colour=False)
    assert shown.splitlines() == [r'a|\x1b|\n|', r'\x07|', '97 27 10 7']
    painted = tokenizers.show_tokens(single_bytes, '\x1b').splitlines()[0]
    assert painted == '\x1b[30;46m\\x1b\x1b[0m'


@pytest.mark.parametrize('no_color, shown', [('', '\x1b[30;46m\\x07\x1b[0m'), ('1', '\\x07|')])
def test_the_program_colours_tokens_unless_no_color_is_set(
    monkeypatch, capsys, tmp_path, no_color, shown
):
    BPETokenizer(PATTERN, [], {}).save(tmp_path / 'tok.json')
    monkeypatch.setattr(
        'sys.argv', ['tokenizer.py', '--show=\x07', f'--out={tmp_path / "tok.json"}']
    )
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    monkeypatch.setenv('NO_COLOR', no_color)
    runpy.run_path(tokenizers.__file__, run_name='__main__')
    assert capsys.readouterr().out == f'{shown}\n7\n'
