"""
Sampling: a model, a tokenizer and a cache of keys and values generate many texts at once.

    engine = Engine(model, tokenizer)
    sampling = Sampling(temperature=0.8, top_k=200)
    for sample in engine.generate([ids], max_tokens=100, sampling=sampling):
        print(tokenizer.decode(sample.ids), sample.finish_reason)

Where requests arrive at any time, call submit() for each and step() while something runs. A step
adds one token to every row. New prompts are prefilled in a forward pass of their own, then their
rows join the batch; a row that ends frees its place for a waiting one.

Every row draws from a random stream of its own, so its tokens do not depend on its neighbours,
except through rounding: a batch of another shape may change the last bits of float32 logits. With
`rows` and `slots` the shapes are fixed, and a row is the same to the bit.

The structure of a conversation is in its special tokens. With chat=Chat(tokenizer) and
tool=calculate a row may sample only the special tokens allowed at its position. When it closes a
tool call, the tool's answer is queued and fed to the model one id per step, in place of sampled
ids: that is all a tool call is. A prompt without a conversation's header is plain text: the only
special token allowed is <|bos|>, which ends the text and is not returned.

Left out on purpose: HTTP, chat templates, rewards, reading files.
"""

import codecs
import functools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F

import runtime
from model import GPT, GPTConfig, ceil_to
from sampling import Sampling, cut

SLOTS = 64  # the cache grows, and is read, in blocks of this many slots: few shapes to compile
MAX_CALLS = 8  # calls of the tool in one answer, at most
PREFILL_TOKENS = 2**14  # most in a forward pass, with padding; or one longer prompt
# with fixed rows and slots a prefill pass is PROMPTS rows of CHUNK tokens
PROMPTS = 16
CHUNK = 32


