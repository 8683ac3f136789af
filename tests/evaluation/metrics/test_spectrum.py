"""Power spectra."""

import math

import pytest
import torch

from evaluation.metrics.spectrum import BANDS, band_log_powers, radial_log_powers


def test_a_wave_has_its_power_at_its_frequency():
    place = torch.arange(32.0)
    wave = torch.cos(2 * math.pi * 10 * place / 32).expand(1, 3, 32, 32)  # 0.625 of Nyquist
    powers = radial_log_powers(wave, bins=8)[0]
    assert int(powers.argmax()) == 4
    assert float(powers[[0, 1, 2, 3, 5, 6, 7]].max()) < -60
    low, middle, high = band_log_powers(wave)[0].tolist()
    assert list(BANDS) == ["low", "middle", "high"]
    assert high > middle + 60
    assert high > low + 60


def test_the_power_of_white_noise_is_its_variance_at_every_frequency():
    noise = 0.1 * torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    powers = band_log_powers(noise).mean(dim=0)
    for power in powers.tolist():
        assert power == pytest.approx(-20, abs=0.5)


def test_images_of_one_value_have_a_spectrum():
    assert bool(radial_log_powers(torch.full((2, 3, 8, 8), 0.5)).isfinite().all())
