"""runtime.py: choices on machines that are not here (mocked), files that survive a crash, and
ranks on gloo."""

import json
import os
import platform
import re
import signal
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, one_line

import runtime
from runtime import Ranks


@pytest.fixture
def machine(monkeypatch):
    """machine(cuda=2, capability=(8, 0), name='…', mps=False): torch says so. Returns the cards
    that were chosen."""

    def pretend(cuda=0, capability=(8, 0), name='', mps=False):
        chosen = []
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: cuda)
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device=None: name)
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda *a, **k: True)  # as a T4 says
        monkeypatch.setattr(torch.cuda, 'set_device', chosen.append)
        monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: mps)
        return chosen

    return pretend


# ---- device


@pytest.mark.parametrize('cuda, mps, asked, ranks, device', [
    (0, False, 'auto', Ranks(), 'cpu'),
    (0, False, 'cpu', Ranks(), 'cpu'),
    (0, True, 'auto', Ranks(), 'mps'),
    (0, True, 'cpu', Ranks(), 'cpu'),
    (0, True, 'auto', Ranks(1, 1, 2, 2), 'cpu'),  # mps has no process group
    (1, True, 'auto', Ranks(), 'cuda:0'),
    (2, False, 'cuda:1', Ranks(), 'cuda:1'),
    (8, False, 'auto', Ranks(13, 5, 16, 8), 'cuda:5'),  # the card counts on its node
    (8, False, 'cuda', Ranks(0, 0, 2, 2), 'cuda:0'),
    (8, False, 'cuda', Ranks(), 'cuda:0'),  # torch.cuda.set_device('cuda') would be a ValueError
])  # fmt: skip
def test_the_device_is_what_was_asked_for_and_auto_the_best(
    machine, cuda, mps, asked, ranks, device
):
    chosen = machine(cuda=cuda, mps=mps)
    assert runtime.choose_device(asked, ranks) == device
    assert chosen == ([device] if device.startswith('cuda') else [])


@pytest.mark.parametrize('cuda, asked, ranks, words', [
    (0, 'gpu', Ranks(), ["'gpu'", 'auto', 'cuda', 'mps', 'cpu']),
    (0, '', Ranks(), ["''", 'auto']),
    (0, 'cuda', Ranks(), ["'cuda'", '--device=cpu']),
    (0, 'cuda:1', Ranks(), ["'cuda:1'", '--device=cpu']),
    (0, 'mps', Ranks(), ["'mps'", '--device=cpu']),
    (2, 'cuda:2', Ranks(), ["'cuda:2'", 'cuda:0 to cuda:1']),
    (2, 'cuda:x', Ranks(), ["'cuda:x'", 'cuda:0 to cuda:1']),
    (2, 'cuda', Ranks(2, 2, 3, 3), ["'cuda:2'", 'cuda:0 to cuda:1', 'one process']),
])  # fmt: skip
def test_a_device_that_is_not_there_is_named(machine, cuda, asked, ranks, words):
    machine(cuda=cuda)
    with pytest.raises(SystemExit) as stop:
        runtime.choose_device(asked, ranks)
    one_line(stop, *words)


# ---- trap 4: dtype


@pytest.mark.parametrize('capability, dtype, why', [
    ((7, 0), 'float16', '7.0 has no bf16'),
    ((7, 5), 'float16', '7.5 has no bf16'),
    ((8, 0), 'bfloat16', '8.0'),
    ((8, 9), 'bfloat16', '8.9'),
    ((10, 0), 'bfloat16', '10.0'),
])  # fmt: skip
def test_bf16_needs_the_compute_capability(machine, capability, dtype, why):
    machine(cuda=1, capability=capability)
    assert runtime.choose_dtype('auto', 'cuda:0') == (dtype, f'compute capability {why}')


@pytest.mark.parametrize('device', ['cpu', 'mps'])
def test_elsewhere_it_is_float32(device):
    dtype, why = runtime.choose_dtype('auto', device)
    assert dtype == 'float32' and device in why


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16', 'float64'])
def test_an_explicit_dtype_is_taken(machine, dtype):
    machine(cuda=1, capability=(7, 5))
    assert runtime.choose_dtype(dtype, 'cuda') == (dtype, 'as asked')
    assert runtime.choose_dtype(dtype, 'cpu') == (dtype, 'as asked')


