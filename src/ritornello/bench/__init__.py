"""The benchmark behind `rit bench`: cells against torch.nn, a Python loop, `jax.lax.scan` and the fastest GEMM.

A question is a function of `sections`; `goals` says what was promised; `cells` holds cells that the library lacks.
"""

from ritornello.bench.check import Mismatch
from ritornello.bench.roster import entries
from ritornello.bench.settings import Settings
from ritornello.bench.suite import run

__all__ = ["Mismatch", "Settings", "entries", "run"]
