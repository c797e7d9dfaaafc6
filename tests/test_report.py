"""report.py on logs made up here, whose numbers are computed a second time; and quickstart.sh
with programs made up."""

import ast
import hashlib
import html.parser
import json
import math
import os
import re
import runpy
import shlex
import shutil
import signal
import statistics
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, as_numbers, run_settings, train_defaults, write_log

import checkpoint
import report
from configurator import Settings, configure

HOSTILE = (
    'a | b `c` ``` <img src=x onerror=alert(1)> </td></table><script>x</script> &lt; &amp; '
    '**bold** _it_ ~~gone~~\n'
    '| --- | --- |\r\n# head [link](javascript:x) ![i](y) \\| \\\\ $x$ \u2028 '
    '\x1b[31m\ttab 你好\n\n- item\n<!-- no -->'
)
SKILLS = ('facts', 'two steps')


def rows_of(stage, seed=0.0, skills=SKILLS):
    """40 steps, logged every 10th, evaluated every 20th; all numbers differ."""
    rows, seconds = [], 0.0
    for step in range(41):
        if step % 20 == 0:
            row = dict(
                step=step,
                seconds=seconds,
                val=3.0 - step / 20 - seed / 7,
                bits_per_byte=2.0 - step / 50 - seed,
            )
            row |= {name: 0.1 + step / 60 + seed / 9 + i / 30 for i, name in enumerate(skills)}
            row |= dict(perplexity=math.exp(row['val']), evaluation_seconds=1.5 + seed)
            rows += [
                row,
                dict(step=step, seconds=seconds, prompt='Who?', text=f'{stage} at {step}'),
            ]
            seconds += 1.5 + seed
        if step % 10 == 0 and step < 40:
            row = dict(
                step=step, seconds=seconds, loss=3.1 - step / 30, lr=0.1, norm=1.0, skipped=0
            )
            row |= dict(tokens_per_second=1000 + 10 * step, tokens_per_step=16 * 32)
            rows.append({**row, f'{stage} metric': step / 100})
        seconds += 16 * 32 / 1000
    return rows


@pytest.fixture
def run_folder(tmp_path):
    """Three stages, begun in another order than that of a model's life."""
    for i, stage in enumerate(('sft', 'pretrain', 'mid')):
        machine = dict(name='Some CPU', cores=4, threads=2, torch='2', python='3', system='Linux')
        first = dict(
            config=run_settings(stage), machine={**machine, 'matmul_gflops': 100.0 + 50 * i}
        )
        write_log(
            tmp_path / 'x' / stage,
            rows_of(stage, i / 10, SKILLS if stage != 'pretrain' else ()),
            first,
        )
    return tmp_path / 'x'


@pytest.fixture
def whole_page(oracle):
    """whole_page(folder) writes the report and returns its text."""
    oracle('matplotlib')
    return lambda folder: report.write(folder).read_text(encoding='utf-8')


@pytest.fixture
def page(whole_page, monkeypatch):
    """The same without plots, which take a second."""
    for name in ('draw_losses', 'draw_metrics', 'draw_accuracy'):
        monkeypatch.setattr(report, name, lambda stages: None)
    return whole_page


def warnings_of(recorded):
    """Without those about files that an earlier test left open: the garbage collector finds them
    at any time."""
    return [str(w.message) for w in recorded if not issubclass(w.category, ResourceWarning)]


def section(text, title):
    return text.split(f'## {title}\n')[1].split('\n## ')[0]


def cells(text):
    """The tables of a Markdown text, naively: a list of rows for each."""
    tables = [[]]
    for line in text.splitlines():
        if line.startswith('|'):
            tables[-1].append([cell.strip() for cell in line.strip('|').split(' | ')])
        elif tables[-1]:
            tables.append([])
    return [[rows[0], *rows[2:]] for rows in tables if rows]


# ---- the numbers


def test_the_headline_says_what_the_logs_say(run_folder, page):
    rows = cells(section(page(run_folder), 'The stages'))[0][1:]
    assert [row[0] for row in rows] == ['pretrain', 'mid', 'sft', '**all**']
    everything = 0
    for row, stage, i in zip(rows, ('pretrain', 'mid', 'sft'), (1, 2, 0)):
        log = [
            json.loads(line) for line in open(run_folder / stage / 'log.jsonl', encoding='utf-8')
        ]
        vals = [x for x in log if 'val' in x]
        total = (
            vals[-1]['seconds'] + vals[-1]['evaluation_seconds']
        )  # the last evaluation ends after its line's clock
        everything += total
        expected = [[40], [40 * 16 * 32], [total], [sum(x['evaluation_seconds'] for x in vals)]]
        expected += [[statistics.median([1000, 1100, 1200, 1300])], [100 + 50 * i]]
        for value in (
            lambda x: x['val'],
            lambda x: math.exp(x['val']),
            lambda x: x['bits_per_byte'],
        ):
            expected.append([value(vals[0]), value(vals[-1])])
        for cell, numbers in zip(row[1:], expected, strict=True):
            assert as_numbers(cell) == pytest.approx(
                numbers, abs=0.06 if numbers[0] > 5 else 6e-4
            ), row
    assert as_numbers(rows[3][2]) == [3 * 40 * 512] and as_numbers(rows[3][3]) == pytest.approx(
        [everything], abs=0.06
    )


