"""packed.py: its passes are the model's, also when weights have changed. None asks how fast."""

from types import SimpleNamespace

import pytest
import torch

import packed
import runtime
from cache import KVCache
from engine import Engine, Sampling
from model import GPT, PRESETS, GPTConfig

TOKENIZER = SimpleNamespace(vocab_size=50, special={}, bos=None, decode_bytes=lambda ids: b'')


def make_model(preset='nano', **settings):
    settings = dict(vocab_size=100, n_layer=2, n_head=4, n_embd=32, n_kv_head=2, **settings)
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=64, **{**PRESETS[preset], **settings})).eval()
    for p in model.parameters():  # gains and biases too, which start as ones and zeros
        torch.nn.init.normal_(p, p.dim() == 1, 0.2)
    return model


@torch.inference_mode()
def steps(decode, config, ids):
    """The logits (B, T, V) of one step per token."""
    cache = KVCache(config)
    cache.reserve(len(ids) + 1)
    logits = []
    for i in range(ids.shape[1]):
        tables = [[1 + row] for row in range(len(ids))]
        cache.select(tables, [i] * len(ids), [1] * len(ids), ids[:, i - 1].tolist())
        logits.append(decode(len(ids))(ids[:, i : i + 1], cache=cache))
    return torch.cat(logits, dim=1)


EXPERTS = dict(n_expert=4, n_expert_active=2, n_expert_shared=1)


@pytest.mark.parametrize('preset', PRESETS)
@pytest.mark.parametrize('more', [dict(bias=False), dict(bias=True), EXPERTS], ids=str)
def test_its_logits_are_the_models(preset, more):
    """Of one row and of several, with a vocabulary that is no multiple of the blocks."""
    model = make_model(preset, **more)
    decode = packed.PackedModel(model)
    for rows in (1, 3):
        ids = torch.randint(100, (rows, 6))
        logits = steps(decode, model.config, ids)
        torch.testing.assert_close(logits, model(ids), atol=1e-5, rtol=0)
    with torch.inference_mode():
        torch.testing.assert_close(decode(18)(ids), model(ids), atol=1e-5, rtol=0)


def test_a_copy_is_made_again_when_the_weights_change():
    model = make_model()
    decode = packed.PackedModel(model)
    ids = torch.randint(100, (1, 4))
    steps(decode, model.config, ids)
    kept = decode.packed[False]
    steps(decode, model.config, ids)
    assert decode.packed[False] is kept and decode.nbytes == packed.weight_bytes(model) / 2

    changes = [
        lambda: [p.mul_(0.9) for p in model.parameters()],
        lambda: model.load_state_dict({k: 0.9 * v for k, v in model.state_dict().items()}),
        lambda: setattr(model.lm_head, 'weight', torch.nn.Parameter(torch.randn(128, 32))),
    ]
    for change in changes:
        before = steps(decode, model.config, ids)
        with torch.no_grad():
            change()
        after = steps(decode, model.config, ids)
        assert not torch.allclose(before, after)
        torch.testing.assert_close(after, model(ids), atol=1e-5, rtol=0)


def test_the_engine_runs_a_large_float32_model_with_it(monkeypatch):
    """Not in mixed precision, not in float64, not a small model."""
    assert Engine(make_model(), TOKENIZER).packed is None
    monkeypatch.setattr(packed, 'MIN_BYTES', 0)
    assert Engine(make_model().double(), TOKENIZER).packed is None
    model = make_model()
    engine = Engine(model, TOKENIZER)
    ask = ([[1, 2, 3]], 5, Sampling(top_k=9))

    with runtime.autocast('bfloat16', 'cpu'):
        engine.generate(*ask)
    assert engine.packed.nbytes == 0
    found = [sample.ids for sample in engine.generate(*ask, n=2)]
    assert engine.packed.nbytes == packed.weight_bytes(model) / 2
    engine.generate(*ask)
    assert engine.packed.nbytes == packed.weight_bytes(model)
    engine.packed = None
    assert found == [sample.ids for sample in engine.generate(*ask, n=2)]


def test_a_model_in_training_decodes_without_dropout():
    model = make_model(dropout=0.5).train()
    ids = torch.randint(100, (2, 4))
    logits = steps(packed.PackedModel(model), model.config, ids)
    torch.testing.assert_close(logits, model.eval()(ids), atol=1e-5, rtol=0)
    model.train()
    steps(packed.PackedModel(model), model.config, ids)
    assert all(module.training for module in model.modules())
