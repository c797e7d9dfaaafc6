"""runlog.py: what a log holds, also after a crash, a full disk and a resume."""

import errno
import io
import json
import os
import sys

import pytest
from conftest import one_line

import runlog


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'ckpt.pt'


def test_a_new_log_holds_the_facts(path):
    log = path.with_name('log.jsonl')
    log.write_text('{"step": 1}\n', encoding='utf-8')
    facts = {'config': {'out_dir': 'ö ä', 'compile': None}, 'machine': {}}
    runlog.start_log(log, facts, None)
    line = '{"config": {"out_dir": "ö ä", "compile": null}, "machine": {}}\n'
    assert log.read_text(encoding='utf-8') == line
    assert runlog.read_log(log) == [facts]


ROWS = [
    {'config': {'a': 1}},
    {'step': 0, 'val': 4.0},
    {'step': 0, 'loss': 4.0},
    {'step': 5, 'loss': 3.0},
    {'step': 5, 'prompt': 'Ä', 'text': 'line\u2028or\u0085two\x0b\r\n"你好🌍"'},
    {'step': 10, 'val': 2.0},
    {'step': 10, 'loss': 2.0},
]
LINES = [json.dumps(row, ensure_ascii=False).encode() + b'\n' for row in ROWS]


@pytest.mark.parametrize('step', [0, 1, 5, 6, 10, 11, 100])
def test_on_resume_the_lines_from_there_on_are_dropped(path, step):
    log = path.with_name('log.jsonl')
    log.write_bytes(b''.join(LINES))
    runlog.start_log(log, {'other': 2}, step)
    kept = [line for row, line in zip(ROWS, LINES) if row.get('step', -1) < step]
    assert log.read_bytes() == b''.join(kept)
    assert runlog.read_log(log) == [json.loads(line) for line in kept]


def test_a_last_line_cut_anywhere_is_no_line(path):
    """A crash may cut inside a character: 你 has three bytes."""
    log = path.with_name('log.jsonl')
    for cut in range(len(LINES[4]) - 1):
        log.write_bytes(b''.join(LINES[:4]) + LINES[4][:cut])
        assert runlog.read_log(log) == ROWS[:4]
    runlog.start_log(log, {}, 5)
    assert log.read_bytes() == b''.join(LINES[:3])


def test_a_missing_log_starts_anew_on_resume(path):
    log = path.with_name('log.jsonl')
    assert runlog.read_log(log) == []
    assert not runlog.was_measured(log, 0, num_samples=0)
    runlog.start_log(log, {'config': {'a': 1}}, 20)
    assert runlog.read_log(log) == [{'config': {'a': 1}}]


class HalfWritten(io.FileIO):
    """A file on a disk that is full after half a line."""

    def write(self, data):
        super().write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_line_that_the_disk_does_not_take_costs_no_other(path, monkeypatch, capsys):
    log = path.with_name('log.jsonl')
    for row in ROWS[:3]:
        runlog.append_log(log, row)
    assert log.read_bytes() == b''.join(LINES[:3])
    with monkeypatch.context() as patch:
        patch.setattr(runlog, 'open', HalfWritten, raising=False)
        runlog.append_log(log, {'step': 5, 'loss': 1.0})
    said = capsys.readouterr().out
    assert said.count('\n') == 1 and str(log) in said and 'the run goes on' in said
    for row in ROWS[3:]:
        runlog.append_log(log, row)
    assert log.read_bytes() == b''.join(LINES)


def test_was_measured_asks_for_an_evaluation_of_that_step_and_its_samples(path):
    log = path.with_name('log.jsonl')
    log.write_bytes(b''.join(LINES))
    assert [step for step in range(20) if runlog.was_measured(log, step, 0)] == [0, 10]
    assert not runlog.was_measured(log, 10, 2)
    for prompt in 'ab':
        assert not runlog.was_measured(log, 10, 2)
        runlog.append_log(log, {'step': 10, 'prompt': prompt, 'text': ''})
    assert runlog.was_measured(log, 10, 2) and not runlog.was_measured(log, 0, 2)


def test_an_evaluation_may_lack_a_validation_loss(path):
    """As in rl on prompts."""
    log = path.with_name('log.jsonl')
    rows = [{'step': 0, 'reward': 0.5, 'evaluation_seconds': 0.1}, {'step': 0, 'loss': 1.0}]
    for row in rows:
        runlog.append_log(log, row)
    assert runlog.was_measured(log, 0, num_samples=0)
    stage = runlog.read_stage(log.parent)
    assert (stage.evaluations, stage.training) == (rows[:1], rows[1:])


def test_a_log_with_half_an_emoji_can_be_written_again(tmp_path):
    log = tmp_path / 'log.jsonl'
    log.write_text('{"config": {"a": "\\ud83d"}}\n{"step": 1}\n{"step": 2}\n', encoding='utf-8')
    runlog.start_log(log, {}, 2)
    assert runlog.read_log(log) == [{'config': {'a': '\ufffd'}}, {'step': 1}]


# ---- the tokenizer alone


def test_wandb_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(SystemExit) as stop:
        runlog.RunLog(tmp_path / 'log.jsonl', True).start_wandb('project', 'name', {})
    one_line(stop, 'wandb_log', 'pip install wandb')


@pytest.mark.parametrize('seconds, text', [
    (3725, '1:02:05'), (0, '00:00'), (59.6, '01:00'), (65, '01:05'), (-3, '00:00'),
    (36000, '10:00:00'),
    (90061, '1 day, 1:01:01'), (float('nan'), '00:00'),
])  # fmt: skip
def test_clock(seconds, text):
    assert runlog.duration(seconds) == text
