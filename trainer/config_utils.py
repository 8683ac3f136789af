"""Recipe keys that were renamed, and a default for `kind`."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

from pydantic import BeforeValidator

RENAMED_KEYS: Mapping[str, str] = {
    "augmentation.highest": "max_level",
    "augmentation.share": "probability",
    "condition.of": "conditions",
    "data.memory": "cache_in_memory",
    "engine.gradient_scaling.retreat": "backoff",
    "engine.master": "master_dtype",
    "engine.zeros": "zero_per_part",
    "guidances": "guidance_scales",
    "low_resolution.tells_level": "condition_on_noise_level",
    "model.counts_from_zero": "timestep_offset (0 or 1)",
    "model.first": "initial_width",
    "model.frequencies": "freq_shift (open: 0, closed: 1)",
    "optimizer.clip": "max_grad_norm",
    "optimizer.clip_each": "max_grad_norm_per_parameter",
    "optimizers.*.clip": "max_grad_norm",
    "optimizers.*.clip_each": "max_grad_norm_per_parameter",
    "per_class": "samples_per_class",
    "pictures": "images",
    "process.data_deviation": "sigma_data",
    "process.predicts": "prediction_type",
    "shown": "grid_images",
    "target.deviations": "std",
    "task.given.*.places": "length",
    "task.loss.share": "vlb_weight",
    "task.of": "target",
    "task.ramp": "ramp_steps",
    "task.starts": "start_step",
    "times.deviation": "std",
    "weight.deviation": "sigma_data",
}
"""Recipe keys of earlier releases, by the end of their dotted path (`*` for any key): their new
names."""


def renamed(path: str) -> str | None:
    """The new name of the key at a dotted path; None where it was not renamed."""
    return next(
        (new for end, new in RENAMED_KEYS.items() if fnmatchcase(f".{path}", f"*.{end}")), None
    )


def kind_by_default(kind: str) -> BeforeValidator:
    """A validator that gives a mapping without `kind` this one."""

    def add_kind(value: object) -> object:
        if isinstance(value, dict) and "kind" not in value:
            return {"kind": kind, **value}
        return value

    return BeforeValidator(add_kind)
