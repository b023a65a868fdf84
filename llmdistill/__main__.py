"""`python -m llmdistill`, where the command is not on the path."""

from llmdistill.cli.main import main

if __name__ == "__main__":
    main()
