"""
train.py as a user runs it, on a corpus of a few kilobytes and a model of two small layers.

Most runs take place in this process (a start of torch takes seconds). What has to die or to be one
of several ranks runs `driver.py`, a few lines that start train.py after having put a hook into one
of its libraries.
"""

import errno
import hashlib
import io
import json
import math
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import PATIENCE

import batches
import checkpoint
import model as models
import optim
import plan
import runlog
import runtime
import shards
import validation
from engine import Engine, Sampling
from model import GPT, GPTConfig
from tokenizer import CharTokenizer, from_dict

ROOT = Path(__file__).resolve().parent.parent
SYLLABLES = ['ka', 'lo', 'mi', 'te', 'ru', ' ', ' ', 'the ', 'I ', '.\n']
TINY = (
    '--n_layer=2', '--n_head=2', '--n_embd=16', '--block_size=16', '--batch_size=4',
    '--gradient_accumulation_steps=1',
    '--device=cpu', '--schedule=warmdown', '--warmup_iters=0', '--min_lr=0', '--max_new_tokens=8',
    '--sample_prompts=',
)  # fmt: skip
SHORT = (*TINY, '--log_interval=1', '--eval_interval=10', '--warmup_iters=2')


def machine(device):
    """What stands for runtime.machine_facts, which measures for half a second."""
    return {'device': device}


class Died(Exception):
    """What stands for a crash in this file."""


# -----------------------------------------------------------------------------
# data, runs, and what they leave


def corpus(count, seed=0):
    """Text with something to learn in it: `count` syllables."""
    return ''.join(np.random.default_rng(seed).choice(SYLLABLES, count))


def prepare(folder, train=None, val=None):
    train, val = train or corpus(1500), val or corpus(300, seed=1)
    tokenizer = CharTokenizer(train + val)
    with shards.Writer(folder, tokenizer) as out:
        for split, text in (('train', train), ('val', val)):
            out.write(split, tokenizer.encode(text), len(text.encode('utf-8')))
    return folder


@pytest.fixture(scope='module')
def corpora(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp('data'))


STOPS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]


