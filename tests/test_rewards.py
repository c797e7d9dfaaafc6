"""rewards.py: a user's file is imported; each thing that can be wrong with it is one line."""

import sys

import pytest
from conftest import one_line

import rewards
from runtime import Ranks

PROBLEMS = [{'messages': [{'role': 'user', 'content': f'{i}?'}]} for i in range(3)]
ANSWERS = ['a', 'bb', 'ccc']


@pytest.fixture
def load(tmp_path, monkeypatch):
    """load(source) -> the reward my.py:f; source None: there is no such file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)  # several files of one second and size
    monkeypatch.delitem(sys.modules, rewards.MODULE, raising=False)
    monkeypatch.setattr(sys, 'path', [*sys.path])

    def run(source):
        if source is not None:
            (tmp_path / 'my.py').write_text(source, encoding='utf-8')
        return rewards.load('my.py:f', Ranks())

    return run


def returning(values):
    return f'import numpy as np\nimport torch\n\n\ndef f(problems, answers):\n    return {values}\n'


def test_a_reward_sees_problems_and_answers_in_order(load):
    source = (
        'def f(problems, answers):\n    seen.append((problems, answers))\n    return [1, 2, 3]\n'
    )
    reward = load(f'seen = []\n{source}')
    assert reward(PROBLEMS, ANSWERS) == [1.0, 2.0, 3.0]
    assert sys.modules[rewards.MODULE].seen == [(PROBLEMS, ANSWERS)]
    assert reward([], []) == []  # a rank without questions
    assert len(sys.modules[rewards.MODULE].seen) == 1


@pytest.mark.parametrize('values', [
    '[1, 2, 3]', '(1, 2.0, 3)', 'np.array([1, 2, 3])', 'torch.tensor([1.0, 2, 3])',
    '[np.float32(1), np.int64(2), torch.tensor(3)]', '[True, 2, 3]',
])  # fmt: skip
def test_numbers_of_any_library_are_taken(load, values):
    found = load(returning(values))(PROBLEMS, ANSWERS)
    assert found == [1.0, 2.0, 3.0] and all(type(x) is float for x in found)


@pytest.mark.parametrize('values, got', [
    ("'good'", "returned 'good'"),
    ('None', 'returned None'),
    ('1.0', 'returned 1.0'),
    ('{1: 2}', 'returned {1: 2}'),
    ('(x for x in answers)', 'returned <generator'),
    ('np.array(1.0)', 'returned 1.0'),
    ('[1, 2]', 'returned 2 values'),
    ('[1, 2, 3, 4]', 'returned 4 values'),
    ('[]', 'returned 0 values'),
    ("[1, float('nan'), 3]", "returned nan for the answer 'bb'"),
    ("[1, 2, -float('inf')]", "returned -inf for the answer 'ccc'"),
    ('[1, 2, 10**400]', 'returned 1000'),
    ('[1, "2", 3]', "returned '2' for the answer 'bb'"),
    ('[None] * 3', "returned None for the answer 'a'"),
    ('[1j, 2, 3]', 'returned 1j'),
    ('np.ones((3, 2))', 'returned [1.0, 1.0] for the answer'),
])  # fmt: skip
def test_a_wrong_value_is_one_line(load, values, got):
    with pytest.raises(SystemExit) as stop:
        load(returning(values))(PROBLEMS, ANSWERS)
    one_line(stop, f'my.py:5: f {got}', 'expected a list of 3 finite numbers, one per answer')


@pytest.mark.parametrize('body, line, error', [
    ('return [1 / 0 for _ in answers]', 6, 'ZeroDivisionError: division by zero'),
    ('return helper(problems)', 2, "KeyError: 'no'"),
    ("raise ValueError('of\\ntwo lines')", 6, 'ValueError: of two lines'),
    ('assert not answers', 6, 'AssertionError'),
    ('raise SystemExit(0)', 6, 'SystemExit: 0'),
    ('import json; return json.loads("{")', 6, 'JSONDecodeError'),
])  # fmt: skip
def test_a_raise_is_one_line_with_its_place(load, body, line, error):
    source = f'def helper(x):\n    return x[0]["no"]\n\n\ndef f(problems, answers):\n    {body}\n'
    with pytest.raises(SystemExit) as stop:
        load(source)(PROBLEMS, ANSWERS)
    one_line(stop, f'my.py:{line}: f raised {error}', 'expected a list of 3 finite numbers')


def test_a_function_of_other_arguments_is_named_by_its_first_line(load):
    with pytest.raises(SystemExit) as stop:
        load('\n\ndef f(answers):\n    return answers\n')(PROBLEMS, ANSWERS)
    one_line(stop, 'my.py:3: f raised TypeError: f() takes 1 positional argument but 2 were given')


@pytest.mark.parametrize('source, words', [
    (None, ['--reward=my.py:f', 'no file my.py', 'expected FILE.py:function']),
    ('def g(): pass\n\ndef h(): pass', ['--reward=my.py:f', 'my.py has no f', 'g, h']),
    ('', ['my.py has no f, expected a function']),
    ('f = 3', ['f is 3', 'expected a function']),
    ('x = 1\nx = 1 / 0', ['my.py:2: ZeroDivisionError: division by zero', 'imported']),
    ('x = 1\ndef f(:', ['my.py:2: SyntaxError', 'imported']),
    ('import no_such_module', ['my.py:1: ModuleNotFoundError', 'no_such_module', 'imported']),
    ('\nraise SystemExit(0)', ['my.py:2: SystemExit: 0', 'imported']),
])  # fmt: skip
def test_a_file_that_cannot_be_used_is_one_line(load, source, words):
    with pytest.raises(SystemExit) as stop:
        load(source)
    one_line(stop, *words)


def test_the_file_imports_its_neighbours_but_does_not_replace_our_modules(
    load, tmp_path, monkeypatch
):
    """At its top and inside the function. `tools` is ours, whether it is loaded already or not."""
    for name in ('lengths_of_words', 'lengths_of_lines', 'tools'):
        (tmp_path / f'{name}.py').write_text('measure = len\n', encoding='utf-8')
    monkeypatch.delitem(sys.modules, 'tools', raising=False)
    reward = load(
        'import tools\nfrom lengths_of_words import measure\n\n\n'
        'def f(problems, answers):\n'
        '    import lengths_of_lines\n\n'
        '    assert lengths_of_lines.measure is measure and tools.calculate\n'
        '    return [measure(answer) for answer in answers]\n'
    )
    assert reward(PROBLEMS, ANSWERS) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize('given', ['my.py', 'my.py:', ':f', 'f', 'my:f', 'my.pyc:f'])
def test_a_setting_without_file_or_function_is_one_line(given):
    with pytest.raises(SystemExit) as stop:
        rewards.load(given, Ranks())
    one_line(stop, f'--reward={given}: expected FILE.py:function')


def test_no_reward_imports_nothing():
    assert rewards.load('', Ranks()) is None


def test_the_import_is_announced_once(load, tmp_path, capsys):
    load(returning('[1, 2, 3]'))
    assert capsys.readouterr().out.startswith('--reward: importing my.py')
    rewards.load('my.py:f', Ranks(rank=1, world_size=2))
    assert capsys.readouterr().out == ''


def test_any_callable_and_a_module_with_dataclasses_will_do(load):
    """A dataclass looks for its module in sys.modules."""
    source = (
        'from __future__ import annotations\nfrom dataclasses import dataclass\n\n\n'
        '@dataclass\nclass Length:\n    scale: float\n\n'
        '    def __call__(self, problems, answers):\n'
        '        return [self.scale * len(answer) for answer in answers]\n\n\nf = Length(2.0)\n'
    )
    assert load(source)(PROBLEMS, ANSWERS) == [2.0, 4.0, 6.0]
