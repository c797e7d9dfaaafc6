"""bench.py: its step is train.py's, its shares are what they are called, its last line is JSON.
None asks how fast."""

import dataclasses
import importlib.util
import json
import runpy
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import batches
import shards
from model import GPT
from tokenizer import CharTokenizer

ROOT = Path(__file__).resolve().parent.parent
TINY = dict(n_layer=2, n_head=2, n_embd=16, block_size=8, batch_size=4, device='cpu')
QUICK = dict(TINY, vocab_size=40, repeats=2, warmup=1)


def flags(settings):
    return [f'--{name}={value}' for name, value in settings.items()]


@pytest.fixture(autouse=True)
def as_it_was():
    """What programs set for their whole process."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(False)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def load(monkeypatch):
    """load(n_layer=2, ...) -> bench.py as a module with these settings; nothing is measured yet."""

    def execute(**settings):
        monkeypatch.setattr('sys.argv', ['bench.py', *flags(settings)])
        spec = importlib.util.spec_from_file_location('bench', ROOT / 'bench.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return execute


@pytest.fixture
def figures(load, capsys):
    """figures(n_layer=2, ...) -> (what is said, the JSON of the last line) of a run in this
    process."""

    def run(bench=None, **settings):
        capsys.readouterr()
        (bench or load(**settings)).main()
        *said, last = capsys.readouterr().out.splitlines()
        return '\n'.join(said), json.loads(last)

    return run


# -----------------------------------------------------------------------------
# the step is train.py's


def write_data(folder):
    rng = np.random.default_rng(0)
    with shards.Writer(folder, CharTokenizer('abcdefghij')) as out:
        for split in ('train', 'val'):
            out.write(split, rng.integers(0, 10, 300), 300)


@pytest.mark.parametrize('changed', [
    dict(optimizer='muon'),
    dict(optimizer='adamw', preset='llama', n_kv_head=1),
    dict(optimizer='muon', preset='gpt2', gradient_accumulation_steps=2, dtype='bfloat16'),
])  # fmt: skip
def test_three_steps_give_the_weights_of_train(tmp_path, monkeypatch, load, changed):
    write_data(tmp_path / 'data')
    settings = dict(TINY, seed=3, learning_rate=0.01, grad_clip=0.5, compile=False) | changed
    only_train = dict(
        dataset=tmp_path / 'data', out_dir=tmp_path / 'out', max_iters=3, decay_lr=False,
        warmup_iters=0,
        weight_decay=0.1, beta1=0.9, beta2=0.95, embedding_rate=1.0, head_rate=1.0,
        sample_prompts='',
    )  # fmt: skip
    monkeypatch.setattr('sys.argv', ['train.py', *flags(settings | only_train)])
    runpy.run_path(str(ROOT / 'train.py'), run_name='__main__')
    theirs = torch.load(tmp_path / 'out' / 'ckpt.pt', weights_only=True)['model']

    bench = load(**settings)
    data, machine = (
        shards.Data(tmp_path / 'data'),
        bench.Machine('cpu', settings.get('dtype', 'float32'), False),
    )
    raw_model, model, optimizer = bench.make_model(data.tokenizer.vocab_size, machine)
    before = {name: p.clone() for name, p in raw_model.state_dict().items()}
    steps = batches.Stream(data.split('train'), bench.make_shape(machine))
    for step in range(3):
        bench.train_step(
            model, steps[step], optimizer, settings['learning_rate'], settings['grad_clip']
        )
    ours = raw_model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not any(torch.equal(p, before[name]) for name, p in ours.items() if p.dim() > 1)


# -----------------------------------------------------------------------------
# what the figures mean


def test_a_share_is_of_the_rates_measured_beside_the_step(load):
    """Three steps of 8 FLOP in 2, 4 and 1 s, between products at 10, 6, 2 and 14 FLOP/s."""
    bench = load()
    laps, rates = [(1.0, 1.0), (2.0, 2.0), (0.5, 0.5)], [10.0, 6.0, 2.0, 14.0]
    found = bench.compare(laps, rates, flops=8, rows=2, block_size=3)
    assert found['step_seconds'] == 2.0 and found['forward_backward_seconds'] == 1.0
    assert found['rows_per_second'] == 1.0 and found['tokens_per_second'] == 3.0
    assert found['limit_flops_per_second'] == 8.0
    assert found['share_of_limit'] == pytest.approx(0.5)  # of 4 / 8, 2 / 4 and 8 / 8
    assert found['forward_backward_share_of_limit'] == pytest.approx(1.0)


def test_warm_up_does_not_count(load, figures, monkeypatch):
    """Steps of 1, 2, 3 and 4 s by a clock of ours, between limits of 1 to 5 times a step's FLOP/s;
    two are warm-up."""
    bench = load(**(QUICK | dict(warmup=2, what='train')))
    flops = (
        bench.make_model(QUICK['vocab_size'], bench.Machine('cpu', 'float32', False))[
            0
        ].flops_per_token()
        * 4
        * 8
    )
    laps, rates, pools = iter([1, 2, 3, 4]), iter([1, 2, 3, 4, 5]), []

    class Watch:
        def __init__(self, device):
            self.marks = 0

        def mark(self):
            self.marks += 1

        def seconds(self):
            assert self.marks == 3  # before, between and after
            return [next(laps) / 2] * 2

    class Ahead(batches.Ahead):
        def __init__(self, reader, device):
            super().__init__(reader, device)
            pools.append(self.pool)

    monkeypatch.setattr(bench, 'Stopwatch', Watch)
    monkeypatch.setattr(bench, 'limit', lambda device: ('a script', lambda: next(rates) * flops))
    monkeypatch.setattr(batches, 'Ahead', Ahead)
    _, found = figures(bench)
    assert found['train']['step_seconds'] == 3.5
    assert found['train']['flops_per_step'] == flops
    assert found['train']['share_of_limit'] == pytest.approx((1 / 3 / 3.5 + 1 / 4 / 4.5) / 2)
    with pytest.raises(
        RuntimeError, match='shutdown'
    ):  # a thread that still reads would keep Windows from deleting
        pools[0].submit(print)


def test_the_limit_of_a_cpu_is_a_product_that_runs(load, monkeypatch):
    bench, ticks = load(), iter([1.0, 3.0])
    monkeypatch.setattr(bench.time, 'perf_counter', lambda: next(ticks))
    against, rate = bench.limit('cpu')
    assert '2048' in against and rate() == 2 * 2048**3 / 2.0


@pytest.mark.parametrize(
    'card, peak', [('NVIDIA H100 80GB HBM3', 989e12), ('Imaginary 9000', None)]
)
def test_the_limit_of_a_card_is_its_data_sheet(load, monkeypatch, card, peak):
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device=None: card)
    _, rate = load().limit('cuda')
    assert rate() == peak


def test_on_an_unknown_card_the_share_is_not_known(load, figures, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device=None: 'Imaginary 9000')
    bench = load(**QUICK, what='train')
    unknown = bench.limit('cuda')
    monkeypatch.setattr(bench, 'limit', lambda device: unknown)
    said, found = figures(bench)
    assert 'MFU n/a' in said and 'tokens/s' in said and '%' not in said
    train = found['train']
    assert (
        train['share_of_limit']
        is train['forward_backward_share_of_limit']
        is train['limit_flops_per_second']
        is None
    )
    assert train['tokens_per_second'] > 0


def test_marks_on_cuda_are_events(load, monkeypatch):
    """Nothing waits between them, and they are read only after a wait."""
    bench, order = load(), []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            order.append('record')

        def elapsed_time(self, end):
            assert order[-1] == 'wait'
            return 250.0

    monkeypatch.setattr(torch.cuda, 'Event', Event)
    monkeypatch.setattr(torch.accelerator, 'synchronize', lambda: order.append('wait'))
    watch = bench.Stopwatch('cuda:0')
    for _ in range(3):
        watch.mark()
    assert watch.seconds() == [0.25, 0.25]
    assert order == ['wait', 'record', 'record', 'record', 'wait']


def test_peak_memory(load, monkeypatch):
    """What is held now is in it; a system without the module says that it does not know."""
    bench = load()
    pytest.importorskip('resource')
    held = np.ones(2**25, np.uint8)
    assert held.nbytes < bench.peak_memory('cpu') < 2**40
    monkeypatch.setitem(sys.modules, 'resource', None)
    assert bench.peak_memory('cpu') is None
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda device=None: 123)
    assert bench.peak_memory('cuda') == 123


# -----------------------------------------------------------------------------
# CORE


def test_one_at_a_time_and_batched_give_the_same_answers(load, monkeypatch):
    """On tasks of CORE's shots and numbers of answers, most of them cut."""
    bench = load(**TINY, core_examples=2)
    monkeypatch.setattr(bench, 'CONTEXT', 300)
    config = dataclasses.replace(bench.make_config(), vocab_size=257, block_size=300)
    model = GPT(dataclasses.replace(config, zero_init=False)).double().eval()
    rng = np.random.default_rng(0)
    assert bench.CORE_TASKS.keys() == bench.core_tasks.PUBLISHED.keys()
    for name, (answers, *_) in bench.CORE_TASKS.items():
        task = bench.random_task(name, rng)
        assert len(task.examples) > task.shots == bench.core_tasks.PUBLISHED[name][0]
        rows = bench.core_tasks.read_examples(task, [1], bench.ONE_TOKEN_PER_BYTE, 300)
        (found,) = bench.core_tasks.score(model, rows)
        alone = bench.one_at_a_time(model, task, 1, 'cpu')
        assert len(found) == len(alone) == answers
        assert [exact for _, exact in alone] == [answer.exact for answer in found]
        losses = [loss for loss, _ in alone]
        assert losses == pytest.approx([answer.loss for answer in found], abs=1e-6)


