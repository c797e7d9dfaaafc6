"""
How fast this machine does what the project asks of it, each thing beside a limit of the same machine.

    $ python bench.py                                    # train and loader, at the size of a bare `python train.py`
    $ python bench.py --what=loader --batch_size=64      # one thing alone
    $ python bench.py --what=tokenizer --text_mb=20
    $ python bench.py --what=train --n_layer=6 --n_head=6 --n_embd=384 --block_size=256 --vocab_size=65 --batch_size=64
    $ python bench.py --depth=12 --block_size=1024 --vocab_size=50304 --batch_size=32      # on a GPU

train: a whole training step, optimizer included, and forward + backward alone. On a CPU its FLOP/s are divided by those
of a float32 matrix product timed right before and after it (a shared machine's speed swings, their ratio does not), on
CUDA by the peak of the card's data sheet, where runtime.py knows the card. loader: rows a second, beside those that the
training step takes. tokenizer (only when it is named: it takes minutes): training a BPE and encoding with it, beside
rustbpe, gigatoken and tiktoken on the same cores. Figures are medians. The last line of stdout is all of them as one
JSON object.

Left out on purpose: several ranks, and data that does not fit into the operating system's cache of files.
"""

import ast
import base64
import dataclasses
import hashlib
import importlib.util
import json
import os
import platform
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out

import batches
import console
import plan
import runtime
import tokenizer as tokenizers
from configurator import configure
from model import GPT, PRESETS, GPTConfig
from optim import Optimizer

# What to measure, and on what
what = 'all'  # all (train and loader), or some of train, loader, tokenizer (see MEASURES) with commas between them
repeats = 20  # measurements, of which the median counts
warmup = 3  # measurements before them that do not count; compilation falls into the first
device = 'auto'  # auto | cpu | cuda | cuda:1 | mps
dtype = 'auto'  # auto | float32 | bfloat16 | float16 | float64
compile = None  # torch.compile: None is yes on CUDA and no elsewhere
seed = 1337  # of the weights and the random tokens

# A step, in train.py's words. The speed of a step does not depend on its learning rate, nor on what the tokens say
batch_size = 16  # rows of a micro-batch, at most
gradient_accumulation_steps = 1  # a step is gradient_accumulation_steps * batch_size rows
cpu_micro_batch_size = 0  # rows of a micro-batch on a CPU, at most; 0: by the size of the model, see plan.py
optimizer = 'muon'  # muon | adamw
muon_iterations = 5  # 5 | 3 products that make an update orthogonal
learning_rate = 2e-3  # constant
grad_clip = 1.0  # longest gradient; 0 is off

# The model
preset = 'nano'  # nano | gpt2 | llama | qwen3: sets the switches below that are not given, see PRESETS in model.py
depth = 0  # the dial: layers, and by them width and heads, see plan.py; 0 is off
vocab_size = 1024  # ids that exist
n_layer = 4  # blocks
n_head = 4  # attention heads
n_kv_head = 0  # heads of keys and values; 0 is n_head
n_embd = 128  # width
n_hidden = 0  # width of the MLP; 0 is 4 * n_embd, 8/3 * n_embd for swiglu
block_size = 128  # tokens of a row
dropout = 0.0  # share of activations dropped
norm = 'rms'  # rms | rms_gain | layer
positions = 'rope'  # rope | learned
qk_norm = 'rms'  # none | rms | rms_gain: of queries and keys
mlp = 'relu2'  # relu2 | gelu | swiglu
tied_head = False  # the head is the embedding table
softcap = 15.0  # logits stay within (-softcap, softcap); 0 is off

# The tokenizer
text_mb = 100.0  # millions of bytes of text to train it on, from what this Python has installed
bpe_vocab_size = 32768  # ids of the tokenizer
bpe_repeats = 3  # turns in which each program trains and encodes once


