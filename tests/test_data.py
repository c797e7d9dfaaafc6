"""Every prepare script run offline on small files, in a copy of the tree, as a user runs it; and the downloads."""

import hashlib
import http.server
import json
import os
import runpy
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import tokenizer as tokenizers
from data import download as downloads

ROOT = Path(__file__).resolve().parents[1]
TEXT = 'First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, spëak 你好🌍!\n' * 40
DEAD = 'http://127.0.0.1:9/file'  # nobody listens on the discard port


@pytest.fixture
def tree(tmp_path):
    """A copy of the programs, in a folder with a space and a letter that is no ASCII."""
    root = tmp_path / 'ein Ordner ü'
    for path in [*ROOT.glob('*.py'), *ROOT.glob('data/*.py'), *ROOT.glob('data/*/prepare.py')]:
        copy = root / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return root


def prepare(tree, name, *args, check=True):
    """Run data/<name>/prepare.py as a process, from another folder than its root, without a network."""
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    environment |= {'OMP_NUM_THREADS': '1', 'PYTHONIOENCODING': 'utf-8', 'HTTPS_PROXY': 'http://127.0.0.1:9'}
    command = [sys.executable, str(tree / 'data' / name / 'prepare.py'), *map(str, args)]
    done = subprocess.run(
        command, cwd=tree.parent, env=environment, capture_output=True, text=True, encoding='utf-8', timeout=120
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture
def execute(tree, monkeypatch):
    """execute(name, ...) runs the script in this process, which saves the two seconds that importing torch takes."""
    monkeypatch.setenv('HTTPS_PROXY', 'http://127.0.0.1:9')
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(tree / 'no downloads of other days'))

    def run(name, *args):
        script = str(tree / 'data' / name / 'prepare.py')
        with monkeypatch.context() as patch:
            patch.setattr(sys, 'path', list(sys.path))
            patch.setattr(sys, 'argv', [script, *map(str, args)])
            runpy.run_path(script, run_name='__main__')

    return run


@pytest.fixture
def refused(tree, execute):
    """refused(name, ...) -> the one line that the script ends with, nothing written."""

    def run(name, *args):
        with pytest.raises(SystemExit) as error:
            execute(name, *args)
        assert isinstance(error.value.code, str) and '\n' not in error.value.code
        assert not list((tree / 'data' / name).glob('*.bin*'))
        return error.value.code

    return run


def read(folder):
    """{split: ids} with the tokenizer; what meta.json says of them is checked."""
    meta = json.loads((folder / 'meta.json').read_text(encoding='utf-8'))
    tokenizer = tokenizers.load(folder / meta['tokenizer'])
    assert meta['tokenizer_hash'] == tokenizer.hash and meta['vocab_size'] == tokenizer.vocab_size
    splits = {}
    for split in ('train', 'val'):
        ids = np.fromfile(folder / f'{split}.bin', dtype='<u2')
        assert len(ids) == meta['splits'][split]['tokens'] > 0
        assert meta['splits'][split]['bytes'] == tokenizer.bytes_per_id[ids].sum()
        assert ids.max() < tokenizer.vocab_size
        splits[split] = ids
    assert not [path for path in folder.iterdir() if path.suffix in ('.part', '.tmp')]
    return splits, tokenizer


def texts_of(ids, tokenizer):
    """The documents, each of which must begin with bos."""
    starts = np.flatnonzero(ids == tokenizer.bos)
    assert starts[0] == 0
    return [tokenizer.decode(part) for part in np.split(ids, starts[1:])]


def write_gpt2_files(folder):
    """A made-up table in the format of GPT-2's two files: bytes and two merges."""
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in order]
    names = [*map(chr, order), *(chr(256 + i) for i in range(len(others))), 'ea', 'Ġm', '<|endoftext|>']
    (folder / 'vocab.bpe').write_text('#version: 0.2\ne a\nĠ m\n', encoding='utf-8')
    (folder / 'encoder.json').write_text(json.dumps({name: i for i, name in enumerate(names)}), encoding='utf-8')


# -----------------------------------------------------------------------------
# The scripts


def test_shakespeare_char(tree):
    folder = tree / 'data' / 'shakespeare_char'
    (folder / 'input.txt').write_bytes(TEXT.encode())
    prepare(tree, 'shakespeare_char', '--sha256=')
    splits, tokenizer = read(folder)
    ids = {character: i for i, character in enumerate(sorted(set(TEXT)))}  # nanoGPT's own lines
    cut = int(len(TEXT) * 0.9)
    assert splits['train'].tolist() == [ids[c] for c in TEXT[:cut]]
    assert splits['val'].tolist() == [ids[c] for c in TEXT[cut:]]
    assert tokenizer.kind == 'char' and tokenizer.vocab_size == len(ids)


