"""
Is recipe b better than recipe a? Compares several seeds of each.

    $ python dev/compare.py out/a* out/b*
    $ python dev/compare.py out/a* out/b* --metric=facts   # another number of their evaluations
    $ python dev/compare.py out/a* --against out/b*        # you say which runs belong together

The settings stored in the logs tell the two recipes apart, whatever the folders are called.
--against is for recipes with equal settings, such as before and after a change of the code. Prints,
and writes nothing.

Seeds are not paired: the same seed under another recipe makes another run.
"""

import ast
import functools
import glob
import math
import sys
import textwrap
from pathlib import Path
from statistics import fmean, stdev, variance

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import console
from runlog import Stage, number, read_stage, short, steps_done

# settings in which runs of one recipe may differ
APART = {
    'seed', 'out_dir', 'wandb_log', 'wandb_project', 'wandb_run_name', 'cpu_micro_batch_size',
}  # fmt: skip
# lower is better; of all other metrics higher
LOWER = {'val', 'perplexity', 'bits_per_byte', 'seconds', 'evaluation_seconds'}

# -----------------------------------------------------------------------------
# statistics


@functools.cache
def t_quantile(freedom: int, inside: float = 0.95) -> float:
    """
    The t with P(|T| < t) = inside for Student's T: 12.706 for 1 degree of freedom, 1.960 in the
    limit.

    For whole degrees of freedom that probability is a finite sum in the angle atan(t / sqrt(n)),
    and grows with it (Abramowitz and Stegun, 26.7.3 and 26.7.4). Bisection finds the angle.
    """
    odd = freedom % 2
    low = 0.0
    high = math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        # the probability at this angle
        term = math.cos(angle) ** odd
        total = 0.0
        for k in range(odd, freedom - 1, 2):
            total += term
            term *= math.cos(angle) ** 2 * (k + 1) / (k + 2)
        total *= math.sin(angle)
        share = (angle + total) * 2 / math.pi if odd else total
        if share < inside:
            low = angle
        else:
            high = angle
    return math.sqrt(freedom) * math.tan(low)


def interval(a: list[float], b: list[float]) -> tuple[float, float] | None:
    """95 % interval of mean(b) - mean(a); None where no spread is known. Student's, with pooled
    variances: three seeds alone say little about a spread."""
    if min(len(a), len(b)) < 2:
        return None
    freedom = len(a) + len(b) - 2
    pooled = ((len(a) - 1) * variance(a) + (len(b) - 1) * variance(b)) / freedom
    half = t_quantile(freedom) * math.sqrt(pooled * (1 / len(a) + 1 / len(b)))
    difference = fmean(b) - fmean(a)
    return (difference - half, difference + half) if half else None


def verdict(low: float, high: float, lower_is_better: bool) -> str:
    """What an interval of b - a says about b."""
    if low <= 0 <= high:
        return 'not shown'
    return 'better' if (high < 0) == lower_is_better else 'worse'


# -----------------------------------------------------------------------------
# runs and recipes


def find_runs(arguments: list[str]) -> list[Stage]:
    """The runs in these folders, each once. Expands patterns: bash does, PowerShell does not."""
    paths = [Path(x) for argument in arguments for x in sorted(glob.glob(argument)) or [argument]]
    runs = {path.resolve(): read_stage(path) for path in paths}
    for path in paths:
        run = runs[path.resolve()]
        if not run or not run.config:
            raise SystemExit(
                f'{path}: no run, expected a folder with the log.jsonl that train.py writes'
            )
    return list(runs.values())


def stored(run: Stage, name: str) -> str:
    return repr(run.config[name]) if name in run.config else '(not stored)'


def differing(runs: list[Stage]) -> list[str]:
    """The settings in which the recipes of these runs differ."""
    names = dict.fromkeys(name for run in runs for name in run.config if name not in APART)
    return [name for name in names if len({stored(run, name) for run in runs}) > 1]


def recipe_of(run: Stage, names: list[str]) -> str:
    return ', '.join(f'{name} = {stored(run, name)}' for name in names) or 'the same settings'


def by_recipe(runs: list[Stage]) -> dict[str, list[Stage]]:
    """{recipe: its runs}, the recipe of the first run first."""
    names = differing(runs)
    groups = {}
    for run in runs:
        groups.setdefault(recipe_of(run, names), []).append(run)
    return groups


