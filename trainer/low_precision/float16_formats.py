"""16-bit numbers of Adam's moments: 1-6-9 and 0-6-10 (arXiv 2102.12092, D).

Three figures name the bits of sign, exponent and mantissa. As in IEEE 754 exponent 0 holds the
subnormal numbers; the highest exponent is not used for finite ones. The paper gives the largest
1-6-9 number as slightly below 16; a bias of 59 is what makes it 15.984375. It clips the running
variance to 5, and the smallest range that holds 5 (a bias of 60) leaves the most range below.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CODE = torch.int16
"""How codes are stored; the sign bit of a code is that of the number."""
EXPONENTS = 6


@dataclass(frozen=True)
class Codec:
    """A 16-bit float with six bits of exponent."""

    mantissa: int
    bias: int
    signed: bool

    @property
    def largest(self) -> float:
        return 2.0 ** (2**EXPONENTS - 2 - self.bias) * (2 - 2.0**-self.mantissa)

    @property
    def smallest_normal(self) -> float:
        """Numbers from here on have a relative error of at most 2^-(mantissa + 1)."""
        return 2.0 ** (1 - self.bias)

    def encode(self, values: Tensor) -> Tensor:
        """fp32 numbers to codes of the same shape, rounded to nearest, ties to even.

        What lies beyond the largest number becomes it, with its sign; without a sign bit numbers
        below zero become 0; NaN stays NaN.
        """
        magnitude = (values.abs() if self.signed else values.clamp(min=0)).clamp(max=self.largest)
        drop = 23 - self.mantissa
        bits = magnitude.view(torch.int32)
        rounded = bits + ((1 << (drop - 1)) - 1) + ((bits >> drop) & 1)
        normal = (rounded >> drop) - ((127 - self.bias) << self.mantissa)
        # a sum of whole steps: exact, and without fp32's own subnormal numbers
        steps = (magnitude * 2.0 ** (self.bias - 1 + self.mantissa)).round()
        small = magnitude < self.smallest_normal
        code = torch.where(small, torch.where(small, steps, 0.0).to(torch.int32), normal)
        code = torch.where(values.isnan(), self._not_a_number, code)
        if self.signed:
            code = code | (values.signbit().to(torch.int32) << 15)
        return code.to(CODE)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes to the fp32 numbers they stand for, exactly."""
        code = codes.to(torch.int32)
        kept = code & (0x7FFF if self.signed else 0xFFFF)
        fraction = kept & ((1 << self.mantissa) - 1)
        shifted = (kept + ((127 - self.bias) << self.mantissa)) << (23 - self.mantissa)
        small = fraction.float() * 2.0 ** (1 - self.bias - self.mantissa)
        value = torch.where(kept >> self.mantissa > 0, shifted.view(torch.float32), small)
        value = torch.where(kept >= self._not_a_number, torch.nan, value)
        return torch.where(code < 0, -value, value) if self.signed else value

    @property
    def _not_a_number(self) -> int:
        return (2**EXPONENTS - 1) << self.mantissa


MEAN = Codec(mantissa=9, bias=59, signed=True)
"""1-6-9, of running means and error buffers."""
VARIANCE = Codec(mantissa=10, bias=60, signed=False)
"""0-6-10, of running variances."""
