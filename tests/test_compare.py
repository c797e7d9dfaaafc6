"""dev/compare.py: its statistics against tables and laws, its verdicts on runs made up here."""

import math
import re
import sys

import compare
import numpy as np
import pytest
from conftest import as_numbers, run_settings, train_defaults, write_log


def write_runs(folder, name, values, steps=40, metric='val', **more):
    """Runs name1, name2, … with seeds of their own, which end at these values. Returns their
    folders."""
    folders = [folder / f'{name}{i}' for i in range(1, 1 + len(values))]
    for i, (run, value) in enumerate(zip(folders, values)):
        config = run_settings('pretrain', **{'out_dir': str(run), 'seed': i, **more})
        rows = [dict(step=step, seconds=step / 4, val=3.0, facts=0.1) for step in (0, steps)]
        rows.insert(1, dict(step=steps - 1, seconds=1.0, loss=2.0))
        rows[-1][metric] = value
        write_log(
            run,
            rows + [dict(step=steps, seconds=1.0, prompt='Who?', text='Me')],
            dict(config=config),
        )
    return [str(run) for run in folders]


@pytest.fixture
def compared(monkeypatch, capsys):
    """compared(arguments, …) -> what the program prints."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['compare.py', *map(str, arguments)])
        compare.main()
        return capsys.readouterr().out

    return run


def test_t_quantiles_are_those_of_the_tables():
    """The 97.5 % column of any table of Student's t."""
    table = {
        1: 12.706,
        2: 4.303,
        3: 3.182,
        4: 2.776,
        5: 2.571,
        6: 2.447,
        7: 2.365,
        8: 2.306,
        9: 2.262,
        10: 2.228,
    }
    table |= {18: 2.101, 19: 2.093, 30: 2.042, 60: 2.000, 120: 1.980, 100_000: 1.960}
    assert {freedom: round(compare.t_quantile(freedom), 3) for freedom in table} == table
    assert (
        round(compare.t_quantile(4, 0.99), 3) == 4.604
        and round(compare.t_quantile(7, 0.9), 3) == 1.895
    )


@pytest.mark.parametrize('freedom', [1, 2, 3, 4, 5, 10, 37])
@pytest.mark.parametrize('inside', [0.5, 0.95, 0.999])
def test_so_much_of_the_density_lies_within_a_t_quantile(freedom, inside):
    """Simpson's rule over the density."""
    t = np.linspace(0, compare.t_quantile(freedom, inside), 200_001)
    peak = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(
        freedom * math.pi
    )
    density = peak * (1 + t * t / freedom) ** (-(freedom + 1) / 2)
    weights = np.where(np.arange(len(t)) % 2, 4, 2)
    weights[[0, -1]] = 1
    assert 2 * (weights @ density) * t[1] / 3 == pytest.approx(inside, abs=1e-9)


def test_the_interval_of_student_s_own_example():
    """Hours of sleep gained (Student, 1908); the interval is that of R's t.test(extra ~ group,
    var.equal = TRUE)."""
    a = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    b = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    assert compare.interval(a, b) == pytest.approx((-0.203874, 3.363874), abs=1e-6)


@pytest.mark.parametrize('sizes', [(3, 3), (2, 2), (2, 5)])
def test_of_equal_recipes_one_in_twenty_is_called_better_or_worse(sizes):
    draws = np.random.default_rng(0).normal(1.5, 0.01, (10_000, sum(sizes))).tolist()
    verdicts = [
        compare.verdict(*compare.interval(row[: sizes[0]], row[sizes[0] :]), True) for row in draws
    ]
    better, worse = (verdicts.count(word) / len(draws) for word in ('better', 'worse'))
    assert 0.04 <= better + worse <= 0.06 and 0.02 <= better <= 0.03
    assert set(verdicts) == {'better', 'worse', 'not shown'}


def test_the_interval_holds_the_true_difference_nineteen_times_in_twenty():
    draws = np.random.default_rng(1).normal([0] * 3 + [0.7] * 4, 1.0, (10_000, 7)).tolist()
    held = [
        low <= 0.7 <= high for low, high in (compare.interval(row[:3], row[3:]) for row in draws)
    ]
    assert 0.94 <= sum(held) / len(held) <= 0.96


def test_the_settings_tell_the_recipes_apart_in_any_order(tmp_path, compared):
    a = write_runs(tmp_path, 'x', [1.51, 1.50, 1.52], optimizer='adamw')
    b = write_runs(tmp_path, 'y', [1.44, 1.42, 1.43], optimizer='muon')
    text = compared(a[0], *b, *a)  # the recipe of the first run is a; a run named twice counts once
    assert text.startswith(
        "val of the last evaluation, lower is better\n\na: optimizer = 'adamw'\n"
    )
    assert "\nb: optimizer = 'muon'\n" in text and 'batch_size' not in text
    assert f'{a[1]} (seed 1, 40 steps): 1.5000\n' in text
    found = [as_numbers(line) for line in re.findall(r'n = .*', text)]
    assert found == [[3, 1.51, 0.01], [3, 1.43, 0.01]]
    half = 2.7764 * 0.01 * math.sqrt(2 / 3)
    said = as_numbers(re.search(r'b - a = (.*)\(', text).group(1))
    assert said == pytest.approx([-0.08, 95, -0.08 - half, -0.08 + half], abs=6e-5)
    assert text.endswith('\nb against a: better\n')
    assert compared(*b, *a).endswith('\nb against a: worse\n')
    assert compared(*a, *write_runs(tmp_path, 'z', [1.49, 1.5, 1.51])).endswith(
        '\nb against a: not shown\n'
    )


