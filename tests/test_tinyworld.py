"""The embedded world's conversations and data files: right answers, and held-out questions that
really are."""

import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

import tasks
from conversation import Chat
from data.tinyworld import facts, prepare, problems, text
from data.tinyworld.careless import typed
from data.tinyworld.chats import SKILLS, STAGES, draw
from data.tinyworld.heldout import FEWEST, HeldOut, canonical, is_held_out
from data.tinyworld.letters import SPELLABLE
from data.tinyworld.patterns import vary
from data.tinyworld.textfiles import voices
from shards import Data
from tokenizer import CharTokenizer
from tools import calculate

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ('games', 'pretrain', 'mid', 'sft', 'dpo')
FILES = [
    f'{folder}/{name}'
    for folder in FOLDERS
    for name in ('train.bin', 'val.bin', 'meta.json', 'tok.json')
]
SMALL = {
    'vocab_size': 700, 'tokenizer_bytes': 90_000, 'games_tokens': 20_000, 'pretrain_tokens': 60_000,
    'mid_tokens': 60_000, 'sft_tokens': 60_000,
    'dpo_pairs': 150, 'rl_problems': 40, 'val_tokens': 6000, 'val_pairs': 20, 'val_problems': 30,
}  # fmt: skip
PATTERN_SIGNS = re.compile(r'[\[\]{}|~^]')
each_skill = pytest.mark.parametrize('skill', SKILLS)


@pytest.fixture(scope='module')
def made(tmp_path_factory, run_program):
    """made(seed, hash_seed) -> the folder that a run of prepare.py has left, in a copy of the
    tree of its own."""

    def run(seed=1, hash_seed=0):
        root = tmp_path_factory.mktemp('tree')
        sources = ('*.py', 'data/tinyworld/*.py', 'data/tinyworld/*.txt')
        for path in [path for pattern in sources for path in ROOT.glob(pattern)]:
            copy = root / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        sizes = [f'--{name}={value}' for name, value in SMALL.items()]
        folder = root / 'data' / 'tinyworld'
        done = run_program(
            folder / 'prepare.py', f'--seed={seed}', *sizes,
            env={'PYTHONHASHSEED': hash_seed}, fresh=True,
        )  # fmt: skip
        assert len(done.stdout.splitlines()) == len(FOLDERS) + 1
        return folder

    return run


@pytest.fixture(scope='module')
def world(made):
    return made()


def documents(folder, name, split):
    """The documents of a file as lists of (text, by whom): the role, or 'text' of plain text.
    With their ids."""
    data = Data(folder / name)
    ids = data.split(split).read(0, 10**8).tolist()
    roles = {
        data.tokenizer.special[f'<|{kind}_start|>']: kind
        for kind in ('user', 'assistant', 'python', 'output')
    }
    starts = [i for i, token in enumerate(ids) if token == data.tokenizer.bos]
    for start, end in zip(starts, [*starts[1:], len(ids)]):
        runs = [['text', []]]
        for token in ids[start:end]:
            if token in roles:
                runs.append([roles[token], []])
            elif token not in data.tokenizer.special.values():
                runs[-1][1].append(token)
            else:
                runs.append([runs[-1][0] if runs[-1][0] == 'text' else 'assistant', []])
        yield [(data.tokenizer.decode(said), who) for who, said in runs if said], ids[start:end]


def plainly(said):
    """Words and the signs of sums, found independently of canonical()."""
    return ' '.join(
        re.findall(r'[a-z0-9]+|[-+*/×÷]|[\u3400-\u9fff]', said.lower().replace("'", ''))
    )


def spoken(content):
    return (
        content
        if isinstance(content, str)
        else ''.join(part['text'] for part in content if part['type'] == 'text')
    )


# ---- the examples


