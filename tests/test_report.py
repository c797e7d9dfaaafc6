"""report.py on logs made up here, whose numbers are computed a second time; and quickstart.sh with programs made up."""

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

import numpy as np
import pytest
import torch
from conftest import ROOT

import checkpoint
import report
from configurator import Settings, configure

HOSTILE = (
    'a | b `c` ``` <img src=x onerror=alert(1)> </td></table><script>x</script> &lt; &amp; **bold** _it_ ~~gone~~\n'
    '| --- | --- |\r\n# head [link](javascript:x) ![i](y) \\| \\\\ $x$ \u2028 \x1b[31m\ttab 你好\n\n- item\n<!-- no -->'
)
SKILLS = ('facts', 'two steps')


def settings(stage, **more):
    base = dict(stage=stage, out_dir=f'out/x/{stage}', seed=7, batch_size=8, gradient_accumulation_steps=2)
    return {**base, 'block_size': 32, 'max_iters': 40, **more}


def rows_of(stage, seed=0.0, skills=SKILLS):
    """40 steps, logged every 10th, evaluated every 20th; all numbers differ."""
    rows, seconds = [], 0.0
    for step in range(41):
        if step % 20 == 0:
            row = dict(step=step, seconds=seconds, val=3.0 - step / 20 - seed / 7, bits_per_byte=2.0 - step / 50 - seed)
            row |= {name: 0.1 + step / 60 + seed / 9 + i / 30 for i, name in enumerate(skills)}
            row |= dict(perplexity=math.exp(row['val']), evaluation_seconds=1.5 + seed)
            rows += [row, dict(step=step, seconds=seconds, prompt='Who?', text=f'{stage} at {step}')]
            seconds += 1.5 + seed
        if step % 10 == 0 and step < 40:
            row = dict(step=step, seconds=seconds, loss=3.1 - step / 30, lr=0.1, norm=1.0, skipped=0)
            row |= dict(tokens_per_second=1000 + 10 * step, tokens_per_step=16 * 32)
            rows.append({**row, f'{stage} metric': step / 100})
        seconds += 16 * 32 / 1000
    return rows


def write_log(folder, rows, first=None):
    folder.mkdir(parents=True, exist_ok=True)
    text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in ([first] if first else []) + rows)
    (folder / 'log.jsonl').write_bytes(text.encode())


@pytest.fixture
def run_folder(tmp_path):
    """Three stages, begun in another order than that of a model's life."""
    for i, stage in enumerate(('sft', 'pretrain', 'mid')):
        machine = dict(name='Some CPU', cores=4, threads=2, torch='2', python='3', system='Linux')
        first = dict(config=settings(stage), machine={**machine, 'matmul_gflops': 100.0 + 50 * i})
        write_log(tmp_path / 'x' / stage, rows_of(stage, i / 10, SKILLS if stage != 'pretrain' else ()), first)
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


def as_numbers(cell):
    return [float(part.replace(',', '')) for part in re.findall(r'[-+]?[\d,]*\.?\d+', cell)]


# ---- the numbers


def test_the_headline_says_what_the_logs_say(run_folder, page):
    rows = cells(section(page(run_folder), 'The stages'))[0][1:]
    assert [row[0] for row in rows] == ['pretrain', 'mid', 'sft', '**all**']
    everything = 0
    for row, stage, i in zip(rows, ('pretrain', 'mid', 'sft'), (1, 2, 0)):
        log = [json.loads(line) for line in open(run_folder / stage / 'log.jsonl', encoding='utf-8')]
        vals = [x for x in log if 'val' in x]
        total = vals[-1]['seconds'] + vals[-1]['evaluation_seconds']  # the last evaluation ends after its line's clock
        everything += total
        expected = [[40], [40 * 16 * 32], [total], [sum(x['evaluation_seconds'] for x in vals)]]
        expected += [[statistics.median([1000, 1100, 1200, 1300])], [100 + 50 * i]]
        for value in (lambda x: x['val'], lambda x: math.exp(x['val']), lambda x: x['bits_per_byte']):
            expected.append([value(vals[0]), value(vals[-1])])
        for cell, numbers in zip(row[1:], expected, strict=True):
            assert as_numbers(cell) == pytest.approx(numbers, abs=0.06 if numbers[0] > 5 else 6e-4), row
    assert as_numbers(rows[3][2]) == [3 * 40 * 512] and as_numbers(rows[3][3]) == pytest.approx([everything], abs=0.06)


