"""Backward passes of `encode` and `decode` for training, and Adam on the rows that were touched.

| module | what is in it |
| --- | --- |
| `row_updates` | `RowGradients`, `RowMoments`, `AdamStep`, `adam_rows`: gradients of some rows, and what they do to them |
| `by_feature` | the entries of a layer, and their groups by feature |
| `rows`, `rows_compiled`, `rows_triton` | one layer's backward pass, shared by encoder and decoder |
| `decoder` | `decode_backward`, `decode_layer_backward`, `decode_backward_adam` |
| `encoder` | `encode_backward`, `encode_backward_adam` |
"""
