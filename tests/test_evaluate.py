"""
evaluate.py as a user runs it, over a tiny model that has learned its problems: the table, the
numbers, and what is wrong in one line.
"""

import json
import math
import runpy
import sys

import pytest
from known_answers import PROBLEMS, TOKENIZER, problem, tiny, trained_model

import checkpoint
import disk
import evaluate
import exam
import runtime
import tasks
from model import GPT
from shards import Writer
from tokenizer import CharTokenizer


@pytest.fixture(scope='module')
def trained():
    return trained_model()


@pytest.fixture(scope='module')
def run_folder(trained, tmp_path_factory):
    """A checkpoint, problems of both splits, and a data folder with its tokenizer."""
    folder = tmp_path_factory.mktemp('run')
    state = dict(
        model=trained.state_dict(), model_config=vars(trained.config),
        tokenizer=TOKENIZER.to_dict(), stage='sft',
        step=7, config={'dataset': 'no_such_data'},
    )  # fmt: skip
    checkpoint.save(folder / 'ckpt.pt', state)
    plain = CharTokenizer('ab')
    small = tiny().config
    small.vocab_size = plain.vocab_size
    checkpoint.save(folder / 'plain.pt', {
        **state, 'model': GPT(small).state_dict(), 'model_config': vars(small),
        'tokenizer': plain.to_dict(),
    })  # fmt: skip
    lines = [
        json.dumps({**known, 'split': split}) for split in ('train', 'val') for known in PROBLEMS
    ]
    (folder / 'problems.jsonl').write_text('\n'.join(lines), encoding='utf-8')
    for name, tokenizer in dict(data=TOKENIZER, plain=plain).items():
        with Writer(folder / name, tokenizer) as out:
            for split in ('train', 'val'):
                out.write(split, tokenizer.encode('ab' * 300), 600)
    return folder


@pytest.fixture
def given(run_folder):
    """given('--a=b') -> (the program's arguments for this checkpoint, path of its numbers)."""

    def arguments(*more):
        path = run_folder / 'numbers.json'
        for file in [path, *run_folder.glob('answers*')]:
            file.unlink(missing_ok=True)
        of_run = [
            f'--out_dir={run_folder}',
            f'--problems={run_folder / "problems.jsonl"}',
            f'--json={path}',
        ]
        return [*of_run, *more], path

    return arguments


@pytest.fixture
def table(given, monkeypatch, capsys):
    """
    table('--a=b') -> (stdout, numbers of --json).

    Runs in this process: a short program spends most of its time on imports.
    """

    def run(*args):
        arguments, path = given(*args)
        # These would change the process for other tests
        monkeypatch.setattr(runtime, 'set_up', lambda *args, **more: None)
        monkeypatch.setattr(runtime, 'explain_out_of_memory', lambda *args: None)
        monkeypatch.setattr('sys.argv', ['evaluate.py', *arguments])
        capsys.readouterr()
        runpy.run_path(evaluate.__file__, run_name='__main__')
        return capsys.readouterr().out, json.loads(path.read_text(encoding='utf-8'))

    return run


def test_the_table_of_a_checkpoint(table, run_folder):
    out, numbers = table(
        '--show=1', '--max_new_tokens=30', f'--data={run_folder / "data"}', '--batch_size=3'
    )
    found = numbers['skills'].items()
    assert {name: (s['problems'], s['accuracy'], s['ended']) for name, s in found} == {
        'facts': (3, 1, 1), 'spelling': (1, 1, 1), 'sums': (2, 1, 1), 'choice': (3, 1, None),
    }  # fmt: skip
    assert numbers['mean'] == 1 and numbers['step'] == 7
    assert numbers['perplexity'] == pytest.approx(math.exp(numbers['val']))
    assert numbers['bits_per_byte'] > 0
    rows = [row.split() for row in out.splitlines()]
    assert ['facts', '3', '100.0%', '0.0%', '100.0%'] in rows
    assert ['choice', '3', '100.0%', '0.0%', '-'] in rows
    for text in (
        'user: Who is Anna?',
        'assistant: Anna is the baker.\n-> 1',
        'It is <<12*7=84>>84.',
        '- white=B',
    ):
        assert text in out
    assert 'Who is Ben?' not in out  # one of each skill is shown


def test_the_text_of_a_problem_moves_no_cursor(table, tmp_path):
    messages = [{'role': 'user', 'content': 'Who is \x1b[2JAnna?'}]
    wild = {**PROBLEMS[0], 'split': 'val', 'skill': 'wild\x07', 'messages': messages}
    (tmp_path / 'problems.jsonl').write_text(json.dumps(wild), encoding='utf-8')
    out, numbers = table(
        f'--problems={tmp_path / "problems.jsonl"}', '--show=1', '--max_new_tokens=5'
    )
    assert 'user: Who is [2JAnna?' in out and not set('\x1b\x07') & set(out)
    assert list(numbers['skills']) == ['wild\x07']


