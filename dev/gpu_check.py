"""
Check the CUDA path on one card: is it right, is it fast, does it fit?

    $ python dev/gpu_check.py                              # five minutes on one H100 or H200
    $ python dev/gpu_check.py --what=attention,parity      # some of the sections
    $ python dev/gpu_check.py --dry=True                   # the whole program on a CPU, tiny sizes

Every result is one line of JSON, printed and appended to --out as soon as it is known. Figures with
an expected range carry it, and `off` names those outside. A section that fails writes its error,
and the next one follows. The last line names all that failed or was off. The exit status is 1 if a
section failed or a figure of MUST was off; speeds and memory (COMPUTED) are only reported.

Not measured: no GPU was available when this was written. The ranges in COMPUTED come from
docs/gpu.md, where they were computed for an H100; after a run, the card's figures belong beside
them.
"""

import gc
import json
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity

import batches
import checkpoint
import console
import disk
import plan
import runlog
import runtime
from configurator import check_ranges, configure
from engine import Engine, Sampling
from model import GPT, PRESETS, GPTConfig
from optim import Optimizer
from tokenizer import CharTokenizer

what = 'all'  # all, or sections separated by commas: see SECTIONS
device = 'cuda'  # cuda | cuda:1
out = 'out/gpu_check.jsonl'  # the lines are appended to this file
time_limit = 300.0  # seconds; a section that would probably end later is skipped
dry = False  # True: on a CPU with tiny sizes, to test the program itself

# -----------------------------------------------------------------------------
# what to expect: {'section case': {figure: (least, most)}}

# True on every card. The bounds of parity in 16 bits are five times the differences between float32
# and bf16 on a CPU, or more
MUST = {
    'parity float32': dict(loss_off=(0, 1e-5), gradient_off=(0, 1e-4)),
    'parity float32 in pieces': dict(loss_off=(0, 1e-5), gradient_off=(0, 1e-4)),
    'parity 16 bits in pieces': dict(loss_off=(0, 1e-3), gradient_off=(0, 0.05)),
    'parity 16 bits compiled': dict(loss_off=(0, 1e-3), gradient_off=(0, 0.05)),
    'graphs all': dict(later=(0, 0), breaks=(0, 0)),
    'waits three steps': dict(waits=(0, 0)),
    'saving d12': dict(differing_moments=(0, 0)),
    'rl one step': dict(steps=(1, 1), skipped=(0, 0)),
}
# For one H100 or H200 with the sizes below, computed in docs/gpu.md. Attention: Flash at 250 to 310
# TFLOP/s, cuDNN at 430 to 450. Steps: the roofline with one card's optimizer; the lower ends allow
# for the H200's faster memory. Memory: the tensors alive at the peak, moments included, within 3 %
COMPUTED = {
    'attention unasked': dict(ms=(2.3, 3.3), tflops=(365, 520)),  # runtime.py prefers cuDNN's
    'attention flash': dict(ms=(3.9, 5.2), tflops=(230, 310)),
    'attention cudnn': dict(ms=(2.3, 3.3), tflops=(365, 520)),
    'graphs all': dict(first=(6, 6)),  # the model's training and evaluation, 4 of the optimizer
    'd12 32 rows': dict(ms=(145, 190), mfu=(0.36, 0.48), host_ms=(0, 15), peak_GB=(31.9, 33.9)),
    'd20 32 rows': dict(ms=(410, 520), mfu=(0.44, 0.56), host_ms=(0, 20), peak_GB=(73.6, 78.2)),
    'decode 1 row': dict(ms=(4, 9), waits=(2, 12)),  # bound by the host, so alike up to 64 rows
    'decode 16 rows': dict(ms=(4, 9), waits=(2, 12)),
    'decode 64 rows': dict(ms=(4, 9), waits=(2, 12)),
    'rl one step': dict(reward=(0.3, 1)),  # the model has practised such questions
}


class Sizes(NamedTuple):
    """How large the checks are."""

    attention: tuple[int, int, int, int]  # B, H, T, D
    rows: int  # of a training step
    block_size: int
    vocab_size: int
    d12: int  # depths of the models called d12 and d20
    d20: int
    decode_rows: tuple[int, ...]
    small: tuple[int, int, int]  # rows, block_size, vocab_size of the models of two layers
    repeats: int  # the median or mean of this many
    rl: tuple[str, ...]  # more arguments of the step of rl


