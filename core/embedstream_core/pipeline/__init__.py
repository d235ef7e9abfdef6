"""From items to outcomes: fetch, decode, batch and forward, overlapped and in order."""
