"""Downloads from a local server that misbehaves, and data/fineweb_edu/prepare.py on top of them."""

import hashlib
import http.server
import json
import os
import runpy
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import numpy as np
import pytest
from conftest import PATIENCE, ROOT, one_line

import tokenizer as tokenizers
from conversation import SPECIAL
from data import download as downloads
from shards import Data

CONTENT = np.random.default_rng(0).bytes(300_000)
BLOCK = 2**16  # bytes per write; a cut connection loses less than that
SHA256 = hashlib.sha256(CONTENT).hexdigest()
DEAD = 'http://127.0.0.1:9/file'  # no server listens on the discard port
TOKEN = 'hf_secret'


class Server(http.server.BaseHTTPRequestHandler):
    """Serves server.files. The test plans the faults of each answer in server.plans."""

    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        # 1) What is asked for
        wanted = self.headers.get('Range')
        path = self.path.partition('?')[0]
        self.server.seen.append((self.path, wanted))
        self.server.tokens.append((self.headers['Host'], self.headers.get('Authorization')))
        plans = self.server.plans.get(path, []) if with_body else []
        plan = plans.pop(0) if plans else {}
        content = plan.get('content', self.server.files.get(path))
        redirect = self.server.redirects.get(path)
        headers = {**self.server.headers.get(path, {}), **plan.get('headers', {})}
        # 2) Status and headers
        start = 0
        status = plan.get('status', 200 if content is not None else 404)
        if redirect:
            status = 302
            headers['Location'] = redirect
        elif status != 200:
            content = b''
        elif wanted and plan.get('ranges', True):
            start = int(wanted.removeprefix('bytes=').rstrip('-'))
            status = 206 if start < len(content) else 416
            last = f'{start}-{len(content) - 1}' if status == 206 else '*'
            headers['Content-Range'] = f'bytes {last}/{len(content)}'
        body = b'' if redirect else content[start:]
        self.send_response(status)
        headers = {'Content-Length': str(len(body)), **headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        # 3) The bytes
        body = body[: plan.get('cut', len(body))] if with_body else b''
        step = plan.get('drip', len(body) or 1)
        for i in range(0, len(body), step):
            self.wfile.write(body[i : i + step])
        if 'hold' in plan:  # the client is killed meanwhile
            self.wfile.flush()
            plan['hold'].wait(PATIENCE)
        if plan.get('reset'):  # RST instead of FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.close_connection = True


@pytest.fixture
def server(monkeypatch):
    """server(plan...) -> url of CONTENT; plan: a dict for each GET of it."""
    for name in ('HTTP_PROXY', 'http_proxy', 'ALL_PROXY', 'all_proxy', 'HF_TOKEN', 'HF_ENDPOINT'):
        monkeypatch.delenv(name, raising=False)
    httpd = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server)
    httpd.socket.listen(64)  # connections that wait; more are tried again after a second
    httpd.daemon_threads = True
    httpd.seen, httpd.tokens = [], []
    httpd.files, httpd.plans, httpd.redirects, httpd.headers = {}, {}, {}, {}
    thread = threading.Thread(target=httpd.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()

    def start(*plan):
        httpd.files['/file'] = CONTENT
        httpd.plans['/file'] = list(plan)
        httpd.seen.clear()
        return f'{start.address}/file'

    start.seen = httpd.seen
    start.httpd = httpd
    start.address = f'http://127.0.0.1:{httpd.server_port}'
    yield start
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def pauses(monkeypatch):
    """The seconds that would be waited between tries."""
    waited = []
    monkeypatch.setattr(downloads, 'sleep', lambda seconds, stop: waited.append(seconds))
    return waited


def ranges(server):
    return [wanted for _, wanted in server.seen]


def test_a_cut_download_is_resumed(server, tmp_path):
    url = server({'cut': 2 * BLOCK}, {'status': 503}, {'cut': BLOCK + 5}, {})
    path = downloads.download(
        url, tmp_path / 'new folder' / 'file.bin', len(CONTENT), SHA256, pause=0
    )
    assert path.read_bytes() == CONTENT and [file.name for file in path.parent.iterdir()] == [
        'file.bin'
    ]
    assert ranges(server) == [None, *(f'bytes={blocks * BLOCK}-' for blocks in (2, 2, 3))]
    assert downloads.download(DEAD, path, sha256=SHA256) == path  # it exists: no request


def test_a_killed_download_is_resumed_by_the_next_run(server, tmp_path):
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


def test_another_file_than_expected_is_refused(server, tmp_path):
    wrong = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(SystemExit, match=f'sha256 is .*, expected {SHA256}.*by hand and put it at'):
        downloads.download(
            server({'content': wrong}, {'content': wrong}), tmp_path / 'f', None, SHA256, 2, 0
        )
    with pytest.raises(SystemExit, match='300000 bytes, expected 5'):
        downloads.download(server(), tmp_path / 'f', 5, tries=1)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / 'f').write_bytes(wrong)
    with pytest.raises(SystemExit, match=r'f: sha256 is .*delete it'):
        downloads.download(server(), tmp_path / 'f', sha256=SHA256)
    assert server.seen == []


