"""The data stage: read examples, find all problems in them, and split them."""
