"""Entry point of ``python -m greenback``; the work is done in ``_runner``."""

from greenback._runner import main

if __name__ == "__main__":
    main()
