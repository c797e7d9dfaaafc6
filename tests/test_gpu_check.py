"""dev/gpu_check.py: what it says of figures, errors and time; and all of it once on a CPU."""

import json

import gpu_check
import pytest
from conftest import one_line
from gpu_check import DRY, SECTIONS, Section, Session

import runtime

CPU = runtime.Machine('cpu', 'bfloat16', False, '', '')


@pytest.fixture
def lines(monkeypatch, tmp_path):
    """lines() -> what was appended to --out."""
    out = tmp_path / 'lines.jsonl'
    monkeypatch.setattr(gpu_check, 'out', str(out))
    monkeypatch.setattr(gpu_check, 'dry', True)
    yield lambda: [json.loads(line) for line in out.read_text(encoding='utf-8').splitlines()]
    runtime.undo_changes()


@pytest.fixture
def run(monkeypatch, lines):
    """run(a=f, b=g) -> (exit status, lines) of a program that has these sections."""

    def start(**checks):
        sections = {name: Section(check, 10) for name, check in checks.items()}
        monkeypatch.setattr(gpu_check, 'SECTIONS', sections)
        return gpu_check.main(), lines()

    return start


def report(**figures):
    return lambda session: session.report('one', figures)


def test_a_figure_outside_its_range_is_named(run, monkeypatch):
    monkeypatch.setattr(gpu_check, 'MUST', {'fact one': dict(x=(0, 1), y=(0, 1))})
    status, (line, end) = run(fact=report(x=2.00004, y=1, z=5))
    assert (line['x'], line['y'], line['z'], line['off']) == (2.0, 1, 5, ['x'])
    assert line['expected'] == {'x': [0, 1], 'y': [0, 1]}
    assert (status, end['off'], end['failed']) == (1, ['fact one: x'], [])
    status, _ = run(fact=report(x=float('nan'), y=1))
    assert status == 1
    status, _ = run(fact=report(x=1, y=0))
    assert status == 0


def test_a_slow_card_is_reported_and_no_error(lines, monkeypatch):
    monkeypatch.setattr(gpu_check, 'COMPUTED', {'speed one': dict(ms=(1, 2))})
    session = Session(CPU, DRY)
    session.expected.append(gpu_check.COMPUTED)
    session.section = 'speed'
    session.report('one', dict(ms=3))
    assert session.off == ['speed one: ms'] and not session.wrong
    assert lines()[0]['off'] == ['ms']


def test_after_an_error_the_other_sections_run(run):
    def fails(session):
        raise RuntimeError('no kernel\x1b[2J')

    status, (first, error, last, end) = run(a=report(x=1), b=fails, c=report(x=2))
    assert (first['x'], last['x'], status, end['failed']) == (1, 2, 1, ['b'])
    assert error['error'] == 'RuntimeError' and error['text'] == 'no kernel[2J'
    assert error['where'][-1].startswith('tests/test_gpu_check.py:')


def test_a_section_that_would_end_too_late_is_skipped(run, monkeypatch):
    monkeypatch.setattr(gpu_check, 'time_limit', 9.0)
    status, (skipped, end) = run(a=report(x=1))
    assert ' s are left, it takes about 10' in skipped['skipped'] and skipped['section'] == 'a'
    assert (status, end['failed']) == (0, [])


def test_wrong_settings_and_a_missing_card_are_named(monkeypatch, lines):
    with pytest.raises(SystemExit) as stop:
        monkeypatch.setattr(gpu_check, 'what', 'parity,speed')
        gpu_check.main()
    one_line(stop, "what has 'speed'", 'attention, parity')
    monkeypatch.setattr(gpu_check, 'what', 'all')
    monkeypatch.setattr(gpu_check, 'dry', False)
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    with pytest.raises(SystemExit) as stop:
        gpu_check.main()
    one_line(stop, 'no CUDA card', '--dry=True')


def test_every_expectation_is_of_a_section():
    for table in (gpu_check.MUST, gpu_check.COMPUTED):
        assert {case.split()[0] for case in table} <= set(SECTIONS)
    assert sum(section.seconds for section in SECTIONS.values()) < 300


@pytest.mark.slow
def test_the_whole_program_on_a_cpu(run_program, tmp_path):
    out = tmp_path / 'new' / 'lines.jsonl'
    args = ('--dry=True', f'--out={out}', '--time_limit=3600')
    done = run_program('dev/gpu_check.py', *args, timeout=3600)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.stdout == out.read_text(encoding='utf-8')
    assert {line['section'] for line in lines} == {*SECTIONS, 'end'}
    assert lines[-1]['failed'] == lines[-1]['off'] == []
    # every fact that must hold was looked at
    cases = {f'{line["section"]} {line.get("case")}' for line in lines if 'expected' in line}
    assert cases == set(gpu_check.MUST)