CARD = Sizes((32, 10, 2048, 128), 32, 2048, 65536, 12, 20, (1, 16, 64), (4, 256, 1024), 10, ())
DRY = Sizes(
    (2, 2, 64, 64), 2, 64, 512, 1, 2, (1, 4), (2, 64, 256), 2,
    ('--batch_size=8', '--gradient_accumulation_steps=1', '--rl_samples=4'),
)  # fmt: skip
SEED = 1337


class Session:
    """What all sections share: the machine, the sizes, the clock, and where results go."""

    def __init__(self, machine: runtime.Machine, sizes: Sizes):
        self.machine = machine
        self.sizes = sizes
        self.began = time.perf_counter()
        self.on_card = machine.device.startswith('cuda')
        card = torch.cuda.get_device_name(machine.device) if self.on_card else ''
        self.expected = [MUST]
        if any(name in card for name in ('H100', 'H200')):
            self.expected.append(COMPUTED)
        self.section = ''
        self.off = []  # 'd20 32 rows: ms'
        self.wrong = False  # whether one of them is in MUST

    def left(self) -> float:
        """Seconds until time_limit."""
        return time_limit - (time.perf_counter() - self.began)

    def report(self, case: str, figures: dict, **about) -> None:
        """Write a line. figures are compared with what is expected of this case; about is not."""
        # 1) Compare
        ranges = {}
        off = []
        for table in self.expected:
            for name, (least, most) in table.get(f'{self.section} {case}', {}).items():
                ranges[name] = [least, most]
                if not least <= figures[name] <= most:  # True for nan too
                    off.append(name)
                    self.off.append(f'{self.section} {case}: {name}')
                    self.wrong |= table is MUST

        # 2) Write
        shown = {name: shorten(x) for name, x in figures.items()}
        row = dict(section=self.section, case=case, **about, **shown)
        row |= dict(expected=ranges, off=off) if ranges else {}
        self.write(row)

    def write(self, row: dict) -> None:
        row |= dict(at_s=round(time.perf_counter() - self.began, 1))
        runlog.append_log(Path(out), row)
        print(json.dumps(row), flush=True)

    # ---- the device

    def wait(self) -> None:
        """Until the device has finished its work."""
        if self.on_card:
            torch.cuda.synchronize()

    def seconds(self, action: Callable, repeats: int) -> float:
        """The mean time of an action on the device."""
        self.wait()
        began = time.perf_counter()
        for _ in range(repeats):
            action()
        self.wait()
        return (time.perf_counter() - began) / repeats

    @contextmanager
    def on_wait(self, mode: str) -> Iterator[None]:
        """Within the block, operations that wait for the card raise ('error') or warn ('warn')."""
        if not self.on_card:
            yield
            return
        torch.cuda.set_sync_debug_mode(mode)
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode('default')

    def kernels(self, action: Callable, most: int) -> tuple[list, int]:
        """([[name, calls, ms], …] of the `most` slowest kernels, calls of all kernels)."""
        activity = ProfilerActivity.CUDA if self.on_card else ProfilerActivity.CPU
        with torch.profiler.profile(activities=[activity]) as profile:
            action()
            self.wait()
        column = 'self_device_time_total' if self.on_card else 'self_cpu_time_total'
        found = [(e.key, e.count, getattr(e, column) / 1000) for e in profile.key_averages()]
        found = [event for event in found if event[2] > 0]  # the host's calls take no device time
        found.sort(key=lambda event: -event[2])
        shown = [[name[:100], calls, shorten(ms)] for name, calls, ms in found[:most]]
        return shown, sum(calls for _, calls, _ in found)

    def compile(self, function: Callable, fullgraph: bool = False) -> Callable:
        """torch.compile as in train.py. A dry run traces the graphs but generates no code, which
        takes a CPU minutes."""
        backend = 'inductor' if self.on_card else 'eager'
        return torch.compile(function, dynamic=False, fullgraph=fullgraph, backend=backend)


def shorten(x):
    return float(f'{x:.4g}') if isinstance(x, float) else x


# -----------------------------------------------------------------------------
# a training step


def sized(depth: int, block_size: int, vocab_size: int) -> GPTConfig:
    """The model of `train.py --depth=…`."""
    implied = plan.dial(depth, dict(batch_size=1, block_size=block_size), frozenset())
    shape = {name: implied[name] for name in ('n_layer', 'n_head', 'n_embd')}
    return GPTConfig(vocab_size=vocab_size, block_size=block_size, **shape)


