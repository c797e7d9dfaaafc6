"""optim.py against torch.optim.AdamW, torch.linalg.svd, and a naive optimizer: whole batches, one
matrix at a time."""

import copy
import functools
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import ROOT
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import optim
import runtime
from batches import Shape, Stream
from model import GPT, PRESETS, GPTConfig
from optim import Optimizer
from shards import Data, Writer
from tokenizer import CharTokenizer

TINY = dict(vocab_size=26, block_size=16, n_layer=2, n_head=4, n_embd=32)
ROWS, STEPS, SEED = 50, 7, 7  # rows of the data, of which a step takes 8: 7 steps are 1.1 epochs
CASES = {  # preset, kind of optimizer, settings
    'muon': ('plus', 'muon', dict(n_kv_head=2)),
    'adamw': ('gpt2', 'adamw', {}),
    # The bias of k has no gradient but rounding errors, of which AdamW makes whole steps in
    # float32: float64 only
    'adamw-bias': ('gpt2', 'adamw', dict(bias=True)),
}
LR, CLIP = 1e-3, 0.25
# How far from the naive weights all steps may lead in float32, where another order of a sum is
# another sum (in float64: 1e-10). Measured 3e-6 and 2e-6. But a sign that turns switches Muon's
# decay of an element, LR * 0.1 * |p| < 5e-5, and AdamW divides by roots of moments that may be as
# small as the rounding error.
BOUND = {'muon': 1e-4, 'adamw': 2e-4}
DTYPES = {'float64': torch.float64, 'float32': torch.float32}


class Place(NamedTuple):
    """Where a process stands among those that share the work."""

    rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None


ALONE = Place()


@torch.no_grad()
def build(preset='nano', dtype=torch.float64, seed=0, **settings):
    """A tiny model without a zero or a plain 1 in it."""
    model = GPT(GPTConfig(**{**PRESETS[preset], **TINY, **settings}))
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.copy_((p.dim() == 1) + 0.1 * torch.randn(p.shape, generator=generator))
    return model.to(dtype)


def draw_gradients(model, step, place=ALONE, scale=1.0):
    """Gaussian gradients, a function of the step; every rank gets the same part of them."""
    generator = torch.Generator().manual_seed(1000 + step)
    for p in model.parameters():
        values = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        p.grad = values * scale / place.world_size


def move(optimizer, lr=LR, grad_clip=0.0):
    """One step with the gradients that are there; returns their norm."""
    optimizer.reduce()
    norm = optimizer.norm()
    optimizer.step(lr, norm, grad_clip)
    return norm


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def snapshot(model, optimizer):
    """Everything that a step may change, copied."""
    return {'weights': weights(model), 'optimizer': copy.deepcopy(optimizer.state_dict())}


def assert_close(got, expected, tolerance):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=0)


def assert_same_state(got, expected, tolerance):
    """Two of Optimizer.state_dict()."""
    assert got.keys() == expected.keys() and got['layout'] == expected['layout']
    for name in ('counters', 'loss_scale', 'moments'):
        assert_close(got[name], expected[name], tolerance)


# -----------------------------------------------------------------------------
# the naive optimizer


def polynomial(s, iterations=5):
    for a, b, c in optim.POLAR_EXPRESS[iterations]:
        s = a * s + b * s**3 + c * s**5
    return s


def naive_orthogonalize(G):
    """One matrix, whatever its shape, by the sum of powers that the coefficients stand for."""
    X = G / (G.norm() * optim.MARGIN + 1e-7)
    for a, b, c in optim.POLAR_EXPRESS[5]:
        X = a * X + b * X @ X.T @ X + c * X @ X.T @ X @ X.T @ X
    return X


def matrices_of(model):
    """{name: rows of each map stacked in it}, from the settings."""
    config, found = model.config, {}
    heads = (config.n_head, config.n_kv_head, config.n_kv_head)
    for i in range(config.n_layer):
        found[f'transformer.h.{i}.attn.c_attn.weight'] = [h * config.head_dim for h in heads]
        found[f'transformer.h.{i}.attn.c_proj.weight'] = [config.n_embd]
        found[f'transformer.h.{i}.mlp.c_fc.weight'] = [config.n_hidden] * (
            2 if config.mlp == 'swiglu' else 1
        )
        found[f'transformer.h.{i}.mlp.c_proj.weight'] = [config.n_embd]
    return found


