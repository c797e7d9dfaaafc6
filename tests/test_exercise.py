"""dev/exercise.py: what it copies and empties, and that it keeps what its user wrote."""

import re
import sys

import exercise
import pytest
from conftest import ROOT, one_line
from exercise import EXERCISES

PAGE = ROOT / 'docs' / 'exercises.md'
# In a copy: imports every module, then runs the graders. Names of tests that fail follow FAILED
GRADE = """
import importlib, sys
from pathlib import Path
import pytest

root = Path(__file__).parent
sys.path[:0] = [str(root), str(root / 'dev')]
for path in root.glob('*.py'):
    if path.stem not in ('grade', 'sample', 'serve', 'bench', 'report'):  # they run when imported
        importlib.import_module(path.stem)
sys.exit(pytest.main(['-q', '-rf', '--tb=no', '-p', 'no:cacheprovider', *sys.argv[1:]]))
"""


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """run('rope', '--again') -> the lines printed. Copies go to tmp_path."""
    monkeypatch.setattr(exercise, 'HOME', tmp_path)

    def start(*arguments):
        monkeypatch.setattr(sys, 'argv', ['exercise.py', *arguments])
        exercise.main()
        return capsys.readouterr().out.splitlines()

    return start


@pytest.mark.parametrize('name', EXERCISES)
def test_only_the_body_is_gone_and_the_solution_is_what_was_there(name):
    source = exercise.read(name)
    emptied = exercise.emptied(name)
    function = EXERCISES[name].function
    first, body, _ = exercise.place(emptied, function)
    lines = emptied.splitlines(keepends=True)
    assert 'raise NotImplementedError' in lines[body] and len(emptied) < len(source)
    whole = [*lines[:first], exercise.solution(name), *lines[body + 1 :]]
    assert ''.join(whole) == source


def test_a_copy_is_never_changed(run, tmp_path):
    assert 'copy of the repository' in run('rope')[0]
    mine = tmp_path / 'rope' / 'model.py'
    mine.write_text('my work', encoding='utf-8')
    assert '--again' in run('rope')[0] and mine.read_text(encoding='utf-8') == 'my work'
    for number in (1, 2):
        assert f'rope-{number}' in run('rope', '--again')[0]
        assert 'NotImplementedError' in mine.read_text(encoding='utf-8')
    assert (tmp_path / 'rope-1/model.py').read_text(encoding='utf-8') == 'my work'
    assert any('rope' in line and 'begun' in line for line in run())


def test_a_copy_that_breaks_off_is_not_taken_for_one(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(exercise.shutil, 'copyfile', lambda *_: (tmp_path / 'no' / 'file').touch())
        run('rope')
    one_line(stop, 'rope', 'cannot be written')
    assert 'copy of the repository' in run('rope')[0]


@pytest.mark.parametrize(
    'arguments', ['rop', 'rope mask', '--solution', 'rope --new', 'rope --solution --again']
)
def test_what_makes_no_sense_is_one_line(run, arguments, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run(*arguments.split())
    one_line(stop, arguments, 'expected')
    assert not list(tmp_path.iterdir())


def test_the_page_has_the_exercises_in_their_order():
    page = PAGE.read_text(encoding='utf-8')
    found = re.findall(r'^## (\w+)\n\n`([\w.]+)` in `(\w+\.py)`', page, flags=re.MULTILINE)
    assert found == [(name, e.function, e.file) for name, e in EXERCISES.items()]
    assert page.count('<summary>Hint</summary>') == len(EXERCISES)


@pytest.mark.slow
def test_exactly_the_tests_of_an_exercise_fail(run_program, monkeypatch, tmp_path):
    """Judged within the graders, each of which calls one function: of the other tests many fail
    with it, such as all that run a model."""
    monkeypatch.setattr(exercise, 'HOME', tmp_path / 'out' / 'exercises')
    source = (ROOT / exercise.TESTS).read_text(encoding='utf-8')
    for name in EXERCISES:
        exercise.begin(name, again=False)
        folder = exercise.HOME / name
        (folder / 'grade.py').write_text(GRADE, encoding='utf-8')
        done = run_program(folder / 'grade.py', exercise.TESTS, cwd=folder, check=False)
        failed = re.findall(r'^FAILED \S+::test_(\w+)', done.stdout, flags=re.MULTILINE)
        graders = re.findall(rf'^def test_({name}_\w+)', source, flags=re.MULTILINE)
        assert sorted(failed) == sorted(graders) and len(graders) > 2, done.stdout + done.stderr
    # with the original back, here in the last copy, all pass
    (folder / EXERCISES[name].file).write_text(exercise.read(name), encoding='utf-8')
    run_program(folder / 'grade.py', exercise.TESTS, cwd=folder)