@pytest.mark.parametrize('dtype, device, words', [
    ('int8', 'cpu', ["'int8'", 'auto', 'float32', 'bfloat16', 'float16', 'float64']),
    ('', 'cpu', ["''", 'float32']),
    ('float64', 'mps', ["'float64'", 'mps', '--dtype=float32']),
])  # fmt: skip
def test_an_unknown_dtype_is_named(dtype, device, words):
    with pytest.raises(SystemExit) as stop:
        runtime.choose_dtype(dtype, device)
    one_line(stop, *words)


@pytest.mark.parametrize('dtype', ['float32', 'float64', 'bfloat16', 'float16'])
def test_autocast_is_for_the_fast_types_alone(dtype):
    a = torch.ones(2, 2)
    with runtime.autocast(dtype, 'cpu'):
        product, total = a @ a, a.exp().sum()
    assert product.dtype == (torch.float32 if dtype == 'float64' else getattr(torch, dtype))
    assert total.dtype == torch.float32


# ---- trap 14: compile


@pytest.mark.parametrize('compile, device, compiler, triton, expected', [
    (None, 'cpu', True, True, (False, 'the default on cpu')),
    (False, 'cpu', True, True, (False, 'as asked')),
    (True, 'cpu', True, True, (True, 'as asked')),
    (True, 'cpu', False, True, (False, 'no C++ compiler was found')),
    (None, 'cpu', False, True, (False, 'the default on cpu')),
    (None, 'cuda', True, True, (True, 'the default on cuda')),
    (None, 'cuda:3', False, True, (False, 'no C compiler was found')),  # for Triton's launchers
    (True, 'cuda', True, True, (True, 'as asked')),
    (False, 'cuda', True, True, (False, 'as asked')),
    (None, 'cuda', True, False, (False, 'Triton is not installed')),
    (True, 'cuda', True, False, (False, 'Triton is not installed')),
    (None, 'mps', True, True, (False, 'the default on mps')),
])  # fmt: skip
def test_compiling_is_the_default_on_cuda_and_never_a_crash(
    monkeypatch, compile, device, compiler, triton, expected
):
    there = ('clang', 'clang++') if compiler else ()
    monkeypatch.setattr(runtime.shutil, 'which', lambda name: name if name in there else None)
    monkeypatch.setitem(sys.modules, 'triton', sys if triton else None)
    assert runtime.choose_compile(compile, device) == expected


@pytest.mark.parametrize(
    'compile', [0, 1, 'yes']
)  # a setting whose default is None takes any value
def test_compile_is_a_yes_or_a_no(compile):
    with pytest.raises(SystemExit) as stop:
        runtime.choose_compile(compile, 'cpu')
    one_line(stop, 'compile', repr(compile), 'True, False or None')


def test_the_compiler_is_the_one_that_CXX_names(monkeypatch):
    there = {'/opt/c++', 'clang++'}
    monkeypatch.setattr(runtime.shutil, 'which', lambda name: name if name in there else None)
    monkeypatch.setenv('CXX', '/opt/c++')
    assert runtime.compiler(*runtime.CXX) == '/opt/c++'
    monkeypatch.setenv('CXX', 'gone')
    assert runtime.compiler(*runtime.CXX) == 'clang++'
    there.clear()
    assert runtime.compiler(*runtime.CXX) is None


# ---- trap 31: peaks


@pytest.mark.parametrize('name, peak', [
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA H100 PCIe', 756e12),
    ('NVIDIA H100 NVL', 835e12),
    ('NVIDIA H200', 989e12),
    ('NVIDIA A100-SXM4-80GB', 312e12),
    ('NVIDIA A100 80GB PCIe', 312e12),
    ('NVIDIA A10G', 70e12),
    ('NVIDIA A10', 125e12),
    ('NVIDIA L4', 121e12),
    ('NVIDIA L40S', 362e12),
    ('NVIDIA GeForce RTX 4090', 165e12),
    ('Tesla T4', 65e12),
    ('Tesla V100-SXM2-16GB', 125e12),
    ('NVIDIA L40', None),  # neither L4 nor L40S
    ('NVIDIA T400 4GB', None),
    ('NVIDIA RTX A1000', None),
    ('Some Card 9000', None),
    ('', None),
])  # fmt: skip
def test_the_peak_of_a_card_is_known_or_none(machine, name, peak):
    machine(cuda=1, name=name)
    assert runtime.peak_flops('cuda:0') == peak
    assert runtime.peak_flops('cpu') is None and runtime.peak_flops('mps') is None


