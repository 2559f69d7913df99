"""Runs a program as long as the process that asked for it lives; started as a file, by Python without its site.

    python -I -S launcher.py PARENT PROGRAM ARGUMENTS...

In: the id of the process that starts it, and the program's words. Out: the program's exit status, or the signal that
ended it. It leads the group in which the program runs. When its parent has ended, even by SIGKILL, it kills the group;
SIGTERM, and other requests to end, it leaves to the program, which may put its things away.
"""

import os
import resource
import signal
import sys

EVERY = 0.2
"""Seconds after which it looks again whether its parent lives."""
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals by which a group is asked to end."""
OURS = (*ASKING, signal.SIGPIPE, signal.SIGXFSZ)
"""What this process ignores, and a program does not."""


def main() -> None:
    """Run the program, and end as it ends."""
    parent, *words = sys.argv[1:]

    def look(*_: object) -> None:
        if os.getppid() != int(parent):
            os.killpg(0, signal.SIGKILL)

    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, EVERY, EVERY)
    look()
    try:
        program = os.posix_spawnp(words[0], words, os.environ, setsigdef=OURS)
        status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    except OSError as error:
        sys.exit(f"{words[0]} cannot be started: {error.strerror}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # when Python ends, nobody waits for the alarm any more
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the program has left its own, if it may
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main()
