"""
The post-training sets: small parquet files of the true format, with every oddity of the real ones,
become the rows that are spelled out here; and every stage trains on them.
"""

import json
import runpy
import shutil
import stat
import sys
import zipfile
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT, one_line
from test_download import hub, pauses, server  # noqa: F401  fixtures
from test_train import Died, assert_same_bits, at_step, die, learned, running, trained

import shards
import tasks
from conversation import SPECIAL, Chat
from tokenizer import BPETokenizer

NAMES = ('smoltalk', 'mmlu', 'arc', 'gsm8k', 'humaneval', 'spelling', 'identity', 'core')
TOKENIZER = BPETokenizer(r'.|\n', [], {name: 256 + i for i, name in enumerate(SPECIAL)})
CHAT = Chat(TOKENIZER)


class Sets:
    """A folder with copies of the scripts, which run in this process."""

    def __init__(self, folder, capture):
        self.folder = folder
        self.capture = capture
        for name in NAMES:
            (folder / 'data' / name).mkdir(parents=True)
            shutil.copy(ROOT / f'data/{name}/prepare.py', folder / f'data/{name}/prepare.py')
        self.tokenizer = folder / 'tok.json'
        TOKENIZER.save(self.tokenizer)

    def __truediv__(self, path):
        return self.folder / 'data' / path

    def put(self, path, rows, schema=None):
        """Write rows as <path>/0.parquet, where the script looks for files put there by hand."""
        import pyarrow
        from pyarrow import parquet

        file = self / path / '0.parquet'
        file.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema), file)
        return file

    def prepare(self, name, *args):
        """Run a script. Returns what it printed."""
        if name not in ('humaneval', 'core', 'boolq'):
            args = (f'--tokenizer={self.tokenizer}', *args)
        self.capture.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            script = str(self / name / 'prepare.py')
            patch.setattr(sys, 'path', list(sys.path))
            patch.setattr(sys, 'argv', [script, *map(str, args)])
            patch.setenv('HTTPS_PROXY', 'http://127.0.0.1:9')
            runpy.run_path(script, run_name='__main__')
        return self.capture.readouterr().out

    def refuses(self, name, *words, args=()):
        with pytest.raises(SystemExit) as stop:
            self.prepare(name, *args)
        one_line(stop, *words)
        assert not [*(self / name).rglob('*.part'), *(self / name).glob('*.bin')]

    def holds(self, path, split, *conversations):
        """The split is exactly these conversations."""
        ids = np.fromfile(self / path / f'{split}.bin', dtype='<u2')
        expected = [i for messages in conversations for i in CHAT.render(messages)]
        assert TOKENIZER.decode(ids.tolist()) == TOKENIZER.decode(expected)
        assert ids.tolist() == expected

    def problems(self, path, split):
        """{the question's text: the problem} of a split; tasks.load accepts all of them."""
        found = tasks.load(self / path / 'problems.jsonl', split)
        return {problem['messages'][0]['content']: problem for problem in found}


@pytest.fixture
def sets(oracle, tmp_path, capsys):
    oracle('pyarrow')
    return Sets(tmp_path, capsys)


def ask(question, answer):
    return [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]


def parts(*texts):
    """'a', ('1+1', '2'), 'b': text, a call with its output, text."""
    found = []
    for text in texts:
        kinds = ('text',) if isinstance(text, str) else ('python', 'output')
        for kind, inner in zip(kinds, [text] if isinstance(text, str) else text):
            found.append({'type': kind, 'text': inner})
    return found


# -----------------------------------------------------------------------------
# GSM8K

