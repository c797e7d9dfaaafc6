"""
How fast this machine trains and loads, each as a share of a limit of the same machine.

    $ python bench.py                                 # a step and the loader of `train.py`
    $ python bench.py --what=loader --batch_size=64
    $ python bench.py --what=train --n_layer=6 --n_head=6 --n_embd=384 --block_size=256 \
                      --vocab_size=65 --batch_size=64
    $ python bench.py --what=decode --n_layer=6 --n_head=6 --n_embd=384 --vocab_size=8192 \
                      --repeats=9
    $ python bench.py --what=core --n_layer=6 --n_head=6 --n_embd=384 --vocab_size=16384
    $ python bench.py --depth=12 --block_size=1024 --vocab_size=50304 --batch_size=32   # on a GPU

train: a whole training step with its optimizer, and forward + backward alone. On a CPU the limit is
the FLOP/s of a float32 matrix product timed right before and after each step: a shared machine's
speed swings, the ratio does not. On CUDA it is the peak of the card's data sheet, where runtime.py
knows the card. loader: rows per second, compared with what the training step needs. Figures are
medians. core: examples of CORE per second, on random tasks of CORE's shots and lengths, batched as
core.py does it and one at a time. serve: tokens per second and latencies of serve.py on loopback,
compared with the engine alone. The last line of stdout is all of them as one JSON object.

decode: tokens per second of the engine, for several numbers of rows, each a prompt of 64 tokens and
its continuation. The limit of a step is the time to read every matrix that it uses and every cached
key and value once, or its arithmetic, if that takes longer. On a CPU memory is timed by a sum over
256 MiB and arithmetic as above, before and after each run; on CUDA both are the data sheet's. Where
transformers is installed, its generate() with a Llama of this size runs in turn with the engine.

The tokenizer has a benchmark of its own, dev/bench_tokenizer.py. Left out on purpose: several
ranks, and data larger than the operating system's file cache.
"""

import asyncio
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves this folder out

import batches
import checkpoint
import console
import core as core_tasks  # `core` measures it
import packed
import plan
import runtime
import shards
import tokenizer as tokenizers
from configurator import check_ranges, configure
from engine import Engine
from model import GPT, PRESETS, GPTConfig
from optim import Optimizer
from sampling import Sampling

# What to measure, and on what
what = 'all'  # all (train and loader), train, loader, decode, core or serve
repeats = 20  # measurements; their median counts
warmup = 3  # measurements before them, not counted; the first one compiles
device = 'auto'  # auto | cpu | cuda | cuda:1 | mps
dtype = 'auto'  # auto | float32 | bfloat16 | float16 | float64
compile = None  # torch.compile: None is yes on CUDA and no elsewhere
core_examples = 12  # core: examples of each task
decode_rows = '1,4,16,64'  # decode: rows at once
decode_tokens = 200  # decode: new tokens of a row
serve_clients = 16  # serve: clients that ask at the same time
serve_requests = 8  # serve: requests of each client, one after the other
serve_tokens = 64  # serve: tokens of an answer; prompts have half to one and a half times as many
seed = 1337  # for the weights and the random tokens

# A step; names as in train.py. Its speed depends neither on the learning rate nor on the tokens
batch_size = 16  # rows of a micro-batch, at most
gradient_accumulation_steps = 1  # a step is gradient_accumulation_steps * batch_size rows
cpu_micro_batch_size = 0  # rows of a micro-batch on a CPU, at most; 0: by the model's size
optimizer = 'muon'  # muon | adamw
muon_iterations = 5  # 5 | 3: iterations that orthogonalize an update
learning_rate = 2e-3  # constant
grad_clip = 1.0  # largest norm of the gradient; 0 is off

# The model
preset = 'plus'  # plus | nano | gpt2 | llama | qwen3: sets the switches below that are not given
depth = 0  # the dial sets layers, width and heads, see plan.py; 0 is off
vocab_size = 1024  # number of ids
n_layer = 4  # blocks
n_head = 4  # attention heads
n_kv_head = 0  # heads of keys and values; 0 is n_head
n_embd = 128  # width
n_hidden = 0  # width of an MLP; 0 is 4 * n_embd, 8/3 * n_embd for swiglu
n_expert = 0  # experts in a layer, see moe.py; 0 is off: an MLP
n_expert_active = 2  # of these, used by a token
n_expert_shared = 0  # more experts, used by every token
block_size = 128  # tokens per row
dropout = 0.0  # share of activations dropped
norm = 'rms'  # rms | rms_gain | layer
positions = 'rope'  # rope | learned
qk_norm = 'rms'  # none | rms | rms_gain: of queries and keys
mlp = 'relu2'  # relu2 | gelu | swiglu
tied_head = False  # the head is the embedding table
softcap = 15.0  # logits stay within (-softcap, softcap); 0 is off


