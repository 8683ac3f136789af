"""What the command line refuses, said in one sentence."""


class LaunchError(Exception):
    """Bad input: the message names the file, key or option and the next step."""
