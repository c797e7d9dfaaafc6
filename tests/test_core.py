"""
core.py against a literal implementation of the rules: one example and one answer at a time, no
batches, no trees, no cache. docs/core.md has the rules.
"""

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import one_line

import checkpoint
import core
import runlog
import shards
from model import GPT, PRESETS, GPTConfig
from tokenizer import CharTokenizer, train_bpe

ROOT = Path(__file__).resolve().parent.parent
TINYWORLD = ROOT / 'assets' / 'tinyworld.pt'
WORDS = 'the a cat dog ran sat on under red big mat tree and then it was so very not'.split()

# name: type, shots, delimiter (None: the default), baseline in percent
TASKS = {
    'choices': ('multiple_choice', 0, None, 25),
    'solved': ('multiple_choice', 5, '\\nAnswer: ', 25),
    'schemas': ('schema', 0, None, 50),
    'solved_schemas': ('schema', 3, None, 50),
    'texts': ('language_modeling', 0, None, 0),
    'solved_texts': ('language_modeling', 4, '\\nA: ', 9.1),
}


def sentence(rng, low, high):
    return ' '.join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def example(rng, kind):
    """Some answers begin another one or equal it, some contexts have blanks around them."""
    if kind == 'multiple_choice':
        choices = [sentence(rng, 1, 5) for _ in range(rng.randint(2, 5))]
        choices[0] = rng.choice([choices[0], choices[1], f'{choices[1]} {sentence(rng, 1, 2)}'])
        gold = rng.randrange(len(choices))
        return dict(query=sentence(rng, 3, 12), choices=choices, gold=gold, category='none')
    if kind == 'schema':
        begin = sentence(rng, 0, 6)
        options = [f'{begin} {sentence(rng, 1, 3)}' for _ in range(2)]
        gold = rng.randrange(2)
        return dict(context_options=options, continuation=sentence(rng, 1, 6), gold=gold)
    blanks = rng.choice(['', ' ', '\n', '  '])
    context = f'{blanks}{sentence(rng, 3, 12)}{blanks}'
    return dict(context=context, continuation=sentence(rng, 1, 3))


def write_bundle(folder, examples=11):
    rng = random.Random(0)
    settings = ['# a comment', 'seed: 1', 'icl_tasks:']
    rows = [['mmlu', 'a "quoted" text,\nof two lines', '']]
    for number, (name, (kind, shots, delimiter, percent)) in enumerate(TASKS.items()):
        uri = f'{kind}/{name}.jsonl'
        settings += ['-', f'  label: {name}', f'  dataset_uri: {uri}  # a comment']
        settings += [f'  num_fewshot: [{shots}]', f'  icl_task_type: {kind} ', '']
        if delimiter:
            settings.append(f'  continuation_delimiter: "{delimiter}" # a comment')
        rows.append([name, 'text', str(percent)])
        path = folder / 'eval_data' / uri
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(example(rng, kind)) for _ in range(examples + number)]
        path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    (folder / 'core.yaml').write_text('\n'.join(settings), encoding='utf-8')
    with open(folder / 'eval_meta_data.csv', 'w', encoding='utf-8', newline='') as file:
        csv.writer(file).writerows([['Eval Task', 'Description', 'Random baseline'], *rows])
    return folder


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp('bundle'))


@pytest.fixture(scope='module')
def tokenizer():
    return train_bpe([' '.join(WORDS) * 3], 320, ['<|bos|>'])


def random_model(tokenizer, block_size, preset='nano', **more):
    """Small, in float64, with random weights everywhere, the head too."""
    small = dict(n_layer=2, n_head=2, n_embd=16, block_size=block_size)
    fields = {**PRESETS[preset], **small, **more}
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **fields)).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.4, generator=generator)
    return model


# -----------------------------------------------------------------------------
# the rules, word by word