def derive(settings, explicit):
    """The architecture that preset and depth imply. The dial's batch is left out: one step of it
    would take a CPU minutes."""
    fields = {field.name for field in dataclasses.fields(GPTConfig)} & set(settings)
    return {
        name: found for name, found in plan.derive(settings, explicit).items() if name in fields
    }


console.set_up(must_finish=False)
config = configure(globals(), derive=derive)

TOKENS = 2**20  # in the random text, at least
BOS = 0  # the id that begins a document, for the aligned loader
DOCUMENT = 600  # tokens per document on average
READS = 10  # steps the loader reads in one measurement: one may take less than a millisecond
SIDE = 2048  # side of the square matrices whose product is the limit


class Machine(NamedTuple):
    """What the measurements run on."""

    device: str
    dtype: str
    compile: bool


# -----------------------------------------------------------------------------
# time, the limit, memory


def wait(device: str) -> None:
    """Wait until the device has finished its work."""
    if device != 'cpu':
        torch.accelerator.synchronize()


class Stopwatch:
    """Marks in time, read at the end. On CUDA marks are events in the stream: none waits for the
    work before it."""

    def __init__(self, device: str):
        self.device = device
        self.cuda = device.startswith('cuda')
        self.marks = []
        wait(device)

    def mark(self) -> None:
        if self.cuda:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            wait(self.device)
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """The time from each mark to the next."""
        wait(self.device)
        pairs = zip(self.marks, self.marks[1:])
        if self.cuda:
            return [a.elapsed_time(b) / 1000 for a, b in pairs]  # milliseconds
        return [b - a for a, b in pairs]


def limit(device: str) -> tuple[str, Callable[[], float | None]]:
    """(name of the limit, function that returns its FLOP/s now, or None where it is unknown)."""
    if device.startswith('cuda'):
        peak = runtime.peak_flops(device)
        name = "the data sheet's 16-bit peak" if peak else 'an unknown card'
        return name, lambda: peak
    a, b, product = torch.rand(3, SIDE, SIDE, device=device)

    def measure():
        watch = Stopwatch(device)
        watch.mark()
        torch.mm(a, b, out=product)
        watch.mark()
        return 2 * SIDE**3 / watch.seconds()[0]

    return f'a {SIDE}^3 float32 matmul between the steps', measure


def peak_memory(device: str) -> int | None:
    """Bytes: of the card, or of the process (the limit's 48 MiB included). None on Windows."""
    if device.startswith('cuda'):
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == 'darwin' else size * 1024  # macOS: bytes, Linux: KiB


# -----------------------------------------------------------------------------
# the training step


def train_step(model, micro_batches, optimizer, lr, grad_clip, between=lambda: None) -> None:
    """train.py's step without its log. between() is called after forward and backward."""
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
    step_rows = gradient_accumulation_steps * batch_size
    return batches.Shape(step_rows, rows, block_size, seed=seed, dtype=number)


def make_config() -> GPTConfig:
    names = {field.name for field in dataclasses.fields(GPTConfig)}
    fields = {name: value for name, value in config.items() if name in names}
    return GPTConfig(**{**PRESETS[preset], **fields})


def make_model(vocab_size: int, machine: Machine):
    """(GPT, the function a step calls, Optimizer), made as in train.py."""
    # 1) The model
    torch.manual_seed(seed)
    raw_model = GPT(dataclasses.replace(make_config(), vocab_size=vocab_size))
    number = torch.float64 if machine.dtype == 'float64' else torch.float32
    raw_model.to(machine.device, number)

    # 2) Compiled, in mixed precision
    compiled_model = torch.compile(raw_model, dynamic=False) if machine.compile else raw_model

    def model(inputs, targets):
        with runtime.autocast(machine.dtype, machine.device):
            return compiled_model(inputs, targets)

    # 3) The optimizer
    learner = Optimizer(
        raw_model, optimizer, iterations=muon_iterations, fp16=machine.dtype == 'float16',
        compile=machine.compile and machine.device != 'cpu',
    )  # fmt: skip
    return raw_model, model, learner


