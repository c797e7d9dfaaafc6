"""
The text files with all that is asked, answered and told, one wording per line below its heading.

    questions.txt, talk.txt, problems.txt   how users ask: patterns, put into frames
    voices.txt                              the same questions as different people would type them
    answers.txt                             what the assistant answers: one line for each kind
    stories.txt, told.txt                   what the stories and the plain text tell
    elsewhere.txt                           words of the rest of the world
    holes.txt                               the {holes} that the lines below each heading may have

Another way to ask or to tell is one more line. Every line is checked when its file is read.
"""

import re
from functools import cache
from pathlib import Path
from string import Formatter

from data.tinyworld.patterns import parse

FOLDER = Path(__file__).resolve().parent
FORMS = ('', 'indirect', 'command', 'several')  # of a kind: '= job', '= job: command'


def sections(path: Path) -> dict[str, list[tuple[str, str]]]:
    """
    A text file by its headings: '= job' -> [('file:line', 'job'), ('file:line', 'a line'), ...].

    '#' begins a comment.
    """
    found = {}
    lines = []
    for number, line in enumerate(path.read_text('utf-8').splitlines(), start=1):
        line = line.strip()
        where = f'{path}:{number}'
        if line.startswith('='):
            heading = line[1:].strip()
            if heading in found:
                raise SystemExit(f"{where}: the heading '{line}' is there already")
            lines = found[heading] = [(where, heading)]
        elif line and not line.startswith('#'):
            if not found:
                raise SystemExit(f"{where}: a line above the first heading, expected '= ...'")
            lines.append((where, line))
    return found


def read(path: Path, holes: dict[str, frozenset], complete: bool = True) -> dict[str, list[str]]:
    """
    The wordings of a text file: heading -> lines, each checked.

    holes: heading -> the holes that its lines may have; '= job: command' is a form of job.
    complete: every heading must be there. An error is a SystemExit with file:line.
    """
    found = {}
    missing = set(holes) if complete else set()
    for heading, ((where, _), *lines) in sections(path).items():
        kind, _, form = heading.partition(': ')
        if kind not in holes or form not in FORMS:
            raise SystemExit(f"{where}: the heading '= {heading}' is one that no code asks for")
        if not lines:
            raise SystemExit(f"{where}: nothing below '= {heading}', expected wordings")
        for where, line in lines:
            check(line, where, holes[kind], holes)
        found[heading] = [line for _, line in lines]
        missing.discard(kind)
    if missing:
        raise SystemExit(f"{path}: no heading '= {min(missing)}', expected one with wordings")
    return found


def check(line: str, where: str, holes: frozenset, headings: dict) -> None:
    """A line may use these holes, <headings> of its own file, and brackets that are closed."""
    try:
        names = [name for _, name, _, _ in Formatter().parse(line) if name is not None]
        parse(line)
    except ValueError as error:
        raise SystemExit(f'{where}: {error}') from None
    for name in names:
        plain = (name[:1].lower() + name[1:]).removeprefix('a_')  # {A_job} is filled from job
        if name not in holes and plain not in holes:
            known = ', '.join(f'{{{hole}}}' for hole in sorted(holes)) or 'none'
            raise SystemExit(f'{where}: {{{name}}} is not filled here, expected one of {known}')
    for heading in re.findall('<(.*?)>', line):
        if heading not in headings:
            raise SystemExit(f'{where}: <{heading}> is no heading of this file')


@cache
def holes_of(name: str) -> dict[str, frozenset[str]]:
    """The headings of a text file and their holes, from holes.txt."""
    groups = sections(FOLDER / 'holes.txt')

    def expanded(holes: str) -> str:
        lines = lambda match: ' '.join(line for _, line in groups[match[1]][1:])
        return re.sub('<(.*?)>', lambda match: expanded(lines(match)), holes)

    table = {}
    if name == 'voices.txt':
        table = holes_of('questions.txt') | holes_of('talk.txt')
    for _, line in groups[name][1:]:
        headings, _, holes = line.partition(':')
        table |= dict.fromkeys(headings.split(), frozenset(expanded(holes).split()))
    return table


@cache
def wordings(name: str) -> dict[str, list[str]]:
    """A text file, read once: 'answers.txt' -> {'job': ['{name} is {a_job}.'], ...}"""
    return read(FOLDER / name, holes_of(name), complete=name != 'voices.txt')


def read_all() -> None:
    """Read every text file, so that a fault in one is found before anything is drawn."""
    for name in sections(FOLDER / 'holes.txt'):
        if name.endswith('.txt'):
            wordings(name)


def only_line(name: str, heading: str) -> str:
    """The line of a heading that has but one: the code does not draw among them."""
    lines = wordings(name)[heading]
    if len(lines) > 1:
        raise SystemExit(f"{FOLDER / name}: {len(lines)} lines below '= {heading}', expected one")
    return lines[0]


def voices() -> dict[str, list[str]]:
    """Kind of question -> the messages that different people would type."""
    return wordings('voices.txt')


@cache
def said() -> dict[str, list[str]]:
    """Heading -> patterns, of all that users say."""
    return wordings('questions.txt') | wordings('talk.txt') | wordings('problems.txt')


@cache
def one_of(heading: str) -> str:
    """All lines of a heading as one pattern: '[where does {name} live|where is ...]'."""
    return f'[{"|".join(with_headings(line) for line in said()[heading])}]'


@cache
def with_headings(line: str) -> str:
    """The line with the lines of a heading for each <heading>."""
    return re.sub('<(.*?)>', lambda match: one_of(match[1]), line)
