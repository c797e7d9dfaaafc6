"""
The machine and the processes: ranks, device, number type, threads, memory, seeds, signals.

torchrun starts one process per GPU (on a CPU, as many as asked for) and tells each its rank by
environment variables. Messages among processes (stop now, elapsed seconds, an error's text) go
through gloo on the CPU; gradients go through device_group(): NCCL on CUDA, gloo elsewhere.
"""

import ctypes
import datetime
import os
import platform
import re
import shutil
import signal
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.backends.cuda import (
    SDPAParams,
    can_use_cudnn_attention,
    can_use_efficient_attention,
    can_use_flash_attention,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

# Dense bf16 peak in FLOP/s (fp16 for cards without bf16), from data sheets. The first match is used
PEAK_FLOPS = {
    'B200': 2250e12, 'H200': 989e12, 'H100 PCIe': 756e12, 'H100 NVL': 835e12, 'H100': 989e12,
    'A100': 312e12, 'A10G': 70e12, 'A10': 125e12, 'L40S': 362e12, 'L4': 121e12, 'RTX 4090': 165e12,
    'RTX 3090': 71e12, 'V100': 125e12, 'T4': 65e12,
}  # fmt: skip
# Bytes that a second reads of the card's memory, from data sheets
PEAK_BANDWIDTH = {
    'B200': 8.0e12, 'H200': 4.8e12, 'H100 PCIe': 2.0e12, 'H100 NVL': 3.9e12, 'H100': 3.35e12,
    'A100-SXM4-80GB': 2.04e12, 'A100 80GB': 1.94e12, 'A100': 1.56e12, 'A10G': 0.6e12,
    'A10': 0.6e12, 'L40S': 0.86e12, 'L4': 0.3e12, 'RTX 4090': 1.01e12, 'RTX 3090': 0.94e12,
    'V100': 0.9e12, 'T4': 0.32e12,
}  # fmt: skip
# Compilers: the environment variable that names one, then the usual names
CC = ('CC', 'gcc', 'clang')
CXX = ('CXX', 'g++', 'clang++', 'cl')

# -----------------------------------------------------------------------------
# ranks

PATIENCE = datetime.timedelta(hours=1)  # how long ranks wait for each other


class Ranks(NamedTuple):
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1


def join() -> Ranks:
    """Join the other processes, if torchrun started any. Call it first in a program, so that ranks
    can report errors once."""
    names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE')
    numbers = [int(os.environ.get(name, default)) for name, default in zip(names, Ranks())]
    ranks = Ranks(*numbers)
    if ranks.world_size > 1:
        place = dict(rank=ranks.rank, world_size=ranks.world_size)
        dist.init_process_group('gloo', store=meet(), timeout=PATIENCE, **place)
    return ranks


def meet() -> dist.Store:
    """
    Wait until all ranks have called this. Returns a store of this meeting's own.

    torchrun keeps one store for all attempts (--max-restarts), so it holds what dead processes
    wrote, such as their addresses. Nodes count their restarts separately, so no number of torchrun
    names an attempt. Therefore each process takes a random name. The others tell theirs to rank 0,
    whose name is the meeting's.
    """
    store, rank, world_size = next(dist.rendezvous('env://'))
    name = uuid.uuid4().hex
    meeting = name if rank == 0 else ''
    deadline = time.monotonic() + PATIENCE.total_seconds()
    store.set(f'rank {rank}', name)
    while time.monotonic() < deadline:
        if rank == 0:
            # 1) Tell the meeting to each process, also to one that has replaced a dead one
            present = [other for other in range(1, world_size) if store.check([f'rank {other}'])]
            for other in present:
                store.set(f'to {store.get(f"rank {other}").decode()}', name)
            # 2) Begin when all have said that they know it
            if store.check([f'{name}: {other}' for other in range(1, world_size)]):
                store.set(f'{name}: all', '')
        elif store.check([f'to {name}']):
            meeting = store.get(f'to {name}').decode()
            store.set(f'{meeting}: {rank}', '')
        if meeting and store.check([f'{meeting}: all']):
            return dist.PrefixStore(meeting, store)
        time.sleep(0.01)
    raise TimeoutError(f'rank {rank} has waited {PATIENCE} for the other {world_size - 1}')


def leave() -> None:
    """
    End the process group, on all ranks together, and undo what the run changed in its process.

    A gloo process that exits before the others sometimes aborts, or makes another one abort. A gloo
    barrier does not help: it can fail on one rank after another has passed it and left
    (github.com/pytorch/gloo/issues/155). So ranks wait for each other through torchrun's store.
    """
    undo_changes()  # first: a SIGTERM ends a rank that waits here for a dead one
    if dist.is_initialized():
        meet()
        dist.destroy_process_group()


@contextmanager
def errors_once(ranks: Ranks) -> Iterator[None]:
    """Around code that all ranks run: if a rank raises SystemExit, its message is printed once and
    all ranks exit with status 1. Other exceptions pass, and torchrun then ends all ranks. Each rank
    waits at the end for the others."""
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
        # together: when a rank exits, torchrun ends rank 0, perhaps before it has printed
        leave()
        raise SystemExit(1)


def rank_and_world_size() -> tuple[int, int]:
    """Of this process, (0, 1) if it is the only one."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def add_up(numbers: list[float]) -> list[float]:
    """The sums over all ranks, in float64, equal on every rank."""
    if not dist.is_initialized():
        return list(numbers)
    t = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(t)
    return t.tolist()


def device_group(backend: str, device: str, ranks: Ranks) -> dist.ProcessGroup | None:
    """The process group for tensors on the device. None: the default group, or a single process."""
    on_cuda = device.startswith('cuda')
    if backend == 'auto':
        backend = 'nccl' if on_cuda else 'gloo'
    if ranks.world_size == 1 or backend == 'gloo' or not on_cuda:
        return None
    return dist.new_group(backend=backend, timeout=PATIENCE)


# -----------------------------------------------------------------------------
# device, number type, compiler


class Machine(NamedTuple):
    """What a program runs on, as chosen from its settings."""

    device: str  # cpu | cuda:0 | mps
    dtype: str  # float32 | bfloat16 | float16 | float64
    compile: bool
    why_dtype: str
    why_compile: str


def choose_machine(device: str, dtype: str, compile: bool | None, ranks: Ranks) -> Machine:
    device = choose_device(device, ranks)
    dtype, why_dtype = choose_dtype(dtype, device)
    compile, why_compile = choose_compile(compile, device)
    return Machine(device, dtype, compile, why_dtype, why_compile)


def choose_device(device: str, ranks: Ranks = Ranks()) -> str:  # noqa: B008
    """'auto' -> cuda, mps or cpu, the first that exists. 'cuda' -> this process's card, cuda:0 for
    a single process. SystemExit for a device that does not exist."""
    # 1) The kind. Freed memory must serve a block of any size, or a large one (a cache, a bucket)
    # runs out of memory beside much free memory. CUDA reads this when it starts
    if 'PYTORCH_CUDA_ALLOC_CONF' not in os.environ:  # the older name
        os.environ.setdefault('PYTORCH_ALLOC_CONF', 'expandable_segments:True')
    available = {
        'cuda': torch.cuda.is_available(),
        'mps': torch.backends.mps.is_available(),
        'cpu': True,
    }
    if device == 'auto':
        usable = [d for d, ok in available.items() if ok and (d != 'mps' or ranks.world_size == 1)]
        device = usable[0]
    kind = device.split(':')[0]
    if kind not in available or kind != 'cuda' and device != kind:  # only cuda has numbers
        expected = f'auto, {", ".join(available)}, or one card such as cuda:1'
        raise SystemExit(f"device is '{device}', expected {expected}")
    if not available[kind]:
        raise SystemExit(
            f"device is '{device}', which this machine does not offer; use --device=cpu"
        )
    # 2) The card
    if device == 'cuda':  # torch.cuda.set_device needs a number
        device = f'cuda:{ranks.local_rank}'
    if kind == 'cuda':
        cards = torch.cuda.device_count()
        card = device.partition(':')[2] or '0'
        if not card.isdecimal() or int(card) >= cards:
            raise SystemExit(
                f"device is '{device}', expected cuda:0 to cuda:{cards - 1}: "
                'one process for each card'
            )
        torch.cuda.set_device(device)
    return device


def choose_dtype(dtype: str, device: str) -> tuple[str, str]:
    """(dtype, why). bf16 needs compute capability 8.0: torch.cuda.is_bf16_supported() is true for
    cards that only emulate it."""
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
        if os.name == 'posix' and not compiler(*CC):  # on Windows Triton has its own
            return False, 'no C compiler was found'
    if device.startswith('cpu') and not compiler(*CXX):
        return False, 'no C++ compiler was found'
    return True, 'as asked' if compile else f'the default on {device}'


def compiler(variable: str, *names: str) -> str | None:
    """The compiler that an environment variable names, else the first installed one of names."""
    candidates = (os.environ.get(variable, names[0]), *names)
    return next(filter(None, map(shutil.which, candidates)), None)


def autocast(dtype: str, device: str) -> AbstractContextManager:
    """Mixed precision: matrix products in the fast dtype, parameters and sums in float32."""
    if dtype in ('float32', 'float64'):
        return nullcontext()
    return torch.autocast(device.split(':')[0], getattr(torch, dtype))


def set_up(
    device: str, ranks: Ranks, deterministic: bool, activation_memory_budget: float = 1.0
) -> None:
    """Set threads, TF32, determinism, the order of attention kernels, and how much compiled code
    keeps for backward: below 1 it computes some activations again."""
    # 1) Threads
    if device == 'cpu':
        # torchrun gives each rank one thread. Alone, torch takes all cores, or OMP_NUM_THREADS
        if ranks.world_size > 1:
            torch.set_num_threads(max(1, os.cpu_count() // ranks.local_world_size))
        # otherwise compiled code sums the embedding's gradient with atomics, without visible gain
        deterministic = True

    # 2) Precision and determinism
    undo_at_end(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision('high')
    if deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        fills = torch.utils.deterministic
        undo_at_end(setattr, fills, 'fill_uninitialized_memory', fills.fill_uninitialized_memory)
        undo_at_end(torch.set_deterministic_debug_mode, torch.get_deterministic_debug_mode())
        if device == 'cpu':
            torch.set_deterministic_debug_mode('error')
        else:  # the same, and tells the compiler, whose import takes a second
            torch.use_deterministic_algorithms(True)
        fills.fill_uninitialized_memory = False  # saves 3 % of a small step; no such value is read

    # 3) The compiler, and attention
    if activation_memory_budget < 1:
        import torch._functorch.config as compiler  # the only access that torch offers

        name = 'activation_memory_budget'
        undo_at_end(setattr, compiler, name, compiler.activation_memory_budget)
        compiler.activation_memory_budget = activation_memory_budget
    if device.startswith('cuda'):
        order, _ = kernels_to_try(device)
        kernels = sdpa_kernel(order, set_priority=True)
        kernels.__enter__()
        undo_at_end(kernels.__exit__, None, None, None)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed dropout by (seed, step, rank), so that resuming needs no generator's state."""
    torch.manual_seed(((seed * 1_000_003 + step) * 1_000_003 + rank) % 2**63)


# -----------------------------------------------------------------------------
# attention on CUDA

# torch's attention kernels: name, and torch's test whether one can take given tensors
KERNELS = {
    SDPBackend.CUDNN_ATTENTION: ('cuDNN attention', can_use_cudnn_attention),
    SDPBackend.FLASH_ATTENTION: ('Flash Attention', can_use_flash_attention),
    SDPBackend.EFFICIENT_ATTENTION: ('memory-efficient attention', can_use_efficient_attention),
    SDPBackend.MATH: ('unfused attention', lambda params, debug: True),
}
FLASH_FIRST = [kernel for kernel in KERNELS if kernel != SDPBackend.CUDNN_ATTENTION]


def kernels_to_try(device: str) -> tuple[list[SDPBackend], str]:
    """
    The attention kernels for training on this card, in the order to try them, and why.

    cuDNN's takes about half of Flash's time on Hopper and more than Flash on an A100
    (huggingface/transformers#48163). Before cuDNN 9.15.1 its results can be wrong where a row is
    not a multiple of 128 tokens (pytorch/pytorch#169849). Which version there is depends on the
    wheel of torch and on LD_LIBRARY_PATH.
    """
    major, minor = torch.cuda.get_device_capability(device)
    version = torch.backends.cudnn.version() or 0
    if major not in (9, 10):
        return FLASH_FIRST, f'compute capability {major}.{minor}'
    if version < 91501:
        return FLASH_FIRST, f'cuDNN is {version}, expected 91501 or later'
    return list(KERNELS), f'compute capability {major}.{minor}'


def attention_kernel(q, k, v, mask=None, dropout: float = 0.0) -> tuple[str, str]:
    """(name of the kernel that training takes for such tensors, why). The reasons come from torch:
    why no kernel before it could be taken."""
    order, why = kernels_to_try(q.device)
    is_causal = mask is None
    params = SDPAParams(q, k, v, mask, dropout, is_causal, k.shape[1] < q.shape[1])
    for kernel in order:
        name, usable = KERNELS[kernel]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            if usable(params, debug=True):
                break
        reason = str(caught[0].message).splitlines()[0] if caught else 'not built into torch'
        why = f'no {name}: {reason}'
    return name, why


def any_shape(device: torch.device) -> AbstractContextManager:
    """For forward passes of ever new shapes: cuDNN would plan anew for each, some 30 ms."""
    return sdpa_kernel(FLASH_FIRST, set_priority=True) if device.type == 'cuda' else nullcontext()


# -----------------------------------------------------------------------------
# memory and speed


def memory(device: str) -> int | None:
    """Bytes that a program may use on the device: the card's, or the smaller of the machine's and
    the control group's. None where unknown (Windows)."""
    if device.startswith('cuda'):
        return torch.cuda.get_device_properties(device).total_memory
    limits = control_group_limits()
    if 'SC_PHYS_PAGES' in getattr(os, 'sysconf_names', ()):
        limits.append(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))
    return min(limits, default=None)


