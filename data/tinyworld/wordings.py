"""
How people word and type a question: patterns with alternatives, the polite words around them, the voices of
voices.txt, careless typing; and which questions are held out.

    >>> rng = random.Random(0)
    >>> vary(rng, '[what is|what's] the [colour|color] of grass')
    "what's the color of grass"
    >>> typed(rng, "What's the colour of grass?")
    'Whats the colour of grass'
"""

import hashlib
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from data.tinyworld import facts

# {form} is a question as one asks it ('where does Anna live'), or as it stands after 'tell me' ('where Anna lives'),
# or a command ('spell river')
DIRECT = [
    '{form}?', '{form}?', '{form}?', '{form}?', '{form}?', '{form}?', '{form}, please?', '{form} pip?',
    'please, {form}?', 'pip, {form}?', '[hi|hello|hey], {form}?', '[hi|hello|hey] pip, {form}?', 'tell me, {form}?',
    '[quick question|a question|question]: {form}?', '[so|ok|okay|now|and|well], {form}?', 'do you know {form}?',
    'can you tell me {form}?', 'i have a question: {form}?', 'i wonder, {form}?', '{form}? [tell me|please tell me].',
    '[excuse me|sorry], {form}?',
]  # fmt: skip
INDIRECT = [
    '[can|could|would] you tell me {form}?', '[can|could] you please tell me {form}?', 'do you know {form}?',
    'tell me {form}.', 'tell me {form}.', 'please tell me {form}.', '{form}?', '{form}?', 'i wonder {form}.',
    "i [want to|would like to|'d like to|need to] know {form}.", "i [do not|don't] know {form}. do you?",
    'do you [happen to|perhaps] know {form}?', '[hi|hey|hello] pip, [can|could] you tell me {form}?',
    'any idea {form}?', 'i forgot {form}.', 'i am [curious|trying to remember|not sure] {form}.',
    'let me know {form}.', 'pip, tell me {form}.',
]  # fmt: skip
COMMAND = [
    '{form}.', '{form}.', '{form}.', '{form}.', '{form}, please.', 'please {form}.',
    '[can|could|will|would] you {form}?',
    'pip, {form}.', '[can|could] you please {form}?', 'i want you to {form}.', 'i would like you to {form}.',
    "let's see, {form}.", '[hi|hello|hey] pip, {form}.', '[now|ok|okay|so], {form}.',
    '[hi|hello|hey], [can|could] you {form}?', '{form} for me.', 'try to {form}.',
]  # fmt: skip

# What people say besides, before their question or behind it. It changes nothing, and no list of it is complete: what
# teaches to pass over it is that it is many things
SOMEBODY = (
    'my [mother|father|sister|brother|wife|husband|teacher|boss|neighbour|grandmother|uncle|aunt|cousin|class|doctor]'
    '|my [little|big|old|best|] [friend|girl|boy|son]|a [friend|man|woman|child|colleague]|somebody [here|at work|]'
)
BEFORE = [
    f'[{SOMEBODY}] [asked me|wants to know|has a question|told me to ask|asks|says you know this]:',
    'i [am writing|am drawing|am making|bought|need|lost|found] [a letter|a list|a present|a map|a book|a song]'
    f'[| for [{SOMEBODY}]| today| for school].',
    f'[i|we] [saw|read about|talked about|dreamed of] [[{SOMEBODY}]|it|this|them][| today| yesterday| last night].',
    'i feel [|a little |so ][ill|sick|sad|happy|cold|good|tired][| today| now| again].',
    '[i am|we are] [new here|in a hurry|bored|curious|learning|at home|on the train|back|not sure|tired|lost|hungry]'
    '[| today| again| at the moment].',
    '[it is|this is] for [school|a game|a test|my work|a book|the children|fun].',
    'i [always|often|never|sometimes] [forget|confuse|wonder about|remember] [this|these things|such things|it].',
    '[one more thing|something else|i need your help|nice weather today|that was a long day|listen|let us try this'
    '|we argue about this at home|i read it somewhere|maybe you know this|now a hard one|another one|here is one].',
    # words of the rest of the world do not make it a question about that
    '[[i am|we are] learning {subject}|i have {pain}|i read about {subject}|i like {subject}'
    '|i have a book about {subject}|they say {famous} knew this'
    '|my teacher talks about {famous}|i was in {city}][| today| at the moment].',
    '[my [mother|father|sister|brother|neighbour|boss|aunt]|a friend] [lives in {city}|comes from {country}'
    '|speaks {language}].',
    # nor do words that nobody knows
    '[i|we] [like|saw|need|lost|made|love|want|bought] [a|the|my|some] {word}'
    '[| today| for the {another}|, {another} too].',
    '[i am|we are|it is|this is] [|very |too |so ]{word}[| today| now| again].',
    '[my|the|our] {word} [asks|asked me|wants to know|is {another}][,|.|:]',
]
BEHIND = [
    f'[{SOMEBODY}] [wants to know|asked me|is asking|said you know it].',
    'it is for [school|a game|a test|my work|a book|the children|fun].',
    'i [always|often|never] [forget|confuse|remember] [it|this|that].',
    '[it is|this is|i need it] for [the|my|a] {word}[| {another}].',
    '[i|we] [have to|want to|must] {word}[| it| now| today].',
    '[i really need it|we argue about it|i was told once|that would help me|i am curious|it is important|just wondering'
    '|i would like to know|be quick|take your time|thank you|thanks a lot|many thanks].',
]
BESIDES = 0.15  # of the questions have such words