def test_an_answer_of_0_is_shown_too():
    for answer, shown in (
        (0, ' (the answer: 0)'),
        ('Anna', ' (the answer: Anna)'),
        (None, ''),
        ('', ''),
    ):
        problem = dict(
            skill='sums', messages=[dict(role='user', content='What is 3 - 3?')], answer=answer
        )
        text = evaluate.verbatim(exam.Attempt(problem, ['It is 0.'], [1.0], [True]))
        assert text.endswith(f'-> 1{shown}\n')


def test_limit_1_works_on_every_task(given, run_program, run_folder):
    arguments, path = given('--limit=1', '--max_new_tokens=30')
    run_program('evaluate.py', *arguments, cwd=run_folder)
    assert {
        name: (score['problems'], score['accuracy'])
        for name, score in json.loads(path.read_text(encoding='utf-8'))['skills'].items()
    } == {name: (1, 1) for name in ('facts', 'spelling', 'sums', 'choice')}


@pytest.mark.parametrize('sampled', [[], ['--num_samples=2', '--temperature=1.5']])
def test_a_killed_evaluation_continues(table, run_folder, tmp_path, monkeypatch, sampled):
    more = [*sampled, f'--answers={tmp_path / "a.jsonl"}', '--max_new_tokens=20', '--batch_size=2']
    more.append('--dtype=float64')
    _, undisturbed = table(*more)
    whole = (tmp_path / 'a.jsonl').read_bytes()
    (tmp_path / 'a.jsonl').unlink()
    append = disk.append_line
    lines = []

    def killed(path, row):
        if len(lines) == 4:
            raise KeyboardInterrupt
        lines.append(row)
        append(path, row)

    with monkeypatch.context() as patch:
        patch.setattr(disk, 'append_line', killed)
        with pytest.raises(SystemExit, match='^130$'):
            table(*more)
    out, continued = table(*more)
    assert 'a.jsonl: has 4 of 9 answers' in out
    assert continued == undisturbed
    assert (tmp_path / 'a.jsonl').read_bytes() == whole


def test_scores_are_appended_for_the_report(table, run_folder):
    path = run_folder / 'scores.jsonl'
    path.unlink(missing_ok=True)
    expected = [table('--limit=1')[1], table('--limit=2', '--skills=facts')[1]]
    assert disk.read_lines(path) == expected
    assert [row['skills']['facts']['problems'] for row in expected] == [1, 2]


def test_a_question_beyond_the_context_counts_as_wrong(table, tmp_path):
    long = problem('facts', 'who ' * 100, 'exact', 'me')
    path = tmp_path / 'problems.jsonl'
    rows = [PROBLEMS[0], long, {**PROBLEMS[6], 'skill': 'facts'}]
    path.write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    out, numbers = table(f'--problems={path}', '--max_new_tokens=30')
    assert numbers['skills']['facts']['accuracy'] == pytest.approx(2 / 3)
    assert 'facts: 1 of 3 problems are longer than the 96 tokens' in out


def test_a_skill_that_cannot_be_graded_here_is_reported(table, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks.sandbox, 'why_unavailable', lambda: 'no sand')
    path = tmp_path / 'problems.jsonl'
    code = dict(entry_point='f', calls=[[[], 1]])
    rows = [problem('humaneval', 'def f():', 'code', 'pass', **code), PROBLEMS[0]]
    path.write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    out, numbers = table(f'--problems={path}', '--max_new_tokens=30')
    assert list(numbers['skills']) == ['facts'] and numbers['mean'] == 1
    assert 'no sand' in numbers['not_run']['humaneval']
    assert 'humaneval            not run: the answers are programs' in out
    # alone: no score, no error
    out, numbers = table(f'--problems={path}', '--skills=humaneval')
    assert numbers['skills'] == {} and 'mean' not in numbers and 'not run: ' in out


@pytest.mark.slow
def test_two_ranks_print_the_table_of_one(table, given, run_program, run_folder):
    more = [
        '--num_samples=4',
        '--temperature=1.5',
        '--max_new_tokens=20',
        '--dtype=float64',
        '--batch_size=8',
    ]
    more.append(f'--data={run_folder / "data"}')
    out, alone = table(*more)
    arguments, path = given(*more)
    done = run_program('evaluate.py', *arguments, ranks=2, cwd=run_folder)
    shared = json.loads(path.read_text(encoding='utf-8'))
    assert out == done.stdout and 'pass@4' in out
    assert list(alone['skills']) == list(shared['skills'])
    for name, score in alone['skills'].items():
        assert shared['skills'][name].pop('passed') == pytest.approx(score.pop('passed'), abs=1e-12)
        assert shared['skills'][name] == pytest.approx(score, abs=1e-12)
        assert 0 <= score['accuracy'] <= 1
    assert shared['val'] == pytest.approx(alone['val'], abs=1e-10)