def literal_task(folder, name, limit):
    """(examples, delimiter) of a task."""
    kind, _, delimiter, _ = TASKS[name]
    path = folder / 'eval_data' / kind / f'{name}.jsonl'
    examples = [json.loads(row) for row in path.read_text(encoding='utf-8').splitlines()]
    random.Random(1337).shuffle(examples)
    delimiter = ' ' if delimiter is None else delimiter.replace('\\n', '\n')
    return (examples[:limit] if limit else examples), delimiter


def literal_texts(kind, delimiter, one, answers=None):
    """The text of an example with each answer. answers: False leaves the answer out."""
    if kind == 'multiple_choice':
        return [one['query'] + delimiter + choice for choice in one['choices']]
    if kind == 'schema':
        return [option + delimiter + one['continuation'] for option in one['context_options']]
    answer = '' if answers is False else one['continuation']
    return [one['context'].strip() + delimiter + answer]


@torch.no_grad()
def literal_losses(model, ids, start):
    """(nats of ids[start:], whether each is the likeliest), in one forward pass of one row."""
    logits = model(torch.tensor([ids]))[0]
    losses = []
    likeliest = []
    for place in range(start, len(ids)):
        predicted = logits[place - 1]
        losses.append(float(torch.logsumexp(predicted, -1) - predicted[ids[place]]))
        likeliest.append(int(predicted.argmax()) == ids[place])
    return losses, likeliest


def literal(model, tokenizer, folder, name, limit, index):
    """(is the example answered right?, [(loss per token, exact)] of its answers)."""
    # 1) The texts
    kind, shots, *_ = TASKS[name]
    examples, delimiter = literal_task(folder, name, limit)
    others = [other for i, other in enumerate(examples) if i != index]
    before = ''
    for other in random.Random(1234 + index).sample(others, min(shots, len(others))):
        before += literal_texts(kind, delimiter, other)[other.get('gold', 0)] + '\n\n'
    texts = [before + text for text in literal_texts(kind, delimiter, examples[index])]

    # 2) The tokens, and where the scored ones begin
    rows = [[tokenizer.bos, *tokenizer.encode(text)] for text in texts]
    length = 0
    if kind == 'language_modeling':
        bare = (before + literal_texts(kind, delimiter, examples[index], False)[0]).strip()
        starts = [1 + len(tokenizer.encode(bare))]
    elif kind == 'multiple_choice':
        while length < min(map(len, rows)) - 1 and len({row[length] for row in rows}) == 1:
            length += 1
        starts = [length] * len(rows)
    else:
        while length < min(map(len, rows)) - 1 and len({row[-1 - length] for row in rows}) == 1:
            length += 1
        starts = [len(row) - length for row in rows]

    # 3) The answer
    found = []
    for row, start in zip(rows, starts):
        cut = max(0, len(row) - model.config.block_size)
        losses, likeliest = literal_losses(model, row[cut:], max(1, start - cut))
        found.append((sum(losses) / len(losses), all(likeliest)))
    if kind == 'language_modeling':
        return found[0][1], found
    losses = [loss for loss, _ in found]
    return losses.index(min(losses)) == examples[index]['gold'], found


def compare(model, tokenizer, folder, limit=0, bound=1e-9):
    """Every answer to every example of every task equals the literal one. Returns the grades."""
    grades = {}
    with torch.no_grad():
        model.eval()
    for task in core.load_bundle(folder, limit):
        grades[task.name] = core.Core(model, tokenizer, [task]).grade(task)
        indices = range(len(task.examples))
        rows = core.read_examples(task, indices, tokenizer, model.config.block_size)
        for index, answers in zip(indices, core.score(model, rows)):
            right, expected = literal(model, tokenizer, folder, task.name, limit, index)
            assert len(answers) == len(expected)
            for answer, (loss, exact) in zip(answers, expected):
                assert answer.loss == pytest.approx(loss, abs=bound, rel=0)
                assert answer.exact == exact
            losses = sorted(loss for loss, _ in expected)
            if len(losses) == 1 or losses[1] - losses[0] > bound or losses[1] == losses[0]:
                assert grades[task.name][index] == right
    return grades


