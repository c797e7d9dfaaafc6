"""
Careless typing: a text as people in a hurry type it.

    >>> typed(random.Random(0), "What's the colour of grass?")
    'Whats the colour of grass'
"""

import random
import re

from data.tinyworld import facts

WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
SHORT = {
    'please': 'pls', 'you': 'u', 'are': 'r', 'your': 'ur', 'thanks': 'thx', 'because': 'cos',
    'and': '&', 'what': 'wat', 'favourite': 'fav', 'favorite': 'fav', 'tomorrow': 'tmrw',
    'something': 'smth', 'people': 'ppl',
}  # fmt: skip
VILLAGERS = {person.name.lower() for person in facts.PEOPLE}
STRANGERS = {name.lower() for names in facts.STRANGERS.values() for name in names}
ENDS = {0: ' pls', 1: '??', 2: '...', 3: '!!', 4: ' thx', 5: ' :)', 6: ' please'}
STARTS = {7: 'hey pip ', 8: 'pls ', 9: 'pip '}


def typed(rng: random.Random, text: str, keep: tuple[str, ...] = (), mild: bool = False) -> str:
    """
    The text as people type it: no capitals, signs left out, a slip now and then.

    One writer in ten uses the short forms throughout (SHORT). Digits never change, nor do the
    names of strangers and the words in keep (a word to be spelled, a name to be remembered); the
    villagers' names change seldom. mild: at most one slip, and nothing is added.
    """
    # 1) Slips of the fingers, from the last word to the first so that the places stay right
    slips = 0 if rng.random() < 0.5 else 1 if mild or rng.random() < 0.7 else 2
    if slips:
        words = [match.span() for match in WORD.finditer(text)]
        for start, end in sorted(rng.sample(words, min(slips, len(words))), reverse=True):
            text = text[:start] + spoil(rng, text[start:end], keep, mild) + text[end:]

    # 2) Punctuation left out
    if rng.random() < 0.6:
        text = text.replace("'", '')
    if rng.random() < 0.75:
        text = text.rstrip('.?!')
    if rng.random() < 0.3:
        text = re.sub(r'(?<=[^\W\d])[,.!?:](?=\s)', '', text)

    # 3) Short forms, and words at the start or the end
    if not mild:
        if rng.random() < 0.1:
            text = WORD.sub(lambda match: shortened(match[0], keep), text)
        kind = rng.randrange(45)
        text = STARTS.get(kind, '') + text + ENDS.get(kind, '')
        text = text.replace(' ', '  ', 1) if kind == 10 else text

    # 4) Case: mostly lower, rarely all capitals
    case = rng.random()
    if case < 0.015:
        return text.upper()
    return text.lower() if case < 0.85 else text


def is_kept(small: str, keep: tuple[str, ...]) -> bool:
    return any(small == other.lower() for other in keep)


def shortened(word: str, keep: tuple[str, ...]) -> str:
    """The short form of the word, if it has one and may change."""
    return word if is_kept(word.lower(), keep) else SHORT.get(word.lower(), word)


def spoil(rng: random.Random, word: str, keep: tuple[str, ...], mild: bool) -> str:
    """The word with a slip in it, if it may change."""
    small = word.lower()
    if small in STRANGERS or is_kept(small, keep):
        return word
    if small.removesuffix("'s") in VILLAGERS and rng.random() < 0.9:
        return word
    if not mild and small in SHORT and rng.random() < 0.3:
        return SHORT[small]
    return slip(rng, word) if len(word) > 3 and "'" not in word else word


def slip(rng: random.Random, word: str) -> str:
    """Two letters swapped, one dropped or one doubled; the first stays."""
    i = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(3)
    if kind == 0:
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    if kind == 1:
        return word[:i] + word[i + 1 :]
    return word[:i] + word[i] + word[i:]
