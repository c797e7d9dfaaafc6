"""
What a run has done so far, in one page: times, losses, accuracies, rewards, answers, and how to do it again.

    $ python report.py out/tinyworld         # all stages: every folder below it that holds a log.jsonl
    $ python report.py out/tinyworld/rl      # one stage alone

Reads log.jsonl and, of ckpt.pt, what it says of its parent; measures nothing. Writes report.md and its plots into the
folder, at any time, while a run is under way too.

    $ python report.py --compare out/a* out/b*                    # is recipe b better than a? several seeds of each
    $ python report.py --compare out/a* out/b* --metric=facts     # in another number of their evaluations than val
    $ python report.py --compare out/a* --against out/b*          # say yourself which runs belong together

The settings that runs have stored tell the recipes apart, whatever the folders are called; --against is for recipes
of the same settings, say before and after a change of the code. Prints, and writes nothing.
"""

import ast
import functools
import glob
import math
import re
import shlex
import sys
import textwrap
from pathlib import Path
from statistics import fmean, median, stdev, variance
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out

import checkpoint
import console
import runtime
from configurator import assignments, is_setting

ORDER = ('pretrain', 'mid', 'sft', 'dpo', 'rl')  # other stages follow, the older ones first
REFERENCE = 150.0  # GFLOP/s of the machine that times are scaled to, so that two machines' can be compared
LONGEST = 1200  # characters of an answer that are shown
# keys of the log that are neither a skill's nor a metric of one stage
COMMON = {
    'step', 'seconds', 'evaluation_seconds', 'val', 'perplexity', 'bits_per_byte', 'mean',
    'loss', 'lr', 'norm', 'skipped', 'tokens_per_step', 'tokens_per_second', 'prompt', 'text',
}  # fmt: skip
TITLES = {'losses': 'Losses', 'metrics': 'Rewards and other metrics of a stage', 'accuracy': 'Accuracy'}
UNITS = {
    'reward': 'mean reward', 'no_signal': 'share of groups', 'truncated': 'share of answers',
    'length': 'tokens of an answer', 'accuracy': 'share of pairs', 'margin': 'nats', 'logp_chosen': 'nats',
    'logp_rejected': 'nats', 'supervised': 'targets of a step',
}  # fmt: skip


class Stage(NamedTuple):
    """One stage's folder: its log, cut up by what its lines are about."""

    name: str
    folder: Path
    first: dict  # the settings, the machine
    training: list[dict]
    evaluations: list[dict]
    samples: list[dict]  # answers to the fixed prompts
    practice: list[dict]  # rl's own answers, with their reward

    @property
    def config(self) -> dict:
        return self.first.get('config', {})

    @property
    def machine(self) -> dict:
        return self.first.get('machine', {})


def read_stage(folder: Path) -> Stage | None:
    """The folder's own log; None where there is none, or nothing in it yet."""
    rows = [row for row in checkpoint.read_log(folder / 'log.jsonl') if isinstance(row, dict)]
    first = next((row for row in rows if 'config' in row), {})
    evaluations = [row for row in rows if 'val' in row]
    training = [row for row in rows if 'loss' in row and 'val' not in row]
    answers = [row for row in rows if 'prompt' in row and 'text' in row]
    samples, practice = ([row for row in answers if ('reward' in row) == own] for own in (False, True))
    return Stage(folder.resolve().name, folder, first, training, evaluations, samples, practice) if rows else None


def read_stages(folder: Path) -> list[Stage]:
    """The folder itself and the folders in it, in the order of a model's life."""

    def place(stage):
        kind = stage.config.get('stage', stage.name)
        known = ORDER.index(kind) if kind in ORDER else len(ORDER)
        return known, (stage.folder / 'log.jsonl').stat().st_mtime, stage.name

    folders = [folder, *(path.parent for path in folder.glob('*/log.jsonl'))]
    return sorted(filter(None, map(read_stage, folders)), key=place)


# -----------------------------------------------------------------------------
# numbers of a stage. None: the log does not say


def number(row: dict, key: str) -> float | None:
    """A finite number, or None."""
    x = row.get(key)
    return x if isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) else None


def numbers(rows: list[dict], key: str) -> list[float]:
    return [x for row in rows if (x := number(row, key)) is not None]


