"""Optimizations of a training step. Each is exactly equal to the plain computation and can be removed separately.

Their effect was measured on two CPU cores with GPT-2's shapes (docs/performance.md); the tests have the same names.

- `collators`: batches with a shared prompt prefix: half of the tokens on the course's data with batch size 8.
  Without it: `PaddingCollator`, from `sharing.build_collator`.
- `attention`: attention within the segments of such a row: 0.48 s per step instead of 0.59 (124M, batch size 8).
  Without it: rows with a 4-D mask, which `sharing` falls back to anyway.
- `sharing`: checks both on the model before the first step, and chooses the collator.
- `loss`: logits only at the labels, a third of the positions. Without it: `InstructTrainer` falls back to TRL's loss.
- `optimizer`: AdamW inside the backward pass: 1.4 GB less for GPT-2 medium. Without it: TRL's own AdamW.
- `precision`: float32 or bf16, whichever multiplies faster here: 138 s instead of 290 s for 25 steps of the demo on a
  CPU whose bf16 is slow. Without it: `train.bf16`, as the user sets it.
- `casts`: weights cast to bf16 on use: 0.6 GB less for GPT-2 medium. Without it: autocast's own copies.
"""
