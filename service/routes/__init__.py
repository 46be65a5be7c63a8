"""What is answered: the native API, the read side of a model hub, the page."""
