"""
validation.py against naive counts: the same number for any batch size, number of ranks and number
of shards.
"""

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from known_answers import CHAT, TOKENIZER, tiny, user

import plan
import runtime
import validation
from batches import Batch, Pairs, Shape, Stream
from model import GPT, PRESETS, GPTConfig
from shards import Data, Writer
from tokenizer import PATTERN, BPETokenizer, CharTokenizer, train_bpe

T = 8
BYTES = BPETokenizer(PATTERN, [], {'<|bos|>': 256})


def weighted_nll(model, batch):
    loss = (batch.weights * model(batch.inputs, batch.targets)).sum()
    return loss, {'rows': (batch.weights[:, 0] > 0).sum(), 'half': 0.5 * loss}


@pytest.fixture(scope='module')
def model():
    """A tiny model with random weights: every target has another loss."""
    small = dict(n_layer=1, n_head=2, n_embd=16, block_size=T, vocab_size=257)
    model = GPT(GPTConfig(**{**PRESETS['nano'], **small})).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """The same 403 validation ids in 1, 2 and 41 shards: 50 rows, and two targets left over."""
    ids = np.random.default_rng(3).integers(0, 257, 403)
    found = {}
    for shard_tokens in (1000, 300, 10):
        folder = tmp_path_factory.mktemp('data')
        with Writer(folder, BYTES, shard_tokens) as out:
            out.write('train', ids[:20], 20)
            out.write('val', ids, 403)
        found[len(list(folder.glob('val*.bin')))] = folder
    return ids, found


def val(folder, batch_size=4, world_size=1, rank=0, limit=None, dtype=torch.float32):
    shape = Shape(0, batch_size, T, rank, world_size, dtype=dtype)
    return Stream(Data(folder).split('val'), shape, shuffle=False, limit=limit)


def naive_loss(model, ids, rows):
    """The mean negative log-likelihood of targets 1 to rows * T from the logits, row by row."""
    losses = []
    for k in range(rows):
        row = torch.tensor(ids[k * T : k * T + T + 1])
        with torch.no_grad():
            log_probs = F.log_softmax(model(row[None, :-1])[0].double(), dim=-1)
        losses += [-float(log_probs[t, row[t + 1]]) for t in range(T)]
    return sum(losses) / len(losses)


@pytest.mark.parametrize('num_shards', [1, 2, 41])
@pytest.mark.parametrize('batch_size', [1, 7, 50, 1000])
@pytest.mark.parametrize('world_size', [1, 2, 3])
def test_the_total_is_one_number(model, folders, num_shards, batch_size, world_size):
    ids, found = folders
    assert set(found) == {1, 2, 41}
    parts = [
        validation.total(
            model, weighted_nll, val(found[num_shards], batch_size, world_size, rank), 'cpu'
        )
        for rank in range(world_size)
    ]
    total = {name: sum(part[name] for part in parts) for name in parts[0]}
    expected = naive_loss(model, ids, 50)
    assert abs(total['loss'] - expected) < 1e-6
    assert abs(total['half'] - expected / 2) < 1e-6
    assert total['rows'] == 50


@pytest.mark.parametrize('limit', [1, 13])
def test_a_limit_takes_the_first_rows(model, folders, limit):
    ids, found = folders
    for folder in found.values():
        total = validation.total(model, weighted_nll, val(folder, limit=limit), 'cpu')['loss']
        assert abs(total - naive_loss(model, ids, limit)) < 1e-6


def test_a_total_needs_no_gradient_and_adds_up_in_float64(folders):
    """1,000 shares of 0.1 and one of 2**24: a float32 sum would lose them."""
    batch = Batch(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1))
    weight = torch.ones((), requires_grad=True)
    shares = [2.0**24] + [0.1] * 1000

    def loss_fn(model, batch):
        assert not torch.is_grad_enabled()
        return torch.tensor(shares[len(seen)]) * weight, {'count': 1.0}

    seen = []

    def steps():
        for _ in shares:
            yield batch
            seen.append(batch)

    total = validation.total(None, loss_fn, [steps()], 'cpu')
    assert total == {'loss': pytest.approx(2.0**24 + 100, abs=1e-3), 'count': 1001.0}
    assert torch.is_grad_enabled()


# ---- bytes

TEXT = 'Größe: 3 €. 你好🌍!\nnaïve café — Ω≈ç√ and plain words, plain words again\n' * 5


def count_bytes(tokenizer, i):
    """The number of bytes of an id's text."""
    return len(tokenizer.decode_bytes([i]))


