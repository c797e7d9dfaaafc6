"""
Problems, and how an answer is graded: what evaluation scores and reinforcement learning rewards.

A problem is a line of problems.jsonl, a dict:

    split       'train' or 'val'
    skill       a word; evaluation has a row for each skill
    messages    the conversation so far; it ends with the user's question
    grader      the name of a function below. A problem without one is a prompt, whose answers only
                a reward of your own can judge: see rewards.py
    answer      what the grader compares with; some graders take more keys
    choices     makes it a multiple-choice question: its answer is a letter, and evaluation may
                choose the likeliest letter instead of generating text
    spoken      with choices: a longer answer for each, whose likelihood is compared instead
    baseline    what guessing scores, if not 1 / (number of choices)
    entry_point, test, calls, prompt
                for the grader code, which runs what the model wrote: see there

    >>> problem = {'split': 'val', 'skill': 'sums', 'grader': 'number', 'answer': 5,
    ...            'messages': [{'role': 'user', 'content': '2 + 3?'}]}
    >>> grade(problem, 'That makes 5.')
    1.0

To add a skill, add lines to the file. To add a grader, write a function and add it to GRADERS.

Left out on purpose: generating, tokenizing, downloading.
"""

import functools
import keyword
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import regex

import console
import sandbox
from conversation import read_messages, read_rows
from data.tinyworld.grade import story

LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'  # the names of the choices
SPLITS = ('train', 'val')

# -----------------------------------------------------------------------------
# patterns, each with examples of what it matches. *+ and ++ are possessive: they never give back
# what they have matched, which keeps the time linear in the length of a text

# A number, for find_number: 7   1,000   5.0   .5   -3   $5   -$3   $-3
GROUPED = r'[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])'  # 1,000   1,234,567   not 1,0000
FRACTION = r'\.[0-9]+'
LEADING_MINUS = r'(?:(?<![\w)])[-−])?'  # the - of -3; in 9-3 and (2+7)-3 it is an operator
PRICE_SIGN = r'(?:[$€£][-−]?)?'  # the $ of $3, the $- of $-3
# 1,000.5 or 5.0 or .5
DIGITS = rf'{GROUPED}(?:{FRACTION})?|[0-9]+(?:{FRACTION})?|(?<!\w){FRACTION}'
NUMBER = rf'{LEADING_MINUS}{PRICE_SIGN}(?:{DIGITS})'

# The patterns below are for the module regex: re does not have \p. Marks (\p{M}: an accent, an
# Indic vowel sign) belong to the letter before them

CHARACTER = r'\p{L}\p{M}\p{N}'  # for use inside [ ]: letters, marks, digits
LETTER = r'\p{L}\p{M}*+'  # a letter with its marks: a   é   दि

# For plain(): other spellings of the same text
ALWAYS_INVISIBLE = r'[\u00ad\u200b\u200c\u200e\u200f\u2060\ufe00-\ufe0f\ufeff]'  # soft hyphen, …
JOINER = r'(?<![\p{So}\p{Sk}]\ufe0f?)\u200d'  # but not after an emoji, which it changes
INVISIBLE = f'{ALWAYS_INVISIBLE}|{JOINER}'
# The sign of $5, -$5 and $-5 without the minus, and the + of +5
CURRENCY = rf'(?<![{CHARACTER})+])(-?)[$€£+](-?)(?=\.?[0-9])'
THOUSANDS = rf'(?<![0-9.,]){GROUPED}'  # 1,000, whose comma is dropped
HYPHEN = r'(?<=[\p{L}\p{M}])-(?=\p{L})'  # the - of well-known

# For words(): what counts as a word
MINUS = rf'(?:(?<![{CHARACTER})])-(?=\.?[0-9]))?'  # the - of -5; in 9-3 it is an operator
DECIMAL = rf'[0-9]+\.[0-9]+|(?<![{CHARACTER}.])\.[0-9]+'  # 3.5   .5
CJK = r'[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]'  # Chinese, Japanese: one character is one word
SUFFIX = rf'(?:\+{{2,}}+|[+#](?![{CHARACTER}#]))'  # the end of C++, C#, A+; not the + of 3+4
# -3.5 or 你 or cats, -5, C++
WORD = rf'{MINUS}(?:{DECIMAL}|{CJK}\p{{M}}*+|(?:(?!{CJK})[{CHARACTER}])++{SUFFIX}?)'
EMOJI = r'(?=\p{So})\X'  # with its modifiers, such as a skin colour
SIGNS = r'[\p{Sm}\p{Sc}^#%&/@\\-]++'  # >   >=   %   but not punctuation
SYMBOL = f'{EMOJI}|{SIGNS}'

