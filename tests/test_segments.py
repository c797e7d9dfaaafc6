"""Segments: a text split at them has the same chunks and ids as the whole."""

import random

import numpy as np
import pytest
import regex
from conftest import LINES, random_text

import segments
import tokenizer as tokenizers
from tokenizer import train_bpe


@pytest.mark.parametrize('pattern', sorted(tokenizers.SPLITTABLE))
def test_segments_have_the_chunks_of_the_whole(pattern):
    for seed in range(30):
        text = random_text(random.Random(seed), 2000)
        chunks = regex.findall(pattern, text)
        distinct, numbers = segments.split_block([text, '', text[:99]])
        parts = [distinct[i] for i in numbers]
        ends = [i for i, part in enumerate(parts) if part == segments.END]
        assert len(ends) == 3 and ends[1] == ends[0] + 1 and ends[2] == len(parts) - 1
        parts = [part.decode() for part in parts[: ends[0]]]
        assert ''.join(parts) == text == ''.join(chunks)
        assert [chunk for part in parts for chunk in regex.findall(pattern, part)] == chunks
        parts = segments.SPLIT.sub('\0', text.replace('\0', '')).split('\0')
        assert len(parts) > 50
        chunks = regex.findall(pattern, text.replace('\0', ''))
        assert [chunk for part in parts for chunk in regex.findall(pattern, part)] == chunks


def test_what_is_seen_is_no_blank():
    """By the first byte of its UTF-8."""
    for code in {*range(0x3100)} - {*range(0xD800, 0xE000)}:
        assert not (chr(code).encode()[0] in segments.SEEN and regex.match(r'\s', chr(code)))


def test_equals_are_found():
    rng = np.random.default_rng(0)
    low, high = rng.integers(0, 4, (2, 300)).astype(np.uint64) << np.uint64(40)
    first, numbers = segments.find_equals(low, high)
    pairs = list(zip(low.tolist(), high.tolist()))
    assert [pairs[i] for i in first[numbers]] == pairs and len(first) == len(set(pairs)) == 16


def test_two_that_share_a_hash_are_told_apart():
    """The numbers whose hashes, by the first salt, are 8 and 9: with three numbers the last two
    bits do not count."""
    modulus, found = 2**64, []
    for hashed in (8, 9):
        mixed = hashed * pow(0xD6E8FEB86659FD93, -1, modulus) % modulus
        mixed ^= mixed >> 32
        found.append(mixed * pow(0x9E3779B97F4A7C15, -1, modulus) % modulus)
    low = np.array([*found, found[0]], dtype=np.uint64)
    first, numbers = segments.find_equals(low, np.zeros(3, dtype=np.uint64))
    assert low[first][numbers].tolist() == low.tolist() and len(first) == 2


def test_segments_do_not_change_the_ids():
    rng = random.Random(3)
    tokenizer = train_bpe(LINES * 3, 400)
    text = ''.join(random_text(rng, 300) for _ in range(20))
    parts = list(segments.split(text, 100))
    assert ''.join(parts) == text and len(parts) > 30 and max(map(len, parts)) <= 100
    words = 'The words of 42 people,\nand so on: (this) and\tthat. ' * 50
    assert sum(
        (tokenizer.encode(part) for part in segments.split(words, 70)), []
    ) == tokenizer.encode(words)
