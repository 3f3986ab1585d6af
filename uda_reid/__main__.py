"""`python -m uda_reid` is `uda-reid`, under a launcher too."""

import os
import sys

import uda_reid


def leave_out_working_folder() -> None:
    """Take away the entry of `sys.path` that `python -m` puts before all others, which `uda-reid` does not have.

    A folder of data or recipes of others is no place to import modules or installed strategies from. What Python itself
    imports on the way here it has looked for there before: in a folder that is not trusted, `uda-reid` or
    `python -P -m uda_reid` is safe. Where this package itself lies in the working folder, the entry stays.
    """
    package = os.path.dirname(os.path.dirname(os.path.realpath(uda_reid.__file__)))  # noqa: PTH120 - pathlib is no part of what is loaded
    first, here = os.path.realpath(sys.path[0]), os.path.realpath(os.curdir)
    if not sys.flags.safe_path and first == here != package:
        del sys.path[0]


if __name__ == "__main__":
    leave_out_working_folder()
    from uda_reid.cli import main

    main()
