"""
What the machine is and how its processes agree: ranks, device, number type, threads, seeds, files that survive a crash.

torchrun starts one process per GPU (or, on a CPU, as many as asked for) and tells each its place by environment
variables; this is the only file that reads any. Words among processes (stop now, so many seconds, an error's text)
go through gloo on the CPU, gradients through device_group(): nccl on CUDA, gloo elsewhere.
"""

import ctypes
import datetime
import os
import platform
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
import torch.distributed as dist

# Dense bf16 (fp16 where there is no bf16) peak in FLOP/s, from the makers' data sheets. First match wins.
PEAK_FLOPS = {
    'B200': 2250e12, 'H200': 989e12, 'H100 PCIe': 756e12, 'H100 NVL': 835e12, 'H100': 989e12, 'A100': 312e12,
    'A10G': 70e12, 'A10': 125e12, 'L40S': 362e12, 'L4': 121e12, 'RTX 4090': 165e12, 'RTX 3090': 71e12,
    'V100': 125e12, 'T4': 65e12,
}  # fmt: skip
# Compilers: the variable that names one, and what they are called
CC, CXX = ('CC', 'gcc', 'clang'), ('CXX', 'g++', 'clang++', 'cl')


# -----------------------------------------------------------------------------
# ranks

PATIENCE = datetime.timedelta(hours=1)  # how long ranks wait for each other


class Ranks(NamedTuple):
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1


def join() -> Ranks:
    """Join the other processes, if torchrun started any. First thing a program does, so that one can speak for all."""
    names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE')
    ranks = Ranks(*(int(os.environ.get(name, default)) for name, default in zip(names, Ranks())))
    if ranks.world_size > 1:
        dist.init_process_group('gloo', timeout=PATIENCE)
    return ranks


def leave() -> None:
    """End the process group, all ranks at once. A gloo process that leaves without, or before the others are done with
    it, now and then aborts at exit or makes another abort. They wait for each other by torchrun's store: a barrier of
    gloo's can fail in one rank when another has come out of it and left (github.com/pytorch/gloo/issues/155)."""
    if dist.is_initialized():
        store, rank, world_size = next(dist.rendezvous('env://'))
        store.set(f'rank {rank} is done', '')
        store.wait([f'rank {other} is done' for other in range(world_size)], PATIENCE)
        dist.destroy_process_group()
    undo_changes()


@contextmanager
def one_voice(ranks: Ranks) -> Iterator[None]:
    """Around what all ranks do together: if one ends with SystemExit, its message is printed once and all ranks leave
    with status 1. (What else goes wrong on one rank is torchrun's to notice, which then ends them all.)"""
    error = None
    try:
        yield
    except SystemExit as stop:
        if ranks.world_size == 1 or stop.code in (None, 0):
            undo_changes()
            raise
        error = str(stop.code)
    if ranks.world_size == 1:
        return
    errors = [None] * ranks.world_size
    dist.all_gather_object(errors, error)
    if any(errors):
        if ranks.rank == 0:
            print(next(e for e in errors if e), file=sys.stderr, flush=True)
        leave()  # together: a rank that left before would make torchrun end rank 0 before it has spoken
        raise SystemExit(1)


def add_up(numbers: list[float]) -> list[float]:
    """The sums over all ranks, in float64, equal everywhere."""
    if not dist.is_initialized():
        return list(numbers)
    t = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(t)
    return t.tolist()


def device_group(backend: str, device: str, ranks: Ranks) -> dist.ProcessGroup | None:
    """The process group for tensors of the device; None is the default group, or none where there is one process."""
    backend = ('nccl' if device.startswith('cuda') else 'gloo') if backend == 'auto' else backend
    if ranks.world_size == 1 or backend == 'gloo' or not device.startswith('cuda'):
        return None
    return dist.new_group(backend=backend, timeout=PATIENCE)


# -----------------------------------------------------------------------------
# device, numbers, threads


def choose_device(device: str, ranks: Ranks = Ranks()) -> str:  # noqa: B008
    """'auto' -> cuda, mps or cpu, whatever there is; cuda becomes this process's own card, cuda:0 where it is alone."""
    there = {'cuda': torch.cuda.is_available(), 'mps': torch.backends.mps.is_available(), 'cpu': True}
    if device == 'auto':
        device = next(d for d, ok in there.items() if ok and (d != 'mps' or ranks.world_size == 1))
    kind = device.split(':')[0]
    if kind not in there or kind != 'cuda' and device != kind:  # mps and the CPU have no numbers
        raise SystemExit(f"device is '{device}', expected auto, {', '.join(there)}, or one card such as cuda:1")
    if not there[kind]:
        raise SystemExit(f"device is '{device}', which this machine does not offer; use --device=cpu")
    if device == 'cuda':  # without a number torch.cuda.set_device refuses it
        device = f'cuda:{ranks.local_rank}'
    if kind == 'cuda':
        cards, card = torch.cuda.device_count(), device.partition(':')[2] or '0'
        if not card.isdecimal() or int(card) >= cards:
            raise SystemExit(f"device is '{device}', expected cuda:0 to cuda:{cards - 1}: one process for each card")
        torch.cuda.set_device(device)
    return device


