"""
Sampling: a model, a tokenizer and a cache of keys and values generate many texts at once.

    engine = Engine(model, tokenizer)
    sampling = Sampling(temperature=0.8, top_k=200)
    for sample in engine.generate([ids], max_tokens=100, sampling=sampling):
        print(tokenizer.decode(sample.ids), sample.finish_reason)

Where requests arrive at any time, call submit() for each and step() while something runs. A step
adds one token to every row. New prompts are prefilled in forward passes of their own, a long one in
parts between which the rows go on; then their rows join the batch. A row that ends frees its place.

Keys and values are in blocks of 32 tokens from one pool (cache.py), so memory follows the tokens
held. The samples of a prompt share its blocks, and a later request finds them by its own beginning.
Where the pool is too small, the youngest text loses its blocks, waits and is prefilled again. When
the model's weights change, all blocks are forgotten.

Every row draws from a random stream of its own, so its tokens do not depend on its neighbours,
except through rounding: a batch of another shape may change the last bits of float32 logits. With
`rows` and `slots` the shapes are fixed, and a row is the same to the bit if the CPU's products
round it alike wherever it is in a batch (measured: with AVX-512 they do, with AVX2 not always).

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

import packed
import runtime
from cache import BLOCK, KVCache, Pool
from model import GPT, ceil_to
from sampling import Sampling, cut

MAX_CALLS = 8  # calls of the tool in one answer, at most
PREFILL_TOKENS = 2**14  # most in a forward pass while no row decodes, padding included
LONG = 512  # most of one prompt in a pass: a request that comes meanwhile waits for its end
BETWEEN = {'cpu': 128, 'mps': 128, 'cuda': 512}  # most in a pass while rows decode
# with fixed rows and slots a prefill pass is PROMPTS rows of CHUNK tokens
PROMPTS = 4
CHUNK = BLOCK
KEPT = 16  # a part of 1 / KEPT of the cache keeps beginnings of texts that have ended


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
    blocks: list[int] = field(default_factory=list)  # of the cache, while it is a row

    @property
    def tokens(self) -> list[int]:
        return self.request.prompt + self.ids

    @property
    def cached(self) -> int:
        """Tokens in the cache: the prompt and all ids but the last, which the next step feeds."""
        return len(self.request.prompt) + len(self.ids) - 1

    @property
    def last(self) -> int:
        """The last of them."""
        return self.ids[-2] if len(self.ids) > 1 else self.request.prompt[-1]


@dataclass(eq=False)
class Request:
    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    samples: list[Sample] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return all(sample.finish_reason for sample in self.samples)


@dataclass(eq=False)
class Reading:
    """A text that is being prefilled, chunk by chunk, for samples that will continue it: the new
    samples of a prompt, or one that lost its row."""

    samples: list[Sample]
    tokens: list[int]
    blocks: list[int]  # of the cache
    read: int  # tokens in the cache

    @property
    def request(self) -> Request:
        return self.samples[0].request

    @property
    def left(self) -> int:
        return len(self.tokens) - self.read


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
        max_bytes           of keys and values, at most; samples wait, or lose their blocks for a
                            while and are prefilled again, where they would need more
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
        unknown = range(known, config.vocab_size)
        # draw() allows the special ones again row by row
        self.unspeakable = torch.tensor([*self.special, *unknown], dtype=torch.int64).to(self.home)

        # 4) On a CPU, copies of the weights for its products, where that pays
        self.packed = packed.PackedModel(model) if packed.pays(model) else None

        # 5) What runs
        self.rows: list[Sample | None] = []  # the rows that decode, by age; None is free
        self.reading: list[Reading] = []  # prompts that are being prefilled, by age
        self.waiting: list[Sample] = []  # start as soon as there are rows and blocks
        self.notices: list[Event] = []  # events to return first from the next step
        self.passes = 0  # of prefill
        self.rows_waited = False  # the last step was for a long prompt

        # 6) The cache. Its tensors are made when they are needed, by the weights of this moment
        self.weights = None
        self.trains = model.training  # while it trains, nothing is kept when nothing runs
        self.forget()

    # ---- the cache

    @property
    def block_bytes(self) -> int:
        """Bytes of a block's keys and values in all layers."""
        config = self.model.config
        numbers = 2 * config.n_layer * config.n_kv_head * config.head_dim * BLOCK
        return numbers * self.cache_dtype().itemsize

    @property
    def pool_blocks(self) -> int:
        """Most blocks in use: what max_bytes holds, at least one text as long as the context."""
        longest = ceil_to(self.context, BLOCK) // BLOCK
        if self.fixed_rows:
            return longest * self.fixed_rows
        return max(longest, self.max_bytes // self.block_bytes)

    @property
    def cache_size(self) -> str:
        """The pool in words, for a program's first lines."""
        size = self.pool_blocks * self.block_bytes / 2**20
        return f'at most {self.pool_blocks:,} blocks of {BLOCK} tokens, {size:,.0f} MiB'

    @property
    def blocks_in_use(self) -> int:
        return len(self.pool.users)

    @property
    def tokens_held(self) -> int:
        """Tokens in the blocks in use. A block that several rows share counts once."""
        held = {}
        texts = [(reading.blocks, reading.read) for reading in self.reading]
        texts += [(row.blocks, row.cached) for row in self.rows if row]
        for blocks, length in texts:
            for i, block in enumerate(blocks):
                held[block] = min(BLOCK, length - i * BLOCK)
        return sum(held.values())

    def cache_dtype(self) -> torch.dtype:
        """That of the keys: autocast's, where it is on."""
        if torch.is_autocast_enabled(self.device.type):
            return torch.get_autocast_dtype(self.device.type)
        return self.model.transformer.wte.weight.dtype

    def forget(self):
        """Empty the cache. Texts that run are prefilled again."""
        rows = [row for row in self.rows if row]
        for youngest in [*reversed(self.reading), *reversed(rows)]:
            self.preempt(youngest)
        keep = self.pool_blocks // KEPT
        self.pool = Pool(self.pool_blocks, max(keep, self.context // BLOCK))
        self.cache: KVCache | None = None

    def check_weights(self):
        """Forget the keys and values of other weights, or of another dtype.

        Every change in place raises a tensor's version, an optimizer's step too, and a new tensor
        has another address. Only a change by way of .data is not noticed: call forget().
        """
        weights = [(id(p), p.data_ptr(), p._version) for p in self.model.parameters()]
        weights.append((self.cache_dtype(), torch.is_inference_mode_enabled()))
        if weights != self.weights:
            self.forget()
            self.weights = weights

    def grow(self, owner: 'Sample | Reading', tokens: int) -> bool:
        """Give a text blocks for this many tokens. Where none is free, the youngest text loses its
        own. False if that was the owner."""
        while len(owner.blocks) * BLOCK < tokens:
            block = self.pool.take()
            if block is not None:
                owner.blocks.append(block)
                continue
            youngest = self.reading[-1] if self.reading else self.rows[-1]
            self.preempt(youngest)
            if youngest is owner:
                return False
        return True

    def preempt(self, text: 'Sample | Reading'):
        """Take a text's blocks. It waits as the first, and is prefilled again."""
        if isinstance(text, Reading):
            self.reading.remove(text)
            self.waiting = text.samples + self.waiting
            self.pool.release(text.blocks)
        else:
            self.rows[self.rows.index(text)] = None
            self.waiting.insert(0, text)
            self.give_back(text)
        self.drop_free_rows()

    def give_back(self, row: Sample):
        """Release the blocks of a row."""
        # in decoded blocks numbers are rounded otherwise than in prefilled ones, so that with fixed
        # rows it would show whether a beginning was found
        if not self.fixed_rows:
            self.pool.register(row.tokens[: row.cached], row.blocks)
        self.pool.release(row.blocks)
        row.blocks = []

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
        known = self.model.config.vocab_size
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
            sample = Sample(request, i, uniform, speakable, part=part)
            request.samples.append(sample)
            self.go_on(sample)
        self.waiting += request.samples
        self.trains = self.model.training
        return request

    def go_on(self, sample: Sample):
        """Where the prompt ends inside a character or right after a call, the sample begins with
        the rest of the character, or with the tool's answer."""
        last = sample.request.prompt[-4:]  # a character has at most 4 bytes, a token at least one
        for token in last:
            if token in self.special or token >= self.tokenizer.vocab_size:
                sample.decoder.reset()
            else:
                sample.decoder.decode(self.tokenizer.decode_bytes([token]))
        if self.chat and last[-1] == self.chat.python_end:
            sample.part = 'output'
            sample.forced.extend(self.chat.output(self.call_tool(sample)))

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
        for reading in [reading for reading in self.reading if reading.request is request]:
            self.reading.remove(reading)
            self.pool.release(reading.blocks)
        self.drop_finished()

    # ---- one step

    @property
    def busy(self) -> bool:
        """Whether step() has anything left to do or to return."""
        return bool(self.rows or self.reading or self.waiting or self.notices)

    @without_gradients
    def step(self) -> list[Event]:
        """One more token for every row, new rows included. [] when no row has got one: nothing
        runs, or the step went into prefilling a long prompt (see busy)."""
        # 1) Waiting samples start, rows get room for their token
        self.admit()
        for row in list(self.rows):
            if row and row.blocks:  # an older row may have taken them
                self.grow(row, row.cached + 1)
        chunk, T = self.next_chunk()

        # 2) One pass that prefills, one that decodes. If a pass fails, the step can be repeated
        with evaluating(self.model), runtime.any_shape(self.device):
            self.cache = self.cache or KVCache(self.model.config, self.cache_dtype(), self.device)
            self.cache.batched_products = self.packed is not None
            self.cache.reserve(self.pool.size)
            first = self.prefill(chunk, T) if chunk else None
            self.rows_waited = any(map(self.is_long, chunk))
            logits = self.decode() if self.rows and not self.rows_waited else None

        # 3) Prompts that are complete become rows
        if chunk:
            logits = self.join(chunk, T, first, logits)

        # 4) Each row gets its next token; finished rows leave
        events = self.notices
        self.notices = []
        if logits is not None:
            events += self.next_tokens(logits)
        self.drop_finished()
        return events

    def admit(self):
        """Start waiting samples in order, as far as rows and blocks go: look up how each begins and
        let the rest be prefilled. The samples of one prompt are prefilled together."""
        # 1) Is it worth it? One large prefill is cheaper than many small ones
        if not self.waiting:
            return
        rows = len(self.rows) - self.rows.count(None)
        room = self.max_rows - rows - sum(len(reading.samples) for reading in self.reading)
        if room < max(1, min(len(self.waiting), self.max_rows // 8)):
            return
        self.check_weights()

        for _ in range(room):
            # 2) A further sample of a prompt that is being prefilled
            if not self.waiting:
                return
            sample = self.waiting[0]
            latest = self.reading[-1] if self.reading else None
            if latest and latest.request is sample.request and latest.tokens == sample.tokens:
                latest.samples.append(self.waiting.pop(0))
                continue

            # 3) Another text, if there are blocks for it besides those that the running ones will
            # need soon. With fixed rows there are
            tokens = sample.tokens
            blocks = self.pool.find(tokens)
            needed = len(tokens) // BLOCK + 1 - len(blocks)
            for reading in self.reading:
                needed += len(reading.tokens) // BLOCK - len(reading.blocks)
                needed += len(reading.samples)
            scarce = needed + len(self.rows) > self.pool.available and not self.fixed_rows
            if scarce and (self.rows or self.reading):
                self.pool.release(blocks)
                return
            read = len(blocks) * BLOCK
            self.reading.append(Reading([self.waiting.pop(0)], tokens, blocks, read))

    def next_chunk(self) -> tuple[list[Reading], int]:
        """The prompts of the next prefill pass, and the most tokens that it adds to each.

        While rows decode a pass is small. Prompts with few tokens left come first; every fourth
        pass takes the oldest first, so that it gets on too. A long prompt takes turns with the
        rows, a small part each time, so that neither they nor a newcomer wait for long.
        """
        # 1) How much at once
        self.passes += 1
        budget = PREFILL_TOKENS
        if self.rows:
            budget = max(BETWEEN[self.device.type], 4 * len(self.rows))
        fixed = min(CHUNK, self.context) if self.fixed_rows else 0
        if fixed:
            budget = PROMPTS * fixed

        # 2) As many prompts as fit, each padded to the longest piece; or a long one alone
        oldest = self.reading[0] if self.passes % 4 == 0 and self.reading else None
        chunk, T = [], fixed
        for reading in sorted(self.reading, key=lambda r: (r is not oldest, r.left)):
            if self.is_long(reading):
                if chunk or self.rows_waited:
                    continue
                chunk, T = [reading], budget // 4
                break
            width = fixed or max(T, min(LONG, budget, reading.left))
            if chunk and (len(chunk) + 1) * width > budget:
                break
            chunk.append(reading)
            T = width

        # 3) Their blocks
        for reading in chunk:
            if reading in self.reading:  # another may have taken its blocks
                self.grow(reading, reading.read + min(T, reading.left))
        return [reading for reading in chunk if reading in self.reading], T

    def is_long(self, reading: Reading) -> bool:
        """Whether rows decode that a whole part of this prompt would stall."""
        return bool(self.rows) and not self.fixed_rows and reading.left > LONG

    def prefill(self, chunk: list[Reading], T: int) -> torch.Tensor | None:
        """Run the next T tokens of each prompt through the model, padded on the right. Returns the
        logits after the last ones, (len(chunk), V); None if no prompt is complete."""
        # 1) The tokens as one padded tensor. With fixed rows it always has PROMPTS rows
        counts = [min(T, reading.left) for reading in chunk]
        tables = [reading.blocks for reading in chunk]
        lengths = [reading.read for reading in chunk]
        last = [r.tokens[r.read - 1] for r in chunk]
        texts = [r.tokens[r.read : r.read + T] for r in chunk]
        if self.fixed_rows:
            unused = PROMPTS - len(chunk)
            counts += [0] * unused
            tables += [[]] * unused
            lengths += [0] * unused
            last += [0] * unused
            texts += [[]] * unused
        inputs = torch.tensor([ids + [0] * (T - len(ids)) for ids in texts], device=self.device)

        # 2) The forward pass
        self.cache.select(tables, lengths, counts, last, self.context if self.fixed_rows else None)
        model = self.model_for(inputs.numel())
        hidden = model.hidden(inputs, self.cache)

        # 3) Logits
        if all(reading.left > T for reading in chunk):
            return None
        last = (self.cache.counts[:, 0] - 1).clamp(min=0)
        last = hidden[torch.arange(len(hidden), device=self.device), last]  # (B, C)
        return model.logits(last).to(self.home)[: len(chunk)]

    def decode(self) -> torch.Tensor:
        """Feed every row its last id, a free row id 0 at position 0. Returns logits (rows, V)."""
        rows = self.rows
        self.cache.select(
            [row.blocks if row else [] for row in rows],
            [row.cached if row else 0 for row in rows],
            [1 if row else 0 for row in rows],
            [row.last if row else 0 for row in rows],
            self.context if self.fixed_rows else None,
        )
        feed = torch.tensor([[row.ids[-1] if row else 0] for row in rows], device=self.device)
        model = self.model_for(len(rows))
        return model(feed, cache=self.cache)[:, -1].to(self.home)

    def model_for(self, tokens: int) -> GPT:
        """The model that is fastest for a pass over this many tokens."""
        mixed = torch.is_autocast_enabled(self.device.type)
        return self.packed(tokens) if self.packed and not mixed else self.model

    def join(self, chunk: list[Reading], T: int, first, logits) -> torch.Tensor | None:
        """
        The samples of complete prompts become rows: free ones, else new ones. first comes from
        prefill(), logits (rows, V) from decode(), or None. Returns the logits of all rows.
        """
        # 1) What has been prefilled can be found from now on
        for reading in chunk:
            reading.read += min(T, reading.left)
            self.pool.register(reading.tokens[: reading.read], reading.blocks)
        complete = [i for i, reading in enumerate(chunk) if not reading.left]
        if not complete:
            return logits

        # 2) Rows for the samples. All but the first get a copy of the last block, which is not full
        source = []  # for each new row, its row of first
        if not self.rows and self.fixed_rows:
            self.rows = [None] * self.fixed_rows
            logits = first.new_zeros(self.fixed_rows, first.shape[1])
        places = []
        for i in complete:
            for sample in self.open_rows(chunk[i]):
                if None not in self.rows:
                    self.rows.append(None)
                places.append(self.rows.index(None))
                self.rows[places[-1]] = sample
                source.append(i)

        # 3) Their logits
        if not self.fixed_rows:
            return first[source] if logits is None else torch.cat((logits, first[source]))
        logits[places] = first[source]
        return logits

    def open_rows(self, reading: Reading) -> list[Sample]:
        """Give the blocks of a complete prompt to its samples. Those for which there is no block
        wait again."""
        # 1) The first sample takes them over
        self.reading.remove(reading)
        first, *others = reading.samples
        first.blocks = reading.blocks

        # 2) The others share the full ones
        full = len(reading.tokens) // BLOCK
        copies = []
        for sample in others:
            tail = []
            if full < len(reading.blocks):
                block = self.pool.take()
                if block is None:
                    break
                tail = [block]
                copies.append(block)
            self.pool.share(reading.blocks[:full])
            sample.blocks = reading.blocks[:full] + tail
        opened = reading.samples[: 1 + sum(bool(sample.blocks) for sample in others)]
        self.waiting = reading.samples[len(opened) :] + self.waiting

        # 3) and get a copy of the last one
        if copies:
            self.cache.reserve(self.pool.size)
            self.cache.copy(reading.blocks[full], copies)
        return opened

    def next_tokens(self, logits: torch.Tensor) -> list[Event]:
        """Append one id to every row: a forced one, or one drawn from logits (rows, V)."""
        # 1) Ids, and log-probabilities before any filter
        tokens = self.draw(logits)
        normaliser = logits.logsumexp(-1)
        chosen = torch.tensor(tokens, device=self.home)[:, None]
        logprobs = (logits.gather(1, chosen)[:, 0] - normaliser).tolist()

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
        allowed = logits.index_fill(1, self.unspeakable, -math.inf)
        special = [(i, token) for i, row in enumerate(self.rows) if row for token in row.speakable]
        if special:
            where = torch.tensor([*zip(*special)], device=self.home).unbind()  # rows, ids
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
            group = allowed if len(index) == len(allowed) else allowed[index]
            drawn = rows[0].request.sampling.draw(group, uniform).tolist()
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
        """Free the rows of finished samples, and their blocks."""
        for i, row in enumerate(self.rows):
            if row and row.finish_reason:
                self.give_back(row)
                self.rows[i] = None
        self.drop_free_rows()
        # in training the weights will change, and the memory is needed
        if self.trains and not self.rows and not self.reading:
            self.forget()

    def drop_free_rows(self):
        """Without a fixed number of rows, no row is free."""
        if not self.fixed_rows or not any(self.rows):
            self.rows = [row for row in self.rows if row]

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
