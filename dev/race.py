"""
A race of training recipes on a CPU. docs/leaderboard.md has the rules, and the entries so far.

    $ python dev/race.py shakespeare config/race/shakespeare.py                    # one entry
    $ python dev/race.py tinyworld config/race/tinyworld.py mine.py --seeds=3      # b against a
    $ python dev/race.py tinyworld config/race/tinyworld.py config/race/tinyworld.py+mine.diff

An entry is a config file over train.py's defaults, or such a file and a diff, joined by a +. Each
run trains in a fresh copy of the programs, whose data folder holds the training text alone. Time
is taken here, outside of the run. The checkpoint is scored here too, on the validation text.
Entries take turns. Writes one log per run below out/race/, from which dev/compare.py makes the
verdict.

Left out on purpose: a sandbox. A diff is a program; its reviewer reads it.
"""

import ast
import compileall
import ctypes
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
import torch.nn.functional as F

import checkpoint
import console
import runtime
import shards
import validation
from model import GPT
from runlog import short

DATA = ROOT / 'data'
GRADER = DATA / 'tinyworld' / 'grade.py'  # tasks.py imports it; it imports nothing of tinyworld


class Track(NamedTuple):
    """What an entry races for: the lowest `metric`."""

    dataset: str
    threads: int
    metric: str  # of the logs
    most_nats: float = math.inf  # mean loss of an entry, plus two standard errors
    most_processor_seconds: float = math.inf  # of a run


TRACKS = {
    'shakespeare': Track('shakespeare_char', 2, 'seconds', most_nats=1.88),
    'tinyworld': Track('tinyworld/pretrain', 1, 'bits_per_byte', most_processor_seconds=60),
}

# Settings of train.py that only this program sets, besides seed and out_dir
FIXED = dict(
    stage='pretrain', init_from='scratch', init_optimizer=False, auto_resume=False, dataset='race',
    eval_only=False, plan=False, device='cpu', eval_interval=0, eval_iters=1, save_interval=0,
    core_interval=0, always_save_checkpoint=True, sample_prompts='', wandb_log=False,
)  # fmt: skip

# What a diff may change, and what of train.py it may not: data, checkpoints, evaluation
FILES = ('model.py', 'extras.py', 'moe.py', 'optim.py', 'batches.py', 'train.py')
KEPT = ('main', 'open_data', 'begin_log', 'between_steps', 'save', 'evaluate_model')
MOST_LINES = 150  # of a diff, so that its reviewer can read it

LONGEST = 1200  # seconds of a run
GRACE = 3  # seconds in which a run's helpers may end after it
SCORED_AT_ONCE = 8192  # tokens


# -----------------------------------------------------------------------------
# an entry


class Entry(NamedTuple):
    name: str  # as given: CONFIG.py or CONFIG.py+CHANGE.diff
    config: Path
    diff: Path | None
    settings: dict


def read_entry(name: str) -> Entry:
    """SystemExit for a file that is no entry."""
    config, plus, diff = name.partition('+')
    if not config.endswith('.py') or plus and not diff.endswith('.diff'):
        raise SystemExit(f'{name}: no entry, expected CONFIG.py or CONFIG.py+CHANGE.diff')
    for path in filter(None, (config, diff)):
        if not Path(path).is_file():
            raise SystemExit(f'{path}: no such file, expected one of the entry {name}')
    return Entry(name, Path(config), Path(diff) if plus else None, read_settings(Path(config)))


def read_settings(path: Path) -> dict:
    """
    The settings of a config file. It is Python, which train.py executes, so it may hold nothing but
    lines like `n_layer = 2`. train.py checks names and types.
    """
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as error:
        raise SystemExit(f'{path}: no Python: {getattr(error, "msg", error)}') from None
    settings = {}
    for node in tree.body:
        try:
            [target] = node.targets
            name, value = target.id, ast.literal_eval(node.value)
        except (AttributeError, ValueError):
            line = ast.unparse(node).splitlines()[0]
            raise SystemExit(
                f'{path}:{node.lineno}: `{line}`, expected only lines like `n_layer = 2`, '
                'with a plain value'
            ) from None
        if name in FIXED or name in ('seed', 'out_dir'):
            raise SystemExit(f'{path}:{node.lineno}: {name} is set by the race; leave it out')
        settings[name] = value
    return settings


