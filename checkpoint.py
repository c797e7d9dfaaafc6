"""
Checkpoints: one file, out_dir/ckpt.pt, that a crash at any moment leaves either old and whole or new and whole.

A checkpoint is a dict of plain values and tensors:

    model, model_config    weights (float32; float64 where the run was, half in a small copy), the fields of GPTConfig
    tokenizer              what tokenizer.from_dict takes
    optimizer              optim.Optimizer.state_dict(), None in best.pt
    stage, step, seconds   where the run stands: `step` steps are done
    config                 all settings of the run
    parent, kept           the checkpoint it started from; what the stage wants back on resume
    best, about            the best validation loss so far; what a chat says of the model

$ python checkpoint.py out/tinyworld/rl/ckpt.pt small.pt     a copy without the optimizer, in half precision
"""

import hashlib
import itertools
import json
import math
import sys
from pathlib import Path

import torch

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out

import runtime

KEYS = {'model', 'model_config', 'tokenizer', 'stage', 'step', 'config'}


def save(path: str | Path, state: dict) -> None:
    """Write to a temporary name, fsync, rename. Where the disk is full, the checkpoint that was there stays."""
    path = Path(path)
    try:
        with runtime.replacing(path) as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        raise SystemExit(
            f'{path} could not be saved ({error}); what was there before is untouched; free some space'
        ) from error


def load(path: str | Path) -> dict:
    """Read a checkpoint onto the CPU. Nothing in it is ever run as code."""
    path = Path(path)
    if not path.exists():
        config = Path('config', '_'.join(part for part in path.parent.parts if part != 'out') + '.py')
        known = (Path(__file__).resolve().parent / config).exists()  # out/tinyworld/mid is config/tinyworld_mid.py's
        made = f'python train.py {config if known else f"--out_dir={path.parent}"}'
        raise SystemExit(f'there is no checkpoint {path}; expected the out_dir of a run; one is made by: {made}')
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises many kinds here
        reason = (str(error) or repr(error)).strip().splitlines()[0][:120]  # an empty file's EOFError says nothing
        raise SystemExit(
            f'{path} is not a whole checkpoint ({reason}); delete it, or take another --out_dir'
        ) from error
    missing = KEYS - set(state) if isinstance(state, dict) else KEYS
    if missing:
        raise SystemExit(f'{path} is no checkpoint of this project: it lacks {", ".join(sorted(missing))}')
    return state


def restore(model: torch.nn.Module, state: dict, path: str | Path) -> None:
    """The checkpoint's weights into a model built after its model_config."""
    try:
        model.load_state_dict(state['model'])
    except RuntimeError as error:
        first = str(error).split('\n\t')[1]
        raise SystemExit(f'{path} was made by another model.py: {first} take the one that made it') from None


def shrink(source: str | Path, target: str | Path) -> None:
    """A copy that can be used and gone on from, but not resumed: weights in half precision, no optimizer."""
    state = load(source)
    kept = {name: state[name] for name in sorted(KEYS | {'about', 'parent', 'seconds'}) if name in state}
    kept['model'] = {name: t.half() if t.is_floating_point() else t for name, t in state['model'].items()}
    save(target, kept)


def make_folder(path: str | Path) -> None:
    """out_dir, before anything else is done; what a killed run had half written there goes."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        for part in Path(path).glob('*.part'):
            part.unlink(missing_ok=True)
    except OSError as error:
        raise SystemExit(f'out_dir {path} cannot be made ({error.strerror}); take another --out_dir') from None


def set_aside(folder: str | Path) -> None:
    """Before a new run takes an out_dir that holds a checkpoint: that run's files get the ending .old, or .old2, …"""
    folder, names = Path(folder), ('best.pt', 'log.jsonl', 'ckpt.pt')
    if (folder / 'ckpt.pt').exists():
        endings = itertools.chain(('.old',), (f'.old{n}' for n in itertools.count(2)))
        free = next(e for e in endings if not any((folder / (name + e)).exists() for name in names))
        print(f'{folder} holds an earlier run, which is kept as ckpt.pt{free}, best.pt{free} and log.jsonl{free}')
        for path in (folder / name for name in names):
            if path.exists():
                path.replace(path.with_name(path.name + free))


def best_of(folder: str | Path) -> float:
    """The validation loss of best.pt, or infinity. ckpt.pt may be older: it is saved before the evaluation."""
    path = Path(folder, 'best.pt')
    return load(path)['best'] if path.exists() else math.inf


def newest(root: str | Path = '.') -> Path | None:
    """The ckpt.pt written last, in out/, out/*/, out/*/*/ or out-*/ below root."""
    patterns = ('out/ckpt.pt', 'out/*/ckpt.pt', 'out/*/*/ckpt.pt', 'out-*/ckpt.pt')
    paths = [p for pattern in patterns for p in Path(root).glob(pattern)]
    return max(paths, key=lambda p: p.stat().st_mtime, default=None)


# What may differ when a run goes on: how long it is, how often it reports, what it runs on, how a step is split
FREE = {
    'init_from', 'init_optimizer', 'auto_resume', 'out_dir', 'eval_only', 'max_iters', 'epochs', 'time_limit',
    'target_param_data_ratio', 'lr_decay_iters', 'eval_interval', 'eval_iters', 'log_interval', 'save_interval',
    'eval_problems', 'max_new_tokens', 'sample_prompts', 'always_save_checkpoint', 'wandb_log', 'wandb_project',
    'wandb_run_name', 'device', 'dtype', 'compile', 'backend', 'deterministic', 'max_skips', 'batch_size',
    'gradient_accumulation_steps',
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
            rows.append(json.loads(line))
        except ValueError:  # no JSON, or half a character
            break
    return rows


def start_log(path: Path, facts: dict, step: int | None) -> None:
    """A new log, the facts of the run on its first line, or on resume at `step` the old one without the lines from
    there on: they will come again."""
    rows = [] if step is None else [row for row in read_log(path) if row.get('step', -1) < step]
    with runtime.replacing(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=False).encode() + b'\n' for row in rows or [facts])


def was_measured(path: Path, step: int) -> bool:
    """Whether the log holds an evaluation of this step."""
    return any(row.get('step') == step and 'val' in row for row in read_log(path))


if __name__ == '__main__':
    import console

    console.set_up(must_finish=True)
    if len(sys.argv) != 3:
        raise SystemExit('expected a checkpoint and a new name: python checkpoint.py out/tinyworld/rl/ckpt.pt small.pt')
    shrink(*sys.argv[1:])
    print(f'{sys.argv[2]}: {Path(sys.argv[2]).stat().st_size:,} bytes')
