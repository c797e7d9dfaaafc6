"""tasks.py: each grader against a table of texts, and files of problems with their bad lines."""

import json
import random

import pytest
from conftest import one_line

import tasks
from conversation import SPECIAL
from tokenizer import train_bpe

QUESTION = [{'role': 'user', 'content': 'How many?'}]


def problem(**more):
    return {
        'split': 'val',
        'skill': 'sums',
        'messages': QUESTION,
        'grader': 'number',
        'answer': 7,
        **more,
    }


def grade(grader, answer, text, **more):
    return tasks.grade(problem(grader=grader, answer=answer, **more), text)


# ---- number


@pytest.mark.parametrize('text, number', [
    ('7', '7'), ('7.', '7'), ('The answer is 7, I think.', '7'), ('7 apples', '7'),
    ('It is 7!', '7'),
    ('1,000', '1000'), ('1,234,567.5', '1234567.5'), ('12,34', '34'), ('1,0000', '0'),
    ('1,2345', '2345'),
    ('3, 4, 5', '5'),
    ('$5', '5'), ('$1,250.75 in all', '1250.75'), ('5 dollars', '5'), ('5$', '5'), ('50%', '50'),
    ('-3', '-3'), ('it is -3.', '-3'), ('(-3)', '-3'), ('-$3', '-3'), ('$-3', '-3'), ('−3', '-3'),
    ('= -3', '-3'),
    ('9-3', '3'), ('(2+7)-3', '3'), ('9 - 3', '3'), ('9 - 3 = 6', '6'), ('x-3', '3'),
    ('5.0', '5'), ('5.50', '5.5'), ('.5', '0.5'), ('-.5', '-0.5'), ('07', '7'),
    ('It weighs 0.25.', '0.25'),
    ('3 + 4 = 7', '7'), ('First 3, then 4. So 7.', '7'), ('3/4', '4'), ('A7', '7'),
    ('#### 7', '7'), ('####7', '7'), ('3 and 4 are\n#### 7', '7'), ('#### $1,000', '1000'),
    ('#### -3', '-3'),
    ('#### 7 apples of 9', '7'), ('#### 7\n#### 8', '7'),
    ('#### 7\n\nQuestion: Tom has 9 pens. #### 9', '7'),
    ('#### none', None), ('#### none\n#### 8', '8'), ('## 7', '7'),
    ('7\nUser: and 3 more?', '3'), ('', None), ('none', None), ('seven', None), ('-', None),
    ('$', None), ('.', None),
    ('٣', None), ('²', None), ('9' * 5000, '9' * 5000),
])  # fmt: skip
def test_the_number_of_a_text(text, number):
    found = tasks.find_number(text)
    assert found is None if number is None else found == tasks.Decimal(number)
    if number is not None:
        assert grade('number', number, text) == 1.0
        assert grade('number', str(tasks.Decimal(number) + 1), text) == 0.0
    else:
        assert grade('number', 0, text) == 0.0


@pytest.mark.parametrize('answer', [1000, 1000.0, '1000', '1,000', '1000.0', '1e3'])
def test_an_answer_may_be_a_number_or_its_text(answer):
    assert grade('number', answer, 'That is $1,000.00 in all.') == 1.0
    assert grade('number', answer, 'That is 1,001.') == 0.0


def test_numbers_are_found_however_they_are_written():
    """Every way to write a number, in every sentence, after other numbers."""
    rng = random.Random(0)
    for _ in range(500):
        n = rng.choice([rng.randint(-20, 20), rng.randint(-(10**7), 10**7)])
        written = [
            f'{n}',
            f'{n:,}',
            f'{n}.0',
            f'{n:,}.00',
            f'${n}',
            f'-${-n:,}' if n < 0 else f'${n:,}',
        ]
        text = rng.choice(
            [
                '{}',
                '{}.',
                'So it is {}, you see.',
                'It has 12, then {}',
                '3 + 4 =\n{}\n',
                '({})',
                '1 #### {}',
            ]
        )
        assert grade('number', n, text.format(rng.choice(written))) == 1.0
        assert grade('number', n + 1, text.format(rng.choice(written))) == 0.0


