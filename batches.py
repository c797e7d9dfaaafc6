"""
Readers turn token files into training steps. A reader is a sequence of steps:

    len(reader)    steps per epoch
    reader[i]      yields this rank's micro-batches of step i, a pure function of i

    data = Data('data/shakespeare_char')
    shape = Shape(rows_per_step=12, batch_size=12, block_size=64)
    reader = Stream(data.split('train'), shape)
    for batch in reader[0]:
        (batch.weights * model(batch.inputs, batch.targets)).sum().backward()

Stream reads text, Packed conversations, Pairs a better and a worse answer to each prompt. In
Rollouts the model writes the rows itself.

With n rows of data, row g of a run is row order(epoch)[g mod n], where epoch = g div n. So a step
may span epochs, small data wraps around, no row is dropped, and resuming needs no state. Weights
are divided by the total of the whole step, over all micro-batches and ranks, so losses, counts and
gradients add up.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from model import ceil_to
from shards import Shards

# -----------------------------------------------------------------------------
# steps


class Shape(NamedTuple):
    """The shape of a step, and this rank's place in it."""

    rows_per_step: int  # over all micro-batches and ranks; 0: all rows of the data
    batch_size: int  # rows of a micro-batch, at most
    block_size: int  # tokens per row
    rank: int = 0
    world_size: int = 1
    seed: int = 1337
    dtype: torch.dtype = torch.float32  # of Batch.weights


class Batch(NamedTuple):
    """One micro-batch of this rank."""

    inputs: torch.Tensor  # (B, T) int64
    targets: torch.Tensor  # (B, T) int64, inputs shifted by one
    weights: torch.Tensor  # (B, T) each target's share of the step's loss
    share: torch.Tensor | None = None  # (B,) Pairs: its pair's share of the step's loss
    reference: torch.Tensor | None = None  # (B,) Pairs: log-probability under the reference
    metrics: dict = {}  # {name: number} for the log, additive over micro-batches and ranks

    def to(self, device: str) -> 'Batch':
        """Copy to the device; to CUDA from pinned memory, without waiting."""

        def move(t):
            if device.startswith('cuda'):
                return t.pin_memory().to(device, non_blocking=True)
            return t.to(device)

        tensors = {k: t for k, t in self._asdict().items() if isinstance(t, torch.Tensor)}
        return self._replace(**{k: move(t) for k, t in tensors.items()})


