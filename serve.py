"""
Serve a model: the API of OpenAI for any of its clients, and a page to chat with.

    $ pip install ".[web]"                          # once: FastAPI and uvicorn
    $ python serve.py                               # the newest checkpoint, http://127.0.0.1:8000
    $ python serve.py --out_dir=out/tinyworld/rl --port=9000
    $ python serve.py --host=0.0.0.0 --api_key=…    # for other machines; a key is required then
    $ curl http://127.0.0.1:8000/v1/chat/completions \\
        -d '{"messages": [{"role": "user", "content": "Who are you?"}]}'

OpenAI's: GET /v1/models, /v1/models/{id}; POST /v1/chat/completions, /v1/completions. Beside its
fields a request may have top_k, min_p, repetition_penalty (as vLLM names them), and

    return_token_ids    true: choices have token_ids (the new ids) and part, the part of the answer
                        they belong to: text | python (a call) | output (the tool's answer). Text of
                        the latter two is in delta.tool_text, and delta.content is ''. A whole
                        choice has parts. Tokens of logprobs have token_id. Without it an answer is
                        its text parts only.
    answer_ids          ids with which the answer begins; what follows them is returned
    truncation          "auto": the oldest turns are dropped where messages do not fit the context,
                        and `dropped` in the answer says how many. "disabled": refused instead

Ours: GET / is the page, /health says what runs, /api/about describes the model, POST /api/prompt
{messages, answer_ids} shows the ids that the model sees.

One thread owns the engine. Handlers of requests give it orders through a queue, and it hands events
to their event loop. A client that leaves cancels its request. If a step of the engine fails, the
requests that run are answered with an error, and the server goes on.

Left out on purpose: TLS and more than one model (put a proxy before it), images, tools of clients.
"""

import asyncio
import hmac
import ipaddress
import json
import queue
import re
import signal
import socket
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves this folder out

import console
import protocol
from configurator import check_ranges, configure
from conversation import refuse_constant
from dialogue import open_engine
from engine import Engine, Event, Request
from pretrained import HUB_FOLDER
from protocol import Answer, Call, Refused, Served
from sampling import Sampling
from utf8 import valid_text

# The model
out_dir = ''  # folder of best.pt or ckpt.pt, or a .pt file; '' is the newest of out/, out-*/
model_name = ''  # its id in the API; '' is made from the path
device = 'auto'  # auto, cpu, cuda, cuda:1, mps
dtype = 'auto'  # auto, float32, bfloat16, float16, float64
compile = False  # torch.compile the model; pays off on a GPU only

# Who may ask
host = '127.0.0.1'  # address to listen on; 0.0.0.0 is every one of this machine
port = 8000  # 0 takes a free one
api_key = ''  # clients must send it; a config file hides it from `ps`

# How to sample where a request does not say
temperature = 0.3  # lower is safer, higher more varied, 0 the likeliest token
top_k = 200  # keep the k likeliest tokens; 0 keeps all
top_p = 1.0  # keep the likeliest tokens that reach this probability together; 1 keeps all
max_tokens = 500  # most tokens of a chat's answer

# Limits
max_rows = 64  # answers in progress at once; others wait
max_bytes = 2**32  # of keys and values, at most; others wait too where they would need more
max_requests = 128  # requests in progress or waiting; further ones are answered 429
max_body = 2**20  # bytes of a request
time_limit = 300  # seconds for a request, after which its answer is cut
stall_limit = 30  # seconds in which a client must send a request, or read a piece of its answer

console.set_up(must_finish=True)
config = configure(globals())

PAGE = Path(__file__).resolve().parent / 'chat.html'
RETRY_AFTER = '1'  # seconds, with 429 and 503
GRACE = 5  # seconds in which open streams end when the server stops

# -----------------------------------------------------------------------------
# the thread that owns the engine


class Job:
    """A call on its way through the engine. Its events arrive in the event loop that made it."""

    def __init__(self, call: Call):
        self.call = call
        self.loop = asyncio.get_running_loop()
        self.arrived = asyncio.Event()
        self.events: list[tuple[int, Event]] = []  # (number of the choice, event), not read yet
        self.unfinished = call.choices
        self.error: Refused | None = None

    def deliver(self, events: list[tuple[int, Event]], error: Refused | None = None):
        self.events += events
        self.error = error
        self.arrived.set()

    async def read(self) -> list[tuple[int, Event]]:
        """The next events, [] after the last. Refused if the engine has failed after them."""
        if not self.unfinished:
            return []
        await self.arrived.wait()
        events = self.events
        self.events = []
        if self.error and not events:
            raise self.error
        if not self.error:
            self.arrived.clear()
        self.unfinished -= sum(event.finish_reason is not None for _, event in events)
        return events