def test_a_permanent_error_is_not_tried_again(server, tmp_path):
    with pytest.raises(SystemExit, match='HTTP status 404') as error:
        downloads.download(server({'status': 404}), tmp_path / 'f', pause=0)
    assert len(server.seen) == 1 and str(error.value).endswith(f'put it at {tmp_path / "f"}')
    with pytest.raises(SystemExit, match='HTTP status 500'):
        downloads.download(
            server(*[{'status': 500}] * 3), tmp_path / 'f', tries=3, pause=0, hint='do without'
        )
    assert len(server.seen) == 3


# -----------------------------------------------------------------------------
# More faults of one download


def test_a_reset_and_a_slow_drip(server, tmp_path, pauses):
    url = server({'cut': BLOCK, 'reset': True}, {'drip': 20_000})
    downloads.download(url, tmp_path / 'f', sha256=SHA256)
    assert (tmp_path / 'f').read_bytes() == CONTENT and pauses == [1]


def test_pauses_double_and_the_server_may_ask_for_longer_ones(server, tmp_path, pauses, capsys):
    date = format_datetime(datetime.now(timezone.utc) + timedelta(hours=9), usegmt=True)
    past = format_datetime(datetime.now(timezone.utc) - timedelta(hours=9), usegmt=True)
    answers = [('429', '77'), ('503', '0'), ('503', date), ('429', past), ('503', 'soon')]
    plan = [dict(status=int(status), headers={'Retry-After': text}) for status, text in answers]
    downloads.download(server(*plan), tmp_path / 'f', sha256=SHA256, tries=6)
    assert pauses == [77, 2, downloads.LONGEST_PAUSE, 8, 16]
    assert 'HTTP status 429, trying again in 77 s' in capsys.readouterr().out