@pytest.mark.parametrize('block_size', [256, 40, 4])
def test_every_answer_is_that_of_the_literal_rules(bundle, tokenizer, block_size):
    """Prompts have up to 150 tokens, answers up to 6 or more: no prompt is cut, then those with
    solved examples, then even answers."""
    grades = compare(random_model(tokenizer, block_size), tokenizer, bundle)
    assert all(len(grades[name]) == 11 + i for i, name in enumerate(TASKS))
    assert {0.0, 1.0} == set(grades['choices']) == set(grades['schemas'])


@pytest.mark.parametrize('limit', [1, 2, 4])
def test_fewer_examples_than_shots(bundle, tokenizer, limit):
    grades = compare(random_model(tokenizer, 256), tokenizer, bundle, limit)
    assert {len(of_task) for of_task in grades.values()} == {limit}


@pytest.mark.parametrize('preset', ['gpt2', 'llama', 'qwen3', 'plus'])
def test_other_families_answer_by_the_same_rules(bundle, tokenizer, preset):
    heads = {} if preset == 'gpt2' else dict(n_kv_head=1)
    compare(random_model(tokenizer, 64, preset, **heads), tokenizer, bundle, limit=5)


def test_the_model_in_the_box_answers_by_the_same_rules(bundle):
    model, tokenizer, _ = checkpoint.open_model(TINYWORLD, 'cpu')
    compare(model, tokenizer, bundle, limit=6, bound=1e-4)


def test_prompts_are_these_texts():
    """Of the others, 0, 2 and 3, example 1 gets two by Random(1234 + 1)."""
    assert random.Random(1235).sample([0, 2, 3], 2) == [3, 2]
    choices = [dict(query=f'Q{i}', choices=[f'a{i}', f'b{i}'], gold=i % 2) for i in range(4)]
    task = core.Task('x', 'multiple_choice', 2, ': ', 0.5, choices)
    before = 'Q3: b3\n\nQ2: a2\n\nQ1: '
    assert core.prompts(task, 1) == [before + 'a1', before + 'b1']
    schemas = [
        dict(context_options=[f'a{i}', f'b{i}'], continuation=f'c{i}', gold=i % 2) for i in range(4)
    ]
    task = core.Task('x', 'schema', 2, ' ', 0.5, schemas)
    before = 'b3 c3\n\na2 c2\n\n'
    assert core.prompts(task, 1) == [before + 'a1 c1', before + 'b1 c1']
    texts = [dict(context=f' C{i}\n', continuation=f'd{i}') for i in range(4)]
    task = core.Task('x', 'language_modeling', 2, '\nA: ', 0.0, texts)
    before = 'C3\nA: d3\n\nC2\nA: d2\n\nC1\nA:'
    assert core.prompts(task, 1) == [before, before + ' d1']


def row(ids, start):
    return core.Row(np.array(ids), start)


def test_exact_means_every_token(tokenizer):
    """Greedy tokens are exact. One other token, the first, the last or between, is enough."""
    model = random_model(tokenizer, 32)
    ids = [tokenizer.bos, 5, 6]
    with torch.no_grad():
        for _ in range(3):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    wrong = [
        [*ids[:place], (ids[place] + 1) % 256, *ids[place + 1 :]] for place in range(3, len(ids))
    ]
    answers = core.score(model, [[row(ids, 3)], *([row(other, 3)] for other in wrong)])
    assert [of_one[0].exact for of_one in answers] == [True, False, False, False]


def test_the_lowest_mean_wins_the_first_of_equals():
    choices = dict(query='q', choices=['a', 'b c', 'd'], gold=1)
    task = core.Task('x', 'multiple_choice', 0, ' ', 0.0, [choices])

    def right(*losses):
        return core.is_right(task, 0, [core.Answer(loss, False) for loss in losses])

    assert right(3.0, 1.5, 2.0) and right(2.0, 1.5, 1.5)
    assert not right(1.5, 1.5, 2.0) and not right(1.0, 2.0, 3.0)


