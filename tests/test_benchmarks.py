"""
The benchmarks from end to end: parquet files of the true form go through the prepare scripts and
evaluate.py. A tiny model has learned what to answer, so the scores are known by hand.
"""

import json
import re
import runpy

import pytest
import torch
from conftest import ROOT
from test_sets import HUMANEVAL, arc_row, ask, mmlu_row, sets  # noqa: F401  a fixture

import checkpoint
import evaluate
import exam
import runtime
import sandbox
import tasks
from conversation import SPECIAL, Chat
from model import GPT, PRESETS, GPTConfig
from tokenizer import train_bpe

# Rows of the hub's files, and the answers that the model learns
ARC_EASY = [
    (arc_row('Ice is?', 'A', 'cold', 'hot', 'red', 'new'), 'A'),
    (arc_row('Fire is?', '2', 'cold', 'hot', 'old', 'wet', labels=list('1234')), 'B'),
    (arc_row('Rain is?', 'C', 'dry', 'hot', 'wet'), 'A'),  # wrong
]
ARC_HARD = [
    (arc_row('Salt is?', 'D', 'wet', 'sweet', 'blue', 'white'), 'D'),
    (arc_row('Coal is?', 'B', 'wet', 'black', 'blue', 'white', 'new'), 'E'),  # wrong
]
MMLU = [
    (mmlu_row('Two plus two?', 3, '1234'), 'D'),
    (mmlu_row('One plus two?', 2, '1234'), 'A'),  # wrong
    (mmlu_row('Two plus none?', 1, '1234'), 'C'),  # wrong
]
GSM8K = [
    (
        'Tom has 900 and gets 100?',
        'So <<900+100=1000>>.\n#### 1,000',
        'He has $1,000.\n#### $1,000',
    ),
    ('Ann has 2 and owes 5?', 'So <<2-5=-3>>.\n#### -3', 'She owes 3.\n#### -3'),
    ('Half of ten?', 'It is 5.\n#### 5', 'It is 5.0'),
    ('Two and two?', 'It is 4.\n#### 4', '#### 4\nTwo and seven?\n#### 9'),
    ('Two and six?', 'It is 8.\n#### 8', 'It is eight.'),  # wrong: no number
]
TEST = 'def check(f):\n    assert f() in (1, 2)\n'
ONE = 'def one():\n    """ One. """\n'
TWO = 'def two():\n    """ Two. """\n'
CODE = [
    (('HumanEval/0', ONE, '    return 1\n', TEST, 'one'), 'def one():\n    return 1'),
    (('HumanEval/1', TWO, '    return 2\n', TEST, 'two'), 'def two():\n    return 3'),  # wrong
]
SCORES = {
    'arc_easy': (3, 2 / 3), 'arc_challenge': (2, 1 / 2), 'mmlu': (3, 1 / 3), 'gsm8k': (5, 4 / 5),
    'humaneval': (2, 1 / 2), 'spelling': (2, 0), 'counting': (2, 1 / 2),
}  # fmt: skip
FIVE = [(2 / 3 - 0.25) / 0.75, (1 / 2 - 0.25) / 0.75, (1 / 3 - 0.25) / 0.75, 4 / 5, 1 / 2]


def prepare_all(sets):  # noqa: F811
    """Write the files and run the scripts."""
    for subset, rows in (('ARC-Easy', ARC_EASY), ('ARC-Challenge', ARC_HARD)):
        for split in ('train', 'validation', 'test'):
            sets.put(f'arc/raw/{subset}/{split}', [row for row, _ in rows])
    for split in ('auxiliary_train', 'validation', 'test'):
        sets.put(f'mmlu/raw/{split}', [row for row, _ in MMLU])
    for split in ('train', 'test'):
        rows = [dict(question=question, answer=worked) for question, worked, _ in GSM8K]
        sets.put(f'gsm8k/raw/{split}', rows)
    sets.put('humaneval/raw/test', [dict(zip(HUMANEVAL, row)) for row, _ in CODE])
    words = sets.folder / 'words.txt'
    words.write_text(
        '\n'.join(a + b + 'xyz' for a in 'abcdef' for b in 'klmnopqr'), encoding='utf-8'
    )
    small = ('--spell=2', '--count=2', '--num_val=2', '--num_rl=0', f'--input={words}')
    for name, more in dict(arc=(), mmlu=(), gsm8k=(), humaneval=(), spelling=small).items():
        sets.prepare(name, *more)


