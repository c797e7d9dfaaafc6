"""
A run on one page: times, losses, accuracies, rewards, answers, and how to repeat it.

    $ python report.py out/tinyworld         # all stages: every folder in it with a log.jsonl
    $ python report.py out/tinyworld/rl      # one stage

Reads log.jsonl, the scores.jsonl of evaluate.py, and from ckpt.pt what the stage started from;
measures nothing. Writes report.md and its plots into the folder, also while a run is under way.
"""

import ast
import math
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves this folder out

import checkpoint
import console
import disk
from runlog import (
    COMMON,
    METRICS,
    Stage,
    number,
    numbers,
    read_stage,
    seconds_of,
    short,
    steps_done,
    steps_planned,
    tokens_per_step,
)

ORDER = ('pretrain', 'mid', 'sft', 'dpo', 'rl')  # other stages follow, the oldest first
REFERENCE = 150.0  # GFLOP/s to which times are scaled, so that machines can be compared
LONGEST = 1200  # characters shown of an answer
# Each plot's title, and the sentence under it: what to look for
PLOTS = {
    'losses': (
        'Losses',
        'Look for the blue line, the loss on held-out data, to fall with the grey one of training. '
        'Where it rises while the grey one falls, the model learns its data by heart: train for '
        'fewer steps, or on more data.',
    ),
    'accuracy': (
        'Accuracy',
        'A panel is one skill, from left to right through the stages. Look for the stage in which '
        'a skill jumps, and for skills that fall while others are practised.',
    ),
    'metrics': (
        'Rewards and other metrics of a stage',
        'Grey is each logged step, blue their running mean, a dot a value on held-out data.',
    ),
}
# What to look for in a metric
LOOK_FOR = {
    'supervised': 'the targets that count in a step; steady, if conversations are packed evenly',
    'accuracy': 'the share of pairs in which the better answer has gained more than the other; 0 '
    'at first, since nothing has changed, then well above 0.5',
    'margin': 'by how much more it has gained; rises slowly',
    'logp_chosen': 'the log-probability of the better answers; it may fall a little, and should '
    'fall less than that of the rejected ones',
    'logp_rejected': 'the log-probability of the worse answers; falls',
    'reward': 'how good the answers are that the model tries; rises',
    'no_signal': 'the share of questions whose answers all got one reward, so that nothing is '
    'learned from them; if it nears 1, the questions are too easy or too hard',
    'truncated': 'the share of answers that were cut at rl_tokens; near 0, else raise that',
    'length': 'tokens of an answer; if it runs away, long answers are rewarded by mistake',
}


def read_stages(folder: Path) -> list[Stage]:
    """The folder itself and the folders in it, in the order of training."""

    def place(stage):
        kind = stage.config.get('stage', stage.name)
        known = ORDER.index(kind) if kind in ORDER else len(ORDER)
        return known, (stage.folder / 'log.jsonl').stat().st_mtime, stage.name

    folders = [folder, *(path.parent for path in folder.glob('*/log.jsonl'))]
    return sorted(filter(None, map(read_stage, folders)), key=place)


def points(rows: list[dict], key: str, scale: float = 1.0) -> tuple[list[float], list[float]]:
    """Steps times scale, and the values there. Values that are not finite are left out."""
    found = [row for row in rows if None not in (number(row, key), number(row, 'step'))]
    return [row['step'] * scale for row in found], [row[key] for row in found]


def own_keys(rows: list[dict]) -> list[str]:
    """The keys of numbers in the rows, besides the common ones, in order of appearance."""
    keys = dict.fromkeys(key for row in rows for key in row if key not in COMMON)
    return [key for key in keys if numbers(rows, key)]


def skills(stage: Stage) -> list[str]:
    """Keys of the evaluations that are not metrics of training too, such as DPO's accuracy."""
    metrics = own_keys(stage.training)
    return [key for key in own_keys(stage.evaluations) if key not in metrics]


def skill_rows(stage: Stage) -> list[dict]:
    names = skills(stage)
    return [row for row in stage.evaluations if any(name in row for name in names)]