@lru_cache(maxsize=2**14)
def parse(pattern: str) -> tuple:
    """'a [b|c]' -> ('a ', [('b',), ('c',)]), brackets within brackets likewise."""
    stack = [[[]]]  # of the brackets that are open: the alternatives so far, each a list of parts
    for piece in re.split(r'([\[\]|])', pattern):
        if piece == '[':
            stack.append([[]])
        elif piece == ']':
            alternatives = [tuple(parts) for parts in stack.pop()]
            stack[-1][-1].append(alternatives)
        elif piece == '|' and len(stack) > 1:
            stack[-1].append([])
        else:
            stack[-1][-1].append(piece)
    assert len(stack) == 1, f'a bracket is not closed in {pattern}'
    return tuple(stack[0][0])


def choose(rng: random.Random, parts: tuple) -> str:
    return ''.join([part if isinstance(part, str) else choose(rng, rng.choice(part)) for part in parts])


def vary(rng: random.Random, pattern: str) -> str:
    """The pattern with one of the alternatives of every [a|b|] in it; blanks that meet become one."""
    return ' '.join(choose(rng, parse(pattern)).split())


def sentence(text: str) -> str:
    """The text with capitals at the start of each sentence and in I and Pip, and no blank before a sign."""
    text = re.sub(r'\b(i|pip)\b', lambda match: facts.NAME if match[0] == 'pip' else 'I', text)
    text = re.sub(r"\s+([,.?!;:'])", r'\1', text)
    return re.sub(r'(?:^|(?<=[.?!] ))[a-zé]', lambda match: match[0].upper(), text)


ONSETS = (
    'b c d f g h j k l m n p r s t v w z bl br ch cl cr dr fl fr gl gr pl pr sc sh sl sp st str sw th tr wh'.split()
)
VOWELS = 'a a a e e e i i o o u ai ea ee ie oa oo ou y'.split()
CODAS = [*' b ck d g l ll m n nd ng nt p r rk s st t th x'.split(' '), *[''] * 12]


def invented(rng: random.Random) -> str:
    """Two or three syllables that may look like English: what a word looks like that one does not know."""
    syllable = lambda: rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)
    return ''.join(syllable() for _ in range(rng.choice((2, 2, 3)))) + rng.choice(('', '', '', 's', 'ed', 'er'))


VOICED = 0.25  # of the questions that have voices


@lru_cache(maxsize=1)
def voices() -> dict[str, list[str]]:
    """voices.txt: kind of question -> the messages that different people would type, with holes like {name}."""
    kinds = {}
    for line in Path(__file__).with_name('voices.txt').read_text('utf-8').splitlines():
        if line.startswith('= '):
            messages = kinds.setdefault(line[2:], [])
        elif line and not line.startswith('#'):
            messages.append(line)
    return kinds