def test_the_skills_have_their_change_through_each_stage(run_folder, page):
    head, *rows = cells(section(page(run_folder), 'Accuracy on held-out problems'))[0]
    assert head[1:] == ['before mid', 'after mid', 'after sft']  # pretraining measured no skill
    assert [row[0] for row in rows] == list(SKILLS)
    for i, row in enumerate(rows):
        begin, end = (
            [100 * (0.1 + step / 60 + seed / 9 + i / 30) for seed in (0.2, 0.0)] for step in (0, 40)
        )
        expected = [[begin[0]], [end[0], end[0] - begin[0]], [end[1], end[1] - begin[1]]]
        for cell, numbers in zip(row[1:], expected, strict=True):
            assert as_numbers(cell) == pytest.approx(numbers, abs=0.06)


def test_a_mean_stands_last_and_a_skill_that_comes_later_has_no_past(tmp_path, page):
    for stage, names in (('mid', ('a',)), ('sft', ('b', 'a'))):
        rows = rows_of(stage, skills=names)
        rows = [{**row, 'mean': 0.5 + row['step'] / 100} if 'val' in row else row for row in rows]
        write_log(tmp_path / stage, rows, dict(config=run_settings(stage)))
    rows = cells(section(page(tmp_path), 'Accuracy on held-out problems'))[0]
    assert [row[0] for row in rows[1:]] == ['a', 'b', '**mean**']
    assert rows[2][1:3] == ['–', '–'] and as_numbers(rows[2][3]) == [76.7, 66.7]
    assert rows[3][1:] == ['**50.0**', '**90.0 (+40.0)**', '**90.0 (+40.0)**']


def test_a_stage_that_asked_other_problems_begins_with_a_column_of_its_own(tmp_path, page):
    for stage, count in (('mid', 30), ('sft', 30), ('dpo', 50), ('rl', 50)):
        config = run_settings(stage, eval_problems=count)
        write_log(tmp_path / stage, rows_of(stage), dict(config=config))
    text = section(page(tmp_path), 'Accuracy on held-out problems')
    columns = ['before mid', 'after mid', 'after sft', 'before dpo', 'after dpo', 'after rl']
    assert cells(text)[0][0][1:] == columns
    assert '30 in mid, 30 in sft, 50 in dpo, 50 in rl' in text
    for stage in ('mid', 'sft', 'dpo', 'rl'):
        write_log(
            tmp_path / stage, rows_of(stage), dict(config=run_settings(stage, eval_problems=30))
        )
    assert 'different numbers' not in section(page(tmp_path), 'Accuracy on held-out problems')


def test_the_stages_of_the_embedded_world_ask_the_same_problems():
    paths = [str(ROOT / 'config' / f'tinyworld_{name}.py') for name in ('mid', 'sft', 'dpo', 'rl')]
    assert len({runpy.run_path(path).get('eval_problems') for path in paths}) == 1


def test_a_page_that_cannot_be_written_is_named_first(run_folder, whole_page, monkeypatch):
    monkeypatch.setattr(report, 'draw_losses', lambda stages: pytest.fail('it began'))
    (run_folder / 'report.md').mkdir()
    with pytest.raises(SystemExit, match='report.md'):
        whole_page(run_folder)


def test_what_is_a_metric_of_training_is_no_skill(tmp_path, page):
    rows = [
        {**row, 'accuracy': 0.5 + row['step'] / 100} if {'val', 'loss'} & set(row) else row
        for row in rows_of('dpo')
    ]
    write_log(tmp_path / 'dpo', rows, dict(config=run_settings('dpo')))
    text = page(tmp_path)
    assert 'accuracy' not in [
        row[0] for row in cells(section(text, 'Accuracy on held-out problems'))[0]
    ]
    assert cells(section(text, 'Rewards and other metrics'))[0][1] == [
        'dpo',
        'accuracy',
        '0.500 → 0.900',
    ]