# ---- attention and memory on CUDA


@pytest.mark.parametrize('capability, cudnn, first, why', [
    ((9, 0), 91900, 'cuDNN attention', '9.0'),
    ((10, 0), 91501, 'cuDNN attention', '10.0'),
    ((9, 0), 91500, 'Flash Attention', '91500'),  # pytorch/pytorch#169849
    ((9, 0), None, 'Flash Attention', 'cuDNN is 0'),
    ((8, 0), 91900, 'Flash Attention', '8.0'),
    ((7, 5), 91900, 'Flash Attention', '7.5'),
])  # fmt: skip
def test_cudnn_computes_attention_on_hopper_only(
    machine, monkeypatch, capability, cudnn, first, why
):
    machine(cuda=1, capability=capability)
    monkeypatch.setattr(torch.backends.cudnn, 'version', lambda: cudnn)
    order, reason = runtime.kernels_to_try('cuda:0')
    names = [runtime.KERNELS[kernel][0] for kernel in order]
    assert names[0] == first and why in reason
    assert names[-3:] == ['Flash Attention', 'memory-efficient attention', 'unfused attention']


def kernels_that(*answers):
    """KERNELS whose tests answer so: '' for yes, else torch's reason."""

    def test(answer):
        def usable(params, debug):
            if answer:
                warnings.warn(f'{answer}\n(from sdp_utils.cpp)', stacklevel=1)
            return not answer

        return usable

    names = (name for name, _ in runtime.KERNELS.values())
    tests = (test(answer) for answer in (*answers, ''))
    return dict(zip(runtime.KERNELS, zip(names, tests)))


@pytest.mark.parametrize('answers, name, why', [
    (('', '', ''), 'cuDNN attention', 'compute capability 9.0'),
    (('it is deterministic', '', ''), 'Flash Attention', 'no cuDNN attention: it is deterministic'),
    (('a', 'b', ''), 'memory-efficient attention', 'no Flash Attention: b'),
    (('a', 'b', 'c'), 'unfused attention', 'no memory-efficient attention: c'),
])  # fmt: skip
def test_the_attention_kernel_is_named_with_torchs_reason(machine, monkeypatch, answers, name, why):
    machine(cuda=1, capability=(9, 0))
    monkeypatch.setattr(torch.backends.cudnn, 'version', lambda: 91900)
    monkeypatch.setattr(runtime, 'KERNELS', kernels_that(*answers))
    q, k = torch.empty(1, 4, 8, 16), torch.empty(1, 2, 8, 16)
    assert runtime.attention_kernel(q, k, k) == (name, why)


def test_the_order_of_kernels_ends_with_the_run(machine, monkeypatch):
    machine(cuda=1, capability=(9, 0))
    monkeypatch.setattr(torch.backends.cudnn, 'version', lambda: 91900)
    before = current_order()
    runtime.set_up('cuda:0', Ranks(), deterministic=False)
    assert current_order() == list(runtime.KERNELS)
    with runtime.any_shape(torch.device('cuda:0')):
        assert current_order() == runtime.FLASH_FIRST
    assert current_order() == list(runtime.KERNELS)
    runtime.undo_changes()
    assert current_order() == before


def current_order():
    return torch.nn.attention._cur_sdpa_kernel_backends(with_priority=True)


def test_what_compiled_code_keeps_is_a_setting_of_the_run():
    import torch._functorch.config as compiler

    runtime.set_up('cpu', Ranks(), False, activation_memory_budget=0.5)
    assert compiler.activation_memory_budget == 0.5
    runtime.undo_changes()
    assert compiler.activation_memory_budget == 1.0
    runtime.set_up('cpu', Ranks(), False)
    assert compiler.activation_memory_budget == 1.0