def test_core_is_measured_on_all_its_tasks(load, figures, monkeypatch):
    bench = load(**QUICK, what='core', core_examples=1)
    monkeypatch.setattr(bench, 'CONTEXT', 64)
    said, found = figures(bench)
    found = found['core']
    assert list(found) == ['choices', 'language_modeling', 'all']
    assert all(group in said for group in found) and said.count('examples/s') == 3
    for figure in found.values():
        ratio = figure['examples_per_second'] / figure['one_at_a_time_per_second']
        assert figure['times'] == pytest.approx(ratio) and ratio > 0


# -----------------------------------------------------------------------------
# decoding


def test_decoding_is_measured_beside_its_limit(load, figures, monkeypatch):
    """Every turn gives all its tokens; without transformers there is nothing to compare."""
    bench = load(**QUICK, what='decode', decode_rows='1,3', decode_tokens=4)
    monkeypatch.setattr(bench, 'SIDE', 16)
    monkeypatch.setattr(bench, 'READ', 16)
    monkeypatch.setitem(sys.modules, 'transformers', None)
    turns = []
    take = bench.our_turn
    monkeypatch.setattr(bench, 'our_turn', lambda *a: turns.append(take(*a)) or turns[-1])
    said, found = figures(bench)
    found = found['decode']
    assert [turn.tokens for turn in turns] == 3 * [4] + 3 * [12]
    assert list(found['rows']) == ['1', '3'] and said.count('tokens/s') == 2
    for i, rates in enumerate(found['rows'].values()):
        counted = turns[3 * i + 1 : 3 * i + 3]
        assert rates['warmup_seconds'] == pytest.approx(turns[3 * i].seconds)
        expected = np.median([turn.tokens / turn.seconds for turn in counted])
        assert rates['tokens_per_second'] == pytest.approx(expected)
        assert 0 < rates['first_token_seconds'] and rates['share_of_limit'] > 0
        assert rates['limit'] in ('memory', 'arithmetic') and rates['transformers'] is None