def test_a_long_text_is_graded_in_linear_time():
    """A pattern that backtracks would take minutes, quadratic in 100,000."""
    for text in (
        '1,' * 50_000,
        '#' * 100_000,
        '-' * 100_000,
        'c-' * 50_000,
        '1' * 100_000,
        'a ' * 50_000,
    ):
        for grader, answer in [('number', 12), ('exact', 'x'), ('contains', 'x'), ('spelled', 'x')]:
            assert grade(grader, answer, text) == 0.0
        assert grade('letter', 'B', text, choices=['x', 'y']) == 0.0


# ---- the other graders


@pytest.mark.parametrize('answer, text, right', [
    ('Paris', 'Paris', 1), ('Paris', ' paris.\n', 1), ('Paris', 'PARIS!', 1),
    ('Paris', 'In Paris', 0),
    ('Paris', '', 0),
    ('a red ball', 'A  red ball.', 1), ('a red ball', 'a redball', 0), ("it's", 'Its', 1),
    ('it’s', "it's", 1),
    ('well-known', 'well known', 1), ('3.5', '3.5.', 1), ('3.5', '35', 0), ('+', '+', 1),
    ('+', '-', 0),
    ('你好', '你好！', 1), ('你好', '您好', 0), ('Größe', 'GRÖSSE', 1),
])  # fmt: skip
def test_exact(answer, text, right):
    assert grade('exact', answer, text) == right


@pytest.mark.parametrize('answer, text, right', [
    ('cat', 'Anna has a cat.', 1), ('cat', 'The CAT!', 1), ('cat', 'cats', 0),
    ('cat', 'concatenate', 0),
    ('cat', '', 0),
    (['cat', 'kitten'], 'a kitten', 1), (['cat', 'kitten'], 'a dog', 0),
    ('by the river', 'By the  river, near Ben', 1),
    ('by the river', 'by the rivers', 0), ('by the river', 'by a river', 0),
    ('皮普', '我叫皮普。', 1), ('皮普', '我叫皮。', 0),
    ('3', 'I have 3.', 1), ('3', 'I have 3.5', 0), ('3', 'I have 13', 0), ([], 'anything', 0),
])  # fmt: skip
def test_contains(answer, text, right):
    assert grade('contains', answer, text) == right


def test_words_that_must_not_occur():
    for text, right in [
        ('a cat', 1),
        ('a cat and a dog', 0),
        ('a cat, no Dog.', 0),
        ('a cat, dogged', 1),
        ('a dog', 0),
    ]:
        assert grade('contains', 'cat', text, absent=['dog', 'red hen']) == right
    assert grade('contains', 'cat', 'The cat and the red hen', absent=['dog', 'red hen']) == 0
    assert grade('contains', 'cat', 'The cat and the hen', absent=['dog', 'red hen']) == 1


@pytest.mark.parametrize('text, right', [
    ('B', 1), ('B.', 1), (' b\n', 1), ('(B)', 1), ('The answer is B.', 1),
    ('B, because A is wrong', 1), ('=B', 1),
    ('**B**', 1), ('A', 0), ('A. Not B', 0), ('', 0), ('D', 0), ('D or B', 1), ('Because', 0),
    ('ab', 0), ('Bb', 0),
])  # fmt: skip
def test_letter(text, right):
    """Three choices: D is not one of their letters."""
    assert grade('letter', 'B', text, choices=['x', 'y', 'z']) == right


@pytest.mark.parametrize('text, right', [
    ('c-a-t', 1), ('C-A-T', 1), ('c a t', 1), ('c, a, t.', 1), ('c - a - t', 1), ('C.A.T.', 1),
    ('c\na\nt', 1),
    ('cat: c-a-t', 1), ('It is spelled c-a-t.', 1), ('I spell it c-a-t. I do.', 1),
    ('A cat is c-a-t. A dog is not', 1),
    ('cat', 0), ('c-a-r', 0), ('c-a', 0), ('c-a-t-s', 0), ('a-c-t', 0), ('', 0), ('c-at', 0),
    ('c-a-t, no, c-a-r', 0),
])  # fmt: skip
def test_spelled(text, right):
    assert grade('spelled', 'c-a-t', text) == right
    assert grade('spelled', 'cat', text) == right


