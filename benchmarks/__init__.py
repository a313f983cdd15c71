"""Benchmarks of pyseq: ``python -m benchmarks.<name>`` prints a table, ``--json FILE`` also writes it."""
