"""
Muon for the matrices inside the layers, AdamW for everything else, on one rank or many.

    optimizer = Optimizer(model)
    (loss * optimizer.loss_scale).backward()  # once per micro-batch
    optimizer.reduce()                        # SUM over ranks: weights divide by the whole step
    norm = optimizer.norm()                   # of the whole gradient, the same on all ranks
    optimizer.step(lr, norm, grad_clip)       # nothing moves where norm is not finite

Parameters with the same update rule are concatenated into a bucket. A bucket is cut into one share
per rank. Each rank keeps the moments of its share and updates only that (ZeRO, Rajbhandari et al.,
2020). Ranks gather the new shares of one bucket while they update the next. On CUDA, only gloo
makes a step wait for the device.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

# Newton-Schulz: x -> a x + b x^3 + c x^5 on the singular values. Each iteration has the
# best coefficients for the range that the earlier ones leave (Polar Express: Amsel et al., 2025,
# arXiv 2505.16932). MARGIN keeps rounding from lifting the largest singular value above 1
POLAR_EXPRESS = {
    5: (  # maps [0.001, 1] into [0.847, 1.141]
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
    3: (  # maps [0.02, 1] into [0.907, 1.093]
        (7.710969245867679, -22.11375479048116, 16.248743017738473),
        (3.2152759873077437, -2.411172010255782, 0.5013000136148815),
        (2.2183077524237897, -1.593989622915833, 0.41074788751050023),
    ),
}
MARGIN = 1.02
MOMENTUM = (0.85, 0.95, 300)  # Muon's: from, to, in this many steps (Keller Jordan)
GOOD_STEPS = 2000  # after this many finite steps in a row fp16's loss scale doubles

# torch 2.13 renamed these two and warns about the old names
reduce_scatter = getattr(dist, 'reduce_scatter_single', dist.reduce_scatter_tensor)
all_gather = getattr(dist, 'all_gather_single', dist.all_gather_into_tensor)


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of orthogonalize's products. None, that of the matrices, except on CUDA: bf16, or
    fp16 before compute capability 8.0, where bf16 is emulated."""
    if device.type != 'cuda':
        return None
    has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if has_bf16 else torch.float16