# (worked answer, parts of the conversation, the problem's answer)
WORKED = [
    (
        '48/2 = <<48/2=24>>24 clips.\n#### 24',
        ('48/2 = ', ('48/2', '24'), '24 clips.\n#### 24'),
        '24',
    ),
    ('Much.\n#### 1,080,000', ('Much.\n#### 1,080,000',), '1080000'),
    ('<<5*3>>15\n#### 15', (('5*3', '15'), '15\n#### 15'), '15'),  # without =
    ('<<.5*10=5.00>>5\n#### 5', (('.5*10', '5'), '5\n#### 5'), '5'),
    ('<<10*.25=2.5>>.\n#### 2.5', (('10*.25', '2.5'), '.\n#### 2.5'), '2.5'),
    ('3 × 4 = <<3×4=12>>12\n#### 12', ('3 × 4 = ', ('3*4', '12'), '12\n#### 12'), '12'),
    ('<<6÷2−4=−1>>\n#### −1', (('6/2-4', '-1'), '\n#### −1'), '-1'),
    ('<<$1,500*2=$3,000>>\n#### $3,000', (('1,500*2', '3000'), '\n#### $3,000'), '3000'),
    ('<<10/3=3.33>>3.33\n#### 3', (('10/3', '3.333333333'), '3.33\n#### 3'), '3'),
    # not our calculator's arithmetic, or another result: the text around it stays
    ('x = <<2x=10>>10\n#### 10', ('x = 10\n#### 10',), '10'),
    ('<<20%*5=1>>1\n#### 1', ('1\n#### 1',), '1'),
    ('<<2+2=5>>5\n#### 5', ('5\n#### 5',), '5'),
    ('<<10/3=3>>3\n#### 3', ('3\n#### 3',), '3'),
    ('<<1/0>>0\n#### 0', ('0\n#### 0',), '0'),
    ('<<3+1=2*2=4>>4\n#### 4', ('4\n#### 4',), '4'),
]
LEFT_OUT = [
    'No mark 5',
    'Half\n#### 1/2',
    'None\n####',
    'x\n#### 10,80',
    '<<1+1=2\n#### 2',
    'a\n#### 7\n#### 8',
    '',
]


def gsm8k(sets):
    rows = [
        {'question': f'Q{i}?', 'answer': answer}
        for i, answer in enumerate([*LEFT_OUT, *(worked for worked, _, _ in WORKED)])
    ]
    sets.put('gsm8k/raw/train', [{'question': None, 'answer': '#### 1'}, *rows])
    sets.put('gsm8k/raw/test', [{'question': 'Last?', 'answer': 'So <<1+1=2>>2.\n#### 2'}])


def test_gsm8k(sets):
    convert = runpy.run_path(str(ROOT / 'data/gsm8k/prepare.py'))['convert']
    for worked, expected, answer in WORKED:  # as parts: texts are encoded one by one
        item = convert({'question': 'Q?', 'answer': worked}, Counter())
        assert item.messages == ask('Q?', parts(*expected)) and item.problem['answer'] == answer

    gsm8k(sets)
    shown = sets.prepare('gsm8k')
    first = len(LEFT_OUT)
    numbered = list(enumerate(WORKED, start=first))
    sets.holds('gsm8k', 'train', *(ask(f'Q{i}?', parts(*row[1])) for i, row in numbered))
    sets.holds('gsm8k', 'val', ask('Last?', parts('So ', ('1+1', '2'), '2.\n#### 2')))
    problems = sets.problems('gsm8k', 'train')
    assert {q: p['answer'] for q, p in problems.items()} == {f'Q{i}?': r[2] for i, r in numbered}
    for i, (worked, _, answer) in numbered:  # the grader reads every answer as we do
        assert tasks.grade(problems[f'Q{i}?'], worked) == 1
        assert tasks.grade(problems[f'Q{i}?'], f'#### {answer}9') == 0
    assert list(sets.problems('gsm8k', 'val')) == ['Last?']
    assert '15 rows used for train, 8 left out' in shown
    for reason in (
        '4: no number after ####',
        '1: << without >>',
        '1: more than one ####',
        '1: no answer',
        '1: no question',
    ):
        assert reason in shown
    assert '1 calls without a result, computed' in shown
    assert '4 calls removed that the calculator cannot run' in shown
    assert '2 calls removed whose result the calculator contradicts' in shown
    meta = json.loads((sets / 'gsm8k/meta.json').read_text(encoding='utf-8'))
    assert meta['kind'] == 'conversations'


# -----------------------------------------------------------------------------
# multiple choice

SNOW = 'What colour is snow?\n- white=A\n- red=B\n\nAnswer with the letter only.'


def arc_row(question, key, *choices, labels=None):
    labels = labels or list('ABCDE'[: len(choices)])
    return {
        'id': question, 'question': question, 'answerKey': key,
        'choices': {'text': list(choices), 'label': labels},
    }  # fmt: skip


