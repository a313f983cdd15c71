"""Benchmarks of pyseq: ``python -m benchmarks``, installed ``pyseq-bench`` (as the package pyseq_benchmarks)."""
