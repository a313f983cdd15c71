"""Speed of the operations: ours, their peers and the machine's ceilings, in one table and one JSON.

    python -m benchmarks.ops                                  every case that this device has
    python -m benchmarks.ops adam 'cross_entropy/*bf16*'
    python -m benchmarks.ops --check                          and hold the figures against the targets

--help tells the rest; python -m benchmarks list prints the names.
"""

from .. import command
from .cases import CASES

if __name__ == "__main__":
    raise SystemExit(command.main(CASES, description=__doc__))
