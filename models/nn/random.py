"""Random numbers from explicit generators: of a whole batch, or of each of its samples."""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor


class BatchGenerator(torch.Generator):
    """A random generator for each sample of a batch, so that none depends on its neighbours.

    It goes wherever a generator of the batch goes; the functions of this module then take every
    sample's numbers from its own.
    """

    samples: tuple[Generator, ...]

    @classmethod
    def of(cls, samples: Sequence[Generator]) -> "BatchGenerator":
        """From generators of samples, all on one device."""
        rng = cls(samples[0].device)
        rng.samples = tuple(samples)
        return rng


def per_sample(shape: Sequence[int], rng: Generator, sample: Callable[..., Tensor]) -> Tensor:
    """Random numbers of a shape (B, ...), each sample's from its own generator if it has one."""
    if not isinstance(rng, BatchGenerator):
        return sample(tuple(shape), rng)
    if len(rng.samples) != shape[0]:
        raise ValueError(f"{len(rng.samples)} random generators for a batch of {shape[0]}")
    return torch.stack([sample(tuple(shape[1:]), each) for each in rng.samples])


def normal(
    shape: Sequence[int], rng: Generator, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal numbers of a shape, made on the generator's device."""

    def sample(size: Sequence[int], each: Generator) -> Tensor:
        return torch.randn(size, generator=each, dtype=dtype, device=each.device)

    return per_sample(shape, rng, sample).to(device)


def uniform(
    shape: Sequence[int], rng: Generator, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Uniform numbers in [0, 1) of a shape, made on the generator's device."""

    def sample(size: Sequence[int], each: Generator) -> Tensor:
        return torch.rand(size, generator=each, dtype=dtype, device=each.device)

    return per_sample(shape, rng, sample).to(device)


def coins(shape: Sequence[int], rng: Generator) -> Tensor:
    """0 or 1, int64, of a shape, on the generator's device."""

    def sample(size: Sequence[int], each: Generator) -> Tensor:
        return torch.randint(2, size, generator=each, device=each.device)

    return per_sample(shape, rng, sample)


def randn_like(x: Tensor, rng: Generator) -> Tensor:
    """Standard normal noise of the shape, dtype and device of `x` (B, ...)."""
    return normal(x.shape, rng, x.device, x.dtype)


def gumbel_like(x: Tensor, rng: Generator) -> Tensor:
    """Standard Gumbel noise, -ln(-ln u) with u uniform, of the shape and device of `x`, in fp32."""
    numbers = torch.rand(x.shape, generator=rng, dtype=torch.float32, device=x.device)
    # exactly 0 would give an infinite logit
    return numbers.clamp_(min=torch.finfo(torch.float32).tiny).log_().neg_().log_().neg_()


def categorical(probabilities: Tensor, rng: Generator) -> Tensor:
    """An index (B,) for each row of probabilities (B, V).

    Of samples with their own generators by inversion of the distribution function, with one number
    each.
    """
    if not isinstance(rng, BatchGenerator):
        return torch.multinomial(probabilities, 1, generator=rng)[:, 0]

    numbers = uniform((len(probabilities), 1), rng, probabilities.device, torch.float64)
    total = probabilities.double().cumsum(dim=-1)
    index = torch.searchsorted(total, numbers * total[:, -1:], right=True)
    return index[:, 0].clamp(max=probabilities.shape[-1] - 1)