@pytest.mark.parametrize('given', [
    {},
    {'PYTORCH_ALLOC_CONF': 'max_split_size_mb:64'},
    {'PYTORCH_CUDA_ALLOC_CONF': 'max_split_size_mb:64'},
])  # fmt: skip
def test_cuda_memory_expands_unless_the_user_says_how(machine, monkeypatch, given):
    for name in ('PYTORCH_ALLOC_CONF', 'PYTORCH_CUDA_ALLOC_CONF'):
        monkeypatch.setenv(name, '')  # so that the end of the test takes back what is set below
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    machine(cuda=1)
    runtime.choose_device('cuda')
    found = {name: x for name, x in os.environ.items() if name.endswith('_ALLOC_CONF')}
    assert found == (given or {'PYTORCH_ALLOC_CONF': 'expandable_segments:True'})


# ---- threads, determinism, seeds, clock


@pytest.mark.parametrize('device, ranks, deterministic, cores, threads, strict', [
    ('cpu', Ranks(), False, 8, None, True),  # alone: what torch or OMP_NUM_THREADS says
    ('cpu', Ranks(0, 0, 2, 2), False, 8, 4, True),
    ('cpu', Ranks(5, 1, 8, 4), False, 8, 2, True),  # ranks on this node count
    ('cpu', Ranks(0, 0, 8, 8), False, 2, 1, True),
    ('cuda:0', Ranks(0, 0, 2, 2), False, 8, None, False),
    ('cuda:0', Ranks(), True, 8, None, True),
])  # fmt: skip
def test_threads_and_determinism(monkeypatch, device, ranks, deterministic, cores, threads, strict):
    calls = {}
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (8, 0))
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG', raising=False)
    monkeypatch.setattr(os, 'cpu_count', lambda: cores)
    names = ('set_num_threads', 'set_float32_matmul_precision', 'use_deterministic_algorithms')
    for name in (*names, 'set_deterministic_debug_mode'):
        monkeypatch.setattr(torch, name, lambda value, name=name: calls.update({name: value}))
    runtime.set_up(device, ranks, deterministic)
    assert calls.get('set_num_threads') == threads
    assert calls.get('use_deterministic_algorithms', False) == (strict and device != 'cpu')
    assert calls.get('set_deterministic_debug_mode') == ('error' if device == 'cpu' else None)
    assert calls['set_float32_matmul_precision'] == 'high'
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG', raising=False)  # set_up may have set it


def test_a_cpu_is_set_up_without_the_compiler(run_program, tmp_path):
    lines = (
        'import sys, torch, runtime',
        "runtime.set_up('cpu', runtime.Ranks(), deterministic=False)",
        'assert torch.are_deterministic_algorithms_enabled()',
        "assert 'torch._inductor' not in sys.modules",
    )
    (tmp_path / 'a.py').write_text('\n'.join(lines), encoding='utf-8')
    run_program(tmp_path / 'a.py', env={'PYTHONPATH': ROOT})


def test_the_seed_of_a_step_is_a_function_of_seed_step_and_rank():
    def draw(*where):
        runtime.seed_step(*where)
        return tuple(torch.rand(4).tolist())

    places = [
        (seed, step, rank)
        for seed in (0, 1, 1337, -1)
        for step in (0, 1, 2, 999_999)
        for rank in (0, 1, 7)
    ]
    first = {where: draw(*where) for where in places}
    assert len(set(first.values())) == len(places)
    torch.rand(100)
    assert {where: draw(*where) for where in reversed(places)} == first
    draw(2**62, 10**6, 1023)  # no seed is too large


# ---- what the machine is, and how fast


def test_the_machine_is_described_in_plain_values_and_no_random_number_is_used():
    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(7)
    found = runtime.machine_facts('cpu')
    assert torch.equal(torch.rand(4), expected)
    assert json.loads(json.dumps(found)) == found
    assert found['name'].strip() and found['device'] == 'cpu'
    assert (found['cores'], found['threads']) == (os.cpu_count(), torch.get_num_threads())
    assert (found['torch'], found['python']) == (torch.__version__, platform.python_version())
    assert found['system'] == platform.system()