class Trainer:
    """train.py's model, optimizer and step, without its log. Every step has the same random ids."""

    def __init__(self, session: Session, config: GPTConfig, rows: int, compiled: bool = True):
        self.machine = session.machine
        torch.manual_seed(SEED)
        self.raw_model = GPT(config).to(self.machine.device)
        self.model = session.compile(self.raw_model) if compiled else self.raw_model
        fp16 = self.machine.dtype == 'float16'
        self.optimizer = Optimizer(self.raw_model, fp16=fp16, compile=compiled and session.on_card)
        ids = torch.randint(config.vocab_size, (rows, config.block_size + 1))
        weights = torch.full((rows, config.block_size), 1 / (rows * config.block_size))
        self.batch = batches.Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), weights)

    def forward_backward(self) -> torch.Tensor:
        batch = self.batch.to(self.machine.device)
        with runtime.autocast(self.machine.dtype, self.machine.device):
            nll = self.model(batch.inputs, batch.targets)
        loss = (batch.weights * nll).sum()
        (loss * self.optimizer.loss_scale).backward()
        return loss.detach()

    def update(self) -> None:
        self.optimizer.reduce()
        norm = self.optimizer.norm()
        self.optimizer.step(1e-3, norm, grad_clip=1.0)

    def step(self) -> None:
        self.forward_backward()
        self.update()

    @torch.no_grad()
    def evaluate(self) -> None:
        batch = self.batch.to(self.machine.device)
        self.raw_model.eval()
        with runtime.autocast(self.machine.dtype, self.machine.device):
            self.model(batch.inputs, batch.targets)
        self.raw_model.train()


def small(session: Session) -> Trainer:
    rows, block_size, vocab_size = session.sizes.small
    return Trainer(session, sized(2, block_size, vocab_size), rows)


# -----------------------------------------------------------------------------
# the sections: (session) -> None. Each reports its results


def machine(session: Session) -> None:
    """What the figures were measured on."""
    facts = runtime.machine_facts(session.machine.device)
    facts |= dict(dtype=session.machine.dtype, memory_GB=memory_GB(session))
    if session.on_card:
        major, minor = torch.cuda.get_device_capability()
        facts |= dict(
            capability=f'{major}.{minor}', cuda=torch.version.cuda, driver=driver(),
            cudnn=torch.backends.cudnn.version(), free_GB=torch.cuda.mem_get_info()[0] / 1e9,
        )  # fmt: skip
    session.report('facts', facts)


def memory_GB(session: Session) -> float | None:
    size = runtime.memory(session.machine.device)
    return size and size / 1e9


def driver() -> str | None:
    """The driver's version, which torch does not tell."""
    program = shutil.which('nvidia-smi')
    if not program:
        return None
    query = [program, '--query-gpu=driver_version', '--format=csv,noheader']
    lines = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.splitlines()
    return lines[0] if lines else None


def attention(session: Session) -> None:
    """Each kernel's time for a layer of d20, forward and backward, and which one runs unasked."""
    # 1) The layout of the model: (B, T, H, D) in memory, seen as (B, H, T, D)
    B, H, T, D = session.sizes.attention
    like = dict(dtype=torch.bfloat16, device=session.machine.device)
    q, k, v, upstream = (torch.randn(B, T, H, D, **like).transpose(1, 2) for _ in range(4))
    inputs = [t.requires_grad_() for t in (q, k, v)]
    # two products forward, five backward, half of each masked
    flops = 7 / 2 * 2 * B * H * T * T * D

    def run():
        y = F.scaled_dot_product_attention(*inputs, is_causal=True)
        torch.autograd.grad(y, inputs, upstream)

    def measure(case):
        run()
        t = session.seconds(run, session.sizes.repeats)
        session.report(case, dict(ms=1e3 * t, tflops=flops / t / 1e12))

    # 2) What torch takes after runtime.set_up, then each by name
    measure('unasked')
    backends = dict(
        flash=SDPBackend.FLASH_ATTENTION,
        cudnn=SDPBackend.CUDNN_ATTENTION,
        efficient=SDPBackend.EFFICIENT_ATTENTION,
    )
    for name, backend in backends.items():
        try:
            with warnings.catch_warnings(), sdpa_kernel(backend):
                warnings.simplefilter('ignore')  # torch warns why a kernel does not fit
                measure(name)
        except RuntimeError as error:  # this torch or this card does not have it
            unavailable = str(error).splitlines()[0]
            session.write(dict(section='attention', case=name, unavailable=unavailable))

    # 3) The name of the kernel that runs unasked
    names, _ = session.kernels(run, most=3)
    session.report('unasked kernels', {}, kernels=names)