def test_the_skills_have_their_change_through_each_stage(run_folder, page):
    head, *rows = cells(section(page(run_folder), 'Accuracy on held-out problems'))[0]
    assert head[1:] == ['before mid', 'after mid', 'after sft']  # pretraining measured no skill
    assert [row[0] for row in rows] == list(SKILLS)
    for i, row in enumerate(rows):
        begin, end = ([100 * (0.1 + step / 60 + seed / 9 + i / 30) for seed in (0.2, 0.0)] for step in (0, 40))
        expected = [[begin[0]], [end[0], end[0] - begin[0]], [end[1], end[1] - begin[1]]]
        for cell, numbers in zip(row[1:], expected, strict=True):
            assert as_numbers(cell) == pytest.approx(numbers, abs=0.06)


def test_a_mean_stands_last_and_a_skill_that_comes_later_has_no_past(tmp_path, page):
    for stage, names in (('mid', ('a',)), ('sft', ('b', 'a'))):
        rows = rows_of(stage, skills=names)
        rows = [{**row, 'mean': 0.5 + row['step'] / 100} if 'val' in row else row for row in rows]
        write_log(tmp_path / stage, rows, dict(config=settings(stage)))
    rows = cells(section(page(tmp_path), 'Accuracy on held-out problems'))[0]
    assert [row[0] for row in rows[1:]] == ['a', 'b', '**mean**']
    assert rows[2][1:3] == ['–', '–'] and as_numbers(rows[2][3]) == [76.7, 66.7]
    assert rows[3][1:] == ['**50.0**', '**90.0 (+40.0)**', '**90.0 (+40.0)**']


def test_a_stage_that_asked_other_problems_begins_with_a_column_of_its_own(tmp_path, page):
    for stage, count in (('mid', 30), ('sft', 30), ('dpo', 50), ('rl', 50)):
        config = settings(stage, eval_problems=count)
        write_log(tmp_path / stage, rows_of(stage), dict(config=config))
    text = section(page(tmp_path), 'Accuracy on held-out problems')
    columns = ['before mid', 'after mid', 'after sft', 'before dpo', 'after dpo', 'after rl']
    assert cells(text)[0][0][1:] == columns
    assert '30 in mid, 30 in sft, 50 in dpo, 50 in rl' in text
    for stage in ('mid', 'sft', 'dpo', 'rl'):
        write_log(tmp_path / stage, rows_of(stage), dict(config=settings(stage, eval_problems=30)))
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
        {**row, 'accuracy': 0.5 + row['step'] / 100} if {'val', 'loss'} & set(row) else row for row in rows_of('dpo')
    ]
    write_log(tmp_path / 'dpo', rows, dict(config=settings('dpo')))
    text = page(tmp_path)
    assert 'accuracy' not in [row[0] for row in cells(section(text, 'Accuracy on held-out problems'))[0]]
    assert cells(section(text, 'Rewards and other metrics'))[0][1] == ['dpo', 'accuracy', '0.500 → 0.900']


def test_times_are_scaled_to_150_gflops(run_folder, page):
    text = page(run_folder)
    total = as_numbers(cells(section(text, 'The stages'))[0][-1][3])[0]
    scaled = as_numbers(re.search(r'are \*\*(.*?) seconds, (.*?) minutes', text).group())
    assert scaled == pytest.approx([total * statistics.median([100, 150, 200]) / 150, total / 60], abs=0.06)
    machines = cells(section(text, 'Machine and time'))[0]
    assert machines[1:] == [['pretrain, mid, sft', 'Some CPU', '4', '2', 'Linux', '2', '3']]