@pytest.mark.parametrize('seconds, count', [(0.2, 4), (0.02, 16)])
def test_the_rate_is_the_median_of_enough_products_without_the_first(monkeypatch, seconds, count):
    """A clock of our own: the first product takes 50 times as long, the second 3 times, the
    others `seconds` each."""
    marks, now = [], [0.0]

    def mm(a, b):
        assert a.shape == b.shape == (2048, 2048) and a.dtype == torch.float32
        now[0] += seconds * {0: 50, 1: 3}.get(len(marks), 1)
        marks.append(now[0])

    monkeypatch.setattr(torch, 'mm', mm)
    monkeypatch.setattr(runtime, 'perf_counter', lambda: now[0])
    assert runtime.machine_facts('cpu')['matmul_gflops'] == round(2 * 2048**3 / seconds / 1e9, 1)
    assert count - 2 <= len(marks) <= count


@pytest.mark.parametrize('cpuinfo, processor, name', [
    ('processor\t: 0\n' + 2 * 'model name\t: Fast CPU @ 3 GHz\n', 'x', 'Fast CPU @ 3 GHz'),
    ('processor\t: 0\nFeatures\t: fp asimd\n', 'aarch64', 'aarch64'),  # Linux on ARM
    (None, 'Intel64 Family 6', 'Intel64 Family 6'),
    (None, '', platform.machine()),
])  # fmt: skip
def test_the_cpu_has_a_name_on_every_system(monkeypatch, cpuinfo, processor, name):
    monkeypatch.setattr(Path, 'exists', lambda self: cpuinfo is not None)
    monkeypatch.setattr(Path, 'read_text', lambda self, **options: cpuinfo)
    monkeypatch.setattr(platform, 'processor', lambda: processor)
    ticks = iter(range(1000))
    monkeypatch.setattr(runtime, 'perf_counter', lambda: next(ticks))
    assert runtime.machine_facts('cpu')['name'] == name


# ---- the process


@pytest.mark.skipif(not hasattr(signal, 'SIGHUP'), reason='Windows has no SIGHUP')
def test_a_hang_up_is_caught_unless_nohup_has_it_ignored(monkeypatch):
    """torchrun hears it even under nohup, and then kills its ranks."""
    monkeypatch.delenv('TORCHELASTIC_RUN_ID', raising=False)
    at_first = signal.getsignal(signal.SIGHUP)
    try:
        for handler, by_torchrun, caught in (
            (signal.SIG_DFL, False, [signal.SIGHUP]),
            (signal.SIG_IGN, False, []),
            (signal.SIG_IGN, True, [signal.SIGHUP]),
        ):
            signal.signal(signal.SIGHUP, handler)
            if by_torchrun:
                monkeypatch.setenv('TORCHELASTIC_RUN_ID', '1')
            asked = runtime.catch_signals()
            signal.raise_signal(signal.SIGHUP)
            assert asked == caught
            runtime.undo_changes()
            assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        runtime.undo_changes()
        signal.signal(signal.SIGHUP, at_first)


def process_state():
    fills = torch.utils.deterministic.fill_uninitialized_memory
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return (
        sys.excepthook,
        torch.get_deterministic_debug_mode(),
        torch.get_float32_matmul_precision(),
        fills,
        handlers,
    )


@pytest.mark.parametrize('end', ['leave', 'SystemExit', 'exception'])
def test_what_a_run_changes_for_its_process_is_undone_at_its_end(monkeypatch, capsys, end):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # set_up leaves it as it is
    before = process_state()
    runtime.set_up('cpu', Ranks(), deterministic=False)
    runtime.explain_out_of_memory('lower it')
    runtime.catch_signals()
    assert [a == b for a, b in zip(process_state(), before)].count(False) >= 4
    if end == 'leave':
        runtime.leave()
    elif end == 'exception':
        sys.excepthook(RuntimeError, RuntimeError('out of memory\nmore'), None)
        assert capsys.readouterr().err == 'out of memory; lower it\n'
    else:
        with pytest.raises(SystemExit), runtime.errors_once(Ranks()):
            raise SystemExit('something is wrong')
    assert process_state() == before


