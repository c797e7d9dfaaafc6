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
from conftest import one_line, train_defaults

import checkpoint
import core
import runtime
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


@pytest.mark.parametrize('block_size', [256, 40, 9])
def test_every_answer_is_that_of_the_literal_rules(bundle, tokenizer, block_size):
    """Prompts have up to 150 tokens: none is cut, those with solved examples are, or most are."""
    grades = compare(random_model(tokenizer, block_size), tokenizer, bundle)
    assert all(len(grades[name]) == 11 + i for i, name in enumerate(TASKS))
    assert {0.0, 1.0} == set(grades['choices']) == set(grades['schemas'])


@pytest.mark.parametrize('limit', [1, 2, 4])
def test_fewer_examples_than_shots(bundle, tokenizer, limit):
    grades = compare(random_model(tokenizer, 256), tokenizer, bundle, limit)
    assert {len(of_task) for of_task in grades.values()} == {limit}


@pytest.mark.parametrize('preset', ['gpt2', 'llama', 'qwen3'])
def test_other_families_answer_by_the_same_rules(bundle, tokenizer, preset):
    heads = {} if preset == 'gpt2' else dict(n_kv_head=1)
    compare(random_model(tokenizer, 64, preset, **heads), tokenizer, bundle, limit=5)


def test_the_model_in_the_box_answers_by_the_same_rules(bundle):
    model, tokenizer, _ = checkpoint.open_model(TINYWORLD, 'cpu')
    compare(model, tokenizer, bundle, bound=1e-4)
