"""What stands between backward and the optimizer: gradient scales, compression, skipped updates."""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from trainer.low_precision.fp32_params import keep_logits, matrices
from trainer.low_precision.gradient_scaling import GradientScales, PerBlockScaling, WholeScaling
from trainer.low_precision.powersgd import Compressor, PowerSGDConfig, WholeGradients
from trainer.recipe import EngineConfig


class GradientHooks:
    """The engine settings of one part that DeepSpeed knows nothing of."""

    def __init__(self, module: nn.Module, settings: EngineConfig, seed: int) -> None:
        if settings.fp32_logits:
            keep_logits(module)
        self._scales: GradientScales | None = None
        match settings.gradient_scaling:
            case PerBlockScaling() as rule:
                self._scales = GradientScales(module, rule)
            case WholeScaling():
                pass
        self._compressor: Compressor | None = None
        match settings.compression:
            case PowerSGDConfig() as config:
                self._compressor = Compressor(module, matrices(module), config, seed)
            case WholeGradients():
                pass
        self.skipped = 0

    @property
    def exchanges(self) -> bool:
        """Whether gradients are averaged here and not by DeepSpeed."""
        return self._compressor is not None

    def close(self) -> bool:
        """After the last backward of an update: whether to take it."""
        taken = self._scales is None or self._scales.close_update()
        if taken and self._compressor is not None:
            taken = self._compressor.reduce()
        self.skipped += not taken
        return taken

    def status(self) -> dict[str, float]:
        """What there is to log."""
        return {} if self._scales is None else self._scales.status()

    def save(self, path: Path) -> None:
        """Write this process's scales and error buffers, if there are any."""
        if self._scales is None and self._compressor is None:
            return
        errors = {} if self._compressor is None else self._compressor.errors()
        scales = None if self._scales is None else self._scales.state()
        words = {"rules": json.dumps({"skipped": self.skipped, "scales": scales})}
        save_file({name: error.contiguous() for name, error in errors.items()}, path, words)

    def restore(self, path: Path) -> None:
        """Read what `save` wrote; settings that are new since then begin afresh."""
        if not path.exists():
            return
        with safe_open(path, framework="pt") as file:
            words = json.loads(file.metadata()["rules"])
            if self._compressor is not None and (names := set(file.keys())):
                self._compressor.restore({name: file.get_tensor(name) for name in names})
        self.skipped = words["skipped"]
        if self._scales is not None and words["scales"] is not None:
            self._scales.restore(words["scales"])