def taught(problems):
    """(question, what the model learns to answer) for each problem."""
    said = {row['question']: letter for row, letter in [*ARC_EASY, *ARC_HARD, *MMLU]}
    said |= {question: answer for question, _, answer in GSM8K}
    said |= {row[1].partition('\n')[0]: answer for row, answer in CODE}
    counted = 0
    for problem in problems:
        question = problem['messages'][0]['content']
        if problem['skill'] == 'counting':  # the first is answered correctly
            counted += 1
            answer = str(problem['answer'] + counted - 1)
        else:
            answer = said.get(question.partition('\n')[0], 'none')
        yield question, answer


def train(rows):
    """A checkpoint's state: a model trained on these (question, answer) until it knows them."""
    tokenizer = train_bpe([json.dumps(rows) + ' ABCDE'], 400, SPECIAL)
    chat = Chat(tokenizer)
    torch.manual_seed(1)
    small = dict(n_layer=2, n_head=2, n_embd=48, block_size=128, vocab_size=tokenizer.vocab_size)
    model = GPT(GPTConfig(**{**PRESETS['qwen3'], **small, 'init_std': 0.2}))
    ids = [chat.render(ask(*row)) for row in rows]
    weights = [chat.is_spoken(row) for row in ids]
    longest = max(map(len, ids))
    x = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    w = torch.zeros(len(ids), longest - 1)
    for row, spoken in zip(w, weights):
        row[: len(spoken)] = torch.tensor(spoken)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(400):
        loss = (w * model(x[:, :-1], x[:, 1:])).sum() / w.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.005:
            break
    assert loss < 0.005
    return dict(
        model=model.state_dict(), model_config=vars(model.config), tokenizer=tokenizer.to_dict(),
        stage='sft', step=9, config={},
    )  # fmt: skip


@pytest.fixture
def run(monkeypatch, capsys):
    """run('--a=b') -> (stdout of evaluate.py, the numbers of --json). In this process."""

    def program(folder, *args):
        path = folder / 'numbers.json'
        monkeypatch.setattr(runtime, 'set_up', lambda *args, **more: None)
        monkeypatch.setattr(runtime, 'explain_out_of_memory', lambda *args: None)
        own = [f'--out_dir={folder}', f'--json={path}', '--max_new_tokens=40']
        monkeypatch.setattr('sys.argv', ['evaluate.py', *own, *args])
        capsys.readouterr()
        runpy.run_path(evaluate.__file__, run_name='__main__')
        return capsys.readouterr().out, json.loads(path.read_text(encoding='utf-8'))

    return program


def test_scores_are_those_computed_by_hand(sets, run, monkeypatch):  # noqa: F811
    prepare_all(sets)
    names = ('arc', 'mmlu', 'gsm8k', 'humaneval', 'spelling')
    files = [sets / name / 'problems.jsonl' for name in names]
    problems = tasks.load(files, 'val')
    folder = sets.folder / 'run'
    folder.mkdir()
    checkpoint.save(folder / 'ckpt.pt', train(list(taught(problems))))
    if sandbox.why_unavailable():  # a stand-in where programs cannot run
        monkeypatch.setattr(tasks, 'why_not_graded', lambda problems, allow: '')
        monkeypatch.setattr(tasks, 'code', lambda p, text, allow: float(p['answer'] in text + '\n'))

    def scores(*more):
        for file in folder.glob('answers*'):
            file.unlink()
        out, numbers = run(folder, f'--problems={",".join(map(str, files))}', *more)
        found = {
            name: (score['problems'], pytest.approx(score['accuracy']))
            for name, score in numbers['skills'].items()
        }
        return out, numbers, found

    # 1) All problems, whatever the batch size
    for size in (64, 3):
        out, numbers, found = scores('--limit=0', f'--batch_size={size}')
        assert found == SCORES
        assert numbers['ChatCORE without counting'] == pytest.approx(sum(FIVE) / 5, abs=1e-12)
        assert numbers['ChatCORE'] == pytest.approx((sum(FIVE) + 1 / 2) / 6, abs=1e-12)
    assert f'ChatCORE: {(sum(FIVE) + 1 / 2) / 6:.4f}\n' in out and 'also takes' not in out
    # two standard errors of 2 right of 3
    assert numbers['skills']['arc_easy']['error'] == pytest.approx(2 * (2 / 9 / 3) ** 0.5)

    # 2) One problem of each (trap 28)
    first = {name: [p for p in problems if p['skill'] == name][0] for name in SCORES}
    said = dict(taught(problems))
    _, _, found = scores('--limit=1')
    assert found == {
        name: (1, tasks.grade(problem, said[problem['messages'][0]['content']]))
        for name, problem in first.items()
    }

    # 3) Several answers to each problem, at a temperature that changes none
    _, numbers, _ = scores('--skills=humaneval', '--num_samples=3', '--temperature=0.01')
    assert numbers['skills']['humaneval']['passed'] == {'1': 0.5, '2': 0.5, '3': 0.5}

    # 4) Without one of them there is no ChatCORE, and a line says what it lacks
    out, numbers, _ = scores('--skills=arc_easy,arc_challenge,gsm8k,humaneval')
    assert not [name for name in numbers if name.startswith('ChatCORE')]
    assert 'ChatCORE also takes mmlu, counting: --problems=arc,mmlu,gsm8k,humaneval,spelling' in out