class Naive:
    """What Optimizer does, on one rank: a loop over Muon's matrices, torch's AdamW for the rest."""

    def __init__(self, model, kind, weight_decay=0.1, embedding_rate=1.0, head_rate=1.0, eps=1e-8):
        self.model, self.weight_decay, self.count = model, weight_decay, 0
        self.matrices = matrices_of(model) if kind == 'muon' else {}
        self.moments = {name: torch.zeros_like(model.get_parameter(name)) for name in self.matrices}
        groups = []
        for name, p in model.named_parameters():
            if name not in self.matrices:
                tied = model.config.tied_head and name == 'transformer.wte.weight'
                head, table = (
                    name == 'lm_head.weight' or tied,
                    name in ('transformer.wte.weight', 'transformer.wpe.weight'),
                )
                rate = head_rate if head else embedding_rate if table else 1.0
                if 'wve' in name:
                    rate = embedding_rate / 2
                decay = (
                    weight_decay / rate if p.dim() == 2 else 0.0
                )  # torch's shrinks by lr * decay, ours by the base rate's
                groups.append(dict(params=[p], rate=rate, weight_decay=decay))
        self.adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=eps)

    @torch.no_grad()
    def step(self, lr, grad_clip=0.0):
        """Returns the norm of the whole gradient."""
        norm = torch.cat([p.grad.flatten() for p in self.model.parameters()]).norm()
        if grad_clip and norm > grad_clip:
            for p in self.model.parameters():
                p.grad *= grad_clip / norm
        for group in self.adamw.param_groups:
            group['lr'] = lr * group['rate']
        self.adamw.step()
        self.count += 1
        for name, rows in self.matrices.items():
            p, m = self.model.get_parameter(name), self.moments[name]
            for part in zip(*(t.split(rows) for t in (p, p.grad, m))):
                self.move_matrix(*part, lr)
        self.model.zero_grad()
        return norm

    def move_matrix(self, p, g, m, lr):
        momentum = 0.85 + 0.1 * min(self.count / 300, 1)
        m.copy_(momentum * m + (1 - momentum) * g)
        update = naive_orthogonalize(momentum * m + (1 - momentum) * g) * 0.2 * max(p.shape) ** 0.5
        agree = torch.sign(update) * torch.sign(p) == 1
        p -= lr * torch.where(agree, update + self.weight_decay * p, update)


# -----------------------------------------------------------------------------
# AdamW

RATES = [(1.0, 1.0), (0.3, 2.5)]


@pytest.mark.parametrize('rates', RATES, ids=str)
@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('kind', ['adamw', 'muon'])
def test_adamw_is_torchs(kind, tied, rates):
    ours, theirs = (build('gpt2', bias=True, tied_head=tied) for _ in range(2))
    more = dict(weight_decay=0.1, embedding_rate=rates[0], head_rate=rates[1])
    optimizer, naive = Optimizer(ours, kind, **more), Naive(theirs, 'adamw', **more)
    for step in range(20):
        lr = 3e-3 * (1 - step / 40)
        for model in (ours, theirs):
            draw_gradients(model, step)
        assert_close(move(optimizer, lr), naive.step(lr), 1e-10)
    ours, theirs, matrices = (
        weights(ours),
        weights(theirs),
        matrices_of(theirs) if kind == 'muon' else {},
    )
    assert_close(
        {n: w for n, w in ours.items() if n not in matrices},
        {n: w for n, w in theirs.items() if n not in matrices},
        1e-12,
    )
    assert all((ours[name] - theirs[name]).abs().max() > 1e-3 for name in matrices)


def test_adam_eps_is_torchs():
    ours, theirs, default = (build() for _ in range(3))
    optimizer, naive = Optimizer(ours, 'adamw', eps=0.5), Naive(theirs, 'adamw', eps=0.5)
    for model in (ours, theirs, default):
        draw_gradients(model, 0)
    move(optimizer)
    naive.step(LR)
    move(Optimizer(default, 'adamw'))
    assert_close(weights(ours), weights(theirs), 1e-12)
    name = 'lm_head.weight'
    assert (weights(ours)[name] - weights(default)[name]).abs().max() > LR / 10


# -----------------------------------------------------------------------------
# Muon


@pytest.mark.parametrize('iterations', [3, 5])
@pytest.mark.parametrize(
    'shape', [(3, 8, 8), (2, 16, 4), (2, 4, 16), (1, 48, 40), (1, 1, 8), (1, 192, 64)], ids=str
)
def test_orthogonalize_is_the_polynomial_of_the_singular_values(shape, iterations):
    G = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    expected = (
        U
        @ torch.diag_embed(polynomial(S / (S.norm(dim=-1, keepdim=True) * 1.02 + 1e-7), iterations))
        @ Vh
    )
    got = optim.orthogonalize(G, iterations)
    assert got.dtype == torch.float64
    assert_close(got, expected, 1e-6)


@pytest.mark.parametrize('scale', [1e-9, 1e-6, 1.0, 1e6, 1e15])  # fp16 ends at 65504
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_orthogonalizes_gradients_of_any_size(dtype, scale):
    G = scale * torch.randn(3, 32, 64, generator=torch.Generator().manual_seed(3))
    exact, fast = optim.orthogonalize(G), optim.orthogonalize(G, dtype=dtype)
    assert fast.dtype == torch.float32 and not torch.equal(fast, exact)
    assert (fast - exact).norm() < 0.03 * exact.norm()


def test_the_products_of_muon_are_in_the_dtype_that_the_device_is_fast_in(monkeypatch):
    for device in ('cpu', 'mps'):
        assert optim.fast_dtype(torch.device(device)) is None
    cards = {(7, 0): torch.float16, (7, 5): torch.float16, (8, 0): torch.bfloat16}
    for capability, dtype in cards.items():
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device, c=capability: c)
        assert optim.fast_dtype(torch.device('cuda:0')) == dtype


def test_muon_in_half_precision_makes_nearly_the_same_step():
    exact, fast = build(dtype=torch.float32), build(dtype=torch.float32)
    before = weights(exact)
    for model, dtype in ((exact, None), (fast, torch.float16)):
        draw_gradients(model, 0, scale=1e6)
        move(Optimizer(model, muon_dtype=dtype))
    exact, fast = weights(exact), weights(fast)
    for name in before:
        if name in matrices_of(model):
            assert not torch.equal(fast[name], exact[name])
            assert (fast[name] - exact[name]).norm() < 0.03 * (exact[name] - before[name]).norm()
        else:
            assert torch.equal(fast[name], exact[name])


