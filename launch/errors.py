"""What the command line refuses, said in one sentence."""


class LaunchError(Exception):
    """Bad input: the message names the file, key or option and the next step."""


class Stopped(Exception):
    """Training ended before its last step; `code` is what the process exits with."""

    def __init__(self, code: int) -> None:
        super().__init__(f"training stopped with exit code {code}")
        self.code = code
