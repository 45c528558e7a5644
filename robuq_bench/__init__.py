"""robuq_bench: an open, measured reproduction of RobuQ (W1.58A2 diffusion transformers)."""

__version__ = "0.1.0"
