"""
A run's log, out_dir/log.jsonl: reading it, and what its keys mean.

The first line holds the settings, the command and the machine. Every other line is a JSON object
with the step it belongs to:

    {"step": 40, "seconds": 3.1, "loss": 4.17, "lr": 0.004, ...}              a step of training
    {"step": 50, "seconds": 3.9, "val": 4.02, "mean": 0.12, ...}              an evaluation
    {"step": 50, "seconds": 3.9, "prompt": "Who are you?", "text": "..."}     a sample
"""

import json
import math
from pathlib import Path
from statistics import median
from typing import NamedTuple

# Keys that any stage may log
COMMON = {
    'step', 'seconds', 'evaluation_seconds', 'val', 'perplexity', 'bits_per_byte', 'mean', 'loss',
    'lr', 'norm', 'skipped', 'tokens_per_step', 'tokens_per_second', 'prompt', 'text',
}  # fmt: skip
# Keys of single stages, and their units
METRICS = {
    'supervised': 'targets per step',
    'accuracy': 'share of pairs',
    'margin': 'nats',
    'logp_chosen': 'nats',
    'logp_rejected': 'nats',
    'reward': 'mean reward',
    'no_signal': 'share of groups',
    'truncated': 'share of answers',
    'length': 'tokens per answer',
}
# A skill is logged under its own name, which must be none of these
RESERVED = COMMON | METRICS.keys()


def read_log(path: Path) -> list[dict]:
    """The lines of a log. A last line that a crash cut short does not count."""
    rows = []
    # str.splitlines would split at U+2028 too
    for line in path.read_bytes().split(b'\n') if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:  # no JSON, or half a character
            break
    return rows


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
        training=[row for row in rows if 'loss' in row and 'val' not in row],
        evaluations=[row for row in rows if 'val' in row],
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
    """Steps of the whole run, as far as the settings say so without the data."""
    done = steps_done(stage)
    if any(stage.config.get(name) for name in ('epochs', 'target_param_data_ratio', 'time_limit')):
        return done
    return max(done, number(stage.config, 'max_iters') or 0)


def tokens_per_step(stage: Stage) -> float | None:
    logged = numbers(stage.training, 'tokens_per_step')
    return median(logged) if logged else None


def seconds_of(stage: Stage) -> float:
    """Seconds of the whole stage. An evaluation's line has the clock before the evaluation."""
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