def test_patterns_that_the_shell_leaves_as_they_are(tmp_path, compared):
    a = write_runs(tmp_path, 'a', [1.51, 1.50], n_kv_head=4)
    b = write_runs(tmp_path, 'b', [1.51, 1.50], n_kv_head=2)
    assert compared(tmp_path / 'a*', tmp_path / 'b?') == compared(*a, *b)


def test_more_of_a_skill_is_better(tmp_path, compared):
    a = write_runs(tmp_path, 'a', [0.51, 0.50], metric='facts', dropout=0.0)
    b = write_runs(tmp_path, 'b', [0.71, 0.72], metric='facts', dropout=0.1)
    text = compared(*a, '--metric=facts', *b)
    assert text.startswith('facts of the last evaluation, higher is better\n') and text.endswith(
        'a: better\n'
    )
    with pytest.raises(
        SystemExit, match=r"a1: no metric 'fact', expected one of seconds, val, facts$"
    ):
        compared('--metric=fact', *a, *b)


def test_recipes_of_the_same_settings_are_parted_by_hand(tmp_path, compared):
    a = write_runs(tmp_path, 'a', [1.51, 1.50, 1.52])
    b = write_runs(tmp_path, 'b', [1.44, 1.42, 1.43])
    assert compared(*a, '--against', *b).endswith('\nb against a: better\n')
    with pytest.raises(
        SystemExit, match=r'^expected 2 recipes, or --against .*, got 1: the same settings: .*b3$'
    ):
        compared(*a, *b)


def test_more_than_the_seed_within_a_group_is_an_error_that_names_it(tmp_path, compared):
    a = write_runs(tmp_path, 'a', [1.51, 1.50], n_layer=4) + write_runs(
        tmp_path, 'odd', [1.5], n_layer=6
    )
    b = write_runs(tmp_path, 'b', [1.44, 1.42], n_layer=8)
    with pytest.raises(
        SystemExit, match=r'^expected one recipe .* got 2: n_layer = 4: .*a2; n_layer = 6: .*odd1$'
    ):
        compared(*a, '--against', *b)
    with pytest.raises(
        SystemExit,
        match='^expected 2 recipe.*got 3: n_layer = 4: .*; n_layer = 6: .*; n_layer = 8: ',
    ):
        compared(*a, *b)
    twice = write_runs(tmp_path, 'twice', [1.44, 1.42], n_layer=8, seed=5)
    with pytest.raises(
        SystemExit, match=r'twice1 and .*twice2 are of one recipe, expected two seeds, got one$'
    ):
        compared(*a[:2], *twice)


def test_one_seed_and_no_spread_say_nothing(tmp_path, compared):
    a = write_runs(tmp_path, 'a', [1.51, 1.50, 1.52], bias=True)
    for b in ([1.0], [1.0, 1.0]):
        a = a if len(b) == 1 else write_runs(tmp_path, 'same', [1.5, 1.5], bias=True)
        text = compared(*a, *write_runs(tmp_path, 'b', b, bias=False))
        assert (
            'nothing can be said' in text.splitlines()[-1]
            and 'better\n' not in text.split('\n', 1)[1]
        )
    assert 'n = 2, mean 1.0000, standard deviation 0.0000' in text


@pytest.mark.parametrize('config, cut, said', [
    (dict(), b'"step": 40', 'no evaluation after step 40'),  # its last line is about training
    (dict(), b'"step": 39', '0 of 40 steps'),
    (dict(epochs=2.0), b'"step": 39', '0 of 40 steps'),  # what its fellows did
    (dict(time_limit=20.0), b'"step": 39', '0 of 40 steps'),
    (dict(time_limit=10.0, max_iters=1000), b'"step": 40', 'no evaluation after step 40'),
    (dict(), b'"config"', ''),
], ids=str)  # fmt: skip
def test_unfinished_runs_are_named_and_left_out(tmp_path, compared, config, cut, said):
    a = write_runs(tmp_path, 'a', [1.51, 1.50, 1.52], bias=True, **config)
    b = write_runs(tmp_path, 'b', [1.44, 1.42, 1.43], bias=False, **config)
    assert 'left out' not in compared(*a, *b)
    log = tmp_path / 'b2' / 'log.jsonl'
    log.write_bytes(
        b''.join(line for line in log.read_bytes().split(cut)[:1])[:-1]
    )  # a crash cut it there
    if not said:
        with pytest.raises(SystemExit, match='b2: no run, expected a folder with the log.jsonl'):
            compared(*a, *b)
        return
    text = compared(*a, *b)
    assert re.search(rf'b2 \(seed 1, .*\): unfinished and left out: {said}\n', text)
    assert '\n   n = 2, mean 1.4350, ' in text


def test_a_run_that_ends_at_no_number_is_not_passed_over(tmp_path, compared):
    a = write_runs(tmp_path, 'a', [1.51, 1.50], bias=True)
    b = write_runs(tmp_path, 'b', [1.44, math.nan], bias=False)
    with pytest.raises(SystemExit, match='b2: val is nan at the end'):
        compared(*a, *b)


def test_what_compare_takes(tmp_path, compared):
    a = write_runs(tmp_path, 'a', [1.5])
    for arguments in (
        [],
        ['--against', *a],
        [*a, '--against'],
        [*a, '--metrics=x'],
        [*a, *['--against', *a] * 2],
    ):
        with pytest.raises(
            SystemExit, match='^expected the runs of two recipes: python dev/compare.py out/a'
        ):
            compared(*arguments)
    with pytest.raises(SystemExit, match='gone: no run'):
        compared(*a, tmp_path / 'gone')
    assert compare.APART <= set(train_defaults())
