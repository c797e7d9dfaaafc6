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


def test_installed_texts_are_distinct_and_within_the_limit(bench, monkeypatch, tmp_path):
    files = {'a.py': 'é = 1', 'b/c.md': 'é = 1', 'b/d.md': '# D', 'e.bin': 'no text', 'f.py': ''}
    files |= {'g.py': 'nul \0', 'h.py': 'latin \udce9', 'i.txt': 'x' * 50, 'j.py': 'late'}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode('utf-8', 'surrogateescape'))
    monkeypatch.setattr('sysconfig.get_path', lambda name: str(tmp_path))
    expected = [('.py', 'é = 1'), ('.md', '# D')]
    assert bench['installed_texts'](30) == expected  # up to the first that exceeds the limit
    expected += [('.txt', 'x' * 50), ('.py', 'late')]
    assert bench['installed_texts'](100) == expected
    assert {suffix for suffix, _ in expected} <= bench['SUFFIXES']


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
