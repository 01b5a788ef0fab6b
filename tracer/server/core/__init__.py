"""What a server is made of: settings, queue, database, access, uploads, models."""
