"""What the kernel and the interpreter give: memory, limits, forks. Knows no batch and no worker."""