@each_skill
def test_every_answer_is_right_by_its_own_grader_and_every_wrong_one_is_not(skill):
    rng = random.Random(1)
    for i in range(40 if skill == 'stories' else 200):
        example = draw(rng, skill, held_out=i % 2 == 0, careless=0.5)
        problem = prepare.problem_of(example, skill, 'val')
        assert tasks.grade(problem, spoken(example.messages[-1]['content'])) == 1.0, example
        assert tasks.grade(problem, spoken(example.wrong)) < 1.0, example


@each_skill
def test_patterns_leave_nothing_behind_and_answers_are_short(skill):
    rng = random.Random(2)
    for _ in range(60 if skill == 'stories' else 400):
        example = SKILLS[skill](rng)
        for message in example.messages:
            assert not PATTERN_SIGNS.search(str(spoken(message['content']))), example
            assert '  ' not in spoken(message['content'])
        assert [message['role'] for message in example.messages[-2:]] == ['user', 'assistant']
        assert skill == 'stories' or len(spoken(example.messages[-1]['content'])) < 130


@pytest.mark.parametrize('skill', ['sums', 'one_step', 'two_step', 'three_step', 'memory'])
def test_the_calculator_is_called_with_what_it_answered(skill):
    rng, calls = random.Random(3), Counter()
    for _ in range(600):
        example = SKILLS[skill](rng)
        for message in example.messages:
            parts = message['content'] if isinstance(message['content'], list) else []
            for call, output in zip(parts[:-1:2], parts[1::2]):
                assert (call['type'], output['type']) == ('python', 'output')
                assert calculate(call['text']) == output['text']
        if isinstance(message['content'], list):
            calls[len(message['content']) // 2] += 1
            assert float(parts[-2]['text']) == example.answer or parts[-2]['text'] == str(
                example.answer
            )
    if skill in ('two_step', 'three_step'):  # seven people in ten do it in their head
        assert set(calls) == {2 if skill == 'two_step' else 3}
        assert 0.24 < calls.total() / 600 < 0.36
    elif skill != 'memory':
        assert calls == {1: 600}


def test_word_problems_of_several_steps_have_answers_too_large_to_guess():
    shapes = problems.TWO_STEP + problems.THREE_STEP
    numbers = [problems.word_problem(random.Random(i), shapes).number for i in range(999)]
    assert sum(20 <= number <= 400 for number in numbers) > 850
    assert max(Counter(numbers).values()) < 40


def test_what_is_said_about_letters_is_counted_anew():
    rng, kinds = random.Random(4), Counter()
    for _ in range(800):
        answer = SKILLS['spelling'](rng).messages[-1]['content']
        letters = re.match(r'[\w-]+', answer)[0].lower().split('-')
        assert ''.join(letters) in {word.lower() for word in SPELLABLE}
        if found := re.search(r'the letter (\w) occurs (\d+) time', answer):
            assert letters.count(found[1]) == int(found[2])
        elif found := re.search(r'(\d+) letters', answer):
            assert len(letters) == int(found[1])
        elif found := re.search(r'the (first|last) letter is (\w)', answer):
            assert letters[0 if found[1] == 'first' else -1] == found[2]
        else:
            assert re.fullmatch(r'(\w-)*\w\.', answer)
        kinds[bool(found)] += 1
    assert min(kinds.values()) > 200


def test_counting_counts():
    rng = random.Random(5)
    for _ in range(400):
        answer = SKILLS['counting'](rng).messages[-1]['content']
        numbers = [int(number) for number in re.findall(r'\d+', answer.split(':')[0])]
        steps = {b - a for a, b in zip(numbers, numbers[1:])}
        assert len(steps) == 1 and (steps <= {1, -1, 2, 3, 5, 10})
        assert f': {len(numbers)} numbers' in answer or ':' not in answer
        assert 2 <= len(numbers) <= 20


def test_every_fact_about_a_person_stands_in_the_plain_text():
    rng, seen = random.Random(6), ''
    for _, document in zip(range(9000), text.documents(rng)):
        seen += document.lower() + '\n'
    lines = re.split(r'(?<=[.!?])\s|\n', seen)
    for person in facts.PEOPLE:
        own = ' '.join(line for line in lines if person.name.lower() in line)
        for value in person[2:]:
            assert value.lower() in own, (person.name, value)


def test_choices_are_asked_about_and_one_is_right():
    rng, letters = random.Random(7), Counter()
    for _ in range(400):
        example = SKILLS['choice'](rng)
        choices = example.more['choices']
        problem = prepare.problem_of(example, 'choice', 'val')
        right = [tasks.grade(problem, text) for text in tasks.answers(problem)]
        assert sorted(right) == [0.0] * (len(choices) - 1) + [1.0]
        assert tasks.answers(problem)[right.index(1.0)] == example.messages[-1]['content']
        assert 2 <= len(choices) == len(set(choices)) <= 4
        assert all(f'- {choice}=' in example.messages[0]['content'] for choice in choices)
        letters[example.answer] += 1
    assert letters['A'] < 200 and letters['D'] > 20  # no letter is the best guess by far


def test_a_chain_can_be_known_from_the_word_before_and_not_from_the_place():
    rng, places = random.Random(8), Counter()
    for _ in range(300):
        first, *parts = [part.split() for part in re.findall(r'said: (.*?)\.', text.chain(rng))]
        follows = dict(zip(first, first[1:]))
        assert len(set(first)) == len(first) >= 3 and len(parts) >= 2
        for part in parts:
            assert len(part) >= 2 and all(
                follows[word] == after for word, after in zip(part, part[1:])
            )
            places[first.index(part[0])] += 1
    assert places[0] < places.total() / 2


def test_labels_come_again_in_another_order():
    rng, moved = random.Random(9), 0
    for _ in range(300):
        table, again = text.labels(rng).split('It is ')
        pairs = re.findall(r'- (.*)\n', table)
        assert sorted(again.split(', ')) == sorted(pairs) and 2 <= len(pairs) <= 6
        assert [pair[-2:] for pair in pairs] == [f'={letter}' for letter in 'ABCDEF'[: len(pairs)]]
        moved += again.split(', ') != pairs
    assert moved > 150


# ---- wordings


def test_vary_chooses_among_all_alternatives():
    rng = random.Random(1)
    found = {vary(rng, 'a [b|c [d|]|] e|f') for _ in range(200)}
    assert found == {'a b e|f', 'a c d e|f', 'a c e|f', 'a e|f'}
    with pytest.raises(ValueError, match='not closed'):
        vary(rng, 'in which there [is|are')


def test_questions_are_whole():
    """No hole left, no bracket, no two signs where two patterns meet."""
    rng = random.Random(1)
    for skill in SKILLS:
        for _ in range(400):
            for message in draw(rng, skill, held_out=False).messages:
                if message['role'] == 'user':
                    assert not re.search(
                        r',,|[.:],|\{|\[|^\W*$', message['content'].replace('...', '')
                    ), message


def test_voices_are_many_and_speak_of_what_they_are_asked():
    for kind, messages in voices().items():
        keys = [canonical(message) for message in messages]
        assert len(set(keys)) == len(keys) > 10, [
            key for key, count in Counter(keys).items() if count > 1
        ]
        assert len({bool(re.search(r'\{\w+\}', message)) for message in messages}) == 1, kind


def test_the_prompts_that_judge_the_chat_are_no_voices():
    said = {canonical(message) for messages in voices().values() for message in messages}
    for path in ROOT.glob('assets/prompts*.jsonl'):
        prompts = {
            canonical(problem['messages'][-1]['content']) for problem in tasks.load(path, 'val')
        }
        assert len(prompts) > 50
        assert [prompt for prompt in prompts & said if prompt.count(' ') >= FEWEST - 1] == []


@pytest.mark.parametrize('mild', [False, True])
def test_typing_changes_no_digit_and_no_word_that_must_stay(mild):
    rng, changed = random.Random(1), Counter()
    said = (
        "Hello, can you tell me what Anna's 12 + 7 elephants and 305 of Peter's friends are called?"
    )
    for _ in range(3000):
        result = typed(rng, said, keep=('elephants',), mild=mild)
        assert re.findall(r'\d+|\+', result) == ['12', '+', '7', '305']
        assert 'elephants' in result.lower() and 'peter' in result.lower()
        changed['lower'] += result.islower()
        changed['upper'] += result.isupper()
        changed['words'] += plainly(result) != plainly(said)
        assert not mild or len(result) <= len(said) + 1
    assert changed['lower'] > 2000 and changed['upper'] < 100 and changed['words'] > 400


def test_typing_leaves_text_without_letters_alone():
    rng = random.Random(1)
    assert all(
        typed(rng, '你好', mild=True) == '你好' and typed(rng, '7 * 8', mild=True) == '7 * 8'
        for _ in range(50)
    )


@pytest.mark.parametrize(
    'said, key',
    [
        ("What's Anna's job?", 'whats annas job'),
        ('what is 12+7 = ?', 'what is 12 + 7'),
        ('7*8', '7 * 8'),
        ('  HELLO,\n Pip!! ', 'hello pip'),
        ('你好，你是谁？', '你 好 你 是 谁'),
    ],
)
def test_the_canonical_text(said, key):
    assert canonical(said) == key == canonical(key)


def test_a_question_in_eight_is_held_out_and_no_short_one():
    keys = [f'how old is number {i}' for i in range(4000)]
    assert 0.11 < sum(map(is_held_out, keys)) / 4000 < 0.14
    assert not any(is_held_out(f'who is {i}') for i in range(100))


def test_questions_are_found_inside_of_others_as_a_search_for_the_text_finds_them():
    rng, outcomes = random.Random(1), Counter()
    draw_words = lambda number: ' '.join(rng.choice('ab') for _ in range(number))
    for _ in range(300):
        keys, said = (
            [draw_words(rng.randint(4, 6)) for _ in range(3)],
            draw_words(rng.randint(1, 15)),
        )
        expected = any(f' {key} ' in f' {said} ' for key in keys)
        assert HeldOut(keys).inside(said) == expected
        outcomes[expected] += 1
    assert min(outcomes.values()) > 30


# ---- the files


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(made, world):
    again, another = made(hash_seed=1), made(seed=2)
    for name in [*FILES, 'problems.jsonl']:
        assert (world / name).read_bytes() == (again / name).read_bytes()
        assert (world / name).read_bytes() != (another / name).read_bytes()
    made_there = {path.name for path in world.iterdir() if path.suffix not in ('.py', '.txt')}
    assert made_there - {'__pycache__'} == {*FOLDERS, 'problems.jsonl'}


def test_no_held_out_question_stands_in_what_is_trained_on(world):
    held_out = tasks.load(world / 'problems.jsonl', 'val')
    users = lambda problem: [
        message['content'] for message in problem['messages'] if message['role'] == 'user'
    ]
    asked = {' '.join(map(plainly, users(problem))) for problem in held_out}
    assert len(asked) > 30 * len(SKILLS) * 0.95
    lines = []
    for name in FOLDERS:
        for parts, _ in documents(world, name, 'train'):
            lines.append(' '.join(plainly(said) for said, who in parts if who in ('user', 'text')))
    lines += [
        plainly(problem['messages'][-1]['content'])
        for problem in tasks.load(world / 'problems.jsonl', 'train')
    ]
    trained = '\n'.join(f' {line} ' for line in lines)
    assert len(trained) > 250_000
    assert [question for question in asked if f' {question} ' in trained] == []


def test_problems_load_and_hold_no_answer_but_the_graded_one(world):
    problems_ = tasks.load(world / 'problems.jsonl')
    counts = Counter((problem['split'], problem['skill']) for problem in problems_)
    assert counts == {('val', skill): 30 for skill in SKILLS} | {
        ('train', skill): 20 for skill in prepare.PRACTICE
    }
    for problem in problems_:
        assert problem['messages'][-1]['role'] == 'user'
        if problem['split'] == 'train':
            assert type(problem['answer']) is int and len(problem['messages']) == 1
    texts = [
        problem['messages'][-1]['content'] for problem in problems_ if problem['skill'] == 'facts'
    ]
    assert 5 < sum(said.islower() for said in texts) < 25  # half of them are typed carelessly


@pytest.mark.parametrize('name', FOLDERS)
def test_the_folders_are_data_and_say_what_the_model_knows(world, name):
    data = Data(world / name)
    assert data.meta['about'] == facts.ABOUT and data.meta['prompts'] == facts.PROMPTS
    assert data.problems == world / 'problems.jsonl' and data.tokenizer.vocab_size == 700
    assert not any(
        re.search(rb'\d', data.tokenizer.decode_bytes([i])[1:]) for i in range(700)
    )  # a digit is an id
    chat = Chat(data.tokenizer)
    for split in ('train', 'val'):
        num_bytes = 0
        for parts, ids in documents(world, name, split):
            num_bytes += sum(len(said.encode('utf-8')) for said, _ in parts)
            if name in ('sft', 'dpo'):
                assert chat.is_spoken(ids).any() and ids[-1] in chat.stop
        assert num_bytes == data.meta['splits'][split]['bytes']


def test_pairs_are_two_answers_to_one_prompt(world):
    found = [ids for _, ids in documents(world, 'dpo', 'train')]
    chat = Chat(Data(world / 'dpo').tokenizer)
    assert len(found) == 300
    differing = 0
    for chosen, rejected in zip(found[::2], found[1::2]):
        prompts = [
            ids[: len(ids) - ids[::-1].index(chat.opening['assistant'][0])]
            for ids in (chosen, rejected)
        ]
        assert prompts[0] == prompts[1]
        differing += chosen != rejected
    assert differing == 150


@pytest.mark.parametrize('stage', ['mid', 'sft'])
def test_a_stage_is_made_of_the_shares_of_the_table(stage, monkeypatch):
    taken, drawn = Counter(), []

    def record(rng, skill, *args, **options):
        drawn.append(skill)
        return draw(rng, skill, held_out=False)

    monkeypatch.setattr(prepare, 'draw', record)
    source = prepare.mixed(stage, 'train', HeldOut(()))
    for _ in range(1500):
        drawn.clear()
        document = next(source)
        taken[drawn[0] if drawn else 'text'] += prepare.count_bytes(document)
    shares = STAGES[stage]
    assert set(taken) == set(shares)
    for name, share in shares.items():
        assert abs(taken[name] / taken.total() - share / sum(shares.values())) < 0.02, name


def test_every_skill_has_its_share_of_learning():
    assert (
        set(STAGES['sft']) == set(STAGES['dpo']) | {'stories'} == set(SKILLS)
    )  # DPO would make stories worse
    assert not {'two_step', 'three_step'} & set(
        STAGES['mid']
    )  # what reinforcement learning is to find out
    for shares in (STAGES['sft'], STAGES['mid']):
        assert sum(shares.values()) == 100


def test_the_tokenizer_may_be_that_of_a_model(monkeypatch, tmp_path):
    monkeypatch.setattr(prepare, 'tokenizer', str(ROOT / 'assets' / 'tinyworld.pt'))
    assert prepare.read_tokenizer().vocab_size == 1536
    CharTokenizer('abc').save(tmp_path / 'tok.json')
    monkeypatch.setattr(prepare, 'tokenizer', str(tmp_path))
    with pytest.raises(SystemExit, match=r'it lacks <\|bos\|> .*; leave --tokenizer out'):
        prepare.main()


def test_the_examples_print(run_program):
    shown = run_program('data/tinyworld/chats.py').stdout
    assert all(f'\n{skill}\n' in f'\n{shown}' for skill in SKILLS)
    assert facts.NAME in shown
