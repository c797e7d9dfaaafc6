"""
Patterns with alternatives, sentences made of them, and words that nobody knows.

    >>> vary(random.Random(0), "[what is|what's] the [colour|color] of grass")
    "what's the color of grass"
"""

import random
import re
from functools import lru_cache

from data.tinyworld import facts


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
