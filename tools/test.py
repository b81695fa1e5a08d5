"""Test a config of any of the four packages, with the stock script of its `default_scope`.

    python tools/test.py CONFIG CHECKPOINT [arguments]

Every argument goes to that script unchanged (see `<package>/.mim/tools/test.py`).
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec('itpn_mm') is None:  # a clone that is not installed
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from itpn_mm.launch import hand_over

# Processes that the stock script spawns import this file again.
if __name__ == '__main__':
    if sys.argv[1:] in ([], ['-h'], ['--help']):
        sys.exit(__doc__.strip())
    hand_over('test.py', 'test', sys.argv[1:])