class Reader:
    """
    What all readers share: which rows make up step i on this rank, and how rows become tensors of
    one static shape.

    A subclass has row(r) -> (T + 1,) ids and (T,) weights (or one weight for all), and count(r),
    the sum of the weights. It may set group, the number of consecutive rows that belong together:
    they stay on one rank, and in one micro-batch if batch_size is a multiple of group.

    Example: 8 rows on 3 ranks with batch_size 2. The fullest rank has 3 rows, so each rank runs 2
    micro-batches of 2 rows; missing rows have weight 0.
    """

    group = 1

    def __init__(self, num_rows: int, shape: Shape, shuffle: bool = True):
        shape = shape._replace(rows_per_step=shape.rows_per_step or num_rows)
        self.num_rows = num_rows
        self.shape = shape
        self.shuffle = shuffle
        self.orders = {}  # {epoch: order(epoch)}, the latest two
        groups, rest = divmod(shape.rows_per_step, self.group)
        if rest:
            raise SystemExit(
                f'a step has {shape.rows_per_step} rows (gradient_accumulation_steps * '
                f'batch_size), expected a multiple of {self.group}, the rows that belong together; '
                'change one of the two'
            )
        # every rank runs as many micro-batches as the fullest one, all of one size
        unit = self.group if shape.batch_size % self.group == 0 else 1
        most = -(-groups // shape.world_size) * self.group // unit  # units of the fullest rank
        self.micro_batches = -(-most // (shape.batch_size // unit))
        self.micro_batch_rows = -(-most // self.micro_batches) * unit

    def __len__(self):
        return -(-self.num_rows // self.shape.rows_per_step)

    def order(self, epoch: int) -> np.ndarray:
        """The order in which an epoch reads the groups."""
        if epoch not in self.orders:
            while len(self.orders) > 1:
                del self.orders[min(self.orders)]
            groups = self.num_rows // self.group
            rng = np.random.default_rng((self.shape.seed, epoch))
            self.orders[epoch] = rng.permutation(groups) if self.shuffle else np.arange(groups)
        return self.orders[epoch]

    def groups(self, step: int) -> list[int]:
        """The groups of a step over all ranks, in order. Rank r has every world_size-th of them,
        starting at number r."""
        count = self.shape.rows_per_step // self.group
        positions = np.arange(count) + step * count
        epochs, places = np.divmod(positions, self.num_rows // self.group)
        return [int(g) for e in np.unique(epochs) for g in self.order(int(e))[places[epochs == e]]]

    def rows(self, step: int) -> list[int]:
        """The data rows of a step over all ranks, in order."""
        return [g * self.group + i for g in self.groups(step) for i in range(self.group)]

    def mine(self, step: int) -> list[int]:
        """The data rows of a step on this rank, in the order of its micro-batches."""
        groups = self.groups(step)[self.shape.rank :: self.shape.world_size]
        return [g * self.group + i for g in groups for i in range(self.group)]

    def total(self, step: int) -> int:
        """The divisor of the weights: the supervised targets of a step over all ranks."""
        return max(1, sum(self.count(r) for r in self.rows(step)))

    def __getitem__(self, step: int) -> Iterator[Batch]:
        mine = self.mine(step)
        total = self.total(step)
        B = self.micro_batch_rows
        for b in range(0, self.micro_batches * B, B):
            yield self.batch(mine[b : b + B], total)

    def batch(self, rows: list[int], total: int) -> Batch:
        return self.collate((ids, weights / total) for ids, weights in map(self.row, rows))

    def collate(self, rows) -> Batch:
        """(ids, weights) of each row -> tensors. Missing rows have weight 0."""
        T = self.shape.block_size
        B = self.micro_batch_rows
        ids = np.zeros((B, T + 1), np.int64)
        weights = np.zeros((B, T))
        for i, (row_ids, row_weights) in enumerate(rows):
            ids[i] = row_ids
            weights[i] = row_weights
        ids = torch.from_numpy(ids)
        weights = torch.from_numpy(weights).to(self.shape.dtype)
        return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), weights)


def count_rows(shards: Shards, block_size: int) -> int:
    """How many rows of block_size inputs and targets the shards hold. SystemExit if none."""
    if len(shards) <= block_size:
        raise SystemExit(
            f'{shards.paths[0]} holds {len(shards)} tokens, less than one row: '
            f'expected {block_size + 1}, or a smaller --block_size'
        )
    return (len(shards) - 1) // block_size


class Stream(Reader):
    """
    Text, cut into rows in which every token counts (pretraining).

    Row k starts at the first <|bos|> at or after k * T and before (k + 1) * T, so that most rows
    begin a document; at k * T if there is none. Without bos, as in validation, every row starts at
    k * T, and no target occurs twice. limit: at most this many rows.
    """

    def __init__(
        self, shards: Shards, shape: Shape, bos: int | None = None, shuffle: bool = True,
        limit: int | None = None,
    ):  # fmt: skip
        self.shards = shards
        self.bos = bos
        num_rows = count_rows(shards, shape.block_size)
        super().__init__(min(num_rows, limit or num_rows), shape, shuffle)

    def count(self, r: int) -> int:
        return self.shape.block_size

    def row(self, r: int):
        T = self.shape.block_size
        if self.bos is None:
            return self.shards.read(r * T, T + 1), 1.0
        ids = self.shards.read(r * T, 2 * T)
        starts = np.flatnonzero(ids[:T] == self.bos)
        # near the end of the data fewer than 2 * T ids are left: T + 1 must follow the start
        start = int(starts[0]) if len(starts) and starts[0] + T < len(ids) else 0
        return ids[start : start + T + 1], 1.0


def find_documents(shards: Shards, bos: int) -> np.ndarray:
    """(n + 1,) int64: the position of each document's <|bos|>, and the end of the data."""
    chunk = 2**22
    starts = [
        start + np.flatnonzero(shards.read(start, chunk) == bos)
        for start in range(0, len(shards), chunk)
    ]
    starts = np.concatenate([*starts, [len(shards)]])
    if starts[0] != 0:
        raise SystemExit(
            f'{shards.paths[0]} does not begin with <|bos|>, expected conversations, which do'
        )
    return starts


def count_spoken(shards: Shards, chat, starts: np.ndarray, size: int) -> np.ndarray:
    """(n,) int64: how many of each document's first `size` ids the assistant says. Reads whole
    documents, about a million ids at a time."""
    counts = np.zeros(len(starts) - 1, np.int64)
    i = 0
    while i < len(counts):
        j = max(i + 1, int(np.searchsorted(starts, starts[i] + 2**20, side='right')) - 1)
        places = starts[i : j + 1] - starts[i]
        spoken = chat.is_spoken(shards.read(int(starts[i]), int(places[-1])))
        # before[k]: spoken targets among ids[:k]; ids[0] is a bos, not a target
        before = np.concatenate(([0, 0], np.cumsum(spoken)))
        ends = np.minimum(places[:-1] + size, places[1:])
        counts[i:j] = before[ends] - before[places[:-1]]
        i = j
    return counts


def best_fit(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """
    Bin packing, best fit decreasing (Johnson, 1974): the largest item first, each into the fullest
    row that has room for it. Returns each item's row, and the number of rows.

    Rows are listed by the room they have left. Bit r of `rooms` says that a row with room r exists,
    so that finding the best row takes a few operations, however many rows there are.
    """
    by_room = [[] for _ in range(capacity + 1)]
    rooms = 0
    num_rows = 0
    row_of = np.zeros(len(sizes), np.int64)
    order = np.argsort(-sizes, kind='stable')
    for item, size in zip(order.tolist(), sizes[order].tolist()):
        fitting = rooms >> size
        if fitting:
            lowest_bit = (fitting & -fitting).bit_length() - 1
            room = size + lowest_bit
            row = by_room[room].pop()
            rooms ^= (not by_room[room]) << room
        else:
            room = capacity
            row = num_rows
            num_rows += 1
        row_of[item] = row
        by_room[room - size].append(row)
        rooms |= 1 << (room - size)
    return row_of, num_rows


class Packed(Reader):
    """
    Whole conversations, packed into rows; only what the assistant says counts (mid, SFT).

    A conversation longer than a row is cut by chat.pieces. Pieces in which the assistant says
    nothing are dropped, so that every row teaches something. Rows are padded with bos at weight 0.
    Best fit puts long conversations first, so rows are renumbered by a fixed permutation: the first
    `limit` rows are then a fair sample.
    """

    def __init__(
        self, shards: Shards, chat, shape: Shape, shuffle: bool = True, limit: int | None = None
    ):
        self.shards = shards
        self.chat = chat
        self.size = shape.block_size + 1

        # 1) Pieces of conversations
        pieces = self.find_pieces()
        if not len(pieces):
            raise SystemExit(
                f'{shards.paths[0]} has no token that the assistant says, expected conversations'
            )

        # 2) Pack them, each copy of a mixture separately: from a row with a conversation twice the
        # model would learn to copy
        row_of = np.zeros(len(pieces), np.int64)
        num_rows = 0
        copies = shards.copies[np.searchsorted(shards.ends, pieces[:, 0], side='right')]
        for copy in np.unique(copies):
            rows, count = best_fit(pieces[copies == copy, 3], self.size)
            row_of[copies == copy] = num_rows + rows
            num_rows += count
        row_of = np.random.default_rng(0).permutation(num_rows)[row_of]

        # 3) Index by row
        self.counts = np.bincount(row_of, pieces[:, 4], num_rows).astype(np.int64)
        self.pieces = pieces[np.argsort(row_of, kind='stable'), :3].copy()
        self.ends = np.cumsum(np.bincount(row_of, minlength=num_rows))  # of each row's pieces
        super().__init__(min(num_rows, limit or num_rows), shape, shuffle)

    def find_pieces(self) -> np.ndarray:
        """(n, 5) int64. For each piece: its document's position and length, its number within the
        document, how many ids it has, and how many of them the assistant says."""
        starts = find_documents(self.shards, self.chat.bos)
        places = starts[:-1]
        lengths = np.diff(starts)
        spoken = count_spoken(self.shards, self.chat, starts, len(self.shards))
        # whole documents
        columns = (places, lengths, 0 * lengths, lengths, spoken)
        whole = np.stack(columns, axis=1)[(spoken > 0) & (lengths <= self.size)]
        # documents longer than a row
        cut = []
        for i in np.flatnonzero((spoken > 0) & (lengths > self.size)):
            document = int(places[i]), int(lengths[i])
            for number, ids in enumerate(self.chat.pieces(self.shards.read(*document), self.size)):
                spoken_here = int(self.chat.is_spoken(ids).sum())
                if spoken_here:
                    cut.append((*document, number, len(ids), spoken_here))
        return np.concatenate((whole, np.array(cut, np.int64).reshape(-1, 5)))

    def count(self, r: int) -> int:
        return int(self.counts[r])

    def row(self, r: int):
        first = self.ends[r - 1] if r else 0
        out = []
        for place, length, number in self.pieces[first : self.ends[r]].tolist():
            ids = self.shards.read(place, length)
            out.append(ids if length <= self.size else self.chat.pieces(ids, self.size)[number])
        ids = pad(np.concatenate(out), self.size, self.chat.bos)
        return ids, self.chat.is_spoken(ids)

    def batch(self, rows: list[int], total: int) -> Batch:
        supervised = float(sum(map(self.count, rows)))
        return super().batch(rows, total)._replace(metrics={'supervised': supervised})


def pad(ids, size: int, bos: int) -> np.ndarray:
    """(n,) ids -> (size,) ids, padded with bos, which never counts as spoken."""
    return np.concatenate((ids, np.full(size - len(ids), bos))).astype(np.int64)


class Pairs(Reader):
    """
    Preferences (DPO): documents 2i and 2i + 1 are the chosen and the rejected answer to one prompt;
    rows of a batch alternate likewise.

    weights are 1 where the assistant speaks, not divided by a total: the loss needs
    log-probabilities of whole answers. share is a pair's part of the step. reference holds one
    number per row of the data and may be set later. Rows are no longer than the longest document,
    rounded up to a multiple of 64: shape.block_size is lowered to that.
    """

    group = 2

    def __init__(
        self, shards: Shards, chat, shape: Shape, reference=None, shuffle: bool = True,
        limit: int | None = None,
    ):  # fmt: skip
        self.shards = shards
        self.chat = chat
        self.starts = find_documents(shards, chat.bos)

        # 1) Documents come in pairs, and each has an answer
        path = shards.paths[0]
        documents = len(self.starts) - 1
        T = shape.block_size
        if documents % 2:
            raise SystemExit(
                f'{path} holds {documents} documents, expected an even number: chosen and rejected'
            )
        if shape.batch_size % 2:
            raise SystemExit(
                f'a micro-batch has {shape.batch_size} rows (batch_size or cpu_micro_batch_size), '
                'expected an even number: a pair stays together'
            )
        silent = np.flatnonzero(count_spoken(shards, chat, self.starts, T + 1) == 0)
        if len(silent):
            raise SystemExit(
                f'document {silent[0]} (of {documents}, counted from 0) of {path} has no answer '
                f'within {T + 1} tokens; shorten or repair it'
            )

        # 2) Rows no longer than the longest document
        lengths = np.diff(self.starts)
        too_long = int((lengths > T + 1).sum())
        if too_long and shape.rank == 0:
            print(
                f'{path}: {too_long} of {documents} documents are longer than {T + 1} tokens '
                'and are cut at the end'
            )
        shape = shape._replace(block_size=min(T, ceil_to(int(lengths.max()) - 1, 64)))
        num_rows = min(documents, max(2, limit - limit % 2)) if limit else documents
        super().__init__(num_rows, shape, shuffle)
        self.reference = reference

    @property
    def reference(self) -> np.ndarray | None:
        """(num_rows,) float64: the rows' log-probabilities under the reference model, or None."""
        return self._reference

    @reference.setter
    def reference(self, numbers):
        if numbers is not None and len(numbers) != self.num_rows:
            raise SystemExit(
                f'{len(numbers)} log-probabilities of the reference are for other data than '
                f'{self.shards.paths[0]}, expected one for each of {self.num_rows} rows; '
                'start the stage again'
            )
        self._reference = None if numbers is None else np.asarray(numbers, np.float64)

    def total(self, step: int) -> int:
        return 1

    def row(self, r: int):
        size = self.shape.block_size + 1
        start, end = self.starts[r : r + 2].tolist()
        ids = pad(self.shards.read(start, min(size, end - start)), size, self.chat.bos)
        return ids, self.chat.is_spoken(ids)

    def batch(self, rows: list[int], total: int) -> Batch:
        def column(numbers):
            column = np.zeros(self.micro_batch_rows)  # 0 for missing rows
            column[: len(rows)] = numbers
            return torch.from_numpy(column).to(self.shape.dtype)

        share = column(self.group / self.shape.rows_per_step)
        reference = None if self.reference is None else column(self.reference[rows])
        return super().batch(rows, total)._replace(share=share, reference=reference)


def advantage(rewards: np.ndarray) -> np.ndarray:
    """(questions, samples) rewards -> same shape: reward minus the mean reward of the question.
    Exactly 0, without a rounding error, where all answers to a question have the same reward."""
    equal = rewards.max(1, keepdims=True) == rewards.min(1, keepdims=True)
    return np.where(equal, 0.0, rewards - rewards.mean(1, keepdims=True))


class Rollouts(Reader):
    """
    Reinforcement learning: the model answers each question of the step `samples` times. The weight
    of a sampled token is its answer's advantage, the reward minus the mean reward of the question,
    divided by the sampled tokens of the whole step.

    This is GRPO (Shao et al., 2024) on policy, with the mean as baseline, no division by the
    standard deviation and token-level normalisation (Dr. GRPO, Liu et al., 2025; DAPO, Yu et al.,
    2025). Weights do not sum to 1.

        generate(prompts, numbers, n, seed) -> n Samples (engine.py) per prompt, in order, at
            temperature 1; sample j of prompt number q draws from stream (*seed, q, j) on any rank
        grade(problems, texts) -> rewards   problems: see tasks.py; texts: what a user would see
        add_up(numbers) -> their sums over the ranks; called once per step
        note({'prompt', 'text', 'reward'})  the step's first answer with its tool calls, on rank 0
        device                              of the batches

    Answers with advantage 0 are left out, so ranks may run different numbers of micro-batches, but
    at least one. A step is a pure function of its number and the model's weights. So Ahead cannot
    be used: it would generate with the weights before the update.
    """

    def __init__(
        self, generate: Callable, grade: Callable, problems: list[dict], chat, shape: Shape,
        samples: int, max_tokens: int, add_up: Callable, note: Callable | None = None,
        device: str = 'cpu',
    ):  # fmt: skip
        self.generate = generate
        self.grade = grade
        self.problems = problems
        self.chat = chat
        self.add_up = add_up
        self.note = note
        self.group = samples
        self.device = device

        # every question must leave room for an answer
        if not problems or samples < 2 or max_tokens < 1:
            raise SystemExit(
                f'{len(problems)} problems, {samples} samples of each and rl_tokens = {max_tokens}'
                ': expected at least one problem, two samples and one token'
            )
        self.prompts = [chat.prompt(problem['messages']) for problem in problems]
        longest = max(range(len(problems)), key=lambda q: len(self.prompts[q]))
        needed = len(self.prompts[longest]) + max_tokens
        if needed > shape.block_size:
            question = problems[longest]['messages'][-1]['content']
            raise SystemExit(
                f'the question {question!r:.60} takes {needed - max_tokens} tokens, expected at '
                f'most block_size - rl_tokens = {shape.block_size} - {max_tokens}; '
                'shorten it, or lower --rl_tokens'
            )
        shape = shape._replace(block_size=min(shape.block_size, ceil_to(needed, 64)))
        super().__init__(len(problems) * samples, shape)

    def __getitem__(self, step: int) -> Iterator[Batch]:
        rank = self.shape.rank
        R = self.shape.rows_per_step
        S = self.group

        # 1) Answer this rank's questions
        questions = self.groups(step)[rank :: self.shape.world_size]
        prompts = [self.prompts[q] for q in questions]
        numbers = list(range(rank, R // S, self.shape.world_size))
        seed = (self.shape.seed, step)
        answers = self.generate(prompts, numbers, S, seed) if prompts else []

        # 2) Grade them
        asked = [q for q in questions for _ in range(S)]  # the question of each answer
        texts = [answer.text for answer in answers]
        rewards = self.grade([self.problems[q] for q in asked], texts)
        rewards = np.array(rewards).reshape(-1, S).astype(np.float64)
        advantages = advantage(rewards)
        no_signal = S * (advantages == 0).all(1).sum()  # answers
        advantages = advantages.flatten()

        # 3) Rows, and the sampled tokens of all ranks
        rows = [self.lay_out(self.prompts[q], answer) for q, answer in zip(asked, answers)]
        sampled = float(sum(spoken.sum() for _, spoken in rows))
        (total,) = self.add_up([sampled])

        # 4) For the log
        cut_off = sum(answer.finish_reason != 'stop' for answer in answers)
        sums = dict(reward=rewards.sum(), no_signal=no_signal, truncated=cut_off, length=sampled)
        metrics = {name: float(x) / R for name, x in sums.items()}
        if self.note and rank == 0:
            question = self.problems[asked[0]]['messages'][-1]['content']
            text = self.chat.transcript(answers[0].ids)
            self.note(dict(prompt=question, text=text, reward=float(rewards[0, 0])))

        # 5) Micro-batches of the answers that teach something
        B = self.micro_batch_rows
        taught = np.flatnonzero(advantages)
        for b in range(0, max(1, len(taught)), B):
            batch = self.collate(
                (rows[i][0], rows[i][1] * advantages[i] / total) for i in taught[b : b + B]
            )
            yield batch._replace(metrics={} if b else metrics).to(self.device)

    def lay_out(self, prompt, answer):
        """Prompt and answer -> (T + 1,) ids of a row, (T,) bool: True for sampled targets."""
        ids = pad([*prompt, *answer.ids], self.shape.block_size + 1, self.chat.bos)
        sampled = np.zeros(len(ids) - 1, bool)
        first = len(prompt) - 1
        sampled[first : first + len(answer.ids)] = answer.spoken
        spoken = self.chat.is_spoken(ids)
        spoken[:first] = False  # earlier answers of the assistant belong to the question
        assert np.array_equal(spoken, sampled), 'mask and engine must agree on what was sampled'
        return ids, sampled


class Ahead:
    """A reader's steps on the device. A thread prepares the next step while one is in use."""

    def __init__(self, reader: Reader, device: str):
        self.reader = reader
        self.device = device
        self.step = None
        self.ready = None
        # pinned memory belongs to the current card, which each thread sets for itself
        own_card = {}
        if device.startswith('cuda'):
            own_card = dict(initializer=torch.cuda.set_device, initargs=(device,))
        self.pool = ThreadPoolExecutor(1, **own_card)

    def __len__(self):
        return len(self.reader)

    def __getitem__(self, step: int) -> list[Batch]:
        if self.step != step:  # only the thread uses the reader: it is not thread-safe
            self.step = step
            self.ready = self.pool.submit(self.prepare, step)
        batches = self.ready.result()
        self.step = step + 1
        self.ready = self.pool.submit(self.prepare, step + 1)
        return batches

    def prepare(self, step):
        return [batch.to(self.device) for batch in self.reader[step]]