def choose_dtype(dtype: str, device: str) -> tuple[str, str]:
    """(dtype, why). bf16 needs compute capability 8.0; torch.cuda.is_bf16_supported() says yes to emulation too."""
    allowed = ('auto', 'float32', 'bfloat16', 'float16', 'float64')
    if dtype not in allowed:
        raise SystemExit(f"dtype is '{dtype}', expected one of {', '.join(allowed)}")
    if dtype == 'float64' and device.startswith('mps'):
        raise SystemExit("dtype is 'float64', which mps does not have; use --dtype=float32")
    if dtype != 'auto':
        return dtype, 'as asked'
    if not device.startswith('cuda'):
        return 'float32', f'the default on {device}'
    major, minor = torch.cuda.get_device_capability(device)
    if major >= 8:
        return 'bfloat16', f'compute capability {major}.{minor}'
    return 'float16', f'compute capability {major}.{minor} has no bf16'


def choose_compile(compile: bool | None, device: str) -> tuple[bool, str]:
    """(whether to torch.compile, why)."""
    if type(compile) not in (bool, type(None)):
        raise SystemExit(f'compile is {compile!r}, expected True, False or None')
    if compile is False:
        return False, 'as asked'
    if compile is None and not device.startswith('cuda'):
        return False, f'the default on {device}'
    if device.startswith('cuda'):
        try:
            import triton  # noqa: F401
        except ImportError:
            return False, 'Triton is not installed'
        if os.name == 'posix' and not compiler(*CC):  # on Windows Triton brings its own
            return False, 'no C compiler was found'
    if device.startswith('cpu') and not compiler(*CXX):
        return False, 'no C++ compiler was found'
    return True, 'as asked' if compile else f'the default on {device}'


def compiler(variable: str, *names: str) -> str | None:
    """The one that an environment variable names, else the first of names that is installed."""
    return next(filter(None, map(shutil.which, (os.environ.get(variable, names[0]), *names))), None)


def autocast(dtype: str, device: str) -> AbstractContextManager:
    """The whole of mixed precision: matrix products in the fast dtype, parameters and sums in float32."""
    if dtype in ('float32', 'float64'):
        return nullcontext()
    return torch.autocast(device.split(':')[0], getattr(torch, dtype))


