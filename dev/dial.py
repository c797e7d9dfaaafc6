"""
Check the depth dial of plan.py where that is affordable: at small depths, for the dial's horizon.

    $ python data/stdlib/prepare.py                 # 31 MB of text of Python's own library
    $ python dev/dial.py                            # depths 1, 2, 3: hours on two cores; resumes
    $ python dev/dial.py --depths=1,2 --jobs=2      # the smaller ones, two runs at a time
    $ python dev/dial.py --train=False              # only show finished runs

Trains every depth at the learning rate that plan.py derives and at rates around it, and at the
derived rate with more seeds. A table and a plot in out/dial answer two questions. Is the derived
rate near the best? Do losses follow a power law, loss = a * parameters^-b?
"""

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

import checkpoint
import console
import costs
import disk
import plan
import runlog
import runtime
from configurator import check_ranges, configure
from model import GPT, PRESETS, GPTConfig

out_dir = 'out/dial'  # one folder per run, the table and the plot
dataset = 'stdlib'  # plain text: depth 3 reads 29 million of its ids
depths = '1,2,3'  # to train
factors = '0.5,0.71,1,1.41,2'  # learning rates, as multiples of the derived one
seeds = '1,2,3'  # the first for all rates, the others for the derived one
jobs = 1  # runs at a time, which share the cores
train = True  # False: only show finished runs
# Settings of train.py
preset = 'plus'  # plus | nano | gpt2 | llama | qwen3
batch_size = 16  # rows of a micro-batch, at most
block_size = 128  # tokens per row
target_param_data_ratio = 20.0  # tokens per parameter; 20 is the dial's own
dtype = 'auto'  # auto | float32 | bfloat16
compile = None  # torch.compile; None: on CUDA only


class Run(NamedTuple):
    """One training run. factor: its learning rate divided by the derived one."""

    depth: int
    factor: float
    seed: int

    @property
    def folder(self) -> Path:
        return Path(out_dir, f'd{self.depth}_rate{self.factor:g}_seed{self.seed}')

    @property
    def rate(self) -> float:
        return self.factor * derived_rate(self.depth)

    @property
    def settings(self) -> dict:
        """The settings of its train.py."""
        return dict(
            preset=preset, depth=self.depth, learning_rate=self.rate, seed=self.seed,
            out_dir=str(self.folder), auto_resume=True, dataset=dataset, batch_size=batch_size,
            block_size=block_size, dtype=dtype, compile=compile,
            target_param_data_ratio=target_param_data_ratio, eval_interval=0, save_interval=20,
            sample_prompts='',
        )  # fmt: skip


def used_by_a_token(config: GPTConfig) -> int:
    """Parameters, without those of the tables of values. No model is built."""
    with torch.device('meta'):
        return GPT(config).num_params(active=True)


@functools.cache
def derived_rate(depth: int) -> float:
    """The learning rate that train.py derives."""
    # 1) The model
    implied = plan.dial(depth, dict(batch_size=batch_size, block_size=block_size), frozenset())
    shape = {name: implied[name] for name in ('n_layer', 'n_head', 'n_embd')}
    vocab_size, _ = costs.vocabulary(ROOT / 'data', dataset)
    config = GPTConfig(
        **{**PRESETS[preset], **shape, 'vocab_size': vocab_size, 'block_size': block_size}
    )
    parameters = used_by_a_token(config)

    # 2) The length of the run
    tokens_per_step = implied['gradient_accumulation_steps'] * batch_size * block_size
    steps = round(target_param_data_ratio * parameters / tokens_per_step)
    return plan.rates(config, steps, tokens_per_step)['learning_rate']


def listed(setting: str, kind: type) -> list:
    """The numbers of a setting like '1,2,3'."""
    try:
        return [kind(part) for part in setting.split(',')]
    except ValueError:
        raise SystemExit(
            f"'{setting}': expected numbers separated by commas, such as 1,2,3"
        ) from None


def wanted(depths: Sequence[int], factors: Sequence[float], seeds: Sequence[int]) -> list[Run]:
    """Every rate with the first seed, the derived rate with the others too."""
    runs = [Run(depth, factor, seeds[0]) for depth in depths for factor in factors]
    return runs + [Run(depth, 1.0, seed) for depth in depths for seed in seeds[1:]]


