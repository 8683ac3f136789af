"""DeepSpeed engines, one per trainable part. The only file that imports deepspeed."""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from trainer import distributed
from trainer.distributed import World
from trainer.errors import TrainError
from trainer.recipe import Precision, Recipe
from trainer.schedules import OptimizerConfig


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """What `auto` means on this device: bf16 where it is fast, else fp16 (GPU) or fp32 (CPU).

    On a CPU with AVX512-BF16 instructions weights stay fp32 and matrix products run in bf16.
    """
    if precision == "fp16" and device.type == "cpu":
        raise TrainError(
            "engine.precision: fp16 is not supported on this CPU; use auto, fp32 or bf16"
        )
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "autocast_bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def deepspeed_config(recipe: Recipe, part: str, world: int, precision: Precision) -> dict[str, Any]:
    """DeepSpeed's JSON for one part, derived from the recipe and the number of processes."""
    micro = recipe.micro_batch_for(world)
    optimizer = recipe.optimizer_of(part)
    config: dict[str, Any] = {
        "train_batch_size": recipe.batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": recipe.batch // (micro * world),
        "gradient_clipping": optimizer.clip or 0.0,
        "zero_optimization": {"stage": recipe.engine.zero},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    if recipe.engine.zero == 3:
        config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = False
    match precision:
        case "fp32":
            pass
        case "autocast_bf16":
            config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        case "bf16":
            config["bf16"] = {"enabled": True}
        case "fp16":
            config["fp16"] = {"enabled": True, "initial_scale_power": 16}
        case "auto":
            raise ValueError("precision must be resolved first")
    return config


class Engine:
    """One part under DeepSpeed: forward, backward, step, and a view of its weights."""

    def __init__(
        self, part: str, module: nn.Module, recipe: Recipe, world: World, precision: Precision
    ) -> None:
        self.part = part
        self.zero = recipe.engine.zero
        self.precision = precision
        self.config = deepspeed_config(recipe, part, world.size, precision)
        self._settings: OptimizerConfig = recipe.optimizer_of(part)
        # DeepSpeed clips and knows the norm only where it wraps the optimizer
        self._clips_itself = self.zero == 0 and precision in ("fp32", "autocast_bf16")
        if self._clips_itself:
            self.config["gradient_clipping"] = 0.0
        module.to(world.device)
        trainable = [weight for weight in module.parameters() if weight.requires_grad]
        settings = self._settings
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=torch.optim.AdamW(
                trainable,
                lr=settings.lr.peak,
                betas=settings.betas,
                eps=settings.eps,
                weight_decay=settings.weight_decay,
                fused=True,
            ),
            config=self.config,
            dist_init_required=False,
        )
        if self._clips_itself and world.size == 1:
            # nobody to average with: DeepSpeed would still copy all gradients there and back
            self._engine.enable_backward_allreduce = False
        self._steps = recipe.steps
        self._norm: Tensor | None = None

    @property
    def module(self) -> nn.Module:
        """The bare part: for scoring by another part's loss, previews and export."""
        module: nn.Module = self._engine.module
        return module

    def __call__(self, *inputs: Any) -> Any:  # noqa: ANN401 - whatever the part's forward takes
        """Forward through DeepSpeed."""
        return self._engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of one micro-batch's loss."""
        self._engine.backward(loss)

    def step(self, index: int) -> None:
        """Close one micro-batch; at the end of the accumulation, update at the rate of `index`."""
        closes = self._engine.is_gradient_accumulation_boundary()
        if closes:
            for group in self._engine.optimizer.param_groups:
                group["lr"] = self.learning_rate(index)
            if self._clips_itself:
                self._norm = torch.nn.utils.clip_grad_norm_(
                    self.module.parameters(), self._settings.clip or float("inf")
                )
        self._engine.step()
        if closes and not self._clips_itself:
            norm = self._engine.get_global_grad_norm()
            self._norm = None if norm is None else torch.as_tensor(norm)

    def learning_rate(self, index: int) -> float:
        """The rate of update `index`."""
        return self._settings.lr.at(index, self._steps)

    def status(self) -> dict[str, float]:
        """Gradient norm, loss scale and skipped updates, as of the last update."""
        scale = getattr(self._engine.optimizer, "cur_scale", 1.0)
        return {
            "grad_norm": float("nan") if self._norm is None else float(self._norm),
            "loss_scale": float(scale),
            "skipped_updates": float(self._engine.skipped_steps),
        }

    def local_weights(self) -> dict[str, Tensor]:
        """This process's own weights by name: whole tensors, or flat shards under ZeRO-3."""
        weights = dict(self.module.named_parameters())
        if self.zero == 3:
            return {name: weight.ds_tensor.data for name, weight in weights.items()}  # type: ignore[attr-defined]
        return {name: weight.data for name, weight in weights.items()}

    def whole(self, local: Mapping[str, Tensor]) -> dict[str, Tensor]:
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

    def restore(self, directory: str) -> None:
        """Read what `save` wrote. DeepSpeed unpickles: call it only on verified files."""
        path, _ = self._engine.load_checkpoint(directory, tag=self.part)
        if path is None:
            raise TrainError(f"{directory}/{self.part}: DeepSpeed finds no checkpoint there")


def start(world: World) -> None:
    """Join the process group and hand it to DeepSpeed."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed's own calls, at every step
    warnings.filterwarnings("ignore", r"`torch\.distributed\..*deprecated", FutureWarning)
    # gloo serves: the shared-memory op takes a minute to compile, in every new environment
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    distributed.join(world)
    deepspeed.init_distributed(world.backend, dist_init_required=False, verbose=False)


def build(parts: Mapping[str, nn.Module], recipe: Recipe, world: World) -> dict[str, Engine]:
    """One engine per part of a task."""
    unknown = set(recipe.optimizers) - set(parts)
    if unknown:
        raise TrainError(
            f"optimizers.{sorted(unknown)[0]}: no such part; this task's parts are "
            f"{', '.join(sorted(parts))}"
        )
    precision = resolve_precision(recipe.engine.precision, world.device)
    return {name: Engine(name, module, recipe, world, precision) for name, module in parts.items()}
