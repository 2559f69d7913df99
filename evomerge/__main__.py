"""`python -m evomerge`: the command, where its script is not on the path."""

from evomerge.cli.main import main

if __name__ == "__main__":
    main()
