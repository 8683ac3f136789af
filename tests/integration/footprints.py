"""Weighs engines in one process: `python footprints.py FILE`, FILE a list of settings in JSON.

Every live tensor's storage is counted once, whoever holds it; what was there before the engine is
not. The answers go to FILE with the rank as suffix.
"""

import gc
import hashlib
import warnings
from pathlib import Path

import torch
from entries import answer_entries

from launch.errors import run_command
from models.autoregressive.prior import weighted
from trainer import distributed, engine
from trainer.averages.ema import Ema
from trainer.checkpoint import Checkpoints
from trainer.recipe import load

Bytes = dict[int, int]


def live() -> Bytes:
    """Bytes of every tensor storage of this process, by address."""
    gc.collect()
    found: Bytes = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated attributes of unrelated objects
        for thing in gc.get_objects():
            if issubclass(type(thing), torch.Tensor) and not thing.is_meta:
                storage = thing.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    found.pop(0, None)
    return found


def storages(tensors) -> Bytes:
    return {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}


def weigh(overrides: list[str], root: Path, world: distributed.World) -> dict[str, int | str]:
    recipe = load("recipes/emoji_prior.yaml", overrides)
    before = live()
    with torch.device("meta"):
        part = recipe.model.build()
    built = engine.Engine("model", part, recipe, world, recipe.engine.precision)
    initial = digest(built.gather_full_state(built.local_weights()))
    optimizer = built._engine.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    ema = Ema(built, recipe.ema)

    def fresh() -> Bytes:
        return {place: size for place, size in live().items() if place not in before}

    seen: dict[str, Bytes] = {}
    last = False

    def note(moment: str) -> None:
        if last:
            seen[moment] = fresh()

    inner.register_step_pre_hook(lambda *_: note("update"))
    part.blocks[0].register_full_backward_hook(lambda *_: note("backward"))
    micro = recipe.micro_batch_for(world.size)
    text, codes = inputs(recipe.model, micro)
    rounds = recipe.batch // (micro * world.size)
    for step in range(2):
        for place in range(rounds):
            last = step == 1 and place == rounds - 1
            loss = weighted(built(text, codes, codes))
            built.backward(loss)
            del loss
            note("gradients")
            built.step(step)
        ema.update()
    note("held")
    moments = storages(
        value for state in inner.state.values() for value in state.values() if value.ndim
    )
    whole = storages(weight.data for weight in part.parameters())
    weights, held = storages(built.local_weights().values()), seen["held"]
    copies = masters(optimizer, inner)
    master = {place: size for place, size in copies.items() if place not in weights}
    known = {**weights, **moments, **master, **storages(ema.values.values())}
    path = Checkpoints(root, world, keep=1).save(1, {"model": built}, {"model": ema}, {"stream": 0})
    answer = {
        "initial": initial,
        "weights": sum(weights.values()),
        "persistent": sum(size for place, size in whole.items() if place not in weights),
        "moments": sum(moments.values()),
        "master": sum(master.values()),
        "averages": sum(storages(ema.values.values()).values()),
        "held": sum(held.values()),
        "checkpoint": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        "unknown": sum(size for place, size in held.items() if place not in {**known, **whole}),
        **{
            moment: sum(size for place, size in seen[moment].items() if place not in held)
            for moment in ("backward", "gradients", "update")
        },
    }
    built._engine.destroy()
    return answer


def digest(weights: dict[str, torch.Tensor]) -> str:
    """Of the bytes of all weights, as bf16, by name."""
    found = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        found.update(name.encode() + weight.bfloat16().view(torch.int16).numpy().tobytes())
    return found.hexdigest()


def inputs(config, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions and codes for a prior."""
    text = torch.randint(1, config.text_vocab, (count, config.text_length), generator=rng())
    codes = torch.randint(0, config.image_vocab, (count, config.image_length), generator=rng())
    return text, codes


def masters(optimizer, inner) -> Bytes:
    """What the optimizer updates: copies of DeepSpeed's, or the weights themselves."""
    return storages(
        getattr(optimizer, "fp32_partitioned_groups_flat", None)
        or (weight for group in inner.param_groups for weight in group["params"])
    )


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def main() -> None:
    answer_entries(weigh)


if __name__ == "__main__":
    run_command(main)