def test_wrong_settings_are_named(table, run_folder):
    for more, said in [
        (['--out_dir=none'], 'there is no checkpoint none/ckpt.pt'),
        (['--skills=facts,fact'], "no skill 'fact'"),
        (['--split=test'], "no problems in its split 'test'"),
        (['--num_samples=4'], 'num_samples is 4 at temperature 0'),
        (['--limit=-1'], 'limit is -1, expected at least'),
        ([f'--answers={run_folder / "problems.jsonl"}'], 'was not written by evaluate.py'),
        (['--problems=acr'], "problems is 'acr', expected a .jsonl file"),
        # before the model is loaded
        (['--out_dir=none', '--answers=no/such/x.jsonl'], 'no/such/x.jsonl cannot be written'),
        (['--out_dir=none', '--seed=-1'], 'seed is -1, expected at least 0'),
        (['--out_dir=none', '--json=no/such/x.json'], 'no/such/x.json cannot be written'),
        ([f'--out_dir={run_folder / "plain.pt"}'], '<|user_start|>'),
        (
            [f'--data={run_folder / "plain"}'],
            f'another tokenizer than {(run_folder / "ckpt.pt").as_posix()}; prepare',
        ),
    ]:  # fmt: skip
        with pytest.raises(SystemExit) as error:
            table(*more)
        assert said in str(error.value).replace('\\', '/') and '\n' not in str(error.value)


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems have Unicode file names')
def test_the_numbers_are_written_whatever_the_folder_is_called(
    table, run_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'out' / 'caf\udce9'  # a byte of Latin-1
    folder.mkdir(parents=True)
    (folder / 'ckpt.pt').write_bytes((run_folder / 'ckpt.pt').read_bytes())
    _, numbers = table('--out_dir=', '--limit=1', '--max_new_tokens=1')  # the newest
    assert numbers['checkpoint'] == 'out/caf\ufffd/ckpt.pt'


def test_a_model_that_cannot_chat_still_has_its_loss(table, run_folder):
    out, numbers = table(
        f'--out_dir={run_folder / "plain.pt"}', '--problems=', f'--data={run_folder / "plain"}'
    )
    assert numbers['skills'] == {} and numbers['val'] > 0
    assert 'val ' in out and 'skill' not in out.replace(str(run_folder), '')


def test_problems_of_several_sets(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, '__file__', str(tmp_path / 'evaluate.py'))
    data = tmp_path / 'data'
    for name in ('arc', 'mmlu', 'spelling/small'):
        (data / name).mkdir(parents=True)
        (data / name / 'prepare.py').write_text('', encoding='utf-8')
    for name in ('arc', 'spelling/small'):
        (data / name / 'problems.jsonl').write_text('', encoding='utf-8')
    files = [data / 'arc/problems.jsonl', data / 'spelling/small/problems.jsonl']
    assert evaluate.find_problems('') == ([], {})
    assert evaluate.find_problems('arc, spelling/small,arc') == (files, {})
    found, missing = evaluate.find_problems(f'mmlu,{files[1]}')
    assert found == files[1:]
    assert missing == {'mmlu': 'no problems.jsonl yet; run: python data/mmlu/prepare.py'}
    with pytest.raises(SystemExit, match='^mmlu: no problems.jsonl yet; run: python data/mmlu/'):
        evaluate.find_problems('mmlu')
    with pytest.raises(SystemExit, match="problems is 'acr', expected a .jsonl file, or a set of"):
        evaluate.find_problems('arc,acr')


def test_problems_are_found_beside_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, '__file__', str(tmp_path / 'evaluate.py'))
    data = tmp_path / 'data'
    for name in ('tinyworld/sft', 'mine', 'bare'):
        (data / name).mkdir(parents=True)
    for name in ('tinyworld', 'mine'):
        (data / name / 'problems.jsonl').write_text('', encoding='utf-8')
    for dataset, name in {
        'tinyworld/sft': 'tinyworld', 'mine': 'mine', 'bare': 'tinyworld', '': 'tinyworld',
        'bare,mine:3': 'mine',
        str(data / 'mine'): 'mine',
    }.items():  # fmt: skip
        assert evaluate.problems_beside(dataset) == data / name / 'problems.jsonl'
