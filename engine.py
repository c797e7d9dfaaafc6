"""
What samples: a model, a tokenizer and a cache of keys and values make texts, any number of them at once.

    engine = Engine(model, tokenizer)
    for sample in engine.generate([ids], max_tokens=100, sampling=Sampling(temperature=0.8, top_k=200)):
        print(tokenizer.decode(sample.ids), sample.finish_reason)

or, where requests come and go, submit() whenever one arrives and step() as long as something runs. A step is one more
token for every row. A prompt that arrives meanwhile is read in a forward of its own and its rows join the batch; a row
that ends makes room for one that waits.

Every row draws from a random stream of its own, so what it says does not depend on who else is asked. (Up to rounding:
with other neighbours the batch has another shape, and the last bits of float32 logits may differ. With rows and slots
all forwards have one shape, and a row says the same to the bit.)

A conversation is a matter of special tokens: with chat=Chat(tokenizer), tool=calculate a row samples those that the
assistant may say where it stands, and no other. When it ends a call, the tool's answer is queued and fed to it one id a
step, in place of sampled ones: that is all a tool call is. Without a conversation's header a prompt is plain text: only
<|bos|> may be sampled there; it ends the text and is not returned.

Left out on purpose: HTTP, chat templates, rewards, reading files.
"""

import codecs
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from model import GPT, GPTConfig, ceil_to

SLOTS = 64  # the cache grows, and is looked at, in blocks of so many slots: few shapes for kernels and compilers
CALLS = 8  # of the tool, in one answer
PREFILL_TOKENS = 2**14  # at most so many, padding included, are read in one forward; one prompt may be longer
PROMPTS, CHUNK = 16, 32  # at a fixed shape a prefill is so many prompts by so many tokens