# ---- ranks


def test_one_process_needs_no_group(monkeypatch):
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)
    assert runtime.join() == Ranks(0, 0, 1, 1)
    assert not dist.is_initialized()
    runtime.leave()
    assert runtime.add_up([1.5, 2]) == [1.5, 2]
    assert runtime.device_group('auto', 'cuda', Ranks()) is None
    with pytest.raises(SystemExit, match='as it was'), runtime.errors_once(Ranks()):
        raise SystemExit('as it was')


def test_join_reads_what_torchrun_says(monkeypatch):
    backends = []
    monkeypatch.setattr(
        dist, 'init_process_group', lambda backend, **options: backends.append(backend)
    )
    monkeypatch.setattr(runtime, 'meet', dist.HashStore)
    for name, value in dict(RANK=11, LOCAL_RANK=3, WORLD_SIZE=16, LOCAL_WORLD_SIZE=8).items():
        monkeypatch.setenv(name, str(value))
    assert runtime.join() == Ranks(rank=11, local_rank=3, world_size=16, local_world_size=8)
    assert backends == ['gloo']


def test_ranks_meet_although_the_store_remembers_dead_ones(monkeypatch):
    store = dist.HashStore()
    here = threading.local()  # the rank of a thread
    monkeypatch.setattr(dist, 'rendezvous', lambda url: iter([(store, here.rank, 3)]))

    def join(rank):
        here.rank = rank
        return runtime.meet()

    store.set('rank 2', 'dead')
    earlier = None
    with ThreadPoolExecutor(3) as pool:
        for order in ((2, 1, 0), (0, 1, 2), (1, 0, 2)):
            found = list(pool.map(join, order))
            found[0].set('address', str(order))
            assert [here.get('address').decode() for here in found] == [str(order)] * 3
            assert earlier is None or earlier.get('address') != found[0].get('address')
            earlier = found[0]


def test_gradients_go_through_nccl_on_cuda_only(monkeypatch):
    monkeypatch.setattr(dist, 'new_group', lambda backend, timeout: backend)
    two = Ranks(0, 0, 2, 2)
    groups = {
        (b, d): runtime.device_group(b, d, two)
        for b in ('auto', 'gloo', 'nccl')
        for d in ('cpu', 'cuda:1')
    }
    assert groups == {
        ('auto', 'cpu'): None, ('gloo', 'cpu'): None, ('nccl', 'cpu'): None,
        ('auto', 'cuda:1'): 'nccl', ('gloo', 'cuda:1'): None, ('nccl', 'cuda:1'): 'nccl',
    }  # fmt: skip


SPEAK = """
import signal
import sys

import runtime

# torchrun ends the others when one has left: each is to leave by itself
signal.signal(signal.SIGTERM, signal.SIG_IGN)
ranks = runtime.join()
with runtime.errors_once(ranks):
    pass
total = runtime.add_up([ranks.rank, 1.0, ranks.rank * (2.0**40 + 1)])  # float32 would lose the 1
n = ranks.world_size
assert total == [n * (n - 1) / 2, n, n * (n - 1) / 2 * (2.0**40 + 1)], total
print(f'rank {ranks.rank} is here', flush=True)
with runtime.errors_once(ranks):
    if str(ranks.rank) in sys.argv[1]:
        raise SystemExit('the data are broken')
print('all is well', flush=True)
runtime.leave()
"""


@pytest.fixture(scope='session')
def speak(tmp_path_factory, run_program):
    """speak(ranks, failing, **more): the script above, in which the ranks named in `failing`
    fail."""
    script = tmp_path_factory.mktemp('speak') / 'speak.py'
    script.write_text(SPEAK, encoding='utf-8')

    def run(ranks, failing, **more):
        path = {'PYTHONPATH': ROOT}
        return run_program(script, failing or '-', ranks=ranks, check=False, env=path, **more)

    return run


@pytest.mark.parametrize('ranks, failing', [(2, '01'), (3, '1')])
def test_ranks_fail_with_errors_once(speak, ranks, failing):
    """One message, whichever ranks fail, and each leaves with status 1: nobody is killed and
    nobody hangs."""
    done = speak(ranks, failing)
    assert done.returncode == 1  # of each
    assert done.stderr.count('the data are broken') == 1
    assert [done.stdout.count(f'rank {rank} is here') for rank in range(ranks)] == [1] * ranks
    assert 'all is well' not in done.stdout