# For spelled(): letters that stand alone
SINGLE = rf'(?<![{CHARACTER}]){LETTER}(?![{CHARACTER}])'  # the a of c-a-t
# Between two letters: - of c-a-t, the blank of 'c a t'; not '. ', where a sentence ends
SEPARATOR = r'(?: ?[-–—_*,] ?|[ .\n])'
SPELLED = rf'{SINGLE}(?:{SEPARATOR}{SINGLE})*'  # c-a-t   C, A, T   c a t   C.A.T

# For program_of(): a fenced block of a language, which a cut-off answer may not close
BLOCK = r'(?sm)^[ \t]*```{}[ \t]*\n(.*?)(?:^[ \t]*```|\Z)'

NAME = r"\w(?:[\w .'’-]*\w)?"  # a person or thing in a story: Mary Ann O'Neil-Smith

# -----------------------------------------------------------------------------
# graders: (problem, text of the assistant) -> how right it is, 0.0 to 1.0


def find_number(text: str) -> Decimal | None:
    r"""
    The number that a text ends with, or None.

        'First 3, then 4. So 7.'         7
        '9 - 3 = 6'                      6
        '#### 7 apples of 9\n#### 8'     7

    It is the last number of the text. If GSM8K's mark #### occurs, it is the first number directly
    after a mark, as in GSM8K's own grader: a model may continue after its answer.
    """
    # without combining marks, which re takes for the end of a word
    text = regex.sub(r'\p{M}', '', composed(text))
    if '####' in text:
        found = re.findall(rf'####\s*({NUMBER})', text)[:1]
    else:
        found = re.findall(NUMBER, text)[-1:]
    if not found:
        return None
    value = Decimal(re.sub(r'[^0-9.]', '', found[0]))
    is_negative = re.match(r'\D*[-−]', found[0])  # -3   -$3   $-3
    return value.copy_negate() if is_negative else value  # -value would round to 28 digits


def number(problem: dict, text: str) -> float:
    """find_number(text) equals the answer: 5.0 is 5, and $1,000 is 1000. The answer is a number
    or its text."""
    return float(find_number(text) == as_number(problem['answer']))


def as_number(answer) -> Decimal:
    """The number of a problem's answer: 1000, '1,000' and '1e3' are equal. ArithmeticError if it is
    not a number."""
    return Decimal(str(answer).replace(',', ''))


def composed(text: str) -> str:
    """
    The text in NFC, where é is one character however it was typed, without invisible characters.

    NFKC would go too far: it makes 10² the same as 102.
    """
    return regex.sub(INVISIBLE, '', unicodedata.normalize('NFC', text))


def words(text: str, answer: str = '') -> str:
    """
    The words of a text, each between blanks, for comparison with words(answer, answer).

        "It's  -3.5 KG!"      ' its -3.5 kg '
        'a well-known C++'    ' a well known c++ '
        '$1,000'              ' 1000 '
        '5>3'                 ' 5 3 ', or ' 5 > 3 ' for the answer '5 < 3'

    Case, blanks, punctuation and the encoding of a character (see composed) do not count. Letters,
    marks and digits make words: दिन is not दान. A Chinese or Japanese character is a word.

    Signs that belong to a word count: C, C++ and C# are three words; 5, -5, .5, 3.5 and 5+ are
    five. Other signs count in two cases: the answer has no words (> or an emoji), or it has a
    mathematical sign among them (5 > 3). Then an emoji or a run of signs is a word: > is not >=.

    An answer that is only punctuation (?) must occur as it is, and not directly after a word, where
    it ends a sentence.
    """
    found = regex.findall(pattern_for(plain(answer)), plain(text))
    return f' {" ".join(found) or text.strip()} '


