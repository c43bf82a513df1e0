"""``python -m nablab`` is the command ``nablab``."""

from nablab.cli.main import main

if __name__ == "__main__":
    main()