def derive(settings, explicit):
    """Of what preset and depth imply, the model: a dial's rows per step would take a CPU minutes each."""
    fields = {field.name for field in dataclasses.fields(GPTConfig)} & set(settings)
    return {name: found for name, found in plan.derive(settings, explicit).items() if name in fields}


console.set_up(must_finish=False)
config = configure(globals(), derive=derive)

TOKENS = 2**20  # of the random text, at least
BOS, DOCUMENT = 0, 600  # the id that begins a document for the aligned loader, and tokens of a document on average
READS = 10  # steps that the loader reads in one measurement: a single one may take less than a millisecond
SIDE = 2048  # of the square matrices whose product is the limit


class Machine(NamedTuple):
    """What the measurements run on."""

    device: str
    dtype: str
    compile: bool


# -----------------------------------------------------------------------------
# time, the limit, memory


def wait(device: str) -> None:
    """Until the device has done all it was asked to."""
    if device != 'cpu':
        torch.accelerator.synchronize()


class Stopwatch:
    """Marks in time, read at the end. On CUDA they are events in the stream, so that none waits for the work before."""

    def __init__(self, device: str):
        self.device, self.cuda, self.marks = device, device.startswith('cuda'), []
        wait(device)

    def mark(self) -> None:
        if self.cuda:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            wait(self.device)
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """From each mark to the next."""
        wait(self.device)
        between = zip(self.marks, self.marks[1:])
        return [a.elapsed_time(b) / 1000 if self.cuda else b - a for a, b in between]  # events count milliseconds


def limit(device: str) -> tuple[str, Callable[[], float | None]]:
    """(what a step is compared with, a function that tells its FLOP/s now, or None where nobody knows)."""
    if device.startswith('cuda'):
        peak = runtime.peak_flops(device)
        return ("the data sheet's 16-bit peak" if peak else 'an unknown card'), lambda: peak
    a, b, product = torch.rand(3, SIDE, SIDE, device=device)

    def measure():
        watch = Stopwatch(device)
        watch.mark()
        torch.mm(a, b, out=product)
        watch.mark()
        return 2 * SIDE**3 / watch.seconds()[0]

    return f'a {SIDE}^3 float32 matmul between the steps', measure


def peak_memory(device: str) -> int | None:
    """Bytes: the card's where there is one, else the process's, the limit's 48 MiB included. None on Windows."""
    if device.startswith('cuda'):
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == 'darwin' else size * 1024  # macOS counts bytes, the others KiB


# -----------------------------------------------------------------------------
# the training step


def train_step(model, micro_batches, optimizer, lr: float, grad_clip: float, between=lambda: None) -> None:
    """train.py's step without its log; between() is called when forward and backward are done."""
    for batch in micro_batches:
        loss = (batch.weights * model(batch.inputs, batch.targets)).sum()
        (loss * optimizer.loss_scale).backward()
    between()
    optimizer.reduce()
    norm = optimizer.norm()
    optimizer.step(lr, norm, grad_clip)


def make_shape(machine: Machine) -> batches.Shape:
    number = torch.float64 if machine.dtype == 'float64' else torch.float32
    rows = plan.micro_batch_rows(make_config(), config, machine.device)
    return batches.Shape(gradient_accumulation_steps * batch_size, rows, block_size, seed=seed, dtype=number)


def make_config() -> GPTConfig:
    fields = {field.name: config[field.name] for field in dataclasses.fields(GPTConfig) if field.name in config}
    return GPTConfig(**{**PRESETS[preset], **fields})


def make_model(vocab_size: int, machine: Machine):
    """(GPT, what to call in a step, Optimizer), made as train.py makes them."""
    torch.manual_seed(seed)
    raw_model = GPT(dataclasses.replace(make_config(), vocab_size=vocab_size))
    raw_model.to(machine.device, torch.float64 if machine.dtype == 'float64' else torch.float32)
    compiled_model = torch.compile(raw_model, dynamic=False) if machine.compile else raw_model

    def model(inputs, targets):
        with runtime.autocast(machine.dtype, machine.device):
            return compiled_model(inputs, targets)

    fused = machine.compile and machine.device != 'cpu'
    more = dict(iterations=muon_iterations, fp16=machine.dtype == 'float16', compile=fused)
    return raw_model, model, Optimizer(raw_model, optimizer, **more)