def plain(text: str) -> str:
    """The text with one spelling of each character, number and hyphenated word."""
    text = composed(text).casefold()
    text = text.replace("'", '').replace('’', '').replace('−', '-')
    text = regex.sub(CURRENCY, r'\1\2', text)
    text = regex.sub(THOUSANDS, lambda found: found[0].replace(',', ''), text)
    return regex.sub(HYPHEN, ' ', text)


def pattern_for(answer: str) -> str:
    """What counts as a word in a text that is compared with this answer: see words()."""
    answer = answer.strip()
    signs = regex.sub(WORD, '', answer)  # all but its words
    has_words = signs != answer
    if not answer or has_words and not regex.search(r'\p{Sm}', signs):
        return WORD
    if regex.search(f'{WORD}|{SYMBOL}', answer):
        return f'{WORD}|{SYMBOL}'
    return rf'{WORD}|{SYMBOL}|(?<![{CHARACTER}]){regex.escape(answer)}'


def exact(problem: dict, text: str) -> float:
    """The text is the answer; case, blanks and punctuation do not count: see words()."""
    answer = problem['answer']
    return float(words(text, answer) == words(answer, answer))


def contains(problem: dict, text: str) -> float:
    """
    The answer occurs as whole words. The problem may hold more:

        answer    a list of texts, one of which is enough
        all       texts that must all occur too
        absent    texts that must not occur
    """
    answers = problem['answer']
    if isinstance(answers, str):
        answers = [answers]
    found = [occurs_in(text, answer) for answer in answers]  # a list: load() must check each
    if not any(found):
        return 0.0
    if not all(occurs_in(text, answer) for answer in problem.get('all', ())):
        return 0.0
    return float(not any(occurs_in(text, answer) for answer in problem.get('absent', ())))


def occurs_in(text: str, answer: str) -> bool:
    """Whether the answer occurs in the text as whole words: see words()."""
    return words(answer, answer) in words(text, answer)


def letter(problem: dict, text: str) -> float:
    """
    The first of the choices' letters that stands alone in the text is the answer.

        'B'   'B.'   'The answer is B, not A.'    B; a text of one letter may be lower case
    """
    allowed = LETTERS[: len(problem['choices'])]
    text = composed(text)
    alone = rf'(?<![{CHARACTER}_])([{allowed}])(?![{CHARACTER}_]|{SUFFIX})'  # not the C of C++
    signs = rf'[^{CHARACTER}_]*'
    found = regex.fullmatch(signs + alone + signs, text, regex.IGNORECASE)
    if not found:
        found = regex.search(alone, text)
    said = found.group(1).upper() if found else ''
    return float(said == problem['answer'])


def spelled(problem: dict, text: str) -> float:
    """
    The letters that stand alone, one after the other, are those of the answer.

        'I spell it c-a-t.'   'C, A, T'   'c a t'    cat

    A letter includes its marks: दि-न. Of several runs of letters the longest counts, of runs of the
    same length the last: the I of 'I spell it' is a run too.
    """
    runs = [letters_of(run) for run in regex.findall(SPELLED, composed(text))]
    longest = max(reversed(runs), key=len, default=[])
    return float(longest == letters_of(problem['answer']))


def letters_of(text: str) -> list[str]:
    return regex.findall(LETTER, composed(text).casefold())


def code(problem: dict, text: str, allow_unsafe_code: bool = False) -> float:
    """
    The program in the text passes its tests, which sandbox.py runs. The problem holds

        entry_point    the name of the function to write
        test           a program that checks it by this name. If it defines check(candidate), as in
                       HumanEval, that is called too
        calls          in place of test: [[arguments], value] for each call, such as [[[2, 3], 5]]
        prompt         the beginning of the program, if the model was asked to complete one
    """
    program = program_of(problem, text)
    tests = tests_of(problem)
    return float(sandbox.run(program, problem['entry_point'], tests, allow_unsafe_code).passed)