def arc(sets):
    train = [
        arc_row('Three?', 'C', 'a', 'b', 'c'),
        arc_row('Five?', 'E', 'a', 'b', 'c', 'd', 'e'),
        arc_row('Digits?', '4', 'a', 'b', 'c', 'd', labels=list('1234')),
        arc_row('Disorder?', 'B', 'a', 'b', labels=['B', 'A']),
        # not to be guessed
        arc_row('Mixed?', '2', 'a', 'b'),
        arc_row('Twice?', 'A', 'a', 'b', labels=['A', 'A']),
        arc_row('Short?', 'A', 'a', 'b', labels=['A']),
        arc_row('One?', 'A', 'a'),
        arc_row('Null?', 'A', 'a', None),
        arc_row('No key?', None, 'a', 'b'),
        {'id': 'x', 'question': 'No choices?', 'answerKey': 'A', 'choices': None},
    ]
    for subset, rows in (
        ('ARC-Easy', train),
        ('ARC-Challenge', [arc_row('Hard?', '1', 'x', 'y', labels=['1', '2'])]),
    ):
        sets.put(f'arc/raw/{subset}/train', rows)
        sets.put(f'arc/raw/{subset}/validation', [arc_row('Val?', 'A', 'x', 'y')])
        sets.put(f'arc/raw/{subset}/test', [arc_row(f'{subset}?', 'B', 'x', 'y')])


def chosen(question, choices, letter):
    return ask(tasks.render_choice(question, choices), letter)


def test_arc(sets):
    arc(sets)
    shown = sets.prepare('arc')
    expected = [
        chosen('Three?', 'abc', 'C'), chosen('Five?', 'abcde', 'E'), chosen('Digits?', 'abcd', 'D'),
        chosen('Disorder?', 'ab', 'A'), chosen('Hard?', 'xy', 'A'),
    ]  # fmt: skip
    sets.holds('arc', 'train', *expected)
    sets.holds('arc', 'val', *[chosen('Val?', 'xy', 'A')] * 2)
    problems = sets.problems('arc', 'train')
    assert {q: p['answer'] for q, p in problems.items()} == {
        messages[0]['content']: messages[1]['content'] for messages in expected
    }
    digits = problems[expected[2][0]['content']]
    assert digits['grader'] == 'letter' and digits['choices'] == list('abcd')
    assert tasks.baseline(problems[expected[0][0]['content']]) == 1 / 3
    held_out = tasks.load(sets / 'arc/problems.jsonl', 'val')
    assert sorted((p['skill'], p['answer']) for p in held_out) == [
        ('arc_challenge', 'B'), ('arc_easy', 'B')
    ]  # fmt: skip
    assert '4 rows used for train, 7 left out' in shown
    for reason in (
        '2: choices without a label of their own', '1: no choice is marked as right',
        '1: 1 choices', '1: 0 choices', '1: a choice that is not text', '1: no answerKey',
    ):  # fmt: skip
        assert reason in shown


def mmlu_row(question, answer=0, choices=('white', 'red'), subject='snow'):
    return dict(question=question, subject=subject, choices=list(choices), answer=answer)


def mmlu(sets, nested=True):
    train = [
        mmlu_row('What colour is snow?'),
        mmlu_row('Range?', 4),
        mmlu_row('Null?', None),
        mmlu_row(' '),
    ]
    sets.put('mmlu/raw/auxiliary_train', [{'train': row} for row in train] if nested else train)
    sets.put('mmlu/raw/validation', [mmlu_row('Val?', 1)])
    tests = [mmlu_row(f'Test {i}?', i % 4, 'abcd', f's{i // 20}') for i in range(40)]
    sets.put('mmlu/raw/test', tests)


@pytest.mark.parametrize('nested', [True, False])
def test_mmlu(sets, nested):
    mmlu(sets, nested)
    shown = sets.prepare('mmlu')
    sets.holds('mmlu', 'train', ask(SNOW, 'A'))
    sets.holds('mmlu', 'val', chosen('Val?', ['white', 'red'], 'B'))
    assert '1 rows used for train, 3 left out (2: no choice is marked as right' in shown
    problems = tasks.load(sets / 'mmlu/problems.jsonl', 'val')
    assert len(problems) == 40 and {p['skill'] for p in problems} == {'mmlu'}
    for problem in problems:
        number = int(problem['messages'][0]['content'].split()[1].split('?')[0])
        assert problem['answer'] == 'ABCD'[number % 4] and problem['subject'] == f's{number // 20}'
    # an evaluation of the first few sees more than the first subject
    assert {problem['subject'] for problem in problems[:12]} == {'s0', 's1'}