class Worker(threading.Thread):
    """The thread that owns the engine. Its methods below run in it; handlers call order()."""

    def __init__(
        self, engine: Engine, autocast: AbstractContextManager | None = None,
        at_end: Callable[[], None] = lambda: None,
    ):  # fmt: skip
        super().__init__(name='engine', daemon=True)
        self.engine = engine
        self.autocast = autocast or nullcontext()
        self.at_end = at_end  # called if the thread ends by an error
        self.failed = False
        self.orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.running: dict[Request, tuple[Job, int]] = {}  # and the number of its first choice

    def order(self, method: Callable | None, *arguments):
        """Have the thread call the method before its next step; None ends the thread."""
        self.orders.put(method and partial(method, *arguments))

    def run(self):
        try:
            with self.autocast:
                while self.obey():
                    self.step()
        except BaseException:
            self.failed = True
            self.at_end()
            raise

    def obey(self) -> bool:
        """Follow all orders; wait for one if nothing runs. False: the thread shall end."""
        while True:
            try:
                order = self.orders.get(block=not self.running)
            except queue.Empty:
                return True
            if order is None:
                return False
            order()

    def submit(self, job: Job):
        # 1) An answer that was complete already
        call = job.call
        if not call.prompts:
            events = [(i, Event(None, i, [], '', None, 'stop')) for i in range(call.choices)]
            job.loop.call_soon_threadsafe(job.deliver, events)
        # 2) The others
        for number, ids in enumerate(call.prompts):
            try:
                request = self.engine.submit(ids, call.max_tokens, call.sampling, call.n, number)
            except ValueError as error:  # what protocol.py has not checked
                return job.loop.call_soon_threadsafe(job.deliver, [], Refused(str(error)))
            self.running[request] = (job, number * call.n)

    def cancel(self, job: Job | None = None):
        """End a job, or all, with what was said so far."""
        for request, (owner, _) in self.running.items():
            if job in (None, owner):
                self.engine.cancel(request)

    def step(self):
        # 1) Step
        try:
            events = self.engine.step()
        except Exception as error:
            traceback.print_exc()
            return self.fail(error)

        # 2) Hand the events to their jobs
        delivered: dict[Job, list] = {}
        for event in events:
            job, first = self.running.get(event.request, (None, 0))
            if job:  # not one that has failed before
                delivered.setdefault(job, []).append((first + event.sample, event))
        for job, pairs in delivered.items():
            job.loop.call_soon_threadsafe(job.deliver, pairs)
        self.running = {r: owner for r, owner in self.running.items() if not r.done}

    def fail(self, error: Exception):
        """Answer all jobs with an error, and go on without them."""
        reason = str(error).partition('\n')[0][:200]
        message = f'the model failed: {type(error).__name__}: {reason}'
        refused = Refused(message, status=500, code='engine_failed')
        for job in {job for job, _ in self.running.values()}:
            job.loop.call_soon_threadsafe(job.deliver, [], refused)
        for request in self.running:
            self.engine.cancel(request)
        self.running = {}


# -----------------------------------------------------------------------------
# requests


class Service:
    """What the handlers of requests share."""

    def __init__(self, model: Served, worker: Worker, about: dict):
        self.model = model
        self.worker = worker
        self.about = about
        self.open = 0  # requests that hold one of max_requests places
        self.stopping = False
        self.connections = lambda: 0  # how many are open; the server knows
        self.reader = ThreadPoolExecutor(1, 'reader')  # encodes prompts beside the event loop

    def enter(self, request):
        """Take a place for a request until leave(). Refused if there is none."""
        if self.stopping:
            raise Refused('the server is stopping', status=503)
        if self.open >= max_requests:
            message = f'{self.open} requests are in progress, expected fewer than {max_requests}'
            raise Refused(f'{message}: try again', status=429, code='rate_limit_exceeded')
        self.open += 1
        request.scope['entered'] = True

    def start(self, call: Call, scope: dict) -> Job:
        job = Job(call)
        timer = job.loop.call_later(time_limit, self.worker.order, self.worker.cancel, job)
        scope['job'] = (job, timer)
        self.worker.order(self.worker.submit, job)
        if self.stopping:  # since enter()
            self.stop()
        return job

    def leave(self, scope: dict):
        """After a request, whatever became of it."""
        if scope.pop('entered', False):
            self.open -= 1
        job, timer = scope.pop('job', (None, None))
        if job:
            timer.cancel()
            if job.unfinished:
                self.worker.order(self.worker.cancel, job)

    def health(self) -> dict:
        return dict(
            status='ok', requests=self.open, running=len(self.worker.running),
            blocks=self.worker.engine.blocks_in_use, connections=self.connections(),
        )  # fmt: skip

    def stop(self):
        """Refuse further requests and end those that run."""
        self.stopping = True
        self.worker.order(self.worker.cancel)