def test_the_limit_of_a_step_is_memory_read_once_or_its_arithmetic(load):
    bench = load(**TINY, preset='nano', vocab_size=64, decode_tokens=72)
    model = GPT(dataclasses.replace(bench.make_config(), block_size=200))
    matrices = 2 * 12 * 16 * 16 + 64 * 16
    cached = 5 * (64 + 36) * 2 * 2 * 16  # 5 rows at half their length, keys and values of 2 layers
    read, computed = bench.least_seconds(model, 5, 4, memory=1e9, arithmetic=2e9)
    assert read == pytest.approx(4 * (matrices + cached) / 1e9)
    assert computed == pytest.approx(2 * (5 * matrices + cached) / 2e9)


def test_a_step_reads_the_experts_that_its_rows_choose(load):
    """Of 8 experts a row uses 2 and a shared one; each has two matrices of 16 x 64."""
    bench = load(
        **TINY, preset='nano', vocab_size=64, decode_tokens=72, n_expert=8, n_expert_shared=1
    )
    model = GPT(dataclasses.replace(bench.make_config(), block_size=200))
    expert = 2 * 16 * 64
    others = 2 * (4 * 16 * 16 + 16 * 8) + 64 * 16  # attention and router of 2 layers, the head
    for rows, chosen in ((1, 2), (2, 8 * (1 - 0.75**2)), (1000, 8)):
        cached = rows * (64 + 36) * 2 * 2 * 16
        read, computed = bench.least_seconds(model, rows, 4, memory=1e9, arithmetic=2e9)
        assert read == pytest.approx(4 * (others + 2 * (chosen + 1) * expert + cached) / 1e9)
        used = rows * (others + 2 * 3 * expert)
        assert computed == pytest.approx(2 * (used + cached) / 2e9)


@pytest.mark.slow
def test_decoding_is_timed_against_transformers(load, oracle):
    oracle('transformers')
    bench = load(**QUICK, decode_tokens=3)
    llama = bench.make_llama(bench.Machine('cpu', 'float32', False))
    turn = bench.llama_turn(llama, [1, 2, 3], 2)
    assert turn.tokens == 2 * 3 and turn.seconds > 0 and turn.first > 0