@contextmanager
def running(capture):
    """A run(*arguments of train.py) -> outcome in this process; .values are the globals it left."""
    handlers = {number: signal.getsignal(number) for number in STOPS}
    if hasattr(signal, 'SIGHUP'):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup

    def run(*args, program=ROOT / 'train.py'):
        patch.setattr('sys.argv', [program.name, *map(str, args)])
        capture.readouterr()
        status, values, last_words = 0, {}, ''
        try:
            values = runpy.run_path(str(program), run_name='__main__')
        except SystemExit as stop:
            if stop.code not in (None, 0):
                status, last_words = 1, f'{stop.code}\n'
        finally:
            runtime.undo_changes()  # of a run that broke off
        stdout, stderr = capture.readouterr()
        return SimpleNamespace(
            returncode=status, stdout=stdout, stderr=stderr + last_words, values=values
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv(
            'CUBLAS_WORKSPACE_CONFIG', ':4096:8'
        )  # set by train.py; so it is as before afterwards
        patch.setattr(runtime, 'machine_facts', machine)  # the real one measures for half a second
        yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def train(corpora, tmp_path, capsys):
    """train('--a=b', out=FOLDER, data=FOLDER): see running()."""
    with running(capsys) as run:

        def start(*args, out=tmp_path / 'out', data=corpora):
            return run(f'--out_dir={out}', *(() if data is None else (f'--dataset={data}',)), *args)

        yield start


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
    return runlog.read_log(out / 'log.jsonl')


def learned(out):
    """The log without its settings and without what depends on the clock."""
    return [{name: x for name, x in row.items() if 'second' not in name} for row in log_of(out)[1:]]


def trained(out, name='ckpt.pt'):
    """What a run has learned: the parts of its checkpoint that do not depend on the clock or on
    how it got there."""
    state = checkpoint.load(out / name)
    return {
        name: state[name]
        for name in ('model', 'optimizer', 'model_config', 'step', 'best', 'kept', 'tokenizer')
    }


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
    for row in (*rows, *expected):
        for name in ('tokens_per_step', 'load'):  # count the rows that a rank lacks as well
            row.pop(name, None)
    for row, other in zip(rows, expected):
        assert row.keys() == other.keys()
        for name, x in row.items():
            assert x == (
                other[name] if isinstance(x, str) else pytest.approx(other[name], rel=0, abs=bound)
            ), name


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file()
    }


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
import runtime
runtime.machine_facts = lambda device: {{}}
"""


@pytest.fixture
def drive(tmp_path, run_program, corpora):
    """drive('python lines', '--a=b', out=FOLDER, ranks=2): the lines run in each rank before
    train.py does."""

    def run(lines, *args, out, ranks=1, data=corpora, **more):
        script = tmp_path / 'driver.py'
        script.write_text(
            f'{DRIVER}{lines}\nrunpy.run_path(sys.argv[0], run_name="__main__")\n', encoding='utf-8'
        )
        return run_program(
            script, ROOT, f'--out_dir={out}', f'--dataset={data}', *args, ranks=ranks, **more
        )

    return run


# -----------------------------------------------------------------------------
# the same step, however it is split

EXPERTS = ('--n_expert=4', '--n_hidden=8', '--n_expert_shared=1')
FLOAT64 = (*SHORT, '--dtype=float64', '--max_iters=10', '--eval_interval=5', '--grad_clip=0.2')


def rows_of_a_step(batch_size, times):
    return f'--batch_size={batch_size}', f'--gradient_accumulation_steps={times}'


@pytest.mark.parametrize('optimizer', ['muon', 'adamw'])
def test_micro_batches_do_not_change_the_result(train, tmp_path, optimizer):
    outs = []
    for batch_size, times in ((8, 1), (4, 2), (1, 8)):
        outs.append(tmp_path / f'{batch_size}x{times}')
        done = train(
            *FLOAT64, *rows_of_a_step(batch_size, times), f'--optimizer={optimizer}', out=outs[-1]
        )
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
    pieces = [piece for bucket in self.buckets.values() for piece in bucket.pieces]
    total = sum(float(p.double().sum()) for _, p, _, _ in pieces)
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


@pytest.mark.parametrize('model', [(), pytest.param(EXPERTS, marks=pytest.mark.slow)], ids=str)
def test_ranks_do_not_change_the_result(train, drive, tmp_path, model):
    """8 rows on 1, 2 and 3 processes; what 2 began, 1 finishes (traps 15 and 16)."""
    reference = tmp_path / 'one'
    args = (*FLOAT64, *rows_of_a_step(4, 2), *model)
    assert train(*args, out=reference).returncode == 0
    for ranks in (2, 3):
        out = tmp_path / f'ranks{ranks}'
        drive(WATCH.format(out=str(out)), *args, out=out, ranks=ranks)
        assert_close(out, reference)
        seen = [
            (tmp_path / f'{out.name}-{rank}.txt').read_text(encoding='utf-8')
            for rank in range(ranks)
        ]
        assert (
            len(seen[0].splitlines()) == 10 and seen == seen[:1] * ranks
        )  # same rate, norm and weights on each
    half = tmp_path / 'ranks2-half'
    assert checkpoint.load(half / 'ckpt.pt')['step'] == 5
    assert train('--init_from=resume', out=half, data=None).returncode == 0
    assert_close(half, reference)


# -----------------------------------------------------------------------------
# going on


def straight_and_resumed(train, monkeypatch, tmp_path, *args):
    """Two folders: 20 steps at once, and 20 steps with a crash in step 13 after the checkpoint
    of step 10."""
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
    config = checkpoint.load(straight / 'ckpt.pt')['config'] | {'out_dir': str(resumed)}
    first = log_of(resumed)[0]
    assert (first['config'], first['machine']) == (config, machine('cpu'))


@pytest.mark.parametrize(
    'args',
    [
        ('--dropout=0.2',),
        (
            '--dropout=0.1',
            '--optimizer=adamw',
            '--schedule=cosine',
            '--preset=gpt2',
            '--always_save_checkpoint=False',
        ),
        ('--dropout=0.1', '--dtype=bfloat16', '--preset=qwen3', '--gradient_accumulation_steps=2'),
        ('--dropout=0.1', '--dtype=float16', '--sample_prompts=the |I', '--preset=plus'),
        ('--dropout=0.1', '--dtype=float64', '--preset=llama'),
        ('--dropout=0.1', *EXPERTS),
    ],
    ids=['defaults', 'cosine and best.pt', 'bfloat16', 'float16 and samples', 'float64', 'experts'],
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
@pytest.mark.skipif(not runtime.compiler(*runtime.CXX), reason='needs a C++ compiler')
def test_resuming_compiled_is_exact_to_the_bit(train, monkeypatch, tmp_path):
    straight, resumed = straight_and_resumed(
        train, monkeypatch, tmp_path, '--compile=True', '--dropout=0.1'
    )
    assert_the_same_run(resumed, straight)
    done = train('--init_from=resume', '--eval_only=True', out=resumed, data=None)
    assert 'compiled (as asked)' in done.stdout


@pytest.mark.parametrize('number', STOPS, ids=lambda number: number.name)
def test_a_signal_stops_the_run_after_saving(train, monkeypatch, tmp_path, number):
    args, handler = (*SHORT, '--max_iters=20'), signal.getsignal(number)
    assert train(*args, out=tmp_path / 'straight').returncode == 0
    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda: signal.raise_signal(number))
        done = train(*args, out=tmp_path / 'stopped')
    assert (
        done.returncode == 0
        and f'--init_from=resume --out_dir={tmp_path / "stopped"}' in done.stdout
    )
    assert signal.getsignal(number) == handler  # a notebook goes on after the run
    assert checkpoint.load(tmp_path / 'stopped/ckpt.pt')['step'] == 8  # the step was finished
    assert train('--init_from=resume', out=tmp_path / 'stopped', data=None).returncode == 0
    assert_same_bits(trained(tmp_path / 'stopped'), trained(tmp_path / 'straight'))
    assert learned(tmp_path / 'stopped') == learned(tmp_path / 'straight')


def test_a_signal_before_the_first_step_leaves_what_one_can_go_on_from(
    train, monkeypatch, tmp_path
):
    """ "continue with: ... --init_from=resume" must be true then as well."""
    out, args = tmp_path / 'stopped', (*SHORT, '--max_iters=6')
    assert train(*args, out=tmp_path / 'straight').returncode == 0
    with monkeypatch.context() as patch:
        patch.setattr(runtime, 'catch_signals', lambda: [signal.SIGTERM])
        done = train(*args, out=out)
    assert done.returncode == 0 and f'--init_from=resume --out_dir={out}' in done.stdout
    assert checkpoint.load(out / 'ckpt.pt')['step'] == 0
    assert train('--init_from=resume', out=out, data=None).returncode == 0
    assert_same_bits(trained(out), trained(tmp_path / 'straight'))
    assert learned(out) == learned(tmp_path / 'straight')


def test_out_of_memory_says_what_to_lower_and_shows_the_plan(drive, tmp_path):
    lines = """
original = runtime.seed_step
def seed_step(seed, step, rank):
    original(seed, step, rank)
    if step == 3:
        import torch
        torch.empty(10**16)
runtime.seed_step = seed_step
"""
    done = drive(
        lines, *SHORT, '--max_iters=5', '--save_interval=2', out=tmp_path / 'out', check=False
    )
    first, table = done.stderr.split('\n', 1)
    for word in ('allocate memory', '--batch_size', '--gradient_accumulation_steps'):
        assert word in first
    assert done.returncode == 1 and table.startswith('parameters') and 'to lower' in table
    assert checkpoint.load(tmp_path / 'out/ckpt.pt')['step'] == 2


def test_a_signal_to_one_rank_stops_all(drive, tmp_path):
    lines = """
import runtime
original = runtime.seed_step
def hook(seed, step, rank):
    original(seed, step, rank)
    if (step, rank) == (4, 1):
        signal.raise_signal(signal.SIGTERM)