@pytest.mark.slow
def test_ranks_that_torchrun_starts_fail_with_errors_once(speak):
    done = speak(2, '01', fresh=True)
    assert done.returncode == 1
    assert done.stderr.count('the data are broken') == 1
    codes = re.findall(r'exitcode +: (-?\d+)', done.stderr)  # torchrun's list of who failed
    assert len(codes) == 2 and '1' in codes, done.stderr  # it may end a rank that is leaving


@pytest.mark.parametrize('table, files, limits', [
    ('0::/user/job\n', {
        'memory.max': 'max', 'user/memory.max': '700', 'user/job/memory.max': '900',
    }, [900, 700]),
    ('0::/\n', {'memory.max': '800'}, [800]),
    # in a container the group is the top
    ('0::/docker/of/the/host\n', {'memory.max': '800'}, [800]),
    ('5:cpuset:/\n4:cpu,memory:/job\n0::/\n', {
        'memory/memory.limit_in_bytes': str(2**63 - 4096),
        'memory/job/memory.limit_in_bytes': '600',
    }, [600, 2**63 - 4096]),
    (None, {}, []),  # no Linux
])  # fmt: skip
def test_the_limits_of_control_groups(tmp_path, table, files, limits):
    files = {f'sys/fs/cgroup/{name}': text for name, text in files.items()}
    for name, text in (files if table is None else {**files, 'proc/self/cgroup': table}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding='utf-8')
    assert runtime.control_group_limits(tmp_path) == limits


def test_memory_is_the_cards_or_the_least_that_this_process_may_use(monkeypatch):
    card = type('Card', (), {'total_memory': 123})
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: card)
    assert runtime.memory('cuda:0') == 123
    monkeypatch.setattr(runtime, 'control_group_limits', lambda: [])
    physical = runtime.memory('cpu')
    assert physical is None or 2**27 < physical < 2**50
    monkeypatch.setattr(runtime, 'control_group_limits', lambda: [2**26, 2**63])
    assert runtime.memory('cpu') == 2**26


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='needs glibc')
def test_freed_memory_is_kept():
    """Eight blocks of 16 MB, which malloc would return to the kernel: 4,096 pages each, all to
    be mapped again. Where the heap is in pieces, a few rounds pass before the blocks fit."""
    import resource

    runtime.keep_freed_memory()
    faults = []
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.ones(2**22) for _ in range(8)]
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        del blocks
    assert min(faults[1:]) < 2000, faults


@pytest.mark.parametrize('error, said', [
    (RuntimeError('CUDA out of memory. Tried 2 GiB\nmore'), 'CUDA out of memory. Tried 2 GiB'),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "can't allocate memory"),
    (MemoryError('Unable to allocate 7.28 TiB for an array'), 'Unable to allocate 7.28 TiB'),
    (MemoryError(), 'out of memory'),
])  # fmt: skip
def test_out_of_memory_says_what_to_lower(monkeypatch, capsys, error, said):
    monkeypatch.setattr(sys, 'excepthook', None)
    runtime.explain_out_of_memory('lower --batch_size')
    sys.excepthook(type(error), error, None)
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and line.endswith('; lower --batch_size')


def test_ranks_that_agree_go_on(speak):
    done = speak(2, '')
    assert (done.returncode, done.stdout.count('all is well')) == (0, 2)
    assert 'the data are broken' not in done.stderr


@pytest.mark.slow
def test_ten_runs_on_two_ranks_end_with_status_0(speak):
    """Trap 36: without destroy_process_group() a gloo process now and then aborts at exit."""
    assert [speak(2, '').returncode for _ in range(10)] == [0] * 10


def test_a_child_process_gets_its_threads_and_the_rest_of_the_environment(monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '2')
    environment = runtime.with_threads(3)
    assert (
        environment == {**os.environ, 'OMP_NUM_THREADS': '3'}
        and os.environ['OMP_NUM_THREADS'] == '2'
    )
