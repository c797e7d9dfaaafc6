"""
Keys and values of the tokens so far, in blocks of 32 slots. A row has a table of blocks, in order.

    pool = Pool(limit=1000)                         # block numbers: who uses them, what they hold
    cache = KVCache(model.config)                   # the tensors
    table = [pool.take(), pool.take()]              # room for 64 tokens
    cache.select([table], [0], [40], [0])           # before each forward pass: its rows
    logits = model(ids, cache=cache)                # ids (1, 40)
    pool.register(ids, table)                       # the first 32 tokens can now be found ...
    pool.release(table)                             # ... also after the row has ended
    table = pool.find(ids)                          # [block of the first 32 tokens]

Memory follows the tokens held, rows can have any lengths, and rows with the same beginning share
its blocks (PagedAttention: Kwon et al., 2023). A full block never changes while somebody uses it.

Attention reads the blocks in one of two ways:

    gather      copies each row's blocks one after another, then calls torch's fused attention.
                Any number of new tokens, any device; shapes do not depend on the rows' lengths
    bags        one new token per row, on a CPU: nothing is copied and only used slots are read.
                The pool is a table of vectors and a row's slots are ids: its output is the weighted
                sum of a bag of vectors, torch's embedding_bag. The scores q·k are what autograd
                computes as the gradient of such a sum by its weights

Left out on purpose: which rows run, and when the weights have changed (engine.py).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from model import GPTConfig, ceil_to

BLOCK = 32  # slots of a block
SCRATCH = 0  # a block that no row owns: padding and unused rows write there
WIDTH = 64  # without a fixed width, gathered rows are padded to multiples of this: fewer shapes

dot_bags = torch.ops.aten._embedding_bag_per_sample_weights_backward
sum_bags = F.embedding_bag

# After embedding_bag, MKL's batched products of one row take twice as long with two threads, until
# another operation has run on enough numbers for all threads (LOG.md; why is not known)
ENOUGH = torch.zeros(2**16)


class Pool:
    """
    The numbers of the blocks: which are free, how many rows use each, and which full blocks can be
    found by the tokens they hold.

        limit   most blocks in use and kept, without SCRATCH
        keep    most blocks without a user that are kept to be found again, the least recently
                used are dropped first
    """

    def __init__(self, limit: int, keep: int | None = None):
        self.limit = limit
        self.keep = limit if keep is None else keep
        self.users: dict[int, int] = {}  # block in use -> how many rows use it
        self.idle: dict[int, None] = {}  # findable blocks without a user, oldest first
        self.free: list[int] = []  # blocks given back
        self.size = 1  # blocks ever handed out, SCRATCH included
        self.serial = 0
        # A block's key is its tokens and the serial number of the block before it. Serial numbers
        # are never used again, so a key stands for the whole beginning
        self.found: dict[tuple, tuple[int, int]] = {}  # key -> (block, serial)
        self.keys: dict[int, tuple] = {}  # block -> its key

    @property
    def available(self) -> int:
        """Blocks that take() can still hand out."""
        return self.limit - len(self.users)

    def take(self) -> int | None:
        """A block for one user, None if all are in use."""
        if not self.available:
            return None
        if not self.free and len(self.idle) + len(self.users) == self.limit:
            self.drop_oldest()
        if self.free:
            block = self.free.pop()
        else:
            block = self.size
            self.size += 1
        self.users[block] = 1
        return block

    def share(self, blocks: Sequence[int]):
        """One more user for each of the blocks."""
        for block in blocks:
            self.idle.pop(block, None)
            self.users[block] = self.users.get(block, 0) + 1

    def release(self, blocks: Sequence[int]):
        """One user less. The last blocks of a text are dropped before the first."""
        for block in reversed(blocks):
            self.users[block] -= 1
            if not self.users[block]:
                del self.users[block]
                if block in self.keys:
                    self.idle[block] = None
                else:
                    self.free.append(block)
        while len(self.idle) > self.keep:
            self.drop_oldest()

    def drop_oldest(self):
        """Free the block that nobody has used for the longest time."""
        block = next(iter(self.idle))
        del self.idle[block]
        del self.found[self.keys.pop(block)]
        self.free.append(block)

    def register(self, ids: Sequence[int], blocks: Sequence[int]):
        """Make the full blocks of a text findable. Of equal beginnings the first one counts."""
        serial = 0
        for i, block in enumerate(blocks[: len(ids) // BLOCK]):
            key = (serial, *ids[i * BLOCK : (i + 1) * BLOCK])
            if key not in self.found:
                self.serial += 1
                self.found[key] = block, self.serial
                self.keys[block] = key
            _, serial = self.found[key]

    def find(self, ids: Sequence[int]) -> list[int]:
        """The blocks of the longest known beginning of ids, not all of them, now with one more
        user."""
        serial = 0
        blocks = []
        for start in range(0, len(ids) - BLOCK, BLOCK):
            key = (serial, *ids[start : start + BLOCK])
            if key not in self.found:
                break
            block, serial = self.found[key]
            blocks.append(block)
        self.share(blocks)
        return blocks

    def forget(self):
        """No block can be found any more."""
        self.free += self.idle
        self.idle.clear()
        self.found.clear()
        self.keys.clear()


class KVCache:
    """
    The tensors of the blocks, and the view of a forward pass on them. The model calls begin() once
    per pass, attend() once per layer, and before() if it smears.

        keys, values    per layer (blocks, n_kv_head, BLOCK, head_dim)
        lengths (B,)    int64, tokens in the cache of each row of the pass
        last (B, 1)     the id that each of these rows ends with
    """

    def __init__(self, config: GPTConfig, dtype=torch.float32, device='cpu'):
        self.config = config
        self.dtype = dtype
        self.device = torch.device(device)
        self.keys = [self.zeros(0) for _ in range(config.n_layer)]
        self.values = [self.zeros(0) for _ in range(config.n_layer)]
        self.batched_products = False  # whether the model multiplies single rows as packed.py does

    def zeros(self, blocks: int) -> torch.Tensor:
        # zeros, not uninitialised memory: 0 times a stray NaN is NaN
        config = self.config
        shape = (blocks, config.n_kv_head, BLOCK, config.head_dim)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def reserve(self, blocks: int):
        """Make room for this many blocks. At least doubles, so that they are rarely copied."""
        capacity = len(self.keys[0])
        if blocks > capacity:
            added = max(blocks, 2 * capacity) - capacity
            for tensors in (self.keys, self.values):
                for layer, old in enumerate(tensors):
                    tensors[layer] = torch.cat((old, self.zeros(added)))

    def copy(self, source: int, targets: list[int]):
        """Write the contents of a block to others."""
        for tensor in (*self.keys, *self.values):
            tensor[targets] = tensor[[source] * len(targets)]

    # ---- a forward pass

    def select(
        self, tables: Sequence[Sequence[int]], lengths: Sequence[int], counts: Sequence[int],
        last: Sequence[int], width: int | None = None,
    ):  # fmt: skip
        """
        The rows of the next forward pass: their blocks, the tokens they hold and how many of the
        new tokens count. The others are padding, whose keys and values go to SCRATCH.

        last: the id that each row ends with; any id where it holds none. With it, smear needs no
        state in the blocks.
        width: slots per row that attention covers, whatever the lengths; None: as many as needed.
        """
        self.fixed = width is not None
        ends = [length + count for length, count in zip(lengths, counts)]
        self.width = width if self.fixed else max(ends)
        self.even = len(set(ends)) == 1 and not self.fixed
        blocks = ceil_to(ceil_to(self.width, WIDTH), BLOCK) // BLOCK
        # one copy to the device
        rows = [
            [length, count, before, *table[:blocks], *[SCRATCH] * (blocks - len(table))]
            for table, length, count, before in zip(tables, lengths, counts, last)
        ]
        rows = torch.tensor(rows, device=self.device)
        self.lengths = rows[:, 0]
        self.counts = rows[:, 1:2]
        self.last = rows[:, 2:3]
        self.table = rows[:, 3:]  # (B, blocks)

    def begin(self, T: int) -> torch.Tensor:
        """Plan the attention of T new tokens per row. Returns their positions, (B, T)."""
        # 1) Positions, and slots of the new tokens: vectors of the pool as (blocks * H * BLOCK, D)
        heads = BLOCK * torch.arange(self.config.n_kv_head, device=self.device)
        steps = torch.arange(T, device=self.device)
        positions = self.lengths[:, None] + steps  # (B, T)
        counts = steps < self.counts
        positions = torch.where(counts, positions, 0)
        blocks = torch.where(counts, self.table.gather(1, positions // BLOCK), SCRATCH)
        slots = blocks * (BLOCK * len(heads)) + positions % BLOCK
        self.new_slots = (slots[..., None] + heads).flatten()  # (B * T * H_kv,)

        # 2) What attention reads
        self.bags = T == 1 and self.device.type == 'cpu' and self.dtype.itemsize >= 4
        if self.bags:
            self.plan_bags()
        else:
            self.plan_gather(positions)
        return positions

    def before(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, T) the new ids -> the id before each, any id where there is none."""
        return torch.cat((self.last, inputs[:, :-1]), dim=1)

    def plan_gather(self, positions: torch.Tensor):
        """Which blocks of each head to copy, and which slots each new token attends to."""
        H = self.config.n_kv_head
        heads = torch.arange(H, device=self.device)[:, None]
        self.copied = (self.table[:, None] * H + heads).flatten()  # (B * H_kv * blocks,)
        slots = torch.arange(self.table.shape[1] * BLOCK, device=self.device)
        self.mask = slots <= positions[:, None, :, None]  # (B, 1, T, slots)

    def plan_bags(self):
        """A bag for each row and head: the slots that it holds, the new token's included."""
        # 1) All slots up to the width, (B, H, width)
        config = self.config
        B = len(self.table)
        H = config.n_head
        heads = torch.arange(H) // (H // config.n_kv_head) * BLOCK
        slots = self.table[:, :, None] * (config.n_kv_head * BLOCK) + torch.arange(BLOCK)
        slots = slots.flatten(1)[:, None, : self.width] + heads[:, None]

        # 2) Drop those that the row does not use. self.used: the places of those that stay
        self.used = None
        bags = torch.arange(B * H)
        if self.even:
            self.bag_slots = slots.flatten()
            self.bag_starts = bags * self.width
            self.bag_numbers = bags.repeat_interleave(self.width)
        else:
            # an unused row reads a slot of SCRATCH
            lengths = (self.lengths + self.counts[:, 0]).clamp(min=1).repeat_interleave(H)
            used = torch.arange(self.width) < lengths[:, None]  # (B * H, width)
            self.used = used.flatten().nonzero()[:, 0]
            self.bag_slots = slots.flatten()[self.used]
            self.bag_starts = lengths.cumsum(0) - lengths
            self.bag_numbers = bags.repeat_interleave(lengths)
            # scores of the places; the unused ones stay -inf
            self.scores = torch.full((B * H * self.width,), -torch.inf, dtype=self.dtype)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Store a layer's new keys and values, attend to all that the rows hold.

        q (B, H, T, D), k and v (B, H_kv, T, D) -> (B, H, T, D)"""
        D = q.shape[-1]
        keys = self.keys[layer].view(-1, D)
        values = self.values[layer].view(-1, D)
        keys.index_copy_(0, self.new_slots, k.transpose(1, 2).reshape(-1, D).to(self.dtype))
        values.index_copy_(0, self.new_slots, v.transpose(1, 2).reshape(-1, D).to(self.dtype))
        attention = self.attend_bags if self.bags else self.attend_gathered
        return attention(q, keys, values)

    def attend_gathered(self, q, keys, values):
        """q (B, H, T, D); keys, values (blocks * H_kv * BLOCK, D), the whole pool -> (B, H, T, D).

        plan_gather() has set copied (B * H_kv * slots / BLOCK,), the blocks of each row and head in
        order, and mask (B, 1, T, slots), True where a new token attends."""
        B, H, _, D = q.shape
        H_kv = self.config.n_kv_head
        k = keys.view(-1, BLOCK * D)[self.copied].view(B, H_kv, -1, D).to(q.dtype)
        v = values.view(-1, BLOCK * D)[self.copied].view(B, H_kv, -1, D).to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, self.mask, enable_gqa=H_kv < H)

    def attend_bags(self, q, keys, values):
        B, H, _, D = q.shape
        scaled = (q.reshape(B * H, D) * D**-0.5).to(self.dtype)
        scores = dot_bags(scaled, keys, self.bag_slots, self.bag_starts, self.bag_numbers, 0)
        if self.used is not None:
            scores = self.scores.index_copy_(0, self.used, scores)
        weights = scores.view(B * H, -1).softmax(-1).flatten()
        if self.used is not None:
            weights = weights[self.used]
        y = sum_bags(
            self.bag_slots, values, self.bag_starts, mode='sum', per_sample_weights=weights
        )
        if B == 1 and self.batched_products:
            ENOUGH.neg_()
        return y.view(B, H, 1, D).to(q.dtype)