def program_of(problem: dict, text: str) -> str:
    r"""
    The program that an answer gives:

        'So:\n```python\ndef f(x):…\n```\n'    the prompt's imports and the first block: a chat
        'def f(x):…'                          the prompt's imports and the text
        '    return x\n\nprint(f(1))'          the prompt and the text, up to the first line that is
                                              not indented: a base model
    """
    prompt = problem.get('prompt', '')
    block = re.search(BLOCK.format('python'), text) or re.search(BLOCK.format(''), text)
    whole = block[1] if block else text
    if block or re.search(rf'^def {problem["entry_point"]}\b', text, re.MULTILINE):
        return '\n'.join([*imports_of(prompt), whole])
    end = re.search(r'\n(?=[^\s)\]}])', text)  # a bracket may close at the left margin
    return prompt + (text[: end.start()] if end else text) + '\n'


def imports_of(prompt: str) -> list[str]:
    """The imports at the beginning of a program."""
    found = []
    for line in prompt.splitlines():
        if line.startswith(('import ', 'from ')):
            found.append(line)
        elif line.strip() and not line.startswith('#'):
            break
    return found


def tests_of(problem: dict) -> str:
    """The problem's tests, as sandbox.run() takes them. They can use what the prompt defines."""
    name = problem['entry_point']
    calls = [
        f'assert candidate(*{arguments!r}) == {value!r}'
        for arguments, value in problem.get('calls', ())
    ]
    test = problem.get('test', '\n'.join(calls))
    check = f'check({name})' if re.search(r'^def check\(', test, re.MULTILINE) else ''
    return '\n'.join([problem.get('prompt', ''), f'{name} = candidate', test, check])


# A new grader is a function above, and its name here
GRADERS = {f.__name__: f for f in (number, exact, contains, letter, spelled, story, code)}


def grade(problem: dict, text: str, allow_unsafe_code: bool = False) -> float:
    """How right the text is as an answer to the problem, 0.0 to 1.0. allow_unsafe_code: run a
    program even where sandbox.py cannot confine it."""
    if problem['grader'] == 'code':
        return code(problem, text, allow_unsafe_code)
    return GRADERS[problem['grader']](problem, text)


def grade_all(
    problems: Sequence[dict], texts: Sequence[str], allow_unsafe_code: bool = False
) -> list[float]:
    """The grade of each text as an answer to the problem beside it. Programs run on all cores, an
    answer that was given several times runs once."""
    answers = {(id(problem), text): problem for problem, text in zip(problems, texts)}
    distinct = [text for _, text in answers]
    one = functools.partial(grade, allow_unsafe_code=allow_unsafe_code)
    workers = min(16, os.cpu_count() or 1) if has_code(problems) else 1
    with ThreadPoolExecutor(workers) as pool:
        grades = dict(zip(answers, pool.map(one, answers.values(), distinct)))
    return [grades[id(problem), text] for problem, text in zip(problems, texts)]


def has_code(problems: Sequence[dict]) -> bool:
    return any(problem['grader'] == 'code' for problem in problems)


def why_not_graded(problems: Sequence[dict], allow_unsafe_code: bool) -> str:
    """Why answers to these problems cannot be graded on this machine, in one line; '' if they
    can."""
    if allow_unsafe_code or not has_code(problems):
        return ''
    reason = sandbox.why_unavailable()
    return reason and (
        f'the answers are programs, which cannot be confined here ({reason}); '
        '--allow_unsafe_code=True runs them unconfined'
    )


def grader(problems: Sequence[dict], allow_unsafe_code: bool = False) -> Callable:
    """grade_all for these problems: (problems, texts) -> grades. SystemExit if they cannot be
    graded here."""
    reason = why_not_graded(problems, allow_unsafe_code)
    if reason:
        raise SystemExit(f'{problems[0]["skill"]}: {reason}')
    return functools.partial(grade_all, allow_unsafe_code=allow_unsafe_code)


# -----------------------------------------------------------------------------
# multiple choice, and what chance would score


def render_choice(
    question: str, choices: list[str], request: str = 'Answer with the letter only.'
) -> str:
    """
    The text of a multiple-choice question, in nanochat's form:

        What colour is snow?
        - white=A
        - red=B

        Answer with the letter only.

    The letter follows `=` without a blank, so it is the same token as in an answer that consists of
    this letter.
    """
    lines = [f'- {choice}={letter}' for choice, letter in zip(choices, LETTERS)]
    return '\n'.join([question, *lines, '', request])