def points(rows: list[dict], key: str, scale: float = 1.0) -> tuple[list[float], list[float]]:
    """Steps times scale, and the values there; what is not finite is left out."""
    there = [(row['step'] * scale, row[key]) for row in rows if None not in (number(row, key), number(row, 'step'))]
    return [x for x, _ in there], [y for _, y in there]


def steps_done(stage: Stage) -> int:
    """A line about training is written when its step is done, one about evaluation before its step begins."""
    done = [x + 1 for x in numbers(stage.training, 'step')] + numbers(stage.evaluations, 'step')
    return round(max(done, default=0))


def steps_planned(stage: Stage) -> int:
    """The steps of the whole run, as far as the settings say so without the data."""
    elsewhere = any(stage.config.get(name) for name in ('epochs', 'target_param_data_ratio', 'time_limit'))
    return max(steps_done(stage), 0 if elsewhere else number(stage.config, 'max_iters') or 0)


def tokens_per_step(stage: Stage) -> float | None:
    logged = numbers(stage.training, 'tokens_per_step')
    return median(logged) if logged else None


def seconds_of(stage: Stage) -> float:
    """Of the whole stage: an evaluation's line has the clock before it."""
    rows = stage.training + stage.evaluations + stage.samples
    return max((number(row, 'seconds') or 0) + (number(row, 'evaluation_seconds') or 0) for row in rows or [{}])


def keys(rows: list[dict]) -> list[str]:
    """What the rows hold besides the common things, in the order in which it first came."""
    return list(dict.fromkeys(key for row in rows for key in row if key not in COMMON and numbers([row], key)))


def skills(stage: Stage) -> list[str]:
    """What is evaluated and is no metric of the training too (say the accuracy of DPO, in pairs)."""
    return [key for key in keys(stage.evaluations) if key not in keys(stage.training)]


def skill_rows(stage: Stage) -> list[dict]:
    names = skills(stage)
    return [row for row in stage.evaluations if any(name in row for name in names)]


# -----------------------------------------------------------------------------
# Markdown


def escape(text: str) -> str:
    """Text as a table's cell shows it verbatim, whatever it holds: no markup, no HTML, one line of the file."""
    text = text.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')
    text = re.sub(r'([\\`*_\[\]~$|#@])', r'\\\1', text)
    lines = [re.sub(r'[\x00-\x1f\x7f]', '\N{REPLACEMENT CHARACTER}', line) for line in text.splitlines()]
    return '<br>'.join(lines) or '*(nothing)*'


def fenced(text: str) -> list[str]:
    """A block of code that holds the text, whose own backticks do not end it."""
    fence = '`' * max(3, 1 + max(map(len, re.findall('`+', text)), default=0))
    return [f'{fence}bash', text, fence, '']


def table(head: list[str], rows: list[list[str]], left: int = 1) -> list[str]:
    """Markdown: `left` columns of text, the others of numbers. Cells are escaped already."""
    rule = [':--'] * left + ['--:'] * (len(head) - left)
    return [f'| {" | ".join(cells)} |' for cells in (head, rule, *rows)] + ['']


def short(x: float | None, digits: int = 3) -> str:
    """1234.5 -> '1,234', 1.5 -> '1.500', None -> '–'."""
    return '–' if x is None else f'{x:,.0f}' if abs(x) >= 1000 else f'{x:,.{digits}f}'


def from_to(rows: list[dict], key: str) -> str:
    """'4.170 → 1.490', from the first of the rows to the last."""
    ends = [number(row, key) for row in rows[:1] + rows[1:][-1:]]
    return '–' if not any(x is not None for x in ends) else ' → '.join(short(x) for x in ends)


