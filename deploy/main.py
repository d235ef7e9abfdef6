"""The application file for spark-submit, which takes a file and not a module: `embedstream ARGS`.

It lies in a folder of its own: a script's folder comes first in sys.path, and in the package's
folder `import kafka` would find embedstream's room of that name.
"""

from embedstream.cli.app import main

if __name__ == "__main__":
    main()
