"""
A run's log, out_dir/log.jsonl: writing it, reading it, and what its keys mean.

The first line holds the settings with their sources, the command and the machine. Every other line
is a JSON object with the step it belongs to:

    {"step": 40, "seconds": 3.1, "loss": 4.17, "lr": 0.004, ...}              a step of training
    {"step": 50, "seconds": 3.9, "val": 4.02, "mean": 0.12, ...}              an evaluation
    {"step": 50, "seconds": 3.9, "prompt": "Who are you?", "text": "..."}     a sample
"""

import datetime
import itertools
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import console
import disk
from utf8 import valid_text

# What a run writes into its out_dir, with what evaluate.py adds
FILES = ('best.pt', 'scores.jsonl', 'log.jsonl', 'ckpt.pt')

# Keys that any stage may log
COMMON = {
    'step', 'seconds', 'evaluation_seconds', 'val', 'perplexity', 'bits_per_byte', 'mean', 'loss',
    'lr', 'norm', 'skipped', 'tokens_per_step', 'tokens_per_second', 'prompt', 'text',
}  # fmt: skip
# Keys of single stages, and the titles of their axes
METRICS = {
    'supervised': 'targets per step',
    'accuracy': 'share of pairs',
    'margin': 'margin, nats',
    'logp_chosen': 'log-probability, nats',
    'logp_rejected': 'log-probability, nats',
    'reward': 'mean reward',
    'no_signal': 'share of questions',
    'truncated': 'share of answers',
    'length': 'tokens per answer',
}
# A skill is logged under its own name, which must be none of these
RESERVED = COMMON | METRICS.keys()


# -----------------------------------------------------------------------------
# writing


def set_aside(folder: str | Path) -> None:
    """Before a new run takes the out_dir of an earlier one: rename its files to .old, .old2, …"""
    folder = Path(folder)
    found = [name for name in FILES if (folder / name).exists()]
    if not set(found) - {'log.jsonl'}:
        return
    endings = itertools.chain(('.old',), (f'.old{n}' for n in itertools.count(2)))
    free = next(e for e in endings if not any((folder / (name + e)).exists() for name in FILES))
    print(f'{folder} holds an earlier run, kept as {", ".join(name + free for name in found)}')
    for name in found:
        with disk.writing(folder / (name + free)):
            (folder / name).replace(folder / (name + free))


def start_log(path: Path, facts: dict, step: int | None) -> None:
    """Write a new log with the facts on its first line. On resume at `step`, keep the old log up to
    there: the run will write the later lines again."""
    rows = [facts]
    if step is not None:
        rows = [row for row in read_log(path) if row.get('step', -1) < step] or rows
    with disk.replacing(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=False).encode() + b'\n' for row in rows)