def train(data: shards.Data, machine: Machine, figures: dict) -> dict:
    """Seconds of a step, its rates, and their share of the machine's limit."""
    # 1) Model and data
    raw_model, model, learner = make_model(data.tokenizer.vocab_size, machine)
    steps = batches.Ahead(batches.Stream(data.split('train'), make_shape(machine)), machine.device)

    # 2) Steps, with the limit measured before and after each
    against, rate = limit(machine.device)
    rates = [rate()]
    laps = []
    for step in range(warmup + repeats):
        watch = Stopwatch(machine.device)
        watch.mark()
        train_step(model, steps[step], learner, learning_rate, grad_clip, between=watch.mark)
        watch.mark()
        laps.append(watch.seconds())
        rates.append(rate())
    steps.pool.shutdown()  # Windows cannot delete a file that is open

    # 3) Figures
    rows = make_shape(machine).rows_per_step
    flops = raw_model.flops_per_token() * rows * block_size
    found = compare(laps[warmup:], rates[warmup:], flops, rows, block_size)
    found['limit'] = against
    found['parameters'] = raw_model.num_params()
    found['active_parameters'] = raw_model.num_params(active=True)
    found['peak_memory_bytes'] = peak_memory(machine.device)
    show_train(found)
    return found


def compare(laps: list, rates: list, flops: int, rows: int, block_size: int) -> dict:
    """
    A step's figures. Its share of the limit is relative to the mean of the two rates around it.

    laps: per step, seconds of forward and backward, and of the rest. rates: the limit before the
    first step and after each. flops, rows: per step.
    """
    alone = [a for a, _ in laps]
    whole = [a + b for a, b in laps]

    def share(seconds):
        if None in rates:
            return None
        return median(
            2 * flops / t / (before + after) for t, before, after in zip(seconds, rates, rates[1:])
        )

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
    memory = 'n/a' if memory is None else f'{memory / 2**20:,.0f} MiB'
    parameters = f'{found["parameters"]:,} parameters'
    if found['active_parameters'] < found['parameters']:
        parameters += f' ({found["active_parameters"]:,} active)'
    print(
        f'train   step {found["step_seconds"]:.4f} s'
        f' | forward + backward {found["forward_backward_seconds"]:.4f} s'
        f' | {found["tokens_per_second"]:,.0f} tokens/s'
        f' | {parameters}'
        f' | peak memory {memory}'
    )
    if found['share_of_limit'] is None:
        print(f'        MFU n/a: {found["limit"]}')
        return
    print(
        f'        MFU {found["share_of_limit"]:.1%}'
        f' | forward + backward {found["forward_backward_share_of_limit"]:.1%}'
        f' | of {found["limit_flops_per_second"] / 1e9:,.1f} GFLOP/s: {found["limit"]}'
    )


# -----------------------------------------------------------------------------
# the data, and the loader


def write_random_text(folder: str) -> shards.Data:
    """A data folder of random ids. BOS begins documents, for the aligned loader."""
    # a character for each id; surrogates are skipped
    characters = ''.join(chr(i if i < 0xD800 else i + 0x800) for i in range(vocab_size))
    count = max(TOKENS, 2 * gradient_accumulation_steps * batch_size * block_size + 1)
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, vocab_size, count, dtype=np.uint16)
    ids[rng.random(count) < 1 / DOCUMENT] = BOS
    with shards.Writer(folder, tokenizers.CharTokenizer(characters)) as out:
        out.write('train', ids, len(ids))
    return shards.Data(folder)


def rows_per_second(steps, device: str) -> float:
    """Rows of whole steps, as tensors. steps[i]: the micro-batches of step i."""
    seconds = []
    for turn in range(warmup + repeats):
        started = time.perf_counter()
        rows = 0
        for step in range(turn * READS, (turn + 1) * READS):
            rows += sum(len(batch.inputs) for batch in steps[step])
        wait(device)
        seconds.append((time.perf_counter() - started) / rows)
    return 1 / median(seconds[warmup:])


