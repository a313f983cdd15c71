"""The version of pyseq: read by the package, the build and the checkpoints, without importing anything else."""

__version__ = "0.1.0"
