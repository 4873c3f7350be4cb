"""The command `headstart`. Each of its commands stands in a file of its own."""

from __future__ import annotations

try:
    import click
    import rich as rich  # what the commands show their results with
except ImportError as missing:
    raise SystemExit(
        f'Please install `{missing.name}`: pip install "headstart[cli]"'
    ) from None

from .cli_demo import demo
from .cli_evaluate import evaluate
from .cli_learn import learn
from .cli_replay import replay


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headstart")
def main() -> None:
    """Start an agent's work before it is certain; hold its effects until it is."""


main.add_command(demo)
main.add_command(evaluate)
main.add_command(learn)
main.add_command(replay)