def test_shakespeare_in_gpt2s_encoding(tree, execute):
    folder = tree / 'data' / 'shakespeare'
    (folder / 'input.txt').write_bytes(TEXT.encode())
    write_gpt2_files(folder)
    execute('shakespeare', '--sha256=')
    splits, tokenizer = read(folder)
    cut = int(len(TEXT) * 0.9)
    assert tokenizer.decode(splits['train']) == TEXT[:cut] and tokenizer.decode(splits['val']) == TEXT[cut:]
    assert tokenizer.vocab_size == 259 and 256 in splits['train'] and tokenizer.bos not in splits['train']


@pytest.mark.parametrize('name', ['shakespeare_char', 'shakespeare'])
def test_a_corrupted_file_is_refused_by_name(name, tree, refused):
    path = tree / 'data' / name / 'input.txt'
    path.write_bytes(TEXT.encode())
    line = refused(name)
    assert line.startswith(f'{path}: sha256 is ') and 'delete it and run again' in line


@pytest.mark.parametrize('name', ['shakespeare_char', 'shakespeare'])
def test_a_failed_download_says_where_to_put_the_file(name, tree, refused):
    line = refused(name, '--tries=1')
    assert line.startswith('https://raw.githubusercontent.com/') and 'download failed' in line
    assert line.endswith(str(tree / 'data' / name / 'input.txt'))
    assert DEAD in refused(name, '--tries=1', f'--url={DEAD}')


def test_openwebtext(tree):
    folder = tree / 'data' / 'openwebtext'
    (folder / 'raw').mkdir()
    write_gpt2_files(folder)
    documents = [f'Document {i} means nothing.' * (i % 7 + 1) for i in range(700)]
    lines = [json.dumps({'text': text}) for text in documents[:600]] + [json.dumps({'text': ''})]
    (folder / 'raw' / 'a.jsonl').write_text('\n'.join(lines) + '\n', encoding='utf-8')
    for i, text in enumerate(documents[600:]):
        (folder / 'raw' / f'b{i:03d}.txt').write_text(text, encoding='utf-8')
    prepare(tree, 'openwebtext', '--val_every=10', '--num_workers=2')
    splits, tokenizer = read(folder)
    assert texts_of(splits['val'], tokenizer) == documents[9::10]
    assert texts_of(splits['train'], tokenizer) == [text for i, text in enumerate(documents) if i % 10 != 9]
    before = (folder / 'train.bin').read_bytes()
    done = prepare(tree, 'openwebtext', '--val_every=701', '--num_workers=1', check=False)
    assert done.returncode == 1 and '700 documents leave a split empty' in done.stderr.splitlines()[-1]
    assert (folder / 'train.bin').read_bytes() == before and not list(folder.glob('*.part'))


def test_openwebtext_from_parquet(tree, oracle):
    pyarrow, parquet = oracle('pyarrow'), oracle('pyarrow.parquet')
    folder = tree / 'data' / 'openwebtext'
    (folder / 'raw').mkdir()
    write_gpt2_files(folder)
    documents = [f'Document {i} means nothing.' for i in range(30)]
    for i in range(2):
        table = pyarrow.table({'url': ['x'] * 15, 'text': documents[15 * i : 15 * i + 15]})
        parquet.write_table(table, folder / 'raw' / f'{i:05d}.parquet')
    prepare(tree, 'openwebtext', '--val_every=10', '--num_workers=1')
    splits, tokenizer = read(folder)
    assert texts_of(splits['val'], tokenizer) == documents[9::10]
    (folder / 'raw' / '00000.parquet').write_bytes(b'PAR1 and no more')
    with pytest.raises(SystemExit, match=r'00000\.parquet: no parquet'):
        list(downloads.documents(folder / 'raw' / '00000.parquet'))


def test_openwebtext_errors(tree, refused):
    folder = tree / 'data' / 'openwebtext'
    write_gpt2_files(folder)
    line = refused('openwebtext', '--tries=1', f'--url={DEAD}')
    assert 'download failed' in line and line.endswith(f'into {folder / "raw"}')
    (folder / 'raw' / 'a.txt').write_text('one document', encoding='utf-8')
    assert 'val_every=0' in refused('openwebtext', '--val_every=0')
    os.unlink(folder / 'vocab.bpe')
    line = refused('openwebtext')
    assert line.endswith(f'into {folder}') and 'vocab.bpe and encoder.json' in line