def append_log(path: Path, row: dict) -> None:
    """Append a row. If the disk is full, the run continues without it: checkpoints matter more."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, 'ab') as file:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b'\n')
    except OSError as error:
        reason = f'a line could not be appended ({error.strerror})'
        print(f'{path}: {reason}; the run goes on', flush=True)
        with suppress(OSError):  # read_log would stop at half a line
            os.truncate(path, size)


class RunLog:
    """Writes each line to log.jsonl, to wandb if wanted, and last to the console."""

    def __init__(self, path: Path, to_file: bool):
        self.path = path
        self.to_file = to_file  # False: the run leaves no trace
        self.wandb = None

    def start_wandb(self, project: str, name: str, config: dict) -> None:
        try:
            import wandb
        except ImportError:
            raise SystemExit(
                'wandb_log is True and wandb is not installed; run: pip install wandb'
            ) from None
        self.wandb = wandb.init(project=project, name=name, config=config)

    def write(self, line: str, /, **row) -> None:
        """line: text for the console. row: numbers and texts for log.jsonl and wandb."""
        if self.to_file:
            append_log(self.path, row)
        if self.wandb:
            self.wandb.log(row, step=row['step'])
        print(console.printable(line), flush=True)  # it may quote a model


class Clock:
    """The time of a run, and the speed of its steps without the pauses between them."""

    def __init__(self, seconds_before: float, step: int):
        now = perf_counter()
        self.started = now - seconds_before  # as if a resumed run had never stopped
        self.lap_started = now  # each pause moves it later
        self.lap_step = step
        self.lap_tokens = 0
        self.pause = 0.0  # seconds of the last evaluation

    def seconds(self) -> float:
        return round(perf_counter() - self.started, 3)

    @contextmanager
    def paused(self, evaluating: bool) -> Iterator[None]:
        began = perf_counter()
        yield
        spent = perf_counter() - began
        self.lap_started += spent
        if evaluating:
            self.pause = spent

    def lap(self, step: int) -> tuple[float, float]:
        """(tokens per step, steps per second) since the last lap; `step` is the next step."""
        now = perf_counter()
        steps = step - self.lap_step
        tokens = self.lap_tokens / steps
        speed = steps / (now - self.lap_started)
        self.lap_started = now
        self.lap_step = step
        self.lap_tokens = 0
        return tokens, speed


def duration(seconds: float) -> str:
    """3725 -> '1:02:05'."""
    return str(datetime.timedelta(seconds=round(max(0.0, seconds)))).removeprefix('0:')


# -----------------------------------------------------------------------------
# reading


def read_log(path: Path) -> list[dict]:
    """The lines of a log, up to the first that is not JSON: a crash may cut the last one short."""
    rows = []
    # str.splitlines would split at U+2028 too
    for line in path.read_bytes().split(b'\n') if path.exists() else []:
        try:
            rows.append(valid_text(json.loads(line)))
        except ValueError:  # no JSON, or half a character
            break
    return rows


def was_measured(path: Path, step: int, num_samples: int) -> bool:
    """Whether the log holds an evaluation of this step and as many samples, which follow it."""
    rows = [row for row in read_log(path) if row.get('step') == step]
    samples = [row for row in rows if 'prompt' in row]
    return any(map(is_evaluation, rows)) and len(samples) >= num_samples


def is_evaluation(row: dict) -> bool:
    """Also without 'val': rl on prompts, which have no answers, measures the reward alone."""
    return 'val' in row or 'evaluation_seconds' in row


class Stage(NamedTuple):
    """One stage's folder: its log, sorted by what its lines are about."""

    name: str
    folder: Path
    first: dict  # settings, command, machine
    training: list[dict]
    evaluations: list[dict]
    samples: list[dict]  # answers to the fixed prompts
    practice: list[dict]  # answers of reinforcement learning, with their reward

    @property
    def config(self) -> dict:
        return self.first.get('config', {})

    @property
    def machine(self) -> dict:
        return self.first.get('machine', {})


def read_stage(folder: Path) -> Stage | None:
    """The stage whose log is in this folder; None without a log, or with an empty one."""
    rows = [row for row in read_log(folder / 'log.jsonl') if isinstance(row, dict)]
    if not rows:
        return None
    answers = [row for row in rows if 'prompt' in row and 'text' in row]
    return Stage(
        name=folder.resolve().name,
        folder=folder,
        first=next((row for row in rows if 'config' in row), {}),
        training=[row for row in rows if 'loss' in row and not is_evaluation(row)],
        evaluations=[row for row in rows if is_evaluation(row)],
        samples=[row for row in answers if 'reward' not in row],
        practice=[row for row in answers if 'reward' in row],
    )


# -----------------------------------------------------------------------------
# numbers of a stage; None where the log does not say


def number(row: dict, key: str) -> float | None:
    """A finite number, or None."""
    x = row.get(key)
    is_number = isinstance(x, int | float) and not isinstance(x, bool)
    return x if is_number and math.isfinite(x) else None


def numbers(rows: list[dict], key: str) -> list[float]:
    return [x for row in rows if (x := number(row, key)) is not None]


def steps_done(stage: Stage) -> int:
    """Steps so far. A line of training is written after its step, an evaluation before its step."""
    done = [x + 1 for x in numbers(stage.training, 'step')]
    return round(max(done + numbers(stage.evaluations, 'step'), default=0))


def steps_planned(stage: Stage) -> int:
    """Steps of the whole run if the settings give them without the data, else steps so far."""
    done = steps_done(stage)
    if any(stage.config.get(name) for name in ('epochs', 'target_param_data_ratio', 'time_limit')):
        return done
    return max(done, number(stage.config, 'max_iters') or 0)


def tokens_per_step(stage: Stage) -> float | None:
    logged = numbers(stage.training, 'tokens_per_step')
    return median(logged) if logged else None


def seconds_of(stage: Stage) -> float:
    """Seconds of the whole stage. The clock in an evaluation's line is from before it."""
    rows = stage.training + stage.evaluations + stage.samples
    ends = [
        (number(row, 'seconds') or 0) + (number(row, 'evaluation_seconds') or 0) for row in rows
    ]
    return max(ends, default=0)


def short(x: float | None, digits: int = 3) -> str:
    """1234.5 -> '1,234', 1.5 -> '1.500', None -> '–'."""
    if x is None:
        return '–'
    return f'{x:,.0f}' if abs(x) >= 1000 else f'{x:,.{digits}f}'