# -----------------------------------------------------------------------------
# SmolTalk, HumanEval


def talk(*turns):
    """'user: Hi' and so on as messages; None is a null message."""
    messages = [turn and dict(zip(('role', 'content'), turn.split(': ', 1))) for turn in turns]
    return {'messages': messages, 'source': 'test'}


def smoltalk(sets):
    rows = [
        talk('system: Be brief.', 'user: Hi', 'assistant: Hello'),
        talk('user: 1', 'assistant: 2', 'user: 3', 'assistant: 4'),
        talk('system: ', 'user: Hi', 'assistant: Ho'),
        talk('user: <|assistant_start|>', 'assistant: No'),
        talk('user: Hi', 'assistant: Hello', 'user: and nobody answers'),
        # left out
        talk('user: Hi', 'assistant:  '),
        talk('user: Hi', None),
        talk('user: a', 'user: b', 'assistant: c'),
        talk('assistant: first'),
        talk('user: a', 'system: late', 'assistant: c'),
        talk('user: a', 'tool: b', 'assistant: c'),
        talk('user: nobody answers'),
        talk(),
    ]
    sets.put('smoltalk/raw/train', rows)
    sets.put('smoltalk/raw/test', [talk('user: Val', 'assistant: Yes')])


def test_smoltalk(sets):
    smoltalk(sets)
    shown = sets.prepare('smoltalk')
    sets.holds(
        'smoltalk', 'train',
        ask('Be brief.\n\nHi', 'Hello'),
        ask('1', '2') + ask('3', '4'),
        ask('Hi', 'Ho'),
        ask('<|assistant_start|>', 'No'),
        ask('Hi', 'Hello') + [{'role': 'user', 'content': 'and nobody answers'}],
    )  # fmt: skip
    sets.holds('smoltalk', 'val', ask('Val', 'Yes'))
    assert '5 rows used for train, 8 left out (1: ' in shown
    assert '1: an empty message' in shown and '1: NoneType, expected' in shown
    assert '1 empty system messages removed' in shown


def test_a_part_of_smoltalk_is_evenly_spread_over_all_files(sets):
    rows = [talk(f'user: {i}', 'assistant: Yes') for i in range(10)]
    sets.put('smoltalk/raw/train', rows[:4])
    (sets / 'smoltalk/raw/train/0.parquet').rename(sets / 'smoltalk/raw/train/a.parquet')
    (sets / 'smoltalk/raw/train/b').mkdir()
    file = sets.put('smoltalk/raw/train/b', rows[4:])
    file.rename(sets / 'smoltalk/raw/train/b.parquet')
    sets.put('smoltalk/raw/test', rows[:1])
    sets.prepare('smoltalk', '--max_rows=5', '--part=small')
    sets.holds('smoltalk/small', 'train', *(ask(str(i), 'Yes') for i in (1, 3, 5, 7, 9)))
    assert not (sets / 'smoltalk/train.bin').exists()
    sets.refuses('smoltalk', '--part=../x', args=['--part=../x'])
    sets.refuses('smoltalk', '--max_rows=-1', args=['--max_rows=-1'])


HUMANEVAL = ('task_id', 'prompt', 'canonical_solution', 'test', 'entry_point')


def test_humaneval(sets):
    row = {
        'task_id': 'HumanEval/0', 'prompt': 'def f(x):\n', 'canonical_solution': '    return x\n',
        'test': 'def check(f):\n    assert f(1) == 1\n', 'entry_point': 'f',
    }  # fmt: skip
    sets.put('humaneval/raw/test', [row, {**row, 'test': None}])
    shown = sets.prepare('humaneval')
    path = sets / 'humaneval/problems.jsonl'
    [problem] = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert problem == {
        'split': 'val', 'skill': 'humaneval', 'grader': 'code', 'answer': '    return x\n',
        'messages': [{'role': 'user', 'content': 'def f(x):\n'}], 'text': 'def f(x):\n',
        'task_id': 'HumanEval/0', 'prompt': 'def f(x):\n', 'test': row['test'], 'entry_point': 'f',
    }  # fmt: skip
    assert '1 rows used for val, 1 left out (1: no test)' in shown and '1 problems' in shown
    sets.prepare('humaneval')  # again: the same file
    path.write_bytes(path.read_bytes() + b'\n')
    sets.refuses('humaneval', 'problems.jsonl', 'edited', 'move it away')