def test_times_are_scaled_to_150_gflops(run_folder, page):
    text = page(run_folder)
    total = as_numbers(cells(section(text, 'The stages'))[0][-1][3])[0]
    scaled = as_numbers(re.search(r'are \*\*(.*?) seconds, (.*?) minutes', text).group())
    assert scaled == pytest.approx(
        [total * statistics.median([100, 150, 200]) / 150, total / 60], abs=0.06
    )
    machines = cells(section(text, 'Machine and time'))[0]
    assert machines[1:] == [['pretrain, mid, sft', 'Some CPU', '4', '2', 'Linux', '2', '3']]


def test_tokens_are_those_that_the_log_counts(tmp_path, page):
    """dpo and rl cut their rows to what their data needs: then a step has fewer than rows *
    block_size."""
    rows = [{**row, 'tokens_per_step': 300} if 'loss' in row else row for row in rows_of('dpo')]
    write_log(tmp_path / 'dpo', rows, dict(config=run_settings('dpo')))
    assert cells(section(page(tmp_path), 'The stages'))[0][1][2] == '12,000'


def test_answers_that_were_rewarded_are_no_samples(tmp_path, page):
    notes = [
        dict(step=4 * i, seconds=0.0, prompt=f'{i} + {i}?', text=f'{2 * i}', reward=i % 2)
        for i in range(9)
    ]
    write_log(tmp_path / 'rl', rows_of('rl') + notes, dict(config=run_settings('rl')))
    text = page(tmp_path)
    found = cells(section(text, 'Rewards and other metrics'))[-1]
    assert found[1:] == [
        ['rl', f'{i} + {i}?', f'{2 * i}', f'{4 * i}.00'[:-3], f'{i % 2}.00'] for i in (0, 1, 7, 8)
    ]
    assert len(cells(section(text, 'The same prompts, stage by stage'))) == 1  # Who?


# ---- whatever the logs are like


def test_one_stage_alone_and_a_run_that_is_under_way(run_folder, page):
    log = run_folder / 'sft' / 'log.jsonl'
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b''.join(lines[:-2]) + lines[-2][:20])  # a crash cut a line in two
    assert page(run_folder / 'sft').startswith('# The run in sft\n')
    row = cells(
        section((run_folder / 'sft' / 'report.md').read_text(encoding='utf-8'), 'The stages')
    )[0][1]
    assert row[:2] == ['sft', '31 of 40']
    assert not (run_folder / 'report.md').exists()
    assert ' sft | 31 of 40 |' in page(run_folder)


@pytest.mark.parametrize('rows', [
    [], [dict(step=0, seconds=0.0, val=5.0)], [dict(step=0, seconds=0.0, loss=5.0)], [dict(step=3)],
    [5, None],
    [dict(step=0, seconds=0, val=None, loss='x', mean=[]), dict(step='x', val=1.0, facts='much')],
], ids=str)  # fmt: skip
@pytest.mark.parametrize(
    'first', [{}, dict(config=run_settings('later')), dict(config={}, machine={})], ids=len
)
def test_a_log_that_says_little_is_no_error(tmp_path, whole_page, rows, first):
    write_log(tmp_path / 'odd', rows, {**first, 'x': 1})
    assert '| odd |' in whole_page(tmp_path)


def test_numbers_that_are_not_finite_are_left_out(tmp_path, whole_page, recwarn):
    rows = rows_of('mid')
    for i, row in enumerate(rows):
        for j, key in enumerate(row):
            if (i + j) % 3 == 0 and key not in ('step', 'prompt', 'text'):
                row[key] = (math.nan, math.inf, -math.inf)[i % 3]
    write_log(tmp_path / 'mid', rows, dict(config=run_settings('mid', learning_rate=math.nan)))
    text = whole_page(tmp_path)
    assert not re.search(r'\bnan\b|\binf\b', text.split('## How to do it again')[0])
    assert warnings_of(recwarn) == []


