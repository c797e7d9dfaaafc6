"""
Validation: the loss of a model over held-out rows, without gradients.

    measure = Text(model, loss_fn, reader, data, device)    # or Total, for the loss of a stage
    measure()                                               # {'val': nats per token, …}

log_probabilities() gives a number for each row: DPO's reference.

A validation reader is a reader whose first step holds all evaluation rows. The loss of that step is
the validation loss, the same number for any micro-batch size and any number of ranks.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

import plan
import runtime
from batches import Reader, Shape, Stream
from model import GPT
from shards import Data


@torch.no_grad()
def total(model: Callable, loss_fn: Callable, reader: Reader, device: str) -> dict[str, float]:
    """
    {'loss': nats, …}: loss and metrics of the reader's first step, summed over micro-batches and
    ranks. loss_fn(model, batch) returns (share of the loss, {name: share of a metric}).
    """
    shares: dict[str, list] = {'loss': []}  # name -> one number per micro-batch
    for batch in reader[0]:
        loss, metrics = loss_fn(model, batch.to(device))
        for name, share in {'loss': loss, **metrics}.items():
            shares.setdefault(name, []).append(torch.as_tensor(share))
    # Summed in float64: a float32 sum drops small shares. cpu() is the only wait for the device
    sums = [float(torch.stack(of_name).cpu().double().sum()) for of_name in shares.values()]
    return dict(zip(shares, runtime.add_up(sums)))


def bytes_per_target(reader: Reader, bytes_per_id: np.ndarray) -> float:
    """UTF-8 bytes per target, on average over the reader's first step and all ranks. Special tokens
    count as targets of 0 bytes. bytes_per_id: (vocab_size,)."""
    table = torch.from_numpy(bytes_per_id)
    targets = 0
    size = 0
    for batch in reader[0]:
        counted = batch.weights > 0  # (B, T)
        targets += int(counted.sum())
        size += int(table[batch.targets[counted]].sum())
    targets, size = runtime.add_up([float(targets), float(size)])
    return size / targets


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """A loss in bits per byte of text: comparable between models with different tokenizers."""
    return nats_per_token / math.log(2) / bytes_per_token


class Text:
    """
    Evaluation on a reader of text. Call it, as often as you like, to get

        val              nats per token
        perplexity       exp(val): as unsure as a uniform choice among this many tokens
        bits_per_byte    see above; left out for data of nanoGPT, which has no tokenizer
    """

    def __init__(self, model: Callable, loss_fn: Callable, reader: Reader, data: Data, device: str):
        self.arguments = (model, loss_fn, reader, device)
        self.bytes_per_token = None
        if data.meta:
            self.bytes_per_token = bytes_per_target(reader, data.tokenizer.bytes_per_id)

    def __call__(self) -> dict[str, float]:
        nats = total(*self.arguments)['loss']
        numbers = {'val': nats, 'perplexity': math.exp(min(nats, 700))}  # exp(710) overflows
        if self.bytes_per_token:
            numbers['bits_per_byte'] = bits_per_byte(nats, self.bytes_per_token)
        return numbers


def text_numbers(
    model: GPT, data: Data, split: str, rows: int, device: str, ranks: runtime.Ranks
) -> dict[str, float]:
    """Text's numbers over all tokens of a split. Rows are as long as the model's context; `rows` of
    them go through the model at once, at most."""
    dtype = model.transformer.wte.weight.dtype
    if device == 'cpu':
        rows = min(rows, plan.cpu_rows(model.config))  # as in training
    shape = Shape(0, rows, model.config.block_size, ranks.rank, ranks.world_size, dtype=dtype)
    reader = Stream(data.split(split), shape, shuffle=False)

    def weighted_nll(model, batch):
        return (batch.weights * model(batch.inputs, batch.targets)).sum(), {}

    return Text(model, weighted_nll, reader, data, device)()


class Total:
    """Evaluation by a stage's own loss. Call it to get {'val': loss, …} with the loss's metrics."""

    def __init__(self, model: Callable, loss_fn: Callable, reader: Reader, device: str):
        self.arguments = (model, loss_fn, reader, device)

    def __call__(self) -> dict[str, float]:
        numbers = total(*self.arguments)
        return {'val': numbers.pop('loss'), **numbers}


@torch.no_grad()
def log_probabilities(model: Callable, reader: Reader, device: str) -> list[float]:
    """
    For each row of a Pairs reader, in order: the log-probability in nats of what the assistant
    says. It is DPO's reference.

    Rows go through the model in batches of the reader's own shape. So a model equal to its
    reference gets exactly the reference's numbers.
    """
    shape = reader.shape
    B = reader.micro_batch_rows
    mine = list(range(shape.rank, reader.num_rows, shape.world_size))
    logps = [0.0] * reader.num_rows  # 0 for the rows of other ranks
    for start in range(0, len(mine), B):
        rows = mine[start : start + B]
        batch = reader.batch(rows, 1).to(device)
        logp = -(batch.weights * model(batch.inputs, batch.targets)).sum(dim=1)  # (B,)
        for row, nats in zip(rows, logp.tolist()):
            logps[row] = nats
    return runtime.add_up(logps)