@pytest.mark.parametrize('tokenizer', [
    CharTokenizer(TEXT), BYTES, train_bpe([TEXT], 300, ['<|bos|>']),
], ids=['char', 'bytes', 'bpe'])  # fmt: skip
@pytest.mark.parametrize('world_size, batch_size', [(1, 4), (1, 1000), (3, 2)])
def test_bytes_per_target_against_a_naive_count(
    tmp_path, monkeypatch, tokenizer, world_size, batch_size
):
    ids = []
    for line in TEXT.splitlines(keepends=True):
        ids += [tokenizer.bos] * (tokenizer.bos is not None) + tokenizer.encode(line)
    with Writer(tmp_path, tokenizer) as out:
        out.write('train', ids, len(TEXT.encode()))
        out.write('val', ids, len(TEXT.encode()))
    targets = ids[1 : 1 + (len(ids) - 1) // T * T]
    size = sum(count_bytes(tokenizer, i) for i in targets)
    if type(tokenizer) is CharTokenizer:
        assert size == len(tokenizer.decode(targets).encode('utf-8'))
        assert size > len(targets)  # some characters have more than one byte
    sums = []  # what each rank adds to the sum over ranks
    monkeypatch.setattr(runtime, 'add_up', lambda numbers: sums.append(numbers) or numbers)
    for rank in range(world_size):
        validation.bytes_per_target(
            val(tmp_path, batch_size, world_size, rank), tokenizer.bytes_per_id
        )
    assert [sum(column) for column in zip(*sums)] == [len(targets), size]
    if world_size == 1:
        reader = val(tmp_path, batch_size)
        found = validation.bytes_per_target(reader, tokenizer.bytes_per_id)
        assert found == size / len(targets)


def test_a_uniform_model_of_bytes_has_8_bits_per_byte():
    assert validation.bits_per_byte(math.log(256), 1.0) == pytest.approx(8, abs=1e-12)
    assert validation.bits_per_byte(math.log(256**3), 3.0) == pytest.approx(8, abs=1e-12)
    assert validation.bits_per_byte(math.log(2), 4.0) == pytest.approx(1 / 4, abs=1e-12)


def test_text_leaves_out_bits_per_byte_where_bytes_are_unknown(tmp_path):
    """A uniform model over bytes: ln 257 per target. A bos is a target of 0 bytes."""
    ids = [1, 2, 256, 3, 4, 5, 256, 6, 7] * 8
    for name in ('ours', 'nanogpt'):
        with Writer(tmp_path / name, BYTES) as out:
            out.write('train', ids, 1)
            out.write('val', ids, 1)
    for name in ('meta.json', 'tok.json'):
        (tmp_path / 'nanogpt' / name).unlink()

    def uniform(inputs, targets):
        return torch.full(targets.shape, math.log(257), dtype=torch.float64)

    answers = {}
    for name in ('ours', 'nanogpt'):
        reader = val(tmp_path / name, dtype=torch.float64)
        measure = validation.Text(uniform, weighted_nll, reader, Data(tmp_path / name), 'cpu')
        assert measure() == measure()
        answers[name] = measure()
    targets = ids[1 : 1 + (len(ids) - 1) // T * T]
    share = sum(i < 256 for i in targets) / len(targets)
    expected = {'val': math.log(257), 'perplexity': 257}
    assert answers['nanogpt'] == pytest.approx(expected, abs=1e-9)
    expected = math.log2(257) / share
    assert answers['ours'] == {
        **answers['nanogpt'],
        'bits_per_byte': pytest.approx(expected, abs=1e-12),
    }


def test_perplexity_of_a_huge_loss_does_not_overflow(tmp_path):
    with Writer(tmp_path, BYTES) as out:
        out.write('train', [1] * 20, 20)
        out.write('val', [1] * 20, 20)
    for nats in (1e6, math.inf, math.nan):
        model = lambda inputs, targets, nats=nats: torch.full(targets.shape, nats)
        found = validation.Text(model, weighted_nll, val(tmp_path), Data(tmp_path), 'cpu')()
        assert math.isnan(found['perplexity']) if math.isnan(nats) else found['perplexity'] > 1e300


def test_the_loss_of_a_stage_is_called_val(model, folders):
    reader = val(next(iter(folders[1].values())))
    expected = validation.total(model, weighted_nll, reader, 'cpu')
    found = validation.Total(model, weighted_nll, reader, 'cpu')()
    assert found == {'val': expected['loss'], 'half': expected['half'], 'rows': 50}


def test_micro_batches_of_text_are_as_small_as_in_training(model, folders, monkeypatch):
    ids, found = folders
    seen = []
    handle = model.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    # 50 rows in 25 micro-batches, and in 2 of at most 40
    for rows, largest in ((2, 2), (10**9, 25)):
        monkeypatch.setattr(plan, 'cpu_rows', lambda config, rows=rows: rows)
        seen.clear()
        numbers = validation.text_numbers(model, Data(found[1]), 'val', 40, 'cpu', runtime.Ranks())
        assert numbers['val'] == pytest.approx(naive_loss(model, ids, 50), abs=1e-6)
        assert max(seen) == largest
    handle.remove()


# ---- the reference of DPO


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    """Seven pairs of unequal lengths."""
    folder, rng, documents = tmp_path_factory.mktemp('dpo'), random.Random(4), []
    for i in range(14):
        said = ' '.join(rng.choice(['baker', 'farmer', 'Anna']) for _ in range(rng.randint(1, 9)))
        documents.append(
            CHAT.render([*user(f'Who is {i // 2}?'), {'role': 'assistant', 'content': said}])
        )
    with Writer(folder, TOKENIZER) as out:
        for split in ('train', 'val'):
            for ids in documents:
                out.write(split, ids, 1)
    return folder, documents


@pytest.mark.parametrize('batch_size, world_size', [(2, 1), (4, 1), (100, 1), (2, 3), (4, 2)])
def test_log_probabilities_against_one_forward_per_document(pairs, batch_size, world_size):
    folder, documents = pairs
    model = tiny(seed=2).double().eval()
    expected = []
    for ids in documents:
        with torch.no_grad():
            log_probs = F.log_softmax(model(torch.tensor([ids[:-1]]))[0], dim=-1)
        expected.append(
            sum(float(log_probs[t, ids[t + 1]]) for t in CHAT.is_spoken(ids).nonzero()[0])
        )
    shares = []
    for rank in range(world_size):
        shape = Shape(4, batch_size, 96, rank, world_size, dtype=torch.float64)
        reader = Pairs(Data(folder).split('train'), CHAT, shape)
        shares.append(validation.log_probabilities(model, reader, 'cpu'))
    found = [sum(column) for column in zip(*shares)]
    assert found == pytest.approx(expected, abs=1e-10)
    # each row belongs to one rank
    assert all(sum(x != 0 for x in column) == 1 for column in zip(*shares))
