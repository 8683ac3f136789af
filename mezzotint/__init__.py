"""Text-to-image systems of the VAE-and-diffusion lineage, trained at scale.

The public functions are those of `mezzotint.api`, which is imported when one is first used.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mezzotint.api import System, evaluate, load, open_dataset, train

__all__ = ["System", "evaluate", "load", "open_dataset", "train"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'mezzotint' has no attribute '{name}'")
    from mezzotint import api

    return vars(api)[name]