def apply(diff: Path, folder: Path) -> None:
    """Apply a diff to the programs in the folder. SystemExit if it changes what it may not."""
    # 1) Which files, how many lines
    found = git(folder, diff, '--numstat', str(diff.resolve()))
    lines = 0
    for row in found.splitlines():
        added, removed, name = row.split('\t')
        if name not in FILES or added == '-':  # a binary patch
            raise SystemExit(f'{diff}: changes {name}, expected only {", ".join(FILES)}')
        lines += int(added) + int(removed)
    if not 0 < lines <= MOST_LINES:
        raise SystemExit(f'{diff}: {lines} lines, expected 1 to {MOST_LINES}')

    # 2) Apply
    names = [row.split('\t')[2] for row in found.splitlines()]
    before = {name: parse(folder / name) for name in names}
    git(folder, diff, str(diff.resolve()))
    after = {name: parse(folder / name) for name in names}

    # 3) Data, checkpoints and evaluation stay as they are
    if 'train.py' in names:
        for name in KEPT:
            if function(before['train.py'], name) != function(after['train.py'], name):
                raise SystemExit(f'{diff}: changes {name}() of train.py, which belongs to the race')
    if sum(map(validation_reads, after.values())) > sum(map(validation_reads, before.values())):
        raise SystemExit(f"{diff}: reads the split 'val', expected training on 'train' alone")


def git(folder: Path, diff: Path, *arguments: str) -> str:
    """What `git apply` prints. The folder is no repository, even if one is above it."""
    environment = runtime.with_threads(1) | {'GIT_CEILING_DIRECTORIES': str(folder.parent)}
    command = ['git', 'apply', *arguments]
    text = dict(capture_output=True, text=True, encoding='utf-8', errors='replace')
    try:
        done = subprocess.run(command, cwd=folder, env=environment, **text)
    except FileNotFoundError:
        raise SystemExit(f'{diff}: git, which applies it, is not installed') from None
    if done.returncode:
        reason = console.printable(done.stderr).strip().partition('\n')[0]
        hint = f'if your programs hold the change already, undo it by: git apply -R {diff}'
        raise SystemExit(f'{diff}: does not apply ({reason}); {hint}')
    return done.stdout


def parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), path.name)
    except (OSError, SyntaxError) as error:
        raise SystemExit(f'{path.name} is no Python after the diff: {error}') from None


def function(tree: ast.Module, name: str) -> str:
    """The source of a function without comments; '' if there is none."""
    found = [node for node in tree.body if getattr(node, 'name', None) == name]
    return ast.dump(ast.Module(found, []))


def validation_reads(tree: ast.Module) -> int:
    """How often the source names the validation split."""
    return sum(isinstance(node, ast.Constant) and node.value == 'val' for node in ast.walk(tree))


# -----------------------------------------------------------------------------
# the copy that an entry trains in


def copy_programs(entry: Entry, folder: Path) -> None:
    """The programs, changed by the entry's diff, and its config."""
    for path in (*ROOT.glob('*.py'), GRADER, Path(__file__).resolve()):
        place = folder / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, place)
    if entry.diff:
        apply(entry.diff, folder)
    shutil.copy2(entry.config, folder / 'entry.py')
    compileall.compile_dir(folder, quiet=1)  # else the first run would pay for it


