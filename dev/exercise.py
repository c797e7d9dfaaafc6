"""
Ten functions of this repository to write again, each graded by tests.

    $ python dev/exercise.py                   # the ten, from easy to hard
    $ python dev/exercise.py rope              # a copy of the repository without rotate()'s body
    $ python dev/exercise.py rope --solution   # the original function
    $ python dev/exercise.py rope --again      # a new copy; the old one gets another name

docs/exercises.md explains each and has a hint. The copy is out/exercises/rope. A copy that exists
is never changed.
"""

import ast
import shutil
import sys
import textwrap
from itertools import count
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

import console
import disk

# in a copy the program acts on the repository that the copy was made from
ROOT = HERE.parents[2] if HERE.parts[-3:-1] == ('out', 'exercises') else HERE
HOME = ROOT / 'out' / 'exercises'
TESTS = 'tests/test_exercises.py'
OPTIONS = ('--solution', '--again')
# What the repository consists of: no runs, prepared data, downloads or environments
PATTERNS = (
    '*.py', '*.md', '*.toml', '*.html', '*.sh', 'assets/*', 'config/*.py', 'data/*.py',
    'data/*/*.py', 'data/tinyworld/*.txt', 'dev/*.py', 'docs/*', 'tests/*.py', 'tests/changes/*',
)  # fmt: skip


class Exercise(NamedTuple):
    file: str
    function: str  # its name; of a method with its class
    about: str


# From easy to hard. The tests of rope are those in TESTS whose name begins with test_rope_
EXERCISES = {
    'rmsnorm': Exercise('model.py', 'Norm.forward', 'vectors of mean square 1'),
    'advantage': Exercise('batches.py', 'advantage', "GRPO's baseline: better than the mean?"),
    'rope': Exercise('model.py', 'rotate', 'positions as rotations'),
    'dpo': Exercise('train.py', 'preference_loss', 'the loss of a better and a worse answer'),
    'bpe': Exercise('tokenizer.py', 'parts_before', 'merge the pair of the lowest rank'),
    'top_p': Exercise('sampling.py', 'Sampling.draw', 'draw a token from the likeliest'),
    'packing': Exercise('batches.py', 'best_fit', 'fill rows with conversations'),
    'newton_schulz': Exercise('optim.py', 'orthogonalize', "Muon's update, without an SVD"),
    'mask': Exercise('conversation.py', 'Chat.is_spoken', 'which tokens count, from the ids'),
    'attention': Exercise('cache.py', 'KVCache.attend_gathered', 'causal attention with a cache'),
}


def place(source: str, function: str) -> tuple[int, int, int]:
    """Where a function with a docstring is: its first line, the first line after its docstring, and
    the first line after it, counted from 0."""
    node = ast.parse(source)
    for name in function.split('.'):
        node = next(child for child in node.body if getattr(child, 'name', None) == name)
    assert ast.get_docstring(node), f'{function} has no docstring to work from'
    decorators = [decorator.lineno for decorator in node.decorator_list]
    return min([node.lineno, *decorators]) - 1, node.body[0].end_lineno, node.end_lineno


def read(name: str) -> str:
    return (ROOT / EXERCISES[name].file).read_text(encoding='utf-8')


def solution(name: str) -> str:
    """The original function."""
    source = read(name)
    first, _, end = place(source, EXERCISES[name].function)
    return ''.join(source.splitlines(keepends=True)[first:end])


def emptied(name: str) -> str:
    """The exercise's file with an error in place of the function's body."""
    source = read(name)
    function = EXERCISES[name].function
    _, body, end = place(source, function)
    indent = '    ' * (1 + function.count('.'))
    message = f'exercise: write {function} again, see docs/exercises.md#{name}'
    lines = source.splitlines(keepends=True)
    return ''.join(
        [*lines[:body], f'{indent}raise NotImplementedError({message!r})\n', *lines[end:]]
    )


def copy_repository(folder: Path) -> None:
    """Copy the files of the repository to a new folder."""
    for path in sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern)):
        if path.is_file():
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def make_copy(name: str, folder: Path) -> None:
    """A copy of the repository with the function emptied. `folder` exists only when it is whole."""
    part = folder.with_name(f'{folder.name}.part')
    with disk.writing(folder):
        shutil.rmtree(part, ignore_errors=True)  # of a copy that broke off
        copy_repository(part)
        (part / EXERCISES[name].file).write_text(emptied(name), encoding='utf-8')
        part.rename(folder)


def set_aside(folder: Path) -> Path:
    """Rename a folder to the first name that is free: rope-1, rope-2, …"""
    for number in count(1):
        free = folder.with_name(f'{folder.name}-{number}')
        if not free.exists():
            with disk.writing(free):
                folder.rename(free)
            return free


def shown(path: Path) -> Path:
    """The path as the user would type it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def begin(name: str, again: bool) -> list[str]:
    """Make the copy, unless there is one. Returns the lines to print."""
    folder = HOME / name
    file, function, _ = EXERCISES[name]
    lines = []
    if folder.exists() and again:
        lines.append(f'what you had is now {shown(set_aside(folder))}')
    if folder.exists():
        lines.append(f'{shown(folder)} exists and was not changed; --again makes a new copy')
    else:
        make_copy(name, folder)
        lines.append(f'{shown(folder)} is a copy of the repository; {function} in {file} is empty')
    return [
        *lines,
        f'write   {function} in {shown(folder / file)}',
        f'test    python -m pytest -n0 {shown(folder / TESTS)} -k {name}',
        f'hint    docs/exercises.md#{name}',
        f'answer  python dev/exercise.py {name} --solution',
    ]


def listing() -> list[str]:
    lines = []
    for number, (name, exercise) in enumerate(EXERCISES.items(), start=1):
        started = f', begun in {shown(HOME / name)}' if (HOME / name).exists() else ''
        where = f'{exercise.function} in {exercise.file}'
        lines.append(f'{number:2}  {name:<15}{where:<37}{exercise.about}{started}')
    return [*lines, 'begin with: python dev/exercise.py rmsnorm']


def main():
    console.set_up(must_finish=True)
    arguments = sys.argv[1:]
    if '--help' in arguments or '-h' in arguments:
        print(ast.get_docstring(ast.parse(Path(__file__).read_bytes())))  # python -OO drops __doc__
        return
    names = [argument for argument in arguments if not argument.startswith('-')]
    options = [argument for argument in arguments if argument.startswith('-')]
    for name in names:
        if name not in EXERCISES:
            raise SystemExit(f"no exercise '{name}', expected one of {', '.join(EXERCISES)}")
    if len(names) > 1 or len(options) > len(names) or not {*options} <= {*OPTIONS}:
        given = ' '.join(arguments)
        raise SystemExit(
            f"'{given}': expected the name of one exercise, and after it --solution, --again or "
            'nothing; such as: python dev/exercise.py rope --solution'
        )
    if not names:
        lines = listing()
    elif '--solution' in options:
        lines = [textwrap.dedent(solution(names[0])).rstrip()]
    else:
        lines = begin(names[0], '--again' in options)
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
