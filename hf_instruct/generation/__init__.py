"""Generation: answers to the test split, chat, and next-token exploration, all with the same decoding.

`decoding` turns a batch of prompts into completions. Two parts make it fast, and each can be deleted on its own (times
from docs/performance.md: GPT-2 124M, two CPU cores, float32):

- `decoding_loop`: greedy decoding that computes a shared prefix once and drops finished rows: 1.5 times faster than
  batched `generate()`, 8 times one by one. Without it: `decoding` hands every batch to `generate()`.
- `batches`: batches as large as the memory allows. Without it: a fixed batch size.

`endpoint` has a server answer instead.
"""
