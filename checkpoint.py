"""
Checkpoints: one file, out_dir/ckpt.pt, that a crash at any moment leaves either old and whole or new and whole.

A checkpoint is a dict of plain values and tensors:

    model, model_config    weights (float32; float64 where the run was, half in a small copy), the fields of GPTConfig
    tokenizer              what tokenizer.from_dict takes
    optimizer              optim.Optimizer.state_dict(), None in best.pt
    stage, step, seconds   where the run stands: `step` steps are done
    config                 all settings of the run
    parent, kept           the checkpoint it started from; what the stage wants back on resume
    data                   shards.Data.hash of its data, None if that has no meta.json
    best, about            the best validation loss so far; what a chat says of the model

$ python checkpoint.py out/tinyworld/rl/ckpt.pt small.pt     a copy without the optimizer, in half precision
"""

import hashlib
import itertools
import json
import math
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

import torch

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out

import console
import disk
import tokenizer as tokenizers
from model import GPT, GPTConfig
from utf8 import valid_text

KEYS = {'model', 'model_config', 'tokenizer', 'stage', 'step', 'config'}
FILES = ('best.pt', 'log.jsonl', 'ckpt.pt')  # what a run writes into its out_dir


def save(path: str | Path, state: dict) -> None:
    """Write to a temporary name, fsync, rename. Where the disk is full, the checkpoint that was there stays."""
    try:
        with disk.replacing(path) as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch's, after the file's own
        if not isinstance(error.__context__, OSError):
            raise
        raise disk.not_written(path, error.__context__) from error


def load(path: str | Path, mmap: bool = False) -> dict:
    """Read a checkpoint onto the CPU. Nothing in it is ever run as code.

    mmap: read weights when they are used, so that looking at the other fields is cheap.
    """
    path = Path(path)
    if not path.exists():
        config = Path('config', '_'.join(part for part in path.parent.parts if part != 'out') + '.py')
        known = (Path(__file__).resolve().parent / config).exists()  # out/tinyworld/mid is config/tinyworld_mid.py's
        made = f'python train.py {config if known else f"--out_dir={path.parent}"}'
        raise SystemExit(f'there is no checkpoint {path}; expected the out_dir of a run; one is made by: {made}')
    try:
        state = torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises many kinds here
        reason = (str(error) or repr(error)).strip().splitlines()[0][:120]  # an empty file's EOFError says nothing
        reason = console.printable(reason)  # it may quote the file
        raise SystemExit(
            f'{path} is not a whole checkpoint ({reason}); delete it, or take another --out_dir'
        ) from error
    missing = KEYS - set(state) if isinstance(state, dict) else KEYS
    if missing:
        raise SystemExit(f'{path} is no checkpoint of this project: it lacks {", ".join(sorted(missing))}')
    return state


def load_tokenizer(path: str | Path) -> tokenizers.Tokenizer:
    """The tokenizer of a tok.json, of a .pt file, or of a folder: a run's or one of data."""
    path = Path(path)
    if path.is_dir():
        names = ('tok.json', 'ckpt.pt', 'best.pt')
        path = next((path / name for name in names if (path / name).exists()), path / 'tok.json')
    if path.suffix == '.pt':
        return tokenizers.from_dict(load(path, mmap=True)['tokenizer'], path)
    return tokenizers.load(path)


def restore(model: torch.nn.Module, state: dict, path: str | Path) -> None:
    """The checkpoint's weights into a model built after its model_config."""
    try:
        model.load_state_dict(state['model'])
    except RuntimeError as error:
        first = console.printable(str(error).split('\n\t')[1])  # it may quote the file
        raise SystemExit(f'{path} was made by another model.py: {first} take the one that made it') from None


def shrink(source: str | Path, target: str | Path) -> None:
    """A copy that can be used and gone on from, but not resumed: weights in half precision, no optimizer."""
    disk.try_writing(target)
    state = load(source)
    kept = {name: state[name] for name in sorted(KEYS | {'about', 'parent', 'seconds'}) if name in state}
    kept['model'] = {name: t.half() if t.is_floating_point() else t for name, t in state['model'].items()}
    save(target, kept)


def claim(folder: str | Path) -> disk.Lock:
    """Make out_dir and keep other runs out of it until the lock is released."""
    folder = Path(folder)
    with disk.writing(f'out_dir {folder}'):
        folder.mkdir(parents=True, exist_ok=True)
        lock = disk.Lock(folder / 'run.lock')
        # Remove what a killed run left of disk.replacing, and nothing else that ends in .part
        leftover = re.compile(rf'({"|".join(map(re.escape, FILES))})\.\d+\.part')
        for path in folder.iterdir() if lock.works else ():
            if leftover.fullmatch(path.name):
                path.unlink()
    return lock