def test_failures_count_from_zero_after_progress(server, tmp_path, pauses, monkeypatch):
    monkeypatch.setattr(downloads, 'PROGRESS', BLOCK // 2)
    plan = [{'cut': BLOCK}] * 4
    downloads.download(server(*plan), tmp_path / 'f', sha256=SHA256, tries=2)
    assert pauses == [1] * 4
    plan = [{'cut': BLOCK, 'ranges': False}] * 4  # the same bytes again are no progress
    with pytest.raises(SystemExit, match='download failed'):
        downloads.download(server(*plan), tmp_path / 'g', sha256=SHA256, tries=2)


@pytest.mark.parametrize('length', [299_999, 300_001])
def test_a_wrong_length_is_refused(server, tmp_path, pauses, length):
    content = (CONTENT + b'x')[:length]
    with pytest.raises(SystemExit) as stop:
        downloads.download(server(*[{'content': content}] * 3), tmp_path / 'f', 300_000, tries=3)
    one_line(stop, f'{length} bytes, expected 300000', tmp_path / 'f')
    assert list(tmp_path.iterdir()) == []


def test_a_web_page_is_refused_and_the_part_stays(server, tmp_path, pauses):
    (tmp_path / 'f.part').write_bytes(CONTENT[:1000])
    page = {'content': b'<html>Please log in</html>', 'headers': {'Content-Type': 'text/html'}}
    page['ranges'] = False
    with pytest.raises(SystemExit) as stop:
        downloads.download(server(page, page), tmp_path / 'f', tries=2)
    one_line(stop, '/file: download failed', 'an HTML page instead of the file')
    assert (tmp_path / 'f.part').read_bytes() == CONTENT[:1000]
    assert not (tmp_path / 'f').exists()


@pytest.mark.parametrize('content', [b'<html>hello</html>', b'PAR1 cut', b''])
def test_a_parquet_file_begins_and_ends_as_one(server, tmp_path, pauses, content):
    plan = [{'content': content, 'headers': {'Content-Type': 'binary/octet-stream'}}] * 2
    with pytest.raises(SystemExit) as stop:
        downloads.download(server(*plan), tmp_path / 'a.parquet', tries=2)
    one_line(stop, '/file: download failed', 'not a whole parquet file')
    assert list(tmp_path.iterdir()) == []


def test_a_host_without_address_is_tried_again_and_named(server, tmp_path, pauses, monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror(-3, 'Temporary failure in name resolution')

    monkeypatch.setattr(socket, 'getaddrinfo', fail)
    with pytest.raises(SystemExit) as stop:
        downloads.download('http://hub.invalid/file', tmp_path / 'f', tries=3)
    one_line(stop, 'hub.invalid/file: download failed', 'no address is known for the host hub.inv')
    assert pauses == [1, 2]


def test_a_full_disk_is_named(server, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(SystemExit) as stop:
        downloads.download(server(), tmp_path / 'f')
    one_line(stop, tmp_path / 'f.part', 'free some space')


# -----------------------------------------------------------------------------
# The token


def test_the_token_goes_to_the_hub_only(server, tmp_path, monkeypatch, capsys, pauses):
    """Not to the host of a redirect, nor to one that a redirect goes back from, nor into a text."""
    monkeypatch.setenv('HF_TOKEN', TOKEN)
    monkeypatch.setenv('HF_ENDPOINT', server.address)
    server()
    port = server.httpd.server_port
    server.httpd.redirects['/gated'] = f'http://localhost:{port}/file?signature=1'
    downloads.download(f'{server.address}/gated', tmp_path / 'f', sha256=SHA256)
    assert server.httpd.tokens == [
        (f'127.0.0.1:{port}', f'Bearer {TOKEN}'),
        (f'localhost:{port}', None),
    ]
    server.httpd.tokens.clear()
    downloads.download(f'http://localhost:{port}/file', tmp_path / 'g')
    assert server.httpd.tokens == [(f'localhost:{port}', None)]
    server({'status': 503}, {'status': 403})
    with pytest.raises(SystemExit) as stop:
        downloads.download(f'{server.address}/file', tmp_path / 'h')
    one_line(stop, 'HTTP status 403', 'HF_TOKEN may be missing')
    out = capsys.readouterr()
    assert TOKEN not in out.out + out.err + str(stop.value)


def test_the_token_wins_over_netrc(server, tmp_path, monkeypatch):
    (tmp_path / 'netrc').write_text('machine 127.0.0.1 login a password b', encoding='utf-8')
    monkeypatch.setenv('NETRC', str(tmp_path / 'netrc'))
    monkeypatch.setenv('HF_TOKEN', TOKEN + '\n')
    monkeypatch.setenv('HF_ENDPOINT', server.address + '/')
    downloads.download(server(), tmp_path / 'f')
    assert [token for _, token in server.httpd.tokens] == [f'Bearer {TOKEN}']


def test_a_bad_token_or_endpoint_is_named(server, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_ENDPOINT', 'hf-mirror.example')
    with pytest.raises(SystemExit) as stop:
        downloads.endpoint()
    one_line(stop, 'HF_ENDPOINT=hf-mirror.example', 'https://')
    monkeypatch.setenv('HF_ENDPOINT', server.address)
    monkeypatch.setenv('HF_TOKEN', 'hf_se cret')
    with pytest.raises(SystemExit) as stop:
        downloads.download(server(), tmp_path / 'f')
    one_line(stop, 'HF_TOKEN')
    assert 'cret' not in str(stop.value)


# -----------------------------------------------------------------------------
# A split of the hub


class Hub:
    """Puts files on the server as the hub shows them."""

    def __init__(self, server):
        self.server = server
        self.httpd = server.httpd

    def add(self, path, content, linked=True):
        self.httpd.files[path] = content
        sha256 = hashlib.sha256(content).hexdigest()
        if linked:
            self.httpd.headers[path] = {
                'X-Linked-Size': str(len(content)),
                'X-Linked-Etag': f'"{sha256}"',
            }
        return sha256

    def split(self, repo, subset, split, contents, **more):
        """The list of a split and its files, whose addresses are those of huggingface.co."""
        api = f'/api/datasets/{repo}/parquet/{subset}/{split}'
        paths = [f'{api}/{i}.parquet' for i in range(len(contents))]
        for path, content in zip(paths, contents):
            self.add(path, content, **more)
        urls = [downloads.HUB + path for path in paths]
        self.httpd.files[api] = json.dumps(urls).encode()
        return paths

    def tree(self, repo, contents, page=1000):
        """The tree of a repository, several pages long, with its shards and a README.md."""
        api = f'/api/datasets/{repo}/tree/main'
        rows = [dict(type='file', oid='1', size=5, path='README.md')]
        for i, content in zip([*range(len(contents) - 1), 1822], contents):
            name = f'shard_{i:05d}.parquet'
            sha256 = self.add(f'/datasets/{repo}/resolve/main/{name}', content)
            lfs = dict(oid=sha256, size=len(content), pointerSize=1)
            rows.append(dict(type='file', oid='1', size=len(content), lfs=lfs, path=name))
        pages = [rows[i : i + page] for i in range(0, len(rows), page)]
        for i, part in enumerate(pages):
            path = api if i == 0 else f'{api}/{i}'  # the hub's next page has a query instead
            self.httpd.files[path] = json.dumps(part).encode()
            if i + 1 < len(pages):
                link = f'<{downloads.HUB}{api}/{i + 1}>; rel="next"'
                self.httpd.headers[path] = {'Link': link}


@pytest.fixture
def hub(server, monkeypatch):
    monkeypatch.setenv('HF_ENDPOINT', server.address)
    return Hub(server)


def fake_parquet(i, size=1000):
    return b'PAR1' + bytes([i]) * size + b'PAR1'


CONTENTS = [fake_parquet(i, 1000 + i) for i in range(12)]
FULL = ('owner/set', 'main', 'train')


def test_the_files_of_a_split(server, hub, tmp_path, capsys, pauses, monkeypatch):
    paths = hub.split(*FULL, CONTENTS)
    hub.httpd.plans[paths[3]] = [{'status': 503}, {'cut': 100}]
    hub.httpd.plans[paths[7]] = [{'content': CONTENTS[6] + b'1'}]
    folder = tmp_path / 'raw'
    found = downloads.parquet_files(*FULL, folder)
    assert [path.read_bytes() for path in found] == CONTENTS
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f'{i:05d}.parquet' for i in range(12)),
        'files.json',
    ]
    assert 'owner/set/main/train: 0.0 MB are needed in' in capsys.readouterr().out
    # again: no request; another mirror: neither
    server.seen.clear()
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
    assert downloads.parquet_files(*FULL, folder, most=2) == found[:2]
    assert server.seen == [] and capsys.readouterr().out == ''
    # a byte that the user's disk changed
    found[4].write_bytes(CONTENTS[4].replace(b'\x04', b'\x05', 1))
    with pytest.raises(SystemExit) as stop:
        downloads.parquet_files(*FULL, folder)
    one_line(stop, found[4], 'sha256 is', 'delete it and run again')
    # another set
    with pytest.raises(SystemExit) as stop:
        downloads.parquet_files('owner/set', 'main', 'test', folder)
    one_line(stop, folder / 'files.json', 'owner/set/main/train', 'owner/set/main/test')


def test_only_the_first_files(server, hub, tmp_path):
    hub.split(*FULL, CONTENTS)
    assert len(downloads.parquet_files(*FULL, tmp_path / 'raw', most=2)) == 2
    fetched = [path for path, _ in server.seen if path.endswith('.parquet')]
    assert len(list((tmp_path / 'raw').glob('*.parquet'))) == 2 and len(fetched) == 12 + 2


def test_a_mirror_that_names_itself_and_no_sizes(server, hub, tmp_path):
    paths = hub.split(*FULL, CONTENTS[:2], linked=False)
    urls = [server.address + path for path in paths]
    hub.httpd.files['/api/datasets/owner/set/parquet/main/train'] = json.dumps(urls).encode()
    found = downloads.parquet_files(*FULL, tmp_path / 'raw')
    assert [path.read_bytes() for path in found] == CONTENTS[:2]
    listed = json.loads((tmp_path / 'raw' / 'files.json').read_bytes())['files']
    assert [url for url, *_ in listed] == [downloads.HUB + path for path in paths]


def test_own_files_need_no_network(server, hub, tmp_path):
    for name in ('b.parquet', 'A.PARQUET', 'notes.txt'):
        (tmp_path / name).write_bytes(fake_parquet(1))
    found = downloads.parquet_files(*FULL, tmp_path)
    assert [path.name for path in found] == ['A.PARQUET', 'b.parquet'] and server.seen == []


@pytest.mark.parametrize(
    'content, words',
    [
        (b'[]', 'lists no files'),
        (b'[1]', 'lists no files'),
        (b'<html>', 'no JSON'),
        (b'{"error": "x"}', 'expected a list'),
        (None, 'HTTP status 404'),
    ],
)
def test_a_bad_list_is_named(hub, tmp_path, pauses, content, words):
    if content is not None:
        hub.httpd.files['/api/datasets/owner/set/parquet/main/train'] = content
    with pytest.raises(SystemExit) as stop:
        downloads.parquet_files(*FULL, tmp_path / 'raw')
    one_line(stop, '/api/datasets/owner/set/parquet/main/train', words, tmp_path / 'raw')
    assert not (tmp_path / 'raw').exists()


def test_a_moved_file_stops_the_others(server, hub, tmp_path):
    paths = hub.split(*FULL, CONTENTS)
    hub.httpd.plans[paths[0]] = [{'cut': 100}] * 5  # 15 seconds of tries, were it not stopped
    hub.httpd.plans[paths[2]] = [{'status': 404}]
    folder = tmp_path / 'raw'
    with pytest.raises(SystemExit) as stop:
        downloads.parquet_files(*FULL, folder)
    one_line(stop, paths[2], 'HTTP status 404', folder / '00002.parquet', 'list the set anew')
    hub.httpd.plans.clear()
    found = downloads.parquet_files(*FULL, folder)
    assert [path.read_bytes() for path in found] == CONTENTS
    assert not list(folder.glob('*.part'))


def test_too_little_space_is_an_error_before_the_first_byte(server, hub, tmp_path, monkeypatch):
    hub.split(*FULL, CONTENTS)
    usage = shutil.disk_usage(tmp_path)._replace(free=5000)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
    folder = tmp_path / 'raw'
    with pytest.raises(SystemExit) as stop:
        downloads.parquet_files(*FULL, folder)
    one_line(stop, folder, 'are needed', 'free some space')
    assert [path.name for path in folder.iterdir()] == ['files.json']


def test_a_second_process_waits_its_turn(hub, tmp_path):
    hub.split(*FULL, CONTENTS[:2])
    with downloads.locked(tmp_path):
        with pytest.raises(SystemExit) as stop:
            downloads.parquet_files(*FULL, tmp_path)
    one_line(stop, tmp_path, 'in use by', 'wait until it ends')
    assert '--out_dir' not in str(stop.value)
    assert len(downloads.parquet_files(*FULL, tmp_path)) == 2


# -----------------------------------------------------------------------------
# FineWeb-Edu

REPO = 'karpathy/fineweb-edu-100b-shuffle'
LAST = 5  # the shard for validation


def shard_texts(i):
    rng = np.random.default_rng(i)
    words = ['lighthouse', 'spëak', 'the', 'of', '你好🌍', '42', 'it is', '\n']
    return [' '.join(rng.choice(words, size=5 + n % 40)) for n in range(30)] + ['']


def put_shards(hub, oracle, repeats=1):
    """The set on the hub, with each text `repeats` times."""
    pyarrow, parquet = oracle('pyarrow'), oracle('pyarrow.parquet')
    contents = []
    for i in range(LAST + 1):
        sink = pyarrow.BufferOutputStream()
        texts = shard_texts(i) * repeats
        parquet.write_table(pyarrow.table({'text': texts, 'x': [i] * len(texts)}), sink)
        contents.append(sink.getvalue().to_pybytes())
    hub.tree(REPO, contents, page=4)


@pytest.fixture
def fineweb(tmp_path, hub, oracle, monkeypatch):
    """fineweb('--a=b') runs a copy of the script, in this process, on the shards of the hub."""
    put_shards(hub, oracle)
    folder = tmp_path / 'data' / 'fineweb_edu'
    folder.mkdir(parents=True)
    script = folder / 'prepare.py'
    shutil.copyfile(ROOT / 'data' / 'fineweb_edu' / 'prepare.py', script)
    bpe = tokenizers.train_bpe([''.join(shard_texts(0))], 300, SPECIAL)
    bpe.save(tmp_path / 'tok.json')
    monkeypatch.chdir(tmp_path)

    def run(*args):
        args = ('--num_workers=1', *args)
        with monkeypatch.context() as patch:
            patch.setattr(sys, 'path', list(sys.path))
            patch.setattr(sys, 'argv', [str(script), *args])
            runpy.run_path(str(script), run_name='__main__')

    run.folder, run.raw, run.bpe, run.hub = folder, folder / 'raw', bpe, hub
    run.parquet, run.pyarrow = oracle('pyarrow.parquet'), oracle('pyarrow')
    return run


def texts_in(folder):
    """{split: its documents}"""
    data = Data(folder)
    found = {}
    for split in ('train', 'val'):
        ids = data.split(split).read(0, 10**9)
        starts = np.flatnonzero(ids == data.tokenizer.bos)
        assert starts[0] == 0 and len(ids) == data.meta['splits'][split]['tokens']
        found[split] = [data.tokenizer.decode(part) for part in np.split(ids, starts[1:])]
    return found


def content_of(folder):
    names = [path.name for path in folder.iterdir() if path.is_file()]
    assert not [name for name in names if name.endswith('.part')]
    return {name: (folder / name).read_bytes() for name in names if name != 'prepare.py'}


def test_fineweb(fineweb, server, capsys):
    """Shard by shard; the last one of the set validates; a call with more shards continues."""
    fineweb('--num_shards=2', '--keep_raw=False')
    expected = dict(train=shard_texts(0)[:-1] + shard_texts(1)[:-1], val=shard_texts(LAST)[:-1])
    assert texts_in(fineweb.folder) == expected
    assert [path.name for path in fineweb.raw.iterdir()] == ['files.json']
    assert f'{REPO}: 3 files to encode: ' in capsys.readouterr().out
    first = content_of(fineweb.folder)
    # again: nothing is downloaded, nothing changes
    server.seen.clear()
    fineweb('--num_shards=2', '--keep_raw=False')
    assert server.seen == [] and content_of(fineweb.folder) == first
    # more: only the others are
    fineweb('--num_shards=4')
    assert sorted(path.name for path in fineweb.raw.iterdir()) == [
        'files.json',
        'shard_00002.parquet',
        'shard_00003.parquet',
    ]
    assert len(server.seen) == 2 and not (fineweb.folder / 'encoded').exists()
    grown = content_of(fineweb.folder)
    assert sorted(grown) == [
        'meta.json', 'tok.json', *(f'train_{i:05d}.bin' for i in range(4)), 'val.bin'
    ]  # fmt: skip
    # the same bytes at once, by two processes
    for name in grown:
        (fineweb.folder / name).unlink()
    fineweb('--num_shards=4', '--num_workers=2', '--files_at_once=1')
    assert content_of(fineweb.folder) == grown


def test_fineweb_takes_own_files_and_deletes_none(fineweb, server):
    fineweb.raw.mkdir()
    for name, texts in dict(a=shard_texts(1), b=shard_texts(2)).items():
        fineweb.parquet.write_table(
            fineweb.pyarrow.table({'text': texts}), fineweb.raw / f'{name}.parquet'
        )
    fineweb('--keep_raw=False')
    assert texts_in(fineweb.folder) == dict(train=shard_texts(1)[:-1], val=shard_texts(2)[:-1])
    assert len(list(fineweb.raw.glob('*.parquet'))) == 2 and server.seen == []
    # a changed file is encoded anew
    fineweb.parquet.write_table(
        fineweb.pyarrow.table({'text': shard_texts(3)}), fineweb.raw / 'a.parquet'
    )
    fineweb()
    assert texts_in(fineweb.folder)['train'] == shard_texts(3)[:-1]


def test_fineweb_with_another_tokenizer(fineweb, server):
    fineweb('--num_shards=1')
    before = Data(fineweb.folder).tokenizer.hash
    tokenizers.train_bpe([''.join(shard_texts(0))], 290, SPECIAL).save('other.json')
    fineweb('--num_shards=1', '--tokenizer=other.json')
    assert Data(fineweb.folder).tokenizer.hash != before
    assert texts_in(fineweb.folder)['train'] == shard_texts(0)[:-1]


def test_fineweb_for_a_tokenizer(fineweb, run_program, tmp_path):
    """The tokenizer learns from the first shards, never from the one for validation."""
    (tmp_path / 'tok.json').unlink()
    with pytest.raises(SystemExit) as stop:
        fineweb('--num_shards=2')
    one_line(stop, '--tokenizer=tok.json', 'config/tokenizer_65536.py', '--download_only=True')
    fineweb('--num_shards=4', '--first_shards=2', '--download_only=True')
    assert len(list(fineweb.raw.glob('*.parquet'))) == 3 and not content_of(fineweb.folder)
    config = ROOT / 'config' / 'tokenizer_65536.py'
    run_program('tokenizer.py', config, '--vocab_size=300', '--num_workers=1', cwd=tmp_path)
    made = tokenizers.load('tok.json')
    texts = [text for i in (0, 1) for text in shard_texts(i)]
    assert made.hash == tokenizers.train_bpe(texts, 300, SPECIAL).hash
    fineweb('--num_shards=2')
    assert Data(fineweb.folder).tokenizer.hash == made.hash


@pytest.mark.parametrize(
    'columns, words',
    [
        (dict(txet=['a']), 'with a column "text"'),
        (dict(text=[]), 'no text in it'),
        (dict(text=['', '']), 'no text in it'),
        (dict(text=[3]), '"text" must be a string'),
    ],
)
def test_fineweb_names_a_bad_shard(fineweb, columns, words):
    sink = fineweb.pyarrow.BufferOutputStream()
    fineweb.parquet.write_table(fineweb.pyarrow.table(columns), sink)
    hub = fineweb.hub
    good = hub.httpd.files[f'/datasets/{REPO}/resolve/main/shard_00000.parquet']
    hub.tree(REPO, [good, sink.getvalue().to_pybytes(), good])
    before = set(threading.enumerate())  # tests of training may have left some
    with pytest.raises(SystemExit) as stop:
        fineweb('--num_shards=2')
    one_line(stop, fineweb.raw / 'shard_00001.parquet', words)
    new = [thread.name for thread in set(threading.enumerate()) - before]
    assert not [name for name in new if name.startswith('ThreadPoolExecutor')]
    assert not list(fineweb.folder.glob('*.bin')) and not (fineweb.folder / 'meta.json').exists()


def test_fineweb_errors(fineweb, monkeypatch):
    for args, words in [
        (['--num_shards=0'], '--num_shards=0: expected at least 1'),
        (['--files_at_once=0'], '--files_at_once=0: expected at least 1'),
        (['--num_workers=-1'], '--num_workers=-1: expected at least 0'),
        (['--num_shards=6'], f'--num_shards=6: {REPO} has 6 files, so at most 5'),
        (['--repo=karpathy/other'], f'files.json lists {REPO}, expected karpathy/other'),
    ]:
        with pytest.raises(SystemExit) as stop:
            fineweb(*args)
        one_line(stop, words)
    usage = shutil.disk_usage(fineweb.folder)._replace(free=1000)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
    with pytest.raises(SystemExit) as stop:
        fineweb('--num_shards=2')
    one_line(stop, f'{REPO}: 3 files to encode', 'free some space')
    assert [path.name for path in fineweb.raw.iterdir()] == ['files.json']


@pytest.mark.slow
def test_fineweb_killed_and_called_again_gives_the_same_bytes(fineweb, server, oracle, tmp_path):
    put_shards(fineweb.hub, oracle, repeats=2500)  # more ids than are collected before a write
    # 1) What an undisturbed call writes
    args = ['--num_shards=4', '--keep_raw=False', '--num_workers=2']
    fineweb(*args)
    expected = content_of(fineweb.folder)
    for path in [*expected, 'raw/files.json']:
        (fineweb.folder / path).unlink()
    # 2) Kill calls that wait for a download: before others are encoded, after, and in between
    hold = threading.Event()
    script = fineweb.folder / 'prepare.py'
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'HF_ENDPOINT': server.address}
    for number, num_workers, is_there in [
        (1, 2, 'raw/shard_00001.parquet.part'),
        (1822, 2, 'encoded/shard_00001.parquet/meta.json'),
        (1822, 1, 'encoded/shard_00003.parquet/train_00000.bin.part'),
    ]:
        path = f'/datasets/{REPO}/resolve/main/shard_{number:05d}.parquet'
        fineweb.hub.httpd.plans[path] = [{'cut': 200, 'hold': hold}]
        command = [sys.executable, script, *args, f'--num_workers={num_workers}']
        process = subprocess.Popen(command, cwd=tmp_path, env=environment)
        deadline = time.monotonic() + PATIENCE
        while not (fineweb.folder / is_there).exists():
            assert process.poll() is None, is_there
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert not (fineweb.folder / 'meta.json').exists()
    hold.set()
    # 3) The next call completes it
    fineweb(*args)
    assert content_of(fineweb.folder) == expected
    assert [path.name for path in fineweb.raw.iterdir()] == ['files.json']
