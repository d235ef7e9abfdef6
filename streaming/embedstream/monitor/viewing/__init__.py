"""The viewer: processes of its own that read rows, decode previews and search for the live page.

`process` is the part in the driver; `lane` keeps a child process, `child` is what runs there, and
`wire` is how the two speak. In the child, `rows` reads the table, `contents` gets what a message
carried, `previews` makes something harmless of it, and `questions` searches.
"""