def test_tokens_are_those_that_the_log_counts(tmp_path, page):
    """dpo and rl cut their rows to what their data needs: then a step has fewer than rows * block_size."""
    rows = [{**row, 'tokens_per_step': 300} if 'loss' in row else row for row in rows_of('dpo')]
    write_log(tmp_path / 'dpo', rows, dict(config=settings('dpo')))
    assert cells(section(page(tmp_path), 'The stages'))[0][1][2] == '12,000'


def test_answers_that_were_rewarded_are_no_samples(tmp_path, page):
    notes = [dict(step=4 * i, seconds=0.0, prompt=f'{i} + {i}?', text=f'{2 * i}', reward=i % 2) for i in range(9)]
    write_log(tmp_path / 'rl', rows_of('rl') + notes, dict(config=settings('rl')))
    text = page(tmp_path)
    found = cells(section(text, 'Rewards and other metrics'))[-1]
    assert found[1:] == [['rl', f'{i} + {i}?', f'{2 * i}', f'{4 * i}.00'[:-3], f'{i % 2}.00'] for i in (0, 1, 7, 8)]
    assert len(cells(section(text, 'The same prompts, stage by stage'))) == 1  # Who?


# ---- whatever the logs are like


def test_one_stage_alone_and_a_run_that_is_under_way(run_folder, page):
    log = run_folder / 'sft' / 'log.jsonl'
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b''.join(lines[:-2]) + lines[-2][:20])  # a crash cut a line in two
    assert page(run_folder / 'sft').startswith('# The run in sft\n')
    row = cells(section((run_folder / 'sft' / 'report.md').read_text(encoding='utf-8'), 'The stages'))[0][1]
    assert row[:2] == ['sft', '31 of 40']
    assert not (run_folder / 'report.md').exists()
    assert ' sft | 31 of 40 |' in page(run_folder)


@pytest.mark.parametrize('rows', [
    [], [dict(step=0, seconds=0.0, val=5.0)], [dict(step=0, seconds=0.0, loss=5.0)], [dict(step=3)], [5, None],
    [dict(step=0, seconds=0, val=None, loss='x', mean=[]), dict(step='x', val=1.0, facts='much')],
], ids=str)  # fmt: skip
@pytest.mark.parametrize('first', [{}, dict(config=settings('later')), dict(config={}, machine={})], ids=len)
def test_a_log_that_says_little_is_no_error(tmp_path, whole_page, rows, first):
    write_log(tmp_path / 'odd', rows, {**first, 'x': 1})
    assert '| odd |' in whole_page(tmp_path)


def test_numbers_that_are_not_finite_are_left_out(tmp_path, whole_page, recwarn):
    rows = rows_of('mid')
    for i, row in enumerate(rows):
        for j, key in enumerate(row):
            if (i + j) % 3 == 0 and key not in ('step', 'prompt', 'text'):
                row[key] = (math.nan, math.inf, -math.inf)[i % 3]
    write_log(tmp_path / 'mid', rows, dict(config=settings('mid', learning_rate=math.nan)))
    text = whole_page(tmp_path)
    assert not re.search(r'\bnan\b|\binf\b', text.split('## How to do it again')[0])
    assert not [str(w.message) for w in recwarn]


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
        write_log(tmp_path / name, rows_of(name), dict(config=settings(name)))
        os.utime(tmp_path / name / 'log.jsonl', (10**9 - age, 10**9 - age))
    assert [row[0] for row in cells(section(page(tmp_path), 'The stages'))[0][1:-1]] == ['rl', 'old', 'middle', 'young']


# ---- plots


def test_the_plots_are_whole_images_and_show_every_number(run_folder, whole_page):
    text = whole_page(run_folder)
    names = re.findall(r'!\[.*?\]\((.*?)\)', text)
    assert sorted(names) == ['accuracy.png', 'losses.png', 'metrics.png']
    assert sorted(path.name for path in run_folder.glob('*.*')) == [*sorted(names), 'report.md']  # no half-written ones
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