runtime.seed_step = hook
"""
    done = drive(lines, *SHORT, '--max_iters=20', out=tmp_path / 'out', ranks=2, check=False)
    assert done.stdout.count('as asked') == 1, done.stderr  # exit statuses are test_runtime.py's
    assert checkpoint.load(tmp_path / 'out/ckpt.pt')['step'] == 5


def test_a_run_that_evaluation_breaks_is_saved(train, monkeypatch, tmp_path):
    """Trap 1."""
    original = validation.total
    calls = []

    def total(*args):
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError('at the last step')
        return original(*args)

    monkeypatch.setattr(validation, 'total', total)
    with pytest.raises(MemoryError):
        train(*TINY, '--max_iters=3', out=tmp_path / 'out')
    assert checkpoint.load(tmp_path / 'out/ckpt.pt')['step'] == 3


def test_three_steps_with_default_intervals_leave_a_checkpoint(train, tmp_path):
    assert train(*TINY, '--max_iters=3', out=tmp_path / 'out').returncode == 0
    assert checkpoint.load(tmp_path / 'out/ckpt.pt')['step'] == 3


# -----------------------------------------------------------------------------
# gradients that are not finite


def poison(monkeypatch, steps):
    """NaN in the gradient of these steps."""
    original, calls = optim.Optimizer.reduce, []

    def reduce(self):
        if len(calls) in steps:
            piece = next(iter(self.buckets.values())).pieces[0]
            piece[1].grad[0] = math.nan
        calls.append(1)
        original(self)

    monkeypatch.setattr(optim.Optimizer, 'reduce', reduce)


def test_a_bad_gradient_is_skipped_and_counted(train, monkeypatch, tmp_path):
    poison(monkeypatch, {3, 4})
    assert train(*SHORT, '--max_iters=8', out=tmp_path / 'out').returncode == 0
    rows = [row for row in learned(tmp_path / 'out') if 'norm' in row]
    assert [row['skipped'] for row in rows] == [0, 0, 0, 1, 2, 2, 2, 2]
    assert [math.isnan(row['norm']) for row in rows] == [step in (3, 4) for step in range(8)]
    state = checkpoint.load(tmp_path / 'out/ckpt.pt')
    assert all(weight.isfinite().all() for weight in state['model'].values())


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16', 'float64'])
def test_every_number_type_learns(train, tmp_path, dtype):
    args = (*SHORT, '--max_iters=40', '--learning_rate=1e-2', f'--dtype={dtype}')
    done = train(*args, out=tmp_path / 'out')
    assert done.returncode == 0 and f'{dtype} (as asked)' in done.stdout
    vals = [row['val'] for row in learned(tmp_path / 'out') if 'val' in row]
    assert vals[-1] < vals[0] - 0.5
    kept = torch.float64 if dtype == 'float64' else torch.float32
    assert {
        weight.dtype for weight in checkpoint.load(tmp_path / 'out/ckpt.pt')['model'].values()
    } == {kept}
    norms = [
        row['norm']
        for row in learned(tmp_path / 'out')
        if 'norm' in row and math.isfinite(row['norm'])
    ]
    assert (
        len(norms) > 20 and 1e-3 < min(norms) <= max(norms) < 100
    )  # the loss scale, 65,536 at first, is not in them


def test_a_micro_batch_of_which_nothing_counts_has_loss_0_and_no_gradient(train):
    values = train(*TINY, '--max_iters=0').values
    run = values['run']
    ids = torch.randint(5, (4, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        # it starts at zero, and then nothing has a gradient anyway
        run.raw_model.lm_head.weight.normal_()
    for weight in (1.0, 0.0):
        batch = batches.Batch(ids, ids.roll(-1, 1), torch.full((4, 16), weight))
        loss, _ = values['weighted_nll'](run.model, batch)
        grads = torch.autograd.grad(loss, list(run.raw_model.parameters()))
        assert (loss != 0) == (weight != 0) and any(g.any() for g in grads) == (weight != 0)


def test_bad_gradients_are_seen_before_a_save_too(train, monkeypatch, tmp_path):
    out, seen = tmp_path / 'out', []
    poison(monkeypatch, set(range(6, 100)))
    original = checkpoint.save
    monkeypatch.setattr(
        checkpoint, 'save', lambda *a: (original(*a), seen.append((out / 'ckpt.pt').read_bytes()))
    )
    args = (*TINY, '--log_interval=1000', '--eval_interval=5', '--max_iters=30', '--max_skips=3')
    assert_one_line(
        train(*args, out=out), 'step 10', 'not finite 3 times in a row', out / 'ckpt.pt'
    )
    assert len(seen) == 1 and files_of(out)['ckpt.pt'] == seen[0]
    assert checkpoint.load(out / 'ckpt.pt')['step'] == 5


def test_many_bad_gradients_in_a_row_end_the_run(train, monkeypatch, tmp_path):
    poison(monkeypatch, set(range(5, 100)))
    args = (*SHORT, '--max_iters=30', '--save_interval=2', '--max_skips=4', '--log_interval=3')
    done = train(*args, out=tmp_path / 'out')
    assert_one_line(
        done, 'step 9:', 'not finite 4 times in a row', '--learning_rate'
    )  # 8 is the fourth; 9 is logged
    kept = checkpoint.load(tmp_path / 'out/ckpt.pt')
    assert kept['step'] <= 8  # less than four bad steps had been seen
    assert all(weight.isfinite().all() for weight in kept['model'].values())


def test_bad_gradients_that_a_run_lived_through_do_not_end_it_later(train, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        poison(patch, {1, 2})
        assert train(*SHORT, '--max_iters=4', out=tmp_path / 'out').returncode == 0
    done = train('--init_from=resume', '--max_iters=6', '--max_skips=2', out=tmp_path / 'out')
    assert done.returncode == 0 and log_of(tmp_path / 'out')[-1]['step'] == 6, done.stderr
    assert [row['skipped'] for row in learned(tmp_path / 'out') if 'norm' in row] == [
        0,
        1,
        2,
        2,
        2,
        2,
    ]


# -----------------------------------------------------------------------------
# schedules


def nanogpt_rate(step, top, low, warmup, decay):
    """The rule of nanoGPT's README: linear warm-up, cosine down to min_lr at lr_decay_iters,
    min_lr from there on."""
    if step < warmup:
        return top * (step + 1) / (warmup + 1)
    if step > decay:
        return low
    return low + 0.5 * (1 + math.cos(math.pi * (step - warmup) / (decay - warmup))) * (top - low)


def rates(train, *args):
    done = train(*TINY, '--max_iters=0', '--learning_rate=1e-3', *args)
    assert done.returncode == 0, done.stderr
    rate, decay = done.values['rate'], done.values['run'].decay_iters
    return [rate(step, step / decay, decay) for step in range(60)]


def test_cosine_is_nanogpts(train):
    got = rates(
        train, '--schedule=cosine', '--min_lr=1e-4', '--warmup_iters=10', '--lr_decay_iters=50'
    )
    assert got == pytest.approx(
        [nanogpt_rate(step, 1e-3, 1e-4, 10, 50) for step in range(60)], rel=1e-12
    )


def test_a_step_has_the_rate_of_its_number(train, tmp_path):
    args = ('--schedule=cosine', '--min_lr=1e-4', '--max_iters=8', '--learning_rate=1e-3')
    assert train(*SHORT, *args, out=tmp_path / 'out').returncode == 0
    got = [row['lr'] for row in learned(tmp_path / 'out') if 'lr' in row]
    assert got == pytest.approx(
        [nanogpt_rate(step, 1e-3, 1e-4, 2, 8) for step in range(8)], rel=1e-12
    )


def test_warmdown_is_constant_then_linear(train):
    got = rates(train, '--warmdown=0.4', '--min_lr=1e-4', '--warmup_iters=4', '--lr_decay_iters=50')
    expected = [1e-3 * (step + 1) / 5 for step in range(4)] + [1e-3] * 26
    expected += [1e-4 + 9e-4 * (50 - step) / 20 for step in range(30, 50)] + [1e-4] * 10
    assert got == pytest.approx(expected, rel=1e-12)


def test_without_decay_the_rate_stays(train):
    assert (
        rates(train, '--decay_lr=False', '--warmup_iters=1', '--lr_decay_iters=9')[1:]
        == [1e-3] * 59
    )


def test_time_limit_ends_the_run_and_the_schedule(train, monkeypatch, tmp_path):
    """On a clock by which a step takes a second: 8 seconds are 8 steps, and the schedule follows
    them."""
    out, now = tmp_path / 'out', [1000.0]
    monkeypatch.setattr('time.perf_counter', lambda: now[0])
    monkeypatch.setattr(runlog, 'perf_counter', lambda: now[0])
    original = runtime.seed_step

    def second(*args):
        original(*args)
        now[0] += 1.0

    monkeypatch.setattr(runtime, 'seed_step', second)
    args = (
        *TINY,
        '--log_interval=1',
        '--max_iters=1000',
        '--time_limit=8',
        '--warmdown=0.5',
        '--learning_rate=1e-3',
    )
    done = train(*args, '--auto_resume=True', out=out)
    assert done.returncode == 0 and 'time_limit is set' in done.stdout
    rows = [row for row in log_of(out) if 'lr' in row]
    assert [row['lr'] for row in rows] == pytest.approx([1e-3] * 5 + [0.75e-3, 0.5e-3, 0.25e-3])
    assert [row['seconds'] for row in rows] == list(range(8))
    assert [row['tokens_per_second'] for row in rows] == [64] * 8
    state, before = checkpoint.load(out / 'ckpt.pt'), files_of(out)
    assert state['step'] == state['seconds'] == 8
    assert learned(out)[-1].keys() >= {'val'}
    done = train(*args, '--auto_resume=True', out=out)
    assert 'nothing is left to do' in done.stdout and files_of(out) == before
    assert train('--init_from=resume', '--time_limit=10', out=out).returncode == 0
    assert checkpoint.load(out / 'ckpt.pt')['step'] == 10


def test_the_clock_does_not_slow_the_schedule_down(train, tmp_path):
    """A run that is through long before time_limit has the rates of its steps."""
    for name, more in (('plain', ()), ('limited', ('--time_limit=1e6',))):
        assert train(*SHORT, '--max_iters=6', *more, out=tmp_path / name).returncode == 0
    assert learned(tmp_path / 'limited') == learned(tmp_path / 'plain')


# -----------------------------------------------------------------------------
# evaluation


def test_val_is_the_mean_over_the_first_rows_whatever_the_batch(train, tmp_path, corpora):
    out = tmp_path / 'out'
    assert train(*SHORT, '--max_iters=5', out=out).returncode == 0
    before = files_of(out)
    state = checkpoint.load(out / 'ckpt.pt')
    model = GPT(GPTConfig(**state['model_config'])).eval()
    model.load_state_dict(state['model'])
    ids = torch.from_numpy(np.fromfile(corpora / 'val.bin', '<u2').astype(np.int64))
    rows = (len(ids) - 1) // 16
    other_split = ['--batch_size=2', '--gradient_accumulation_steps=2', '--eval_iters=-1']
    for args, count in ((['--eval_iters=-1'], rows), (['--eval_iters=3'], 12), (other_split, rows)):
        done = train('--init_from=resume', '--eval_only=True', *args, out=out)
        with torch.no_grad():
            logits = torch.stack([model(ids[None, 16 * k : 16 * k + 16])[0] for k in range(count)])
        targets = torch.stack([ids[16 * k + 1 : 16 * k + 17] for k in range(count)])
        expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        shown = dict(re.findall(r'(val|bits_per_byte) ([\d.]+)', done.stdout))
        # four digits of it; one byte a character here
        assert float(shown['val']) == pytest.approx(float(expected), abs=6e-5)
        bits = float(expected) / math.log(2)
        assert float(shown['bits_per_byte']) == pytest.approx(bits, abs=6e-5)
    assert files_of(out) == before  # eval_only leaves no trace


def test_eval_only_of_a_new_model_makes_nothing(train, tmp_path):
    done = train(*SHORT, '--eval_only=True', '--sample_prompts=the ', out=tmp_path / 'out')
    assert done.returncode == 0 and ' | val ' in done.stdout and 'sample | the ' in done.stdout
    assert '\nsample | PROMPT | TEXT: how the model continues a prompt' in done.stdout
    assert not (tmp_path / 'out').exists()


def test_best_is_kept_beside_the_latest(train, tmp_path, corpora):
    args = (
        *SHORT,
        '--max_iters=30',
        '--eval_interval=5',
        '--learning_rate=0.3',
        '--always_save_checkpoint=False',
    )
    out = tmp_path / 'out'
    assert train(*args, out=out).returncode == 0
    vals = {row['step']: row['val'] for row in learned(out) if 'val' in row and row['step']}
    best, last = checkpoint.load(out / 'best.pt'), checkpoint.load(out / 'ckpt.pt')
    assert (
        last['step'] == 30
        and best['step'] == min(vals, key=vals.get)
        and best['best'] == min(vals.values())
    )
    engine = Engine(GPT(GPTConfig(**best['model_config'])), from_dict(best['tokenizer']))
    engine.model.load_state_dict(best['model'])
    assert engine.generate([[0]], max_tokens=5, sampling=Sampling(temperature=0))[0].ids
    ids = torch.from_numpy(np.fromfile(corpora / 'val.bin', '<u2').astype(np.int64))
    count = (len(ids) - 1) // 16 * 16
    inputs, targets = ids[:count].view(-1, 16), ids[1 : count + 1].view(-1, 16)
    with torch.no_grad():
        assert float(engine.model.eval()(inputs, targets).mean()) == pytest.approx(
            best['best'], rel=1e-5
        )


# -----------------------------------------------------------------------------
# what is wrong is said before the model is built


def bare_folder(folder, **files):
    folder.mkdir()
    for name, data in files.items():
        (folder / f'{name}.bin').write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ('args', 'words'),
    [
        (('--stage=sleep',), ('stage', 'sleep', 'pretrain')),
        (('--device=tpu',), ('device', 'tpu', 'cuda')),
        (('--device=cpu:0',), ('device', 'cpu:0', 'cuda')),
        (('--dtype=int8',), ('dtype', 'int8', 'bfloat16')),
        (('--preset=bert',), ('preset', 'bert', 'llama')),
        (('--schedule=zigzag',), ('schedule', 'zigzag', 'cosine')),
        (('--optimizer=sgd',), ('optimizer', 'sgd', 'muon')),
        (('--batch_size=0', '--log_interval=0'), ('batch_size is 0', 'log_interval is 0')),
        (('--n_embd=30', '--n_head=4'), ('n_embd is 30', 'multiple of n_head')),
        (('--block_size=9999',), ('less than one row', '--block_size')),
        (('--cpu_micro_batch_size=-1',), ('cpu_micro_batch_size is -1', 'at least 0')),
        (('--max_iters=5', '--epochs=2'), ('max_iters', 'epochs', 'one of them')),
        (('--init_from=nowhere',), ('there is no checkpoint nowhere', 'python train.py')),
        (('--backend=mpi',), ('backend', 'mpi', 'gloo')),
        (('--grad_clip=-1', '--seed=-1'), ('grad_clip is -1.0', 'seed is -1', 'at least 0')),
        (('--eval_iters=0',), ('eval_iters is 0', '-1')),
        (('--seed=99999999999999999999',), ('seed is 99999999999999999999', 'at most')),
        (
            ('--min_lr=1', '--warmdown=2'),
            ('min_lr is 1.0', 'learning_rate = ', 'warmdown is 2.0', 'at most 1'),
        ),
        (
            ('--beta1=1', '--beta2=-0.5'),
            ('beta1 is 1.0', 'less than 1', 'beta2 is -0.5', 'at least 0'),
        ),
        (('--adam_eps=0',), ('adam_eps is 0.0', 'at least 1e-20')),
        (('--dropout=1',), ('dropout is 1.0', 'less than 1')),
        (('--norm_eps=-1',), ('norm_eps is -1.0', 'at least 0')),
        (('--rope_theta=-1',), ('rope_theta is -1.0', 'at least 1')),
        (('--isolate=True',), ('no token that begins a document', '--isolate')),
        (('--init_from=resume',), ('there is no checkpoint', 'python train.py')),
        (('--learning_rat=1e-3',), ('learning_rat', "did you mean 'learning_rate'?")),
    ],
    ids=lambda x: x[0] if isinstance(x, tuple) and x[0].startswith('--') else '',
)
def test_wrong_settings(train, monkeypatch, tmp_path, args, words):
    monkeypatch.setattr(models.GPT, '__init__', lambda *_: pytest.fail('the model was built'))
    monkeypatch.setattr(runtime, 'memory', lambda device: 2**34)
    if args[0] == '--max_iters=5':  # what needs the number of parameters
        monkeypatch.undo()
        monkeypatch.chdir(ROOT)
    assert_one_line(train(*TINY, *args), *words)


@pytest.mark.parametrize('given', ['n_layer=1000000000', 'batch_size=10000000000'])
def test_a_lack_of_memory_is_seen_before_the_model_is_built(train, monkeypatch, given):
    monkeypatch.setattr(runtime, 'memory', lambda device: 2**34)
    done = train(*TINY, f'--{given}')
    first, *_, command = done.stderr.strip().splitlines()
    assert done.returncode == 1 and 'GiB' in first and given.replace('=', ' = ') in first
    assert command.endswith('--out_dir=out/try')


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(models.GPT, '__init__', lambda *_: pytest.fail('the model was built'))


def test_an_argument_that_is_not_utf8_is_logged(train, tmp_path):
    """It reaches the settings and the command on the log's first line."""
    out = tmp_path / 'out'
    assert train(*TINY, '--max_iters=0', '--wandb_run_name=caf\udce9', out=out).returncode == 0
    first = log_of(out)[0]
    assert first['config']['wandb_run_name'] == 'caf\ufffd'
    assert '--wandb_run_name=caf\ufffd' in first['command']


