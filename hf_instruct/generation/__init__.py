"""Answers: the test split before and after training, chat, and how a model picks its words, all by one decoding.

`decoding` turns a batch of prompts into completions. Two parts make it fast, each of which can be deleted alone (the
times are of docs/performance.md: GPT-2 124M, two CPU cores, float32):

- `decoding_loop`: greedy decoding that computes a common prefix once and drops finished rows: 1.5 times batched
  `generate()`, 8 times one by one. Without it: `decoding` hands every batch to `generate()`.
- `batches`: batches as large as the memory allows. Without it: a fixed batch size.

`endpoint` has a server answer instead.
"""
