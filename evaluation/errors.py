"""What an evaluation refuses, said in one sentence."""


class EvaluationError(Exception):
    """Bad input or an impossible request: the message names the file or key and the next step."""