# ---- docs/benchmarks.md

PAGE = (ROOT / 'docs' / 'benchmarks.md').read_text(encoding='utf-8')


def blocks(language):
    return re.findall(rf'^```{language}\n(.*?)^```', PAGE, flags=re.MULTILINE | re.DOTALL)


def test_a_new_benchmark_as_the_page_shows_it(sets, run):  # noqa: F811
    """The page's script and its line of JSON, and a model that answers two of three correctly."""
    [script] = blocks('python')
    [line] = blocks('json')
    (sets / 'boolq').mkdir()
    (sets / 'boolq/prepare.py').write_text(script, encoding='utf-8')
    rows = [
        dict(passage='Snow is white.', question='is snow white', answer=True),
        dict(passage='Coal is black.', question='is coal white', answer=False),
        dict(passage='Coal is black.', question='is it', answer=None),
    ]
    sets.put('boolq/raw/validation', rows)
    shown = sets.prepare('boolq')
    assert '2 rows used for val, 1 left out (1: no answer)' in shown

    mine = sets.folder / 'mine.jsonl'
    mine.write_text(line, encoding='utf-8')
    files = [sets / 'boolq/problems.jsonl', mine]
    questions = [problem['messages'][0]['content'] for problem in tasks.load(files)]
    [snow] = [question for question in questions if 'is snow white?' in question]
    assert snow.startswith('Snow is white.\n\nis snow white?\n- no=A\n- yes=B\n')
    said = dict.fromkeys(questions, 'B') | {questions[2]: 'It is Paris.'}
    checkpoint.save(sets.folder / 'ckpt.pt', train(list(said.items())))
    _, numbers = run(sets.folder, f'--problems={files[0]},{files[1]}')
    found = {name: (score['problems'], score['accuracy'], score['baseline'])
             for name, score in numbers['skills'].items()}  # fmt: skip
    assert found == {'boolq': (2, 0.5, 0.5), 'capitals': (1, 1, 0)}


def test_published_numbers_of_the_page_agree_with_our_chatcore():
    """Their mean is computed here as evaluate.py computes it."""
    table = {
        cells[0].strip(): [cell.strip() for cell in cells[1:]]
        for cells in (row.strip('|').split('|') for row in PAGE.splitlines() if row.startswith('|'))
    }
    names = dict(
        arc_easy='ARC-Easy', arc_challenge='ARC-Challenge', mmlu='MMLU', gsm8k='GSM8K',
        humaneval='HumanEval',
    )  # fmt: skip
    for column in (1, 2):
        scores = {
            skill: exam.Score(1, float(table[name][column]), 0, 0, None)
            for skill, name in names.items()
        }
        [(name, mean)] = evaluate.chatcore(scores).items()
        assert name == 'ChatCORE without counting'
        assert f'{mean:.4f}'[1:] == table['ChatCORE, of these five'][column]