def headline(stages: list[Stage]) -> list[str]:
    """What each stage took, and what it did to the loss."""
    head = ['stage', 'steps', 'tokens', 'seconds', 'of these evaluation', 'tokens/s', 'GFLOP/s of a matmul']
    head += ['val loss', 'perplexity', 'bits per byte']
    rows, all_tokens, all_seconds = [], 0, 0.0
    for stage in stages:
        done, planned, seconds = steps_done(stage), steps_planned(stage), seconds_of(stage)
        evaluation = sum(numbers(stage.evaluations, 'evaluation_seconds'))
        tokens = round(done * (tokens_per_step(stage) or 0))
        speeds = numbers(stage.training, 'tokens_per_second')
        rows.append([
            escape(stage.name), f'{done:,}' + f' of {planned:,}' * (planned > done), f'{tokens:,}' if tokens else '–',
            short(seconds, 1), short(evaluation, 1), short(median(speeds) if speeds else None, 0),
            short(number(stage.machine, 'matmul_gflops'), 0),
            *(from_to(stage.evaluations, key) for key in ('val', 'perplexity', 'bits_per_byte')),
        ])  # fmt: skip
        all_tokens, all_seconds = all_tokens + tokens, all_seconds + seconds
    if len(stages) > 1:
        rows.append(['**all**', '', f'**{all_tokens:,}**', f'**{short(all_seconds, 1)}**', *[''] * 6])
    note = "Losses are means over a stage's own held-out data, before → after it: each stage has other data. "
    note += 'Tokens include padding.'
    return [*table(head, rows), note, '']


def skill_table(stages: list[Stage]) -> list[str]:
    """Accuracy before the first stage that was examined, then after each, with the change that the stage made."""
    stages = [stage for stage in stages if skill_rows(stage)]
    names = list(dict.fromkeys(name for stage in stages for name in skills(stage)))
    columns = []  # (title, the evaluation to take off or {}, the evaluation)
    asked = [stage.config.get('eval_problems') for stage in stages]  # problems of each skill
    for i, stage in enumerate(stages):
        before, after = skill_rows(stage)[0], skill_rows(stage)[-1]
        if before is after:
            columns.append((f'{stage.name}, step {short(number(after, "step"), 0)}', {}, after))
        else:
            # The column to the left is where this stage began, if it asked the same problems
            same = i > 0 and asked[i] == asked[i - 1]
            columns += [] if same else [(f'before {stage.name}', {}, before)]
            columns.append((f'after {stage.name}', before, after))
    head, rows = ['skill, % right', *(escape(title) for title, *_ in columns)], []
    for name in [*names, *['mean'] * any(number(row, 'mean') is not None for *_, row in columns)]:
        cells = [percent(number(row, name), number(before, name)) for _, before, row in columns]
        rows.append([escape(name), *cells] if name != 'mean' else [f'**{cell}**' for cell in (name, *cells)])
    note = 'In brackets: the change through the stage, in points, from its own first evaluation to its last. '
    note += 'In the mean, guessing counts 0. ' if rows and rows[-1][0] == '**mean**' else ''
    if len(set(asked) - {None}) > 1:
        counts = [f'{n} in {escape(stage.name)}' for n, stage in zip(asked, stages)]
        note += f'The stages asked different numbers of problems of each skill ({", ".join(counts)}): '
        note += 'compare only columns of the same number.'
    return [*table(head, rows), note.strip(), ''] if rows else []


def percent(x: float | None, before: float | None) -> str:
    change = '' if x is None or before is None else f' ({round(100 * (x - before), 1) + 0.0:+.1f})'
    return '–' if x is None else f'{100 * x:.1f}{change}'


def metric_table(stages: list[Stage]) -> list[str]:
    """What else the evaluations measured on held-out data, say which of two answers a model prefers."""
    rows = []
    for stage in stages:
        for key in [key for key in keys(stage.evaluations) if key not in skills(stage)]:
            having = [row for row in stage.evaluations if number(row, key) is not None]
            rows.append([escape(stage.name), escape(key), from_to(having, key)])
    return table(['stage', 'held-out', 'before → after'], rows, left=2) if rows else []


def practice_table(stages: list[Stage]) -> list[str]:
    """The first and the last of the answers that reinforcement has rewarded, or not."""
    rows = []
    for stage in stages:
        for row in stage.practice[:2] + stage.practice[2:][-2:]:
            texts = [escape(shorten(str(row[key]))) for key in ('prompt', 'text')]
            rows.append([escape(stage.name), *texts, short(number(row, 'step'), 0), short(number(row, 'reward'), 2)])
    return table(['stage', 'question', 'answer tried', 'step', 'reward'], rows, left=3) if rows else []