def set_aside(folder: str | Path) -> None:
    """Before a new run takes an out_dir that holds a checkpoint: that run's files get the ending .old, or .old2, …"""
    folder = Path(folder)
    there = [name for name in FILES if (folder / name).exists()]
    if set(there) - {'log.jsonl'}:
        endings = itertools.chain(('.old',), (f'.old{n}' for n in itertools.count(2)))
        free = next(e for e in endings if not any((folder / (name + e)).exists() for name in FILES))
        print(f'{folder} holds an earlier run, kept as {", ".join(name + free for name in there)}')
        for name in there:
            with disk.writing(folder / (name + free)):
                (folder / name).replace(folder / (name + free))


def best_of(folder: str | Path) -> float:
    """The validation loss of best.pt, or infinity. ckpt.pt may be older: it is saved before the evaluation."""
    path = Path(folder, 'best.pt')
    return load(path, mmap=True)['best'] if path.exists() else math.inf


def choose(folder: str | Path) -> Path:
    """The checkpoint of a run to use: best.pt if the run keeps one, else ckpt.pt.

    With always_save_checkpoint=True a run keeps no best.pt. If it was continued so, a best.pt from
    before was not compared with any later step: it counts only while ckpt.pt has no more steps.
    """
    latest, best = Path(folder, 'ckpt.pt'), Path(folder, 'best.pt')
    if not best.exists() or not latest.exists():
        return best if best.exists() else latest
    state = load(latest, mmap=True)
    keeps_best = not state['config'].get('always_save_checkpoint', True)
    return best if keeps_best or state['step'] <= load(best, mmap=True)['step'] else latest


def newest(root: str | Path = '.') -> Path | None:
    """The ckpt.pt written last, in out/, out/*/, out/*/*/ or out-*/ below root."""
    patterns = ('out/ckpt.pt', 'out/*/ckpt.pt', 'out/*/*/ckpt.pt', 'out-*/ckpt.pt')
    paths = [p for pattern in patterns for p in Path(root).glob(pattern)]
    return max(paths, key=lambda p: p.stat().st_mtime, default=None)


def find(out_dir: str) -> Path:
    """
    The checkpoint that a user's --out_dir stands for: '' is the newest run's, 'out/sft' that run's
    (see choose), 'small.pt' that file. SystemExit if '' finds no run.
    """
    if out_dir.endswith('.pt'):
        return Path(out_dir)
    if out_dir:
        return choose(out_dir)
    latest = newest()
    if latest is None:
        raise SystemExit('no checkpoint under out/ or out-*/; to make one, run: python train.py')
    return choose(latest.parent)


def open_model(
    path: str | Path, device: str, dtype: str = 'float32'
) -> tuple[GPT, tokenizers.Tokenizer, dict]:
    """
    (model on the device in evaluation mode, tokenizer, the whole checkpoint as load() returns it).

    dtype is the run's: 'float64' makes float64 weights, any other float32, for runtime.autocast.
    """
    state = load(path)
    model = GPT(GPTConfig(**state['model_config']))
    restore(model, state, path)
    model.to(device, torch.float64 if dtype == 'float64' else torch.float32).eval()
    return model, tokenizers.from_dict(state['tokenizer'], path), state


# What may differ when a run goes on: how long it is, how often it reports, what it runs on, how a step is split
FREE = {
    'init_from', 'init_optimizer', 'auto_resume', 'out_dir', 'eval_only', 'max_iters', 'epochs', 'time_limit',
    'target_param_data_ratio', 'lr_decay_iters', 'eval_interval', 'eval_iters', 'log_interval', 'save_interval',
    'eval_problems', 'max_new_tokens', 'sample_prompts', 'always_save_checkpoint', 'wandb_log', 'wandb_project',
    'wandb_run_name', 'device', 'dtype', 'compile', 'backend', 'deterministic', 'max_skips', 'batch_size',
    'gradient_accumulation_steps', 'cpu_micro_batch_size',
}  # fmt: skip
OWN = {'init_from', 'init_optimizer', 'auto_resume', 'out_dir', 'eval_only'}  # never taken over
# What the next stage takes over from the one before, unless it says otherwise
RECIPE = {
    'isolate', 'optimizer', 'learning_rate', 'embedding_rate', 'head_rate', 'weight_decay', 'beta1', 'beta2',
    'grad_clip', 'muon_iterations',
}  # fmt: skip
HORIZON = {'max_iters', 'epochs', 'target_param_data_ratio'}  # one of them says how long: a new one replaces the old


