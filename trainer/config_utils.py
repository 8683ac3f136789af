"""Helpers that validate recipe settings."""

from collections.abc import Mapping

from pydantic import BeforeValidator

RENAMED_KEYS: Mapping[str, str] = {
    "clip": "max_grad_norm",
    "clip_each": "max_grad_norm_per_parameter",
    "counts_from_zero": "timestep_offset (0 or 1)",
    "data_deviation": "sigma_data",
    "deviation": "std (sigma_data in a weight)",
    "deviations": "std",
    "first": "initial_width (of a dvae)",
    "frequencies": "freq_shift (open: 0, closed: 1)",
    "guidances": "guidance_scales",
    "highest": "max_level",
    "master": "master_dtype",
    "memory": "cache_in_memory",
    "of": "target (conditions in a condition of kind several)",
    "per_class": "samples_per_class",
    "pictures": "images",
    "predicts": "prediction_type",
    "places": "length",
    "ramp": "ramp_steps",
    "retreat": "backoff",
    "share": "vlb_weight (probability in an augmentation)",
    "shown": "grid_images",
    "starts": "start_step",
    "tells_level": "condition_on_noise_level",
    "zeros": "zero_per_part",
}
"""Recipe keys of earlier releases: old key name to new key name."""


def kind_by_default(kind: str) -> BeforeValidator:
    """A validator that gives a mapping without `kind` this one."""

    def add_kind(value: object) -> object:
        if isinstance(value, dict) and "kind" not in value:
            return {"kind": kind, **value}
        return value

    return BeforeValidator(add_kind)
