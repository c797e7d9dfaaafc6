"""
What a run takes, before anything is built or downloaded: parameters, FLOPs, tokens, memory, disk,
time and money.

    python train.py config/train_gpt2.py --plan=True
    torchrun --standalone --nproc_per_node=4 train.py config/train_gpt2.py --plan=True

The model and its optimizer are built on the meta device, where tensors have shapes but no numbers.
Parameters, FLOPs and the optimizer's shards are counted on them, so they are exact. Activations and
temporaries are sums of terms; each says which tensors of model.py or optim.py it counts.

Left out on purpose: what only the machine knows. On a GPU that is CUDA's context, NCCL's buffers
and fragmentation, together some GB.
"""

import dataclasses
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

import plan
import runtime
import shards
from configurator import Settings
from model import GPT, LOGITS_BYTES, GPTConfig
from optim import Optimizer

VOCAB_SIZE = 2**16  # where the data are missing: that of config/tokenizer_65536.py
DOLLARS = 3.0  # of a GPU for an hour: nanochat's README (2025) gives $24 for eight H100s

# A shard of FineWeb-Edu (nanochat's form). Characters of a token: its vocabulary of 65,536
SHARD_CHARACTERS = 250e6
SHARD_BYTES = 100e6
TOKEN_CHARACTERS = 4.8

# Python, torch and the libraries of a process that trains on a CPU, in bytes (fitted likewise)
PROCESS_BYTES = 0.32e9
# malloc's heap on a CPU has holes, and runtime.keep_freed_memory keeps it. They are this share of
# activations and logits (fitted to two models on a 2-core CPU with Linux)
HOLES = 0.4

MAX_LAYERS = 1000  # a layer takes about a millisecond on the meta device

# A run for any machine, to try an installation: appended to the user's own arguments
SMALLER = (
    '--depth=4 --block_size=512 --batch_size=1 --gradient_accumulation_steps=1 '
    '--dataset=tinyworld/pretrain --max_iters=20 --target_param_data_ratio=0 --out_dir=out/try'
)


class Target(NamedTuple):
    """The machine that a run is planned for."""

    name: str  # H100, or the device
    count: int  # of GPUs; of processes on a CPU
    device: str  # cuda | cuda:0 | mps | cpu
    dtype: str
    compile: bool
    peak: float | None  # FLOP/s of one GPU; None: unknown


def planned_target(settings: Settings, ranks: runtime.Ranks) -> Target:
    """The machine that --plan=True means: this one if the user names a device, else plan_gpus, as
    many as torchrun has started processes."""
    if settings['device'] != 'auto':
        names = ('device', 'dtype', 'compile')
        return this_machine(runtime.choose_machine(*map(settings.get, names), ranks), ranks)
    wanted = re.fullmatch(r'([1-9]\d*)x(.+)', settings['plan_gpus'])
    if not wanted or wanted[2] not in runtime.PEAK_FLOPS:
        cards = ', '.join(runtime.PEAK_FLOPS)
        raise SystemExit(
            f"plan_gpus is '{settings['plan_gpus']}', expected a number, x and one of "
            f'{cards}, such as 8xH100'
        )
    card = wanted[2]
    count = ranks.world_size if ranks.world_size > 1 else int(wanted[1])
    dtype = settings['dtype']
    if dtype == 'auto':
        dtype = 'float16' if card in ('V100', 'T4') else 'bfloat16'
    compiled = settings['compile'] is not False
    return Target(card, count, 'cuda', dtype, compiled, runtime.PEAK_FLOPS[card])


def this_machine(machine: runtime.Machine, ranks: runtime.Ranks) -> Target:
    peak = runtime.peak_flops(machine.device)
    name = machine.device
    return Target(name, ranks.world_size, name, machine.dtype, machine.compile, peak)


def vocabulary(root: Path, dataset: str) -> tuple[int, str]:
    """(number of ids, where it comes from)."""
    try:
        return shards.open_data(root, dataset).tokenizer.vocab_size, f'of {dataset}'
    except SystemExit:  # no data yet, or none that can be read
        return VOCAB_SIZE, f'assumed: {dataset} is not here'


# -----------------------------------------------------------------------------
# memory