def inherit(state: dict, path: Path, settings: dict, explicit: frozenset, resume: bool) -> dict[str, tuple]:
    """{name: (value, source)} of the settings that a run takes from the checkpoint it starts from.

    The architecture and the optimizer's rates; on resume everything that is not given explicitly. An architecture that
    is given and differs is an error, on resume anything that is.
    """
    left_out = OWN | HORIZON if explicit & HORIZON else OWN
    before = {name: value for name, value in state['config'].items() if name in settings and name not in left_out}
    architecture = {n: value for n, value in state['model_config'].items() if n in settings and n != 'dropout'}
    architecture |= {name: before[name] for name in ('preset', 'depth') if name in before}  # where it came from
    recipe = {name: before[name] for name in RECIPE if name in before}
    taken = before | architecture if resume else recipe | architecture
    for name in taken:
        free = name in (FREE if resume else RECIPE) and name not in architecture
        # as the checkpoint's run was given it, say n_kv_head = 0, is as good as what the model made of it
        if name in explicit and not free and settings[name] not in (taken[name], before.get(name)):
            mend = 'leave it out' if resume else 'leave it out, or start with --init_from=scratch'
            raise SystemExit(f'{name} is {settings[name]!r} here and {taken[name]!r} in {path}; {mend}')
    if resume:
        now = {**before, **{name: settings[name] for name in explicit}}
        here, there = (s['batch_size'] * s['gradient_accumulation_steps'] for s in (now, before))
        if here != there:
            mend = 'keep batch_size * gradient_accumulation_steps'
            raise SystemExit(f'a step has {here} rows here and {there} in {path}; {mend}')
    return {name: (value, str(path)) for name, value in taken.items()}


def compare_data(state: dict, path: Path, dataset: str, now: str | None) -> None:
    """On resume, say if the data has changed. now: its shards.Data.hash."""
    if state.get('data') in (None, now):  # None: not known, as in older checkpoints
        return
    what = f'{dataset} has changed since {path} was saved'
    if state['kept']:  # dpo's reference
        mend = f'start the stage again: --init_from={state["parent"]["path"]}, another --out_dir'
        raise SystemExit(f'{what}, which keeps a number for each row of it; {mend}')
    print(f'{what}: the run goes on with the data as it is now')


def identity(path: Path | None) -> dict | None:
    """What a later run notes of the checkpoint it started from."""
    if path is None:
        return None
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(2**24):
            digest.update(chunk)
    return {'path': str(path), 'sha256': digest.hexdigest()}


# -----------------------------------------------------------------------------
# log.jsonl: its first line the settings, then one object a line, each with its step


def read_log(path: Path) -> list[dict]:
    """The lines of a log; a last line that a crash cut short is no line."""
    rows = []
    for line in path.read_bytes().split(b'\n') if path.exists() else []:  # str.splitlines would cut at U+2028 too
        try:
            rows.append(valid_text(json.loads(line)))
        except ValueError:  # no JSON, or half a character
            break
    return rows


def start_log(path: Path, facts: dict, step: int | None) -> None:
    """A new log, the facts of the run on its first line, or on resume at `step` the old one without the lines from
    there on: they will come again."""
    rows = [] if step is None else [row for row in read_log(path) if row.get('step', -1) < step]
    with disk.replacing(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=False).encode() + b'\n' for row in rows or [facts])


def append_log(path: Path, row: dict) -> None:
    """Add a line. If the disk is full, the run goes on without it: the checkpoint matters more."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, 'ab') as file:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b'\n')
    except OSError as error:
        what = f'{path}: a line could not be appended ({error.strerror}); the run goes on'
        print(what, flush=True)
        with suppress(OSError):  # half a line would make all later ones unreadable
            os.truncate(path, size)


def was_measured(path: Path, step: int) -> bool:
    """Whether the log holds an evaluation of this step."""
    return any(row.get('step') == step and 'val' in row for row in read_log(path))


if __name__ == '__main__':
    console.set_up(must_finish=True)
    if len(sys.argv) != 3:
        raise SystemExit('expected a checkpoint and a new name: python checkpoint.py out/tinyworld/rl/ckpt.pt small.pt')
    shrink(*sys.argv[1:])
    print(f'{sys.argv[2]}: {Path(sys.argv[2]).stat().st_size:,} bytes')