@pytest.mark.parametrize('shape', [(256, 64), (64, 256), (32, 8)], ids=str)
@pytest.mark.parametrize('dtype', DTYPES)
def test_singular_values_of_an_update_are_near_1(shape, dtype):
    G = torch.randn(4, *shape, dtype=DTYPES[dtype], generator=torch.Generator().manual_seed(1))
    S = torch.linalg.svdvals(optim.orthogonalize(G))
    assert 0.6 < S.min() and S.max() < 1.3


@pytest.mark.parametrize(
    ('iterations', 'lowest', 'margin', 'low', 'high'),
    [(5, -3, 1.02, 0.8, 1.2), (3, -1.699, 1, 0.906, 1.094)],
)
def test_the_polynomial_lifts_what_it_is_said_to_lift(iterations, lowest, margin, low, high):
    s = torch.logspace(lowest, 0, 1000, dtype=torch.float64)
    lifted = polynomial(s / margin, iterations)
    assert low < lifted.min() and lifted.max() < high


def test_a_tall_matrix_costs_no_more_than_a_wide_one():
    flops = []
    for shape in ((2, 64, 8), (2, 8, 64)):
        with FlopCounterMode(display=False) as counter:
            optim.orthogonalize(torch.ones(shape))
        flops.append(counter.get_total_flops())
    assert (
        flops[0] == flops[1] == 2 * 5 * 2 * (2 * 8 * 8 * 64 + 8 * 8 * 8)
    )  # 2 matrices, 5 steps, 3 products each


def test_matrices_of_zeros_which_fill_up_a_share_stay_zero():
    stacked = torch.randn(3, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    stacked[1] = 0
    update = optim.orthogonalize(stacked)
    assert not update[1].any()
    assert_close(update[::2], optim.orthogonalize(stacked[::2]), 1e-14)


def test_an_update_has_adamws_rms():
    model = build('llama', n_embd=64, n_kv_head=2, dtype=torch.float32)
    before, optimizer, lr = weights(model), Optimizer(model, weight_decay=0.0), 1e-2
    draw_gradients(model, 0)
    move(optimizer, lr)
    after = weights(model)
    for name, rows in matrices_of(model).items():
        for block in ((after[name] - before[name]) / lr).split(rows):
            assert block.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.15), (
                name,
                block.shape,
            )


@pytest.mark.parametrize('preset', ['nano', 'llama'])
def test_muon_is_the_naive_one_matrix_by_matrix(preset):
    ours, theirs = (build(preset, n_kv_head=2) for _ in range(2))
    optimizer, naive, norms = Optimizer(ours), Naive(theirs, 'muon'), []
    for step in range(STEPS):
        for model in (ours, theirs):
            draw_gradients(model, step, scale=0.01 * (step + 1))
        lr = LR * (step + 1)
        norms.append(naive.step(lr, grad_clip=10.0))
        assert_close(move(optimizer, lr, grad_clip=10.0), norms[-1], 1e-10)
    assert norms[0] < norms[3] < 10 < norms[-1]  # clipped in the later steps only
    assert_close(weights(ours), weights(theirs), 1e-10)


def test_momentum_warms_up_and_stays(monkeypatch):
    monkeypatch.setattr('optim.MOMENTUM', (0.85, 0.95, 4))
    model = build()
    optimizer = Optimizer(model)
    name, m = 'transformer.h.0.mlp.c_fc.weight', 0.0
    for step, momentum in enumerate([0.875, 0.9, 0.925, 0.95, 0.95, 0.95]):
        draw_gradients(model, step)
        m = momentum * m + (1 - momentum) * model.get_parameter(name).grad
        move(optimizer)
    (got,) = (b.state['m'][0] for r, b in optimizer.buckets.items() if r.unit == m.shape)
    assert_close(got, m, 1e-12)


def test_decay_acts_where_it_pulls_the_way_the_update_goes():
    plain, decayed = build(), build()
    before = weights(plain)
    for model, weight_decay in ((plain, 0.0), (decayed, 0.5)):
        draw_gradients(model, 0)
        move(Optimizer(model, weight_decay=weight_decay))
    plain, decayed = weights(plain), weights(decayed)
    for name in matrices_of(model):
        towards_zero = (plain[name] - before[name]).sign() == -before[name].sign()
        assert 0.3 < towards_zero.double().mean() < 0.7
        assert_close(
            (plain[name] - decayed[name])[towards_zero],
            LR * 0.5 * before[name][towards_zero],
            1e-15,
        )
        assert torch.equal(plain[name][~towards_zero], decayed[name][~towards_zero])


@pytest.mark.parametrize('unused', ['zero', 'none'])
def test_without_a_gradient_muon_rests_and_adamw_only_decays(unused):
    """A gradient of zeros and none at all (a parameter that the loss does not use) are the same."""
    model = build('gpt2', tied_head=False, bias=True)
    before, optimizer = weights(model), Optimizer(model, weight_decay=0.5)
    if unused == 'zero':
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
    assert move(optimizer, grad_clip=1.0) == 0
    for name, p in weights(model).items():
        table = name in ('transformer.wte.weight', 'transformer.wpe.weight', 'lm_head.weight')
        assert_close(
            p, before[name] * (1 - LR * 0.5) if table else before[name], 0 if not table else 1e-16
        )
    assert optimizer.counters['count'] == 1 and optimizer.counters['skipped'] == 0


