"""The prepare stage: read examples from anywhere, find every fault in them, split them."""
