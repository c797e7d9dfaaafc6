"""
Muon for the matrices inside the layers, AdamW for everything else, on one rank or many.

    optimizer = Optimizer(model)
    (loss * optimizer.loss_scale).backward()       # as often as there are micro-batches
    optimizer.reduce()                             # SUM over ranks: the readers' weights divide by the whole step
    norm = optimizer.norm()                        # of the whole gradient, on the device, equal on all ranks
    optimizer.step(lr, norm, grad_clip)            # where norm is not finite nothing moves

Parameters of one kind are laid end to end in a bucket, the bucket is cut into as many equal shares as there are
ranks, and each rank keeps the moments of its own share and moves only that (ZeRO, Rajbhandari et al., 2020). Nothing
here waits for the device.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

# Newton-Schulz: x -> a x + b x^3 + c x^5 on the singular values, each time with the coefficients that do most for what
# the times before have left (Polar Express: Amsel et al., 2025, arXiv 2505.16932). The margin keeps rounding from
# lifting the largest above 1.
POLAR_EXPRESS = {
    5: (  # for values in [0.001, 1], which come to lie in [0.847, 1.141]
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
    3: (  # for values in [0.02, 1], which come to lie in [0.907, 1.093]
        (7.710969245867679, -22.11375479048116, 16.248743017738473),
        (3.2152759873077437, -2.411172010255782, 0.5013000136148815),
        (2.2183077524237897, -1.593989622915833, 0.41074788751050023),
    ),
}
MARGIN = 1.02
MOMENTUM = (0.85, 0.95, 300)  # Muon's, from, to, over so many steps (Keller Jordan's, for short runs)
GOOD_STEPS = 2000  # so many in a row double fp16's loss scale


def orthogonalize(matrices: Tensor, iterations: int = 5) -> Tensor:
    """(N, rows, columns) -> U p(S) V^T: the same singular vectors, singular values near 1. In bf16 on CUDA."""
    X = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = X.shape[-2] > X.shape[-1]
    X = X.mT if tall else X  # the smaller product
    X = X / (X.norm(dim=(-2, -1), keepdim=True) * MARGIN + 1e-7)
    for a, b, c in POLAR_EXPRESS[iterations]:
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return (X.mT if tall else X).to(matrices.dtype)


# The two rules. p is this rank's share of a bucket's parameters, g its gradient, ok whether the gradient was finite
# (where it was not g is zero, since 0 * nan is nan, and neither p nor state changes), count the steps so far and this.


def muon(p, g, ok, count, lr, weight_decay, state, iterations):
    """Jordan et al., 2024. p, g (N, rows, columns) -> the new p.

    An orthogonal matrix has RMS 1 / sqrt(max(rows, columns)); the factor makes it AdamW's, about 0.2 (Moonlight: Liu et
    al., 2025). Decay acts only where it pulls the way the update goes (cautious: Chen et al., 2025).
    """
    low, high, steps = MOMENTUM
    momentum = low + (high - low) * (count / steps).clamp(max=1.0)
    state['m'].lerp_(g, (1 - momentum) * ok)
    ahead = torch.lerp(g, state['m'], momentum)  # Nesterov's
    update = orthogonalize(ahead, iterations) * (0.2 * max(p.shape[-2:]) ** 0.5)
    decay = weight_decay * p * (update * p > 0)
    return torch.where(ok, p - lr * (update + decay), p)


def adamw(p, g, ok, count, lr, weight_decay, state, multiple, betas, eps=1e-8):
    """Loshchilov and Hutter, 2019. p, g (n,) -> the new p. multiple is of the update's rate, not of the decay's."""
    (beta1, beta2), moved = betas, ok.to(g.dtype)  # a number times a bool would be float32 whatever g is
    state['m'].lerp_(g, (1 - beta1) * moved)
    state['v'].lerp_(g * g, (1 - beta2) * moved)
    m, v = state['m'] / (1 - beta1**count), state['v'] / (1 - beta2**count)
    return torch.where(ok, p - lr * (multiple * m / (v.sqrt() + eps) + weight_decay * p), p)


class Rule(NamedTuple):
    """How a parameter moves. Parameters of one rule share a bucket."""

    kind: str  # muon | adamw
    unit: tuple[int, ...]  # what must not be cut: a matrix of this shape for muon, () for adamw
    multiple: float  # of the learning rate
    decay: bool  # biases and gains are not decayed, whatever is two-dimensional is


class Bucket:
    """
    Pieces of parameters of one rule end to end, (n, *unit), and zeros up to a multiple of world_size; rank r owns
    the r-th share of it. A piece is rows a to b of a parameter. For Muon a unit is a whole matrix: q, k and v of a
    c_attn of (96, 32) are three pieces, each one unit of (32, 32). For AdamW a unit is one number.
    """

    def __init__(self, rule: Rule, rank: int, world_size: int, group):
        self.rule, self.rank, self.world_size, self.group = rule, rank, world_size, group
        self.pieces = []  # (name, parameter, first row, one past the last)
        self.state, self.grad, self.work = {}, None, None

    def allocate(self):
        """Zero moments for this rank's share, once all pieces are in."""
        self.size = sum(self.units(p[a:b]).shape[0] for _, p, a, b in self.pieces)
        share = -(-self.size // self.world_size)
        like = self.pieces[0][1]
        for name in ('m', 'v') if self.rule.kind == 'adamw' else ('m',):
            self.state[name] = torch.zeros(share, *self.rule.unit, dtype=like.dtype, device=like.device)

    def units(self, t):
        return t.reshape(-1, *self.rule.unit)

    def lay_out(self, tensors):
        """Tensors of the pieces -> (share * world_size, *unit)."""
        full = [self.units(t) for t in tensors]
        padding = len(self.state['m']) * self.world_size - self.size
        if padding:
            full.append(full[0].new_zeros(padding, *self.rule.unit))
        return torch.cat(full)

    def own(self, full):
        return full.chunk(self.world_size)[self.rank]

    def reduce(self):
        """Start adding up the gradients over the ranks; this rank gets the sum of its share."""
        full = self.lay_out([torch.zeros_like(p[a:b]) if p.grad is None else p.grad[a:b] for _, p, a, b in self.pieces])
        if self.world_size == 1:
            self.grad = full
        else:
            self.grad = torch.empty_like(self.own(full))
            self.work = dist.reduce_scatter_tensor(self.grad, full, group=self.group, async_op=True)

    def parameters(self):
        """This rank's share of the parameters, a copy."""
        return self.own(self.lay_out([p[a:b] for _, p, a, b in self.pieces]))

    def collect(self, share):
        """Every rank's share -> (size, *unit), on every rank."""
        if self.world_size == 1:
            return share
        full = share.new_empty(self.world_size, *share.shape)
        dist.all_gather(list(full.unbind()), share.contiguous(), group=self.group)
        return full.flatten(0, 1)[: self.size]

    def put_back(self, full):
        """(size, *unit) -> the parameters."""
        sizes = [self.units(p[a:b]).shape[0] for _, p, a, b in self.pieces]
        for (_, p, a, b), new in zip(self.pieces, full.split(sizes)):
            p[a:b].copy_(new.view_as(p[a:b]))

    def load(self, state):
        """Full moments, as state_dict() has them -> this rank's share."""
        for name, mine in self.state.items():
            full = state[name].to(mine)
            padding = full.new_zeros(len(mine) * self.world_size - self.size, *self.rule.unit)
            mine.copy_(self.own(torch.cat([full, padding])))


class Optimizer:
    """
    model needs named_parameters(), matrix_blocks() and lm_head. embedding_rate and head_rate are in learning rates.
    rank, world_size and group say who shares the work; fp16: the loss is scaled; compile: the updates are fused (CUDA).
    """

    def __init__(
        self, model, kind: str = 'muon', betas=(0.9, 0.95), weight_decay: float = 0.1,
        embedding_rate: float = 1.0, head_rate: float = 1.0, iterations: int = 5,
        rank: int = 0, world_size: int = 1, group=None, fp16: bool = False, compile: bool = False,
    ):  # fmt: skip
        if kind not in ('muon', 'adamw'):
            raise SystemExit(f"optimizer is '{kind}', expected muon or adamw")
        if iterations not in POLAR_EXPRESS:
            raise SystemExit(f'muon_iterations is {iterations}, expected one of {", ".join(map(str, POLAR_EXPRESS))}')
        self.betas, self.weight_decay, self.iterations, self.fp16 = betas, weight_decay, iterations, fp16
        self.buckets: dict[Rule, Bucket] = {}
        blocks = model.matrix_blocks()
        for name, p in model.named_parameters():
            rate = embedding_rate if name.endswith(('wte.weight', 'wpe.weight')) else 1.0
            rate = head_rate if p is model.lm_head.weight else rate  # a tied table's too
            if kind == 'muon' and name in blocks:
                ends = torch.tensor(blocks[name]).cumsum(0).tolist()
                for a, b in zip([0, *ends], ends):
                    self.add(Rule('muon', (b - a, p.shape[1]), rate, True), (name, p, a, b), rank, world_size, group)
            else:
                self.add(Rule('adamw', (), rate, p.dim() > 1), (name, p, 0, len(p)), rank, world_size, group)
        for bucket in self.buckets.values():
            bucket.allocate()
        covered = sum(b.size * torch.Size(b.rule.unit).numel() for b in self.buckets.values())
        assert covered == sum(p.numel() for p in model.parameters()), 'every parameter is in exactly one bucket'
        like = dict(dtype=torch.float32, device=next(model.parameters()).device)
        self.counters = {
            name: torch.zeros((), **like) for name in ('count', 'good', 'skipped', 'in_a_row', 'most_in_a_row')
        }
        self.loss_scale = torch.full((), 2.0**16 if fp16 else 1.0, **like)
        fused = torch.compile if compile else lambda f, dynamic: f
        self.updates = {'muon': fused(muon, dynamic=False), 'adamw': fused(adamw, dynamic=False)}

    def add(self, rule, piece, *ranks):
        self.buckets.setdefault(rule, Bucket(rule, *ranks)).pieces.append(piece)

    @torch.no_grad()
    def reduce(self) -> None:
        """Sum the gradients over the ranks and take them from the parameters; each rank keeps the sum of its share."""
        for bucket in self.buckets.values():
            bucket.reduce()
        for bucket in self.buckets.values():
            if bucket.work is not None:
                bucket.work.wait()
            for _, p, _, _ in bucket.pieces:  # only now: q, k and v of one gradient may lie in different buckets
                p.grad = None

    @torch.no_grad()
    def norm(self) -> Tensor:
        """() norm of the whole gradient without the loss scale, the same on every rank, on the device."""
        square = torch.stack([b.grad.square().sum() for b in self.buckets.values()]).sum()
        first = next(iter(self.buckets.values()))
        if first.world_size > 1:
            dist.all_reduce(square, group=first.group)
        return square.sqrt() / self.loss_scale

    @torch.no_grad()
    def step(self, lr: float, norm: Tensor, grad_clip: float = 0.0) -> None:
        """Clip to grad_clip (0 is off) and move. Where norm is not finite no parameter, moment or count changes."""
        ok = norm.isfinite()
        scale = (torch.clamp(grad_clip / norm, max=1.0) if grad_clip else 1.0) / self.loss_scale
        self.counters['count'] += ok
        rate = torch.full_like(self.loss_scale, lr, dtype=norm.dtype)
        for rule, bucket in self.buckets.items():
            g = torch.where(ok, bucket.grad * scale, 0.0)
            of_adamw = dict(multiple=rule.multiple, betas=self.betas)
            more = of_adamw if rule.kind == 'adamw' else dict(iterations=self.iterations)
            update, decay, count = self.updates[rule.kind], rule.decay * self.weight_decay, self.counters['count']
            share = update(bucket.parameters(), g, ok, count.to(g.dtype), rate, decay, bucket.state, **more)
            bucket.put_back(bucket.collect(share))
            bucket.grad = None
        self.keep_count(ok)

    def keep_count(self, ok):
        """Skips, and fp16's loss scale: halved when the gradient overflowed, doubled after many steps without."""
        c = self.counters
        c['skipped'] += ~ok
        c['in_a_row'].copy_(torch.where(ok, 0.0, c['in_a_row'] + 1))
        c['most_in_a_row'].copy_(torch.maximum(c['most_in_a_row'], c['in_a_row']))
        if self.fp16:
            c['good'].copy_(torch.where(ok, c['good'] + 1, 0.0))
            grow = c['good'] == GOOD_STEPS
            self.loss_scale.mul_(torch.where(ok, torch.where(grow, 2.0, 1.0), 0.5))
            c['good'].mul_(~grow)

    def state_dict(self) -> dict:
        """Everything, whole, whatever the number of ranks; all ranks call it together. To be saved at once: what is on
        the CPU is not copied, so it changes with the next step."""
        moments = [
            {name: bucket.collect(t).cpu() for name, t in bucket.state.items()} for bucket in self.buckets.values()
        ]
        return {'counters': self.counters, 'loss_scale': self.loss_scale, 'layout': self.layout(), 'moments': moments}

    def layout(self):
        """Which rows of which parameters lie in which bucket, in order."""
        return [[list(b.rule.unit), [[name, a, e] for name, _, a, e in b.pieces]] for b in self.buckets.values()]

    def load_state_dict(self, state: dict) -> None:
        """From a run with any number of ranks."""
        if state['layout'] != self.layout():
            what = 'of another optimizer or architecture, or of other embedding and head rates'
            mend = 'leave --init_optimizer out, or use --init_from=scratch'
            raise SystemExit(f"the checkpoint's optimizer state is {what}; {mend}")
        for name, t in self.counters.items():
            t.copy_(state['counters'][name])
        self.loss_scale.copy_(state['loss_scale'])
        for bucket, moments in zip(self.buckets.values(), state['moments']):
            bucket.load(moments)
