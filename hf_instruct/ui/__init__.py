"""The local web pages: chat, next-token exploration, comparison of runs, and votes."""
