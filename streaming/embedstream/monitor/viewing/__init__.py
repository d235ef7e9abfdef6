"""The viewer: separate processes that read rows, decode previews and search for the live page.

`process` is the part in the driver; `lane` keeps a child process, `child` is what runs there, and
`wire` is how the two communicate. In the child, `rows` reads the table, `contents` reads the
content of a row, `previews` makes it safe to show, and `questions` searches.
"""