def copy_text(data: shards.Data, folder: Path) -> None:
    """The training text. train.py needs a validation split too: the beginning of the same text."""
    ids = data.split('train').read(0, len(data.split('train')))
    with shards.Writer(folder / 'data' / 'race', data.tokenizer) as out:
        for split, part in dict(train=ids, val=ids[: len(ids) // 10]).items():
            out.write(split, part, int(data.tokenizer.bytes_per_id[part].sum()))


# -----------------------------------------------------------------------------
# a run, watched from outside


class Spent(NamedTuple):
    seconds: float  # from the start of the process to its end
    processor_seconds: float  # of the process and all that it started


def adopt_orphans(wanted: bool) -> None:
    """Make this process the parent of those whose own parent ends, so that none escapes (Linux)."""
    if sys.platform == 'linux':
        set_child_subreaper = 36  # of prctl.h
        ctypes.CDLL(None).prctl(set_child_subreaper, int(wanted), 0, 0, 0)


def children() -> set[int]:
    """The processes whose parent is this one; empty without /proc."""
    found = set()
    for path in Path('/proc').glob('[0-9]*/stat'):
        try:
            text = path.read_text(encoding='utf-8', errors='replace')
        except OSError:  # it has just ended
            continue
        _, _, fields = text.rpartition(')')  # a name may hold blanks and brackets
        if int(fields.split()[1]) == os.getpid():
            found.add(int(path.parent.name))
    return found


def still_running(before: set[int]) -> set[int]:
    """Children newer than `before` that run. Reaps the others, so that their time counts."""
    return {pid for pid in children() - before if os.waitpid(pid, os.WNOHANG) == (0, 0)}


def processor_seconds() -> float:
    """Of all children that have ended."""
    import resource  # not on Windows

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def watch(command: list, folder: Path, threads: int, name: str) -> tuple[Spent, str]:
    """(what it took, its output) of a program. SystemExit if it fails, does not end, or leaves
    another process running."""
    # 1) Run it
    environment = runtime.with_threads(threads) | {'PWD': str(folder)}
    before = children()
    used = processor_seconds()
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=folder, env=environment,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
        ended = False
        try:
            process.wait(LONGEST)
            ended = True
        except subprocess.TimeoutExpired:
            pass  # see 3)
        finally:
            process.kill()
            process.wait()
        seconds = time.perf_counter() - started
        output.seek(0)
        text = console.printable(output.read().decode('utf-8', 'replace'))

    # 2) What it has left running
    deadline = time.perf_counter() + GRACE
    while still_running(before) and time.perf_counter() < deadline:
        time.sleep(0.02)
    killed = 0
    while left := still_running(before):  # the children of those that are killed come next
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            killed += 1
    if killed:
        raise SystemExit(f'{name}: left {killed} other processes running')

    # 3) Did it succeed?
    if not ended:
        raise SystemExit(f'{name}: ran for more than {LONGEST} seconds')
    if process.returncode:
        last = [line for line in text.splitlines() if line.strip()][-1:]
        raise SystemExit(f'{name}: exit status {process.returncode}: {"".join(last)}')
    return Spent(seconds, processor_seconds() - used), text


def race_once(entry: Entry, track: Track, template: Path, seed: int, log: Path) -> dict:
    """Train and score. Writes a log as train.py does, and returns its evaluation."""
    name = f'{entry.name}, seed {seed}'
    torch.set_num_threads(track.threads)
    rate = runtime.machine_facts('cpu')['matmul_gflops']
    with tempfile.TemporaryDirectory() as scratch:
        # 1) Train in a copy that no earlier run has seen
        folder = Path(scratch).resolve() / 'copy'
        shutil.copytree(template, folder)
        fixed = {**FIXED, 'seed': seed, 'out_dir': 'out/race'}
        options = [f'--{setting}={value}' for setting, value in fixed.items()]
        spent, _ = watch(['train.py', 'entry.py', *options], folder, track.threads, name)
        most = track.most_processor_seconds
        if spent.processor_seconds > most:
            took = f'{spent.processor_seconds:.1f} processor seconds'
            raise SystemExit(f'{name}: took {took}, expected at most {most:.0f}')
        if spent.processor_seconds > 1.05 * track.threads * spent.seconds:
            raise SystemExit(f'{name}: ran more threads at once than {track.threads}')

        # 2) Score the checkpoint, in a process of its own: it has the entry's model
        command = ['dev/race.py', '--score', 'out/race/ckpt.pt', DATA / track.dataset]
        _, text = watch(command, folder, track.threads, f'the score of {name}')
    row = json.loads(text.splitlines()[-1])
    row |= dict(seconds=round(spent.seconds, 2), gflops=rate)
    row |= dict(processor_seconds=round(spent.processor_seconds, 2))

    # 3) The log
    log.mkdir(parents=True)
    first = dict(config={**entry.settings, 'seed': seed, 'entry': entry.name})
    lines = ''.join(json.dumps(x) + '\n' for x in (first, row))
    (log / 'log.jsonl').write_text(lines, encoding='utf-8')
    return row


# -----------------------------------------------------------------------------
# the score


def score(path: str, folder: str) -> dict:
    """What a checkpoint scores on the whole validation text of a data folder."""
    model, tokenizer, state = checkpoint.open_model(path, 'cpu')
    data = shards.Data(folder)
    shards.check_tokenizer(data, tokenizer.hash, path)
    split = data.split('val')
    ids = split.read(0, len(split))
    nats = mean_nats(model, ids)
    bytes_per_token = float(tokenizer.bytes_per_id[ids[1:]].mean())
    bits = validation.bits_per_byte(nats, bytes_per_token)
    return dict(step=state['step'], val=nats, bits_per_byte=bits)


@torch.no_grad()
def mean_nats(model: GPT, ids: np.ndarray) -> float:
    """
    The mean of -ln p(id) over ids[1:], in rows of the model's context. The last row may be shorter.

    Takes logits, not losses: the model never sees the targets. Then the rows again in reverse
    order, with other tokens in the second half: the logits of the first half must stay.
    """
    T = model.config.block_size
    whole = (len(ids) - 1) // T * T
    inputs = torch.from_numpy(ids[:whole].reshape(-1, T))
    targets = torch.from_numpy(ids[1 : whole + 1].reshape(-1, T))
    batches = list(zip(*(t.split(max(1, SCORED_AT_ONCE // T)) for t in (inputs, targets))))
    if whole < len(ids) - 1:
        rest = torch.from_numpy(ids[whole:])[None]
        batches.append((rest[:, :-1], rest[:, 1:]))
    nats = 0.0
    for inputs, targets in batches:
        logits = model(inputs)
        nats += F.cross_entropy(logits.double().flatten(0, 1), targets.flatten(), reduction='sum')
        half = (inputs.shape[1] + 1) // 2
        other = inputs.flip(0)
        other[:, half:] = (other[:, half:] + 1) % model.config.vocab_size
        again = model(other).flip(0)
        if not torch.allclose(again[:, :half], logits[:, :half], rtol=0, atol=1e-3):
            raise SystemExit('its logits depend on later tokens, or on other rows')
    return float(nats) / (len(ids) - 1)


# -----------------------------------------------------------------------------
# the race


def read_arguments(arguments: list[str]) -> tuple[Track, list[Entry], int]:
    """(track, one or two entries, number of seeds)."""
    usage = 'python dev/race.py shakespeare|tinyworld ENTRY [ENTRY] [--seeds=5]'
    given = [x for x in arguments if not x.startswith('--seeds=')]
    seeds = [x.removeprefix('--seeds=') for x in arguments if x.startswith('--seeds=')] or ['5']
    if any(x.startswith('-') for x in given) or len(given) not in (2, 3) or len(seeds) > 1:
        raise SystemExit(f'expected a track and one or two entries: {usage}')
    if given[0] not in TRACKS:
        raise SystemExit(f"'{given[0]}' is no track, expected one of {', '.join(TRACKS)}")
    if not seeds[0].isdecimal() or int(seeds[0]) < 2:
        raise SystemExit(f'--seeds={seeds[0]}: expected a number of at least 2')
    return TRACKS[given[0]], list(map(read_entry, given[1:])), int(seeds[0])


def reaches(entry: Entry, track: Track, rows: list[dict]) -> bool:
    """Whether the entry's loss is low enough, beyond the luck of its seeds. Prints it."""
    losses = [row['val'] for row in rows]
    shown = fmean(losses) + 2 * stdev(losses) / math.sqrt(len(losses))
    line = f'{entry.name}: loss {short(fmean(losses), 4)}, plus 2 standard errors {short(shown, 4)}'
    if math.isfinite(track.most_nats):
        line += f', expected at most {track.most_nats}'
    print(line)
    return shown <= track.most_nats


def race(track: Track, entries: list[Entry], seeds: int, out: Path) -> None:
    data = shards.Data(DATA / track.dataset)
    print(f'{track.dataset} {data.hash[:8]}, threads: {track.threads}, logs: {out}')
    with tempfile.TemporaryDirectory() as scratch:
        # 1) All entries are read before the first run
        templates = [Path(scratch, letter) for letter in 'ab'[: len(entries)]]
        for entry, template in zip(entries, templates):
            copy_programs(entry, template)
            copy_text(data, template)

        # 2) Runs, in turn: both entries meet the same hours of the machine
        found = [[] for _ in entries]
        for seed in range(1, seeds + 1):
            for letter, entry, template, rows in zip('ab', entries, templates, found):
                row = race_once(entry, track, template, seed, out / f'{letter}{seed}')
                rows.append(row)
                print(
                    f'{letter}, seed {seed}: {row["seconds"]:.2f} s, '
                    f'{row["processor_seconds"]:.2f} processor seconds, {row["val"]:.4f} nats, '
                    f'{row["bits_per_byte"]:.4f} bits per byte; {row["gflops"]:.0f} GFLOP/s',
                    flush=True,
                )

    # 3) The verdict
    reached = [reaches(entry, track, rows) for entry, rows in zip(entries, found)]
    if not all(reached):
        raise SystemExit(
            f'no verdict: a loss is not shown to be at most {track.most_nats}; see {out}'
        )
    if len(entries) == 2:
        sides = [[str(out / f'{letter}{seed}') for seed in range(1, seeds + 1)] for letter in 'ab']
        command = [sys.executable, str(ROOT / 'dev' / 'compare.py'), *sides[0], '--against']
        print(flush=True)
        subprocess.run([*command, *sides[1], f'--metric={track.metric}'], check=True)


def main():
    console.set_up(must_finish=True)
    arguments = sys.argv[1:]
    if '--help' in arguments or '-h' in arguments:
        print(ast.get_docstring(ast.parse(Path(__file__).read_bytes())))  # python -OO drops __doc__
    elif arguments[:1] == ['--score']:
        print(json.dumps(score(*arguments[1:])))
    else:
        track, entries, seeds = read_arguments(arguments)
        adopt_orphans(True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # watch() then ends its run
        places = (Path('out', 'race', f'{arguments[0]}{n}') for n in itertools.count(1))
        race(track, entries, seeds, next(place for place in places if not place.exists()))


if __name__ == '__main__':
    main()
