"""README.md, docs/ and LOG.md: their commands name what exists, and their links lead somewhere."""

import ast
import functools
import re
import shlex

import pytest
from conftest import ROOT

from configurator import assignments

PAGES = [ROOT / 'README.md', ROOT / 'LOG.md', *sorted((ROOT / 'docs').glob('*.md'))]
# of a program without settings, and another name of a setting
OPTIONS = {
    'dev/compare.py': {'metric', 'against'}, 'dev/race.py': {'seeds'}, 'pretrained.py': {'import'},
}  # fmt: skip
FLAGS = {'--help', '--chat', '--against', '--standalone', '--solution'}


def commands(text):
    """Commands in fenced bash blocks, and those in `code` that start with a program's name."""
    blocks = re.findall(r'^```bash\n(.*?)^```', text, flags=re.M | re.S)
    lines = [line for block in blocks for line in block.replace('\\\n', ' ').splitlines()]
    lines += re.findall(r'`((?:python|bash|torchrun) [^`]+)`', text)
    for line in lines:
        for part in re.split(r' && |; ', line.split(' #')[0]):
            if re.match(r'\s*(python|torchrun|bash) ', part):
                yield part.strip()


@functools.cache
def settings_of(program):
    tree = ast.parse((ROOT / program).read_bytes())
    return {name for name, _ in assignments(tree)} | OPTIONS.get(program, set())


def problems_of(command):
    """What a command names that does not exist."""
    words = shlex.split(command)
    program = next((word for word in words[1:] if word.endswith(('.py', '.sh'))), None)
    if program is None:  # python -m pytest
        return
    if not (ROOT / program).exists():
        yield f'{program} does not exist'
        return
    for word in words[words.index(program) + 1 :]:
        name, equals, _ = word.removeprefix('--').partition('=')
        config, _, _ = word.partition('+')  # dev/race.py takes CONFIG.py+CHANGE.diff
        if config.startswith('config/') and not (ROOT / config).exists():
            yield f'{config} does not exist'
        if word.startswith('--') and word not in FLAGS:
            if not equals or program.endswith('.py') and name not in settings_of(program):
                yield f'{program} has no setting {name}'


def test_the_rule_sees_what_does_not_exist():
    assert list(commands('```bash\npython a.py x  # y\n```\nand `python b.py`')) == [
        'python a.py x',
        'python b.py',
    ]
    assert list(problems_of('python nowhere.py')) == ['nowhere.py does not exist']
    assert len(list(problems_of('python train.py config/none.py --learning=1 --seed=2'))) == 2
    assert not list(problems_of('torchrun --standalone --nproc_per_node=8 train.py --seed=2'))


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_name_what_exists(page):
    found = list(commands(page.read_text(encoding='utf-8')))
    assert [problem for command in found for problem in problems_of(command)] == []


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    text = page.read_text(encoding='utf-8')
    for target in re.findall(r'\]\(([^)#]+)(?:#[^)]*)?\)', text):
        if '://' not in target:
            assert (page.parent / target).exists(), target


def test_the_readme_is_one_page():
    lines = (ROOT / 'README.md').read_text(encoding='utf-8').splitlines()
    assert len(lines) <= 150
