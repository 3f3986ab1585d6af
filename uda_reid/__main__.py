"""`python -m uda_reid` is `uda-reid`, under a launcher too: no module is imported from the working folder."""

from __future__ import annotations

import sys
from pathlib import Path

import uda_reid


def leave_out_working_folder() -> None:
    """Take away the entry of `sys.path` that `python -m` puts before all others, which `uda-reid` does not have.

    A folder of data or recipes of others is no place to import modules or installed strategies from. Where this
    package itself lies in the working folder, as in a checkout, the entry stays.
    """
    package, first = Path(uda_reid.__file__).resolve().parents[1], Path(sys.path[0])
    if not sys.flags.safe_path and first.resolve() == Path.cwd() != package:
        del sys.path[0]


if __name__ == "__main__":
    leave_out_working_folder()
    from uda_reid.cli import main

    main()
