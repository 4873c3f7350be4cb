"""`python -m headstart`: the same as the command `headstart`."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="headstart")