# -----------------------------------------------------------------------------
# Markdown


def escape(text: str) -> str:
    """Escape text for a table cell, so that it is shown verbatim: no markup, no HTML, one line."""
    text = text.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')
    text = re.sub(r'([\\`*_\[\]~$|#@])', r'\\\1', text)
    lines = [re.sub(r'[\x00-\x1f\x7f]', '\N{REPLACEMENT CHARACTER}', x) for x in text.splitlines()]
    return '<br>'.join(lines) or '*(nothing)*'


def fenced(text: str) -> list[str]:
    """A code block whose fence is longer than any run of backticks in the text."""
    longest = max(map(len, re.findall('`+', text)), default=0)
    fence = '`' * max(3, 1 + longest)
    return [f'{fence}bash', text, fence, '']


def table(head: list[str], rows: list[list[str]], left: int = 1) -> list[str]:
    """A Markdown table: `left` columns of text, then numbers. Cells are escaped already."""
    rule = [':--'] * left + ['--:'] * (len(head) - left)
    return [f'| {" | ".join(cells)} |' for cells in (head, rule, *rows)] + ['']


def from_to(rows: list[dict], key: str) -> str:
    """'4.170 → 1.490', from the first row to the last."""
    ends = [number(row, key) for row in rows[:1] + rows[1:][-1:]]
    return '–' if all(x is None for x in ends) else ' → '.join(short(x) for x in ends)


def headline(stages: list[Stage]) -> list[str]:
    """What each stage took, and its effect on the loss."""
    head = [
        'stage', 'steps', 'tokens', 'seconds', 'of these evaluation', 'tokens/s',
        'GFLOP/s of a matmul', 'val loss', 'perplexity', 'bits per byte',
    ]  # fmt: skip
    rows = []
    all_tokens = 0
    all_seconds = 0.0
    for stage in stages:
        # 1) The stage's numbers
        done = steps_done(stage)
        planned = steps_planned(stage)
        seconds = seconds_of(stage)
        evaluation = sum(numbers(stage.evaluations, 'evaluation_seconds'))
        tokens = round(done * (tokens_per_step(stage) or 0))
        speeds = numbers(stage.training, 'tokens_per_second')
        # 2) Its row
        rows.append([
            escape(stage.name),
            f'{done:,} of {planned:,}' if planned > done else f'{done:,}',
            f'{tokens:,}' if tokens else '–',
            short(seconds, 1),
            short(evaluation, 1),
            short(median(speeds) if speeds else None, 0),
            short(number(stage.machine, 'matmul_gflops'), 0),
            *(from_to(stage.evaluations, key) for key in ('val', 'perplexity', 'bits_per_byte')),
        ])  # fmt: skip
        all_tokens += tokens
        all_seconds += seconds
    if len(stages) > 1:
        sums = [f'**{all_tokens:,}**', f'**{short(all_seconds, 1)}**']
        rows.append(['**all**', '', *sums, *[''] * 6])
    note = (
        "Losses are means over a stage's own held-out data, before → after it; stages have "
        'different data. Tokens include padding.'
    )
    return [*table(head, rows), note, '']


