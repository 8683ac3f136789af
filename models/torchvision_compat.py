"""Makes `import torchvision` work beside a CPU build of torch.

The torchvision wheel's compiled operators want CUDA libraries. Where they cannot load, importing
torchvision fails with "operator torchvision::nms does not exist". `ensure_torchvision` then
declares the schemas that the import asks for; the operators themselves stay unusable, and nothing
here calls them. Where the operators load, it does nothing. Call it before importing open_clip or
timm.
"""

import importlib
import sys

import torch

_SCHEMAS = ("nms", "qnms")
_kept: list[torch.library.Library] = []


def ensure_torchvision() -> None:
    """Import torchvision, declaring its missing operator schemas where that is what fails.

    Raises:
        RuntimeError: the import fails for another reason.
    """
    if "torchvision" in sys.modules:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        # the schemas are gone when the library is not kept alive
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in _SCHEMAS:
            schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(schema)  # type: ignore[no-untyped-call]
        _kept.append(library)
        importlib.import_module("torchvision")
