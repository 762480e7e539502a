"""The local pages: chat with models, see how they pick their words, read runs side by side, and vote."""