def test_a_parameter_that_one_step_does_not_use_goes_on_with_its_momentum():
    ours, theirs = build(), build()
    optimizer, naive = Optimizer(ours), Naive(theirs, 'muon')
    for step in range(4):
        for model in (ours, theirs):
            draw_gradients(model, step)
            if step in (0, 2):
                for name in ('transformer.h.1.attn.c_attn.weight', 'lm_head.weight'):
                    p = model.get_parameter(name)
                    p.grad = None if model is ours else torch.zeros_like(p)
        move(optimizer)
        naive.step(LR)
    assert_close(weights(ours), weights(theirs), 1e-12)


# -----------------------------------------------------------------------------
# which parameter goes where


@pytest.mark.parametrize('kind', ['muon', 'adamw'])
@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('preset', PRESETS)
def test_every_parameter_is_in_exactly_one_bucket(preset, tied, kind):
    model = build(preset, tied_head=tied, bias=True, n_kv_head=2)
    rates = dict(embedding_rate=0.5, head_rate=2.0, value_rate=0.25)
    optimizer = Optimizer(model, kind, **rates)
    expected = dict(wte=0.5, wpe=0.5, wve=0.125)
    seen = {name: torch.zeros(len(p)) for name, p in model.named_parameters()}
    matrices, pieces = matrices_of(model) if kind == 'muon' else {}, []
    for rule, bucket in optimizer.buckets.items():
        for name, p, a, b in bucket.pieces:
            seen[name][a:b] += 1
            pieces.append((name, b - a))
            assert p is model.get_parameter(name)
            assert (rule.kind == 'muon') == (name in matrices)
            assert rule.unit == ((b - a, p.shape[1]) if name in matrices else ())
            assert rule.decay == (p.dim() == 2)
            if p is model.lm_head.weight:
                assert rule.multiple == 2.0  # a tied table as well
            else:
                kinds = [kind for kind in name.split('.') if kind in expected]
                assert rule.multiple == (expected[kinds[0]] if kinds else 1.0)
    assert all((times == 1).all() for times in seen.values())
    stacked = [piece for piece in pieces if piece[0] in matrices]
    assert sorted(stacked) == sorted((n, r) for n, rows in matrices.items() for r in rows)


def test_rows_that_no_bucket_has_are_refused(monkeypatch):
    model = build()
    blocks = model.matrix_blocks()
    name = 'transformer.h.0.attn.c_attn.weight'
    monkeypatch.setattr(
        model, 'matrix_blocks', lambda: {**blocks, name: blocks[name][:2]}, raising=False
    )
    with pytest.raises(AssertionError, match='exactly one bucket'):
        Optimizer(model)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(SystemExit, match="optimizer is 'sgd', expected muon or adamw"):
        Optimizer(build(), 'sgd')
    with pytest.raises(SystemExit, match='muon_iterations is 4, expected one of 5, 3'):
        Optimizer(build(), iterations=4)


# -----------------------------------------------------------------------------
# saving


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('kind', ['muon', 'adamw'])
def test_saved_and_loaded_it_goes_on_to_the_bit(tmp_path, kind, dtype):
    model = build('llama', DTYPES[dtype], n_kv_head=2)
    optimizer = Optimizer(model, kind, fp16=True)
    for step in range(10):
        if step == 5:
            torch.save(snapshot(model, optimizer), tmp_path / 'state.pt')
        draw_gradients(
            model, step, scale=float('inf') if step == 3 else float(optimizer.loss_scale)
        )
        move(optimizer, grad_clip=1.0)
    other = build('llama', DTYPES[dtype], n_kv_head=2, seed=1)
    resumed = Optimizer(other, kind, fp16=True)
    saved = torch.load(tmp_path / 'state.pt', weights_only=True)
    other.load_state_dict(saved['weights'], strict=False)  # lm_head and wte may be one
    resumed.load_state_dict(saved['optimizer'])
    assert (
        resumed.counters['count'] == 4
        and resumed.counters['skipped'] == 1
        and resumed.loss_scale == 2.0**15
    )
    for step in range(5, 10):
        draw_gradients(other, step, scale=float(resumed.loss_scale))
        move(resumed, grad_clip=1.0)
    assert_close(weights(other), weights(model), 0)
    assert_same_state(resumed.state_dict(), optimizer.state_dict(), 0)


def test_the_state_of_another_optimizer_or_architecture_is_refused():
    state = Optimizer(build('llama')).state_dict()
    others = [
        Optimizer(build('llama'), 'adamw'),
        Optimizer(build('nano')),
        Optimizer(build('llama', tied_head=True)),
    ]
    others += [
        Optimizer(build('llama', **s))
        for s in (dict(n_layer=3), dict(n_kv_head=2), dict(n_embd=64), dict(vocab_size=65))
    ]
    for other in others:
        with pytest.raises(SystemExit, match='another optimizer or architecture'):
            other.load_state_dict(state)
    Optimizer(build('llama', seed=1)).load_state_dict(state)


