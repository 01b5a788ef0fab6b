"""Parts of `train_chat_demo.py`."""