@pytest.mark.parametrize('answer, text, right', [
    # marks, and one spelling of each character
    ('दिन', 'दान', 0), ('दिन', 'यह दिन है', 1), ('café', 'A cafe\u0301.', 1),
    ('cafe\u0301', 'CAFÉ', 1), ('café', 'cafe', 0),
    ('Zoë', 'zoe\u0308', 1), ('がく', 'か\u3099く', 1), ('क्ष', 'क्\u200dष', 1),
    ('10²', 'It is 102', 0), ('10²', '10².', 1),
    ('cooperate', 'co\u00adoperate', 1), ('K', 'the \u212a sign', 1),
    # signs alone
    ('>', 'The sign is >.', 1), ('>', "It is '>'", 1), ('>', '**>**', 1), ('>', '5>3', 1),
    ('>', '5 >= 3', 0),
    ('>', 'a -> b', 0), ('>', 'The sign is <.', 0), ('>', 'none', 0), ('+', '3 + 4', 1),
    ('+', '3+4', 1), ('+', 'C++', 0),
    ('-', 'The sign is -', 1), ('-', '9-3', 1), ('-', 'well-known', 0), ('-', 'It is -5', 0),
    ('−', '9 - 3', 1),
    ('😀', 'I feel 😀!', 1), ('😀', 'yes😀😀', 1), ('😀', 'I feel 😢', 0),
    ('👍', 'fine 👍🏽', 0), ('👍🏽', 'fine 👍🏽', 1),
    ('👩', '👨\u200d👩\u200d👧', 0), ('❤\ufe0f', 'I ❤ it', 1), ('🇫🇷', 'to 🇩🇪🇫🇷', 1),
    ('🇪🇫', 'to 🇩🇪🇫🇷', 0),
    ('?', 'It is "?".', 1), ('?', 'What?', 0), (':)', 'Hello :)', 1), (':)', 'Hello :(', 0),
    # signs that belong to a word or a number
    ('C', 'I like C++', 0), ('C', 'I like C#.', 0), ('C', 'It is C++17', 0),
    ('C', 'I like C.', 1), ('C++', 'I like c++.', 1),
    ('C++', 'I like C.', 0), ('C++', 'I like C#', 0), ('C#', '(C#)', 1), ('A', 'A+', 0),
    ('a', 'a+b', 1),
    ('5', 'It is -5', 0), ('5', 'It is −5', 0), ('-5', 'It is −5.', 1), ('-5', 'It is 5', 0),
    ('5', '9-5', 1), ('5', '(9)-5', 1),
    ('5', '$5', 1), ('5', '-$5', 0), ('-5', '$-5', 1), ('5', '5,000', 0), ('5000', '5,000.', 1),
    ('5', '.5', 0),
    ('.5', 'It is .5.', 1), ('5', '+5', 1), ('+5', '5', 1), ('5', '50%', 0), ('50', '50%', 1),
    ('5', '5+', 0),
    # signs between words
    ('5 > 3', '5>3', 1), ('5 > 3', '5 < 3', 0), ('3 + 4', '3 - 4', 0),
    ('well-known', 'well known', 1),
])  # fmt: skip
def test_signs_and_marks_of_words(answer, text, right):
    assert grade('contains', answer, text) == right
    assert grade('exact', answer, answer) == 1
    if not right:
        assert grade('exact', answer, text) == 0
    assert grade('contains', 'no such', text) == 0


@pytest.mark.parametrize('text, answer, expected', [
    ("It's  -3.5 KG!", '', ' its -3.5 kg '), ('a well-known C++', '', ' a well known c++ '),
    ('$1,000', '', ' 1000 '), ('5>3', '', ' 5 3 '), ('5>3', '5 < 3', ' 5 > 3 '),
])  # fmt: skip
def test_the_examples_of_words(text, answer, expected):
    assert tasks.words(text, answer) == expected