def shorten(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + ' […]'


def answers(stages: list[Stage]) -> list[str]:
    """What each stage's model last made of the same prompts."""
    lines = []
    for prompt in dict.fromkeys(str(row['prompt']) for stage in stages for row in stage.samples):
        rows = []
        for stage in stages:
            texts = [str(row['text']) for row in stage.samples if str(row['prompt']) == prompt]
            rows += [[escape(stage.name), escape(shorten(text))] for text in texts[-1:]]
        lines += table(['after', escape(prompt)], rows, left=2)
    return lines


def machine_and_time(stages: list[Stage]) -> list[str]:
    """What it ran on, and how long it would have taken at REFERENCE GFLOP/s."""
    by_machine = {}
    for stage in stages:
        facts = {key: stage.machine.get(key, '–') for key in ('name', 'cores', 'threads', 'system', 'torch', 'python')}
        if stage.machine:
            by_machine.setdefault(tuple(escape(str(x)) for x in facts.values()), []).append(escape(stage.name))
    rows = [[', '.join(names), *facts] for facts, names in by_machine.items()]
    head = ['stages', 'processor', 'cores', 'threads', 'system', 'PyTorch', 'Python']
    total = sum(map(seconds_of, stages))
    rates = [rate for stage in stages if (rate := number(stage.machine, 'matmul_gflops'))]
    lines = table(head, rows, left=2) if rows else ['The logs do not say on what machine.', '']
    if not rates:
        return lines
    scaled = total * median(rates) / REFERENCE
    return [*lines, (
        f'{total:,.1f} seconds at {median(rates):,.1f} GFLOP/s (float32 products of 2048 x 2048 matrices, measured at '
        f'the start of each stage, the median) are **{scaled:,.1f} seconds, {scaled / 60:.1f} minutes, at '
        f'{REFERENCE:.0f} GFLOP/s**. The clock of a stage runs from its first step; starting programs and preparing '
        'data come on top.'
    ), '']  # fmt: skip


def reproduce(stages: list[Stage]) -> list[str]:
    """Each stage's command, seed, settings and the checkpoint it started from."""
    defaults, lines = train_defaults(), []
    for stage in stages:
        settings = {k: x for k, x in stage.config.items() if k not in defaults or defaults[k] != x}
        given = stage.first.get('command')  # sys.argv[1:] of train.py
        as_arguments = [f'--{name}={x}' for name, x in settings.items()]
        text = shlex.join(['python', 'train.py', *map(str, as_arguments if given is None else given)])
        if given is not None and settings:
            said = f'by which {", ".join(f"{name} = {x!r}" for name, x in settings.items())}'
            text += '\n' + textwrap.fill(said, 110, initial_indent='# ', subsequent_indent='#     ')
        lines += [f'**{escape(stage.name)}**: seed {escape(str(stage.config.get("seed", "–")))}, {parent(stage)}', '']
        lines += fenced(text)
    return lines


def train_defaults() -> dict:
    """The defaults of train.py's settings, read from its source: importing it would run it."""
    found = {}
    for name, node in assignments(ast.parse(Path(__file__).resolve().with_name('train.py').read_bytes())):
        try:
            found.setdefault(name, ast.literal_eval(node.value))
        except (ValueError, TypeError):
            continue  # computed, so no setting's default
    return {name: value for name, value in found.items() if is_setting(name, value)}


def parent(stage: Stage) -> str:
    """What the stage started from, and whether that is still what lies on the disk."""
    path = stage.folder / 'ckpt.pt'
    if not path.exists():
        return 'no checkpoint yet'
    try:  # mmap: the weights stay on the disk
        state = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
        origin = state['parent'] and (str(state['parent']['path']), str(state['parent']['sha256']))
    except Exception as error:  # torch raises many kinds here
        print(console.printable(f'{path} cannot be read: {error}'), file=sys.stderr)
        return '**its ckpt.pt cannot be read**'
    if not origin:
        return 'from scratch'
    said = f'from {escape(origin[0])} (sha256 {escape(origin[1][:16])}…)'
    there = [Path(origin[0]), stage.folder.parent / Path(origin[0]).parent.name / 'ckpt.pt']  # or the run has moved
    there = [path for path in there if path.is_file()]
    if not there:
        return f'{said}, **which is not on this disk any more**'
    same = checkpoint.identity(there[0])['sha256'] == origin[1]
    return said if same else f'{said}, **but {escape(str(there[0]))} is another one by now**'


# -----------------------------------------------------------------------------
# plots: small panels of one thing each, named above, their last value written beside the line

INK, GREY, PALE, BLUE = '#333333', '#808080', '#c9c9c9', '#1f5fa8'
LOOK = {
    'font.size': 8.5, 'text.color': INK, 'text.parse_math': False, 'axes.labelcolor': INK, 'axes.edgecolor': '#999999',
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.linewidth': 0.6, 'axes.titlelocation': 'left',
    'axes.titlesize': 9.5, 'axes.titleweight': 'bold', 'axes.formatter.useoffset': False, 'xtick.color': '#777777',
    'ytick.color': '#777777', 'xtick.major.width': 0.6, 'ytick.major.width': 0.6, 'lines.solid_capstyle': 'round',
}  # fmt: skip


def panels(count: int, columns: int, width: float, height: float):
    """(figure, axes) for `count` panels of that size in inches."""
    from matplotlib.figure import Figure  # not pyplot: that would look for a screen

    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows), layout='constrained')
    figure.get_layout_engine().set(wspace=0.06, hspace=0.06)  # shares of a panel
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


