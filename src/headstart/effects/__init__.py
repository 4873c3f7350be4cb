"""Effect seams: effects wait at the barrier without their author having to remember.

```python
from headstart.effects import hold

async with hold("a letter"):
    await post_office.send(letter)
```

Each further seam is a module of its own, with an extra of its own.

Importing this has threads noted that lose the context of the call they work for: at the
first hold it would be too late for the thread that it is in.
"""

from headstart._seams import (
    Seam as Seam,
    SeamCounts as SeamCounts,
    hold as hold,
    hold_blocking as hold_blocking,
    run_in_own_thread as run_in_thread,
)
from headstart._thread_guard import guard_threads

__all__ = ("Seam", "SeamCounts", "hold", "hold_blocking", "run_in_thread")

guard_threads()