def test_a_letter_includes_its_marks():
    for answer, text, right in [
        ('दिन', 'दि-न', 1), ('दिन', 'दा-न', 0), ('दिन', 'द-न', 0), ('café', 'c-a-f-e\u0301', 1),
        ('cafe\u0301', 'C, A, F, É', 1),
        ('café', 'c-a-f-e', 0), ('groß', 'g-r-o-ß', 1), ('x\u030by', 'x\u030b-y', 1),
        ('xy', 'x\u030b-y', 0),
    ]:  # fmt: skip
        assert grade('spelled', answer, text) == right, (answer, text)
    for text, right in [
        ('C++ is old, so B', 1), ('A\u0300 mon avis, B', 1), ('B\u030b', 0), ('B++', 0),
        ('B²', 0), ('(b)', 1), ('B_1', 0),
    ]:  # fmt: skip
        assert grade('letter', 'B', text, choices=['x', 'y', 'z']) == right, text


def test_the_spelling_of_a_name_in_a_story_does_not_count():
    """The name is composed in the problem and decomposed in the story."""
    told = 'Zoe\u0308 had a ball. She ran home. She was glad. The ball was red.'
    people = dict(people=['Zoë'], names=['Zoë'], thing='ball')
    assert grade('story', None, told, **people) == 1
    assert grade('story', None, told.replace('e\u0308', 'e'), **people) == 0


def test_a_number_after_a_letter_with_a_mark():
    for text in ('दि-5', 'é-5', 'e\u0301-5'):
        assert grade('number', 5, text) == 1
    assert grade('number', -5, 'दि -5') == 1


# ---- code: what the sandbox does with a program is in test_sandbox.py

PROMPT = '# Doubles.\nimport math\nfrom typing import List\n\n\ndef f(x):\n    """2x"""\n'
IMPORTS = 'import math\nfrom typing import List\n'
CODE = dict(grader='code', answer=None, prompt=PROMPT, entry_point='f', test='assert f(2) == 4')


@pytest.mark.parametrize('text, program', [
    ('So:\n```python\ndef f(x):\n    return 2 * x\n```\nOr:\n```python\nf = 1\n```',
     IMPORTS + 'def f(x):\n    return 2 * x\n'),
    ('```bash\nls\n```\n  ```python \nf = "```"\n  ```\n', IMPORTS + 'f = "```"\n'),
    ('```\ndef f(x):\n    return 2 * x', IMPORTS + 'def f(x):\n    return 2 * x'),
    ('y = 1\n\ndef f(x):\n    return 2 * x', IMPORTS + 'y = 1\n\ndef f(x):\n    return 2 * x'),
    ('    return 2 * x\n', PROMPT + '    return 2 * x\n\n'),
    ('    y = [\n]\n    return x\n\n\nprint(f(1))\n', PROMPT + '    y = [\n]\n    return x\n\n\n'),
    ('    return 1\ndef g(x):\n    return 2', PROMPT + '    return 1\n'),
    ('    return 1\n# Next\n', PROMPT + '    return 1\n'),
    ('', PROMPT + '\n'),
])  # fmt: skip
def test_the_program_of_an_answer(text, program):
    assert tasks.program_of(problem(**CODE), text) == program


def test_a_program_without_a_prompt():
    bare = dict(grader='code', entry_point='f', calls=[[[2, 3], 5], [[0, 'a'], ['a']]])
    assert tasks.program_of(bare, 'def f(a, b):\n    return a + b') == (
        'def f(a, b):\n    return a + b'
    )
    assert tasks.tests_of(bare).split('\n') == [
        '', 'f = candidate',
        'assert candidate(*[2, 3]) == 5', "assert candidate(*[0, 'a']) == ['a']",
        '',
    ]  # fmt: skip


def test_tests_see_the_prompt_and_are_called_if_they_are_a_function():
    assert tasks.tests_of(CODE).endswith('"""2x"""\n\nf = candidate\nassert f(2) == 4\n')
    defined = CODE | dict(test='def check(candidate):\n    assert candidate(2) == 4\n')
    assert tasks.tests_of(defined).endswith('candidate(2) == 4\n\ncheck(f)')