def train(data: batches.Data, machine: Machine, figures: dict) -> dict:
    """A step's seconds, its rates, and what share of the machine's limit they are."""
    raw_model, model, learner = make_model(data.tokenizer.vocab_size, machine)
    steps = batches.Ahead(batches.Stream(data.split('train'), make_shape(machine)), machine.device)
    against, rate = limit(machine.device)
    rates, laps = [rate()], []
    for step in range(warmup + repeats):
        watch = Stopwatch(machine.device)
        watch.mark()
        train_step(model, steps[step], learner, learning_rate, grad_clip, between=watch.mark)
        watch.mark()
        laps.append(watch.seconds())
        rates.append(rate())
    steps.pool.shutdown()  # Windows cannot delete a file that is being read
    rows = make_shape(machine).rows_per_step
    flops = raw_model.flops_per_token() * rows * block_size
    found = compare(laps[warmup:], rates[warmup:], flops, rows, block_size)
    found |= dict(limit=against, parameters=raw_model.num_params(), peak_memory_bytes=peak_memory(machine.device))
    show_train(found)
    return found


def compare(laps: list, rates: list, flops: int, rows: int, block_size: int) -> dict:
    """
    laps: (seconds of forward and backward, of the rest) of each step; rates: the limit before and after each, one more
    than laps; flops, rows: of a step. A step's share is of the mean of the two rates beside it.
    """
    alone, whole = [a for a, _ in laps], [a + b for a, b in laps]

    def share(seconds):
        if None in rates:
            return None
        return median(2 * flops / t / (before + after) for t, before, after in zip(seconds, rates, rates[1:]))

    return dict(
        step_seconds=median(whole),
        forward_backward_seconds=median(alone),
        rows_per_second=rows / median(whole),
        tokens_per_second=rows * block_size / median(whole),
        flops_per_step=flops,
        limit_flops_per_second=None if None in rates else median(rates),
        share_of_limit=share(whole),
        forward_backward_share_of_limit=share(alone),
    )


def show_train(found: dict) -> None:
    memory = found['peak_memory_bytes']
    print(
        f'train   step {found["step_seconds"]:.4f} s | forward + backward {found["forward_backward_seconds"]:.4f} s'
        f' | {found["tokens_per_second"]:,.0f} tokens/s | {found["parameters"]:,} parameters'
        f' | peak memory {"n/a" if memory is None else f"{memory / 2**20:,.0f} MiB"}'
    )
    if found['share_of_limit'] is None:
        print(f'        MFU n/a: {found["limit"]}')
        return
    print(
        f'        MFU {found["share_of_limit"]:.1%} | forward + backward {found["forward_backward_share_of_limit"]:.1%}'
        f' | of {found["limit_flops_per_second"] / 1e9:,.1f} GFLOP/s: {found["limit"]}'
    )


# -----------------------------------------------------------------------------
# the data, and the loader


def write_random_text(folder: str) -> batches.Data:
    """A data folder of random ids. Documents begin with BOS, but only the aligned loader looks for it."""
    characters = ''.join(chr(i if i < 0xD800 else i + 0x800) for i in range(vocab_size))  # no surrogates
    count = max(TOKENS, 2 * gradient_accumulation_steps * batch_size * block_size + 1)
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, vocab_size, count, dtype=np.uint16)
    ids[rng.random(count) < 1 / DOCUMENT] = BOS
    with batches.Writer(folder, tokenizers.CharTokenizer(characters)) as out:
        out.write('train', ids, len(ids))
    return batches.Data(folder)