# -----------------------------------------------------------------------------
# generated sets


def test_spelling(sets, tmp_path):
    words = ['q' + a + b + c for a in 'bcdf' for b in 'aeiou' for c in 'mnrt']
    (tmp_path / 'words.txt').write_text('\n'.join([*words, 'no word', '', 'x1']), encoding='utf-8')
    args = (
        f'--input={tmp_path}/words.txt',
        '--spell=60',
        '--count=50',
        '--num_val=20',
        '--num_rl=9',
    )
    shown = sets.prepare('spelling', *args)
    assert '80 words, 3 other lines left out' in shown
    data = shards.Data(sets / 'spelling')
    found = {}
    for split, size in (('train', 110), ('val', 40)):
        ids = data.split(split).read(0, 10**6)
        found[split] = [TOKENIZER.decode(row) for row in np.split(ids, np.flatnonzero(ids == 256))]
        assert len(found[split]) == size + 1
        problems = tasks.load(data.problems, split)
        assert len(problems) == (18 if split == 'train' else 40)
        for problem in problems:  # its answer is in the set, and is graded as right
            question = problem['messages'][0]['content']
            row = next(row for row in found[split] if row.startswith(question))
            assert tasks.grade(problem, row.removeprefix(question)) == 1
    used = {s: {w for w in words if any(w in row for row in rows)} for s, rows in found.items()}
    assert used['train'] and used['val'] and not used['train'] & used['val']
    before = (sets / 'spelling/train.bin').read_bytes()
    sets.prepare('spelling', *args)
    assert (sets / 'spelling/train.bin').read_bytes() == before


def test_spelling_takes_the_words_of_the_vocabulary(sets):
    sets.refuses('spelling', 'the vocabulary has 0 words', '--input')
    shown = sets.prepare(
        'spelling', f'--tokenizer={ROOT}/assets/tinyworld.pt', '--spell=5', '--count=5',
        '--num_val=1', '--part=small',
    )  # fmt: skip
    assert int(shown.split(' words')[0].split()[-1]) > 100


def test_identity(sets, tmp_path):
    sets.prepare('identity', '--assistant=Robin', '--maker=Ada', '--num_conversations=50')
    data = shards.Data(sets / 'identity')
    text = TOKENIZER.decode(data.split('train').read(0, 10**6))
    assert 'Robin' in text and 'Ada' in text and '{' not in text and 'flatgpt' not in text
    ids = [data.split(split).read(0, 10**6) for split in ('train', 'val')]
    assert [int((part == 256).sum()) for part in ids] == [45, 5]

    # one's own file, in our form and in nanochat's
    rows = [ask(f'{i}?', str(i)) for i in range(10)]
    lines = [json.dumps(row if i % 2 else {'messages': row}) for i, row in enumerate(rows)]
    mine = tmp_path / 'mine.jsonl'
    mine.write_text('\ufeff' + '\n\n'.join(lines), encoding='utf-8')
    sets.prepare('identity', f'--input={mine}')
    sets.holds('identity', 'train', *rows[:9])
    sets.holds('identity', 'val', rows[9])


@pytest.mark.parametrize(
    'content, words',
    [
        ('[{"role": "user", "content": "Hi"}]', ['mine.jsonl:1', 'nothing to learn']),
        ('[{"role": "user"', ['mine.jsonl:1', 'not JSON']),
        ('{"text": "Hi"}', ['mine.jsonl:1', 'missing messages']),
        (json.dumps(ask('a', 'b')), ['mine.jsonl', '1 conversations', 'at least 10']),
        (None, ['mine.jsonl', 'cannot read it']),
    ],
)
def test_an_identity_that_cannot_be_read_is_named(sets, tmp_path, content, words):
    if content:
        (tmp_path / 'mine.jsonl').write_text(content, encoding='utf-8')
    sets.refuses('identity', *words, args=[f'--input={tmp_path}/mine.jsonl'])


# -----------------------------------------------------------------------------
# CORE's bundle

