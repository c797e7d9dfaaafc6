"""moe.py against a loop over tokens and experts, and the law that balance does not depend on the
stage's weights."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import costs
import moe
import plan
from conversation import SPECIAL
from engine import Engine
from model import GPT, PRESETS, GPTConfig
from moe import MoE, Usage
from optim import Optimizer, orthogonalize
from sampling import Sampling
from tokenizer import train_bpe

TINY = dict(vocab_size=100, block_size=16, n_layer=2, n_head=4, n_embd=32, n_hidden=24)
EXPERTS = dict(n_expert=5, n_expert_active=2, n_expert_shared=1, expert_balance=0.5)


@torch.no_grad()
def build(preset='nano', **settings):
    """A tiny model in float64 without a zero in it."""
    model = GPT(GPTConfig(**{**PRESETS[preset], **TINY, **EXPERTS, **settings})).double()
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.copy_((p.dim() == 1) + 0.3 * torch.randn(p.shape, generator=generator))
    return model


def ids(rows=6, seed=1):
    rows = torch.randint(1, 100, (rows, 16), generator=torch.Generator().manual_seed(seed))
    rows[2, 9:] = 0  # padding
    return rows


def signed_weights(rows=6):
    """As in rl: of both signs, and a row of zeros."""
    weights = torch.randn(rows, 16, generator=torch.Generator().manual_seed(2)).double()
    weights[1] = 0
    return weights


def gradients(model, inputs, targets, weights):
    """Losses, and every gradient of their weighted sum."""
    model.zero_grad()
    nll = model(inputs, targets)
    (weights * nll).sum().backward()
    return {'nll': nll.detach(), **{name: p.grad.clone() for name, p in model.named_parameters()}}


def assert_close(got, expected, tolerance=1e-10):
    """Relative to the largest number of each tensor."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        got, expected = list(got.values()), list(expected.values())
    elif not isinstance(expected, list):
        got, expected = [got], [expected]
    for a, b in zip(got, expected):
        scale = max(1.0, b.abs().max().item())
        torch.testing.assert_close(a, b, atol=tolerance * scale, rtol=0)


def naive_forward(self, x, usage=None):
    """One token after the other, each expert a plain MLP."""
    c_fc, c_proj = self.c_fc.weight.chunk(self.count), self.c_proj.weight.chunk(self.count)

    def expert(e, token):
        return c_proj[e] @ self.activate(c_fc[e] @ token, self.kind)

    rows, losses = [], []
    for row, counted in zip(x, usage.counted):
        chosen, probabilities, out = [], [], []
        for token, counts in zip(row, counted):
            p = torch.softmax(self.router.weight @ token, 0)
            best = sorted(range(self.n_expert), key=lambda e: -p[e].item())[: self.n_active]
            y = sum(p[e] * expert(e, token) for e in best) / sum(p[e] for e in best)
            out.append(y + sum(expert(e, token) for e in range(self.n_expert, self.count)))
            probabilities += [p] if counts else []
            chosen += best if counts else []
        rows.append(torch.stack(out))
        mean = torch.stack(probabilities).mean(0)
        shares = [self.n_expert * chosen.count(e) / len(chosen) for e in range(self.n_expert)]
        losses.append(sum(share * mean[e] for e, share in enumerate(shares)))
    usage.losses.append(torch.stack(losses))
    return torch.stack(rows)


def naive_gradients(monkeypatch, model, inputs, targets, weights):
    """The same by naive_forward, with the balance loss as a term of the loss."""
    with monkeypatch.context() as patch:
        patch.setattr(MoE, 'forward', naive_forward)
        model.zero_grad()
        usage = Usage(inputs)
        x = model.hidden(inputs, None, usage)
        nll = model.nll(x.flatten(0, 1), targets.flatten()).view(inputs.shape)
        balance = sum(weights.abs().sum(1) @ of_layer for of_layer in usage.losses)
        ((weights * nll).sum() + model.config.expert_balance * balance).backward()
    return {'nll': nll.detach(), **{name: p.grad.clone() for name, p in model.named_parameters()}}


CASES = [
    ('nano', {}),
    ('qwen3', dict(n_expert_shared=0)),
    ('qwen3', dict(n_expert=4, n_expert_active=1, n_expert_shared=2)),
    ('gpt2', dict(n_expert=2, n_expert_active=2)),
]


@pytest.mark.parametrize(('preset', 'settings'), CASES, ids=str)
def test_it_is_a_loop_over_experts(monkeypatch, preset, settings):
    model = build(preset, **settings)
    batch = ids(), ids(seed=3), signed_weights()
    expected = naive_gradients(monkeypatch, model, *batch)
    assert_close(gradients(model, *batch), expected)
    assert all(g.any() for name, g in expected.items() if 'mlp' in name)


