"""The one place where an exception becomes a message and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from pyseq.errors import UserError

EXIT_USER_ERROR = 1
EXIT_SIGNAL = 128
EXIT_INTERRUPTED = EXIT_SIGNAL + 2


def run(main: Callable[[list[str] | None], object]) -> None:
    """Run a command's ``main`` as a console script and exit.

    A :class:`UserError`, a missing file or a full disk is told in one message on standard error and exits with 1;
    Ctrl-C exits with 130; a defect keeps its traceback. Set ``PYSEQ_TRACEBACK=1`` to see every traceback.
    """
    try:
        main(None)
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            # The reader of our output (head, less) has gone: nothing to say, and nobody to say it to.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(EXIT_USER_ERROR)
        if os.environ.get("PYSEQ_TRACEBACK"):
            raise
        command = os.path.basename(sys.argv[0])
        sys.stdout.flush()
        print(f"{command}: error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        sys.stdout.flush()
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