def control_group_limits(root: Path = Path('/')) -> list[int]:  # noqa: B008
    """The memory limits in bytes of this process's control groups and of the groups above them
    (Linux, cgroup 1 and 2)."""
    table = root / 'proc/self/cgroup'
    if not table.exists():
        return []
    limits = []
    for line in table.read_text(encoding='utf-8').splitlines():
        _, controllers, path = line.split(':', 2)
        if not controllers:
            top = root / 'sys/fs/cgroup'
            name = 'memory.max'
        elif 'memory' in controllers.split(','):
            top = root / 'sys/fs/cgroup/memory'
            name = 'memory.limit_in_bytes'
        else:
            continue
        # in a container the path may be the host's; the limit is then at the top
        group = top / path.strip('/')
        files = [folder / name for folder in (group, *group.parents) if folder.is_relative_to(top)]
        texts = [file.read_text(encoding='utf-8').strip() for file in files if file.exists()]
        limits += [int(text) for text in texts if text.isdecimal()]  # or 'max'
    return limits


def keep_freed_memory() -> None:
    """
    Make malloc keep the memory that a step frees, for the next step. Does nothing without glibc.

    By default glibc returns it to the kernel, which clears every page before it hands it out again:
    with large micro-batches a third of a step's processor time. For programs that need their memory
    until they end; a server should return it.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if sys.platform == 'linux' else None
    if mallopt:
        trim_threshold = -1  # M_TRIM_THRESHOLD of malloc.h
        mmap_threshold = -3  # M_MMAP_THRESHOLD
        mallopt(trim_threshold, -1)  # never return the end of the heap
        mallopt(mmap_threshold, 2**25)  # glibc's maximum; larger blocks are mapped and unmapped


def peak_flops(device: str) -> float | None:
    """FLOP/s of the card by its name; None for an unknown card."""
    return of_card(PEAK_FLOPS, device)


def peak_bandwidth(device: str) -> float | None:
    """Bytes per second of the card's memory; None for an unknown card."""
    return of_card(PEAK_BANDWIDTH, device)