def test_answers_are_graded_at_once_and_equal_ones_once(monkeypatch):
    """Each with its own problem, in their order, programs and others together."""
    ran = []

    def run(program, entry_point, tests, allow_unsafe_code):
        ran.append(program)
        return tasks.sandbox.Result(entry_point in program, allow_unsafe_code)

    monkeypatch.setattr(tasks.sandbox, 'run', run)
    monkeypatch.setattr(tasks.sandbox, 'why_unavailable', lambda: None)
    f, g = (dict(grader='code', entry_point=name, calls=[[[], 1]]) for name in 'fg')
    asked = [f, problem(), g, f, f, problem()]
    texts = ['f = 1', '7', 'f = 1', 'f = 1', 'h = 1', '8']
    assert tasks.grader(asked)(asked, texts) == [1, 1, 0, 1, 0, 0]
    assert len(ran) == 3
    assert tasks.grade_all([], []) == []


def test_programs_that_cannot_be_confined_are_refused_in_one_line(monkeypatch):
    code = problem(**CODE)
    monkeypatch.setattr(tasks.sandbox, 'why_unavailable', lambda: 'no namespaces')
    with pytest.raises(SystemExit) as stop:
        tasks.grader([problem(), code])
    one_line(stop, 'sums', 'no namespaces', '--allow_unsafe_code=True')
    assert tasks.why_not_graded([problem()], False) == ''
    assert tasks.why_not_graded([code], True) == ''
    tasks.grader([problem()])
    given = []
    monkeypatch.setattr(tasks, 'code', lambda *rest: given.append(rest[2]) or 1.0)
    assert tasks.grader([code], True)([code], ['x']) == [1.0] and given == [True]


def test_loading_runs_no_program(monkeypatch, tmp_path):
    monkeypatch.setattr(tasks.sandbox, 'run', None)
    rows = [
        problem(**CODE | {'answer': 1}),
        problem(grader='code', entry_point='f', calls=[[[1], 2]]),
    ]
    assert tasks.load(write(tmp_path, rows)) == rows


def test_graders_are_known_by_their_names():
    assert {'number', 'exact', 'contains', 'letter', 'spelled'} <= set(tasks.GRADERS)
    assert all(name == grader.__name__ for name, grader in tasks.GRADERS.items())


def test_a_new_grader_is_a_function_and_a_name(monkeypatch, tmp_path):
    def shout(problem, text):
        return float(text.isupper())

    monkeypatch.setitem(tasks.GRADERS, shout.__name__, shout)
    path = write(
        tmp_path, [{'split': 'val', 'skill': 'noise', 'messages': QUESTION, 'grader': 'shout'}]
    )
    (loud,) = tasks.load(path)
    assert (tasks.grade(loud, 'YES'), tasks.grade(loud, 'yes')) == (1.0, 0.0)


# ---- multiple choice


def test_a_rendered_choice_has_the_same_letter_tokens_as_an_answer():
    text = tasks.render_choice('What colour is snow?', ['white', 'red', 'light blue'])
    lines = text.splitlines()
    assert lines[:4] == ['What colour is snow?', '- white=A', '- red=B', '- light blue=C']
    assert 'letter' in lines[-1]
    tokenizer = train_bpe(
        ['What colour is snow? white red light blue Answer with the letter only. '], 300, SPECIAL
    )
    ids = tokenizer.encode(text)
    for letter in 'ABC':
        (token,) = tokenizer.encode(letter)
        # with a blank before it, a letter may be another token
        assert ids.count(token) == text.count(letter)


@pytest.mark.parametrize(
    'accuracy, chance, expected', [(0.25, 0.25, 0), (1, 0.25, 1), (0.625, 0.25, 0.5), (0.4, 0, 0.4)]
)
def test_centred(accuracy, chance, expected):
    assert tasks.centred(accuracy, chance) == pytest.approx(expected, abs=1e-15)