def test_openwebtext_goes_on_with_a_list_it_has_begun(tree, refused):
    """A shard that lies there is not taken for the whole: the list says what is missing."""
    raw = tree / 'data' / 'openwebtext' / 'raw'
    raw.mkdir()
    write_gpt2_files(raw.parent)
    (raw / '00000.parquet').write_bytes(b'here')
    (raw / 'files.json').write_text(json.dumps([DEAD, DEAD + '2']), encoding='utf-8')
    line = refused('openwebtext', '--tries=1')
    assert line.startswith(DEAD + '2: download failed') and line.endswith(str(raw / '00001.parquet'))


def test_custom_bpe(tree):
    """A .txt and a .jsonl with three lines: the last tenth of the characters is for validation, the cut in the .txt."""
    files = [tree.parent / 'a b.txt', tree.parent / 'ö.jsonl']
    files[0].write_bytes(b'\xef\xbb\xbf' + TEXT.replace('\n', '\r\n').encode())  # as Windows' editor saves it
    lines = ['short <|bos|> text', 'lone \ud800 surrogate', TEXT[:100]]
    files[1].write_text('\n\n'.join(json.dumps({'text': text}) for text in lines), encoding='utf-8')
    prepare(tree, 'custom', *files, '--name=meine Texte', '--vocab_size=300')
    splits, tokenizer = read(tree / 'data' / 'meine Texte')
    documents = [TEXT, lines[0], 'lone \ufffd surrogate', lines[2]]
    cut = int(0.9 * sum(map(len, documents)))
    assert texts_of(splits['train'], tokenizer) == [TEXT[:cut]]
    assert texts_of(splits['val'], tokenizer) == [TEXT[cut:], *documents[1:]]
    assert tokenizer.to_dict() == tokenizers.train_bpe([TEXT[:cut]], 300, ['<|bos|>']).to_dict()


def test_custom_characters_and_a_given_tokenizer(tree, execute):
    file = tree.parent / 'a.jsonl'
    file.write_text('\n'.join(json.dumps({'text': line}) for line in TEXT.split('\n')), encoding='utf-8')
    execute('custom', file, '--tokenizer=char', '--val_fraction=0.25')
    splits, tokenizer = read(tree / 'data' / 'custom')
    text = ''.join(line + '\n' for line in TEXT.split('\n') if line)
    cut = int(len(text) * 0.75)
    assert tokenizer.decode(splits['train']) == text[:cut] and tokenizer.decode(splits['val']) == text[cut:]

    given = tree / 'data' / 'custom' / 'tok.json'
    execute('custom', file, f'--tokenizer={given}', '--name=again')
    assert (tree / 'data' / 'again' / 'tok.json').read_bytes() == given.read_bytes()
    file.write_text(json.dumps({'text': 'Q' * 100}), encoding='utf-8')
    with pytest.raises(SystemExit, match="^--tokenizer=.*unknown character 'Q'"):
        execute('custom', file, f'--tokenizer={given}', '--name=third')
    assert not list((tree / 'data' / 'third').glob('*.bin*'))


def test_custom_gpt2(tree, execute):
    file = tree.parent / 'a.txt'
    file.write_text(TEXT, encoding='utf-8')
    write_gpt2_files(tree / 'data' / 'custom')
    execute('custom', file, '--tokenizer=gpt2')
    splits, tokenizer = read(tree / 'data' / 'custom')
    parts = [texts_of(splits[split], tokenizer) for split in ('train', 'val')]
    assert [len(part) for part in parts] == [1, 1] and parts[0][0] + parts[1][0] == TEXT


BAD_FILES = {
    'a.jsonl': (b'{"text": "fine"}\n\n{"txt": "x"}\n', 'a.jsonl:3: missing "text"'),
    'b.jsonl': (b'{"text": "fine"}\n{"text": \n', 'b.jsonl:2: not JSON'),
    'c.jsonl': (b'{"text": 7}\n', 'c.jsonl:1: "text" must be a string, got 7'),
    'd.jsonl': (b'["text"]\n', 'd.jsonl:1: missing "text"'),
    'e.jsonl': (b'{"text": "fine"}\n{"text": "\xff"}\n', 'e.jsonl:2: no UTF-8 at byte 10'),
    'f.txt': (b'abc\xff', 'f.txt: no UTF-8 at byte 3'),
    'g.txt': (b'', 'g.txt: 0 characters'),
    'h.jsonl': (b'', 'h.jsonl: 0 characters'),
    'i.pdf': (b'', 'i.pdf: expected a file that ends in .txt, .jsonl, .parquet'),
    'nothing.txt': (None, 'nothing.txt: no such file'),
}