def smooth(values: list[float]) -> np.ndarray:
    """The mean of about a tenth of all values around each."""
    i, half = np.arange(len(values)), len(values) // 20
    low, high = np.maximum(0, i - half), np.minimum(len(values), i + half + 1)
    sums = np.cumsum([0.0, *values])
    return (sums[high] - sums[low]) / (high - low)


def plain(name: str) -> str:
    """A title: what any font has, and not too long."""
    return re.sub(r'[^ -~]', '?', name)[:32]


def label(axis, x: list[float], y: list[float], text: str, color: str, up: float = 0.0) -> None:
    """A word right of the line's last point, `up` printer's points above it."""
    if len(x):
        where = dict(textcoords='offset points', va='center', annotation_clip=False)
        axis.annotate(text, (x[-1], y[-1]), (6, up), color=color, **where)


def draw_losses(stages: list[Stage]):
    """A panel for each stage: the training loss of every step that was logged, and the loss on held-out data."""
    stages = [stage for stage in stages if numbers(stage.training, 'loss') or numbers(stage.evaluations, 'val')]
    if not stages:
        return None
    figure, axes = panels(len(stages), 3, 3.3, 2.4)
    for axis, stage in zip(axes, stages):
        scale = (tokens_per_step(stage) or 1e6) / 1e6
        rewarded = 'reward' in keys(stage.training)  # then the loss is a surrogate, whose value says nothing
        x, y = points([] if rewarded else stage.training, 'loss', scale)
        val_x, val_y = points(stage.evaluations, 'val', scale)
        axis.plot(x, y, color=PALE, linewidth=1.0)
        axis.plot(val_x, val_y, color=BLUE, linewidth=1.4, marker='o', markersize=3, clip_on=not val_x)
        label(axis, val_x, val_y, f'held-out {val_y[-1]:.3f}' if val_y else '', BLUE)
        if x and val_x:  # beside the other label, on the side where the line is
            label(axis, val_x, val_y, 'training', GREY, up=-11 if smooth(y)[-1] < val_y[-1] else 11)
        else:
            label(axis, x, y, 'training', GREY)
        axis.set_title(plain(stage.name))
        axis.set_xlabel('tokens, millions' if tokens_per_step(stage) else 'steps')
        axis.set_ylabel({'dpo': 'loss, nats per pair'}.get(stage.config.get('stage'), 'loss, nats per token'))
        axis.margins(y=0.12)
        axis.set_xlim(0, None)
        axis.locator_params('x', nbins=5)
    return figure