def test_centred_is_0_for_one_who_guesses():
    rng = random.Random(1)
    problems = [
        problem(grader='letter', answer=rng.choice('ABCD'), choices=list('wxyz'))
        for _ in range(4000)
    ]
    accuracy = sum(tasks.grade(p, rng.choice('ABCD')) for p in problems) / len(problems)
    chance = sum(map(tasks.baseline, problems)) / len(problems)
    assert chance == 0.25 and abs(tasks.centred(accuracy, chance)) < 0.04


def test_baselines():
    assert tasks.baseline(problem()) == 0
    assert tasks.baseline(problem(choices=['x', 'y'], answer='A')) == 0.5
    assert tasks.baseline(problem(baseline=0.125)) == 0.125


# ---- the file


def write(folder, rows):
    path = folder / 'problems.jsonl'
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    return path


def test_load_selects_by_split_skill_and_limit_in_the_order_of_the_file(tmp_path):
    rng = random.Random(2)
    rows = [
        problem(
            split=rng.choice(['train', 'val']),
            skill=rng.choice(['sums', 'facts', 'stories']),
            answer=i,
        )
        for i in range(60)
    ]
    path = write(tmp_path, [*rows[:30], '', '  ', *rows[30:]])
    assert tasks.load(path) == rows
    for split in ('train', 'val', None):
        for skills in ((), ['facts'], ['stories', 'sums'], None):
            for limit in (0, 1, 7, 1000):
                wanted = [
                    row
                    for row in rows
                    if split in (None, row['split']) and (not skills or row['skill'] in skills)
                ]
                places = [
                    sum(p['skill'] == row['skill'] for p in wanted[:i])
                    for i, row in enumerate(wanted)
                ]
                expected = [row for row, place in zip(wanted, places) if not limit or place < limit]
                assert tasks.load(path, split, skills, limit) == expected


NAMES = ['Tom', "Mary Ann O'Neil-Smith", 'Zoë']
STORY = dict(grader='story', people=['Tom'], names=NAMES, thing='ball')


def test_several_files_are_read_as_one(tmp_path):
    rows = [problem(skill=skill) for skill in ('a', 'b', 'a')]
    (tmp_path / 'other').mkdir()
    first, second = write(tmp_path, rows), write(tmp_path / 'other', [problem(skill='c')])
    assert [p['skill'] for p in tasks.load([first, second], 'val', limit=1)] == ['a', 'b', 'c']
    assert [p['skill'] for p in tasks.load([first, second], 'val', ['c'])] == ['c']
    with pytest.raises(SystemExit, match=f"{second.name}:1: the skill 'a' is in .*; evaluate one"):
        tasks.load([first, write(tmp_path / 'other', [problem(skill='a')])])


def test_unusual_problems_that_can_be_solved_are_kept(tmp_path):
    rows = [
        problem(**STORY), problem(**STORY | dict(people=[], thing='')), problem(baseline=0),
        problem(answer=1e22), problem(answer=-5e-05), problem(answer='1e3'),
        problem(grader='contains', answer=['no', 'yes'], all=['sir'], absent=['no']),
    ]  # fmt: skip
    path = write(tmp_path, rows)
    assert tasks.load(path) == rows
    for i, text in ((3, '10000000000000000000000'), (4, '-0.00005'), (5, '1000'), (6, 'Yes, sir')):
        assert tasks.grade(rows[i], text) == 1.0
    long = '-' + '9' * 40  # Decimal's operations round to 28 digits
    assert tasks.grade(problem(answer=long), f'It is {long}.') == 1.0
    nulls = dict(choices=None, spoken=None, baseline=None, absent=None, conversations=None)
    assert tasks.load(write(tmp_path, [problem(**nulls)])) == [problem()]
    (brief,) = tasks.load(write(tmp_path, [problem(system='Be brief.')]))
    assert brief['messages'] == [{'role': 'system', 'content': 'Be brief.'}, *QUESTION]


