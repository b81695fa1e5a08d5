"""`python -m itpn_mm doctor`: what is installed, what can run, what mends the rest."""

import argparse
import sys

from . import doctor


def main(argv: list[str] | None = None) -> int:
    """Run the command named in `argv` and return the exit status."""
    parser = argparse.ArgumentParser(prog='python -m itpn_mm', description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    commands.add_parser(
        'doctor', help='report what is installed and what can run; 1 if nothing can'
    )
    parser.parse_args(argv)
    return doctor.main()


if __name__ == '__main__':
    sys.exit(main())
