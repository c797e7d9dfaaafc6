"""
A tiny model that has learned nine conversations by heart, for the tests of exam.py and evaluate.py:
the scores of its answers are known.
"""

import json

import torch

import tasks
from conversation import SPECIAL, Chat
from model import GPT, PRESETS, GPTConfig
from tokenizer import train_bpe


def user(text):
    return [{'role': 'user', 'content': text}]


def part(kind, text):
    return {'type': kind, 'text': text}


def problem(skill, question, grader, answer, **more):
    return dict(
        split='val', skill=skill, messages=user(question), grader=grader, answer=answer, **more
    )


def choice(question, choices, answer):
    return problem(
        'choice', tasks.render_choice(question, choices), 'letter', answer, choices=choices
    )


KNOWN = [
    (problem('facts', 'Who is Anna?', 'contains', ['baker']), 'Anna is the baker.'),
    (problem('facts', 'Who is Ben?', 'contains', 'farmer', absent=['baker']), 'Ben is the farmer.'),
    (problem('facts', 'Who are you?', 'exact', 'I am Pip.'), 'I am Pip.'),
    (problem('spelling', 'Spell cat.', 'spelled', 'cat'), 'c-a-t'),
    (
        problem('sums', 'What is 12*7?', 'number', 84),
        [part('text', 'It is '), part('python', '12*7'), part('output', '84'), part('text', '84.')],
    ),
    (problem('sums', 'What is 1+1?', 'number', 2), 'That is 2.'),
    (choice('Snow?', ['red', 'white'], 'B'), 'B'),
    (choice('Grass?', ['green', 'white', 'red'], 'A'), 'A'),
    (choice('Coal?', ['green', 'white', 'red', 'black'], 'D'), 'D'),
]
TOKENIZER = train_bpe([json.dumps(KNOWN) + tasks.render_choice('', list('abcd'))], 360, SPECIAL)
CHAT = Chat(TOKENIZER)
PROBLEMS = [known for known, _ in KNOWN]


def tiny(block_size=96, seed=0):
    torch.manual_seed(seed)
    small = dict(
        n_layer=2, n_head=2, n_embd=32, block_size=block_size, vocab_size=TOKENIZER.vocab_size
    )
    return GPT(GPTConfig(**{**PRESETS['qwen3'], **small, 'init_std': 0.3}))


def trained_model():
    """A model trained on the nine conversations until its loss on the answers is near 0. In float64
    afterwards, where the rounding that depends on a batch's shape is too small to turn a draw."""
    model, rows = tiny(), []
    for known, said in KNOWN:
        ids = CHAT.render([*known['messages'], {'role': 'assistant', 'content': said}])
        rows.append((ids, CHAT.is_spoken(ids)))
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    weights = torch.tensor(
        [[*spoken, *[False] * (longest - 1 - len(spoken))] for _, spoken in rows]
    ).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(400):
        loss = (weights * model(ids[:, :-1], ids[:, 1:])).sum() / weights.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.01:
            break
    assert loss < 0.01
    return model.double()