# -----------------------------------------------------------------------------
# batches, ranks, memory


def losses_of(model, tokenizer, task, **more):
    indices = range(len(task.examples))
    examples = core.read_examples(task, indices, tokenizer, model.config.block_size)
    return [list(map(tuple, of_one)) for of_one in core.score(model, examples, **more)]


@pytest.mark.parametrize('block_size', [256, 40])
def test_batches_and_pieces_change_nothing_but_rounding(bundle, tokenizer, monkeypatch, block_size):
    model = random_model(tokenizer, block_size)
    for task in core.load_bundle(bundle):
        expected = losses_of(model, tokenizer, task)
        for tokens, logits, rows in ((2**14, 2**25, 1), (2**14, 1, 3), (1, 2**10, 64), (300, 1, 7)):
            monkeypatch.setattr(core, 'CPU_TOKENS', tokens)
            monkeypatch.setattr(core, 'LOGITS', logits)
            found = losses_of(model, tokenizer, task, max_rows=rows)
            for some, others in zip(found, expected, strict=True):
                assert [exact for _, exact in some] == [exact for _, exact in others]
                assert np.allclose([x for x, _ in some], [x for x, _ in others], 0, 1e-10)
        monkeypatch.undo()


def test_ranks_share_the_blocks_and_give_the_same_bits(bundle, tokenizer, monkeypatch):
    model = random_model(tokenizer, 64)
    monkeypatch.setattr(core, 'BLOCK', 4)
    bits = {}  # first index of a block: its answers
    score = core.score

    def spy(model, examples, max_rows):
        answers = score(model, examples, max_rows)
        bits.setdefault(str(examples), answers)
        assert bits[str(examples)] == answers
        return answers

    monkeypatch.setattr(core, 'score', spy)
    for task in core.load_bundle(bundle):
        alone = core.Core(model, tokenizer, [task]).grade(task)
        blocks = len(bits)
        for world_size in (2, 3, 5):
            parts = [
                core.Core(model, tokenizer, [task], 64, rank, world_size).grade(task)
                for rank in range(world_size)
            ]
            assert [sum(grades) for grades in zip(*parts, strict=True)] == alone
        assert len(bits) == blocks  # other ranks, but no other blocks
        bits.clear()


def test_memory_is_bounded_and_shared_tokens_are_computed_once(bundle, tokenizer, monkeypatch):
    model = random_model(tokenizer, 256)
    shapes = []
    positions = []
    hidden, logits = model.hidden, model.logits

    def spy_hidden(ids, cache=None):
        shapes.append(tuple(ids.shape))
        return hidden(ids, cache)

    def spy_logits(x):
        positions.append(len(x))
        return logits(x)

    monkeypatch.setattr(model, 'hidden', spy_hidden)
    monkeypatch.setattr(model, 'logits', spy_logits)
    monkeypatch.setattr(core, 'CPU_TOKENS', 600)
    monkeypatch.setattr(core, 'LOGITS', 10 * tokenizer.vocab_size)
    (task,) = [task for task in core.load_bundle(bundle) if task.name == 'solved']
    indices = range(len(task.examples))
    examples = core.read_examples(task, indices, tokenizer, 256)
    core.score(model, examples)
    assert max(rows * longest for rows, longest in shapes) <= 600 and len(shapes) > 1
    assert max(rows for rows, _ in shapes) > 1  # batched all the same
    assert max(positions) <= 10
    scored = sum(len(r.ids) - r.start for rows in examples for r in rows)
    assert sum(positions) <= scored  # equal answers are scored once
    separately = sum(len(r.ids) for rows in examples for r in rows)
    assert sum(rows * longest for rows, longest in shapes) < separately / 2


