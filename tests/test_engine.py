"""Oracles: the model without a cache, a loop that runs the whole text again for every token, and naive filters."""

import math

import pytest
import torch

from engine import Engine, KVCache, Sampling
from model import GPT, PRESETS, GPTConfig
from tokenizer import CharTokenizer, train_bpe

CHARACTERS = ''.join(map(chr, range(40, 105)))  # 65 of them: the model's table is padded to 128
EMOJI = '你好🌍'


class Bytes:
    """A tokenizer without merges: a character outside ASCII takes several tokens."""

    vocab_size, bos, special = 259, 256, {'<|bos|>': 256, '<|user_start|>': 257, '<|assistant_end|>': 258}

    def decode_bytes(self, ids):
        return bytes(i for i in ids if i < 256)


def build(preset='nano', dtype=torch.float32, vocab_size=65, block_size=64, std=0.2, seed=0, **settings):
    """Two layers of weights drawn at random, the ones included that would start at zero or one."""
    kv = 4 if preset == 'gpt2' else 2
    shape = dict(n_layer=2, n_head=4, n_kv_head=kv, n_embd=32, vocab_size=vocab_size, block_size=block_size)
    model = GPT(GPTConfig(**{**PRESETS[preset], **shape, **settings}))
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, std)
    return model.to(dtype).eval()


def prompt(length, seed=0, vocab_size=65):
    return torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def engine_of(**settings):
    return Engine(build(**settings), CharTokenizer(CHARACTERS))


def greedy_without_cache(model, ids, count):
    """The obvious loop, and the log-probability of what it says."""
    ids, logprobs = list(ids), []
    for _ in range(count):
        with torch.no_grad():
            scores = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        ids.append(int(scores.argmax()))
        logprobs.append(float(scores[ids[-1]]))
    return ids[-count:], logprobs


def run_until_done(engine, *requests):
    events = []
    while not all(request.done for request in requests):
        events += engine.step()
    return events


def ids_of(samples):
    return [sample.ids for sample in samples]


# -----------------------------------------------------------------------------
# the cache


@pytest.mark.parametrize('preset', PRESETS)
@pytest.mark.parametrize('chunks', [(64,), (20, 1, 43), (1,) * 64, (40,) + (1,) * 24, (7, 30, 1, 1, 25)])
@torch.inference_mode()
def test_cached_logits_are_the_full_ones(preset, chunks):
    """Prefill, chunked prefill, decode from nothing, prefill and decode: every position within 1e-5."""
    model, rows = build(preset), torch.tensor([prompt(64, seed) for seed in range(3)])
    full, cache, logits = model(rows), KVCache(model.config, rows=3, slots=1), []
    assert full.std() > 0.1  # of a model that says nothing all logits agree
    for chunk in rows.split(chunks, dim=1):
        cache.reserve(int(cache.lengths.max()) + chunk.shape[1])
        logits.append(model(chunk, cache=cache))
        cache.lengths += chunk.shape[1]
    torch.testing.assert_close(torch.cat(logits, dim=1), full, atol=1e-5, rtol=0)


@pytest.mark.parametrize('preset', PRESETS)
@torch.inference_mode()
def test_rows_of_different_lengths_share_a_cache(preset):
    """Right-padded prompts, then decoding: each row as if it were alone, whatever the padding wrote behind it."""
    model, lengths = build(preset), torch.tensor([5, 1, 30, 17])
    rows = torch.tensor([prompt(64, seed) for seed in range(4)])
    full, cache = model(rows), KVCache(model.config, rows=4, slots=30)
    logits = model(rows[:, :30], cache=cache)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(logits[row, :length], full[row, :length], atol=1e-5, rtol=0)
    cache.lengths += lengths
    for _ in range(34):
        cache.reserve(int(cache.lengths.max()) + 1)
        at = cache.lengths.clone()
        logits = model(rows[torch.arange(4), at][:, None], cache=cache)
        torch.testing.assert_close(logits[:, 0], full[torch.arange(4), at], atol=1e-5, rtol=0)
        cache.lengths += 1