async def read_body(request) -> dict:
    """The JSON of a request."""
    from starlette.requests import ClientDisconnect

    # 1) Its bytes. Those of a body that is too large are read too, up to a point: a client that
    # still writes would not see the answer
    body = b''
    size = 0

    async def read():
        nonlocal body, size
        async for piece in request.stream():
            size += len(piece)
            body += piece if size <= max_body else b''
            if size > 16 * max_body:
                break

    try:
        await asyncio.wait_for(read(), stall_limit)
    except asyncio.TimeoutError:
        message = f'the body did not arrive in {stall_limit} seconds'
        raise Refused(message, status=408) from None
    except ClientDisconnect:
        raise Refused('the body broke off') from None
    if size > max_body:
        message = f'the body has more bytes than max_body = {max_body}'
        raise Refused(message, status=413, code='request_too_large')

    # 2) JSON
    try:
        return valid_text(json.loads(body.decode('utf-8'), parse_constant=refuse_constant))
    except (ValueError, RecursionError) as error:
        raise Refused(f'the body is not JSON: {str(error)[:200]}') from None


async def admit(request, service: Service, read: Callable[[dict, Served], Any]) -> Any:
    """Let a request in, and read it with a function of protocol.py."""
    service.enter(request)
    body = await read_body(request)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(service.reader, read, body, service.model)


async def answer(request, service: Service, read: Callable[[dict, Served], Call]):
    """The response to a completion of either kind. read: of protocol.py."""
    from fastapi.responses import JSONResponse, StreamingResponse

    # 1) Read the request
    call = await admit(request, service, read)

    # 2) Wait for its first token: until then an error has a status of its own
    job = service.start(call, request.scope)
    found = Answer(call, service.model)
    leaving = asyncio.ensure_future(cancel_if_gone(request, job, service.worker))
    try:
        events = await job.read()
        if all(event.finish_reason == 'cancelled' and not event.text for _, event in events):
            raise Refused('there was no time for this request', status=429, code='timeout')
        # 3) A stream
        if call.stream:
            headers = {'Cache-Control': 'no-cache', 'X-Accel-Buffering': 'no'}
            body = stream(job, found, events)
            return StreamingResponse(body, media_type='text/event-stream', headers=headers)
        # 4) Or a whole answer
        while events:
            for index, event in events:
                for _ in found.add(index, event):
                    pass
            events = await job.read()
        return JSONResponse(found.whole())
    finally:
        leaving.cancel()


async def cancel_if_gone(request, job: Job, worker: Worker):
    while (await request.receive())['type'] != 'http.disconnect':
        pass
    worker.order(worker.cancel, job)


async def stream(job: Job, found: Answer, events: list) -> AsyncIterator[str]:
    """The blocks of a stream, those of one step together."""
    try:
        while events:
            chunks = [chunk for pair in events for chunk in found.add(*pair)]
            if chunks:
                yield ''.join(map(block, chunks))
            events = await job.read()
        if job.call.include_usage:
            yield block(found.last_chunk())
    except Refused as error:
        yield block(error.body())
    yield 'data: [DONE]\n\n'


def block(data: dict) -> str:
    return f'data: {json.dumps(data, ensure_ascii=False, separators=(",", ":"))}\n\n'


def error_response(error: Refused):
    from fastapi.responses import JSONResponse

    headers = {'Retry-After': RETRY_AFTER} if error.status in (429, 503) else None
    return JSONResponse(error.body(), error.status, headers)