def skill_table(stages: list[Stage]) -> list[str]:
    """Accuracy before the first evaluated stage and after each, with the stage's change."""
    # 1) Columns: (title, evaluation to compare with or {}, evaluation)
    stages = [stage for stage in stages if skill_rows(stage)]
    names = list(dict.fromkeys(name for stage in stages for name in skills(stage)))
    asked = [stage.config.get('eval_problems') for stage in stages]  # problems of each skill
    columns = []
    for i, stage in enumerate(stages):
        before = skill_rows(stage)[0]
        after = skill_rows(stage)[-1]
        if before is after:
            columns.append((f'{stage.name}, step {short(number(after, "step"), 0)}', {}, after))
            continue
        # the column to the left is this stage's start, if both were asked the same problems
        if i == 0 or asked[i] != asked[i - 1]:
            columns.append((f'before {stage.name}', {}, before))
        columns.append((f'after {stage.name}', before, after))

    # 2) Rows: the skills, and their mean
    if any(number(row, 'mean') is not None for *_, row in columns):
        names.append('mean')
    head = ['skill, % right', *(escape(title) for title, *_ in columns)]
    rows = []
    for name in names:
        cells = [percent(number(row, name), number(before, name)) for _, before, row in columns]
        if name == 'mean':
            rows.append([f'**{cell}**' for cell in (name, *cells)])
        else:
            rows.append([escape(name), *cells])
    note = (
        'In brackets: the change through the stage, in points, from its own first evaluation to '
        'its last.'
    )
    if 'mean' in names:
        note += ' In the mean, guessing counts 0.'
    if len(set(asked) - {None}) > 1:
        counts = ', '.join(f'{n} in {escape(stage.name)}' for n, stage in zip(asked, stages))
        note += (
            f' The stages asked different numbers of problems of each skill ({counts}): '
            'compare only columns of the same number.'
        )
    return [*table(head, rows), note, ''] if rows else []


def benchmark_table(stages: list[Stage]) -> list[str]:
    """The scores that evaluate.py has written, a column for each stage that has some."""
    # 1) Columns
    columns = {stage.name: scores_of(stage.folder) for stage in stages}
    columns = {name: scores for name, scores in columns.items() if scores}
    steps = {name: max(x.step for x in scores.values()) for name, scores in columns.items()}
    said = ', '.join(f'{escape(name)} {short(step, 0)}' for name, step in steps.items())

    # 2) Rows: CORE, the skills in the order in which they were measured, ChatCORE
    names = list(dict.fromkeys(name for scores in columns.values() for name in scores))
    names.sort(key=lambda name: (name != 'CORE', name.startswith('ChatCORE')))
    rows = []
    for name in names:
        found = [scores.get(name) for scores in columns.values()]
        rows.append([escape(name), *(escape(score.text) if score else '–' for score in found)])
    note = (
        '% right ± two standard errors; CORE and ChatCORE are fractions, on a scale where guessing '
        f'is 0. Measured by evaluate.py after this many steps: {said}.'
    )
    return [*table(['benchmark', *map(escape, columns)], rows), note, ''] if rows else []


class Measured(NamedTuple):
    """A cell of the table, and what decides between two for the same cell."""

    step: float
    problems: float
    text: str


def scores_of(folder: Path) -> dict[str, Measured]:
    """{row of the table: its cell} of a stage. The latest step counts, then the measurement on most
    problems, then the last."""
    found = {}
    for row in disk.read_lines(folder / 'scores.jsonl'):
        for name, measured in measured_in(row):
            if name not in found or measured[:2] >= found[name][:2]:
                found[name] = measured
    return found


def fields_of(row: dict, key: str) -> dict:
    """An object in a row, {} if there is none."""
    return row[key] if isinstance(row.get(key), dict) else {}


def measured_in(row: dict) -> Iterator[tuple[str, Measured]]:
    """(row of the table, cell) for each number of one call of evaluate.py."""
    # 1) What the call was about
    step = number(row, 'step') or 0
    temperature = number(row, 'temperature') or 0
    if row.get('split') == 'train':
        return
    skills = fields_of(row, 'skills')

    # 2) Skills. Sampled answers are another benchmark than greedy ones
    total = 0
    for name in skills:
        score = fields_of(skills, name)
        if number(score, 'accuracy') is None:
            continue
        problems = number(score, 'problems') or 0
        total += problems
        error = 100 * (number(score, 'error') or 0)
        text = f'{percent(score["accuracy"], None)} ± {error:.1f}'
        passed = fields_of(score, 'passed')
        if temperature and not passed:
            name += f' at temperature {temperature:g}'
        for k in passed:
            yield f'{name} pass@{k}', Measured(step, problems, percent(number(passed, k), None))
        if not passed:
            yield name, Measured(step, problems, text)
    for name in fields_of(row, 'not_run'):
        yield name, Measured(step, 0, 'not run')

    # 3) Numbers of the whole call
    core_tasks = fields_of(row, 'core_tasks')
    examples = sum(number(fields_of(core_tasks, name), 'examples') or 0 for name in core_tasks)
    if number(row, 'core') is not None:
        yield 'CORE', Measured(step, examples, f'{row["core"]:.4f}')
    for name in ('ChatCORE', 'ChatCORE without counting'):
        if number(row, name) is not None and not temperature:
            yield name, Measured(step, total, f'{row[name]:.4f}')
    if number(row, 'bits_per_byte') is not None:
        name = f'bits per byte of {row.get("data")}'
        yield name, Measured(step, 0, short(row['bits_per_byte']))