def voiced(rng: random.Random, voice: str, **words) -> str:
    """
    One of the messages of a kind; '' where a pattern is to word it, as it is to in most cases.

    Voices are for training alone: held-out problems are worded by patterns, and assets/prompts.jsonl has strangers that
    nothing was trained on.
    """
    message = rng.choice(voices()[voice]).format(**words) if voice and rng.random() < VOICED else ''
    return '' if is_held_out(canonical(message)) else message


def ask(rng: random.Random, direct: str = '', indirect: str = '', command: str = '', voice: str = '', **words) -> str:
    """
    A question in one of many frames, some with words besides that change nothing; or as one of the voices put it. Give
    the forms it has, alternatives divided by |; {name} is filled from words.

    >>> ask(rng, "where does {name} live|where is {name}'s house", 'where {name} lives', voice='home', name='Anna')
    'I wonder, where does Anna live?'
    """
    if message := voiced(rng, voice, **words):
        return message
    kinds = ((direct, DIRECT), (direct, DIRECT), (indirect, INDIRECT), (command, COMMAND))
    form, frames = rng.choice([kind for kind in kinds if kind[0]])
    question = vary(rng, rng.choice(frames).replace('{form}', f'[{form}]')).format(**words)
    if rng.random() < BESIDES:
        before = rng.random() < 0.7
        elsewhere = {kind: rng.choice(names) for kind, names in facts.ELSEWHERE.items()}
        unknown = dict(word=invented(rng), another=invented(rng))
        besides = vary(rng, rng.choice(BEFORE if before else BEHIND)).format(**elsewhere, **unknown)
        if before and rng.random() < 0.3:
            besides = besides.rstrip('.,:') + ','
        question = f'{besides} {question}' if before else f'{question} {besides}'
    return sentence(question)


# -----------------------------------------------------------------------------
# an example


class Example(NamedTuple):
    """A conversation whose last message is the right answer, and how somebody else's answer would be graded."""

    messages: list[dict]
    grader: str
    answer: object
    keep: tuple[str, ...] = ()  # words that careless typing must not change
    more: dict | None = None  # what the grader needs besides
    wrong: object = None  # content of a plausible wrong answer
    typable: bool = True  # whether people type this themselves

    @property
    def key(self) -> str:
        """What decides whether it is held out: all that the user says."""
        return said_by_user(self.messages)


def said_by_user(messages: list[dict]) -> str:
    return canonical(' '.join(message['content'] for message in messages if message['role'] == 'user'))


def one(question: str, answer, grader: str, expected, wrong=None, **more) -> Example:
    """An Example of a single question."""
    messages = [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]
    return Example(messages, grader, expected, wrong=wrong, **more)


def other(rng: random.Random, values: Sequence, value):
    """One of the values that is not this one."""
    return rng.choice([candidate for candidate in values if candidate != value])


def listed(words: Sequence[str]) -> str:
    """['a', 'b', 'c'] -> 'a, b and c'."""
    return words[0] if len(words) == 1 else f'{", ".join(words[:-1])} and {words[-1]}'


def article(noun: str) -> str:
    return f'an {noun}' if noun[0] in 'aeiou' else f'a {noun}'


# -----------------------------------------------------------------------------
# what is held out

SIGNS = str.maketrans(
    dict.fromkeys('.,;:?!"()[]{}<>_`#&%$@^~|\'\\，。？！：；、“”‘’（）《》…')
    | dict.fromkeys('=\n', ' ')
    | {sign: f' {sign} ' for sign in '+-*/×÷'}
)
CHINESE = re.compile(r'([\u3400-\u9fff])')
FEWEST = 4  # words; what is shorter ('who are you') stands inside of too much else


def canonical(text: str) -> str:
    """Lower case, no punctuation, single blanks. The signs of sums stay; a Chinese character is a word."""
    text = text.lower().translate(SIGNS)
    return ' '.join((text if text.isascii() else CHINESE.sub(r' \1 ', text)).split())


@lru_cache(maxsize=2**15)
def is_held_out(key: str) -> bool:
    """One canonical text in eight is never trained on, whatever the seed; those of under four words all are."""
    return key.count(' ') >= FEWEST - 1 and hashlib.sha256(key.encode('utf-8')).digest()[-1] % 8 == 0


