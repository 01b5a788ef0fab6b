"""Reading a prompt with dictionaries: which latents are active where, without replacing anything."""
