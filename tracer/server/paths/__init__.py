"""What can be asked for: bodies, handlers, jobs as clients see them."""
