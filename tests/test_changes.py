"""
The changes of tests/changes: small, shown in docs/changes.md, and each does what it says.

A diff is applied by its text: its old lines must occur once in the file, wherever they are.
"""

import re
import shutil
import subprocess

import pytest
from conftest import ROOT
from exercise import copy_repository

DIFFS = {path.stem: path for path in sorted((ROOT / 'tests' / 'changes').glob('*.diff'))}
PAGE = ROOT / 'docs' / 'changes.md'
MAX_LINES = 25  # removed or added
MAX_FILES = 2


def read(path):
    """(sentence, the diff itself)."""
    sentence, _, diff = path.read_text(encoding='utf-8').partition('\n\n')
    return sentence, diff


def hunks(diff):
    """{file: [(old text, new text) of each hunk]}; the old text of a new file is ''."""
    found = {}
    for line in diff.splitlines(keepends=True):
        if line.startswith('+++ b/'):
            file = line.removeprefix('+++ b/').strip()
            found[file] = []
        elif line.startswith('@@ '):
            found[file].append(('', ''))
        elif not line.startswith('--- '):
            old, new = found[file][-1]
            old += line[1:] if line[0] in ' -' else ''
            new += line[1:] if line[0] in ' +' else ''
            found[file][-1] = old, new
    return found


def apply(diff, folder):
    """Change the files in the folder. AssertionError where the old lines do not occur once."""
    for file, changes in hunks(diff).items():
        path = folder / file
        source = path.read_text(encoding='utf-8') if path.exists() else ''
        for old, new in changes:
            assert source.count(old) == 1, f'{file}: expected once, as it is in the diff:\n{old}'
            source = source.replace(old, new)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding='utf-8')


def test_a_hunk_must_fit(tmp_path):
    (tmp_path / 'a.py').write_text('one\ntwo\nthree\n', encoding='utf-8')
    diff = '--- a/a.py\n+++ b/a.py\n@@ -7,2 +7,2 @@\n one\n-two\n+2\n'
    apply(diff, tmp_path)
    assert (tmp_path / 'a.py').read_text(encoding='utf-8') == 'one\n2\nthree\n'
    with pytest.raises(AssertionError, match='a.py: expected once'):
        apply(diff, tmp_path)
    apply('--- /dev/null\n+++ b/new/b.py\n@@ -0,0 +1 @@\n+b\n', tmp_path)
    assert (tmp_path / 'new/b.py').read_text(encoding='utf-8') == 'b\n'


@pytest.mark.parametrize('name', DIFFS)
def test_a_change_is_small_and_fits(name, tmp_path):
    """Where it does not fit, adapt the diff to the code, and docs/changes.md to the diff."""
    sentence, diff = read(DIFFS[name])
    files = hunks(diff)
    lines = re.findall(r'^(?!\+\+\+ |--- )[-+]', diff, flags=re.MULTILINE)
    assert 20 < len(sentence) < 200 and '\n' not in sentence
    assert len(lines) <= MAX_LINES and len(files) <= MAX_FILES
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / file).exists():
            shutil.copyfile(ROOT / file, tmp_path / file)
    apply(diff, tmp_path)


def test_the_page_shows_the_changes():
    page = PAGE.read_text(encoding='utf-8')
    shown = re.findall(
        r'^## [^\n]+\n\n((?:[^\n]+\n)+)\n`tests/changes/(\w+)\.diff`.*?^```diff\n(.+?)^```',
        page,
        flags=re.MULTILINE | re.DOTALL,
    )
    assert len(shown) == len(DIFFS) == 10
    for sentence, name, diff in shown:
        assert (' '.join(sentence.split()), diff) == read(DIFFS[name]), name


@pytest.mark.slow
@pytest.mark.parametrize('name', DIFFS)
def test_a_change_does_what_it_says(run_program, tmp_path, name):
    """checks.py in a changed copy trains a tiny model and has an assertion for each sentence."""
    copy_repository(tmp_path)
    if shutil.which('git'):
        command = ['git', 'apply', '--check', str(DIFFS[name])]
        subprocess.run(command, cwd=tmp_path, check=True)
    apply(read(DIFFS[name])[1], tmp_path)
    run_program(tmp_path / 'tests/changes/checks.py', name, cwd=tmp_path)
