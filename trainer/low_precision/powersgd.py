"""Low-rank averaging of gradients over processes (PowerSGD, arXiv 1905.13727) by DALL-E's rules.

A gradient matrix G (with the error left by earlier updates) becomes P Q^T: P = orthonormal basis of
the averaged G Q0, Q = the average of G^T P. The residual G - P (G^T P)^T is each process's error
feedback for the next update. arXiv 2102.12092, E: Q0 is sampled once and kept; the basis comes
from Householder reflections of the averaged product plus 1e-6 I; error buffers are 1-6-9 numbers
and are reset only where Inf or NaN got into them, on the processes that had it; gains, biases,
embeddings and unembeddings are averaged whole, in fp32; each of the m shards of a matrix has its
own factors of rank r / m.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Generator, Tensor, nn

from models.nn.attention import SelfAttention
from trainer import distributed
from trainer.low_precision.adamw import FORMATS

JITTER = 1e-6
BUCKET = 1 << 24
"""Uncompressed gradients per all-reduce."""


class PowerSGDConfig(BaseModel, frozen=True, extra="forbid"):
    """Compress the gradients that processes exchange."""

    kind: Literal["powersgd"]
    rank: int = Field(gt=0)
    """Of an undivided matrix; the paper has 512, 640 and 896 at widths 1920, 2688 and 3968."""
    shards: int = Field(default=1, gt=0)
    """Equal parts of a matrix that are compressed alone, at rank / shards each; 8 in the paper."""
    errors: Literal["fp32", "codec_16"] = "codec_16"

    @model_validator(mode="after")
    def _shards_share_the_rank(self) -> Self:
        if self.rank % self.shards:
            raise ValueError(f"rank {self.rank} is not a multiple of shards {self.shards}")
        return self


class WholeGradients(BaseModel, frozen=True, extra="forbid"):
    """Uncompressed gradients."""

    kind: Literal["none"] = "none"


@dataclass
class _Matrix:
    """One weight, seen as a batch of pieces (B, m, n)."""

    weight: nn.Parameter
    pieces: int
    transposed: bool
    """Whether it is divided along its columns."""
    initial_q: Tensor
    """Q0 (B, n, r)."""
    residual: Tensor

    def split(self, matrix: Tensor) -> Tensor:
        """(rows, columns) to (B, m, n)."""
        along = matrix.T if self.transposed else matrix
        return along.reshape(self.pieces, -1, along.shape[1])

    def merge(self, split: Tensor) -> Tensor:
        along = split.reshape(-1, split.shape[-1])
        return along.T if self.transposed else along


class Compressor:
    """Averages the gradients of a module over processes, those of its matrices at low rank."""

    def __init__(
        self, module: nn.Module, matrices: Iterable[nn.Parameter], config: PowerSGDConfig, seed: int
    ) -> None:
        self._config = config
        self._stored_as = FORMATS[config.errors]
        wanted = {id(matrix) for matrix in matrices}
        fused = {
            id(each.qkv.weight) for each in module.modules() if isinstance(each, SelfAttention)
        }
        self._matrices: dict[str, _Matrix] = {}
        self._others: list[nn.Parameter] = []
        rng = Generator().manual_seed(seed)
        for name, weight in module.named_parameters():
            if id(weight) in wanted and weight.ndim == 2:
                self._matrices[name] = self._make_matrix(
                    weight, 3 if id(weight) in fused else 1, rng
                )
            elif weight.requires_grad:
                self._others.append(weight)

    def _make_matrix(self, weight: nn.Parameter, fused: int, rng: Generator) -> _Matrix:
        """The pieces of a weight that holds `fused` matrices, one above the other."""
        rows, columns = weight.shape[0] // fused, weight.shape[1]
        transposed = columns > rows and fused == 1
        cut, other = (columns, rows) if transposed else (rows, columns)
        shards = self._config.shards if cut % self._config.shards == 0 else 1
        height = cut // shards
        rank = min(self._config.rank // shards, height, other)
        initial_q = torch.randn(fused * shards, other, rank, generator=rng, device="cpu")
        residual = torch.zeros(fused * shards, height, other, dtype=self._stored_as.dtype)
        device = weight.device
        return _Matrix(
            weight, fused * shards, transposed, initial_q.to(device), residual.to(device)
        )

    def reduce(self) -> bool:
        """Replace gradients by their averages; returns whether all of them are finite.

        Every process calls it once per update. A matrix with Inf or NaN on one process loses its
        error buffer on all.
        """
        finite = True
        for matrix in self._matrices.values():
            finite &= self._reduce_matrix(matrix)
        for bucket in _buckets([each for each in self._others if each.grad is not None]):
            grads = [weight.grad for weight in bucket if weight.grad is not None]
            average = distributed.mean(torch.cat([grad.flatten() for grad in grads]))
            finite &= bool(average.isfinite().all())
            parts = torch.split(average, [grad.numel() for grad in grads])
            for grad, part in zip(grads, parts, strict=True):
                grad.copy_(part.view_as(grad))
        return finite

    def _reduce_matrix(self, matrix: _Matrix) -> bool:
        grad = matrix.weight.grad
        if grad is None:  # on every process: the same network has run
            return True
        total = matrix.split(grad.float()) + self._stored_as.mean.decode(matrix.residual)
        product = distributed.mean(total @ matrix.initial_q)
        if not bool(product.isfinite().all()):
            if not bool((total @ matrix.initial_q).isfinite().all()):
                matrix.residual.zero_()
            grad.fill_(torch.nan)
            return False
        basis = orthonormal(product)
        own = total.transpose(1, 2) @ basis
        matrix.residual.copy_(self._stored_as.mean.encode(total - basis @ own.transpose(1, 2)))
        average = basis @ distributed.mean(own).transpose(1, 2)
        grad.copy_(matrix.merge(average))
        return True

    def errors(self) -> dict[str, Tensor]:
        """This process's error buffers as stored, by weight."""
        return {name: matrix.residual for name, matrix in self._matrices.items()}

    def restore(self, errors: Mapping[str, Tensor]) -> None:
        for name, matrix in self._matrices.items():
            matrix.residual.copy_(errors[name])


def orthonormal(product: Tensor) -> Tensor:
    """An orthonormal basis (B, m, r) of the columns of (B, m, r), by Householder reflections."""
    jitter = JITTER * torch.eye(*product.shape[1:], device=product.device)
    return torch.linalg.qr(product + jitter)[0]


def _buckets(weights: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Weights of one type, in messages of a bounded size."""
    bucket: list[nn.Parameter] = []
    for weight in weights:
        size = sum(each.numel() for each in bucket)
        if bucket and (size + weight.numel() > BUCKET or bucket[0].dtype != weight.dtype):
            yield bucket
            bucket = []
        bucket.append(weight)
    if bucket:
        yield bucket
