"""`python -m flows`: the program `nothing-gpt` where the project is not installed, as in the worker's image."""

from flows.cli import main

main()