def draw_metrics(stages: list[Stage]):
    """A panel for each number that one stage logs and others do not: rewards, lengths, preferences."""
    wanted = [(stage, key) for stage in stages for key in keys(stage.training)]
    if not wanted:
        return None
    figure, axes = panels(len(wanted), 4, 2.6, 2.0)
    for axis, (stage, key) in zip(axes, wanted):
        x, y = points(stage.training, key)
        axis.plot(x, y, color=PALE, linewidth=0.8)
        axis.plot(x, smooth(y), color=BLUE, linewidth=1.4)
        val_x, val_y = points(stage.evaluations, key)
        axis.plot(val_x, val_y, color=INK, linewidth=0, marker='o', markersize=3, clip_on=not val_x)
        if val_x:
            label(axis, val_x, val_y, f'held-out\n{short(val_y[-1], 2)}', INK)
        else:
            label(axis, x, smooth(y), short(smooth(y)[-1], 2 if abs(y[-1]) < 10 else 0), BLUE)
        axis.set_title(plain(f'{stage.name}: {key}'))
        axis.set_xlabel('steps')
        axis.set_ylabel(UNITS.get(key, ''))
        axis.margins(y=0.15)
        axis.locator_params('x', nbins=5)
    return figure


def draw_accuracy(stages: list[Stage]):
    """A panel for each skill, all stages in it, each as wide as the others."""
    stages = [stage for stage in stages if skill_rows(stage)]
    names = list(dict.fromkeys(name for stage in stages for name in skills(stage)))
    if not names:
        return None
    figure, axes = panels(len(names), 4, 2.6, 1.9)
    for index, (axis, name) in enumerate(zip(axes, names)):
        x, y = [], []
        for place, stage in enumerate(stages):
            steps, shares = points(skill_rows(stage), name, 1 / max(1, steps_planned(stage)))
            x, y = x + [place + step for step in steps], y + [100 * share for share in shares]
        for border in range(1, len(stages)):
            axis.axvline(border, color='#e4e4e4', linewidth=0.8, zorder=0)
        axis.plot(x, y, color=BLUE, linewidth=1.4)
        axis.plot(x[-1:], y[-1:], color=BLUE, marker='o', markersize=3.5, clip_on=not x)
        label(axis, x, y, f'{y[-1]:.0f}' if y else '', BLUE)
        axis.set_title(plain(name))
        axis.set(xlim=(0, len(stages)), ylim=(-3, 103), yticks=[0, 50, 100], ylabel='% right' * (index % 4 == 0))
        axis.set_xticks([place + 0.5 for place in range(len(stages))], [plain(stage.name) for stage in stages])
        axis.tick_params(axis='x', length=0)
    return figure


# -----------------------------------------------------------------------------
# the page


def write(folder: Path) -> Path:
    """report.md and the plots. Each file takes its old one's place when it is whole."""
    stages = read_stages(folder)
    if not stages:
        raise SystemExit(f'{folder}: no log.jsonl here or one folder below; one is made by: python train.py')
    try:
        import matplotlib
    except ImportError:
        raise SystemExit('the plots need matplotlib, which is not installed; run: pip install ".[report]"') from None
    runtime.try_writing(folder / 'report.md')
    plots = {}
    with matplotlib.rc_context(LOOK):
        for name, draw in dict(losses=draw_losses, metrics=draw_metrics, accuracy=draw_accuracy).items():
            figure = draw(stages)
            if figure:
                with runtime.replacing(folder / f'{name}.png') as file:
                    figure.savefig(file, format='png', dpi=160, facecolor='white')
                plots[name] = [f'![{TITLES[name]}]({name}.png)', '']
    lines = [f'# The run in {escape(folder.resolve().name)}', '']
    sections = [
        ('The stages', headline(stages)),
        ('Accuracy on held-out problems', skill_table(stages) + plots.get('accuracy', [])),
        ('Losses', plots.get('losses', [])),
        ('Rewards and other metrics', metric_table(stages) + plots.get('metrics', []) + practice_table(stages)),
        ('The same prompts, stage by stage', answers(stages)),
        ('Machine and time', machine_and_time(stages)),
        ('How to do it again', reproduce(stages)),
    ]
    for title, content in sections:
        lines += [f'## {title}', '', *content] if content else []
    with runtime.replacing(folder / 'report.md') as file:
        file.write('\n'.join(lines).encode('utf-8', 'replace'))
    return folder / 'report.md'


# -----------------------------------------------------------------------------
# two recipes, several seeds of each: is the second better? Seeds are not paired: the same seed under another recipe
# makes another run