@pytest.mark.parametrize('bad, said', [
    ('{"split": "val"', 'not JSON'), ('[1]', 'list'), (b'\xff\xfe', 'no UTF-8 at byte 0'),
    ('[' * 100_000, 'not JSON'),
    (dict(split='test'), "split is 'test', expected one of train, val"),
    (dict(split=None), 'split is None'),
    (dict(skill=3), 'skill is 3'), (dict(skill=None), 'skill is None'),
    (dict(grader='numbr'), "grader is 'numbr', expected one of number"),
    (dict(messages=[]), 'messages'), (dict(messages='hi'), 'messages'),
    (dict(messages=None), 'messages'),
    (dict(messages=[*QUESTION, {'role': 'assistant', 'content': '7'}]), 'expected user'),
    (dict(messages=[{'role': 'bot', 'content': 'hi'}]), "role is 'bot'"),
    (dict(messages=[{'role': 'user'}]), 'content'),
    (dict(grader='code', test='assert 1'), 'entry_point is None, expected the name of a function'),
    (dict(grader='code', entry_point='f()', test='assert 1'), "entry_point is 'f()'"),
    (dict(grader='code', entry_point='if', test='assert 1'), "entry_point is 'if'"),
    (dict(grader='code', entry_point='f'), 'test is None and calls is None'),
    (dict(grader='code', entry_point='f', test=' '), "test is ' '"),
    (dict(grader='code', entry_point='f', calls=[[1, 2]]), 'calls is [[1, 2]]'),
    (dict(grader='code', entry_point='f', calls=[]), 'calls is []'),
    (dict(grader='code', entry_point='f', test='x', calls=[[[1], 2]]), 'calls is [[[1], 2]]'),
    (dict(grader='code', entry_point='f', test='x', prompt=3), 'prompt is 3, expected text'),
    (dict(answer='many'), "grader 'number' cannot use it"),
    (dict(answer=None), "grader 'number' cannot use it"),
    (dict(grader='exact', answer=None), "grader 'exact' cannot use it"),
    (dict(grader='contains', answer=3), "grader 'contains' cannot use it"),
    (dict(grader='spelled', answer=['c']), "grader 'spelled' cannot use it"),
    (dict(grader='letter', answer='A'), "grader 'letter' cannot use it"),
    (
        dict(grader='letter', answer='C', choices=['x', 'y']),
        "answer is 'C', expected a letter from A to B",
    ),
    (dict(grader='letter', answer='', choices=['x', 'y']), "answer is ''"),
    (dict(grader='letter', answer='AB', choices=['x', 'y']), "answer is 'AB'"),
    (dict(grader='letter', answer='A', choices=['x']), 'choices'),
    (dict(grader='letter', answer='A', choices='xy'), 'choices'),
    (
        dict(grader='letter', answer='A', choices=['x', 'y'], spoken=['x=A']),
        'expected an answer for each of 2',
    ),
    (dict(grader='letter', answer='A', choices=['x', 'y'], spoken=['x=A', '']), 'spoken is'),
    (dict(answer='A', spoken=['x=A']), 'each of 0 choices'),
    (dict(grader='exact', answer=''), 'an empty text right'),
    (dict(answer=float('nan')), 'NaN'), (dict(answer='NaN'), 'would call no text right'),
    (dict(answer='-Infinity'), 'would call no text right'),
    (dict(answer=[]), "grader 'number' cannot use it"),
    (dict(grader='contains', answer=[]), 'would call no text right'),
    (dict(grader='contains', answer={'a': 1}), 'would call no text right'),
    (
        dict(grader='contains', answer=['not a', 'no'], absent=['no', 'not']),
        'would call no text right',
    ),
    (dict(grader='contains', answer='a', all=['b c'], absent=['c']), 'would call no text right'),
    (dict(grader='contains', answer='a', absent='no'), "absent is 'no', expected a list"),
    (dict(grader='contains', answer='a', all=['']), 'all is'),
    (dict(baseline=1), 'baseline is 1, expected'), (dict(baseline=-0.1), 'baseline is -0.1'),
    (dict(baseline='0.5'), "baseline is '0.5'"), (dict(baseline=True), 'baseline is True'),
    (dict(STORY, people=['Tom[']), "no story can name 'Tom['"),
    (dict(STORY, people=['Tom', 'Ann(']), "no story can name 'Ann('"),
    (dict(STORY, names=['*']), "name '*'"),
    (dict(STORY, names='Tom'), "names is 'Tom'"), (dict(STORY, people=[3]), 'people is [3]'),
    (dict(STORY, thing='ball)'), "name 'ball)'"), (dict(STORY, thing=3), 'no story can name 3'),
    (dict(messages=[{**QUESTION[0], 'tool_calls': [1]}]), '"tool_calls"'),
    (dict(grader='spelled', answer='12'), 'an empty text right'),
], ids=lambda value: str(value)[:40])  # fmt: skip
def test_a_bad_line_is_named(tmp_path, bad, said):
    path = write(tmp_path, [problem(), '', problem(skill='other')])
    if isinstance(bad, dict):
        bad = json.dumps(problem(**bad))
    if isinstance(bad, str):
        bad = bad.encode()
    path.write_bytes(path.read_bytes() + bad + b'\n' + json.dumps(problem()).encode())
    with pytest.raises(SystemExit) as error:
        tasks.load(path, 'train', ['unknown'])  # the bad line is reported, not the skill
    assert str(error.value).startswith(f'{path}:4: ') and said in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('missing', ['split', 'skill', 'messages', 'grader', 'answer'])