def parity(session: Session) -> None:
    """Loss and gradients of the card against the CPU's in float32, for each preset."""
    rows, block_size, vocab_size = session.sizes.small
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(vocab_size, (rows, block_size + 1), generator=generator)
    whole = 2**40  # bytes of logits beyond which the loss is computed in pieces
    pieces = rows * block_size * vocab_size  # a quarter of them

    for preset, switches in PRESETS.items():
        # 1) The reference. zero_init would leave most gradients at zero
        torch.manual_seed(SEED)
        shape = dict(vocab_size=vocab_size, block_size=block_size, n_layer=2, n_head=2, n_embd=256)
        net = GPT(GPTConfig(**shape, **{**switches, 'zero_init': False}))
        reference = loss_and_gradients(net, net, ids, 'cpu', 'float32', whole)

        # 2) The card: float32 without TF32, then as in training
        net.to(session.machine.device)
        dtype = session.machine.dtype
        compiled = session.compile(net, fullgraph=True)
        for case, function, number, limit in (
            ('float32', net, 'float32', whole),
            ('float32 in pieces', net, 'float32', pieces),
            ('16 bits in pieces', net, dtype, pieces),
            ('16 bits compiled', compiled, dtype, whole),
        ):
            found = loss_and_gradients(net, function, ids, session.machine.device, number, limit)
            session.report(case, compare(found, reference), preset=preset, dtype=number)


def loss_and_gradients(net, function, ids, device, dtype, logits_bytes) -> tuple[float, dict]:
    """(mean loss, {name: gradient} on the CPU) of function, which computes net."""
    net.zero_grad()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('highest')
    with mock.patch('model.LOGITS_BYTES', logits_bytes), runtime.autocast(dtype, device):
        loss = function(ids[:, :-1].to(device), ids[:, 1:].to(device)).mean()
    loss.backward()
    torch.set_float32_matmul_precision(before)
    gradients = {name: p.grad.cpu().double() for name, p in net.named_parameters()}
    return float(loss.detach()), gradients


def compare(found: tuple[float, dict], reference: tuple[float, dict]) -> dict:
    """Relative differences of the loss, of the whole gradient and of the worst parameter's."""
    loss, gradients = found
    expected_loss, expected = reference
    differences = {name: (gradients[name] - g).norm() for name, g in expected.items()}
    relative = {name: float(x / expected[name].norm()) for name, x in differences.items()}
    worst = max(relative, key=relative.get)
    whole = torch.stack([g.norm() for g in expected.values()]).norm()
    return dict(
        loss=loss,
        loss_off=abs(loss / expected_loss - 1),
        gradient_off=float(torch.stack(list(differences.values())).norm() / whole),
        worst_off=relative[worst],
        worst=worst,
    )


def graphs(session: Session) -> None:
    """How many graphs are compiled for steps and evaluations, and whether that ever goes on."""
    # torch has no public counter of graphs, and 2.13 never fills counters['recompiles']
    counters = torch._dynamo.utils.counters
    breaks = counters['graph_break'].total()
    counts = [counters['stats']['unique_graphs']]
    trainer = small(session)
    for _ in range(2):
        for _ in range(3):
            trainer.step()
        trainer.evaluate()
        counts.append(counters['stats']['unique_graphs'])
    session.report('all', dict(
        first=counts[1] - counts[0], later=counts[2] - counts[1],
        breaks=counters['graph_break'].total() - breaks,
    ))  # fmt: skip


def waits(session: Session) -> None:
    """A step that neither logs nor evaluates never waits for the card."""
    trainer = small(session)
    trainer.step()  # compiles
    trainer.step()
    with session.on_wait('error'):
        for _ in range(3):
            trainer.step()
    session.report('three steps', dict(waits=0))


def d12(session: Session) -> None:
    speed(session, session.sizes.d12)


def d20(session: Session) -> None:
    speed(session, session.sizes.d20)


