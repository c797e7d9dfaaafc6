"""
Checkpoints: one file, out_dir/ckpt.pt. A crash leaves either the old or the new one, complete.

A checkpoint is a dict of plain values and tensors:

    model           the weights: float32, float64 in a float64 run, half precision in a small copy
    model_config    the fields of GPTConfig
    tokenizer       the tokenizer's table, for tokenizer.from_dict
    optimizer       optim.Optimizer.state_dict(), None in best.pt
    stage, step     where the run is: `step` steps are done
    seconds         time the run has taken so far
    config          all settings of the run
    parent          path and hash of the checkpoint that the run started from, or None
    kept            tensors that the stage needs again on resume
    data            shards.Data.hash of the run's data, None if that has no meta.json
    best            the best validation loss so far
    about           what sample.py --chat says about the model

    $ python checkpoint.py out/tinyworld/rl/ckpt.pt small.pt     # half precision, no optimizer
"""

import hashlib
import math
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import torch

if __name__ == '__main__':
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves this folder out

import console
import disk
import hf_files
import pretrained
import runlog
import tokenizer as tokenizers
from model import GPT, GPTConfig
from utf8 import valid_text

KEYS = {'model', 'model_config', 'tokenizer', 'stage', 'step', 'config'}  # in every checkpoint

# -----------------------------------------------------------------------------
# the file


def save(path: str | Path, state: dict) -> None:
    """Write a checkpoint: temporary file, fsync, rename. SystemExit if the disk is full or cannot
    be written; an earlier checkpoint there is unchanged."""
    try:
        with disk.replacing(path) as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch raises it while it handles the file's OSError
        if not isinstance(error.__context__, OSError):
            raise
        raise disk.not_written(path, error.__context__) from error


def load(path: str | Path, mmap: bool = False) -> dict:
    """
    Read a checkpoint onto the CPU. Nothing in the file is ever run as code. A config.json stands
    for its folder, the weights of another project: see pretrained.py.

    mmap: read a tensor from the disk only when it is used, so that the other fields are cheap. The
    file is in use while any of its tensors is: Windows refuses to replace it.
    SystemExit if the file is missing, damaged, or not a checkpoint of this project.
    """
    # 1) Is it there?
    path = Path(path)
    if path.name == hf_files.CONFIG:
        return pretrained.read(path.parent)
    if not path.exists():
        raise SystemExit(
            f'there is no checkpoint {path}, expected the out_dir of a run; '
            f'to make one, run: {training_command(path.parent)}'
        )

    # 2) Read it. A damaged file makes torch raise many kinds of error
    mmap = mmap and str(path) == valid_text(str(path))  # torch can map no other name
    try:
        state = torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
    except Exception as error:
        text = str(error) or repr(error)  # the EOFError of an empty file has no text
        reason = console.printable(text.strip().splitlines()[0][:120])  # it may quote the file
        raise SystemExit(
            f'{path} is not a whole checkpoint ({reason}); delete it, or take another --out_dir'
        ) from error

    # 3) Is it ours?
    missing = KEYS - set(state) if isinstance(state, dict) else KEYS
    if missing:
        names = ', '.join(sorted(missing))
        raise SystemExit(f'{path} is not a checkpoint of this project: it lacks {names}')
    drop_unknown(state['model_config'], path)
    return state


def drop_unknown(model_config: dict, path: str | Path) -> None:
    """Remove the fields of another model.py that are off. SystemExit if one is on."""
    for name in sorted(model_config.keys() - {field.name for field in fields(GPTConfig)}):
        value = model_config.pop(name)
        if value:
            raise SystemExit(
                f'{path} was made by another model.py, with {name} = {value!r}. Use the one that '
                'made it'
            )


def training_command(folder: Path) -> str:
    """The command that trains into this out_dir: `python train.py config/tinyworld_mid.py` for
    out/tinyworld/mid, because that config exists."""
    parts = [part for part in folder.parts if part != 'out']
    config = Path('config', '_'.join(parts) + '.py')
    if (Path(__file__).resolve().parent / config).exists():
        return f'python train.py {config}'
    return f'python train.py --out_dir={folder}'


