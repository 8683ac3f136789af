def linear(
    x: int, weight: int, bias: int, to: int, out: int, rows: int, inputs: int, outputs: int, /
) -> None: ...

erf_linear = linear
tanh_linear = linear

def attend(
    qkv: int,
    store: int,
    scores: int,
    out: int,
    batch: int,
    heads: int,
    slots: int,
    width: int,
    slot: int,
    count: int,
    /,
) -> None: ...
def serves() -> bool: ...
