"""
The stages of train.py, each against the same laws: it goes on to the bit, no split of a step
changes it, and it learns what it is there for.

The world is of single letters and bytes: `b?` is answered by a letter, `1+2?` by a call of the
calculator. A run that several tests look at takes place once.
"""

import ast
import json
import math
import os
import random
import shutil
import sys
import threading
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, is_mapped
from test_train import (
    Died,
    assert_close,
    assert_one_line,
    assert_same_bits,
    at_step,
    bare_folder,
    die,
    learned,
    log_of,
    prepare,
    running,
    trained,
)  # fmt: skip

import batches
import checkpoint
import plan
import runtime
import sandbox
import shards
import tokenizer as tokenizers
import validation
from conversation import SPECIAL, Chat
from model import GPT, GPTConfig
from optim import Optimizer
from tokenizer import BPETokenizer

SHAPE = ('--n_layer=2', '--n_head=2', '--n_embd=32', '--block_size=64', '--device=cpu')
SMALL = (
    *SHAPE, '--batch_size=8', '--gradient_accumulation_steps=1', '--log_interval=1',
    '--eval_interval=10',
    '--max_iters=20', '--warmup_iters=0', '--min_lr=0', '--schedule=warmdown',
    '--learning_rate=3e-3',
    '--eval_iters=-1', '--eval_problems=3', '--max_new_tokens=12', '--rl_tokens=12',
    '--rl_samples=4',
    '--sample_prompts=b?|1+2?', '--isolate=True',
)  # fmt: skip
STAGES = ('pretrain', 'mid', 'sft', 'dpo', 'rl')
LATER = STAGES[1:]
FOLDERS = {'pretrain': 'chats', 'mid': 'chats', 'sft': 'chats', 'dpo': 'pairs', 'rl': 'chats'}

# -----------------------------------------------------------------------------
# the world, a model that has seen a little of it, and runs of each stage from there on


def asks(text, *answer):
    """A conversation of one question; an answer of three is text, call and result."""
    content = answer[0]
    if len(answer) > 1:
        kinds = ('python', 'output', 'text')
        content = [{'type': kind, 'text': part} for kind, part in zip(kinds, answer)]
    return [{'role': 'user', 'content': text}, {'role': 'assistant', 'content': content}]


def some_chats(rng):
    """Questions that are answered by any letter: what is right only a reward can tell. And sums."""
    while True:
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        sums = asks(f'{a}+{b}?', f'{a}+{b}', str(a + b), str(a + b))
        letter = asks(f'{rng.choice("abcd")}?', rng.choice('abcdefgh'))
        yield rng.choice((sums, letter, letter, letter + sums))


