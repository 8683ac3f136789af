"""Sampling image tokens from the prior, one after the other."""

from collections.abc import Callable

import torch
from pydantic import BaseModel, Field
from torch import Generator, Tensor

from mezzotint.common.errors import UserError
from models.autoregressive.cuda_graph_decoder import CudaGraphDecoder
from models.autoregressive.prior import PAD, Prior
from models.finite import require_finite
from models.nn.attention import KVCache
from models.nn.cpu import is_enabled
from models.nn.cpu.decoder import TokenDecoder, has_no_hooks
from models.nn.random import categorical
from models.nn.transformer import Block

Progress = Callable[[int, int], None]
"""Called with the number of tokens sampled and the total."""


class Sampling(BaseModel, frozen=True, extra="forbid"):
    """How the next token is sampled.

    Logits are guided, divided by `temperature`, cut to the `top_k` best and then to the smallest
    set with probability `top_p` (arXiv 1904.09751). Guidance 1 is the plain conditional
    distribution, 0 the unconditional one. `cache` keeps keys and values; the tokens are the same
    without it.
    """

    temperature: float = Field(default=1.0, gt=0)
    top_k: int | None = Field(default=None, gt=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    guidance: float = Field(default=1.0, ge=0)
    cache: bool = True


@torch.no_grad()
def generate(
    prior: Prior,
    text: Tensor,
    rng: Generator,
    *,
    sampling: Sampling,
    prefix: Tensor | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Image codes (B, N) for text (B, T); `prefix` (B, n) fixes the first n of them.

    The unconditional branch of guidance reads an empty caption. Call it in evaluation mode: dropout
    would act in training mode.

    Raises:
        UserError: `text` or `prefix` does not have the prior's shape.
        NonFiniteError: logits are not finite.
    """
    config = prior.config
    total = config.image_length
    given = 0 if prefix is None else prefix.shape[1]
    if text.shape[1] != config.text_length:
        raise UserError(
            f"captions have {text.shape[1]} tokens and the prior's text_length is "
            f"{config.text_length}; encode them at that length"
        )
    if given > total:
        raise UserError(f"the prefix has {given} codes, more than the {total} of an image")
    codes = torch.zeros(len(text), total, dtype=torch.int64, device=text.device)
    if prefix is not None:
        codes[:, :given] = prefix
    guided = sampling.guidance != 1.0
    branches = torch.cat([text, torch.full_like(text, PAD)]) if guided else text
    checksum = torch.zeros(len(text), device=text.device)  # without a wait for the device
    next_logits = token_predictor(prior, branches, cache=sampling.cache)
    for position in range(given, total):
        known = codes.narrow(1, 0, position)
        logits = next_logits(torch.cat([known, known]) if guided else known)
        if guided:
            conditional, unconditional = logits.float().chunk(2)
            logits = unconditional + sampling.guidance * (conditional - unconditional)
        checksum += logits.float().sum(dim=-1)
        codes[:, position] = sample_token(logits, sampling, rng)
        if progress is not None:
            progress(position + 1 - given, total - given)
    require_finite("the logits of its codes are", checksum)
    return codes


def token_predictor(prior: Prior, text: Tensor, *, cache: bool) -> Callable[[Tensor], Tensor]:
    """Gives the logits (B, V) of the next code for ever more known codes (B, n).

    With a cache on a GPU the steps after the first are one recorded graph.
    """
    if not cache:
        return _Uncached(prior, text)
    return (CudaGraphDecoder if text.device.type == "cuda" else _Cached)(prior, text)


def sample_token(logits: Tensor, sampling: Sampling, rng: Generator) -> Tensor:
    """One token (B,) for logits (B, V) in any precision."""
    if sampling.top_k == 1:
        return logits.max(dim=-1).indices
    logits = logits.float()
    if sampling.top_k is None or sampling.top_k >= logits.shape[-1]:
        probabilities = filter_logits(logits, sampling).softmax(dim=-1)
        return categorical(probabilities, rng)
    # only the tokens that are left take part in what follows
    best, tokens = logits.topk(sampling.top_k, dim=-1)
    probabilities = filter_logits(best, sampling).softmax(dim=-1)
    return tokens.gather(1, categorical(probabilities, rng)[:, None])[:, 0]


def filter_logits(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits (B, V) after temperature, top-k and top-p; what is cut off is -inf."""
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        share = ordered.softmax(dim=-1)
        # a token stays while the ones before it hold less than top_p
        cut = share.cumsum(dim=-1) - share >= sampling.top_p
        logits = logits.masked_fill(cut.scatter(-1, order, cut), -torch.inf)
    return logits


class _Uncached:
    """Logits of the next code by a whole forward pass."""

    def __init__(self, prior: Prior, text: Tensor) -> None:
        self._prior = prior
        self._text = prior.embed_text(text)

    def __call__(self, known: Tensor) -> Tensor:
        embedded = torch.cat([self._text, self._prior.embed_image(known, 0)], dim=1)
        return self._prior.image_head(self._prior.run(embedded)[:, -1])


class _Cached:
    """Logits of the next code from the positions that are new since the last call."""

    def __init__(self, prior: Prior, text: Tensor) -> None:
        self._prior, self._text = prior, text
        self._caches: list[KVCache] = []
        self._decoder: TokenDecoder | None = None
        self._seen = 0

    def __call__(self, known: Tensor) -> Tensor:
        prior, first, self._seen = self._prior, self._seen, known.shape[1]
        if self._decoder is not None:
            return self._decoder(known.select(1, self._seen - 1), self._seen - 1)
        embedded = prior.embed_image(known[:, first:], first)
        if not self._caches:
            embedded = torch.cat([prior.embed_text(self._text), embedded], dim=1)
            self._caches = prior.new_caches(len(embedded))
        logits = prior.image_head(prior.run(embedded, self._caches)[:, -1])
        if known.device.type == "cpu" and is_enabled("decoder") and has_no_hooks(prior):
            self._decoder = self._token_decoder(len(embedded))
        return logits

    def _token_decoder(self, rows: int) -> TokenDecoder:
        prior = self._prior
        blocks = [block for block in prior.blocks if isinstance(block, Block)]
        return TokenDecoder(
            prior.image_token,
            prior.image_position(0, prior.config.image_length),
            blocks,
            self._caches,
            prior.norm,
            prior.image_head,
            rows=rows,
        )
