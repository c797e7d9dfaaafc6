"""
train.py as a user runs it, on a corpus of a few kilobytes and a model of two small layers.

Most runs take place in this process (a start of torch takes seconds). What has to die or to be one of several ranks
runs `driver.py`, a few lines that start train.py after having put a hook into one of its libraries.
"""

import ast
import hashlib
import io
import json
import math
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import batches
import checkpoint
import evaluate
import model as models
import optim
import runtime
from engine import Engine, Sampling
from model import GPT, GPTConfig
from tokenizer import CharTokenizer, train_bpe

ROOT = Path(__file__).resolve().parent.parent
SYLLABLES = ['ka', 'lo', 'mi', 'te', 'ru', ' ', ' ', 'the ', 'I ', '.\n']
TINY = ('--n_layer=2', '--n_head=2', '--n_embd=16', '--block_size=16', '--batch_size=4', '--device=cpu')
SHORT = (*TINY, '--log_interval=1', '--eval_interval=10', '--warmup_iters=2')
TIMING = {'seconds', 'tokens_per_second'}


class Died(Exception):
    """What stands for a crash in this file."""


# -----------------------------------------------------------------------------
# data, runs, and what they leave


def corpus(count, seed=0):
    """Text with something to learn in it: `count` syllables."""
    return ''.join(np.random.default_rng(seed).choice(SYLLABLES, count))


def prepare(folder, train=corpus(1500), val=corpus(300, seed=1), tokenizer=None):
    tokenizer = tokenizer or CharTokenizer(train + val)
    with batches.Writer(folder, tokenizer) as out:
        for split, text in (('train', train), ('val', val)):
            out.write(split, tokenizer.encode(text), len(text.encode('utf-8')))
    return folder


@pytest.fixture(scope='module')
def corpora(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp('data'))


@pytest.fixture
def train(corpora, tmp_path, monkeypatch, capsys):
    """train('--a=b', out=FOLDER, data=FOLDER) runs the program in this process; .values are the globals it left."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # set by train.py; so it is as before afterwards
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()

    def run(*args, out=tmp_path / 'out', data=corpora):
        data = () if data is None else (f'--dataset={data}',)
        monkeypatch.setattr('sys.argv', ['train.py', f'--out_dir={out}', *data, *map(str, args)])
        capsys.readouterr()
        status, values, last_words = 0, {}, ''
        try:
            values = runpy.run_path(str(ROOT / 'train.py'), run_name='__main__')
        except SystemExit as stop:
            if stop.code not in (None, 0):
                status, last_words = 1, f'{stop.code}\n'
        stdout, stderr = capsys.readouterr()
        return SimpleNamespace(returncode=status, stdout=stdout, stderr=stderr + last_words, values=values)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(False)


def at_step(monkeypatch, number, action):
    """Have `action` called at the beginning of a step."""
    original = runtime.seed_step

    def hook(seed, step, rank):
        original(seed, step, rank)
        if step == number:
            action()

    monkeypatch.setattr(runtime, 'seed_step', hook)


def die():
    raise Died


def log_of(out):
    return checkpoint.read_log(out / 'log.jsonl')


def learned(out):
    """The log without its settings and without what depends on the clock."""
    return [{name: x for name, x in row.items() if name not in TIMING} for row in log_of(out)[1:]]


def trained(out, name='ckpt.pt'):
    """What a run has learned: the parts of its checkpoint that do not depend on the clock or on how it got there."""
    state = checkpoint.load(out / name)
    return {name: state[name] for name in ('model', 'optimizer', 'model_config', 'step', 'best', 'kept', 'tokenizer')}


def assert_same_bits(a, b, where='state'):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape, where
        assert torch.equal(a, b), f'{where} differs by {(a - b).abs().max()}'
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for name in a:
            assert_same_bits(a[name], b[name], f'{where}.{name}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)):
            assert_same_bits(x, y, f'{where}[{i}]')
    else:
        assert a == b, where


def assert_close(out, reference, bound=1e-10):
    """The same weights and logged numbers but for rounding."""
    a, b = trained(out)['model'], trained(reference)['model']
    assert a.keys() == b.keys() and a['lm_head.weight'].dtype == torch.float64
    for name in a:
        assert (a[name] - b[name]).abs().max() <= bound, name
    rows, expected = learned(out), learned(reference)
    assert len(rows) == len(expected) > 0
    for row, other in zip(rows, expected):
        assert row == pytest.approx(other, rel=0, abs=bound)


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def assert_one_line(done, *words):
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert str(word) in done.stderr, done.stderr


DRIVER = f"""
import os, runpy, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
sys.argv = [{str(ROOT / 'train.py')!r}, *sys.argv[2:]]
"""


@pytest.fixture
def drive(tmp_path, run_program, corpora):
    """drive('python lines', '--a=b', out=FOLDER, ranks=2): the lines run in each rank before train.py does."""

    def run(lines, *args, out, ranks=1, data=corpora, **more):
        script = tmp_path / 'driver.py'
        script.write_text(f'{DRIVER}{lines}\nrunpy.run_path(sys.argv[0], run_name="__main__")\n', encoding='utf-8')
        return run_program(script, ROOT, f'--out_dir={out}', f'--dataset={data}', *args, ranks=ranks, **more)

    return run


# -----------------------------------------------------------------------------
# the same step, however it is split

FLOAT64 = (*SHORT, '--dtype=float64', '--max_iters=10', '--eval_interval=5', '--grad_clip=0.2')


def rows_of_a_step(batch_size, times):
    return f'--batch_size={batch_size}', f'--gradient_accumulation_steps={times}'


@pytest.mark.parametrize('optimizer', ['muon', 'adamw'])
def test_micro_batches_do_not_change_the_result(train, tmp_path, optimizer):
    outs = []
    for batch_size, times in ((8, 1), (4, 2), (1, 8)):
        outs.append(tmp_path / f'{batch_size}x{times}')
        done = train(*FLOAT64, *rows_of_a_step(batch_size, times), f'--optimizer={optimizer}', out=outs[-1])
        assert done.returncode == 0, done.stderr
    assert max(row['norm'] for row in learned(outs[0]) if 'norm' in row) > 0.2  # clipping is on
    for out in outs[1:]:
        assert_close(out, outs[0])


# What each rank did, and the checkpoint of step 5 put aside
WATCH = """
import checkpoint, optim
rank, out, original, save = os.environ['RANK'], Path({out!r}), optim.Optimizer.step, checkpoint.save
def step(self, lr, norm, grad_clip):
    original(self, lr, norm, grad_clip)
    total = sum(float(p.double().sum()) for bucket in self.buckets.values() for _, p, _, _ in bucket.pieces)
    with open(out.parent / f'{{out.name}}-{{rank}}.txt', 'a', encoding='utf-8') as file:
        print(repr(lr), repr(float(norm)), repr(total), file=file)
