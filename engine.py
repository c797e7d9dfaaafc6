"""
What samples: a model, a tokenizer and a cache of keys and values make texts, any number of them at once.

    engine = Engine(model, tokenizer)
    for sample in engine.generate([ids], max_tokens=100, sampling=Sampling(temperature=0.8, top_k=200)):
        print(tokenizer.decode(sample.ids), sample.finish_reason)

or, where requests come and go, submit() whenever one arrives and step() as long as something runs. A step is one more
token for every row. A prompt that arrives meanwhile is read in a forward of its own and its rows join the batch; a row
that ends leaves it.

Every row draws from a random stream of its own, so what it says does not depend on who else is asked. (Up to rounding:
with other neighbours the batch has another shape, and the last bits of float32 logits may differ.)

Prompts are plain text here: of the special tokens only <|bos|> may be sampled; it ends the text and is not returned.
Left out on purpose: HTTP, chat templates, rewards, reading files.
"""

import codecs
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from model import GPT, GPTConfig

SLOTS = 64  # the cache grows, and is looked at, in blocks of so many slots: few shapes for kernels and compilers


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
            capacity = min(-(-max(slots, 2 * capacity) // SLOTS) * SLOTS, self.limit)
            more = (0, 0, 0, capacity - self.keys.shape[3])  # zeros, not empty: 0 times a stray NaN would be NaN
            self.keys, self.values = F.pad(self.keys, more), F.pad(self.values, more)
        self.width = min(-(-slots // SLOTS) * SLOTS, capacity)

    def take(self, index: torch.Tensor):
        """Row i becomes what row index[i] was; rows may be left out or repeated."""
        self.keys, self.values = self.keys[:, index], self.values[:, index]
        self.lengths = self.lengths[index]

    def append(self, other: 'KVCache'):
        """The rows of another cache behind our own."""
        slots = max(self.keys.shape[3], other.keys.shape[3])
        self.reserve(slots)
        other.reserve(slots)
        self.keys = torch.cat((self.keys, other.keys), dim=1)
        self.values = torch.cat((self.values, other.values), dim=1)
        self.lengths = torch.cat((self.lengths, other.lengths))


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

    def stream(self, number: int, sample: int) -> torch.Generator:
        """SeedSequence mixes well, and alike on every machine; torch's generator looks at 32 bits of its seed."""
        mixed = np.random.SeedSequence(self.seed, spawn_key=(number, sample)).generate_state(1)[0]
        return torch.Generator().manual_seed(int(mixed))

    def draw(self, logits: torch.Tensor, generator: torch.Generator) -> int:
        """One id from logits (V,) on the CPU, -inf where a token must not be said. top_k works before top_p."""
        if self.temperature == 0:
            return int(logits.argmax())
        ids = None
        if self.top_k or self.top_p < 1:
            logits, ids = logits.topk(min(self.top_k or len(logits), len(logits)))  # the likeliest first
        probs = ((logits - logits.max()).double() / self.temperature).softmax(-1)  # no overflow at 1e-40 either
        if self.top_p < 1:  # a token stays if those before it have not yet reached top_p
            probs = probs.masked_fill(probs.cumsum(-1) - probs >= self.top_p, 0.0)
        drawn = int(torch.multinomial(probs, 1, generator=generator))
        return drawn if ids is None else int(ids[drawn])


@dataclass(eq=False)
class Sample:
    """One continuation of a request, complete once finish_reason is set; until then it is a row of the batch."""

    request: 'Request'
    index: int  # which of the request's n
    generator: torch.Generator
    ids: list[int] = field(default_factory=list)  # without the id that ended it
    logprobs: list[float] = field(default_factory=list)  # of ids, see Event
    text: str = ''
    finish_reason: str | None = None  # stop | length | context | cancelled
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


@dataclass(frozen=True)
class Event:
    """What a step brought to one row. The texts of its events add up to the row's text and never hold half a character.

    logprob, in nats, is that of the id that came, also if it ends the text: log-softmax of the model's logits over its
    whole vocabulary, at temperature 1 and before any filter.
    """

    request: Request
    sample: int
    ids: list[int]  # one; none where the row was cancelled or the id that came ends the text
    text: str  # may be empty: a character can take several tokens
    logprob: float | None  # None where the row was cancelled
    finish_reason: str | None = None  # stop | length | context | cancelled


class Engine:
    """The model's training mode is left as it was found. The tokenizer may know fewer ids than the model, not more."""

    def __init__(self, model: GPT, tokenizer):
        V, known = model.config.vocab_size, tokenizer.vocab_size
        if known > V:
            raise ValueError(f'the tokenizer has {known} ids, expected at most the {V} of the model')
        self.model, self.tokenizer = model, tokenizer
        self.unspeakable = torch.arange(V) >= known
        self.unspeakable[[i for i in tokenizer.special.values() if i != tokenizer.bos]] = True
        self.rows: list[Sample] = []  # row i of the cache
        self.waiting: list[Request] = []  # their prompts are read in the next step
        self.notices: list[Event] = []  # the next step's first events
        self.cache: KVCache | None = None

    def submit(self, ids: Sequence[int], max_tokens: int, sampling: Sampling, n: int = 1, number: int = 0) -> Request:
        """Ask for n continuations of a prompt, of at most max_tokens each; they begin with the next step.

        number tells prompts with the same seed apart: the same prompt, seed and number give the same samples.
        """
        ids, limit = list(ids), self.model.config.block_size
        if not 0 < len(ids) <= limit:
            raise ValueError(f'the prompt has {len(ids)} tokens, expected 1 to block_size = {limit}')
        if not 0 <= min(ids) <= max(ids) < len(self.unspeakable):
            raise ValueError(f'the prompt has ids {min(ids)} to {max(ids)}, expected 0 to {len(self.unspeakable) - 1}')
        if max_tokens < 1 or n < 1:
            raise ValueError(f'max_tokens is {max_tokens} and n is {n}, expected at least 1 each')
        request = Request(ids, max_tokens, sampling)
        request.samples += [Sample(request, i, sampling.stream(number, i)) for i in range(n)]
        self.waiting.append(request)
        return request

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One more token for every row, prompts submitted since the last step included; [] when nothing runs."""
        training = self.model.training
        self.model.eval()
        try:
            arrived, first = self.prefill() if self.waiting else (None, None)
            following = self.decode() if self.rows else None
        finally:
            self.model.train(training)
        if arrived is not None:
            if self.rows:
                self.cache.append(arrived)
            else:
                self.cache = arrived
            self.rows += [sample for request in self.waiting for sample in request.samples]
            self.waiting = []
        events, self.notices = self.notices, []
        if self.rows:
            # always on the CPU: there one random stream is the same everywhere, and MPS has returned garbage
            logits = torch.cat([x.cpu() for x in (following, first) if x is not None])
            events += [self.say(*row) for row in zip(self.rows, logits, logits.logsumexp(-1))]
            self.drop_finished()
        return events

    def prefill(self) -> tuple[KVCache, torch.Tensor]:
        """Read the waiting prompts, each once, padded on the right to the longest; then one row for each sample."""
        lengths = torch.tensor([len(request.prompt) for request in self.waiting])
        inputs = torch.zeros(len(lengths), int(lengths.max()), dtype=torch.int64)
        for row, request in zip(inputs, self.waiting):
            row[: len(request.prompt)] = torch.tensor(request.prompt)
        weight = self.model.transformer.wte.weight
        inputs, lengths = inputs.to(weight.device), lengths.to(weight.device)
        cache = KVCache(self.model.config, *inputs.shape, weight.dtype, weight.device)
        rows = torch.arange(len(lengths), device=weight.device)
        x = self.model.hidden(inputs, cache)[rows, lengths - 1]  # (B, C): only each prompt's last token needs logits
        cache.lengths += lengths  # what the padding left behind them is written over as the row grows
        repeats = torch.tensor([len(request.samples) for request in self.waiting], device=weight.device)
        index = rows.repeat_interleave(repeats)
        if len(index) > len(rows):
            cache.take(index)
        return cache, self.model.logits(x)[index]

    def decode(self) -> torch.Tensor:
        """Feed every row the token it said last; logits (B, vocab_size) of the next."""
        inputs = torch.tensor([[row.ids[-1]] for row in self.rows], device=self.cache.lengths.device)
        self.cache.reserve(max(row.cached for row in self.rows) + 1)
        logits = self.model(inputs, cache=self.cache)[:, -1]
        self.cache.lengths += 1
        return logits

    def say(self, row: Sample, logits: torch.Tensor, total: torch.Tensor) -> Event:
        """Draw the row's next token from logits (vocab_size,), whose log-sum-exp is total."""
        request = row.request
        token = request.sampling.draw(logits.masked_fill(self.unspeakable, -math.inf), row.generator)
        logprob = float(logits[token] - total)
        stopped = token == self.tokenizer.bos or token in request.sampling.stop
        ids = [] if stopped else [token]
        row.ids += ids
        row.logprobs += [logprob] * len(ids)
        if stopped:
            row.finish_reason = 'stop'
        elif len(row.ids) == request.max_tokens:
            row.finish_reason = 'length'
        elif row.cached == self.model.config.block_size:  # no slot is left to feed the token into
            row.finish_reason = 'context'
        text = row.decoder.decode(self.tokenizer.decode_bytes(ids), final=row.finish_reason is not None)
        row.text += text
        return Event(request, row.index, ids, text, logprob, row.finish_reason)

    def drop_finished(self):
        going = [i for i, row in enumerate(self.rows) if row.finish_reason is None]
        if not going:
            self.cache = None
        elif len(going) < len(self.rows):
            self.cache.take(torch.tensor(going, device=self.cache.lengths.device))
        self.rows = [self.rows[i] for i in going]

    @torch.inference_mode()
    def cancel(self, request: Request):
        """End what still runs of the request at once. The next step's events tell, with finish_reason 'cancelled'."""
        for sample in request.samples:
            if sample.finish_reason is None:
                sample.finish_reason = 'cancelled'
                text = sample.decoder.decode(b'', final=True)
                sample.text += text
                self.notices.append(Event(request, sample.index, [], text, None, 'cancelled'))
        self.waiting = [other for other in self.waiting if other is not request]
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

    def generate(self, prompts: list[list[int]], max_tokens: int, sampling: Sampling, n: int = 1) -> list[Sample]:
        """n samples of each prompt, in order: those of the first, those of the second, …

        What else runs goes on meanwhile; its events are lost, its samples are not.
        """
        requests = [self.submit(ids, max_tokens, sampling, n, number) for number, ids in enumerate(prompts)]
        while not all(request.done for request in requests):
            self.step()
        return [sample for request in requests for sample in request.samples]