def answers(problem: dict) -> list[str]:
    """The answers from which evaluation may choose the likeliest, in the order of the choices. []
    for a problem without choices."""
    return problem.get('spoken') or list(LETTERS[: len(problem.get('choices', ()))])


def baseline(problem: dict) -> float:
    """What guessing scores: the problem's own number, else 1 / (number of choices), else 0."""
    chance = 1 / len(problem['choices']) if problem.get('choices') else 0.0
    return problem.get('baseline', chance)


def centred(accuracy: float, baseline: float) -> float:
    """The accuracy on a scale where guessing is 0 and perfect is 1 (CORE: Li et al., 2024,
    arXiv:2406.11794)."""
    return (accuracy - baseline) / (1 - baseline)


# -----------------------------------------------------------------------------
# the file


def load(
    paths: str | Path | Sequence[Path], split: str | None = None, skills: Sequence[str] = (),
    limit: int = 0, graded: bool = True,
) -> list[dict]:  # fmt: skip
    """
    Problems of a file or of several, in their order.

        split     'train' or 'val'; None: both
        skills    only these; empty: all
        limit     at most this many of each skill, the first ones; 0: all
        graded    every problem must have a grader

    SystemExit for a file, split or skill that does not exist, and for a skill of two files. Also
    for any bad line of a file, even of another split or skill; that message begins with file:line.
    """
    # 1) Read and check every line
    paths = [paths] if isinstance(paths, (str, Path)) else paths
    problems = []
    file_of = {}  # skill -> the file that has it
    for path in paths:
        if not Path(path).is_file():
            script = Path(path).parent / 'prepare.py'
            if not script.is_file():
                script = 'data/tinyworld/prepare.py'
            raise SystemExit(
                f'{path}: no such file, expected one problem per line; run: python {script}'
            )
        for where, row in read_rows(path):
            problem = checked(row, where, graded)
            skill = problem['skill']
            if file_of.setdefault(skill, path) != path:
                raise SystemExit(
                    f"{where}: the skill '{console.printable(skill)}' is in {file_of[skill]} too; "
                    'evaluate one file after the other'
                )
            problems.append(problem)
    path = ', '.join(map(str, paths))

    # 2) Are the split and the skills there?
    problems = [problem for problem in problems if split in (None, problem['split'])]
    in_split = f"in its split '{split or 'all'}'"
    known = dict.fromkeys(problem['skill'] for problem in problems)  # in the order of the file
    for skill in skills or ():
        if skill not in known:
            names = console.printable(', '.join(known)) or 'none'
            raise SystemExit(f"{path} has no skill '{skill}' {in_split}, only {names}")
    if not problems:
        raise SystemExit(f'{path} has no problems {in_split}, expected one of {", ".join(SPLITS)}')

    # 3) The first `limit` of each skill
    kept = []
    seen = Counter()
    for problem in problems:
        skill = problem['skill']
        seen[skill] += 1
        if (not skills or skill in skills) and (not limit or seen[skill] <= limit):
            kept.append(problem)
    return kept


def checked(problem: dict, where: str, graded: bool = True) -> dict:
    """The problem, with its messages in our form. SystemExit that begins with where, 'file:line',
    if anything is wrong with it: a run must not find out hours later."""
    # 1) Its keys
    is_prompt = 'grader' not in problem
    if is_prompt and graded:
        raise SystemExit(
            f'{where}: grader is missing, expected one of {", ".join(GRADERS)}; a prompt without '
            'one is for --stage=rl with --reward=FILE.py:function'
        )
    for name in ('split', 'skill') if is_prompt else ('split', 'skill', 'grader'):
        if not isinstance(problem.get(name), str):
            raise SystemExit(f'{where}: {name} is {problem.get(name)!r}, expected text')
    for name, allowed in {'split': SPLITS, 'grader': tuple(GRADERS)}.items():
        if name in problem and problem[name] not in allowed:
            raise SystemExit(
                f'{where}: {name} is {problem[name]!r}, expected one of {", ".join(allowed)}'
            )
    check_choices(problem, where)
    check_extras(problem, where)
    problem = {**problem, 'messages': read_messages(problem, where, prompt=True)}
    if is_prompt:
        return problem
    if problem['grader'] == 'code':
        check_code(problem, where)
        return problem  # a program for each line of the file would take minutes

    # 2) Can the grader use it, and tell right from wrong?
    grader = f"the grader '{problem['grader']}'"
    try:
        grade_of_nothing = grade(problem, '')
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise SystemExit(f'{where}: {grader} cannot use it ({error!r})') from None
    if grade_of_nothing:
        raise SystemExit(f'{where}: {grader} would call an empty text right; correct the answer')
    if not can_be_right(problem):
        raise SystemExit(
            f'{where}: {grader} would call no text right, the answer is '
            f'{problem["answer"]!r:.60}; correct it'
        )
    return problem


