"""How training on this machine ends early."""


class Stopped(Exception):
    """Training ended before its last step; `code` is what the process exits with."""

    def __init__(self, code: int) -> None:
        super().__init__(f"training stopped with exit code {code}")
        self.code = code
