"""`python -m ringload`, which is `ringload`."""

from ringload.insight.cli import main

main(prog_name="python -m ringload")
