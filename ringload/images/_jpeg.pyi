import numpy as np

LIBRARY: str

def header(data: memoryview) -> tuple[int, int, bool]: ...
def decode(
    data: memoryview,
    eighths: int,
    part: tuple[float, float, float, float],
    out: np.ndarray,
    mirrored: bool,
    levels: np.ndarray | None,
) -> None: ...
