"""
Problems, and how an answer to one is graded: what evaluation scores and what reinforcement learning rewards.

A problem is a line of problems.jsonl, a dict:

    split, skill    'train' or 'val', and a word that the table has a line for
    messages        the conversation so far, which ends with the user's question
    grader          the name of one of the functions below
    answer          what the grader compares with; some graders take more
    choices         of a multiple-choice question alone: its answer is a letter, and likelihood may choose it
    spoken          an answer with each of the choices, where answers say more than the letter

    >>> problem = {'split': 'val', 'skill': 'sums', 'messages': [{'role': 'user', 'content': '2 + 3?'}],
    ...            'grader': 'number', 'answer': 5}
    >>> grade(problem, 'That makes 5.')
    1.0

A new skill is lines of the file. A new way of grading is one function here, and its name in GRADERS.

Left out on purpose: generating, tokenizing, downloading; graders of what a model must run (see tools.py).
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import regex

import console
from conversation import read_messages, read_rows
from data.tinyworld.grade import story

LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'  # that choices go by
SPLITS = ('train', 'val')

# -----------------------------------------------------------------------------
# graders: (problem, what the assistant said) -> how right it is, 0.0 to 1.0

# 7   1,000   $5   -3   -$3   5.0   .5; in 9-3 the sign stands between two numbers and is not part of the second
SIGN = r'(?:(?<![\w)])[-−])?(?:[$€£][-−]?)?'
NUMBER = SIGN + r'(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|(?<!\w)\.[0-9]+)'

# Characters of words. A mark, such as an accent or an Indic vowel sign, belongs to its letter; re has
# no name for marks, so these patterns are for the module regex
CHARACTER = r'\p{L}\p{M}\p{N}'
# Soft hyphens, joiners and the like are invisible; but a joiner after an emoji makes another emoji
INVISIBLE = r'[\u00ad\u200b\u200c\u200e\u200f\u2060\ufe00-\ufe0f\ufeff]|(?<![\p{So}\p{Sk}]\ufe0f?)\u200d'
CURRENCY = rf'(?<![{CHARACTER})+])(-?)[$€£+](-?)(?=\.?[0-9])'  # $5, -$5, $-5; also the + of +5
THOUSANDS = r'(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])'
HYPHEN = r'(?<=[\p{L}\p{M}])-(?=\p{L})'
MINUS = rf'(?:(?<![{CHARACTER})])-(?=\.?[0-9]))?'  # of -5; in 9-3 it stands between two numbers
DECIMAL = rf'[0-9]+\.[0-9]+|(?<![{CHARACTER}.])\.[0-9]+'
# a Chinese or Japanese character is a word of its own, since nothing stands between words there
CJK = r'[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]'
SUFFIX = rf'(?:\+{{2,}}+|[+#](?![{CHARACTER}#]))'  # C++, C#, A+; but not 3+4
WORD = rf'{MINUS}(?:{DECIMAL}|{CJK}\p{{M}}*+|(?:(?!{CJK})[{CHARACTER}])++{SUFFIX}?)'
# an emoji with what modifies it, or a run of signs that are more than punctuation: >=
SYMBOL = r'(?=\p{So})\X|[\p{Sm}\p{Sc}^#%&/@\\-]++'

LETTER = r'\p{L}\p{M}*+'
SINGLE = rf'(?<![{CHARACTER}]){LETTER}(?![{CHARACTER}])'  # a letter that stands alone: c-a-t
NAME = r"\w(?:[\w .'’-]*\w)?"  # of a person or a thing in a story, which is searched for as words
SPELLED = rf'{SINGLE}(?:(?: ?[-–—_*,] ?|[ .\n]){SINGLE})*'  # not across the end of a sentence


def find_number(text: str) -> Decimal | None:
    """
    The number a text ends up with: the last one. Where the text has GSM8K's mark, the one right behind `####`; of two
    such the first, as GSM8K's own grader takes it, since what comes after an answer is a model that runs on.
    """
    text = regex.sub(r'\p{M}', '', composed(text))  # else re sees the end of a word at a mark
    found = re.findall(rf'####\s*({NUMBER})', text) if '####' in text else re.findall(NUMBER, text)[::-1]
    if not found:
        return None
    digits = re.sub(r'[^0-9.]', '', found[0])
    value = Decimal(digits)
    is_negative = re.match(r'\D*[-−]', found[0])
    return value.copy_negate() if is_negative else value  # -value would round it


def number(problem: dict, text: str) -> float:
    """The number that the text ends up with is the answer (a number, or text of one): 5.0 is 5, 1,000 is 1000."""
    return float(find_number(text) == as_number(problem['answer']))


def as_number(answer) -> Decimal:
    """The number of a problem's answer. ArithmeticError if it is none."""
    return Decimal(str(answer).replace(',', ''))


def composed(text: str) -> str:
    """
    The text in NFC, which makes é one character however it was typed, without invisible characters.

    Not NFKC: that would make 10² the same as 102.
    """
    return regex.sub(INVISIBLE, '', unicodedata.normalize('NFC', text))


