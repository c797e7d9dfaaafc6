"""utf8.py: what valid_text makes of texts and of parsed JSON, and that its docstring is right."""

import doctest
import json

import pytest

import utf8
from utf8 import valid_text

HALF = '\ud83d'  # of an emoji


@pytest.mark.parametrize('text, valid', [
    ('', ''), ('naïve 😀', 'naïve 😀'), (HALF, '\ufffd'), (f'a{HALF}b', 'a\ufffdb'),
    ('\ude00\ud83d', '\ufffd\ufffd'),
    ('\ud83d\ude00', '😀'), ('\ud83d\ud83d\ude00', '\ufffd😀'),
    (b'caf\xe9'.decode('utf-8', 'surrogateescape'), 'caf\ufffd'),
])  # fmt: skip
def test_a_text_is_valid(text, valid):
    assert valid_text(text) == valid
    valid_text(text).encode('utf-8')


def test_all_texts_of_parsed_json_are_valid():
    row = json.loads(
        r'{"a\ud83d": [1, null, "\ud83d", {"b": "\ude00", "c": [2.5, true]}], "d": "ok"}'
    )
    assert valid_text(row) == {
        'a\ufffd': [1, None, '\ufffd', {'b': '\ufffd', 'c': [2.5, True]}],
        'd': 'ok',
    }


def test_the_examples():
    assert doctest.testmod(utf8).attempted == 1 and doctest.testmod(utf8).failed == 0