@pytest.mark.parametrize('sizes', [(6,), (1, 5), (2, 2, 2), (1,) * 6], ids=str)
def test_micro_batches_add_up(sizes):
    """Also those of other ranks: their gradients are summed likewise."""
    model = build()
    whole = gradients(model, ids(), ids(seed=3), signed_weights())
    parts = [t.split(sizes) for t in (ids(), ids(seed=3), signed_weights())]
    parts = [gradients(model, *part) for part in zip(*parts)]
    assert_close(torch.cat([part.pop('nll') for part in parts]), whole.pop('nll'))
    for name, g in whole.items():
        assert_close(sum(part[name] for part in parts), g)


def balance_gradients(weights):
    """What balance adds to every gradient."""
    batch = ids(), ids(seed=3), weights
    with_it = gradients(build(), *batch)
    without = gradients(build(expert_balance=0.0), *batch)
    return {name: g - without[name] for name, g in with_it.items()}


def test_balance_does_not_follow_the_sign_of_the_weights():
    """As a term of the loss it would: answers worse than the mean would reward imbalance."""
    balance = balance_gradients(signed_weights())
    assert balance['transformer.h.0.mlp.router.weight'].abs().max() > 1e-3
    assert not balance['nll'].any()
    assert_close(balance_gradients(-signed_weights()), balance)


@torch.no_grad()
def test_the_gradient_of_balance_leads_to_even_use():
    model = build()

    def loss():
        usage = Usage(ids())
        model.hidden(ids(), None, usage)
        return usage.loss().sum()

    before = loss()
    with torch.enable_grad():
        found = balance_gradients(signed_weights())
    for name, p in model.named_parameters():
        p -= 1e-4 * found[name]
    assert loss() < before
    with torch.enable_grad():
        nothing = gradients(model, ids(), ids(), 0 * signed_weights())
    assert not any(g.any() for name, g in nothing.items() if name != 'nll')


def test_padding_does_not_count():
    rows = torch.tensor([[5, 7, 7, 8], [5, 7, 7, 7], [5, 0, 0, 0], [0, 0, 0, 0]])
    assert Usage(rows).counted.sum(1).tolist() == [4, 2, 2, 0]


def test_load_counts_the_tokens_of_training():
    model = build()
    model(ids(), ids())
    model.eval()
    model(ids(), ids())
    load = moe.take_load(model)
    assert load.shape == (2, 5) and load.sum(1).tolist() == [(6 * 16 - 6) * 2] * 2
    assert not moe.take_load(model).any()
    assert not any('load' in name for name in model.state_dict())


@torch.no_grad()
def test_answers_with_the_cache_have_the_likelihoods_of_a_full_pass():
    tokenizer = train_bpe(['a b c d e f'], 260 + len(SPECIAL), SPECIAL)
    model = build('qwen3', vocab_size=tokenizer.vocab_size).float().eval()
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    samples = Engine(model, tokenizer).generate(prompts, 8, Sampling(seed=1), 2)
    for sample in samples:
        row = torch.tensor([sample.request.prompt + sample.ids])
        logp = model(row[:, :-1]).log_softmax(-1)[0].gather(1, row[0, 1:, None])[:, 0]
        expected = torch.tensor(sample.logprobs[: len(sample.ids)])
        torch.testing.assert_close(logp[-len(expected) :], expected, atol=1e-5, rtol=1e-5)


# -----------------------------------------------------------------------------
# counts


@pytest.mark.parametrize(('preset', 'settings'), CASES, ids=str)
def test_flops_are_those_of_the_products_that_run(preset, settings):
    model = build(preset, **settings)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(ids())
    gains = sum(p.numel() for p in model.parameters() if p.dim() == 1)  # no product
    assert (model.flops_per_token() - 6 * gains) * 96 == 3 * counter.get_total_flops()


def test_active_parameters():
    model = build('qwen3', tied_head=False)
    expert = 3 * 24 * 32
    assert model.num_params() - model.num_params(active=True) == 2 * 3 * expert
    dense = GPT(GPTConfig(**{**PRESETS['nano'], **TINY}))
    assert dense.num_params() == dense.num_params(active=True)


