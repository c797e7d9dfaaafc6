"""
How things are worded: the text files, patterns with alternatives, questions and their answers.

    >>> rng = random.Random(0)
    >>> vary(rng, "[what is|what's] the [colour|color] of grass")
    "what's the color of grass"
    >>> ask(rng, 'home', name='Anna', his='her')
    'In what place does Anna live?'

Another way to ask or to tell is one more line in a text file of this folder:

    questions.txt, talk.txt, problems.txt   how users ask: patterns, put into frames
    voices.txt                              the same questions as different people would type them
    answers.txt                             what the assistant answers: one line for each kind
    stories.txt, told.txt                   what the stories and the plain text tell
    elsewhere.txt                           words of the rest of the world
    holes.txt                               the {holes} that the lines below each heading may have
"""

import random
import re
from functools import cache, lru_cache
from pathlib import Path
from string import Formatter
from typing import NamedTuple

from data.tinyworld import facts
from data.tinyworld.heldout import canonical, is_held_out, said_by_user
from data.tinyworld.words import fill

FOLDER = Path(__file__).resolve().parent
ELSEWHERE = ('country', 'city', 'famous', 'beast', 'subject', 'language', 'pain')
BESIDES = 0.15  # of the questions come with words around them that change nothing
VOICED = 0.25  # of the questions that have voices are worded by one

# -----------------------------------------------------------------------------
# text files


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
        if kind not in holes or form not in FORM_NAMES:
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


# -----------------------------------------------------------------------------
# patterns


@lru_cache(maxsize=2**14)
def parse(pattern: str) -> tuple:
    """'a [b|c [d|e]]' -> ('a ', ['b', ('c ', ['d', 'e'])])"""
    stack = [[[]]]  # per open bracket: its alternatives so far, each a list of parts
    for piece in re.split(r'([\[\]|])', pattern):
        if piece == '[':
            stack.append([[]])
        elif piece == ']' and len(stack) > 1:
            alternatives = []
            for parts in stack.pop():
                plain = all(isinstance(part, str) for part in parts)
                alternatives.append(''.join(parts) if plain else tuple(parts))
            stack[-1][-1].append(alternatives)
        elif piece == '|' and len(stack) > 1:
            stack[-1].append([])
        elif piece:
            stack[-1][-1].append(piece)
    if len(stack) > 1:
        raise ValueError(f'a bracket is not closed in {pattern}')
    return tuple(stack[0][0])


def choose(rng: random.Random, parts: tuple) -> str:
    """The parts of a pattern put together, one alternative of each list."""
    chosen = []
    for part in parts:
        if isinstance(part, list):
            part = rng.choice(part)
        chosen.append(part if isinstance(part, str) else choose(rng, part))
    return ''.join(chosen)


def vary(rng: random.Random, pattern: str) -> str:
    """The pattern with one of the alternatives of every [a|b|] in it; double blanks become one."""
    return ' '.join(choose(rng, parse(pattern)).split())


def phrase(rng: random.Random, heading: str, end: str = '', /, **words) -> str:
    """One of the lines of a heading, with these words in its holes and this end."""
    return fill(vary(rng, one_of(heading) + end), **words)


SMALL_NAMES = re.compile(r'\b(i|pip)\b')
BLANK_BEFORE_SIGN = re.compile(r"\s+([,.?!;:'])")
SENTENCE_START = re.compile(r'(?:^|(?<=[.?!] ))[a-zé]')


def sentence(text: str) -> str:
    """The text with capitals where sentences start and in I and Pip, and no blank before a sign."""
    text = SMALL_NAMES.sub(lambda match: facts.NAME if match[0] == 'pip' else 'I', text)
    text = BLANK_BEFORE_SIGN.sub(r'\1', text)
    return SENTENCE_START.sub(lambda match: match[0].upper(), text)


ONSETS = (
    'b c d f g h j k l m n p r s t v w z bl br ch cl cr dr fl fr gl gr pl pr sc sh sl sp st str sw '
    'th tr wh'
).split()
VOWELS = 'a a a e e e i i o o u ai ea ee ie oa oo ou y'.split()
CODAS = [*' b ck d g l ll m n nd ng nt p r rk s st t th x'.split(' '), *[''] * 12]


