"""Goes on with a run of `test_storage.py` where no file may grow beyond half a checkpoint.

Arguments: the folder of the run. Python ignores the signal, so writing fails as on a full disk.
"""

import resource
import sys
from pathlib import Path

from .runs import SIZE, make_runner

resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, SIZE // 2))
make_runner(Path(sys.argv[1]), epochs=3, resume=True, interval=1).train()
