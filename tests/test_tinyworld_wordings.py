"""The text files of tinyworld: what is wrong with a line is said at once, and the code fills
every hole."""

import doctest
import random
import re

import pytest

from data.tinyworld import (
    careless,
    grade,
    heldout,
    patterns,
    problems,
    stories,
    text,
    textfiles,
    wordings,
    words,
)
from data.tinyworld.chats import SKILLS, pair
from data.tinyworld.facts import PEOPLE, SEASONS
from data.tinyworld.words import article, capital, counted, fill, listed, mend_plurals, plural

HOLES = {'job': frozenset(['name', 'job']), 'tale': frozenset()}
GOOD = (
    '# a comment\n\n= job\nwhat does {name} do\nis {Name} {a_job}\nwhat does {name} do\n\n'
    '= job: command\n<tale>\n\n'
)
CACHED = (
    textfiles.wordings, textfiles.said, textfiles.one_of, textfiles.with_headings, wordings.framed,
    problems.stories_of
)  # fmt: skip


def read(tmp_path, written, complete=True):
    path = tmp_path / 'said.txt'
    path.write_text(written, encoding='utf-8')
    return textfiles.read(path, HOLES, complete)


# ---- reading


def test_a_file_is_read_line_by_line_in_its_order(tmp_path):
    lines = ['what does {name} do', 'is {Name} {a_job}', 'what does {name} do']
    expected = {'job': lines, 'job: command': ['<tale>']}
    assert read(tmp_path, GOOD + '= tale\na [long|short] story\n') == expected | {
        'tale': ['a [long|short] story']
    }
    assert read(tmp_path, GOOD, complete=False) == expected
    assert (
        read(tmp_path, GOOD.replace('= job\n', '=job \n').replace('\n', ' \r\n'), complete=False)
        == expected
    )


@pytest.mark.parametrize(
    'added, line, said',
    [
        ('= jobs\nwhat\n', 11, "the heading '= jobs' is one that no code asks for"),
        (
            '= job: question\nwhat\n',
            11,
            "the heading '= job: question' is one that no code asks for",
        ),
        ('= job\nwhat\n', 11, "the heading '= job' is there already"),
        ('= tale\n# nothing\n', 11, "nothing below '= tale', expected wordings"),
        (
            '= job: indirect\n= tale\na story\n',
            11,
            "nothing below '= job: indirect', expected wordings",
        ),
        ('{nmae}?\n', 11, r'{nmae} is not filled here, expected one of {job}, {name}'),
        ('{a_nmae}?\n', 11, r'{a_nmae} is not filled here'),
        ('is it {}\n', 11, r'{} is not filled here'),
        ('= tale\n{name}\n', 12, r'{name} is not filled here, expected one of none'),
        ('{name\n', 11, "expected '}' before end of string"),
        ('name}\n', 11, "Single '}' encountered in format string"),
        ('[what|who\n', 11, 'a bracket is not closed in [what|who'),
        ('a <story>\n', 11, '<story> is no heading of this file'),
    ],
)
def test_a_fault_is_named_with_its_file_and_line(tmp_path, added, line, said):
    with pytest.raises(SystemExit, match=rf'said\.txt:{line}: {re.escape(said)}'):
        read(tmp_path, GOOD + added)


def test_a_line_without_a_heading_and_a_missing_heading_are_faults(tmp_path):
    with pytest.raises(
        SystemExit, match=r"said\.txt:1: a line above the first heading, expected '= \.\.\.'"
    ):
        read(tmp_path, 'what\n' + GOOD)
    with pytest.raises(
        SystemExit, match=r"said\.txt: no heading '= tale', expected one with wordings"
    ):
        read(tmp_path, GOOD)


def test_all_files_are_read_before_anything_is_drawn(monkeypatch):
    names = []
    monkeypatch.setattr(textfiles, 'wordings', names.append)
    textfiles.read_all()
    assert set(names) == {path.name for path in textfiles.FOLDER.glob('*.txt')} - {'holes.txt'}


def test_a_heading_of_one_line_has_one(monkeypatch):
    monkeypatch.setattr(textfiles, 'wordings', lambda name: {'job': ['{name} is {a_job}.'] * 2})
    with pytest.raises(SystemExit, match=r"answers\.txt: 2 lines below '= job', expected one"):
        wordings.answer('job', name='Mia', job='baker')


