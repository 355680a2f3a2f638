"""The training step's fast path on a GPU: Triton kernels, imported only where they are used."""
