"""DeepSpeed engines, one per trainable part. The only file that imports deepspeed."""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from mezzotint.common.errors import UserError
from models.nn.cpu import malloc
from models.nn.initialization import materialize
from trainer import distributed
from trainer.distributed import World
from trainer.engine_config import (
    check_numerics,
    check_update,
    deepspeed_config,
    prepare,
    resolve_precision,
    stored_dtype,
    wraps_optimizer,
)
from trainer.low_precision.accumulation import Fp32Accumulation, accumulates_here
from trainer.low_precision.gradient_hooks import GradientHooks
from trainer.low_precision.in_backward import InBackwardAdamW
from trainer.optimizers import build as optimizers
from trainer.optimizers import groups
from trainer.optimizers.schedules import OptimizerConfig
from trainer.recipe import Precision, Recipe

AUTOCAST: Mapping[Precision, torch.dtype] = {
    "autocast_bf16": torch.bfloat16,
    "autocast_fp16": torch.float16,
}
"""The autocast type of matrix products, for fp32 weights."""
LOWEST_LOSS_SCALE = 1.0
"""Where DeepSpeed's dynamic loss scale ends."""


class Engine:
    """One part under DeepSpeed: forward, backward, step, and a view of its weights."""

    def __init__(
        self,
        part: str,
        module: nn.Module,
        recipe: Recipe,
        world: World,
        precision: Precision,
        order: Sequence[str] = (),
    ) -> None:
        """`order` names the optimizer's groups as the checkpoint to be restored has them."""
        check_numerics(recipe, part, precision)
        check_update(recipe, part, precision, world.size)
        self.part = part
        self.zero = recipe.engine.zero_of(part)
        self.precision = precision
        self.autocast = AUTOCAST.get(precision)
        self.config = deepspeed_config(recipe, part, world.size, precision)
        self._settings: OptimizerConfig = recipe.optimizer_of(part)
        self._clips_itself = not wraps_optimizer(self.zero, precision, recipe.engine.update)
        self._world = world
        sharded, in_backward = self.zero == 3, recipe.engine.update == "in_backward"
        dtype = stored_dtype(precision) if sharded or in_backward else torch.float32
        parameters = materialize(module, recipe.seed, part, device=world.device, dtype=dtype)
        if sharded:
            _shard(parameters, self.config)
        for _ in parameters:  # those that are not sharded, and the buffers
            pass
        malloc.malloc_trim()
        self._hooks = GradientHooks(module, recipe.engine, recipe.seed)
        self._optimizer = (
            optimizers.build_in_backward(module, self._settings, f"{recipe.seed}/{part}")
            if in_backward
            else optimizers.build(module, self._settings)
        )
        self._sums: Fp32Accumulation | None = None
        rounds = recipe.batch // (recipe.micro_batch_for(world.size) * world.size)
        if accumulates_here(self.zero, stored_dtype(precision), rounds):
            self._sums = Fp32Accumulation(module)
        groups.arrange(self._optimizer, order)
        self._groups = groups.describe(self._optimizer, module)
        # for 16-bit weights at ZeRO 0 DeepSpeed updates once with gradients of 0: that would count
        # as an update, and apply the weight decay
        self._optimizer.skip = self.zero == 0
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=self._optimizer, config=self.config, dist_init_required=False
        )
        self._optimizer.skip = False
        if self._clips_itself and (world.size == 1 or self._hooks.exchanges):
            # one process, or averaged already: DeepSpeed would copy all gradients
            self._engine.enable_backward_allreduce = False
        if self._sums is not None:  # averaged once they are whole
            self._engine.enable_backward_allreduce = False
        self._steps = recipe.steps
        self._norm: Tensor | None = None
        self._skips = Skips(self._hooks.most_skips)

    @property
    def module(self) -> nn.Module:
        """The unwrapped module: for another part's loss, previews and export."""
        return self._engine.module

    def __call__(self, *inputs: Any) -> Any:  # noqa: ANN401 - whatever the part's forward takes
        if self.precision != "autocast_fp16":
            return self._engine(*inputs)
        with torch.autocast(self._world.device.type, torch.float16):
            return self._engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of one micro-batch's loss, or update by them at once."""
        if isinstance(self._optimizer, InBackwardAdamW):
            self._set_rate(self._optimizer.updates)
        self._engine.backward(loss)

    def step(self, index: int) -> None:
        """Finish one micro-batch; at the end of the accumulation, update at the rate of `index`."""
        closes = self._engine.is_gradient_accumulation_boundary()
        if closes:
            if self._sums is not None:
                self._sums.finish()
                self._engine.allreduce_gradients()
            self._optimizer.skip = not self._hooks.close()
            self._set_rate(index)
            if self._clips_itself:
                self._norm = self._clip()
        at_lowest = self._scale_is_lowest()
        with _explained(self.part, index + 1, self._skips.in_a_row + 1):
            self._engine.step()
        if not closes:
            return
        if not self._clips_itself:
            norm = self._engine.get_global_grad_norm()
            self._norm = None if norm is None else torch.as_tensor(norm)
        self._skips.count(self.skipped, at_lowest=at_lowest or self._hooks.exhausted)
        if self._skips.hopeless:
            raise NonFiniteGradientsError(self.part, index + 1, self._skips.in_a_row)

    def _set_rate(self, index: int) -> None:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = self.learning_rate(index)

    def _clip(self) -> Tensor:
        """Clip by the global norm; returns the norm before."""
        if isinstance(self._optimizer, InBackwardAdamW):
            return self._optimizer.norm()
        return torch.nn.utils.clip_grad_norm_(
            self.module.parameters(), self._settings.max_grad_norm or float("inf")
        )

    def learning_rate(self, index: int) -> float:
        return self._settings.lr.at(index, self._steps)

    @property
    def skipped(self) -> int:
        """Updates left out because of Inf or NaN in their gradients."""
        return self._engine.skipped_steps + self._hooks.skipped

    @property
    def applied_norm(self) -> Tensor | None:
        """Gradient norm of the last update, where it is known and the update was not skipped."""
        return None if self._skips.in_a_row else self._norm

    def _scale_is_lowest(self) -> bool:
        """Whether the scale of fp16 gradients cannot be lowered any further."""
        return self.precision == "fp16" and self._loss_scale() <= LOWEST_LOSS_SCALE

    def _loss_scale(self) -> float:
        return float(getattr(self._engine.optimizer, "loss_scale", 1.0))

    def status(self) -> dict[str, float]:
        """Gradient norm, loss scales and skipped updates, as of the last update."""
        return {
            "grad_norm": float("nan") if self._norm is None else float(self._norm),
            "loss_scale": self._loss_scale(),
            "skipped_updates": float(self.skipped),
            **self._hooks.status(),
        }

    def assign(self, weights: Mapping[str, Tensor]) -> None:
        """Put whole weights into the module, and into what the optimizer updates.

        Writing into the module alone is undone by the next update: under ZeRO and in 16 bits the
        optimizer has copies. Moments stay as they are. Every process calls it with the same
        weights; a module that is given to `Engine` may hold them already.

        Raises:
            KeyError: the part has no weight of that name.
        """
        own = dict(self.module.named_parameters())
        chosen = [own[name] for name in weights]
        gathered = deepspeed.zero.GatheredParameters(chosen, modifier_rank=0)
        with torch.no_grad(), gathered if self.zero == 3 else nullcontext():
            for weight, value in zip(chosen, weights.values(), strict=True):
                weight.data.copy_(value)
        if hasattr(self._engine.optimizer, "refresh_fp32_params"):
            self._engine.optimizer.refresh_fp32_params()

    def local_weights(self) -> dict[str, Tensor]:
        """This process's own weights by name: whole tensors, or flat shards under ZeRO-3."""
        weights = dict(self.module.named_parameters())
        if self.zero == 3:
            return {name: weight.ds_tensor.data for name, weight in weights.items()}  # type: ignore[attr-defined]
        return {name: weight.data for name, weight in weights.items()}

    def own_numbers(self, local: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """What `local_weights` is like, without the padding of ZeRO-3's last shard."""
        if self.zero != 3:
            yield from local.items()
            return
        numbers = {name: weight.ds_numel for name, weight in self.module.named_parameters()}  # type: ignore[attr-defined]
        for name, shard in local.items():
            whole = numbers[name.rpartition("/")[2]]
            first = self._world.rank * shard.numel()
            yield name, shard.flatten()[: min(max(whole - first, 0), shard.numel())]

    def persistent_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """The buffers that are saved; masks, which may be infinite, are not among them."""
        saved = self.module.state_dict()
        yield from ((name, each) for name, each in self.module.named_buffers() if name in saved)

    def optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        """What the optimizer keeps for each weight, or for each group of them under ZeRO."""
        inner = getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)
        names = {id(weight): name for name, weight in self.module.named_parameters()}
        for number, (weight, state) in enumerate(inner.state.items()):
            name = names.get(id(weight), f"group {number}")
            for key, value in state.items():
                if isinstance(value, Tensor):
                    yield f"{name}, {key},", value

    def gather_full_state(self, local: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors, on the CPU, from what `local_weights` is like on every process."""
        if self.zero != 3:
            return {name: value.detach().cpu() for name, value in local.items()}
        wholes = {}
        for name, weight in self.module.named_parameters():
            flat = distributed.gather_shards(local[name].flatten())
            numel: int = weight.ds_numel  # type: ignore[attr-defined]
            shape: torch.Size = weight.ds_shape  # type: ignore[attr-defined]
            wholes[name] = flat[:numel].view(shape).cpu()
        return wholes

    def save(self, directory: str) -> None:
        """Write this process's files of the part; every process calls it."""
        self._engine.save_checkpoint(directory, tag=self.part, save_latest=False)
        self._hooks.save(self._hooks_file(directory))
        groups.write(self._groups_file(directory), self._groups)

    def restore(self, directory: str) -> None:
        """Read what `save` wrote. DeepSpeed unpickles: call it only on verified files.

        Raises:
            UserError: it has other groups of weights, or DeepSpeed's files are missing.
        """
        groups.check(self._groups_file(directory), self._groups)
        path, _ = self._engine.load_checkpoint(directory, tag=self.part)
        if path is None:
            raise UserError(f"{directory}/{self.part}: DeepSpeed finds no checkpoint there")
        self._hooks.restore(self._hooks_file(directory))
        self._skips.total = self.skipped

    def _groups_file(self, directory: str) -> Path:
        return Path(directory) / groups.file_name(self.part, self._world.rank)

    def _hooks_file(self, directory: str) -> Path:
        return Path(directory) / f"rules-{self.part}-rank_{self._world.rank}_.safetensors"


class NonFiniteGradientsError(Exception):
    """Inf or NaN in the gradients of a part, update after update, that no smaller scale cures."""

    def __init__(self, part: str, step: int, skipped: int) -> None:
        super().__init__(
            f"the gradients of {part} are not finite at step {step}: its last {skipped} updates "
            "were skipped"
        )


@dataclass
class Skips:
    """Updates skipped one after the other."""

    most: int
    """So many are normal: a loss scale falls by half at each."""
    total: int = 0
    in_a_row: int = 0
    hopeless: bool = False

    def count(self, total: int, *, at_lowest: bool) -> None:
        """Take note, after an update, of how many were skipped so far."""
        skipped, self.total = total > self.total, total
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        self.hopeless = skipped and (at_lowest or self.in_a_row > self.most)


@contextmanager
def _explained(part: str, step: int, skipped: int) -> Iterator[None]:
    """DeepSpeed's bare exception for a loss scale that cannot fall, by a type of its own."""
    try:
        yield
    except Exception as error:
        if "loss scale already at minimum" not in str(error):
            raise
        raise NonFiniteGradientsError(part, step, skipped) from error


def _shard(parameters: Iterable[nn.Parameter], config: dict[str, Any]) -> None:
    """Shard parameters over the processes one after the other: at most one is whole at a time."""
    first: Any = None
    for parameter in parameters:
        if first is None:
            deepspeed.zero.Init(module=nn.ParameterList([parameter]), config_dict_or_path=config)
            first = parameter
        else:
            first.convert_to_zero_parameters(param_list=[parameter])
        malloc.malloc_trim()


def _is_relevant(record: logging.LogRecord) -> bool:
    """DeepSpeed warns of every optimizer that is not on its list; ours is tested here."""
    return "untested optimizer" not in record.getMessage()


def start(world: World) -> None:
    """Join the process group and hand it to DeepSpeed."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    logging.getLogger("DeepSpeed").addFilter(_is_relevant)
    # DeepSpeed's own calls, at every step
    warnings.filterwarnings("ignore", r"`torch\.distributed\..*deprecated", FutureWarning)
    # gloo serves: the shared-memory op takes a minute to compile, in every new environment
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    distributed.join(world)
    deepspeed.init_distributed(world.backend, dist_init_required=False, verbose=False)


def build(
    parts: Mapping[str, nn.Module], recipe: Recipe, world: World, checkpoint: Path | None = None
) -> dict[str, Engine]:
    """One engine per part of a task; `checkpoint` is the one to be restored, if any."""
    prepare(parts, recipe)
    precision = resolve_precision(recipe.engine.precision, world.device)
    engines = {
        name: Engine(name, module, recipe, world, precision, groups.saved_order(checkpoint, name))
        for name, module in parts.items()
    }
    malloc.set_malloc_thresholds()
    return engines