@pytest.mark.parametrize(('preset', 'settings'), CASES, ids=str)
def test_memory_is_counted(preset, settings):
    model = build(preset, n_embd=64, n_hidden=64, **settings).float()
    config = model.config
    assert 0.97 < plan.weights(config) / model.num_params() <= 1
    kept = {}

    def note(tensor):
        if not isinstance(tensor, torch.nn.Parameter) and not isinstance(
            tensor._base, torch.nn.Parameter
        ):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        x = model.hidden(ids(16))
    counted = costs.activations(config, 16 * 16, 4, compiled=False)
    assert counted == pytest.approx(sum(kept.values()), rel=0.1)
    assert x.requires_grad


def test_the_plan_tells_kinds_of_parameters():
    model = build('qwen3')
    counts = costs.parameters(model)
    assert counts['experts'] == 2 * 6 * 3 * 24 * 32 and counts['router'] == 2 * 5 * 32
    assert sum(counts.values()) == model.num_params()


# -----------------------------------------------------------------------------
# Muon, compiled code, other devices


def test_muon_orthogonalizes_each_expert_by_itself():
    model = build('qwen3')
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Optimizer(model, weight_decay=0.0)
    (signed_weights() * model(ids(), ids(seed=3))).sum().backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.reduce()
    optimizer.step(1e-2, optimizer.norm())
    for name, rows in (('c_fc', 24), ('c_proj', 32)):
        name = f'transformer.h.1.mlp.{name}.weight'
        moved = (before[name] - model.get_parameter(name)).detach() / 1e-2
        for g, got in zip(gradient[name].split(rows), moved.split(rows)):
            assert_close(got, orthogonalize(g[None])[0] * 0.2 * max(g.shape) ** 0.5, 1e-6)
    router = 'transformer.h.1.mlp.router.weight'  # by AdamW, whose first step has one size
    moved = (before[router] - model.get_parameter(router)).abs().max().item()
    assert moved == pytest.approx(1e-2, rel=1e-3)


@pytest.mark.skipif(not hasattr(F, 'grouped_mm'), reason='torch before 2.10')
def test_grouped_products_are_the_same():
    model = build('qwen3', n_expert_shared=0, n_embd=32, n_hidden=16).float()
    layer = model.transformer.h[0].mlp
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(4)).requires_grad_()
    counts = torch.tensor([3, 0, 9, 1, 7])
    found = []
    for products in (layer.grouped, layer.one_by_one):
        y = products(x, counts)
        weights = torch.arange(20.0 * 32).view(20, 32).sin()
        inputs = (x, layer.c_fc.weight, layer.c_proj.weight)
        found.append([y, *torch.autograd.grad((weights * y).sum(), inputs)])
    assert_close(found[0], found[1], 1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(F, 'grouped_mm'), reason='torch before 2.10')
def test_compiled_with_grouped_products_it_is_one_graph(monkeypatch):
    monkeypatch.setattr(moe, 'is_grouped', lambda x: x.dtype == torch.bfloat16)
    graphs = []

    def backend(graph, inputs):
        graphs.append(str(graph.graph))
        return graph

    torch.compiler.reset()  # torch keeps 8 variants of a function, those of earlier tests included
    model = build('qwen3', n_layer=1).float()
    compiled = torch.compile(model, dynamic=False, fullgraph=True, backend=backend)
    with torch.autocast('cpu', torch.bfloat16):
        nll = compiled(ids(), ids(seed=2))
        torch.testing.assert_close(nll, model(ids(), ids(seed=2)), atol=1e-5, rtol=1e-5)
    assert len(graphs) == 1 and graphs[0].count('grouped_mm](') == 2


def test_it_has_shapes_without_memory():
    with torch.device('meta'):
        model = GPT(GPTConfig(**{**PRESETS['qwen3'], **TINY, **EXPERTS}))
        nll = model(torch.zeros(2, 16, dtype=torch.int64), torch.zeros(2, 16, dtype=torch.int64))
    nll.sum().backward()
    assert all(p.grad.shape == p.shape for p in model.parameters())


MISTAKES = {
    'n_expert is -1, expected at least 0': dict(n_expert=-1),
    'n_expert_active is 6, expected at most n_expert = 5': dict(n_expert_active=6),
    'n_expert_active is 0, expected at least 1': dict(n_expert_active=0),
    'n_expert_shared is -1, expected at least 0': dict(n_expert_shared=-1),
    'expert_balance is -0.1, expected at least 0': dict(expert_balance=-0.1),
    'bias is True, expected False: experts': dict(bias=True),
}


@pytest.mark.parametrize('said', MISTAKES)
def test_a_setting_that_cannot_be_is_one_line(said):
    with pytest.raises(SystemExit) as error:
        GPTConfig(**{**TINY, **EXPERTS, **MISTAKES[said]})
    assert said in error.value.code and '\n' not in error.value.code
