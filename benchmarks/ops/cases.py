"""Every case of an operation."""

from ..cases import cases_of

CASES = cases_of("ops")