def test_a_tree_holds_what_all_rows_begin_with_once():
    tree = core.make_tree([row([9, 1, 2, 3], 2), row([9, 1, 4, 5, 6], 2), row([9, 1], 1)])
    assert tree.ids.tolist() == [9, 1, 2, 1, 4, 5]
    assert tree.positions.tolist() == [0, 1, 2, 1, 2, 3]
    assert tree.branches.tolist() == [0, 1, 1, 2, 2, 2]
    assert [x.tolist() for x in tree.places] == [[1, 2], [3, 4, 5], [0]]
    assert [x.tolist() for x in tree.targets] == [[2, 3], [4, 5, 6], [1]]
    rows = [row([9, 1, 2, 3 + i], 3) for i in range(4)]  # they differ in what is only predicted
    assert core.make_tree(rows).ids.tolist() == [9, 1, 2]
    rows = [row([9, 1, i, i, i], 3) for i in range(5)]
    assert [len(part) for part in core.group(rows, 6)] == [2, 2, 1]


def test_a_tokenizer_without_bos_is_named(bundle, tokenizer):
    with pytest.raises(SystemExit) as stop:
        core.Core(random_model(tokenizer, 8), CharTokenizer('abc'), core.load_bundle(bundle))
    one_line(stop, '<|bos|>')


# -----------------------------------------------------------------------------
# scores


def test_scores_are_centred_and_averaged(capsys):
    task = core.Task('boolq', 'multiple_choice', 10, ' ', 0.62, [])
    result = core.summarise(task, [1.0] * 81 + [0.0] * 19, 1.0)
    assert result.accuracy == 0.81 and result.centred == pytest.approx(0.5)
    assert result.error == pytest.approx(2 * (0.81 * 0.19 / 100) ** 0.5)
    assert result.error_centred == pytest.approx(result.error / 0.38)
    other = core.summarise(task._replace(name='squad', baseline=0.0), [0.0, 1.0, 0.0, 0.0], 1.0)
    assert core.core_numbers([result, other]) == {
        'core': pytest.approx((0.5 + 0.25) / 2), 'core/boolq': 0.81, 'core/squad': 0.25,
    }  # fmt: skip
    errors = (result.error_centred**2 + other.error**2) ** 0.5 / 2
    assert core.mean([result, other])[1] == pytest.approx(errors)
    assert core.core_numbers([]) == {}


def published(**changed):
    tasks = {**core.PUBLISHED, **changed}
    return [
        core.Task(name, 'schema', shots, ' ', 0.01 * percent, [])
        for name, (shots, percent) in tasks.items()
    ]


def test_it_says_whether_scores_compare():
    assert len(core.PUBLISHED) == 22
    assert "22 tasks, baselines of DCLM's version 1" in core.describe(published())
    for tasks in (published(boolq=(10, 50)), published(boolq=(0, 62)), published()[:-2]):
        text = core.describe(tasks)
        assert 'does not compare' in text and 'boolq' in text and 'copa' not in text


# -----------------------------------------------------------------------------
# the bundle


def test_tasks_are_read_as_yaml(tmp_path, oracle):
    yaml = oracle('yaml')
    path = tmp_path / 'core.yaml'
    path.write_text(
        '# a comment\nseed: 1\nmodel:\n  name: none\nicl_tasks:\n-\n  label: a_b  # one\n'
        '  num_fewshot: [0, 10]\n\n  dataset_uri: x/y-z.jsonl\n  delimiter: "\\nA \\"b\\" # c: "\n'
        "- label: 'it''s # x'\n  number: 3\n  url: http://x/#y\n  words: [a, 'b', \"c\"]   \n"
        "-   # third\n  label: two words # x\n  delimiter: ' #### '\nother:\n  - 1\n",
        encoding='utf-8',
    )
    found = core.read_settings(path)
    assert [settings for _, settings in found] == yaml.safe_load(path.read_text())['icl_tasks']
    assert [where for where, _ in found] == [f'{path}:{line}' for line in (6, 12, 16)]


