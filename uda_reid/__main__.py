"""`python -m uda_reid` is `uda-reid`."""

from uda_reid.cli import main

if __name__ == "__main__":
    main()
