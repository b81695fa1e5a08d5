"""What integral pre-training brings, studied at a size that two cores can rerun.

See docs/pretraining.md; `python tools/benchmark_transfer.py` runs it.
"""

import sys
from pathlib import Path

# What reads the pictures out of packages, and runs processes side by side, is the demo's.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tools'))
