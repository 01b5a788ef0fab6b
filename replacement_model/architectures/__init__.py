"""What a base model is: where its parts are, how it is loaded, and float32 arithmetic over its stored weights."""