def load_tokenizer(path: str | Path) -> tokenizers.Tokenizer:
    """The tokenizer of a tok.json, of a .pt file, or of a folder: a run's, a data set's, or one of
    Hugging Face. SystemExit if none is found."""
    path = pretrained.locate(str(path)) if pretrained.is_name(str(path)) else Path(path)
    if path.is_dir():
        names = ('tok.json', 'ckpt.pt', 'best.pt', hf_files.CONFIG)
        found = [path / name for name in names if (path / name).exists()]
        path = found[0] if found else path / 'tok.json'
    if path.name == hf_files.CONFIG:
        return tokenizers.from_dict(pretrained.read_tokenizer(path.parent), path)
    if path.suffix == '.pt':
        return tokenizers.from_dict(load(path, mmap=True)['tokenizer'], path)
    return tokenizers.load(path)


def restore(model: torch.nn.Module, state: dict, path: str | Path) -> None:
    """Copy the checkpoint's weights into a model built from its model_config; its context may be
    shorter. SystemExit if names or other shapes differ."""
    weights = dict(state['model'])
    positions = weights.get('transformer.wpe.weight')
    if positions is not None:
        weights['transformer.wpe.weight'] = positions[: model.config.block_size]
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        # torch lists all differences, one per line; the first is enough. It may quote the file
        first = console.printable(str(error).split('\n\t')[1]).strip()
        raise SystemExit(
            f'{path} was made by another model.py: {first} Use the one that made it'
        ) from None


def shrink(source: str | Path, target: str | Path) -> None:
    """Copy a checkpoint with weights in half precision and without the optimizer. The copy can
    generate and evaluate, and a new stage can start from it; a run cannot resume from it."""
    disk.try_writing(target)
    state = load(source)
    names = KEYS | {'about', 'parent', 'seconds'}
    small = {name: state[name] for name in sorted(names) if name in state}
    small['model'] = {
        name: weight.half() if weight.is_floating_point() else weight
        for name, weight in state['model'].items()
    }
    save(target, small)


def identity(path: Path | None) -> dict | None:
    """{'path': …, 'sha256': …} of a checkpoint, which a run keeps as `parent`. None for None."""
    if path is None:
        return None
    is_folder = path.name == hf_files.CONFIG
    digest = hashlib.sha256()
    for part in [path, *hf_files.weight_files(path.parent)] if is_folder else [path]:
        with open(part, 'rb') as file:
            while chunk := file.read(2**24):
                digest.update(chunk)
    return {'path': str(path), 'sha256': digest.hexdigest()}


# -----------------------------------------------------------------------------
# a run's folder


def claim(folder: str | Path) -> disk.Lock:
    """Create out_dir and lock it: other runs are refused until release(). SystemExit if it cannot
    be created, or if another run has it."""
    folder = Path(folder)
    with disk.writing(f'out_dir {folder}'):
        folder.mkdir(parents=True, exist_ok=True)
        lock = disk.Lock(folder / 'run.lock')
        if not lock.works:
            return lock  # without locks, another run may be writing these files
        # Remove temporary files that a killed run left, and no other file that ends in .part
        names = '|'.join(map(re.escape, runlog.FILES))
        leftover = re.compile(rf'({names})\.\d+\.part')  # ckpt.pt.12345.part: see disk.part_of
        for path in folder.iterdir():
            if leftover.fullmatch(path.name):
                path.unlink()
    return lock


def best_of(folder: str | Path) -> float:
    """The validation loss of best.pt, infinity without one. Read from best.pt, because ckpt.pt is
    saved before the evaluation and may lack the latest."""
    path = Path(folder, 'best.pt')
    return load(path, mmap=True)['best'] if path.exists() else math.inf