def loader(data: shards.Data, machine: Machine, figures: dict) -> dict:
    """Rows per second of Stream, plain and aligned to documents, alone and read ahead by a thread
    onto the device."""
    # 1) Measure
    found = {}
    for name, bos in (('plain', None), ('aligned', BOS)):
        reader = batches.Stream(data.split('train'), make_shape(machine), bos)
        ahead = batches.Ahead(reader, machine.device)
        found[name] = rows_per_second(reader, machine.device)
        found[f'{name}_ahead'] = rows_per_second(ahead, machine.device)
        ahead.pool.shutdown()

    # 2) Compare with what a training step needs
    needed = figures['train']['rows_per_second'] if 'train' in figures else None
    times = {name: rate / needed if needed else None for name, rate in found.items()}
    for name, rate in found.items():
        beside = 'see --what=all'
        if needed:
            beside = f'{times[name]:,.1f} times what a training step needs'
        print(f'loader  {name.replace("_", ", "):<14} {rate:>11,.0f} rows/s | {beside}')
    return dict(rows_per_second=found, times_needed=times, needed_rows_per_second=needed)


# -----------------------------------------------------------------------------
# CORE

CONTEXT = 2048  # the longest prompt of CORE_TASKS has about 2,100 tokens

# {task: (answers, tokens of a question, tokens of an answer)}. Mean characters, at 4.3 a token, of
# the files in github.com/mosaicml/llm-foundry, scripts/eval/local_data, which DCLM took over. That
# repository lacks four: hellaswag (twice), squad and coqa are estimated
CORE_TASKS = dict(
    hellaswag_zeroshot=(4, 52, 25), jeopardy=(1, 23, 3), bigbench_qa_wikidata=(1, 9, 2),
    arc_easy=(4, 29, 5), arc_challenge=(4, 33, 7), copa=(2, 10, 7), commonsense_qa=(4, 34, 1),
    piqa=(2, 11, 23), openbook_qa=(4, 13, 4), lambada_openai=(1, 73, 1), hellaswag=(4, 52, 25),
    winograd=(2, 16, 5), winogrande=(2, 19, 6), bigbench_dyck_languages=(1, 37, 1),
    agi_eval_lsat_ar=(4, 206, 1), bigbench_cs_algorithms=(1, 31, 1), bigbench_operators=(1, 30, 1),
    bigbench_repeat_copy_logic=(1, 24, 19), squad=(1, 186, 4), coqa=(1, 440, 3), boolq=(2, 145, 1),
    bigbench_language_identification=(4, 69, 1),
)  # fmt: skip
ONE_TOKEN_PER_BYTE = tokenizers.BPETokenizer(tokenizers.PATTERN, [], {'<|bos|>': 256})


def random_task(name: str, rng: np.random.Generator) -> core_tasks.Task:
    """A task of CORE's shots and lengths for ONE_TOKEN_PER_BYTE. It has enough examples for its
    shots."""

    def text(length):
        return ''.join(map(chr, rng.integers(ord('a'), ord('z') + 1, length)))

    answers, question, answer = CORE_TASKS[name]
    shots, percent = core_tasks.PUBLISHED[name]
    examples = []
    for _ in range(max(core_examples, shots + 1)):
        if answers == 1:
            kind = 'language_modeling'
            row = dict(context=text(question), continuation=text(answer))
        elif name in ('winograd', 'winogrande'):
            kind = 'schema'
            begin = text(question - 2)  # the options differ in a name
            row = dict(context_options=[begin + text(2), begin + text(2)], gold=0)
            row['continuation'] = text(answer)
        else:
            kind = 'multiple_choice'
            choices = [text(answer) for _ in range(answers)]
            row = dict(query=text(question), choices=choices, gold=0)
        examples.append(row)
    return core_tasks.Task(name, kind, shots, ' ', 0.01 * percent, examples)


@torch.no_grad()
def one_at_a_time(model: GPT, task: core_tasks.Task, index: int, device: str) -> list:
    """The losses per token of an example's answers, and whether each is the likeliest text, by one
    forward pass whose rows are the whole prompts."""
    (rows,) = core_tasks.read_examples(task, [index], ONE_TOKEN_PER_BYTE, CONTEXT)
    longest = max(len(row.ids) for row in rows)
    padded = np.stack([np.pad(row.ids, (0, longest - len(row.ids))) for row in rows])
    ids = torch.from_numpy(padded).to(device)  # (answers, T)
    logits = model(ids[:, :-1])  # (answers, T - 1, vocab_size)
    targets = ids[:, 1:]
    nats = torch.nn.functional.cross_entropy(logits.mT, targets, reduction='none')
    likeliest = logits.argmax(-1) == targets
    spans = [slice(row.start - 1, len(row.ids) - 1) for row in rows]
    return [
        (float(nats[r, span].mean()), bool(likeliest[r, span].all()))
        for r, span in enumerate(spans)
    ]