def rows_per_second(steps, device: str) -> float:
    """Rows of whole steps, as tensors; steps[i] is a list or an iterator of micro-batches."""
    seconds = []
    for turn in range(warmup + repeats):
        started, rows = time.perf_counter(), 0
        for step in range(turn * READS, (turn + 1) * READS):
            rows += sum(len(batch.inputs) for batch in steps[step])
        wait(device)
        seconds.append((time.perf_counter() - started) / rows)
    return 1 / median(seconds[warmup:])


def loader(data: batches.Data, machine: Machine, figures: dict) -> dict:
    """Rows a second of Stream, cut anywhere and aligned, alone and read ahead by a thread onto the device."""
    found, needed = {}, figures['train']['rows_per_second'] if 'train' in figures else None
    for name, bos in (('plain', None), ('aligned', BOS)):
        reader = batches.Stream(data.split('train'), make_shape(machine), bos)
        ahead = batches.Ahead(reader, machine.device)
        found[name] = rows_per_second(reader, machine.device)
        found[f'{name}_ahead'] = rows_per_second(ahead, machine.device)
        ahead.pool.shutdown()
    times = {name: rate / needed if needed else None for name, rate in found.items()}
    for name, rate in found.items():
        beside = f'{times[name]:,.1f} times what a training step takes' if needed else 'see --what=train,loader'
        print(f'loader  {name.replace("_", ", "):<14} {rate:>11,.0f} rows/s | {beside}')
    return dict(rows_per_second=found, times_needed=times, needed_rows_per_second=needed)


# -----------------------------------------------------------------------------
# the tokenizer, beside programs in Rust

SUFFIXES = {'.py', '.pyi', '.md', '.rst', '.txt', '.po', '.json'}
BETWEEN = '\0'  # between documents in a file; no document holds it


def installed_texts(limit: int) -> list[tuple[str, str]]:
    """(suffix, text) of the text files below site-packages and the standard library by path, each distinct one once."""
    roots = [Path(sysconfig.get_path(name)) for name in ('purelib', 'stdlib')]
    found, seen, size = [], set(), 0
    for path in sorted({path for root in roots for path in root.rglob('*') if path.suffix in SUFFIXES}):
        content = path.read_bytes() if path.is_file() else b''
        digest = hashlib.sha256(content).digest()
        try:
            text = content.decode('utf-8')
        except UnicodeDecodeError:
            continue
        if not text or digest in seen or BETWEEN in text:
            continue
        if size + len(content) > limit:
            break
        seen.add(digest)
        found.append((path.suffix, text))
        size += len(content)
    return found


def natural_texts(texts: list[tuple[str, str]]) -> Iterator[str]:
    """What people wrote for people: the .md, .rst and .txt among them, and the docstrings."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for suffix, text in texts:
        if suffix in ('.md', '.rst', '.txt'):
            yield text
        if suffix != '.py':
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # other people's invalid escapes
                nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
        except (SyntaxError, ValueError, RecursionError):  # tests of parsers have such files
            continue
        yield from filter(None, (ast.get_docstring(node, clean=False) for node in nodes))


def worst_texts(size: int) -> dict[str, list[str]]:
    """Texts in which hardly a word comes twice, about so many bytes of each, a megabyte a document."""
    rng, documents = random.Random(seed), range(-(-size // 10**6))
    line = lambda: f'12:00:{rng.randrange(60):02d} INFO commit {rng.randbytes(20).hex()} tree {rng.randbytes(20).hex()}'
    return {
        'base64': [base64.b64encode(rng.randbytes(750_000)).decode() for _ in documents],
        'hashes': ['\n'.join(line() for _ in range(9000)) for _ in documents],
    }


# Each program runs in a process of its own, without torch: for its memory, and for the processes that it starts. Only
# work() is timed. The arguments are the texts, cores, vocabulary size, the tokenizer, and where to write.
CHILD = """
import json, sys, time
sys.path.insert(0, '')  # PYTHONSAFEPATH leaves it out
import numpy as np, tiktoken
from tokenizer import PATTERN, load, train_bpe
path, cores, size, table, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]