# ---- what the tables promise is what the code does


def two_parts(heading):
    return heading.startswith(('all_', 'greeting', 'farewell', 'problem_'))


@pytest.fixture
def marked(monkeypatch):
    """Text files in which every line has all holes of its heading, and the heading itself as
    «file/heading»."""
    really = textfiles.read

    def read_marked(path, table, complete=True):
        found = really(path, table, complete)
        if path.name == 'stories.txt':
            return found
        for heading, lines in found.items():
            kind = heading.partition(': ')[0]
            names = sorted(
                table[kind], key=lambda name: (name != 'p', name)
            )  # {p} first: a pronoun may stand there
            for i, line in enumerate(lines):
                parts = (
                    [f'{{{name}}}' for name in names] + re.findall('<.*?>', line)
                    if names
                    else [line]
                )
                line = ' '.join([*parts, f'«{path.name}/{heading}»'])
                lines[i] = (
                    f'{line} / {line}' if path.name == 'told.txt' and two_parts(heading) else line
                )
        return found

    monkeypatch.setattr(textfiles, 'read', read_marked)
    monkeypatch.setattr(wordings, 'VOICED', 0.5)
    for function in CACHED:
        function.cache_clear()
    yield
    for function in CACHED:
        function.cache_clear()


def test_every_heading_is_asked_for_with_all_its_holes(marked):
    rng, made = random.Random(1), []
    for skill, function in SKILLS.items():
        made += [
            str(function(rng)) for _ in range({'facts': 9000, 'stories': 150}.get(skill, 2500))
        ]
    for kind, (_, function) in text.KINDS.items():
        made += [function(rng) for _ in range(10 if kind == 'story' else 300)]
    made += [str(pair(rng, 'facts', held_out=False)[1][-1]) for _ in range(300)]
    marks = set(re.findall('«(.*?)»', ' '.join(made)))
    names = {path.name for path in textfiles.FOLDER.glob('*.txt')} - {'holes.txt', 'stories.txt'}
    assert marks == {f'{name}/{heading}' for name in names for heading in textfiles.wordings(name)}


def test_every_step_of_a_story_is_told_with_all_its_holes():
    teller = stories.Teller(random.Random(1), PEOPLE[0], PEOPLE[1], 'ball')
    for table in textfiles.holes_of('stories.txt').values():
        teller.say([' '.join(f'{{{hole}}}' for hole in sorted(table))], n=2)
    told = {step for plot in stories.PLOTS.values() for step in re.findall(r'[a-z_]+', plot)}
    told |= {*stories.CHANGES, 'had', 'now', 'other_had', 'other_now', 'together', 'meet'}
    assert told == {
        heading
        for heading in textfiles.wordings('stories.txt')
        if not heading.endswith(tuple(SEASONS))
    }


# ---- words


def test_words_take_their_forms():
    assert [article('cat'), article('owl')] == ['a cat', 'an owl']
    assert [plural(word) for word in ('cat', 'mouse', 'sheep', 'tomato')] == [
        'cats',
        'mice',
        'sheep',
        'tomatoes',
    ]
    assert [counted(1, 'time'), counted(2, 'time')] == ['1 time', '2 times']
    assert [listed(['a']), listed(['a', 'b']), listed(['a', 'b', 'c'])] == [
        'a',
        'a and b',
        'a, b and c',
    ]
    assert capital('anna and Ben') == 'Anna and Ben'
    assert mend_plurals('three fishermans and two wolfs') == 'three fishermen and two wolves'
    assert (
        fill('{A_pet} is {a_pet}, {Pet} {pet} {n}', pet='owl', n=2) == 'An owl is an owl, Owl owl 2'
    )
    with pytest.raises(KeyError, match='cat'):
        fill('{a_cat}', pet='owl')


@pytest.mark.parametrize('module', [words, patterns, wordings, careless, heldout, grade])
def test_the_examples_in_the_docstrings_hold(module):
    assert doctest.testmod(module).failed == 0 < doctest.testmod(module).attempted