def core_seconds(model: GPT, task: core_tasks.Task, machine: Machine) -> tuple[float, float]:
    """Seconds that a task takes batched, and one example at a time."""
    indices = range(core_examples)
    wait(machine.device)
    began = time.perf_counter()
    with runtime.autocast(machine.dtype, machine.device):
        rows = core_tasks.read_examples(task, indices, ONE_TOKEN_PER_BYTE, CONTEXT)
        core_tasks.score(model, rows)
        between = time.perf_counter()
        for index in indices:
            one_at_a_time(model, task, index, machine.device)
    return between - began, time.perf_counter() - between


def core(data: shards.Data, machine: Machine, figures: dict) -> dict:
    """Examples per second, batched and one at a time: of the tasks with choices, the others, and
    all."""
    # 1) The model
    torch.manual_seed(seed)
    shape = dict(vocab_size=max(vocab_size, ONE_TOKEN_PER_BYTE.vocab_size), block_size=CONTEXT)
    number = torch.float64 if machine.dtype == 'float64' else torch.float32
    model = GPT(dataclasses.replace(make_config(), **shape)).to(machine.device, number).eval()

    # 2) Each task both ways, one right after the other
    rng = np.random.default_rng(seed)
    core_seconds(model, random_task('copa', rng), machine)  # warm-up
    seconds = dict(choices=[], language_modeling=[], all=[])
    for name in CORE_TASKS:
        task = random_task(name, rng)
        pair = core_seconds(model, task, machine)
        text = task.kind == 'language_modeling'
        seconds['language_modeling' if text else 'choices'].append(pair)
        seconds['all'].append(pair)

    # 3) Figures
    found = {}
    for group, pairs in seconds.items():
        batched, alone = [len(pairs) * core_examples / sum(times) for times in zip(*pairs)]
        found[group] = dict(
            examples_per_second=batched, one_at_a_time_per_second=alone, times=batched / alone
        )
        print(
            f'core    {group:<18} {batched:>8,.1f} examples/s | one at a time {alone:>8,.1f} | '
            f'{batched / alone:.2f} times as fast'
        )
    return found


# -----------------------------------------------------------------------------
# decoding

PROMPT = 64  # tokens
DRAWING = Sampling(temperature=1.0, top_k=50)
READ = 2**26  # float32 numbers: larger than a processor's cache


class Turn(NamedTuple):
    """One call that generates decode_tokens for each row."""

    seconds: float
    first: float  # seconds until the first token
    tokens: int


def memory_speed(device: str) -> Callable[[], float | None]:
    """Function that returns the bytes per second that the device reads now, None where unknown."""
    if device.startswith('cuda'):
        peak = runtime.peak_bandwidth(device)
        return lambda: peak
    numbers = torch.ones(READ, device=device)

    def measure():
        watch = Stopwatch(device)
        watch.mark()
        numbers.sum()
        watch.mark()
        return numbers.nbytes / watch.seconds()[0]

    return measure


def least_seconds(model: GPT, rows: int, itemsize: int, memory: float, arithmetic: float) -> tuple:
    """Of a step in the middle of a run, (to read memory, to compute), where memory is in bytes per
    second and arithmetic in FLOP/s."""
    # 1) Weights. Of its experts, a step reads those that any of the rows has chosen: with one row
    # the active ones, with many rows nearly all. The choices count as independent and even
    config = model.config
    weights = sum(linear.weight.numel() for linear in packed.linear_layers(model))
    sizes = [model.num_params(embeddings=False, active=active) for active in (False, True)]
    idle = sizes[0] - sizes[1]  # numbers in the experts that one row leaves out
    unchosen = 1 - config.n_expert_active / config.n_expert if config.n_expert else 0.0
    read = weights - idle * unchosen ** (rows - 1)

    # 2) Keys and values, and the products with both
    slots = rows * (PROMPT + decode_tokens / 2)
    cached = 2 * config.n_layer * config.n_kv_head * config.head_dim * slots
    products = rows * (weights - idle)
    products += 2 * config.n_layer * config.n_head * config.head_dim * slots
    return (read + cached) * itemsize / memory, 2 * products / arithmetic


def our_turn(engine: Engine, prompt: list[int], rows: int) -> Turn:
    began = time.perf_counter()
    request = engine.submit(prompt, decode_tokens, DRAWING, n=rows)
    first = None
    while not request.done:
        if engine.step() and first is None:
            first = time.perf_counter() - began
    seconds = time.perf_counter() - began
    return Turn(seconds, first, sum(len(sample.ids) for sample in request.samples))