def test_a_surrogate_loss_is_not_drawn_beside_a_reward(tmp_path, oracle):
    oracle('matplotlib')
    rows = [{**row, 'reward': 0.5} if 'loss' in row else row for row in rows_of('rl')]
    write_log(tmp_path / 'rl', rows, dict(config=settings('rl')))
    drawn = [line.get_ydata() for line in report.draw_losses(report.read_stages(tmp_path)).axes[0].get_lines()]
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
    render = oracle('markdown_it').MarkdownIt('commonmark').enable(['table', 'strikethrough']).render
    shown = '\n'.join(re.sub(r'[\x00-\x1f]', '\N{REPLACEMENT CHARACTER}', x) for x in HOSTILE.splitlines())
    for text in (HOSTILE, 'plain', '|', '\\', '<img onerror=alert(1)>', '`' * 5, '&#60;b&#62;', '<!--', '* * *'):
        found = Cells(render('\n'.join(report.table(['after', 'x'], [['rl', report.escape(text)]], left=2))))
        assert found.cells[3].rstrip('\n') == (shown if text == HOSTILE else text)
        assert found.tags <= {'table', 'thead', 'tbody', 'tr', 'th', 'td', 'br'}
    name = '<img onerror=alert(1)>|`x' if os.name != 'nt' else 'a`x'
    rows = [{**row, HOSTILE: 0.5, 'prompt': HOSTILE, 'text': HOSTILE} for row in rows_of('rl')]
    first = dict(config=settings('rl', **{HOSTILE: HOSTILE}), machine={'name': HOSTILE}, command=[HOSTILE])
    write_log(tmp_path / name.replace('/', ''), rows, first)
    tags = Cells(render(whole_page(tmp_path))).tags
    ours = {'table', 'thead', 'tbody', 'tr', 'th', 'td', 'br', 'h1', 'h2', 'p', 'strong', 'img', 'pre', 'code'}
    assert tags == ours
    assert render(whole_page(tmp_path)).count('<img') == 3  # the plots
    assert not [str(w.message) for w in recwarn]


def test_an_answer_may_be_empty_or_endless(tmp_path, page):
    rows = [dict(step=0, seconds=0.0, prompt='', text=''), dict(step=0, seconds=0.0, prompt='b', text='word ' * 10_000)]
    write_log(tmp_path / 'sft', rows)
    found = cells(section(page(tmp_path), 'The same prompts, stage by stage'))
    assert found[0] == [['after', '*(nothing)*'], ['sft', '*(nothing)*']]
    assert found[1][1][1].endswith('word  \\[…\\]') and len(found[1][1][1]) < 1300


def test_the_answers_are_the_last_ones_of_each_stage(run_folder, page):
    found = cells(section(page(run_folder), 'The same prompts, stage by stage'))
    assert found == [[['after', 'Who?'], *([stage, f'{stage} at 40'] for stage in ('pretrain', 'mid', 'sft'))]]


# ---- how to do it again


def test_the_command_gives_the_settings_back(tmp_path, page):
    """Without the command in the log: all that is not a default of train.py, as arguments that mean the same."""
    defaults = report.train_defaults()
    assert defaults['learning_rate'] == 4e-3 and defaults['stage'] == 'pretrain' and defaults['compile'] is None
    config = {
        **defaults,
        'out_dir': 'out/a b',
        'batch_size': 3,
        'compile': False,
        'sample_prompts': "it's|<b>```",
        'seed': 5,
    }
    write_log(tmp_path / 'a', [], dict(config=config))
    text = section(page(tmp_path), 'How to do it again')
    line = re.search(r'^python train.py .*$', text, re.MULTILINE).group()
    assert dict(configure(dict(defaults), argv=shlex.split(line)[2:])) == config
    assert len(shlex.split(line)) == 2 + 5 and 'seed 5' in text


def test_the_command_of_the_log_is_shown_as_it_was_given(run_folder, page):
    log = run_folder / 'mid' / 'log.jsonl'
    first, rest = log.read_bytes().split(b'\n', 1)
    first = {**json.loads(first), 'command': ['config/a b.py', '--seed=7']}
    log.write_bytes(json.dumps(first).encode() + b'\n' + rest)
    text = section(page(run_folder), 'How to do it again')
    assert "python train.py 'config/a b.py' --seed=7\n# by which stage = 'mid', " in text


