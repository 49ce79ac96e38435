"""`python -m study` is the command `dyme`."""
from study.cli import main

main()