def percent(x: float | None, before: float | None) -> str:
    if x is None:
        return '–'
    change = '' if before is None else f' ({round(100 * (x - before), 1) + 0.0:+.1f})'
    return f'{100 * x:.1f}{change}'


def metric_table(stages: list[Stage]) -> list[str]:
    """Other numbers of the evaluations, such as which of two answers a model prefers."""
    rows = []
    for stage in stages:
        metrics = [key for key in own_keys(stage.evaluations) if key not in skills(stage)]
        for key in metrics:
            having = [row for row in stage.evaluations if number(row, key) is not None]
            rows.append([escape(stage.name), escape(key), from_to(having, key)])
    return table(['stage', 'held-out', 'before → after'], rows, left=2) if rows else []


def glossary(stages: list[Stage]) -> list[str]:
    """What to look for in each metric of training that is drawn."""
    keys = dict.fromkeys(key for stage in stages for key in own_keys(stage.training))
    lines = [f'- {escape(key)}: {LOOK_FOR[key]}.' for key in keys if key in LOOK_FOR]
    return ['What to look for:', '', *lines, ''] if lines else []


def practice_table(stages: list[Stage]) -> list[str]:
    """The first and the last answers of reinforcement learning, with their rewards."""
    rows = []
    for stage in stages:
        for row in stage.practice[:2] + stage.practice[2:][-2:]:
            texts = [escape(shorten(str(row[key]))) for key in ('prompt', 'text')]
            step = short(number(row, 'step'), 0)
            reward = short(number(row, 'reward'), 2)
            rows.append([escape(stage.name), *texts, step, reward])
    head = ['stage', 'question', 'answer tried', 'step', 'reward']
    return table(head, rows, left=3) if rows else []