def make_app(service: Service):
    """The routes."""
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse
    from starlette.exceptions import HTTPException

    # 1) Errors, all in the form of OpenAI's
    app = FastAPI(openapi_url=None)

    @app.exception_handler(Refused)
    async def refused(request, error):
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def wrong_path(request, error):
        message = f'{request.method} {request.url.path:.200}: {error.detail}'
        return error_response(Refused(message, status=error.status_code))

    @app.exception_handler(Exception)
    async def failed(request, error):
        return error_response(Refused('the server failed, see its terminal', status=500))

    # 2) OpenAI's
    card = protocol.card(service.model)

    @app.get('/v1/models')
    async def models():
        return dict(object='list', data=[card])

    @app.get('/v1/models/{name:path}')
    async def one_model(name: str):
        protocol.check_name(name, service.model)
        return card

    @app.post('/v1/chat/completions')
    async def chat(request: Request):
        return await answer(request, service, protocol.read_chat)

    @app.post('/v1/completions')
    async def completion(request: Request):
        return await answer(request, service, protocol.read_completion)

    # 3) Ours
    @app.get('/')
    async def page():
        return HTMLResponse(PAGE.read_bytes(), headers={'X-Frame-Options': 'DENY'})

    @app.get('/health')
    async def health():
        return service.health()

    @app.get('/api/about')
    async def about():
        return service.about

    @app.post('/api/prompt')
    async def prompt(request: Request):
        return await admit(request, service, protocol.describe_prompt)

    return app


# -----------------------------------------------------------------------------
# who may ask


class Gate:
    """
    Around the app (ASGI middleware): who may ask, and what is left to do after a request.

    Any page that a browser shows can send requests to this machine. Its Origin is that of its own
    site, unless the site's name has been pointed here (DNS rebinding); then Host is that name. A
    page does not know the key, so with a key any Host is allowed.
    """

    def __init__(self, app, service: Service):
        self.app = app
        self.service = service

    async def __call__(self, scope, receive, send):
        if scope['type'] != 'http':  # the start and the end of the server
            return await self.app(scope, receive, send)
        try:
            check_sender(scope)
            await self.app(scope, receive, send)
        except Refused as error:
            await error_response(error)(scope, receive, send)
        except Exception:
            traceback.print_exc()  # the app has answered with an error
        finally:
            self.service.leave(scope)


def check_sender(scope: dict):
    """Refused for a request that another site's page makes, or that lacks the key."""
    headers = dict(scope['headers'])  # bytes, names in lower case
    at, origin, sent = (
        headers.get(name, b'').decode('latin-1') for name in (b'host', b'origin', b'authorization')
    )

    # 1) Host
    name = re.sub(r':\d*$', '', at).strip('[]')
    if not api_key and not is_loopback(name):
        message = f'Host is {at!r:.100}, expected localhost or 127.0.0.1 (or start with --api_key)'
        raise Refused(message, status=403)

    # 2) Origin, which browsers send with what a page asks for
    if b'origin' in headers and origin.partition('://')[2] != at:
        raise Refused(f"Origin is {origin!r:.100}, expected this server's own page", status=403)

    # 3) The key. The page asks for it
    public = scope['path'] in ('/', '/health')
    key = sent.removeprefix('Bearer ').encode('latin-1')
    if api_key and not public and not hmac.compare_digest(key, api_key.encode()):
        raise Refused('the API key is missing or wrong', status=401, code='invalid_api_key')


def is_loopback(name: str) -> bool:
    try:
        return name == 'localhost' or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


# -----------------------------------------------------------------------------
# the server


def make_server(app, service: Service):
    """uvicorn's server, which waits forever for a client that neither sends nor reads: ours does
    not. When it stops, streams end properly."""
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        def connection_made(self, transport):
            super().connection_made(transport)
            self.timer = self.loop.call_later(stall_limit, self.end_if_idle, None)

        def end_if_idle(self, before):
            """Close a connection on which nothing was asked or answered since the last look."""
            cycle = self.cycle
            waits = cycle is None or cycle.response_complete or self.transport.is_closing()
            if waits and cycle is before:
                self.transport.abort()
            else:
                self.timer = self.loop.call_later(stall_limit, self.end_if_idle, cycle)

        def pause_writing(self):  # the client does not read: buffers are full
            super().pause_writing()
            self.stalled = self.loop.call_later(stall_limit, self.transport.abort)

        def resume_writing(self):
            super().resume_writing()
            self.stalled.cancel()

        def connection_lost(self, exc):
            self.timer.cancel()
            super().connection_lost(exc)

    class Server(uvicorn.Server):
        async def shutdown(self, sockets=None):
            service.stop()
            await super().shutdown(sockets)
            service.worker.order(None)

    settings = uvicorn.Config(
        app, http=Protocol, ws='none', lifespan='off', log_level='critical', access_log=False,
        timeout_graceful_shutdown=GRACE, server_header=False,
    )  # fmt: skip
    server = Server(settings)
    service.connections = lambda: len(server.server_state.connections)
    return server