# -----------------------------------------------------------------------------
# the program


def test_all_ends_with_one_json_object(run_program, tmp_path):
    done = run_program('bench.py', *flags(QUICK), cwd=tmp_path)
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {'train', 'loader', 'machine', 'settings'}
    assert found['machine']['device'] == 'cpu' and found['machine']['threads'] == 1
    assert found['machine']['torch'] == torch.__version__
    assert {name: found['settings'][name] for name in QUICK} == QUICK
    train, loader = found['train'], found['loader']
    assert train['tokens_per_second'] == pytest.approx(4 * 8 / train['step_seconds'])
    assert 0 < train['forward_backward_seconds'] < train['step_seconds']
    assert 0 < train['share_of_limit'] < train['forward_backward_share_of_limit']
    assert loader['needed_rows_per_second'] == train['rows_per_second']
    assert set(loader['rows_per_second']) == {'plain', 'plain_ahead', 'aligned', 'aligned_ahead'}
    for name, rate in loader['rows_per_second'].items():
        assert rate > 0 and loader['times_needed'][name] == pytest.approx(
            rate / train['rows_per_second']
        )
    assert not list(tmp_path.iterdir()), (
        'the random text lies in a folder of its own, which is gone'
    )


def test_the_loader_alone(figures):
    said, found = figures(**QUICK, what='loader')
    assert 'train' not in found and set(found['loader']['times_needed'].values()) == {None}
    assert said.count('rows/s') == 4 and all(
        rate > 0 for rate in found['loader']['rows_per_second'].values()
    )


def test_the_loader_is_measured_over_every_row_of_its_steps(load, monkeypatch):
    """One second a measurement by a clock of ours: the rate is the rows in it."""
    bench, now = load(**QUICK, gradient_accumulation_steps=3), iter(range(100))
    monkeypatch.setattr(bench.time, 'perf_counter', lambda: next(now))
    asked = []

    class Steps:
        def __getitem__(self, step):
            asked.append(step)
            return [batches.Batch(torch.zeros(4, 8), None, None)] * 3

    assert bench.rows_per_second(Steps(), 'cpu') == pytest.approx(3 * 4 * bench.READS)
    assert asked == list(range((QUICK['warmup'] + QUICK['repeats']) * bench.READS))


def test_the_random_text_is_whole_and_has_documents(load, tmp_path):
    """A vocabulary that spans the surrogates, which JSON would join in pairs."""
    data = load(vocab_size=2**16).write_random_text(tmp_path)
    assert data.tokenizer.vocab_size == 2**16
    ids = data.split('train').read(0, 2**20)
    assert 0.8 < np.mean(ids == 0) * 600 < 1.2 and ids.max() > 2**16 - 1000


def test_the_dial_sets_the_model_alone(load):
    bench = load(depth=3, preset='llama')
    assert (bench.n_layer, bench.n_embd, bench.mlp) == (3, 192, 'swiglu')
    assert (bench.learning_rate, bench.gradient_accumulation_steps) == (2e-3, 1)
    raw_model, _, _ = bench.make_model(50, bench.Machine('cpu', 'float64', False))
    assert raw_model.config.norm_eps == 1e-5 and raw_model.lm_head.weight.dtype == torch.float64


@pytest.mark.parametrize('settings, words', [
    (dict(what='trian'), ["'trian'", 'train, loader']),
    (dict(what='train,'), ["''", 'train, loader']),
    (dict(repeats=0, warmup=-1, seed=-1), ['repeats is 0', 'warmup is -1', 'seed is -1']),
    (dict(vocab_size=70000), ['vocab_size is 70000', '65536']),
    (dict(decode_rows='1,0', decode_tokens=1), ["'1,0'", 'decode_tokens is 1']),
    (dict(what='train', optimizer='sgd'), ["'sgd'", 'muon']),
    (dict(what='train', n_embd=17), ['n_embd is 17']),
    (dict(n_layer=10**9), ['n_layer = 1000000000', 'GiB']),
    (dict(cpu_micro_batch_size=-1), ['cpu_micro_batch_size is -1']),
    (dict(preset='bert'), ["'bert'", 'nano']),
    (dict(device='tpu'), ["'tpu'"]),
])  # fmt: skip
def test_what_is_wrong_is_one_line(load, settings, words):
    with pytest.raises(SystemExit) as stop:
        load(**{**QUICK, **settings}).main()
    assert isinstance(stop.value.code, str) and '\n' not in stop.value.code
    assert all(word in stop.value.code for word in words)


def test_importing_it_measures_nothing(load, capsys):
    assert load(**QUICK).MEASURES and capsys.readouterr().out == ''