def keep(path, state):
    save(path, state)
    if state['step'] == 5 and path.name == 'ckpt.pt':
        half = out.parent / f'{{out.name}}-half'
        half.mkdir()
        shutil.copy(path, half), shutil.copy(out / 'log.jsonl', half)
optim.Optimizer.step, checkpoint.save = step, keep
"""


def test_ranks_do_not_change_the_result(train, drive, tmp_path):
    """8 rows on 1, 2 and 3 processes; what 2 began, 1 finishes (traps 15 and 16)."""
    reference = tmp_path / 'one'
    assert train(*FLOAT64, *rows_of_a_step(4, 2), out=reference).returncode == 0
    for ranks in (2, 3):
        out = tmp_path / f'ranks{ranks}'
        drive(WATCH.format(out=str(out)), *FLOAT64, *rows_of_a_step(4, 2), out=out, ranks=ranks)
        assert_close(out, reference)
        seen = [(tmp_path / f'{out.name}-{rank}.txt').read_text(encoding='utf-8') for rank in range(ranks)]
        assert len(seen[0].splitlines()) == 10 and seen == seen[:1] * ranks  # same rate, norm and weights on each
    half = tmp_path / 'ranks2-half'
    assert checkpoint.load(half / 'ckpt.pt')['step'] == 5
    assert train('--init_from=resume', out=half, data=None).returncode == 0
    assert_close(half, reference)


# -----------------------------------------------------------------------------
# going on


def straight_and_resumed(train, monkeypatch, tmp_path, *args):
    """Two folders: 20 steps at once, and 20 steps with a crash in step 13 after the checkpoint of step 10."""
    straight, resumed = tmp_path / 'straight', tmp_path / 'resumed'
    args = (*SHORT, '--max_iters=20', '--save_interval=10', '--eval_interval=5', *args)
    assert train(*args, out=straight).returncode == 0
    with monkeypatch.context() as patch, pytest.raises(Died):
        at_step(patch, 13, die)
        train(*args, out=resumed)
    assert checkpoint.load(resumed / 'ckpt.pt')['step'] == 10
    assert log_of(resumed)[-1]['step'] == 12  # lines that will come again
    done = train('--init_from=resume', out=resumed, data=None)  # nothing else needs to be said
    assert done.returncode == 0, done.stderr
    return straight, resumed


def assert_the_same_run(resumed, straight):
    assert_same_bits(trained(resumed), trained(straight))
    assert learned(resumed) == learned(straight)
    assert log_of(resumed)[0] == {'config': checkpoint.load(straight / 'ckpt.pt')['config'] | {'out_dir': str(resumed)}}


@pytest.mark.parametrize(
    'args',
    [
        ('--dropout=0.2',),
        ('--dropout=0.1', '--optimizer=adamw', '--schedule=cosine', '--preset=gpt2', '--always_save_checkpoint=False'),
        ('--dropout=0.1', '--dtype=bfloat16', '--preset=qwen3', '--gradient_accumulation_steps=2'),
        ('--dropout=0.1', '--dtype=float16', '--sample_interval=5', '--preset=llama'),
    ],
    ids=['defaults', 'cosine and best.pt', 'bfloat16', 'float16 and samples'],
)
def test_resuming_is_exact_to_the_bit(train, monkeypatch, tmp_path, args):
    straight, resumed = straight_and_resumed(train, monkeypatch, tmp_path, *args)
    assert_the_same_run(resumed, straight)
    rows = learned(straight)
    assert [row['step'] for row in rows if 'loss' in row] == list(range(20))
    assert [row['step'] for row in rows if 'val' in row] == [0, 5, 10, 15, 20]
    if '--always_save_checkpoint=False' in args:
        assert_same_bits(trained(resumed, 'best.pt'), trained(straight, 'best.pt'))


@pytest.mark.slow
def test_resuming_compiled_is_exact_to_the_bit(train, monkeypatch, tmp_path):
    straight, resumed = straight_and_resumed(train, monkeypatch, tmp_path, '--compile=True', '--dropout=0.1')
    assert_the_same_run(resumed, straight)
