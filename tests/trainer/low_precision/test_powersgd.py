"""Low-rank gradients: exact at full rank, and nothing is lost in the long run."""

import pytest
import torch
from torch import nn

from models.autoregressive.prior import PriorConfig
from models.nn.transformer import Block
from trainer import distributed
from trainer.low_precision.float16_formats import CODE
from trainer.low_precision.fp32_params import matrices
from trainer.low_precision.powersgd import Compressor, PowerSGDConfig, orthonormal

WIDTH = 32


def block() -> nn.Module:
    torch.manual_seed(0)
    return Block(WIDTH, 2, WIDTH // 2, causal=True, dropout=0.0)


def compressor(module: nn.Module, rank: int, *, shards: int = 1, errors: str = "fp32"):
    config = PowerSGDConfig(kind="powersgd", rank=rank, shards=shards, errors=errors)
    return Compressor(module, matrices(module), config, seed=3)


def fill(module: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        weight.grad = torch.randn(weight.shape, generator=rng)
    return grads(module)


def grads(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in module.named_parameters()}


@pytest.mark.parametrize("shards", [1, 4])
def test_full_rank_is_exact(shards):
    module = block()
    wanted = fill(module, 0)
    assert compressor(module, WIDTH * shards, shards=shards).reduce()
    for name, grad in grads(module).items():
        assert (grad - wanted[name]).abs().max() <= 1e-5 * wanted[name].abs().max(), name


def test_low_rank_is_of_that_rank_and_islands_are_whole():
    module = block()
    wanted = fill(module, 0)
    compressor(module, 4).reduce()
    assert torch.linalg.matrix_rank(module.attention.out.weight.grad, rtol=1e-4) == 4
    assert torch.equal(module.attention_norm.weight.grad, wanted["attention_norm.weight"])
    assert torch.equal(module.feed_forward.out.bias.grad, wanted["feed_forward.out.bias"])


def decoded(small: Compressor, name: str) -> torch.Tensor:
    """The residual of a weight, (rows, columns)."""
    matrix = small._matrices[name]
    return matrix.merge(small._stored_as.mean.decode(matrix.residual))


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize(("errors", "tolerance"), [("fp32", 1e-4), ("codec_16", 2e-2)])
def test_what_is_sent_and_what_is_owed_sum_to_the_gradients(shards, errors, tolerance):
    """Exact with fp32 buffers; 1-6-9 ones round what is owed at every update (by 2^-10)."""
    module = block()
    small = compressor(module, 4, shards=shards, errors=errors)
    true = {name: torch.zeros_like(weight) for name, weight in module.named_parameters()}
    sent = {name: torch.zeros_like(weight) for name, weight in module.named_parameters()}
    for update in range(12):
        for name, grad in fill(module, update).items():
            true[name] += grad
        small.reduce()
        for name, grad in grads(module).items():
            sent[name] += grad
    for name in small.errors():
        owed = true[name] - sent[name] - decoded(small, name)
        assert owed.abs().max() <= tolerance * true[name].abs().max(), name


def test_eight_shards_send_five_eighths_of_rank_over_width():
    """Counted on a block (arXiv 2102.12092, E)."""
    module = block()
    rank = 8
    matrices = compressor(module, rank, shards=8)._matrices.values()
    factors = sum(
        each.initial_q.numel() + each.residual[..., 0].numel() * each.initial_q.shape[2]
        for each in matrices
    )
    whole = sum(each.residual.numel() for each in matrices)
    assert whole == 12 * WIDTH**2
    assert factors / whole == pytest.approx(5 * rank / (8 * WIDTH), rel=1e-12)


def test_only_a_contaminated_buffer_is_emptied():
    module = block()
    small = compressor(module, 4)
    fill(module, 0)
    small.reduce()
    before = {name: error.clone() for name, error in small.errors().items()}
    fill(module, 1)
    module.attention.out.weight.grad[0, 0] = torch.inf
    assert not small.reduce()
    assert (small.errors()["attention.out.weight"] == 0).all()
    assert before["attention.out.weight"].abs().max() > 0
    assert all(
        error.isfinite().all() and error.abs().max() > 0
        for name, error in small.errors().items()
        if name != "attention.out.weight"
    )


def test_a_buffer_is_kept_where_another_process_met_the_fault(monkeypatch):
    """The averaged product is then NaN on all of them, and all skip the update."""
    module = block()
    small = compressor(module, 4)
    fill(module, 0)
    small.reduce()
    before = {name: error.clone() for name, error in small.errors().items()}
    fill(module, 1)
    mean = distributed.mean

    def spoilt(values: torch.Tensor) -> torch.Tensor:
        shared = mean(values)
        return shared * torch.nan if values.shape == small_product else shared

    small_product = small._matrices["attention.out.weight"].initial_q.shape
    monkeypatch.setattr(distributed, "mean", spoilt)
    assert not small.reduce()
    after = small.errors()["attention.out.weight"]
    assert torch.equal(after, before["attention.out.weight"])
    assert after.abs().max() > 0


def test_the_starting_factor_is_drawn_once_and_alike_on_every_process():
    module = block()
    one, other = compressor(module, 4), compressor(module, 4)
    starts = {name: matrix.initial_q.clone() for name, matrix in one._matrices.items()}
    for update in range(3):
        fill(module, update)
        one.reduce()
    for name, start in starts.items():
        assert torch.equal(one._matrices[name].initial_q, start), name
        assert torch.equal(other._matrices[name].initial_q, start), name


def test_of_a_prior_exactly_the_matrices_of_the_blocks_are_compressed():
    config = PriorConfig(
        kind="prior", text_vocab=30, text_length=4, image_vocab=20, grid=(2, 3), width=32,
        layers=2, heads=2, head_width=16,
    )  # fmt: skip
    module = config.build()
    layers = ("attention.qkv", "attention.out", "feed_forward.hidden", "feed_forward.out")
    wanted = {f"blocks.{block}.{layer}.weight" for block in (0, 1) for layer in layers}
    assert compressor(module, 4).errors().keys() == wanted


def test_an_island_that_is_not_finite_is_noticed():
    module = block()
    fill(module, 0)
    module.attention_norm.bias.grad[0] = torch.nan
    assert not compressor(module, 4).reduce()


def test_error_buffers_take_two_bytes_and_can_be_restored():
    module = block()
    small = compressor(module, 4, errors="codec_16")
    fill(module, 0)
    small.reduce()
    assert {error.dtype for error in small.errors().values()} == {CODE}
    other = compressor(module, 4, errors="codec_16")
    other.restore(small.errors())
    outcomes = []
    for each in (small, other):
        fill(module, 1)
        each.reduce()
        outcomes.append(grads(module))
    for name, grad in outcomes[0].items():
        assert torch.equal(grad, outcomes[1][name]), name


def test_the_basis_is_orthonormal_also_of_dependent_columns():
    product = torch.ones(2, 20, 4)
    basis = orthonormal(product)
    assert torch.allclose(basis.transpose(1, 2) @ basis, torch.eye(4).expand(2, 4, 4), atol=1e-5)


def test_a_rank_that_shards_cannot_share_is_refused():
    with pytest.raises(ValueError, match="rank 10 is not a multiple of shards 8"):
        PowerSGDConfig(kind="powersgd", rank=10, shards=8)