@torch.inference_mode()
def test_a_cache_grows_drops_repeats_and_joins_rows():
    model = build(block_size=300)
    rows = torch.tensor([prompt(300, seed) for seed in range(3)])
    full, cache, other = model(rows), KVCache(model.config, 2, 100), KVCache(model.config, 1, 10)
    for into, part in ((cache, rows[:2, :100]), (other, rows[2:, :10])):
        model(part, cache=into)
        into.lengths += part.shape[1]
    cache.append(other)
    cache.take(torch.tensor([2, 0, 0]))
    at, source = cache.lengths.clone(), torch.tensor([2, 0, 0])
    assert at.tolist() == [10, 100, 100]
    for step in range(200):  # past 128 and 256 slots: it grows twice
        cache.reserve(100 + step + 1)
        logits = model(rows[source, at + step][:, None], cache=cache)[:, 0]
        cache.lengths += 1
        torch.testing.assert_close(logits, full[source, at + step], atol=1e-5, rtol=0)
    assert cache.keys.shape[3] == cache.width == 300
    with pytest.raises(ValueError, match='301 slots.*300'):
        cache.reserve(301)


def test_a_stray_value_behind_a_row_is_never_looked_at():
    """What finished rows and padding leave in the cache is finite garbage; nothing of it may reach an answer."""
    model, ids = build(), torch.tensor([prompt(64)])
    with torch.inference_mode():
        cache = KVCache(model.config, 1, 64)
        cache.keys.fill_(1e4)
        cache.values.fill_(1e4)
        logits = model(ids[:, :9], cache=cache)
        torch.testing.assert_close(logits, model(ids[:, :9]), atol=1e-5, rtol=0)


# -----------------------------------------------------------------------------
# the engine against the loop without a cache


@pytest.mark.parametrize('preset', PRESETS)
def test_temperature_0_is_the_naive_argmax_loop(preset):
    model, prompts = build(preset), [prompt(length, length) for length in (3, 1, 20)]
    samples = Engine(model, CharTokenizer(CHARACTERS)).generate(prompts, 40, Sampling(temperature=0))
    for ids, sample in zip(prompts, samples):
        expected, logprobs = greedy_without_cache(model, ids, 40)
        assert sample.ids == expected and sample.finish_reason == 'length'
        assert sample.text == CharTokenizer(CHARACTERS).decode(expected)
        assert sample.logprobs == pytest.approx(logprobs, abs=1e-4)


def test_a_prompt_may_join_while_others_decode():
    model, first, second = build(), prompt(9, 1), prompt(21, 2)
    engine = Engine(model, CharTokenizer(CHARACTERS))
    early = engine.submit(first, 30, Sampling(temperature=0))
    for _ in range(7):
        assert [event.request for event in engine.step()] == [early]
    late = engine.submit(second, 30, Sampling(temperature=0), n=2)
    assert [event.request for event in engine.step()] == [early, late, late]
    run_until_done(engine, early, late)
    assert ids_of(early.samples) == [greedy_without_cache(model, first, 30)[0]]
    assert ids_of(late.samples) == [greedy_without_cache(model, second, 30)[0]] * 2
    assert engine.step() == [] and engine.cache is None


@pytest.mark.parametrize('sampling', [Sampling(temperature=0), Sampling(temperature=1.5, top_k=30, top_p=0.9, seed=5)])
def test_neighbours_do_not_change_what_a_row_says(sampling):
    """In float64, where the rounding that depends on a batch's shape is far too small to turn a choice."""
    engine, ids = engine_of(dtype=torch.float64), prompt(10)
    alone = engine.submit(ids, 30, sampling)
    run_until_done(engine, alone)
    engine.submit(prompt(40, 1), 8, Sampling(seed=8), n=3)
    engine.step()
    among = engine.submit(ids, 30, sampling, n=2)
    engine.step()
    engine.submit(prompt(3, 2), 50, Sampling(seed=5))
    run_until_done(engine, among)
    assert among.samples[0].ids == alone.samples[0].ids
    assert (among.samples[1].ids == alone.samples[0].ids) == (sampling.temperature == 0)