def orthogonalize(
    matrices: Tensor, iterations: int = 5, dtype: torch.dtype | None = None
) -> Tensor:
    """(N, rows, columns) -> same shape: the singular vectors stay, the singular values become
    about 1. dtype: of the matrix products, None is that of the matrices."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    X = matrices.mT if tall else matrices  # so that X @ X.mT is the smaller product
    X = X / (X.norm(dim=(-2, -1), keepdim=True) * MARGIN + 1e-7)
    X = X.to(dtype or X.dtype)  # only now: no element exceeds 1, so that fp16 does not overflow
    for a, b, c in POLAR_EXPRESS[iterations]:
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return (X.mT if tall else X).to(matrices.dtype)


# The two update rules.
#     p        this rank's share of a bucket's parameters
#     g        its gradient; zero where the gradient was not finite, since 0 * nan is nan
#     ok       bool: the gradient was finite; otherwise neither p nor state changes
#     count    finite steps so far, this one included
#     state    moments, updated in place


def muon(p, g, ok, count, lr, weight_decay, state, iterations, dtype):
    """Muon (Jordan et al., 2024). p, g (N, rows, columns) -> new p.

    The entries of an orthogonal matrix have RMS 1 / sqrt(max(rows, columns)). The update is scaled
    to RMS 0.2, about AdamW's (Moonlight: Liu et al., 2025). Weight decay acts only where it has the
    sign of the update (cautious: Chen et al., 2025).
    """
    low, high, steps = MOMENTUM
    momentum = low + (high - low) * (count / steps).clamp(max=1.0)
    state['m'].lerp_(g, (1 - momentum) * ok)
    nesterov = torch.lerp(g, state['m'], momentum)
    update = orthogonalize(nesterov, iterations, dtype) * (0.2 * max(p.shape[-2:]) ** 0.5)
    decay = weight_decay * p * (update * p > 0)
    return torch.where(ok, p - lr * (update + decay), p)


def adamw(p, g, ok, count, lr, weight_decay, state, multiple, betas, eps):
    """AdamW (Loshchilov and Hutter, 2019). p, g (n,) -> new p. multiple scales the update,
    not the weight decay."""
    beta1, beta2 = betas
    moved = ok.to(g.dtype)  # a Python number times a bool tensor is float32, whatever g is
    state['m'].lerp_(g, (1 - beta1) * moved)
    state['v'].lerp_(g * g, (1 - beta2) * moved)
    m = state['m'] / (1 - beta1**count)
    v = state['v'] / (1 - beta2**count)
    return torch.where(ok, p - lr * (multiple * m / (v.sqrt() + eps) + weight_decay * p), p)


class Rule(NamedTuple):
    """How a parameter is updated. Parameters of one rule share a bucket."""

    kind: str  # muon | adamw
    unit: tuple[int, ...]  # shape of what ranks never split: a matrix for muon, () for adamw
    multiple: float  # of the learning rate
    decay: bool  # True for two-dimensional parameters; biases and gains do not decay


class Bucket:
    """
    Parameters of one rule concatenated to (n, *unit), zero-padded to a multiple of world_size. Rank
    r owns share r.

    A piece is rows a to b of a parameter. For Muon a unit is a whole matrix: q, k and v of a c_attn
    of shape (96, 32) are three pieces of one (32, 32) unit each. For AdamW a unit is one number.
    """

    def __init__(self, rule: Rule, rank: int, world_size: int, group):
        self.rule = rule
        self.rank = rank
        self.world_size = world_size
        self.group = group
        self.pieces = []  # (name, parameter, first row, one past the last)
        self.state = {}
        self.grad = None  # this rank's share of the gradient
        self.full = None  # every rank's share of the new parameters
        self.work = None  # the collective in progress

    def allocate(self):
        """Zero moments for this rank's share, once all pieces are in."""
        self.size = sum(len(self.units(p[a:b])) for _, p, a, b in self.pieces)
        self.share = -(-self.size // self.world_size)
        self.start = self.rank * self.share
        like = self.pieces[0][1]
        for name in ('m', 'v') if self.rule.kind == 'adamw' else ('m',):
            self.state[name] = torch.zeros(
                self.share, *self.rule.unit, dtype=like.dtype, device=like.device
            )

    def units(self, t):
        return t.reshape(-1, *self.rule.unit)

    def concatenate(self, tensors, start, end):
        """Units start to end of the tensors, zeros after the last -> (end - start, *unit)."""
        parts = []
        first = 0  # unit of this tensor
        for t in tensors:
            units = self.units(t)
            parts.append(units[max(0, start - first) : max(0, end - first)])
            first += len(units)
        padding = end - max(start, first)
        if padding > 0:
            parts.append(parts[0].new_zeros(padding, *self.rule.unit))
        return torch.cat(parts)

    def reduce(self):
        """Start the SUM of the gradients over the ranks; this rank receives its share."""
        gradients = [
            torch.zeros_like(p[a:b]) if p.grad is None else p.grad[a:b]
            for _, p, a, b in self.pieces
        ]
        full = self.concatenate(gradients, 0, self.share * self.world_size)
        if self.world_size == 1:
            self.grad = full
        else:
            self.grad = full.new_empty(self.share, *self.rule.unit)
            self.work = reduce_scatter(self.grad, full, group=self.group, async_op=True)

    def parameters(self):
        """A copy of this rank's share of the parameters."""
        tensors = [p[a:b] for _, p, a, b in self.pieces]
        return self.concatenate(tensors, self.start, self.start + self.share)

    def gather(self, share):
        """Start to send this rank's new parameters to every rank; write_back() waits for them."""
        if self.world_size == 1:
            self.full = share
        else:
            self.full = share.new_empty(self.share * self.world_size, *self.rule.unit)
            share = share.contiguous()
            self.work = all_gather(self.full, share, group=self.group, async_op=True)

    def wait(self):
        """Wait for the collective in progress, if any."""
        if self.work is not None:
            self.work.wait()
            self.work = None  # frees the tensors that it has sent

    def write_back(self):
        """The new parameters of every rank -> the model."""
        self.wait()
        sizes = [len(self.units(p[a:b])) for _, p, a, b in self.pieces]
        for (_, p, a, b), new in zip(self.pieces, self.full[: self.size].split(sizes)):
            p[a:b].copy_(new.view_as(p[a:b]))
        self.full = None

    def collect(self, share):
        """Every rank's share of a moment -> (size, *unit) in rank 0's host memory. None on the
        other ranks, which need no memory for it."""
        if self.world_size == 1:
            return share.cpu()
        if self.rank > 0:
            dist.gather(share, group=self.group, group_dst=0)
            return None
        full = share.new_empty(self.world_size, *share.shape)
        dist.gather(share, list(full.unbind()), group=self.group, group_dst=0)
        return full.flatten(0, 1)[: self.size].cpu()

    def load(self, state):
        """Full moments, as in state_dict() -> this rank's share. Reads no other part of them."""
        for name, mine in self.state.items():
            part = state[name][self.start : self.start + self.share]
            mine[: len(part)].copy_(part)  # padding stays zero


class Optimizer:
    """
    model needs named_parameters(), matrix_blocks() and lm_head. embedding_rate and head_rate are
    multiples of the learning rate, value_rate one of embedding_rate. iterations: of Newton-Schulz.
    rank, world_size, group: this process among those that share the work. fp16: scale the loss.
    compile: fuse the updates (CUDA). muon_dtype: of Muon's matrix products; None is the device's
    fast one. betas, eps: of AdamW.
    """

    def __init__(
        self, model, kind: str = 'muon', betas=(0.9, 0.95), weight_decay: float = 0.1,
        embedding_rate: float = 1.0, head_rate: float = 1.0, iterations: int = 5,
        rank: int = 0, world_size: int = 1, group=None, fp16: bool = False, compile: bool = False,
        muon_dtype: torch.dtype | None = None, eps: float = 1e-8, value_rate: float = 0.5,
    ):  # fmt: skip
        if kind not in ('muon', 'adamw'):
            raise SystemExit(f"optimizer is '{kind}', expected muon or adamw")
        if iterations not in POLAR_EXPRESS:
            choices = ', '.join(map(str, POLAR_EXPRESS))
            raise SystemExit(f'muon_iterations is {iterations}, expected one of {choices}')
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.iterations = iterations
        self.rank = rank
        self.fp16 = fp16
        device = next(model.parameters()).device
        self.muon_dtype = muon_dtype or fast_dtype(device)

        # 1) Buckets: each parameter, or each map stacked in it, goes to the bucket of its rule
        self.buckets: dict[Rule, Bucket] = {}
        ranks = (rank, world_size, group)
        blocks = model.matrix_blocks()
        rates = dict(wte=embedding_rate, wpe=embedding_rate, wve=value_rate * embedding_rate)
        for name, p in model.named_parameters():
            rate = rates.get(name.removesuffix('.weight').rpartition('.')[2], 1.0)
            if p is model.lm_head.weight:  # a tied table too
                rate = head_rate
            if kind == 'muon' and name in blocks:
                end = 0
                for rows in blocks[name]:
                    rule = Rule('muon', (rows, p.shape[1]), rate, True)
                    self.add(rule, (name, p, end, end + rows), ranks)
                    end += rows
            else:
                rule = Rule('adamw', (), rate, p.dim() > 1)
                self.add(rule, (name, p, 0, len(p)), ranks)
        for bucket in self.buckets.values():
            bucket.allocate()
        covered = sum(b.size * torch.Size(b.rule.unit).numel() for b in self.buckets.values())
        total = sum(p.numel() for p in model.parameters())
        assert covered == total, 'every parameter is in exactly one bucket'

        # 2) Counters and loss scale, on the device
        like = dict(dtype=torch.float32, device=device)
        names = ('count', 'good', 'skipped', 'in_a_row', 'most_in_a_row')
        self.counters = {name: torch.zeros((), **like) for name in names}
        self.loss_scale = torch.full((), 2.0**16 if fp16 else 1.0, **like)

        # 3) The update rules
        self.updates = {'muon': muon, 'adamw': adamw}
        if compile:
            self.updates = {
                name: torch.compile(rule, dynamic=False) for name, rule in self.updates.items()
            }

    def add(self, rule: Rule, piece: tuple, ranks: tuple):
        self.buckets.setdefault(rule, Bucket(rule, *ranks)).pieces.append(piece)

    @torch.no_grad()
    def reduce(self) -> None:
        """SUM the gradients over the ranks. Each rank keeps its share; the parameters' own
        gradients are cleared."""
        for bucket in self.buckets.values():
            bucket.reduce()
        for bucket in self.buckets.values():
            bucket.wait()
            # cleared after all buckets have read: one gradient may span several (q, k and v)
            for _, p, _, _ in bucket.pieces:
                p.grad = None

    @torch.no_grad()
    def norm(self) -> Tensor:
        """() L2 norm of the whole gradient without the loss scale, on the device, the same on every
        rank. Call it after reduce()."""
        square = torch.stack([b.grad.square().sum() for b in self.buckets.values()]).sum()
        first = next(iter(self.buckets.values()))
        if first.world_size > 1:
            dist.all_reduce(square, group=first.group)
        return square.sqrt() / self.loss_scale

    @torch.no_grad()
    def step(self, lr: float, norm: Tensor, grad_clip: float = 0.0) -> None:
        """Unscale, clip to grad_clip (0 is off), update. If norm is not finite, skip the step: no
        parameter or moment changes."""
        # 1) One factor unscales and clips
        ok = norm.isfinite()
        clip = torch.clamp(grad_clip / norm, max=1.0) if grad_clip else 1.0
        scale = clip / self.loss_scale
        self.counters['count'] += ok
        lr = torch.full_like(self.loss_scale, lr, dtype=norm.dtype)

        # 2) Each bucket: update this rank's share, gather all shares during the next update
        gathering = None
        for rule, bucket in self.buckets.items():
            g = torch.where(ok, bucket.grad * scale, 0.0)
            bucket.grad = None
            count = self.counters['count'].to(g.dtype)
            decay = rule.decay * self.weight_decay
            if rule.kind == 'muon':
                own_settings = dict(iterations=self.iterations, dtype=self.muon_dtype)
            else:
                own_settings = dict(multiple=rule.multiple, betas=self.betas, eps=self.eps)
            update = self.updates[rule.kind]
            share = bucket.parameters()
            share = update(share, g, ok, count, lr, decay, bucket.state, **own_settings)
            if gathering is not None:
                gathering.write_back()
            bucket.gather(share)
            gathering = bucket
        gathering.write_back()

        # 3) Count skipped steps
        self.keep_count(ok)

    def keep_count(self, ok):
        """Count skipped steps. fp16's loss scale halves after an overflow and doubles after
        GOOD_STEPS steps without one."""
        c = self.counters
        c['skipped'] += ~ok
        c['in_a_row'].copy_(torch.where(ok, 0.0, c['in_a_row'] + 1))
        c['most_in_a_row'].copy_(torch.maximum(c['most_in_a_row'], c['in_a_row']))
        if self.fp16:
            c['good'].copy_(torch.where(ok, c['good'] + 1, 0.0))
            grow = c['good'] == GOOD_STEPS
            self.loss_scale.mul_(torch.where(ok, torch.where(grow, 2.0, 1.0), 0.5))
            c['good'].mul_(~grow)

    def forget_skips(self) -> None:
        """After load_state_dict(): forget past series of skipped steps, but not a current one."""
        self.counters['most_in_a_row'].copy_(self.counters['in_a_row'])

    def state_dict(self) -> dict | None:
        """The whole state on rank 0, whatever the number of ranks, and None on the others; all
        ranks call it together. Save it at once: tensors that live on the CPU are not copied and
        change with the next step."""
        moments = [
            {name: bucket.collect(t) for name, t in bucket.state.items()}
            for bucket in self.buckets.values()
        ]
        if self.rank > 0:
            return None
        return {
            'counters': self.counters,
            'loss_scale': self.loss_scale,
            'layout': self.layout(),
            'moments': moments,
        }

    def layout(self):
        """Which rows of which parameters are in which bucket, in order."""
        return [
            [list(b.rule.unit), [[name, a, e] for name, _, a, e in b.pieces]]
            for b in self.buckets.values()
        ]

    def load_state_dict(self, state: dict) -> None:
        """Restore a state_dict() of a run with any number of ranks. SystemExit if it belongs to
        another optimizer or architecture."""
        if state['layout'] != self.layout():
            raise SystemExit(
                "the checkpoint's optimizer state belongs to another optimizer or architecture, or "
                'to other rates of embeddings or head; leave --init_optimizer out, or use '
                '--init_from=scratch'
            )
        for name, t in self.counters.items():
            t.copy_(state['counters'][name])
        self.loss_scale.copy_(state['loss_scale'])
        for bucket, moments in zip(self.buckets.values(), state['moments']):
            bucket.load(moments)