def of_card(table: dict[str, float], device: str) -> float | None:
    """The table's number for the card; None for an unknown card."""
    if not device.startswith('cuda'):
        return None
    name = torch.cuda.get_device_name(device)
    # whole words: an L40 is not an L4
    return next((x for card, x in table.items() if re.search(rf'\b{card}\b', name)), None)


def machine_facts(device: str) -> dict:
    """
    The machine and its current speed, as plain values for the log and the report.

    matmul_gflops: float32 products of 2048 x 2048 matrices, the median of three or of 0.3 seconds,
    after one to warm up. Call it after set_up, which chooses threads and precision. It does not
    touch the random streams.
    """
    # 1) Name
    name = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')  # Linux, where platform.processor() is empty
    if device.startswith('cuda'):
        name = torch.cuda.get_device_name(device)
    elif cpuinfo.exists():
        text = cpuinfo.read_text(encoding='utf-8', errors='replace')
        found = re.search(r'model name\s*: *(.+)', text)
        name = found.group(1) if found else name

    # 2) Speed
    side = 2048
    a, b = torch.rand(2, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    wait = (lambda: None) if device == 'cpu' else torch.accelerator.synchronize
    laps = []
    while len(laps) < 4 or sum(laps[1:]) < 0.3:
        wait()
        started = perf_counter()
        torch.mm(a, b)
        wait()
        laps.append(perf_counter() - started)
    return dict(
        device=device, name=name, cores=os.cpu_count(), threads=torch.get_num_threads(),
        torch=torch.__version__, python=platform.python_version(), system=platform.system(),
        matmul_gflops=round(2 * side**3 / median(laps[1:]) / 1e9, 1),
    )  # fmt: skip


def with_threads(number: int) -> dict[str, str]:
    """The environment of a child process that is to use this many threads."""
    return os.environ | {'OMP_NUM_THREADS': str(number)}


# -----------------------------------------------------------------------------
# signals, errors, and what a run changes for its whole process

UNDO = ExitStack()


def undo_at_end(undo: Callable, *arguments) -> None:
    """
    Call undo(*arguments) at the end of the run, because its process may outlive it, as a
    notebook's does.

    The end is leave(), a SystemExit within errors_once(), an uncaught exception, or the end of a
    notebook's cell.
    """
    UNDO.callback(undo, *arguments)
    shell = sys.modules['IPython'].get_ipython() if 'IPython' in sys.modules else None
    if shell:
        shell.events.register('post_execute', undo_changes)


def undo_changes() -> None:
    UNDO.close()


def catch_signals() -> list[int]:
    """
    A list to which Ctrl-C, SIGTERM and SIGHUP (the terminal is closed) are appended, so that a step
    can be finished. A second Ctrl-C ends at once. If SIGHUP is ignored (nohup), it stays ignored.
    """
    asked = []
    # torchrun catches SIGHUP even under nohup, passes it to its ranks and soon kills them
    by_torchrun = 'TORCHELASTIC_RUN_ID' in os.environ

    def append(number, frame):
        if number == signal.SIGINT and number in asked:
            raise KeyboardInterrupt
        asked.append(number)

    for name in ('SIGINT', 'SIGTERM', 'SIGHUP'):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        ignored = name == 'SIGHUP' and signal.getsignal(number) == signal.SIG_IGN
        if number and (by_torchrun or not ignored):
            before = signal.signal(number, append)
            undo_at_end(signal.signal, number, before or signal.SIG_DFL)  # None: set by C code
    return asked


def explain_out_of_memory(hint: str, details: Callable[[], str] = str) -> None:
    """From now on report out of memory in one line with this hint, on any device. details(): text
    to print below it."""

    def final_message(kind, error, trace):
        undo_changes()
        torch_says_so = re.search('out of memory|allocate memory', str(error))
        if issubclass(kind, RuntimeError) and torch_says_so or issubclass(kind, MemoryError):
            first_line = (str(error) or 'out of memory').splitlines()[0]
            print(f'{first_line:.200}; {hint}', file=sys.stderr)
            if text := details():
                print(text, file=sys.stderr)
        else:
            before(kind, error, trace)

    before = sys.excepthook
    undo_at_end(setattr, sys, 'excepthook', before)
    sys.excepthook = final_message