def save_checkpoint(path, parent):
    state = dict(
        model={'w': torch.zeros(3)}, model_config={}, tokenizer={}, stage='x', step=1, config={}, parent=parent
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
            stage: re.search(rf'^\*\*{stage}\*\*: (.*)$', text, re.M).group(1) for stage in ('pretrain', 'mid', 'sft')
        }

    assert said()['pretrain'] == 'seed 7, from scratch' and said()['sft'] == 'seed 7, no checkpoint yet'
    assert said()['mid'].endswith(f'(sha256 {parent["sha256"][:16]}…)')
    save_checkpoint(path, dict(path='elsewhere', sha256='0'))
    assert 'is another one by now' in said()['mid'] and 'not on this disk' in said()['pretrain']
    path.unlink()
    assert 'not on this disk any more' in said()['mid']
    (run_folder / 'mid' / 'ckpt.pt').write_bytes(b'half a checkpoint')
    assert 'cannot be read' in said()['mid']


def test_a_run_that_has_moved_finds_its_parents(run_folder, page):
    path = run_folder / 'pretrain' / 'ckpt.pt'
    save_checkpoint(path, None)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    save_checkpoint(run_folder / 'mid' / 'ckpt.pt', dict(path='out/gone/pretrain/ckpt.pt', sha256=digest))
    assert re.search(rf'^\*\*mid\*\*: .*\(sha256 {digest[:16]}…\)$', page(run_folder), re.M)


# ---- the program


def test_the_program_takes_one_folder(run_folder, run_program, oracle, monkeypatch, capsys):
    oracle('matplotlib')
    assert run_program('report.py', run_folder).stdout.strip() == str(run_folder / 'report.md')
    for arguments in ([], ['a', 'b'], ['--out_dir=x']):
        monkeypatch.setattr(sys, 'argv', ['report.py', *arguments])
        with pytest.raises(SystemExit, match='^expected one folder: python report.py out/tinyworld$'):
            report.main()
    monkeypatch.setattr(sys, 'argv', ['report.py', '--help'])
    report.main()
    assert 'python report.py out/tinyworld' in capsys.readouterr().out


# ---- two recipes compared


def write_runs(folder, name, values, steps=40, metric='val', **more):
    """Runs name1, name2, … with seeds of their own, which end at these values. Returns their folders."""
    folders = [folder / f'{name}{i}' for i in range(1, 1 + len(values))]
    for i, (run, value) in enumerate(zip(folders, values)):
        config = settings('pretrain', **{'out_dir': str(run), 'seed': i, **more})
        rows = [dict(step=step, seconds=step / 4, val=3.0, facts=0.1) for step in (0, steps)]
        rows.insert(1, dict(step=steps - 1, seconds=1.0, loss=2.0))
        rows[-1][metric] = value
        write_log(run, rows + [dict(step=steps, seconds=1.0, prompt='Who?', text='Me')], dict(config=config))
    return [str(run) for run in folders]


@pytest.fixture
def compared(monkeypatch, capsys):
    """compared(arguments, …) -> what the program prints."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['report.py', '--compare', *map(str, arguments)])
        report.main()
        return capsys.readouterr().out

    return run


def test_help_under_python_OO(monkeypatch, capsys):
    """There __doc__ is None."""
    monkeypatch.setattr(report, '__doc__', None)
    monkeypatch.setattr(sys, 'argv', ['report.py', '--help'])
    report.main()
    assert 'python report.py out/tinyworld' in capsys.readouterr().out


def test_t_quantiles_are_those_of_the_tables():
    """The 97.5 % column of any table of Student's t."""
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
    table |= {18: 2.101, 19: 2.093, 30: 2.042, 60: 2.000, 120: 1.980, 100_000: 1.960}
    assert {freedom: round(report.t_quantile(freedom), 3) for freedom in table} == table
    assert round(report.t_quantile(4, 0.99), 3) == 4.604 and round(report.t_quantile(7, 0.9), 3) == 1.895