def last_row(run: Run, key: str) -> dict:
    """The last line of its log with this key, or {}."""
    rows = [row for row in runlog.read_log(run.folder / 'log.jsonl') if key in row]
    return rows[-1] if rows else {}


def loss_of(run: Run) -> float | None:
    """Its validation loss; None before the end, where it is evaluated once."""
    return last_row(run, 'val').get('val')


def check(run: Run) -> None:
    """Refuse a run that was trained with other settings: the table would show it under a rate it
    never had."""
    names = ('preset', 'learning_rate', 'dataset', 'batch_size', 'block_size')
    names += ('target_param_data_ratio',)
    for first in runlog.read_log(run.folder / 'log.jsonl')[:1]:
        for name in names:
            before = first['config'][name]
            expected = run.settings[name]
            if before != expected:
                raise SystemExit(
                    f'{run.folder} was trained with {name}={before}, expected {expected}: '
                    'remove the folder, or give another --out_dir'
                )


def carry_out(run: Run, pool: ThreadPoolExecutor) -> None:
    """Train it, or resume it, unless it is finished."""
    if loss_of(run) is not None:
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    arguments = (f'--{name}={value}' for name, value in run.settings.items())
    command = [sys.executable, ROOT / 'train.py', *arguments]
    environment = runtime.with_threads(max(1, (os.cpu_count() or 1) // jobs))
    log = run.folder / 'output.txt'
    with open(log, 'ab') as output:
        done = subprocess.run(command, stdout=output, stderr=output, env=environment)
    loss = loss_of(run)
    if done.returncode or loss is None:
        pool.shutdown(wait=False, cancel_futures=True)  # before this thread takes the next run
        lines = log.read_text(encoding='utf-8', errors='replace').strip().splitlines()
        last = console.printable(lines[-1]) if lines else ''
        status = f'training ended with status {done.returncode}'
        raise SystemExit(f'{run.folder}: {status}, see {log}: {last}')
    print(
        f'depth {run.depth}, rate {run.rate:.2e} ({run.factor:g} of the derived), '
        f'seed {run.seed}: {loss:.4f}',
        flush=True,
    )


# -----------------------------------------------------------------------------
# results


class Depth(NamedTuple):
    """The finished runs of one depth."""

    depth: int
    parameters: int  # those that a token uses
    tokens: float
    by_factor: dict[float, float]  # the loss with the first seed
    derived: list[float]  # the losses at the derived rate, all seeds


def gather(runs: Sequence[Run]) -> list[Depth]:
    """The depths that have a finished run at the derived rate, the smallest first."""
    losses = {run: loss_of(run) for run in runs}
    found = []
    for depth in sorted({run.depth for run in runs}):
        done = {run: x for run, x in losses.items() if run.depth == depth and x is not None}
        derived = [run for run in done if run.factor == 1]
        if not derived:
            continue
        first = derived[0]
        state = checkpoint.load(first.folder / 'ckpt.pt', mmap=True)
        parameters = used_by_a_token(GPTConfig(**state['model_config']))
        tokens_per_step = last_row(first, 'tokens_per_step')['tokens_per_step']
        tokens = tokens_per_step * last_row(first, 'val')['step']
        by_factor = {run.factor: x for run, x in done.items() if run.seed == first.seed}
        found.append(Depth(depth, parameters, tokens, by_factor, [done[run] for run in derived]))
    return found


def power_law(parameters: Sequence[float], losses: Sequence[float]) -> tuple[float, float, float]:
    """Fit loss = a * parameters^-b by least squares of the logarithms. Returns (a, b, largest
    residual as a share of the loss)."""
    x = np.log(parameters)
    y = np.log(losses)
    slope, intercept = np.polyfit(x, y, 1)
    residuals = np.abs(np.expm1(y - slope * x - intercept))
    return float(np.exp(intercept)), float(-slope), float(residuals.max())


def show(depths: list[Depth], factors: Sequence[float]) -> list[str]:
    """The table, and a sentence for each of the two questions."""
    # 1) The table
    rates = [f'rate x {factor:g}' for factor in factors]
    head = ['depth', 'parameters', 'tokens', *rates, 'best', 'seeds at x 1']
    rows = [head, ['--:'] * len(head)]
    compared = []  # of each depth with several rates: is the derived one near the best?
    for d in depths:
        best = min(d.by_factor, key=d.by_factor.get)
        if len(d.by_factor) > 1:
            compared.append(1 / 1.42 < best < 1.42)
        losses = [f'{d.by_factor[x]:.4f}' if x in d.by_factor else '-' for x in factors]
        spread = '-'
        if len(d.derived) > 1:
            spread = f'{fmean(d.derived):.4f} +- {stdev(d.derived):.4f} ({len(d.derived)})'
        sizes = [str(d.depth), f'{d.parameters:,}', f'{d.tokens / 1e6:.1f} M']
        rows.append([*sizes, *losses, f'x {best:g}', spread])
    lines = [f'| {" | ".join(row)} |' for row in rows]

    # 2) The sentences
    lines += ['', 'Losses are in nats per token of held-out text.']
    lines.append(
        'Depths whose derived rate is within a factor of 1.4 of the best tried: '
        f'{sum(compared)} of {len(compared)}.'
    )
    if len(depths) > 2:
        losses = [fmean(d.derived) for d in depths]
        a, b, residual = power_law([d.parameters for d in depths], losses)
        lines.append(
            f'loss = {a:.3f} * parameters^-{b:.4f}, residual at most {residual:.2%} of the loss.'
        )
    return lines


def draw(depths: list[Depth]):
    """Left: loss over rate, one line per depth. Right: loss over parameters, with the power law."""
    from matplotlib.figure import Figure  # not pyplot: that would look for a screen

    figure = Figure(figsize=(7.2, 2.9), layout='constrained')
    rates, sizes = figure.subplots(1, 2)
    for d in depths:
        x = sorted(d.by_factor)
        losses = [d.by_factor[factor] for factor in x]
        rates.plot(x, losses, 'o-', markersize=3, label=f'depth {d.depth}')
        sizes.plot([d.parameters] * len(d.derived), d.derived, 'o', markersize=4)
    rates.set(xlabel='learning rate / derived rate', ylabel='loss, nats per token')
    rates.set_xscale('log', base=2)
    rates.legend(frameon=False)
    if len(depths) > 2:
        x = np.geomspace(depths[0].parameters, depths[-1].parameters)
        a, b, _ = power_law([d.parameters for d in depths], [fmean(d.derived) for d in depths])
        sizes.plot(x, a * x**-b, color='grey', linewidth=0.8, zorder=0)
    sizes.set(xlabel='parameters', ylabel='loss, nats per token', xscale='log')
    return figure


def main() -> None:
    # 1) Settings
    if not importlib.util.find_spec('matplotlib'):
        raise SystemExit(
            'the plot needs matplotlib, which is not installed; run: pip install ".[report]"'
        )
    rates = listed(factors, float)
    wrong = []
    if 1.0 not in rates:
        wrong.append(f"factors is '{factors}', expected 1 among them: the derived rate")
    smallest = dict(depths=min(listed(depths, int)), seeds=min(listed(seeds, int)))
    settings = dict(jobs=jobs, preset=preset, **smallest)
    choices = dict(preset=tuple(PRESETS))
    check_ranges(settings, choices, least=dict(jobs=1, depths=1, seeds=0), wrong=wrong)

    # 2) Runs
    runs = wanted(listed(depths, int), rates, listed(seeds, int))
    for run in runs:
        check(run)
    if train:
        with disk.writing(f'out_dir {out_dir}'):
            Path(out_dir).mkdir(parents=True, exist_ok=True)
        disk.try_writing(Path(out_dir, 'dial.md'))
        with ThreadPoolExecutor(jobs) as pool:
            for done in [pool.submit(carry_out, run, pool) for run in runs]:
                done.result()  # raises what went wrong

    # 3) Table and plot
    found = gather(runs)
    if not found:
        raise SystemExit(
            f'{out_dir}: no finished run at the derived rate; train some: python dev/dial.py'
        )
    lines = show(found, rates)
    with disk.replacing(Path(out_dir, 'dial.png')) as file:
        draw(found).savefig(file, format='png', dpi=160)
    look_for = (
        'Left: look for the lowest point of each line at 1, the derived rate. Right: look for all '
        'depths on one grey line, the power law.'
    )
    page = '\n'.join([*lines, '', '![losses over rate and size](dial.png)', '', look_for, ''])
    with disk.replacing(Path(out_dir, 'dial.md')) as file:
        file.write(page.encode('utf-8'))
    print('\n'.join(lines))


if __name__ == '__main__':
    console.set_up(must_finish=True)
    configure(globals())
    main()