# what runs of one recipe may differ in
APART = {'seed', 'out_dir', 'wandb_log', 'wandb_project', 'wandb_run_name', 'cpu_micro_batch_size'}
LOWER = {'val', 'perplexity', 'bits_per_byte', 'seconds', 'evaluation_seconds'}  # is better; higher of all else


@functools.cache
def t_quantile(freedom: int, inside: float = 0.95) -> float:
    """The t that Student's |T| stays below with that probability: 12.706 for 1 degree of freedom, 1.960 for very many.

    For whole degrees of freedom the probability is a finite sum in the angle atan(t / sqrt(freedom)) and grows with it
    (Abramowitz and Stegun, 26.7.3 and 26.7.4): halving finds the angle to its last bits.
    """
    odd, low, high = freedom % 2, 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        term, total = math.cos(angle) ** odd, 0.0
        for k in range(odd, freedom - 1, 2):
            total += term
            term *= math.cos(angle) ** 2 * (k + 1) / (k + 2)
        total *= math.sin(angle)
        share = (angle + total) * 2 / math.pi if odd else total
        low, high = (angle, high) if share < inside else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def interval(a: list[float], b: list[float]) -> tuple[float, float] | None:
    """95 % interval of mean(b) - mean(a), None where no spread is known. Student's: both groups are taken to spread
    alike and their variances pooled, since three seeds alone hardly tell."""
    if min(len(a), len(b)) < 2:
        return None
    freedom = len(a) + len(b) - 2
    pooled = ((len(a) - 1) * variance(a) + (len(b) - 1) * variance(b)) / freedom
    half = t_quantile(freedom) * math.sqrt(pooled * (1 / len(a) + 1 / len(b)))
    return (fmean(b) - fmean(a) - half, fmean(b) - fmean(a) + half) if half else None


def verdict(low: float, high: float, lower_is_better: bool) -> str:
    """What an interval of b - a says of b."""
    return 'not shown' if low <= 0 <= high else 'better' if (high < 0) == lower_is_better else 'worse'


def find_runs(arguments: list[str]) -> list[Stage]:
    """The runs in these folders, each once. bash expands a pattern like out/a*, PowerShell leaves that to us."""
    paths = [Path(x) for argument in arguments for x in sorted(glob.glob(argument)) or [argument]]
    runs = {path.resolve(): read_stage(path) for path in paths}
    for path in paths:
        if not runs[path.resolve()] or not runs[path.resolve()].config:
            raise SystemExit(f'{path}: no run, expected a folder with the log.jsonl that train.py writes')
    return list(runs.values())


def stored(run: Stage, name: str) -> str:
    return repr(run.config[name]) if name in run.config else '(not stored)'


def differing(runs: list[Stage]) -> list[str]:
    """The settings in which the recipes of these runs differ."""
    names = dict.fromkeys(name for run in runs for name in run.config if name not in APART)
    return [name for name in names if len({stored(run, name) for run in runs}) > 1]


def by_recipe(runs: list[Stage]) -> dict[str, list[Stage]]:
    """{what it has of its own: its runs} of each recipe, that of the first run first."""
    names, groups = differing(runs), {}
    for run in runs:
        recipe = ', '.join(f'{name} = {stored(run, name)}' for name in names)
        groups.setdefault(recipe or 'the same settings', []).append(run)
    return groups


def two_groups(sides: list[list[Stage]]) -> list[list[Stage]]:
    """One side is parted by its two recipes, two sides must be of one recipe each. No seed may come twice in a group:
    that would be the same run again, and no spread."""
    for side in sides:
        recipes = by_recipe(side)
        if len(recipes) + len(sides) != 3:
            found = '; '.join(f'{x}: {", ".join(str(run.folder) for run in runs)}' for x, runs in recipes.items())
            expected = ('2 recipes, or --against between the groups', 'one recipe on each side of --against')
            raise SystemExit(f'expected {expected[len(sides) - 1]}, got {len(recipes)}: {found}')
    groups = sides if len(sides) == 2 else list(by_recipe(sides[0]).values())
    for runs in groups:
        seeds = {}
        for run in runs:
            other = seeds.setdefault(stored(run, 'seed'), run)
            if other is not run:
                raise SystemExit(f'{other.folder} and {run.folder} are of one recipe, expected two seeds, got one')
    return groups