@pytest.mark.parametrize('freedom', [1, 2, 3, 4, 5, 10, 37])
@pytest.mark.parametrize('inside', [0.5, 0.95, 0.999])
def test_so_much_of_the_density_lies_within_a_t_quantile(freedom, inside):
    """Simpson's rule over the density."""
    t = np.linspace(0, report.t_quantile(freedom, inside), 200_001)
    peak = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    density = peak * (1 + t * t / freedom) ** (-(freedom + 1) / 2)
    weights = np.where(np.arange(len(t)) % 2, 4, 2)
    weights[[0, -1]] = 1
    assert 2 * (weights @ density) * t[1] / 3 == pytest.approx(inside, abs=1e-9)


def test_the_interval_of_student_s_own_example():
    """Hours of sleep gained (Student, 1908); the interval is that of R's t.test(extra ~ group, var.equal = TRUE)."""
    a = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    b = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    assert report.interval(a, b) == pytest.approx((-0.203874, 3.363874), abs=1e-6)


@pytest.mark.parametrize('sizes', [(3, 3), (2, 2), (2, 5)])
def test_of_equal_recipes_one_in_twenty_is_called_better_or_worse(sizes):
    draws = np.random.default_rng(0).normal(1.5, 0.01, (10_000, sum(sizes))).tolist()
    verdicts = [report.verdict(*report.interval(row[: sizes[0]], row[sizes[0] :]), True) for row in draws]
    better, worse = (verdicts.count(word) / len(draws) for word in ('better', 'worse'))
    assert 0.04 <= better + worse <= 0.06 and 0.02 <= better <= 0.03
    assert set(verdicts) == {'better', 'worse', 'not shown'}


def test_the_interval_holds_the_true_difference_nineteen_times_in_twenty():
    draws = np.random.default_rng(1).normal([0] * 3 + [0.7] * 4, 1.0, (10_000, 7)).tolist()
    held = [low <= 0.7 <= high for low, high in (report.interval(row[:3], row[3:]) for row in draws)]
    assert 0.94 <= sum(held) / len(held) <= 0.96


def test_the_settings_tell_the_recipes_apart_in_any_order(tmp_path, compared):
    a = write_runs(tmp_path, 'x', [1.51, 1.50, 1.52], optimizer='adamw')
    b = write_runs(tmp_path, 'y', [1.44, 1.42, 1.43], optimizer='muon')
    text = compared(a[0], *b, *a)  # the recipe of the first run is a; a run named twice counts once
    assert text.startswith("val of the last evaluation, lower is better\n\na: optimizer = 'adamw'\n")
    assert "\nb: optimizer = 'muon'\n" in text and 'batch_size' not in text
    assert f'{a[1]} (seed 1, 40 steps): 1.5000\n' in text
    found = [as_numbers(line) for line in re.findall(r'n = .*', text)]
    assert found == [[3, 1.51, 0.01], [3, 1.43, 0.01]]
    half = 2.7764 * 0.01 * math.sqrt(2 / 3)
    said = as_numbers(re.search(r'b - a = (.*)\(', text).group(1))
    assert said == pytest.approx([-0.08, 95, -0.08 - half, -0.08 + half], abs=6e-5)
    assert text.endswith('\nb against a: better\n')
    assert compared(*b, *a).endswith('\nb against a: worse\n')
    assert compared(*a, *write_runs(tmp_path, 'z', [1.49, 1.5, 1.51])).endswith('\nb against a: not shown\n')


def test_patterns_that_the_shell_leaves_as_they_are(tmp_path, compared):
    a = write_runs(tmp_path, 'a', [1.51, 1.50], n_kv_head=4)
    b = write_runs(tmp_path, 'b', [1.51, 1.50], n_kv_head=2)
    assert compared(tmp_path / 'a*', tmp_path / 'b?') == compared(*a, *b)


