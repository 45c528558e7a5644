"""Seeds derived from named axes, so that each source of noise can be held fixed while others vary."""

import hashlib


def seed(*axes: object) -> int:
    """A 63-bit seed from the axes, e.g. seed("train", 0, step). The same axes give the same seed everywhere."""
    text = "/".join(map(str, axes)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
