"""Helpers that validate recipe settings."""

from collections.abc import Mapping

from pydantic import BeforeValidator

RENAMED_KEYS: Mapping[str, str] = {
    "clip": "max_grad_norm",
    "clip_each": "max_grad_norm_per_parameter",
    "master": "master_dtype",
    "of": "target",
    "ramp": "ramp_steps",
    "starts": "start_step",
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
