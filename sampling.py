"""
How the next token is drawn: temperature, filters, a seed, and where a text ends.

    sampling = Sampling(temperature=0.8, top_k=50, min_p=0.05, stop_texts=('\\nUser:',))
    uniform = sampling.stream(number=0, sample=0, count=100)     # one random number per id of a row
    ids = sampling.draw(logits, uniform[:1])                     # (1, V) -> (1,)

The filters apply in this order: repetition_penalty, temperature, top_k, top_p, min_p.

Left out on purpose: which tokens a conversation allows (engine.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. ValueError for a value out of range."""

    temperature: float = 1.0  # divides the logits; 0 takes the likeliest token
    top_k: int | None = None  # keep the k likeliest tokens; None, 0 or more than there are: all
    # keep the likeliest tokens that reach this probability together (Holtzman et al., 2019)
    top_p: float = 1.0
    seed: int | tuple[int, ...] = 0  # a row's stream is (seed, number of prompt, number of sample)
    stop: tuple[int, ...] = ()  # ids that end a text, besides <|bos|>; they are not returned either
    # keep tokens at least this share as likely as the likeliest (Nguyen et al., 2024)
    min_p: float = 0.0
    # divides the positive logits of tokens that the row already has, and multiplies the negative
    # ones (Keskar et al., 2019); 1 is off
    repetition_penalty: float = 1.0
    stop_texts: tuple[
        str, ...
    ] = ()  # the text ends before the first of these; they are not returned
    top_logprobs: int = 0  # of this many of the likeliest tokens, to be returned with each id

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f'temperature is {self.temperature}, expected a finite number of at least 0'
            )
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f'top_k is {self.top_k}, expected None or a number of at least 0')
        if not 0 < self.top_p <= 1:
            raise ValueError(f'top_p is {self.top_p}, expected more than 0 and at most 1')
        if min(np.atleast_1d(self.seed), default=0) < 0:
            raise ValueError(f'seed is {self.seed}, expected a number of at least 0')
        if not 0 <= self.min_p <= 1:
            raise ValueError(f'min_p is {self.min_p}, expected 0 to 1')
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(
                f'repetition_penalty is {self.repetition_penalty}, expected a finite number '
                'greater than 0'
            )
        if '' in self.stop_texts:
            raise ValueError("stop_texts has '', expected at least one character each")
        if self.top_logprobs < 0:
            raise ValueError(f'top_logprobs is {self.top_logprobs}, expected at least 0')

    @property
    def filters(self) -> tuple:
        """What draw() depends on. Rows with equal filters can be drawn together."""
        return self.temperature, self.top_k, self.top_p, self.min_p

    def stream(self, number: int, sample: int, count: int) -> list[float]:
        """Uniform numbers in [0, 1), one per id of a row. A longer stream extends a shorter one."""
        seed = np.random.SeedSequence(self.seed, spawn_key=(number, sample))
        return np.random.Generator(np.random.PCG64(seed)).random(count).tolist()

    def penalise(self, logits: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
        """logits (V,) of a row, ids that it already has -> logits with repetition_penalty, (V,)."""
        seen = torch.tensor(ids, device=logits.device)
        values = logits[seen]
        penalised = torch.where(
            values > 0, values / self.repetition_penalty, values * self.repetition_penalty
        )
        return logits.index_put((seen,), penalised)

    def draw(self, logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        """
        logits (B, V), -inf where a token is not allowed; uniform (B,) float64 in [0, 1) -> ids (B,)

        Inverse transform sampling: the id at which the cumulative probability passes the uniform
        number. Rows are independent. repetition_penalty is not applied here: see penalise().
        """
        # 1) The likeliest first, if a filter needs it: then each filter keeps the first few
        if self.temperature == 0:
            return logits.argmax(-1)
        ids = None
        if self.top_k or self.top_p < 1 or self.min_p:
            vocab_size = logits.shape[1]
            logits, ids = logits.topk(min(self.top_k or vocab_size, vocab_size))

        # 2) Cumulative weights. The likeliest token has weight 1: subtracting its logit first, even
        # a temperature of 1e-40 does not overflow
        distance = (logits - logits.amax(-1, keepdim=True)).double()
        weights = (distance / self.temperature).exp()
        cumulative = weights.cumsum(-1)
        total = cumulative[:, -1:]

        # 3) Cut at the last token that every filter keeps
        if self.top_p < 1:  # a token stays if those before it have not reached top_p
            last = torch.searchsorted(cumulative, self.top_p * total)
            total = cumulative.gather(1, last)
        if self.min_p:
            last = (weights >= self.min_p).sum(-1, keepdim=True) - 1
            total = torch.minimum(total, cumulative.gather(1, last))

        # 4) Draw
        drawn = torch.searchsorted(cumulative, uniform[:, None] * total, right=True)
        return (drawn if ids is None else ids.gather(1, drawn))[:, 0]


def cut(text: str, stop_texts: Sequence[str]) -> tuple[str, str, bool]:
    """
    (text that can be shown, rest that may begin a stop text, whether a stop text was found).

    Where one was found, it and all that follows are in neither. Of several the one that is complete
    first counts, so that it does not matter in which pieces a text arrives.
    """
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stop_texts if stop in text]
    if found:
        _, start = min(found)
        return text[:start], '', True
    longest = max(map(len, stop_texts), default=1)
    for start in range(max(0, len(text) - longest + 1), len(text)):
        if any(stop.startswith(text[start:]) for stop in stop_texts):
            return text[:start], text[start:], False
    return text, '', False
