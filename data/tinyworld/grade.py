"""
The grader of stories, which only tinyworld's problems use. It imports nothing of the repository.

    >>> problem = {'people': ['Mia'], 'names': ['Mia', 'Leo'], 'thing': 'ball'}
    >>> story(problem, 'Mia had 5 balls. She met Leo. She gave him 2. Now Mia had 3 balls.')
    1.0
    >>> story(problem, 'Mia had 5 balls. She met Leo. She gave him 2. Now Mia had 4 balls.')
    0.0

A story is read word by word: who is the subject, what its verb does to a count, whom `she` means.
Any story that stories.py tells passes. tasks.py has the graders of all other problems.
"""

import re
import unicodedata
from typing import NamedTuple

# What introduces somebody new: a word up to four words before the name, a verb after it, or
# anywhere in the sentence what that person is to another
BEFORE_NAME = 'met|saw|visited|friend|neighbour|came|joined'
AFTER_NAME = r',? (?:came|joined|appeared)\b'
RELATION = r', (?:her|his|the) (?:best |old |good )?(?:friend|neighbour)\b'

VERBS = {  # what happens to the count of the verb's subject
    **dict.fromkeys('found bought picked got made won collected earned received caught'.split(), 1),
    **dict.fromkeys('lost dropped ate broke sold gave used spent'.split(), -1),
    **dict.fromkeys('had has have kept counted with'.split(), 0),  # states it
    **dict.fromkeys('wanted needed saw heard'.split(), None),  # says nothing about it
}
PRONOUNS = 'he she they him her them we'.split()
TOGETHER = 'together'  # the owner in 'together they had 9'

# The end of a sentence, also within quotes
SENTENCE_END = r'(?<=[.!?])\s+|(?<=[.!?]["”])\s+(?=["“]?[A-Z])'
# A number, a Chinese or Japanese character, or letters and digits
WORD = (
    r'[0-9]+\.[0-9]+|[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]'
    r'|[^\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+'
)


class Count(NamedTuple):
    """A number of a story: 'Mia gave 3 balls to Leo' is 3, -1, 'Mia', 'Leo', 'ball'."""

    amount: int
    sign: int | None  # +1 or -1 for a change, 0 for a statement, None for neither
    owner: str  # a name, TOGETHER, or '' where nobody was named
    other: str  # who gave it or got it; '' for nobody
    item: str


def story(problem: dict, text: str) -> float:
    """
    1.0 for a whole story about the people and the thing asked for, in which all counts agree.

    It has at least four sentences, none twice; whoever else of the problem's names turns up is
    introduced in the sentence that names him first. The problem has `people` (names asked for),
    `names` (all of them), `thing` (singular or '').
    """
    text = composed(text)
    people = [composed(name) for name in problem['people']]
    names = [composed(name) for name in problem['names']]
    thing = composed(problem['thing'])
    sentences = [part for part in re.split(SENTENCE_END, text.strip()) if part]
    ended = text.strip().endswith(('.', '!', '?', '"', '”'))
    different = len({in_words(sentence) for sentence in sentences}) == len(sentences)
    about_people = all(re.search(rf'\b{name}\b', text) for name in people)
    about_thing = not thing or occurs(thing, text)
    if not (ended and different and len(sentences) >= 4 and about_people and about_thing):
        return 0.0
    known = all(introduced(name, sentences) for name in names if name not in people)
    return float(known and counts_agree(sentences, {*people, *names}, thing))


def composed(text: str) -> str:
    """One encoding for each character: é is one code point, however it was typed."""
    return unicodedata.normalize('NFC', text)


def in_words(sentence: str) -> str:
    """The sentence's words in lower case, to compare it with others."""
    found = re.findall(WORD, sentence.replace("'", '').replace('’', '').casefold())
    return ' '.join(found) or sentence.strip()


