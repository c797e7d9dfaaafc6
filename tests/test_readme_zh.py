"""README.zh.md says what README.md says: the same sections, commands, figures and links."""

import re

import pytest
from conftest import ROOT

FENCED = r'^```\w*\n.*?^```'


def sections(name):
    """The texts between the headings of the second level."""
    return re.split(r'^## .*\n', (ROOT / name).read_text(encoding='utf-8'), flags=re.M)


def prose(text):
    """A section without code, links' targets and file names: what is translated."""
    text = re.sub(FENCED, '', text, flags=re.M | re.S)
    return re.sub(r'`[^`]+`|\]\([^)]*\)', ' ', text)


def numbers(text):
    return sorted(re.findall(r'\d+(?:[.,]\d+)*', prose(text)))


def code(text):
    """Fenced blocks in their order, then `code`: a sentence may name things in another order."""
    fenced = re.findall(FENCED, text, flags=re.M | re.S)
    return fenced + sorted(re.findall(r'`[^`\n]+`', re.sub(FENCED, '', text, flags=re.M | re.S)))


def links(text):
    """Besides the links from each of the two pages to the other."""
    found = re.findall(r'\]\(([^)]*)\)', text)
    return sorted(set(found) - {'README.md', 'README.zh.md'})


@pytest.mark.parametrize('part', [numbers, code, links])
def test_each_section_has_the_same(part):
    english = list(map(part, sections('README.md')))
    chinese = list(map(part, sections('README.zh.md')))
    assert chinese == english


def test_the_comparison_sees_another_number_command_or_link():
    assert numbers('up to 91 %, before 28 %') != numbers('从 28 % 升到 92 %')
    assert numbers('`a.py --n=3` has 6,500 lines') == numbers('共 6,500 行：`a.py`') == ['6,500']
    assert code('`a`, `b`\n```bash\nx\n```\n') == code('```bash\nx\n```\n`b`、`a`')
    assert code('`a`') != code('`c`')
    assert links('[x](a.md), [y](b.md)') == links('[乙](b.md)[甲](a.md)') != links('[甲](a.md)')


def test_it_is_chinese():
    text = prose((ROOT / 'README.zh.md').read_text(encoding='utf-8'))
    assert len(re.findall(r'[\u4e00-\u9fff]', text)) > 1000
