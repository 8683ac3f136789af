"""A rank that ends while gloo still drops the tensors of its last collective."""

import torch
import torch.distributed as dist

from launch.errors import run_command
from trainer.distributed import join, world_from_environment

TENSORS = 20_000


def main() -> None:
    join(world_from_environment())
    dist.all_reduce_coalesced([torch.ones(1, device="cpu") for _ in range(TENSORS)])


if __name__ == "__main__":
    run_command(main)
