"""`python -m embedstream` is the `embedstream` command."""

from embedstream.cli.app import main

if __name__ == "__main__":
    main()
