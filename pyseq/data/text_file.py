"""Reading text files line by line, in pieces that several processes can share.

A line ends at ``\n``, ``\r\n`` or a lone ``\r`` (Python's universal newlines, which is also what decides the number of
sentences in datasets made by fairseq). A last line without an end counts.
"""

from __future__ import annotations

import concurrent.futures
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

from pyseq.errors import DataError

T = TypeVar("T")
Piece = tuple[int, int]
Progress = Callable[[int], object]

PIECE_BYTES = 8 << 20
# Below this a piece takes less time than starting a process and sending the result.
LEAST_PIECE_BYTES = 1 << 18


class LineError(Exception):
    """Something is wrong on one line of a piece: ``LineError(line, message)``, counted from 1 within the piece."""


def tokenize_line(line: str) -> list[str]:
    """The words of a line: what stands between runs of whitespace (as Unicode defines it)."""
    return line.split()


def pieces_of(path: str, workers: int = 1) -> Iterator[Piece]:
    """Byte ranges ``(start, end)`` that cover the file, each ending at the end of a line.

    The number of workers changes where the file is cut, never what the pieces put together say.
    """
    size = os.path.getsize(path)
    step = min(PIECE_BYTES, max(LEAST_PIECE_BYTES, size // workers + 1))
    start = 0
    with open(path, "rb") as file:
        while start < size:
            file.seek(min(start + step, size))
            file.readline()
            end = file.tell()
            yield start, end
            start = end


def read_bytes(path: str, start: int, end: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(end - start)


def read_text(path: str, start: int, end: int) -> str:
    r"""The text of one piece, with ``\n`` as the only line end. Raises LineError as :func:`decode`."""
    text = decode(read_bytes(path, start, end))
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def decode(data: bytes) -> str:
    """The text of whole lines.

    Raises:
        LineError: the bytes are not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = count_line_ends(data[: error.start]) + 1
        message = f"byte 0x{data[error.start]:02x} is not valid UTF-8; convert the file (for example with iconv)"
        raise LineError(line, message) from None


def read_lines(path: str, start: int, end: int) -> list[str]:
    """The lines of one piece, without their ends. Raises LineError as :func:`read_text`."""
    return lines_of(read_text(path, start, end))


def lines_of(text: str) -> list[str]:
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return lines


def count_line_ends(data: bytes) -> int:
    return data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")


def count_lines(path: str, end: int | None = None) -> int:
    """Lines in the file, or in its first ``end`` bytes (which must end with a line)."""
    lines, last = 0, b"\n"
    with open(path, "rb") as file:
        for start, stop in pieces_of(path):
            if end is not None and start >= end:
                break
            data = file.read((stop if end is None else min(stop, end)) - start)
            lines += count_line_ends(data)
            last = data[-1:]
    return lines + (last not in (b"\n", b"\r"))


def iterate_lines(path: str) -> Iterator[str]:
    """All lines of the file. Raises DataError (file and line) where it is not UTF-8."""
    for lines in map_pieces(read_lines, path):
        yield from lines


def map_pieces(
    task: Callable[[str, int, int], T], path: str, workers: int = 1, progress: Progress | None = None
) -> Iterator[T]:
    """``task(path, start, end)`` for each piece of the file, in the order of the file.

    Args:
        task: raises LineError for what is wrong on a line. Picklable, where processes are not forked.
        workers: processes to use; 1 means this one.
        progress: called with the number of bytes done since the last call.

    Raises:
        DataError: ``task`` raised a LineError, a worker was killed, or there is no such file.
    """
    if not os.path.isfile(path):
        raise DataError(f"{path}: no such file")
    pieces = list(pieces_of(path, workers))
    workers = min(workers, len(pieces))
    results = in_processes(task, path, pieces, workers) if workers > 1 else in_this_process(task, path, pieces)
    for (start, end), result in results:
        try:
            value = result()
        except LineError as error:
            line, message = error.args
            raise DataError(f"{path}:{count_lines(path, start) + line}: {message}") from None
        except concurrent.futures.BrokenExecutor:
            raise DataError(
                f"{path}: a worker process was killed (out of memory?); try again with fewer workers"
            ) from None
        yield value
        if progress is not None:
            progress(end - start)


def in_this_process(
    task: Callable[[str, int, int], T], path: str, pieces: Iterable[Piece]
) -> Iterator[tuple[Piece, Callable[[], T]]]:
    for piece in pieces:
        yield piece, partial(task, path, *piece)


def in_processes(
    task: Callable[[str, int, int], T], path: str, pieces: Iterable[Piece], workers: int
) -> Iterator[tuple[Piece, Callable[[], T]]]:
    import multiprocessing

    # Forked, so that a task's dictionary is shared and not sent to each process.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    executor = concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=start_worker, initargs=(task,)
    )
    waiting: deque[tuple[Piece, Callable[[], T]]] = deque()
    try:
        for piece in pieces:
            waiting.append((piece, executor.submit(work, path, *piece).result))
            # A bounded queue: results are as large as the text, and the reader may be slower than the workers.
            if len(waiting) >= 2 * workers:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        executor.shutdown(cancel_futures=True)


_task: Callable[[str, int, int], Any]


def start_worker(task: Callable[[str, int, int], Any]) -> None:
    global _task
    _task = task
    # Ctrl-C reaches the whole process group; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def work(path: str, start: int, end: int) -> Any:
    return _task(path, start, end)