@pytest.mark.parametrize('name', BAD_FILES)
def test_bad_documents_are_named(name, tmp_path):
    content, message = BAD_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit) as error:
        total = sum(map(len, downloads.documents(tmp_path / name)))
        raise SystemExit(f'{name}: {total} characters')  # what custom/prepare.py makes of it, see below
    assert message in str(error.value) and '\n' not in str(error.value)


def test_custom_errors(tree, refused):
    empty, bad = tree.parent / 'g.txt', tree.parent / 'file.jsonl'
    empty.write_bytes(b'')
    bad.write_bytes(b'{"text": "a text"}\n' * 116 + b'{"txt": ""}\n')
    assert refused('custom', bad).endswith('file.jsonl:117: missing "text"')
    assert '0 characters' in refused('custom', empty)
    assert 'no files' in refused('custom')
    assert 'name=shakespeare_char' in refused('custom', bad, '--name=shakespeare_char')
    assert 'name=../x' in refused('custom', bad, '--name=../x')
    assert "did you mean 'vocab_size'" in refused('custom', bad, '--vocabsize=10')
    bad.write_bytes(b'{"text": "a text"}\n' * 116)
    assert 'cl100k_base: more than 65536 ids' in refused('custom', bad, '--tokenizer=cl100k_base')
    assert "'nonsense'" in refused('custom', bad, '--tokenizer=nonsense')
    assert 'val_fraction=1.0' in refused('custom', bad, '--val_fraction=1')


def test_source(tree, execute):
    (tree / 'tests').mkdir()
    (tree / 'tests' / 'test_x.py').write_text('assert True\n' * 30, encoding='utf-8')
    (tree / 'empty.py').write_bytes(b'')
    folder = tree / 'data' / 'source'
    prepare(tree, 'source')
    splits, tokenizer = read(folder)
    files = [*tree.glob('*.py'), *tree.glob('data/*.py'), *tree.glob('data/*/prepare.py'), *tree.glob('tests/*.py')]
    texts = [path.read_text(encoding='utf-8') for path in sorted(files)]
    train, val = (texts_of(splits[split], tokenizer) for split in ('train', 'val'))
    assert [head + tail for head, tail in zip(train, val, strict=True)] == [text for text in texts if text]
    assert all(text.endswith('\n') for text in train)
    assert tokenizer.vocab_size == 1024 and tokenizer.special == {'<|bos|>': 1023}
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    execute('source')
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_scripts_list_their_settings(tree, execute, capsys):
    names = sorted(path.parent.name for path in tree.glob('data/*/prepare.py'))
    assert names == ['custom', 'openwebtext', 'shakespeare', 'shakespeare_char', 'source']
    settings = ['val_fraction', 'val_every', 'tries', 'tries', 'vocab_size']
    for name, setting in zip(names, settings):
        with pytest.raises(SystemExit) as done:
            execute(name, '--help')
        assert done.value.code == 0 and f'  --{setting}=' in capsys.readouterr().out


# -----------------------------------------------------------------------------
# Downloads

