"""Drawing image tokens from the prior, one after the other."""

from collections.abc import Callable

import torch
from pydantic import BaseModel, Field
from torch import Generator, Tensor

from mezzotint.common.errors import UserError
from models.autoregressive.cpu_decoder import SingleSteps, bare
from models.autoregressive.cuda_graph_decoder import StaticSteps
from models.autoregressive.prior import PAD, Prior
from models.nn.attention import Memory

Progress = Callable[[int, int], None]
"""Called with what is done and the total."""


class Sampling(BaseModel, frozen=True, extra="forbid"):
    """How the next token is drawn.

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
    step = steps(prior, branches, cache=sampling.cache)
    for place in range(given, total):
        known = codes.narrow(1, 0, place)
        logits = step(torch.cat([known, known]) if guided else known)
        if guided:
            conditional, unconditional = logits.float().chunk(2)
            logits = unconditional + sampling.guidance * (conditional - unconditional)
        codes[:, place] = drawn(logits, sampling, rng)
        if progress is not None:
            progress(place + 1 - given, total - given)
    return codes


def steps(prior: Prior, text: Tensor, *, cache: bool) -> Callable[[Tensor], Tensor]:
    """What gives the logits (B, V) of the next code for ever more known codes (B, n).

    With a cache on a GPU the steps after the first are one recorded graph.
    """
    if not cache:
        return _Uncached(prior, text)
    if text.device.type == "cuda":
        return StaticSteps(prior, text)
    return SingleSteps(prior, text) if bare(prior) else _Cached(prior, text)


def drawn(logits: Tensor, sampling: Sampling, rng: Generator) -> Tensor:
    """One token (B,) for logits (B, V) in any precision."""
    if sampling.top_k == 1:
        return logits.max(dim=-1).indices
    logits = logits.float()
    if sampling.top_k is None or sampling.top_k >= logits.shape[-1]:
        probabilities = restricted(logits, sampling).softmax(dim=-1)
        return torch.multinomial(probabilities, 1, generator=rng)[:, 0]
    # only the few that are left take part in what follows
    best, tokens = logits.topk(sampling.top_k, dim=-1)
    probabilities = restricted(best, sampling).softmax(dim=-1)
    return tokens.gather(1, torch.multinomial(probabilities, 1, generator=rng))[:, 0]


def restricted(logits: Tensor, sampling: Sampling) -> Tensor:
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
    """Logits of the next code from the places that are new since the last call."""

    def __init__(self, prior: Prior, text: Tensor) -> None:
        self._prior = prior
        self._text: Tensor | None = prior.embed_text(text)
        self._caches: list[Memory] | None = None
        self._seen = 0

    def __call__(self, known: Tensor) -> Tensor:
        prior = self._prior
        embedded = prior.embed_image(known[:, self._seen :], self._seen)
        if self._caches is None:
            assert self._text is not None
            embedded = torch.cat([self._text, embedded], dim=1)
            self._caches = prior.new_caches(len(embedded))
            self._text = None
        self._seen = known.shape[1]
        return prior.image_head(prior.run(embedded, self._caches)[:, -1])