def texts():
    rest = ''
    with open(path, encoding='utf-8', newline='') as file:
        while block := file.read(2**20):
            *whole, rest = (rest + block).split(chr(0))
            yield from whole
    yield rest

def memory():  # the most that this process had, and for each core the most of the largest that it started
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == 'darwin' else 1024
    own = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = unit * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    try:  # Linux counts what bench.py had into its own
        with open('/proc/self/status', encoding='ascii') as file:
            own = next(1024 * int(line.split()[1]) for line in file if line.startswith('VmHWM'))
    except OSError:
        pass
    return own + cores * children

{program}
started = time.perf_counter()
result = work()
print(json.dumps(dict(seconds=time.perf_counter() - started, memory=memory())))
{after}
"""
TRAINERS = {  # name: (program, what it does after the time is taken)
    'ours': ('def work(): return train_bpe(texts(), size, num_workers=cores)', 'result.save(table)'),
    'rustbpe': (
        """
import rustbpe
trained = rustbpe.Tokenizer()
def work(): trained.train_from_iterator(texts(), size, pattern=PATTERN)
""",
        """
pieces = [bytes(piece) for piece, rank in sorted(trained.get_mergeable_ranks(), key=lambda item: item[1])]
ours = load(table)
assert pieces == [ours.decode_bytes([i]) for i in range(ours.vocab_size)], 'these are not the merges of rustbpe'
""",
    ),
    'gigatoken': (
        """
import gigatoken
source = gigatoken.TextFileSource([path], separator=chr(0))
def work(): gigatoken.train_bpe(source, size, [])
""",
        '',
    ),
}
ENCODERS = {
    'ours': (
        """
tokenizer, documents = load(table), list(texts())
tokenizer.encode('this builds what is built once')
def work(): np.concatenate(list(tokenizer.encode_batch(documents, cores))).tofile(out)
""",
        '',
    ),
    'tiktoken': (
        """
tokenizer, documents = load(table), list(texts())
ranks = {tokenizer.decode_bytes([i]): i for i in range(tokenizer.vocab_size)}
engine = tiktoken.Encoding('x', pat_str=tokenizer.pattern, mergeable_ranks=ranks, special_tokens={})
engine.encode_ordinary('this builds what is built once')
def work(): return engine.encode_ordinary_batch(documents, num_threads=cores)
""",
        """
