"""Keep freed memory in the process: a training step frees and allocates the same megabytes again and again.

The C library hands large freed blocks back to the operating system and gets them again as pages of zeros, at
a page fault each 4 KiB. Keeping them saves a small model 0-5 % of its training time (near the noise).
"""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h, M_... there
KEPT = 512 * 2**20
LARGEST = 32 * 2**20  # the largest value glibc accepts for MMAP_THRESHOLD on 64 bits


def keep_freed_memory() -> bool:
    """Let the process reuse up to 512 MiB it has freed; call once at its start. False without glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGEST) and mallopt(TRIM_THRESHOLD, KEPT))