def speed(session: Session, depth: int) -> None:
    """Time and memory of a training step at the size of a real run."""
    # 1) The first step compiles. Inductor keeps its results on the disk: a second run is faster
    sizes = session.sizes
    before = reset_peak(session)
    trainer = Trainer(session, sized(depth, sizes.block_size, sizes.vocab_size), sizes.rows)
    first = session.seconds(trainer.step, 1)
    trainer.step()

    # 2) The host alone. In two halves, because CUDA blocks it after about a thousand launches
    host = 0.0
    for part in (trainer.forward_backward, trainer.update):
        session.wait()
        began = time.perf_counter()
        part()
        host += time.perf_counter() - began

    # 3) Whole steps
    t = session.seconds(trainer.step, sizes.repeats)
    tokens = sizes.rows * sizes.block_size
    figures = dict(ms=1e3 * t, host_ms=1e3 * host, tokens_per_second=tokens / t, first_step_s=first)
    peak_flops = runtime.peak_flops(session.machine.device)
    if peak_flops:
        figures['mfu'] = trainer.raw_model.flops_per_token() * tokens / t / peak_flops
    if session.on_card:
        figures['peak_GB'] = (torch.cuda.max_memory_allocated() - before) / 1e9
        figures['reserved_GB'] = torch.cuda.max_memory_reserved() / 1e9
    session.report(f'{sizes.rows} rows', figures, parameters=trainer.raw_model.num_params())

    # 4) Which kernels take the time
    names, calls = session.kernels(trainer.step, most=12)
    session.report('kernels', dict(launches=calls), kernels=names)


def reset_peak(session: Session) -> int:
    """Measure peak memory from here on. Returns the bytes in use."""
    if not session.on_card:
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def decode(session: Session) -> None:
    """A token for each of some rows: d20 in the engine, with a prompt of 64 tokens."""
    # 1) A tokenizer that has as many ids, skipping the surrogates
    sizes = session.sizes
    tokenizer = CharTokenizer(
        ''.join(chr(i if i < 0xD800 else i + 0x800) for i in range(sizes.vocab_size))
    )
    torch.manual_seed(SEED)
    net = GPT(sized(sizes.d20, max(256, sizes.block_size), sizes.vocab_size))
    net.to(session.machine.device).eval()

    for n in sizes.decode_rows:
        engine = Engine(net, tokenizer)
        engine.submit([1] * 64, 100, Sampling(top_k=50), n)
        laps = []
        with runtime.autocast(session.machine.dtype, session.machine.device):
            # 2) The first step is the prompt's, the next ones warm up
            for _ in range(5):
                engine.step()
            # 3) Time. A step ends with the ids on the host: it needs no further wait
            for _ in range(2 * sizes.repeats):
                began = time.perf_counter()
                engine.step()
                laps.append(time.perf_counter() - began)
            # 4) Operations that wait for the card, in one step
            with session.on_wait('warn'), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter('always')
                engine.step()
        t = median(laps)
        count = sum('called a synchronizing' in str(w.message) for w in caught)
        figures = dict(ms=1e3 * t, tokens_per_second=n / t, waits=count)
        session.report(f'{n} row{"s" * (n > 1)}', figures)


def rl(session: Session) -> None:
    """One step of train.py's last stage: rollouts, rewards, update."""
    # 1) The run. It prepares the embedded data if that is missing
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            'config/tinyworld_rl.py', '--init_from=assets/tinyworld.pt', f'--out_dir={folder}',
            f'--device={session.machine.device}', f'--dtype={session.machine.dtype}',
            '--auto_resume=False', '--max_iters=1', '--eval_interval=0', '--eval_iters=1',
            '--eval_problems=1', '--sample_prompts=', '--log_interval=1', *session.sizes.rl,
        ]  # fmt: skip
        command = [sys.executable, 'train.py', *arguments]
        began = time.perf_counter()
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, encoding='utf-8', errors='replace',
            timeout=max(1.0, session.left()),
        )  # fmt: skip
        spent = time.perf_counter() - began
        steps = [row for row in runlog.read_log(Path(folder, 'log.jsonl')) if 'loss' in row]

    if done.returncode or not steps:
        last_words = done.stderr.strip()[-800:]
        raise RuntimeError(f'train.py: exit status {done.returncode}, {last_words}')

    # 2) Its only step
    names = ('skipped', 'reward', 'norm', 'loss')
    figures = {name: steps[0][name] for name in names}
    session.report('one step', dict(seconds=spent, steps=len(steps), **figures))