def invented(rng: random.Random) -> str:
    """A word that nobody knows, of two or three syllables that may look like English."""
    syllable = lambda: rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)
    syllables = [syllable() for _ in range(rng.choice((2, 2, 3)))]
    return ''.join(syllables) + rng.choice(('', '', '', 's', 'ed', 'er'))


# -----------------------------------------------------------------------------
# questions

DIRECT, INDIRECT, COMMAND, SEVERAL = '', 'indirect', 'command', 'several'
FORM_NAMES = (DIRECT, INDIRECT, COMMAND, SEVERAL)
FORMS = (DIRECT, DIRECT, INDIRECT, COMMAND)  # of a question, the direct one twice as often


def formed(kind: str, form: str) -> str:
    """The heading of a form of a kind."""
    return f'{kind}: {form}' if form else kind


@cache
def framed(kind: str, forms: tuple) -> list[list[str]]:
    """For each of the forms that the kind has: its frames, with all its lines put into each."""
    patterns = []
    for form in forms:
        heading = formed(kind, form)
        if heading in said():
            frames = said()[formed('frame', form)]
            patterns.append([frame.replace('{form}', one_of(heading)) for frame in frames])
    return patterns


def voiced(rng: random.Random, kind: str, /, **words) -> str:
    """
    A message of a kind from voices.txt; '' where a pattern shall word it, as in most cases.

    Voices are for training alone: held-out problems are worded by patterns, and nothing is trained
    on the strangers of assets/prompts.jsonl.
    """
    if kind not in voices() or rng.random() >= VOICED:
        return ''
    message = fill(rng.choice(voices()[kind]), **words)
    return '' if is_held_out(canonical(message)) else message


def ask(
    rng: random.Random, kind: str, voice: str | None = None, forms: tuple = FORMS, /, **words
) -> str:
    """
    A question of a kind in one of many frames, or as one of the voices put it.

    voice: the kind in voices.txt, the same by default. Some questions come with words around them.
    """
    if message := voiced(rng, kind if voice is None else voice, **words):
        return message
    pattern = rng.choice(rng.choice(framed(kind, forms)))
    question = fill(vary(rng, pattern), **words)
    if rng.random() < BESIDES:
        question = surrounded(rng, question)
    return sentence(question)


def surrounded(rng: random.Random, question: str) -> str:
    """The question with words before or after it that change nothing."""
    before = rng.random() < 0.7
    words = {kind: rng.choice(wordings('elsewhere.txt')[kind]) for kind in ELSEWHERE}
    words['word'] = invented(rng)
    words['another'] = invented(rng)
    besides = phrase(rng, 'words_before' if before else 'words_after', **words)
    if not before:
        return f'{question} {besides}'
    if rng.random() < 0.3:
        besides = besides.rstrip('.,:') + ','
    return f'{besides} {question}'


# -----------------------------------------------------------------------------
# examples


class Example(NamedTuple):
    """A conversation whose last message is the right answer, and how an answer is graded."""

    messages: list[dict]
    grader: str
    answer: object
    keep: tuple[str, ...] = ()  # words that careless typing must not change
    more: dict | None = None  # what the grader needs besides
    wrong: object = None  # content of a plausible wrong answer
    typable: bool = True  # whether people type this themselves

    @property
    def key(self) -> str:
        """The canonical text that decides whether it is held out."""
        return said_by_user(self.messages)


def one(question: str, content, grader: str, expected, wrong=None, **more) -> Example:
    """An Example of a single question."""
    messages = [
        {'role': 'user', 'content': question},
        {'role': 'assistant', 'content': content},
    ]
    return Example(messages, grader, expected, wrong=wrong, **more)


def answer(kind: str, form: str = DIRECT, /, **words) -> str:
    """The answer to a kind of question, with these words."""
    return fill(only_line('answers.txt', formed(kind, form)), **words)


def answered(
    question: str, kind: str, words: dict, right, wrong, grader='contains', expected=None, **more
) -> Example:
    """
    The question with its answer, in which {value} is right, or wrong.

    expected: what it is graded by, if it is not the right value itself.
    """
    expected = right if expected is None else expected
    say = lambda value: answer(kind, **words, value=value)
    return one(question, say(right), grader, expected, say(wrong), **more)
