"""Between backward and the optimizer: gradient scales, compression, skipped updates."""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from trainer.low_precision.fp32_params import compute_logits_in_fp32, matrices
from trainer.low_precision.gradient_scaling import GradientScales, PerBlockScaling
from trainer.low_precision.powersgd import Compressor, PowerSGDConfig
from trainer.recipe import EngineConfig

MOST_SKIPS = 50
"""A loss scale of fp16 falls to its lowest value in fewer; without one, nothing is gained."""


class GradientHooks:
    """Engine settings of one part that DeepSpeed does not have."""

    def __init__(self, module: nn.Module, settings: EngineConfig, seed: int) -> None:
        if settings.fp32_logits:
            compute_logits_in_fp32(module)
        self._scales: GradientScales | None = None
        if isinstance(settings.gradient_scaling, PerBlockScaling):
            self._scales = GradientScales(module, settings.gradient_scaling)
        self._compressor: Compressor | None = None
        if isinstance(settings.compression, PowerSGDConfig):
            self._compressor = Compressor(module, matrices(module), settings.compression, seed)
        self.skipped = 0

    @property
    def exchanges(self) -> bool:
        """Whether gradients are averaged here and not by DeepSpeed."""
        return self._compressor is not None

    def close(self) -> bool:
        """Finish the gradients of one update; returns whether to apply it."""
        applied = self._scales is None or self._scales.update_scales()
        if applied and self._compressor is not None:
            applied = self._compressor.reduce()
        self.skipped += not applied
        return applied

    @property
    def exhausted(self) -> bool:
        """Whether a branch overflowed in the last update and its scale cannot fall any further."""
        return self._scales is not None and self._scales.exhausted

    @property
    def most_skips(self) -> int:
        """Skipped updates in a row after which a scale must have reached its lowest value."""
        return MOST_SKIPS if self._scales is None else self._scales.most_skips

    def status(self) -> dict[str, float]:
        return {} if self._scales is None else self._scales.status()

    def save(self, path: Path) -> None:
        """Write this process's scales and error buffers, if there are any."""
        if self._scales is None and self._compressor is None:
            return
        errors = {} if self._compressor is None else self._compressor.errors()
        scales = None if self._scales is None else self._scales.state()
        metadata = {"rules": json.dumps({"skipped": self.skipped, "scales": scales})}
        save_file({name: error.contiguous() for name, error in errors.items()}, path, metadata)

    def restore(self, path: Path) -> None:
        """Read what `save` wrote; settings that are new since then start fresh."""
        if not path.exists():
            return
        with safe_open(path, framework="pt") as file:
            metadata = json.loads(file.metadata()["rules"])
            if self._compressor is not None and (names := set(file.keys())):
                self._compressor.restore({name: file.get_tensor(name) for name in names})
        self.skipped = metadata["skipped"]
        if self._scales is not None and metadata["scales"] is not None:
            self._scales.restore(metadata["scales"])