def test_a_missing_key_is_named(tmp_path, missing):
    row = problem()
    del row[missing]
    path = write(tmp_path, [row])
    with pytest.raises(SystemExit, match=f'problems.jsonl:1: .*{missing}'):
        tasks.load(path)


def test_a_prompt_has_no_grader(tmp_path):
    """A reward judges its answers; everything but --stage=rl with --reward refuses it."""
    prompt = {'split': 'train', 'skill': 'chat', 'messages': QUESTION, 'mine': [1]}
    path = write(tmp_path, [problem(), prompt])
    assert tasks.load(path, 'train', graded=False) == [prompt]
    assert tasks.load(path, 'val', graded=False) == [problem()]
    with pytest.raises(SystemExit) as stop:
        tasks.load(path, 'val')
    one_line(stop, f'{path}:2: grader is missing', '--stage=rl with --reward=FILE.py:function')
    for bad, said in (
        (dict(skill=1), 'skill is 1, expected text'),
        (dict(messages=[]), 'messages'),
        (dict(baseline='x'), "baseline is 'x'"),
        (dict(choices='ab'), "choices is 'ab'"),
        (dict(grader='numbr'), "grader is 'numbr'"),
    ):
        with pytest.raises(SystemExit) as stop:
            tasks.load(write(tmp_path, [{**prompt, **bad}]), graded=False)
        one_line(stop, 'problems.jsonl:1: ', said)


def test_the_script_that_makes_a_missing_file_is_named(tmp_path):
    script = tmp_path / 'prepare.py'
    for said in ('data/tinyworld/prepare.py', str(script)):
        with pytest.raises(SystemExit, match='no such file') as stop:
            tasks.load(tmp_path / 'problems.jsonl')
        assert stop.value.code.endswith(f'run: python {said}')
        script.write_text('', encoding='utf-8')


def test_missing_skills_splits_and_files_are_named(tmp_path):
    path = write(tmp_path, [problem(), problem(skill='facts')])
    with pytest.raises(SystemExit, match="no skill 'fact' in its split 'val', only sums, facts"):
        tasks.load(path, 'val', ['facts', 'fact'])
    with pytest.raises(SystemExit, match="no problems in its split 'train'"):
        tasks.load(path, 'train')
    with pytest.raises(SystemExit, match='no such file.*run: python data/tinyworld/prepare.py'):
        tasks.load(tmp_path / 'none.jsonl')


def test_the_example_of_the_docstring():
    messages = [{'role': 'user', 'content': '2 + 3?'}]
    example = {
        'split': 'val',
        'skill': 'sums',
        'messages': messages,
        'grader': 'number',
        'answer': 5,
    }
    assert tasks.grade(example, 'That makes 5.') == 1.0
