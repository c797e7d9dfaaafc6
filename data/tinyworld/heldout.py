"""
Which questions are held out: evaluation asks them, and nothing is trained on them.

    >>> canonical("What's 12+7?")
    'whats 12 + 7'
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache

SIGNS = str.maketrans(
    dict.fromkeys('.,;:?!"()[]{}<>_`#&%$@^~|\'\\，。？！：；、“”‘’（）《》…')
    | dict.fromkeys('=\n', ' ')
    | {sign: f' {sign} ' for sign in '+-*/×÷'}
)
CHINESE = re.compile(r'([\u3400-\u9fff])')
FEWEST = (
    4  # words of a held-out question; shorter ones ('who are you') occur inside too many others
)


def canonical(text: str) -> str:
    """
    Lower case, no punctuation, single blanks.

    The signs of sums stay; a Chinese character is a word.
    """
    text = text.lower().translate(SIGNS)
    return ' '.join((text if text.isascii() else CHINESE.sub(r' \1 ', text)).split())


def said_by_user(messages: list[dict]) -> str:
    """The canonical text of all that the user says, which decides what is held out."""
    said = [message['content'] for message in messages if message['role'] == 'user']
    return canonical(' '.join(said))


@lru_cache(maxsize=2**15)
def is_held_out(key: str) -> bool:
    """One canonical text in eight, whatever the seed; none of fewer than FEWEST words."""
    if key.count(' ') < FEWEST - 1:
        return False
    return hashlib.sha256(key.encode('utf-8')).digest()[-1] % 8 == 0


class HeldOut:
    """The questions that evaluation asks, to be found anywhere inside a canonical text."""

    def __init__(self, keys: Iterable[str]):
        self.starts = defaultdict(set)  # the first words of a question -> the questions
        for key in keys:
            self.starts[tuple(key.split()[:FEWEST])].add(key + ' ')

    def inside(self, key: str) -> bool:
        """Whether one of the questions occurs in the canonical text, as whole words."""
        words = key.split()
        starts = list(zip(*(words[i:] for i in range(FEWEST))))
        if self.starts.keys().isdisjoint(starts):  # mostly, and fast
            return False
        for place, start in enumerate(starts):
            if start in self.starts:
                rest = ' '.join(words[place:]) + ' '
                if any(rest.startswith(question) for question in self.starts[start]):
                    return True
        return False
