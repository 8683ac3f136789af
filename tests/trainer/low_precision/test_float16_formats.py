"""The 16-bit numbers of moments, over all of their codes."""

import math

import pytest
import torch

from trainer.low_precision.float16_formats import CODE, MEAN, VARIANCE

CODECS = pytest.mark.parametrize("codec", [MEAN, VARIANCE], ids=["1-6-9", "0-6-10"])


def all_codes(codec) -> torch.Tensor:
    """Every code of a number from 0 up, in order."""
    count = 63 << codec.mantissa
    return torch.arange(count, dtype=torch.int32).to(CODE)


def magnitudes(codec) -> torch.Tensor:
    exponent = torch.empty(200_000).uniform_(
        math.log2(codec.smallest_normal), math.log2(codec.largest), generator=rng()
    )
    return torch.exp2(exponent).clamp(codec.smallest_normal, codec.largest)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@CODECS
def test_every_code_survives_decoding_and_encoding(codec):
    codes = all_codes(codec)
    assert torch.equal(codec.encode(codec.decode(codes)), codes)


def test_every_negative_code_survives_too():
    codes = torch.arange(-(2**15), -(2**15) + (63 << 9), dtype=torch.int32).to(CODE)
    assert torch.equal(MEAN.encode(MEAN.decode(codes)), codes)


@CODECS
def test_codes_are_in_the_order_of_their_numbers(codec):
    values = codec.decode(all_codes(codec))
    assert values[0] == 0
    assert (values.diff() > 0).all()


@CODECS
def test_encoding_keeps_the_order_of_numbers(codec):
    values = torch.cat([magnitudes(codec), magnitudes(codec) * 2.0**-70]).sort().values
    assert (codec.decode(codec.encode(values)).diff() >= 0).all()


@pytest.mark.parametrize(("codec", "error"), [(MEAN, 2.0**-10), (VARIANCE, 2.0**-11)])
def test_the_relative_error_of_a_normal_number_is_half_a_step_at_most(codec, error):
    values = magnitudes(codec)
    relative = (codec.decode(codec.encode(values)) - values).abs() / values
    assert relative.max() <= error
    assert relative.max() > 0.9 * error


@CODECS
def test_a_number_goes_to_the_nearest_code(codec):
    """Compared in fp64 with both neighbours, in the normal and in the subnormal range."""
    table = codec.decode(all_codes(codec)).double()
    values = torch.cat([magnitudes(codec), magnitudes(codec)[:1000] * 2.0**-62])
    values = values[values <= codec.largest]
    after = torch.searchsorted(table, values.double()).clamp(1, len(table) - 1)
    nearest = torch.minimum(
        (table[after] - values).abs(), (table[after - 1] - values.double()).abs()
    )
    found = (codec.decode(codec.encode(values)).double() - values).abs()
    assert torch.equal(found, nearest)


def test_the_largest_numbers_are_the_papers_and_hold_five():
    assert MEAN.largest == 15.984375
    assert MEAN.decode(all_codes(MEAN)[-1:]).item() == 15.984375
    assert 5 < VARIANCE.largest < 8


def test_what_is_too_large_is_clamped_with_its_sign():
    values = torch.tensor([torch.inf, -torch.inf, 1e9, -1e9])
    assert MEAN.decode(MEAN.encode(values)).tolist() == [15.984375, -15.984375] * 2
    assert VARIANCE.decode(VARIANCE.encode(values)).tolist() == [VARIANCE.largest, 0.0] * 2


@CODECS
def test_nan_stays_nan(codec):
    assert codec.decode(codec.encode(torch.tensor([torch.nan]))).isnan().all()


def test_the_bits_are_sign_exponent_mantissa():
    """1 + 1/4, its negative, and the smallest numbers above 0."""
    assert MEAN.encode(torch.tensor([1.25, -1.25])).tolist() == [
        (59 << 9) + 128,
        (59 << 9) + 128 - 2**15,
    ]
    assert VARIANCE.encode(torch.tensor(1.25)).item() & 0xFFFF == (60 << 10) + 256
    one = torch.ones((), dtype=CODE)
    assert MEAN.decode(one).item() == 2.0 ** (1 - 59 - 9)
    assert VARIANCE.decode(one).item() == 2.0 ** (1 - 60 - 10)


def test_numbers_below_zero_are_coded_like_those_above():
    values = magnitudes(MEAN)
    assert torch.equal(MEAN.decode(MEAN.encode(-values)), -MEAN.decode(MEAN.encode(values)))


@CODECS
def test_what_has_been_rounded_once_stays(codec):
    once = codec.decode(codec.encode(magnitudes(codec)))
    assert torch.equal(codec.decode(codec.encode(once)), once)