def two_groups(sides: list[list[Stage]]) -> list[list[Stage]]:
    """
    The runs of recipe a and of recipe b. One side must hold two recipes, two sides one each.

    No seed may occur twice in a group: that would be the same run again, without a spread.
    """
    # 1) As many recipes as expected?
    for side in sides:
        recipes = by_recipe(side)
        if len(recipes) + len(sides) != 3:
            found = '; '.join(
                f'{recipe}: {", ".join(str(run.folder) for run in runs)}'
                for recipe, runs in recipes.items()
            )
            expected = '2 recipes, or --against between the groups'
            if len(sides) == 2:
                expected = 'one recipe on each side of --against'
            raise SystemExit(f'expected {expected}, got {len(recipes)}: {found}')
    groups = sides if len(sides) == 2 else list(by_recipe(sides[0]).values())

    # 2) Seeds all different?
    for runs in groups:
        seeds = {}
        for run in runs:
            other = seeds.setdefault(stored(run, 'seed'), run)
            if other is not run:
                raise SystemExit(
                    f'{other.folder} and {run.folder} are of one recipe, '
                    'expected two seeds, got one'
                )
    return groups


def unfinished(run: Stage, furthest: int) -> str:
    """What a run lacks, as far as its log and the other runs' steps tell; '' if nothing."""
    config = run.config
    done = steps_done(run)
    last = run.evaluations[-1] if run.evaluations else {}
    step = number(last, 'step')
    if step is None or step < done:
        return f'no evaluation after step {done:,}'
    planned = furthest
    # with one of these two the log does not say how many steps were planned
    if not (config.get('epochs') or config.get('target_param_data_ratio')):
        planned = max(planned, number(config, 'max_iters') or 0)
    time_limit = number(config, 'time_limit') or 0
    out_of_time = 0 < time_limit <= (number(last, 'seconds') or 0)
    return f'{done:,} of {planned:,} steps' if done < planned and not out_of_time else ''


def value_at_end(run: Stage, metric: str) -> float:
    last = run.evaluations[-1]
    if metric not in last:
        known = [key for key in last if number(last, key) is not None and key != 'step']
        expected = console.printable(', '.join(known))
        raise SystemExit(f"{run.folder}: no metric '{metric}', expected one of {expected}")
    if number(last, metric) is None:  # leaving the run out would flatter its recipe
        raise SystemExit(
            f'{run.folder}: {metric} is {last[metric]} at the end, so its recipe has no mean'
        )
    return number(last, metric)


def compare(sides: list[list[str]], metric: str = 'val') -> list[str]:
    """The lines to print. sides: one list of folders, or two where the user has separated them."""
    # 1) Each group: its recipe, its runs, mean and standard deviation
    groups = two_groups([find_runs(side) for side in sides])
    names = differing([*groups[0], *groups[1]])
    better = 'lower' if metric in LOWER else 'higher'
    lines = [f'{metric} of the last evaluation, {better} is better']
    values = []
    for letter, runs in zip('ab', groups):
        recipe = f'{letter}: {recipe_of(runs[0], names)}'
        lines += ['', *textwrap.wrap(recipe, 110, subsequent_indent='   ')]
        furthest = max(map(steps_done, runs))
        group = []
        for run in runs:
            lacks = unfinished(run, furthest)
            if lacks:
                result = f'unfinished and left out: {lacks}'
            else:
                group.append(value_at_end(run, metric))
                result = short(group[-1], 4)
            about = f'seed {stored(run, "seed")}, {steps_done(run):,} steps'
            lines.append(f'   {run.folder} ({about}): {result}')
        mean = short(fmean(group), 4) if group else '-'
        spread = short(stdev(group), 4) if len(group) > 1 else '-'
        lines.append(f'   n = {len(group)}, mean {mean}, standard deviation {spread}')
        values.append(group)

    # 2) The difference
    ends = interval(*values)
    if not ends:
        return [
            *lines,
            '',
            'nothing can be said: that takes two finished seeds of each, and a spread among them',
        ]
    difference = short(fmean(values[1]) - fmean(values[0]), 4)
    low, high = ends
    return [
        *lines,
        '',
        f"b - a = {difference}, 95 % interval {short(low, 4)} to {short(high, 4)} (Student's t)",
        f'b against a: {verdict(low, high, metric in LOWER)}',
    ]


def main():
    console.set_up(must_finish=False)
    arguments = sys.argv[1:]
    if '--help' in arguments or '-h' in arguments:
        print(ast.get_docstring(ast.parse(Path(__file__).read_bytes())))  # python -OO drops __doc__
        return
    metric = 'val'
    sides = [[]]
    for argument in arguments:
        if argument == '--against':
            sides.append([])
        elif argument.startswith('--metric='):
            metric = argument.removeprefix('--metric=')
        else:
            sides[-1].append(argument)
    if not all(sides) or len(sides) > 2 or any(x.startswith('-') for side in sides for x in side):
        raise SystemExit('expected the runs of two recipes: python dev/compare.py out/a* out/b*')
    print('\n'.join(compare(sides, metric)))


if __name__ == '__main__':
    main()