def test_a_folder_without_logs_is_named(tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty' / 'log.jsonl').write_bytes(b'')
    for folder in (tmp_path, tmp_path / 'empty', tmp_path / 'gone'):
        with pytest.raises(SystemExit, match='no log.jsonl.*python train.py') as stop:
            report.write(folder)
        assert str(folder) in str(stop.value.code) and '\n' not in str(stop.value.code)


def test_without_matplotlib_the_command_that_brings_it_is_named(run_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    with pytest.raises(SystemExit) as stop:
        report.write(run_folder)
    assert 'pip install ".[report]"' in str(stop.value.code) and '\n' not in str(stop.value.code)
    assert not list(run_folder.glob('report.md*'))


def test_other_stages_follow_the_known_ones_by_age(tmp_path, page):
    for age, name in enumerate(('young', 'middle', 'old', 'rl')):
        write_log(tmp_path / name, rows_of(name), dict(config=run_settings(name)))
        os.utime(tmp_path / name / 'log.jsonl', (10**9 - age, 10**9 - age))
    assert [row[0] for row in cells(section(page(tmp_path), 'The stages'))[0][1:-1]] == [
        'rl',
        'old',
        'middle',
        'young',
    ]


# ---- plots


def test_the_plots_are_whole_images_and_show_every_number(run_folder, whole_page):
    text = whole_page(run_folder)
    for name, (title, look_for) in report.PLOTS.items():
        assert f'![{title}]({name}.png)\n\n{look_for}\n\n' in text
    names = re.findall(r'!\[.*?\]\((.*?)\)', text)
    assert sorted(names) == ['accuracy.png', 'losses.png', 'metrics.png']
    assert sorted(path.name for path in run_folder.glob('*.*')) == [
        *sorted(names),
        'report.md',
    ]  # no half-written ones
    import matplotlib
    from matplotlib import image

    for name in names:
        pixels = image.imread(run_folder / name)
        assert min(pixels.shape[:2]) > 200 and pixels.std() > 0.01
    stages = report.read_stages(run_folder)
    with matplotlib.rc_context(report.LOOK):
        losses = report.draw_losses(stages)
    lines = [line for axis in losses.axes for line in axis.get_lines()]
    assert [axis.get_title('left') for axis in losses.axes] == ['pretrain', 'mid', 'sft']
    for stage, training, held_out in zip(stages, lines[::2], lines[1::2], strict=True):
        assert training.get_ydata().tolist() == [row['loss'] for row in stage.training]
        assert held_out.get_ydata().tolist() == [row['val'] for row in stage.evaluations]
        assert held_out.get_xdata().tolist() == pytest.approx([0, 20 * 512 / 1e6, 40 * 512 / 1e6])
    assert all(axis.get_xlabel() and axis.get_ylabel() for axis in losses.axes)


def test_accuracy_has_a_panel_a_skill_with_the_stages_side_by_side(run_folder, oracle):
    with oracle('matplotlib').rc_context(report.LOOK):
        figure = report.draw_accuracy(report.read_stages(run_folder))
    panels = [axis for axis in figure.axes if axis.get_lines()]
    assert [axis.get_title('left') for axis in panels] == list(SKILLS)
    line = max(panels[0].get_lines(), key=lambda line: len(line.get_xdata()))
    assert line.get_xdata().tolist() == pytest.approx([0, 0.5, 1, 1, 1.5, 2])
    expected = [100 * (0.1 + step / 60 + seed / 9) for seed in (0.2, 0.0) for step in (0, 20, 40)]
    assert line.get_ydata().tolist() == pytest.approx(expected)


def test_what_to_look_for_in_each_metric(run_folder):
    stage = report.read_stages(run_folder)[0]
    stage = stage._replace(training=[dict(step=0, loss=1.0, reward=0.5, other=1.0)])
    assert report.glossary([stage])[2:] == [f'- reward: {report.LOOK_FOR["reward"]}.', '']
    assert report.LOOK_FOR.keys() == report.METRICS.keys()
    assert all(report.METRICS.values())  # the titles of their axes


def test_a_surrogate_loss_is_not_drawn_beside_a_reward(tmp_path, oracle):
    oracle('matplotlib')
    rows = [{**row, 'reward': 0.5} if 'loss' in row else row for row in rows_of('rl')]
    write_log(tmp_path / 'rl', rows, dict(config=run_settings('rl')))
    drawn = [
        line.get_ydata()
        for line in report.draw_losses(report.read_stages(tmp_path)).axes[0].get_lines()
    ]
    assert sorted(map(len, drawn)) == [0, 3]


def test_smoothing_is_a_running_mean():
    values = [float(i * i % 37) for i in range(100)]
    naive = [statistics.fmean(values[max(0, i - 5) : i + 6]) for i in range(100)]
    assert report.smooth(values).tolist() == pytest.approx(naive)
    assert report.smooth([2.5]).tolist() == [2.5] and report.smooth([]).tolist() == []


# ---- Markdown that stays right


class Cells(html.parser.HTMLParser):
    """Text of every table cell of a rendered page, <br> as a newline, and the names of all tags."""

    def __init__(self, page):
        super().__init__()
        self.cells, self.tags = [], set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag in ('td', 'th'):
            self.cells.append('')
        if tag == 'br':
            self.cells[-1] += '\n'

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


def test_hostile_text_is_shown_as_it_is(tmp_path, whole_page, oracle, recwarn):
    """A renderer that lets HTML pass shows the very text, and no tag that is not ours."""
    render = (
        oracle('markdown_it').MarkdownIt('commonmark').enable(['table', 'strikethrough']).render
    )
    shown = '\n'.join(
        re.sub(r'[\x00-\x1f]', '\N{REPLACEMENT CHARACTER}', x) for x in HOSTILE.splitlines()
    )
    for text in (
        HOSTILE,
        'plain',
        '|',
        '\\',
        '<img onerror=alert(1)>',
        '`' * 5,
        '&#60;b&#62;',
        '<!--',
        '* * *',
    ):
        found = Cells(
            render('\n'.join(report.table(['after', 'x'], [['rl', report.escape(text)]], left=2)))
        )
        assert found.cells[3].rstrip('\n') == (shown if text == HOSTILE else text)
        assert found.tags <= {'table', 'thead', 'tbody', 'tr', 'th', 'td', 'br'}
    name = '<img onerror=alert(1)>|`x' if os.name != 'nt' else 'a`x'
    rows = [{**row, HOSTILE: 0.5, 'prompt': HOSTILE, 'text': HOSTILE} for row in rows_of('rl')]
    first = dict(
        config=run_settings('rl', **{HOSTILE: HOSTILE}),
        machine={'name': HOSTILE},
        command=[HOSTILE],
    )
    write_log(tmp_path / name.replace('/', ''), rows, first)
    tags = Cells(render(whole_page(tmp_path))).tags
    ours = {
        'table',
        'thead',
        'tbody',
        'tr',
        'th',
        'td',
        'br',
        'h1',
        'h2',
        'p',
        'strong',
        'img',
        'pre',
        'code',
    }
    assert tags == ours
    assert render(whole_page(tmp_path)).count('<img') == 3  # the plots
    assert warnings_of(recwarn) == []


def test_an_answer_may_be_empty_or_endless(tmp_path, page):
    rows = [
        dict(step=0, seconds=0.0, prompt='', text=''),
        dict(step=0, seconds=0.0, prompt='b', text='word ' * 10_000),
    ]
    write_log(tmp_path / 'sft', rows)
    found = cells(section(page(tmp_path), 'The same prompts, stage by stage'))
    assert found[0] == [['after', '*(nothing)*'], ['sft', '*(nothing)*']]
    assert found[1][1][1].endswith('word  \\[…\\]') and len(found[1][1][1]) < 1300


def test_the_answers_are_the_last_ones_of_each_stage(run_folder, page):
    found = cells(section(page(run_folder), 'The same prompts, stage by stage'))
    assert found == [
        [['after', 'Who?'], *([stage, f'{stage} at 40'] for stage in ('pretrain', 'mid', 'sft'))]
    ]


# ---- how to do it again


def test_the_command_gives_the_settings_back(tmp_path, page):
    """Without the command in the log: the settings that have a source, as arguments."""
    defaults = train_defaults()
    assert (
        defaults['learning_rate'] == 4e-3
        and defaults['stage'] == 'pretrain'
        and defaults['compile'] is None
    )
    config = {
        **defaults,
        'out_dir': 'out/a b',
        'batch_size': 3,
        'compile': False,
        'sample_prompts': "it's|<b>```",
        'seed': 5,
    }
    changed = {name: 'x.py' for name in config if config[name] != defaults[name]}
    write_log(tmp_path / 'a', [], dict(config=config, sources=changed))
    text = section(page(tmp_path), 'How to do it again')
    line = re.search(r'^python train.py .*$', text, re.MULTILINE).group()
    assert dict(configure(dict(defaults), argv=shlex.split(line)[2:])) == config
    assert len(shlex.split(line)) == 2 + 5 and 'seed 5' in text


def test_the_command_of_the_log_is_shown_as_it_was_given(run_folder, page):
    log = run_folder / 'mid' / 'log.jsonl'
    first, rest = log.read_bytes().split(b'\n', 1)
    first = {**json.loads(first), 'command': ['config/a b.py', '--seed=7']}
    first['sources'] = {'stage': 'config/a b.py', 'seed': 'command line'}
    log.write_bytes(json.dumps(first).encode() + b'\n' + rest)
    text = section(page(run_folder), 'How to do it again')
    assert "python train.py 'config/a b.py' --seed=7\n# sets stage = 'mid', seed = 7\n" in text


def save_checkpoint(path, parent):
    state = dict(
        model={'w': torch.zeros(3)},
        model_config={},
        tokenizer={},
        stage='x',
        step=1,
        config={},
        parent=parent,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, state)


def test_a_parent_that_is_not_on_the_disk_any_more_is_noted(run_folder, page):
    path = run_folder / 'pretrain' / 'ckpt.pt'
    save_checkpoint(path, None)
    parent = dict(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    save_checkpoint(run_folder / 'mid' / 'ckpt.pt', parent)

    def said():
        text = section(page(run_folder), 'How to do it again')
        return {
            stage: re.search(rf'^\*\*{stage}\*\*: (.*)$', text, re.M).group(1)
            for stage in ('pretrain', 'mid', 'sft')
        }

    assert (
        said()['pretrain'] == 'seed 7, from scratch'
        and said()['sft'] == 'seed 7, no checkpoint yet'
    )
    assert said()['mid'].endswith(f'(sha256 {parent["sha256"][:16]}…)')
    save_checkpoint(path, dict(path='elsewhere', sha256='0'))
    assert (
        'is another one by now' in said()['mid'] and 'no longer on this disk' in said()['pretrain']
    )
    path.unlink()
    assert 'no longer on this disk' in said()['mid']
    (run_folder / 'mid' / 'ckpt.pt').write_bytes(b'half a checkpoint')
    assert 'cannot be read' in said()['mid']


def test_a_run_that_has_moved_finds_its_parents(run_folder, page):
    path = run_folder / 'pretrain' / 'ckpt.pt'
    save_checkpoint(path, None)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    save_checkpoint(
        run_folder / 'mid' / 'ckpt.pt', dict(path='out/gone/pretrain/ckpt.pt', sha256=digest)
    )
    assert re.search(rf'^\*\*mid\*\*: .*\(sha256 {digest[:16]}…\)$', page(run_folder), re.M)


# ---- the program


def test_the_program_takes_one_folder(run_folder, run_program, oracle, monkeypatch, capsys):
    oracle('matplotlib')
    assert run_program('report.py', run_folder).stdout.strip() == str(run_folder / 'report.md')
    for arguments in ([], ['a', 'b'], ['--out_dir=x']):
        monkeypatch.setattr(sys, 'argv', ['report.py', *arguments])
        with pytest.raises(
            SystemExit, match='^expected one folder: python report.py out/tinyworld$'
        ):
            report.main()
    monkeypatch.setattr(sys, 'argv', ['report.py', '--help'])
    report.main()
    assert 'python report.py out/tinyworld' in capsys.readouterr().out


def test_help_under_python_OO(monkeypatch, capsys):
    """There __doc__ is None."""
    monkeypatch.setattr(report, '__doc__', None)
    monkeypatch.setattr(sys, 'argv', ['report.py', '--help'])
    report.main()
    assert 'python report.py out/tinyworld' in capsys.readouterr().out


# ---- benchmarks


def scores(step, problems=None, more=(), **accuracies):
    """A line of scores.jsonl, on 500 problems of each skill."""
    skills = {
        name: dict(problems=problems or 500, accuracy=accuracy, error=0.021, passed={})
        for name, accuracy in accuracies.items()
    }
    return dict(step=step, split='val', temperature=0.0, skills=skills, not_run={}) | dict(more)


def test_benchmarks_have_a_column_for_each_stage_that_was_measured(run_folder, page):
    sampled = scores(40, gsm8k=0.3, more=dict(temperature=1.0))
    sampled['skills']['gsm8k']['passed'] = {'1': 0.3, '8': 0.6}
    lines = {
        'pretrain': [
            scores(40, more=dict(core=0.2219, bits_per_byte=0.81234, data='data/a|b'))
            | {'core_tasks': {'copa': {'examples': 100}}},
            scores(40, more=dict(core=0.9, core_tasks={'copa': {'examples': 10}})),
        ],
        'sft': [
            scores(20, arc_easy=0.1, gsm8k=0.1),  # an earlier step
            scores(40, arc_easy=0.3876, more=dict(ChatCORE=0.0884, not_run={'humaneval': 'why'})),
            scores(40, problems=1, arc_easy=1.0, gsm8k=0.2),  # on fewer problems
            scores(40, gsm8k=0.9, more=dict(split='train')),
            sampled,
        ],
    }
    for stage, rows in lines.items():
        path = run_folder / stage / 'scores.jsonl'
        path.write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    text = section(page(run_folder), 'Benchmarks')
    [rows] = cells(text)
    assert rows == [
        ['benchmark', 'pretrain', 'sft'],
        ['CORE', '0.2219', '–'],
        ['bits per byte of data/a\\|b', '0.812', '–'],
        ['arc\\_easy', '–', '38.8 ± 2.1'],
        ['gsm8k', '–', '20.0 ± 2.1'],
        ['humaneval', '–', 'not run'],
        ['gsm8k pass\\@1', '–', '30.0'],
        ['gsm8k pass\\@8', '–', '60.0'],
        ['ChatCORE', '–', '0.0884'],
    ]
    assert 'after this many steps: pretrain 40, sft 40.' in text


def test_scores_that_make_no_sense_are_left_out(run_folder, page):
    rows = [
        7, [1], {}, {'skills': 3, 'not_run': 4, 'core': 'x', 'bits_per_byte': True},
        {'skills': {'a': 3, 'b': {'accuracy': 'x'}, 'c': {'accuracy': 0.5, 'passed': [1]}}},
        {'skills': {'d': {'accuracy': math.nan}}, 'step': 'x'},
    ]  # fmt: skip
    path = run_folder / 'sft' / 'scores.jsonl'
    path.write_text('\n'.join(map(json.dumps, rows)) + '\n{"half', encoding='utf-8')
    [[_, row]] = cells(section(page(run_folder), 'Benchmarks'))
    assert row == ['c', '50.0 ± 0.0']


# ---- quickstart.sh

QUICKSTART = (ROOT / 'quickstart.sh').read_text(encoding='utf-8')
PROGRAMS = [
    line.strip()
    for line in QUICKSTART.split('# ---- Data')[1].splitlines()
    if line.strip().startswith('python ')
]
needs_bash = pytest.mark.skipif(
    os.name == 'nt' or not shutil.which('bash'), reason='quickstart.sh needs bash'
)


def later(path):
    """Skip, by name, what is still to be written."""
    if not (ROOT / path).exists():
        pytest.skip(f'{path} is not there yet')
    return path


def test_the_quickstart_runs_every_stage_in_order():
    trained = [line.split('tinyworld_')[1] for line in PROGRAMS if 'train.py' in line]
    assert trained == ['games.py', *(f'{stage}.py' for stage in report.ORDER)]
    order = [line.split()[1] for line in PROGRAMS]
    assert order == ['data/tinyworld/prepare.py', *['train.py'] * 6, 'evaluate.py', 'report.py']


def test_every_program_of_the_quickstart_writes_files():
    """One that only prints ends where nobody reads, as in `bash quickstart.sh | head`, and the
    script with it."""
    (exam,) = [line for line in PROGRAMS if 'evaluate.py' in line]
    assert '--json=out/tinyworld/' in exam


@pytest.mark.parametrize('line', PROGRAMS)
def test_every_line_names_what_there_is(line, run_program):
    """Plain words only, so that PowerShell reads them as bash does; files that exist; settings
    that the program has."""
    assert re.fullmatch(r'[\w./= -]+', line)
    _, program, *arguments = line.split()
    source = (ROOT / later(program)).read_text(encoding='utf-8')
    for argument in arguments:
        name, equals, _ = argument.removeprefix('--').partition('=')
        if equals and 'configure(globals()' not in source:
            pytest.skip(f'{program} has no settings yet')
        if equals:
            assert re.search(rf'^ *--{name}=', run_program(program, '--help').stdout, re.MULTILINE)
        elif argument.endswith('.py'):
            configure(train_defaults(), argv=[str(ROOT / later(argument))])


@pytest.mark.parametrize('name', ['games', *report.ORDER])
def test_each_stage_goes_on_where_it_stopped_and_lands_where_the_report_looks(name):
    defaults = train_defaults()
    config: Settings = configure(defaults, argv=[str(ROOT / later(f'config/tinyworld_{name}.py'))])
    assert config['stage'] == (name if name in report.ORDER else 'pretrain')
    assert (config['auto_resume'], config['time_limit']) == (True, 0)
    assert config['out_dir'] == f'out/tinyworld/{name}'


def test_the_quickstart_asks_for_the_packages_of_pyproject():
    pyproject = (ROOT / 'pyproject.toml').read_text(encoding='utf-8')
    names = set(
        ast.literal_eval(re.search(r'^dependencies = (\[.*?^\])', pyproject, re.M | re.S).group(1))
    )
    torch_range = next(name for name in names if name.startswith('torch'))
    assert f"'{torch_range}'" in QUICKSTART
    low, high = re.fullmatch(r'torch>=2\.(\d+),<2\.(\d+)', torch_range).groups()
    assert f'(2, {low}) <= ' in QUICKSTART and f' < (2, {high})' in QUICKSTART
    asked = set(re.search(r"-c 'import (matplotlib.*)", QUICKSTART).group(1).split(', '))
    assert asked == {re.match(r'\w+', name).group() for name in names} | {'matplotlib'}
    assert re.search(r'^report = \["matplotlib"\]', pyproject, re.M)


PYTHON = """#!/bin/bash
# Stands for Python: notes how it was called and answers as the files beside it say.
here=$(dirname "$0")
case "$*" in
    *version_info*) exit 0 ;;
    *base_prefix*) [ -e "$here/active" ] && exit 1; exit 0 ;;
    *'import matplotlib'*) [ -e "$here/installed" ]; exit ;;
esac
echo "$*" | tr -s ' ' >> "$here/calls"
case "$*" in
    '-m venv .venv') mkdir -p .venv/bin; echo "export VIRTUAL_ENV=here" > .venv/bin/activate ;;
    *download.pytorch.org*) [ ! -e "$here/unreachable" ] ;;
    '-m pip install --quiet .[report]') touch "$here/installed" ;;
    data/tinyworld/prepare.py) touch data/tinyworld/problems.jsonl ;;
    *_sft.py) if [ -e "$here/interrupt" ]; then kill -INT $PPID; fi ;;
    *_dpo.py) if [ -e "$here/fail" ]; then exit 3; fi ;;
esac
"""


@pytest.fixture
def quickstart(tmp_path):
    """quickstart('active', 'unreachable', …) -> (exit status, calls of Python) in a clone where
    those things hold."""
    clone, bin_folder = tmp_path / 'a clone', tmp_path / 'bin'
    (clone / 'data' / 'tinyworld').mkdir(parents=True)
    bin_folder.mkdir()
    shutil.copy(ROOT / 'quickstart.sh', clone)
    (bin_folder / 'python').write_text(PYTHON, encoding='utf-8')
    (bin_folder / 'python').chmod(0o755)
    (bin_folder / 'nvidia-smi').write_text(
        '#!/bin/bash\n[ -e "$(dirname "$0")/card" ]\n', encoding='utf-8'
    )
    (bin_folder / 'nvidia-smi').chmod(0o755)

    def run(*facts):
        for fact in ('active', 'unreachable', 'installed', 'interrupt', 'fail', 'card'):
            (bin_folder / fact).unlink(missing_ok=True)
            if fact in facts:
                (bin_folder / fact).touch()
        (bin_folder / 'calls').write_text('', encoding='utf-8')
        environment = {**os.environ, 'PATH': f'{bin_folder}:/usr/bin:/bin'}
        command = ['bash', clone / 'quickstart.sh']
        heard = lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        )  # in the background of a script it is ignored
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            encoding='utf-8',
            preexec_fn=heard,
        )
        return done.returncode, (bin_folder / 'calls').read_text(encoding='utf-8').splitlines()

    return run


STAGES = [line.removeprefix('python ') for line in PROGRAMS]
VENV = '-m venv .venv'
PIP = ['-m pip --version', '-m pip install --quiet .[report]']
ON_LINUX = sys.platform.startswith('linux')
CPU = (
    '-m pip install --quiet --retries 1 --timeout 15 '
    '--index-url https://download.pytorch.org/whl/cpu torch>=2.9,<2.14'
)


@needs_bash
def test_quickstart_from_nothing_and_again(quickstart):
    assert quickstart() == (0, [VENV, PIP[0], *[CPU] * ON_LINUX, PIP[1], *STAGES])
    assert quickstart('installed') == (
        0,
        STAGES[1:],
    )  # the second time .venv, packages and data are there


@needs_bash
@pytest.mark.parametrize('facts, expected', [
    (['installed', 'active'], STAGES),
    (['installed'], [VENV, *STAGES]),
    (['active', 'card'], [*PIP, *STAGES]),  # with an NVIDIA card the default build
    (['active', 'unreachable'], [PIP[0], *[CPU] * ON_LINUX, PIP[1], *STAGES]),
], ids=str)  # fmt: skip
def test_quickstart_installs_what_is_missing_where_it_belongs(quickstart, facts, expected):
    assert quickstart(*facts) == (0, expected)


@needs_bash
def test_quickstart_ends_where_a_stage_fails_or_ctrl_c_is_pressed(quickstart):
    """train.py leaves with status 0 after Ctrl-C: the next stage must not take a model that is
    half trained."""
    status, calls = quickstart('installed', 'active', 'fail')
    assert (status, calls[-1]) == (3, 'train.py config/tinyworld_dpo.py')
    status, calls = quickstart('installed', 'active', 'interrupt')
    assert (status, calls[-1]) == (130, 'train.py config/tinyworld_sft.py')


@needs_bash
def test_quickstart_is_whole_bash():
    subprocess.run(['bash', '-n', ROOT / 'quickstart.sh'], check=True)
