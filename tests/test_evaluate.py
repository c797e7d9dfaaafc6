"""evaluate.py against naive counts: one number for any batch size, number of ranks and number of shards (trap 30)."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import evaluate
from batches import Batch, Data, Shape, Stream, Writer
from model import GPT, PRESETS, GPTConfig
from tokenizer import PATTERN, BPETokenizer, CharTokenizer, train_bpe

T = 8
BYTES = BPETokenizer(PATTERN, [], {'<|bos|>': 256})


def weighted_nll(model, batch):
    loss = (batch.weights * model(batch.inputs, batch.targets)).sum()
    return loss, {'rows': (batch.weights[:, 0] > 0).sum(), 'half': 0.5 * loss}


@pytest.fixture(scope='module')
def model():
    """Tiny, its weights random: every target has a loss of its own."""
    small = dict(n_layer=1, n_head=2, n_embd=16, block_size=T, vocab_size=257)
    model = GPT(GPTConfig(**{**PRESETS['nano'], **small})).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """The same 403 validation ids in 1, 2 and 41 shards: 50 rows and two targets that no row holds."""
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
    """The mean of the negative log-likelihood of targets 1 to rows * T, one row after the other, from the logits."""
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
        evaluate.total(model, weighted_nll, val(found[num_shards], batch_size, world_size, rank), 'cpu')
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
        total = evaluate.total(model, weighted_nll, val(folder, limit=limit), 'cpu')['loss']
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

    total = evaluate.total(None, loss_fn, [steps()], 'cpu')
    assert total == {'loss': pytest.approx(2.0**24 + 100, abs=1e-3), 'count': 1001.0}
    assert torch.is_grad_enabled()


# ---- bytes

TEXT = 'Größe: 3 €. 你好🌍!\nnaïve café — Ω≈ç√ and plain words, plain words again\n' * 5


def stand_for(tokenizer, i):
    """The bytes that an id stands for, by its text where it is whole characters."""
    return len(tokenizer.decode_bytes([i]))


@pytest.mark.parametrize('tokenizer', [
    CharTokenizer(TEXT), BYTES, train_bpe([TEXT], 300, ['<|bos|>']),
], ids=['char', 'bytes', 'bpe'])  # fmt: skip
@pytest.mark.parametrize('world_size, batch_size', [(1, 4), (1, 1000), (3, 2)])
def test_bytes_per_target_against_a_naive_count(tmp_path, monkeypatch, tokenizer, world_size, batch_size):
    ids = []
    for line in TEXT.splitlines(keepends=True):
        ids += [tokenizer.bos] * (tokenizer.bos is not None) + tokenizer.encode(line)
    with Writer(tmp_path, tokenizer) as out:
        out.write('train', ids, len(TEXT.encode()))
        out.write('val', ids, len(TEXT.encode()))
    targets = ids[1 : 1 + (len(ids) - 1) // T * T]
    size = sum(stand_for(tokenizer, i) for i in targets)
    if type(tokenizer) is CharTokenizer:
        assert size == len(tokenizer.decode(targets).encode('utf-8')) > len(targets)  # there are longer characters
    sums = []  # of each rank, as they go into the sum over ranks
    monkeypatch.setattr(evaluate.runtime, 'add_up', lambda numbers: sums.append(numbers) or numbers)
    for rank in range(world_size):
        evaluate.bytes_per_target(val(tmp_path, batch_size, world_size, rank), tokenizer.bytes_per_id)
    assert [sum(column) for column in zip(*sums)] == [len(targets), size]
    if world_size == 1:
        assert evaluate.bytes_per_target(val(tmp_path, batch_size), tokenizer.bytes_per_id) == size / len(targets)


def test_a_uniform_model_of_bytes_has_8_bits_a_byte():
    assert evaluate.bits_per_byte(math.log(256), 1.0) == pytest.approx(8, abs=1e-12)
    assert evaluate.bits_per_byte(math.log(256**3), 3.0) == pytest.approx(8, abs=1e-12)
    assert evaluate.bits_per_byte(math.log(2), 4.0) == pytest.approx(1 / 4, abs=1e-12)


def test_text_says_both_numbers_and_nothing_of_bytes_where_they_are_unknown(tmp_path):
    """A uniform model over bytes: ln 257 for each target; a bos is a target, and no byte."""
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
        measure = evaluate.Text(uniform, weighted_nll, reader, Data(tmp_path / name), 'cpu')
        assert measure() == measure()
        answers[name] = measure()
    targets = ids[1 : 1 + (len(ids) - 1) // T * T]
    share = sum(i < 256 for i in targets) / len(targets)
    assert answers['nanogpt'] == {'val': pytest.approx(math.log(257), abs=1e-12)}
    expected = math.log2(257) / share
    assert answers['ours'] == {**answers['nanogpt'], 'bits_per_byte': pytest.approx(expected, abs=1e-12)}