# -----------------------------------------------------------------------------
# steps of a real model over real data, however they are split


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    """A data folder of ROWS rows and one token, all 26 letters in it."""
    folder = tmp_path_factory.mktemp('corpus')
    ids = (
        np.random.default_rng(0).integers(0, 26, ROWS * TINY['block_size'] + 1) ** 2 // 26
    )  # some are rarer than others
    with Writer(folder, CharTokenizer('abcdefghijklmnopqrstuvwxyz')) as out:
        out.write('train', ids, len(ids))
        out.write('val', ids, len(ids))
    return folder


def whole_gradient(optimizer):
    """{name: what reduce() left of it on all ranks together}."""
    found = {}
    for bucket in optimizer.buckets.values():
        bucket.gather(bucket.grad)
        bucket.wait()
        full = bucket.full
        for name, p, a, b in bucket.pieces:
            rows, full = (
                full[: p[a:b].numel() // full[0].numel()],
                full[p[a:b].numel() // full[0].numel() :],
            )
            found.setdefault(name, torch.zeros_like(p))[a:b] = rows.view_as(p[a:b])
    return found


class Run:
    """Steps of a case on one rank of several, as train.py takes them; what is logged is kept."""

    def __init__(self, case, dtype, corpus, batch_size, place=ALONE):
        preset, kind, settings = CASES[case]
        self.model, self.place, self.log, self.gradients = (
            build(preset, DTYPES[dtype], **settings),
            place,
            [],
            [],
        )
        self.optimizer = Optimizer(self.model, kind, **place._asdict())
        shape = Shape(
            8, batch_size, TINY['block_size'], place.rank, place.world_size, SEED, DTYPES[dtype]
        )
        self.steps = Stream(Data(corpus).split('train'), shape)

    def go(self, first=0, last=STEPS):
        for step in range(first, last):
            loss = torch.zeros((), dtype=torch.float64)
            for batch in self.steps[step]:
                part = (batch.weights * self.model(batch.inputs, batch.targets)).sum()
                part.backward()
                loss += part.detach()
            if self.place.world_size > 1:
                dist.all_reduce(loss, group=self.place.group)
            self.optimizer.reduce()
            if step in (first, last - 1):
                self.gradients.append(whole_gradient(self.optimizer))
            norm = self.optimizer.norm()
            self.optimizer.step(LR, norm, CLIP)
            self.log.append((loss.item(), norm.item()))
        return self

    def result(self):
        state = snapshot(self.model, self.optimizer)
        return dict(log=self.log, gradients=self.gradients, **state)


@functools.cache
def naive_run(case, dtype, corpus):
    """Full batches, straight from the file: row g of the run is row order(epoch)[g mod ROWS]."""
    preset, kind, settings = CASES[case]
    model = build(preset, DTYPES[dtype], **settings)
    naive, log, gradients, T = Naive(model, kind), [], [], TINY['block_size']
    ids = np.fromfile(corpus / 'train.bin', '<u2').astype(np.int64)
    orders = np.concatenate(
        [np.random.default_rng((SEED, epoch)).permutation(ROWS) for epoch in range(2)]
    )
    for step in range(STEPS):
        rows = np.stack([ids[r * T : r * T + T + 1] for r in orders[step * 8 : step * 8 + 8]])
        rows = torch.from_numpy(rows)
        loss = model(rows[:, :-1], rows[:, 1:]).mean()
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
        log.append((loss.item(), naive.step(LR, CLIP).item()))
    return dict(log=log, gradients=[gradients[0], gradients[-1]], weights=weights(model))


def assert_same_run(got, expected, case, dtype):
    """Loss and norm of every step, the gradient of the first and last, the weights after all."""
    losses, norms = zip(*expected['log'])
    assert all(norm > 1.5 * CLIP for norm in norms)  # clipping bites in every step
    assert losses[-1] < losses[0] - 0.01
    tolerance = 1e-10 if dtype == 'float64' else 1e-5
    assert_close(got['log'], expected['log'], tolerance)
    assert_close(got['gradients'], expected['gradients'], tolerance)
    assert_close(
        got['weights'], expected['weights'], tolerance if dtype == 'float64' else BOUND[case]
    )


RUNS = [
    ('muon', 'float64'),
    ('muon', 'float32'),
    ('adamw', 'float64'),
    ('adamw', 'float32'),
    ('adamw-bias', 'float64'),
]


@pytest.mark.parametrize('batch_size', [1, 2, 8])
@pytest.mark.parametrize('case, dtype', RUNS)
def test_micro_batches_make_the_naive_step(corpus, case, dtype, batch_size):
    run = Run(case, dtype, corpus, batch_size)
    assert run.steps.micro_batches == 8 // batch_size
    assert_same_run(run.go().result(), naive_run(case, dtype, corpus), case, dtype)


# -----------------------------------------------------------------------------
# gradients that are not finite, and the loss scale: the same story on any number of ranks


def story(place, gradients, fp16=False, dtype=torch.float64):
    """
    One step for each of gradients, a number or a text that the last rank puts into its own: 'nan'
    in the first element of the first parameter, 'inf' in the last of the last. Returns what there
    was after each step.
    """
    model = build(dtype=dtype)
    optimizer, told = Optimizer(model, fp16=fp16, **place._asdict()), []
    for step in gradients:
        draw_gradients(model, 0 if isinstance(step, str) else step, place, optimizer.loss_scale)
        first, *_, last = model.parameters()
        if step == 'nan' and place.rank == place.world_size - 1:
            first.grad.view(-1)[0] = torch.nan
        if step == 'inf' and place.rank == place.world_size - 1:
            last.grad.view(-1)[-1] = torch.inf
        norm = move(optimizer, grad_clip=1.0)
        own = dict(
            counters=optimizer.counters, loss_scale=optimizer.loss_scale,
            moments=[bucket.state for bucket in optimizer.buckets.values()],  # this rank's share
        )  # fmt: skip
        told.append(dict(norm=norm, weights=weights(model), **copy.deepcopy(own)))
    return told


SKIPS, GOOD = ['nan', 1, 'inf', 'nan', 2, 3], [1, 2, 3]
SCALES = [1, 'inf', 2, 3, 4, 5, 6, 7, 'nan', 8]


def scaled_story(place, dtype=torch.float64):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('optim.GOOD_STEPS', 3)
        return story(place, SCALES, fp16=True, dtype=dtype)


def check_skips(told, good):
    """told is of SKIPS, good of GOOD on as many ranks."""
    counts = [{name: int(t) for name, t in after['counters'].items()} for after in told]
    assert [c['count'] for c in counts] == [0, 1, 1, 1, 2, 3]
    assert [c['skipped'] for c in counts] == [1, 1, 2, 3, 3, 3]
    assert [c['in_a_row'] for c in counts] == [1, 0, 1, 2, 0, 0]
    assert [bool(after['norm'].isfinite()) for after in told] == [
        False,
        True,
        False,
        False,
        True,
        True,
    ]
    assert_close(told[0]['weights'], weights(build()), 0)
    for i, undisturbed in ((1, good[0]), (2, good[0]), (3, good[0]), (4, good[1]), (5, good[2])):
        assert_close(told[i]['weights'], undisturbed['weights'], 0)
        assert_close(told[i]['moments'], undisturbed['moments'], 0)


def check_scales(told, dtype=torch.float64):
    """told is of SCALES. A power of two changes no bit: without a scale the same steps give the
    same weights."""
    scales = [float(after['loss_scale']) for after in told]
    assert scales == [2.0**n for n in (16, 15, 15, 15, 16, 16, 16, 17, 16, 16)]
    plain = story(ALONE, [step for step in SCALES if not isinstance(step, str)], dtype=dtype)
    good = [after for step, after in zip(SCALES, told) if not isinstance(step, str)]
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for ours, theirs in zip(good, plain):
        assert_close(ours['norm'], theirs['norm'], tolerance * float(theirs['norm']))
        assert_close(ours['weights'], theirs['weights'], tolerance)


def test_a_gradient_that_is_not_finite_changes_nothing():
    check_skips(story(ALONE, SKIPS), story(ALONE, GOOD))


@pytest.mark.parametrize('dtype', DTYPES)
def test_the_loss_scale_falls_and_rises_and_leaves_no_trace(dtype):
    check_scales(scaled_story(ALONE, DTYPES[dtype]), DTYPES[dtype])


def test_a_relu2_that_overflows_in_fp16_skips_the_step():
    """relu(x)^2 exceeds fp16's 65504 where x, the output of c_fc, exceeds 256."""
    model = build('nano', torch.float32)
    optimizer = Optimizer(model, fp16=True)
    c_fc = model.transformer.h[1].mlp.c_fc
    seen = []
    c_fc.register_forward_hook(lambda module, x, y: seen.append((y.dtype, y.max().item())))
    ids = torch.randint(26, (2, 17), generator=torch.Generator().manual_seed(0))

    def step():
        with torch.autocast('cpu', torch.float16):
            loss = model(ids[:, :-1], ids[:, 1:]).mean()
        (loss * optimizer.loss_scale).backward()
        return move(optimizer, grad_clip=1.0)

    assert step().isfinite()
    with torch.no_grad():
        c_fc.weight.mul_(1000)
    before = snapshot(model, optimizer)
    assert not step().isfinite()
    assert seen[-1][0] == torch.float16 and 256 < seen[-1][1] < 65504
    after = snapshot(model, optimizer)
    assert_close(after['weights'], before['weights'], 0)
    assert_close(after['optimizer']['moments'], before['optimizer']['moments'], 0)
    assert optimizer.counters['skipped'] == 1 and optimizer.counters['count'] == 1
    assert optimizer.loss_scale == 2.0**15
    with torch.no_grad():
        c_fc.weight.div_(1000)
    assert step().isfinite() and optimizer.counters['count'] == 2


# -----------------------------------------------------------------------------
# what a step costs, seen on fake tensors, which have a shape and no values


@pytest.fixture
def fake_place():
    """fake_place(4) -> the last of four ranks, whose messages go nowhere."""

    def enter(world_size):
        if world_size == 1:
            return ALONE
        dist.init_process_group(
            'fake', rank=world_size - 1, world_size=world_size, store=FakeStore()
        )
        return Place(world_size - 1, world_size)

    yield enter
    if dist.is_initialized():
        dist.destroy_process_group()


class Calls(TorchDispatchMode):
    """(name, elements of the result) of every operation of torch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.seen.append((str(function), out.numel() if isinstance(out, torch.Tensor) else 0))
        return out


@pytest.mark.parametrize('kind', ['muon', 'adamw'])
@pytest.mark.parametrize('world_size', [1, 4])
def test_a_step_waits_for_no_value_and_copies_its_share_alone(fake_place, world_size, kind):
    place = fake_place(world_size)
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter('error')  # torch 2.13 has new names for two collectives
        model = GPT(GPTConfig(**{**PRESETS['llama'], **TINY, 'n_kv_head': 2}))
        optimizer = Optimizer(model, kind, fp16=True, **place._asdict())
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.reduce()
        norm = optimizer.norm()
        with Calls() as calls:
            optimizer.step(LR, norm, CLIP)
        with pytest.raises(DataDependentOutputException):
            float(norm)  # so would any value that a step had read
    copied = sum(count for name, count in calls.seen if name == 'aten.cat.default')
    assert copied == sum(b.state['m'].numel() for b in optimizer.buckets.values())
    gathers = [name for name, _ in calls.seen if 'gather' in name]
    assert len(gathers) == (len(optimizer.buckets) if world_size > 1 else 0)
    assert all('_allgather_base_' in name for name in gathers)  # into a tensor, not into a list


def test_a_gather_runs_during_the_next_update(fake_place, monkeypatch):
    model = build()
    optimizer = Optimizer(model, **fake_place(4)._asdict())
    events = []

    def watch(bucket, name, i):
        original = getattr(bucket, name)
        note = lambda *args: events.append(f'{name} {i}') or original(*args)
        monkeypatch.setattr(bucket, name, note)

    for i, bucket in enumerate(optimizer.buckets.values()):
        for name in ('parameters', 'gather', 'write_back'):
            watch(bucket, name, i)
    draw_gradients(model, 0)
    move(optimizer)
    last = len(optimizer.buckets) - 1
    expected = ['parameters 0', 'gather 0']
    for i in range(last):
        expected += [f'parameters {i + 1}', f'write_back {i}', f'gather {i + 1}']
    assert events == [*expected, f'write_back {last}'] and last > 1
    assert all(b.full is b.work is b.grad is None for b in optimizer.buckets.values())


# -----------------------------------------------------------------------------
# the same on 2 and 3 ranks, all from one start of four processes


RUNS_ON_RANKS = [
    (case, dtype, batch_size)
    for case, dtype in RUNS
    for batch_size in ((1, 2, 8) if dtype == 'float64' else (2,))
]


def all_of_it(place, corpus):
    """What one rank of 2 or 3 sees."""
    results = {}
    for case, dtype, batch_size in RUNS_ON_RANKS:
        run = Run(case, dtype, corpus, batch_size, place).go()
        results[case, dtype, batch_size] = run.result()
        results['shares', case] = [
            sum(t.numel() for t in b.state.values()) for b in run.optimizer.buckets.values()
        ]
    results['skips'], results['good'], results['scales'] = (
        story(place, SKIPS),
        story(place, GOOD),
        scaled_story(place),
    )
    return results


class LargeModel(torch.nn.Module):
    """50M parameters that are never read: 400 MB of moments, and none of their own."""

    def __init__(self):
        super().__init__()
        with torch.device('meta'):
            self.lm_head = torch.nn.Linear(5_000, 10_000, bias=False)
        self.to_empty(device='cpu')

    def matrix_blocks(self):
        return {}


def memory_now(name):
    """VmRSS, bytes in memory, or VmHWM, the largest VmRSS so far. Linux only."""
    lines = Path('/proc/self/status').read_text(encoding='utf-8').splitlines()
    (line,) = (line for line in lines if line.startswith(name))
    return 1024 * int(line.split()[1])


def saving(place):
    """Have the ranks save 400 MB of moments: (the smallest and largest number of each rank's share
    as rank 0 has it, bytes that this rank needed)."""
    optimizer = Optimizer(LargeModel(), **place._asdict())
    for bucket in optimizer.buckets.values():
        for t in bucket.state.values():
            t.fill_(place.rank)
    peak = Path('/proc/self/clear_refs')
    measured = os.access(peak, os.W_OK)
    if measured:
        peak.write_text('5', encoding='utf-8')  # VmHWM starts again at VmRSS
        before = memory_now('VmHWM')
    state = optimizer.state_dict()
    needed = memory_now('VmHWM') - before if measured else None
    if place.rank > 0:
        assert state is None
        return None, needed
    ends = [t.view(4, -1).aminmax(dim=1) for m in state['moments'] for t in m.values()]
    return [(low.tolist(), high.tolist()) for low, high in ends], needed


def worker(rank, folder, corpus):
    torch.set_num_threads(1)
    runtime.join()
    results = {'saving': saving(Place(rank, 4))}
    two, three = Place(rank, 2, dist.new_group([0, 1])), Place(rank, 3, dist.new_group([0, 1, 2]))
    if rank < 2:
        results[2] = all_of_it(two, corpus)
        for case in ('muon', 'adamw-bias'):
            half = Run(case, 'float64', corpus, 4, two).go(0, 5)
            state = snapshot(half.model, half.optimizer)
            if rank == 0:
                torch.save(state, folder / f'{case}.pt')
    dist.barrier()
    if rank < 3:
        results[3] = all_of_it(three, corpus)
        for case in ('muon', 'adamw-bias'):
            results[3]['resumed', case] = resumed(case, folder, corpus, three)
    torch.save(results, folder / f'{rank}.pt')
    runtime.leave()  # together: after a barrier gloo aborts now and then


def resumed(case, folder, corpus, place):
    """The second half of the run that two ranks began."""
    run, state = (
        Run(case, 'float64', corpus, 2, place),
        torch.load(folder / f'{case}.pt', weights_only=True),
    )
    run.model.load_state_dict(
        state['weights'], strict=False
    )  # a tied head has one name here, two there
    run.optimizer.load_state_dict(state['optimizer'])
    return run.go(5).result()


PATHS = os.pathsep.join((str(ROOT), str(ROOT / 'tests')))
RANKS = """
import os, pathlib, sys
import test_optim
test_optim.worker(int(os.environ['RANK']), *map(pathlib.Path, sys.argv[1:]))
"""


@pytest.fixture(scope='module')
def ranks(tmp_path_factory, run_program, corpus):
    """(folder, what each of four processes saw: {world size: results})."""
    folder = tmp_path_factory.mktemp('ranks')
    (folder / 'ranks.py').write_text(RANKS, encoding='utf-8')
    run_program(folder / 'ranks.py', folder, corpus, ranks=4, env={'PYTHONPATH': PATHS})
    return folder, [torch.load(folder / f'{rank}.pt', weights_only=True) for rank in range(4)]


WORLDS = pytest.mark.parametrize('world_size', [2, 3])


def each(ranks, world_size):
    """The results of each rank of so many."""
    return [results[world_size] for results in ranks[1][:world_size]]


@WORLDS
@pytest.mark.parametrize('case, dtype, batch_size', RUNS_ON_RANKS)
def test_ranks_make_the_naive_step(ranks, corpus, case, dtype, batch_size, world_size):
    """8 rows on 3 ranks: 3, 3 and 2."""
    runs = [results[case, dtype, batch_size] for results in each(ranks, world_size)]
    assert_same_run(runs[0], naive_run(case, dtype, corpus), case, dtype)
    for other in runs[1:]:
        for name in ('log', 'gradients', 'weights'):
            assert_close(other[name], runs[0][name], 0)
        assert other['optimizer'] is None  # rank 0 saves


@WORLDS
@pytest.mark.parametrize('case', CASES)
def test_a_rank_keeps_its_share_of_the_moments(ranks, corpus, case, world_size):
    whole = Run(case, 'float32', corpus, 8).optimizer.buckets.values()
    units = [(bucket.size, sum(t[0].numel() for t in bucket.state.values())) for bucket in whole]
    expected = [-(-count // world_size) * size for count, size in units]
    assert [results['shares', case] for results in each(ranks, world_size)] == [
        expected
    ] * world_size


@WORLDS
@pytest.mark.parametrize('case', ['muon', 'adamw-bias'])
def test_the_state_is_that_of_one_rank(ranks, corpus, case, world_size):
    alone = Run(case, 'float64', corpus, 8).go().optimizer.state_dict()
    assert_same_state(each(ranks, world_size)[0][case, 'float64', 2]['optimizer'], alone, 1e-10)


@pytest.mark.parametrize('case', ['muon', 'adamw-bias'])
def test_what_two_ranks_began_one_and_three_finish(ranks, corpus, case):
    one, three = resumed(case, ranks[0], corpus, ALONE), each(ranks, 3)
    undisturbed = Run(case, 'float64', corpus, 8).go().result()
    for result in (one, *(results['resumed', case] for results in three)):
        assert_close(result['log'], undisturbed['log'][5:], 1e-10)
        assert_close(result['weights'], undisturbed['weights'], 1e-10)
    for result in (one, three[0]['resumed', case]):
        assert_same_state(result['optimizer'], undisturbed['optimizer'], 1e-10)


@WORLDS
def test_a_gradient_that_is_not_finite_on_one_rank_moves_none(ranks, world_size):
    for results in each(ranks, world_size):
        check_skips(results['skips'], results['good'])
        for got, expected in zip(results['good'], story(ALONE, GOOD)):
            assert_close(got['weights'], expected['weights'], 1e-10)


@WORLDS
def test_an_overflow_on_one_rank_lowers_the_loss_scale_of_all(ranks, world_size):
    for results in each(ranks, world_size):
        check_scales(results['scales'])


def test_saving_needs_memory_on_rank_0_alone(ranks):
    """400 MB of moments on four ranks: 100 MB each."""
    moments, needed = zip(*(results['saving'] for results in ranks[1]))
    assert moments == ([([0, 1, 2, 3], [0, 1, 2, 3])] * 2, None, None, None)
    if needed[0] is None:
        pytest.skip('the memory of a process is measured on Linux alone')
    assert needed[0] > 400e6
    assert max(needed[1:]) < 40e6


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['muon', 'adamw'])
def test_compiled_updates_are_the_eager_ones(kind):
    if not runtime.compiler(*runtime.CXX):
        pytest.skip('no C++ compiler was found')
    eager, compiled = (build('llama', n_kv_head=2) for _ in range(2))
    optimizers = (
        Optimizer(eager, kind, fp16=True),
        Optimizer(compiled, kind, fp16=True, compile=True),
    )
    for step in range(6):
        for model, optimizer in zip((eager, compiled), optimizers):
            draw_gradients(
                model, step, scale=float('nan') if step == 2 else float(optimizer.loss_scale)
            )
            move(optimizer, LR * (step + 1), grad_clip=1.0)
    assert_close(weights(compiled), weights(eager), 1e-10)
    assert_same_state(optimizers[1].state_dict(), optimizers[0].state_dict(), 1e-10)