BUNDLE = {
    'eval_bundle/core.yaml': 'icl_tasks: []\n',
    'eval_bundle/eval_meta_data.csv': 'Eval Task,Random baseline\n',
    'eval_bundle/eval_data/world/a.jsonl': '{}\n',
}


def put_bundle(sets, files, links=()):
    path = sets / 'core/raw/eval_bundle.zip'
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('eval_bundle/', '')
        for name, content in files.items():
            archive.writestr(name, content)
        for name in links:
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, '/etc')
    return path


def test_core(sets):
    put_bundle(sets, {**BUNDLE, '__MACOSX/eval_bundle/x': ''})
    bundle = sets / 'core/eval_bundle'
    (sets / 'core/eval_bundle.part').mkdir()  # of a run that was killed
    for _ in range(2):
        (bundle / 'old').mkdir(parents=True, exist_ok=True)
        assert 'eval_bundle: 3 files' in sets.prepare('core')
        files = {str(p.relative_to(sets / 'core')): p for p in bundle.rglob('*') if p.is_file()}
        assert {name: path.read_text('utf-8') for name, path in files.items()} == BUNDLE
        assert not (sets / 'core/eval_bundle.part').exists() and not (bundle / 'old').exists()


@pytest.mark.parametrize(
    'files, links, words',
    [
        ({'../evil': 'x'}, (), ["'../evil'", 'outside the folder']),
        ({'eval_bundle/../../evil': 'x'}, (), ['outside the folder']),
        ({'/tmp/evil': 'x'}, (), ["'/tmp/evil'", 'outside the folder']),
        ({'C:/evil': 'x'}, (), ['outside the folder']),
        ({'eval_bundle/eval_data\\..\\evil': 'x'}, (), ['outside the folder']),
        ({}, ['eval_bundle/eval_data/link'], ['a link or a device']),
        ({'eval_bundle/CORE.yaml': 'x'}, (), ['occurs twice']),
        ({'eval_bundle/eval_data/big': b'0' * 2_000_000}, (), ['0.0 GB unpacked']),
    ],
)  # fmt: skip
def test_a_bundle_writes_nothing_outside_its_folder(sets, tmp_path, files, links, words):
    put_bundle(sets, {**BUNDLE, **files}, links)
    before = sorted(tmp_path.rglob('*'))
    sets.refuses('core', 'eval_bundle.zip', *words, args=['--max_gigabytes=0.001'])
    assert sorted(tmp_path.rglob('*')) == before


def test_a_bundle_that_is_damaged_or_lacks_a_file_is_named(sets):
    put_bundle(sets, {'eval_bundle/core.yaml': ''})
    sets.refuses('core', 'it lacks eval_meta_data.csv, eval_data/')
    path = put_bundle(sets, BUNDLE)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'icl_tasks', b'icl_tusks', 1))
    sets.refuses('core', 'Bad CRC-32')
    path.write_bytes(b'<html>')
    sets.refuses('core', 'File is not a zip file', 'delete it and run again')


# -----------------------------------------------------------------------------
# from the hub

REPOS = {
    'smoltalk': ('HuggingFaceTB/smol-smoltalk', 'default'),
    'mmlu': ('cais/mmlu', 'all'),
    'arc': ('allenai/ai2_arc', None),  # a folder for each of its two subsets
    'gsm8k': ('openai/gsm8k', 'main'),
    'humaneval': ('openai/openai_humaneval', 'openai_humaneval'),
}


def written(sets, name):
    """{file: bytes} that a script wrote."""
    files = {path.name: path for path in (sets / name).iterdir() if path.is_file()}
    return {file: path.read_bytes() for file, path in files.items() if file != 'prepare.py'}


def test_files_from_the_hub_give_the_same_bytes(sets, hub, pauses):  # noqa: F811
    smoltalk(sets)
    mmlu(sets)
    arc(sets)
    gsm8k(sets)
    sets.put('humaneval/raw/test', [dict.fromkeys(HUMANEVAL, 'x')])
    for name, (repo, subset) in REPOS.items():
        sets.prepare(name)
        by_hand = written(sets, name)
        # 1) The same files on the hub; the last of them fails too often, then is a web page
        paths = []
        for file in sorted((sets / name / 'raw').rglob('*.parquet')):
            place = (subset or file.parent.parent.name, file.parent.name)
            paths += hub.split(repo, *place, [file.read_bytes()])
        shutil.rmtree(sets / name / 'raw')
        for file in by_hand:
            (sets / name / file).unlink()
        hub.httpd.plans[paths[0]] = [{'status': 503}, {'cut': 100}]
        hub.httpd.plans[paths[-1]] = [{'status': 429}] * 3 + [{'content': b'<html>'}] * 3
        for _ in range(2):
            sets.refuses(name, repo, args=['--tries=3'])
            assert not written(sets, name)
        # 2) Called again
        sets.prepare(name)
        assert written(sets, name) == by_hand


