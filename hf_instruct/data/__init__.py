"""The prepare stage: read examples, find all problems in them, split them."""