class HeldOut:
    """The questions that evaluation asks, to be found again anywhere in a text of words."""

    def __init__(self, keys: Iterable[str]):
        self.starts = defaultdict(set)  # the first words of a question -> those that begin so
        for key in keys:
            self.starts[tuple(key.split()[:FEWEST])].add(key + ' ')

    def inside(self, key: str) -> bool:
        """Whether the canonical text has one of the questions in it, as whole words."""
        words = key.split()
        for place, start in enumerate(zip(*(words[i:] for i in range(FEWEST)))):
            if start in self.starts:
                rest = ' '.join(words[place:]) + ' '
                if any(rest.startswith(question) for question in self.starts[start]):
                    return True
        return False


# -----------------------------------------------------------------------------
# careless typing

WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
SHORT = {
    'please': 'pls', 'you': 'u', 'are': 'r', 'your': 'ur', 'thanks': 'thx', 'because': 'cos', 'and': '&', 'what': 'wat',
    'favourite': 'fav', 'favorite': 'fav', 'tomorrow': 'tmrw', 'something': 'smth', 'people': 'ppl',
}  # fmt: skip
VILLAGERS = {person.name.lower() for person in facts.PEOPLE}
STRANGERS = {name.lower() for names in facts.STRANGERS.values() for name in names}
ENDS = {0: ' pls', 1: '??', 2: '...', 3: '!!', 4: ' thx', 5: ' :)', 6: ' please'}
STARTS = {7: 'hey pip ', 8: 'pls ', 9: 'pip '}


def slip(rng: random.Random, word: str) -> str:
    """One slip of the fingers behind the first letter: two letters swapped, one dropped, or one doubled."""
    i = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(3)
    if kind == 0:
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    return word[:i] + word[i + 1 :] if kind == 1 else word[:i] + word[i] + word[i:]


def typed(rng: random.Random, text: str, keep: tuple[str, ...] = (), mild: bool = False) -> str:
    """
    The text as somebody types it: no capitals, signs left out, a slip now and then, rarely all capitals.

    One in ten writes short throughout (SHORT). Digits never change, nor the letters of strangers' names and of words in
    keep (the one to be spelled, a name to be remembered); the villagers' names change seldom. mild: at most one slip,
    nothing added.
    """
    slips = 0 if rng.random() < 0.5 else 1 if mild or rng.random() < 0.7 else 2
    if slips:
        words = [match.span() for match in WORD.finditer(text)]
        for start, end in sorted(rng.sample(words, min(slips, len(words))), reverse=True):
            text = text[:start] + spoil(rng, text[start:end], keep, mild) + text[end:]
    if rng.random() < 0.6:
        text = text.replace("'", '')
    if rng.random() < 0.75:
        text = text.rstrip('.?!')
    if rng.random() < 0.3:
        text = re.sub(r'(?<=[^\W\d])[,.!?:](?=\s)', '', text)
    if not mild:
        if rng.random() < 0.1:  # who writes short writes short throughout
            text = WORD.sub(lambda match: shortened(match[0], keep), text)
        kind = rng.randrange(45)
        text = STARTS.get(kind, '') + text + ENDS.get(kind, '')
        text = text.replace(' ', '  ', 1) if kind == 10 else text
    case = rng.random()
    return text.upper() if case < 0.015 else text.lower() if case < 0.85 else text


def shortened(word: str, keep: tuple[str, ...]) -> str:
    """The word as those write it who have no time; one that must not change, as it is."""
    return word if is_kept(word.lower(), keep) else SHORT.get(word.lower(), word)


def is_kept(small: str, keep: tuple[str, ...]) -> bool:
    return any(small == other.lower() for other in keep)


def spoil(rng: random.Random, word: str, keep: tuple[str, ...], mild: bool) -> str:
    """The word as a careless hand leaves it; one that must not change, as it is."""
    small = word.lower()
    if small in STRANGERS or is_kept(small, keep) or small.removesuffix("'s") in VILLAGERS and rng.random() < 0.9:
        return word
    if not mild and small in SHORT and rng.random() < 0.3:
        return SHORT[small]
    return slip(rng, word) if len(word) > 3 and "'" not in word else word