def test_a_seed_says_the_same_again_and_another_does_not():
    engine, prompts = engine_of(), [prompt(4), prompt(4), prompt(9)]
    once = ids_of(engine.generate(prompts, 20, Sampling(seed=3), n=2))
    assert once == ids_of(engine.generate(prompts, 20, Sampling(seed=3), n=2))
    assert len(set(map(tuple, once))) == 6  # the first two prompts are equal, their streams are not
    assert all(a != b for a, b in zip(once, ids_of(engine.generate(prompts, 20, Sampling(seed=4), n=2))))
    longer = ids_of(engine.generate(prompts, 20, Sampling(seed=(3, 0)), n=3))  # the first two of three are those of two
    assert [longer[i] for i in (0, 1, 3, 4, 6, 7)] == ids_of(engine.generate(prompts, 20, Sampling(seed=(3, 0)), n=2))


def test_the_model_comes_back_as_it_was_and_dropout_is_off():
    engine = engine_of(dropout=0.5)
    expected = ids_of(engine.generate([prompt(5)], 10, Sampling(temperature=0)))
    engine.model.train()
    assert ids_of(engine.generate([prompt(5)], 10, Sampling(temperature=0))) == expected
    assert all(module.training for module in engine.model.modules())
    engine.model(torch.tensor([prompt(8)]), torch.tensor([prompt(8)])).sum().backward()  # training goes on
    assert engine.model.lm_head.weight.grad.abs().sum() > 0


def test_a_prompt_whose_forward_fails_leaves_the_others_as_they_were(monkeypatch):
    engine, sampling = engine_of(), Sampling(temperature=0)
    request = engine.submit(prompt(5), 10, sampling)
    engine.step()

    def out_of_memory(*args):
        raise RuntimeError('out of memory')

    with monkeypatch.context() as patch:
        patch.setattr(engine.model, 'hidden', out_of_memory)
        late = engine.submit(prompt(6), 10, sampling)
        with pytest.raises(RuntimeError, match='out of memory'):
            engine.step()
    engine.cancel(late)
    run_until_done(engine, request)
    assert request.samples[0].ids == greedy_without_cache(engine.model, prompt(5), 10)[0]


# -----------------------------------------------------------------------------
# how a token is drawn


def naive_probs(logits, temperature=1.0, top_k=None, top_p=1.0):
    """Filters as their definitions say them, one token at a time."""
    probs = [math.exp(x / temperature) for x in logits]
    order = sorted(range(len(probs)), key=lambda i: -probs[i])[: top_k or None]
    total, kept, reached = sum(probs[i] for i in order), [], 0.0
    for i in order:
        if reached < top_p:
            kept.append(i)
            reached += probs[i] / total
    total = sum(probs[i] for i in kept)
    return [probs[i] / total if i in kept else 0.0 for i in range(len(probs))]


@pytest.mark.parametrize(
    'filters',
    [
        dict(),
        dict(temperature=0.5),
        dict(temperature=2.0, top_k=5),
        dict(top_k=0),
        dict(top_k=1000),
        dict(top_p=0.7),
        dict(temperature=1.3, top_k=9, top_p=0.8),
        dict(top_p=1e-9),
        dict(top_k=1),
    ],
)
def test_frequencies_are_those_of_the_naive_filters(filters):
    """Pearson's chi-square of 4,000 seeded draws, at most its mean plus 5 standard deviations; none is filtered."""
    logits = torch.randn(12, generator=torch.Generator().manual_seed(1))
    sampling, draws = Sampling(**filters), 4000
    generator = sampling.stream(0, 0)
    counts = torch.bincount(torch.tensor([sampling.draw(logits, generator) for _ in range(draws)]), minlength=12)
    probs = naive_probs(logits.tolist(), **filters)
    kept = [i for i in range(12) if probs[i]]
    assert sum(counts[i] for i in kept) == draws
    chi2 = sum((int(counts[i]) - draws * probs[i]) ** 2 / (draws * probs[i]) for i in kept)
    freedom = len(kept) - 1
    assert chi2 <= freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize('temperature', [0, 1e-60, 1e-12])