def saving(session: Session) -> None:
    """The time to save and load a checkpoint of d12, and whether the moments survive."""
    # 1) One step fills the moments
    sizes = session.sizes
    config = sized(sizes.d12, sizes.block_size, sizes.vocab_size)
    trainer = Trainer(session, config, rows=1, compiled=False)
    trainer.step()
    session.wait()
    marks = [time.perf_counter()]

    # 2) Save and load
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'ckpt.pt')
        moments = trainer.optimizer.state_dict()
        marks.append(time.perf_counter())
        checkpoint.save(path, dict(
            model=trainer.raw_model.state_dict(), model_config=asdict(config), optimizer=moments,
            tokenizer=CharTokenizer('ab').to_dict(), stage='pretrain', step=1, config={},
        ))  # fmt: skip
        marks.append(time.perf_counter())
        size = path.stat().st_size
        state = checkpoint.load(path)
        checkpoint.restore(trainer.raw_model, state, path)
        trainer.optimizer.load_state_dict(state['optimizer'])
        session.wait()
        marks.append(time.perf_counter())
        saved = state['optimizer']['moments']

    # 3) Compare what was loaded with what was saved
    loaded = trainer.optimizer.state_dict()['moments']
    pairs = [(a[name], b[name]) for a, b in zip(saved, loaded) for name in a]
    collect, save, load = (b - a for a, b in zip(marks, marks[1:]))
    session.report('d12', dict(
        state_dict_s=collect, save_s=save, load_s=load, file_GB=size / 1e9,
        differing_moments=sum(not torch.equal(a, b) for a, b in pairs),
    ))  # fmt: skip


# -----------------------------------------------------------------------------
# all sections, those that tell most per second first


class Section(NamedTuple):
    check: Callable[[Session], None]
    seconds: float  # on an H100, compilation included; estimated, not measured


SECTIONS = {
    'machine': Section(machine, 3),
    'attention': Section(attention, 6),
    'parity': Section(parity, 45),
    'graphs': Section(graphs, 25),
    'waits': Section(waits, 10),
    'd12': Section(d12, 45),
    'd20': Section(d20, 70),
    'decode': Section(decode, 15),
    'rl': Section(rl, 45),
    'saving': Section(saving, 15),
}


def run(session: Session, name: str) -> bool:
    """Run a section. Returns whether it came to its end."""
    session.section = name
    section = SECTIONS[name]
    if section.seconds > session.left():
        reason = f'{session.left():.0f} s are left, it takes about {section.seconds:.0f}'
        session.write(dict(section=name, skipped=reason))
        return True
    # no section inherits compiled code (the limit is 8 variants of a function) or memory
    torch.compiler.reset()
    gc.collect()
    if session.on_card:
        torch.cuda.empty_cache()
    try:
        section.check(session)
    except (Exception, SystemExit) as error:  # whatever it is, the other sections still count
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if Path(f.filename).is_relative_to(ROOT)]
        where = [f'{Path(f.filename).relative_to(ROOT)}:{f.lineno}' for f in own]
        text = console.printable(str(error))[:1000]
        session.write(dict(section=name, error=type(error).__name__, text=text, where=where))
        return False
    return True


def main() -> int:
    # 1) Settings and machine
    names = list(SECTIONS) if what == 'all' else [name.strip() for name in what.split(',')]
    expected = f'expected all, or some of {", ".join(SECTIONS)} separated by commas'
    wrong = [f"what has '{name}', {expected}" for name in names if name not in SECTIONS]
    if not dry and not device.startswith('cuda'):
        wrong.append(f"device is '{device}', expected a card such as cuda:0, or --dry=True")
    check_ranges(dict(time_limit=time_limit), least=dict(time_limit=1), wrong=wrong)
    if not dry and not torch.cuda.is_available():
        raise SystemExit(
            'there is no CUDA card here, expected an H100 or H200; '
            'to try the program itself on a CPU, run: python dev/gpu_check.py --dry=True'
        )
    with disk.writing(f'out {out}'):
        Path(out).parent.mkdir(parents=True, exist_ok=True)
    disk.try_writing(out)
    where = ('cpu', 'bfloat16', False) if dry else (device, 'auto', None)
    chosen = runtime.choose_machine(*where, runtime.Ranks())
    runtime.set_up(chosen.device, runtime.Ranks(), deterministic=False)

    # 2) The sections
    session = Session(chosen, DRY if dry else CARD)
    failed = [name for name in names if not run(session, name)]
    session.section = 'end'
    session.write(dict(section='end', failed=failed, off=session.off))
    return int(bool(failed or session.wrong))


if __name__ == '__main__':
    console.set_up(must_finish=True)
    configure(globals())
    raise SystemExit(main())