def set_up(device: str, ranks: Ranks, deterministic: bool) -> None:
    """Threads, TF32, determinism."""
    if device == 'cpu':
        if ranks.world_size > 1:  # torchrun gives each one thread; alone, torch takes all cores or OMP_NUM_THREADS
            torch.set_num_threads(max(1, os.cpu_count() // ranks.local_world_size))
        deterministic = True  # compiled code sums the embedding's gradient with atomics otherwise, at no visible gain
    undo_at_end(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision('high')
    if deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        fills = torch.utils.deterministic
        undo_at_end(setattr, fills, 'fill_uninitialized_memory', fills.fill_uninitialized_memory)
        undo_at_end(torch.set_deterministic_debug_mode, torch.get_deterministic_debug_mode())
        torch.use_deterministic_algorithms(True)
        fills.fill_uninitialized_memory = False  # 3 % of a small step; none is read


def memory(device: str) -> int | None:
    """Bytes that programs on the device may use at most: of the card, or of the machine and of this process's control
    group. None where they are not known (Windows)."""
    if device.startswith('cuda'):
        return torch.cuda.get_device_properties(device).total_memory
    limits = control_group_limits()
    if 'SC_PHYS_PAGES' in getattr(os, 'sysconf_names', ()):
        limits.append(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))
    return min(limits, default=None)


def control_group_limits(root: Path = Path('/')) -> list[int]:  # noqa: B008
    """The memory limits of this process's control groups and of those above them, in bytes (Linux: cgroup 1 and 2)."""
    table, limits = root / 'proc/self/cgroup', []
    for line in table.read_text(encoding='utf-8').splitlines() if table.exists() else ():
        _, controllers, path = line.split(':', 2)
        # in a container the path may be the host's: then the limit is at the top
        if not controllers:
            top, name = root / 'sys/fs/cgroup', 'memory.max'
        elif 'memory' in controllers.split(','):
            top, name = root / 'sys/fs/cgroup/memory', 'memory.limit_in_bytes'
        else:
            continue
        group = top / path.strip('/')
        files = [folder / name for folder in (group, *group.parents) if folder.is_relative_to(top)]
        texts = [file.read_text(encoding='utf-8').strip() for file in files if file.exists()]
        limits += [int(text) for text in texts if text.isdecimal()]  # or 'max'
    return limits


def keep_freed_memory() -> None:
    """Have malloc keep what a step frees for the next step. By default glibc returns it to the kernel, which clears
    every page before it hands it out again: with large micro-batches a third of a step's processor time.

    For programs that use their memory until they end; a server should return it. Does nothing without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if sys.platform == 'linux' else None
    if mallopt:
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        mallopt(trim_threshold, -1)  # never return the end of the heap
        mallopt(mmap_threshold, 2**25)  # the most that glibc accepts: larger blocks are always mapped and unmapped


def seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout of a step is a function of (seed, step, rank): resuming needs no generator's state."""
    torch.manual_seed(((seed * 1_000_003 + step) * 1_000_003 + rank) % 2**63)


def peak_flops(device: str) -> float | None:
    """FLOP/s of the card by its name, or None where the name is not known."""
    if not device.startswith('cuda'):
        return None
    name = torch.cuda.get_device_name(device)
    found = [flops for card, flops in PEAK_FLOPS.items() if re.search(rf'\b{card}\b', name)]  # an L40 is no L4
    return found[0] if found else None


def machine(device: str) -> dict:
    """What a run was done on, and how fast that is now: plain values for the log and the report.

    matmul_gflops: float32 products of 2048 x 2048 matrices, the median of three or of 0.3 s of them, after one to warm
    up, with the threads and the precision that set_up has chosen: call it after that. It moves no random stream.
    """
    names = [torch.cuda.get_device_name(device)] if device.startswith('cuda') else []
    cpuinfo = Path('/proc/cpuinfo')  # Linux; platform.processor() is empty there
    if not names and cpuinfo.exists():
        names = re.findall(r'model name\s*: *(.+)', cpuinfo.read_text(encoding='utf-8', errors='replace'))
    side = 2048
    a, b = torch.rand(2, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    wait = torch.accelerator.synchronize if device != 'cpu' else lambda: None
    laps = []
    while len(laps) < 4 or sum(laps[1:]) < 0.3:
        wait()
        started = perf_counter()
        torch.mm(a, b)
        wait()
        laps.append(perf_counter() - started)
    return dict(
        device=device, name=names[0] if names else platform.processor() or platform.machine(), cores=os.cpu_count(),
        threads=torch.get_num_threads(), torch=torch.__version__, python=platform.python_version(),
        system=platform.system(), matmul_gflops=round(2 * side**3 / median(laps[1:]) / 1e9, 1),
    )  # fmt: skip


def with_threads(number: int) -> dict[str, str]:
    """The environment of a child process that is to use this many threads."""
    return os.environ | {'OMP_NUM_THREADS': str(number)}


UNDO = ExitStack()  # undoes what programs have changed for their whole process


def undo_at_end(undo: Callable, *arguments) -> None:
    """Call undo(*arguments) when the run is over: its process may go on, as a notebook's does.

    That is in leave(), after a SystemExit in one_voice(), after an uncaught exception, and at the end
    of a notebook's cell, however that ends.
    """
    UNDO.callback(undo, *arguments)
    shell = sys.modules['IPython'].get_ipython() if 'IPython' in sys.modules else None
    if shell:
        shell.events.register('post_execute', undo_changes)


def undo_changes() -> None:
    UNDO.close()


def catch_signals() -> list[int]:
    """The list that Ctrl-C, SIGTERM and SIGHUP (the terminal is closed) are appended to, so that a
    step can be finished. A second Ctrl-C ends at once. An ignored SIGHUP, as under nohup, stays so."""
    asked = []
    # torchrun catches SIGHUP even under nohup, passes it to its ranks and soon kills them
    by_torchrun = 'TORCHELASTIC_RUN_ID' in os.environ

    def note(number, frame):
        if number == signal.SIGINT and number in asked:
            raise KeyboardInterrupt
        asked.append(number)

    for name in ('SIGINT', 'SIGTERM', 'SIGHUP'):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        ignored = name == 'SIGHUP' and signal.getsignal(number) == signal.SIG_IGN
        if number and (by_torchrun or not ignored):
            before = signal.signal(number, note)
            undo_at_end(signal.signal, number, before or signal.SIG_DFL)  # None: set by C code
    return asked


def explain_out_of_memory(mend: str) -> None:
    """From here on a program that runs out of memory ends with one line that says what to do, on any device."""

    def last_words(kind, error, trace):
        undo_changes()
        of_torch = issubclass(kind, RuntimeError) and re.search('out of memory|allocate memory', str(error))
        if of_torch or issubclass(kind, MemoryError):
            print(f'{(str(error) or "out of memory").splitlines()[0]:.200}; {mend}', file=sys.stderr)
        else:
            before(kind, error, trace)

    before = sys.excepthook
    undo_at_end(setattr, sys, 'excepthook', before)
    sys.excepthook = last_words


def clock(seconds: float) -> str:
    """3725 -> '1:02:05'."""
    return str(datetime.timedelta(seconds=round(max(0.0, seconds)))).removeprefix('0:')


def start_wandb(project: str, name: str, config: dict):
    """A run of Weights & Biases."""
    try:
        import wandb
    except ImportError:
        raise SystemExit('wandb_log is True and wandb is not installed; run: pip install wandb') from None
    return wandb.init(project=project, name=name, config=config)