def activations(config: GPTConfig, tokens: int, size: int, compiled: bool) -> int:
    """
    Bytes that a forward pass over `tokens` keeps for backward, without the logits. size: bytes of a
    number. Dropout's masks are left out.

    Compiled code computes again what follows cheaply from a kept tensor: a norm before its gain,
    SiLU of the gate.
    """
    queries = config.n_head * config.head_dim
    keys = config.n_kv_head * config.head_dim  # as wide as the values
    normalized_again = not compiled

    # 1) Numbers per token in a Block: inputs of ln_1 and ln_2 and their results
    block = 4 * config.n_embd
    if config.norm == 'rms_gain' and normalized_again:
        block += 2 * config.n_embd

    # 2) Attention: c_attn's result, normalized or rotated queries and keys, the result
    block += queries + 2 * keys + queries
    if config.positions == 'rope' or config.qk_norm != 'none':
        block += queries + keys
    if config.qk_norm == 'rms_gain' and normalized_again:
        block += queries + keys

    # 3) MLP: c_fc's result or its ReLU, and the input of c_proj. SwiGLU: gate, up and product
    mlp = 2 * config.n_hidden
    if config.mlp == 'swiglu':
        mlp = (4 if normalized_again else 3) * config.n_hidden
    if config.n_expert:  # routed experts also keep a copy of their input and their result
        mlp *= config.n_expert_active + config.n_expert_shared
        mlp += 2 * config.n_expert_active * config.n_embd
    block += mlp

    # 4) Around the blocks: the input of ln_f and its result; the embedding, in float32
    around = 2 * config.n_embd * size
    if config.embed_norm:
        around += config.n_embd * max(4, size)

    # 5) In float32: 1 / RMS of each norm, and attention's log of the sum of exponentials
    scales = 4 * (2 + 2 * config.n_head + config.n_kv_head)
    if config.n_expert:  # the router's probabilities, and four numbers of 8 bytes per choice
        scales += 4 * config.n_expert + 32 * config.n_expert_active

    # 6) Extras: rows of the tables of values; the embeddings of a token and of the one before, in
    # float32. Gates are negligible
    around += len(config.value_layers) * keys * size
    around += 2 * config.n_embd * max(4, size) * config.smear
    return tokens * (config.n_layer * (block * size + scales) + around)


def logits(config: GPTConfig, tokens: int, size: int, compiled: bool) -> int:
    """Bytes of the logits at the beginning of backward. Compiled code keeps one copy and writes the
    gradient over it. Eager code works on one piece: its softmax and two gradients, and with a
    softcap also tanh."""
    if compiled:
        return size * tokens * config.vocab_size
    copies = 4 if config.softcap else 3
    return copies * min(max(4, size) * tokens * config.vocab_size, LOGITS_BYTES)


def update_bytes(optimizer: Optimizer) -> tuple[int, int]:
    """(bytes of the buckets in reduce(), bytes beside weights and moments in step()), each at its
    peak on one rank."""
    # 1) Sizes in bytes: of a rank's share, and of the whole bucket with its padding
    shares = []
    wholes = []
    for bucket in optimizer.buckets.values():
        share = bucket.state['m'].numel() * bucket.state['m'].element_size()
        shares.append(share)
        wholes.append(share * bucket.world_size)

    # 2) reduce(): all buckets are full until the first collective ends; then a share of each
    alone = all(bucket.world_size == 1 for bucket in optimizer.buckets.values())
    in_reduce = sum(wholes) + (0 if alone else sum(shares))

    # 3) step(): gradients of the buckets to come, the gathered bucket before, and seven tensors as
    # large as a share: in muon() g, p, nesterov, update, decay and the operands of the last line,
    # or X, A and X's successor in orthogonalize(); in adamw() m, v and their quotient instead
    in_step = 0
    for i, share in enumerate(shares):
        before = wholes[i - 1] if i else 0
        in_step = max(in_step, 7 * share + before + sum(shares[i + 1 :]))
    return in_reduce, in_step


