"""The errors a user can cause: each is one line that says what is wrong, where, and what to do."""

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """A mistake in input or environment. The command line prints it as one line and exits with `code`."""

    code = 2


class Diverged(BenchError):
    """Training produced a non-finite loss, or ended no better than predicting zero."""

    code = 4


def unknown(kind: str, given: str, allowed: Iterable[str], where: str = "") -> BenchError:
    """Error for a name that is not among `allowed`, with the nearest valid choice first."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(given, allowed, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    place = f"{where}: " if where else ""
    return BenchError(f"{place}unknown {kind} '{given}'; {hint}allowed: {', '.join(allowed)}")
