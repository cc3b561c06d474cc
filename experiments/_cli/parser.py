"""Parser of all command lines."""

import argparse
import sys
from collections.abc import Sequence


class Parser(argparse.ArgumentParser):
    """Argument parser that refuses ``--option=--``, which Python before 3.13 takes for no value.

    Arguments are those of ``argparse.ArgumentParser``.
    """

    def parse_known_args(  # type: ignore[override]  # of several forms there
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """See ``argparse.ArgumentParser``."""
        for argument in sys.argv[1:] if args is None else args:
            option, _, value = argument.partition("=")
            if option.startswith("-") and value == "--":
                self.error(
                    f"argument {option}: must have a value, got '--'; give one, or leave out"
                )
        return super().parse_known_args(args, namespace)