def memory(model: GPT, optimizer: Optimizer, settings: dict, target: Target) -> dict[str, tuple]:
    """{term: (bytes on one GPU, what it is)}. The last three are sums over moments of a step: at
    the beginning of backward, in the optimizer, and the larger one. On a CPU: of one process."""
    config = model.config
    number = 8 if target.dtype == 'float64' else 4
    fast = 2 if target.dtype in ('bfloat16', 'float16') else number

    # 1) Rows: of a step on this rank, and of its largest micro-batch
    step_rows = -(-settings['gradient_accumulation_steps'] * settings['batch_size'] // target.count)
    micro_batches = -(-step_rows // plan.micro_batch_rows(config, settings, target.device))
    rows = -(-step_rows // micro_batches)
    tokens = rows * config.block_size

    # 2) What stays: parameters, moments, and this step's and the next one's ids, targets, weights
    weights = number * model.num_params()
    moments = sum(
        t.numel() * number for bucket in optimizer.buckets.values() for t in bucket.state.values()
    )
    batches = 2 * 20 * step_rows * config.block_size
    process = int(PROCESS_BYTES) if target.device == 'cpu' else 0
    stays = weights + moments + batches + process

    # 3) The beginning of backward: autocast's copies, earlier gradients, activations
    matrices = sum(model.get_parameter(name).numel() for name in model.matrix_blocks())
    copies = fast * (matrices + model.lm_head.weight.numel()) if fast < number else 0
    earlier = weights if micro_batches > 1 else 0
    kept = activations(config, tokens, fast, target.compile)
    kept += tokens * config.block_size * settings['isolate']  # the mask, (B, 1, T, T) bool
    scores = logits(config, tokens, fast, target.compile)
    holes = int(HOLES * (kept + scores)) if target.device == 'cpu' else 0
    backward = stays + copies + earlier + kept + scores + holes

    # 4) The optimizer: every gradient, beside its bucket; then the update. A GPU's allocator has
    # the memory of the activations for it, malloc's heap keeps that apart
    in_reduce, in_step = update_bytes(optimizer)
    update = stays + max(weights + in_reduce, in_step)
    if target.device == 'cpu':
        update = backward - earlier + weights + max(in_reduce, in_step)
    terms = {
        'weights': (weights, 'float64' if number == 8 else 'float32'),
        'moments': (moments, f'1/{target.count} of the optimizer, with padding'),
        'copies': (copies, 'of the matrices in 16 bits'),
        'gradients': (earlier, 'of earlier micro-batches'),
        'activations': (kept, f'{rows:,} rows of {config.block_size:,} in {target.dtype}'),
        'logits': (scores, 'of these rows' if target.compile else 'of one piece, with gradients'),
        'batches': (batches, "this step's and the next one's"),
        'process': (process, 'Python and torch'),
        'holes': (holes, "in malloc's heap"),
        'backward': (backward, 'their sum, when backward begins'),
        'optimizer': (update, 'when gradients are in its buckets, or during an update'),
        'peak': (max(backward, update), 'the larger of the two'),
    }
    return terms


def to_lower(settings: dict, terms: dict, target: Target) -> str:
    """The setting that lowers the peak most, with its next value."""
    half = settings['batch_size'] // 2
    of_rows = terms['activations'][0] + terms['logits'][0]
    if target.device != 'cpu' and half and of_rows > terms['peak'][0] / 2:
        steps = settings['gradient_accumulation_steps'] * settings['batch_size'] // half
        return f'--batch_size={half} --gradient_accumulation_steps={steps}'
    if settings['depth'] > 1:
        return f'--depth={settings["depth"] // 2}'
    return '--n_layer, --n_embd or --block_size'


# -----------------------------------------------------------------------------
# the table


def parameters(model: GPT) -> dict[str, int]:
    """{kind: count}, a tied table counted as the embedding. The sum is num_params()."""
    mlp = 'experts' if model.config.n_expert else 'MLP'
    kinds = ('embedding', 'head', 'attention', mlp, 'router', 'gates', 'gains and biases')
    counts = dict.fromkeys(kinds, 0)
    blocks = model.matrix_blocks()
    for name, p in model.named_parameters():
        kind = 'gains and biases'
        if name.endswith(('wte.weight', 'wpe.weight', 'wve.weight')):
            kind = 'embedding'
        elif name == 'lm_head.weight':
            kind = 'head'
        elif name in blocks:
            kind = 'attention' if '.attn.' in name else mlp
        elif name.endswith('router.weight'):
            kind = 'router'
        elif name.endswith(('c_gate.weight', 'smear.share')):
            kind = 'gates'
        counts[kind] += p.numel()
    return {kind: count for kind, count in counts.items() if count}


def build(settings: dict, vocab_size: int, target: Target) -> tuple[GPT, Optimizer]:
    """The model and rank 0's optimizer, on the meta device."""
    names = {field.name for field in dataclasses.fields(GPTConfig)} & set(settings)
    config = GPTConfig(vocab_size=vocab_size, **{name: settings[name] for name in names})
    with torch.device('meta'):
        model = GPT(config)
    return model, Optimizer(model, settings['optimizer'], world_size=target.count)


def run_rows(settings: Settings, model: GPT, optimizer: Optimizer, target: Target) -> list[tuple]:
    """[(name, number, note)] of what depends on the length of the run."""
    # 1) Length
    step_rows = settings['gradient_accumulation_steps'] * settings['batch_size']
    step_tokens = step_rows * settings['block_size']
    parameters = model.num_params()
    active = model.num_params(active=True)
    steps, why = plan.horizon(settings, settings.explicit, 0, active, step_tokens)
    tokens = steps * step_tokens
    shown_tokens = f'{tokens / 1e9:,.2f}B' if tokens >= 1e8 else f'{tokens:,}'
    flops = model.flops_per_token() * tokens
    rows = [
        ('FLOPs', f'{model.flops_per_token():,}', 'per token, forward and backward'),
        ('step', f'{step_tokens:,}', f'tokens: {step_rows:,} rows of {settings["block_size"]:,}'),
    ]
    if not steps:
        return [*rows, ('steps', '?', f'{why}: the length follows from the data')]
    rows += [
        ('steps', f'{steps:,}', why),
        ('tokens', shown_tokens, f'{flops:.3e} FLOPs in all'),
    ]

    # 2) Text and disk. While a checkpoint is saved, the one before exists
    if settings['stage'] == 'pretrain':
        number = TOKEN_CHARACTERS * tokens / SHARD_CHARACTERS
        raw = number * SHARD_BYTES / 1e9
        ids = tokens * shards.id_dtype(model.config.vocab_size).itemsize / 1e9
        note = f'of FineWeb-Edu, if no text is read twice: {raw:,.1f} GB, and {ids:,.1f} GB of ids'
        rows.append(('shards', f'{number:,.0f}', note))
    moments = sum(len(bucket.state) * bucket.size * torch.Size(bucket.rule.unit).numel()
                  for bucket in optimizer.buckets.values())  # fmt: skip
    saved = 4 * (parameters + moments) / 1e9
    rows.append(('checkpoint', f'{saved:,.2f} GB', 'twice that while it is saved'))

    # 3) Time and money
    if target.peak is None:
        return [*rows, ('time', '?', f'the peak FLOP/s of {target.name} are unknown')]
    mfu = settings['plan_mfu']
    hours = flops / (target.peak * target.count * mfu) / 3600
    note = f'hours on {target.count} x {target.name} of {target.peak / 1e12:,.0f} TFLOP/s'
    rows.append(('time', f'{hours:,.2f}', f'{note} at an MFU of {mfu:.0%}, without evaluation'))
    dollars = hours * target.count * DOLLARS
    rows.append(('cost', f'${dollars:,.0f}', f'at ${DOLLARS:g} for a GPU and an hour'))
    return rows


def table(settings: Settings, root: Path, target: Target) -> str:
    """The plan as text: a line for each number, with a note on what it is."""
    # 1) Parameters by kind
    vocab_size, source = vocabulary(root, settings['dataset'])
    model, optimizer = build(settings, vocab_size, target)
    counts = parameters(model)
    rows = [('parameters', f'{model.num_params():,}', f'{vocab_size:,} ids, {source}')]
    rows += [('', f'{count:,}', kind) for kind, count in counts.items()]
    if model.config.n_expert:
        rows.append(
            ('active', f'{model.num_params(active=True):,}', 'parameters that a token uses')
        )

    # 2) The run
    rows += run_rows(settings, model, optimizer, target)

    # 3) Memory
    terms = memory(model, optimizer, settings, target)
    how = 'compiled' if target.compile else 'eager'
    place = 'a process on the CPU' if target.device == 'cpu' else f'one {target.name}'
    rows.append(('memory', 'GB', f'of {place}, {how}'))
    for name, (size, note) in terms.items():
        if size or name == 'gradients':
            rows.append(('', f'{size / 1e9:,.2f}', f'{name}: {note}'))
    rows.append(('to lower', '', to_lower(settings, terms, target)))
    return '\n'.join(f'{name:<10} {number:>15}  {note}'.rstrip() for name, number, note in rows)


def of_this_machine(
    settings: Settings, root: Path, machine: runtime.Machine, ranks: runtime.Ranks
) -> Callable[[], str]:
    """The table for this machine, made when it is called; '' on ranks above 0, since rank 0 speaks
    for all, and for more layers than can be built in a moment."""
    target = this_machine(machine, ranks)
    left_out = ranks.rank > 0 or settings['n_layer'] > MAX_LAYERS
    return lambda: '' if left_out else table(settings, root, target)


def show_plan(settings: Settings, root: Path, ranks: runtime.Ranks) -> None:
    """Print the table of --plan=True, on rank 0, and leave the process group."""
    with runtime.errors_once(ranks):
        if ranks.rank == 0:
            print(table(settings, root, planned_target(settings, ranks)))
    runtime.leave()


@contextmanager
def shown_if_refused(this_table: Callable[[], str]) -> Iterator[None]:
    """Around the checks before a run: where the memory or the data are missing, the message goes on
    with the table and with the user's command in a size for any machine."""
    try:
        yield
    except (plan.TooLarge, shards.NotPrepared) as refusal:
        command = f'python train.py {shlex.join([*sys.argv[1:], *SMALLER.split()])}'
        raise SystemExit(f'{refusal}\n\n{this_table()}\n\nA smaller run:\n{command}') from None