def test_the_coldest_temperatures_are_argmax(temperature):
    logits = torch.tensor([1.0, 7.0, -math.inf, 6.9])
    sampling = Sampling(temperature=temperature, top_p=0.9)
    assert {sampling.draw(logits, sampling.stream(0, i)) for i in range(20)} == {1}


def test_streams_differ():
    """First draws of neighbouring seeds, prompts and samples look like independent uniform numbers."""
    keys = [(seed, number, sample) for seed in range(10) for number in range(10) for sample in range(10)]
    first = torch.tensor([torch.rand(1, generator=Sampling(seed=s).stream(n, i)).item() for s, n, i in keys])
    assert len(first.unique()) == 1000
    assert abs(first.mean() - 0.5) < 5 / math.sqrt(12 * 1000)
    assert abs(torch.corrcoef(torch.stack((first[:-1], first[1:])))[0, 1]) < 5 / math.sqrt(1000)


@pytest.mark.parametrize(
    'value', [dict(temperature=-1), dict(temperature=math.nan), dict(temperature=math.inf), dict(top_k=-1)]
    + [dict(top_p=0), dict(top_p=1.1), dict(top_p=math.nan), dict(seed=-1), dict(seed=(1, -2))],
)  # fmt: skip
def test_values_out_of_range_are_named(value):
    with pytest.raises(ValueError, match=f'{next(iter(value))} is '):
        Sampling(**value)


# -----------------------------------------------------------------------------
# what may be said, and where a text ends


def test_ids_beyond_the_vocabulary_are_never_drawn():
    """65 ids, a table of 128 rows; and a tokenizer that knows fewer ids than the model (nanoGPT: 50,257 of 50,304)."""
    engine = engine_of(std=0.01)  # nearly uniform: 63 of 128 would show at once
    assert engine.model.lm_head.weight.shape[0] == 128
    said = {i for sample in engine.generate([[0]], 60, Sampling(), n=20) for i in sample.ids}
    assert max(said) == 64
    few = Engine(engine.model, CharTokenizer(CHARACTERS[:40]))
    said = {i for sample in few.generate([[0]], 60, Sampling(), n=20) for i in sample.ids}
    assert said <= set(range(40)) and len(said) > 30
    with pytest.raises(ValueError, match='70 ids.*65'):
        Engine(engine.model, CharTokenizer(CHARACTERS + 'uvwxyz'[:5]))


def test_plain_text_ends_at_bos_and_holds_no_other_special_token():
    engine = Engine(build(vocab_size=259, std=0.01), Bytes())
    samples = engine.generate([[256, 65]], 60, Sampling(seed=1), n=100)
    assert max(i for sample in samples for i in sample.ids) < 256
    stopped = [sample for sample in samples if sample.finish_reason == 'stop']
    assert 5 < len(stopped) < 50  # 60 draws at 1 / 257 each: 20 of 100
    events = run_until_done(engine, engine.submit([256, 65], 60, Sampling(seed=1), n=100))
    last = [event for event in events if event.finish_reason == 'stop']
    assert len(last) == len(stopped)
    assert all(event.ids == [] and event.text in ('', '�') and -6.5 < event.logprob < -4.5 for event in last)


