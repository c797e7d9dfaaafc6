"""
Articles, pronouns, plurals, numbers and lists of words; and templates filled with words.

    >>> fill('{A_pet} lives with {name}. {He} is happy.', pet='owl', name='Mia', he='she')
    'An owl lives with Mia. She is happy.'
"""

import random
from collections.abc import Mapping, Sequence

NUMBERS = (
    'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen '
    'sixteen seventeen eighteen nineteen twenty'
).split()
ORDINALS = (
    'first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth'
).split()
PRONOUNS = {
    'f': {'he': 'she', 'his': 'her', 'him': 'her'},
    'm': {'he': 'he', 'his': 'his', 'him': 'him'},
}
PLURALS = {
    'box': 'boxes',
    'fisherman': 'fishermen',
    'leaf': 'leaves',
    'mouse': 'mice',
    'sheep': 'sheep',
    'strawberry': 'strawberries',
    'tomato': 'tomatoes',
    'wolf': 'wolves',
}


def article(noun: str) -> str:
    """'a cat', 'an owl'"""
    return f'an {noun}' if noun[0] in 'aeiou' else f'a {noun}'


def capital(text: str) -> str:
    """The text with a capital at its start; the rest stays as it is."""
    return text[:1].upper() + text[1:]


def listed(words: Sequence[str]) -> str:
    """'Anna', 'Anna and Ben', 'Anna, Ben and Cara'"""
    *rest, last = words
    return f'{", ".join(rest)} and {last}' if rest else last


def plural(noun: str) -> str:
    """'cats', 'mice'"""
    return PLURALS.get(noun, f'{noun}s')


def counted(count: int, noun: str) -> str:
    """'1 time', '2 times'"""
    return f'{count} {noun if count == 1 else plural(noun)}'


def mend_plurals(text: str) -> str:
    """The text where a template like {job}s made 'fishermans'."""
    for one, many in PLURALS.items():
        text = text.replace(f'{one}s', many)
    return text


class Words(dict):
    """The words for the holes of a template: {job} as given, {a_job} 'a baker', {Job} 'Baker'."""

    def __missing__(self, hole: str) -> str:
        if hole[0].isupper():
            return capital(str(self[hole[0].lower() + hole[1:]]))
        if hole.startswith('a_'):
            return article(self[hole.removeprefix('a_')])
        raise KeyError(hole)


def fill(template: str, /, **words) -> str:
    """The template with its holes filled, see Words."""
    return template.format_map(Words(words))


def other(rng: random.Random, values: Sequence, value):
    """One of the values that is not this one."""
    return rng.choice([candidate for candidate in values if candidate != value])


def weighted(rng: random.Random, weights: Mapping):
    """One of the keys, as often as its weight says."""
    return rng.choices(list(weights), list(weights.values()))[0]
