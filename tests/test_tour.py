"""
docs/tour.md: its stops are complete and name what exists, and a slow test runs it from its first
command to its last in a copy of the repository, and compares with what it says one should see.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT, tail

PAGE = (ROOT / 'docs' / 'tour.md').read_text(encoding='utf-8')
ANYTHING = '…'  # in an output of the page: what differs between machines


class Stop(NamedTuple):
    title: str
    minutes: int
    text: str

    def fenced(self, language):
        found = re.findall(r'^```(\w*)\n(.*?)^```$', self.text, flags=re.M | re.S)
        return [text for name, text in found if name == language]

    @property
    def read(self):
        """(file, name) of each function and class to read."""
        [line] = re.findall(r'^\*\*Read:\*\* (.*)', self.text, flags=re.M)
        for part in line.split('; '):
            file, *names = re.findall(r'`([^`]+)`', part)
            yield from ((file, name) for name in names)


def stops(page=PAGE):
    parts = re.split(r'^## (\d+\. .*) \((\d+) minutes\)$', page.split('\n## Where')[0], flags=re.M)
    return [Stop(a, int(b), c) for a, b, c in zip(*[iter(parts[1:])] * 3)]


def names_in(file):
    """The names of its functions, classes and methods: f, C, C.method."""
    for node in ast.parse((ROOT / file).read_bytes()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
            for inner in node.body if isinstance(node, ast.ClassDef) else []:
                yield f'{node.name}.{getattr(inner, "name", "")}'


def missing(expected, output):
    """The first line of an expected output that the output does not have, in this order; None if
    all are there."""
    lines = iter(output.splitlines())
    for wanted in expected.splitlines():
        pattern = '.*'.join(map(re.escape, wanted.strip().split(ANYTHING)))
        if wanted.strip() != ANYTHING and not any(re.fullmatch(pattern, x.strip()) for x in lines):
            return wanted
    return None


def test_the_comparison_sees_what_is_missing():
    output = 'a 1\n\nloss 7.3369 | 4,000 tokens/s\nb\nc\n'
    assert missing('a 1\nloss 7.3369 | … tokens/s\n…\nc\n', output) is None
    assert missing('loss 7.33\n', output) == 'loss 7.33'
    assert missing('b\na 1\n', output) == 'a 1'


def test_the_tour_takes_two_hours():
    found = stops()
    assert [int(stop.title.partition('.')[0]) for stop in found] == list(range(1, 1 + len(found)))
    assert sum(stop.minutes for stop in found) == 120


@pytest.mark.parametrize('stop', stops(), ids=lambda stop: stop.title.partition('.')[0])
def test_a_stop_is_complete_and_names_what_exists(stop):
    assert [name for file, name in stop.read if name not in names_in(file)] == []
    assert list(stop.read) and len(stop.fenced('bash')) == 1 and len(stop.fenced('')) == 1
    questions = re.findall(r'^\*\*Question:\*\* .*', stop.text, flags=re.M)
    folded = re.findall(r'^<details><summary>Answer</summary>\n\n.*?\n</details>$', stop.text,
                        flags=re.M | re.S)  # fmt: skip
    assert len(questions) == len(folded) == 1


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
    """A copy of the repository without what was made in it."""
    folder = tmp_path_factory.mktemp('tour') / 'clone'
    made = shutil.ignore_patterns(
        '.git', '.venv', 'venv', 'out', 'out-*', 'tests', '__pycache__', '*.bin', 'meta.json',
        'tok.json', 'problems.jsonl', 'hub', 'raw', 'eval_bundle*', 'scores.jsonl',
        'answers*.jsonl',
    )  # fmt: skip
    return shutil.copytree(ROOT, folder, ignore=made)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('bash') is None, reason='bash')
def test_the_tour_from_its_first_command_to_its_last(clone):
    pytest.importorskip('matplotlib')  # of the report
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ['PATH']))
    environment = {**os.environ, 'PATH': path, 'PYTHONIOENCODING': 'utf-8'}
    for stop in stops():
        [commands] = stop.fenced('bash')
        [expected] = stop.fenced('')
        done = subprocess.run(
            ['bash', '-euo', 'pipefail', '-c', commands], cwd=clone, env=environment, text=True,
            encoding='utf-8', stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, f'{stop.title}\n{tail(done.stdout)}'
        lacks = missing(expected, done.stdout)
        assert lacks is None, f'{stop.title}: no line {lacks!r} in\n{tail(done.stdout)}'