def choose(folder: str | Path) -> Path:
    """
    The checkpoint of a run to use: best.pt if the run keeps one, else ckpt.pt.

    A run with always_save_checkpoint=True keeps no best.pt. Its folder may still hold one, from
    before the run was resumed with that setting. Later steps were not compared with it, so it is
    used only if ckpt.pt is not ahead of it.
    """
    latest = latest_of(folder)
    best = Path(folder, 'best.pt')
    if not best.exists():
        return latest
    if not latest.exists():
        return best
    state = load(latest, mmap=True)
    keeps_best = not state['config'].get('always_save_checkpoint', True)
    if keeps_best or state['step'] <= load(best, mmap=True)['step']:
        return best
    return latest


def latest_of(folder: str | Path) -> Path:
    """A run's ckpt.pt. Without one: the config.json of a Hugging Face folder, if it has that."""
    latest = Path(folder, 'ckpt.pt')
    other = Path(folder, hf_files.CONFIG)
    return other if other.exists() and not latest.exists() else latest


def newest(root: str | Path = '.') -> Path | None:
    """The ckpt.pt written last in out/, out/*/, out/*/*/ or out-*/ below root, or None."""
    patterns = ('out/ckpt.pt', 'out/*/ckpt.pt', 'out/*/*/ckpt.pt', 'out-*/ckpt.pt')
    paths = [path for pattern in patterns for path in Path(root).glob(pattern)]
    return max(paths, key=lambda path: path.stat().st_mtime, default=None)


# -----------------------------------------------------------------------------
# a model to use


def named(place: str) -> Path | None:
    """The checkpoint that a place names if it is not a run's folder: 'small.pt', 'hf:FOLDER'."""
    if pretrained.is_name(place):
        return pretrained.locate(place)
    is_file = place.endswith('.pt') or Path(place).name == hf_files.CONFIG
    return Path(place) if is_file else None


def find(out_dir: str) -> Path:
    """
    The checkpoint that a user's --out_dir stands for: '' is the newest run's, 'out/sft' that run's
    (see choose), 'small.pt' that file, 'hf:FOLDER' and 'gpt2' are weights of another project.
    SystemExit if '' finds no run.
    """
    if out_dir:
        return named(out_dir) or choose(out_dir)
    latest = newest()
    if latest is None:
        raise SystemExit(
            'there is no checkpoint under out/ or out-*/; to make one, run: python train.py'
        )
    return choose(latest.parent)


def open_model(
    path: str | Path, device: str, dtype: str = 'float32'
) -> tuple[GPT, tokenizers.Tokenizer, dict]:
    """
    (model on the device in evaluation mode, tokenizer, the checkpoint without its tensors).

    dtype is the run's: 'float64' makes float64 weights, any other float32, for runtime.autocast.
    """
    state = load(path, mmap=True)  # the optimizer's moments are never read
    model = GPT(GPTConfig(**state['model_config']))
    restore(model, state, path)
    model.to(device, torch.float64 if dtype == 'float64' else torch.float32).eval()
    tensors = ('model', 'optimizer', 'kept')
    state = {name: value for name, value in state.items() if name not in tensors}
    return model, tokenizers.from_dict(state['tokenizer'], path), state


# -----------------------------------------------------------------------------
# what a run takes over from the checkpoint it starts from


# Never taken over. A reward is a file to import, which no checkpoint may name
OWN = {'init_from', 'init_optimizer', 'auto_resume', 'out_dir', 'eval_only', 'reward'}
# They set the length of the run: if the user gives one, none of the checkpoint's is taken over
HORIZON = {'max_iters', 'epochs', 'target_param_data_ratio'}


class Rules(NamedTuple):
    """Which settings a run takes over from a checkpoint, and which it may change."""

    may_change: set[str]  # on resume
    recipe: set[str]  # a new stage takes them from the stage before, unless they are given