def test_stop_ids_end_a_text_and_are_not_returned():
    engine, ids = engine_of(), prompt(7)
    said = greedy_without_cache(engine.model, ids, 30)[0]
    stop = said[10]
    (sample,) = engine.generate([ids], 30, Sampling(temperature=0, stop=(stop,)))
    assert sample.ids == said[: said.index(stop)] and sample.finish_reason == 'stop'


@pytest.mark.parametrize('preset', PRESETS)
def test_a_text_ends_where_the_context_does(preset):
    """A prompt of P tokens has room for block_size - P more, and the last of them still says one."""
    model = build(preset, block_size=48)
    prompts = [prompt(length, length) for length in (1, 20, 47, 48)]
    samples = Engine(model, CharTokenizer(CHARACTERS)).generate(prompts, 1000, Sampling(temperature=0))
    assert [len(sample.ids) for sample in samples] == [48, 29, 2, 1]
    for ids, sample in zip(prompts, samples):
        assert sample.finish_reason == 'context'
        assert sample.ids == greedy_without_cache(model, ids, len(sample.ids))[0]


def test_a_request_that_cannot_be_met_is_named():
    engine, sampling = engine_of(), Sampling()
    for ids, words in (
        ([], '0 tokens.*64'),
        ([1] * 65, '65 tokens.*64'),
        ([1, 65], 'ids 1 to 65.*64'),
        ([-1], 'ids -1'),
    ):
        with pytest.raises(ValueError, match=words):
            engine.submit(ids, 10, sampling)
    with pytest.raises(ValueError, match='max_tokens is 0'):
        engine.submit([1], 0, sampling)
    assert engine.step() == []  # nothing of them is left


def test_cancel_ends_a_request_and_no_other():
    engine, ids = engine_of(), prompt(7)
    first, second = engine.submit(ids, 30, Sampling(temperature=0)), engine.submit(ids, 30, Sampling(), n=2)
    for _ in range(5):
        engine.step()
    third = engine.submit(ids, 30, Sampling())
    engine.cancel(second)
    engine.cancel(third)  # before it has begun
    events = engine.step()
    assert [(e.request, e.sample, e.finish_reason) for e in events] == [
        (second, 0, 'cancelled'),
        (second, 1, 'cancelled'),
        (third, 0, 'cancelled'),
        (first, 0, None),
    ]
    assert second.done and [len(sample.ids) for sample in second.samples] == [5, 5]
    run_until_done(engine, first)
    assert first.samples[0].ids == greedy_without_cache(engine.model, ids, 30)[0]
    engine.cancel(first)
    assert engine.step() == [] and first.samples[0].finish_reason == 'length'


def test_a_stream_is_its_sample_and_closing_it_cancels():
    engine, sampling = engine_of(), Sampling(seed=2)
    (sample,) = engine.generate([prompt(5)], 20, sampling)
    events = list(engine.stream(prompt(5), 20, sampling))
    assert [i for event in events for i in event.ids] == sample.ids
    assert ''.join(event.text for event in events) == sample.text
    assert [event.finish_reason for event in events] == [None] * 19 + ['length']
    stream = engine.stream(prompt(5), 20, sampling)
    request = next(stream).request
    stream.close()
    assert request.samples[0].finish_reason == 'cancelled' and not engine.rows


# -----------------------------------------------------------------------------
# numbers


@pytest.mark.parametrize('preset', PRESETS)
def test_under_autocast_tokens_are_drawn_from_float32(preset, monkeypatch):
    model, seen, draw = build(preset), [], Sampling.draw

    def spy(self, logits, generator):
        seen.append(logits)
        return draw(self, logits, generator)

    monkeypatch.setattr(Sampling, 'draw', spy)
    engine = Engine(model, CharTokenizer(CHARACTERS))
    with torch.autocast('cpu', torch.bfloat16):
        (sample,) = engine.generate([prompt(9)], 20, Sampling(temperature=0))
    with torch.inference_mode():
        full = model(torch.tensor([prompt(9) + sample.ids]))[0, 8:-1]
    assert all(logits.dtype == torch.float32 for logits in seen)
    assert (torch.stack(seen) - full).abs().max() < 0.05 * full.abs().max()  # bf16 keeps 8 bits


