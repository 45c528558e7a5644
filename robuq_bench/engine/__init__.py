"""The packed format (storage, packed, export) and, in `kernels`, the GPU kernels that multiply such weights."""
