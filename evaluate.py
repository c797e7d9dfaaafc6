"""
What a model scores: the total of a loss over a reader, in nats per token and in bits per byte.

A validation reader is a reader whose one step holds all evaluation rows, so the step's loss is the validation loss:
the same number for any micro-batch size and any number of ranks.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

import runtime
from batches import Data, Reader


@torch.no_grad()
def total(model: Callable, loss_fn: Callable, reader: Reader, device: str) -> dict[str, float]:
    """{'loss': nats, …}: loss and metrics of the reader's first step, added up over micro-batches and ranks."""
    shares: dict[str, list] = {'loss': []}
    for batch in reader[0]:
        loss, metrics = loss_fn(model, batch.to(device))
        for name, x in {'loss': loss, **metrics}.items():
            shares.setdefault(name, []).append(torch.as_tensor(x))
    sums = [float(torch.stack(s).cpu().double().sum()) for s in shares.values()]  # the only wait for the device
    return dict(zip(shares, runtime.add_up(sums)))


def bytes_per_target(reader: Reader, bytes_per_id: np.ndarray) -> float:
    """UTF-8 bytes that a target of the reader's first step stands for, on average (special tokens stand for none)."""
    table = torch.from_numpy(bytes_per_id)
    seen = [(int((batch.weights > 0).sum()), int(table[batch.targets[batch.weights > 0]].sum())) for batch in reader[0]]
    targets, size = runtime.add_up([float(sum(column)) for column in zip(*seen)])
    return size / targets


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Loss that does not depend on the tokenizer: bits needed for each byte of text."""
    return nats_per_token / math.log(2) / bytes_per_token


class Text:
    """Evaluation of a reader of text, called as often as one likes: {'val': nats per token, 'bits_per_byte': …}."""

    def __init__(self, model: Callable, loss_fn: Callable, reader: Reader, data: Data, device: str):
        self.arguments = model, loss_fn, reader, device
        # files of nanoGPT's come without a tokenizer, so nobody knows the bytes
        self.bytes_per_token = bytes_per_target(reader, data.tokenizer.bytes_per_id) if data.meta else None

    def __call__(self) -> dict[str, float]:
        nats = total(*self.arguments)['loss']
        more = {'bits_per_byte': bits_per_byte(nats, self.bytes_per_token)} if self.bytes_per_token else {}
        return {'val': nats, **more}