# -----------------------------------------------------------------------------
# what is wrong with a file


def test_without_a_network_a_set_says_where_to_put_its_files(sets, server):  # noqa: F811
    for name, (repo, _) in REPOS.items():
        words = (repo, f'put its .parquet files into {sets / name}/raw')
        sets.refuses(name, *words, args=['--tries=1'])
    path = sets / 'core/raw/eval_bundle.zip'
    sets.refuses('core', f'put it at {path}', args=['--tries=1'])


def test_pyarrow_is_looked_for_before_a_download(sets, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    for name, (repo, _) in REPOS.items():
        sets.refuses(name, f'{repo} takes pyarrow: pip install', args=['--tries=1'])


def test_what_is_wrong_with_a_file_is_one_line(sets):
    import pyarrow

    good = {'question': 'Q?', 'answer': '#### 1'}
    test = sets.put('gsm8k/raw/test', [good])

    def refused(rows, *words, schema=None):
        file = sets.put('gsm8k/raw/train', rows, schema)
        sets.refuses('gsm8k', file.parent, *words)

    refused([{'question': 'Q?'}], '0.parquet: missing column "answer", it has question')
    refused([{**good, 'answer': 5}], '0.parquet:1: "answer" is 5, expected text')
    empty = pyarrow.schema([('question', pyarrow.string()), ('answer', pyarrow.string())])
    refused([], '0 rows used for train, 0 left out: expected rows to use', schema=empty)
    refused([{**good, 'answer': '1'}], '0 rows used', '1: no number after ####')
    file = sets.put('gsm8k/raw/train', [good] * 999)
    file.write_bytes(file.read_bytes()[:-9])
    sets.refuses('gsm8k', file, 'not a parquet file', 'delete it and run again')
    content = bytearray(test.read_bytes())
    content[4:60] = b'\xff' * 56
    sets.put('gsm8k/raw/train', [good])
    test.write_bytes(content)
    sets.refuses('gsm8k', test, 'damaged', 'delete the file and run again')
    sets.put('gsm8k/raw/test', [good])
    sets.refuses('gsm8k', '--tokenizer=x: no such file', 'tok.json', args=['--tokenizer=x'])
    plain = BPETokenizer('.', [], {})
    plain.save(sets.folder / 'plain.json')
    words = ('plain.json: this tokenizer has no format for conversations',)
    sets.refuses('gsm8k', *words, args=[f'--tokenizer={sets.folder}/plain.json'])
    sets.prepare('gsm8k')

    # a struct without its fields, lists of another kind
    mmlu(sets)
    file = sets.put('mmlu/raw/auxiliary_train', [{'train': {'question': 'Q?'}}])
    sets.refuses('mmlu', file, 'missing column "subject", it has question')
    sets.put('mmlu/raw/auxiliary_train', [{'train': 'Q?'}])
    sets.refuses('mmlu', file, 'missing column "question"')
    smoltalk(sets)
    sets.put('smoltalk/raw/train', [{'messages': ['Hi', 'Ho']}])
    sets.refuses('smoltalk', '0 rows used for train')
    bad = {'question': 'Q?', 'answerKey': 'A', 'choices': ['a']}
    sets.put('arc/raw/ARC-Easy/train', [bad])
    for subset in ('ARC-Easy', 'ARC-Challenge'):
        for split in ('train', 'validation', 'test'):
            if (subset, split) != ('ARC-Easy', 'train'):
                sets.put(f'arc/raw/{subset}/{split}', [arc_row('Q?', 'A', 'a', 'b')])
    sets.refuses('arc', ':1: "choices" is [\'a\'], expected a struct')
    sets.put('arc/raw/ARC-Easy/train', [{**bad, 'choices': {'text': 'ab', 'label': 'AB'}}])
    sets.refuses('arc', '0 rows used for train', '1: choices that are not lists')


# -----------------------------------------------------------------------------
# training on all of them

SMALL = (
    '--n_layer=2', '--n_head=2', '--n_embd=32', '--block_size=256', '--batch_size=4',
    '--device=cpu', '--dtype=float32', '--isolate=True', '--learning_rate=1e-2', '--log_interval=1',
    '--max_iters=20', '--save_interval=10', '--eval_interval=20', '--eval_problems=2',
    '--max_new_tokens=8', '--sample_prompts=', '--rl_tokens=24', '--rl_samples=8', '--dropout=0.1',
)  # fmt: skip


@pytest.fixture
def prepared(sets, tmp_path):
    """All sets in their small forms. Returns the mixture of those with conversations."""
    smoltalk(sets)
    mmlu(sets)
    arc(sets)
    gsm8k(sets)
    words = ['q' + a + b for a in 'bcdfg' for b in 'aeiou']
    (tmp_path / 'words.txt').write_text('\n'.join(words), encoding='utf-8')
    for name in ('smoltalk', 'mmlu', 'arc', 'gsm8k'):
        sets.prepare(name)
    sets.prepare(
        'spelling', f'--input={tmp_path}/words.txt', '--spell=20', '--count=20', '--num_val=4'
    )
    sets.prepare('identity', '--num_conversations=20')
    repeated = {'mmlu': ':3', 'gsm8k': ':4', 'identity': ':2'}
    names = ('smoltalk', 'mmlu', 'gsm8k', 'arc', 'spelling', 'identity')
    return ','.join(str(sets / name) + repeated.get(name, '') for name in names)


@pytest.mark.slow
def test_every_stage_trains_on_them_and_resumes_to_the_bit(sets, prepared, tmp_path, capsys):
    """pretrain, mid and sft on a mixture of all, rl on GSM8K's problems, each from the one before;
    each once at once, and once with a crash after the checkpoint of step 10."""
    data = {'pretrain': prepared, 'mid': prepared, 'sft': prepared, 'rl': sets / 'gsm8k'}
    before = None
    with running(capsys) as run:
        for stage, dataset in data.items():
            args = [f'--stage={stage}', f'--dataset={dataset}', *SMALL]
            args += [f'--init_from={before}'] if before else []
            args += ['--batch_size=16'] if stage == 'rl' else []  # two questions a step
            out = tmp_path / stage
            done = run(*args, f'--out_dir={out}')
            assert done.returncode == 0, done.stderr
            losses = [row['loss'] for row in learned(out) if 'loss' in row]
            values = [row['val'] for row in learned(out) if 'val' in row]
            assert len(losses) == 20
            if stage == 'rl':
                assert any(row.get('reward') for row in learned(out))
            else:
                assert values[-1] < 0.97 * values[0]
                check_shares(out, done.stdout, dataset)
            before = out
            if stage == 'pretrain':
                continue
            again = tmp_path / f'{stage}_again'
            with pytest.MonkeyPatch.context() as patch, pytest.raises(Died):
                at_step(patch, 13, die)
                run(*args, f'--out_dir={again}')
            done = run('--init_from=resume', f'--out_dir={again}')
            assert done.returncode == 0, done.stderr
            assert_same_bits(trained(again), trained(out))
            assert learned(again) == learned(out)


def check_shares(out, stdout, dataset):
    """The parts of the mixture are printed and logged; here they are counted in another way."""
    first = json.loads((out / 'log.jsonl').read_text(encoding='utf-8').splitlines()[0])
    sizes = []
    for name, repeats in shards.mixture(dataset):
        ids = np.fromfile(f'{name}/train.bin', dtype='<u2')
        sizes.append((name, repeats, repeats * sum(ids == 256), repeats * len(ids)))
    documents, tokens = (sum(column) for column in list(zip(*sizes))[2:])
    for (name, repeats, some, ids), part in zip(sizes, first['mixture'], strict=True):
        assert (part['name'], part['repeats']) == (name, repeats)
        assert part['documents'] == pytest.approx(some / documents, abs=1e-4)
        assert part['tokens'] == pytest.approx(ids / tokens, abs=1e-4)
        shown = f'{part["documents"]:.1%} of the documents, {part["tokens"]:.1%} of the tokens'
        assert f'{name} x {repeats}: {shown}' in stdout