ours = np.fromfile(out, np.uint16)
assert ours.tolist() == [i for ids in result for i in ids], 'these are not the ids of tiktoken'
""",
    ),
}


def turns(programs: dict[str, tuple[str, str]], arguments: list) -> dict[str, dict]:
    """{name: median seconds and peak memory} of programs that take turns. The first one's results are checked."""
    runs, folder = {name: [] for name in programs}, Path(__file__).resolve().parent
    for name in list(programs) * bpe_repeats:
        program, after = programs[name]
        code = CHILD.replace('{program}', program).replace('{after}', after)
        command = [sys.executable, '-c', code, *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding='utf-8')
        if done.returncode:
            raise SystemExit(f'bench: {name} failed: {done.stderr.strip().splitlines()[-1]}')
        runs[name].append(json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{'))))
    keys = ('seconds', 'memory')
    return {
        name: {key: None if found[0][key] is None else median(run[key] for run in found) for key in keys}
        for name, found in runs.items()
    }


def tokenizer(data: batches.Data, machine: Machine, figures: dict) -> dict:
    """Training on installed texts, and encoding several kinds of text, each beside Rust on the same cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    texts = installed_texts(int(text_mb * 1e6))
    content = BETWEEN.join(text for _, text in texts).encode('utf-8')
    about = dict(bytes=len(content), documents=len(texts), sha256=hashlib.sha256(content).hexdigest())
    about['not_ascii'] = float(np.mean(np.frombuffer(content, np.uint8) >= 128))
    print(
        'text    {bytes:,} bytes, {documents:,} documents, {not_ascii:.2%} not ASCII, sha256 {sha256}'.format(**about)
    )
    natural = list(natural_texts(texts))
    kinds = {'training': [text for _, text in texts], 'natural': natural, **worst_texts(int(text_mb * 1e5))}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, documents in kinds.items():
            path = Path(folder, kind)
            path.write_bytes(BETWEEN.join(documents).encode('utf-8'))
            arguments = [path, cores, bpe_vocab_size, Path(folder, 'tok.json'), Path(folder, 'ids.bin')]
            programs = {
                name: code for name, code in TRAINERS.items() if name == 'ours' or importlib.util.find_spec(name)
            }
            found[kind] = turns(programs if kind == 'training' else ENCODERS, arguments)
            show_tokenizer(kind, path.stat().st_size, found[kind])
    return dict(text=about, cores=cores, **found)


def show_tokenizer(kind: str, size: int, found: dict[str, dict]) -> None:
    for name, figures in found.items():
        memory = 'n/a' if figures['memory'] is None else f'{figures["memory"] / 2**20:,.0f} MiB'
        share = found['ours']['seconds'] / figures['seconds']
        print(
            f'{kind:<10}{name:<10}{figures["seconds"]:7.2f} s | {size / 1e6 / figures["seconds"]:6.1f} MB/s'
            f' | ours takes {share:.2f} of its time | peak memory {memory}',
            flush=True,
        )


# -----------------------------------------------------------------------------
# (data, machine, what was found so far) -> {name: number}. A new measurement is one more function, and its name here
MEASURES = {f.__name__: f for f in (train, loader, tokenizer)}


def check(names: list[str]) -> None:
    """Whatever is wrong with bench's own settings, at once; the model's and the optimizer's check theirs."""
    least = dict(
        repeats=1, warmup=0, batch_size=1, gradient_accumulation_steps=1, cpu_micro_batch_size=0, block_size=1,
        vocab_size=2, seed=0, text_mb=0.1, bpe_vocab_size=256, bpe_repeats=1,
    )  # fmt: skip
    expected = f'expected all, or some of {", ".join(MEASURES)} with commas between them'
    wrong = [f"what has '{name}', {expected}" for name in names if name not in MEASURES]
    wrong += [f'{name} is {config[name]}, expected at least {low}' for name, low in least.items() if config[name] < low]
    if vocab_size > 2**16:
        wrong.append(f'vocab_size is {vocab_size}, expected at most 65536: token files hold uint16 ids')
    if wrong:
        raise SystemExit('; '.join(wrong))


def main():
    names = ['train', 'loader'] if what == 'all' else [name.strip() for name in what.split(',')]
    check(names)
    where = runtime.choose_device(device)
    number, why_number = runtime.choose_dtype(dtype, where)
    compiled, why_compiled = runtime.choose_compile(compile, where)
    machine = Machine(where, number, compiled)
    runtime.set_up(where, runtime.Ranks(), deterministic=False)
    if where == 'cpu':
        runtime.keep_freed_memory()
    if 'train' in names or 'loader' in names:
        plan.check_memory(make_config(), config, where, number, runtime.Ranks())
    card = torch.cuda.get_device_name(where) if where.startswith('cuda') else platform.machine()
    facts = dict(
        **machine._asdict(), name=card, cores=os.cpu_count(), threads=torch.get_num_threads(),
        torch=torch.__version__, python=platform.python_version(), system=platform.system(),
    )  # fmt: skip
    if config.describe():
        print(config.describe())
    how = f'{"compiled" if compiled else "eager"} ({why_compiled}), {facts["threads"]} threads of {facts["cores"]}'
    print(f'{where} ({card}), {number} ({why_number}), {how}, torch {facts["torch"]}', flush=True)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        data = write_random_text(folder)
        for name in MEASURES:  # in the table's order: the loader is compared with the training step
            if name in names:
                figures[name] = MEASURES[name](data, machine, figures)
    print(json.dumps({**figures, 'machine': facts, 'settings': dict(config)}))


if __name__ == '__main__':
    main()