def write(folder, chat, conversations):
    """train and val of some conversations, one in four in val."""
    with shards.Writer(folder, chat.tokenizer) as out:
        for i, messages in enumerate(conversations):
            out.write('val' if i // 2 % 4 == 0 else 'train', chat.render(messages), 8)
    return folder


def problem(split, letter):
    messages = [{'role': 'user', 'content': f'{letter}?'}]
    return dict(split=split, skill='letters', messages=messages, grader='exact', answer='d')


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """.folder holds the data folders chats, pairs, long and choice, and problems.jsonl."""
    folder, rng = tmp_path_factory.mktemp('world'), random.Random(0)
    chat = Chat(BPETokenizer(r'.|\n', [], {name: 256 + i for i, name in enumerate(SPECIAL)}))
    many = some_chats(rng)
    write(folder / 'chats', chat, [next(many) for _ in range(160)])
    pairs = [
        asks(f'{rng.choice("abcd")}{i % 10}?', words)
        for i in range(60)
        for words in ('yes, gladly', 'no. go')
    ]
    write(folder / 'pairs', chat, pairs)
    long = [sum((next(many) for _ in range(9)), []) for _ in range(40)]
    write(folder / 'long', chat, long)
    problems = [problem(split, letter) for split in ('train', 'val') for letter in 'abcd']
    lines = ''.join(json.dumps(row) + '\n' for row in problems)
    (folder / 'problems.jsonl').write_text(lines, encoding='utf-8')
    return SimpleNamespace(folder=folder, chat=chat)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """{name: out_dir} of the runs that several tests look at."""
    return dict(folder=tmp_path_factory.mktemp('runs'))


@pytest.fixture
def train(world, runs, capsys):
    """train('sft', '--a=b', out=FOLDER): the stage as a user runs it, from the grown model unless
    init_from is given; stage None says nothing but the arguments."""
    with running(capsys) as run:

        def start(stage, *args, out, data=None, **more):
            begin = [f'--out_dir={out}']
            if stage:
                begin += [
                    f'--stage={stage}',
                    f'--dataset={data or world.folder / FOLDERS.get(stage, "chats")}',
                    *SMALL,
                ]
            if stage != 'pretrain' and not any(
                str(argument).startswith('--init_from') for argument in args
            ):
                begin.append(f'--init_from={runs["grown"]}')
            return run(*begin, *args, **more)

        if 'grown' not in runs:
            out = runs['grown'] = runs['folder'] / 'grown'
            rates = (
                '--learning_rate=1e-2',
                '--embedding_rate=1',
                '--head_rate=1',
                '--weight_decay=0.1',
            )
            more = (
                '--optimizer=muon',
                '--beta1=0.9',
                '--beta2=0.95',
                '--adam_eps=1e-6',
                '--grad_clip=1',
                '--preset=plus',
            )
            done = start('pretrain', '--max_iters=60', '--eval_interval=60', *rates, *more, out=out)
            assert done.returncode == 0, done.stderr
        yield start


BIT_EXACT = (
    '--dtype=float32',
    '--save_interval=10',
    '--eval_interval=5',
    '--dropout=0.1',
    '--rl_samples=4',
)


@pytest.fixture
def straight(train, runs):
    """straight('sft') -> the folder of 20 undisturbed steps."""

    def run(stage):
        if stage not in runs:
            runs[stage] = runs['folder'] / stage
            done = train(stage, *BIT_EXACT, out=runs[stage])
            assert done.returncode == 0, done.stderr
        return runs[stage]

    return run


def steps_of(out, name='loss'):
    """Column `name` of the training lines."""
    return [row[name] for row in learned(out) if 'loss' in row]


def measured(out, name='val'):
    """Column `name` of the evaluation lines."""
    return [row[name] for row in learned(out) if 'val' in row]


# -----------------------------------------------------------------------------
# going on


@pytest.mark.parametrize('stage', STAGES)
def test_going_on_is_exact_to_the_bit(train, straight, monkeypatch, tmp_path, stage):
    """20 steps at once, and 20 with a crash in step 13 after the checkpoint of step 10."""
    expected, out = straight(stage), tmp_path / 'resumed'
    with monkeypatch.context() as patch, pytest.raises(Died):
        at_step(patch, 13, die)
        train(stage, *BIT_EXACT, out=out)
    assert checkpoint.load(out / 'ckpt.pt')['step'] == 10
    assert log_of(out)[-1]['step'] == 12  # lines that will come again
    # DPO's reference is the model that the run began with; its checkpoint has what that said
    monkeypatch.setattr(
        validation, 'log_probabilities', lambda *_: pytest.fail('the reference was computed again')
    )
    original, maps, still = torch.load, [], []
    with monkeypatch.context() as patch:
        note = lambda *args, **more: maps.append(more['mmap']) or original(*args, **more)
        patch.setattr(torch, 'load', note)
        at_step(patch, 15, lambda: still.append(is_mapped(out / 'ckpt.pt')))
        done = train(None, '--init_from=resume', out=out)
    assert done.returncode == 0, done.stderr
    assert maps and all(maps)  # a rank of many reads its share of the moments
    assert still == [False]  # Windows cannot replace a mapped file
    assert_same_bits(trained(out), trained(expected))
    assert learned(out) == learned(expected)
    assert len(steps_of(out)) == 20 and len(measured(out)) == 5
    if stage == 'rl':  # else nothing but the order of the questions would have been tried
        assert (
            len(set(steps_of(out, 'reward'))) > 3
            and sum(x < 1 for x in steps_of(out, 'no_signal')) > 10
        )


# -----------------------------------------------------------------------------
# the same step, however it is split

FLOAT64 = ('--dtype=float64', '--max_iters=6', '--eval_interval=3')


def split_step(batch_size, times):
    return f'--batch_size={batch_size}', f'--gradient_accumulation_steps={times}'


@pytest.fixture
def listen(monkeypatch):
    """The list that the ids of every answer go to that Rollouts learns from."""
    heard, original = [], batches.Rollouts.lay_out

    def lay_out(self, prompt, answer):
        heard.append([*prompt, *answer.ids])
        return original(self, prompt, answer)

    monkeypatch.setattr(batches.Rollouts, 'lay_out', lay_out)
    return heard


@pytest.fixture
def whole(train, runs, listen):
    """whole('sft') -> (folder, rollouts) of steps of 8 rows, each a single micro-batch."""

    def run(stage):
        name = f'{stage} whole'
        if name not in runs:
            runs[name] = runs['folder'] / name
            done = train(stage, *FLOAT64, *split_step(8, 1), out=runs[name])
            assert done.returncode == 0, done.stderr
            runs[f'{name} heard'] = sorted(listen)
        return runs[name], runs[f'{name} heard']

    return run


@pytest.mark.parametrize('stage', STAGES)
def test_micro_batches_do_not_change_a_step(train, whole, listen, tmp_path, stage):
    reference, heard = whole(stage)
    out = tmp_path / 'split'
    listen.clear()
    done = train(stage, *FLOAT64, *split_step(2, 4), out=out)
    assert done.returncode == 0, done.stderr
    assert_close(out, reference)
    assert sorted(listen) == heard  # token by token
    assert len(heard) == 8 * 6 * (stage == 'rl')


RANKS = """
import json, os, runpy, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import torch.distributed as dist
import batches, runtime
here, leave, heard, original = runtime.join(), runtime.leave, [], batches.Rollouts.lay_out
runtime.join, runtime.machine_facts = lambda: here, lambda device: {{}}
runtime.leave = lambda: (runtime.undo_changes(), dist.barrier())
def lay_out(self, prompt, answer):
    heard.append([*prompt, *answer.ids])
    return original(self, prompt, answer)
batches.Rollouts.lay_out = lay_out
for argv in json.loads(Path(sys.argv[1]).read_text(encoding='utf-8')):
    sys.argv = ['train.py', *argv]
    runpy.run_path({program!r}, run_name='__main__')
Path({heard!r} + str(here.rank)).write_text(json.dumps(heard), encoding='utf-8')
leave()
"""


@pytest.mark.slow
def test_ranks_do_not_change_a_step(train, whole, world, runs, run_program, tmp_path):
    """Every stage on two processes, which stay for all of them, for a start of torch takes
    seconds."""
    commands = []
    for stage in STAGES:
        start = () if stage == 'pretrain' else (f'--init_from={runs["grown"]}',)
        where = (
            f'--out_dir={tmp_path / stage}',
            f'--stage={stage}',
            f'--dataset={world.folder / FOLDERS[stage]}',
        )
        commands.append([*where, *SMALL, *FLOAT64, *split_step(4, 2), *start])
    (tmp_path / 'commands.json').write_text(json.dumps(commands), encoding='utf-8')
    text = RANKS.format(
        root=str(ROOT), program=str(ROOT / 'train.py'), heard=str(tmp_path / 'heard')
    )
    (tmp_path / 'ranks.py').write_text(text, encoding='utf-8')
    run_program(tmp_path / 'ranks.py', tmp_path / 'commands.json', ranks=2)
    heard = [
        json.loads((tmp_path / f'heard{rank}').read_text(encoding='utf-8')) for rank in range(2)
    ]
    assert len(heard[0]) == len(heard[1]) == 4 * 6  # a question each
    for stage in STAGES:
        reference, alone = whole(stage)
        assert_close(tmp_path / stage, reference)
    assert sorted(heard[0] + heard[1]) == alone  # token by token


# -----------------------------------------------------------------------------
# what each stage is there for

TRAINING = {'loss', 'lr', 'norm', 'skipped', 'tokens_per_step'}
OF_STAGE = {
    'mid': {'supervised'},
    'sft': {'supervised'},
    'dpo': {'accuracy', 'margin', 'logp_chosen', 'logp_rejected'},
    'rl': {'reward', 'no_signal', 'truncated', 'length'},
}


@pytest.mark.parametrize('stage', STAGES)
def test_the_log_says_what_is_needed_to_understand_a_stage(straight, stage):
    rows = learned(straight(stage))
    of_stage = OF_STAGE.get(stage, set())
    assert {frozenset(row) - {'step'} for row in rows if 'loss' in row} == {
        frozenset(TRAINING | of_stage)
    }
    assert all(
        math.isfinite(row[name]) for row in rows if 'loss' in row for name in TRAINING | of_stage
    )
    text, skills = {'perplexity', 'bits_per_byte'}, {'letters', 'mean'}
    expected = (
        {'step', 'val'}
        | (of_stage if stage == 'dpo' else text)
        | (skills if stage != 'pretrain' else set())
    )
    assert {frozenset(row) for row in rows if 'val' in row} == {frozenset(expected)}
    samples = Counter(row['prompt'] for row in rows if 'text' in row and 'reward' not in row)
    assert samples == {'b?': 5, '1+2?': 5}  # at each evaluation
    rollouts = [row for row in rows if 'text' in row and 'reward' in row]
    assert [row['step'] for row in rollouts] == (list(range(20)) if stage == 'rl' else [])
    assert all(
        row['reward'] in (0, 1) and row['prompt'] in ('a?', 'b?', 'c?', 'd?') for row in rollouts
    )


def test_sft_learns_from_what_the_assistant_says_alone(straight, world):
    """Trap 3 where the log shows it; that no other target counts is test_batches.py's."""
    supervised, chat = steps_of(straight('sft'), 'supervised'), world.chat
    text = shards.Data(world.folder / 'chats').split('train')
    ids = text.read(0, len(text))
    steps = batches.Packed(text, chat, batches.Shape(8, 8, 64))
    assert (
        sum(supervised[: len(steps)]) >= chat.is_spoken(ids).sum() > 0
    )  # an epoch, and the rest of its last step
    assert 0 < min(supervised) <= max(supervised) < 8 * 64 / 2


def test_conversations_longer_than_a_row_are_learned_from(train, world, tmp_path):
    """Trap 2: every one of them is; none clogs the rows, and no step is 0/0."""
    bos, ids = world.chat.bos, np.fromfile(world.folder / 'long/train.bin', '<u2')
    assert np.diff(np.flatnonzero(ids == bos)).min() > 65
    done = train('sft', out=tmp_path / 'out', data=world.folder / 'long')
    assert done.returncode == 0, done.stderr
    assert (
        np.isfinite(steps_of(tmp_path / 'out')).all()
        and np.isfinite(measured(tmp_path / 'out')).all()
    )
    assert min(steps_of(tmp_path / 'out', 'supervised')) > 0


def test_dpo_begins_at_ln_2_and_learns_which_is_better(train, tmp_path):
    """Trap 26. The chosen answers are polite and the rejected are not: a sign that any model can
    see."""
    done = train('dpo', '--learning_rate=1e-2', '--dtype=float32', out=tmp_path / 'out')
    assert done.returncode == 0, done.stderr
    loss, val = steps_of(tmp_path / 'out'), measured(tmp_path / 'out')
    assert abs(loss[0] - math.log(2)) < 1e-6 and abs(val[0] - math.log(2)) < 1e-6
    assert steps_of(tmp_path / 'out', 'margin')[0] == pytest.approx(0, abs=1e-6)
    assert val[-1] < 0.3 and measured(tmp_path / 'out', 'accuracy')[-1] > 0.9
    chosen, rejected = (
        steps_of(tmp_path / 'out', f'logp_{name}') for name in ('chosen', 'rejected')
    )
    assert chosen[-1] - rejected[-1] > chosen[0] - rejected[0] + 1


def test_dpo_goes_on_with_another_split_and_evaluation(train, straight, tmp_path):
    """Both are free; the reference must fit all the same."""
    shutil.copytree(straight('dpo'), tmp_path / 'out')
    args = ('--init_from=resume', '--max_iters=22', '--eval_iters=1', *split_step(4, 2))
    done = train(None, *args, out=tmp_path / 'out')
    assert done.returncode == 0, done.stderr
    assert checkpoint.load(tmp_path / 'out/ckpt.pt')['step'] == 22


def test_micro_batches_are_small_on_a_cpu_but_for_rl(train, monkeypatch, tmp_path):
    monkeypatch.setattr(plan, 'cpu_rows', lambda config: 2)
    for stage, rows in (('sft', 2), ('dpo', 2), ('rl', 8)):
        done = train(
            stage, '--max_iters=1', '--eval_interval=0', '--eval_problems=0', out=tmp_path / stage
        )
        assert done.returncode == 0, done.stderr
        steps = done.values['run'].steps
        assert getattr(steps, 'reader', steps).micro_batch_rows == rows
    assert done.values['run'].writer.max_rows == 8
    args = ('--max_iters=1', '--eval_interval=0', '--eval_problems=0', '--rl_rows=3')
    done = train('rl', *args, '--activation_memory_budget=0.5', out=tmp_path / 'three')
    assert done.values['run'].writer.max_rows == 3
    assert 'activation_memory_budget has no effect' in done.stdout


def test_rl_learns_what_is_rewarded(train, tmp_path):
    """Trap 27. To the model that RL begins with any of eight letters is an answer; one of them
    is rewarded."""
    args = (
        '--learning_rate=1e-2',
        '--max_iters=30',
        '--eval_interval=30',
        '--rl_samples=16',
        '--rl_tokens=2',
    )
    args += ('--max_new_tokens=2',)
    done = train('rl', *args, *split_step(64, 1), '--dtype=float32', out=tmp_path / 'out')
    assert done.returncode == 0, done.stderr
    reward, no_signal = (steps_of(tmp_path / 'out', name) for name in ('reward', 'no_signal'))
    assert reward[0] <= 0.3 and np.mean(reward[-5:]) >= 0.9
    assert (
        np.mean(no_signal[:10]) < 0.5 < np.mean(no_signal[-10:])
    )  # what is always right teaches nothing more
    assert measured(tmp_path / 'out', 'letters')[-1] == 1.0


@pytest.mark.slow
def test_rl_learns_from_programs_that_run(train, world, tmp_path):
    """The answer ends a one-line function, which has to pass its tests. To the model that RL begins
    with any of eight letters is an answer; one of them is the right argument."""
    if sandbox.why_unavailable() and os.environ.get('CI') != 'true':
        pytest.skip(sandbox.why_unavailable())
    prompt = 'def f(a, b, c, d, e, f, g, h):\n    return '
    calls = [[[1, 2, 3, 4, 5, 6, 7, 8], 4], [[0, 0, 0, 9, 0, 0, 0, 0], 9]]
    program = dict(grader='code', prompt=prompt, entry_point='f', calls=calls)
    rows = [problem(split, letter) | program for split in ('train', 'val') for letter in 'ab']
    data = write(tmp_path / 'programs' / 'rl', world.chat, [asks('a?', 'a')] * 40)
    lines = ''.join(json.dumps(row) + '\n' for row in rows)
    (tmp_path / 'programs' / 'problems.jsonl').write_text(lines, encoding='utf-8')

    args = ['--learning_rate=1e-2', '--max_iters=30', '--eval_interval=30', '--rl_samples=16']
    args += ['--rl_tokens=2', '--max_new_tokens=2', '--dtype=float32', *split_step(32, 1)]
    done = train('rl', *args, out=tmp_path / 'out', data=data)
    assert done.returncode == 0, done.stderr
    reward = steps_of(tmp_path / 'out', 'reward')
    assert reward[0] <= 0.3 and np.mean(reward[-5:]) >= 0.8


# -----------------------------------------------------------------------------
# rewards of the user's own

LONGER = 'def longer(problems, answers):\n    return [len(answer) for answer in answers]\n'


@pytest.fixture
def prompts(world, tmp_path):
    """A data folder of questions that have no answers."""
    rows = [problem(split, letter) for split in ('train', 'val') for letter in 'abcd']
    lines = [{name: row[name] for name in ('split', 'skill', 'messages')} for row in rows]
    tokenizer = world.chat.tokenizer
    with shards.Writer(tmp_path / 'prompts', tokenizer, notes={'kind': 'prompts'}) as out:
        for line in lines:
            out.write(line['split'], world.chat.render(line['messages']), 8)
        out.add('problems.jsonl', ''.join(json.dumps(line) + '\n' for line in lines).encode())
    return tmp_path / 'prompts'


@pytest.mark.slow
def test_rl_learns_a_reward_of_ones_own(train, prompts, tmp_path):
    """The longer an answer the better. The model that RL begins with answers with one letter."""
    (tmp_path / 'my.py').write_text(LONGER, encoding='utf-8')
    args = ('--learning_rate=1e-2', '--max_iters=20', '--eval_interval=20', '--rl_samples=8')
    given = f'--reward={tmp_path / "my.py"}:longer'
    out = tmp_path / 'out'
    done = train('rl', *args, *split_step(32, 1), given, '--dtype=float32', out=out, data=prompts)
    assert done.returncode == 0, done.stderr
    assert f'importing {tmp_path / "my.py"}' in done.stdout
    length = steps_of(out, 'length')
    assert length[0] < 4 and np.mean(length[-3:]) > 9
    reward = [row['reward'] for row in log_of(out) if 'evaluation_seconds' in row]
    assert len(reward) == 2 and reward[0] < 3 and reward[1] > 8


def test_a_wrong_reward_ends_before_or_in_the_run(train, prompts, monkeypatch, tmp_path):
    my = tmp_path / 'my.py'
    my.write_text(LONGER + 'def bad(problems, answers):\n    return answers\n', encoding='utf-8')
    out = tmp_path / 'out'
    done = train('rl', f'--reward={my}:bad', '--max_iters=1', out=out, data=prompts)
    assert_one_line(done, f'{my}:3: bad returned', 'expected a list of', 'one per answer')
    shutil.rmtree(out)

    def no_model(*_):
        pytest.fail('the model was built')

    with monkeypatch.context() as patch:
        patch.setattr(plan, 'check_memory', no_model)  # right before it
        for args, words in (
            ([f'--reward={tmp_path / "no.py"}:longer'], ['no file', 'no.py', 'FILE.py:function']),
            ([f'--reward={my}:shorter'], ['has no shorter', 'longer, bad']),
            (['--reward=longer'], ['--reward=longer', 'FILE.py:function']),
            ([f'--reward={my}:longer', '--always_save_checkpoint=False'], ['no validation loss']),
        ):
            assert_one_line(train('rl', *args, out=out, data=prompts), *words)
            assert not out.exists()
    assert_one_line(train('rl', out=out, data=prompts), 'grader is missing', '--reward')
    done = train('sft', f'--reward={my}:longer', out=out)
    assert_one_line(done, 'reward is', 'stage is not rl')


# -----------------------------------------------------------------------------
# from one stage to the next


def test_the_optimizer_goes_on_where_the_stage_before_left_it(train, world, runs, tmp_path):
    args = ('--max_iters=1', '--decay_lr=False', '--dtype=float32')
    for name, more in (('carried', ('--init_optimizer=True',)), ('new', ())):
        assert train('mid', *args, *more, out=tmp_path / name).returncode == 0
    carried, new = (trained(tmp_path / name) for name in ('carried', 'new'))
    assert any(not torch.equal(carried['model'][name], new['model'][name]) for name in new['model'])

    state = checkpoint.load(runs['grown'] / 'ckpt.pt')  # the same by hand
    model, settings = GPT(GPTConfig(**state['model_config'])), SimpleNamespace(**state['config'])
    model.load_state_dict(state['model'])
    rates = settings.embedding_rate, settings.head_rate
    optimizer = Optimizer(
        model, settings.optimizer, (settings.beta1, settings.beta2), settings.weight_decay, *rates,
        eps=settings.adam_eps,
    )  # fmt: skip
    optimizer.load_state_dict(state['optimizer'])
    shape = batches.Shape(8, 8, 64, seed=settings.seed)
    for batch in batches.Packed(
        shards.Data(world.folder / 'chats').split('train'), world.chat, shape
    )[0]:
        (batch.weights * model(batch.inputs, batch.targets)).sum().backward()
    optimizer.reduce()
    optimizer.step(3e-3, optimizer.norm(), settings.grad_clip)
    assert_same_bits(model.state_dict(), carried['model'])
    assert_same_bits(optimizer.state_dict(), carried['optimizer'])


def test_an_optimizer_that_is_not_there_or_of_another_kind_is_named(train, runs, tmp_path):
    state = checkpoint.load(runs['grown'] / 'ckpt.pt')
    (tmp_path / 'bare').mkdir()
    checkpoint.save(tmp_path / 'bare/best.pt', {**state, 'optimizer': None})
    carry, out = '--init_optimizer=True', tmp_path / 'out'
    done = train('sft', f'--init_from={tmp_path / "bare/best.pt"}', carry, out=out)
    assert_one_line(done, 'best.pt', 'no optimizer', 'leave --init_optimizer out')
    assert_one_line(
        train('sft', '--optimizer=adamw', carry, out=out), 'another optimizer', '--init_optimizer'
    )
    done = train(
        'sft', f'--init_from={tmp_path / "bare/best.pt"}', '--max_iters=1', out=out
    )  # the weights are there
    assert done.returncode == 0, done.stderr
    assert checkpoint.load(out / 'ckpt.pt')['parent']['path'] == str(tmp_path / 'bare/best.pt')


@pytest.mark.parametrize('stage', LATER)
def test_a_later_stage_goes_on_from_something(train, tmp_path, stage):
    done = train(stage, '--init_from=scratch', out=tmp_path / 'out')
    assert_one_line(done, f'stage {stage}', '--init_from', 'out_dir')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('stage', LATER)
def test_a_tokenizer_without_conversations_is_named(train, runs, tmp_path, stage):
    data = prepare(runs['folder'] / 'letters') if 'letters' not in runs else runs['letters']
    runs['letters'] = data
    if 'speechless' not in runs:
        runs['speechless'] = runs['folder'] / 'speechless'
        done = train(
            'pretrain', '--isolate=False', '--max_iters=1', out=runs['speechless'], data=data
        )
        assert done.returncode == 0, done.stderr
    done = train(
        stage,
        '--isolate=False',
        f'--init_from={runs["speechless"]}',
        out=tmp_path / 'out',
        data=data,
    )
    assert_one_line(done, 'no format for conversations', '<|user_start|>', '--tokenizer=bpe')


def test_rl_without_problems_is_named(train, world, tmp_path):
    data = write(tmp_path / 'mine' / 'rl', world.chat, [asks('a?', 'a')] * 40)
    done = train('rl', out=tmp_path / 'out', data=data)
    assert_one_line(done, data, 'problems.jsonl', '--dataset')
    done = train('rl', '--rl_skills=poetry', out=tmp_path / 'out')
    assert_one_line(done, 'problems.jsonl', "'poetry'", 'letters')


def test_a_tokenizer_that_cannot_be_had_costs_the_samples_alone(train, monkeypatch, tmp_path):
    """nanoGPT's files come without one, and GPT-2's is a download."""
    ids = np.arange(100, dtype='<u2').tobytes()

    def no_table(*_):
        raise SystemExit('gpt2: tiktoken could not get it')

    monkeypatch.setattr(tokenizers, 'gpt2', no_table)
    data = bare_folder(tmp_path / 'data', train=ids, val=ids)
    done = train('pretrain', '--max_iters=1', out=tmp_path / 'out', data=data)
    assert done.returncode == 0 and "'b?' is left out: gpt2" in done.stdout
    assert checkpoint.load(tmp_path / 'out/ckpt.pt')['step'] == 1


# -----------------------------------------------------------------------------
# one loop for all


def names_in(function):
    """Names that a function of train.py loads."""
    tree = ast.parse((ROOT / 'train.py').read_text(encoding='utf-8'))
    (node,) = [node for node in tree.body if getattr(node, 'name', '') == function]
    names = [node for node in ast.walk(node) if isinstance(node, ast.Name)]
    return {name.id for name in names if isinstance(name.ctx, ast.Load)}


def test_the_loop_does_not_know_its_stage():
    known = {'stage', 'STAGES', *STAGES}
    assert {'stage', 'STAGES'} <= names_in('main')  # the rule sees what it looks for
    for function in ('train', 'between_steps', 'evaluate_model', 'log_samples', 'log_step'):
        assert 'run' in names_in(function)
        assert not names_in(function) & known


SIXTH = '''
def careful(run):
    """Conversations, of which what surprises most counts most."""

    def squared(model, batch):
        return (batch.weights * model(batch.inputs, batch.targets) ** 2).sum(), batch.metrics

    steps, _, measure = sft(run)
    return steps, squared, measure


'''


def test_a_sixth_stage_is_one_function(train, tmp_path):
    source = (ROOT / 'train.py').read_text(encoding='utf-8')
    for old, new in (
        ('STAGES = {', f'{SIXTH.lstrip()}STAGES = {{'),
        ('(pretrain, mid, sft, dpo, rl)}', '(pretrain, mid, sft, dpo, rl, careful)}'),
    ):
        assert source.count(old) == 1
        source = source.replace(old, new)
    (tmp_path / 'train.py').write_text(source, encoding='utf-8')
    done = train('careful', out=tmp_path / 'out', program=tmp_path / 'train.py')
    assert done.returncode == 0, done.stderr
    assert steps_of(tmp_path / 'out')[-1] < steps_of(tmp_path / 'out')[0]
    assert checkpoint.load(tmp_path / 'out/ckpt.pt')['stage'] == 'careful'


# -----------------------------------------------------------------------------
# what takes minutes

KILLER = f"""
import json, os, random, runpy, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
os.chdir({str(ROOT)!r})
import torch
import batches, checkpoint, conversation, engine, exam, optim, plan, runtime, tasks, tools
import validation
torch.set_num_threads(1)
runtime.machine_facts = lambda device: {{}}
folder, wanted, *args = sys.argv[1:]

def start(out):
    child = os.fork()  # saves a start of torch
    if child == 0:
        sys.argv = ['train.py', f'--out_dir={{out}}', '--auto_resume=True', *args]
        status = 1
        try:
            sys.stdout = open(os.devnull, 'w', encoding='utf-8')
            runpy.run_path('train.py', run_name='__main__')
            status = 0
        except SystemExit as stop:
            status = 1 if stop.code else 0
        finally:
            os._exit(status)
    return child

def lines(out):
    path = out + '/log.jsonl'
    return open(path, 'rb').read().count(b'\\n') if os.path.exists(path) else 0

assert os.waitpid(start(folder + '/undisturbed'), 0)[1] == 0
between = lines(folder + '/undisturbed') // 10  # lines from one kill to the next, at most
rng, kills, run, loaded = random.Random(1), 0, 0, 0
while kills < int(wanted):
    out = f'{{folder}}/killed{{run}}'
    child = start(out)
    target, status = lines(out) + rng.randint(0, between), (0, 0)
    while lines(out) < target and status == (0, 0):  # by progress, since machines differ in speed
        time.sleep(0.001)
        status = os.waitpid(child, os.WNOHANG)
    time.sleep(rng.uniform(0, 0.03))
    if status == (0, 0):
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)
    if status[1] == 0:
        run += 1  # it was through before; the next kill meets a new run
        continue
    kills += 1
    if os.path.exists(out + '/ckpt.pt'):
        checkpoint.load(out + '/ckpt.pt')
        loaded += 1
for i in range(run + 1):
    assert os.waitpid(start(f'{{folder}}/killed{{i}}'), 0)[1] == 0
print(run + 1, loaded)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.parametrize(('stage', 'kills'), [('pretrain', 20), *((stage, 4) for stage in LATER)])
def test_a_run_killed_at_any_moment_loses_nothing(
    train, world, runs, run_program, tmp_path, stage, kills
):
    """kill -9 while every step is saved: each time a whole checkpoint, in the end the
    undisturbed weights."""
    (tmp_path / 'killer.py').write_text(KILLER, encoding='utf-8')
    args = [
        *SMALL,
        f'--stage={stage}',
        f'--dataset={world.folder / FOLDERS[stage]}',
        '--save_interval=1',
    ]
    args += ['--max_iters=60', '--dropout=0.1'] + [f'--init_from={runs["grown"]}'] * (
        stage != 'pretrain'
    )
    done = run_program(tmp_path / 'killer.py', tmp_path, kills, *args)
    count, loaded = map(int, done.stdout.split()[-2:])
    assert loaded >= kills // 4  # most moments are in the middle of a run
    for i in range(count):
        assert_same_bits(trained(tmp_path / f'killed{i}'), trained(tmp_path / 'undisturbed'))
        assert learned(tmp_path / f'killed{i}') == learned(tmp_path / 'undisturbed')


COMPILED = """
import json, runpy, sys
sys.path.insert(0, {root!r})
import torch
import runtime
counted, original = [], runtime.seed_step
def seed_step(seed, step, rank):
    original(seed, step, rank)
    counted.append(torch._dynamo.utils.counters['stats']['unique_graphs'])
runtime.seed_step, runtime.machine_facts = seed_step, lambda device: {{}}
sys.argv = sys.argv[1:]
runpy.run_path({program!r}, run_name='__main__')
print(json.dumps(counted))
"""


@pytest.mark.slow
@pytest.mark.skipif(not runtime.compiler(*runtime.CXX), reason='needs a C++ compiler')
@pytest.mark.parametrize('stage', [stage for stage in STAGES if stage != 'mid'])  # it is sft's code
def test_nothing_is_compiled_again_after_the_first_step(
    train, world, runs, run_program, tmp_path, stage
):
    """Evaluations and rollouts among the steps included."""
    text = COMPILED.format(root=str(ROOT), program=str(ROOT / 'train.py'))
    (tmp_path / 'compiled.py').write_text(text, encoding='utf-8')
    args = [
        *SMALL,
        f'--stage={stage}',
        f'--dataset={world.folder / FOLDERS[stage]}',
        '--compile=True',
    ]
    args += ['--eval_interval=7'] + [f'--init_from={runs["grown"]}'] * (stage != 'pretrain')
    where = tmp_path / 'compiled.py', ROOT / 'train.py', f'--out_dir={tmp_path / "out"}'
    done = run_program(*where, *args, *split_step(8, 2), timeout=3600)
    counted = json.loads(done.stdout.splitlines()[-1])
    assert 'compiled (as asked)' in done.stdout and len(counted) == 20
    assert counted[1] > 0 and set(counted[1:]) == {counted[1]}, counted


# -----------------------------------------------------------------------------
# a step never waits for the device

READS = (
    'item', 'tolist', 'cpu', 'numpy', '__array__', '__bool__', '__float__', '__int__', '__index__'
)  # fmt: skip


@pytest.mark.parametrize('stage', STAGES)
def test_a_step_between_two_lines_of_the_log_reads_no_tensor(train, tmp_path, monkeypatch, stage):
    """On a card each such read waits until all that was launched is computed. RL's rollouts read
    their tokens; the rest of its step does not."""
    reads = []
    watching = [False]

    def watch(name):
        original = getattr(torch.Tensor, name)

        def read(tensor, *args, **kwargs):
            if watching[0] and threading.current_thread() is threading.main_thread():
                caller = sys._getframe(1)
                reads.append(f'{name} in {caller.f_code.co_filename}:{caller.f_lineno}')
            return original(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, read)

    for name in READS:
        watch(name)

    def seed_step(seed, step, rank, original=runtime.seed_step):  # the first line of a step
        original(seed, step, rank)
        watching[0] = 0 < step < 5

    def rollouts(self, step, original=batches.Rollouts.__getitem__):
        was, watching[0] = watching[0], False
        micro_batches = list(original(self, step))
        watching[0] = was
        return micro_batches

    monkeypatch.setattr(runtime, 'seed_step', seed_step)
    monkeypatch.setattr(batches.Rollouts, '__getitem__', rollouts)
    quiet = ('--max_iters=8', '--log_interval=100', '--eval_interval=0', '--eval_problems=0')
    done = train(stage, *quiet, '--rl_samples=4', out=tmp_path / 'out')
    assert done.returncode == 0, done.stderr
    assert reads == []
