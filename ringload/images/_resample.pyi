import numpy as np

def scale(
    pixels: np.ndarray,
    part: tuple[float, float, float, float],
    out: np.ndarray,
    mirrored: bool,
    levels: np.ndarray | None,
) -> None: ...