def test_wandb_that_is_not_installed(train, no_model, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    assert_one_line(train(*TINY, '--wandb_log=True', out=tmp_path / 'out'), 'wandb', 'pip install')
    assert not (tmp_path / 'out').exists()


def test_wrong_data(train, monkeypatch, tmp_path):
    even = np.zeros(100, '<u2').tobytes()
    cases = {
        'nothing': ({}, ('no data', 'prepare')),
        'odd': (dict(train=even + b'x', val=even), ('train.bin', '201 bytes', 'multiple of 2')),
        'empty': (dict(train=even), ("no tokens in its split 'val'",)),
    }
    short = ('val.bin holds 10 tokens', 'less than one row', '--block_size')
    cases['short'] = dict(train=even, val=even[:20]), short
    monkeypatch.setattr(models.GPT, '__init__', lambda *_: pytest.fail('the model was built'))
    for name, (files, words) in cases.items():
        assert_one_line(train(*TINY, data=bare_folder(tmp_path / name, **files)), *words)


def test_preferences_are_for_dpo_and_dpo_is_for_preferences(train, no_model, tmp_path, corpora):
    folder = tmp_path / 'data'
    shutil.copytree(corpora, folder)
    meta = json.loads((folder / 'meta.json').read_text(encoding='utf-8'))
    for kind, stage in (
        ('preferences', 'pretrain'),
        ('preferences', 'sft'),
        ('conversations', 'dpo'),
        ('text', 'dpo'),
    ):
        (folder / 'meta.json').write_text(json.dumps({**meta, 'kind': kind}), encoding='utf-8')
        args = (*TINY, f'--stage={stage}', '--eval_only=True')  # which may begin with any stage
        assert_one_line(
            train(*args, data=folder), f'holds {kind}', '--stage=dpo', f'stage is {stage}'
        )


def test_an_id_beyond_the_vocabulary_is_seen_when_its_row_is_read(train, tmp_path):
    """nanoGPT's files come without meta.json, so nobody knows their largest id before."""
    small, large = (np.full(100, number, '<u2').tobytes() for number in (7, 60000))
    for name, files in (
        ('train', dict(train=large, val=small)),
        ('val', dict(train=small, val=large)),
    ):
        folder = bare_folder(tmp_path / name, **files)
        assert_one_line(
            train(*TINY, out=tmp_path / f'{name}-out', data=folder), f'{name}.bin', '60000', '50257'
        )


def test_two_ranks_without_data_say_so_once(run_program, tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/prepare.py').write_text('', encoding='utf-8')
    args = (f'--dataset={tmp_path / "mine"}', f'--out_dir={tmp_path / "out"}')
    done = run_program('train.py', *args, ranks=2, check=False)
    assert done.returncode == 1
    assert (
        done.stderr.count('no data: ') == 1
        and f'run: python {tmp_path / "mine" / "prepare.py"}' in done.stderr
    )


def test_ranks_do_not_wait_for_the_download_of_a_tokenizer(run_program, tmp_path):
    """Trap 6. nanoGPT's files come without a tokenizer; GPT-2's table may be missing."""
    ids = np.arange(100, dtype='<u2').tobytes()
    data = bare_folder(tmp_path / 'data', train=ids, val=ids)
    args = (*TINY, f'--dataset={data}', '--max_iters=1', '--sample_prompts=hi', '--eval_iters=1')
    done = run_program('train.py', *args, f'--out_dir={tmp_path / "out"}', ranks=2)
    assert done.stdout.count('sample_prompts is left out') == 1
    assert not any('prompt' in row for row in log_of(tmp_path / 'out'))


def test_wrong_checkpoints(train, tmp_path, corpora):
    out = tmp_path / 'out'
    assert train(*SHORT, '--max_iters=2', out=out).returncode == 0
    assert_one_line(
        train('--init_from=resume', '--n_layer=3', out=out),
        'n_layer is 3 here and 2 in',
        'leave it out',
    )
    assert_one_line(
        train('--init_from=resume', '--optimizer=adamw', out=out), "'adamw' here and 'muon' in"
    )
    other = prepare(tmp_path / 'other', train='abcab ' * 100, val='abc ' * 50)
    done = train(f'--init_from={out}', '--block_size=16', out=tmp_path / 'b', data=other)
    assert_one_line(
        done, 'another tokenizer', f'--tokenizer={out}/ckpt.pt', 'data/custom/prepare.py'
    )
    whole = (out / 'ckpt.pt').read_bytes()
    checkpoint.save(out / 'ckpt.pt', checkpoint.load(out / 'ckpt.pt') | dict(optimizer=None))
    assert_one_line(
        train('--init_from=resume', out=out),
        "holds no optimizer's state",
        '--init_from=',
        '--out_dir',
    )
    (out / 'ckpt.pt').write_bytes(whole[: len(whole) // 2])
    assert_one_line(train('--init_from=resume', out=out), 'ckpt.pt', 'not a whole checkpoint')


def test_embedded_data_are_prepared_where_they_are_missing_and_only_there(
    corpora, tmp_path, capsys
):
    program, embedded = tmp_path / 'train.py', tmp_path / 'data/tinyworld'
    shutil.copy(ROOT / 'train.py', program)
    shutil.copytree(corpora, embedded / 'pretrain')
    games, last = str(embedded / 'games'), str(embedded / 'problems.jsonl')
    twice_is_an_error = (
        f'import shutil\nshutil.copytree({str(corpora)!r}, {games!r})\n'
        f'open({last!r}, "w").close()\n'
    )
    (embedded / 'prepare.py').write_text(twice_is_an_error, encoding='utf-8')
    args = (
        *TINY,
        '--max_iters=1',
        '--dataset=tinyworld/pretrain,tinyworld/games:2',
        f'--out_dir={tmp_path / "out"}',
    )
    with running(capsys) as run:
        first, second = run(*args, program=program), run(*args, program=program)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert 'preparing the embedded data' in first.stdout and 'preparing' not in second.stdout


def test_an_out_dir_that_cannot_be_made(train, no_model, tmp_path):
    (tmp_path / 'file').write_text('', encoding='utf-8')
    done = train(*TINY, out=tmp_path / 'file' / 'out')
    assert_one_line(done, f'out_dir {tmp_path}', 'cannot be written')


def test_an_out_dir_belongs_to_one_run_at_a_time(train, no_model, tmp_path):
    """Another host's lock stands for any: see test_runtime.py."""
    holder = dict(host='elsewhere', process=7, time=time.time())
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/run.lock').write_text(json.dumps(holder), encoding='utf-8')
    before = files_of(tmp_path)
    done = train(*TINY, out=tmp_path / 'out')
    assert_one_line(done, f'{tmp_path / "out"} is in use', 'process 7 on elsewhere', '--out_dir')
    assert files_of(tmp_path) == before


def test_a_run_holds_its_out_dir_and_leaves_only_its_results(train, monkeypatch, tmp_path):
    out, seen = tmp_path / 'out', []
    out.mkdir()
    for name in ('film.mkv.part', 'ckpt.pt.7.part'):
        (out / name).write_bytes(b'')
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: seen.append(json.loads((out / 'run.lock').read_bytes())))
        assert train(*SHORT, '--max_iters=4', out=out).returncode == 0
    assert [holder['process'] for holder in seen] == [os.getpid()]
    assert set(files_of(out)) == {'film.mkv.part', 'ckpt.pt', 'log.jsonl'}
    with monkeypatch.context() as patch, pytest.raises(Died):
        at_step(patch, 2, die)
        train(*SHORT, '--max_iters=4', out=out)
    assert not (out / 'run.lock').exists()  # as in a notebook, whose process goes on


def test_a_log_that_cannot_be_written_does_not_end_a_run(train, monkeypatch, tmp_path):
    def full(path, mode, **how):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: patch.setattr(runlog, 'open', full, raising=False))
        done = train(*SHORT, '--max_iters=6', out=tmp_path / 'out')
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('could not be appended (No space left on device)') == 4
    assert checkpoint.load(tmp_path / 'out/ckpt.pt')['step'] == 6
    assert [row['step'] for row in learned(tmp_path / 'out')] == [0, 0, 1, 2]


def test_data_that_has_changed_is_said_on_resume(train, tmp_path):
    data = prepare(tmp_path / 'data')
    assert train(*SHORT, '--max_iters=2', out=tmp_path / 'out', data=data).returncode == 0
    again = ('--init_from=resume', '--max_iters=4')
    assert 'has changed' not in train(*again, out=tmp_path / 'out', data=data).stdout
    prepare(data, train=corpus(1500, seed=2))
    done = train(*again[:1], '--max_iters=6', out=tmp_path / 'out', data=data)
    assert done.returncode == 0 and f'{data} has changed since' in done.stdout


# -----------------------------------------------------------------------------
# starting again, and from somewhere


def test_samples_that_a_kill_has_cost_are_written_by_the_next_call(train, tmp_path):
    out = tmp_path / 'out'
    args = (*SHORT, '--max_iters=2', '--sample_prompts=the |I', '--auto_resume=True')
    assert train(*args, out=out).returncode == 0
    expected = learned(out)
    lines = (out / 'log.jsonl').read_bytes().splitlines(keepends=True)
    assert [row['prompt'] for row in expected[-2:]] == ['the ', 'I']
    for lost in (1, 2):  # lines after that of the last evaluation
        (out / 'log.jsonl').write_bytes(b''.join(lines[:-lost]))
        done = train(*args, out=out)
        assert done.returncode == 0 and 'nothing is left to do' not in done.stdout
        assert learned(out) == expected
    assert 'nothing is left to do' in train(*args, out=out).stdout


def test_auto_resume(train, tmp_path):
    out, args = tmp_path / 'out', (*SHORT, '--max_iters=4', '--auto_resume=True')
    assert train(*args, out=out).returncode == 0
    before = files_of(out)
    done = train(*args, out=out)
    assert (
        done.returncode == 0 and 'nothing is left to do' in done.stdout and files_of(out) == before
    )
    assert train(*args, '--max_iters=6', out=out).returncode == 0
    assert checkpoint.load(out / 'ckpt.pt')['step'] == 6


def test_what_may_change_on_resume(train, tmp_path):
    """How a step is split, how often it reports, how long it goes: none of them moves a weight."""
    straight, out = tmp_path / 'straight', tmp_path / 'out'
    args = (*FLOAT64, '--decay_lr=False')
    assert train(*args, '--log_interval=2', out=straight).returncode == 0
    assert train(*args, '--max_iters=4', '--eval_interval=3', out=out).returncode == 0
    free = (
        '--batch_size=2',
        '--gradient_accumulation_steps=2',
        '--max_iters=10',
        '--log_interval=7',
    )
    assert train('--init_from=resume', *free, out=out).returncode == 0
    a, b = trained(out)['model'], trained(straight)['model']
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-10
    assert [row['step'] for row in learned(out) if 'loss' in row] == [0, 1, 2, 3, 7]
    done = train('--init_from=resume', '--batch_size=3', out=out)
    assert_one_line(done, '6 rows here and 4 in', 'batch_size * gradient_accumulation_steps')


def test_a_step_is_split_on_resume_as_before(train, monkeypatch, tmp_path):
    """Dropout follows the rows, so the bits show how a step was split. plan.py may have other
    constants by then."""
    straight, out = tmp_path / 'straight', tmp_path / 'out'
    args = (*SHORT, '--batch_size=6', '--dropout=0.2', '--decay_lr=False')
    monkeypatch.setattr(plan, 'MICRO_BATCH_TOKENS', 0)
    monkeypatch.setattr(plan, 'ACTIVATION_BYTES', 1)
    done = train(*args, '--max_iters=4', out=straight)
    assert done.values['run'].shape[:2] == done.values['run'].steps.reader.shape[:2] == (6, 2)
    assert 'cpu_micro_batch_size = 2   (plan.py)' in done.stdout
    assert train(*args, '--max_iters=2', out=out).returncode == 0
    monkeypatch.setattr(plan, 'ACTIVATION_BYTES', 2**30)
    done = train('--init_from=resume', '--max_iters=4', out=out)
    assert done.values['run'].shape[:2] == (6, 2)
    assert_same_bits(trained(out)['model'], trained(straight)['model'])
    assert train(*args, '--max_iters=0', out=tmp_path / 'whole').values['run'].shape[:2] == (6, 6)
    given = ('--init_from=resume', '--max_iters=5', '--cpu_micro_batch_size=3')
    assert train(*given, out=out).values['run'].shape[:2] == (6, 3)


def test_one_evaluation_at_the_end(train, tmp_path):
    """eval_interval=0: the same weights, and no evaluation before the last step."""
    often, once = tmp_path / 'often', tmp_path / 'once'
    assert train(*SHORT, '--max_iters=6', out=often).returncode == 0
    done = train(*SHORT, '--max_iters=6', '--eval_interval=0', out=once)
    assert done.returncode == 0 and 'left' in done.stdout
    assert [row['step'] for row in learned(once) if 'val' in row] == [6]
    assert [row['step'] for row in learned(often) if 'val' in row] == [0, 6]
    a, b = trained(often)['model'], trained(once)['model']
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_new_run_sets_the_old_one_aside(train, tmp_path):
    out = tmp_path / 'out'
    assert train(*SHORT, '--max_iters=2', out=out).returncode == 0
    before = files_of(out)
    assert train(*SHORT, '--max_iters=3', out=out).returncode == 0
    assert {f'{name}.old': data for name, data in before.items()}.items() <= files_of(out).items()


def test_starting_from_another_run(train, tmp_path):
    first, second = tmp_path / 'first', tmp_path / 'second'
    assert train(*SHORT, '--max_iters=3', '--n_kv_head=1', out=first).returncode == 0
    assert (
        train(
            f'--init_from={first}', '--device=cpu', '--batch_size=4', '--max_iters=0', out=second
        ).returncode
        == 0
    )
    assert (
        train(
            f'--init_from={first}', '--device=cpu', '--batch_size=4', '--max_iters=1', out=second
        ).returncode
        == 0
    )
    a, b = checkpoint.load(first / 'ckpt.pt'), checkpoint.load(second / 'ckpt.pt')
    assert a['model_config'] == b['model_config'] and b['step'] == 1
    sha256 = hashlib.sha256((first / 'ckpt.pt').read_bytes()).hexdigest()
    assert b['parent'] == {'path': str(first / 'ckpt.pt'), 'sha256': sha256} and a['parent'] is None
    vals = [
        next(row['val'] for row in rows if 'val' in row)
        for rows in (learned(first)[::-1], learned(second))
    ]
    assert vals[0] == vals[1]  # it begins where the other ended


def test_small_data_trains_for_epochs(train, tmp_path):
    """Trap 17: a corpus smaller than one step, three times over."""
    small = prepare(tmp_path / 'small', train='the cat sat. ' * 5, val='the cat sat. ' * 3)
    done = train(*SHORT, '--batch_size=16', '--epochs=3', out=tmp_path / 'out', data=small)
    assert done.returncode == 0 and checkpoint.load(tmp_path / 'out/ckpt.pt')['step'] == 3


# -----------------------------------------------------------------------------
# the log, the line, the names


def test_log_has_the_promised_keys(train, tmp_path):
    out = tmp_path / 'a b ü'
    data = prepare(tmp_path / 'Täxte und mehr')
    done = train(
        *SHORT,
        '--max_iters=2',
        '--eval_interval=2',
        '--sample_prompts=the |ž|I',
        out=out,
        data=data,
    )
    assert done.returncode == 0, done.stderr
    assert 'MFU n/a' in done.stdout and "'ž' is left out" in done.stdout
    first, *rows = log_of(out)
    assert first['config']['n_embd'] == 16 and first['config']['out_dir'] == str(out)
    assert first['machine'] == machine('cpu')
    kinds = [set(row) - {'step', 'seconds'} for row in rows]
    training = {'loss', 'lr', 'norm', 'skipped', 'tokens_per_step', 'tokens_per_second'}
    assert [k for k in kinds if 'loss' in k] == [training] * 2
    evaluation = {'val', 'perplexity', 'bits_per_byte', 'evaluation_seconds'}
    assert [k for k in kinds if 'val' in k] == [evaluation] * 2
    assert [row['perplexity'] for row in rows if 'val' in row] == [
        math.exp(row['val']) for row in rows if 'val' in row
    ]
    assert [row['prompt'] for row in rows if 'prompt' in row] == ['the ', 'I'] * 2
    assert all({'step', 'seconds'} <= set(row) for row in rows)
    assert not any(key.startswith('val') and key != 'val' for row in rows for key in row)


def test_what_a_model_makes_moves_no_cursor(train, tmp_path):
    """The log keeps it as it is."""
    data = prepare(tmp_path / 'data', train='\x1b[2J\x07' * 100, val='\x1b[2J\x07' * 50)
    done = train(
        *SHORT, '--max_iters=1', '--sample_prompts=\x1b[2J', out=tmp_path / 'out', data=data
    )
    assert 'sample | [2J | ' in done.stdout and not set('\x1b\x07') & set(done.stdout)
    samples = [row for row in log_of(tmp_path / 'out') if 'prompt' in row]
    assert samples and all(row['prompt'] == '\x1b[2J' for row in samples)


def test_prompts_that_cannot_be_continued_are_left_out(train, tmp_path):
    prompts = '|'.join(['the ', 'the ' * 5, '', 'Ω', r'a\|b'])
    done = train(*SHORT, '--max_iters=1', f'--sample_prompts={prompts}', out=tmp_path / 'out')
    assert done.returncode == 0, done.stderr
    reasons = {repr('the ' * 5): '20 tokens', "''": '0 tokens', "'Ω'": 'unknown character'}
    reasons["'a|b'"] = "unknown character '|'"
    for name, why in reasons.items():
        assert f'sample_prompts: {name} is left out' in done.stdout and why in done.stdout
    assert {row['prompt'] for row in learned(tmp_path / 'out') if 'prompt' in row} == {'the '}
    done = train(*SHORT, '--max_iters=1', '--sample_prompts=Ω', out=tmp_path / 'none')
    assert done.returncode == 0 and not [
        row for row in learned(tmp_path / 'none') if 'prompt' in row
    ]


def test_sampling_changes_nothing_about_the_training(train, tmp_path):
    for name, more in (('plain', ()), ('sampled', ('--eval_interval=2', '--sample_prompts=the '))):
        assert (
            train(*SHORT, '--max_iters=6', '--dropout=0.2', *more, out=tmp_path / name).returncode
            == 0
        )
    assert_same_bits(trained(tmp_path / 'sampled'), trained(tmp_path / 'plain'))


def test_a_terminal_that_lacks_a_character_does_not_end_a_run(train, monkeypatch, tmp_path):
    data = prepare(tmp_path / 'data', train='жщю ' * 100, val='жщю ' * 50)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
    monkeypatch.setattr('sys.stdout', terminal)
    args = ('--max_iters=1', '--sample_prompts=ж')
    assert train(*SHORT, *args, out=tmp_path / 'ä', data=data).returncode == 0
    terminal.flush()
    assert b'sample | ?' in terminal.buffer.getvalue()
    assert {row['prompt'] for row in log_of(tmp_path / 'ä') if 'prompt' in row} == {'ж'}


NANOGPT = """
import time
out_dir = 'out-mine'
eval_interval = 5
wandb_log = False
wandb_project = 'mine'
wandb_run_name = 'ft-' + str(time.time())
batch_size = 2
gradient_accumulation_steps = 2 * 2
block_size = 16
max_iters = 2 + gradient_accumulation_steps // 4
lr_decay_iters = max_iters
learning_rate = 3e-5
decay_lr = False
"""


def test_nanogpts_own_commands_and_files(train, tmp_path, corpora):
    long = (
        'config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 '
        '--log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 '
        '--max_iters=2000 '
        '--lr_decay_iters=2000 --dropout=0.0'
    )
    done = train(
        *long.split(), '--max_iters=1', f'--out_dir={tmp_path / "long"}', f'--dataset={corpora}'
    )
    assert done.returncode == 0, done.stderr
    config = checkpoint.load(tmp_path / 'long/ckpt.pt')['config']
    assert (config['n_embd'], config['lr_decay_iters'], config['beta2']) == (128, 2000, 0.99)
    path = tmp_path / 'finetune_mine.py'
    path.write_text(NANOGPT, encoding='utf-8')
    done = train(path, *TINY[:3], '--device=cpu', f'--out_dir={tmp_path / "mine"}')
    assert done.returncode == 0, done.stderr
    state = checkpoint.load(tmp_path / 'mine/ckpt.pt')
    assert state['step'] == 3 and state['config']['wandb_run_name'].startswith('ft-')


@pytest.mark.slow
def test_two_runs_side_by_side(train, tmp_path, corpora):
    outs = [tmp_path / 'one', tmp_path / 'two']
    args = [*SHORT, '--max_iters=20', f'--dataset={corpora}']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    runs = [
        subprocess.Popen(
            [sys.executable, 'train.py', *args, f'--out_dir={out}'], cwd=ROOT, env=environment
        )
        for out in outs
    ]
    assert [run.wait(PATIENCE) for run in runs] == [0, 0]
    assert_same_bits(trained(outs[0]), trained(outs[1]))