def make_llama(machine: Machine):
    """transformers' Llama of this size, which generates; None where transformers is missing."""
    try:
        import transformers
    except ImportError:
        return None
    ours = make_config()
    config = transformers.LlamaConfig(
        vocab_size=vocab_size, hidden_size=ours.n_embd, num_hidden_layers=ours.n_layer,
        num_attention_heads=ours.n_head, num_key_value_heads=ours.n_kv_head,
        intermediate_size=8 * ours.n_embd // 3, max_position_embeddings=PROMPT + decode_tokens,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).to(machine.device).eval()


@torch.no_grad()
def llama_turn(llama, prompt: list[int], rows: int) -> Turn:
    inputs = torch.tensor([prompt] * rows, device=llama.device)
    settings = dict(do_sample=True, top_k=DRAWING.top_k, eos_token_id=None, pad_token_id=0)
    began = time.perf_counter()
    llama.generate(inputs, max_new_tokens=1, **settings)
    first = time.perf_counter() - began
    began = time.perf_counter()
    ids = llama.generate(inputs, max_new_tokens=decode_tokens, **settings)
    wait(str(llama.device))
    return Turn(time.perf_counter() - began, first, ids.numel() - inputs.numel())


def decode(data: shards.Data, machine: Machine, figures: dict) -> dict:
    """Tokens per second of the engine and of transformers, by rows."""
    # 1) The models. Their weights are random: speed does not depend on them
    torch.manual_seed(seed)
    shape = dict(vocab_size=vocab_size, block_size=PROMPT + decode_tokens, zero_init=False)
    model = GPT(dataclasses.replace(make_config(), **shape)).to(machine.device).eval()
    if machine.dtype == 'float64':
        model.double()
    if machine.compile:
        model.compile(dynamic=True)
    engine = Engine(model, data.tokenizer)
    llama = make_llama(machine)

    # 2) Each number of rows
    found = {}
    for rows in map(int, decode_rows.split(',')):
        found[rows] = decode_figures(engine, llama, rows, machine)
        show_decode(rows, found[rows])
    copies = engine.packed.nbytes if engine.packed else 0
    print(f"decode  copies of the weights in the engine's orders: {copies / 2**20:,.0f} MiB")
    return dict(rows=found, packed_bytes=copies)


def decode_figures(engine: Engine, llama, rows: int, machine: Machine) -> dict:
    """The engine's turns and transformers' alternate, with the limits measured around them."""
    # 1) Run. Each turn has a prompt of its own: the engine would find one that it has read
    rng = np.random.default_rng(seed)
    _, arithmetic = limit(machine.device)
    memory = memory_speed(machine.device)
    limits = []
    ours = []
    theirs = []
    for _ in range(warmup + repeats):
        prompt = rng.integers(vocab_size, size=PROMPT).tolist()
        with runtime.autocast(machine.dtype, machine.device):
            limits.append((memory(), arithmetic()))
            ours.append(our_turn(engine, prompt, rows))
            limits.append((memory(), arithmetic()))
            if llama:
                theirs.append(llama_turn(llama, prompt, rows))

    # 2) Figures, and the share of the limit in the mean of the rates around each turn
    found = decode_rates(ours[warmup:], rows)
    found['warmup_seconds'] = sum(turn.seconds for turn in ours[:warmup])
    found['share_of_limit'] = found['limit'] = None
    if None not in limits[0]:
        itemsize = getattr(torch, machine.dtype).itemsize
        means = [np.add(*pair) / 2 for pair in zip(limits[::2], limits[1::2])][warmup:]
        least = [least_seconds(engine.model, rows, itemsize, *mean) for mean in means]
        steps = [turn.seconds * rows / turn.tokens for turn in ours[warmup:]]
        found['share_of_limit'] = median(max(both) / step for both, step in zip(least, steps))
        reads, computes = np.median(least, axis=0)
        found['limit'] = 'memory' if reads > computes else 'arithmetic'
        rates = np.median(means, axis=0).tolist()
        found['bytes_per_second'], found['flops_per_second'] = rates
    found['transformers'] = decode_rates(theirs[warmup:], rows) if llama else None
    return found


def decode_rates(turns: list[Turn], rows: int) -> dict:
    def later(turn):  # seconds of a step after the first
        return (turn.seconds - turn.first) / max(1, turn.tokens // rows - 1)

    return dict(
        tokens_per_second=median(turn.tokens / turn.seconds for turn in turns),
        first_token_seconds=median(turn.first for turn in turns),
        seconds_per_token=median(map(later, turns)),
    )


def show_decode(rows: int, found: dict) -> None:
    share = 'limit unknown'
    if found['limit']:
        rates = {
            'memory': f'{found["bytes_per_second"] / 1e9:,.1f} GB/s',
            'arithmetic': f'{found["flops_per_second"] / 1e9:,.1f} GFLOP/s',
        }
        share = f'{found["share_of_limit"]:.2f} of {found["limit"]}, {rates[found["limit"]]}'
    print(
        f'decode  {rows:>3} rows {found["tokens_per_second"]:>9,.1f} tokens/s'
        f' | first {found["first_token_seconds"] * 1000:.1f} ms'
        f' | then {found["seconds_per_token"] * 1000:.2f} ms a token'
        f' | {share} | warm-up {found["warmup_seconds"]:.1f} s'
    )
    if found['transformers']:
        theirs = found['transformers']
        times = found['tokens_per_second'] / theirs['tokens_per_second']
        print(
            f'        transformers {theirs["tokens_per_second"]:>6,.1f} tokens/s'
            f' | first {theirs["first_token_seconds"] * 1000:.1f} ms'
            f' | then {theirs["seconds_per_token"] * 1000:.2f} ms a token'
            f' | ours is {times:.2f} times as fast',
            flush=True,
        )


# -----------------------------------------------------------------------------
# the server


def serve(data: shards.Data, machine: Machine, figures: dict) -> dict:
    """Tokens per second of serve.py with many clients, their latencies, and the share of what the
    engine does alone."""
    # 1) A model whose logits are all equal, so that no greedy answer ends early
    tokenizer = ONE_TOKEN_PER_BYTE
    model = GPT(dataclasses.replace(make_config(), vocab_size=tokenizer.vocab_size))
    with torch.no_grad():
        model.lm_head.weight.zero_()
    rng = np.random.default_rng(seed)
    lengths = rng.integers(serve_tokens // 2, 3 * serve_tokens // 2 + 1, serve_clients)
    prompts = [[tokenizer.bos, *rng.integers(0, 256, length).tolist()] for length in lengths]

    # 2) The engine alone, right before and after
    number = torch.float64 if machine.dtype == 'float64' else torch.float32
    engine = Engine(model.to(machine.device, number).eval(), tokenizer)
    engine_alone(engine, prompts, machine)  # warm-up
    alone = [engine_alone(engine, prompts, machine)]

    # 3) The server, in a process of its own
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'random.pt')
        state = dict(model=model.state_dict(), model_config=dataclasses.asdict(model.config))
        state |= dict(tokenizer=tokenizer.to_dict(), stage='pretrain', step=0, config={})
        checkpoint.save(path, state)
        program = Path(__file__).resolve().with_name('serve.py')
        where = [f'--device={machine.device}', f'--dtype={machine.dtype}', '--port=0']
        where += [f'--max_rows={serve_clients}', f'--max_requests={serve_clients}']
        command = [sys.executable, str(program), f'--out_dir={path}', *where]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            port = int(server.stdout.readline().rpartition(':')[2])
            seconds, latencies = asyncio.run(ask_all(port, prompts))
            server.terminate()
    alone.append(engine_alone(engine, prompts, machine))

    # 4) Figures
    first, following = (np.concatenate(kind) for kind in zip(*latencies))
    rate = serve_clients * serve_requests * serve_tokens / seconds
    found = dict(
        tokens_per_second=rate,
        requests_per_second=serve_clients * serve_requests / seconds,
        share_of_engine=rate / median(alone),
        first_token_seconds=dict(median=float(np.median(first)), worst=float(first.max())),
        token_seconds=dict(
            median=float(np.median(following)), p99=float(np.quantile(following, 0.99))
        ),
    )
    print(
        f'serve   {serve_clients} clients: {rate:,.0f} tokens/s'
        f' | {found["share_of_engine"]:.0%} of the engine alone'
        f' | first token {1000 * np.median(first):,.0f} ms, at most {1000 * first.max():,.0f}'
        f' | next {1000 * np.median(following):,.1f} ms'
    )
    return found


def engine_alone(engine: Engine, prompts: list[list[int]], machine: Machine) -> float:
    """Tokens per second of the engine with all prompts at once, without a server."""
    began = time.perf_counter()
    with runtime.autocast(machine.dtype, machine.device):
        engine.generate(prompts, serve_tokens, Sampling(temperature=0))
    return len(prompts) * serve_tokens / (time.perf_counter() - began)


async def ask_all(port: int, prompts: list[list[int]]) -> tuple[float, list[tuple]]:
    """(seconds, [(seconds to the first tokens, seconds between the others)] of each client). Each
    asks for one completion after the other; a first round warms up."""
    await asyncio.gather(*[ask(port, prompt, 1) for prompt in prompts])
    began = time.perf_counter()
    latencies = await asyncio.gather(*[ask(port, prompt, serve_requests) for prompt in prompts])
    return time.perf_counter() - began, latencies


async def ask(port: int, prompt: list[int], count: int) -> tuple[list[float], list[float]]:
    """Latencies of `count` streams of the same completion on one connection."""
    body = dict(prompt=prompt, max_tokens=serve_tokens, temperature=0, stream=True)
    body = json.dumps(dict(body, return_token_ids=True)).encode()  # a block for each token
    head = 'POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n'
    head = f'{head}Content-Length: {len(body)}\r\n\r\n'.encode()
    reader, writer = await asyncio.open_connection('127.0.0.1', port)
    first = []
    following = []
    for _ in range(count):
        before = time.perf_counter()
        writer.write(head + body)
        tokens = 0
        while not (line := await reader.readline()).startswith(b'data: [DONE]'):
            if not line:
                raise SystemExit('the server has closed a connection, see its messages')
            if line.startswith(b'data: ') and b'"token_ids":[]' not in line:
                now = time.perf_counter()
                (following if tokens else first).append(now - before)
                before = now
                tokens += 1
        if tokens != serve_tokens:
            raise SystemExit(f'the server sent {tokens} tokens, expected {serve_tokens}')
        while await reader.readline() != b'0\r\n':  # the last chunk of the response
            pass
        await reader.readline()
    writer.close()
    return first, following


# -----------------------------------------------------------------------------
# (data, machine, figures so far) -> {name: number}. To add a measurement, add a function and its
# name here. The loader comes after train, with which it is compared
MEASURES = {f.__name__: f for f in (train, loader, decode, core, serve)}


def check(names: list[str]) -> None:
    """Report everything wrong with bench's own settings. Model and optimizer check theirs."""
    least = dict(
        repeats=1, warmup=0, batch_size=1, gradient_accumulation_steps=1, cpu_micro_batch_size=0,
        block_size=1, vocab_size=2, seed=0, core_examples=1, decode_tokens=2, serve_clients=1,
        serve_requests=1, serve_tokens=1,
    )  # fmt: skip
    expected = f'expected all, or some of {", ".join(MEASURES)} separated by commas'
    wrong = [f"what has '{name}', {expected}" for name in names if name not in MEASURES]
    if not all(rows.strip().isdecimal() and int(rows) for rows in decode_rows.split(',')):
        wrong.append(
            f"decode_rows is '{decode_rows}', expected numbers of at least 1, such as 1,16"
        )
    check_ranges(config, least=least, most=dict(vocab_size=tokenizers.MAX_VOCAB), wrong=wrong)


def main():
    names = ['train', 'loader'] if what == 'all' else [name.strip() for name in what.split(',')]
    check(names)

    # 1) The machine
    where = runtime.choose_device(device)
    number, why_number = runtime.choose_dtype(dtype, where)
    compiled, why_compiled = runtime.choose_compile(compile, where)
    machine = Machine(where, number, compiled)
    runtime.set_up(where, runtime.Ranks(), deterministic=False)
    if where == 'cpu':
        runtime.keep_freed_memory()
    plan.check_memory(make_config(), config, where, number, runtime.Ranks())
    card = torch.cuda.get_device_name(where) if where.startswith('cuda') else platform.machine()
    facts = dict(
        **machine._asdict(), name=card, cores=os.cpu_count(), threads=torch.get_num_threads(),
        torch=torch.__version__, python=platform.python_version(), system=platform.system(),
    )  # fmt: skip
    if config.describe():
        print(config.describe())
    print(
        f'{where} ({card}), {number} ({why_number}), '
        f'{"compiled" if compiled else "eager"} ({why_compiled}), '
        f'{facts["threads"]} threads of {facts["cores"]}, torch {facts["torch"]}',
        flush=True,
    )

    # 2) The measurements
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        data = write_random_text(folder)
        for name in MEASURES:
            if name in names:
                figures[name] = MEASURES[name](data, machine, figures)
    print(json.dumps({**figures, 'machine': facts, 'settings': dict(config)}))


if __name__ == '__main__':
    main()