def words(text: str, answer: str = '') -> str:
    """
    The words of a text that is compared with this answer, a blank around each: ' its -3.5 kg '.

    Case, blanks and punctuation do not count, nor does the encoding of a character (see composed).
    Letters, marks and digits make words: दिन is not दान. An apostrophe is left out: it's is its. A
    hyphen between letters separates words: well-known is well known. A Chinese or Japanese
    character is a word of its own.

    Signs that belong to a word count: C, C++ and C# are three words, and 5, -5, .5, 3.5 and 5+ are
    five. A number may have commas and a currency: $1,000 is 1000. Its digits are 0 to 9.

    Other signs count in two cases: the answer has no words (>, an emoji), or it has a mathematical
    sign between them (5 > 3). Then an emoji or a run of signs is a word: > is not >=. An answer of
    punctuation alone (?) must occur as it is, and not right after a word, where it ends a sentence.
    """
    found = regex.findall(pattern_for(plain(answer)), plain(text))
    return f' {" ".join(found) or text.strip()} '


def plain(text: str) -> str:
    """The text with one spelling of each character, number and hyphenated word."""
    text = composed(text).casefold().replace("'", '').replace('’', '').replace('−', '-')
    text = regex.sub(CURRENCY, r'\1\2', text)
    text = regex.sub(THOUSANDS, lambda found: found[0].replace(',', ''), text)
    return regex.sub(HYPHEN, ' ', text)


def pattern_for(answer: str) -> str:
    """The pattern of what counts in a text that is compared with this answer: see words()."""
    answer = answer.strip()
    signs = regex.sub(WORD, '', answer)
    has_words = signs != answer
    if not answer or has_words and not regex.search(r'\p{Sm}', signs):
        return WORD
    if regex.search(f'{WORD}|{SYMBOL}', answer):
        return f'{WORD}|{SYMBOL}'
    return rf'{WORD}|{SYMBOL}|(?<![{CHARACTER}]){regex.escape(answer)}'


def exact(problem: dict, text: str) -> float:
    """The text is the answer, whatever the case, blanks and punctuation: see words()."""
    answer = problem['answer']
    return float(words(text, answer) == words(answer, answer))


def contains(problem: dict, text: str) -> float:
    """The answer, or one of a list of them, occurs as whole words, with all of the list `all` and none of `absent`."""
    answers = [problem['answer']] if isinstance(problem['answer'], str) else problem['answer']
    right = any([occurs_in(text, answer) for answer in answers])
    right = right and all(occurs_in(text, answer) for answer in problem.get('all', ()))
    return float(right and not any(occurs_in(text, answer) for answer in problem.get('absent', ())))


def occurs_in(text: str, answer: str) -> bool:
    """Whether the answer stands in the text as whole words: see words()."""
    return words(answer, answer) in words(text, answer)


def letter(problem: dict, text: str) -> float:
    """The answer is the first letter of a choice that stands alone in the text: B, 'B.', 'The answer is B'; also b."""
    allowed = LETTERS[: len(problem['choices'])]
    text = composed(text)
    stands = rf'(?<![{CHARACTER}_])([{allowed}])(?![{CHARACTER}_]|{SUFFIX})'  # not the C of C++
    signs = rf'[^{CHARACTER}_]*'
    whole = regex.fullmatch(signs + stands + signs, text, regex.IGNORECASE)
    alone = whole or regex.search(stands, text)
    said = alone.group(1).upper() if alone else ''
    return float(said == problem['answer'])


def spelled(problem: dict, text: str) -> float:
    """
    The letters that stand alone, one after the other, are the answer's: c-a-t, C, A, T or c a t. A letter has its
    marks with it: दि-न. Of several such rows the longest counts, and of equals the last: 'I spell it c-a-t.'
    """
    rows = regex.findall(SPELLED, composed(text))
    said = max(reversed(rows), key=lambda row: len(letters_of(row)), default='')
    return float(letters_of(said) == letters_of(problem['answer']))


def letters_of(text: str) -> list[str]:
    return regex.findall(LETTER, composed(text).casefold())


GRADERS = {f.__name__: f for f in (number, exact, contains, letter, spelled, story)}  # a new one goes in here


def grade(problem: dict, text: str) -> float:
    """How right the text is as an answer to the problem, 0.0 to 1.0."""
    return GRADERS[problem['grader']](problem, text)


# -----------------------------------------------------------------------------
# multiple choice, and what chance would score


def render_choice(question: str, choices: list[str], request: str = 'Answer with the letter only.') -> str:
    """
    The text of a multiple-choice question, in nanochat's form: the question, a line `- choice=letter` for each, and the
    request. A letter right behind `=`, without a blank, is the same token as in an answer that is this letter alone.
    """
    lines = [f'- {choice}={letter}' for choice, letter in zip(choices, LETTERS)]
    return '\n'.join([question, *lines, '', request])


def answers(problem: dict) -> list[str]:
    """The answers of which likelihood takes one, in the order of the choices; none where nothing is to choose from."""
    return problem.get('spoken') or list(LETTERS[: len(problem.get('choices', ()))])


def baseline(problem: dict) -> float:
    """What guessing scores: one in so many choices; nothing where the answer is free, unless the problem says so."""
    return problem.get('baseline', 1 / len(problem['choices']) if problem.get('choices') else 0.0)