def inherit(
    state: dict, path: Path, settings: dict, explicit: frozenset, resume: bool, rules: Rules
) -> dict[str, tuple]:
    """
    {name: (value, source)}: the settings that a run takes from the checkpoint it starts from.

    A new stage takes the architecture and the recipe. A resumed run takes everything but OWN. An
    explicit value that differs is an error for the architecture, and on resume for every setting
    outside rules.may_change. configure() lets explicit values win over those returned here.

        state, path    the checkpoint, and its path, which becomes the source
        settings       all settings of the new run; others of the checkpoint are ignored
        explicit       names that the user has given

    SystemExit names the setting, both values and the path.
    """
    # 1) The settings of the checkpoint's run
    ignored = OWN | HORIZON if explicit & HORIZON else OWN
    before = {
        name: value
        for name, value in state['config'].items()
        if name in settings and name not in ignored
    }
    architecture = architecture_of(state, settings)

    # 2) Those that this run takes, and which of them it may change
    if resume:
        taken = before | architecture
        may_differ = (rules.may_change | OWN) - architecture.keys()
    else:
        recipe = {name: before[name] for name in rules.recipe if name in before}
        taken = recipe | architecture
        may_differ = rules.recipe - architecture.keys()
        # A new stage may have a shorter context, or with RoPE any: no shape depends on it
        learned = architecture.get('positions') == 'learned'
        if not learned or settings['block_size'] < architecture['block_size']:
            may_differ |= {'block_size'}

    # 3) Compare. A setting n_kv_head = 0 is n_head in the model: the user may give either
    for name in taken:
        if name not in explicit or name in may_differ:
            continue
        if settings[name] not in (taken[name], before.get(name)):
            hint = 'leave it out'
            if not resume:
                hint += ', or start with --init_from=scratch'
            raise SystemExit(
                f'{name} is {settings[name]!r} here and {taken[name]!r} in {path}; {hint}'
            )

    # 4) A resumed step has as many rows as before, and a reward that the user names again
    if resume:
        now = before | {name: settings[name] for name in explicit}
        compare_rows(now, before, path)
        check_reward(state['config'].get('reward'), 'reward' in explicit, path)
    return {name: (value, str(path)) for name, value in taken.items()}


def architecture_of(state: dict, settings: dict) -> dict:
    """The settings that decide names and shapes of the weights, with the values that the model was
    built with, and the preset and depth from which they were derived. A field that did not exist
    then has GPTConfig's default."""
    built = {field.name: field.default for field in fields(GPTConfig)} | state['model_config']
    found = {
        name: value
        for name, value in built.items()
        if name in settings and name not in ('dropout', 'expert_balance')
    }
    for name in ('preset', 'depth'):
        if name in settings and name in state['config']:
            found[name] = state['config'][name]
    return found


def compare_rows(now: dict, before: dict, path: Path) -> None:
    """SystemExit if a resumed step has more or fewer rows. Its micro-batches may change in size."""
    rows_now = now['batch_size'] * now['gradient_accumulation_steps']
    rows_before = before['batch_size'] * before['gradient_accumulation_steps']
    if rows_now != rows_before:
        raise SystemExit(
            f'a step has {rows_now} rows here and {rows_before} in {path}; '
            'keep batch_size * gradient_accumulation_steps'
        )


def check_reward(before: str | None, given: bool, path: Path) -> None:
    """SystemExit if a resumed run had a reward and the user does not say again which file to
    import."""
    if before and not given:
        raise SystemExit(
            f'{path} was trained with the reward {before!r:.200}, and no checkpoint can make a '
            'program import a file; give --reward again'
        )


def compare_data(state: dict, path: Path, dataset: str, now: str | None) -> None:
    """
    On resume, print a line if the data has changed. now: shards.Data.hash of the data.

    SystemExit if the stage keeps a number for each row of the old data, as dpo does.
    """
    if state.get('data') in (None, now):  # None: unknown, as in older checkpoints
        return
    changed = f'{dataset} has changed since {path} was saved'
    if state['kept']:
        raise SystemExit(
            f'{changed}, which keeps a number for each of its rows; start the stage again: '
            f'--init_from={state["parent"]["path"]}, another --out_dir'
        )
    print(f'{changed}: the run continues with the data as it is now')


if __name__ == '__main__':
    console.set_up(must_finish=True)
    if len(sys.argv) != 3:
        raise SystemExit(
            'expected a checkpoint and the name of its copy; '
            'run: python checkpoint.py out/tinyworld/rl/ckpt.pt small.pt'
        )
    shrink(*sys.argv[1:])
    print(f'{sys.argv[2]}: {Path(sys.argv[2]).stat().st_size:,} bytes')
