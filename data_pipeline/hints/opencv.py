"""OpenCV, imported when it is first used.

OpenCV has every filter that hints need and releases the interpreter's lock, and its Canny detector
is the one that ControlNet's released edge models were trained with.
"""

import os
from functools import cache
from importlib.metadata import version
from types import ModuleType

LIBRARY = "opencv-python-headless"


@cache
def opencv() -> ModuleType:
    """The module `cv2`, without what its import does to LD_LIBRARY_PATH.

    It sets the variable for child processes, with an empty entry, which is the working directory.
    """
    before = os.environ.get("LD_LIBRARY_PATH")
    import cv2

    if before is None:
        os.environ.pop("LD_LIBRARY_PATH", None)
    else:
        os.environ["LD_LIBRARY_PATH"] = before
    return cv2


@cache
def library_version() -> str:
    """The version of OpenCV."""
    return version(LIBRARY)
