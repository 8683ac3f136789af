"""What the trainer refuses, said in one sentence."""


class TrainError(Exception):
    """Bad input or an impossible situation: the message names the file or key and the next step."""
