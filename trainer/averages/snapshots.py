"""Snapshots of averages by powers of time: `averages/` in a run directory.

A file holds the whole weights of the exported part; its metadata say which average they are, of
which update.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mezzotint.common.errors import UserError
from mezzotint.common.files import sync
from trainer.averages.config import EmaConfig, PowerEma
from trainer.averages.ema import Ema
from trainer.averages.post_hoc_ema import Combination, EmaProfile, combine


@dataclass(frozen=True)
class Snapshots:
    """Takes snapshots of a run's averages; every process calls it, one of them writes."""

    root: Path
    settings: EmaConfig | None
    steps: int
    """Updates of the run: the last one has a snapshot."""
    writes: bool

    def is_due(self, update: int) -> bool:
        """Whether the averages are kept after an update."""
        settings = self.settings
        if not isinstance(settings, PowerEma):
            return False
        return update % settings.every == 0 or update == self.steps

    def take(self, update: int, ema: Ema) -> None:
        """Keep the averages after an update, where one is due."""
        settings = self.settings
        if not isinstance(settings, PowerEma) or not self.is_due(update):
            return
        dtype = torch.float16 if settings.stored == "fp16" else torch.float32
        for track, sigma_rel in enumerate(settings.sigma_rel):
            weights = ema.gather_full_state(track)
            if self.writes:
                write_snapshot(self.root, EmaProfile(sigma_rel, update), weights, dtype)


def write_snapshot(
    root: Path, profile: EmaProfile, weights: dict[str, Tensor], dtype: torch.dtype = torch.float32
) -> None:
    """One snapshot, whole or not at all."""
    root.mkdir(parents=True, exist_ok=True)
    final = root / f"step-{profile.update:08d}-{profile.sigma_rel:g}.safetensors"
    temporary = final.with_name(f".{final.name}.tmp")
    metadata = {"sigma_rel": repr(profile.sigma_rel), "update": str(profile.update)}
    save_file(
        {key: _stored(value, dtype).contiguous() for key, value in weights.items()},
        temporary,
        metadata,
    )
    sync(temporary)
    temporary.rename(final)


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight in the wanted type, or as it is if numbers would become infinite."""
    stored = value.to(dtype)
    return stored if bool(stored.isfinite().all()) else value


@dataclass(frozen=True)
class SynthesizedEma:
    """An average made from snapshots."""

    weights: dict[str, Tensor]
    """Whole, fp32, by name."""
    profile: EmaProfile
    combination: Combination
    snapshots: int


def synthesize(root: Path, sigma_rel: float, update: int | None = None) -> SynthesizedEma:
    """The average of a relative width that ends at an update, by default the last snapshot's.

    Raises:
        UserError: there are no snapshots, one cannot be read, or the update lies beyond them.
    """
    found = [(path, _profile(path)) for path in sorted(root.glob("step-*.safetensors"))]
    if not found:
        raise UserError(
            f"{root}: holds no snapshots of averages; train with ema={{kind: power}} to keep some"
        )
    last = max(profile.update for _, profile in found)
    target = EmaProfile(sigma_rel, last if update is None else update)
    if not 0 < target.update <= last:
        raise UserError(f"{root}: the snapshots end at update {last}, not at {target.update}")
    # later ones weigh updates that the wanted average does not know
    chosen = [(path, profile) for path, profile in found if profile.update <= target.update]
    if not chosen:
        first = min(profile.update for _, profile in found)
        raise UserError(f"{root}: the first snapshot is of update {first}, later than {update}")
    combination = combine([profile for _, profile in chosen], target)
    weights = _sum([path for path, _ in chosen], combination.coefficients)
    return SynthesizedEma(weights, target, combination, len(chosen))


def _sum(paths: Sequence[Path], coefficients: Tensor) -> dict[str, Tensor]:
    """The combination of snapshots, added up in fp64, one file after the other."""
    total: dict[str, Tensor] = {}
    for path, factor in zip(paths, coefficients.tolist(), strict=True):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                part = file.get_tensor(name).double().mul_(factor)
                total[name] = total[name].add_(part) if name in total else part
    return {name: value.float() for name, value in total.items()}


def _profile(path: Path) -> EmaProfile:
    """Which average a file holds."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return EmaProfile(float(metadata["sigma_rel"]), int(metadata["update"]))
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"{path}: is no snapshot of an average ({error}); remove the file"
        ) from error
