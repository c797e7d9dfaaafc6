"""Oracles: the model without a cache, loops that run the whole text again for every token, and a
naive sampler."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conversation import CHATML, SPECIAL, Chat
from engine import Engine, Sampling
from model import GPT, PRESETS, GPTConfig
from tokenizer import CharTokenizer, train_bpe

CHARACTERS = ''.join(map(chr, range(40, 105)))  # 65 of them: the model's table is padded to 128
EMOJI = '你好🌍'


class Bytes:
    """A tokenizer without merges: a character outside ASCII takes several tokens."""

    vocab_size, bos, special = (
        259,
        256,
        {'<|bos|>': 256, '<|user_start|>': 257, '<|assistant_end|>': 258},
    )

    def decode_bytes(self, ids):
        return bytes(i for i in ids if i < 256)


def build(
    preset='nano', dtype=torch.float32, vocab_size=65, block_size=64, std=0.2, seed=0, **settings
):
    """Two layers of weights drawn at random, the ones included that would start at zero or one."""
    kv = 4 if preset == 'gpt2' else 2
    shape = dict(
        n_layer=2, n_head=4, n_kv_head=kv, n_embd=32, vocab_size=vocab_size, block_size=block_size
    )
    model = GPT(GPTConfig(**{**PRESETS[preset], **shape, **settings}))
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, std)
    return model.to(dtype).eval()


def prompt(length, seed=0, vocab_size=65):
    return torch.randint(
        vocab_size, (length,), generator=torch.Generator().manual_seed(seed)
    ).tolist()


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
# the engine against the loop without a cache


@pytest.mark.parametrize('preset', PRESETS)
def test_temperature_0_is_the_naive_argmax_loop(preset):
    model, prompts = build(preset), [prompt(length, length) for length in (3, 1, 20)]
    samples = Engine(model, CharTokenizer(CHARACTERS)).generate(
        prompts, 40, Sampling(temperature=0)
    )
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
    assert engine.step() == [] and not engine.busy and engine.blocks_in_use == 0


@pytest.mark.parametrize(
    'sampling', [Sampling(temperature=0), Sampling(temperature=1.5, top_k=30, top_p=0.9, seed=5)]
)
def test_neighbours_do_not_change_what_a_row_says(sampling):
    """In float64, where the rounding that depends on a batch's shape is far too small to turn a
    choice."""
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
    assert all(
        a != b for a, b in zip(once, ids_of(engine.generate(prompts, 20, Sampling(seed=4), n=2)))
    )
    longer = ids_of(
        engine.generate(prompts, 20, Sampling(seed=(3, 0)), n=3)
    )  # the first two of three are those of two
    assert [longer[i] for i in (0, 1, 3, 4, 6, 7)] == ids_of(
        engine.generate(prompts, 20, Sampling(seed=(3, 0)), n=2)
    )


def test_the_model_comes_back_as_it_was_and_dropout_is_off():
    engine = engine_of(dropout=0.5)
    expected = ids_of(engine.generate([prompt(5)], 10, Sampling(temperature=0)))
    engine.model.train()
    assert ids_of(engine.generate([prompt(5)], 10, Sampling(temperature=0))) == expected
    assert all(module.training for module in engine.model.modules())
    engine.model(
        torch.tensor([prompt(8)]), torch.tensor([prompt(8)])
    ).sum().backward()  # training goes on
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
# what may be said, and where a text ends


def test_ids_beyond_the_vocabulary_are_never_drawn():
    """65 ids, a table of 128 rows; and a tokenizer that knows fewer ids than the model (nanoGPT:
    50,257 of 50,304)."""
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
    assert all(
        event.ids == [] and event.text in ('', '�') and -6.5 < event.logprob < -4.5
        for event in last
    )


def test_stop_ids_end_a_text_and_are_not_returned():
    engine, ids = engine_of(), prompt(7)
    said = greedy_without_cache(engine.model, ids, 30)[0]
    stop = said[10]
    (sample,) = engine.generate([ids], 30, Sampling(temperature=0, stop=(stop,)))
    assert sample.ids == said[: said.index(stop)] and sample.finish_reason == 'stop'


@pytest.mark.parametrize('preset', PRESETS)
def test_a_text_ends_where_the_context_does(preset):
    """A prompt of P tokens has room for block_size - P more, and the last of them still says
    one."""
    model = build(preset, block_size=48)
    prompts = [prompt(length, length) for length in (1, 20, 47, 48)]
    samples = Engine(model, CharTokenizer(CHARACTERS)).generate(
        prompts, 1000, Sampling(temperature=0)
    )
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
    first, second = (
        engine.submit(ids, 30, Sampling(temperature=0)),
        engine.submit(ids, 30, Sampling(), n=2),
    )
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

    def spy(self, logits, uniform):
        seen.append(logits)
        assert (
            engine.cache.keys[0].dtype == engine.cache.values[0].dtype == torch.bfloat16
        )  # as attention rounds them
        return draw(self, logits, uniform)

    monkeypatch.setattr(Sampling, 'draw', spy)
    engine = Engine(model, CharTokenizer(CHARACTERS))
    with torch.autocast('cpu', torch.bfloat16):
        (sample,) = engine.generate([prompt(9)], 20, Sampling(temperature=0))
    with torch.inference_mode():
        full = model(torch.tensor([prompt(9) + sample.ids]))[0, 8:-1]
    assert all(logits.dtype == torch.float32 for logits in seen)
    assert (torch.cat(seen) - full).abs().max() < 0.05 * full.abs().max()  # bf16 keeps 8 bits


class Casts(TorchDispatchMode):
    """Counts conversions of tensors of these shapes to bfloat16."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes = shapes
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and out.dtype == torch.bfloat16:
            self.count += tuple(out.shape) in self.shapes
        return out