class KVCache:
    """
    Keys and values of each row's tokens so far. The model calls begin() once per forward pass and
    update() once per layer.

        keys, values    (n_layer, B, n_kv_head, S, head_dim), S slots per row
        lengths (B,)    int64, slots of each row in use; the owner keeps it up to date
        width           slots that are read: at least max(lengths) + new tokens, at most S
    """

    def __init__(self, config: GPTConfig, rows: int, slots: int, dtype=torch.float32, device='cpu'):
        self.limit = config.block_size
        shape = (config.n_layer, rows, config.n_kv_head, 0, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.width = 0
        self.reserve(slots)

    def begin(self, T: int) -> tuple[torch.Tensor, torch.Tensor]:
        """T new tokens per row: their positions (B, T) and, for each, which slots it attends to,
        (B, 1, T, width)."""
        device = self.lengths.device
        self.rows = torch.arange(len(self.lengths), device=device)[:, None]  # (B, 1)
        self.places = torch.arange(T, device=device)[None] + self.lengths[:, None]  # (B, T)
        mask = torch.arange(self.width, device=device) <= self.places[:, None, :, None]
        return self.places, mask

    def update(self, layer: int, k: torch.Tensor, v: torch.Tensor):
        """Store a layer's new keys and values (B, n_kv_head, T, D). Returns those of all slots that
        are read, (B, n_kv_head, width, D) each, in the dtype of k."""
        keys = self.keys[layer]
        values = self.values[layer]
        # not scatter_(), which on a CPU takes 40 times as long for 16 rows in bf16
        keys.transpose(1, 2)[self.rows, self.places] = k.transpose(1, 2).to(keys.dtype)
        values.transpose(1, 2)[self.rows, self.places] = v.transpose(1, 2).to(values.dtype)
        return keys[:, :, : self.width].to(k.dtype), values[:, :, : self.width].to(v.dtype)

    def reserve(self, slots: int):
        """Make room for rows of this length and set width. Capacity doubles, so that a long text is
        rarely copied."""
        if slots > self.limit:
            raise ValueError(
                f'the cache was asked for {slots} slots, expected at most block_size = {self.limit}'
            )
        capacity = self.keys.shape[3]
        if slots > capacity:
            capacity = min(ceil_to(max(slots, 2 * capacity), SLOTS), self.limit)
            added = (0, 0, 0, capacity - self.keys.shape[3])
            # zeros, not uninitialised memory: 0 times a stray NaN is NaN
            self.keys = F.pad(self.keys, added)
            self.values = F.pad(self.values, added)
        self.width = min(ceil_to(slots, SLOTS), capacity)

    def reorder(self, index: torch.Tensor):
        """Row i becomes the former row index[i]; rows may be dropped or repeated."""
        self.keys = self.keys[:, index]
        self.values = self.values[:, index]
        self.lengths = self.lengths[index]

    def put(self, places: list[int], other: 'KVCache', index: list[int]):
        """Row places[i] becomes row index[i] of the other cache. Missing rows are added."""
        slots = int(other.lengths.max())
        if slots > self.keys.shape[3]:
            self.reserve(slots)
        added = max(places) + 1 - len(self.lengths)
        if added > 0:
            rows = (0, 0, 0, 0, 0, 0, 0, added)
            self.keys = F.pad(self.keys, rows)
            self.values = F.pad(self.values, rows)
            self.lengths = F.pad(self.lengths, (0, added))
        self.keys[:, places, :, :slots] = other.keys[:, index, :, :slots]
        self.values[:, places, :, :slots] = other.values[:, index, :, :slots]
        self.lengths[places] = other.lengths[index]


def utf8_decoder() -> codecs.IncrementalDecoder:
    """Bytes to text piece by piece; an incomplete character waits for its last byte."""
    return codecs.getincrementaldecoder('utf-8')('replace')


@dataclass(eq=False)
class Sample:
    """One continuation of a request: waiting, then a row, then complete with a finish_reason."""

    request: 'Request'
    index: int  # which of the request's n samples
    uniform: list[float]  # random numbers of the row, one per id
    speakable: frozenset[int]  # special tokens that may be sampled next
    # ids after the prompt. An id that ends plain text is not among them
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # one per id, see Event
    spoken: list[bool] = field(default_factory=list)  # one per id: sampled, not forced
    alternatives: list[tuple] = field(default_factory=list)  # one per id, see Event
    text: str = ''  # text parts only: no calls, no outputs
    finish_reason: str | None = None  # stop | length | context | cancelled
    part: str = 'text'  # current part: text | python (a call) | output (the tool's answer)
    forced: deque[int] = field(default_factory=deque)  # ids to come in place of sampled ones
    decoder: codecs.IncrementalDecoder = field(default_factory=utf8_decoder)
    held: str = ''  # text not returned yet: it may begin a stop text

    @property
    def cached(self) -> int:
        """Tokens in the cache: the prompt and all ids but the last, which the next step feeds."""
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
    """What one step added to one row. The texts of a row's events concatenate to its text, part by
    part, and never hold half a character.

    logprob, in nats, belongs to the new id, also if it ends the text or was forced: log-softmax of
    the model's logits over the whole vocabulary, at temperature 1, before any filter.
    alternatives are the sampling's top_logprobs likeliest ids with theirs, likeliest first.
    """

    request: Request
    sample: int
    ids: list[int]  # one id; none if the row was cancelled or the id ends plain text
    text: str  # may be empty: a character can take several tokens, a special token has no text
    logprob: float | None  # None if the row was cancelled
    finish_reason: str | None = None  # stop | length | context | cancelled
    part: str = 'text'  # part of the text: text | python (a call) | output (the tool's answer)
    alternatives: tuple[tuple[int, float], ...] = ()  # (id, logprob)


def without_gradients(method: Callable) -> Callable:
    """
    A method of Engine that computes no gradients: in inference_mode, or in no_grad under autocast,
    because in inference_mode autocast converts every weight in every step (pytorch/pytorch#165068).

    The two do not mix while rows are running: call the engine always with autocast, or always
    without.
    """

    @functools.wraps(method)
    def call(engine, *arguments):
        mixed = torch.is_autocast_enabled(engine.device.type)
        with torch.no_grad() if mixed else torch.inference_mode():
            return method(engine, *arguments)

    return call


@contextmanager
def evaluating(model: GPT) -> Iterator[None]:
    """The model without dropout. Does nothing if it is in evaluation mode: switching visits each
    of its modules, a millisecond for 20 layers."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


class Engine:
    """
    Runs requests on a model. Restores the model's training mode after each step.

        model, tokenizer    the tokenizer may know fewer ids than the model, not more
        chat                a conversation.Chat; None: all prompts are plain text
        tool                text of a call -> answer, or ValueError; None: calls are not allowed
        max_rows            rows at once; further samples wait
        max_bytes           of keys and values: fewer rows at once where texts can become long
        rows, slots         fix the shapes: a step decodes this many rows, used or not, over this
                            many slots (rounded up to 64); slots is then the longest context too
    """

    def __init__(
        self, model: GPT, tokenizer, chat=None, tool: Callable[[str], str] | None = None,
        rows: int | None = None, slots: int | None = None, max_rows: int = 256,
        max_bytes: int = 2**32,
    ):  # fmt: skip
        # 1) Check the sizes
        config = model.config
        known = tokenizer.vocab_size
        if known > config.vocab_size:
            raise ValueError(
                f"the tokenizer has {known} ids, expected at most the model's {config.vocab_size}"
            )
        self.context = config.block_size if slots is None else slots  # longest, prompt included
        self.fixed_rows = rows
        self.max_rows = max_rows if rows is None else rows
        self.max_bytes = max_bytes
        sizes_fit = self.max_rows >= 1 and 0 < self.context <= config.block_size
        if (rows is None) != (slots is None) or not sizes_fit:
            limits = f'at least 1 row and 1 to block_size = {config.block_size} slots'
            raise ValueError(
                f'rows is {rows}, slots is {slots} and max_rows is {max_rows}, '
                f'expected rows and slots both or neither, with {limits}'
            )
        self.model = model
        self.tokenizer = tokenizer
        self.chat = chat
        self.tool = tool

        # 2) Special tokens, which a row may sample only where they are allowed
        self.stop = chat.stop if chat else frozenset()
        self.special = frozenset(tokenizer.special.values())

        # 3) The device that draws ids: a GPU draws its own, because a CPU takes 0.1 s or more for
        # 64 rows of 65,536 logits (LOG.md). Otherwise the CPU: MPS has returned garbage, and in
        # a deterministic run CUDA's cumsum, which is not deterministic, must not be used
        self.device = model.transformer.wte.weight.device
        on_card = self.device.type == 'cuda' and not torch.are_deterministic_algorithms_enabled()
        self.home = self.device if on_card else 'cpu'
        self.unspeakable = torch.arange(config.vocab_size, device=self.home) >= known
        self.unspeakable[list(self.special)] = True  # draw() allows them again row by row

        # 4) What runs
        self.rows: list[Sample | None] = []  # row i of the cache; None is free
        self.waiting: list[Sample] = []  # prefilled as soon as rows are free
        self.notices: list[Event] = []  # events to return first from the next step
        self.cache: KVCache | None = None

    # ---- requests

    def submit(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling, n: int = 1, number: int = 0
    ) -> Request:
        """
        Ask for n continuations of a prompt, of at most max_tokens ids each.

        They start with the next step, or when rows are free. number makes prompts of one seed draw
        differently: equal prompt, seed and number give equal samples.

        ValueError for a prompt that does not fit, or values out of range.
        """
        # 1) Check the request
        ids = list(ids)
        known = len(self.unspeakable)
        if not 0 < len(ids) <= self.context:
            name = 'slots' if self.fixed_rows else 'block_size'
            raise ValueError(
                f'the prompt has {len(ids)} tokens, expected 1 to {name} = {self.context}'
            )
        if not 0 <= min(ids) <= max(ids) < known:
            raise ValueError(
                f'the prompt has ids {min(ids)} to {max(ids)}, expected 0 to {known - 1}'
            )
        if max_tokens < 1 or n < 1:
            raise ValueError(f'max_tokens is {max_tokens} and n is {n}, expected at least 1 each')

        # 2) Queue its samples. If the prompt ends inside a tool call, they continue the call
        request = Request(ids, max_tokens, sampling)
        count = min(max_tokens, self.context - len(ids) + 1)
        speakable = self.speakable(ids, calls=0)
        part = 'python' if self.chat and self.chat.python_end in speakable else 'text'
        for i in range(n):
            uniform = sampling.stream(number, i, count)
            request.samples.append(Sample(request, i, uniform, speakable, part=part))
        self.waiting += request.samples
        return request

    def speakable(self, ids: list[int], calls: int) -> frozenset[int]:
        """The special tokens that may be sampled after ids, `calls` calls into an answer."""
        if self.chat is None:
            return frozenset() if self.tokenizer.bos is None else frozenset((self.tokenizer.bos,))
        allowed = self.chat.speakable(ids)
        may_call = self.tool and calls < MAX_CALLS
        return allowed if may_call else allowed - {self.chat.python_start}

    @without_gradients
    def cancel(self, request: Request):
        """End the request's unfinished samples now. The next step returns their last events, with
        finish_reason 'cancelled'."""
        for sample in request.samples:
            if sample.finish_reason is None:
                sample.finish_reason = 'cancelled'
                text = sample.held + sample.decoder.decode(b'', final=True)
                if sample.part == 'text':
                    sample.text += text
                event = Event(request, sample.index, [], text, None, 'cancelled', sample.part)
                self.notices.append(event)
        self.waiting = [sample for sample in self.waiting if sample.request is not request]
        self.drop_finished()

    # ---- one step

    @without_gradients
    def step(self) -> list[Event]:
        """One more token for every row, new rows included; [] when nothing runs."""
        # 1) Prefill new prompts, decode running rows. If a pass fails, the step can be repeated
        with evaluating(self.model), runtime.any_shape(self.device):
            arriving = self.admit()
            prefilled = self.prefill(arriving) if arriving else None
            logits = self.decode() if self.rows else None
        # 2) New rows join the batch
        if arriving:
            logits = self.join(arriving, *prefilled, logits)
        # 3) Each row gets its next token; finished rows leave
        events = self.notices
        self.notices = []
        if self.rows:
            events += self.next_tokens(logits)
            self.drop_finished()
        return events

    def admit(self) -> list[Sample]:
        """The waiting samples that start now, limited by free rows and by one forward pass."""
        if not self.waiting:
            return []
        limit = self.row_limit()
        room = limit - len(self.rows) + self.rows.count(None)
        if room < max(1, min(len(self.waiting), limit // 8)):
            return []  # wait for more free rows: one large prefill is cheaper than many small ones
        arriving = self.waiting[:room]
        requests = list(dict.fromkeys(sample.request for sample in arriving))
        most = PROMPTS
        if requests and not self.fixed_rows:
            most = max(1, PREFILL_TOKENS // max(len(request.prompt) for request in requests))
        return [sample for sample in arriving if sample.request in requests[:most]]

    def row_limit(self) -> int:
        """Rows at once: max_rows, or as many as max_bytes holds if each becomes as long as the
        longest may."""
        if self.fixed_rows:
            return self.max_rows
        samples = [row for row in self.rows if row] + self.waiting[: self.max_rows]
        longest = max((len(s.request.prompt) + len(s.uniform) for s in samples), default=1)
        config = self.model.config
        numbers = 2 * config.n_layer * config.n_kv_head * config.head_dim  # of a slot
        row_bytes = ceil_to(longest, SLOTS) * numbers * self.cache_dtype().itemsize
        return min(self.max_rows, max(1, self.max_bytes // row_bytes))

    def cache_dtype(self) -> torch.dtype:
        """That of the keys: autocast's, where it is on."""
        if torch.is_autocast_enabled(self.device.type):
            return torch.get_autocast_dtype(self.device.type)
        return self.model.transformer.wte.weight.dtype

    def prefill(self, samples: list[Sample]) -> tuple[KVCache, list[int], torch.Tensor]:
        """
        Run the distinct prompts of the samples through the model, padded on the right.

        Returns a cache with a row for each prompt, and for each sample the number of its row and
        the logits (vocab_size,) of its first id.
        """
        # 1) Distinct prompts as one padded tensor. With fixed rows it always has PROMPTS rows, and
        # passes through the model in chunks of one size
        requests = list(dict.fromkeys(sample.request for sample in samples))
        lengths = [len(request.prompt) for request in requests]
        chunk = max(lengths)
        slots = max(lengths)
        if self.fixed_rows:
            chunk = math.gcd(CHUNK, self.context)
            slots = self.context
            lengths += [1] * (PROMPTS - len(lengths))
        count = len(lengths)
        inputs = torch.zeros(count, ceil_to(max(lengths), chunk), dtype=torch.int64)
        for row, request in zip(inputs, requests):
            row[: len(request.prompt)] = torch.tensor(request.prompt)

        # 2) Forward passes
        cache = KVCache(self.model.config, count, slots, self.cache_dtype(), self.device)
        hidden = []
        for piece in inputs.to(self.device).split(chunk, dim=1):
            hidden.append(self.model.hidden(piece, cache))
            cache.lengths += chunk
        # padding does not count: new tokens overwrite its slots
        cache.lengths = torch.tensor(lengths, device=self.device)

        # 3) Logits after each prompt's last token
        every = torch.arange(count, device=self.device)
        last = torch.cat(hidden, dim=1)[every, cache.lengths - 1]  # (count, C)
        index = [requests.index(sample.request) for sample in samples]
        return cache, index, self.model.logits(last).to(self.home)[index]

    def decode(self) -> torch.Tensor:
        """Feed every row its last id, a free row id 0 at position 0. Returns logits (rows, V)."""
        feed = [(row.ids[-1], row.cached) if row else (0, 0) for row in self.rows]
        feed = torch.tensor(feed, device=self.cache.lengths.device)
        self.cache.lengths = feed[:, 1]
        longest = max(row.cached for row in self.rows if row)
        self.cache.reserve(self.context if self.fixed_rows else longest + 1)
        return self.model(feed[:, :1], cache=self.cache)[:, -1].to(self.home)

    def join(self, samples, cache: KVCache, index: list[int], first, logits) -> torch.Tensor:
        """
        Give each sample a row: a free one, else a new one. cache, index and first come from
        prefill(); logits (rows, V) from decode(), or None. Returns the logits of all rows.
        """
        if self.cache is None:
            self.rows = [None] * (self.fixed_rows or 0)
            self.cache = KVCache(
                self.model.config, len(self.rows), cache.width, cache.keys.dtype, cache.keys.device
            )
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

    def next_tokens(self, logits: torch.Tensor) -> list[Event]:
        """Append one id to every row: a forced one, or one drawn from logits (rows, V)."""
        # 1) Ids, and log-probabilities before any filter
        tokens = self.draw(logits)
        normaliser = logits.logsumexp(-1)
        logprobs = (logits[range(len(tokens)), tokens] - normaliser).tolist()

        # 2) The likeliest ids, where a row asks for them
        wanted = [row.request.sampling.top_logprobs if row else 0 for row in self.rows]
        alternatives = [()] * len(wanted)
        if any(wanted):
            known = min(max(wanted), self.tokenizer.vocab_size)
            best = logits[:, : self.tokenizer.vocab_size].topk(known)
            scores = (best.values - normaliser[:, None]).tolist()
            listed = [tuple(zip(*pair)) for pair in zip(best.indices.tolist(), scores)]
            alternatives = [likeliest[:count] for likeliest, count in zip(listed, wanted)]

        # 3) Append
        return [
            self.append_token(row, *new)
            for row, *new in zip(self.rows, tokens, logprobs, alternatives)
            if row
        ]

    def draw(self, logits: torch.Tensor) -> list[int]:
        """An id for every row, by its own settings and its own random stream."""
        # 1) Mask ids that the tokenizer does not know, and special tokens not allowed in the row
        allowed = logits.masked_fill(self.unspeakable, -math.inf)
        special = [(i, token) for i, row in enumerate(self.rows) if row for token in row.speakable]
        if special:
            where = tuple(zip(*special))
            allowed[where] = logits[where]
        for i, row in enumerate(self.rows):
            if row and row.request.sampling.repetition_penalty != 1:
                seen = row.request.prompt + row.ids
                allowed[i] = row.request.sampling.penalise(allowed[i], seen)

        # 2) Forced ids; group the other rows by their filters
        tokens = [0] * len(self.rows)
        groups = {}
        for i, row in enumerate(self.rows):
            if row and row.forced:
                tokens[i] = row.forced[0]
            elif row:
                groups.setdefault(row.request.sampling.filters, []).append(i)

        # 3) Draw each group at once
        for index in groups.values():
            rows = [self.rows[i] for i in index]
            uniform = [row.uniform[len(row.ids)] for row in rows]
            uniform = torch.tensor(uniform, dtype=torch.float64, device=self.home)
            drawn = rows[0].request.sampling.draw(allowed[index], uniform).tolist()
            for i, token in zip(index, drawn):
                tokens[i] = token
        return tokens

    def append_token(
        self, row: Sample, token: int, logprob: float, alternatives: tuple = ()
    ) -> Event:
        """Append the id to the row. It may end the row, or begin another part of it."""
        # 1) Append, except an id that ends plain text
        request = row.request
        part = row.part
        sampled = not row.forced
        if not sampled:
            row.forced.popleft()
        ends_text = token == self.tokenizer.bos or token in request.sampling.stop
        silent = sampled and ends_text
        ids = [] if silent else [token]
        if not silent:
            row.ids.append(token)
            row.logprobs.append(logprob)
            row.spoken.append(sampled)
            row.alternatives.append(alternatives)

        # 2) Does the row end, or does another part begin?
        if silent or sampled and token in self.stop:
            row.finish_reason = 'stop'
        elif len(row.ids) == request.max_tokens:
            row.finish_reason = 'length'
        elif row.cached == self.context:  # no slot is left for the token
            row.finish_reason = 'context'
        elif self.chat and token in self.special:
            self.switch_part(row, token)

        # 3) Text, whole characters only; at the end of a part the decoder is flushed
        part_ends = row.finish_reason is not None or row.part != part
        text = row.decoder.decode(self.tokenizer.decode_bytes(ids), final=part_ends)
        if part == 'text':
            text, row.held, found = cut(row.held + text, request.sampling.stop_texts)
            if found:
                row.finish_reason = 'stop'
            elif part_ends:
                text += row.held
                row.held = ''
            row.text += text
        return Event(request, row.index, ids, text, logprob, row.finish_reason, part, alternatives)

    def switch_part(self, row: Sample, token: int):
        """After a special token: start the next part and update which special tokens are allowed.
        At the end of a call, queue the tool's answer."""
        if token == self.chat.python_start:
            row.part = 'python'
        elif token == self.chat.python_end:
            row.part = 'output'
            row.forced.extend(self.chat.output(self.call_tool(row)))
        elif not row.forced:  # the output has been fed in full
            row.part = 'text'
        calls = row.ids.count(self.chat.python_start)
        row.speakable = self.speakable(row.request.prompt + row.ids, calls)

    def call_tool(self, row: Sample) -> str:
        """The tool's answer to the call that just ended, or 'error'."""
        ids = row.request.prompt + row.ids
        start = len(ids) - ids[::-1].index(self.chat.python_start)
        try:
            return self.tool(self.tokenizer.decode(ids[start:-1])) if self.tool else 'error'
        except ValueError:
            return 'error'

    def drop_finished(self):
        """Free the rows of finished samples."""
        self.rows = [row if row and row.finish_reason is None else None for row in self.rows]
        running = [i for i, row in enumerate(self.rows) if row]
        if not running:
            self.rows = []
            self.cache = None
            return
        # compacting copies the whole cache: only if a quarter of the rows is free and nothing waits
        worthwhile = 4 * len(running) <= 3 * len(self.rows)
        if worthwhile and not self.fixed_rows and not self.waiting:
            self.cache.reorder(torch.tensor(running, device=self.cache.lengths.device))
            self.rows = [self.rows[i] for i in running]

    # ---- whole texts

    def stream(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling, n: int = 1
    ) -> Iterator[Event]:
        """The events of one prompt as they occur. Closing the generator cancels the request."""
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
        """
        n samples of each prompt, in order: those of the first, those of the second, …

        numbers: one per prompt for its random streams, see submit(); None: 0, 1, 2, … Other
        requests continue meanwhile: their samples are kept, their events are lost.
        """
        numbers = range(len(prompts)) if numbers is None else numbers
        requests = [
            self.submit(ids, max_tokens, sampling, n, number)
            for ids, number in zip(prompts, numbers)
        ]
        with evaluating(self.model):  # once for all steps
            while not all(request.done for request in requests):
                self.step()
        return [sample for request in requests for sample in request.samples]