CONTENT = np.random.default_rng(0).bytes(300_000)
BLOCK = 2**16  # what is written at a time; less than that is lost when a connection is cut
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; class attributes, set by the test, say how badly."""

    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        self.server.seen.append((self.path, self.headers.get('Range')))

    def do_GET(self):
        plan = self.server.plan.pop(0) if self.server.plan else {}
        if 'status' in plan:
            self.send_response(plan['status'])
            self.send_header('Content-Length', '0')
            self.end_headers()
            return
        content, start = plan.get('content', CONTENT), 0
        wanted = self.headers.get('Range')
        if wanted and plan.get('ranges', True):
            start = int(wanted.removeprefix('bytes=').rstrip('-'))
            if start >= len(content):
                self.send_response(416)
                self.send_header('Content-Range', f'bytes */{len(content)}')
                self.send_header('Content-Length', '0')
                self.end_headers()
                return
            self.send_response(206)
            self.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
        else:
            self.send_response(200)
        self.send_header('Content-Length', str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + plan.get('cut', len(content))])
        self.close_connection = True


@pytest.fixture
def server(monkeypatch):
    """server(plan...) -> url: one dict for each request to come."""
    for name in ('HTTP_PROXY', 'http_proxy', 'ALL_PROXY', 'all_proxy'):
        monkeypatch.delenv(name, raising=False)
    httpd = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server)
    httpd.seen, httpd.plan = [], []
    thread = threading.Thread(target=httpd.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()

    def start(*plan):
        httpd.plan = list(plan)
        httpd.seen.clear()
        return f'http://127.0.0.1:{httpd.server_port}/file'

    start.seen = httpd.seen
    yield start
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def ranges(server):
    return [wanted for _, wanted in server.seen]


def test_a_download_that_is_cut_goes_on(server, tmp_path):
    url = server({'cut': 2 * BLOCK}, {'status': 503}, {'cut': BLOCK + 5}, {})
    path = downloads.download(url, tmp_path / 'new folder' / 'file.bin', len(CONTENT), SHA256, pause=0)
    assert path.read_bytes() == CONTENT and [file.name for file in path.parent.iterdir()] == ['file.bin']
    assert ranges(server) == [None, *(f'bytes={blocks * BLOCK}-' for blocks in (2, 2, 3))]
    assert downloads.download(DEAD, path, sha256=SHA256) == path  # it is there: nobody is asked


def test_a_killed_download_goes_on_in_the_next_run(server, tmp_path):
    url = server({'cut': BLOCK})
    with pytest.raises(SystemExit, match='download failed'):
        downloads.download(url, tmp_path / 'file.bin', tries=1)
    assert not (tmp_path / 'file.bin').exists()
    assert (tmp_path / 'file.bin.part').read_bytes() == CONTENT[:BLOCK]
    downloads.download(server({}), tmp_path / 'file.bin')
    assert (tmp_path / 'file.bin').read_bytes() == CONTENT and ranges(server) == [f'bytes={BLOCK}-']


def test_killed_between_the_last_byte_and_the_new_name(server, tmp_path):
    (tmp_path / 'file.bin.part').write_bytes(CONTENT)
    downloads.download(server(), tmp_path / 'file.bin', sha256=SHA256)
    assert (tmp_path / 'file.bin').read_bytes() == CONTENT and len(server.seen) == 1


def test_a_server_that_cannot_resume_sends_everything(server, tmp_path):
    (tmp_path / 'file.bin.part').write_bytes(b'x' * 1000)
    downloads.download(server({'ranges': False}), tmp_path / 'file.bin', sha256=SHA256)
    assert (tmp_path / 'file.bin').read_bytes() == CONTENT


def test_a_damaged_part_is_fetched_anew(server, tmp_path):
    for part in (b'x' * 1000, b'x' * 400_000):
        (tmp_path / 'file.bin').unlink(missing_ok=True)
        (tmp_path / 'file.bin.part').write_bytes(part)
        downloads.download(server(), tmp_path / 'file.bin', sha256=SHA256, pause=0)
        assert (tmp_path / 'file.bin').read_bytes() == CONTENT and len(server.seen) == 2


def test_what_is_not_the_file_is_refused(server, tmp_path):
    wrong = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(SystemExit, match=f'sha256 is .*, expected {SHA256}.*by hand and put it at'):
        downloads.download(server({'content': wrong}, {'content': wrong}), tmp_path / 'f', None, SHA256, 2, 0)
    with pytest.raises(SystemExit, match='300000 bytes, expected 5'):
        downloads.download(server(), tmp_path / 'f', 5, tries=1)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / 'f').write_bytes(wrong)
    with pytest.raises(SystemExit, match=r'f: sha256 is .*delete it'):
        downloads.download(server(), tmp_path / 'f', sha256=SHA256)
    assert server.seen == []


def test_what_is_missing_is_not_asked_for_again(server, tmp_path):
    with pytest.raises(SystemExit, match='HTTP status 404') as error:
        downloads.download(server({'status': 404}), tmp_path / 'f', pause=0)
    assert len(server.seen) == 1 and str(error.value).endswith(f'put it at {tmp_path / "f"}')
    with pytest.raises(SystemExit, match='HTTP status 500'):
        downloads.download(server(*[{'status': 500}] * 3), tmp_path / 'f', tries=3, pause=0, mend='do without')
    assert len(server.seen) == 3