def test_more_of_a_skill_is_better(tmp_path, compared):
    a = write_runs(tmp_path, 'a', [0.51, 0.50], metric='facts', dropout=0.0)
    b = write_runs(tmp_path, 'b', [0.71, 0.72], metric='facts', dropout=0.1)
    text = compared(*a, '--metric=facts', *b)
    assert text.startswith('facts of the last evaluation, higher is better\n') and text.endswith('a: better\n')
    with pytest.raises(SystemExit, match=r"a1: no metric 'fact', expected one of seconds, val, facts$"):
        compared('--metric=fact', *a, *b)


def test_recipes_of_the_same_settings_are_parted_by_hand(tmp_path, compared):
    a = write_runs(tmp_path, 'a', [1.51, 1.50, 1.52])
    b = write_runs(tmp_path, 'b', [1.44, 1.42, 1.43])
    assert compared(*a, '--against', *b).endswith('\nb against a: better\n')
    with pytest.raises(SystemExit, match=r'^expected 2 recipes, or --against .*, got 1: the same settings: .*b3$'):
        compared(*a, *b)


def test_more_than_the_seed_within_a_group_is_an_error_that_names_it(tmp_path, compared):
    a = write_runs(tmp_path, 'a', [1.51, 1.50], n_layer=4) + write_runs(tmp_path, 'odd', [1.5], n_layer=6)
    b = write_runs(tmp_path, 'b', [1.44, 1.42], n_layer=8)
    with pytest.raises(SystemExit, match=r'^expected one recipe .* got 2: n_layer = 4: .*a2; n_layer = 6: .*odd1$'):
        compared(*a, '--against', *b)
    with pytest.raises(SystemExit, match='^expected 2 recipe.*got 3: n_layer = 4: .*; n_layer = 6: .*; n_layer = 8: '):
        compared(*a, *b)
    twice = write_runs(tmp_path, 'twice', [1.44, 1.42], n_layer=8, seed=5)
    with pytest.raises(SystemExit, match=r'twice1 and .*twice2 are of one recipe, expected two seeds, got one$'):
        compared(*a[:2], *twice)


def test_one_seed_and_no_spread_say_nothing(tmp_path, compared):
    a = write_runs(tmp_path, 'a', [1.51, 1.50, 1.52], bias=True)
    for b in ([1.0], [1.0, 1.0]):
        a = a if len(b) == 1 else write_runs(tmp_path, 'same', [1.5, 1.5], bias=True)
        text = compared(*a, *write_runs(tmp_path, 'b', b, bias=False))
        assert 'nothing can be said' in text.splitlines()[-1] and 'better\n' not in text.split('\n', 1)[1]
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
    log.write_bytes(b''.join(line for line in log.read_bytes().split(cut)[:1])[:-1])  # a crash cut it there
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
    for arguments in ([], ['--against', *a], [*a, '--against'], [*a, '--metrics=x'], [*a, *['--against', *a] * 2]):
        with pytest.raises(SystemExit, match='^expected the runs of two recipes: python report.py --compare out/a'):
            compared(*arguments)
    with pytest.raises(SystemExit, match='gone: no run'):
        compared(*a, tmp_path / 'gone')
    assert report.APART <= set(report.train_defaults())


# ---- quickstart.sh

QUICKSTART = (ROOT / 'quickstart.sh').read_text(encoding='utf-8')
PROGRAMS = [
    line.strip() for line in QUICKSTART.split('# ---- Data')[1].splitlines() if line.strip().startswith('python ')
]
needs_bash = pytest.mark.skipif(os.name == 'nt' or not shutil.which('bash'), reason='quickstart.sh needs bash')


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
    """One that only prints ends where nobody reads, as in `bash quickstart.sh | head`, and the script with it."""
    (exam,) = [line for line in PROGRAMS if 'evaluate.py' in line]
    assert '--json=out/tinyworld/' in exam


@pytest.mark.parametrize('line', PROGRAMS)
def test_every_line_names_what_there_is(line, run_program):
    """Plain words only, so that PowerShell reads them as bash does; files that exist; settings that the program has."""
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
            configure(report.train_defaults(), argv=[str(ROOT / later(argument))])