def occurs(thing: str, text: str) -> bool:
    """Whether the thing is in the text: ball, Balls, boxes, cherries."""
    forms = rf'\b(?:{thing}(?:s|es)?|{thing[:-1]}ies)\b'
    return bool(thing and re.search(forms, text, re.IGNORECASE))


def introduced(name: str, sentences: list[str]) -> bool:
    """Whether the first sentence with this name, if there is one, says where the person is from."""
    for sentence in sentences:
        if re.search(rf'\b{name}\b', sentence):
            before = rf'\b(?:{BEFORE_NAME})\W+(?:\w+\W+){{0,3}}?{name}\b'
            return bool(re.search(rf'{before}|\b{name}{AFTER_NAME}|{RELATION}', sentence))
    return True


def counts_agree(sentences: list[str], names: set[str], thing: str) -> bool:
    """
    Whether every number agrees with those before it, followed per person and thing.

    `had 5`, `found 2 more`, `gave 3 to Tom`, `a hat for 4 coins`, `together they had 9`. A number
    that nobody can follow does not agree.
    """
    counts = read_counts(sentences, names, thing)
    if counts is None:
        return False
    have = {}  # (person, item) -> how many, once that has been said
    for amount, sign, owner, other, item in counts:
        # A statement: 'together' is everybody who has any
        if sign == 0 and owner == TOGETHER:
            if sum(count for (_, what), count in have.items() if what == item) != amount:
                return False
        elif sign == 0 and have.setdefault((owner, item), amount) != amount:
            return False
        # A change: what one loses, the other gains
        for who, change in ((owner, sign), (other, -(sign or 0))):
            if change and (who, item) in have:
                have[who, item] += change * amount
                if have[who, item] < 0:
                    return False
    return True


def read_counts(sentences: list[str], names: set[str], thing: str) -> list[Count] | None:
    """The numbers of a story in their order; None if there is no verb before one."""
    counts = []
    subject = ''  # whom `she` means as the owner of a count
    before = ''  # the last subject who was somebody else: whom `gave her 3` means
    item = thing  # of the last number, for 'found 2 more'
    items = {thing}
    for sentence in sentences:
        tokens = re.findall(r'[^\W\d_]+|[0-9]+', sentence)
        lower = [token.lower() for token in tokens]

        # 1) The subject: the first name, unless a pronoun stands before it
        first = next((t for t in tokens if t in names or t.lower() in ('he', 'she')), '')
        if first in names and first != subject:
            before, subject = subject, first
        for i, token in enumerate(tokens):
            if not token.isdigit():
                continue

            # 2) What is counted: a plural after the number, else the item of the number before
            noun = lower[i + 1] if i + 1 < len(tokens) else ''
            if occurs(thing, noun):
                item = thing
            elif noun in items:
                item = noun
            elif noun[:-1] in items or re.fullmatch('[a-z]{2,}[^ius]s', noun):
                item = noun[:-1]
            items.add(item)

            # 3) The verb, and who does it
            verb = max((j for j in range(i) if lower[j] in VERBS), default=None)
            if verb is None:
                return None
            sign = VERBS[lower[verb]]
            doers = [t for t in tokens[:verb] if t in names or t.lower() in PRONOUNS]
            owner = doers[-1] if doers and doers[-1] in names else subject

            # 4) Who gave it or got it: a name before the number, or after 'to' or 'from'
            linked = tokens[verb + 1 : i]
            linked += [tokens[j] for j in range(i, len(tokens)) if lower[j - 1] in ('to', 'from')]
            other = next((t for t in linked if t in names), '')
            if lower[i - 1] in ('him', 'her') and before != owner:
                other = before

            # 5) 'Together they had 9', and a price: 'bought a hat for 4 coins'
            if sign == 0 and 'together' in lower:
                owner = TOGETHER
            if sign and lower[i - 1] == 'for':
                sign, other = -sign, ''
            counts.append(Count(int(token), sign, owner, other, item))
    return counts
