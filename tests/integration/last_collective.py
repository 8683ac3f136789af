"""A rank that ends after a collective, with something that Python would do at its very end."""

import atexit
import sys

import torch
import torch.distributed as dist

from launch.errors import run_command
from trainer.distributed import join, world_from_environment


class Last:
    """Writes a line when Python clears its modules."""

    def __del__(self) -> None:
        sys.__stdout__.write("the interpreter was ended\n")


last = Last()


def main() -> None:
    join(world_from_environment())
    atexit.register(sys.stdout.write, "cleanup was done\n")
    dist.all_reduce(torch.ones(1, device="cpu"))


if __name__ == "__main__":
    run_command(main)
