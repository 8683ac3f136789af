"""A decoding step of fixed shapes, which a GPU replays as a CUDA graph.

The position is a tensor and every cache is allocated whole, so that each step runs the same kernels
on the same memory. On a CPU it runs without a graph, slower than with caches that grow.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional as F

from models.autoregressive.patterns import Pattern
from models.autoregressive.prior import Prior


class StaticKVCache:
    """Keys and values in a ring buffer of the size that the pattern needs, read with a mask.

    `position` (one int64 element) is the image position of the next `attend`.
    """

    def __init__(
        self, pattern: Pattern | None, prefix: int, positions: int, position: Tensor
    ) -> None:
        self.pattern, self.prefix, self.position = pattern, prefix, position
        self.size = positions if pattern is None else pattern.cache_size(positions)
        self.filled = 0
        self._store: Tensor | None = None

    def fill(self, key: Tensor, value: Tensor) -> None:
        """Put the (B, H, n, C) of caption and first image positions into the empty cache."""
        batch, heads, length, head_width = key.shape
        count = length - self.prefix
        # zeros: a masked slot must not hold a NaN
        store = key.new_zeros(2, batch, heads, self.prefix + self.size, head_width)
        newest = torch.arange(max(0, count - self.size), count, device=key.device)
        for half, new in zip(store, (key, value), strict=True):
            half[:, :, : self.prefix] = new[:, :, : self.prefix]
            half[:, :, self.prefix + newest % self.size] = new[:, :, self.prefix + newest]
        self._store, self.filled = store, length

    def attend(self, qkv: Tensor) -> Tensor:
        """Add one image position (B, 3, H, 1, C); returns its attention output (B, H, 1, C)."""
        assert self._store is not None
        query, key, value = qkv.unbind(1)
        slot = self.prefix + self.position % self.size
        keys, values = self._store
        keys.index_copy_(2, slot, key.to(keys.dtype))
        values.index_copy_(2, slot, value.to(values.dtype))
        query = query.to(keys.dtype)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=self._mask())

    def _mask(self) -> Tensor:
        slots = torch.arange(self.size, device=self.position.device)
        held = self.position - (self.position - slots) % self.size
        reads = held >= 0
        if self.pattern is not None:
            reads = reads & self.pattern.allows(self.position, held)
        return F.pad(reads, (self.prefix, 0), value=True)[None]


class CudaGraphDecoder:
    """Logits of the next code, one position at a time, from caption and known codes."""

    def __init__(self, prior: Prior, text: Tensor) -> None:
        config = prior.config
        self._prior, self._text = prior, text
        self._code = torch.zeros(len(text), 1, dtype=torch.int64, device=text.device)
        self._place = torch.zeros(1, dtype=torch.int64, device=text.device)
        self._caches = [
            StaticKVCache(pattern, config.prefix_length, config.image_length, self._place)
            for pattern in config.patterns
        ]
        self._logits: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, known: Tensor) -> Tensor:
        """Logits (B, V) of the code after the `known` (B, n); n grows by one a call."""
        if not self._caches[0].filled:
            return self._read_first(known)
        self._code.copy_(known[:, -1:])
        self._place.fill_(known.shape[1] - 1)
        if self._code.device.type != "cuda":
            return self.step()
        if self._graph is None:
            self._capture()
        assert self._graph is not None
        assert self._logits is not None
        self._graph.replay()
        return self._logits

    def _read_first(self, known: Tensor) -> Tensor:
        prior = self._prior
        x = torch.cat([prior.embed_text(self._text), prior.embed_image(known, 0)], dim=1)
        return prior.image_head(prior.run(x, list(self._caches))[:, -1])

    def step(self) -> Tensor:
        """The step at the position and for the code in the fixed tensors."""
        prior = self._prior
        with self._uncached_casts():
            x = prior.image_token(self._code) + prior.image_position.at(self._place)
            return prior.image_head(prior.run(x, list(self._caches))[:, -1])

    def _uncached_casts(self) -> AbstractContextManager[object]:
        """Autocast as it is, but a recorded step casts its weights itself."""
        device = self._code.device.type
        return torch.autocast(
            device,
            torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=False,
        )

    def _capture(self) -> None:
        """Capture the step; running it again at the same position changes nothing."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self.step()