@pytest.mark.parametrize('name', ['games', *report.ORDER])
def test_each_stage_goes_on_where_it_stopped_and_lands_where_the_report_looks(name):
    defaults = report.train_defaults()
    config: Settings = configure(defaults, argv=[str(ROOT / later(f'config/tinyworld_{name}.py'))])
    assert config['stage'] == (name if name in report.ORDER else 'pretrain')
    assert (config['auto_resume'], config['time_limit']) == (True, 0)
    assert config['out_dir'] == f'out/tinyworld/{name}'


def test_the_quickstart_asks_for_the_packages_of_pyproject():
    pyproject = (ROOT / 'pyproject.toml').read_text(encoding='utf-8')
    names = set(ast.literal_eval(re.search(r'^dependencies = (\[.*?^\])', pyproject, re.M | re.S).group(1)))
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
    """quickstart('active', 'unreachable', …) -> (exit status, calls of Python) in a clone where those things hold."""
    clone, bin_folder = tmp_path / 'a clone', tmp_path / 'bin'
    (clone / 'data' / 'tinyworld').mkdir(parents=True)
    bin_folder.mkdir()
    shutil.copy(ROOT / 'quickstart.sh', clone)
    (bin_folder / 'python').write_text(PYTHON, encoding='utf-8')
    (bin_folder / 'python').chmod(0o755)
    (bin_folder / 'nvidia-smi').write_text('#!/bin/bash\n[ -e "$(dirname "$0")/card" ]\n', encoding='utf-8')
    (bin_folder / 'nvidia-smi').chmod(0o755)

    def run(*facts):
        for fact in ('active', 'unreachable', 'installed', 'interrupt', 'fail', 'card'):
            (bin_folder / fact).unlink(missing_ok=True)
            if fact in facts:
                (bin_folder / fact).touch()
        (bin_folder / 'calls').write_text('', encoding='utf-8')
        environment = {**os.environ, 'PATH': f'{bin_folder}:/usr/bin:/bin'}
        command = ['bash', clone / 'quickstart.sh']
        heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # in the background of a script it is ignored
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, encoding='utf-8', preexec_fn=heard
        )
        return done.returncode, (bin_folder / 'calls').read_text(encoding='utf-8').splitlines()

    return run


STAGES = [line.removeprefix('python ') for line in PROGRAMS]
VENV = '-m venv .venv'
PIP = ['-m pip --version', '-m pip install --quiet .[report]']
CPU = (
    '-m pip install --quiet --retries 1 --timeout 15 --index-url https://download.pytorch.org/whl/cpu torch>=2.9,<2.14'
)


@needs_bash
def test_quickstart_from_nothing_and_again(quickstart):
    on_linux = sys.platform.startswith('linux')
    assert quickstart() == (0, [VENV, PIP[0], *[CPU] * on_linux, PIP[1], *STAGES])
    assert quickstart('installed') == (0, STAGES[1:])  # the second time .venv, packages and data are there


@needs_bash
@pytest.mark.parametrize('facts, expected', [
    (['installed', 'active'], STAGES),
    (['installed'], [VENV, *STAGES]),
    (['active', 'card'], [*PIP, *STAGES]),  # with an NVIDIA card the default build
    (['active', 'unreachable'], [PIP[0], *[CPU] * sys.platform.startswith('linux'), PIP[1], *STAGES]),
], ids=str)  # fmt: skip
def test_quickstart_installs_what_is_missing_where_it_belongs(quickstart, facts, expected):
    assert quickstart(*facts) == (0, expected)


@needs_bash
def test_quickstart_ends_where_a_stage_fails_or_ctrl_c_is_pressed(quickstart):
    """train.py leaves with status 0 after Ctrl-C: the next stage must not take a model that is half trained."""
    status, calls = quickstart('installed', 'active', 'fail')
    assert (status, calls[-1]) == (3, 'train.py config/tinyworld_dpo.py')
    status, calls = quickstart('installed', 'active', 'interrupt')
    assert (status, calls[-1]) == (130, 'train.py config/tinyworld_sft.py')


@needs_bash
def test_quickstart_is_whole_bash():
    subprocess.run(['bash', '-n', ROOT / 'quickstart.sh'], check=True)