def check_choices(problem: dict, where: str) -> None:
    """Check the keys `choices`, `answer` and `spoken` of a multiple-choice question."""
    if 'choices' in problem:
        choices = problem['choices']
        if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
            raise SystemExit(
                f'{where}: choices is {choices!r}, expected a list of 2 to {len(LETTERS)}'
            )
        allowed = LETTERS[: len(choices)]
        if problem.get('answer') not in list(allowed):
            raise SystemExit(
                f'{where}: answer is {problem.get("answer")!r}, '
                f'expected a letter from A to {allowed[-1]}'
            )
    if 'spoken' in problem:
        spoken = problem['spoken']
        count = len(problem.get('choices', ()))
        if not is_texts(spoken) or len(spoken) != count:
            raise SystemExit(
                f'{where}: spoken is {spoken!r}, expected an answer for each of {count} choices'
            )


def check_extras(problem: dict, where: str) -> None:
    """Check the baseline, and the keys that some graders take besides the answer."""
    chance = baseline(problem)
    if type(chance) not in (int, float) or not 0 <= chance < 1:
        raise SystemExit(f'{where}: baseline is {chance!r:.60}, expected at least 0 and below 1')
    lists = {'contains': ('all', 'absent'), 'story': ('people', 'names')}
    grader = problem.get('grader')
    for name in lists.get(grader, ()):
        if not is_texts(problem.get(name, [])):
            raise SystemExit(f'{where}: {name} is {problem[name]!r:.60}, expected a list of texts')
    if grader == 'story':
        check_story(problem, where)


def check_story(problem: dict, where: str) -> None:
    """Check the names of a story, which become part of a pattern."""
    names = [*problem.get('people', []), *problem.get('names', [])]
    if problem.get('thing', '') != '':
        names.append(problem['thing'])
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            raise SystemExit(f'{where}: no story can name {name!r:.60}, expected words')


def check_code(problem: dict, where: str) -> None:
    """Check the keys of a problem whose answer is a program."""
    name = problem.get('entry_point')
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise SystemExit(f'{where}: entry_point is {name!r:.60}, expected the name of a function')
    if not isinstance(problem.get('prompt', ''), str):
        raise SystemExit(f'{where}: prompt is {problem["prompt"]!r:.60}, expected text')
    test = problem.get('test')
    calls = problem.get('calls')
    if test is None and isinstance(calls, list) and calls and all(map(is_call, calls)):
        return
    if calls is not None or not isinstance(test, str) or not test.strip():
        raise SystemExit(
            f'{where}: test is {test!r:.60} and calls is {calls!r:.60}, expected a program as test '
            'or a list of [[arguments], value] as calls'
        )


def is_call(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], list)


def is_texts(value) -> bool:
    """Whether it is a list of texts, none of them blank."""
    return isinstance(value, list) and all(isinstance(text, str) and text.strip() for text in value)


def can_be_right(problem: dict) -> bool:
    """False if no text can be right: the answer is the number NaN, an empty list, or words that
    `absent` forbids."""
    answer = problem.get('answer')
    if problem['grader'] == 'number':
        return as_number(answer).is_finite()
    if problem['grader'] == 'contains':
        absent = problem.get('absent', [])

        def may_occur(text):
            return contains({'answer': text, 'absent': absent}, text)

        answers = [answer] if isinstance(answer, str) else answer
        if not isinstance(answers, list) or not any(map(may_occur, answers)):
            return False
        return all(map(may_occur, problem.get('all', [])))
    return True