def test_a_task_keeps_its_rules(bundle):
    tasks = {task.name: task for task in core.load_bundle(bundle, limit=3)}
    assert list(tasks) == list(TASKS)
    for name, (kind, shots, _, percent) in TASKS.items():
        task = tasks[name]
        examples, delimiter = literal_task(bundle, name, limit=3)
        assert task[:5] == (name, kind, shots, delimiter, pytest.approx(percent / 100))
        assert task.examples == examples


def change(name, old, new):
    def apply(folder):
        path = folder / name
        text = path.read_text(encoding='utf-8')
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding='utf-8')

    return apply


def add_row(name, **fields):
    def apply(folder):
        path = folder / 'eval_data' / name
        with open(path, 'a', encoding='utf-8') as file:
            file.write((json.dumps(fields) if fields else '{') + '\n')

    return apply


MC, SCHEMA = 'multiple_choice/choices.jsonl', 'schema/schemas.jsonl'
LM = 'language_modeling/texts.jsonl'
BROKEN = {
    'no yaml': (lambda folder: (folder / 'core.yaml').unlink(), ['core.yaml', 'prepare.py']),
    'no csv': (lambda folder: (folder / 'eval_meta_data.csv').unlink(), ['eval_meta_data.csv']),
    'no data': (lambda folder: (folder / 'eval_data' / MC).unlink(), ['core.yaml:4', MC]),
    'empty': (lambda folder: (folder / 'eval_data' / MC).write_bytes(b''), [MC, 'no examples']),
    'bytes': (lambda folder: (folder / 'core.yaml').write_bytes(b'\xff'), ['core.yaml', 'UTF-8']),
    'no tasks': (change('core.yaml', 'icl_tasks', 'tasks'), ['core.yaml', 'icl_tasks']),
    'type': (change('core.yaml', 'type: schema', 'type: essay'), ['core.yaml:17', "'essay'"]),
    'shots': (change('core.yaml', '[5]', '[many]'), ['core.yaml:10', "'many'"]),
    'no label': (change('core.yaml', '  label: choices', ''), ['core.yaml:4', 'label']),
    'line': (change('core.yaml', '  label: choices', '  - one'), ['core.yaml:5', "'- one'"]),
    'escape': (change('core.yaml', r'"\n', r'"\e'), ['core.yaml:16', 'continuation_delimiter']),
    'column': (change('eval_meta_data.csv', 'Random', 'Rand'), ['csv:3', "'Random baseline'"]),
    'percent': (change('eval_meta_data.csv', 'text,25', 'text,100'), ['csv:4', "'100'"]),
    'no row': (change('eval_meta_data.csv', 'choices,', 'chances,'), ['core.yaml:4', 'choices']),
    'not JSON': (add_row(MC), [f'{MC}:12', 'not JSON']),
    'no query': (add_row(MC, choices=['a', 'b'], gold=0), [f'{MC}:12', 'query']),
    'one choice': (add_row(MC, query='q', choices=['a'], gold=0), [f'{MC}:12', 'choices']),
    'numbers': (add_row(MC, query='q', choices=[1, 2], gold=0), [f'{MC}:12', 'choices']),
    'gold': (add_row(MC, query='q', choices=['a', 'b'], gold=2), [f'{MC}:12', 'gold is 2']),
    'letter': (add_row(MC, query='q', choices=['a', 'b'], gold='A'), [f'{MC}:12', "gold is 'A'"]),
    'options': (add_row(SCHEMA, continuation='c', gold=0), [f'{SCHEMA}:14', 'context_options']),
    'blank': (add_row(LM, context='c', continuation=' '), [f'{LM}:16', 'continuation']),
    'no context': (add_row(LM, continuation='c'), [f'{LM}:16', 'context']),
}  # fmt: skip


@pytest.mark.parametrize('fault', BROKEN)
def test_a_broken_bundle_ends_with_one_line(tmp_path, fault):
    apply, words = BROKEN[fault]
    write_bundle(tmp_path)
    apply(tmp_path)
    with pytest.raises(SystemExit) as stop:
        core.load_bundle(tmp_path)
    one_line(stop, *words)


