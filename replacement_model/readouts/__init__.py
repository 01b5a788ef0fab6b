"""Read-outs: what features say without replacing anything.

- `feature_stream`: which features are active over a corpus, and how strongly;
- `direct_logits`: which tokens a feature promotes and suppresses.
"""
