"""Exit codes of the `fanin` command, which people script against."""

DONE = 0
FAILED = 1  # runs failed; or the tracking store or the disk did, and trying again may help
BAD_INPUT = 2
INTERRUPTED = 130  # as a shell has it for Ctrl-C