# -----------------------------------------------------------------------------
# evaluate.py and train.py


def test_two_ranks_write_the_numbers_of_one(bundle, run_program, tmp_path):
    path = tmp_path / 'numbers.json'
    arguments = [f'--out_dir={TINYWORLD}', f'--core={bundle}', '--core_limit=5', f'--json={path}']
    done = run_program('evaluate.py', *arguments, ranks=2, cwd=tmp_path)
    numbers = json.loads(path.read_text(encoding='utf-8'))
    model, tokenizer, _ = checkpoint.open_model(TINYWORLD, 'cpu')
    results = core.Core(model, tokenizer, core.load_bundle(bundle, limit=5)).run()
    assert numbers['core_tasks'] == {
        result.name: {**result._asdict(), 'seconds': numbers['core_tasks'][result.name]['seconds']}
        for result in results
    }
    assert core.core_numbers(results).items() <= numbers.items()
    assert numbers['core_bundle'] == str(bundle)
    assert numbers['skills'] == {}  # problems are asked only if they are given
    assert all(done.stdout.count(f'\n{name} ') == 1 for name in TASKS)
    assert f'CORE {numbers["core"]:.4f}' in done.stdout and 'does not compare' in done.stdout


def test_without_the_bundle_the_program_names_the_command(run_program, tmp_path):
    arguments = [f'--out_dir={TINYWORLD}', f'--core={tmp_path}']
    done = run_program('evaluate.py', *arguments, check=False, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert 'python data/core/prepare.py' in done.stderr


TRAIN_TWICE = """
import runpy, sys
from pathlib import Path
import core
core.BUNDLE = Path(sys.argv[1])
data, *runs = sys.argv[2:5]
settings = sys.argv[5:]
for run, more in zip(runs, ([], ['--core_interval=2', '--core_limit=3'])):
    sys.argv[:] = ['train.py', data, run, *settings, *more]
    runpy.run_path(core.__file__.replace('core.py', 'train.py'), run_name='__main__')
"""


def test_training_measures_core_and_learns_the_same(bundle, tokenizer, run_program, tmp_path):
    with shards.Writer(tmp_path / 'data', tokenizer) as out:
        ids = np.random.default_rng(0).integers(0, 300, 2000)
        for split in ('train', 'val'):
            out.write(split, ids, len(ids))
    (tmp_path / 'twice.py').write_text(TRAIN_TWICE, encoding='utf-8')
    runs = [tmp_path / 'off', tmp_path / 'on']
    settings = dict(max_iters=5, eval_interval=3, batch_size=4, block_size=64, n_layer=1, n_embd=16)
    settings |= dict(n_head=2, dropout=0.1, sample_prompts='', log_interval=1)
    done = run_program(
        tmp_path / 'twice.py', bundle, f'--dataset={tmp_path / "data"}',
        *(f'--out_dir={run}' for run in runs), *(f'--{name}={x}' for name, x in settings.items()),
        env={'PYTHONPATH': ROOT},
    )  # fmt: skip

    # 1) CORE at steps 2, 4 and the end, on the line of an evaluation
    log = runlog.read_log(runs[1] / 'log.jsonl')
    keys = {'core', *(f'core/{name}' for name in TASKS)}
    measured = {row['step'] for row in log if keys <= row.keys() and 'val' in row}
    assert measured == {2, 4, 5} and {row['step'] for row in log if 'val' in row} == {0, 2, 3, 4, 5}
    assert done.stdout.count('\nsolved ') == 3
    assert 'core/' not in done.stdout and done.stdout.count(' | core ') == 3

    # 2) The weights are those of a run without it
    off, on = (checkpoint.load(run / 'ckpt.pt')['model'] for run in runs)
    assert all(torch.equal(off[name], on[name]) for name in off)
