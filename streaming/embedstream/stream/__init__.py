"""The running query: its checks, its progress, its maintenance."""
