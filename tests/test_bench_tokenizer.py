"""dev/bench_tokenizer.py: the texts are what they are called, the programs check their results."""

import json
import runpy

import pytest
from conftest import ROOT


@pytest.fixture
def bench(monkeypatch):
    """Its globals, without running main()."""
    monkeypatch.setattr('sys.argv', ['bench_tokenizer.py'])
    return runpy.run_path(str(ROOT / 'dev/bench_tokenizer.py'), run_name='bench_tokenizer')


def test_installed_texts_are_distinct_and_within_the_limit(bench):
    texts = bench['installed_texts'](300_000)
    assert 100_000 < sum(len(text.encode()) for _, text in texts) <= 300_000
    assert len(set(texts)) == len(texts)
    assert {suffix for suffix, _ in texts} <= bench['SUFFIXES']


def test_natural_text_is_prose_and_docstrings(bench):
    source = '"""On top."""\nx = 1\ndef f():\n    """Below."""\n    return "no docstring"\n'
    texts = [('.md', '# Title'), ('.json', '{}'), ('.py', source), ('.py', 'no python (')]
    assert list(bench['natural_texts'](texts)) == ['# Title', 'On top.', 'Below.']


def test_a_value_out_of_range_is_named(run_program):
    done = run_program('dev/bench_tokenizer.py', '--bpe_repeats=0', check=False)
    assert done.returncode == 1
    assert done.stderr == 'bpe_repeats is 0, expected at least 1\n'


@pytest.mark.slow
def test_on_a_megabyte(run_program, oracle):
    """The programs themselves check that the merges are rustbpe's and the ids tiktoken's."""
    oracle('rustbpe')
    arguments = ('--text_mb=1', '--bpe_repeats=1', '--bpe_vocab_size=500')
    said = run_program('dev/bench_tokenizer.py', *arguments).stdout
    found = json.loads(said.splitlines()[-1])['tokenizer']
    assert 0.5e6 < found['text']['bytes'] <= 1.01e6
    assert len(found['text']['sha256']) == 64
    assert {'ours', 'rustbpe'} <= found['training'].keys()
    for kind in ('natural', 'base64', 'hashes'):
        assert found[kind].keys() == {'ours', 'tiktoken'}
        assert all(program['seconds'] > 0 for program in found[kind].values())
    assert found['training']['ours']['memory'] > 2**24
    assert 'ours takes 1.00 of its time' in said
