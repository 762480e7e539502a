"""The page: chat with models, see how they pick their words, and read their runs side by side."""
