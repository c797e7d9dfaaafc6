"""
Questions in one of many wordings, and their answers.

    >>> ask(random.Random(0), 'home', name='Anna', his='her')
    'In what place does Anna live?'
"""

import random
from functools import cache
from typing import NamedTuple

from data.tinyworld.heldout import canonical, is_held_out, said_by_user
from data.tinyworld.patterns import invented, sentence, vary
from data.tinyworld.textfiles import one_of, only_line, said, voices, wordings
from data.tinyworld.words import fill

ELSEWHERE = ('country', 'city', 'famous', 'beast', 'subject', 'language', 'pain')
BESIDES = 0.15  # of the questions come with words around them that change nothing
VOICED = 0.25  # of the questions that have voices are worded by one
FORMS = ('', '', 'indirect', 'command')  # of a question, the direct one twice as often

# -----------------------------------------------------------------------------
# questions


def phrase(rng: random.Random, heading: str, end: str = '', /, **words) -> str:
    """One of the lines of a heading, with these words in its holes and this end."""
    return fill(vary(rng, one_of(heading) + end), **words)


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


def answer(kind: str, form: str = '', /, **words) -> str:
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