def shorten(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + ' […]'


def answers(stages: list[Stage]) -> list[str]:
    """Each stage's last answers to the same prompts."""
    lines = []
    if any(stage.samples for stage in stages):
        lines = [
            'A table is one prompt of sample_prompts; read it downwards. After pretraining the '
            'model continues the prompt as a text; from midtraining on it answers, and '
            '`<<12+7=19>>` is a call of the calculator with its result.',
            '',
        ]
    for prompt in dict.fromkeys(str(row['prompt']) for stage in stages for row in stage.samples):
        rows = []
        for stage in stages:
            texts = [str(row['text']) for row in stage.samples if str(row['prompt']) == prompt]
            rows += [[escape(stage.name), escape(shorten(text))] for text in texts[-1:]]
        lines += table(['after', escape(prompt)], rows, left=2)
    return lines


def machine_and_time(stages: list[Stage]) -> list[str]:
    """The machine, and how long the run would take at REFERENCE GFLOP/s."""
    # 1) A row for each machine
    facts = ('name', 'cores', 'threads', 'system', 'torch', 'python')
    by_machine = {}
    for stage in stages:
        if stage.machine:
            cells = tuple(escape(str(stage.machine.get(key, '–'))) for key in facts)
            by_machine.setdefault(cells, []).append(escape(stage.name))
    rows = [[', '.join(names), *cells] for cells, names in by_machine.items()]
    head = ['stages', 'processor', 'cores', 'threads', 'system', 'PyTorch', 'Python']
    lines = ['The logs do not name the machine.', '']
    if rows:
        lines = table(head, rows, left=2)

    # 2) Scaled time
    total = sum(map(seconds_of, stages))
    rates = [rate for stage in stages if (rate := number(stage.machine, 'matmul_gflops'))]
    if not rates:
        return lines
    scaled = total * median(rates) / REFERENCE
    return [*lines, (
        f'{total:,.1f} seconds at {median(rates):,.1f} GFLOP/s (float32 products of 2048 x 2048 '
        'matrices, measured at the start of each stage, the median) are '
        f'**{scaled:,.1f} seconds, {scaled / 60:.1f} minutes, at {REFERENCE:.0f} GFLOP/s**. '
        "A stage's clock starts at its first step; starting programs and preparing data is not "
        'counted.'
    ), '']  # fmt: skip


def reproduce(stages: list[Stage]) -> list[str]:
    """Each stage's command, seed, settings and the checkpoint it started from."""
    lines = []
    for stage in stages:
        # what differs from the defaults has a source: a config file, the command line, a checkpoint
        command = stage.first.get('command')  # sys.argv[1:] of train.py
        sources = stage.first.get('sources', {} if command else stage.config)  # none in old logs
        settings = {name: x for name, x in stage.config.items() if name in sources}
        if command is None:
            command = [f'--{name}={x}' for name, x in settings.items()]
        text = shlex.join(['python', 'train.py', *map(str, command)])
        if settings:
            listed = ', '.join(f'{name} = {x!r}' for name, x in settings.items())
            text += '\n' + textwrap.fill(
                f'sets {listed}', 98, initial_indent='# ', subsequent_indent='#     '
            )
        seed = escape(str(stage.config.get('seed', '–')))
        lines += [f'**{escape(stage.name)}**: seed {seed}, {parent(stage)}', '']
        lines += fenced(text)
    return lines


def parent(stage: Stage) -> str:
    """What the stage started from, and whether that checkpoint is still on the disk."""
    # 1) What ckpt.pt says
    path = stage.folder / 'ckpt.pt'
    if not path.exists():
        return 'no checkpoint yet'
    try:
        origin = checkpoint.load(path, mmap=True).get('parent')
    except SystemExit as error:
        print(error, file=sys.stderr)
        return '**its ckpt.pt cannot be read**'
    if not origin:
        return 'from scratch'

    # 2) Is it there, unchanged? The whole run may have moved
    parent_path = str(origin['path'])
    sha256 = str(origin['sha256'])
    said = f'from {escape(parent_path)} (sha256 {escape(sha256[:16])}…)'
    places = [Path(parent_path), stage.folder.parent / Path(parent_path).parent.name / 'ckpt.pt']
    found = [place for place in places if place.is_file()]
    if not found:
        return f'{said}, **which is no longer on this disk**'
    if checkpoint.identity(found[0])['sha256'] != sha256:
        return f'{said}, **but {escape(str(found[0]))} is another one by now**'
    return said


# -----------------------------------------------------------------------------
# plots: small panels, one quantity each, named by the title; the last value is beside the line

INK = '#333333'
GREY = '#808080'
PALE = '#c9c9c9'
BLUE = '#1f5fa8'
LOOK = {
    'font.size': 8.5, 'text.color': INK, 'text.parse_math': False, 'axes.labelcolor': INK,
    'axes.edgecolor': '#999999', 'axes.spines.top': False, 'axes.spines.right': False,
    'axes.linewidth': 0.6, 'axes.titlelocation': 'left', 'axes.titlesize': 9.5,
    'axes.titleweight': 'bold', 'axes.formatter.useoffset': False, 'xtick.color': '#777777',
    'ytick.color': '#777777', 'xtick.major.width': 0.6, 'ytick.major.width': 0.6,
    'lines.solid_capstyle': 'round',
}  # fmt: skip


def panels(count: int, columns: int, width: float, height: float):
    """(figure, axes) for `count` panels of that size in inches."""
    from matplotlib.figure import Figure  # not pyplot, which looks for a screen

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
    i = np.arange(len(values))
    half = len(values) // 20
    low = np.maximum(0, i - half)
    high = np.minimum(len(values), i + half + 1)
    sums = np.cumsum([0.0, *values])
    return (sums[high] - sums[low]) / (high - low)


def plain(name: str) -> str:
    """A title in characters that any font has, not too long."""
    return re.sub(r'[^ -~]', '?', name)[:32]


def label(axis, x: list[float], y: list[float], text: str, color: str, up: float = 0.0) -> None:
    """Text right of the line's last point, `up` points above it."""
    if len(x):
        where = dict(textcoords='offset points', va='center', annotation_clip=False)
        axis.annotate(text, (x[-1], y[-1]), (6, up), color=color, **where)


def draw_losses(stages: list[Stage]):
    """A panel per stage: the training loss of every logged step, and the held-out loss."""

    def has_losses(stage):
        return numbers(stage.training, 'loss') or numbers(stage.evaluations, 'val')

    stages = [stage for stage in stages if has_losses(stage)]
    if not stages:
        return None
    figure, axes = panels(len(stages), 3, 3.3, 2.4)
    for axis, stage in zip(axes, stages):
        # 1) Lines. With rewards the loss is a surrogate whose value says nothing
        scale = (tokens_per_step(stage) or 1e6) / 1e6
        rewarded = 'reward' in own_keys(stage.training)
        x, y = points([] if rewarded else stage.training, 'loss', scale)
        val_x, val_y = points(stage.evaluations, 'val', scale)
        axis.plot(x, y, color=PALE, linewidth=1.0)
        held_out = dict(linewidth=1.4, marker='o', markersize=3, clip_on=not val_x)
        axis.plot(val_x, val_y, color=BLUE, **held_out)
        # 2) Labels; that of training above or below, where its line is
        label(axis, val_x, val_y, f'held-out {val_y[-1]:.3f}' if val_y else '', BLUE)
        if x and val_x:
            up = -11 if smooth(y)[-1] < val_y[-1] else 11
            label(axis, val_x, val_y, 'training', GREY, up)
        else:
            label(axis, x, y, 'training', GREY)
        # 3) Axes
        axis.set_title(plain(stage.name))
        axis.set_xlabel('tokens, millions' if tokens_per_step(stage) else 'steps')
        pairs = stage.config.get('stage') == 'dpo'
        axis.set_ylabel('loss, nats per pair' if pairs else 'loss, nats per token')
        axis.margins(y=0.12)
        axis.set_xlim(0, None)
        axis.locator_params('x', nbins=5)
    return figure


def draw_metrics(stages: list[Stage]):
    """A panel for each number that single stages log: rewards, lengths, preferences."""
    wanted = [(stage, key) for stage in stages for key in own_keys(stage.training)]
    if not wanted:
        return None
    figure, axes = panels(len(wanted), 4, 2.6, 2.0)
    for axis, (stage, key) in zip(axes, wanted):
        # 1) Lines: logged steps, their smoothed curve, held-out values
        x, y = points(stage.training, key)
        axis.plot(x, y, color=PALE, linewidth=0.8)
        axis.plot(x, smooth(y), color=BLUE, linewidth=1.4)
        val_x, val_y = points(stage.evaluations, key)
        dots = dict(linewidth=0, marker='o', markersize=3, clip_on=not val_x)
        axis.plot(val_x, val_y, color=INK, **dots)
        # 2) Label
        if val_x:
            label(axis, val_x, val_y, f'held-out\n{short(val_y[-1], 2)}', INK)
        else:
            digits = 2 if abs(y[-1]) < 10 else 0
            label(axis, x, smooth(y), short(smooth(y)[-1], digits), BLUE)
        # 3) Axes
        axis.set_title(plain(f'{stage.name}: {key}'))
        axis.set_xlabel('steps')
        axis.set_ylabel(METRICS.get(key, 'value'))
        axis.margins(y=0.15)
        axis.locator_params('x', nbins=5)
    return figure


def draw_accuracy(stages: list[Stage]):
    """A panel per skill with all stages side by side, equally wide."""
    stages = [stage for stage in stages if skill_rows(stage)]
    names = list(dict.fromkeys(name for stage in stages for name in skills(stage)))
    if not names:
        return None
    figure, axes = panels(len(names), 4, 2.6, 1.9)
    for index, (axis, name) in enumerate(zip(axes, names)):
        # 1) The line through all stages
        x = []
        y = []
        for place, stage in enumerate(stages):
            steps, shares = points(skill_rows(stage), name, 1 / max(1, steps_planned(stage)))
            x += [place + step for step in steps]
            y += [100 * share for share in shares]
        axis.plot(x, y, color=BLUE, linewidth=1.4)
        axis.plot(x[-1:], y[-1:], color=BLUE, marker='o', markersize=3.5, clip_on=not x)
        label(axis, x, y, f'{y[-1]:.0f}' if y else '', BLUE)
        # 2) Borders between stages, and axes
        for border in range(1, len(stages)):
            axis.axvline(border, color='#e4e4e4', linewidth=0.8, zorder=0)
        axis.set_title(plain(name))
        axis.set(xlim=(0, len(stages)), ylim=(-3, 103), yticks=[0, 50, 100])
        axis.set_ylabel('' if index % 4 else '% right')
        axis.set_xlabel('' if index + 4 < len(names) else 'stages')
        centres = [place + 0.5 for place in range(len(stages))]
        axis.set_xticks(centres, [plain(stage.name) for stage in stages])
        axis.tick_params(axis='x', length=0)
    return figure


# -----------------------------------------------------------------------------
# the page


def write(folder: Path) -> Path:
    """Write report.md and the plots. Each file replaces the old one when it is complete."""
    stages = read_stages(folder)
    if not stages:
        raise SystemExit(
            f'{folder}: no log.jsonl here or one folder below; one is made by: python train.py'
        )
    try:
        import matplotlib
    except ImportError:
        raise SystemExit(
            'the plots need matplotlib, which is not installed; run: pip install ".[report]"'
        ) from None

    disk.try_writing(folder / 'report.md')

    # 1) Plots
    drawings = dict(losses=draw_losses, metrics=draw_metrics, accuracy=draw_accuracy)
    plots = {}
    with matplotlib.rc_context(LOOK):
        for name, draw in drawings.items():
            figure = draw(stages)
            if figure:
                with disk.replacing(folder / f'{name}.png') as file:
                    figure.savefig(file, format='png', dpi=160, facecolor='white')
                title, text = PLOTS[name]
                plots[name] = [f'![{title}]({name}.png)', '', text, '']

    # 2) The page
    plot = plots.get('metrics', []) + (glossary(stages) if 'metrics' in plots else [])
    metrics = metric_table(stages) + plot + practice_table(stages)
    sections = {
        'The stages': headline(stages),
        'Accuracy on held-out problems': skill_table(stages) + plots.get('accuracy', []),
        'Benchmarks': benchmark_table(stages),
        'Losses': plots.get('losses', []),
        'Rewards and other metrics': metrics,
        'The same prompts, stage by stage': answers(stages),
        'Machine and time': machine_and_time(stages),
        'How to do it again': reproduce(stages),
    }
    lines = [f'# The run in {escape(folder.resolve().name)}', '']
    for title, content in sections.items():
        lines += [f'## {title}', '', *content] if content else []
    with disk.replacing(folder / 'report.md') as file:
        file.write('\n'.join(lines).encode('utf-8', 'replace'))
    return folder / 'report.md'


def main():
    console.set_up(must_finish=True)
    arguments = sys.argv[1:]
    if arguments in (['--help'], ['-h']):
        print(ast.get_docstring(ast.parse(Path(__file__).read_bytes())))  # python -OO drops __doc__
    elif len(arguments) != 1 or arguments[0].startswith('-'):
        raise SystemExit('expected one folder: python report.py out/tinyworld')
    else:
        print(write(Path(arguments[0])))


if __name__ == '__main__':
    main()
