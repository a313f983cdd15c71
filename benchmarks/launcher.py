"""Starts a command, waits for it, and writes what it took to a file: ``python -I -S launcher.py FILE COMMAND ...``

A process of its own because Linux hands the peak memory of whoever starts a process down to it; this one is small.
The file gets a JSON object: begin and end (seconds of the monotonic clock), cpu_seconds, resident_bytes, code.
"""

import json
import os
import subprocess
import sys
import time

if __name__ == "__main__":
    path, command = sys.argv[1], sys.argv[2:]
    begin = time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    found = {
        "begin": begin,
        "end": time.monotonic(),
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "resident_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "code": os.waitstatus_to_exitcode(status),
    }
    with open(path, "w") as file:
        json.dump(found, file)