def centred(accuracy: float, baseline: float) -> float:
    """The accuracy on a scale where guessing is 0 and perfect is 1 (CORE, Li et al., 2024)."""
    return (accuracy - baseline) / (1 - baseline)


# -----------------------------------------------------------------------------
# the file


def load(path: str | Path, split: str | None = None, skills: Sequence[str] = (), limit: int = 0) -> list[dict]:
    """
    The problems of a file, in its order: of one split (None: all), of these skills (none named: all), of each at most
    limit (0: all). Lines that are not asked for are checked too: a bad one is a SystemExit that begins with file:line.
    """
    path = Path(path)
    if not path.is_file():
        raise SystemExit(f'{path}: no such file, expected problems, one a line; run: python data/tinyworld/prepare.py')
    problems = [checked(row, where) for where, row in read_rows(path)]
    problems = [problem for problem in problems if split in (None, problem['split'])]
    there = dict.fromkeys(problem['skill'] for problem in problems)
    for skill in skills or ():
        if skill not in there:
            known = console.printable(', '.join(there)) or 'none'
            raise SystemExit(f"{path} has no skill '{skill}' in its split '{split or 'all'}', only {known}")
    if not problems:
        raise SystemExit(f"{path} has no problems in its split '{split or 'all'}', expected one of {', '.join(SPLITS)}")
    kept, taken = [], Counter()
    for problem in problems:
        taken[problem['skill']] += 1
        if (not skills or problem['skill'] in skills) and (not limit or taken[problem['skill']] <= limit):
            kept.append(problem)
    return kept


def checked(problem: dict, where: str) -> dict:
    """The problem of a line, if nothing is wrong with it: said now, and not in the middle of a run."""
    for name in ('split', 'skill', 'grader'):
        if not isinstance(problem.get(name), str):
            raise SystemExit(f'{where}: {name} is {problem.get(name)!r}, expected text')
    for name, allowed in {'split': SPLITS, 'grader': tuple(GRADERS)}.items():
        if problem[name] not in allowed:
            raise SystemExit(f'{where}: {name} is {problem[name]!r}, expected one of {", ".join(allowed)}')
    if 'choices' in problem:
        choices = problem['choices']
        if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
            raise SystemExit(f'{where}: choices is {choices!r}, expected a list of 2 to {len(LETTERS)}')
        if problem.get('answer') not in list(LETTERS[: len(choices)]):
            last = LETTERS[len(choices) - 1]
            raise SystemExit(f'{where}: answer is {problem.get("answer")!r}, expected a letter from A to {last}')
    if 'spoken' in problem:
        spoken, number = problem['spoken'], len(problem.get('choices', ()))
        if not is_texts(spoken) or len(spoken) != number:
            raise SystemExit(f'{where}: spoken is {spoken!r}, expected an answer for each of {number} choices')
    check_more(problem, where)
    problem = {**problem, 'messages': read_messages(problem, where, prompt=True)}
    try:
        empty = grade(problem, '')  # has the grader what it needs?
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise SystemExit(f"{where}: the grader '{problem['grader']}' cannot use it ({error!r})") from None
    if empty:
        raise SystemExit(f"{where}: the grader '{problem['grader']}' would call an empty text right; mend the answer")
    if not can_be_right(problem):
        what = f"the grader '{problem['grader']}' would call no text right"
        raise SystemExit(f'{where}: {what}, the answer is {problem["answer"]!r:.60}; mend it')
    return problem


def check_more(problem: dict, where: str) -> None:
    """What some graders and the scores take besides the answer."""
    chance = baseline(problem)
    if type(chance) not in (int, float) or not 0 <= chance < 1:
        raise SystemExit(f'{where}: baseline is {chance!r:.60}, expected at least 0 and below 1')
    lists = {'contains': ('all', 'absent'), 'story': ('people', 'names')}
    for name in lists.get(problem['grader'], ()):
        if not is_texts(problem.get(name, [])):
            raise SystemExit(f'{where}: {name} is {problem[name]!r:.60}, expected a list of texts')
    if problem['grader'] == 'story':
        thing = problem.get('thing', '')
        names = [*problem.get('people', []), *problem.get('names', [])]
        for name in [*names, thing] if thing != '' else names:
            if not isinstance(name, str) or not re.fullmatch(NAME, name):
                raise SystemExit(f'{where}: no story can name {name!r:.60}, expected words')


def is_texts(value) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) and text.strip() for text in value)


def can_be_right(problem: dict) -> bool:
    """False for the number NaN, for an empty list of answers and for words that are absent too."""
    answer = problem.get('answer')
    if problem['grader'] == 'number':
        return as_number(answer).is_finite()
    if problem['grader'] == 'contains':
        answers = [answer] if isinstance(answer, str) else answer
        rules = {'absent': problem.get('absent', [])}
        may_occur = lambda text: contains({'answer': text, **rules}, text)  # noqa: E731
        some_answer = isinstance(answers, list) and any(map(may_occur, answers))
        return some_answer and all(map(may_occur, problem.get('all', [])))
    return True