def test_under_autocast_each_weight_is_converted_once():
    """Under inference_mode autocast would convert all of them in every step."""
    model = build()
    table = model.transformer.wte.weight
    matrices = [p for p in model.parameters() if p.dim() == 2 and p is not table]
    assert len(matrices) == 9  # four in each of two layers, and the head
    engine = Engine(model, CharTokenizer(CHARACTERS))
    with torch.autocast('cpu', torch.bfloat16), Casts({tuple(p.shape) for p in matrices}) as casts:
        engine.submit(prompt(9), 20, Sampling())
        counts = []
        for _ in range(5):
            engine.step()
            counts.append(casts.count)
    assert counts == [9] * 5


class Elsewhere(torch.Tensor):
    """Of a device where nothing is to be trusted but taking parts and copying to the CPU (MPS:
    nanoGPT#458)."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        assert function.__name__ in ('__getitem__', 'to'), (
            f'{function.__name__} ran where the logits were'
        )
        answer = super().__torch_function__(function, types, args, kwargs or {})
        return answer.as_subclass(torch.Tensor) if args[1:] == ('cpu',) else answer


def test_sampling_happens_on_the_cpu_where_there_is_no_card():
    model = Parrot(['abc'])
    model.numbers = [0]
    for name in ('logits', 'forward'):
        way = getattr(model, name)
        setattr(
            model,
            name,
            lambda *args, way=way, **kwargs: way(*args, **kwargs).as_subclass(Elsewhere),
        )
    (sample,) = Engine(model, Bytes()).generate(
        [[0]], 10, Sampling(temperature=0.01, top_k=3, top_p=0.9)
    )
    assert sample.text == 'abc' and sample.finish_reason == 'stop'


# -----------------------------------------------------------------------------
# text


class Parrot(torch.nn.Module):
    """A model that says row r's text byte for byte, whatever the weights: what is tested is the way
    of the text."""

    def __init__(self, texts, vocab_size=259):
        super().__init__()
        self.texts = [text.encode('utf-8') if isinstance(text, str) else text for text in texts]
        self.config = GPTConfig(vocab_size=vocab_size, block_size=64, n_layer=1, n_head=1, n_embd=2)
        self.transformer = torch.nn.ModuleDict(dict(wte=torch.nn.Embedding(vocab_size, 2)))

    def hidden(self, inputs, cache):
        return inputs[..., None].float()  # the prompt's only token is the number of the text

    def logits(self, x):
        return torch.stack([self.scores(int(number), 0) for number in x[:, 0]])

    def forward(self, inputs, cache):
        said = cache.lengths.tolist()  # a prompt of one token: the row's length is what it has said
        return torch.stack([self.scores(number, n) for number, n in zip(self.numbers, said)])[
            :, None
        ]

    def scores(self, number, at):
        text = self.texts[number]
        last = torch.tensor([*text, 256][min(at, len(text))])
        return torch.nn.functional.one_hot(last, self.config.vocab_size).float()


def test_text_is_never_half_a_character():
    """Texts whose characters are split over tokens, side by side: they stream whole and do not
    mix."""
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
        ['the cat sat on the mat, the end. ' * 3],
        vocab_size=280,
        special=['<|bos|>', '<|user_start|>'],
    )
    engine = Engine(build(vocab_size=tokenizer.vocab_size, std=0.02), tokenizer)
    ids = [tokenizer.bos, *tokenizer.encode('the cat')]
    for sample in engine.generate([ids], 50, Sampling(seed=1), n=4):
        assert sample.text == tokenizer.decode(sample.ids)


@pytest.mark.parametrize('text, stops, shown', [
    ('one, two, three', ('two',), 'one, '),
    ('one, two, three', ('three', 'two', 'x'), 'one, '),  # the first in the text
    ('one, two, three', ('ones', 'three!'), 'one, two, three'),  # began, did not end
    (EMOJI + 'abc', ('🌍a',), '你好'),
    ('aaab', ('aab',), 'a'),
])  # fmt: skip
def test_a_text_ends_before_its_first_stop_text(text, stops, shown):
    model = Parrot([text])
    model.numbers = [0]
    engine = Engine(model, Bytes())
    request = engine.submit([0], 60, Sampling(temperature=0, stop_texts=stops))
    events = run_until_done(engine, request)
    assert ''.join(event.text for event in events) == request.samples[0].text == shown
    assert events[-1].finish_reason == 'stop'


def test_text_that_may_begin_a_stop_text_is_returned_at_the_end():
    for text, count in (('one tw', 60), ('one two', 6)):  # its own end; max_tokens
        model = Parrot([text])
        model.numbers = [0]
        (sample,) = Engine(model, Bytes()).generate(
            [[0]], count, Sampling(temperature=0, stop_texts=('two',))
        )
        assert sample.text == 'one tw'


def test_cancelling_returns_the_text_that_was_held_back():
    model = Parrot(['one two'])
    model.numbers = [0]
    engine = Engine(model, Bytes())
    request = engine.submit([0], 60, Sampling(temperature=0, stop_texts=('two',)))
    events = [event for _ in range(6) for event in engine.step()]
    engine.cancel(request)
    events += engine.step()
    assert ''.join(event.text for event in events) == request.samples[0].text == 'one tw'


def test_alternatives_are_the_likeliest_ids_of_the_model():
    engine = engine_of(std=0.3)
    asked = engine.submit(prompt(7), 8, Sampling(seed=3, top_k=2, top_logprobs=5))
    engine.submit(prompt(9), 8, Sampling(seed=4))
    ids = list(asked.prompt)
    for event in run_until_done(engine, asked):
        if event.request is not asked:
            assert event.alternatives == ()
            continue
        with torch.no_grad():
            scores = engine.model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        best = scores.topk(5)
        assert [id for id, _ in event.alternatives] == best.indices.tolist()
        np.testing.assert_allclose([p for _, p in event.alternatives], best.values, atol=1e-5)
        assert event.ids[0] in best.indices[:2]
        ids += event.ids
    assert [len(listed) for listed in asked.samples[0].alternatives] == [5] * 8


@pytest.mark.parametrize('penalty', [1.3, 0.7])
def test_a_repetition_penalty_changes_the_logits_of_ids_already_there(penalty):
    engine = engine_of(std=0.3, seed=2)
    settings = Sampling(temperature=0, repetition_penalty=penalty)
    (sample,) = engine.generate([prompt(12)], 40, settings)
    ids = prompt(12)
    for _ in range(40):
        with torch.no_grad():
            logits = engine.model(torch.tensor([ids]))[0, -1]
        for i in set(ids):
            logits[i] *= penalty if logits[i] < 0 else 1 / penalty
        ids.append(int(logits.argmax()))
    assert sample.ids == ids[12:]
    assert sample.ids != engine.generate([prompt(12)], 40, Sampling(temperature=0))[0].ids


# -----------------------------------------------------------------------------
# conversations and calls

WORDS = 'who are you? i am a model. what is 12 plus 30? it is 42, the sum of both. '


@pytest.fixture(scope='module')
def tokenizer():
    return train_bpe([WORDS * 3], vocab_size=300, special=SPECIAL)


def biased(tokenizer, model=None, special=0.0, **named):
    """A model that likes to say special tokens, all of them or some by name: python_start=9."""
    model = model or build(vocab_size=tokenizer.vocab_size, dtype=torch.float64, block_size=128)
    bias = torch.zeros(tokenizer.vocab_size, dtype=model.lm_head.weight.dtype)
    for spelling, i in tokenizer.special.items():
        bias[i] = named.get(spelling.strip('<|>'), special)
    way = model.logits
    model.logits = lambda x: way(x) + bias
    return model


def asked(chat, question='what is 12 plus 30?'):
    return chat.prompt([{'role': 'user', 'content': question}])


def length_of(text):
    """A tool: how long the call is, unless that is odd."""
    if len(text) % 2:
        raise ValueError('odd')
    return str(len(text))


def naive_answer(model, tokenizer, ids, count, sampling, tool, number=0, sample=0):
    """The whole conversation again for each token, and the rules of a call spelled out. (ids,
    spoken, calls)"""
    name = {i: spelling.strip('<|>') for spelling, i in tokenizer.special.items()}
    may = {'text': ('assistant_end', 'python_start'), 'python': ('python_end',)}
    said, spoken, queue, calls, part = [], [], [], [], 'text'
    for u in sampling.stream(number, sample, count):
        spoken.append(not queue)
        if queue:
            said.append(queue.pop(0))
        else:
            with torch.no_grad():
                logits = model(torch.tensor([ids + said]))[0, -1].double().numpy()
            allowed = [t for t in may[part] if not (t == 'python_start' and len(calls) == 8)]
            probs = np.exp(logits / (sampling.temperature or 1.0))
            probs[[i for i, spelling in name.items() if spelling not in allowed]] = 0
            passed = np.flatnonzero(np.cumsum(probs) > u * probs.sum())[0]
            said.append(int(passed if sampling.temperature else probs.argmax()))
            word = name.get(said[-1])
            if word == 'assistant_end':
                break
            if word == 'python_start':
                part, begin = 'python', len(said)
            if word == 'python_end':
                part = 'text'
                calls.append(tokenizer.decode(said[begin:-1]))
                try:
                    answer = tool(calls[-1])
                except ValueError:
                    answer = 'error'
                special = tokenizer.special
                queue = [
                    special['<|output_start|>'],
                    *tokenizer.encode(answer),
                    special['<|output_end|>'],
                ]
    return said, spoken, calls


@pytest.mark.parametrize('temperature', [0, 1.0])
@pytest.mark.parametrize('fixed', [{}, dict(rows=6, slots=128)])
def test_a_chat_with_calls_is_the_naive_loop(tokenizer, temperature, fixed):
    """Special tokens are likely everywhere, wherever they are not allowed too."""
    chat, calls = Chat(tokenizer), []
    model = biased(tokenizer, special=4.0, python_start=2.0, python_end=3.0, assistant_end=1.0)

    def tool(text):
        calls.append(text)
        return length_of(text)

    engine, sampling = Engine(model, tokenizer, chat, tool, **fixed), Sampling(temperature, seed=4)
    prompts = [
        asked(chat, question) for question in ('who are you?', 'what is 12 plus 30?', 'i am you')
    ]
    samples, expected_calls = engine.generate(prompts, 60, sampling, n=2), []
    for k, sample in enumerate(samples):
        expected, spoken, called = naive_answer(
            model, tokenizer, prompts[k // 2], 60, sampling, length_of, k // 2, k % 2
        )
        assert (
            sample.ids == expected
            and sample.spoken == spoken
            and len(sample.logprobs) == len(expected)
        )
        assert (
            chat.is_spoken(prompts[k // 2] + expected)[len(prompts[k // 2]) - 1 :].tolist()
            == spoken
        )
        with torch.no_grad():
            scores = model(torch.tensor([prompts[k // 2] + expected]))[0].log_softmax(-1)
        scores = scores[len(prompts[k // 2]) - 1 : -1].gather(1, torch.tensor(expected)[:, None])[
            :, 0
        ]
        assert sample.logprobs == pytest.approx(
            scores.tolist(), abs=1e-9
        )  # those of forced ids too
        assert sample.text == chat.text(expected)
        ended = expected[-1] == tokenizer.special['<|assistant_end|>']
        assert sample.finish_reason == ('stop' if ended else 'length')
        expected_calls += called
    assert sorted(calls) == sorted(expected_calls)
    assert len(calls) > 5 and len({len(call) % 2 for call in calls}) == 2  # results and errors


def test_there_are_8_calls_at_most(tokenizer):
    chat = Chat(tokenizer)
    model = biased(tokenizer, python_start=50.0, python_end=50.0)
    (sample,) = Engine(model, tokenizer, chat, length_of).generate(
        [asked(chat)], 60, Sampling(temperature=0)
    )
    begin, end = chat.python_start, chat.python_end
    call = [begin, end, *chat.output('0')]
    assert sample.ids[: 8 * len(call)] == call * 8
    assert not {begin, end} & set(sample.ids[8 * len(call) :]) and len(sample.ids) > 8 * len(call)


def test_an_error_of_the_tool_is_said_and_no_other_is_swallowed(tokenizer):
    chat = Chat(tokenizer)
    model = biased(tokenizer, python_start=50.0, python_end=50.0)

    def refuse(text):
        raise ValueError('not today')

    (sample,) = Engine(model, tokenizer, chat, refuse).generate(
        [asked(chat)], 20, Sampling(temperature=0)
    )
    assert chat.parts(sample.ids)[:2] == [
        {'type': 'python', 'text': ''},
        {'type': 'output', 'text': 'error'},
    ]
    with pytest.raises(ZeroDivisionError):
        Engine(model, tokenizer, chat, lambda text: 1 / 0).generate(
            [asked(chat)], 20, Sampling(temperature=0)
        )


def test_an_answer_is_cut_anywhere_by_max_tokens_and_by_context(tokenizer):
    """Before, in and behind calls and outputs: a shorter answer is the beginning of the longer
    one."""
    chat, ids = Chat(tokenizer), asked(Chat(tokenizer))
    bias = dict(python_start=3.0, python_end=6.0)
    (whole,) = Engine(biased(tokenizer, **bias), tokenizer, chat, lambda text: 'answered').generate(
        [ids], 40, Sampling()
    )
    kinds = [chat.parts(whole.ids[:count])[-1]['type'] for count in range(1, 41)]
    assert {'text', 'python', 'output'} <= set(kinds) and whole.finish_reason == 'length'
    model = biased(tokenizer, **bias)
    for count in range(1, 40):
        limits = [
            Engine(model, tokenizer, chat, lambda text: 'answered').generate(
                [ids], count, Sampling()
            )
        ]
        shape = dict(rows=2, slots=len(ids) + count - 1)
        limits.append(
            Engine(model, tokenizer, chat, lambda text: 'answered', **shape).generate(
                [ids], 99, Sampling()
            )
        )
        for (sample,), reason in zip(limits, ('length', 'context')):
            assert sample.ids == whole.ids[:count] and sample.spoken == whole.spoken[:count]
            assert sample.logprobs == pytest.approx(whole.logprobs[:count], abs=1e-9)
            assert sample.finish_reason == reason and sample.text == chat.text(sample.ids)


def test_each_part_streams_whole_characters():
    """Also where a part breaks off within one: what is left of it does not run into the next
    part."""
    tokenizer = train_bpe(['ab'], vocab_size=256 + len(SPECIAL), special=SPECIAL)
    chat, half = Chat(tokenizer), '🌍'.encode()[:2]
    call = [chat.python_start, *EMOJI.encode(), *half, chat.python_end]
    answer = [*EMOJI.encode(), *half, *call, *chat.output('né' + EMOJI), *'ï!'.encode(), *chat.stop]
    model, events, calls = Parrot([answer], tokenizer.vocab_size), [], []
    model.numbers = [0]

    def tool(text):
        calls.append(text)
        return 'né' + EMOJI

    engine = Engine(model, tokenizer, chat, tool)
    chat.speakable = lambda ids: Chat.speakable(
        chat, [*asked(chat), *ids[1:]]
    )  # a parrot's prompt is one number
    request = engine.submit([0], 60, Sampling(temperature=0))
    while not request.done:
        events += engine.step()
    assert request.samples[0].ids == answer and calls == [EMOJI + '\ufffd']
    for part, expected in (
        ('text', EMOJI + '\ufffdï!'),
        ('python', EMOJI + '\ufffd'),
        ('output', 'né' + EMOJI),
    ):
        assert ''.join(event.text for event in events if event.part == part) == expected
    assert all(event.text in (*EMOJI, *'néï!', '', '\ufffd') for event in events)
    assert sum('\ufffd' in event.text for event in events) == 2
    assert request.samples[0].text == EMOJI + '\ufffdï!' == chat.text(answer)


def test_what_stands_in_no_answer_holds_no_special_token(tokenizer):
    """Plain text may end with <|bos|>, which is not returned; a user's turn with nothing; no tool:
    no call."""
    chat, model = Chat(tokenizer), biased(tokenizer, special=12.0)
    special, sampling = tokenizer.special, Sampling(seed=2)
    engine = Engine(model, tokenizer, chat, length_of)
    plain = engine.generate([[special['<|bos|>'], 65]], 40, sampling, n=5)
    assert all(
        sample.finish_reason == 'stop' and not set(sample.ids) & set(special.values())
        for sample in plain
    )
    turn = engine.generate([[special['<|bos|>'], special['<|user_start|>'], 65]], 20, sampling, n=5)
    assert all(
        sample.finish_reason == 'length' and not set(sample.ids) & set(special.values())
        for sample in turn
    )
    without = Engine(model, tokenizer, chat)
    answers = without.generate([asked(chat)], 40, sampling, n=5)
    assert all(set(sample.ids) & set(special.values()) == chat.stop for sample in answers)


def test_a_prompt_may_end_within_a_call(tokenizer):
    chat, model, calls = Chat(tokenizer), biased(tokenizer, python_end=50.0), []
    prompt = [*asked(chat), chat.python_start, *tokenizer.encode('12+30')]
    engine = Engine(model, tokenizer, chat, lambda text: calls.append(text) or '42')
    (sample,) = engine.generate([prompt], 6, Sampling(temperature=0))
    assert calls == ['12+30'] and sample.ids[: len(chat.output('42')) + 1] == [
        chat.python_end,
        *chat.output('42'),
    ]
    (sample,) = Engine(model, tokenizer, chat).generate([prompt], 20, Sampling(temperature=0))
    assert sample.ids[: len(chat.output('error')) + 1] == [chat.python_end, *chat.output('error')]


def test_chatml_ends_with_its_own_token():
    tokenizer = train_bpe([WORDS * 3], vocab_size=300, special=('<|endoftext|>', *CHATML))
    chat, model = (
        Chat(tokenizer),
        biased(tokenizer, model=build(vocab_size=tokenizer.vocab_size), special=12.0),
    )
    for sample in Engine(model, tokenizer, chat, length_of).generate(
        [asked(chat)], 40, Sampling(), n=10
    ):
        assert sample.finish_reason == 'stop' and sample.ids[-1] == tokenizer.special['<|im_end|>']
        assert not set(sample.ids[:-1]) & set(tokenizer.special.values()) and all(sample.spoken)
        assert sample.text == tokenizer.decode(sample.ids)


def test_a_forced_id_is_no_stop(tokenizer):
    chat, model = Chat(tokenizer), biased(tokenizer, python_start=50.0, python_end=50.0)
    (seven,) = tokenizer.encode('7')
    sampling = Sampling(temperature=0, stop=(seven,))
    (sample,) = Engine(model, tokenizer, chat, lambda text: '7').generate(
        [asked(chat)], 40, sampling
    )
    assert sample.ids.count(seven) == 8 and sample.finish_reason == 'length'


# -----------------------------------------------------------------------------
# shapes and queues


@pytest.mark.parametrize(
    'sampling', [Sampling(temperature=1.0, seed=(7, 1)), Sampling(temperature=0)]
)
def test_rows_of_different_sampling_do_not_mix(sampling):
    engine = engine_of(dtype=torch.float64)
    others = (
        Sampling(0),
        Sampling(1.0, seed=3),
        Sampling(1.0, top_k=3),
        Sampling(0.7, top_p=0.5),
        Sampling(0.7),
    )
    alone = [engine.generate([prompt(9)], 30, s, n=2) for s in (sampling, *others)]
    requests = [engine.submit(prompt(9), 30, s, n=2) for s in (sampling, *others)]
    run_until_done(engine, *requests)
    assert [ids_of(request.samples) for request in requests] == [
        ids_of(samples) for samples in alone
    ]


@pytest.mark.parametrize('preset, rows, slots', [('plus', 16, 64), ('qwen3', 13, 100)])
def test_at_a_fixed_shape_a_row_says_the_same(preset, rows, slots, monkeypatch):
    """12 questions with 4 samples each in float32, in batches of different questions and order. The
    log-probabilities are compared as numbers: some CPUs round a row of a product by its place."""
    tokenizer = train_bpe([WORDS * 3], vocab_size=300, special=SPECIAL)
    chat, shapes = Chat(tokenizer), set()
    model = build(preset, vocab_size=tokenizer.vocab_size, block_size=128, std=0.1)
    biased(tokenizer, model, python_start=1.0, python_end=3.0, assistant_end=1.0)
    hidden = model.hidden

    def spy(inputs, cache, usage=None):
        shapes.add((*inputs.shape, cache.width, *cache.table.shape))
        return hidden(inputs, cache)

    monkeypatch.setattr(model, 'hidden', spy)
    engine = Engine(model, tokenizer, chat, length_of, rows=rows, slots=slots)
    prompts = [asked(chat, WORDS[3 * k : 8 * k + 9] + 'z' * 2 * k) for k in range(12)]
    assert max(map(len, prompts)) > 33 > 20 > min(map(len, prompts))  # in one piece and in two

    def said(*batches):
        found = {}
        for batch in batches:
            samples = engine.generate(
                [prompts[k] for k in batch], 40, Sampling(seed=5), n=4, numbers=batch
            )
            found |= {
                (batch[i // 4], i % 4): (s.ids, s.logprobs, s.spoken, s.text)
                for i, s in enumerate(samples)
            }
        return found

    expected = {
        key: (ids, pytest.approx(logprobs, abs=1e-5), *rest)
        for key, (ids, logprobs, *rest) in said(range(12)).items()
    }
    assert len({tuple(ids) for ids, *_ in expected.values()}) == 48
    assert len({len(ids) for ids, *_ in expected.values()}) > 5 and not all(
        all(s) for _, _, s, _ in expected.values()
    )
    assert said(*[[k] for k in range(12)]) == expected
    assert said([11, 3, 7], [0, 10, 2, 1, 9, 8], [6, 5, 4]) == expected
    assert said(list(range(11, -1, -1))) == expected
    engine.submit(prompts[3], 50, Sampling(temperature=0), n=7)
    assert said([4, 2], [0, 1, 3], range(5, 12)) == expected
    assert len(shapes) == 2  # one prefill, one decode


def test_a_shape_that_cannot_be_is_named():
    model, tokenizer = build(), CharTokenizer(CHARACTERS)
    for wrong in (
        dict(rows=4),
        dict(slots=64),
        dict(rows=4, slots=65),
        dict(rows=4, slots=0),
        dict(rows=0, slots=64),
    ):
        with pytest.raises(ValueError, match='block_size = 64 slots'):
            Engine(model, tokenizer, **wrong)
    with pytest.raises(ValueError, match='21 tokens.*slots = 20'):
        Engine(model, tokenizer, rows=4, slots=20).submit(prompt(21), 5, Sampling())


@pytest.mark.parametrize('most', [1, 5, 20])
def test_what_does_not_fit_waits(most):
    """More prompts than rows, and more samples of one prompt; rows are never more than may be, and
    hardly ever less."""
    model, seen = build(dtype=torch.float64), []
    prompts = [prompt(3 + k % 7, k) for k in range(12)]
    stop = tuple(range(6))  # texts of different lengths
    expected = Engine(model, CharTokenizer(CHARACTERS)).generate(
        prompts, 30, Sampling(stop=stop), n=7
    )
    engine = Engine(model, CharTokenizer(CHARACTERS), max_rows=most)
    forward = engine.model.forward
    model.forward = lambda inputs, cache: seen.append(len(inputs)) or forward(inputs, cache=cache)
    samples = engine.generate(prompts, 30, Sampling(stop=stop), n=7)
    assert ids_of(samples) == ids_of(expected) and len({len(sample.ids) for sample in samples}) > 5
    assert max(seen) == most and not engine.waiting and not engine.rows
    assert sum(seen) < 1.3 * sum(len(sample.ids) for sample in samples) + 30 * most


@pytest.mark.parametrize('slots_that_fit', [256, 10 * 32, 20 * 32, 10**6])
def test_a_cache_too_small_for_all_makes_them_wait(slots_that_fit):
    """12 samples of 79 tokens need 3 blocks each, the least cache holds 8. Nothing is lost."""
    model, seen = build(dtype=torch.float64, block_size=256), []
    slot_bytes = 2 * 2 * 2 * 8 * 8  # keys and values, layers, heads, head_dim, float64
    prompts = [prompt(40, k) for k in range(4)]
    expected = Engine(model, CharTokenizer(CHARACTERS)).generate(prompts, 40, Sampling(), n=3)
    engine = Engine(model, CharTokenizer(CHARACTERS), max_bytes=slot_bytes * slots_that_fit)
    requests = [engine.submit(ids, 40, Sampling(), 3, k) for k, ids in enumerate(prompts)]
    while engine.busy:
        engine.step()
        seen.append(len(engine.rows))
        assert engine.blocks_in_use <= slots_that_fit // 32
        least = 1.15 * engine.tokens_held + 32 * (len(engine.rows) + len(engine.reading))
        assert 32 * engine.blocks_in_use <= least
    assert ids_of(s for request in requests for s in request.samples) == ids_of(expected)
    assert max(seen) >= min(12, slots_that_fit // 128)


def test_many_prompts_are_read_in_several_forwards(monkeypatch):
    monkeypatch.setattr('engine.PREFILL_TOKENS', 50)
    monkeypatch.setattr('engine.BETWEEN', {'cpu': 40})
    model, seen = build(dtype=torch.float64), []
    hidden = model.hidden
    model.hidden = lambda inputs, cache, *_: (
        seen.append(tuple(inputs.shape)) or hidden(inputs, cache)
    )
    prompts = [prompt(length, length) for length in (20, 60, 4, 20, 20, 20)]
    samples = Engine(model, CharTokenizer(CHARACTERS)).generate(prompts, 3, Sampling(temperature=0))
    # the shortest first; a small part of the long one while the others decode
    assert [shape for shape in seen if shape[1] > 1] == [
        (2, 20), (2, 20), (1, 20), (1, 40), (1, 20)
    ]  # fmt: skip
    for ids, sample in zip(prompts, samples):
        assert sample.ids == greedy_without_cache(model, ids, 3)[0]


def test_a_waiting_request_can_be_cancelled():
    engine = Engine(build(), CharTokenizer(CHARACTERS), max_rows=2)
    first, second, third = (
        engine.submit(prompt(5), 6, Sampling(temperature=0), n=2) for _ in range(3)
    )
    engine.step()
    engine.cancel(second)
    run_until_done(engine, third)
    assert first.done and [len(sample.ids) for sample in second.samples] == [0, 0]
    assert ids_of(third.samples) == ids_of(first.samples)


def test_numbers_choose_the_streams():
    engine = engine_of(dtype=torch.float64)
    counted = ids_of(engine.generate([prompt(4)] * 3, 20, Sampling()))
    assert ids_of(engine.generate([prompt(4)] * 2, 20, Sampling(), numbers=[2, 0])) == [
        counted[2],
        counted[0],
    ]


# -----------------------------------------------------------------------------
# the cache: what is shared, found again, preempted and forgotten


def prefilled(engine):
    """A list that grows by the tokens of each prefill pass of the engine, padding included."""
    passes, hidden = [], engine.model.hidden

    def spy(inputs, cache, usage=None):
        if inputs.shape[1] > 1:
            passes.append(inputs.numel())
        return hidden(inputs, cache)

    engine.model.hidden = spy
    return passes


@pytest.mark.parametrize('preset', ['plus', 'gpt2'])
def test_all_logits_are_those_of_the_full_forward(preset, monkeypatch):
    """Requests at random times with common beginnings, some cancelled, in a cache that is too small
    for all and prefills 12 tokens at a time: the logits of a random row of each step within 1e-5,
    in float32."""
    monkeypatch.setattr('engine.BETWEEN', {'cpu': 12})
    model = build(preset, block_size=128, std=0.1)
    slot_bytes = 2 * 2 * model.config.n_kv_head * 8 * 4
    engine = Engine(model, CharTokenizer(CHARACTERS), max_bytes=8 * 32 * slot_bytes)
    draw, preempted, compared = np.random.default_rng(0), [], []
    preempt, next_tokens = engine.preempt, engine.next_tokens
    engine.preempt = lambda text: preempted.append(text) or preempt(text)

    def compare(logits):
        compared.append(draw.integers(len(logits)))
        full = model(torch.tensor([engine.rows[compared[-1]].tokens]))[0, -1]
        torch.testing.assert_close(logits[compared[-1]], full, atol=1e-5, rtol=0)
        return next_tokens(logits)

    engine.next_tokens = compare
    requests = []
    for step in range(150):
        if step < 60 and draw.random() < 0.3:
            ids = prompt(100)[: draw.integers(1, 100)] + prompt(9, step)[: draw.integers(9)]
            requests.append(engine.submit(ids, int(draw.integers(1, 50)), Sampling(), n=3))
        if step % 20 == 19:
            engine.cancel(requests[draw.integers(len(requests))])
        engine.step()
    run_until_done(engine, *requests)
    assert sum(compared) > 100 and len(preempted) > 2
    assert engine.blocks_in_use == engine.tokens_held == 0
    assert engine.cache_size.startswith('at most 8 blocks of 32 tokens')


def test_a_prompt_is_held_once_and_found_by_later_requests():
    engine = engine_of(dtype=torch.float64, block_size=600)
    passes = prefilled(engine)
    first = engine.submit(prompt(512), 20, Sampling(), n=16)
    engine.step()
    assert engine.blocks_in_use == 16 and engine.tokens_held == 512 and passes == [512]
    engine.step()
    assert engine.blocks_in_use == 32 and engine.tokens_held == 528
    run_until_done(engine, first)
    assert engine.blocks_in_use == 0
    # 1) The next request begins with the conversation so far
    longer = first.samples[3].tokens + prompt(5, 1)
    second = engine.submit(longer, 10, Sampling(temperature=0))
    run_until_done(engine, second)
    assert sum(passes) == 512 + len(longer) % 32
    # 2) and says what it would say without
    fresh = Engine(engine.model, engine.tokenizer)
    assert ids_of(fresh.generate([longer], 10, Sampling(temperature=0))) == ids_of(second.samples)


@pytest.mark.parametrize('change', ['optimizer', 'load_state_dict', 'forget'])
def test_no_block_outlives_the_weights_that_computed_it(change):
    """Neither between requests nor while one runs: its text so far is prefilled again."""
    engine, ids = engine_of(dtype=torch.float64, block_size=128), prompt(70)
    model, sampling = engine.model, Sampling(temperature=0)
    before = ids_of(engine.generate([ids], 20, sampling))
    running = engine.submit(ids, 20, sampling)
    for _ in range(5):
        engine.step()
    if change == 'optimizer':
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        model(torch.tensor([ids[:64]]), torch.tensor([ids[1:65]])).sum().backward()
        optimizer.step()
    else:
        other = build(dtype=torch.float64, block_size=128, seed=1)
        model.load_state_dict(other.state_dict(), assign=True)
    if change == 'forget':
        engine.forget()
    after = engine.generate([ids], 20, sampling)
    fresh = Engine(model, engine.tokenizer)
    assert ids_of(after) == ids_of(fresh.generate([ids], 20, sampling)) != before
    said = running.samples[0].ids
    assert said[:5] == before[0][:5]
    assert said[5:] == ids_of(fresh.generate([ids + said[:5]], 15, sampling))[0]


def test_a_cancelled_request_gives_its_blocks_back():
    engine = engine_of(block_size=1200)
    decoding = engine.submit(prompt(40), 9, Sampling(temperature=0))
    engine.step()
    held = engine.blocks_in_use
    long = engine.submit(prompt(1100, 1), 9, Sampling())
    engine.step()
    assert engine.reading and engine.blocks_in_use > held
    engine.cancel(long)
    assert not engine.reading and engine.blocks_in_use == held
    run_until_done(engine, decoding)
    assert engine.blocks_in_use == 0 and not engine.busy


def test_a_long_prompt_stalls_no_other():
    """While 1,100 tokens are prefilled the rows get a token in every other step at least, and a
    newcomer gets its first in the next one, or the one after a part of the long prompt."""
    engine = engine_of(block_size=1200)
    decoding = engine.submit(prompt(9), 200, Sampling(), n=8)
    engine.step()
    passes = prefilled(engine)
    long = engine.submit(prompt(1100, 1), 1, Sampling())
    steps, got = 0, [8]
    while not long.done:
        steps += 1
        newcomer = engine.submit(prompt(10, steps), 1, Sampling())
        late = 0
        while not newcomer.done:
            got.append(len([e for e in engine.step() if e.request is decoding]))
            late += 1
        assert late <= 3
    assert max(passes) <= 128 and 8 < steps < 120
    assert set(got) == {0, 8} and not any(a == b == 0 for a, b in zip(got, got[1:]))


def test_in_training_the_memory_is_given_back():
    engine = engine_of()
    engine.generate([prompt(40)], 5, Sampling())
    assert engine.cache
    engine.model.train()
    engine.generate([prompt(40)], 5, Sampling())
    assert engine.cache is None