class KVCache:
    """Keys and values of each row's tokens so far: GPT.forward writes into it, here it is allocated and reordered.

    keys, values (n_layer, B, n_kv_head, S, head_dim); lengths (B,) int64, how many slots of each row are valid; width,
    how many slots to look at: no fewer than the longest row has when the next tokens are written, no more than S.
    """

    def __init__(self, config: GPTConfig, rows: int, slots: int, dtype=torch.float32, device='cpu'):
        self.limit = config.block_size
        shape = (config.n_layer, rows, config.n_kv_head, 0, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.width = 0
        self.reserve(slots)

    def reserve(self, slots: int):
        """Room for rows of this length, and a width to match. Capacity doubles, so a long text is rarely copied."""
        if slots > self.limit:
            raise ValueError(f'the cache was asked for {slots} slots, expected at most block_size = {self.limit}')
        capacity = self.keys.shape[3]
        if slots > capacity:
            capacity = min(ceil_to(max(slots, 2 * capacity), SLOTS), self.limit)
            more = (0, 0, 0, capacity - self.keys.shape[3])  # zeros, not empty: 0 times a stray NaN would be NaN
            self.keys, self.values = F.pad(self.keys, more), F.pad(self.values, more)
        self.width = min(ceil_to(slots, SLOTS), capacity)

    def reorder(self, index: torch.Tensor):
        """Row i becomes what row index[i] was; rows may be left out or repeated."""
        self.keys, self.values = self.keys[:, index], self.values[:, index]
        self.lengths = self.lengths[index]

    def put(self, places: list[int], other: 'KVCache', index: list[int]):
        """Row places[i] becomes row index[i] of the other cache. Places that are not there yet are added."""
        slots, more = int(other.lengths.max()), max(places) + 1 - len(self.lengths)
        if slots > self.keys.shape[3]:
            self.reserve(slots)
        if more > 0:
            behind = (0, 0, 0, 0, 0, 0, 0, more)
            self.keys, self.values = F.pad(self.keys, behind), F.pad(self.values, behind)
            self.lengths = F.pad(self.lengths, (0, more))
        self.keys[:, places, :, :slots] = other.keys[:, index, :, :slots]
        self.values[:, places, :, :slots] = other.values[:, index, :, :slots]
        self.lengths[places] = other.lengths[index]


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. A value out of range is a ValueError that names it."""

    temperature: float = 1.0  # divides the logits; 0 takes the likeliest token
    top_k: int | None = None  # only the k likeliest tokens; None, 0 and more than there are: all
    top_p: float = 1.0  # only the likeliest tokens that together reach this probability (Holtzman et al., 2019)
    seed: int | tuple[int, ...] = 0  # a row's stream is that of (seed, number of the prompt, number of the sample)
    stop: tuple[int, ...] = ()  # ids that end a text besides <|bos|>; like it they are not returned

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f'temperature is {self.temperature}, expected a finite number of at least 0')
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f'top_k is {self.top_k}, expected None or a number of at least 0')
        if not 0 < self.top_p <= 1:
            raise ValueError(f'top_p is {self.top_p}, expected more than 0 and at most 1')
        if min(np.atleast_1d(self.seed), default=0) < 0:
            raise ValueError(f'seed is {self.seed}, expected a number of at least 0')

    def stream(self, number: int, sample: int, count: int) -> list[float]:
        """Uniform numbers in [0, 1), one for each id of a row. A longer stream begins like a shorter one."""
        seed = np.random.SeedSequence(self.seed, spawn_key=(number, sample))
        return np.random.Generator(np.random.PCG64(seed)).random(count).tolist()

    def draw(self, logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        """Ids (B,) from logits (B, V), -inf where a token must not be said, by uniform (B,) float64 in [0, 1).

        The id is where the cumulated probability passes the uniform number; every row is treated by itself. top_k works
        before top_p.
        """
        if self.temperature == 0:
            return logits.argmax(-1)
        ids = None
        if self.top_k or self.top_p < 1:
            logits, ids = logits.topk(min(self.top_k or logits.shape[1], logits.shape[1]))  # the likeliest first
        distance = (logits - logits.amax(-1, keepdim=True)).double()  # no overflow at 1e-40 either
        cumulated = (distance / self.temperature).exp().cumsum(-1)
        total = cumulated[:, -1:]
        if self.top_p < 1:  # a token stays if those before it have not yet reached top_p
            total = cumulated.gather(1, torch.searchsorted(cumulated, self.top_p * total))
        drawn = torch.searchsorted(cumulated, uniform[:, None] * total, right=True)
        return (drawn if ids is None else ids.gather(1, drawn))[:, 0]


@dataclass(eq=False)
class Sample:
    """One continuation of a request, complete once finish_reason is set; until then it waits, or is a row."""

    request: 'Request'
    index: int  # which of the request's n
    uniform: list[float]  # what the row's ids are drawn with, one each
    speakable: frozenset[int]  # the special tokens that may be sampled next
    ids: list[int] = field(default_factory=list)  # all after the prompt but an id that ends plain text
    logprobs: list[float] = field(default_factory=list)  # of ids, see Event
    spoken: list[bool] = field(default_factory=list)  # of ids: sampled, not forced
    text: str = ''  # of the text parts: neither calls nor outputs
    finish_reason: str | None = None  # stop | length | context | cancelled
    part: str = 'text'  # what is said now: text | python (a call) | output (what the tool answered)
    forced: deque[int] = field(default_factory=deque)  # ids to come in place of sampled ones
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder('utf-8')('replace'))

    @property
    def cached(self) -> int:
        """Tokens in the cache: the prompt and all that was said but the last, which goes in at the next step."""
        return len(self.request.prompt) + len(self.ids) - 1


@dataclass(eq=False)
class Request:
    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    samples: list[Sample] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return all(sample.finish_reason for sample in self.samples)


class Event(NamedTuple):
    """What a step brought to one row. The texts of its events add up, part by part, to what the row says and never hold
    half a character.

    logprob, in nats, is that of the id that came, also if it ends the text or was forced: log-softmax of the model's
    logits over its whole vocabulary, at temperature 1 and before any filter.
    """

    request: Request
    sample: int
    ids: list[int]  # one; none where the row was cancelled or the id that came ends plain text
    text: str  # may be empty: a character can take several tokens, and a special token is no text
    logprob: float | None  # None where the row was cancelled
    finish_reason: str | None = None  # stop | length | context | cancelled
    part: str = 'text'  # what the text belongs to: text | python (a call) | output (what the tool answered)


class Engine:
    """The model's training mode is left as it was found. The tokenizer may know fewer ids than the model, not more.

    chat: a conversation.Chat, or None where all prompts are plain text. tool: answers the text of a call, or raises
    ValueError; None: there are no calls. max_rows: as many rows are there at most, other samples wait. rows and slots:
    each decoding forward has exactly so many rows, in use or not, and looks at so many slots of the cache, rounded up
    to 64; slots is then the longest context.
    """

    def __init__(
        self, model: GPT, tokenizer, chat=None, tool: Callable[[str], str] | None = None,
        rows: int | None = None, slots: int | None = None, max_rows: int = 256,
    ):  # fmt: skip
        config, known = model.config, tokenizer.vocab_size
        if known > config.vocab_size:
            raise ValueError(f'the tokenizer has {known} ids, expected at most the {config.vocab_size} of the model')
        self.context = config.block_size if slots is None else slots  # the longest, prompt included
        self.fixed_rows, self.max_rows = rows, max_rows if rows is None else rows
        if (rows is None) != (slots is None) or self.max_rows < 1 or not 0 < self.context <= config.block_size:
            expected = f'expected neither, or at least 1 row and 1 to block_size = {config.block_size} slots'
            raise ValueError(f'rows is {rows}, slots is {slots} and max_rows is {max_rows}, {expected}')
        self.model, self.tokenizer, self.chat, self.tool = model, tokenizer, chat, tool
        self.stop = chat.stop if chat else frozenset()
        self.special = frozenset(tokenizer.special.values())
        home = model.transformer.wte.weight.device
        # where ids are drawn: on a card there, since a CPU takes a tenth of a second or more for 64 rows of 65,536
        # logits (LOG.md); else on the CPU, for MPS has returned garbage, and a card's cumsum is not deterministic
        self.home = home if home.type == 'cuda' and not torch.are_deterministic_algorithms_enabled() else 'cpu'
        self.unspeakable = torch.arange(config.vocab_size, device=self.home) >= known
        self.unspeakable[list(self.special)] = True  # what a row may say of them it says itself
        self.rows: list[Sample | None] = []  # row i of the cache; None is free
        self.waiting: list[Sample] = []  # their prompts are read as soon as there are rows for them
        self.notices: list[Event] = []  # the next step's first events
        self.cache: KVCache | None = None

    def submit(self, ids: Sequence[int], max_tokens: int, sampling: Sampling, n: int = 1, number: int = 0) -> Request:
        """Ask for n continuations of a prompt, of at most max_tokens each; they begin with the next step, or as soon as
        there are rows for them.

        number tells prompts with the same seed apart: the same prompt, seed and number give the same samples.
        """
        ids, known = list(ids), len(self.unspeakable)
        if not 0 < len(ids) <= self.context:
            name = 'slots' if self.fixed_rows else 'block_size'
            raise ValueError(f'the prompt has {len(ids)} tokens, expected 1 to {name} = {self.context}')
        if not 0 <= min(ids) <= max(ids) < known:
            raise ValueError(f'the prompt has ids {min(ids)} to {max(ids)}, expected 0 to {known - 1}')
        if max_tokens < 1 or n < 1:
            raise ValueError(f'max_tokens is {max_tokens} and n is {n}, expected at least 1 each')
        request, count = Request(ids, max_tokens, sampling), min(max_tokens, self.context - len(ids) + 1)
        speakable = self.speakable(ids, calls=0)
        part = 'python' if self.chat and self.chat.python_end in speakable else 'text'
        for i in range(n):
            request.samples.append(Sample(request, i, sampling.stream(number, i, count), speakable, part=part))
        self.waiting += request.samples
        return request

    def speakable(self, ids: list[int], calls: int) -> frozenset[int]:
        """The special tokens that may be sampled after ids, in an answer that has made so many calls."""
        if self.chat is None:
            return frozenset() if self.tokenizer.bos is None else frozenset((self.tokenizer.bos,))
        allowed = self.chat.speakable(ids)
        return allowed if self.tool and calls < CALLS else allowed - {self.chat.python_start}

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One more token for every row, those that begin included; [] when nothing runs."""
        training = self.model.training
        if training:
            self.model.eval()
        try:  # a forward that fails leaves everything as it was
            arriving = self.next_in_line()
            arrived = self.prefill(arriving) if arriving else None
            logits = self.decode() if self.rows else None
        finally:
            if training:
                self.model.train()
        if arriving:
            logits = self.join(arriving, *arrived, logits)
        events, self.notices = self.notices, []
        if self.rows:
            events += self.say(logits)
            self.drop_finished()
        return events

    def next_in_line(self) -> list[Sample]:
        """The waiting samples that begin now: as many as there are rows for, and as one forward can read."""
        room = self.max_rows - len(self.rows) + self.rows.count(None)
        if room < min(len(self.waiting), self.max_rows // 8):
            return []  # a forward for a few of many would be a waste
        arriving, most = self.waiting[:room], PROMPTS
        requests = list(dict.fromkeys(sample.request for sample in arriving))
        if requests and not self.fixed_rows:
            most = max(1, PREFILL_TOKENS // max(len(request.prompt) for request in requests))
        return [sample for sample in arriving if sample.request in requests[:most]]

    def prefill(self, samples: list[Sample]) -> tuple[KVCache, list[int], torch.Tensor]:
        """Read the samples' prompts, each once, padded on the right.

        Returns a cache with a row for each prompt, and for each sample: which row is its, and logits (vocab_size,).
        """
        requests = list(dict.fromkeys(sample.request for sample in samples))
        lengths = [len(request.prompt) for request in requests]
        count, chunk, slots = len(lengths), max(lengths), max(lengths)
        if self.fixed_rows:  # always so many prompts, and pieces of so many tokens until the longest is read
            count, chunk, slots = PROMPTS, math.gcd(CHUNK, self.context), self.context
            lengths += [1] * (count - len(lengths))
        inputs = torch.zeros(count, ceil_to(max(lengths), chunk), dtype=torch.int64)
        for row, request in zip(inputs, requests):
            row[: len(request.prompt)] = torch.tensor(request.prompt)
        weight = self.model.transformer.wte.weight
        mixed = torch.is_autocast_enabled(weight.device.type)  # then keys and values are rounded anyway
        dtype = torch.get_autocast_dtype(weight.device.type) if mixed else weight.dtype
        cache, x = KVCache(self.model.config, count, slots, dtype, weight.device), []
        for piece in inputs.to(weight.device).split(chunk, dim=1):
            x.append(self.model.hidden(piece, cache))
            cache.lengths += chunk
        cache.lengths = torch.tensor(lengths, device=weight.device)  # a row that grows writes over its padding
        last = torch.cat(x, dim=1)[torch.arange(count, device=weight.device), cache.lengths - 1]  # (count, C)
        index = [requests.index(sample.request) for sample in samples]
        return cache, index, self.model.logits(last).to(self.home)[index]

    def decode(self) -> torch.Tensor:
        """Feed every row the token it said last, a free one id 0 all alone; logits (rows, vocab_size) of the next."""
        feed = [(row.ids[-1], row.cached) if row else (0, 0) for row in self.rows]
        feed = torch.tensor(feed, device=self.cache.lengths.device)
        self.cache.lengths = feed[:, 1]
        self.cache.reserve(self.context if self.fixed_rows else max(row.cached for row in self.rows if row) + 1)
        return self.model(feed[:, :1], cache=self.cache)[:, -1].to(self.home)

    def join(
        self, samples: list[Sample], cache: KVCache, index: list[int], first: torch.Tensor, logits: torch.Tensor | None
    ) -> torch.Tensor:
        """Give the samples rows, free ones if there are; `first` are their logits. Returns the logits of all rows."""
        if self.cache is None:
            self.rows = [None] * (self.fixed_rows or 0)
            self.cache = KVCache(self.model.config, len(self.rows), cache.width, cache.keys.dtype, cache.keys.device)
            logits = first[:0]
        self.rows += [None] * (len(samples) - self.rows.count(None))
        places = [i for i, row in enumerate(self.rows) if row is None][: len(samples)]
        for place, sample in zip(places, samples):
            self.rows[place] = sample
        self.waiting = self.waiting[len(samples) :]
        self.cache.put(places, cache, index)
        logits = F.pad(logits, (0, 0, 0, len(self.rows) - len(logits)))
        logits[places] = first
        return logits

    def say(self, logits: torch.Tensor) -> list[Event]:
        """Every row says its next token, a forced one or one drawn from logits (rows, vocab_size)."""
        tokens = self.draw(logits)
        logprobs = (logits[range(len(tokens)), tokens] - logits.logsumexp(-1)).tolist()
        return [self.take(row, *said) for row, *said in zip(self.rows, tokens, logprobs) if row]

    def draw(self, logits: torch.Tensor) -> list[int]:
        """An id for every row, by its own settings and its own stream; rows of equal settings are drawn together."""
        allowed = logits.masked_fill(self.unspeakable, -math.inf)
        special = [(i, token) for i, row in enumerate(self.rows) if row for token in row.speakable]
        if special:
            where = tuple(zip(*special))
            allowed[where] = logits[where]
        tokens, alike = [0] * len(self.rows), {}
        for i, row in enumerate(self.rows):
            if row and row.forced:
                tokens[i] = row.forced[0]
            elif row:
                sampling = row.request.sampling
                alike.setdefault((sampling.temperature, sampling.top_k, sampling.top_p), []).append(i)
        for index in alike.values():
            rows = [self.rows[i] for i in index]
            uniform = [row.uniform[len(row.ids)] for row in rows]
            uniform = torch.tensor(uniform, dtype=torch.float64, device=self.home)
            for i, token in zip(index, rows[0].request.sampling.draw(allowed[index], uniform).tolist()):
                tokens[i] = token
        return tokens

    def take(self, row: Sample, token: int, logprob: float) -> Event:
        """The row has said a token: what follows from it."""
        request, part, spoken = row.request, row.part, not row.forced
        silent = spoken and (token == self.tokenizer.bos or token in request.sampling.stop)
        ids = [] if silent else [token]
        if not silent:
            row.ids.append(token)
            row.logprobs.append(logprob)
            row.spoken.append(spoken)
        if not spoken:
            row.forced.popleft()
        if silent or spoken and token in self.stop:
            row.finish_reason = 'stop'
        elif len(row.ids) == request.max_tokens:
            row.finish_reason = 'length'
        elif row.cached == self.context:  # no slot is left to feed the token into
            row.finish_reason = 'context'
        elif self.chat and token in self.special:
            self.turn(row, token)
        over = row.finish_reason is not None or row.part != part
        text = row.decoder.decode(self.tokenizer.decode_bytes(ids), final=over)
        if part == 'text':
            row.text += text
        return Event(request, row.index, ids, text, logprob, row.finish_reason, part)

    def turn(self, row: Sample, token: int):
        """After a special token another part begins, and another set of special tokens may be said."""
        if token == self.chat.python_start:
            row.part = 'python'
        elif token == self.chat.python_end:
            row.part = 'output'
            row.forced.extend(self.chat.output(self.call(row)))
        elif not row.forced:
            row.part = 'text'
        row.speakable = self.speakable(row.request.prompt + row.ids, calls=row.ids.count(self.chat.python_start))

    def call(self, row: Sample) -> str:
        """What the tool answers to the call that just ended."""
        said = row.request.prompt + row.ids
        start = len(said) - said[::-1].index(self.chat.python_start)
        try:
            return self.tool(self.tokenizer.decode(said[start:-1])) if self.tool else 'error'
        except ValueError:
            return 'error'

    def drop_finished(self):
        self.rows = [row if row and row.finish_reason is None else None for row in self.rows]
        going = [i for i, row in enumerate(self.rows) if row]
        if not going:
            self.rows, self.cache = [], None
        elif not (self.fixed_rows or self.waiting) and 4 * len(going) <= 3 * len(self.rows):
            self.cache.reorder(torch.tensor(going, device=self.cache.lengths.device))  # a copy of all, so not each time
            self.rows = [self.rows[i] for i in going]

    @torch.inference_mode()
    def cancel(self, request: Request):
        """End what still runs of the request at once. The next step's events tell, with finish_reason 'cancelled'."""
        for sample in request.samples:
            if sample.finish_reason is None:
                sample.finish_reason = 'cancelled'
                text = sample.decoder.decode(b'', final=True)
                if sample.part == 'text':
                    sample.text += text
                self.notices.append(Event(request, sample.index, [], text, None, 'cancelled', sample.part))
        self.waiting = [sample for sample in self.waiting if sample.request is not request]
        self.drop_finished()

    def stream(self, ids: Sequence[int], max_tokens: int, sampling: Sampling, n: int = 1) -> Iterator[Event]:
        """The events of one prompt as they come. A generator that is closed early cancels its request."""
        request = self.submit(ids, max_tokens, sampling, n)
        try:
            while n:
                for event in self.step():
                    if event.request is request:
                        n -= event.finish_reason is not None
                        yield event
        finally:
            self.cancel(request)

    def generate(
        self, prompts: list[list[int]], max_tokens: int, sampling: Sampling, n: int = 1,
        numbers: Sequence[int] | None = None,
    ) -> list[Sample]:  # fmt: skip
        """n samples of each prompt, in order: those of the first, those of the second, …

        numbers tell the prompts' streams apart, see submit(); None counts them. What else runs goes on meanwhile; its
        events are lost, its samples are not.
        """
        numbers = range(len(prompts)) if numbers is None else numbers
        requests = [self.submit(ids, max_tokens, sampling, n, number) for ids, number in zip(prompts, numbers)]
        while not all(request.done for request in requests):
            self.step()
        return [sample for request in requests for sample in request.samples]