class Elsewhere(torch.Tensor):
    """Of a device where nothing is to be trusted but taking parts and copying to the CPU (MPS: nanoGPT#458)."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        assert function.__name__ in ('__getitem__', 'cpu'), f'{function.__name__} ran where the logits were'
        answer = super().__torch_function__(function, types, args, kwargs or {})
        return answer.as_subclass(torch.Tensor) if function.__name__ == 'cpu' else answer


def test_sampling_happens_on_the_cpu():
    model = Parrot(['abc'])
    model.numbers = [0]
    for name in ('logits', 'forward'):
        way = getattr(model, name)
        setattr(model, name, lambda *args, way=way, **kwargs: way(*args, **kwargs).as_subclass(Elsewhere))
    (sample,) = Engine(model, Bytes()).generate([[0]], 10, Sampling(temperature=0.01, top_k=3, top_p=0.9))
    assert sample.text == 'abc' and sample.finish_reason == 'stop'


# -----------------------------------------------------------------------------
# text


class Parrot(torch.nn.Module):
    """A model that says row r's text byte for byte, whatever the weights: what is tested is the way of the text."""

    def __init__(self, texts):
        super().__init__()
        self.texts = [text.encode('utf-8') for text in texts]
        self.config = GPTConfig(vocab_size=259, block_size=64, n_layer=1, n_head=1, n_embd=2)
        self.transformer = torch.nn.ModuleDict(dict(wte=torch.nn.Embedding(259, 2)))

    def hidden(self, inputs, cache):
        return inputs[..., None].float()  # the prompt's only token is the number of the text

    def logits(self, x):
        return torch.stack([self.scores(int(number), 0) for number in x[:, 0]])

    def forward(self, inputs, cache):
        said = cache.lengths.tolist()  # a prompt of one token: the row's length is what it has said
        return torch.stack([self.scores(number, n) for number, n in zip(self.numbers, said)])[:, None]

    def scores(self, number, at):
        text = self.texts[number]
        return torch.nn.functional.one_hot(torch.tensor([*text, 256][min(at, len(text))]), 259).float()


def test_text_is_never_half_a_character():
    """Texts whose characters are split over tokens, side by side: they stream whole and do not mix."""
    texts = [EMOJI * 3, 'naïve ' + EMOJI, EMOJI[::-1] * 2]
    model = Parrot(texts)
    model.numbers = range(3)
    engine = Engine(model, Bytes())
    requests = [engine.submit([number], 63, Sampling(temperature=0)) for number in range(3)]
    for _ in range(12):  # no text ends before
        for event in engine.step():
            assert '�' not in event.text and event.text in texts[requests.index(event.request)]
    pieces = {number: requests[number].samples[0].text for number in range(3)}
    assert all(pieces[number] and texts[number].startswith(pieces[number]) for number in range(3))


def test_what_is_left_of_a_character_is_flushed_at_the_end():
    for count, expected in ((3, '你'), (4, '你�'), (6, '你好'), (10, '你好🌍')):
        model = Parrot([EMOJI])
        model.numbers = [0]
        (sample,) = Engine(model, Bytes()).generate([[0]], count, Sampling(temperature=0))
        assert sample.text == expected


def test_a_trained_tokenizer_streams_its_own_text():
    tokenizer = train_bpe(
        ['the cat sat on the mat, the end. ' * 3], vocab_size=280, special=['<|bos|>', '<|user_start|>']
    )
    engine = Engine(build(vocab_size=tokenizer.vocab_size, std=0.02), tokenizer)
    ids = [tokenizer.bos, *tokenizer.encode('the cat')]
    for sample in engine.generate([ids], 50, Sampling(seed=1), n=4):
        assert sample.text == tokenizer.decode(sample.ids)
