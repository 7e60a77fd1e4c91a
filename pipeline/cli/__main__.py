"""`python -m pipeline.cli` is the `cvae` command."""

from pipeline.cli.main import main

if __name__ == "__main__":
    main()