def unfinished(run: Stage, furthest: int) -> str:
    """What a run lacks to its end, as far as its log and the steps of its fellows say; '' is nothing."""
    config, done = run.config, steps_done(run)
    step, seconds = (number(row, key) for row in run.evaluations[-1:] or [{}] for key in ('step', 'seconds'))
    if step is None or step < done:
        return f'no evaluation after step {done:,}'
    elsewhere = config.get('epochs') or config.get('target_param_data_ratio')  # then the log does not say
    planned = max(furthest, 0 if elsewhere else number(config, 'max_iters') or 0)
    out_of_time = 0 < (number(config, 'time_limit') or 0) <= (seconds or 0)
    return f'{done:,} of {planned:,} steps' if done < planned and not out_of_time else ''


def value_at_end(run: Stage, metric: str) -> float:
    last = run.evaluations[-1]
    if metric not in last:
        there = [key for key in last if number(last, key) is not None and key != 'step']
        known = console.printable(', '.join(there))
        raise SystemExit(f"{run.folder}: no metric '{metric}', expected one of {known}")
    if number(last, metric) is None:  # leaving it out would flatter its recipe
        raise SystemExit(f'{run.folder}: {metric} is {last[metric]} at the end, so its recipe has no mean')
    return number(last, metric)


def compare(sides: list[list[str]], metric: str = 'val') -> list[str]:
    """The lines of --compare. sides: one list of folders, or two where the user has parted them."""
    groups = two_groups([find_runs(side) for side in sides])
    differ, values = differing([*groups[0], *groups[1]]), []
    lines = [f'{metric} of the last evaluation, {"lower" if metric in LOWER else "higher"} is better']
    for letter, runs in zip('ab', groups):
        recipe = ', '.join(f'{name} = {stored(runs[0], name)}' for name in differ) or 'the same settings'
        lines += ['', *textwrap.wrap(f'{letter}: {recipe}', 110, subsequent_indent='   ')]
        values.append([])
        for run in runs:
            lacks = unfinished(run, max(map(steps_done, runs)))
            values[-1] += [] if lacks else [value_at_end(run, metric)]
            said = f'unfinished and left out: {lacks}' if lacks else short(values[-1][-1], 4)
            lines.append(f'   {run.folder} (seed {stored(run, "seed")}, {steps_done(run):,} steps): {said}')
        mean, spread = (short(f(values[-1]), 4) if len(values[-1]) > n else '-' for n, f in enumerate((fmean, stdev)))
        lines.append(f'   n = {len(values[-1])}, mean {mean}, standard deviation {spread}')
    ends = interval(*values)
    if not ends:
        return [*lines, '', 'nothing can be said: that takes two finished seeds of each, and a spread among them']
    difference = short(fmean(values[1]) - fmean(values[0]), 4)
    lines += ['', f"b - a = {difference}, 95 % interval {short(ends[0], 4)} to {short(ends[1], 4)} (Student's t)"]
    return [*lines, f'b against a: {verdict(*ends, metric in LOWER)}']


def main():
    arguments = sys.argv[1:]
    console.set_up(must_finish='--compare' not in arguments)
    if arguments in (['--help'], ['-h']):
        print(ast.get_docstring(ast.parse(Path(__file__).read_bytes())))  # python -OO drops __doc__
    elif '--compare' in arguments:
        metric, sides = 'val', [[]]
        for argument in arguments:
            if argument == '--against':
                sides.append([])
            elif argument.startswith('--metric='):
                metric = argument.removeprefix('--metric=')
            elif argument != '--compare':
                sides[-1].append(argument)
        if not all(sides) or len(sides) > 2 or any(x.startswith('-') for side in sides for x in side):
            raise SystemExit('expected the runs of two recipes: python report.py --compare out/a* out/b*')
        print('\n'.join(compare(sides, metric)))
    elif len(arguments) != 1 or arguments[0].startswith('-'):
        raise SystemExit('expected one folder: python report.py out/tinyworld')
    else:
        print(write(Path(arguments[0])))


if __name__ == '__main__':
    main()
