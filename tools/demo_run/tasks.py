"""Tasks of a study: each is run once, and its file says that it is complete."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from .parallel import BEGIN, DONE


class Tasks:
    """Runs tasks one after the other; nothing complete is repeated.

    Args:
        name: Of what the tasks belong to, for the lines that it prints.
        folder: Where a task's file goes, `<task>.json`.
        key: Digest of what the results depend on; a file with another one is out of date.
    """

    def __init__(self, name: str, folder: Path, key: str) -> None:
        self.name, self.folder, self.key = name, folder, key

    def once(self, task: str, run: Callable[[], dict]) -> None:
        """Run a task unless its file says that it is complete, and say so."""
        path, name = self.folder / f'{task}.json', f'{self.name}/{task}'
        old = json.loads(path.read_text()) if path.exists() else {}
        if old.get('key') == self.key:
            said = 'complete'
        else:
            print(f'{BEGIN}{name}', flush=True)
            start = time.monotonic()
            result = run()
            seconds = round(time.monotonic() - start, 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({'key': self.key, 'seconds': seconds, 'result': result}))
            said = ', '.join(f'{key} {shorten(value)}' for key, value in result.items())
        print(f'{DONE}{name}: {said}', flush=True)


def shorten(value: float) -> str:
    """A percentage with one digit behind the point, anything up to 1 with three."""
    return f'{value:.3f}' if abs(value) <= 1 else f'{value:.1f}'