def listen() -> socket.socket:
    """A socket at host and port. SystemExit of one line if it cannot be had."""
    local = is_loopback(host)
    if not local and not api_key:
        raise SystemExit(
            f'host is {host!r}, which other machines can reach: choose a key for them with '
            '--api_key=…, or leave out --host'
        )
    try:
        family = socket.AF_INET6 if ':' in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or error
        raise SystemExit(
            f'cannot listen on host {host}, port {port} ({reason}); take another --port'
        ) from None


def name_of(path: Path, stage: str) -> str:
    """
    The model's id, from the path of its checkpoint:

        small.pt                       small
        out/tinyworld/rl/ckpt.pt       tinyworld-rl
        /tmp/x/config.json             x                (hf:/tmp/x)
        data/hub/owner/x/config.json   owner-x          (hf:owner/x)
    """
    if path.stem not in ('ckpt', 'best', 'config'):  # the last is of a Hugging Face folder
        return path.stem
    # Two folders where the first one says more: the run of a stage, or who owns a repository
    folder = path.resolve().parent
    is_ours = 'out' in folder.parts[:-1] or HUB_FOLDER.resolve() in folder.parents
    names = folder.parts[-2:] if is_ours or folder.name == stage else [folder.name]
    return '-'.join(name for name in names if name != 'out') or 'flatgpt'


def describe(opened, model: Served) -> dict:
    """What /api/about says."""
    said = opened.state.get('about') or {}
    usual = model.sampling
    return dict(
        model=model.name, path=str(opened.path), stage=opened.state['stage'],
        step=opened.state['step'], parameters=model.engine.model.num_params(),
        context=model.engine.context, can_chat=not model.why_no_chat,
        about=said.get('about', ''), prompts=said.get('prompts', []),
        temperature=usual.temperature, top_k=usual.top_k, top_p=usual.top_p, min_p=usual.min_p,
        repetition_penalty=usual.repetition_penalty, max_tokens=model.max_tokens,
    )  # fmt: skip


def main():
    # 1) Settings
    least = dict.fromkeys(('max_tokens', 'max_rows', 'max_bytes', 'max_requests', 'max_body'), 1)
    least |= dict(port=0, time_limit=1, stall_limit=1)
    check_ranges(config, least=least, most=dict(port=65535))
    try:
        sampling = Sampling(temperature, top_k, top_p)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise SystemExit(
            f'{error.name} is missing, which serve.py needs; run: pip install ".[web]"'
        ) from None

    # 2) The model
    listener = listen()
    opened = open_engine(out_dir, device, dtype, compile, max_rows=max_rows, max_bytes=max_bytes)
    name = model_name or name_of(opened.path, opened.state['stage'])
    created = int(opened.path.stat().st_mtime)
    served = Served(name, opened.engine, opened.why_no_chat, created, sampling, max_tokens)
    if opened.why_no_chat:
        print(f'/v1/completions only: {opened.why_no_chat}', file=sys.stderr)

    # 3) Serve it until a signal, or until the engine's thread has died
    worker = Worker(opened.engine, opened.autocast())
    service = Service(served, worker, describe(opened, served))
    server = make_server(Gate(make_app(service), service), service)

    def stop(*_):
        server.should_exit = True

    worker.at_end = stop
    worker.start()
    for number in (signal.SIGINT, signal.SIGTERM):  # before and after uvicorn's own handlers
        signal.signal(number, stop)
    at = f'[{host}]' if ':' in host else host
    print(f'at most {max_rows} answers at once', file=sys.stderr)
    print(f'keys and values: {opened.engine.cache_size}', file=sys.stderr)
    print(f'serving {name} at http://{at}:{listener.getsockname()[1]}', flush=True)
    server.run(sockets=[listener])
    worker.join(GRACE)
    if worker.failed:
        raise SystemExit('the thread of the engine has ended, see the error above; start it again')
    print('stopped', flush=True)


if __name__ == '__main__':
    main()
